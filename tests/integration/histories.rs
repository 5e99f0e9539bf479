//! Histories, as Jepsen makes them: agents, `cleanup`, `list` and `watch` against
//! a real cluster of three under faults at random. Everything that is stored, read
//! and told is recorded, and judged after it. Not part of the usual run:
//!
//! ```text
//! AEGIS_HISTORY_SECONDS=1200 cargo test --release --locked --test integration histories:: -- --ignored
//! ```
//!
//! One minute where nothing is said. Prints the seed, which AEGIS_HISTORY_SEED
//! takes (the faults are the same then, not the instants), and what was judged.
//!
//! What is stored is taken from the stream's own words: it republishes each
//! revision with what stood there before, which tells even of an expiry that
//! nobody saw.

pub mod history;
mod judge;
mod judge_works;
pub mod record;
mod world;

use std::time::Duration;

use self::history::{Micros, SECOND};
use self::record::now;
use self::world::{AGENTS, Heal, World};
use crate::harness::fault::say;
use crate::harness::registry::Registry;
use crate::harness::{millis, time_passes};

/// At the end nothing is broken for so long: the longest TTL, and what follows.
const QUIET: Micros = 26 * SECOND;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % limit
    }

    fn place(&mut self, limit: usize) -> usize {
        self.below(limit as u64) as usize
    }

    /// In milliseconds, between these two.
    fn time(&mut self, from: u64, to: u64) -> Micros {
        (from + self.below(to - from)) as Micros * 1_000
    }
}

#[test]
#[ignore = "takes as long as AEGIS_HISTORY_SECONDS says"]
fn what_happened_is_what_is_promised() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let length = number("AEGIS_HISTORY_SECONDS").unwrap_or(60);
    let seed = number("AEGIS_HISTORY_SEED").unwrap_or(u64::from(std::process::id()));
    say(&format!("history: {length} s, AEGIS_HISTORY_SEED={seed}"));
    let mut random = Random(seed);
    let mut world = World::start(seed, random.below(2) == 0);
    let end = world.history.from + length as Micros * SECOND;
    // All are there before the first fault.
    time_passes(millis(3_000));
    while now() < end - QUIET {
        befall(&mut world, &mut random);
        let until = now() + random.time(200, 1_800);
        while now() < until {
            world.heal(false);
            time_passes(millis(20));
        }
    }
    world.heal(true);
    world.set_host_clock(0);
    world.history.quiet = now();
    while now() < end {
        world.heal(false);
        time_passes(millis(50));
    }
    let last = record::cleanup(&world.cluster.urls());
    assert_eq!(last.code, 0, "the last cleanup: {last:?}");
    world.finish();
    report(&world, length);
}

/// What goes wrong at a time beside agents and watchers: of everything at once too
/// little can be demanded.
const PHASE: Micros = 15 * SECOND;

/// One thing goes wrong, or right.
fn befall(world: &mut World, random: &mut Random) {
    let phase = (now() - world.history.from) / PHASE;
    let mut of_phase = Random(world.seed ^ phase as u64);
    let (kind, choice) = (of_phase.below(5), random.below(100));
    match (kind, choice) {
        (0 | 4, 0..14) | (1, 0..30) => server(world, random),
        (0 | 4, 14..24) | (2, 0..24) => way(world, random),
        (0, 24..30) | (3, 0..12) => clock(world, random),
        (_, 30..84) => agent(world, random),
        (_, 84..90) => {
            let watcher = random.place(2);
            if !world.is_hurt(|heal| *heal == Heal::Watch(watcher)) {
                let time = random.time(300, 9_000);
                world.befalls("watcher stopped (SIGSTOP)", format!("watch {watcher} stopped"));
                world.pause_watcher(watcher);
                world.heal_after(time, Heal::Watch(watcher));
            }
        }
        (_, 90..) => {
            world.befalls("entry without TTL", "an entry without TTL".to_owned());
            world.haunt();
        }
        _ => {}
    }
}

