//! Servers that talk without end, as fast as they are listened to or word by
//! word: before there is a session, in one, and in the place of a reply. What
//! arrives must not push a deadline out, and must not be kept.

use std::io::Write;
use std::time::Duration;

use serde_json::json;

use crate::harness::agent::{Invocation, Output};
use crate::harness::fault::say;
use crate::harness::hostile::{Asked, Hostile, Pace, Stage, info, msg};
use crate::harness::scene::{KEY, REGISTERED, record, run, together, verb};
use crate::harness::{eventually, millis, secs};

const TIMEOUT: Duration = millis(500);
/// What ends them is the first step that gets no answer.
const BOUND: Duration = secs(2).saturating_add(TIMEOUT);
const MEMORY_KIB: u64 = 16 * 1024;

const TOOLS: [&str; 3] = ["list", "check", "cleanup"];

/// So many of the first of `KINDS`.
const TEMPTING: usize = 4;

type Words = fn(&str, &str) -> Vec<u8>;

/// First those of which a client may be tempted to keep something.
const KINDS: &[(&str, Words)] = &[
    ("PING", |_, _| b"PING\r\n".to_vec()),
    ("-ERR", |_, _| b"-ERR 'Permissions Violation for Publish to \"a.b\"'\r\n".to_vec()),
    ("messages for our inbox", |inbox, id| {
        format!(
            "MSG {inbox} {id} 5\r\nhello\r\nHMSG {inbox} {id} 12 17\r\nNATS/1.0\r\n\r\nhello\r\n"
        )
        .into_bytes()
    }),
    ("INFO lines", |_, _| {
        let mut info = info(4222);
        info["connect_urls"] = json!(["127.0.0.1:9", "127.0.0.2:9"]);
        format!("INFO {info}\r\n").into_bytes()
    }),
    ("+OK", |_, _| b"+OK\r\n".to_vec()),
    ("PONG", |_, _| b"PONG\r\n".to_vec()),
    ("messages for nobody", |_, _| b"MSG nobody 77 2\r\nhi\r\n".to_vec()),
    ("signs of life of a pull", |inbox, id| {
        let status = "NATS/1.0 100 Idle Heartbeat\r\n\r\n";
        let size = status.len();
        format!("HMSG {inbox} {id} {size} {size}\r\n{status}\r\n").into_bytes()
    }),
    ("empty lines", |_, _| b"\r\n".to_vec()),
];

fn ends(tool: &str, server: &Hostile) -> Invocation {
    let timeout = format!("{}ms", TIMEOUT.as_millis());
    verb(tool, &server.url()).arg("--timeout").arg(&timeout).within(secs(30))
}

/// It ended within its timeout and 2 s, with words, and in little memory.
fn ended(output: &Output, what: &str) {
    assert!(output.code > 0, "{what}: {output:#?}");
    assert!(output.took < BOUND, "{what}: {output:#?}");
    assert!(output.peak_kib < MEMORY_KIB, "{what}: {output:#?}");
    let said = output.stderr.len() + output.stdout.len();
    assert!(said < 4_000, "{what}: {output:#?}");
}

fn tools_end(stage: Stage) {
    for (place, (name, words)) in KINDS.iter().enumerate() {
        // One after the other, since an endless writer takes a processor, and
        // each with another tool at another stage.
        let tool = TOOLS[(place + stage as usize + 2) % TOOLS.len()];
        let server = Hostile::chatting(stage, Pace::Flood, words);
        let output = ends(tool, &server).run();
        ended(&output, &format!("{tool}, a flood of {name}, {stage:?}"));
    }
    let cases: Vec<_> = KINDS.iter().flat_map(|kind| TOOLS.map(|tool| (kind, tool))).collect();
    let servers: Vec<Hostile> =
        cases.iter().map(|(kind, _)| Hostile::chatting(stage, Pace::Drip, kind.1)).collect();
    let runs: Vec<Invocation> =
        cases.iter().zip(&servers).map(|((_, tool), server)| ends(tool, server)).collect();
    for (output, (kind, tool)) in together(&runs).iter().zip(cases) {
        ended(output, &format!("{tool}, {} one by one, {stage:?}", kind.0));
    }
}

#[test]
fn tools_end_when_a_server_talks_without_end_after_its_greeting() {
    tools_end(Stage::Greeted);
}

#[test]
fn tools_end_when_a_server_talks_without_end_after_its_pong() {
    tools_end(Stage::Connected);
}

#[test]
fn tools_end_when_a_server_talks_without_end_in_the_place_of_a_reply() {
    tools_end(Stage::Asked);
}

