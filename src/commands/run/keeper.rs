//! What an agent does next, and what follows from what happened to it: an
//! acknowledgement, a conflict, silence, a lost session, a stop, a reload, a
//! resume. *Pure*: no clock, no I/O, no log.
//!
//! Time is an argument, counted from some start by a clock that goes on while
//! the host sleeps. What is to be done comes out as a [`Step`], a [`Next`] or
//! an [`Ending`], what is to be said as [`News`]; `agent` carries them out.

mod duplicate;
#[cfg(test)]
mod tests;

use std::time::Duration;

use time::OffsetDateTime;

use self::duplicate::Duplicate;
use super::schedule::{Outcome, Patience, Schedule};
use crate::registry::Aside;

/// Our clock is trusted up to this difference from the registry's.
pub(super) const CLOCK_TRUST: Duration = Duration::from_secs(1);
/// A conflict is resolved by writing again, so often in a row.
pub(super) const CONFLICT_ROUNDS: u32 = 4;
/// The bucket is looked at again after this time.
const BUCKET_KEPT: Duration = Duration::from_secs(600);
/// The same in a cluster, whose next leader may be one that obeys no TTL.
const LEADER_KEPT: Duration = Duration::from_secs(60);
/// A session that ended sooner is not replaced at once.
const SHORT_SESSION: Duration = Duration::from_secs(1);
/// While a server is going, another one is looked for so often.
const MOVE_AGAIN: Duration = Duration::from_secs(2);
/// Whatever the entry's life: a busy host alone can take this long.
const LEAST_WAIT: Duration = Duration::from_secs(1);
/// A fresh session takes so long on a slow link.
const LEAST_CONNECT: Duration = Duration::from_millis(2_500);
/// Questions before a registration wait no longer than this, once there was
/// one: the put may be taken where nobody answers questions.
const QUESTIONS: Duration = Duration::from_secs(5);
/// What stands there instead of our entry is worth so much waiting.
const LONGEST_LOOK: Duration = Duration::from_secs(1);
/// Stamps of heartbeats whose fate is unknown; older ones cannot be stored any
/// more, since each carries the revision that it follows.
const STAMPS_KEPT: usize = 32;

/// Who writes an entry that may not be read.
const UNREAD: &str = "somebody else (who: the entry cannot be read)";

/// The session, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SessionState {
    /// There is none, or it has ended by itself.
    Gone,
    /// It serves.
    Serves,
    /// Its server has said that it is going.
    Leaving,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing, until then.
    Wait(Duration),
    /// Write a heartbeat over this revision.
    Beat(u64),
    /// The session ended between two heartbeats.
    SayLost,
    /// Find another server, while this one still serves.
    Move,
    /// Register on a fresh session.
    Register,
}

/// Why a put was not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Another revision stands there (10071, 10164); which one, where the
    /// server tells: 0 for none.
    Conflict(Option<u64>),
    /// Another write of the key is under way (10163).
    Busy,
    /// Nothing was heard of it: it may be stored all the same.
    Unanswered,
    /// Anything else.
    Other,
}

/// What follows from a put that was not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Put again, over this revision (`None`: over whatever there is).
    Put(Option<u64>),
    /// The same, and ask who wrote that revision: nobody waits for the answer.
    PutAndAsk(u64),
    /// Look what stands there, and ask again with what was found.
    Look,
    /// Give the session up.
    GiveUp,
}

/// What stands under our key, where something else was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing.
    Nothing,
    /// A delete marker; the server's own where a TTL took the entry.
    Marker { revision: u64, expired: bool },
    /// What we have written ourselves: its answer did not come.
    Own { revision: u64 },
    /// What `who` has written, and how long it lives.
    Others { revision: u64, who: String, ttl: Duration },
    /// It cannot be read, or not in time.
    Unknown,
}

/// What is worth a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    /// The entry was gone: expired, or removed.
    EntryGone,
    /// The entry was deleted.
    EntryDeleted,
    /// The bucket is older than what we wrote: restored, or made anew.
    BucketRestored,
    /// Somebody else writes the entry, too.
    Duplicate(String),
    /// And does so no more.
    DuplicateGone(String),
}

