//! Servers whose limits are at their least, and a proxy between that closes what
//! is idle.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::agent::{Agent, aegis};
use crate::harness::fault::{duration, flat, say};
use crate::harness::proxy::Proxy;
use crate::harness::registry::{Client, Watch};
use crate::harness::scene::{KEY, REGISTERED, bucket, fill};
use crate::harness::server::{Server, Setup};
use crate::harness::watcher::Watcher;
use crate::harness::{millis, nothing_happens_for, secs, time_passes};

fn agent(url: &str, ttl: &str, interval: &str) -> Agent {
    let words = ["run", "--service=orders-api", "--instance=host-1", "--ttl", ttl, "--interval"];
    aegis(&words).arg(interval).arg("-s").arg(url).spawn()
}

fn with(extra: &str) -> Setup<'static> {
    Setup { extra: format!("{extra}\n"), ..Setup::default() }
}

/// The longest time between two revisions, none of which may be a marker.
fn longest_gap(watch: &Watch) -> Duration {
    let seen = watch.seen();
    assert!(seen.iter().all(|entry| !entry.is_marker()));
    let gaps = seen.windows(2).map(|pair| duration(pair[1].stored - pair[0].stored));
    gaps.max().unwrap_or_default()
}

/// Others hold all connections that there may be.
#[test]
fn max_connections() {
    let (server, mut registry) = bucket(with("max_connections: 4"));
    // One is ours, one that of the record.
    let watch = registry.watch(KEY);
    let mut others: Vec<Client> = (0..2).map(|_| Client::connect(&server.url())).collect();
    let mut agent = agent(&server.url(), "6s", "500ms");
    let line = agent.wait_for_line("cannot register orders-api/host-1", secs(5));
    let words = "maximum connections exceeded";
    assert!(line.text.contains(words), "{}", line.text);
    for verb in ["list", "check", "cleanup"] {
        let output = aegis(&[verb, "-s", &server.url()]).run();
        assert_eq!(output.code, if verb == "check" { 2 } else { 69 }, "{output:?}");
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(said.contains(words), "{verb}: {said}");
    }
    nothing_happens_for(secs(2));
    assert_eq!(agent.lines().len(), 1, "said once: {}", agent.stderr());
    others.pop();
    let freed = Instant::now();
    let line = agent.wait_for_line(REGISTERED, secs(3));
    // Whoever has a connection keeps it, whoever else comes.
    assert!(Client::login(&server.url(), &json!({})).is_err());
    watch.wait_for(5, secs(6));
    assert!(longest_gap(&watch) < secs(2));
    assert_eq!(agent.lines().len(), 2, "{}", agent.stderr());
    say(&format!(
        "limit: max_connections reached; registered {:.2} s after one was free",
        (line.at - freed).as_secs_f64()
    ));
}

fn tools_work(server: &Server) {
    for verb in ["list", "check", "cleanup"] {
        let output = aegis(&[verb, "-s", &server.url()]).run();
        assert!(matches!(output.code, 0 | 1), "{verb}: {} {}", output.code, output.stderr);
    }
}

/// A client to which the server cannot write in time is cut off: nothing of ours
/// is one. (On a host where our own process does not get to run for so long,
/// `watch` may be, and then it misses nothing.)
#[test]
fn write_deadline() {
    let (mut server, mut registry) = bucket(with("write_deadline: \"10s\""));
    fill(&mut registry, "i", 5_000, 1);
    // The tests' own client may be slow, on a busy host.
    server.reconfigure("\"10s\"", "\"100ms\"");
    let mut agent = agent(&server.url(), "6s", "500ms");
    agent.wait_for_line(REGISTERED, secs(5));
    let mut watcher = Watcher::start(&server.url(), &[]);
    watcher.wait_for("synced", secs(10));
    tools_work(&server);
    nothing_happens_for(secs(2));
    assert_eq!(agent.lines().len(), 1, "{}", agent.stderr());
    let mut told = watcher.words();
    told.retain(|word| !word.starts_with("up"));
    if server.log().contains("Slow Consumer Detected") {
        assert_eq!(told.pop().as_deref(), Some("synced"));
        told.retain(|word| word != "lost" && word != "synced");
        assert!(told.is_empty(), "{told:?}");
    } else {
        assert_eq!(told, ["synced"]);
    }
    let ups = watcher.words().iter().filter(|word| word.starts_with("up")).count();
    assert_eq!(ups, 5_001, "each once");
    watcher.stop();
}

