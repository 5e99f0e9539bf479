//! Removes entries, many at a time: purges under way beside the scan, on the
//! same session.
//!
//! Quick answers allow more at a time. A slow link so makes it slow, and does
//! not make it fail. What a reply means is decided in `selection`. A purge
//! whose reply was lost with its session is sent again, and so is one that met
//! a bucket without a leader, or a silent member of the cluster: it does no harm
//! twice.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::selection::{Next, Target, after_look, after_purge, refusal};
use crate::error::Failure;
use crate::jetstream::replies::{self, ApiError, ReplyError, StreamInfo};
use crate::jetstream::requests;
use crate::nats::{Arrival, RequestError, Token, answered};
use crate::registry::Registry;
use crate::registry::failure::RegistryError;

/// Requests under way at most: more make nothing quicker.
const WIDEST: usize = 512;
/// Requests under way to begin with: a slow link takes them in time.
const NARROWEST: usize = 32;
/// A cluster that is choosing a leader is asked again after this time.
const LEADER_PAUSE: Duration = Duration::from_millis(200);
/// A member of a cluster that has answered nothing for so long, or for half the
/// timeout, may be cut off from the others. Longer where answers take long.
const MEMBER_PATIENCE: Duration = Duration::from_secs(2);
/// What is being done, for errors.
pub const REMOVING: &str = "removing entries";

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
    history: i64,
    timeout: Duration,
    under_way: VecDeque<UnderWay>,
    /// What waits for a leader of the bucket, and when to ask again.
    leaderless: Vec<UnderWay>,
    again_at: Option<Instant>,
    /// The last answer, and the longest that one took.
    heard: Instant,
    slowest: Duration,
    /// The last member was given up because it was silent.
    is_silent: bool,
    window: Window,
}

struct UnderWay {
    target: Target,
    token: Token,
    step: Step,
    /// An earlier request may have done it.
    in_doubt: bool,
    /// For the first time.
    sent: Instant,
    /// On this session.
    asked: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Purge,
    Look,
}

impl Remover {
    /// For the bucket of `info`; each request is waited for as long as `registry`
    /// waits.
    pub fn new(info: &StreamInfo, registry: &Registry) -> Remover {
        let timeout = registry.timeout();
        Remover {
            history: info.history(),
            timeout,
            under_way: VecDeque::new(),
            leaderless: Vec::new(),
            again_at: None,
            heard: registry.now(),
            slowest: Duration::ZERO,
            is_silent: false,
            window: Window::new(timeout),
        }
    }

    /// Whether nothing waits for a reply.
    pub fn is_idle(&self) -> bool {
        self.under_way() == 0
    }

    /// How many wait for a reply.
    pub fn under_way(&self) -> usize {
        self.under_way.len() + self.leaderless.len()
    }

    /// Whether there is room for another one.
    pub fn has_room(&self) -> bool {
        self.under_way() < self.window.size
    }

    /// The oldest request has to be answered by then, or some are due again, or
    /// another member of the cluster is to be asked.
    pub fn deadline(&self, registry: &Registry) -> Option<Instant> {
        let oldest = self.under_way.front().map(|oldest| oldest.sent + self.timeout);
        oldest.into_iter().chain(self.again_at).chain(self.silent_at(registry)).min()
    }

    /// When this member of the cluster has been silent for too long; `None` where
    /// there is no other.
    fn silent_at(&self, registry: &Registry) -> Option<Instant> {
        let oldest = self.under_way.front().filter(|_| registry.choices() > 1)?;
        let least = MEMBER_PATIENCE.min(self.timeout / 2).max(self.slowest * 4);
        let patience = registry.patience(least);
        // Nothing is asked again meanwhile, so this does not grow further.
        let patience = if self.is_silent { patience * 2 } else { patience };
        Some(oldest.asked.max(self.heard) + patience)
    }

    /// How long another member may take to let us in, if this one is silent and
    /// what is under way still has time.
    pub fn time_to_move(&self, registry: &Registry) -> Option<Duration> {
        let now = registry.now();
        let left = (self.under_way.front()?.sent + self.timeout).saturating_duration_since(now);
        (self.silent_at(registry)? <= now && !left.is_zero()).then_some(left)
    }