/// How to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// There is nothing to take out.
    NeverRegistered,
    /// Somebody else writes the entry, too: it is theirs now.
    LeaveTo(String),
    /// Take the entry out: over this revision, if it is known.
    TakeOut(Option<u64>),
}

/// The state of one agent.
#[derive(Debug)]
pub(super) struct Keeper {
    schedule: Schedule,
    patience: Patience,
    ttl: Duration,
    /// When the next heartbeat or attempt is due.
    due: Duration,
    /// Our last acknowledged revision, on the session that there is.
    current: Option<u64>,
    /// The same, on whatever session.
    last: Option<u64>,
    /// When the session registered.
    registered_at: Duration,
    /// When the put was sent that was acknowledged last, and its TTL.
    stored: Option<(Duration, Duration)>,
    /// `lastHeartbeat` of what we sent and may find again.
    stamps: Vec<OffsetDateTime>,
    /// The server is going, and another one is looked for at this time.
    moving: Option<Duration>,
    duplicate: Option<Duplicate>,
    /// When the bucket was looked at, or asked for, last.
    looked: Duration,
    beats: u64,
    /// The heartbeat that asks the bucket for the time, where nothing else tells
    /// it.
    time_asked_at: u64,
}

impl Keeper {
    /// An agent that has done nothing yet; `seed` makes agents differ.
    pub(super) fn new(ttl: Duration, interval: Duration, seed: u64) -> Keeper {
        Keeper {
            schedule: Schedule::new(interval, seed),
            patience: Patience::default(),
            ttl,
            due: Duration::ZERO,
            current: None,
            last: None,
            registered_at: Duration::ZERO,
            stored: None,
            stamps: Vec::new(),
            moving: None,
            duplicate: None,
            looked: Duration::ZERO,
            beats: 0,
            time_asked_at: 1,
        }
    }

    /// What to do at `now`.
    pub(super) fn step(&self, now: Duration, session: SessionState) -> Step {
        let Some(revision) = self.current else {
            return if now < self.due { Step::Wait(self.due) } else { Step::Register };
        };
        let beat = |wake: Duration| match now < self.due {
            true => Step::Wait(self.due.min(wake)),
            false => Step::Beat(revision),
        };
        match session {
            SessionState::Serves => beat(Duration::MAX),
            // A server that ends each session at once is not asked in a tight
            // loop.
            SessionState::Gone => {
                let at = (self.registered_at + SHORT_SESSION).min(self.due);
                if now < at { Step::Wait(at) } else { Step::SayLost }
            }
            SessionState::Leaving => match self.moving {
                Some(at) if now < at => beat(at),
                _ => Step::Move,
            },
        }
    }

    /// When the next heartbeat or attempt is due.
    pub(super) fn due(&self) -> Duration {
        self.due
    }

    /// Whether there is an acknowledged entry on the session that there is.
    pub(super) fn is_registered(&self) -> bool {
        self.current.is_some()
    }

    /// Whether an acknowledgement was seen at all.
    pub(super) fn was_registered(&self) -> bool {
        self.last.is_some()
    }

    /// Our last acknowledged revision, on whatever session.
    pub(super) fn last(&self) -> Option<u64> {
        self.last
    }

    /// Who else writes the entry.
    pub(super) fn duplicate(&self) -> Option<&str> {
        self.duplicate.as_ref().map(Duplicate::who)
    }

    // How long things may take.

    /// How long our entry lives on without another heartbeat.
    fn life(&self, now: Duration) -> Duration {
        let Some((sent, ttl)) = self.stored else { return Duration::ZERO };
        ttl.saturating_sub(now.saturating_sub(sent))
    }

    /// How long an acknowledgement is waited for.
    pub(super) fn put_limit(&self, now: Duration, timeout: Duration) -> Duration {
        self.patience.limit(timeout, self.life(now))
    }

