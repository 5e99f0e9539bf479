//! What an agent does next, and what follows from what happened to it. *Pure*: no
//! clock, no I/O, no log.
//!
//! What happened is an acknowledgement, a conflict, silence, a lost session, a
//! stop, a reload or a resume. Time is an argument, counted from some start by a
//! clock that goes on while the host sleeps. What is to be done comes out as a
//! [`Step`], a [`Next`] or an [`Ending`], and what is to be said as [`News`];
//! `agent` carries them out.

mod conflict;
mod duplicate;
mod limits;
#[cfg(test)]
mod tests;

use std::time::Duration;

use time::OffsetDateTime;

pub use self::conflict::{CONFLICT_ROUNDS, Found, Next, Refusal};
use self::duplicate::Duplicate;
use super::schedule::{Outcome, Patience, Schedule};
use crate::registry::Aside;

/// Our clock is trusted up to this difference from the registry's.
pub const CLOCK_TRUST: Duration = Duration::from_secs(1);
/// The bucket is looked at again after this time.
const BUCKET_KEPT: Duration = Duration::from_secs(600);
/// The same in a cluster, whose next leader may be one that obeys no TTL.
const LEADER_KEPT: Duration = Duration::from_secs(60);
/// A session that ended sooner is not replaced at once.
const SHORT_SESSION: Duration = Duration::from_secs(1);
/// While a server is shutting down, another one is looked for this often.
const MOVE_AGAIN: Duration = Duration::from_secs(2);
/// Stamps of heartbeats whose fate is unknown; older ones cannot be stored any
/// more, since each carries the revision that it follows.
const STAMPS_KEPT: usize = 32;

/// The session, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// There is none, or it has ended by itself.
    Gone,
    /// It serves.
    Serves,
    /// Its server has said that it is going.
    Leaving,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
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

/// What is worth a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
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
pub enum Ending {
    /// There is nothing to take out.
    NeverRegistered,
    /// Somebody else writes the entry, too: it is theirs now.
    LeaveTo(String),
    /// Take the entry out: over this revision, if it is known.
    TakeOut(Option<u64>),
}

/// The state of one agent.
#[derive(Debug)]
pub struct Keeper {
    schedule: Schedule,
    patience: Patience,
    ttl: Duration,
    /// When the next heartbeat or attempt is due.
    due: Duration,
    /// Our last acknowledged revision, on the session that there is.
    current: Option<u64>,
    /// The same, on whatever session.
    last: Option<u64>,
    /// The one that was acknowledged before it.
    before: Option<u64>,
    /// When the session registered.
    registered_at: Duration,
    /// When the put was sent that was acknowledged last, and its TTL.
    stored: Option<(Duration, Duration)>,
    /// `lastHeartbeat` of what we sent and may find again.
    stamps: Vec<OffsetDateTime>,
    /// The same, of what may have stood there before the put that was acknowledged.
    stamps_before: Vec<OffsetDateTime>,
    /// The newest that was ever sent.
    newest_stamp: OffsetDateTime,
    /// The server is going, and another one is looked for at this time.
    moving: Option<Duration>,
    duplicate: Option<Duplicate>,
    /// When the bucket was looked at, or asked for, last.
    looked: Duration,
    beats: u64,
    /// The heartbeat that asks the bucket for the time, where nothing else tells
    /// it.
    time_asked_at: u64,
    /// How many servers there are to choose from.
    choices: u32,
    /// How long the one that there is took to greet.
    greeting: Duration,
    /// Registrations in a row that nobody answered.
    silences: u32,
    /// The bucket was not seen on the session that there is.
    is_unseen: bool,
}

impl Keeper {
    /// An agent that has done nothing yet; `seed` makes agents differ.
    pub fn new(ttl: Duration, interval: Duration, seed: u64) -> Keeper {
        Keeper {
            schedule: Schedule::new(interval, seed),
            patience: Patience::default(),
            ttl,
            due: Duration::ZERO,
            current: None,
            last: None,
            before: None,
            registered_at: Duration::ZERO,
            stored: None,
            stamps: Vec::new(),
            stamps_before: Vec::new(),
            newest_stamp: OffsetDateTime::UNIX_EPOCH,
            moving: None,
            duplicate: None,
            looked: Duration::ZERO,
            beats: 0,
            time_asked_at: 1,
            choices: 1,
            greeting: Duration::ZERO,
            silences: 0,
            is_unseen: false,
        }
    }

