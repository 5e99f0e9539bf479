//! INFO lines of a server in a large cluster, or on a host with hundreds of
//! addresses: up to 64 KiB are read, whenever they come, and more is no NATS
//! server.

use crate::harness::agent::Invocation;
use crate::harness::info::{with_greeting_of, with_later_lines_of};
use crate::harness::proxy::{Greeting, Proxy};
use crate::harness::scene::{REGISTERED, bucket, fill, run, together, verb};
use crate::harness::server::Setup;
use crate::harness::{millis, nothing_happens_for, secs};

const KIB: usize = 1024;
/// What a tool may take of memory, whatever it is greeted with. A build that is
/// not optimised has some MiB of code alone.
const MEMORY_KIB: u64 = 16 * 1024;

/// `list`, `check` and `run` by way of this proxy.
fn works(proxy: &Proxy) {
    let verbs = ["list", "check"].map(|name| verb(name, &proxy.url()));
    for output in together(&verbs) {
        output.exits(0);
    }
    let mut agent = run(&proxy.url()).arg("--verbose").spawn();
    agent.wait_for_line(REGISTERED, secs(5));
    agent.wait_for_lines("heartbeat of", 2, secs(5));
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
    assert!(agent.lines_with("lost").is_empty(), "{}", agent.stderr());
}

#[test]
fn a_greeting_of_up_to_64_kib_is_read() {
    let (server, mut registry) = bucket(Setup::default());
    fill(&mut registry, "host", 3, 0);
    for length in [4_000, 5_000, 20 * KIB, 60 * KIB, 64 * KIB - 100] {
        works(&with_greeting_of(length, server.port()));
    }
}

#[test]
fn a_later_info_line_of_up_to_64_kib_is_read() {
    let (server, mut registry) = bucket(Setup::default());
    fill(&mut registry, "host", 3, 0);
    works(&with_later_lines_of(60 * KIB, server.port()));
}

#[test]
fn a_greeting_of_more_than_64_kib_is_no_nats_server() {
    let (server, _registry) = bucket(Setup::default());
    for length in [70 * KIB, 200 * KIB, 4_000 * KIB] {
        let proxy = with_greeting_of(length, server.port());
        for output in together(&["list", "cleanup"].map(|name| verb(name, &proxy.url()))) {
            let output = output.exits(69);
            assert!(output.stderr.contains("not a NATS server"), "{output:#?}");
            assert!(output.took < secs(7), "{output:#?}");
            assert!(output.peak_kib < MEMORY_KIB, "{output:#?}");
        }
        let check = verb("check", &proxy.url()).run().exits(2);
        assert!(check.stdout.contains("not a NATS server"), "{check:#?}");
    }
}

/// A line without an end, which the timeout would wait for.
#[test]
fn a_greeting_that_does_not_end_is_given_up() {
    let proxy = Proxy::to(9);
    let bytes = [b"INFO {\"server_id\":\"".to_vec(), vec![b'x'; 300 * KIB]].concat();
    proxy.greet(Some(Greeting { bytes, close: false }));
    let list: Invocation = verb("list", &proxy.url()).arg("--timeout=2s");
    let output = list.run().exits(69);
    assert!(output.stderr.contains("not a NATS server"), "{output:#?}");
    assert!(output.took < secs(4) && output.peak_kib < MEMORY_KIB, "{output:#?}");
}

/// An agent that met such a line goes on with it, and with the next server.
#[test]
fn an_agent_outlives_a_line_that_is_too_long() {
    let (server, _registry) = bucket(Setup::default());
    let proxy = with_greeting_of(300 * KIB, server.port());
    let mut agent = run(&proxy.url()).arg("--timeout=1s").spawn();
    agent.wait_for_line("not a NATS server", secs(5));
    nothing_happens_for(millis(1_500));
    assert!(agent.usage().peak_kib < MEMORY_KIB, "{:?}", agent.usage());
    proxy.rewrite(<[u8]>::to_vec);
    agent.wait_for_line(REGISTERED, secs(3));
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
}
