//! Draining: while a file exists the instance says `STANDBY`, and why.
//!
//! The file is looked at before each heartbeat. Whoever made it need not have
//! let us read it: that it is there is enough. A file system that does not answer
//! holds up no heartbeat: then nothing changes, and that is said.

// A door: it reads the clock.
#![allow(clippy::disallowed_methods)]

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::error::plain;
use crate::files;
use crate::system::looker::{self, Looker, is_known_to_be_absent};
use crate::system::ourselves::Helpers;
use crate::text::printable::clipped;

/// Characters of the reason; the rest is cut.
const LONGEST_REASON: usize = 200;
/// Bytes of the file that are read.
const LONGEST_FILE: u64 = 64 << 10;
/// A heartbeat waits so long for an answer; the next ones do not.
const PATIENCE: Duration = Duration::from_millis(500);
/// The same for the first one: an agent that starts drained is never shown as
/// active, also on a host that is busy starting.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);

/// Why it cannot be told whether to drain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unknown {
    /// The answer has not come yet: a busy host, or a file system that hangs.
    Late,
    /// In words.
    Because(String),
}

/// The file of one agent.
pub(super) struct DrainFile {
    looker: Looker,
    patience: Duration,
}

impl DrainFile {
    /// Not looked at yet. The process that looks is one of `helpers`.
    pub(super) fn new(path: PathBuf, helpers: Helpers) -> DrainFile {
        DrainFile { looker: Looker::new(path, helpers), patience: FIRST_PATIENCE }
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        self.looker.path()
    }

    /// As `look`, without ever waiting for the file system for longer than its
    /// patience, or after a signal that has `stopped` us.
    pub(super) fn look(&mut self, stopped: impl Fn() -> bool) -> Result<Option<String>, Unknown> {
        let now = Instant::now();
        // What comes late is of earlier: it is looked at anew.
        if self.looker.is_looking() && self.looker.answer(now, &stopped).is_none() {
            return Err(Unknown::Because("its file system does not answer".to_owned()));
        }
        if is_known_to_be_absent(self.looker.path()) {
            return Ok(None);
        }
        if self.looker.begin().is_err() {
            // Where there is no /proc there is no other way.
            return look(self.looker.path()).map_err(Unknown::Because);
        }
        let until = now + std::mem::replace(&mut self.patience, PATIENCE);
        match self.looker.answer(until, stopped) {
            Some(said) => heard(&said).map_err(Unknown::Because),
            None => Err(Unknown::Late),
        }
    }
}

/// The part of the process that looks; `None` where the call is another one.
pub fn look_if_asked(args: &[OsString]) -> Option<ExitCode> {
    looker::look_if_asked(args, |path| told(look(path)))
}

/// What was found, in bytes: its first letter says what it is.
fn told(found: Result<Option<String>, String>) -> Vec<u8> {
    match found {
        Ok(None) => b"-".to_vec(),
        Ok(Some(reason)) => format!("+{reason}").into_bytes(),
        Err(why) => format!("!{why}").into_bytes(),
    }
}

fn heard(said: &[u8]) -> Result<Option<String>, String> {
    let text = |rest: &[u8]| String::from_utf8_lossy(rest).into_owned();
    match said.split_first() {
        Some((b'-', [])) => Ok(None),
        Some((b'+', rest)) => Ok(Some(text(rest))),
        Some((b'!', rest)) => Err(text(rest)),
        _ => Err("who looks at it came to an end".to_owned()),
    }
}

/// Whether to drain, and why, as the file says: its first line, which may be
/// empty. The error is that it cannot be told whether there is one.
fn look(path: &Path) -> Result<Option<String>, String> {
    match path.metadata() {
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(plain(&error)),
        // What is no file has no line; a pipe might never end.
        Ok(metadata) if !metadata.is_file() => Ok(Some(String::new())),
        Ok(_) => match files::read(path, LONGEST_FILE) {
            Ok(bytes) => Ok(Some(reason(&bytes))),
            // Gone since.
            Err(error) if is_absent(&error) => Ok(None),
            Err(_) => Ok(Some(String::new())),
        },
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn reason(bytes: &[u8]) -> String {
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    clipped(String::from_utf8_lossy(line).trim(), LONGEST_REASON)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_told_is_heard() {
        for found in [
            Ok(None),
            Ok(Some(String::new())),
            Ok(Some("kernel upgrade: é".to_owned())),
            Err("Permission denied".to_owned()),
        ] {
            assert_eq!(heard(&told(found.clone())), found);
        }
        for said in [&b""[..], b"-x", b"x"] {
            assert!(heard(said).is_err());
        }
    }

    #[test]
    fn the_file_is_the_switch_and_its_first_line_the_reason() {
        let directory = std::env::temp_dir().join(format!("aegis-drain-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("drain");
        fs::remove_file(&path).ok();
        assert_eq!(look(&path), Ok(None));
        assert_eq!(look(&path.join("below")), Ok(None));
        for (text, reason) in [
            ("", ""),
            ("\nsecond", ""),
            ("kernel upgrade", "kernel upgrade"),
            ("  kernel upgrade \r\nmore", "kernel upgrade"),
            ("a\u{1b}[2Jb\u{202e}c", "a\\u{1b}[2Jb\\u{202e}c"),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(look(&path), Ok(Some(reason.to_owned())), "{text:?}");
        }
        fs::write(&path, [0xff, b'x', b'\n']).unwrap();
        assert_eq!(look(&path), Ok(Some("\u{fffd}x".to_owned())));
        fs::write(&path, "é".repeat(300)).unwrap();
        let reason = look(&path).unwrap().unwrap();
        assert_eq!((reason.chars().count(), reason.ends_with("é…")), (200, true));
        // Too large to be read, or a directory: it is there all the same.
        fs::write(&path, vec![b'x'; 70_000]).unwrap();
        assert_eq!(look(&path), Ok(Some(String::new())));
        assert_eq!(look(&directory), Ok(Some(String::new())));
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(look(&path), Ok(None));
    }
}
