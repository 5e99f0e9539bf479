//! Holds the promises of docs/outages.md against what really happened.
//!
//! It knows the truth at each instant: what is stored, and whether an agent
//! could have done its work. It looks when something changes, and when a promise
//! falls due.

use std::collections::BTreeMap;

use time::OffsetDateTime;

use crate::faults::Kind;
use crate::model::bucket::{Stored, Wall};
use crate::network::ConnId;
use crate::plan::Plan;
use crate::world::{MILLI, Micros, SECOND};

/// An entry is back within this time of a server that serves.
const BACK: Micros = 3 * SECOND;
/// So much later for each server that lets clients in and does not serve them, such
/// as a member that is cut off from the others: it is left after 1 s.
const TRAP: Micros = 2_000 * MILLI;
/// The same for one that has answered, and over whose way nothing comes any more: an
/// acknowledgement is waited for so long.
const HALF_THERE: Micros = 2_500 * MILLI;
/// The same where all of them did not serve: a put is waited for so long.
const ALL_TRAPS: Micros = 6 * SECOND;
/// What the network and the servers take for a handful of exchanges, when all is
/// well.
const EXCHANGES: Micros = 8;
/// A heartbeat's stamp is so far off the registry's clock at most.
const SKEW: i64 = 2 * SECOND as i64;
/// The same while the last answers may have been slow.
const SKEW_AFTER_TROUBLE: i64 = 5_500 * MILLI as i64;
/// After this time with everything well an agent has one connection, and no older
/// one.
pub const SETTLED: Micros = 12 * SECOND;
/// An agent takes its entry out within this time, when all is well.
const TAKEN_OUT: Micros = 500 * MILLI;

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Violation {
    pub at: Micros,
    pub words: String,
}

/// Which agent stored something.
#[derive(Clone, Copy, Debug)]
pub struct Writer {
    pub slot: usize,
    pub conn: ConnId,
    /// It has closed that connection.
    pub given_up: bool,
}

#[derive(Default)]
struct AgentState {
    alive: bool,
    stop: Option<Micros>,
    /// Since when each server could have been used, without a break.
    good: Vec<Option<Micros>>,
    /// When it last could count on a server for long enough.
    proven_until: Option<Micros>,
    /// Its connections of which something was stored: the newest.
    newest: Option<ConnId>,
    /// Its connection was forgotten by something between, and it may not know.
    dropped: bool,
    /// Everything was well when it was asked to stop.
    stops_well: bool,
    /// It was asked to stop when a duplicate and it had both written for long.
    shares: bool,
    /// Its end is due.
    must_end: Option<Micros>,
    /// Until when there were servers that let it in and did not serve, and how
    /// much time they may have cost at most.
    trapped: Option<(Micros, Micros)>,
    has_traps: bool,
    /// It stands still: it has no time to leave them.
    still: bool,
    /// When the registry's clock was set, where that may not have shown yet.
    unseen: Option<Micros>,
    /// When it was killed, or asked to stop.
    left: Option<Micros>,
}

#[derive(Default)]
struct KeyState {
    present: bool,
    /// How long what stands there lives.
    ttl: Micros,
    /// When what stands there was stored.
    stored_at: Micros,
    /// Who stored what stands there.
    by: Option<usize>,
    /// Somebody else wrote it.
    foreign: Option<Micros>,
    /// Somebody else took it away, or it never was there.
    taken: Option<Micros>,
    /// A value without a TTL lay there while the bucket let nobody remove what lies
    /// under an entry: it stands there again when that has expired.
    unburied: bool,
}

#[derive(Default, Clone, Debug)]
pub struct Tally {
    pub faults: BTreeMap<String, u64>,
    pub stored: u64,
    pub expired: u64,
    /// Revisions that a cleanup removed.
    pub cleaned: u64,
    /// How calls of tools ended.
    pub tools: BTreeMap<String, u64>,
    pub agent_time: Micros,
}

