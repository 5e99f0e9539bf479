//! Holds a recorded run against the promises of docs/outages.md and of `watch`
//! and `cleanup`. *Pure*, and after the run: it knows when each server took what
//! was written, which ways were open, and when each agent ran.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{
    History, LATE, Life, MILLI, Micros, SECOND, STEP, Span, Watched, touches, within,
};

/// "Back within 3 s of a server being reachable".
const BACK: Micros = 3 * SECOND;
/// A server that lets clients in and does not serve them costs so much.
const TRAP: Micros = 11 * SECOND;
/// What was out of order counts as a trap for so long.
const REMEMBERED: Micros = TRAP;
/// A server that goes on after a fault has caught up by then.
const WHOLE: Micros = 8 * SECOND;
/// Where a change of leader (4 to 10 s) is promised not to show.
const BEARS_A_LEADER: Micros = 15 * SECOND;
/// Time for what a process says to be read here, on a busy machine.
const HEARD: Micros = 400 * MILLI;

#[derive(Default, Debug)]
pub struct Verdict {
    pub violations: Vec<String>,
    /// What was looked at, by name.
    pub counts: BTreeMap<&'static str, u64>,
}

impl Verdict {
    fn violated(&mut self, at: Micros, words: String) {
        self.violations.push(format!("{:.3} {words}", at as f64 / 1e6));
    }

    fn count(&mut self, what: &'static str, number: usize) {
        *self.counts.entry(what).or_default() += number as u64;
    }
}

/// When something must be so, in steps.
struct Timeline {
    from: Micros,
    must: Vec<bool>,
}

impl Timeline {
    fn at(&self, at: Micros) -> bool {
        let step = usize::try_from((at - self.from) / STEP).unwrap_or(usize::MAX);
        self.must.get(step).copied().unwrap_or(false)
    }

    /// The first moment of a span at which it must be so.
    fn first(&self, (from, to): Span) -> Option<Micros> {
        let mut at = from;
        while at < to {
            if self.at(at) {
                return Some(at);
            }
            at += STEP;
        }
        None
    }

    fn all(&self, (from, to): Span) -> bool {
        let mut at = from;
        while at < to {
            if !self.at(at) {
                return false;
            }
            at += STEP;
        }
        true
    }
}

/// Who asks for a server: an agent's process or a watcher.
struct Client<'a> {
    group: usize,
    /// When it ran.
    runs: &'a [Span],
    pauses: &'a [Span],
    /// How long it can do without a server.
    bears: Micros,
    interval: Micros,
    ttl: Micros,
    /// The loss of any one server is never visible.
    bears_a_leader: bool,
}

pub fn judge(history: &History) -> Verdict {
    let mut verdict = Verdict::default();
    let musts: Vec<Timeline> = (0..history.agents.len())
        .map(|agent| {
            let spec = &history.agents[agent];
            let runs: Vec<Span> = lives(history, agent).map(|life| (life.from, life.to)).collect();
            let client = Client {
                group: spec.group,
                runs: &runs,
                pauses: &history.pauses[agent],
                bears: spec.ttl - spec.interval - BACK - LATE,
                interval: spec.interval,
                ttl: spec.ttl,
                bears_a_leader: spec.ttl >= BEARS_A_LEADER,
            };
            must(history, &client)
        })
        .collect();
    for (agent, must) in musts.iter().enumerate() {
        entries(history, agent, must, &mut verdict);
        deregistered(history, agent, &mut verdict);
    }
    reads(history, &musts, &mut verdict);
    cleanups(history, &mut verdict);
    for (number, watched) in history.watched.iter().enumerate() {
        watcher(history, number, watched, &mut verdict);
    }
    verdict
}

fn lives(history: &History, agent: usize) -> impl Iterator<Item = &Life> {
    history.lives.iter().filter(move |life| life.agent == agent)
}

