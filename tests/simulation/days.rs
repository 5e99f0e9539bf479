//! Days of agents without bytes: the pure machines of `run` (`keeper` and
//! `schedule`) under simulated time, with JetStream's rules as plain calls.
//!
//! What the agent does about a decision is done here in a few lines: `run.rs` and
//! what belongs to it do it for real, and what the bytes come to. Here is the number
//! of days, there the depth. Nothing is skipped: each heartbeat is decided, stored
//! and acknowledged.

mod judge;
mod store;

use std::collections::BTreeMap;
use std::time::Duration;

use aegis_agent::commands::run::keeper::{
    Ending, Found, Keeper, Next, Refusal, SessionState, Step,
};
use time::OffsetDateTime;

use self::judge::Judge;
use self::store::{FOREIGN, Message, Revision, Store};
use crate::rng::Rng;
use crate::world::{MILLI, Micros, SECOND};

const DAY: Micros = 86_400 * SECOND;
const TIMEOUT: Duration = Duration::from_secs(5);
/// A SYN is sent again after this time.
const SYN: Micros = 1_200 * MILLI;
/// A question is asked again after this time.
const ASK: Micros = 500 * MILLI;

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

/// A put that is under way.
#[derive(Clone, Copy)]
struct Put {
    began: Duration,
    sent: Duration,
    over: Option<u64>,
    round: u32,
    registers: bool,
    rollup: bool,
    /// What lay there has no TTL.
    immortal_below: bool,
    /// What stood there is asked for.
    stood: Option<Option<Revision>>,
    fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Stored(u64),
    Conflict(u64),
    Busy,
    Refused,
    Silent,
    /// The session ends.
    Lost,
}

#[derive(Clone, Copy)]
enum Stage {
    Turn,
    Connects { began: Duration, until: Micros },
    Asks { began: Duration, until: Micros },
    Sent(Put),
}

#[derive(Clone, Copy, PartialEq)]
enum Woke {
    Slept,
    Resumed,
}

struct Agent {
    keeper: Keeper,
    alive: bool,
    life: u32,
    started: Micros,
    session: bool,
    stage: Stage,
    /// When the stage is to be carried out.
    at: Micros,
    /// It stands still until then.
    still: Micros,
    woke: Option<Woke>,
    stop: Option<Micros>,
    stops_well: bool,
    immortal_below: bool,
}

/// The server, as far as it goes wrong: each until then.
#[derive(Default)]
struct Server {
    refuses: Micros,
    dropped: Micros,
    silent: Micros,
    loses_acks: Micros,
    leaderless: Micros,
    full: Micros,
    busy: Micros,
    leaves: Micros,
}

