//! What one agent costs: `cargo bench --bench agent`.
//!
//! One table, all in the same run: ours, the same heartbeats by the `nats` crate
//! and by async-nats (`benches/peers`), and by a bare socket. Memory, threads,
//! descriptors; CPU time, system calls and context switches for each of 1,000
//! heartbeats (`AEGIS_BENCH_BEATS` for another number); time from start to
//! registered. Then how long an acknowledgement takes, with and without TTL.

#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    dead_code,
    unreachable_pub
)]

mod cost;
mod floor;
#[path = "../tests/integration/harness/mod.rs"]
mod harness;
mod table;

use std::thread::sleep;
use std::time::Instant;

use cost::Cost;
use floor::Socket;
use harness::agent::{Agent, Invocation, Usage, aegis, binary, program};
use harness::peers::{self, Build, peers};
use harness::registry::Registry;
use harness::server::Server;
use harness::syscalls::Traced;
use harness::{eventually, millis, secs};
use table::{COLUMNS, median};

const KEY: &str = "service-instances__orders-api__host-1";
const STARTS: usize = 21;
const WARM_UP: u64 = 50;
/// Counting system calls slows all of it down; fewer do.
const TRACED: u64 = 300;
const PAUSE_MS: &str = "100";
/// What the others would do if nobody ended them: for fifteen minutes.
const BEATS: &str = "9000";
const WIDTH: usize = 34;
const VALUE: &str = "{\"serviceName\":\"orders-api\",\"instanceId\":\"host-1\",\
    \"version\":\"0.0.0\",\"status\":\"ACTIVE\",\
    \"lastHeartbeat\":\"2026-11-24T09:37:31.979155+00:00\",\"stickyActiveGroup\":null,\
    \"metadata\":{\"host\":\"host-1\",\"pid\":\"4711\"}}";
const TTL: &str = "NATS/1.0\r\nNats-TTL: 10s\r\n\r\n";

fn main() {
    let words: Vec<String> = std::env::args().collect();
    match words.iter().position(|word| word == "--floor") {
        Some(at) => beat(words[at + 1].parse().expect("a port"), &words[at + 2]),
        None => measure(),
    }
}

fn measure() {
    let beats = std::env::var("AEGIS_BENCH_BEATS").map_or(1_000, |n| n.parse().expect("a number"));
    peers::binary(Build::Optimised);
    let server = Server::any();
    let mut buckets = COLUMNS.map(|name| {
        let mut bucket = Registry::named(&server.url(), name);
        bucket.create(&serde_json::json!({}));
        bucket
    });

    table::head("one agent", WIDTH);
    let size = std::fs::metadata(binary()).expect("the binary").len();
    row("binary, KiB", 0, [Some(size as f64 / 1024.0), None, None, None]);
    row("start to registered, ms", 1, starts(&server).map(Some));
    beating(&server, &mut buckets, beats);
    row("system calls a heartbeat", 1, traced(&server, &mut buckets).map(Some));

    println!();
    let mut socket = Socket::connect(server.port());
    let (without, with) = acknowledgements(&mut socket);
    println!("{:WIDTH$} {without}", "acknowledgement, put without TTL");
    println!("{:WIDTH$} {with}", "acknowledgement, put with TTL");
    for (what, header) in [("without", ""), ("with", TTL)] {
        let what = format!("puts {what} TTL, one connection");
        println!("{what:WIDTH$} {}", throughput(&mut socket, header));
    }
}

fn row(what: &str, digits: usize, figures: [Option<f64>; 4]) {
    table::row(what, WIDTH, digits, figures);
}

/// What beats under this name, in the bucket of this name.
fn beater(server: &Server, name: &str) -> Invocation {
    let (url, port) = (server.url(), server.port().to_string());
    match name {
        "ours" => aegis(&["run", "-s", &url, "--bucket", name, "--ttl=10s", "--interval=100ms"])
            .arg("--service=orders-api")
            .arg("--instance=host-1"),
        "floor" => {
            let myself = std::env::current_exe().expect("this program").display().to_string();
            program(&myself, &["--floor", &port, name])
        }
        peer => peers(Build::Optimised, &["beat", peer, &url, peer, KEY, BEATS, PAUSE_MS]),
    }
}

/// Milliseconds from the start to the word that it has registered.
fn starts(server: &Server) -> [f64; 4] {
    let mut times = COLUMNS.map(|_| Vec::new());
    for _ in 0..STARTS {
        // In turns, so that they share whatever else the machine does.
        for (name, times) in COLUMNS.iter().zip(&mut times) {
            let mut agent = beater(server, name).spawn();
            let line = agent.wait_for_line("registered", secs(10));
            times.push((line.at - agent.started).as_secs_f64() * 1e3);
            if *name == "ours" {
                agent.signal("TERM");
                agent.wait_exit(secs(10));
            }
        }
    }
    times.map(|mut times| median(&mut times))
}

