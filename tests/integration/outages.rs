//! What `run` says during an outage, and how it leaves one: causes that
//! change, a server that announces its end, a bucket that is not what it was.

use serde_json::json;

use crate::harness::agent::{Agent, aegis};
use crate::harness::proxy::{Greeting, Proxy};
use crate::harness::registry::Registry;
use crate::harness::scene::{KEY, any_bucket};
use crate::harness::server::{Server, Setup};
use crate::harness::{eventually, millis, nothing_happens_for, secs, time_passes};

fn agent(url: &str, ttl: &str, interval: &str) -> Agent {
    agent_with(url, ttl, interval, &[])
}

fn agent_with(url: &str, ttl: &str, interval: &str, environment: &[(&str, &str)]) -> Agent {
    let words = ["run", "--service=orders-api", "--instance=host-1", "--ttl", ttl, "--interval"];
    let mut agent = aegis(&words).arg(interval).arg("-s").arg(url);
    for (name, value) in environment {
        agent = agent.env(name, value);
    }
    agent.spawn()
}

fn words(agent: &Agent) -> Vec<String> {
    agent.lines().into_iter().map(|line| line.text).collect()
}

/// "Entering and leaving an outage is logged once each, with cause and length.
/// Changing causes (refused, then login refused, then no bucket) are each
/// logged once."
#[test]
fn each_cause_of_an_outage_is_said_once() {
    let users = |password: &str| {
        format!(
            "no_auth_user: tests\nauthorization {{ users: [\
             {{ user: agent, password: \"{password}\" }}, {{ user: tests, password: tests }} ] }}\n"
        )
    };
    let mut server = Server::with(Setup { extra: users("right"), ..Setup::default() });
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({}));
    let login = [("NATS_USER", "agent"), ("NATS_PASSWORD", "right")];
    let mut agent = agent_with(&server.url(), "20s", "500ms", &login);
    agent.wait_for_line("registered orders-api/host-1", secs(5));

    server.kill();
    agent.wait_for_line("connection refused", secs(5));
    server.start_again();
    server.reconfigure("\"right\"", "\"other\"");
    // It may have been back for a moment before the login was withdrawn.
    agent.wait_for_line("login refused", secs(5));
    registry.reconnect();
    registry.delete();
    registry.create(&json!({ "allow_msg_ttl": false }));
    server.reconfigure("\"other\"", "\"right\"");
    agent.wait_for_line(" init", secs(5));
    nothing_happens_for(secs(2));
    assert_eq!(registry.everything().len(), 0, "never a blind write");
    for cause in ["connection refused", "login refused", " init"] {
        assert_eq!(agent.lines_with(cause).len(), 1, "{cause}: {}", agent.stderr());
    }
    registry.update(&json!({ "allow_msg_ttl": true }));
    let back = agent.wait_for_line("restored orders-api/host-1", secs(3));
    assert!(back.text.contains(" after "), "with its length: {}", back.text);
    assert!(agent.lines().len() <= 8, "{:#?}", words(&agent));
}

/// A peer that never says the same twice.
#[test]
fn causes_that_never_repeat_do_not_flood_the_log() {
    let (server, _registry) = any_bucket();
    let proxy = Proxy::to(server.port());
    let mut agent = agent(&proxy.url(), "20s", "200ms");
    agent.wait_for_line("registered orders-api/host-1", secs(5));
    // Numbers alone, and words as well.
    for round in 0..14 {
        let word: String = std::iter::repeat_n(char::from(b'a' + round), 12).collect();
        let bytes = match round < 7 {
            true => format!("-ERR 'try again in {round}{round} s'\r\n"),
            false => format!("-ERR 'no, {word}'\r\n"),
        };
        let before = proxy.accepted();
        proxy.greet(Some(Greeting { bytes: bytes.into_bytes(), close: true }));
        if round == 0 {
            proxy.cut();
        }
        eventually(secs(5), "it tries again", || {
            let count = proxy.accepted() - before;
            (count > 1).then_some(()).ok_or_else(|| format!("{count}"))
        });
    }
    proxy.greet(None);
    agent.wait_for_line("restored orders-api/host-1", secs(3));
    let said = agent.lines_with("try again in").len();
    assert_eq!(said, 1, "numbers are no other cause: {:#?}", words(&agent));
    assert!(agent.lines().len() <= 10, "{:#?}", words(&agent));
}