/// Who has not logged in by then is cut off, which is said as what it is.
#[test]
fn auth_timeout() {
    let users = "no_auth_user: tests\nauthorization { timeout: 0.1, users: [\
        { user: agent, password: right }, { user: tests, password: tests } ] }";
    let (server, mut registry) = bucket(with(users));
    let proxy = Proxy::to(server.port());
    let watch = registry.watch(KEY);
    let mut agent = aegis(&["run", "--service=orders-api", "--instance=host-1", "--ttl=6s"])
        .arg("--interval=500ms")
        .arg("-s")
        .arg(&proxy.url())
        .env("NATS_USER", "agent")
        .env("NATS_PASSWORD", "right")
        .spawn();
    agent.wait_for_line(REGISTERED, secs(5));
    watch.wait_for(2, secs(3));
    // The way of the greeting and of the login takes longer than that.
    proxy.delay(millis(150));
    proxy.cut();
    let line = agent.wait_for_line("the server says: Authentication Timeout", secs(8));
    let list = aegis(&["list", "-s", &proxy.url()]).run();
    assert_eq!(list.code, 69, "no matter of credentials: {list:?}");
    assert!(list.stderr.contains("raise timeout in the authorization block"), "{list:?}");
    proxy.delay(Duration::ZERO);
    let back = Instant::now();
    let restored = agent.wait_for_line("restored orders-api/host-1", secs(3));
    say(&format!(
        "limit: auth_timeout of 0.1 s on a way of 0.15 s; restored {:.2} s after it was short again; \
         said: {}",
        (restored.at - back).as_secs_f64(),
        line.text
    ));
}

/// A server that asks five times a second, and cuts off who has not answered by
/// the next time.
#[test]
fn ping_interval() {
    let (server, mut registry) = bucket(with("ping_interval: \"200ms\"\nping_max: 1"));
    fill(&mut registry, "i", 2_000, 1);
    let watch = registry.watch(KEY);
    let mut agent = agent(&server.url(), "20s", "4s");
    agent.wait_for_line(REGISTERED, secs(5));
    let mut watcher = Watcher::start(&server.url(), &[]);
    watcher.wait_for("synced", secs(10));
    tools_work(&server);
    watch.wait_for(4, secs(15));
    assert!(longest_gap(&watch) < millis(4_300));
    assert_eq!(agent.lines().len(), 1, "{}", agent.stderr());
    assert!(!watcher.words().iter().any(|word| word == "lost"), "{:?}", watcher.log());
    watcher.stop();
}

/// It closes the connection of an agent between any two heartbeats.
#[test]
fn a_proxy_that_closes_idle_connections() {
    let (server, mut registry) = bucket(Setup::default());
    let proxy = Proxy::to(server.port());
    proxy.close_idle(millis(1_200));
    let watch = registry.watch(KEY);
    let mut agent = agent(&proxy.url(), "9s", "3s");
    agent.wait_for_line(REGISTERED, secs(5));
    let mut watcher = Watcher::start(&proxy.url(), &[]);
    watcher.wait_for("up host-1", secs(5));
    time_passes(secs(2));
    let before = agent.usage();
    watch.wait_for(14, secs(40));
    let gap = longest_gap(&watch);
    assert!(gap < millis(3_500), "P1: {gap:?} between two heartbeats of 3 s");
    assert_eq!(watcher.words(), ["up host-1", "synced"]);
    flat(&agent, (before.threads, before.descriptors));
    // Said three times, and that no more of them follow.
    assert!(proxy.accepted() > 5, "{} connections", proxy.accepted());
    for (text, count) in [("lost orders-api", 3), ("restored orders-api", 3), ("in a row", 1)] {
        assert_eq!(agent.lines_with(text).len(), count, "{text}: {}", agent.stderr());
    }
    say(&format!(
        "limit: a proxy that closes what is idle for 1.2 s; {} connections in {:.0} s, {:.2} s \
         between two heartbeats at most, {} lines said",
        proxy.accepted(),
        agent.started.elapsed().as_secs_f64(),
        gap.as_secs_f64(),
        agent.lines().len()
    ));
    // What does not pass by itself is told at once.
    proxy.refuse(true);
    proxy.cut();
    agent.wait_for_lines("lost orders-api", 4, secs(8));
    proxy.refuse(false);
    agent.wait_for_lines("restored orders-api", 4, secs(3));
    watcher.stop();
}
