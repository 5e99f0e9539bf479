//! Signals, and the wait that they end.
//!
//! SIGTERM and SIGINT set a flag that stays; SIGHUP and SIGCONT are counted
//! until taken; the end of a child ends the wait as well.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use signal_hook::consts::{SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};

use crate::error::{Failure, Kind};
use crate::nats::waiter::poll_all;
use crate::nats::{Interest, Waiter};

/// Registered handlers, and the pipe that they write to.
pub struct Signals {
    stop: Arc<AtomicBool>,
    hangup: Arc<AtomicBool>,
    child: Arc<AtomicBool>,
    resumed: Arc<AtomicBool>,
    reader: UnixStream,
}

impl Signals {
    /// Takes over SIGTERM and SIGINT, which must not leave anything half done.
    pub fn take() -> Result<Signals, Failure> {
        Signals::register(&[SIGTERM, SIGINT]).map_err(failed)
    }

    /// Takes over SIGHUP, SIGCHLD and SIGCONT, too: for a verb that stays.
    pub fn take_all() -> Result<Signals, Failure> {
        Signals::register(&[SIGTERM, SIGINT, SIGHUP, SIGCHLD, SIGCONT]).map_err(failed)
    }

    /// Takes over SIGTERM, SIGINT, SIGCHLD and SIGCONT: for a verb that stays
    /// and has nothing to read anew.
    pub fn take_with_children() -> Result<Signals, Failure> {
        Signals::register(&[SIGTERM, SIGINT, SIGCHLD, SIGCONT]).map_err(failed)
    }

    fn register(signals: &[i32]) -> io::Result<Signals> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        writer.set_nonblocking(true)?;
        let (stop, hangup) = (Arc::default(), Arc::default());
        let (child, resumed) = (Arc::default(), Arc::default());
        for signal in signals {
            // The flag first: whoever is woken finds it set.
            match *signal {
                SIGTERM | SIGINT => drop(flag::register(*signal, Arc::clone(&stop))?),
                SIGHUP => drop(flag::register(*signal, Arc::clone(&hangup))?),
                SIGCHLD => drop(flag::register(*signal, Arc::clone(&child))?),
                SIGCONT => drop(flag::register(*signal, Arc::clone(&resumed))?),
                _ => {}
            }
            pipe::register(*signal, writer.try_clone()?)?;
        }
        Ok(Signals { stop, hangup, child, resumed, reader })
    }

    /// Whether SIGTERM or SIGINT has come.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Whether SIGHUP has come since this was last asked.
    pub fn take_hangup(&self) -> bool {
        self.hangup.swap(false, Ordering::SeqCst)
    }

    /// Whether a child has ended since this was last asked.
    pub fn take_child_ended(&self) -> bool {
        self.child.swap(false, Ordering::SeqCst)
    }

    /// Whether the process was stopped and goes on (SIGCONT) since this was last
    /// asked. A wait that is under way goes on with what was left of its time
    /// when it was stopped, however long ago that is.
    pub fn take_resumed(&self) -> bool {
        self.resumed.swap(false, Ordering::SeqCst)
    }

    /// What a wait has to look at to be ended by a signal.
    pub fn interest(&self) -> Interest<'_> {
        Interest::reading(self.reader.as_fd(), false)
    }

    /// A signal has ended a wait: the next one begins anew.
    pub fn take_wake_up(&self) {
        let _ = (&self.reader).read(&mut [0; 64]);
    }

    /// Waits for a signal until `until`. May end early.
    pub fn wait_until(&self, until: Instant) {
        self.wait(&mut [], Some(until));
    }
}

impl Waiter for Signals {
    fn wait(&self, interests: &mut [Interest<'_>], until: Option<Instant>) {
        let woken = wait_beside(interests, vec![self.interest()], until);
        if woken[0] {
            self.take_wake_up();
        }
    }

    fn stop_requested(&self) -> bool {
        self.stopped()
    }
}

/// One `poll` over somebody's interests and our own; which of our own are
/// ready.
pub fn wait_beside(
    theirs: &mut [Interest<'_>],
    own: Vec<Interest<'_>>,
    until: Option<Instant>,
) -> Vec<bool> {
    let count = own.len();
    let borrowed = theirs.iter().map(|one| Interest {
        fd: one.fd,
        read: one.read,
        write: one.write,
        ready: false,
    });
    let mut all: Vec<Interest<'_>> = own.into_iter().chain(borrowed).collect();
    poll_all(&mut all, until);
    for (one, polled) in theirs.iter_mut().zip(&all[count..]) {
        one.ready = polled.ready;
    }
    all[..count].iter().map(|one| one.ready).collect()
}

fn failed(error: io::Error) -> Failure {
    Failure::new(Kind::Unavailable, "cannot take over signals").with_source(error)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    #[test]
    fn a_signal_ends_the_wait_and_is_taken_once() {
        let signals = Signals::take_all().unwrap();
        for (signal, taken) in [
            (Signal::HUP, Signals::take_hangup as fn(&Signals) -> bool),
            (Signal::CHILD, Signals::take_child_ended),
        ] {
            // Other tests have children that end.
            taken(&signals);
            kill_process(getpid(), signal).unwrap();
            let began = Instant::now();
            let mut seen = false;
            while !seen && began.elapsed() < Duration::from_secs(10) {
                signals.wait_until(began + Duration::from_secs(10));
                seen = taken(&signals);
            }
            assert!(seen && began.elapsed() < Duration::from_secs(5), "{signal:?}");
        }
        assert!(!signals.take_hangup());
    }

    #[test]
    fn a_request_to_stop_stays() {
        let signals = Signals::take().unwrap();
        kill_process(getpid(), Signal::TERM).unwrap();
        signals.wait_until(Instant::now() + Duration::from_secs(10));
        for _ in 0..2 {
            assert!(signals.stopped() && signals.stop_requested());
        }
    }

    #[test]
    fn what_is_ready_is_told_apart() {
        let (ready, mut other) = UnixStream::pair().unwrap();
        let (silent, _open) = UnixStream::pair().unwrap();
        other.write_all(b"x").unwrap();
        let mut theirs = [silent.as_fd(), ready.as_fd()].map(|fd| Interest::reading(fd, false));
        let own = vec![Interest::reading(silent.as_fd(), false)];
        let woken = wait_beside(&mut theirs, own, Some(Instant::now()));
        assert_eq!(woken, [false]);
        assert_eq!([theirs[0].ready, theirs[1].ready], [false, true]);
        let own = vec![Interest::reading(ready.as_fd(), false)];
        assert_eq!(wait_beside(&mut [], own, None), [true]);
    }
}