    /// Whether those that wait for a leader are to be sent again.
    pub fn is_due(&self, registry: &Registry) -> bool {
        self.again_at.is_some_and(|at| registry.now() >= at)
    }

    /// Sends them again, if they are due. Where the session is lost they wait for
    /// the next one.
    pub fn ask_again(&mut self, registry: &mut Registry, sink: &mut Sink<'_>) {
        if !self.is_due(registry) {
            return;
        }
        self.again_at = None;
        for one in std::mem::take(&mut self.leaderless) {
            // They have waited longer than all others.
            let UnderWay { target, step, in_doubt, sent, .. } = one;
            if let Some((one, _)) = self.begin(registry, target, step, in_doubt, sink) {
                self.under_way.push_front(UnderWay { sent, ..one });
            }
        }
    }

    /// Waits for a leader, if there is time for it; otherwise gives it back.
    fn wait_for_leader(&mut self, one: UnderWay, now: Instant) -> Option<UnderWay> {
        if now.saturating_duration_since(one.sent) + LEADER_PAUSE >= self.timeout {
            return Some(one);
        }
        self.again_at.get_or_insert(now + LEADER_PAUSE);
        // A leader that stepped down just then may have done it all the same.
        self.leaderless.push(UnderWay { in_doubt: true, ..one });
        None
    }

    /// Sends the removal of one target. An error means that the session is
    /// lost; the target waits for the next one.
    pub fn remove(
        &mut self,
        registry: &mut Registry,
        target: Target,
        sink: &mut Sink<'_>,
    ) -> Result<(), RegistryError> {
        self.send(registry, target, Step::Purge, false, sink)
    }

    fn send(
        &mut self,
        registry: &mut Registry,
        target: Target,
        step: Step,
        in_doubt: bool,
        sink: &mut Sink<'_>,
    ) -> Result<(), RegistryError> {
        match self.begin(registry, target, step, in_doubt, sink) {
            Some((one, sent)) => {
                self.under_way.push_back(one);
                sent
            }
            None => Ok(()),
        }
    }

    /// Sends one request, and tells whether it left; `None` where there is no
    /// such request.
    fn begin(
        &mut self,
        registry: &mut Registry,
        target: Target,
        step: Step,
        in_doubt: bool,
        sink: &mut Sink<'_>,
    ) -> Option<(UnderWay, Result<(), RegistryError>)> {
        let bucket = registry.bucket();
        let request = match step {
            Step::Purge => requests::purge(bucket, &target.key, target.revision),
            Step::Look => Some(requests::count_revisions(bucket, &target.key)),
        };
        let Some(request) = request else {
            sink(&target, Fate::Failed("it cannot be named in a purge".into()));
            return None;
        };
        let sent = registry.now();
        let token = registry.send(REMOVING, &request);
        let known = *token.as_ref().unwrap_or(&Token::numbered(0));
        let one = UnderWay { target, token: known, step, in_doubt, sent, asked: sent };
        Some((one, token.map(|_| ())))
    }

    /// Takes a reply, if it is one of ours. An error ends the cleanup.
    pub fn take(
        &mut self,
        registry: &mut Registry,
        arrival: Arrival,
        sink: &mut Sink<'_>,
    ) -> Result<(), Failure> {
        let (token, answer) = match arrival {
            Arrival::Message(Some(token), message) => (token, answered(message)),
            Arrival::Message(None, _) => return Ok(()),
            Arrival::Refused(token, what) => (token, Err(RequestError::Denied(what))),
        };
        let Some(at) = self.under_way.iter().position(|one| one.token == token) else {
            return Ok(());
        };
        let Some(mut one) = self.under_way.remove(at) else {
            return Ok(());
        };
        let now = registry.now();
        self.heard = now;
        self.slowest = self.slowest.max(now.saturating_duration_since(one.asked));
        self.is_silent = false;
        let reply = answer.map(|message| match one.step {
            Step::Purge => replies::purged(message.data())
                .map(|purged| after_purge(self.history, purged, one.in_doubt)),
            Step::Look => replies::revision_count(message.data()).map(after_look),
        });
        if is_leaderless(&reply) {
            match self.wait_for_leader(one, now) {
                Some(given_back) => one = given_back,
                None => return Ok(()),
            }
        }
        self.window.answered(now.saturating_duration_since(one.sent));
        let reply = match reply {
            Ok(reply) => reply,
            // It meets every entry alike.
            Err(error) => {
                sink(&one.target, Fate::Failed(error.to_string()));
                self.fail_all(&error.to_string(), sink);
                return Err(RegistryError::Request(REMOVING, error).into());
            }
        };
        match reply {
            Ok(Next::Removed) => sink(&one.target, Fate::Removed),
            Ok(Next::Spared) => sink(&one.target, Fate::Spared),
            Ok(Next::Look) => {
                // Where the session is lost the next one asks again.
                self.send(registry, one.target, Step::Look, one.in_doubt, sink).ok();
            }
            Err(error) => {
                let why = error.to_string();
                sink(&one.target, Fate::Failed(why.clone()));
                if let ReplyError::Api(api) = &error
                    && let Some(failure) = refusal(api)
                {
                    self.fail_all(&why, sink);
                    return Err(failure);
                }
            }
        }
        Ok(())
    }

