//! A host under test: the real program, on ports of its own, in a directory of its own.

use std::io::{BufRead as _, BufReader};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;

use super::client::Client;
use super::guests::{guest, target};
use super::patience::{Lines, ended, seen};

/// How to start a host.
pub struct TestHost {
    components: Vec<PathBuf>,
    config: String,
    log: String,
    setup: String,
    /// Whether compiled code is that of all hosts.
    shares_code: bool,
    /// Whether the configuration says where the operator is served.
    admin_configured: bool,
    directory: TempDir,
}

/// A host that runs. Dropping it kills it.
pub struct Started {
    how: TestHost,
    child: Child,
    client: Client,
    log: Arc<Mutex<Vec<String>>>,
}

impl TestHost {
    /// A host that serves these guests.
    pub fn serving(agents: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("there is room for a temporary directory");
        let components = agents.iter().map(|agent| guest(agent)).collect();
        let (config, setup) = (String::new(), String::new());
        let (shares_code, admin_configured) = (true, false);
        let log = "info".into();
        Self { components, config, log, setup, shares_code, admin_configured, directory }
    }

    /// Compiles for itself, and keeps the code in its own data directory.
    pub fn own_cache(mut self) -> Self {
        self.shares_code = false;
        self
    }

    /// Serves the operator where the configuration says.
    pub fn admin_as_configured(mut self) -> Self {
        self.admin_configured = true;
        self
    }

    /// Has the file of an agent be this from the next start on.
    pub fn with_file(mut self, agent: &str, module: &[u8]) -> Self {
        let file = self.directory.path().join(agent).with_extension("wasm");
        std::fs::write(&file, module).unwrap();
        self.components.retain(|component| component.file_name() != file.file_name());
        self.components.push(file);
        self
    }

    /// Logs what this filter lets through.
    pub fn log(mut self, filter: &str) -> Self {
        self.log = filter.to_owned();
        self
    }

    /// Runs these shell commands in the process that the program then takes over.
    pub fn after(mut self, setup: &str) -> Self {
        self.setup = setup.to_owned();
        self
    }