impl Server {
    fn all(&self) -> [Micros; 8] {
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

    fn is_trap(&self, now: Micros) -> bool {
        [self.dropped, self.silent, self.loses_acks, self.busy].iter().any(|until| *until > now)
    }

    fn is_fine(&self, now: Micros) -> bool {
        self.all().iter().all(|until| *until <= now)
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

fn agent(ttl: Micros, interval: Micros, seed: u64) -> Agent {
    Agent {
        keeper: Keeper::new(span(ttl), span(interval), seed),
        alive: false,
        life: 0,
        started: 0,
        session: false,
        stage: Stage::Turn,
        at: 0,
        still: 0,
        woke: None,
        stop: None,
        stops_well: false,
        immortal_below: false,
    }
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

    fn start(&mut self, slot: usize) {
        let (now, seed) = (self.now, self.rng.next());
        let life = self.agents[slot].life + 1;
        self.agents[slot] = Agent {
            alive: true,
            life,
            started: now,
            at: now,
            still: self.agents[slot].still,
            ..agent(self.ttl, self.interval, seed)
        };
        self.judge.started(slot);
        self.changes();
    }

    /// The process is no more, and another one comes.
    fn ends(&mut self, slot: usize) {
        let pause = 50 * MILLI + self.rng.below(60 * SECOND);
        let agent = &mut self.agents[slot];
        self.sum.agent_time += self.now - agent.started;
        agent.alive = false;
        agent.at = self.now.max(agent.still) + pause;
        self.judge.left(slot, self.now, true);
        self.changes();
    }

    /// The sessions of an agent end: it hears of it at once.
    fn cut(&mut self, slot: usize) {
        let now = self.now;
        let agent = &mut self.agents[slot];
        if !agent.alive || !std::mem::take(&mut agent.session) {
            return;
        }
        if let Stage::Sent(put) = &mut agent.stage {
            put.fate = Fate::Lost;
        }
        agent.at = agent.still.max(now);
    }

    fn fault(&mut self) {
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

    /// Says what happens, where it is to be seen.
    fn say(&self, words: impl FnOnce() -> String) {
        if self.trace {
            crate::trace(self.now, &words());
        }
    }

    fn cut_all(&mut self) {
        for slot in 0..self.agents.len() {
            self.cut(slot);
        }
    }

    fn foreign(&mut self, marker: bool, ttl: Option<Micros>) {
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

    fn terminate(&mut self, slot: usize) {
        let now = self.now;
        let quiet = self.ttl + 6 * self.interval;
        let fine = self.server.is_fine(now) && self.next_change > now + 10 * SECOND;
        let agent = &mut self.agents[slot];
        if !agent.alive || agent.stop.is_some() {
            return;
        }
        agent.stop = Some(now);
        agent.stops_well = fine && agent.still <= now && now > self.foreign + quiet;
        agent.stops_well &= agent.keeper.is_registered() && matches!(agent.stage, Stage::Turn);
        agent.at = agent.at.min(now).max(agent.still);
        self.judge.left(slot, now, false);
    }

    /// One step of an agent.
    fn step(&mut self, slot: usize) {
        let now = self.now;
        let agent = &mut self.agents[slot];
        if agent.still > now {
            agent.at = agent.still;
            return;
        }
        match agent.stage {
            Stage::Turn => self.turn(slot),
            Stage::Connects { began, until } => self.connects(slot, began, until),
            Stage::Asks { began, until } => self.asks(slot, began, until),
            Stage::Sent(put) => self.answered(slot, put),
        }
    }

    fn time(&self, slot: usize) -> Duration {
        span(self.now - self.agents[slot].started)
    }

    fn then(&mut self, slot: usize, at: Micros, stage: Stage) {
        self.agents[slot].stage = stage;
        self.agents[slot].at = at;
    }

    fn turn(&mut self, slot: usize) {
        if self.agents[slot].stop.is_some() {
            return self.end(slot);
        }
        let (now, time) = (self.now, self.time(slot));
        let leaves = self.server.leaves > now;
        let agent = &mut self.agents[slot];
        match agent.woke.take() {
            Some(Woke::Slept) => {
                agent.session = false;
                agent.keeper.slept(time);
            }
            Some(Woke::Resumed) => agent.keeper.resumed(time),
            None => {}
        }
        let session = match agent.session {
            true if leaves => SessionState::Leaving,
            true => SessionState::Serves,
            false => SessionState::Gone,
        };
        match agent.keeper.step(time, session) {
            Step::Wait(until) => {
                let least = Duration::from_millis(1);
                agent.at = now + until.saturating_sub(time).max(least).as_micros() as Micros;
            }
            Step::Beat(revision) => {
                let rollup = std::mem::take(&mut agent.immortal_below);
                let put = new_put(time, Some(revision), false, rollup);
                self.send(slot, put);
            }
            Step::SayLost => agent.keeper.session_lost(time),
            Step::Move => {
                agent.keeper.cannot_move(time);
            }
            Step::Register => {
                agent.session = false;
                let limit = agent.keeper.connect_limit(time, TIMEOUT).as_micros() as Micros;
                let until = now + limit;
                self.then(slot, now, Stage::Connects { began: time, until });
            }
        }
    }

    fn not_served(&mut self, slot: usize, began: Duration) {
        let time = self.time(slot);
        self.agents[slot].session = false;
        self.agents[slot].keeper.not_served(began, time);
        self.then(slot, self.now, Stage::Turn);
    }

    fn connects(&mut self, slot: usize, began: Duration, until: Micros) {
        let now = self.now;
        if now >= until || self.agents[slot].stop.is_some() {
            return self.not_served(slot, began);
        }
        if self.server.dropped > now {
            return self.then(slot, until.min(now + SYN), Stage::Connects { began, until });
        }
        if self.server.refuses > now || self.server.leaves > now {
            return self.not_served(slot, began);
        }
        let (greeting, time) = (2 * self.latency, self.time(slot));
        let agent = &mut self.agents[slot];
        agent.session = true;
        agent.keeper.registers(1, span(greeting));
        let limit = agent.keeper.question_limit(time, TIMEOUT).as_micros() as Micros;
        let until = now + greeting + limit;
        self.then(slot, now + greeting + self.latency, Stage::Asks { began, until });
    }

    fn asks(&mut self, slot: usize, began: Duration, until: Micros) {
        let (now, time) = (self.now, self.time(slot));
        let agent = &self.agents[slot];
        // After a stop nothing more is begun.
        if !agent.session || agent.stop.is_some() || self.server.leaderless > now {
            return self.not_served(slot, began);
        }
        if self.server.silent > now || self.server.dropped > now {
            if now < until {
                return self.then(slot, until.min(now + ASK), Stage::Asks { began, until });
            }
            let keeper = &mut self.agents[slot].keeper;
            if !keeper.may_put_unseen() {
                keeper.was_silent();
                return self.not_served(slot, began);
            }
            let last = keeper.last().unwrap_or(0);
            return self.send(slot, new_put(began, Some(last), true, false));
        }
        let keeper = &mut self.agents[slot].keeper;
        keeper.saw_bucket(time);
        keeper.answered(span(self.latency));
        let newest = self.store.newest();
        let over = newest.map_or(0, |newest| newest.number);
        let mut put = new_put(began, Some(over), true, self.store.history > 1);
        put.immortal_below = newest.is_some_and(|newest| newest.immortal && !newest.marker);
        self.send(slot, put);
    }

    fn send(&mut self, slot: usize, mut put: Put) {
        let (now, time) = (self.now, self.time(slot));
        let agent = &mut self.agents[slot];
        put.sent = time;
        let limit = agent.keeper.put_limit(time, TIMEOUT);
        let stamp = stamp(now);
        if agent.keeper.is_registered() {
            agent.keeper.asides(time, false, true);
        }
        agent.keeper.sent(stamp);
        put.fate = if !agent.session {
            Fate::Lost
        } else if self.server.silent > now || self.server.dropped > now {
            Fate::Silent
        } else if self.server.leaderless > now || self.server.full > now {
            Fate::Refused
        } else if self.server.busy > now {
            Fate::Busy
        } else {
            let message = Message {
                expected: put.over,
                ttl: Some(self.ttl),
                rollup: put.rollup,
                by: slot,
                life: agent.life,
                stamp,
                marker: false,
            };
            if let Some(stood) = &mut put.stood {
                *stood = self.store.newest().copied();
            }
            self.stores(&message)
        };
        let lost = self.server.loses_acks > now;
        let at = match put.fate {
            Fate::Lost => now,
            Fate::Silent => now + limit.as_micros() as Micros,
            _ if lost => {
                put.fate = Fate::Silent;
                now + limit.as_micros() as Micros
            }
            _ => now + self.latency,
        };
        self.then(slot, at, Stage::Sent(put));
    }

    fn stores(&mut self, message: &Message) -> Fate {
        if self.store.entry().is_none() {
            self.judge.misses(self.now);
        }
        match self.store.put(self.now, message) {
            Ok(revision) => {
                self.sum.stored += 1;
                self.judge.stored();
                Fate::Stored(revision)
            }
            Err(last) => Fate::Conflict(last),
        }
    }

    fn answered(&mut self, slot: usize, put: Put) {
        let time = self.time(slot);
        self.say(|| format!("agent {slot}: {:?} over {:?}", put.fate, put.over));
        let refusal = match put.fate {
            Fate::Stored(revision) => return self.acknowledged(slot, put, revision),
            Fate::Conflict(last) => Refusal::Conflict(Some(last)),
            Fate::Busy => Refusal::Busy,
            Fate::Silent => Refusal::Unanswered,
            Fate::Refused | Fate::Lost => Refusal::Other,
        };
        let agent = &mut self.agents[slot];
        let (next, _) = agent.keeper.refused(refusal, put.over, put.round);
        let again = |over: Option<u64>, stood| Put { over, round: put.round + 1, stood, ..put };
        match next {
            Next::Put(over) => self.send(slot, again(over, None)),
            Next::PutAndAsk(over) => self.send(slot, again(Some(over), Some(None))),
            Next::Look | Next::GiveUp if put.registers => {
                if refusal == Refusal::Unanswered {
                    agent.keeper.was_silent();
                }
                self.not_served(slot, put.began);
            }
            Next::Look | Next::GiveUp => {
                agent.session = false;
                agent.keeper.session_lost(time);
                self.then(slot, self.now, Stage::Turn);
            }
        }
    }

    fn acknowledged(&mut self, slot: usize, put: Put, revision: u64) {
        let time = self.time(slot);
        let agent = &mut self.agents[slot];
        agent.keeper.acknowledged(put.sent, time, revision);
        if put.registers {
            if put.immortal_below && revision != 1 {
                let mut second = new_put(put.began, Some(revision), true, false);
                second.round = 1;
                return self.send(slot, second);
            }
            agent.keeper.registered(put.began, time);
        } else {
            agent.keeper.beaten(put.began, time);
            if let Some(stood) = put.stood {
                let (life, ttl) = (agent.life, span(self.ttl));
                let found = found(&agent.keeper, slot, life, stood.as_ref(), ttl);
                agent.keeper.stood(time, found);
                if stood.is_some_and(|stood| stood.immortal && !stood.marker) {
                    agent.immortal_below = true;
                    agent.keeper.hurry(time);
                }
            }
        }
        self.then(slot, self.now, Stage::Turn);
    }

    /// The end after a stop: the entry is taken out, if that can be done.
    fn end(&mut self, slot: usize) {
        let now = self.now;
        let agent = &self.agents[slot];
        if let Ending::TakeOut(known) = agent.keeper.ending(agent.session)
            && self.server.is_fine(now)
        {
            let ours = |one: &&Revision| {
                let is_ours = agent.keeper.is_ours(one.number, one.stamp);
                one.by == slot && one.life == agent.life && is_ours
            };
            let read = || self.store.entry().filter(ours).map(|one| one.number);
            let mut tries = [known, read()].into_iter().flatten();
            let marker = |revision| Message {
                expected: Some(revision),
                ttl: Some(60 * SECOND),
                rollup: true,
                by: slot,
                life: agent.life,
                stamp: stamp(now),
                marker: true,
            };
            if tries.any(|revision| self.store.put(now, &marker(revision)).is_ok()) {
                // Another of that name finds out with its next heartbeat.
                self.judge.taken(now);
            }
        }
        let life = self.agents[slot].life;
        let is_its = |entry: &Revision| entry.by == slot && entry.life == life;
        let left_there = self.store.entry().is_some_and(is_its);
        let well = self.agents[slot].stops_well && self.server.is_fine(now);
        self.say(|| format!("agent {slot} ends: {:?}", self.agents[slot].keeper.ending(true)));
        self.judge.stopped(slot, now, left_there, well);
        self.ends(slot);
    }
}

fn new_put(began: Duration, over: Option<u64>, registers: bool, rollup: bool) -> Put {
    Put {
        began,
        sent: began,
        over,
        round: 1,
        registers,
        rollup,
        immortal_below: false,
        stood: None,
        fate: Fate::Lost,
    }
}

/// What stood there, as an agent sees it.
fn found(
    keeper: &Keeper,
    slot: usize,
    life: u32,
    stood: Option<&Revision>,
    ttl: Duration,
) -> Found {
    let Some(stood) = stood else { return Found::Nothing };
    let revision = stood.number;
    if stood.marker {
        return Found::Marker { revision, expired: false };
    }
    if stood.by == slot && stood.life == life && keeper.is_ours(revision, stood.stamp) {
        return Found::Own { revision };
    }
    Found::Others { revision, who: format!("{} {}", stood.by, stood.life), ttl }
}