pub struct Judge {
    ttl: Micros,
    interval: Micros,
    timeout: Micros,
    back: Micros,
    keys: BTreeMap<String, KeyState>,
    key_of: Vec<String>,
    agents: Vec<AgentState>,
    stepped: Option<Micros>,
    clock_off: Option<i64>,
    pub violation: Option<Violation>,
    pub tally: Tally,
    alive_since: Vec<Option<Micros>>,
    lets_go: Option<Micros>,
    /// Heartbeats may lie in the buffers of a server for a while.
    buffers: bool,
    /// Connections from this one on are younger than the bucket: in one that is
    /// made anew the revision that an older heartbeat expects comes again.
    renumbered: ConnId,
    /// How often that has happened.
    pub numberings: u64,
    /// Until when what was stored before a step of the server's clock may live.
    stretched: Micros,
}

impl Judge {
    pub fn new(plan: &Plan) -> Judge {
        let key_of: Vec<String> = (0..plan.hosts.len()).map(|slot| plan.subject(slot)).collect();
        let agent = || AgentState { good: vec![None; plan.servers.len()], ..AgentState::default() };
        Judge {
            ttl: plan.ttl * SECOND,
            interval: plan.interval * SECOND,
            timeout: 5 * SECOND,
            back: BACK + EXCHANGES * (plan.latency + 5 * MILLI),
            keys: key_of.iter().map(|key| (key.clone(), KeyState::default())).collect(),
            agents: plan.hosts.iter().map(|_| agent()).collect(),
            alive_since: vec![None; plan.hosts.len()],
            key_of,
            lets_go: None,
            buffers: plan.faults.iter().any(|fault| {
                matches!(
                    fault.kind,
                    Kind::FreezeServer { .. }
                        | Kind::StalledStorage { .. }
                        | Kind::PartServer { .. }
                )
            }),
            renumbered: 0,
            numberings: 0,
            stretched: 0,
            stepped: None,
            clock_off: None,
            violation: None,
            tally: Tally::default(),
        }
    }

    /// How long after a change something may fall due.
    pub fn graces(&self) -> [Micros; 4] {
        let more = [0, TRAP, HALF_THERE, ALL_TRAPS];
        more.map(|more| self.back + more)
    }

    /// How long an agent may take to be back.
    fn back_of(&self, slot: usize) -> Micros {
        self.back + self.agents[slot].trapped.map_or(0, |(_, cost)| cost)
    }

    /// The first violation counts: what follows may follow from it.
    pub fn violated(&mut self, at: Micros, words: String) {
        self.violation.get_or_insert(Violation { at, words });
    }

    pub fn befell(&mut self, kind: &Kind) {
        *self.tally.faults.entry(kind.name()).or_default() += 1;
    }

    pub fn started(&mut self, slot: usize, now: Micros) {
        let servers = self.agents[slot].good.len();
        let newest = self.agents[slot].newest;
        self.agents[slot] =
            AgentState { alive: true, good: vec![None; servers], newest, ..AgentState::default() };
        self.alive_since[slot] = Some(now);
    }

    fn gone(&mut self, slot: usize, now: Micros) {
        self.agents[slot].alive = false;
        if let Some(since) = self.alive_since[slot].take() {
            self.tally.agent_time += now - since;
        }
    }

    pub fn killed(&mut self, slot: usize, now: Micros) {
        self.agents[slot].left.get_or_insert(now);
        self.gone(slot, now);
    }

    /// Whether the store lets go what is over.
    pub fn store_lets_go(&mut self, now: Micros, lets_go: bool) {
        self.lets_go = match (self.lets_go, lets_go) {
            (_, false) => None,
            (None, true) => Some(now),
            (known, true) => known,
        };
    }

