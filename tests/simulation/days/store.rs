//! One key of a bucket by JetStream's rules, as plain calls: expected revision,
//! TTL that ends a little late, history, roll-up, markers; where the bucket has
//! `subject_delete_marker_ttl`, one for each entry that a TTL takes. A purge
//! leaves none.

use time::OffsetDateTime;

use crate::world::{MILLI, Micros, SECOND};

/// Who wrote a revision: the number of an agent, or somebody else.
pub const FOREIGN: usize = usize::MAX;
/// The server wrote it: the marker of what has expired.
pub const SERVER: usize = usize::MAX - 1;

/// How long markers of the server stay.
const MARKER_TTL: Micros = 60 * SECOND;

/// One revision.
#[derive(Clone, Copy, Debug)]
pub struct Revision {
    pub number: u64,
    pub stored: Micros,
    pub ttl: Option<Micros>,
    /// When it goes.
    pub ends: Micros,
    /// It has no TTL.
    pub immortal: bool,
    pub by: usize,
    /// Which of the processes of that agent.
    pub life: u32,
    pub stamp: OffsetDateTime,
    pub marker: bool,
}

/// A message to be stored.
pub struct Message {
    /// `None` stores blindly.
    pub expected: Option<u64>,
    pub ttl: Option<Micros>,
    pub rollup: bool,
    pub by: usize,
    pub life: u32,
    pub stamp: OffsetDateTime,
    pub marker: bool,
}

pub struct Store {
    pub history: usize,
    /// An entry that expires leaves a marker.
    pub markers: bool,
    /// Oldest first.
    pub revisions: Vec<Revision>,
    pub last: u64,
    /// When the first of them goes.
    first_end: Micros,
}

impl Store {
    pub fn new(history: usize, markers: bool) -> Store {
        Store { history, markers, revisions: Vec::new(), last: 0, first_end: Micros::MAX }
    }

    pub fn newest(&self) -> Option<&Revision> {
        self.revisions.last()
    }

    /// What stands for something.
    pub fn entry(&self) -> Option<&Revision> {
        self.newest().filter(|newest| !newest.marker)
    }

    /// Stores, or tells the revision that stands there instead.
    pub fn put(&mut self, now: Micros, message: &Message) -> Result<u64, u64> {
        let newest = self.newest().map_or(0, |newest| newest.number);
        if message.expected.is_some_and(|expected| expected != newest) {
            return Err(newest);
        }
        if message.rollup || self.history == 1 {
            self.revisions.clear();
        } else if self.revisions.len() == self.history {
            self.revisions.remove(0);
        }
        self.push(now, message);
        Ok(self.last)
    }

    fn push(&mut self, now: Micros, message: &Message) {
        self.last += 1;
        let late = 4 * MILLI + (self.last * 37) % (246 * MILLI);
        self.revisions.push(Revision {
            number: self.last,
            stored: now,
            ttl: message.ttl,
            ends: message.ttl.map_or(Micros::MAX, |ttl| now + ttl + late),
            immortal: message.ttl.is_none(),
            by: message.by,
            life: message.life,
            stamp: message.stamp,
            marker: message.marker,
        });
        self.reckon();
    }

    /// Removes everything, or all that is newer than a revision.
    pub fn cut(&mut self, after: u64) {
        self.revisions.retain(|one| one.number <= after);
        self.reckon();
    }

    fn reckon(&mut self) {
        self.first_end = self.revisions.iter().map(|one| one.ends).min().unwrap_or(Micros::MAX);
    }

    /// When the next revision goes.
    pub fn first_end(&self) -> Micros {
        self.first_end
    }

    /// Lets the next revision go that is over at `now`, with the time of its end;
    /// the first that is over comes first.
    pub fn expire(&mut self, now: Micros) -> Option<(Micros, Revision)> {
        if self.first_end > now {
            return None;
        }
        let at = self.revisions.iter().position(|one| one.ends == self.first_end)?;
        let gone = self.revisions.remove(at);
        if self.markers && !gone.marker && at == self.revisions.len() {
            let marker = Message {
                expected: None,
                ttl: Some(MARKER_TTL),
                rollup: true,
                by: SERVER,
                life: 0,
                stamp: gone.stamp,
                marker: true,
            };
            self.revisions.clear();
            self.push(gone.ends, &marker);
        } else {
            self.reckon();
        }
        Some((gone.ends, gone))
    }
}