#[test]
fn a_bucket_that_loses_its_flag_is_said_once_and_never_written_to() {
    let (server, mut registry) = any_bucket();
    let mut agent = agent(&server.url(), "5s", "300ms");
    agent.wait_for_line("registered orders-api/host-1", secs(5));
    // An agent that is quicker makes it again, with the flag.
    agent.signal("STOP");
    registry.delete();
    registry.create(&json!({ "allow_msg_ttl": false }));
    agent.signal("CONT");
    agent.wait_for_line(&format!("aegis-agent -s {} init", server.url()), secs(3));
    nothing_happens_for(secs(3));
    assert_eq!(registry.everything().len(), 0);
    // The refusal, and on a fresh session its cause.
    assert_eq!(agent.lines().len(), 3, "said once: {:#?}", words(&agent));
    registry.update(&json!({ "allow_msg_ttl": true }));
    agent.wait_for_line("restored orders-api/host-1", secs(3));
}

#[test]
fn a_server_that_is_downgraded_is_said_once_and_never_written_to() {
    let mut server = Server::start("2.11.11");
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({ "storage": "memory" }));
    let mut agent = agent(&server.url(), "5s", "300ms");
    agent.wait_for_line("registered orders-api/host-1", secs(5));
    server.restart_as("2.10.25");
    registry.reconnect();
    registry.create(&json!({}));
    agent.wait_for_line("2.10.25 is too old", secs(5));
    nothing_happens_for(secs(3));
    assert_eq!(registry.everything().len(), 0);
    assert_eq!(agent.lines_with("too old").len(), 1, "said once: {:#?}", words(&agent));
    server.restart_as("2.11.11");
    registry.reconnect();
    registry.update(&json!({ "allow_msg_ttl": true }));
    agent.wait_for_line("restored orders-api/host-1", secs(3));
}

/// A single server ends JetStream as soon as it enters lame-duck mode.
#[test]
fn a_lame_duck_without_successor_is_waited_for() {
    let mut server = Server::any();
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({}));
    let mut agent = agent(&server.url(), "2s", "300ms");
    agent.wait_for_line("registered orders-api/host-1", secs(5));
    server.lame_duck();
    agent.wait_for_line("no other serves", secs(3));
    time_passes(secs(2));
    server.kill();
    server.start_again();
    agent.wait_for_line("restored orders-api/host-1", secs(3));
    for cause in ["lame-duck", "no other serves", "lost orders-api", "connection refused;"] {
        assert_eq!(agent.lines_with(cause).len(), 1, "{cause}: {:#?}", words(&agent));
    }
}

/// A server that ends each session as soon as it has begun.
#[test]
fn sessions_that_end_at_once_are_not_replaced_in_a_tight_loop() {
    let (server, mut registry) = any_bucket();
    let proxy = Proxy::to(server.port());
    let watch = registry.watch(KEY);
    // The first interval is drawn from all of it: no heartbeat comes between.
    let agent = agent_with(&proxy.url(), "24h", "8h", &[("AEGIS_STALE_AFTER", "24h")]);
    for session in 1..=5 {
        watch.wait_for(session, secs(5));
        proxy.cut();
    }
    // Each is a look and a dial. One that is cut before its acknowledgement is no
    // session yet, and is tried again sooner.
    let accepted = proxy.accepted();
    let age = agent.started.elapsed();
    assert!(age > millis(2_500), "{accepted} connections in {age:?}");
    assert!(accepted <= 12, "{accepted} connections in {age:?}");
}