/// All at the same time, each in a process and a bucket of its own.
fn beating(server: &Server, buckets: &mut [Registry; 4], beats: u64) {
    let agents = COLUMNS.map(|name| beater(server, name).spawn());
    let look = |buckets: &mut [Registry; 4]| -> Vec<(Cost, u64)> {
        agents.iter().zip(buckets).map(|(a, b)| (Cost::of(a.pid()), count(b))).collect()
    };
    let begun = count(&mut buckets[0]);
    wait_for(&mut buckets[0], begun + WARM_UP);
    let before = look(buckets);
    wait_for(&mut buckets[0], before[0].1 + beats);
    let after = look(buckets);
    let costs: Vec<Cost> = before
        .iter()
        .zip(&after)
        .map(|((before, first), (after, last))| after.since(before, last - first))
        .collect();
    let usages: Vec<Usage> = agents.iter().map(Agent::usage).collect();
    let usage = |figure: fn(&Usage) -> f64| std::array::from_fn(|i| Some(figure(&usages[i])));
    let cost = |figure: fn(&Cost) -> f64| std::array::from_fn(|i| Some(figure(&costs[i])));
    row("resident, KiB", 0, usage(|usage| usage.resident_kib as f64));
    row("of that anonymous, KiB", 0, usage(|usage| usage.anonymous_kib as f64));
    row("threads", 0, usage(|usage| usage.threads as f64));
    row("descriptors", 0, usage(|usage| usage.descriptors as f64));
    row("CPU time a heartbeat, us", 0, cost(|cost| cost.cpu_us));
    row("context switches, its own", 2, cost(|cost| cost.voluntary));
    row("context switches, forced", 2, cost(|cost| cost.involuntary));
}

fn traced(server: &Server, buckets: &mut [Registry; 4]) -> [f64; 4] {
    let traced = COLUMNS.map(|name| Traced::spawn(beater(server, name)));
    let look = |buckets: &mut [Registry; 4]| -> Vec<(u64, u64)> {
        traced.iter().zip(buckets).map(|(t, b)| (t.count(), count(b))).collect()
    };
    let begun = count(&mut buckets[0]);
    wait_for(&mut buckets[0], begun + WARM_UP);
    let before = look(buckets);
    wait_for(&mut buckets[0], before[0].1 + TRACED);
    let after = look(buckets);
    std::array::from_fn(|i| (after[i].0 - before[i].0) as f64 / (after[i].1 - before[i].1) as f64)
}

/// How many heartbeats there were: nobody else writes to its bucket.
fn count(bucket: &mut Registry) -> u64 {
    let info = bucket.info().expect("its bucket");
    info["state"]["last_seq"].as_u64().expect("a sequence")
}

fn wait_for(bucket: &mut Registry, least: u64) {
    eventually(secs(600), "enough heartbeats", || {
        // Seldom, so that looking does not cost what is measured.
        sleep(millis(500));
        let count = count(bucket);
        if count >= least { Ok(()) } else { Err(format!("{count} of {least}")) }
    });
}

/// The floor: heartbeats and nothing else, until it is killed or fifteen
/// minutes have passed.
fn beat(port: u16, bucket: &str) {
    let until = Instant::now() + secs(900);
    let pause = millis(PAUSE_MS.parse().expect("a number"));
    let subject = format!("$KV.{bucket}.{KEY}");
    let mut socket = Socket::connect(port);
    let answer = socket.request(&subject, TTL, VALUE);
    assert!(answer.contains("\"seq\""), "{answer}");
    eprintln!("registered");
    while Instant::now() < until {
        sleep(pause);
        socket.request(&subject, TTL, VALUE);
    }
}

/// Median and 99th percentile of 5,000 puts each, taken in turns.
fn acknowledgements(socket: &mut Socket) -> (String, String) {
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..10_000 {
        let (header, times) = if round % 2 == 0 { ("", &mut without) } else { (TTL, &mut with) };
        let begun = Instant::now();
        let answer = socket.request("$KV.floor.bench", header, VALUE);
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        assert!(answer.contains("\"seq\""), "{answer}");
    }
    (words(&mut without), words(&mut with))
}

/// What one stream takes in: 200,000 puts over 20,000 keys, 500 under way.
fn throughput(socket: &mut Socket, header: &str) -> String {
    const PUTS: usize = 200_000;
    let begun = Instant::now();
    socket.put_all(PUTS, 500, header, VALUE, |i| format!("$KV.floor.bench-{:05}", i % 20_000));
    format!("{:.0} acknowledged a second", PUTS as f64 / begun.elapsed().as_secs_f64())
}

fn words(times: &mut [f64]) -> String {
    let middle = median(times);
    format!("median {middle:.3} ms, 99 % under {:.3} ms", times[times.len() * 99 / 100])
}
