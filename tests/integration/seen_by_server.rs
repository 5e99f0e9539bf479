//! What a server sees of us: one connection each, with a name that tells it
//! apart from 2,000 others, and nothing in its log that looks like a fault.

use crate::harness::agent::Invocation;
use crate::harness::monitor::Monitor;
use crate::harness::scene::{REGISTERED, bucket, fill, run, tls, verb, with_ca};
use crate::harness::server::{Server, Setup};
use crate::harness::{eventually, millis, nothing_happens_for, secs, time_passes};

/// A whole life, with some heartbeats in it.
fn lives(invocation: &Invocation) {
    let mut agent = invocation.spawn();
    agent.wait_for_line(REGISTERED, secs(8));
    time_passes(millis(1_200));
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
    assert_eq!(agent.lines_with("deregistered").len(), 1, "{}", agent.stderr());
    assert!(agent.lines_with("warning").is_empty(), "{}", agent.stderr());
}

/// The lines of its log since `mark` that say that something was wrong.
fn complaints(server: &Server, mark: usize) -> Vec<String> {
    let log = server.log();
    let lines = log[mark..].lines();
    lines.filter(|l| l.contains("[ERR]") || l.contains("[WRN]")).map(str::to_owned).collect()
}

#[test]
fn nothing_of_ours_is_a_tls_handshake_error_in_the_servers_log() {
    for (scheme, more) in [("tls", ""), ("nats", ""), ("tls", "timeout: 10")] {
        let extra = tls("server-ec", more);
        let server = Server::with(Setup { extra, ..Setup::default() });
        // The harness has looked at its greeting, and is one.
        let mark = eventually(secs(5), "the harness's own error", || {
            let log = server.log();
            if log.contains("TLS handshake error") { Ok(log.len()) } else { Err(log) }
        });
        let url = format!("{scheme}://localhost:{}", server.port());
        lives(&with_ca(run(&url)));
        with_ca(verb("list", &url)).run().exits(0);
        with_ca(verb("check", &url)).run().exits(0);
        with_ca(verb("cleanup", &url)).run().exits(0);
        nothing_happens_for(millis(300));
        assert_eq!(complaints(&server, mark), [""; 0], "{scheme}: {}", server.log());
    }
}

/// A server with a bucket, and its monitoring port.
fn monitored(extra: &str) -> (Server, crate::harness::registry::Registry, Monitor) {
    let monitor = Monitor::new();
    let extra = format!("{}{extra}", monitor.config());
    let (server, registry) = bucket(Setup { extra, ..Setup::default() });
    (server, registry, monitor)
}

#[test]
fn connections_are_named_after_the_instance_or_the_verb() {
    let (server, _registry, monitor) = monitored("");
    let mut agent = run(&server.url()).spawn();
    agent.wait_for_line(REGISTERED, secs(5));
    let open = monitor.names("open").expect("the server tells");
    assert!(open.contains(&"aegis-agent orders-api/host-1".to_owned()), "{open:?}");
    for name in ["list", "check", "cleanup", "init"] {
        let output = verb(name, &server.url()).run();
        assert!(output.code < 2, "{output:#?}");
        let closed = eventually(secs(3), "it is closed", || {
            let closed = monitor.names("closed")?;
            let ours = closed.iter().any(|client| client == &format!("aegis-agent {name}"));
            if ours { Ok(closed) } else { Err(format!("{name}: {closed:?}")) }
        });
        assert!(!closed.contains(&"aegis-agent".to_owned()), "{closed:?}");
    }
}

/// The names hold after a session was lost, too.
#[test]
fn the_second_session_of_an_agent_has_its_name() {
    let (mut server, _registry, monitor) = monitored("");
    let mut agent = run(&server.url()).spawn();
    agent.wait_for_line(REGISTERED, secs(5));
    server.restart();
    agent.wait_for_line("restored orders-api/host-1", secs(8));
    let open = monitor.names("open").expect("the server tells");
    assert!(open.contains(&"aegis-agent orders-api/host-1".to_owned()), "{open:?}");
}

/// "The look is the connection": none is made only to see who is there.
#[test]
fn each_verb_makes_one_connection() {
    let (server, _registry, monitor) = monitored("");
    let connections = || monitor.connections().expect("the server tells");
    for name in ["list", "check", "cleanup", "init"] {
        let before = connections();
        verb(name, &server.url()).run();
        assert_eq!(connections() - before, 1, "{name}");
    }
    let before = connections();
    lives(&run(&server.url()));
    assert_eq!(connections() - before, 1, "run");
}

#[test]
fn a_cleanup_of_500_entries_makes_one_connection() {
    let (server, mut registry, monitor) = monitored("");
    fill(&mut registry, "old", 500, 100);
    fill(&mut registry, "new", 20, 0);
    let connections = || monitor.connections().expect("the server tells");
    let before = connections();
    let text = verb("cleanup", &server.url()).run().exits(0).stdout;
    assert!(text.contains("scanned 520, removed 500 ("), "{text}");
    assert_eq!(connections() - before, 1);
    fill(&mut registry, "old", 500, 100);
    let before = connections();
    let answer = verb("cleanup", &server.url()).arg("--json").run().exits(0).json();
    assert_eq!(answer["removed"].as_array().map(Vec::len), Some(500));
    assert_eq!(connections() - before, 1, "as JSON");
}