    /// Whoever is gone is not shown for longer than its TTL, or that of a heartbeat
    /// that lay in the buffers of a server that was frozen.
    fn judge_dead(&mut self, slot: usize, now: Micros) {
        let agent = &self.agents[slot];
        let Some(left) = agent.left.filter(|_| !agent.alive) else { return };
        // A bucket with markers and history stretches a TTL.
        let ttl = self.keys[&self.key_of[slot]].ttl.max(self.ttl);
        let key = &self.keys[&self.key_of[slot]];
        let since = if self.buffers { left.max(key.stored_at) } else { left };
        let due = since + ttl + SECOND;
        // A step makes the life of what is stored longer, or shorter.
        let is_settled = self.stepped.is_none_or(|at| at < key.stored_at)
            && now > self.stretched
            && self.lets_go.is_some_and(|since| since + SECOND < now);
        if now > due && is_settled && key.present && key.by == Some(slot) && !key.unburied {
            let ago = (now - left) / MILLI;
            self.violated(now, format!("agent {slot} left {ago} ms ago, and its entry is there"));
        }
    }

    pub fn asked_to_stop(&mut self, slot: usize, now: Micros) {
        let well = self.all_well(slot, now, self.back_of(slot)) && !self.agents[slot].dropped;
        // Who else wrote it is taken to be there until some heartbeats have shown that
        // it is gone.
        let was_shared = self.keys[&self.key_of[slot]].foreign.is_some();
        let long = self.ttl + 6 * self.interval;
        let well = well && (!was_shared || self.all_well(slot, now, long));
        let shares = |other: usize| other != slot && self.key_of[other] == self.key_of[slot];
        let is_met = |other: usize| shares(other) && self.all_well(other, now, long);
        let is_met = self.all_well(slot, now, long) && (0..self.agents.len()).any(is_met);
        let is_written = self.keys[&self.key_of[slot]].taken.is_none();
        self.agents[slot].shares = is_met && was_shared && is_written;
        let agent = &mut self.agents[slot];
        agent.stops_well = well;
        agent.stop = Some(now);
        agent.left = Some(now);
        agent.must_end = Some(now + self.timeout + SECOND);
    }

    /// Something happened to its servers or to its way there.
    pub fn troubled(&mut self, slot: usize) {
        self.agents[slot].stops_well = false;
    }

    /// Its host slept, or its process was stopped: its own time stood still.
    pub fn disturbed(&mut self, slot: usize) {
        self.agents[slot].still = true;
        self.agents[slot].must_end = None;
        self.agents[slot].stops_well = false;
    }

    /// What an agent could count on has to begin anew.
    pub fn interrupted(&mut self, slot: usize, now: Micros) {
        let nothing = vec![false; self.agents[slot].good.len()];
        self.conditions(slot, now, &nothing, 0, 0);
    }

    /// Something between has forgotten its connections.
    pub fn dropped(&mut self, slot: usize, now: Micros) {
        let agent = &mut self.agents[slot];
        agent.dropped = true;
        agent.trapped =
            Some((now, agent.trapped.map_or(ALL_TRAPS, |(_, most)| most.max(ALL_TRAPS))));
        self.interrupted(slot, now);
    }

    /// It goes on.
    pub fn goes_on(&mut self, slot: usize, now: Micros) {
        if self.agents[slot].stop.is_some() {
            self.agents[slot].must_end = Some(now + self.timeout + SECOND);
        }
        let agent = &mut self.agents[slot];
        agent.still = false;
        agent.trapped = agent.trapped.map(|(_, cost)| (now, cost));
        // It made no heartbeats that would have shown that somebody else is gone.
        if let Some(key) = self.keys.get_mut(&self.key_of[slot]) {
            key.foreign = key.foreign.map(|_| now);
        }
    }

    pub fn ended(&mut self, slot: usize, now: Micros) {
        if self.agents[slot].must_end.is_some_and(|must| now > must) {
            let asked = self.agents[slot].stop.unwrap_or(now);
            let took = (now - asked) / MILLI;
            self.violated(now, format!("agent {slot} took {took} ms to end"));
        }
        self.gone(slot, now);
    }

