//! The host's own settings: the file that the units read, for every verb.
//!
//! Reads it, bounded, and keeps what it says. Its syntax is for `env_file` to
//! know, and what beats what for `values` and `settings`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::env_file;
use crate::error::{Failure, Kind, plain};
use crate::nats::address::shown_name;

/// Where the packages put it.
pub const ENV_FILE: &str = "/etc/aegis-agent/agent.env";
/// A file larger than this holds no settings.
const FILE_LIMIT: u64 = 1 << 20;

/// What the host's file says. Its values may be secrets: no `Debug`.
pub(super) struct HostFile {
    path: PathBuf,
    variables: BTreeMap<String, String>,
    unreadable: Option<String>,
}

impl HostFile {
    /// The file of `--env-file`, which has to be readable; else the one at
    /// `default`, where there is one that can be read.
    pub(super) fn read(given: Option<&str>, default: &Path) -> Result<HostFile, Failure> {
        let path = given.map_or(default.to_owned(), PathBuf::from);
        let shown = shown_name(&path.display().to_string());
        let bad =
            |why: &str| Failure::new(Kind::Config, format!("environment file {shown}: {why}"));
        let mut file = HostFile { path, variables: BTreeMap::new(), unreadable: None };
        match bytes_of(&file.path) {
            Ok(bytes) if bytes.len() as u64 > FILE_LIMIT => return Err(bad("larger than 1 MiB")),
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => file.variables = env_file::parse(&text),
                Err(_) => return Err(bad("not UTF-8")),
            },
            Err(error) if given.is_some() => {
                return Err(bad(&plain(&error)).with_hint("--env-file names it"));
            }
            Err(error) if is_absent(&error) => {}
            Err(error) => {
                file.unreadable =
                    Some(format!("{shown} exists and cannot be read: {}", plain(&error)));
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

/// At most one byte more than the limit, and never waits for a writer.
fn bytes_of(path: &Path) -> io::Result<Vec<u8>> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits();
    let file: File = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