/// When the entry of a client must be there, or its picture up to date.
fn must(history: &History, client: &Client<'_>) -> Timeline {
    let servers = history.serving.len();
    let mut since: Vec<Option<Micros>> = vec![None; servers];
    let mut bad_at: Vec<Micros> = vec![Micros::MIN; servers];
    let (mut proven_until, mut taken, mut run) = (None, Micros::MIN, None);
    let mut timeline = Timeline { from: history.from, must: Vec::new() };
    let mut at = history.from;
    while at < history.to {
        let now_run = client.runs.iter().position(|(from, to)| (*from..*to).contains(&at));
        if now_run != run {
            run = now_run;
            since.fill(None);
            bad_at.fill(Micros::MIN);
            proven_until = None;
        }
        let paused = within(client.pauses, at);
        for server in 0..servers {
            let serves = within(&history.serving[server], at)
                && !within(&history.closed[client.group][server], at);
            if !serves {
                bad_at[server] = at;
            }
            since[server] = match (serves && !paused && run.is_some(), since[server]) {
                (false, _) => None,
                (true, None) => Some(at),
                (true, known) => known,
            };
        }
        let traps = bad_at.iter().filter(|bad| **bad > at - REMEMBERED).count() as Micros;
        let back = BACK + traps * TRAP;
        let is_proven = since.iter().flatten().any(|since| at - since >= back);
        if is_proven {
            proven_until = Some(at);
        }
        let set_by = history.server_time(at) - history.server_time(at - STEP) - STEP;
        if set_by > client.bears.min(SECOND) {
            taken = at;
        }
        let was_taken = at < taken.saturating_add(2 * client.interval + back + SECOND);
        let bears = proven_until.is_some_and(|until| {
            (at - until).max(history.server_time(at) - history.server_time(until)) < client.bears
        });
        let must = run.is_some() && !was_taken;
        timeline.must.push(must && (is_proven || bears || one_lost(history, client, run, at)));
        at += STEP;
    }
    timeline
}

/// At most one server was away for a whole TTL, and nothing else.
fn one_lost(history: &History, client: &Client<'_>, run: Option<usize>, at: Micros) -> bool {
    let span = (at - client.ttl - BACK, at + STEP);
    let Some((from, _)) = run.map(|run| client.runs[run]) else { return false };
    let broken = history.broken.iter().filter(|spans| {
        spans.iter().any(|(from, to)| *from < span.1 && span.0 < to.saturating_add(WHOLE))
    });
    client.bears_a_leader
        && from < span.0
        && broken.count() <= 1
        && !history.closed[client.group].iter().any(|spans| touches(spans, span))
        && !touches(client.pauses, span)
        && history.ahead(span.0) == history.ahead(span.1)
}

/// A healthy agent's entry is never missing.
fn entries(history: &History, agent: usize, must: &Timeline, verdict: &mut Verdict) {
    let instance = &history.agents[agent].instance;
    let (absences, holes) = history.absences(agent);
    verdict.count("revisions", history.of(agent).len());
    verdict.count("revisions not seen", holes.len());
    let seconds = |steps: usize| steps * STEP as usize / SECOND as usize;
    let had_to_be = must.must.iter().filter(|must| **must).count();
    verdict.count("seconds in which an entry had to be there", seconds(had_to_be));
    let lived = lives(history, agent).map(|life| life.to.min(history.to) - life.from);
    verdict.count("seconds that agents lived", (lived.sum::<Micros>() / SECOND) as usize);
    for (from, to) in absences {
        if let Some(at) = must.first((from + LATE, to)) {
            let length = (to - from) as f64 / 1e6;
            verdict.violated(at, format!("P1: the entry of {instance} is missing for {length} s"));
        }
    }
}

/// What was deregistered is not written again by the same process; and who is
/// gone has an end.
fn deregistered(history: &History, agent: usize, verdict: &mut Verdict) {
    let instance = &history.agents[agent].instance;
    for life in lives(history, agent) {
        let own = || history.of(agent).iter().filter(|one| one.pid == Some(life.pid));
        let marker = history.of(agent).iter().find(|one| {
            one.is_marker && !life.was_killed && one.at >= life.to && one.at < life.to + 8 * SECOND
        });
        if let Some(marker) = marker {
            verdict.count("deregistrations", 1);
            if let Some(late) = own().find(|one| one.seq > marker.seq) {
                verdict.violated(late.at, format!("{instance} is back after it deregistered"));
            }
        }
    }
}