    /// Runs the program among mounts of its own: these shell commands make them, for which `$DATA` is the data directory and `$CODE` that of
    /// compiled code. None where users may not mount.
    pub fn mounting(self, commands: &str) -> Option<Self> {
        let (data, code) = (self.data(), target().join("test-cache"));
        std::fs::create_dir_all(&data).unwrap();
        let mut trial = Command::new("unshare");
        trial.args(["-rm", "mount", "-t", "tmpfs", "tmpfs"]).arg(&data);
        if !trial.stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
            eprintln!("not tested, as nothing can be mounted here: {commands}");
            return None;
        }
        let variables = format!("export DATA='{}' CODE='{}'", data.display(), code.display());
        let apart =
            format!("exec unshare -rm sh -ec '{commands}\nexec \"$0\" \"$@\"' \"$0\" \"$@\"");
        Some(self.after(&format!("{variables}\n{apart}")))
    }

    /// Serves one more component, under its file's name.
    pub fn component(mut self, file: &Path) -> Self {
        self.components.push(file.to_owned());
        self
    }

    /// Has a link to a component among the files that it serves.
    pub fn linked(self, file: &Path) -> Self {
        std::fs::create_dir_all(self.agents()).unwrap();
        let name = file.file_name().expect("a component is a file");
        std::os::unix::fs::symlink(file, self.agents().join(name)).unwrap();
        self
    }

    /// Adds to the configuration file.
    pub fn config(mut self, toml: &str) -> Self {
        self.config.push_str(toml);
        self.config.push('\n');
        self
    }

    /// Has this for its configuration file from the next start on.
    pub fn configured(mut self, toml: &str) -> Self {
        self.config = toml.to_owned();
        self
    }

    /// The agents' directory.
    pub fn agents(&self) -> PathBuf {
        self.directory.path().join("agents")
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The file of the journal.
    pub fn journal(&self) -> PathBuf {
        self.data().join("journal.redb")
    }

    /// Serves these guests and no others from the next start on.
    pub fn serving_instead(mut self, agents: &[&str]) -> Self {
        self.components = agents.iter().map(|agent| guest(agent)).collect();
        std::fs::remove_dir_all(self.agents()).unwrap();
        self
    }

    /// The program with its arguments, and all that they name in place.
    fn program(&self) -> Command {
        let agents = self.agents();
        std::fs::create_dir_all(&agents).unwrap();
        for component in &self.components {
            let name = component.file_name().expect("a component is a file");
            std::fs::copy(component, agents.join(name)).unwrap();
        }
        if self.shares_code {
            share_compiled_code(&self.data());
        }
        let config = self.directory.path().join("bureau.toml");
        std::fs::write(&config, &self.config).unwrap();
        let mut program = Command::new("sh");
        program.arg("-c").arg(format!("{}\nexec \"$0\" \"$@\"", self.setup));
        program.arg(env!("CARGO_BIN_EXE_bureau"));
        program.arg("serve").arg("--agents").arg(&agents).arg("--data").arg(self.data());
        program.args(["--listen", "127.0.0.1:0"]).arg("--config").arg(config);
        if !self.admin_configured {
            program.args(["--admin", "127.0.0.1:0"]);
        }
        program.env("RUST_LOG", &self.log);
        program.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        program
    }

    /// Checks the data as an operator would, while no host has it.
    pub fn assert_consistent(&self) {
        let mut check = Command::new(env!("CARGO_BIN_EXE_bureau"));
        let Output { status, stdout, stderr } =
            check.arg("check").arg("--data").arg(self.data()).output().unwrap();
        let said = [stdout, stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        assert!(status.success(), "{status}: {}", said.join("\n"));
    }

    /// Starts the program, which refuses to: how it ends, and what it says on standard error.
    pub fn refuses(&self) -> (ExitStatus, String) {
        let mut child = self.program().spawn().expect("the program was built with the tests");
        let ready = Lines::of(child.stdout.take().expect("it was asked for")).next();
        if ready.is_some() {
            drop(child.kill());
        }
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        assert_eq!(ready, None, "the host starts");
        (status, String::from_utf8(stderr).unwrap())
    }

    /// Starts the program and ends it at once after `moment`, as `kill -9` does, ready or not.
    pub fn kill_while_starting(self, moment: Duration) -> Self {
        let mut child = self.program().spawn().expect("the program was built with the tests");
        std::thread::sleep(moment);
        child.kill().expect("the process is ours");
        child.wait().expect("the process is ours");
        self
    }

    /// Starts the program and waits until it is ready.
    pub fn start(self) -> Started {
        let mut child = self.program().spawn().expect("the program was built with the tests");
        let log = gather(child.stderr.take().expect("it was asked for"));
        let mut stdout = Lines::of(child.stdout.take().expect("it was asked for"));
        let ready = stdout.next().unwrap_or_default();
        // bureau: ready on http://127.0.0.1:1 (admin http://127.0.0.1:2), 1 agent
        let addresses: Vec<_> = ready
            .split([' ', ')', '(', ','])
            .filter(|word| word.starts_with("http"))
            .map(str::to_owned)
            .collect();
        let [url, admin] = addresses.try_into().unwrap_or_else(|_| {
            let status = ended(&mut child);
            panic!(
                "the host did not get ready: {status:?} {ready:?}\n{}",
                log.lock().unwrap().join("\n")
            )
        });
        Started { how: self, child, client: Client::new(url, admin), log }
    }
}

/// Gives the host of this data directory the compiled guests of all others: compiling them anew for each test would
/// take longer than the tests.
pub(super) fn share_compiled_code(data: &Path) {
    let shared = target().join("test-cache");
    std::fs::create_dir_all(&shared).unwrap();
    std::fs::create_dir_all(data).unwrap();
    let own = data.join("cache");
    if !own.exists() {
        std::os::unix::fs::symlink(shared, own).unwrap();
    }
}

fn gather(stream: impl std::io::Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let gathered = lines.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            gathered.lock().unwrap().push(line);
        }
    });
    lines
}

impl Started {
    /// The log lines so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Waits until a line of the log satisfies this. A host that ends without it fails the test.
    pub async fn logged(&self, what: impl Fn(&str) -> bool) -> String {
        seen("a line of the log", async || {
            // Whoever gathers the lines holds them too, until the last one.
            let over = Arc::strong_count(&self.log) == 1;
            let line = self.log().into_iter().find(|line| what(line));
            assert!(line.is_some() || !over, "the host has ended and did not say that");
            line
        })
        .await
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the process at once, as `kill -9` does.
    pub fn kill(mut self) -> TestHost {
        self.child.kill().expect("the process is ours");
        self.child.wait().expect("the process is ours");
        self.take()
    }

    /// Sends the process a signal, `TERM` or `INT`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg("-s").arg(name).arg(self.pid().to_string()).status();
        assert!(status.unwrap().success());
    }

    /// Waits until the process has ended.
    pub fn ended(mut self) -> (ExitStatus, TestHost) {
        (ended(&mut self.child), self.take())
    }

    /// Asks the process to end, as `kill` does, and waits until it has.
    pub fn terminate(self) -> (ExitStatus, TestHost) {
        self.signal("TERM");
        self.ended()
    }

    /// How the host was started.
    pub fn how(&self) -> &TestHost {
        &self.how
    }

    /// How the host was started, to start it again on the same data.
    fn take(&mut self) -> TestHost {
        let nothing = TestHost {
            components: Vec::new(),
            config: String::new(),
            log: String::new(),
            setup: String::new(),
            shares_code: true,
            admin_configured: false,
            directory: TempDir::with_prefix("left").unwrap(),
        };
        std::mem::replace(&mut self.how, nothing)
    }
}

impl Deref for Started {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the host had said: {:#?}", self.log());
        }
        // A process that has ended already cannot be killed, which is as well.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The directory of a host that was killed can be looked into.
impl AsRef<Path> for TestHost {
    fn as_ref(&self) -> &Path {
        self.directory.path()
    }
}
