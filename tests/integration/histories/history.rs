//! What was recorded of a run, on one time axis: microseconds since 1970 by the
//! true clock of this host. *Pure.*
//!
//! The servers' clock is set meanwhile, so what they stamped is turned into true
//! time first.

use std::collections::BTreeMap;

pub type Micros = i64;

pub const SECOND: Micros = 1_000_000;
pub const MILLI: Micros = 1_000;
/// Looked at so often.
pub const STEP: Micros = 100 * MILLI;
/// A healthy server removes an entry so late at most.
pub const LATE: Micros = 300 * MILLI;

/// An agent as it is started each time.
#[derive(Clone, Debug)]
pub struct Spec {
    pub instance: String,
    pub ttl: Micros,
    pub interval: Micros,
    /// The clients whose way to the servers is the same.
    pub group: usize,
}

/// One process of an agent.
#[derive(Clone, Debug)]
pub struct Life {
    pub agent: usize,
    pub pid: u32,
    pub from: Micros,
    /// When it was killed or asked to stop.
    pub to: Micros,
    pub was_killed: bool,
}

/// Something stored under an agent's key, as the server republished it.
#[derive(Clone, Debug)]
pub struct Revision {
    pub seq: u64,
    /// By the server's clock.
    pub stored: Micros,
    /// True time, once `History::settle` was called.
    pub at: Micros,
    /// What stood there before; 0 for nothing.
    pub before: u64,
    pub pid: Option<u32>,
    pub is_marker: bool,
    /// When the recorder saw it.
    pub seen: Micros,
}

/// A `list`.
#[derive(Clone, Debug)]
pub struct Read {
    pub from: Micros,
    pub to: Micros,
    pub code: i32,
    pub shown: Vec<String>,
}

/// A `cleanup`.
#[derive(Clone, Debug)]
pub struct Cleanup {
    pub from: Micros,
    pub to: Micros,
    pub code: i32,
    /// Key, revision and reasons.
    pub removed: Vec<(String, u64, String)>,
}

/// What a watcher said.
#[derive(Clone, Debug)]
pub struct Told {
    pub at: Micros,
    pub event: String,
    pub instance: String,
    pub reason: String,
}

#[derive(Clone, Debug, Default)]
pub struct Watched {
    pub group: usize,
    pub told: Vec<Told>,
    pub pauses: Vec<Span>,
}

pub type Span = (Micros, Micros);

#[derive(Clone, Debug, Default)]
pub struct History {
    pub from: Micros,
    pub to: Micros,
    /// Nothing is broken on purpose from here on.
    pub quiet: Micros,
    pub agents: Vec<Spec>,
    pub lives: Vec<Life>,
    /// When processes of an agent were stopped (SIGSTOP), by agent.
    pub pauses: Vec<Vec<Span>>,
    pub revisions: BTreeMap<String, Vec<Revision>>,
    /// When each server took what was written.
    pub serving: Vec<Vec<Span>>,
    /// When the way of a group to a server was closed.
    pub closed: Vec<Vec<Vec<Span>>>,
    /// When a server was killed, frozen or cut off from the others.
    pub broken: Vec<Vec<Span>>,
    /// From when on the servers' clock was so far ahead.
    pub clock: Vec<(Micros, Micros)>,
    pub reads: Vec<Read>,
    pub cleanups: Vec<Cleanup>,
    pub watched: Vec<Watched>,
}

pub fn within(spans: &[Span], at: Micros) -> bool {
    spans.iter().any(|(from, to)| (*from..*to).contains(&at))
}

pub fn touches(spans: &[Span], (from, to): Span) -> bool {
    spans.iter().any(|(start, end)| *start < to && from < *end)
}

/// So far what happened at one time may be written down as of another.
const SLACK: Micros = 50 * MILLI;

impl History {
    /// By how much the servers' clock was ahead at a true time.
    pub fn ahead(&self, at: Micros) -> Micros {
        let past = self.clock.iter().rev().find(|(from, _)| *from <= at);
        past.map_or(0, |(_, ahead)| *ahead)
    }

    pub fn server_time(&self, at: Micros) -> Micros {
        at + self.ahead(at)
    }