    pub fn clock_stepped(&mut self, now: Micros) {
        self.stepped = Some(now);
        for agent in &mut self.agents {
            agent.unseen = Some(now);
        }
        // What is stored may be over at once.
        for key in self.keys.values_mut() {
            key.taken = Some(now);
        }
    }

    /// The bucket counts its revisions anew; connections have numbers below `next`.
    pub fn renumbered(&mut self, next: ConnId) {
        self.renumbered = next;
        self.numberings += 1;
    }

    /// Whether values without a TTL lie under these keys, and whether the bucket lets
    /// anybody remove them.
    pub fn lies_below(&mut self, lies: impl Fn(&str) -> bool, buries: bool) {
        for (subject, key) in &mut self.keys {
            key.unburied = lies(subject) && (key.unburied || !buries);
        }
    }

    /// The store is as it was some time ago.
    pub fn rolled_back(&mut self, now: Micros) {
        for key in self.keys.values_mut() {
            key.taken = Some(now);
        }
    }

    /// The registry's clock, which may be another server's now.
    pub fn clock_is(&mut self, now: Micros, clock: Wall) {
        let off = clock / 1_000 - now as i64;
        let before = self.clock_off.replace(off).unwrap_or(off);
        if (before - off).abs() > 100_000 {
            self.clock_stepped(now);
        }
        if before - off > 0 {
            let ends = now + (before - off) as u64 + self.ttl + 2 * SECOND;
            self.stretched = self.stretched.max(ends);
        }
    }

    fn all_well(&self, slot: usize, now: Micros, time: Micros) -> bool {
        let good = self.agents[slot].good.iter();
        good.into_iter().all(|since| since.is_some_and(|since| now - since >= time))
    }

    /// Whether some server could be counted on for long enough.
    fn is_proven(&self, slot: usize, now: Micros) -> bool {
        let mut good = self.agents[slot].good.iter().flatten();
        good.any(|since| now - since >= self.back_of(slot))
    }

    /// Which servers an agent can use; how many let it in and do not serve it, and how
    /// many served it and are cut off. Whether that is news.
    pub fn conditions(
        &mut self,
        slot: usize,
        now: Micros,
        good: &[bool],
        traps: u64,
        halves: u64,
    ) -> bool {
        let was_proven = self.is_proven(slot, now);
        let agent = &mut self.agents[slot];
        let mut changed = false;
        for (since, good) in agent.good.iter_mut().zip(good) {
            changed |= since.is_some() != *good;
            *since = match (*since, good) {
                (_, false) => None,
                (None, true) => Some(now),
                (known, true) => known,
            };
        }
        if was_proven {
            self.agents[slot].proven_until = Some(now);
        }
        let agent = &mut self.agents[slot];
        if traps + halves > 0 {
            let is_all = traps + halves >= good.len() as u64;
            let cost = if is_all { ALL_TRAPS } else { traps * TRAP + halves * HALF_THERE };
            agent.trapped = Some((now, agent.trapped.map_or(0, |(_, most)| most).max(cost)));
        } else if std::mem::take(&mut agent.has_traps) {
            // They lasted until now.
            agent.trapped = agent.trapped.map(|(_, most)| (now, most));
        } else if !agent.still && agent.trapped.is_some_and(|(until, cost)| now > until + cost) {
            agent.trapped = None;
        }
        agent.has_traps = traps + halves > 0;
        changed
    }

