#!/usr/bin/env python3
"""Breaks one mechanism of the agent after the other, in a copy of the sources,
and tells with which seed the simulator's judge notices it within 1,000 runs.

    python3 tests/simulation/mutants.py COPY

COPY is a checkout of its own (`git worktree add COPY`), which is changed and
put right again. Not part of the plain suite: each mutant is a build.
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

MUTANTS = [
    ("no expected revision", REQUESTS, "if let Some(revision) = put.expected {",
     "if let Some(revision) = put.expected.filter(|_| false) {"),
    ("no TTL", REQUESTS, '(TTL_HEADER, format!("{}s", put.ttl.as_secs()))',
     '("X-TTL", format!("{}s", put.ttl.as_secs()))'),
    ("a stale stamp", OWN, "let stamp = self.stamp();",
     "let stamp = self.stamped.map_or_else(|| self.stamp(), |(stamp, _)| stamp);"),
    ("the own clock is trusted", OWN, "is_some_and(is_off) => time", "is_some_and(is_off) => own"),
    ("no early retry", SCHEDULE, "Outcome::SessionLost => now,",
     "Outcome::SessionLost => now + self.interval,"),
    ("long pauses", SCHEDULE, "Duration::from_millis(1700)", "Duration::from_millis(9000)"),
    ("no end of patience", SCHEDULE, "let limit = usual.max(self.last * 3).min(timeout);",
     "let limit = (usual * 40).max(self.last * 3).min(timeout * 40);"),
    ("nothing is taken out", ENDING, "let mut known = known;", "return Ok(true);\n        #[allow(unreachable_code)]\n        let mut known = known;"),
    ("a sleep is not noticed", "src/commands/run.rs", "> SUSPEND_NOTICED", "> SUSPEND_NOTICED * 100_000"),
    ("revisions of an old bucket tell the time", OWN_KEY,
     "self.asides.puts.retain(|known| known.revision < put.revision);", ""),
    ("a stop ends nothing", "src/commands/run/agent.rs", "match self.registry.stop_requested() {",
     "match self.registry.stop_requested() && false {"),
]


def main():
    copy = pathlib.Path(sys.argv[1])
    environment = dict(os.environ, AEGIS_SIMULATION_SEED="20784000000", AEGIS_SIMULATION_RUNS="1000")
    command = ["cargo", "test", "--locked", "--quiet", "--profile", "simulation", "--test", "simulation"]
    missed = 0
    for name, path, before, after in MUTANTS:
        file = copy / path
        text = file.read_text()
        if before not in text:
            print(f"{name}: NOT TRIED: {path} does not have it any more", flush=True)
            missed += 1
            continue
        file.write_text(text.replace(before, after, 1))
        try:
            run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=400)
            found = re.search(r"^seed (\d+).*", run.stdout, re.M)
        except subprocess.TimeoutExpired:
            found = None
            run = None
        finally:
            file.write_text(text)
        if found:
            print(f"{name}: caught: {found.group(0)}", flush=True)
        elif run and "could not compile" in run.stderr:
            print(f"{name}: NOT BUILT: {run.stderr[-400:]}", flush=True)
            missed += 1
        else:
            print(f"{name}: NOT CAUGHT", flush=True)
            missed += 1
    sys.exit(missed > 0)


main()