    /// The true time of what the server stamped, and the recorder saw later.
    fn true_time(&self, stored: Micros, seen: Micros) -> Micros {
        let periods = self.clock.iter().enumerate();
        let mut fit: Vec<Micros> = periods
            .filter_map(|(place, (from, ahead))| {
                let to = self.clock.get(place + 1).map_or(Micros::MAX, |(next, _)| *next);
                let at = stored - ahead;
                (from - SLACK <= at && at < to.saturating_add(SLACK) && at <= seen + SLACK)
                    .then_some(at)
            })
            .collect();
        fit.sort_unstable();
        fit.pop().unwrap_or(seen)
    }

    /// Puts everything in order once all is recorded.
    pub fn settle(&mut self) {
        let mut all = std::mem::take(&mut self.revisions);
        for revisions in all.values_mut() {
            revisions.sort_by_key(|revision| revision.seq);
            revisions.dedup_by_key(|revision| revision.seq);
            for revision in revisions.iter_mut() {
                revision.at = self.true_time(revision.stored, revision.seen);
            }
        }
        self.revisions = all;
        self.begin_steps_when_they_were_seen();
        for watched in &mut self.watched {
            watched.told.sort_by_key(|told| told.at);
        }
    }

    /// A server may read its new clock a little before it is written down that it
    /// was set: what it stored then would seem to be over.
    fn begin_steps_when_they_were_seen(&mut self) {
        let before = self.clock.clone();
        for (place, (from, ahead)) in self.clock.iter_mut().enumerate().skip(1) {
            if before[place - 1].1 == *ahead {
                continue;
            }
            let seen = self.revisions.values().flatten();
            let by_it = seen.filter(|one| one.at == one.stored - *ahead).map(|one| one.at);
            let first = by_it.filter(|at| (*from - SLACK..*from).contains(at)).min();
            *from = first.unwrap_or(*from);
        }
    }

    /// The first true time at which the servers' clock has passed the end of
    /// what was stored at `at`.
    pub fn end_of(&self, revision: &Revision, ttl: Micros) -> Micros {
        let end = revision.stored + ttl;
        let periods = self.clock.iter().enumerate();
        periods
            .filter_map(|(place, (from, ahead))| {
                let to = self.clock.get(place + 1).map_or(Micros::MAX, |(next, _)| *next);
                let at = (end - ahead).max(*from).max(revision.at);
                (at < to).then_some(at)
            })
            .min()
            .unwrap_or(Micros::MAX)
    }

    pub fn of(&self, agent: usize) -> &[Revision] {
        self.revisions.get(&self.agents[agent].instance).map_or(&[], Vec::as_slice)
    }

    /// When the entry was not there, or its TTL had run out and nothing has taken
    /// it yet; and when that is not known, as revisions were not seen.
    pub fn absences(&self, agent: usize) -> (Vec<Span>, Vec<Span>) {
        let ttl = self.agents[agent].ttl;
        let (mut absent, mut holes) = (Vec::new(), Vec::new());
        let (mut absent_from, mut last) = (self.from, None::<&Revision>);
        for revision in self.of(agent) {
            let (mut from, expected) = (absent_from, last.map_or(0, |last| last.seq));
            let mut to = revision.at;
            if revision.before != expected && revision.before != 0 {
                // What was not seen may have kept it alive.
                holes.push((from, revision.at.max(revision.seen)));
                from = revision.at;
            } else if revision.before != expected && from <= revision.seen {
                // Without a quorum it was stored later than it is stamped.
                to = to.max(revision.seen);
            } else if revision.before != expected {
                // Something took it: when is not known, and before now.
                from = from.min(revision.at - LATE - STEP);
            }
            absent.push((from, to));
            absent_from = match revision.is_marker {
                true => revision.at,
                false => self.end_of(revision, ttl),
            };
            last = Some(revision);
        }
        absent.push((absent_from, self.to));
        absent.retain(|(from, to)| from < to);
        // One that a marker lies in the middle of is one.
        absent.dedup_by(|next, last| {
            let is_one = next.0 <= last.1;
            if is_one {
                last.1 = next.1;
            }
            is_one
        });
        (absent, holes)
    }
}