    pub fn stored(&mut self, now: Micros, clock: Wall, stored: &Stored, by: Option<Writer>) {
        self.tally.stored += 1;
        let deleted = stored.is_marker();
        if let Some(Writer { slot, conn, given_up }) = by {
            let agent = &mut self.agents[slot];
            if given_up
                && conn >= self.renumbered
                && agent.newest.is_some_and(|newest| conn < newest)
            {
                let words = format!(
                    "revision {} of agent {slot} is news of a connection that was given up ({conn})",
                    stored.seq
                );
                self.violated(now, words);
            }
            if agent_newer(self.agents[slot].newest, conn) {
                self.agents[slot].dropped = false;
            }
            self.agents[slot].newest = Some(conn);
            if stored.subject != self.key_of[slot] {
                self.violated(now, format!("agent {slot} wrote {}", stored.subject));
            }
            if stored.ttl.is_none() && !deleted {
                self.violated(now, format!("revision {} of agent {slot} never ends", stored.seq));
            }
            if !deleted {
                self.judge_stamp(slot, now, clock, stored);
            }
        }
        let Some(key) = self.keys.get_mut(&stored.subject) else { return };
        key.stored_at = now;
        key.ttl = stored.ttl.map_or(0, |secs| secs as u64 * SECOND);
        match (by, deleted) {
            (Some(Writer { slot, .. }), false) => {
                if key.by.is_some_and(|by| by != slot) {
                    key.foreign = Some(now);
                }
                (key.present, key.by, key.taken) = (true, Some(slot), None);
            }
            (Some(Writer { slot, .. }), true) => {
                if key.present && key.by != Some(slot) {
                    let words = format!("agent {slot} took out what somebody else has stored");
                    self.violation.get_or_insert(Violation { at: now, words });
                }
                if self.agents[slot].shares {
                    let words = format!("agent {slot} took out what it shares with a duplicate");
                    self.violation.get_or_insert(Violation { at: now, words });
                }
                key.present = false;
                // Another of that name finds out with its next heartbeat.
                key.taken = Some(now);
                key.by = Some(slot);
            }
            (None, false) => {
                (key.present, key.by) = (true, None);
                key.foreign = Some(now);
            }
            (None, true) => {
                key.present = false;
                key.taken = Some(now);
            }
        }
    }

    fn judge_stamp(&mut self, slot: usize, now: Micros, clock: Wall, stored: &Stored) {
        if !self.all_well(slot, now, self.back) {
            return;
        }
        // A step shows within two heartbeats.
        let grace = 2 * self.interval + self.back + 3 * SECOND;
        if let Some(step) = self.agents[slot].unseen {
            if now < step + grace || !self.all_well(slot, now, grace) {
                return;
            }
            self.agents[slot].unseen = None;
        }
        let Some(stamp) = stamp_of(&stored.payload) else {
            return self.violated(now, format!("revision {} has no stamp", stored.seq));
        };
        let off = (stamp - clock) / 1_000;
        // What a slow answer told of the time was no better than that.
        let settled = self.all_well(slot, now, 2 * self.interval + SECOND);
        if off.abs() > if settled { SKEW } else { SKEW_AFTER_TROUBLE } {
            let words = format!(
                "revision {} of agent {slot} is stamped {} ms off the registry's clock",
                stored.seq,
                off / MILLI as i64
            );
            self.violated(now, words);
        }
    }

    /// A revision has gone; `stands`: another one of its key is there.
    pub fn removed(&mut self, now: Micros, stored: &Stored, expired: bool, stands: bool) {
        self.tally.expired += u64::from(expired);
        let Some(key) = self.keys.get_mut(&stored.subject) else { return };
        if stored.is_marker() || stands {
            return;
        }
        key.present = false;
        if !expired {
            key.taken = Some(now);
        }
    }

    /// Looks whether all is as promised; when to look again, if that is known.
    pub fn look(&mut self, now: Micros, open: &[usize]) -> Option<Micros> {
        let mut again: Option<Micros> = None;
        for (slot, open) in open.iter().enumerate() {
            let agent = &self.agents[slot];
            if agent.must_end.is_some_and(|must| now > must) && agent.alive {
                let took = (now - agent.stop.unwrap_or(now)) / MILLI;
                self.violated(now, format!("agent {slot} has not ended after {took} ms"));
            }
            self.judge_stop(slot, now);
            self.judge_dead(slot, now);
            let (must, when) = self.must_be_there(slot, now);
            let key = &self.keys[&self.key_of[slot]];
            if must && !key.present {
                self.violated(now, format!("the entry of agent {slot} is not there"));
            }
            if let Some(when) = when.filter(|when| *when > now) {
                again = Some(again.map_or(when, |known| known.min(when)));
            }
            if self.agents[slot].alive && self.all_well(slot, now, SETTLED) && *open > 1 {
                self.violated(now, format!("agent {slot} keeps {open} connections open"));
            }
        }
        again.filter(|again| *again > now)
    }