    /// How long a fresh session may take.
    pub(super) fn connect_limit(&self, now: Duration, timeout: Duration) -> Duration {
        self.part(now, timeout, 2, LEAST_CONNECT)
    }

    /// How long the questions before a registration may take.
    pub(super) fn question_limit(&self, now: Duration, timeout: Duration) -> Duration {
        if !self.was_registered() {
            return timeout;
        }
        let slow = self.patience.last() * 3;
        self.part(now, timeout.min(QUESTIONS.max(slow)), 3, LEAST_WAIT)
    }

    /// How long a look at what stands there may take, in the middle of a
    /// heartbeat.
    pub(super) fn look_limit(&self, now: Duration, timeout: Duration) -> Duration {
        let slow = self.patience.last() * 3;
        self.part(now, timeout.min(LONGEST_LOOK.max(slow)), 4, LEAST_WAIT / 2)
    }

    /// How long a move may take while the session there is still serves.
    pub(super) fn move_limit(&self, now: Duration, timeout: Duration) -> Duration {
        timeout.min(self.life(now) / 2)
    }

    /// A part of what is left of the entry's life, `least` at least; `limit` at
    /// most, and where there is no life to lose.
    fn part(&self, now: Duration, limit: Duration, of: u32, least: Duration) -> Duration {
        let life = self.life(now);
        if life.is_zero() { limit } else { limit.min((life / of).max(least)) }
    }

    /// Whether to put without knowing the bucket, which nobody answers for in
    /// time: it was fit when it was seen last, and our entry shall not end
    /// because nobody answers questions.
    pub(super) fn may_put_unseen(&self) -> bool {
        self.was_registered()
    }

    // What happens on a session.

