//! Many agents beside one server: `cargo bench --bench fleet [-- AGENTS SECONDS]`,
//! 2,000 agents (one process each) for 300 s unless told otherwise.
//!
//! Says whether an entry was ever missing, how heartbeats spread over the
//! interval, what the server and the agents use; then stops all, starts all
//! again at once, and looks again.

#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    dead_code,
    unreachable_pub
)]

#[path = "../tests/integration/harness/mod.rs"]
mod harness;

use std::collections::HashMap;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use harness::agent::binary;
use harness::registry::Registry;
use harness::server::Server;
use harness::{eventually, millis, secs, send_signal};

const INTERVAL: Duration = secs(10);

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|word| word.parse::<u64>().ok());
    let agents = usize::try_from(numbers.next().unwrap_or(2_000)).expect("a number of agents");
    let time = Duration::from_secs(numbers.next().unwrap_or(300));
    let mut server = Server::any();
    let mut registry = Registry::at(&server.url());
    registry.create(&serde_json::json!({}));

    println!("{agents} agents, one process each, TTL 30 s, heartbeat every 10 s, for {time:?}");
    let begun = Instant::now();
    let mut fleet = Fleet::start(agents, &server.url(), &mut registry);
    let registered = fleet.wait_until_registered(&mut registry);
    println!("all registered {registered:.1} s after the first was started");
    observe(&server, &mut registry, &fleet, time);

    println!("-- one in a hundred is killed with SIGKILL");
    let killed = fleet.kill(agents.div_ceil(100));
    let begun_kill = Instant::now();
    while alive(&mut registry) > agents - killed {
        assert!(begun_kill.elapsed() < secs(60), "the killed ones do not expire");
        sleep(millis(20));
    }
    println!(
        "{killed} entries expired within {:.1} s; {} of {} others are there",
        begun_kill.elapsed().as_secs_f64(),
        alive(&mut registry),
        agents - killed
    );

    println!("-- all stopped with SIGTERM");
    let begun_stop = Instant::now();
    fleet.stop();
    println!(
        "all ended after {:.1} s, {} purge markers left for a minute",
        begun_stop.elapsed().as_secs_f64(),
        alive(&mut registry)
    );

    println!("-- all started again at once");
    let mut fleet = Fleet::start(agents, &server.url(), &mut registry);
    let registered = fleet.wait_until_registered(&mut registry);
    println!("all registered {registered:.1} s after the first was started");
    observe(&server, &mut registry, &fleet, time.min(secs(60)));
    println!("-- the server is killed and started again");
    let last = state(&mut registry, "last_seq");
    server.restart();
    registry.reconnect();
    let back = Instant::now();
    while state(&mut registry, "first_seq") <= last {
        assert!(back.elapsed() < secs(60), "not all have written again within a minute");
        sleep(millis(50));
    }
    println!(
        "all have written again {:.1} s after it was ready; {} of {agents} are there",
        back.elapsed().as_secs_f64(),
        alive(&mut registry)
    );
    fleet.stop();
    println!("took {:.0} s in all", begun.elapsed().as_secs_f64());
}

struct Fleet {
    children: Vec<Child>,
    begun: Instant,
    /// The bucket's last revision when the first was started.
    after: u64,
}

impl Fleet {
    fn start(agents: usize, url: &str, registry: &mut Registry) -> Fleet {
        let after = state(registry, "last_seq");
        let begun = Instant::now();
        let children = (0..agents).map(|i| {
            Command::new(binary())
                .args(["run", "-s", url, "--service", &format!("service-{:02}", i % 50)])
                .args(["--instance", &format!("host-{i:05}")])
                .env_clear()
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("an agent starts")
        });
        Fleet { children: children.collect(), begun, after }
    }

    fn wait_until_registered(&mut self, registry: &mut Registry) -> f64 {
        // Markers of an earlier life are replaced: all that is left is newer.
        while alive(registry) < self.children.len() || state(registry, "first_seq") <= self.after {
            assert!(self.begun.elapsed() < secs(120), "not all registered within two minutes");
            sleep(millis(50));
        }
        self.begun.elapsed().as_secs_f64()
    }

