//! The outside, as the client sees it: the wait, the clocks and the network.
//!
//! Whoever owns the loop lends its `poll`: beside our sockets it waits for
//! signals, children and whatever else there is, and attends to them meanwhile.
//! What the client and the agent know of time, they know from here.

// The door: it reads the clocks.
#![allow(clippy::disallowed_methods)]

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};
use time::OffsetDateTime;

use super::tcp;

/// A descriptor that is waited for.
#[derive(Debug)]
pub struct Interest<'a> {
    /// The descriptor.
    pub fd: BorrowedFd<'a>,
    /// Reading is possible, or there is nothing more to read.
    pub read: bool,
    /// Writing is possible, or a connection has come about or failed.
    pub write: bool,
    /// Set by the wait: there is something to be done.
    pub ready: bool,
}

impl<'a> Interest<'a> {
    /// Waits for something to read, and for room to write where that is
    /// `wanted`.
    pub fn reading(fd: BorrowedFd<'a>, write: bool) -> Interest<'a> {
        Interest { fd, read: true, write, ready: false }
    }

    /// Waits for a connection to come about.
    pub fn connecting(fd: BorrowedFd<'a>) -> Interest<'a> {
        Interest { fd, read: false, write: true, ready: false }
    }
}

/// Waits for us, and for whatever else its owner has to attend to; knows the
/// host's clocks and reaches its network.
pub trait Waiter {
    /// Waits until one of `interests` is ready or `until` has come; may end
    /// earlier. Attends to everything else that is due.
    fn wait(&self, interests: &mut [Interest<'_>], until: Option<Instant>);

    /// Whether a stop was asked for: waits come to an end then.
    fn stop_requested(&self) -> bool;

    /// Whether other settings are there to be read, since this was last asked.
    fn take_reload(&self) -> bool {
        false
    }

    /// Whether the process was stopped and goes on, since this was last asked.
    /// A wait that was under way goes on with what was left of its time then.
    fn take_resumed(&self) -> bool {
        false
    }

    /// The clock that waits go by. It stands still while the host sleeps.
    fn now(&self) -> Instant {
        Instant::now()
    }

    /// Time since the host started, its sleep included.
    fn boot_clock(&self) -> Duration {
        Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
    }

    /// The host's wall clock, which anybody may set.
    fn wall_clock(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    /// Differs from call to call and from host to host.
    fn random(&self) -> u64 {
        RandomState::new().build_hasher().finish()
    }

    /// Begins to connect; the socket can be written to once that is done.
    fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        tcp::connect(address)
    }
}

/// Waits for nothing else; cannot be stopped.
#[derive(Debug, Default)]
pub struct Alone;

impl Waiter for Alone {
    fn wait(&self, interests: &mut [Interest<'_>], until: Option<Instant>) {
        poll_all(interests, until);
    }

    fn stop_requested(&self) -> bool {
        false
    }
}

/// One `poll` over all of them. A signal ends it early.
pub fn poll_all(interests: &mut [Interest<'_>], until: Option<Instant>) {
    let limit = until.map(|until| {
        let left = until.saturating_duration_since(Instant::now());
        Timespec::try_from(left.min(LONGEST)).unwrap_or_default()
    });
    let mut fds: Vec<PollFd<'_>> = interests
        .iter()
        .map(|interest| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, interest.read);
            flags.set(PollFlags::OUT, interest.write);
            PollFd::from_borrowed_fd(interest.fd, flags)
        })
        .collect();
    if poll(&mut fds, limit.as_ref()).is_err() {
        return;
    }
    let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    for (interest, ready) in interests.iter_mut().zip(ready) {
        interest.ready = ready;
    }
}

/// No wait is longer: `poll` does not take any number.
const LONGEST: Duration = Duration::from_secs(86_400);