/// What `list` shows.
fn reads(history: &History, musts: &[Timeline], verdict: &mut Verdict) {
    let absences: Vec<Vec<Span>> =
        (0..history.agents.len()).map(|agent| history.absences(agent).0).collect();
    for read in history.reads.iter().filter(|read| read.code == 0) {
        verdict.count("reads judged", 1);
        let shown: BTreeSet<&str> = read.shown.iter().map(String::as_str).collect();
        let calm = |before| {
            let span = (read.from - before, read.to);
            !history
                .broken
                .iter()
                .any(|spans| spans.iter().any(|(from, to)| *from < span.1 && span.0 < to + WHOLE))
        };
        for (agent, spec) in history.agents.iter().enumerate() {
            let is_shown = shown.contains(spec.instance.as_str());
            let span = (read.from - SECOND / 2, read.to + STEP);
            if !is_shown && musts[agent].all(span) && !calm(2 * SECOND) {
                // A member that has just come back lags: docs/outages.md, Limits.
                verdict.count("living not shown while a server was away or came back", 1);
            } else if !is_shown && musts[agent].all(span) {
                let words = format!("list does not show {}, which is alive", spec.instance);
                verdict.violated(read.from, words);
            }
            let gone = absences[agent].iter().any(|(from, to)| {
                // The server's timer does not know that its clock was set.
                let stepped = history.clock.iter().any(|(at, _)| (at - from).abs() < SECOND);
                let late = if stepped { 6 * SECOND } else { SECOND + LATE };
                from + late < read.from && read.to < *to - HEARD
            });
            if is_shown && gone {
                if calm(2 * SECOND) {
                    let words = format!("list shows {}, which is gone", spec.instance);
                    verdict.violated(read.from, words);
                } else {
                    verdict.count("stale reads while a server was cut off", 1);
                }
            }
        }
    }
}

/// Nothing is taken whose TTL still runs.
fn cleanups(history: &History, verdict: &mut Verdict) {
    for cleanup in &history.cleanups {
        verdict.count("cleanups", 1);
        verdict.count("cleanups that ended well", usize::from(cleanup.code == 0));
        for (key, revision, reasons) in &cleanup.removed {
            verdict.count("removed by cleanup", 1);
            let agent = history
                .agents
                .iter()
                .position(|spec| key.ends_with(&format!("__{}", spec.instance)));
            let Some(agent) = agent else { continue };
            let Some(taken) = history.of(agent).iter().find(|one| one.seq == *revision) else {
                continue;
            };
            let end = taken.stored + history.agents[agent].ttl;
            let clock =
                history.server_time(cleanup.to).max(cleanup.to + history.ahead(cleanup.from));
            if !taken.is_marker && clock < end {
                let left = (end - history.server_time(cleanup.to)) as f64 / 1e6;
                verdict.violated(
                    cleanup.to,
                    format!("cleanup took {key} {revision} ({reasons}), {left} s before its end"),
                );
            }
        }
    }
}

/// What a watcher told against what was.
fn watcher(history: &History, number: usize, watched: &Watched, verdict: &mut Verdict) {
    verdict.count("events told by watch", watched.told.len());
    let (absences, holes): (Vec<_>, Vec<_>) =
        (0..history.agents.len()).map(|agent| history.absences(agent)).unzip();
    // When it said that it knows.
    let mut known: Vec<Span> = Vec::new();
    let mut up: BTreeSet<&str> = BTreeSet::new();
    let mut since = None;
    for told in &watched.told {
        match told.event.as_str() {
            "synced" => since = Some(told.at),
            "lost" => known.extend(since.take().map(|since| (since, told.at))),
            "up" if !up.insert(&told.instance) => {
                verdict.violated(told.at, format!("watch {number}: {} up twice", told.instance));
            }
            "down" if !up.remove(told.instance.as_str()) => {
                verdict.violated(told.at, format!("watch {number}: {} down twice", told.instance));
            }
            "down" => {
                let Some(agent) = agent_of(history, &told.instance) else { continue };
                verdict.count("downs told by watch", 1);
                let paused = watched
                    .pauses
                    .iter()
                    .rev()
                    .find(|(from, to)| *from < told.at && told.at < to + 10 * SECOND);
                // What it knew last: a replica that lags tells it what happened since.
                let knew = if since.is_none() { known.last().map(|(_, to)| *to) } else { None };
                let paused = paused.map_or(told.at, |(from, _)| *from);
                let from = paused.min(knew.unwrap_or(told.at)) - 3 * SECOND;
                let window = (from, told.at + STEP);
                let lived = |life: &Life| touches(&[(life.from, life.to)], window);
                let is_away = [&absences[agent], &holes[agent]];
                let is_away = is_away.into_iter().any(|spans| touches(spans, window));
                if !is_away && lives(history, agent).any(lived) {
                    let words = format!(
                        "watch {number}: {} is called down ({}) and was never away",
                        told.instance, told.reason
                    );
                    verdict.violated(told.at, words);
                }
            }
            _ => {}
        }
    }
    known.extend(since.map(|since| (since, Micros::MAX)));
    for (agent, absences) in absences.iter().enumerate() {
        for absence in absences {
            death(history, (number, watched), agent, *absence, &known, verdict);
        }
    }
    let alive: BTreeSet<&str> = (history.lives.iter())
        .filter(|life| life.to >= history.to)
        .map(|life| history.agents[life.agent].instance.as_str())
        .collect();
    up.retain(|instance| agent_of(history, instance).is_some());
    if up != alive {
        verdict.violated(history.to, format!("watch {number}: in the end {up:?}, not {alive:?}"));
    }
    let all = [(history.from, history.to)];
    let client = Client {
        group: watched.group,
        runs: &all,
        pauses: &watched.pauses,
        bears: 0,
        interval: 0,
        ttl: 0,
        bears_a_leader: false,
    };
    let must = must(history, &client);
    let mut unknown = history.from;
    for (from, to) in known.iter().copied().chain([(history.to, history.to)]) {
        let Some(at) = must.first((unknown, from)) else {
            unknown = to.saturating_add(TRAP);
            continue;
        };
        if history.broken.iter().any(|spans| touches(spans, (at - TRAP, at))) {
            // A consumer may be placed on the member that is away: docs/nats.md.
            verdict.count("watchers that were late while a server was away", 1);
        } else {
            let words = format!("watch {number} is not up to date, and could be");
            verdict.violated(at, words);
        }
        unknown = to.saturating_add(TRAP);
    }
}

