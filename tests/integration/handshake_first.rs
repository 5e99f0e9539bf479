//! Servers that wait for the TLS handshake before they say anything
//! (`handshake_first`), for ever or for a while: everything works with them,
//! whichever scheme the URL has.

use std::time::{Duration, Instant};

use crate::harness::agent::{Agent, Invocation};
use crate::harness::fault::say;
use crate::harness::proxy::Proxy;
use crate::harness::scene::{REGISTERED, run, tls, together, verb, with_ca};
use crate::harness::secs;
use crate::harness::server::{Server, Setup};

/// What to wait for a server that stays silent at first, with its TLS
/// handshake, and registering on a busy machine.
const FIRST: Duration = secs(2);

fn server(handshake_first: &str) -> Server {
    let extra = tls("server-ec", &format!("handshake_first: {handshake_first}"));
    Server::with(Setup { extra, ..Setup::default() })
}

fn urls(server: &Server) -> [String; 2] {
    ["tls", "nats"].map(|scheme| format!("{scheme}://localhost:{}", server.port()))
}

/// Registers; the time from its start to the line that says so.
fn registers(invocation: &Invocation) -> (Agent, Duration) {
    let mut agent = invocation.spawn();
    let line = agent.wait_for_line(REGISTERED, secs(10));
    let took = line.at.saturating_duration_since(agent.started);
    (agent, took)
}

/// `run`, `list` and `check` over this URL.
fn works(url: &str) {
    let (mut agent, took) = registers(&with_ca(run(url)));
    assert!(took < FIRST, "registered after {took:?}: {}", agent.stderr());
    let verbs = ["list", "check"].map(|name| with_ca(verb(name, url)));
    for output in together(&verbs) {
        let output = output.exits(0);
        // Within its time limit; a third of that where the host is not busy.
        assert!(output.took < secs(5), "{output:#?}");
    }
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
    assert_eq!(agent.lines_with("deregistered").len(), 1, "{}", agent.stderr());
    say(&format!("handshake_first: {url}: registered after {:.2} s", took.as_secs_f64()));
}

#[test]
fn a_server_that_wants_the_handshake_first_gets_it() {
    let server = server("true");
    urls(&server).iter().for_each(|url| works(url));
}

#[test]
fn a_server_that_wants_the_handshake_first_for_a_while_gets_it() {
    for handshake_first in ["auto", "\"300ms\""] {
        let server = server(handshake_first);
        urls(&server).iter().for_each(|url| works(url));
    }
}

/// "what worked is remembered for the next session"
#[test]
fn the_second_session_does_not_wait_for_a_greeting() {
    let server = server("true");
    let proxy = Proxy::to(server.port());
    for scheme in ["tls", "nats"] {
        let url = format!("{scheme}://localhost:{}", proxy.port());
        let (mut agent, first) = registers(&with_ca(run(&url)));
        let cut = Instant::now();
        proxy.cut();
        let line = agent.wait_for_line("restored orders-api/host-1", secs(5));
        let second = line.at.saturating_duration_since(cut);
        // With half an interval until a heartbeat finds the session gone.
        assert!(second < first.max(secs(1)), "first {first:?}, second {second:?}");
        agent.signal("TERM");
        assert_eq!(agent.wait_exit(secs(3)), 0);
        say(&format!("handshake_first: {scheme}: {first:.2?}, the second session {second:.2?}"));
    }
}

#[test]
fn an_agent_is_back_after_a_server_that_wants_the_handshake_first() {
    let mut server = server("true");
    let (mut agent, _) = registers(&with_ca(run(&urls(&server)[1])));
    server.kill();
    agent.wait_for_line("lost ", secs(5));
    server.start_again();
    let ready = Instant::now();
    let line = agent.wait_for_line("restored ", secs(5));
    let back = line.at.saturating_duration_since(ready);
    assert!(back < secs(3), "back after {back:?}: {}", agent.stderr());
}
