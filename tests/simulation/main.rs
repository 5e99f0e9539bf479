//! The whole agent under simulated time, network and servers.
//!
//! docs/simulation.md says how to run it, and how to repeat a seed.

#![allow(clippy::print_stdout, clippy::print_stderr, clippy::panic)]
#![allow(missing_docs, unreachable_pub)]

mod cleaner;
mod cluster;
mod consumers;
mod days;
mod faults;
mod judge;
mod model;
mod network;
mod outside;
mod plan;
mod rng;
mod run;
mod shrink;
mod tools;
mod world;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};
use std::{env, panic, thread};

use log::{LevelFilter, Log, Metadata, Record};

use judge::Tally;
use plan::Plan;
use run::Threads;
use world::{Micros, SECOND};

/// Runs of a plain `cargo test`, and the seed of the first: always the same ones,
/// so that a change that has nothing to do with it is not held up.
const SHORT: u64 = 100;
const FIRST: u64 = 20_784_000_000;
/// Days of decisions of a plain `cargo test`.
const SHORT_DAYS: u64 = 20;
/// As many as there is time for.
const MOST: u64 = 1_000_000;

/// Seeds that found something in the program, and what that was.
const FOUND: [(u64, &str); 18] = [
    (45_000_000_649, "a race that was drawn out for a login went on when that was refused"),
    (44_000_002_873, "a SYN that was lost made a server that answers nothing pass for slow"),
    (42_000_000_270, "a duplicate with the same host name and process id was not noticed"),
    (20_784_000_347, "an answer that came during a look at the entry was dropped"),
    (32_000_015_010, "an answer beside a put drew out the wait after a stop"),
    (20_784_001_663, "a race whose login went on after its limit spun"),
    (30_000_001_773, "the same"),
    (30_000_000_874, "an answer told the time by a revision of the bucket of before"),
    (30_000_001_535, "a value without a TTL came back from under the last heartbeat"),
    (31_000_000_551, "a put that nobody took held up the registration after an outage"),
    (31_000_002_575, "a race in which the process was stopped waited for dead servers"),
    (31_000_006_195, "a clock that was set as direct access was switched off showed late"),
    (20_784_000_077, "revisions of a bucket that was made anew told the old time"),
    (20_784_000_906, "what was read of a duplicate told the time after a bucket was made anew"),
    (20_784_000_104, "a stop during a registration waited for the put as well"),
    (20_784_000_160, "the same with a server that was frozen"),
    (20_784_002_063, "a stop during a question waited for a second one"),
    (20_784_000_903, "a clock that was set showed a heartbeat late as a duplicate came"),
];

/// The system's roots, which a guess at TLS reads anew each time: a hundred files
/// took most of a run's time.
const ROOTS: (&str, &str) =
    ("SSL_CERT_FILE", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/simulation/roots.pem"));

fn main() -> ExitCode {
    if env::var_os(ROOTS.0).is_none_or(|set| set != ROOTS.1) {
        return again();
    }
    log::set_logger(&Printer).ok();
    panic::set_hook(Box::new(|info| {
        let words = info.to_string();
        run::PANIC.set(Some(words.clone()));
        if thread::current().name() == Some("main") {
            eprintln!("{words}");
        }
    }));
    // An agent takes signals over; these are for the simulator.
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let always = std::sync::Arc::new(true.into());
        signal_hook::flag::register_conditional_shutdown(signal, 1, always).ok();
    }
    let args: Vec<String> = env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    match args.first().map(|arg| (arg, read_seed(arg))) {
        None => many(),
        Some((_, Some(seed))) => one(seed),
        // The name of another test.
        Some((word, None)) => {
            println!("simulation: no seed: {word}");
            ExitCode::SUCCESS
        }
    }
}