    /// Whether an agent's entry has to be there now; if not, from when on it may
    /// have to be.
    fn must_be_there(&self, slot: usize, now: Micros) -> (bool, Option<Micros>) {
        let agent = &self.agents[slot];
        if !agent.alive || agent.stop.is_some() {
            return (false, None);
        }
        let key = &self.keys[&self.key_of[slot]];
        if let Some(taken) = key.taken {
            let grace = taken + self.interval + self.back_of(slot);
            if now < grace {
                return (false, Some(grace + 1));
            }
        }
        if self.is_proven(slot, now) {
            return (true, None);
        }
        let bears = self.ttl.saturating_sub(self.interval + BACK + MILLI * 300);
        // What was taken away shortly before that was not there to be kept.
        let notices = self.interval + self.back_of(slot);
        let kept = |until: Micros| key.taken.is_none_or(|taken| taken + notices < until);
        let bears = agent.proven_until.is_some_and(|until| now - until < bears && kept(until));
        let proven = agent.good.iter().flatten().min().map(|since| since + self.back_of(slot) + 1);
        (bears, proven)
    }

    /// An agent that was asked to stop when all was well has taken its entry out.
    fn judge_stop(&mut self, slot: usize, now: Micros) {
        let agent = &self.agents[slot];
        let Some(stop) = agent.stop.filter(|_| agent.stops_well) else { return };
        // Where there is a duplicate the entry is left to it.
        let shares = |other: usize| other != slot && self.key_of[other] == self.key_of[slot];
        if (0..self.agents.len()).any(|other| shares(other) && self.agents[other].alive) {
            return;
        }
        let key = &self.keys[&self.key_of[slot]];
        // Another program that wrote it is taken for one for a while.
        let taken_for = self.ttl + 5 * self.interval;
        if key.foreign.is_some_and(|foreign| now - foreign < taken_for) {
            return;
        }
        if now >= stop + TAKEN_OUT && key.present && key.by == Some(slot) {
            self.violated(now, format!("agent {slot} was asked to stop, and its entry is there"));
        }
    }

    /// The run is over.
    pub fn finish(&mut self, now: Micros) {
        for slot in 0..self.agents.len() {
            self.gone(slot, now);
        }
    }
}

fn agent_newer(newest: Option<ConnId>, conn: ConnId) -> bool {
    newest.is_none_or(|newest| newest < conn)
}

/// The stamp of a record, in nanoseconds since 1970.
pub fn stamp_of(payload: &[u8]) -> Option<Wall> {
    const NAME: &[u8] = b"\"lastHeartbeat\":\"";
    let at = memchr::memmem::find(payload, NAME)? + NAME.len();
    let text = std::str::from_utf8(payload.get(at..at + 26)?).ok()?;
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u32>().ok();
    let month = time::Month::try_from(number(5, 7)? as u8).ok()?;
    let date =
        time::Date::from_calendar_date(number(0, 4)? as i32, month, number(8, 10)? as u8).ok()?;
    let clock = time::Time::from_hms_micro(
        number(11, 13)? as u8,
        number(14, 16)? as u8,
        number(17, 19)? as u8,
        number(20, 26)?,
    )
    .ok()?;
    let stamp: OffsetDateTime = time::PrimitiveDateTime::new(date, clock).assume_utc();
    Wall::try_from(stamp.unix_timestamp_nanos()).ok()
}
