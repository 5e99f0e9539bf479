//! Removes entries, many at a time: purges under way on a session of their
//! own, which a poison record met by the reader cannot take down.
//!
//! How many are under way follows how quickly they are answered, so that a
//! slow link makes this slow and not fail. What a reply means is decided in
//! `cleaning`. A purge whose reply was lost with its session is sent again:
//! it does no harm twice.

// The doors read the clock.
#![allow(clippy::disallowed_methods)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use log::debug;

use super::selection::{Next, Target, after_look, after_purge, refusal};
use crate::connection::{ConnectError, Incoming, RequestError};
use crate::error::{Failure, Kind};
use crate::jetstream::replies::{self, ReplyError, StreamInfo};
use crate::jetstream::requests;
use crate::registry::Registry;
use crate::registry::failure::RegistryError;

/// Requests under way at most. With TLS the crate loses wake-ups and bytes
/// when 500 and more are (CONTRACT section 5).
const WIDEST: usize = 480;
/// Requests under way to begin with: a slow link takes them in time.
const NARROWEST: usize = 32;
/// Sessions lost in a row without one answer in between that are an outage.
const FRUITLESS_SESSIONS: u32 = 2;

const REMOVING: &str = "removing entries";

/// What became of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is gone for good.
    Removed,
    /// It had been refreshed, or had gone by itself.
    Spared,
    /// It could not be removed, and why.
    Failed(String),
}

/// Takes what became of each target, in the order of replies.
pub type Sink<'a> = dyn FnMut(&Target, Fate) + 'a;

/// Removes targets from one bucket.
pub struct Remover {
    registry: Registry,
    history: i64,
    under_way: VecDeque<UnderWay>,
    window: Window,
    fruitless: u32,
}

struct UnderWay {
    target: Target,
    inbox: String,
    step: Step,
    /// An earlier request may have done it.
    in_doubt: bool,
    sent: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Purge,
    Look,
}

impl Remover {
    /// `registry` need not be connected yet. `info` is the bucket's.
    pub fn new(registry: Registry, info: &StreamInfo) -> Remover {
        let window = Window::new(registry.timeout());
        Remover {
            registry,
            history: info.history(),
            under_way: VecDeque::new(),
            window,
            fruitless: 0,
        }
    }

    /// Whether nothing waits for a reply.
    pub fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Sends the removal of one target, once there is room for it. An error
    /// means that no more can be removed, and why; what was under way and the
    /// target itself have then failed.
    pub fn remove(&mut self, target: Target, sink: &mut Sink<'_>) -> Result<(), Failure> {
        while self.under_way.len() >= self.window.size {
            self.take_one(sink)?;
        }
        if self.registry.session().is_none() && self.is_idle() {
            let limit = self.registry.timeout();
            if let Err(error) = self.registry.connect(limit) {
                sink(&target, Fate::Failed(error.to_string()));
                return Err(error.into());
            }
        }
        self.send(target, Step::Purge, false, sink)
    }

    /// Waits until nothing is under way any more, within the timeout of each.
    pub fn drain(&mut self, sink: &mut Sink<'_>) -> Result<(), Failure> {
        while !self.is_idle() {
            self.take_one(sink)?;
        }
        Ok(())
    }

    fn send(
        &mut self,
        target: Target,
        step: Step,
        in_doubt: bool,
        sink: &mut Sink<'_>,
    ) -> Result<(), Failure> {
        let bucket = self.registry.bucket();
        let request = match step {
            Step::Purge => requests::purge(bucket, &target.key, target.revision),
            Step::Look => Some(requests::count_revisions(bucket, &target.key)),
        };
        let Some(request) = request else {
            sink(&target, Fate::Failed("it cannot be named in a purge".into()));
            return Ok(());
        };
        let sent = Instant::now();
        let (inbox, error) = match self.registry.send(REMOVING, &request) {
            Ok(inbox) => (inbox, None),
            Err(error) => (String::new(), Some(error)),
        };
        self.under_way.push_back(UnderWay { target, inbox, step, in_doubt, sent });
        match error {
            None => Ok(()),
            Some(error) => self.session_failed(error, sink),
        }
    }

    /// Takes the next reply, or what comes instead of one.
    fn take_one(&mut self, sink: &mut Sink<'_>) -> Result<(), Failure> {
        let Some(oldest) = self.under_way.front() else {
            return Ok(());
        };
        let deadline = oldest.sent + self.registry.timeout();
        match self.registry.receive(REMOVING, deadline) {
            Ok(message) => self.take_reply(&message, sink),
            Err(error) => self.session_failed(error, sink),
        }
    }