/// The same call with other roots.
fn again() -> ExitCode {
    let program = env::current_exe().expect("a program knows where it is");
    let mut call = std::process::Command::new(program);
    let ended = call.args(env::args_os().skip(1)).env(ROOTS.0, ROOTS.1).status();
    match ended.ok().and_then(|status| status.code()) {
        Some(0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn read_seed(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    }
}

/// Repeats one seed step by step; `AEGIS_SIMULATION_SHRINK=1` the shortest
/// schedule of it that still fails.
fn one(seed: u64) -> ExitCode {
    let mut plan = Plan::of(seed);
    if env::var_os("AEGIS_SIMULATION_SHRINK").is_some() {
        plan = shrink::shrink(&Threads::new(), plan).0;
    }
    println!("{}", plan.words());
    log::set_max_level(LevelFilter::Debug);
    let outcome = Threads::new().run(&plan, true);
    match outcome.violation {
        None => {
            println!("seed {seed}: all promises kept");
            ExitCode::SUCCESS
        }
        Some(found) => {
            println!("seed {seed}: after {}: {}", shown(found.at), found.words);
            ExitCode::FAILURE
        }
    }
}

#[allow(clippy::disallowed_methods)]
fn many() -> ExitCode {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let today = since.as_secs() / 86_400 * 1_000_000;
    let asked = (number("AEGIS_SIMULATION_SEED"), number("AEGIS_SIMULATION_RUNS"));
    let seconds = number("AEGIS_SIMULATION_SECONDS");
    let (first, runs) = match (asked, seconds) {
        ((first, runs), Some(_)) => (first.unwrap_or(today), runs.unwrap_or(MOST)),
        ((None, None), None) => (FIRST, SHORT),
        ((first, runs), None) => (first.unwrap_or(today), runs.unwrap_or(SHORT)),
    };
    let half = |seconds: u64| Duration::from_secs(seconds) / 2;
    let until = |from: Instant| seconds.map(|seconds| from + half(seconds));
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    let (count, only) = match number("AEGIS_SIMULATION_DAYS") {
        Some(count) => (count, true),
        None if seconds.is_some() => (MOST, false),
        // Whoever asks for a number of runs wants those.
        None if asked.1.is_some() => (0, false),
        None => (SHORT_DAYS, false),
    };
    if count > 0 {
        println!("simulation: days of decisions from seed {first} on {jobs} threads");
        match days(first, count, jobs, until(Instant::now())) {
            false => return ExitCode::FAILURE,
            true if only => return ExitCode::SUCCESS,
            true => {}
        }
    }
    let twice = env::var_os("AEGIS_SIMULATION_TWICE").is_some();
    println!("simulation: {} runs from seed {first} on {jobs} threads", shown_number(runs));
    let threads = Threads::new();
    for (seed, what) in FOUND {
        if let Some(found) = threads.run(&Plan::of(seed), false).violation {
            println!("seed {seed} ({what}): after {}: {}", shown(found.at), found.words);
            return ExitCode::FAILURE;
        }
    }
    let began = Instant::now();
    let until = until(began);
    let (next, end) = (AtomicU64::new(first), first + runs);
    let sum = Mutex::new((Tally::default(), 0_u64, 0_u64, 0_usize, Vec::new()));
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                let threads = Threads::new();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || until.is_some_and(|until| Instant::now() >= until) {
                        break;
                    }
                    let plan = Plan::of(seed);
                    if twice {
                        differs(&threads, &plan);
                    }
                    let outcome = threads.run(&plan, false);
                    let mut sum = sum.lock().unwrap_or_else(|broken| broken.into_inner());
                    add(&mut sum.0, &outcome.tally);
                    sum.1 += outcome.events;
                    sum.2 += outcome.dials;
                    sum.3 = sum.3.max(outcome.most_open);
                    if let Some(found) = outcome.violation {
                        sum.4.push((seed, found));
                        if sum.4.len() >= 20 {
                            next.store(end, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let took = began.elapsed();
    let (tally, events, dials, open, mut found) =
        sum.into_inner().unwrap_or_else(|e| e.into_inner());
    report(&tally, events, dials, open, took);
    found.sort_by_key(|(seed, _)| *seed);
    for (seed, violation) in &found {
        println!("seed {seed}: after {}: {}", shown(violation.at), violation.words);
    }
    let Some((seed, _)) = found.first() else { return ExitCode::SUCCESS };
    let threads = Threads::new();
    let (plan, violation) = shrink::shrink(&threads, Plan::of(*seed));
    println!("the shortest schedule of seed {seed} that fails:\n{}", plan.words());
    println!("after {}: {}", shown(violation.at), violation.words);
    println!("repeat it: cargo simulation {seed}");
    ExitCode::FAILURE
}

/// Says where two runs of a plan part.
fn differs(threads: &Threads, plan: &Plan) {
    let (one, other) = (threads.run_with_steps(plan).steps, threads.run_with_steps(plan).steps);
    if let Some(at) = one.iter().zip(&other).position(|(one, other)| one != other) {
        let from = at.saturating_sub(5);
        println!("seed {} is not the same each time:", plan.seed);
        println!("{:#?}\n{:#?}", &one[from..=at], &other[from..=at]);
    }
}

/// So many days of decisions; whether all promises were kept.
#[allow(clippy::disallowed_methods)]
fn days(first: u64, days: u64, jobs: usize, until: Option<Instant>) -> bool {
    let began = Instant::now();
    let (next, end) = (AtomicU64::new(first), first + days);
    let sum = Mutex::new((days::Sum::default(), Vec::new()));
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                let mut own = days::Sum::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || until.is_some_and(|until| Instant::now() >= until) {
                        break;
                    }
                    let (one, found) = days::day(seed, days == 1);
                    own.add(&one);
                    if let Some(found) = found {
                        let mut sum = sum.lock().unwrap_or_else(|broken| broken.into_inner());
                        sum.1.push((seed, found));
                        if sum.1.len() >= 20 {
                            next.store(end, Ordering::Relaxed);
                        }
                    }
                }
                sum.lock().unwrap_or_else(|broken| broken.into_inner()).0.add(&own);
            });
        }
    });
    let took = began.elapsed();
    let (sum, mut found) = sum.into_inner().unwrap_or_else(|e| e.into_inner());
    let count: u64 = sum.faults.values().sum();
    println!(
        "decisions: {:.1} agent-days in {:.1} s ({:.0} a second): {} stored, {} expired, {count} \
         faults ({:.0} an agent-day)",
        sum.days(),
        took.as_secs_f64(),
        sum.days() / took.as_secs_f64(),
        sum.stored,
        sum.expired,
        count as f64 / sum.days()
    );
    let days::Figures { days, ups, changes, downs, outages, rereads } = sum.watch;
    println!(
        "watched: {days} days: {ups} up, {changes} changed, {downs} down, {outages} times lost, \
         {rereads} purges suspected"
    );
    let words: Vec<String> =
        sum.faults.iter().map(|(name, count)| format!("{name} {count}")).collect();
    println!("faults: {}", words.join(", "));
    found.sort_by_key(|(seed, _)| *seed);
    for (seed, (at, words)) in &found {
        println!("seed {seed}: decisions: after {}: {words}", shown(*at));
    }
    if let Some((seed, _)) = found.first() {
        println!(
            "repeat it: AEGIS_SIMULATION_DAYS=1 AEGIS_SIMULATION_SEED={seed} cargo simulation"
        );
    }
    found.is_empty()
}

