//! Holds the promises of docs/outages.md, as `crate::judge` does, against what
//! the decisions came to.

use super::store::Revision;
use crate::world::{MILLI, Micros, SECOND};

/// An entry is back within this time of a server that serves.
const BACK: Micros = 3 * SECOND;
/// So much later where the server let clients in and answered nothing, or lost its
/// answers: a put is waited for so long.
const TRAP: Micros = 6 * SECOND;
/// Steps of one agent in one second of its time: more is a loop without a wait.
const STEPS_LIMIT: u32 = 2_000;

#[derive(Default, Clone)]
struct Agent {
    alive: bool,
    good: Option<Micros>,
    /// The same, until it was asked to stop.
    good_before: Option<Micros>,
    proven_until: Option<Micros>,
    /// When it was killed, or asked to stop.
    left: Option<Micros>,
    stopping: bool,
    steps: (Micros, u32),
}

pub struct Judge {
    ttl: Micros,
    interval: Micros,
    agents: [Agent; 2],
    /// When somebody else took the entry away, or it never was there.
    taken: Option<Micros>,
    /// Until when the server was a trap.
    trapped: Option<Micros>,
    has_trap: bool,
    /// Since when both could meet.
    both: Option<Micros>,
    pub found: Option<(Micros, String)>,
}

impl Judge {
    pub fn new(ttl: Micros, interval: Micros) -> Judge {
        Judge {
            ttl,
            interval,
            agents: Default::default(),
            taken: Some(0),
            trapped: None,
            has_trap: false,
            both: None,
            found: None,
        }
    }

    pub fn violated(&mut self, at: Micros, words: String) {
        self.found.get_or_insert((at, words));
    }

    fn back(&self) -> Micros {
        BACK + 100 * MILLI + if self.trapped.is_some() { TRAP } else { 0 }
    }

    pub fn started(&mut self, slot: usize) {
        self.agents[slot] = Agent { alive: true, ..Agent::default() };
    }

    pub fn left(&mut self, slot: usize, now: Micros, ended: bool) {
        let agent = &mut self.agents[slot];
        agent.left.get_or_insert(now);
        agent.stopping = !ended;
        agent.alive &= !ended;
        agent.good_before = agent.good.take().or(agent.good_before);
    }

    /// Somebody else took the entry away, or put something over it.
    pub fn taken(&mut self, now: Micros) {
        self.taken = Some(now);
        // What the two meet now has another cause for a while.
        self.both = self.both.map(|_| now);
    }

    /// An agent takes a step.
    pub fn step(&mut self, slot: usize, now: Micros) {
        let (second, count) = &mut self.agents[slot].steps;
        if now / SECOND != *second {
            (*second, *count) = (now / SECOND, 0);
        }
        *count += 1;
        if *count > STEPS_LIMIT {
            self.violated(now, format!("agent {slot} spins"));
        }
    }

    /// Whether each agent can use the server from now on.
    pub fn conditions(&mut self, now: Micros, good: [bool; 2], trap: bool) {
        if trap || std::mem::take(&mut self.has_trap) {
            self.trapped = Some(now);
        } else if self.trapped.is_some_and(|until| now > until + TRAP + BACK + SECOND) {
            self.trapped = None;
        }
        self.has_trap = trap;
        let back = self.back();
        for (agent, good) in self.agents.iter_mut().zip(good) {
            if agent.good.is_some_and(|since| now >= since + back) {
                agent.proven_until = Some(now);
            }
            let good = good && agent.alive && !agent.stopping;
            agent.good = if good { Some(agent.good.unwrap_or(now)) } else { None };
        }
        let both = self.agents.iter().all(|agent| agent.good.is_some());
        self.both = if both { Some(self.both.unwrap_or(now)) } else { None };
    }

    /// All sessions are cut: whoever was just about to register begins anew.
    pub fn interrupted(&mut self, now: Micros) {
        let back = self.back();
        for agent in &mut self.agents {
            if agent.good.take().is_some_and(|since| now >= since + back) {
                agent.proven_until = Some(now);
            }
        }
    }

    /// The entry is not there at `now`, under the conditions of now.
    pub fn misses(&mut self, now: Micros) {
        for slot in 0..2 {
            let agent = &self.agents[slot];
            if !agent.alive || agent.stopping {
                continue;
            }
            if self.taken.is_some_and(|taken| now < taken + self.interval + self.back()) {
                continue;
            }
            let is_due = agent.good.is_some_and(|since| now > since + self.back());
            let bears = self.ttl.saturating_sub(self.interval + BACK + 300 * MILLI);
            let notices = self.interval + self.back();
            let kept = |until: Micros| self.taken.is_none_or(|taken| taken + notices < until);
            let is_kept =
                agent.proven_until.is_some_and(|until| now - until < bears && kept(until));
            if is_due || is_kept {
                self.violated(now, format!("the entry of agent {slot} is not there"));
            }
        }
    }

    /// An agent has stored its entry.
    pub fn stored(&mut self) {
        self.taken = None;
    }

    /// A revision that stood for something has expired, and nothing is under it.
    pub fn expired(&mut self, now: Micros, gone: &Revision) {
        if let Some(left) = self.agents.get(gone.by).and_then(|agent| agent.left)
            && now > left + self.ttl + SECOND
        {
            let ago = (now - left) / MILLI;
            self.violated(now, format!("agent {} left {ago} ms ago, and was there", gone.by));
        }
    }

    /// What stands there as agent `slot` has ended in good order.
    pub fn stopped(&mut self, slot: usize, now: Micros, left_there: bool, well: bool) {
        let other = &self.agents[1 - slot];
        // A duplicate is taken to be there for a while.
        let is_gone = !other.alive && other.left.is_none_or(|left| left + self.taken_for() < now);
        let is_long = |since: Micros| since + self.taken_for() < now;
        if left_there && well && is_gone && self.agents[slot].good_before.is_some_and(is_long) {
            self.violated(now, format!("agent {slot} was stopped, and its entry is there"));
        }
    }

    /// How long a duplicate is taken to be there at most.
    fn taken_for(&self) -> Micros {
        self.ttl + 6 * self.interval
    }

    /// Whether each agent says that there is a duplicate; when somebody else wrote
    /// last.
    pub fn duplicates(&mut self, now: Micros, said: [bool; 2], foreign: Micros) {
        for (slot, says) in said.into_iter().enumerate() {
            let long = |since: Micros| now > since + self.taken_for() + self.back();
            let other = &self.agents[1 - slot];
            let is_alone = !other.alive && other.left.is_none_or(long) && long(foreign);
            if says && is_alone && self.agents[slot].good.is_some_and(long) {
                self.violated(now, format!("agent {slot} says that there is a duplicate"));
            }
        }
        let due = |since: Micros| now > since + 3 * self.interval + self.back();
        if self.both.is_some_and(due) && said != [true, true] {
            self.violated(now, format!("two agents of one name, and they say {said:?}"));
        }
    }
}
