//! The host's own settings: the file that the units read, for every verb.
//!
//! Reads it and keeps what it says. Its syntax is for `env_file` to
//! know, and what beats what for `values` and `settings`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::env_file;
use crate::error::{Failure, Kind, plain};
use crate::files;
use crate::nats::address::shown_name;

/// Where the packages put it.
pub(super) const ENV_FILE: &str = "/etc/aegis-agent/agent.env";

/// What the host's file says. Its values may be secrets: no `Debug`.
pub(super) struct HostFile {
    path: PathBuf,
    variables: BTreeMap<String, String>,
    unreadable: Option<String>,
}

impl HostFile {
    /// As if there were none.
    pub(super) fn none(path: &Path) -> HostFile {
        HostFile { path: path.to_owned(), variables: BTreeMap::new(), unreadable: None }
    }

    /// The file of `--env-file`, which has to be readable; else the one at
    /// `default`, where there is one that can be read.
    pub(super) fn read(given: Option<&str>, default: &Path) -> Result<HostFile, Failure> {
        let path = given.map_or(default.to_owned(), PathBuf::from);
        let shown = shown_name(&path.display().to_string());
        let bad =
            |why: &str| Failure::new(Kind::Config, format!("environment file {shown}: {why}"));
        let mut file = HostFile::none(&path);
        match files::read(&file.path, files::LARGEST) {
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => file.variables = env_file::parse(&text),
                Err(_) => return Err(bad("not UTF-8")),
            },
            Err(error) if given.is_some() => {
                return Err(bad(&plain(&error)).with_hint("--env-file names it"));
            }
            // Not the system's word: it can be read, and is no such file.
            Err(error) if error.raw_os_error().is_none() => return Err(bad(&plain(&error))),
            Err(error) if is_absent(&error) => {}
            Err(error) => {
                let why = plain(&error);
                file.unreadable = Some(format!("{shown} exists and cannot be read: {why}"));
            }
        }
        Ok(file)
    }

    /// What it says of a variable; one that is empty counts as not set.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// That it is there and cannot be read, and why.
    pub(super) fn unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
