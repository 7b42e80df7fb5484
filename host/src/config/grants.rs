//! What one agent is granted beyond its instance: hosts, secrets, files.
//!
//! A secret is named in the file and is kept elsewhere: in the environment variable of that name, or in the file that the variable
//! of that name and `_FILE` names, as orchestrators mount them. Its value is read when the configuration is, and is in nothing that is shown.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{AgentConfig, ConfigError, Secret, invalid};

/// Reads the secrets of these names.
pub(super) fn secrets(
    agent: &str,
    names: Vec<String>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<BTreeMap<String, Secret>, ConfigError> {
    let read = names.into_iter().map(|name| match secret(&name, &environment) {
        Ok(secret) => Ok((name, secret)),
        Err(why) => Err(invalid(format!("agents.{agent}.secrets"), why)),
    });
    read.collect()
}

/// Reads a secret. What is wrong is said without any of it.
fn secret(name: &str, environment: impl Fn(&str) -> Option<OsString>) -> Result<Secret, String> {
    let file = format!("{name}_FILE");
    match (environment(name), environment(&file)) {
        (Some(_), Some(_)) => Err(format!("both {name} and {file} are in the environment")),
        (Some(value), None) => match value.into_string() {
            Ok(value) => Ok(value.into()),
            Err(_) => Err(format!("{name} in the environment is not UTF-8")),
        },
        (None, Some(path)) => {
            let path = PathBuf::from(path);
            let read = std::fs::read_to_string(&path);
            let text = read.map_err(|error| {
                format!("{file} names {}, which cannot be read: {error}", path.display())
            })?;
            // Editors end a file with a newline, and no secret does.
            Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned().into())
        }
        (None, None) => Err(format!("neither {name} nor {file} is in the environment")),
    }
}

/// Holds what an agent is granted against itself and the disk.
pub(super) fn check(agent: &str, granted: &AgentConfig) -> Result<(), ConfigError> {
    let AgentConfig { config, secrets, files, .. } = granted;
    if let Some(name) = secrets.keys().find(|name| config.contains_key(*name)) {
        let why =
            format!("{name:?} is in agents.{agent}.config too, and the agent reads both by name");
        return Err(invalid(format!("agents.{agent}.secrets"), why));
    }
    let is_directory = |path: &Path| match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(format!("{} is not a directory", path.display())),
        Err(error) => Err(format!("{} cannot be read: {error}", path.display())),
    };
    let files = files.as_deref().map_or(Ok(()), is_directory);
    files.map_err(|why| invalid(format!("agents.{agent}.files"), why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_in_the_environment_or_in_a_file_that_it_names() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().display().to_string();
        let read = |set: &[(&str, &str)]| {
            let found = |name: &str| set.iter().find(|(key, _)| *key == name);
            let secret = secret("KEY", |name| found(name).map(|(_, value)| OsString::from(value)));
            secret.map(|secret| secret.reveal().to_owned())
        };
        assert_eq!(read(&[("KEY", "sesame")]), Ok("sesame".into()));
        for (text, secret) in [("sesame", "sesame"), ("sesame\n", "sesame"), ("a\nb\n\n", "a\nb\n")]
        {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(read(&[("KEY_FILE", &path)]), Ok(secret.into()));
        }
        let refused = |set: &[(&str, &str)], why: &str| {
            let error = read(set).unwrap_err();
            assert!(error.contains(why) && !error.contains("sesame"), "{error}");
        };
        refused(&[("OTHER", "sesame")], "neither KEY nor KEY_FILE is in the environment");
        refused(&[("KEY", "sesame"), ("KEY_FILE", &path)], "both KEY and KEY_FILE are");
        refused(&[("KEY_FILE", "/nowhere/key")], "KEY_FILE names /nowhere/key");
        std::fs::write(file.path(), b"sesame\xff").unwrap();
        refused(&[("KEY_FILE", &path)], "which cannot be read");
    }
}
