//! Looks at a file again and again, and never waits for its file system.
//!
//! That there is no file the kernel mostly knows without asking the file system,
//! and says so for the price of one call. Everything else is looked at by a
//! process of its own (`ourselves`), of which there is never more than one.

// A door: it waits for a process.
#![allow(clippy::disallowed_methods)]

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Instant;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::ourselves::{Helper, Helpers};
use crate::nats::Interest;
use crate::nats::waiter::poll_all;

/// The first argument of the process that looks. Not for people.
const WORD: &str = "look-at-file-and-say-on-standard-output";
/// No answer is longer.
const LONGEST: u64 = 4 << 10;

/// Looks at one file.
#[derive(Debug)]
pub struct Looker {
    path: PathBuf,
    helpers: Helpers,
    looking: Option<Helper>,
}

impl Looker {
    /// Nothing was looked at yet. The process that looks is one of `helpers`.
    pub fn new(path: PathBuf, helpers: Helpers) -> Looker {
        Looker { path, helpers, looking: None }
    }

    /// What is looked at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a look is under way.
    pub fn is_looking(&self) -> bool {
        self.looking.is_some()
    }

    /// Begins to look, unless that is under way. The error is that no process can
    /// be started.
    pub fn begin(&mut self) -> io::Result<()> {
        if self.looking.is_none() {
            let words = [OsStr::new(WORD), self.path.as_os_str()];
            self.looking = Some(self.helpers.start(&words, Stdio::null())?);
        }
        Ok(())
    }

    /// What the process said, if that comes before `until`, and before a signal
    /// after which `stopped` is so.
    pub fn answer(&mut self, until: Instant, stopped: impl Fn() -> bool) -> Option<Vec<u8>> {
        let child = &mut self.looking.as_mut()?.child;
        let mut said = Vec::new();
        if let Some(out) = child.stdout.as_mut() {
            let mut interest = [Interest::reading(out.as_fd(), false)];
            // A signal, such as the end of a health check, ends the poll early.
            while !interest[0].ready {
                poll_all(&mut interest, Some(until));
                if !interest[0].ready && (stopped() || Instant::now() >= until) {
                    return None;
                }
            }
            // It says all at once, in its last moment.
            out.take(LONGEST).read_to_end(&mut said).ok();
        }
        child.wait().ok();
        self.looking = None;
        Some(said)
    }
}

/// Whether the kernel knows, without asking any file system, that nothing is
/// there. (`RESOLVE_CACHED`, Linux 5.12: openat2(2).)
pub fn is_known_to_be_absent(path: &Path) -> bool {
    let opened =
        openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::CACHED);
    matches!(opened, Err(Errno::NOENT | Errno::NOTDIR))
}

/// The part of the process that looks; `None` where the call is another one.
/// `look` says what there is to say of the file.
pub fn look_if_asked(args: &[OsString], look: impl FnOnce(&Path) -> Vec<u8>) -> Option<ExitCode> {
    let [word, path] = args else {
        return None;
    };
    if word != WORD {
        return None;
    }
    let said = look(Path::new(path));
    io::stdout().write_all(&said).ok();
    Some(ExitCode::SUCCESS)
}

#[cfg(test)]
#[allow(clippy::print_stderr)]
mod tests {
    use super::*;

    #[test]
    fn that_nothing_is_there_is_known_once_it_was_looked_at() {
        let directory = std::env::temp_dir().join(format!("aegis-looker-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("file");
        assert!(!path.exists());
        match openat2(CWD, &directory, OFlags::PATH, Mode::empty(), ResolveFlags::CACHED) {
            Err(Errno::INVAL | Errno::NOSYS) => {
                eprintln!("SKIPPED: this kernel does not say what it knows");
            }
            _ => assert!(is_known_to_be_absent(&path)),
        }
        std::fs::write(&path, "").unwrap();
        assert!(!is_known_to_be_absent(&path));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
