//! What `list`, `check` and `cleanup` cost, by the size of the registry:
//! `cargo bench --bench registry`, with 100 and 100,000 entries unless
//! `AEGIS_BENCH_ENTRIES` says otherwise (`100,10000,1000000`; up to a million).
//!
//! All in the same run and in turns: ours, the peers (`benches/peers`) and the
//! floor, which is what the server delivers to, and takes from, a bare socket.
//! Times are medians of wall time, of whole programs from their start to their
//! end but for the floor; memory is the peak. The peers read, decode and count,
//! or read and purge: they judge nothing, sort nothing and print no entry.

#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    dead_code,
    unreachable_pub
)]

mod floor;
#[path = "../tests/integration/harness/mod.rs"]
mod harness;
mod table;

use std::time::Duration;

use floor::Socket;
use harness::agent::{Output, aegis};
use harness::peers::{self, Build, CRATES, peers};
use harness::registry::{Registry, header};
use harness::secs;
use harness::server::{Server, Setup};
use table::median;

const MOST: usize = 1_000_000;
const BUCKET: &str = "service_registry";
const STREAM: &str = "KV_service_registry";
const WIDTH: usize = 40;
/// Years: what the entries say of their last heartbeat is long ago.
const LENIENT: &str = "--stale-after=87600h";
/// What reads all and removes nothing.
const READERS: [(&str, &[&str]); 5] = [
    ("list --json", &["list", "--json", LENIENT]),
    ("list", &["list", LENIENT]),
    ("check", &["check"]),
    ("cleanup, none stale", &["cleanup", LENIENT]),
    ("cleanup --dry-run --json, all stale", &["cleanup", "--dry-run", "--json"]),
];
const CLEANERS: [(&str, &[&str]); 2] =
    [("cleanup, all stale", &["cleanup"]), ("cleanup --json, all stale", &["cleanup", "--json"])];

fn main() {
    let asked = std::env::var("AEGIS_BENCH_ENTRIES").unwrap_or_else(|_| "100,100000".to_owned());
    let sizes = asked.split([',', ' ']).filter(|word| !word.is_empty());
    let sizes: Vec<usize> =
        sizes.map(|word| word.replace('_', "").parse().expect("AEGIS_BENCH_ENTRIES")).collect();
    assert!(sizes.iter().all(|size| (1..=MOST).contains(size)), "between 1 and {MOST}: {asked}");
    peers::binary(Build::Optimised);
    for size in sizes {
        measure(size);
    }
}

/// What was seen of one contender at one task.
#[derive(Default)]
struct Seen {
    times_ms: Vec<f64>,
    peak_kib: u64,
}

impl Seen {
    fn output(&mut self, what: &str, output: &Output) {
        // A warning is an answer, too.
        assert!(matches!(output.code, 0 | 1), "{what}: exit {}: {}", output.code, output.stderr);
        self.time(output.took);
        self.peak_kib = self.peak_kib.max(output.peak_kib);
    }

    fn time(&mut self, time: Duration) {
        self.times_ms.push(time.as_secs_f64() * 1e3);
    }

    fn median(&mut self) -> Option<f64> {
        (!self.times_ms.is_empty()).then(|| median(&mut self.times_ms))
    }
}

fn measure(size: usize) {
    let server = Server::with(Setup { extra: "max_payload: 8MB\n".into(), ..Setup::default() });
    let mut registry = Registry::at(&server.url());
    registry.create(&serde_json::json!({}));
    let mut socket = Socket::connect(server.port());
    println!();
    table::head(&format!("{size} entries, ms"), WIDTH);
    let peaks = [read(size, &server, &mut registry, &mut socket)]
        .into_iter()
        .chain([clean(size, &server, &mut registry, &mut socket)])
        .flatten();
    println!();
    table::head(&format!("{size} entries, peak KiB"), WIDTH);
    for (what, [ours, nats, async_nats]) in peaks {
        let figures = [ours, nats, async_nats].map(|kib| Some(kib as f64));
        table::row(what, WIDTH, 0, [figures[0], figures[1], figures[2], None]);
    }
}

