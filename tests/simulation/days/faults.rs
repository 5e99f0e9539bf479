//! What goes wrong: the server, the network, the store and the hosts.

use super::agent::Woke;
use super::store::{FOREIGN, Message};
use super::{World, stamp};
use crate::world::{MILLI, Micros, SECOND};

/// The server, as far as it goes wrong: each until then.
#[derive(Default)]
pub struct Server {
    pub refuses: Micros,
    pub dropped: Micros,
    pub silent: Micros,
    pub loses_acks: Micros,
    pub leaderless: Micros,
    pub full: Micros,
    pub busy: Micros,
    pub leaves: Micros,
}

impl Server {
    pub fn all(&self) -> [Micros; 8] {
        [
            self.refuses,
            self.dropped,
            self.silent,
            self.loses_acks,
            self.leaderless,
            self.full,
            self.busy,
            self.leaves,
        ]
    }

    pub fn is_trap(&self, now: Micros) -> bool {
        [self.dropped, self.silent, self.loses_acks, self.busy].iter().any(|until| *until > now)
    }

    /// A watcher hears nothing, or what it asks is not answered.
    pub fn is_bad_for_watch(&self, now: Micros) -> bool {
        let all = [self.refuses, self.dropped, self.silent, self.loses_acks, self.leaderless];
        all.iter().any(|until| *until > now)
    }

    /// Whoever has no keeper can write.
    pub fn takes(&self, now: Micros) -> bool {
        !self.is_bad_for_watch(now) && self.full.max(self.busy) <= now
    }

    pub fn is_fine(&self, now: Micros) -> bool {
        self.all().iter().all(|until| *until <= now)
    }
}

impl World {
    pub fn fault(&mut self) {
        let slot = self.rng.below(self.agents.len() as u64) as usize;
        let until = self.now
            + match self.rng.below(4) {
                0 => self.rng.between(MILLI, 500 * MILLI),
                1 => self.rng.between(500 * MILLI, 4 * SECOND),
                2 => self.rng.between(4 * SECOND, 20 * SECOND),
                _ => self.rng.between(20 * SECOND, 90 * SECOND),
            };
        let name = match self.rng.below(20) {
            0 | 1 => {
                self.server.refuses = self.server.refuses.max(until);
                self.cut_all();
                "server refused"
            }
            2 | 3 => {
                self.server.dropped = self.server.dropped.max(until);
                "packets dropped"
            }
            4 | 5 => {
                self.server.silent = self.server.silent.max(until);
                "server silent"
            }
            6 => {
                self.server.loses_acks = self.server.loses_acks.max(until);
                "acknowledgements lost"
            }
            7 => {
                self.server.leaderless = self.server.leaderless.max(until);
                "no leader"
            }
            8 => {
                self.server.full = self.server.full.max(until);
                "bucket full"
            }
            9 => {
                self.server.busy = self.server.busy.max(until);
                "write under way"
            }
            10 | 11 => {
                self.cut_all();
                self.judge.interrupted(self.now);
                "sessions cut"
            }
            12 => {
                self.store.cut(0);
                self.judge.taken(self.now);
                "entry purged"
            }
            13 => {
                self.foreign(true, None);
                "entry deleted"
            }
            14 => {
                let ttl = if self.rng.one_in(2) { Some(self.ttl) } else { None };
                self.foreign(false, ttl);
                "somebody else's write"
            }
            15 => {
                let back = self.store.last.saturating_sub(self.rng.between(1, 20));
                self.store.cut(back);
                self.store.last = back;
                self.judge.taken(self.now);
                "store rolled back"
            }
            16 => {
                if self.agents[slot].alive {
                    self.ends(slot);
                }
                "agent killed"
            }
            17 => {
                self.terminate(slot);
                "agent stopped"
            }
            18 => {
                let woke = if self.rng.one_in(2) { Woke::Slept } else { Woke::Resumed };
                let now = self.now;
                let agent = &mut self.agents[slot];
                if agent.alive && agent.still <= now {
                    agent.still = until;
                    agent.woke = Some(woke);
                    agent.at = agent.at.max(until);
                    // What was heard last may be no more.
                    agent.stops_well = false;
                }
                "host or process stood still"
            }
            _ => {
                self.server.leaves = self.server.leaves.max(until);
                "server leaves"
            }
        };
        *self.sum.faults.entry(name).or_default() += 1;
        self.say(|| format!("fault: {name}, agent {slot}, until {} ms", until / MILLI));
    }

    pub fn cut_all(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.cut(self.now);
        }
        for slot in 0..self.agents.len() {
            self.cut(slot);
        }
    }

    pub fn foreign(&mut self, marker: bool, ttl: Option<Micros>) {
        let message = Message {
            expected: None,
            ttl,
            rollup: marker,
            by: FOREIGN,
            life: 0,
            stamp: stamp(self.now),
            marker,
        };
        self.store.put(self.now, &message).ok();
        self.foreign = self.now;
        self.judge.taken(self.now);
    }
}
