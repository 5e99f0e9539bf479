//! What one agent costs: `cargo bench --bench agent`.
//!
//! One table: memory, threads, descriptors; CPU time, system calls and context
//! switches for each of 1,000 heartbeats, beside the same exchange by the bare
//! `nats` crate and by a bare socket; time from start to registered; how long
//! an acknowledgement takes, with and without TTL.

// The bare crate is measured here; in src/ only one file may know it.
#![allow(deprecated)]
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

use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use floor::Socket;
use harness::agent::{Agent, Invocation, aegis, binary};
use harness::registry::Registry;
use harness::server::Server;
use harness::syscalls::Traced;
use harness::{eventually, millis, secs};

const KEY: &str = "service-instances__orders-api__host-1";
const BEATS: u64 = 1_000;
const WARM_UP: u64 = 50;
const PAUSE: Duration = millis(100);
const VALUE: &str = "{\"serviceName\":\"orders-api\",\"instanceId\":\"host-1\",\
    \"version\":\"1.4.2\",\"status\":\"ACTIVE\",\
    \"lastHeartbeat\":\"2026-11-24T09:37:31.979155+00:00\",\"stickyActiveGroup\":null,\
    \"metadata\":{\"host\":\"host-1\",\"pid\":\"4711\"}}";
const TTL: &str = "NATS/1.0\r\nNats-TTL: 30s\r\n\r\n";

fn main() {
    let words: Vec<String> = std::env::args().collect();
    match words.iter().position(|word| word == "--bare") {
        Some(at) => bare(&words[at + 1], words[at + 2].parse().expect("a port")),
        None => measure(),
    }
}

fn measure() {
    let server = Server::any();
    let mut registry = Registry::at(&server.url());
    registry.create(&serde_json::json!({}));

    let size = std::fs::metadata(binary()).expect("the binary").len();
    row("binary", format!("{size} bytes"));

    let mut starts: Vec<f64> = (0..21).map(|_| start_to_registered(&server)).collect();
    row("start to registered, median of 21", format!("{:.1} ms", median(&mut starts)));

    let mut running = agent(&server).spawn();
    running.wait_for_line("registered", secs(10));
    // All at the same time, so that they share whatever else the machine does.
    let mut the_crate = Bare::start("crate", &server);
    let mut a_socket = Bare::start("socket", &server);
    let first = beaten(&mut registry, WARM_UP);
    let before = Cost::of(running.pid());
    the_crate.begin();
    a_socket.begin();
    let last = beaten(&mut registry, first + BEATS);
    let cost = Cost::of(running.pid()).since(&before, last - first);
    let (crate_us, socket_us) = (the_crate.end(), a_socket.end());
    let usage = running.usage();
    row("resident", format!("{} KiB", usage.resident_kib));
    row("of that anonymous", format!("{} KiB", usage.anonymous_kib));
    row("threads, descriptors", format!("{}, {}", usage.threads, usage.descriptors));
    row("CPU time a heartbeat", format!("{:.0} us", cost.cpu_us));
    row("  the bare nats crate", format!("{crate_us:.0} us"));
    row("  a bare socket", format!("{socket_us:.0} us"));
    row(
        "context switches a heartbeat",
        format!("{:.1} of its own, {:.1} forced", cost.voluntary, cost.involuntary),
    );
    stop(running);

    let traced = Traced::spawn(agent(&server));
    let first = beaten(&mut registry, last + WARM_UP);
    let before = traced.count();
    let last = beaten(&mut registry, first + BEATS);
    let calls = (traced.count() - before) as f64 / (last - first) as f64;
    row("system calls a heartbeat", format!("{calls:.1}"));
    drop(traced);

    let mut socket = Socket::connect(server.port());
    let (without, with) = acknowledgements(&mut socket);
    row("acknowledgement, put without TTL", without);
    row("acknowledgement, put with TTL", with);
    row("puts without TTL, one connection", throughput(&mut socket, ""));
    row("puts with TTL, one connection", throughput(&mut socket, TTL));
}

fn row(what: &str, value: String) {
    println!("{what:38} {value}");
}

fn agent(server: &Server) -> Invocation {
    let url = server.url();
    aegis(&["run", "-s", &url, "--service=orders-api", "--instance=host-1"])
        .arg("--ttl=10s")
        .arg("--interval=100ms")
}

fn stop(mut agent: Agent) {
    agent.signal("TERM");
    agent.wait_exit(secs(10));
}

fn beaten(registry: &mut Registry, least: u64) -> u64 {
    eventually(secs(300), "enough heartbeats", || {
        // Seldom, so that looking does not cost what is measured.
        sleep(millis(500));
        let revision = registry.last(KEY).map_or(0, |entry| entry.revision);
        if revision >= least { Ok(revision) } else { Err(format!("revision {revision}")) }
    })
}