#[test]
fn tools_end_when_a_server_talks_without_end_in_the_place_of_the_entries() {
    tools_end(Stage::Pulled);
}

/// What is answered in time is found among what is not asked for.
#[test]
fn tools_do_their_work_beside_a_server_that_talks_without_end() {
    for (place, (name, words)) in KINDS.iter().enumerate() {
        let tool = TOOLS[place % TOOLS.len()];
        let server = Hostile::chatting(Stage::Connected, Pace::Beside, words);
        let output = verb(tool, &server.url()).arg("--timeout=3s").run();
        assert!(output.code < 2, "{tool}, {name}: {output:#?}");
        assert!(output.peak_kib < MEMORY_KIB, "{tool}, {name}: {output:#?}");
    }
}

/// The scan is answered and no purge is: what arrives meanwhile puts the end of
/// that wait off no more than any other.
#[test]
fn cleanup_ends_when_no_purge_is_answered_and_the_server_talks_without_end() {
    let stale = |asked: &Asked, out: &mut dyn Write| {
        let subject = format!("$KV.service_registry.{KEY}");
        msg(out, &subject, &asked.ack(1, 0), record("host-1", 600).as_bytes())
    };
    let is_pull = |asked: &Asked| asked.is("$JS.API.CONSUMER.MSG.NEXT.");
    let is_purge = |asked: &Asked| asked.is("$JS.API.STREAM.PURGE.");
    let fails = |output: &Output, what: &str| {
        ended(output, what);
        assert!([69, 75].contains(&output.code), "{what}: {output:#?}");
        assert!(output.stderr.contains("no answer in time"), "{what}: {output:#?}");
    };
    let beside = KINDS.iter().map(|(_, words)| {
        Hostile::talkative(words, move |asked, out| match is_pull(asked) {
            true => stale(asked, out),
            false => is_purge(asked).then_some(()),
        })
    });
    let beside: Vec<Hostile> = beside.collect();
    let runs: Vec<Invocation> = beside.iter().map(|server| ends("cleanup", server)).collect();
    for (output, (name, _)) in together(&runs).iter().zip(KINDS) {
        fails(output, &format!("cleanup beside {name}"));
    }
    // As fast as it is listened to, in the place of the reply.
    for (name, words) in &KINDS[..TEMPTING] {
        let server = Hostile::start(move |asked, out| {
            if is_pull(asked) {
                return stale(asked, out);
            }
            is_purge(asked).then_some(())?;
            let words = words("_INBOX.x", "1").repeat(1_000);
            while out.write_all(&words).is_ok() {}
            Some(())
        });
        fails(&ends("cleanup", &server).run(), &format!("cleanup, a flood of {name}"));
    }
}

/// An agent that meets this goes on trying, stays small, says little, and
/// leaves when it is told to.
fn agents_live(stage: Stage) {
    for (name, words) in &KINDS[..TEMPTING] {
        let server = Hostile::chatting(stage, Pace::Flood, words);
        let mut agent = run(&server.url()).arg("--timeout=300ms").spawn();
        eventually(secs(15), "a second session", || match server.connections() {
            2.. => Ok(()),
            count => Err(format!("{count} connections, {stage:?}, {name}: {}", agent.stderr())),
        });
        let usage = agent.usage();
        assert!(usage.peak_kib < MEMORY_KIB, "{stage:?}, {name}: {usage:?}");
        assert!(agent.lines().len() < 6, "{stage:?}, {name}: {}", agent.stderr());
        agent.signal("TERM");
        assert_eq!(agent.wait_exit(secs(3)), 0, "{stage:?}, {name}: {}", agent.stderr());
    }
}

#[test]
fn agents_stay_small_when_a_server_talks_without_end_after_its_greeting() {
    agents_live(Stage::Greeted);
}

#[test]
fn agents_stay_small_when_a_server_talks_without_end_after_its_pong() {
    agents_live(Stage::Connected);
}

#[test]
fn agents_stay_small_when_a_server_talks_without_end_in_the_place_of_a_reply() {
    agents_live(Stage::Asked);
}

/// It was told off by one server and finds the next.
#[test]
fn an_agent_registers_once_the_server_stops_talking() {
    let server = Hostile::chatting(Stage::Connected, Pace::Flood, KINDS[0].1);
    let mut agent = run(&server.url()).arg("--timeout=300ms").spawn();
    eventually(secs(10), "a second session", || match server.connections() {
        2.. => Ok(()),
        count => Err(format!("{count} connections: {}", agent.stderr())),
    });
    server.behave();
    let line = agent.wait_for_line(REGISTERED, secs(5));
    say(&format!("endless PINGs: registered afterwards: {}", line.text));
}