fn agent_of(history: &History, instance: &str) -> Option<usize> {
    history.agents.iter().position(|spec| spec.instance == instance)
}

/// Whoever is away is told within 1 s, or 2 s after the watcher is back.
fn death(
    history: &History,
    (number, watched): (usize, &Watched),
    agent: usize,
    (from, to): Span,
    known: &[Span],
    verdict: &mut Verdict,
) {
    let instance = &history.agents[agent].instance;
    let before =
        watched.told.iter().rev().find(|told| told.instance == *instance && told.at < from + HEARD);
    // It has never been told of as alive: there is nothing to tell.
    if before.is_none_or(|told| told.event == "down") {
        let early = before.is_some_and(|told| told.at >= from - HEARD);
        verdict.count("deaths told in time", usize::from(early));
        return;
    }
    let stepped =
        history.clock.iter().any(|(at, _)| (from - 3 * SECOND..from + SECOND).contains(at));
    let mut due = from + SECOND + if stepped { 3 * SECOND } else { 0 } + HEARD;
    // While it knows nothing, or does not yet know that it knows nothing.
    let knows =
        |at: Micros| known.iter().any(|(from, to)| from + 2 * SECOND <= at && at < to - 3 * SECOND);
    let runs = |at: Micros| {
        !watched.pauses.iter().any(|(from, to)| (from - SECOND..to + 3 * SECOND).contains(&at))
    };
    // Where no server answers it cannot know, and may not notice.
    let troubled = |at: Micros| {
        (0..history.serving.len()).any(|server| {
            let span = (at - 2 * SECOND - HEARD, at);
            touches(&history.closed[watched.group][server], span)
                || !history.serving[server].iter().any(|(from, to)| *from <= span.0 && at <= *to)
        })
    };
    let synced_since = |at: Micros| {
        let mut told = watched.told.iter();
        told.any(|told| told.event == "synced" && from < told.at && told.at + 2 * SECOND < at)
    };
    while due < history.to && (!(knows(due) && runs(due)) || (troubled(due) && !synced_since(due)))
    {
        due += STEP;
    }
    if to < due + HEARD || due >= history.to {
        verdict.count("deaths that were over before they were due", 1);
        return;
    }
    let told = watched.told.iter().find(|told| {
        told.instance == *instance
            && told.event == "down"
            && told.at > from - HEARD
            && told.at <= due
    });
    match told {
        Some(_) => verdict.count("deaths told in time", 1),
        None => {
            let late = watched.told.iter().find(|told| told.instance == *instance && told.at > due);
            let late = late.map(|told| (told.at - from) as f64 / 1e6);
            let words =
                format!("watch {number}: {instance} has gone and was not told in time: {late:?} s");
            verdict.violated(from, words);
        }
    }
}
