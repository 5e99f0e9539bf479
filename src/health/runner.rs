//! Runs a service's health checks: one at a time, and in nobody's way.
//!
//! Nothing in here waits. Whoever owns the loop polls what `interest` names,
//! comes back by `wake_at`, and calls `attend`. A check that is late is ended
//! with its whole process group; what leaves that group is for the owner of
//! the loop to end (`system::children`). What it prints is thrown away, and its
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
use crate::text::duration::as_setting;

/// What a check inherits of our environment: nothing in it is a secret.
const INHERITED: [&str; 8] = ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ"];

/// Set in the environment of each check, and so of all that descends from it,
/// to our process's number.
const MARK: &str = "HEALTH_CHECK_OF";

/// The variable by which what a check has left behind is known.
pub fn mark() -> String {
    format!("{MARK}={}", std::process::id())
}

/// Success, or why not.
pub type CheckResult = Result<(), String>;

/// Runs checks, one at a time.
pub struct Runner {
    options: HealthOptions,
    lookups: Lookups,
    running: Option<Running>,
    result: Option<CheckResult>,
    /// Killed, and not gone yet: a process that waits for a disk goes when the
    /// disk answers.
    dying: Vec<Child>,
}

/// A check that is under way.
struct Running {
    /// Its place in the list.
    place: usize,
    /// All checks together have until then.
    deadline: Instant,
    stage: Stage,
}

enum Stage {
    Exec(Child),
    Resolving(Lookup),
    Connecting { socket: TcpStream, others: Vec<SocketAddr> },
}