    /// The session was in doubt, and the registry has a fresh one: those whose
    /// time was over have failed, and the others are sent again, and have as much
    /// time.
    pub fn resume(
        &mut self,
        registry: &mut Registry,
        sink: &mut Sink<'_>,
    ) -> Result<(), RegistryError> {
        self.window.narrow();
        self.again_at = None;
        self.send_all(registry, sink, |one| UnderWay { sent: one.asked, ..one })
    }

    /// This member of the cluster was silent, and is given up for a while. Where the
    /// registry `has_moved` to another one, all are sent again, in the time that
    /// they have left.
    pub fn was_silent(
        &mut self,
        registry: &mut Registry,
        has_moved: bool,
        sink: &mut Sink<'_>,
    ) -> Result<(), RegistryError> {
        self.is_silent = true;
        self.heard = registry.now();
        if has_moved { self.send_all(registry, sink, |one| one) } else { Ok(()) }
    }

    /// Sends all that are under way again. The error is that the session is lost;
    /// they wait for the next one.
    fn send_all(
        &mut self,
        registry: &mut Registry,
        sink: &mut Sink<'_>,
        time: impl Fn(UnderWay) -> UnderWay,
    ) -> Result<(), RegistryError> {
        let leaderless = std::mem::take(&mut self.leaderless);
        let now = registry.now();
        let mut all_left = Ok(());
        for one in std::mem::take(&mut self.under_way).into_iter().chain(leaderless) {
            let UnderWay { target, sent, .. } = one;
            if now.saturating_duration_since(sent) >= self.timeout {
                sink(&target, Fate::Failed(RequestError::TimedOut.to_string()));
            } else if let Some((again, left)) =
                self.begin(registry, target, Step::Purge, true, sink)
            {
                self.under_way.push_back(time(UnderWay { sent, ..again }));
                all_left = all_left.and(left);
            }
        }
        all_left
    }

    /// Nothing more comes of those that are under way.
    pub fn fail_all(&mut self, why: &str, sink: &mut Sink<'_>) {
        self.again_at = None;
        for one in self.under_way.drain(..).chain(self.leaderless.drain(..)) {
            sink(&one.target, Fate::Failed(why.to_owned()));
        }
    }
}

/// Whether the bucket has no leader just now, as while its cluster chooses one.
fn is_leaderless(reply: &Result<Result<Next, ReplyError>, RequestError>) -> bool {
    match reply {
        Ok(Err(ReplyError::Api(error))) => error.err_code == ApiError::NO_LEADER,
        Ok(_) => false,
        Err(error) => *error == RequestError::NoResponders,
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
    fn a_quick_server_gets_many_at_once() {
        let mut window = Window::new(TIMEOUT);
        for _ in 0..10_000 {
            window.answered(Duration::from_millis(10));
        }
        assert_eq!(window.size, WIDEST);
    }

    #[test]
    fn a_slow_link_gets_few_and_never_none() {
        let mut window = Window::new(TIMEOUT);
        for _ in 0..1_000 {
            window.answered(Duration::from_millis(10));
        }
        for _ in 0..2_000 {
            window.answered(Duration::from_secs(3));
        }
        assert_eq!(window.size, 1);
        for _ in 0..1_000 {
            window.answered(Duration::from_secs(2));
        }
        assert_eq!(window.size, 1, "neither quick nor slow: it stays");
    }
}
