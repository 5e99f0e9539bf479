//! Writes a small file again and again, and never waits for its file system.
//!
//! Each text is written by a process of its own (`ourselves`), with the text as its
//! standard input. There is never more than one of them.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::error::plain;
use crate::system::ourselves::{Helper, Helpers};
use crate::system::textfile;

/// The first argument of the process that writes. Not for people.
const WORD: &str = "write-text-file-from-standard-input";
/// No text of ours is longer.
const LONGEST: u64 = 1 << 20;

/// Writes one file.
#[derive(Debug)]
pub struct TextWriter {
    path: PathBuf,
    helpers: Helpers,
    writing: Option<Helper>,
}

impl TextWriter {
    /// Nothing is written yet. The process that writes is one of `helpers`.
    pub fn new(path: PathBuf, helpers: Helpers) -> TextWriter {
        TextWriter { path, helpers, writing: None }
    }

    /// What is written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a process writes. Its end comes as SIGCHLD, and is for `finished` to
    /// take.
    pub fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// Begins to write, unless that is under way; `true` where the result is
    /// still to come.
    pub fn begin(&mut self, text: &str) -> io::Result<bool> {
        if self.writing.is_some() {
            return Ok(true);
        }
        match start(&self.path, text, &self.helpers) {
            Ok(helper) => {
                self.writing = Some(helper);
                Ok(true)
            }
            // Where there is no /proc there is no other way.
            Err(_) => textfile::replace(&self.path, text).map(|()| false),
        }
    }

    /// The result of what was begun, once it is there.
    pub fn finished(&mut self) -> Option<io::Result<()>> {
        let child = &mut self.writing.as_mut()?.child;
        let status = match child.try_wait() {
            Ok(None) => return None,
            Ok(Some(status)) => Ok(status),
            Err(error) => Err(error),
        };
        let mut why = String::new();
        // It has ended, so there is an end to what it said.
        if let Some(said) = child.stdout.take() {
            said.take(LONGEST).read_to_string(&mut why).ok();
        }
        self.writing = None;
        Some(status.and_then(|status| match status.success() {
            true => Ok(()),
            false if why.is_empty() => Err(io::Error::other(status.to_string())),
            false => Err(io::Error::other(why)),
        }))
    }
}

/// Starts a process that writes `text`. It gets it whole at once, so that
/// nobody waits for it: a pipe can be smaller than the text.
fn start(path: &Path, text: &str, helpers: &Helpers) -> io::Result<Helper> {
    let mut input = File::from(memfd_create("text", MemfdFlags::CLOEXEC)?);
    input.write_all(text.as_bytes())?;
    input.rewind()?;
    let number = std::process::id().to_string();
    let words = [OsStr::new(WORD), OsStr::new(&number), path.as_os_str()];
    helpers.start(&words, input.into())
}

/// The part of the process that writes; `None` where the call is another one.
/// What is wrong is said on standard output.
pub fn write_if_asked(args: &[OsString]) -> Option<ExitCode> {
    let [word, writer, path] = args else {
        return None;
    };
    if word != WORD {
        return None;
    }
    let mut text = String::new();
    let read = io::stdin().lock().take(LONGEST).read_to_string(&mut text);
    let number = writer.to_str().and_then(|text| text.parse().ok()).unwrap_or_default();
    let written = read.and_then(|_| textfile::replace_for(Path::new(path), &text, number));
    let Err(error) = written else {
        return Some(ExitCode::SUCCESS);
    };
    io::stdout().write_all(plain(&error).as_bytes()).ok();
    Some(ExitCode::FAILURE)
}
