//! The configuration in force, as a file that would say the same.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::unit::{Span, SpanOrZero, Unit as _};
use super::{AgentConfig, Auth, Config, TlsFiles};

impl Config {
    /// The whole of it in TOML, defaults included. What must not be shown is left out, with a word on that.
    pub fn print(&self) -> String {
        let mut out = Printer::default();
        out.value("listen", self.listen.to_string());
        out.value("admin", self.admin.to_string());
        out.secret("admin_token", self.admin_token.is_some());
        out.value("data", self.data.display().to_string());
        match &self.agents_dir {
            Some(directory) => out.value("agents_dir", directory.display().to_string()),
            None => out.none("agents_dir"),
        }
        out.line("resumptions_at_once", Some(self.resumptions_at_once.to_string()));
        out.line("grace", SpanOrZero::print(&self.grace));
        let tls = |file: fn(&TlsFiles) -> &PathBuf| {
            let file = self.tls.as_ref().map(file);
            file.map(|file| quoted(&file.display().to_string()))
        };
        out.table("tls", [("cert", tls(|tls| &tls.cert)), ("key", tls(|tls| &tls.key))]);
        out.table("http", self.http.print());
        out.table("cors", [("origins", Some(list(self.cors.origins.iter().cloned())))]);
        out.heading("auth");
        out.auth(&self.auth);
        out.table("deployments", self.deployments.print());
        out.table("instances", self.instances.print());
        out.table("outbound", self.outbound.print());
        out.table("journal", self.journal.print());
        for (name, agent) in &self.agents {
            let AgentConfig { config, health, allow_hosts, secrets, files, auth, limits } = agent;
            let hosts =
                allow_hosts.as_ref().map(|hosts| list(hosts.iter().map(ToString::to_string)));
            let secrets = list(secrets.keys().cloned());
            let granted = [
                ("health", health.as_deref().map(quoted)),
                ("allow_hosts", hosts),
                ("secrets", Some(secrets)),
                ("files", files.as_ref().map(|files| quoted(&files.display().to_string()))),
            ];
            out.table(&format!("agents.{name}"), granted);
            if !config.is_empty() {
                out.heading(&format!("agents.{name}.config"));
                // The keys are the agent's, and need quotes of other kinds than values.
                let config = config.iter().map(|(key, value)| (key.clone(), value.clone().into()));
                let lines = config.collect::<toml::Table>().to_string();
                out.push(format_args!("{}", lines.trim_end()));
            }
            match auth {
                // That it is a hook is said where it is named as one.
                None | Some(Auth::Closed) => {}
                Some(auth) => {
                    out.heading(&format!("agents.{name}.auth"));
                    out.auth(auth);
                }
            }
            out.table(&format!("agents.{name}.limits"), limits.print());
        }
        out.0
    }
}

#[derive(Default)]
struct Printer(String);

impl Printer {
    fn heading(&mut self, table: &str) {
        self.push(format_args!("\n[{table}]"));
    }

    fn table<'a>(
        &mut self,
        table: &str,
        values: impl IntoIterator<Item = (&'a str, Option<String>)>,
    ) {
        self.heading(table);
        values.into_iter().for_each(|(key, value)| self.line(key, value));
    }

    fn value(&mut self, key: &str, text: String) {
        self.line(key, Some(quoted(&text)));
    }

    fn line(&mut self, key: &str, value: Option<String>) {
        match value {
            Some(value) => self.push(format_args!("{key} = {value}")),
            None => self.none(key),
        }
    }

    fn none(&mut self, key: &str) {
        self.push(format_args!("# {key}: none"));
    }

    fn secret(&mut self, key: &str, is_set: bool) {
        match is_set {
            true => self.push(format_args!("# {key}: set, and not shown")),
            false => self.none(key),
        }
    }

    fn auth(&mut self, auth: &Auth) {
        match auth {
            Auth::Open => self.line("open", Some("true".into())),
            Auth::Tokens(_) => self.secret("tokens", true),
            Auth::Hook(hook) => {
                self.value("hook", hook.agent.to_string());
                self.line("timeout", Span::print(&hook.timeout));
            }
            Auth::Closed => {}
        }
    }

    fn push(&mut self, line: std::fmt::Arguments<'_>) {
        // A string takes whatever is written to it.
        let _ = writeln!(self.0, "{line}");
    }
}

/// A string as TOML has it.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// Strings as TOML has them.
fn list(texts: impl Iterator<Item = String>) -> String {
    toml::Value::from(texts.collect::<Vec<_>>()).to_string()
}
