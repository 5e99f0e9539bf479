#!/usr/bin/env python3
"""Breaks one mechanism of the agent after the other, in a copy of the sources,
and tells with which seed the simulator's judge notices it within 1,000 runs.

    python3 tests/simulation/mutants.py COPY [WORD]

COPY is a checkout of its own (`git worktree add COPY`), which is changed and
put right again. With WORD only those whose name has it. Not part of the plain
suite: each mutant is a build.
"""

import os
import pathlib
import re
import subprocess
import sys

KEEPER = "src/commands/run/keeper.rs"
OWN = "src/commands/run/agent/own_entry.rs"
REQUESTS = "src/jetstream/requests.rs"
SCHEDULE = "src/commands/run/schedule.rs"
ENDING = "src/commands/run/agent/ending.rs"
OWN_KEY = "src/registry/own_key.rs"

CONFLICT = "src/commands/run/keeper/conflict.rs"
LIMITS = "src/commands/run/keeper/limits.rs"
RACE = "src/nats/race.rs"
PICTURE = "src/registry/picture.rs"
READING = "src/commands/watch/reading.rs"
PROGRESS = "src/registry/follow/progress.rs"

MUTANTS = [
    ("a duplicate is judged by our own later put", "src/commands/run/agent.rs",
     "self.whose(&entry, Keeper::was_ours)", "self.whose(&entry, Keeper::is_ours)"),
    ("what comes during a look is dropped", "src/registry/asking.rs",
     "self.take_aside(other);", "drop(other);"),
    ("no expected revision", REQUESTS, "if let Some(revision) = put.expected {",
     "if let Some(revision) = put.expected.filter(|_| false) {"),
    ("no TTL", REQUESTS, '(TTL_HEADER, format!("{}s", put.ttl.as_secs()))',
     '("X-TTL", format!("{}s", put.ttl.as_secs()))'),
    ("a marker without expected revision", REQUESTS,
     "vec![(TTL_HEADER, MARKER_TTL.into()), (EXPECTED_HEADER, revision.to_string())];",
     'vec![(TTL_HEADER, MARKER_TTL.into()), ("X-Expected", revision.to_string())];'),
    ("a stale stamp", OWN, "let stamp = self.stamp();",
     "let stamp = self.stamped.map_or_else(|| self.stamp(), |(stamp, _)| stamp);"),
    ("the own clock is trusted", OWN, "is_some_and(is_off) => time", "is_some_and(is_off) => own"),
    ("no early retry", SCHEDULE, "Outcome::SessionLost => now,",
     "Outcome::SessionLost => now + self.interval,"),
    ("long pauses", SCHEDULE, "Duration::from_millis(1700)", "Duration::from_millis(9000)"),
    ("a wait not bounded by the life of the entry", SCHEDULE,
     "false => limit.min((life / 2).max(LEAST_PATIENCE)),", "false => limit * 8,"),
    ("a duplicate is not noticed", CONFLICT,
     "let is_new = self.duplicate() != Some(who.as_str());",
     "if ttl < Duration::MAX { return None; }\n        let is_new = self.duplicate() != Some(who.as_str());"),
    ("a duplicate is never gone", "src/commands/run/keeper/duplicate.rs",
     "self.quiet_beats > GONE_AFTER &&", "self.quiet_beats > GONE_AFTER * 100_000 &&"),
    ("any stamp is ours", CONFLICT, "|| self.stamps.contains(&stamp)", "|| stamp > OffsetDateTime::UNIX_EPOCH"),
    ("an answer of another request is taken for the acknowledgement", OWN_KEY,
     "Arrival::Message(Some(of), message) if of == token => {",
     "Arrival::Message(Some(_), message) => {"),
    ("an old acknowledgement is taken for the new one", KEEPER,
     "self.last = Some(revision);", "self.last = Some(self.last.unwrap_or(revision));"),
    ("a silent session is kept", CONFLICT,
     "self.patience.waited_in_vain();\n                (Next::GiveUp, None)",
     "self.patience.waited_in_vain();\n                (Next::Put(over), None)"),
    ("a SYN that was lost makes a server slow", RACE, "attempt.connected.get_or_insert(now);",
     "attempt.connected.get_or_insert(attempt.began);"),
    ("nothing is taken out", ENDING, "let mut known = known;",
     "return Ok(true);\n        #[allow(unreachable_code)]\n        let mut known = known;"),
    ("a sleep is not noticed", "src/commands/run.rs", "> SUSPEND_NOTICED", "> SUSPEND_NOTICED * 100_000"),
    ("revisions alone tell the time", OWN_KEY, "hasher.write(value);", "hasher.write(&value[..0]);"),
    ("what never ends is not buried", "src/commands/run/agent.rs",
     "if entry.as_ref().is_some_and(|entry| is_immortal(entry)) {",
     "if entry.as_ref().is_some_and(|entry| is_immortal(entry) && false) {"),
    ("a race spins after its limit", RACE, "if !self.queue.is_empty() && now < self.limit {",
     "if !self.queue.is_empty() {"),
    ("a silent member is waited for", LIMITS,
     "Duration = Duration::from_secs(1);\n/// A put without", "Duration = Duration::from_secs(5);\n/// A put without"),
    ("a stop ends nothing", "src/commands/run/agent.rs", "match self.registry.stop_requested() {",
     "match self.registry.stop_requested() && false {"),
    # Of `watch`, in days of decisions.
    ("watch: whoever went in an outage is not told of", PICTURE,
     "            if seen.kind == Kind::Live {\n                let reason = if seen.end()",
     "            if seen.kind == Kind::Live && at == 0 {\n                let reason = if seen.end()"),
    ("watch: no time for a late refresh", PICTURE, "from_millis(300)", "from_millis(0)"),
    ("watch: an outage calls everybody down", PICTURE,
     "        if !std::mem::replace(&mut self.lost, true) {",
     """        for (key, seen) in &mut self.seen {
            if seen.kind == Kind::Live {
                out(Change::Down(seen.instance(key), Reason::Expired, None));
                seen.kind = Kind::Hidden;
            }
        }
        if !std::mem::replace(&mut self.lost, true) {"""),
    ("watch: a new reading is taken for the old one", PICTURE,
     "self.reading.wrapping_add(1)", "self.reading.wrapping_add(0)"),
    ("watch: time goes on while the state is read", PICTURE,
     "        if self.is_current {\n            self.fall_until", "        {\n            self.fall_until"),
    ("watch: synced is told twice", PICTURE,
     "if std::mem::take(&mut self.lost) || is_first {",
     "if std::mem::take(&mut self.lost) || is_first || self.reading % 7 == 0 {"),
    ("watch: a purge is not suspected", READING,
     "self.suspicions >= SUSPICIONS", "self.suspicions >= SUSPICIONS * 100_000"),
    ("watch: no grace after an outage", READING, "missing == 0 || !has_grace", "missing == 0 || has_grace || !has_grace"),
    ("watch: a lost delivery is not noticed", PROGRESS,
     "if place != self.place + 1 {", "if place < self.place {"),
    ("watch: the end is not waited for", PROGRESS,
     "seen >= end.last ||", "seen < u64::MAX || end.last == 0 ||"),
    # Of the tools that run beside the agents.
    ("tools: a purge is of a key and not of a revision", REQUESTS,
     'format!("{{\\"filter\\":\\"$KV.{bucket}.{key}\\",\\"seq\\":{seq}}}")',
     'format!("{{\\"filter\\":\\"$KV.{bucket}.{key}\\"}}").replace(&seq.to_string(), "")'),
    ("tools: what is younger goes, too", "src/instance/staleness.rs",
     "if age(record, now) > stale_after {", "if age(record, now) > stale_after / 4 {"),
    ("tools: their own clock is trusted", "src/commands/cleanup.rs",
     "let now = self.clock.time(self.registry.boot_clock());", "let now = self.registry.wall_clock();"),
    ("tools: a session that is lost ends a scan", "src/registry/scan.rs",
     "self.count_restart(error)?;", "return Err(error);"),
    ("tools: a session that is lost ends a question", "src/registry/asking.rs",
     "const SESSIONS_LOST: u32 = 3;", "const SESSIONS_LOST: u32 = 0;"),
    ("tools: a session that is lost before a scan ends it", "src/registry.rs",
     "None => self.connect(self.timeout()),", "None => Ok(()),"),
    ("tools: a pull that is full is the last", "src/jetstream/pulls.rs",
     "if delivery.pending == 0 || delivery.sequence >= self.until {",
     "if delivery.pending == 0 || delivery.sequence >= self.until || self.under_way.is_empty() {"),
    ("tools: what was delivered before is delivered again", "src/jetstream/pulls.rs",
     "let is_new = delivery.sequence > self.last && delivery.sequence <= self.until;",
     "let is_new = delivery.sequence <= self.until;"),
]


