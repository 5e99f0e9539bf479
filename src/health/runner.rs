//! Runs a service's health checks: one at a time, and in nobody's way.
//!
//! Nothing in here waits. Whoever owns the loop polls what `interest` names,
//! comes back by `wake_at`, and calls `attend`. A check that is late is ended
//! with its whole process group. What it prints is thrown away, and its
//! environment holds no secrets of ours. What results mean is for `verdict` to
//! say.

// A door: it starts processes and is told the time of its deadlines.
#![allow(clippy::disallowed_methods)]

use std::env;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::verdict::{HealthCheck, HealthOptions};
use crate::error::plain;
use crate::nats::lookup::{Lookup, Lookups};
use crate::nats::{Interest, tcp};
use crate::text::duration::words;

/// What a check inherits of our environment: nothing in it is a secret.
const INHERITED: [&str; 8] = ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ"];

/// Success, or why not.
pub type CheckResult = Result<(), String>;

/// Runs checks, one at a time.
pub struct Runner {
    options: HealthOptions,
    lookups: Lookups,
    running: Option<Running>,
    result: Option<CheckResult>,
    /// Killed, and not seen to be gone yet: that can take as long as the disk
    /// that they wait for.
    dying: Vec<Child>,
}

/// A check that is under way.
struct Running {
    /// Its place in the list.
    place: usize,
    /// All checks together have until then.
    deadline: Instant,
    step: Step,
}

enum Step {
    Exec(Child),
    Resolving(Lookup),
    Connecting { socket: TcpStream, others: Vec<SocketAddr> },
}

/// What became of one check.
enum Outcome {
    Goes(Step),
    Done(CheckResult),
}

impl Runner {
    /// Nothing runs yet.
    pub fn new(options: HealthOptions) -> Runner {
        Runner {
            options,
            lookups: Lookups::default(),
            running: None,
            result: None,
            dying: Vec::new(),
        }
    }

    /// What is checked.
    pub fn options(&self) -> &HealthOptions {
        &self.options
    }

    /// Starts the checks, unless they are under way.
    pub fn start(&mut self, now: Instant) {
        if self.running.is_none() && self.result.is_none() {
            self.begin(0, now + self.options.timeout);
        }
    }

    /// The result of the checks that were started, once it is there.
    pub fn finished(&mut self) -> Option<CheckResult> {
        self.result.take()
    }

    /// What to wait for. The end of a child comes as SIGCHLD.
    pub fn interest(&self) -> Option<Interest<'_>> {
        match &self.running.as_ref()?.step {
            Step::Exec(_) => None,
            Step::Resolving(lookup) => Some(Interest::reading(lookup.as_fd(), false)),
            Step::Connecting { socket, .. } => Some(Interest::connecting(socket.as_fd())),
        }
    }

    /// When `attend` has something to do at the latest.
    pub fn wake_at(&self) -> Option<Instant> {
        self.running.as_ref().map(|running| running.deadline)
    }

    /// Goes on with what is under way, without waiting.
    pub fn attend(&mut self, now: Instant) {
        self.dying.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        while let Some(Running { place, deadline, step }) = self.running.take() {
            let late = now >= deadline;
            match self.advance(step, late) {
                Outcome::Goes(step) => {
                    self.running = Some(Running { place, deadline, step });
                    return;
                }
                Outcome::Done(Ok(())) if place + 1 < self.options.checks.len() => {
                    self.begin(place + 1, deadline);
                }
                Outcome::Done(Ok(())) => self.result = Some(Ok(())),
                Outcome::Done(Err(why)) => self.fail(place, &why),
            }
        }
    }

    fn begin(&mut self, place: usize, deadline: Instant) {
        let step = match &self.options.checks[place] {
            HealthCheck::Exec(command) => spawn(command).map(Step::Exec),
            HealthCheck::Tcp { host, port } => match host.parse::<IpAddr>() {
                Ok(ip) => connect(vec![SocketAddr::new(ip, *port)]),
                Err(_) => self.lookups.begin(host, *port).map(Step::Resolving),
            },
        };
        match step {
            Ok(step) => self.running = Some(Running { place, deadline, step }),
            Err(why) => self.fail(place, &why),
        }
    }

    fn fail(&mut self, place: usize, why: &str) {
        self.result = Some(Err(format!("{}: {why}", self.options.checks[place])));
    }

    fn advance(&mut self, step: Step, late: bool) -> Outcome {
        match step {
            Step::Exec(child) if late || has_ended(&child) => {
                let result = self.end(child);
                Outcome::Done(if late { Err(self.late()) } else { result })
            }
            Step::Resolving(lookup) => match lookup.result() {
                Some(addresses) => go_on(addresses.and_then(connect)),
                None if late => Outcome::Done(Err(self.late())),
                None => Outcome::Goes(Step::Resolving(lookup)),
            },
            Step::Connecting { socket, others } => match tcp::is_connected(&socket) {
                Ok(true) => Outcome::Done(Ok(())),
                Ok(false) if late => Outcome::Done(Err(self.late())),
                Ok(false) => Outcome::Goes(Step::Connecting { socket, others }),
                Err(error) if others.is_empty() => Outcome::Done(Err(plain(&error))),
                Err(_) => go_on(connect(others)),
            },
            step @ Step::Exec(_) => Outcome::Goes(step),
        }
    }

    fn late(&self) -> String {
        format!("not done within {}", words(self.options.timeout))
    }

    /// Takes the result of a child that has ended, or ends one that has not,
    /// with all that it left behind in its group.
    fn end(&mut self, mut child: Child) -> CheckResult {
        // Not reaped yet, so that its group's number is still its own.
        kill_process_group(Pid::from_child(&child), Signal::KILL).ok();
        match child.try_wait() {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(status.to_string()),
            Ok(None) => {
                self.dying.push(child);
                Err("it was ended".into())
            }
            Err(error) => Err(plain(&error)),
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // Nobody is left to end it.
        if let Some(Running { step: Step::Exec(child), .. }) = self.running.take() {
            self.end(child).ok();
        }
    }
}

fn go_on(step: Result<Step, String>) -> Outcome {
    match step {
        Ok(step) => Outcome::Goes(step),
        Err(why) => Outcome::Done(Err(why)),
    }
}

/// Begins to connect to the first of these that can be tried at all.
fn connect(addresses: Vec<SocketAddr>) -> Result<Step, String> {
    let mut why = "the name has no address".to_owned();
    let mut addresses = addresses.into_iter();
    while let Some(address) = addresses.next() {
        match tcp::connect(address) {
            Ok(socket) => return Ok(Step::Connecting { socket, others: addresses.collect() }),
            Err(error) => why = plain(&error),
        }
    }
    Err(why)
}

fn spawn(command: &[String]) -> Result<Child, String> {
    let inherited = INHERITED.iter().filter_map(|name| Some((name, env::var_os(name)?)));
    Command::new(&command[0])
        .args(&command[1..])
        .env_clear()
        .envs(inherited)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot be run: {}", plain(&error)))
}

/// Whether a child has ended. It stays a zombie, so that the number of its
/// group is still its own.
fn has_ended(child: &Child) -> bool {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    !matches!(waitid(WaitId::Pid(Pid::from_child(child)), look), Ok(None))
}