    /// What to do at `now`.
    pub fn step(&self, now: Duration, session: SessionState) -> Step {
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
    pub fn due(&self) -> Duration {
        self.due
    }

    /// Whether there is an acknowledged entry on the session that there is.
    pub fn is_registered(&self) -> bool {
        self.current.is_some()
    }

    /// Whether an acknowledgement was seen at all.
    pub fn was_registered(&self) -> bool {
        self.last.is_some()
    }

    /// Our last acknowledged revision, on whatever session.
    pub fn last(&self) -> Option<u64> {
        self.last
    }

    /// Who else writes the entry.
    pub fn duplicate(&self) -> Option<&str> {
        self.duplicate.as_ref().map(Duplicate::who)
    }

    // What happens on a session.

    /// What to ask beside the heartbeat that is written at `now`. Nobody waits
    /// for the answers. `tells_time`: our entry can be read, and so tells the
    /// registry's clock.
    pub fn asides(
        &mut self,
        now: Duration,
        is_clustered: bool,
        tells_time: bool,
    ) -> &'static [Aside] {
        // What is read then is the other agent's, and does not tell when ours
        // was stored.
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
    pub fn saw_bucket(&mut self, now: Duration) {
        self.looked = now;
        self.is_unseen = false;
    }

    /// A question was answered after `took`.
    pub fn answered(&mut self, took: Duration) {
        self.patience.answered(took);
    }

    /// A put with this stamp goes out.
    pub fn sent(&mut self, stamp: OffsetDateTime) {
        if self.stamps.len() == STAMPS_KEPT {
            self.stamps.remove(0);
        }
        self.stamps.push(stamp);
        self.newest_stamp = self.newest_stamp.max(stamp);
    }

    /// The put that was sent at `sent` was acknowledged.
    pub fn acknowledged(&mut self, sent: Duration, now: Duration, revision: u64) {
        self.patience.acknowledged(now.saturating_sub(sent));
        self.stored = Some((sent, self.ttl));
        self.before = self.last.replace(revision);
        if self.current.is_some() {
            self.current = self.last;
        }
        // Whatever was in doubt is under it now.
        let newest = self.stamps.pop();
        std::mem::swap(&mut self.stamps, &mut self.stamps_before);
        self.stamps.clear();
        self.stamps.extend(newest);
    }

    /// A heartbeat that began at `began` has been done.
    pub fn beaten(&mut self, began: Duration, now: Duration) -> Option<News> {
        self.beats += 1;
        self.due = self.schedule.next(began, now, Outcome::Acknowledged);
        let gone = self.duplicate.as_mut()?.is_gone(now);
        let who = gone.then(|| self.duplicate.take())??;
        Some(News::DuplicateGone(who.into_who()))
    }

    /// A registration that began at `began` has been done.
    pub fn registered(&mut self, began: Duration, now: Duration) {
        self.current = self.last;
        self.registered_at = now;
        self.silences = 0;
        self.moving = None;
        self.due = self.schedule.next(began, now, Outcome::Registered);
    }

    /// A registration begins on the session that there is, to one of so many
    /// servers, which took so long to greet.
    pub fn registers(&mut self, choices: usize, greeting: Duration) {
        self.choices = u32::try_from(choices).unwrap_or(u32::MAX).max(1);
        self.greeting = greeting;
        self.is_unseen = true;
    }

    /// Nobody has answered it.
    pub fn was_silent(&mut self) {
        self.silences = self.silences.saturating_add(1);
    }

    /// The session is given up, or gone: its successor comes at once.
    pub fn session_lost(&mut self, now: Duration) {
        self.current = None;
        self.due = self.schedule.next(now, now, Outcome::SessionLost);
    }

    /// A fresh session did not come about, or could not register.
    pub fn not_served(&mut self, began: Duration, now: Duration) {
        self.current = None;
        self.due = self.schedule.next(began, now, Outcome::NotServed);
    }

    /// The session is another one, on which nothing is registered yet.
    pub fn moved(&mut self) {
        self.current = None;
        self.moving = None;
    }

    /// There is no other server. Whether that is news.
    pub fn cannot_move(&mut self, now: Duration) -> bool {
        self.moving.replace(now + MOVE_AGAIN).is_none()
    }

    // What happens to the host, the settings and the clocks.

    /// The process was stopped for a while: nobody knows for how long.
    pub fn resumed(&mut self, now: Duration) {
        self.due = self.due.min(now);
    }

    /// The host slept: nobody knows what became of the session.
    pub fn slept(&mut self, now: Duration) {
        self.current = None;
        self.due = now;
    }

    /// Something is to be published at once.
    pub fn hurry(&mut self, now: Duration) {
        self.due = self.due.min(now);
    }

    /// Other settings, from the next heartbeat on.
    pub fn set_times(&mut self, ttl: Duration, interval: Duration) {
        self.ttl = ttl;
        self.schedule.set_interval(interval);
    }

    /// Other settings in an outage: they may end it.
    pub fn try_now(&mut self, now: Duration) {
        self.current = None;
        self.due = now;
    }

    /// A session with other settings is about to register, while the old one
    /// stays; what to give to [`Keeper::take_back`].
    pub fn begin_change(&mut self) -> Option<u64> {
        self.current.take()
    }

    /// It could not: the old session goes on. What it tried may be stored, so a
    /// heartbeat finds out at once.
    pub fn take_back(&mut self, current: Option<u64>, now: Duration) {
        self.current = current;
        self.hurry(now);
    }

    /// The registry told its time, and our last stamp is so far off it. Whether
    /// readers hide us for that: another heartbeat is due at once then.
    pub fn clock_told(&mut self, now: Duration, off: time::Duration) -> bool {
        let hides = self.is_registered() && off.unsigned_abs() > CLOCK_TRUST;
        if hides {
            self.hurry(now);
        }
        hides
    }

    // The end.

    /// The revision to take out at the end. `has_session`: the session that our
    /// revision was acknowledged on is still there.
    pub fn ending(&self, has_session: bool) -> Ending {
        // An attempt whose answer did not come may have been stored.
        if self.last.is_none() && self.stamps.is_empty() {
            return Ending::NeverRegistered;
        }
        match self.duplicate() {
            Some(who) => Ending::LeaveTo(who.to_owned()),
            None => Ending::TakeOut(self.current.filter(|_| has_session)),
        }
    }
}