    fn take_reply(&mut self, message: &Incoming, sink: &mut Sink<'_>) -> Result<(), Failure> {
        let Some(at) = self.under_way.iter().position(|one| one.inbox == message.subject) else {
            return Ok(());
        };
        let Some(one) = self.under_way.remove(at) else {
            return Ok(());
        };
        self.fruitless = 0;
        self.window.answered(one.sent.elapsed());
        let reply = match (message.status(), one.step) {
            (Some(503), _) => {
                let error = RegistryError::Request(REMOVING, RequestError::NoResponders);
                return Err(self.halt(one, error.to_string(), error.into(), sink));
            }
            (_, Step::Purge) => replies::purged(&message.data)
                .map(|purged| after_purge(self.history, purged, one.in_doubt)),
            (_, Step::Look) => replies::revision_count(&message.data).map(after_look),
        };
        match reply {
            Ok(Next::Removed) => sink(&one.target, Fate::Removed),
            Ok(Next::Spared) => sink(&one.target, Fate::Spared),
            Ok(Next::Look) => return self.send(one.target, Step::Look, one.in_doubt, sink),
            Err(error) => {
                let why = error.to_string();
                if let ReplyError::Api(api) = &error
                    && let Some(failure) = refusal(api)
                {
                    return Err(self.halt(one, why, failure, sink));
                }
                sink(&one.target, Fate::Failed(why));
            }
        }
        Ok(())
    }

    /// The session is in doubt or at its end.
    fn session_failed(&mut self, error: RegistryError, sink: &mut Sink<'_>) -> Result<(), Failure> {
        let stopping = self.registry.session().is_some_and(|session| session.stop_requested());
        let late = match &error {
            RegistryError::Request(_, RequestError::TimedOut) => true,
            RegistryError::Request(_, RequestError::Lost(_)) => false,
            _ => return Err(self.halt_all(error, sink)),
        };
        self.fruitless += 1;
        if stopping || self.fruitless > FRUITLESS_SESSIONS {
            return Err(self.halt_all(error, sink));
        }
        debug!("{} removals in doubt: {error}", self.under_way.len());
        if late {
            // Those whose time is over have failed; the others get theirs.
            let timeout = self.registry.timeout();
            let (over, doubtful): (Vec<_>, Vec<_>) =
                self.under_way.drain(..).partition(|one| one.sent.elapsed() >= timeout);
            self.under_way = doubtful.into();
            for one in over {
                sink(&one.target, Fate::Failed(RequestError::TimedOut.to_string()));
            }
        }
        self.window.narrow();
        let limit = self.registry.timeout();
        if let Err(error) = self.registry.connect(limit) {
            return Err(self.halt_all(error, sink));
        }
        let mut again = std::mem::take(&mut self.under_way).into_iter();
        while let Some(one) = again.next() {
            if let Err(failure) = self.send(one.target, Step::Purge, true, sink) {
                for one in again {
                    sink(&one.target, Fate::Failed(failure.chain()));
                }
                return Err(failure);
            }
        }
        Ok(())
    }

    fn halt(
        &mut self,
        one: UnderWay,
        why: String,
        failure: Failure,
        sink: &mut Sink<'_>,
    ) -> Failure {
        sink(&one.target, Fate::Failed(why.clone()));
        self.fail_all(&why, sink);
        failure
    }

    fn halt_all(&mut self, error: RegistryError, sink: &mut Sink<'_>) -> Failure {
        let why = match &error {
            RegistryError::Request(_, error) => error.to_string(),
            error => error.to_string(),
        };
        self.fail_all(&why, sink);
        self.registry.disconnect();
        match error {
            RegistryError::Connect(ConnectError::Stopped) => {
                Failure::new(Kind::Incomplete, "stopped while removing entries")
            }
            error => error.into(),
        }
    }

    fn fail_all(&mut self, why: &str, sink: &mut Sink<'_>) {
        for one in self.under_way.drain(..) {
            sink(&one.target, Fate::Failed(why.to_owned()));
        }
    }
}

/// How many requests may be under way: twice as many after a full window that
/// was answered in a quarter of the timeout, so that twice as many take half of
/// it at most; half as many after one in which an answer took longer.
struct Window {
    size: usize,
    answered: usize,
    slowest: Duration,
    quick: Duration,
    slow: Duration,
}

impl Window {
    fn new(timeout: Duration) -> Window {
        let (quick, slow) = (timeout / 4, timeout / 2);
        Window { size: NARROWEST, answered: 0, slowest: Duration::ZERO, quick, slow }
    }

    fn answered(&mut self, took: Duration) {
        self.answered += 1;
        self.slowest = self.slowest.max(took);
        if self.answered < self.size {
            return;
        }
        if self.slowest > self.slow {
            self.size = (self.size / 2).max(1);
        } else if self.slowest <= self.quick {
            self.size = (self.size * 2).min(WIDEST);
        }
        (self.answered, self.slowest) = (0, Duration::ZERO);
    }

    fn narrow(&mut self) {
        (self.size, self.answered, self.slowest) = (NARROWEST, 0, Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    #[test]
    fn a_quick_server_gets_many_at_once_and_never_more_than_tls_bears() {
        let mut window = Window::new(TIMEOUT);
        for _ in 0..10_000 {
            window.answered(Duration::from_millis(10));
            assert!(window.size <= 500);
        }
        assert_eq!(window.size, WIDEST);
    }

    #[test]
    fn a_slow_link_gets_few_and_never_none() {
        let mut window = Window::new(TIMEOUT);
        for _ in 0..1_000 {
            window.answered(Duration::from_millis(10));
        }
        for _ in 0..1_000 {
            window.answered(Duration::from_secs(3));
        }
        assert_eq!(window.size, 1);
        for _ in 0..1_000 {
            window.answered(Duration::from_secs(2));
        }
        assert_eq!(window.size, 1, "neither quick nor slow: it stays");
    }
}
