//! What `watch` costs above receiving: `cargo bench --bench watch [-- SECONDS]`,
//! 100,000 instances and 10,000 heartbeats a second, for a minute unless told
//! otherwise.
//!
//! The floor are two bare sockets beside it, in the same minute: one subscribes to
//! the subjects of the bucket, one takes the deliveries of a consumer as `watch`
//! does. Both throw away what they read. CPU time is that of the process of `watch`
//! and of the threads that read, to the nanosecond.

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

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use harness::agent::aegis;
use harness::registry::{Registry, header};
use harness::scene::{key, record};
use harness::server::Server;
use harness::{eventually, millis, secs};

const COUNT: usize = 100_000;
const RATE: usize = 10_000;
/// So many at once, ten times a second.
const BURST: usize = RATE / 10;

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|word| word.parse::<u64>().ok());
    let length = secs(numbers.next().unwrap_or(60));
    let server = Server::any();
    let mut registry = Registry::at(&server.url());
    registry.create(&serde_json::json!({ "storage": "memory" }));
    put(&mut registry, COUNT, 0);

    let words = ["watch", "--json", "--stale-after=1h", "-s", &server.url()];
    let mut child = aegis(&words).command().spawn().expect("starts");
    let told: Arc<AtomicU64> = Arc::default();
    let synced: Arc<AtomicBool> = Arc::default();
    let stdout = child.stdout.take().expect("piped");
    let reader = {
        let (told, synced) = (told.clone(), synced.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                told.fetch_add(1, Ordering::SeqCst);
                if line.contains("\"synced\"") {
                    synced.store(true, Ordering::SeqCst);
                }
            }
        })
    };
    eventually(secs(60), "the state is told", || {
        synced.load(Ordering::SeqCst).then_some(()).ok_or_else(String::new)
    });
    let plain = Receiver::start(server.port(), false);
    let consumer = Receiver::start(server.port(), true);
    // What is there already is not counted.
    sleep(secs(2));
    let before = told.load(Ordering::SeqCst);

    let cpu = || [cpu_of(child.id(), None), plain.cpu(), consumer.cpu()];
    let (start, began) = (cpu(), Instant::now());
    let bytes = [plain.bytes(), consumer.bytes()];
    let mut beats = 0;
    while began.elapsed() < length {
        put(&mut registry, BURST, beats);
        beats += BURST;
        let due = began + Duration::from_secs_f64(beats as f64 / RATE as f64);
        sleep(due.saturating_duration_since(Instant::now()));
    }
    let took = began.elapsed().as_secs_f64();
    sleep(millis(500));
    let used = cpu();
    println!(
        "{COUNT} instances, {beats} heartbeats in {took:.1} s ({:.0} a second)",
        beats as f64 / took
    );
    let share = |at: usize| (used[at] - start[at]).as_secs_f64() / took * 100.0;
    println!("watch:                            {:5.2} % of a core", share(0));
    println!("a bare socket, subscribed:        {:5.2} % of a core", share(1));
    println!("a bare socket, with a consumer:   {:5.2} % of a core", share(2));
    println!("watch above a bare subscription:  {:5.2} % of a core", share(0) - share(1));
    println!("watch above a bare consumer:      {:5.2} % of a core", share(0) - share(2));
    for (what, (now, before)) in
        ["subscribed", "consumer"].iter().zip([plain.bytes(), consumer.bytes()].iter().zip(bytes))
    {
        let each = (now - before) as f64 / beats as f64;
        println!("bytes a heartbeat, {what}: {each:.0}");
        assert!(each > 200.0, "the receiver lost some");
    }
    assert_eq!(told.load(Ordering::SeqCst), before, "a heartbeat is no event");
    child.kill().expect("ends it");
    child.wait().expect("waits");
    reader.join().expect("the reader ends");
}

fn put(registry: &mut Registry, count: usize, from: usize) {
    let headers = header(&[("Nats-TTL", "10m")]);
    registry.fill(count, |i| {
        let instance = format!("host-{:06}", (from + i) % COUNT);
        (key(&instance), headers.clone(), record(&instance, 0))
    });
}

/// A bare socket, read by a thread that does nothing else.
struct Receiver {
    thread: u32,
    bytes: Arc<AtomicU64>,
    _thread: JoinHandle<()>,
}

impl Receiver {
    fn start(port: u16, consumer: bool) -> Receiver {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connects");
        let mut buffer = vec![0; 1 << 16];
        assert!(stream.read(&mut buffer).expect("greets") > 0);
        let subject = if consumer { "floor.in" } else { "$KV.service_registry.>" };
        let mut hello = format!(
            "CONNECT {{\"verbose\":false,\"pedantic\":false,\"headers\":true,\"protocol\":1}}\r\n\
             SUB {subject} 1\r\n"
        );
        if consumer {
            let config = "{\"stream_name\":\"KV_service_registry\",\"config\":{\"deliver_subject\":\
                \"floor.in\",\"deliver_policy\":\"new\",\"ack_policy\":\"none\",\"mem_storage\":true,\
                \"num_replicas\":1}}";
            let subject = "$JS.API.CONSUMER.CREATE.KV_service_registry";
            hello += &format!("PUB {subject} floor.made {}\r\n{config}\r\n", config.len());
        }
        stream.write_all(hello.as_bytes()).expect("sends");
        let bytes: Arc<AtomicU64> = Arc::default();
        let (count, (tell, told)) = (bytes.clone(), std::sync::mpsc::channel());
        let thread = std::thread::spawn(move || {
            let own = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
            tell.send(own).expect("it is waited for");
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                count.fetch_add(length as u64, Ordering::Relaxed);
                // Between heartbeats it is asked whether it lives.
                if buffer[..length].ends_with(b"PING\r\n") {
                    stream.write_all(b"PONG\r\n").expect("answers");
                }
            }
        });
        Receiver { thread: told.recv().expect("it runs"), bytes, _thread: thread }
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn cpu(&self) -> Duration {
        cpu_of(std::process::id(), Some(self.thread))
    }
}

/// CPU time of a process, or of one of its threads.
fn cpu_of(pid: u32, thread: Option<u32>) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let spent = tasks.filter_map(|task| {
        let is_wanted =
            thread.is_none_or(|id| task.file_name().to_string_lossy() == id.to_string());
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        is_wanted.then(|| text.split_whitespace().next()?.parse::<u64>().ok()).flatten()
    });
    Duration::from_nanos(spent.sum())
}
