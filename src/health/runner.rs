//! Runs a service's health checks, on a helper thread: one check at a time,
//! ended with its whole process group when it is late.
//!
//! Whoever asks never waits: a check that hangs delays no heartbeat. What it
//! prints is thrown away, and its environment holds no secrets of ours. What
//! its results mean is for `health` to say.

// The doors read the clock and wait.
#![allow(clippy::disallowed_methods)]

use std::env;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::error::plain;
use crate::health::verdict::{Check, HealthOptions};
use crate::text::duration::words;

/// What a check inherits of our environment: nothing in it is a secret.
const INHERITED: [&str; 8] = ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ"];
/// How often a child is looked at: `waitid` has no time limit, and pidfds are
/// younger than some kernels that this runs on.
const GLANCES: [u64; 4] = [1, 2, 5, 10];

/// Success, or why not.
pub type CheckResult = Result<(), String>;

/// Runs checks, one at a time.
pub struct Checkup {
    options: HealthOptions,
    wake: Arc<dyn Fn() + Send + Sync>,
    running: Option<Receiver<CheckResult>>,
    child: Child,
}

/// The process group of the child that is running. Whoever holds the lock may
/// signal it: it is reaped under the lock, too.
type Child = Arc<Mutex<Option<Pid>>>;

impl Checkup {
    /// Nothing runs yet. `wake` is called when a check has ended.
    pub fn new(options: HealthOptions, wake: Arc<dyn Fn() + Send + Sync>) -> Checkup {
        Checkup { options, wake, running: None, child: Child::default() }
    }

    /// What is checked.
    pub fn options(&self) -> &HealthOptions {
        &self.options
    }

    /// Starts a check; where the last one has not ended, although it had its
    /// time (a name look-up can hang), that is the result.
    pub fn start(&mut self) -> Option<CheckResult> {
        if self.running.is_some() {
            return Some(Err("the check before still hangs".into()));
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        let (options, child, wake) =
            (self.options.clone(), Arc::clone(&self.child), Arc::clone(&self.wake));
        let helper = move || {
            let deadline = Instant::now() + options.timeout;
            let run = |check: &Check| {
                carry_out(check, deadline, options.timeout, &child)
                    .map_err(|why| format!("{check}: {why}"))
            };
            sender.send(options.checks.iter().try_for_each(run)).ok();
            wake();
        };
        match thread::Builder::new().name("health".into()).spawn(helper) {
            Ok(_) => {
                self.running = Some(receiver);
                None
            }
            Err(error) => Some(Err(format!("cannot start a thread: {}", plain(&error)))),
        }
    }

    /// The result of the check that was started, once it is there.
    pub fn finished(&mut self) -> Option<CheckResult> {
        let result = match self.running.as_ref()?.try_recv() {
            Ok(result) => result,
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => Err("the check was lost".into()),
        };
        self.running = None;
        Some(result)
    }
}

impl Drop for Checkup {
    fn drop(&mut self) {
        // Nobody is left to end it. Where the lock is taken, that is just
        // being done.
        if let Ok(child) = self.child.try_lock()
            && let Some(group) = *child
        {
            kill_process_group(group, Signal::KILL).ok();
        }
    }
}

fn carry_out(check: &Check, deadline: Instant, limit: Duration, child: &Child) -> CheckResult {
    match check {
        Check::Exec(command) => exec(command, deadline, limit, child),
        Check::Tcp { host, port } => tcp(host, *port, deadline, limit),
    }
}

fn late(limit: Duration) -> String {
    format!("not done within {}", words(limit))
}

fn tcp(host: &str, port: u16, deadline: Instant, limit: Duration) -> CheckResult {
    let addresses = (host, port).to_socket_addrs().map_err(|error| plain(&error))?;
    let mut why = "the name has no address".to_owned();
    for address in addresses {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late(limit));
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => why = late(limit),
            Err(error) => why = plain(&error),
        }
    }
    Err(why)
}

fn exec(command: &[String], deadline: Instant, limit: Duration, child: &Child) -> CheckResult {
    let inherited = INHERITED.iter().filter_map(|name| Some((name, env::var_os(name)?)));
    let mut held = lock(child);
    let mut process = Command::new(&command[0])
        .args(&command[1..])
        .env_clear()
        .envs(inherited)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot be run: {}", plain(&error)))?;
    let group = Pid::from_child(&process);
    *held = Some(group);
    drop(held);

    let mut glances = GLANCES.into_iter();
    let mut glance = Duration::ZERO;
    let in_time = loop {
        // It stays a zombie until it is reaped below, so that its group's
        // number is still its own.
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        match waitid(WaitId::Pid(group), look) {
            Ok(None) => {}
            Ok(Some(_)) | Err(_) => break true,
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break false;
        }
        glance = glances.next().map_or(glance, Duration::from_millis);
        thread::sleep(left.min(glance));
    };
    let mut child = lock(child);
    // Also what an ended check left behind.
    kill_process_group(group, Signal::KILL).ok();
    *child = None;
    let status = process.wait();
    drop(child);
    match status {
        _ if !in_time => Err(late(limit)),
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(status.to_string()),
        Err(error) => Err(plain(&error)),
    }
}

/// A lock whose holder panicked still guards good data: a plain value.
fn lock(child: &Child) -> MutexGuard<'_, Option<Pid>> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}