type Peaks = Vec<(&'static str, [u64; 3])>;

/// Everything that reads and leaves all as it is.
fn read(size: usize, server: &Server, registry: &mut Registry, socket: &mut Socket) -> Peaks {
    fill(registry, size);
    let rounds = if size <= 1_000 { 21 } else { (500_000 / size).clamp(1, 5) };
    let mut ours: [Seen; READERS.len()] = Default::default();
    let mut others: [Seen; 3] = Default::default();
    for _ in 0..rounds {
        for ((what, words), seen) in READERS.iter().zip(&mut ours) {
            seen.output(what, &tool(server, words));
        }
        for (name, seen) in CRATES.iter().zip(&mut others) {
            let output = peer(server, "list", name);
            assert!(output.stdout.contains(&format!("instances {size}\n")), "{}", output.stdout);
            seen.output(name, &output);
        }
        let (time, count, _) = socket.read_all(STREAM, false);
        assert_eq!(count, size);
        others[2].time(time);
    }
    READERS.iter().zip(ours).map(|((what, _), seen)| report(what, seen, &mut others)).collect()
}

/// Everything that removes all, from a bucket that is made and filled anew each
/// time: what was removed before makes the server slower.
fn clean(size: usize, server: &Server, registry: &mut Registry, socket: &mut Socket) -> Peaks {
    let rounds = if size <= 1_000 { 11 } else { (300_000 / size).clamp(1, 3) };
    let mut ours: [Seen; CLEANERS.len()] = Default::default();
    let mut others: [Seen; 3] = Default::default();
    for _ in 0..rounds {
        for ((what, words), seen) in CLEANERS.iter().zip(&mut ours) {
            fill_anew(registry, size);
            seen.output(what, &tool(server, words));
            assert_eq!(left(registry), 0, "{what} left some");
        }
        for (name, seen) in CRATES.iter().zip(&mut others) {
            fill_anew(registry, size);
            seen.output(name, &peer(server, "clean", name));
            assert_eq!(left(registry), 0, "{name} left some");
        }
        fill_anew(registry, size);
        let (time, _, entries) = socket.read_all(STREAM, true);
        others[2].time(time + socket.purge_all(STREAM, &entries));
        assert_eq!(left(registry), 0, "the floor left some");
    }
    CLEANERS.iter().zip(ours).map(|((what, _), seen)| report(what, seen, &mut others)).collect()
}

fn report(what: &'static str, mut ours: Seen, others: &mut [Seen; 3]) -> (&'static str, [u64; 3]) {
    let [nats, async_nats, floor] = others;
    let times = [ours.median(), nats.median(), async_nats.median(), floor.median()];
    table::row(what, WIDTH, 1, times);
    (what, [ours.peak_kib, nats.peak_kib, async_nats.peak_kib])
}

/// Alive for as long as this takes, by their TTL.
fn fill(registry: &mut Registry, size: usize) {
    let headers = header(&[("Nats-TTL", "10h")]);
    registry.fill(size, |i| {
        let (service, instance) = (format!("service-{:03}", i % 500), format!("host-{i:07}"));
        let record = format!(
            "{{\"serviceName\":\"{service}\",\"instanceId\":\"{instance}\",\"version\":\"1.4.2\",\
             \"status\":\"ACTIVE\",\"lastHeartbeat\":\"2026-11-24T00:00:00.000000+00:00\",\
             \"stickyActiveGroup\":null,\"metadata\":{{\"host\":\"{instance}\",\"pid\":\"4711\"}}}}"
        );
        (format!("service-instances__{service}__{instance}"), headers.clone(), record)
    });
}

fn fill_anew(registry: &mut Registry, size: usize) {
    registry.delete();
    registry.create(&serde_json::json!({}));
    fill(registry, size);
}

fn left(registry: &mut Registry) -> u64 {
    registry.info().expect("a bucket")["state"]["messages"].as_u64().expect("a number")
}

fn tool(server: &Server, words: &[&str]) -> Output {
    aegis(words).arg("-s").arg(&server.url()).arg("--timeout=60s").within(secs(600)).run()
}

fn peer(server: &Server, verb: &str, name: &str) -> Output {
    peers(Build::Optimised, &[verb, name, &server.url(), BUCKET]).within(secs(600)).run()
}
