//! A server, or an account, that takes no more connections: every verb says so
//! in the server's words, with TLS and without, and an agent waits for its turn.

use std::net::TcpStream;

use serde_json::Value;

use crate::harness::agent::{Agent, Invocation, aegis};
use crate::harness::scene::{tls, with_ca};
use crate::harness::server::{Server, Setup};
use crate::harness::{eventually, scratch, secs};
use crate::logins::Operator;

const VERSIONS: [&str; 4] = ["2.11.11", "2.12.8", "2.14.6", "2.15.1"];
const OF_SERVER: &str = "the server says: maximum connections exceeded";
const OF_ACCOUNT: &str = "the server says: maximum account active connections exceeded";
const HINT: &str = "hint: raise max_connections of nats-server, or of the account";

fn server(version: &str, extra: String) -> Server {
    Server::with(Setup { version, extra, ..Setup::default() })
}

/// An agent that waits for its turn.
fn agent(instance: &str, call: &dyn Fn(&[&str]) -> Invocation) -> Agent {
    let words = ["run", "--service=web", "--ttl=6s", "--interval=1s", "--instance", instance];
    call(&words).spawn()
}

/// One agent has the only connection; whoever else comes hears why.
fn one_at_a_time(what: &str, says: &str, call: &dyn Fn(&[&str]) -> Invocation) {
    let mut first = agent("first", call);
    // The look whether the server is up may still count.
    first.wait_for_line("registered web/first", secs(10));
    for verb in ["list", "cleanup", "init"] {
        // Whether the server's words or its end is read first is a matter of
        // chance.
        for _ in 0..4 {
            let output = call(&[verb]).run().exits(69);
            assert!(output.stderr.contains(says), "{what}: {output:?}");
            assert!(output.stderr.contains(HINT), "{what}: {output:?}");
        }
    }
    let check = call(&["check", "--json"]).run().exits(2).json();
    let row = &check["checks"][0];
    assert_eq!((&row["name"], &row["status"]), (&"connection".into(), &"critical".into()));
    assert!(row["message"].as_str().is_some_and(|text| text.contains(says)), "{what}: {row:#}");
    assert_eq!(row["hint"], Value::from(HINT.trim_start_matches("hint: ")), "{what}");

    let mut second = agent("second", call);
    let line = second.wait_for_line("cannot register web/second", secs(5)).text;
    assert!(line.contains(says) && line.contains(HINT), "{what}: {line}");
    first.signal("TERM");
    assert_eq!(first.wait_exit(secs(5)), 0, "{what}");
    second.wait_for_line("registered web/second", secs(10));
    // It waited, said so once, and did not end.
    assert_eq!(second.lines_with("without registry").len(), 0, "{what}: {}", second.stderr());
    assert_eq!(second.lines_with(says).len(), 1, "{what}: {}", second.stderr());
    second.signal("TERM");
    assert_eq!(second.wait_exit(secs(5)), 0, "{what}");
}

/// "`max_connections` reached reads \"broken pipe\"": the server says so and
/// closes before it has read a word of ours.
#[test]
fn a_server_that_takes_no_more_connections_is_called_that() {
    for version in VERSIONS {
        let server = server(version, "max_connections: 1\n".to_owned());
        let url = server.url();
        one_at_a_time(version, OF_SERVER, &|words| aegis(words).arg("-s").arg(&url));
    }
}

/// It says so in clear, where TLS is due: that is no fault of a certificate.
#[test]
fn with_tls_it_is_called_that_too() {
    for more in ["", "handshake_first: auto"] {
        let server = server("2.12.8", tls("server-ec", more) + "max_connections: 1\n");
        let url = server.url();
        let call = |words: &[&str]| with_ca(aegis(words).arg("-s").arg(&url));
        one_at_a_time(&format!("TLS, {more}"), OF_SERVER, &call);
    }
}

/// A server that waits for the handshake says it in clear, too. A connection of
/// whoever does not know that yet counts until it is given up.
#[test]
fn with_the_handshake_first_it_is_called_that_too() {
    let more = "handshake_first: true, timeout: 60";
    let server = server("2.12.8", tls("server-ec", more) + "max_connections: 2\n");
    let url = server.url();
    let call = |words: &[&str]| with_ca(aegis(words).arg("-s").arg(&url));
    let mut first = agent("first", &call);
    first.wait_for_line("registered web/first", secs(10));
    let silent = TcpStream::connect(("127.0.0.1", server.port())).expect("connects");
    for _ in 0..4 {
        let output = call(&["list"]).run().exits(69);
        assert!(output.stderr.contains(OF_SERVER) && output.stderr.contains(HINT), "{output:?}");
    }
    let mut second = agent("second", &call);
    let line = second.wait_for_line("cannot register web/second", secs(5)).text;
    assert!(line.contains(OF_SERVER) && line.contains(HINT), "{line}");
    drop((silent, first));
    second.wait_for_line("registered web/second", secs(10));
}

/// The account's limit is that of its configuration.
#[test]
fn an_account_that_takes_no_more_connections_is_called_that() {
    let password = scratch("account").join("password");
    std::fs::write(&password, "p\n").expect("writes the password");
    let password = password.display().to_string();
    for version in VERSIONS {
        let extra = "accounts { A { jetstream: enabled, users: [ { user: a, password: p } ], \
                     limits: { max_connections: 1 } } }\n";
        let server = server(version, extra.to_owned());
        let url = server.url();
        let call = |words: &[&str]| {
            let call = aegis(words).arg("-s").arg(&url).arg("--user=a");
            call.arg("--password-file").arg(&password)
        };
        one_at_a_time(version, OF_ACCOUNT, &call);
    }
}

/// The account's limit is in the JWT that its operator has signed.
#[test]
fn an_account_whose_jwt_allows_no_more_connections_is_called_that() {
    let operator = Operator::new();
    let creds = scratch("account").join("agent.creds");
    std::fs::write(&creds, operator.creds(1, None)).expect("writes the credentials");
    let creds = creds.display().to_string();
    let server = operator.server_that_takes(1);
    let url = server.url();
    let call = |words: &[&str]| aegis(words).arg("-s").arg(&url).arg("--creds").arg(&creds);
    one_at_a_time("JWT", OF_ACCOUNT, &call);
}

/// The server closes what is too much when the limit comes into force.
#[test]
fn an_agent_that_a_new_limit_shuts_out_says_so_and_comes_back() {
    let mut server = server("2.12.8", String::new());
    let url = server.url();
    let call = |words: &[&str]| aegis(words).arg("-s").arg(&url);
    let mut agents = ["first", "second"].map(|name| {
        let mut agent = agent(name, &call);
        agent.wait_for_line("registered web/", secs(5));
        agent
    });
    server.configure("max_connections: 1\n");
    let out = eventually(secs(5), "one of them is shut out", || {
        let lost = |agent: &Agent| !agent.lines_with("lost web/").is_empty();
        agents.iter().position(lost).ok_or_else(|| "both are well".to_owned())
    });
    let line = agents[out].wait_for_line(OF_SERVER, secs(5)).text;
    assert!(agents[out].is_running(), "{line}");
    server.configure("max_connections: 10\n");
    agents[out].wait_for_line("restored web/", secs(5));
}
