//! Runs the command of `--exec`: one at a time, and in nobody's way.
//!
//! Nothing in here waits. Whoever owns the loop polls what `interest` names,
//! comes back by `wake_at`, and calls `attend`; the end of a child comes as
//! SIGCHLD. A command that is late is ended with its whole process group.

// A door: it starts processes.
#![allow(clippy::disallowed_methods)]

use std::env;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use log::{info, warn};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::error::plain;
use crate::health::runner::has_ended;
use crate::nats::Interest;
use crate::text::duration::words;

/// A command that takes longer is ended, so that the next one gets the changes
/// that came meanwhile.
const LIMIT: Duration = Duration::from_secs(30);

/// The command, and what it has not been told.
pub(super) struct Hook {
    command: Vec<String>,
    settle: Duration,
    /// Changes since a command that succeeded began.
    changes: u64,
    /// It is to run then, unless it runs.
    due: Option<Instant>,
    running: Option<Running>,
    has_failed: bool,
    /// Killed, and not seen to be gone yet.
    dying: Vec<Child>,
}

struct Running {
    child: Child,
    /// Where the state goes, as far as it has not gone.
    stdin: Option<(ChildStdin, Vec<u8>, usize)>,
    began: Instant,
    changes: u64,
}

impl Hook {
    /// Nothing runs yet.
    pub(super) fn new(command: Vec<String>, settle: Duration) -> Hook {
        Hook {
            command,
            settle,
            changes: 0,
            due: None,
            running: None,
            has_failed: false,
            dying: Vec::new(),
        }
    }

    /// Something changed: what changes within the settling time goes together.
    pub(super) fn changed(&mut self, now: Instant) {
        self.changes += 1;
        self.due.get_or_insert(now + self.settle);
    }

    /// The picture is up to date.
    pub(super) fn synced(&mut self, now: Instant) {
        self.due = Some(now);
    }

    /// When it is to run next; `None` while it runs.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due.filter(|_| self.running.is_none())
    }

    /// Runs it with `state` as its input.
    pub(super) fn start(&mut self, state: Vec<u8>, now: Instant) {
        self.due = None;
        let changes = std::mem::take(&mut self.changes);
        match spawn(&self.command, changes) {
            Ok((child, stdin)) => {
                let stdin = Some((stdin, state, 0));
                self.running = Some(Running { child, stdin, began: now, changes });
                self.feed();
            }
            Err(why) => self.failed(changes, &format!("cannot be run: {}", plain(&why))),
        }
    }

    fn failed(&mut self, changes: u64, why: &str) {
        self.changes += changes;
        self.has_failed = true;
        warn!("--exec {}: {why}; it runs again with the next change", self.command[0]);
    }

    /// What to wait for.
    pub(super) fn interest(&self) -> Option<Interest<'_>> {
        let (stdin, ..) = self.running.as_ref()?.stdin.as_ref()?;
        Some(Interest { fd: stdin.as_fd(), read: false, write: true, ready: false })
    }

    /// When `attend` has something to do at the latest.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.running.as_ref().map(|running| running.began + LIMIT)
    }

    /// Goes on with what is under way, without waiting.
    pub(super) fn attend(&mut self, now: Instant) {
        self.dying.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        self.feed();
        let Some(running) = &self.running else { return };
        let late = now >= running.began + LIMIT;
        if late || has_ended(&running.child) {
            self.end(late);
        }
    }

    fn feed(&mut self) {
        let Some(running) = &mut self.running else { return };
        let Some((stdin, state, at)) = &mut running.stdin else { return };
        while *at < state.len() {
            match stdin.write(&state[*at..]) {
                Ok(count) => *at += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The command closed its input: it has what it needs, or is
                // gone.
                Err(_) => break,
            }
        }
        running.stdin = None;
    }

    fn end(&mut self, late: bool) {
        let Some(Running { mut child, changes, .. }) = self.running.take() else { return };
        // Not reaped yet: until then no other process can get the number of its
        // group.
        if late {
            kill_process_group(Pid::from_child(&child), Signal::KILL).ok();
        }
        let status = child.try_wait();
        if let Ok(None) = status {
            self.dying.push(child);
        }
        match status {
            _ if late => self.failed(changes, &format!("not done within {}, ended", words(LIMIT))),
            Ok(Some(status)) if status.success() => {
                if std::mem::take(&mut self.has_failed) {
                    info!("--exec {}: works again", self.command[0]);
                }
            }
            Ok(Some(status)) => self.failed(changes, &status.to_string()),
            Ok(None) => self.failed(changes, "its end cannot be seen"),
            Err(error) => self.failed(changes, &plain(&error)),
        }
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        // Nobody is left to end it.
        if let Some(mut running) = self.running.take() {
            kill_process_group(Pid::from_child(&running.child), Signal::KILL).ok();
            running.child.try_wait().ok();
        }
    }
}

/// Starts it, with nothing of ours in its environment that may be a secret. Its
/// output goes where our log goes: standard output belongs to the events.
fn spawn(command: &[String], changes: u64) -> io::Result<(Child, ChildStdin)> {
    let ours = |name: &str| name.starts_with("NATS_") || name.starts_with("AEGIS_");
    let log = io::stderr().as_fd().try_clone_to_owned()?;
    let inherited = env::vars_os().filter(|(name, _)| !ours(&name.to_string_lossy()));
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .env_clear()
        .envs(inherited)
        .env("AEGIS_EVENTS", changes.to_string())
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(log)
        .spawn()?;
    let stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let flags = fcntl_getfl(&stdin)?;
    fcntl_setfl(&stdin, flags | OFlags::NONBLOCK)?;
    Ok((child, stdin))
}