fn server(world: &mut World, random: &mut Random) {
    let hurt = world.hurt_servers();
    // Two at a time are rare, three do not happen.
    if hurt.len() > 1 || (hurt.len() == 1 && random.below(6) > 0) {
        return;
    }
    let server = random.place(3);
    if hurt.contains(&server) {
        return;
    }
    let time = random.time(300, 12_000);
    let heal = match random.below(3) {
        0 => {
            world.befalls("server killed", format!("n{server} killed"));
            world.kill_server(server);
            Heal::Start(server)
        }
        1 => {
            world.befalls("server frozen", format!("n{server} frozen"));
            world.freeze_server(server);
            Heal::Thaw(server)
        }
        _ => {
            world.befalls("server partitioned", format!("n{server} parted"));
            world.part_server(server);
            Heal::Join(server)
        }
    };
    world.heal_after(time, heal);
}

fn way(world: &mut World, random: &mut Random) {
    let group = random.place(2);
    if world.is_hurt(|heal| matches!(heal, Heal::Open(hurt, _) if *hurt == group)) {
        return;
    }
    let (time, how) = (random.time(300, 12_000), random.below(3));
    // One server, or all.
    let servers = if random.below(2) == 0 { 0..3 } else { random.place(3)..3 };
    let servers: Vec<usize> =
        if servers.len() == 3 { servers.collect() } else { vec![servers.start] };
    world.befalls(
        ["black hole", "answers lost", "refused"][how as usize],
        format!("group {group} is cut off from {servers:?}, {how}"),
    );
    for server in servers {
        world.close(group, server, how);
        world.heal_after(time, Heal::Open(group, server));
    }
}

fn clock(world: &mut World, random: &mut Random) {
    let step = [0, 400, -400, 2_000, -3_000, 20_000, -20_000, 60_000, -60_000][random.place(9)];
    if random.below(2) == 0 {
        world.befalls("clock of a host set", format!("host: {step} ms"));
        world.set_host_clock(step * 1_000);
    } else if world.set_clock(step * 1_000) {
        world.befalls("clock of the servers set", format!("servers: {step} ms"));
    }
}

fn agent(world: &mut World, random: &mut Random) {
    let agent = random.place(AGENTS);
    if !world.is_alive(agent) {
        world.befalls("agent started", format!("h{agent} started"));
        return world.start_agent(agent);
    }
    match random.below(4) {
        0 => {
            world.befalls("agent killed", format!("h{agent} killed"));
            world.end_agent(agent, true);
        }
        1 => {
            world.befalls("agent asked to stop", format!("h{agent} asked to stop"));
            world.end_agent(agent, false);
        }
        2 if !world.is_hurt(|heal| *heal == Heal::Continue(agent)) => {
            let time = random.time(300, 12_000);
            world.befalls("agent stopped (SIGSTOP)", format!("h{agent} stopped"));
            world.pause_agent(agent);
            world.heal_after(time, Heal::Continue(agent));
        }
        _ => {}
    }
}

fn report(world: &World, length: u64) {
    let seed = world.seed;
    let mut verdict = judge::judge(&world.history);
    verdict.violations.extend(world.violations.iter().cloned());
    let mut registry = Registry::at(&world.cluster.servers[0].url());
    registry.client.patience = Duration::from_secs(5);
    let left = registry.everything();
    let ghosts = left.iter().filter(|entry| entry.key().contains("__ghosts__")).count();
    if ghosts > 0 {
        verdict.violations.push(format!("{ghosts} entries without TTL are left"));
    }
    say("fault | times");
    for (fault, times) in &world.faults {
        say(&format!("{fault} | {times}"));
    }
    say("judged | number");
    for (what, number) in &verdict.counts {
        say(&format!("{what} | {number}"));
    }
    let faults: u64 = world.faults.values().sum();
    say(&format!(
        "history: {length} s, {faults} faults, {} ghosts, {} violations, AEGIS_HISTORY_SEED={seed}",
        world.ghosts,
        verdict.violations.len()
    ));
    if !verdict.violations.is_empty() {
        let path = world.write_down();
        panic!("violations, see {}:\n{}", path.display(), verdict.violations.join("\n"));
    }
}