    /// Resident and anonymous memory of all in KiB, and their CPU time.
    fn usage(&self) -> (u64, u64, Duration) {
        let (mut resident, mut anonymous, mut cpu) = (0, 0, Duration::ZERO);
        for child in &self.children {
            let status = proc_file(child.id(), "status");
            let field = |name: &str| {
                let line = status.lines().find(|line| line.starts_with(name));
                line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0)
            };
            resident += field("VmRSS:");
            anonymous += field("RssAnon:");
            cpu += cpu_of(child.id());
        }
        (resident, anonymous, cpu)
    }

    fn kill(&mut self, count: usize) -> usize {
        for mut child in self.children.drain(..count) {
            let _ = child.kill();
            let _ = child.wait();
        }
        count
    }

    fn stop(&mut self) {
        for child in &self.children {
            send_signal(child.id(), "TERM");
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn proc_file(pid: u32, file: &str) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default()
}

/// CPU time of all threads of a process that are alive, to the nanosecond.
fn cpu_of(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let spent = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(spent.sum())
}

/// A number of the bucket's state.
fn state(registry: &mut Registry, name: &str) -> u64 {
    // A server with 2,000 connections to make may be late.
    let info = eventually(secs(60), "the bucket's state", || registry.info());
    info["state"][name].as_u64().unwrap_or(0)
}

/// Entries in the registry; markers of deregistrations too, for a minute.
fn alive(registry: &mut Registry) -> usize {
    usize::try_from(state(registry, "num_subjects")).unwrap_or(usize::MAX)
}

/// Watches for `time`: who is missing, when heartbeats are stored, what it costs.
fn observe(server: &Server, registry: &mut Registry, fleet: &Fleet, time: Duration) {
    let watch = registry.watch(">");
    let (server_before, (_, _, agents_before)) = (cpu_of(server.pid()), fleet.usage());
    let begun = Instant::now();
    let mut fewest = usize::MAX;
    while begun.elapsed() < time {
        fewest = fewest.min(alive(registry));
        sleep(millis(50));
    }
    let seconds = begun.elapsed().as_secs_f64();
    let server_cpu = (cpu_of(server.pid()) - server_before).as_secs_f64() / seconds;
    let (resident, anonymous, agents_after) = fleet.usage();
    let agents_cpu = (agents_after - agents_before).as_secs_f64() / seconds;
    let seen = watch.seen();

    let count = fleet.children.len();
    println!("entries in the registry, at the least: {fewest} of {count}");
    println!("heartbeats stored: {} ({:.1} a second)", seen.len(), seen.len() as f64 / seconds);
    let mut last: HashMap<String, time::OffsetDateTime> = HashMap::new();
    let mut longest = time::Duration::ZERO;
    let mut buckets = [0_usize; 20];
    for entry in &seen {
        if let Some(before) = last.insert(entry.key(), entry.stored) {
            longest = longest.max(entry.stored - before);
        }
        let part = entry.stored.unix_timestamp_nanos().rem_euclid(nanos(INTERVAL)) as f64;
        let index = (part / nanos(INTERVAL) as f64 * buckets.len() as f64) as usize;
        buckets[index.min(19)] += 1;
    }
    println!("longest time between two heartbeats of one agent: {:.2} s", longest.as_seconds_f64());
    let (server_kib, mean) = (resident_of(server.pid()), seen.len() / buckets.len());
    println!(
        "server: {:.1} % of a core, {:.1} % for each 1,000 agents, {} MiB resident",
        server_cpu * 100.0,
        server_cpu * 1e5 / count as f64,
        server_kib / 1024
    );
    println!(
        "agents: {:.1} % of a core together; each {} KiB resident, {} KiB anonymous",
        agents_cpu * 100.0,
        resident / count as u64,
        anonymous / count as u64
    );
    println!("heartbeats over the interval, in 0.5 s ({mean} each if even):");
    for (index, number) in buckets.iter().enumerate() {
        let bar = "#".repeat(number * 30 / mean.max(1));
        println!("  {:>4.1} s {number:>6} {bar}", index as f64 / 2.0);
    }
}

fn nanos(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX)
}

fn resident_of(pid: u32) -> u64 {
    let status = proc_file(pid, "status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}