def main():
    copy = pathlib.Path(sys.argv[1])
    environment = dict(os.environ, AEGIS_SIMULATION_SEED="20784000000")
    command = ["cargo", "test", "--locked", "--quiet", "--profile", "simulation", "--test", "simulation"]
    missed = 0

    def run(what, number):
        chosen = dict(environment, **{what: str(number)})
        return subprocess.run(command, cwd=copy, env=chosen, capture_output=True, text=True, timeout=900)

    word = sys.argv[2] if len(sys.argv) > 2 else ""
    for name, path, before, after in (one for one in MUTANTS if word in one[0]):
        file = copy / path
        text = file.read_text()
        if before not in text:
            print(f"{name}: NOT TRIED: {path} does not have it any more", flush=True)
            missed += 1
            continue
        file.write_text(text.replace(before, after, 1))
        found = []
        try:
            for layer, what in [("decisions", "AEGIS_SIMULATION_DAYS"), ("bytes", "AEGIS_SIMULATION_RUNS")]:
                ended = run(what, 1000)
                if "could not compile" in ended.stderr:
                    found.append(f"NOT BUILT: {ended.stderr[-400:]}")
                    break
                caught = re.search(r"^seed (\d+).*", ended.stdout, re.M)
                found.append(f"{layer}: {caught.group(0) if caught else 'not caught'}")
                if caught:
                    break
        except subprocess.TimeoutExpired:
            found.append("out of time")
        finally:
            file.write_text(text)
        is_caught = any(one.split(": ", 1)[1].startswith("seed") for one in found if ": " in one)
        missed += not is_caught
        print(f"{name}: {'caught' if is_caught else 'NOT CAUGHT'}: {'; '.join(found)}", flush=True)
    sys.exit(missed > 0)


main()