fn add(sum: &mut Tally, one: &Tally) {
    for (name, count) in &one.faults {
        *sum.faults.entry(name.clone()).or_default() += count;
    }
    sum.stored += one.stored;
    sum.expired += one.expired;
    sum.cleaned += one.cleaned;
    for (name, count) in &one.tools {
        *sum.tools.entry(name.clone()).or_default() += count;
    }
    sum.agent_time += one.agent_time;
}

fn report(tally: &Tally, events: u64, dials: u64, open: usize, took: Duration) {
    let days = tally.agent_time as f64 / (86_400 * SECOND) as f64;
    let faults: &BTreeMap<String, u64> = &tally.faults;
    println!(
        "{days:.2} agent-days in {:.1} s ({:.2} a second): {} stored, {} expired, {} cleaned up, {dials} \
         connections (at most {open} open at one time), {events} events, {} faults",
        took.as_secs_f64(),
        days / took.as_secs_f64(),
        tally.stored,
        tally.expired,
        tally.cleaned,
        faults.values().sum::<u64>()
    );
    let words: Vec<String> = faults.iter().map(|(name, count)| format!("{name} {count}")).collect();
    println!("faults: {}", words.join(", "));
    let words: Vec<String> =
        tally.tools.iter().map(|(name, count)| format!("{name} {count}")).collect();
    println!("tools: {}", words.join(", "));
}

fn shown_number(runs: u64) -> String {
    if runs == MOST { "as many as there is time for:".into() } else { runs.to_string() }
}

fn shown(at: Micros) -> String {
    format!("{}.{:06} s", at / SECOND, at % SECOND)
}

/// A step of a run that is repeated.
pub fn trace(at: Micros, words: &str) {
    NOW.store(at, Ordering::Relaxed);
    println!("{:>14} {words}", shown(at));
}

static NOW: AtomicU64 = AtomicU64::new(0);

/// The agent's own log, beside what happens to it.
struct Printer;

impl Log for Printer {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let level = record.level().as_str().to_lowercase();
        let thread = thread::current();
        let name = thread.name().unwrap_or("?");
        println!("{:>14} {name} says ({level}): {}", "", record.args());
    }

    fn flush(&self) {}
}
