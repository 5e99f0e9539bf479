//! What `list`, `check` and `cleanup` cost, by the size of the registry, beside
//! the floor: `cargo bench --bench registry [-- SIZE...]`.
//!
//! One table. Times are wall time, memory is the peak; the floor is what the
//! server delivers to, and takes from, a bare socket.

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

use std::time::Duration;

use floor::Socket;
use harness::agent::{Output, aegis};
use harness::registry::{Registry, header};
use harness::secs;
use harness::server::{Server, Setup};

const SIZES: [usize; 4] = [100, 10_000, 100_000, 1_000_000];
const STREAM: &str = "KV_service_registry";

fn main() {
    let asked: Vec<usize> =
        std::env::args().skip(1).filter_map(|word| word.replace('_', "").parse().ok()).collect();
    let sizes = if asked.is_empty() { SIZES.to_vec() } else { asked };
    println!("{:>9}  {:34} {:>10} {:>10} {:>8}", "entries", "what", "time", "floor", "peak KiB");
    for size in sizes {
        measure(size);
    }
}

fn measure(size: usize) {
    let server = Server::with(Setup { extra: "max_payload: 8MB\n".into(), ..Setup::default() });
    let mut registry = Registry::at(&server.url());
    registry.create(&serde_json::json!({}));
    let mut socket = Socket::connect(server.port());

    // Alive for as long as this takes.
    fill(&mut registry, size, "2026-11-24T00:00:00.000000+00:00", &[("Nats-TTL", "10h")]);
    let (read, count, _) = socket.read_all(STREAM, false);
    assert_eq!(count, size);
    let lenient = "--stale-after=87600h";
    report(size, "list --json", median(&server, &["list", "--json", lenient], size), read);
    report(size, "list", median(&server, &["list", lenient], size), read);
    report(size, "check", median(&server, &["check"], size), read);
    report(size, "cleanup, none stale", median(&server, &["cleanup", lenient], size), read);
    report(
        size,
        "cleanup --dry-run, all stale",
        median(&server, &["cleanup", "--dry-run", "--json"], size),
        read,
    );

    let (_, count, entries) = socket.read_all(STREAM, true);
    assert_eq!(count, size);
    let floor = read + socket.purge_all(STREAM, &entries);
    drop(entries);
    fill(&mut registry, size, "2026-11-24T00:00:00.000000+00:00", &[]);
    report(size, "cleanup, all stale", once(&server, &["cleanup"]), floor);
    fill(&mut registry, size, "2026-11-24T00:00:00.000000+00:00", &[]);
    report(size, "cleanup --json, all stale", once(&server, &["cleanup", "--json"]), floor);
    let (_, left, _) = socket.read_all(STREAM, false);
    assert_eq!(left, 0, "cleanup left some");
}

fn fill(registry: &mut Registry, size: usize, heartbeat: &str, headers: &[(&str, &str)]) {
    let headers = if headers.is_empty() { Vec::new() } else { header(headers) };
    registry.fill(size, |i| {
        let (service, instance) = (format!("service-{:03}", i % 500), format!("host-{i:07}"));
        let record = format!(
            "{{\"serviceName\":\"{service}\",\"instanceId\":\"{instance}\",\"version\":\"1.4.2\",\
             \"status\":\"ACTIVE\",\"lastHeartbeat\":\"{heartbeat}\",\
             \"stickyActiveGroup\":null,\"metadata\":{{\"host\":\"{instance}\",\"pid\":\"4711\"}}}}"
        );
        (format!("service-instances__{service}__{instance}"), headers.clone(), record)
    });
}

fn once(server: &Server, words: &[&str]) -> Output {
    aegis(words).arg("-s").arg(&server.url()).arg("--timeout=60s").within(secs(600)).run()
}

/// The run in the middle of five by its time; small registries get more.
fn median(server: &Server, words: &[&str], size: usize) -> Output {
    let runs = if size <= 10_000 { 11 } else { 3 };
    let mut outputs: Vec<Output> = (0..runs).map(|_| once(server, words)).collect();
    outputs.sort_by_key(|output| output.took);
    outputs.swap_remove(runs / 2)
}

fn report(size: usize, what: &str, output: Output, floor: Duration) {
    let failed = !matches!(output.code, 0 | 1);
    let remark =
        if failed { format!("  exit {}: {}", output.code, output.stderr) } else { String::new() };
    println!(
        "{size:>9}  {what:34} {:>7.1} ms {:>7.1} ms {:>8}{remark}",
        output.took.as_secs_f64() * 1e3,
        floor.as_secs_f64() * 1e3,
        output.peak_kib
    );
}
