//! Days of agents without bytes: the pure machines of `run` (`keeper` and
//! `schedule`) under simulated time, with JetStream's rules as plain calls.
//!
//! What the agent does about a decision is done here in a few lines: `run.rs` and
//! what belongs to it do it for real, and what the bytes come to. Here is the number
//! of days, there the depth. Nothing is skipped: each heartbeat is decided, stored
//! and acknowledged.

mod agent;
mod faults;
mod judge;
mod store;

use std::collections::BTreeMap;
use std::time::Duration;

use time::OffsetDateTime;

use self::agent::{Agent, agent};
use self::faults::Server;
use self::judge::Judge;
use self::store::{Revision, Store};
use crate::rng::Rng;
use crate::world::{Micros, SECOND};

const DAY: Micros = 86_400 * SECOND;

/// What a number of days came to.
#[derive(Default)]
pub struct Sum {
    pub agent_time: Micros,
    pub stored: u64,
    pub expired: u64,
    pub faults: BTreeMap<&'static str, u64>,
}

impl Sum {
    pub fn add(&mut self, other: &Sum) {
        self.agent_time += other.agent_time;
        self.stored += other.stored;
        self.expired += other.expired;
        for (name, count) in &other.faults {
            *self.faults.entry(name).or_default() += count;
        }
    }

    pub fn days(&self) -> f64 {
        self.agent_time as f64 / DAY as f64
    }
}

pub struct World {
    now: Micros,
    rng: Rng,
    ttl: Micros,
    interval: Micros,
    latency: Micros,
    pause: Micros,
    agents: Vec<Agent>,
    server: Server,
    store: Store,
    judge: Judge,
    next_fault: Micros,
    /// When something about the server or a host is over.
    next_change: Micros,
    foreign: Micros,
    pub sum: Sum,
    trace: bool,
}

fn span(micros: Micros) -> Duration {
    Duration::from_micros(micros)
}

fn stamp(now: Micros) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + span(now)
}

/// A day of one agent, or of two of one name; what was found, and when.
pub fn day(seed: u64, trace: bool) -> (Sum, Option<(Micros, String)>) {
    let mut world = World::new(seed);
    world.trace = trace;
    world.run();
    (world.sum, world.judge.found)
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed, 7);
        let (ttl, interval) = *rng.pick(&[(30, 10), (30, 10), (30, 10), (15, 5), (60, 10)]);
        let (ttl, interval) = (ttl * SECOND, interval * SECOND);
        let count = if rng.one_in(5) { 2 } else { 1 };
        let history = *rng.pick(&[1, 1, 1, 5]);
        let mut world = World {
            now: 0,
            ttl,
            interval,
            latency: *rng.pick(&[200, 1_000, 5_000, 40_000]),
            pause: *rng.pick(&[60, 300, 900, 1_800]) * SECOND,
            agents: (0..count).map(|_| agent(ttl, interval, rng.next())).collect(),
            server: Server::default(),
            store: Store::new(history),
            judge: Judge::new(ttl, interval),
            next_fault: 0,
            next_change: Micros::MAX,
            foreign: 0,
            sum: Sum::default(),
            trace: false,
            rng,
        };
        for slot in 0..count {
            world.agents[slot].at = world.rng.below(20 * SECOND);
        }
        world.next_fault = world.rng.below(2 * world.pause);
        world
    }

    fn run(&mut self) {
        while self.judge.found.is_none() {
            let first = match self.agents.as_slice() {
                [one, other] if other.at < one.at => 1,
                _ => 0,
            };
            let at = self.agents[first].at;
            self.now = at.min(self.next_fault).min(self.next_change).min(DAY).max(self.now);
            while let Some((end, gone)) = self.store.expire(self.now) {
                self.expired(end, &gone);
            }
            if self.now >= DAY {
                break;
            }
            if self.next_change <= self.now {
                self.changes();
            } else if self.next_fault <= self.now {
                self.next_fault = self.now + self.rng.below(2 * self.pause) + 1;
                self.fault();
                self.changes();
            } else if self.agents[first].alive {
                self.judge.step(first, self.now);
                self.step(first);
            } else {
                self.start(first);
            }
        }
        for slot in 0..self.agents.len() {
            if self.agents[slot].alive {
                self.sum.agent_time += self.now - self.agents[slot].started;
            }
        }
    }

    fn expired(&mut self, end: Micros, gone: &Revision) {
        self.sum.expired += 1;
        if gone.marker || self.store.entry().is_some() {
            return;
        }
        // A revision from under a marker was not there either.
        if self.store.newest().is_none() {
            self.judge.expired(end, gone);
            self.judge.misses(end);
        }
    }

    fn is_good(&self, slot: usize) -> bool {
        let agent = &self.agents[slot];
        agent.alive && agent.stop.is_none() && agent.still <= self.now
    }

    /// Something has begun, or is over.
    fn changes(&mut self) {
        if self.store.entry().is_none() {
            self.judge.misses(self.now);
        }
        let said = |slot: usize| {
            self.agents.get(slot).is_some_and(|agent| agent.keeper.duplicate().is_some())
        };
        self.judge.duplicates(self.now, [said(0), said(1)], self.foreign);
        let fine = self.server.is_fine(self.now);
        let good = [0, 1].map(|slot| fine && slot < self.agents.len() && self.is_good(slot));
        self.judge.conditions(self.now, good, self.server.is_trap(self.now));
        let stills = self.agents.iter().map(|agent| agent.still);
        let ends = self.server.all().into_iter().chain(stills).filter(|end| *end > self.now);
        self.next_change = ends.min().unwrap_or(Micros::MAX);
    }

    /// Says what happens, where it is to be seen.
    fn say(&self, words: impl FnOnce() -> String) {
        if self.trace {
            crate::trace(self.now, &words());
        }
    }
}
