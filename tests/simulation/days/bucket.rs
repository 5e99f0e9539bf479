//! The bucket as a watcher sees it: the key of the agents, and beside it those of a
//! few instances without a keeper, which beat, die, leave and come back.

use aegis_agent::registry::follow::progress::End;

use super::faults::Server;
use super::stamp;
use super::store::{FOREIGN, Message, Revision, Store};
use crate::rng::Rng;
use crate::world::{MILLI, Micros, SECOND};

pub const KEYS: usize = 3;
const NAMES: [&str; KEYS] = [
    "service-instances__orders-api__i0",
    "service-instances__orders-api__i1",
    "service-instances__orders-api__i2",
];
/// Who writes what cannot be read.
pub const GARBAGE: usize = usize::MAX - 2;

const TTL: Micros = 30 * SECOND;
const INTERVAL: Micros = 10 * SECOND;

pub fn key(at: usize) -> &'static str {
    NAMES[at.min(KEYS - 1)]
}

/// The first two numbers of the version that a revision has; none where it cannot
/// be read.
pub fn says(revision: &Revision) -> Option<(u64, u64)> {
    match revision.by {
        GARBAGE => None,
        FOREIGN => Some((9, u64::from(revision.life))),
        by => Some((by as u64, u64::from(revision.life))),
    }
}

/// All keys of the bucket.
pub struct Bucket<'a> {
    pub first: &'a Store,
    pub others: &'a [Other],
}

impl Bucket<'_> {
    pub fn stores(&self) -> impl Iterator<Item = (usize, &Store)> {
        let others = self.others.iter().map(|other| &other.store);
        std::iter::once(self.first).chain(others).enumerate()
    }

    pub fn last(&self) -> u64 {
        self.first.last
    }

    /// Where it ends, as `STREAM.INFO` says.
    pub fn end(&self, now: Micros) -> End {
        let sizes = self.stores().map(|(_, store)| store.revisions.len() as u64);
        let (messages, keys) =
            sizes.fold((0, 0), |(all, keys), size| (all + size, keys + u64::from(size > 0)));
        End { at: stamp(now), messages, last: self.last(), keys }
    }
}

/// An instance without a keeper.
pub struct Other {
    pub store: Store,
    pub at: Micros,
    life: u32,
    alive: bool,
}

impl Other {
    pub fn new(markers: bool, rng: &mut Rng) -> Other {
        let at = rng.below(20 * SECOND);
        Other { store: Store::new(1, markers), at, life: 0, alive: true }
    }

    /// Stores under its key; the stream has one last sequence.
    pub fn put(&mut self, now: Micros, message: &Message, first: &mut Store) {
        self.store.last = first.last;
        self.store.put(now, message).ok();
        first.last = self.store.last;
    }

    /// Lets go what is over.
    pub fn expire(&mut self, now: Micros, first: &mut Store) {
        if self.store.first_end() <= now {
            self.store.last = first.last;
            while self.store.expire(now).is_some() {}
            first.last = self.store.last;
        }
    }

    /// Beats, dies, leaves or comes back.
    pub fn step(&mut self, now: Micros, server: &Server, first: &mut Store, rng: &mut Rng) {
        if !server.takes(now) {
            self.at = now + rng.between(100 * MILLI, SECOND);
            return;
        }
        let fate = rng.below(600);
        if std::mem::replace(&mut self.alive, true) {
            match fate {
                0..4 => {
                    self.alive = false;
                    self.at = now + rng.between(MILLI, 90 * SECOND);
                    return;
                }
                4..8 => {
                    self.alive = false;
                    self.at = now + rng.between(MILLI, 90 * SECOND);
                    let marker = Message { ttl: Some(60 * SECOND), ..message(now, 1, self.life) };
                    return self.put(now, &Message { marker: true, ..marker }, first);
                }
                // It says something else.
                8..11 => self.life += 1,
                _ => {}
            }
        } else {
            self.life += 1;
        }
        self.put(now, &message(now, 1, self.life), first);
        // Now and then just in time, or just too late.
        self.at = now
            + match fate {
                11 => TTL + rng.below(600 * MILLI),
                _ => rng.between(9 * INTERVAL / 10, INTERVAL),
            };
    }
}

pub fn message(now: Micros, by: usize, life: u32) -> Message {
    Message {
        expected: None,
        ttl: Some(TTL),
        rollup: false,
        by,
        life,
        stamp: stamp(now),
        marker: false,
    }
}
