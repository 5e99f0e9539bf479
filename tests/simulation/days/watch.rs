//! A day that is watched: the watcher, what happens to it and around it, and its
//! witness.

use std::collections::BTreeMap;

use aegis_agent::registry::picture::Change;

use super::bucket::{Bucket, GARBAGE, Other, message};
use super::faults::Server;
use super::stamp;
use super::store::{FOREIGN, Message, Store};
use super::watcher::{Ground, Told, Watcher};
use super::witness::Witness;
use crate::rng::Rng;
use crate::world::{MILLI, Micros, SECOND};

/// What a watcher told.
#[derive(Default, Clone, Copy)]
pub struct Figures {
    pub days: u64,
    pub ups: u64,
    pub changes: u64,
    pub downs: u64,
    pub outages: u64,
    pub rereads: u64,
}

impl Figures {
    pub fn add(&mut self, other: &Figures) {
        self.days += other.days;
        self.ups += other.ups;
        self.changes += other.changes;
        self.downs += other.downs;
        self.outages += other.outages;
        self.rereads += other.rereads;
    }
}

pub struct Watch {
    watcher: Watcher,
    others: Vec<Other>,
    pub witness: Witness,
    pub figures: Figures,
    rng: Rng,
    pause: Micros,
    next_fault: Micros,
    last: u64,
    told: Vec<Told>,
}

/// What of the world a watched day needs.
pub struct Around<'a> {
    pub now: Micros,
    pub latency: Micros,
    pub server: &'a Server,
    pub store: &'a mut Store,
    pub faults: &'a mut BTreeMap<&'static str, u64>,
    pub trace: bool,
}

impl Around<'_> {
    fn ground<'a>(&'a self, others: &'a [Other]) -> Ground<'a> {
        let bucket = Bucket { first: self.store, others };
        Ground { now: self.now, latency: self.latency, server: self.server, bucket }
    }

    fn say(&self, words: impl FnOnce() -> String) {
        if self.trace {
            crate::trace(self.now, &words());
        }
    }
}

impl Watch {
    pub fn new(mut rng: Rng, pause: Micros, markers: bool) -> Watch {
        let count = rng.below(3);
        Watch {
            watcher: Watcher::new(0, Rng::new(rng.next(), 9)),
            others: (0..count).map(|_| Other::new(markers, &mut rng)).collect(),
            witness: Witness::new(),
            figures: Figures { days: 1, ..Figures::default() },
            next_fault: rng.below(2 * pause),
            pause,
            last: 0,
            told: Vec::new(),
            rng,
        }
    }

    /// When something of it happens next.
    pub fn at(&self, store: &Store) -> Micros {
        let others = self.others.iter().map(|other| other.at.min(other.store.first_end()));
        let own = self.watcher.at.min(self.next_fault).min(store.first_end());
        others.min().map_or(own, |others| others.min(own))
    }

    pub fn cut(&mut self, now: Micros) {
        self.watcher.cut(now);
        self.witness.disturbed(now);
    }

    /// Does what is due.
    pub fn turn(&mut self, around: &mut Around<'_>) {
        let now = around.now;
        for other in &mut self.others {
            other.expire(now, around.store);
            if other.at <= now {
                other.step(now, around.server, around.store, &mut self.rng);
            }
        }
        if self.next_fault <= now {
            self.next_fault = now + self.rng.below(2 * self.pause) + 1;
            self.fault(around);
        }
        if self.watcher.at > now {
            return;
        }
        // What it is told of has been.
        self.sees(around);
        self.witness.step(now);
        self.watcher.step(&around.ground(&self.others), &mut self.told);
        for told in std::mem::take(&mut self.told) {
            match told {
                Told::Change(change) => self.tell(&change, around),
                Told::Begins(at) => {
                    around.say(|| "watch begins".to_owned());
                    self.witness.begins(now, at);
                }
                Told::Suspects => {
                    around.say(|| "watch suspects a purge".to_owned());
                    self.figures.rereads += 1;
                    self.witness.suspects(now);
                }
            }
        }
    }

