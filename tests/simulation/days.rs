//! Days of agents without bytes: the pure machines of `run` (`keeper` and
//! `schedule`) under simulated time, with JetStream's rules as plain calls.
//!
//! What the agent does about a decision is done here in a few lines: `run.rs` and
//! what belongs to it do it for real, and what the bytes come to. Here is the number
//! of days, there the depth. Nothing is skipped: each heartbeat is decided, stored
//! and acknowledged.

mod agent;
mod bucket;
mod faults;
mod judge;
mod store;
mod watch;
mod watcher;
mod witness;

use std::collections::BTreeMap;
use std::env;
use std::sync::OnceLock;
use std::time::Duration;

use time::OffsetDateTime;

use self::agent::{Agent, agent};
use self::faults::Server;
use self::judge::Judge;
use self::store::{Revision, SERVER, Store};
pub use self::watch::Figures;
use self::watch::{Around, Watch};
use crate::rng::Rng;
use crate::world::{Micros, SECOND};

const DAY: Micros = 86_400 * SECOND;
/// One day of so many is watched: each heartbeat is then read as JSON, which takes
/// most of the time.
const WATCHED: u64 = 16;

/// The same, or what `AEGIS_SIMULATION_WATCHED` says.
fn watched() -> u64 {
    static WANTED: OnceLock<u64> = OnceLock::new();
    *WANTED.get_or_init(|| {
        let wanted = env::var("AEGIS_SIMULATION_WATCHED").ok();
        wanted.and_then(|text| text.parse().ok()).unwrap_or(WATCHED)
    })
}

/// What a number of days came to.
#[derive(Default)]
pub struct Sum {
    pub agent_time: Micros,
    pub stored: u64,
    pub expired: u64,
    pub faults: BTreeMap<&'static str, u64>,
    pub watch: Figures,
}

impl Sum {
    pub fn add(&mut self, other: &Sum) {
        self.agent_time += other.agent_time;
        self.stored += other.stored;
        self.expired += other.expired;
        self.watch.add(&other.watch);
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
    watch: Option<Box<Watch>>,
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
        // More history and markers do not go together: docs/nats.md.
        let mut other = Rng::new(seed, 8);
        let markers = history == 1 && other.one_in(2);
        let is_watched = seed.is_multiple_of(watched());
        let latency = *rng.pick(&[200, 1_000, 5_000, 40_000]);
        let pause = *rng.pick(&[60, 300, 900, 1_800]) * SECOND;
        let watch = is_watched.then(|| Box::new(Watch::new(other, pause, markers)));
        let mut world = World {
            now: 0,
            ttl,
            interval,
            latency,
            pause,
            watch,
            agents: (0..count).map(|_| agent(ttl, interval, rng.next())).collect(),
            server: Server::default(),
            store: Store::new(history, markers),
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
            let watch = self.watch.as_ref().map_or(Micros::MAX, |watch| watch.at(&self.store));
            self.now =
                at.min(self.next_fault).min(self.next_change).min(watch).min(DAY).max(self.now);
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
            } else if at > self.now {
                self.watched(true);
            } else if self.agents[first].alive {
                self.judge.step(first, self.now);
                self.step(first);
            } else {
                self.start(first);
            }
            self.watched(false);
        }
        if let Some(watch) = &mut self.watch {
            watch.witness.ends(self.now);
            self.sum.watch = watch.figures;
        }
        for slot in 0..self.agents.len() {
            if self.agents[slot].alive {
                self.sum.agent_time += self.now - self.agents[slot].started;
            }
        }
    }

    /// The watcher's turn, or what it meets.
    fn watched(&mut self, is_its_turn: bool) {
        let Some(watch) = &mut self.watch else { return };
        let mut around = Around {
            now: self.now,
            latency: self.latency,
            server: &self.server,
            store: &mut self.store,
            faults: &mut self.sum.faults,
            trace: self.trace,
        };
        if is_its_turn {
            watch.turn(&mut around);
        }
        watch.sees(&mut around);
        if let Some(words) = watch.witness.found.take() {
            self.judge.violated(self.now, format!("watch: {words}"));
        }
    }

    fn expired(&mut self, end: Micros, gone: &Revision) {
        self.sum.expired += 1;
        if gone.marker || self.store.entry().is_some() {
            return;
        }
        // A revision from under a marker was not there either.
        if self.store.newest().is_none_or(|newest| newest.by == SERVER) {
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
