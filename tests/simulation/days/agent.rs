//! One agent: what it does about each decision, in a few lines.

use std::time::Duration;

use aegis_agent::commands::run::keeper::{
    Ending, Found, Keeper, Next, Refusal, SessionState, Step,
};

use super::store::{Message, Revision, SERVER};
use super::{World, span, stamp};
use crate::world::{MILLI, Micros, SECOND};

const TIMEOUT: Duration = Duration::from_secs(5);
/// A SYN is sent again after this time.
const SYN: Micros = 1_200 * MILLI;
/// A question is asked again after this time.
const ASK: Micros = 500 * MILLI;

/// A put that is under way.
#[derive(Clone, Copy)]
pub struct Put {
    pub began: Duration,
    pub sent: Duration,
    pub over: Option<u64>,
    pub round: u32,
    pub registers: bool,
    pub rollup: bool,
    /// What lay there has no TTL.
    pub immortal_below: bool,
    /// What stood there is asked for.
    pub asks: bool,
    pub fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    Stored(u64),
    Conflict(u64),
    Busy,
    Refused,
    Silent,
    /// The session ends.
    Lost,
}

#[derive(Clone, Copy)]
pub enum Stage {
    Turn,
    Connects { began: Duration, until: Micros },
    Asks { began: Duration, until: Micros },
    Sent(Put),
}

#[derive(Clone, Copy, PartialEq)]
pub enum Woke {
    Slept,
    Resumed,
}

pub struct Agent {
    pub keeper: Keeper,
    pub alive: bool,
    pub life: u32,
    pub started: Micros,
    pub session: bool,
    pub stage: Stage,
    /// When the stage is to be carried out.
    pub at: Micros,
    /// It stands still until then.
    pub still: Micros,
    pub woke: Option<Woke>,
    pub stop: Option<Micros>,
    pub stops_well: bool,
    pub immortal_below: bool,
    /// What stood there as it was asked for last.
    stood: Option<Revision>,
}

pub fn agent(ttl: Micros, interval: Micros, seed: u64) -> Agent {
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
        stood: None,
    }
}

impl World {
    pub fn start(&mut self, slot: usize) {
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
    pub fn ends(&mut self, slot: usize) {
        let pause = 50 * MILLI + self.rng.below(60 * SECOND);
        let agent = &mut self.agents[slot];
        self.sum.agent_time += self.now - agent.started;
        agent.alive = false;
        agent.at = self.now.max(agent.still) + pause;
        self.judge.left(slot, self.now, true);
        self.changes();
    }

    /// The sessions of an agent end: it hears of it at once.
    pub fn cut(&mut self, slot: usize) {
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

    pub fn terminate(&mut self, slot: usize) {
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
    pub fn step(&mut self, slot: usize) {
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
            if put.asks {
                self.agents[slot].stood = self.store.newest().copied();
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
        let again = |over: Option<u64>, asks| Put { over, round: put.round + 1, asks, ..put };
        match next {
            Next::Put(over) => self.send(slot, again(over, false)),
            Next::PutAndAsk(over) => self.send(slot, again(Some(over), true)),
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
            if put.asks {
                let stood = agent.stood.take();
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
        asks: false,
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
        return Found::Marker { revision, expired: stood.by == SERVER };
    }
    if stood.by == slot && stood.life == life && keeper.was_ours(revision, stood.stamp) {
        return Found::Own { revision };
    }
    Found::Others { revision, who: format!("{} {}", stood.by, stood.life), ttl }
}