    fn tell(&mut self, change: &Change, around: &Around<'_>) {
        match change {
            Change::Up(_) => self.figures.ups += 1,
            Change::Changed(_) => self.figures.changes += 1,
            Change::Down(..) => self.figures.downs += 1,
            Change::Lost(_) => self.figures.outages += 1,
            Change::Synced => {}
        }
        around.say(|| match change {
            Change::Up(one) => format!("watch: up {} {}", one.record.instance_id, one.revision),
            Change::Changed(one) => {
                format!("watch: changed {} {}", one.record.instance_id, one.revision)
            }
            Change::Down(one, reason, _) => {
                format!("watch: down {} {}", one.record.instance_id, reason.as_str())
            }
            Change::Synced => "watch: synced".to_owned(),
            Change::Lost(why) => format!("watch: lost: {why}"),
        });
        self.witness.told(around.now, change);
    }

    /// Something may have changed: what there is, and who can reach whom.
    pub fn sees(&mut self, around: &mut Around<'_>) {
        let now = around.now;
        let last = around.store.last;
        if last < self.last {
            around.say(|| format!("the stream ends at {last}, not at {}", self.last));
            for other in &mut self.others {
                other.store.cut(last);
            }
            self.watcher.rolled_back(now, last);
            self.witness.rolled_back(now);
        }
        self.last = last;
        let ground = around.ground(&self.others);
        for (key, store) in ground.bucket.stores() {
            self.witness.sees(now, key, store);
        }
        let is_cut_off = self.watcher.link > now || around.server.is_bad_for_watch(now);
        let is_still = self.watcher.still > now;
        self.witness.contact(now, is_cut_off, is_still, around.server.leaves > now);
        self.watcher.serve(&ground);
        self.witness.gap(now, self.watcher.has_gap());
        self.watcher.plan(&ground);
    }

    fn fault(&mut self, around: &mut Around<'_>) {
        let now = around.now;
        let most = 1 << self.rng.between(17, 26);
        let until = now + self.rng.between(50 * MILLI, most);
        let count = self.others.len() as u64;
        let name = match self.rng.below(if count > 0 { 12 } else { 7 }) {
            0 => {
                self.cut(now);
                "watch: session cut"
            }
            1 | 2 => {
                self.watcher.link = self.watcher.link.max(until);
                "watch: packets dropped"
            }
            3 => {
                self.watcher.loses_consumer(now);
                self.witness.disturbed(now);
                "watch: consumer gone"
            }
            4 => {
                self.watcher.still = self.watcher.still.max(until);
                "watch: stood still"
            }
            5 if self.rng.one_in(2) => {
                self.watcher = Watcher::new(now, Rng::new(self.rng.next(), 9));
                self.witness.restarted(now);
                "watch: killed"
            }
            5 => {
                self.watcher.loses_delivery();
                "watch: delivery lost"
            }
            6 => {
                self.watcher.loses_answer = true;
                self.witness.disturbed(now);
                "watch: answer lost"
            }
            kind => {
                let at = self.rng.below(count) as usize;
                self.meddle(at, kind, around);
                "watch: others meddled with"
            }
        };
        *around.faults.entry(name).or_default() += 1;
        around.say(|| format!("fault: {name}, until {} ms", until / MILLI));
    }

    /// Somebody purges the entry of another instance, or writes over it.
    fn meddle(&mut self, at: usize, kind: u64, around: &mut Around<'_>) {
        let now = around.now;
        let Some(other) = self.others.get_mut(at) else { return };
        let foreign = message(now, FOREIGN, self.rng.below(3) as u32);
        let written = match kind {
            7 | 8 => return other.store.cut(0),
            9 => Message { marker: true, ttl: None, ..foreign },
            10 => Message { by: GARBAGE, ..foreign },
            _ => {
                let stamp = stamp(now.saturating_sub(self.rng.below(50 * SECOND)));
                let ttl = foreign.ttl.filter(|_| self.rng.one_in(2));
                Message { stamp, ttl, ..foreign }
            }
        };
        other.put(now, &written, around.store);
    }
}