fn start_to_registered(server: &Server) -> f64 {
    let mut agent = agent(server).spawn();
    let line = agent.wait_for_line("registered", secs(10));
    let took = (line.at - agent.started).as_secs_f64() * 1e3;
    stop(agent);
    took
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What all threads of a process have used.
struct Cost {
    cpu_us: f64,
    voluntary: f64,
    involuntary: f64,
}

impl Cost {
    fn of(pid: u32) -> Cost {
        let mut cost = Cost { cpu_us: 0.0, voluntary: 0.0, involuntary: 0.0 };
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads").flatten() {
            let read = |file: &str| std::fs::read_to_string(task.path().join(file));
            let first = |text: String| text.split_whitespace().next()?.parse::<f64>().ok();
            cost.cpu_us += read("schedstat").ok().and_then(first).unwrap_or(0.0) / 1e3;
            for line in read("status").unwrap_or_default().lines() {
                let number = line.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok());
                match line.split(':').next() {
                    Some("voluntary_ctxt_switches") => cost.voluntary += number.unwrap_or(0.0),
                    Some("nonvoluntary_ctxt_switches") => cost.involuntary += number.unwrap_or(0.0),
                    _ => {}
                }
            }
        }
        cost
    }

    fn since(&self, before: &Cost, beats: u64) -> Cost {
        let each = |now: f64, then: f64| (now - then) / beats as f64;
        Cost {
            cpu_us: each(self.cpu_us, before.cpu_us),
            voluntary: each(self.voluntary, before.voluntary),
            involuntary: each(self.involuntary, before.involuntary),
        }
    }
}

/// The same exchange at the same pace, in a process and a bucket of its own.
struct Bare {
    child: Child,
    bucket: Registry,
    before: Option<(Cost, u64)>,
}

impl Bare {
    fn start(kind: &str, server: &Server) -> Bare {
        let mut bucket = Registry::named(&server.url(), kind);
        bucket.create(&serde_json::json!({}));
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--bare", kind, &server.port().to_string()])
            .stdout(Stdio::null())
            .spawn()
            .expect("starts");
        Bare { child, bucket, before: None }
    }

    /// How many exchanges there were: nobody else writes to its bucket.
    fn count(&mut self) -> u64 {
        let info = self.bucket.info().expect("its bucket");
        info["state"]["last_seq"].as_u64().expect("a sequence")
    }

    fn begin(&mut self) {
        self.before = Some((Cost::of(self.child.id()), self.count()));
    }

    /// CPU time of one exchange in microseconds, since it began.
    fn end(&mut self) -> f64 {
        let count = self.count();
        let (before, begun) = self.before.as_ref().expect("it has begun");
        Cost::of(self.child.id()).since(before, count - begun).cpu_us
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Heartbeats and nothing else, until it is killed or five minutes have passed.
fn bare(kind: &str, port: u16) {
    let until = Instant::now() + secs(300);
    let subject = format!("$KV.{kind}.service-instances__orders-api__host-1");
    let mut exchange: Box<dyn FnMut()> = if kind == "socket" {
        let mut socket = Socket::connect(port);
        Box::new(move || drop(socket.request(&subject, TTL, VALUE)))
    } else {
        let connection = nats::connect(format!("nats://127.0.0.1:{port}")).expect("connects");
        let inbox = connection.new_inbox();
        let subscription = connection.subscribe(&inbox).expect("subscribes");
        let mut headers = nats::header::HeaderMap::new();
        headers.insert("Nats-TTL", "30s");
        Box::new(move || {
            connection
                .publish_with_reply_or_headers(&subject, Some(&inbox), Some(&headers), VALUE)
                .expect("publishes");
            subscription.next_timeout(secs(5)).expect("is acknowledged");
        })
    };
    while Instant::now() < until {
        exchange();
        sleep(PAUSE);
    }
}

/// Median and 99th percentile of 5,000 puts each, taken in turns.
fn acknowledgements(socket: &mut Socket) -> (String, String) {
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..10_000 {
        let (header, times) = if round % 2 == 0 { ("", &mut without) } else { (TTL, &mut with) };
        let begun = Instant::now();
        let answer = socket.request("$KV.service_registry.bench", header, VALUE);
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        assert!(answer.contains("\"seq\""), "{answer}");
    }
    (words(&mut without), words(&mut with))
}

/// What one stream takes in: 200,000 puts over 20,000 keys, 500 under way.
fn throughput(socket: &mut Socket, header: &str) -> String {
    const PUTS: usize = 200_000;
    let begun = Instant::now();
    socket.put_all(PUTS, 500, header, VALUE, |i| {
        format!("$KV.service_registry.bench-{:05}", i % 20_000)
    });
    format!("{:.0} acknowledged a second", PUTS as f64 / begun.elapsed().as_secs_f64())
}

fn words(times: &mut [f64]) -> String {
    let middle = median(times);
    format!("median {middle:.3} ms, 99 % under {:.3} ms", times[times.len() * 99 / 100])
}