    /// What to ask beside the heartbeat that is written at `now`. Nobody waits
    /// for the answers. `tells_time`: our entry can be read, and so tells the
    /// registry's clock.
    pub(super) fn asides(
        &mut self,
        now: Duration,
        is_clustered: bool,
        tells_time: bool,
    ) -> &'static [Aside] {
        // What is read is the other's, then, who does not tell when it was sent.
        let tells_time = tells_time && self.duplicate.is_none();
        let kept = if is_clustered { LEADER_KEPT } else { BUCKET_KEPT };
        let aged = now.saturating_sub(self.looked) > kept;
        // Where only the bucket tells the time, every second heartbeat asks for
        // it: no step of a clock may hide us for longer.
        let look = aged || (!tells_time && self.beats >= self.time_asked_at);
        if look {
            self.looked = now;
            self.time_asked_at = self.beats + 2;
        }
        match (tells_time, look) {
            (true, true) => &[Aside::Time, Aside::Bucket],
            (true, false) => &[Aside::Time],
            (false, true) => &[Aside::Bucket],
            (false, false) => &[],
        }
    }

    /// The bucket was looked at.
    pub(super) fn saw_bucket(&mut self, now: Duration) {
        self.looked = now;
    }

    /// A question was answered after `took`.
    pub(super) fn answered(&mut self, took: Duration) {
        self.patience.answered(took);
    }

    /// A put with this stamp goes out.
    pub(super) fn sent(&mut self, stamp: OffsetDateTime) {
        if self.stamps.len() == STAMPS_KEPT {
            self.stamps.remove(0);
        }
        self.stamps.push(stamp);
    }

    /// The put that was sent at `sent` was acknowledged.
    pub(super) fn acknowledged(&mut self, sent: Duration, now: Duration, revision: u64) {
        self.patience.acknowledged(now.saturating_sub(sent));
        self.stored = Some((sent, self.ttl));
        self.last = Some(revision);
        if self.current.is_some() {
            self.current = self.last;
        }
        // Whatever was in doubt is under it now.
        let newest = self.stamps.pop();
        self.stamps.clear();
        self.stamps.extend(newest);
    }

    /// A heartbeat that began at `began` has been done.
    pub(super) fn beaten(&mut self, began: Duration, now: Duration) -> Option<News> {
        self.beats += 1;
        self.due = self.schedule.next(began, now, Outcome::Acknowledged);
        let gone = self.duplicate.as_mut()?.is_gone(now);
        let who = gone.then(|| self.duplicate.take())??;
        Some(News::DuplicateGone(who.into_who()))
    }

    /// A registration that began at `began` has been done.
    pub(super) fn registered(&mut self, began: Duration, now: Duration) {
        self.current = self.last;
        self.registered_at = now;
        self.moving = None;
        self.due = self.schedule.next(began, now, Outcome::Registered);
    }

    /// What follows from a put that was not acknowledged, in this round.
    pub(super) fn refused(
        &mut self,
        refusal: Refusal,
        over: Option<u64>,
        round: u32,
    ) -> (Next, Option<News>) {
        match refusal {
            Refusal::Unanswered => {
                self.patience.waited_in_vain();
                (Next::GiveUp, None)
            }
            Refusal::Other => (Next::GiveUp, None),
            _ if round >= CONFLICT_ROUNDS => (Next::GiveUp, None),
            Refusal::Busy => (Next::Put(over), None),
            Refusal::Conflict(last) => self.conflict(last),
        }
    }

    fn conflict(&self, last: Option<u64>) -> (Next, Option<News>) {
        match (self.current, last) {
            (None, Some(last)) => (Next::Put(Some(last)), None),
            (Some(_), Some(0)) => (Next::Put(Some(0)), Some(News::EntryGone)),
            // Revisions only grow: whoever wrote that one did so before us.
            (Some(ours), Some(last)) if last < ours => {
                (Next::Put(Some(last)), Some(News::BucketRestored))
            }
            // Who wrote it is worth a line, and no wait.
            (Some(_), Some(last)) => (Next::PutAndAsk(last), None),
            (_, None) => (Next::Look, None),
        }
    }

    /// What follows from what stands there; `last` as the refusal told it.
    pub(super) fn found(
        &mut self,
        now: Duration,
        last: Option<u64>,
        found: Found,
    ) -> (Next, Option<News>) {
        let ours = self.current;
        let on_session = |news: News| ours.is_some().then_some(news);
        let put = |revision| Next::Put(Some(revision));
        match found {
            Found::Nothing => (put(0), on_session(News::EntryGone)),
            // A replica that lags: the refusal knows better.
            Found::Marker { revision, .. }
            | Found::Own { revision }
            | Found::Others { revision, .. }
                if last.is_some_and(|last| revision < last) =>
            {
                (Next::Put(last), None)
            }
            Found::Marker { revision, expired } => {
                let news = if expired { News::EntryGone } else { News::EntryDeleted };
                (put(revision), on_session(news))
            }
            Found::Own { revision } => (put(revision), None),
            // Either a replica that lags, or an old copy of the bucket: neither
            // tells of somebody who writes now.
            Found::Others { revision, .. } if ours.is_some_and(|ours| revision < ours) => {
                (put(revision), None)
            }
            Found::Others { revision, who, ttl } => {
                let news = ours.and_then(|_| self.met(now, who, ttl));
                (put(revision), news)
            }
            Found::Unknown => match last {
                // Each revision of ours on this session was acknowledged, so
                // this one is somebody else's.
                Some(last) if last != 0 && ours.is_some() => {
                    let news = self.met(now, UNREAD.to_owned(), self.ttl);
                    (put(last), news)
                }
                Some(last) => (put(last), None),
                None => (Next::GiveUp, None),
            },
        }
    }

    /// What stood there before our last put, where something else was expected:
    /// the answer to [`Next::PutAndAsk`].
    pub(super) fn stood(&mut self, now: Duration, found: Found) -> Option<News> {
        let ours = self.current?;
        match found {
            Found::Nothing | Found::Marker { expired: true, .. } => Some(News::EntryGone),
            Found::Marker { .. } => Some(News::EntryDeleted),
            // The answer came so late that it tells of our own put.
            Found::Own { .. } => None,
            Found::Others { revision, who, ttl } if revision < ours => self.met(now, who, ttl),
            Found::Others { .. } => None,
            Found::Unknown => self.met(now, UNREAD.to_owned(), self.ttl),
        }
    }

    /// Somebody else wrote our entry since our last heartbeat.
    fn met(&mut self, now: Duration, who: String, ttl: Duration) -> Option<News> {
        let is_new = self.duplicate() != Some(who.as_str());
        if self.duplicate.is_none() {
            // The last question for the time was answered with the other's.
            self.time_asked_at = self.beats;
        }
        self.duplicate = Some(Duplicate::met(who.clone(), now, ttl));
        is_new.then_some(News::Duplicate(who))
    }

    /// The session is given up, or gone: its successor comes at once.
    pub(super) fn session_lost(&mut self, now: Duration) {
        self.current = None;
        self.due = self.schedule.next(now, now, Outcome::SessionLost);
    }

    /// A fresh session did not come about, or could not register.
    pub(super) fn not_served(&mut self, began: Duration, now: Duration) {
        self.current = None;
        self.due = self.schedule.next(began, now, Outcome::NotServed);
    }

    /// The session is another one, on which nothing is registered yet.
    pub(super) fn moved(&mut self) {
        self.current = None;
        self.moving = None;
    }

    /// There is no other server. Whether that is news.
    pub(super) fn cannot_move(&mut self, now: Duration) -> bool {
        self.moving.replace(now + MOVE_AGAIN).is_none()
    }

    // What happens to the host, the settings and the clocks.

    /// The process was stopped for a while: nobody knows for how long.
    pub(super) fn resumed(&mut self, now: Duration) {
        self.due = self.due.min(now);
    }

    /// The host slept: nobody knows what became of the session.
    pub(super) fn slept(&mut self, now: Duration) {
        self.current = None;
        self.due = now;
    }

    /// Something is to be published at once.
    pub(super) fn hurry(&mut self, now: Duration) {
        self.due = self.due.min(now);
    }

    /// Other settings, from the next heartbeat on.
    pub(super) fn set_times(&mut self, ttl: Duration, interval: Duration) {
        self.ttl = ttl;
        self.schedule.set_interval(interval);
    }

    /// Other settings in an outage: they may end it.
    pub(super) fn try_now(&mut self, now: Duration) {
        self.current = None;
        self.due = now;
    }

    /// A session with other settings is about to register, while the old one
    /// stays; what to give to [`Keeper::take_back`].
    pub(super) fn begin_change(&mut self) -> Option<u64> {
        self.current.take()
    }

    /// It could not: the old session goes on. What it tried may be stored, so a
    /// heartbeat finds out at once.
    pub(super) fn take_back(&mut self, current: Option<u64>, now: Duration) {
        self.current = current;
        self.hurry(now);
    }

    /// The registry's clock was told: our last stamp is so far off it. Whether
    /// that hides us, so that another one is due at once.
    pub(super) fn clock_told(&mut self, now: Duration, off: time::Duration) -> bool {
        let hides = self.is_registered() && off.unsigned_abs() > CLOCK_TRUST;
        if hides {
            self.hurry(now);
        }
        hides
    }

    // The end.

    /// What is ours to take out. `has_session`: the session that our revision
    /// was acknowledged on is still there.
    pub(super) fn ending(&self, has_session: bool) -> Ending {
        // An attempt whose answer did not come may have been stored.
        if self.last.is_none() && self.stamps.is_empty() {
            return Ending::NeverRegistered;
        }
        match self.duplicate() {
            Some(who) => Ending::LeaveTo(who.to_owned()),
            None => Ending::TakeOut(self.current.filter(|_| has_session)),
        }
    }

    /// Whether an entry is ours, that says it is of our process. A stamp that we
    /// have not sent is another's of the same host and pid, as there are in
    /// containers; unless it is older than what we wrote: then the bucket was
    /// restored.
    pub(super) fn is_ours(&self, revision: u64, stamp: OffsetDateTime) -> bool {
        self.last.is_some_and(|last| revision < last) || self.stamps.contains(&stamp)
    }
}