/// What became of one check.
enum Outcome {
    Goes(Stage),
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
        match &self.running.as_ref()?.stage {
            Stage::Exec(_) => None,
            Stage::Resolving(lookup) => Some(Interest::reading(lookup.as_fd(), false)),
            Stage::Connecting { socket, .. } => Some(Interest::connecting(socket.as_fd())),
        }
    }

    /// When `attend` has something to do at the latest.
    pub fn wake_at(&self) -> Option<Instant> {
        self.running.as_ref().map(|running| running.deadline)
    }

    /// Whether a program is running, which may need what it has started.
    pub fn runs_a_program(&self) -> bool {
        matches!(self.running, Some(Running { stage: Stage::Exec(_), .. }))
    }

    /// The processes that are for us to reap.
    pub fn processes(&self) -> Vec<Pid> {
        let running = match &self.running {
            Some(Running { stage: Stage::Exec(child), .. }) => Some(child),
            _ => None,
        };
        running.into_iter().chain(&self.dying).map(Pid::from_child).collect()
    }

    /// Goes on with what is under way, without waiting.
    pub fn attend(&mut self, now: Instant) {
        self.dying.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        while let Some(Running { place, deadline, stage }) = self.running.take() {
            let late = now >= deadline;
            match self.advance(stage, late) {
                Outcome::Goes(stage) => {
                    self.running = Some(Running { place, deadline, stage });
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
        let stage = match &self.options.checks[place] {
            HealthCheck::Exec(command) => spawn(command).map(Stage::Exec),
            HealthCheck::Tcp { host, port } => match host.parse::<IpAddr>() {
                Ok(ip) => connect(vec![SocketAddr::new(ip, *port)]),
                Err(_) => self.lookups.begin(host, *port).map(Stage::Resolving),
            },
        };
        match stage {
            Ok(stage) => self.running = Some(Running { place, deadline, stage }),
            Err(why) => self.fail(place, &why),
        }
    }

    fn fail(&mut self, place: usize, why: &str) {
        self.result = Some(Err(format!("{}: {why}", self.options.checks[place])));
    }

    fn advance(&mut self, stage: Stage, late: bool) -> Outcome {
        match stage {
            // Its result counts, however late we are to look.
            Stage::Exec(child) if has_ended(&child) => Outcome::Done(self.end(child)),
            Stage::Exec(child) if late => {
                self.end(child).ok();
                Outcome::Done(Err(self.late()))
            }
            Stage::Resolving(lookup) => match lookup.result() {
                Some(addresses) => go_on(addresses.and_then(connect)),
                None if late => Outcome::Done(Err(self.late())),
                None => Outcome::Goes(Stage::Resolving(lookup)),
            },
            Stage::Connecting { socket, others } => match tcp::is_connected(&socket) {
                Ok(true) => Outcome::Done(Ok(())),
                Ok(false) if late => Outcome::Done(Err(self.late())),
                Ok(false) => Outcome::Goes(Stage::Connecting { socket, others }),
                Err(error) if others.is_empty() => Outcome::Done(Err(plain(&error))),
                Err(_) => go_on(connect(others)),
            },
            stage @ Stage::Exec(_) => Outcome::Goes(stage),
        }
    }

    fn late(&self) -> String {
        format!("not done within {}", as_setting(self.options.timeout))
    }

    /// Takes the result of a child that has ended, or ends one that has not,
    /// with all that it left behind in its group.
    fn end(&mut self, mut child: Child) -> CheckResult {
        // Not reaped yet: until then no other process can get the number of its
        // group.
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
        if let Some(Running { stage: Stage::Exec(child), .. }) = self.running.take() {
            self.end(child).ok();
        }
    }
}

fn go_on(stage: Result<Stage, String>) -> Outcome {
    match stage {
        Ok(stage) => Outcome::Goes(stage),
        Err(why) => Outcome::Done(Err(why)),
    }
}

/// Begins to connect to the first of these that can be tried at all.
fn connect(addresses: Vec<SocketAddr>) -> Result<Stage, String> {
    let mut why = "the name has no address".to_owned();
    let mut addresses = addresses.into_iter();
    while let Some(address) = addresses.next() {
        match tcp::connect(address) {
            Ok(socket) => return Ok(Stage::Connecting { socket, others: addresses.collect() }),
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
        .env(MARK, std::process::id().to_string())
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot be run: {}", plain(&error)))
}

/// Whether a child has ended. It stays a zombie, so that no other process gets
/// the number of its group.
pub fn has_ended(child: &Child) -> bool {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    !matches!(waitid(WaitId::Pid(Pid::from_child(child)), look), Ok(None))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::{Ipv4Addr, TcpListener};
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::nats::waiter::poll_all;

    const LONG: Duration = Duration::from_secs(20);

    fn program(words: &[&str]) -> HealthCheck {
        HealthCheck::Exec(words.iter().map(|word| (*word).to_owned()).collect())
    }

    fn port(at: SocketAddr) -> HealthCheck {
        HealthCheck::Tcp { host: at.ip().to_string(), port: at.port() }
    }

    fn runner(checks: Vec<HealthCheck>, timeout: Duration) -> Runner {
        Runner::new(HealthOptions { checks, timeout, failures: 1 })
    }

    /// Attends until there is a result; there is no SIGCHLD here.
    fn result(runner: &mut Runner) -> CheckResult {
        let began = Instant::now();
        loop {
            runner.attend(Instant::now());
            if let Some(result) = runner.finished() {
                return result;
            }
            assert!(began.elapsed() < LONG, "no result");
            let mut interests: Vec<_> = runner.interest().into_iter().collect();
            poll_all(&mut interests, Some(Instant::now() + Duration::from_millis(5)));
        }
    }

    fn run(checks: Vec<HealthCheck>, timeout: Duration) -> CheckResult {
        let mut runner = runner(checks, timeout);
        runner.start(Instant::now());
        result(&mut runner)
    }

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = listener.local_addr().unwrap();
        (listener, at)
    }

    /// Nothing listens there.
    fn closed() -> SocketAddr {
        listener().1
    }

    fn scratch(name: &str) -> PathBuf {
        let path = env::temp_dir().join(format!("aegis-runner-{}-{name}", std::process::id()));
        fs::remove_file(&path).ok();
        path
    }

    #[test]
    fn checks_run_one_after_the_other_until_one_fails() {
        let (_open, at) = listener();
        let well = || vec![program(&["true"]), port(at), program(&["true"])];
        assert_eq!(run(well(), LONG), Ok(()));
        let touched = scratch("touched");
        let touch = program(&["touch", touched.to_str().unwrap()]);
        let checks = [well(), vec![program(&["sh", "-c", "exit 3"]), touch.clone()]].concat();
        assert_eq!(run(checks, LONG), Err("sh: exit status: 3".into()));
        assert!(!touched.exists(), "a check after the failed one ran");
        assert_eq!(run(vec![touch], LONG), Ok(()));
        assert!(touched.exists());
        fs::remove_file(touched).ok();
    }

    #[test]
    fn what_cannot_be_run_or_reached_says_why() {
        let nowhere = "/nowhere/check: cannot be run: no such file or directory";
        assert_eq!(run(vec![program(&["/nowhere/check"])], LONG), Err(nowhere.into()));
        let at = closed();
        assert_eq!(run(vec![port(at)], LONG), Err(format!("{at}: connection refused")));
        let killed = run(vec![program(&["sh", "-c", "kill -9 $$"])], LONG);
        assert!(killed.clone().is_err_and(|why| why.starts_with("sh: signal: 9")), "{killed:?}");
    }

    #[test]
    fn all_checks_together_have_one_deadline() {
        let timeout = Duration::from_millis(600);
        let began = Instant::now();
        let slow = || program(&["sleep", "0.4"]);
        let late = Err("sleep: not done within 600ms".to_owned());
        assert_eq!(run(vec![slow(), slow(), slow()], timeout), late);
        assert!(began.elapsed() >= timeout);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }

    #[test]
    fn a_late_check_ends_with_its_group_and_the_next_can_start() {
        let mut runner = runner(vec![program(&["sleep", "60"])], LONG);
        let now = Instant::now();
        runner.start(now);
        let pid = runner.processes()[0];
        assert!(runner.runs_a_program());
        runner.attend(now + LONG - Duration::from_millis(1));
        assert_eq!(runner.finished(), None);
        runner.attend(now + LONG);
        assert_eq!(runner.finished(), Some(Err("sleep: not done within 20s".into())));
        assert!(!runner.runs_a_program() && runner.wake_at().is_none());
        while !runner.processes().is_empty() {
            assert!(now.elapsed() < LONG, "{pid:?} does not end");
            poll_all(&mut [], Some(Instant::now() + Duration::from_millis(5)));
            runner.attend(Instant::now());
        }
        runner.start(Instant::now());
        assert!(runner.runs_a_program());
    }

    #[test]
    fn a_result_counts_however_late_it_is_looked_at() {
        let mut runner = runner(vec![program(&["true"])], LONG);
        let now = Instant::now();
        runner.start(now);
        while let Some(Running { stage: Stage::Exec(child), .. }) = &runner.running
            && !has_ended(child)
        {
            assert!(now.elapsed() < LONG);
            poll_all(&mut [], Some(Instant::now() + Duration::from_millis(5)));
        }
        runner.attend(now + LONG * 2);
        assert_eq!(runner.finished(), Some(Ok(())));
    }

    #[test]
    fn checks_that_are_under_way_are_not_started_again() {
        let mut runner = runner(vec![program(&["sleep", "60"])], LONG);
        runner.start(Instant::now());
        let processes = runner.processes();
        runner.start(Instant::now());
        assert_eq!(runner.processes(), processes);
        // Nor before their result was taken.
        runner.attend(Instant::now() + LONG * 2);
        runner.start(Instant::now());
        assert!(!runner.runs_a_program());
        assert!(runner.finished().is_some_and(|result| result.is_err()));
    }

    /// As after a look-up.
    fn connecting(addresses: Vec<SocketAddr>, timeout: Duration) -> CheckResult {
        let name = HealthCheck::Tcp { host: "name.example".into(), port: 80 };
        let mut runner = runner(vec![name], timeout);
        let deadline = Instant::now() + timeout;
        match connect(addresses) {
            Ok(stage) => runner.running = Some(Running { place: 0, deadline, stage }),
            Err(why) => runner.fail(0, &why),
        }
        result(&mut runner)
    }

    #[test]
    fn each_address_of_a_name_is_tried_until_one_takes_connections() {
        let (_open, at) = listener();
        assert_eq!(connecting(vec![closed(), closed(), at], LONG), Ok(()));
        let refused = Err("name.example:80: connection refused".to_owned());
        assert_eq!(connecting(vec![closed(), closed()], LONG), refused);
        let none = Err("name.example:80: the name has no address".to_owned());
        assert_eq!(connecting(Vec::new(), LONG), none);
    }

    #[test]
    fn an_address_that_never_answers_is_late() {
        let (full, at) = listener();
        rustix::net::listen(&full, 0).unwrap();
        // What is in the queue is connected; the next one waits for ever.
        let mut queue = Vec::new();
        let late = Err("name.example:80: not done within 300ms".to_owned());
        let timeout = Duration::from_millis(300);
        while connecting(vec![at], timeout) != late {
            queue.push(tcp::connect(at).unwrap());
            assert!(queue.len() < 20, "the queue has no end");
        }
    }
}
