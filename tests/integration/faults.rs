//! No fault leaves a lie in the registry: one test for each, with what was
//! measured printed. The faults are those of `harness/strike.rs`; the promises, and
//! how they are held against a fault, stand in `harness/fault.rs`.

use std::time::Instant;

use serde_json::json;

use crate::harness::agent::aegis;
use crate::harness::fault::{Fault, flat, say};
use crate::harness::proxy::{Direction, Greeting, Proxy};
use crate::harness::registry::Registry;
use crate::harness::server::{Server, Setup};
use crate::harness::strike::{Phase, Strike};
use crate::harness::{millis, nothing_happens_for, secs, time_passes};

fn prove(fault: impl Into<Fault>) {
    fault.into().prove();
}

/// Under which so many heartbeats of each agent are still on their way.
fn with(under_way: usize, strike: Strike) -> Fault {
    Fault { under_way, ..strike.into() }
}

#[test]
fn refused() {
    prove(Strike::refused());
}

#[test]
fn silent() {
    prove(Strike::silent());
}

#[test]
fn garbage_instead_of_info() {
    prove(Strike::garbage_instead_of_info());
}

#[test]
fn an_info_of_a_megabyte() {
    prove(Strike::an_info_of_a_megabyte());
}

#[test]
fn closed_in_the_middle_of_a_line() {
    prove(Strike::closed_in_the_middle_of_a_line());
}

#[test]
fn a_tls_handshake_that_stalls() {
    prove(Strike::a_tls_handshake_that_stalls());
}

#[test]
fn a_black_hole_behind_a_proxy() {
    prove(with(2, Strike::a_black_hole()));
}

#[test]
fn acknowledgements_are_lost() {
    prove(with(1, Strike::one_way_loss(Direction::ToClient)));
}

#[test]
fn heartbeats_are_lost() {
    prove(Strike::one_way_loss(Direction::ToServer));
}

#[test]
fn frozen() {
    prove(with(2, Strike::frozen()));
}

#[test]
fn killed() {
    prove(Strike::killed());
}

#[test]
fn restarted_with_an_empty_store() {
    prove(Strike::restarted_with_an_empty_store());
}

#[test]
fn the_bucket_deleted() {
    prove(Strike::the_bucket_deleted());
}

/// "A full bucket refuses even a refresh of the same size"
#[test]
fn the_bucket_is_full() {
    let mut strike = Strike::new("bucket full", |world, phase| match phase {
        Phase::Begins => {
            let subject = b"$KV.service_registry.filler";
            for size in [1_000, 100, 1] {
                let fill = |n| ([&subject[..], format!(".{size}.{n}").as_bytes()].concat(), size);
                for (subject, size) in (0..100).map(fill) {
                    let reply = world.registry.client.try_request(&subject, b"", &vec![b'x'; size]);
                    let reply = reply.expect("it answers");
                    if String::from_utf8_lossy(&reply.payload).contains("10077") {
                        break;
                    }
                }
            }
        }
        Phase::Ends => world.registry.purge("filler.>"),
    });
    strike.world.registry.update(&json!({ "max_bytes": 20_000 }));
    // Room for a heartbeat comes and goes as entries expire.
    prove(Fault { flaps: true, ..strike.into() });
}

#[test]
fn the_login_is_withdrawn_and_given_back() {
    prove(Strike::the_login_is_withdrawn());
}

#[test]
fn cut_in_the_middle_of_a_heartbeat() {
    prove(Strike::cut_after("cut mid-request", Direction::ToServer, 60));
}

/// The heartbeat is stored; the agent does not know, and finds its own.
#[test]
fn cut_in_the_middle_of_an_acknowledgement() {
    prove(Strike::cut_after("cut mid-reply", Direction::ToClient, 15));
}

#[test]
fn a_server_that_is_absent_at_first() {
    let mut server = Server::absent(Setup::default());
    let mut agent =
        aegis(&["run", "--service=faults", "--instance=kept", "-s", &server.url()]).spawn();
    agent.wait_for_line("cannot register", secs(3));
    nothing_happens_for(secs(3));
    assert_eq!(agent.lines().len(), 1, "said once: {}", agent.stderr());
    server.start_again();
    let ready = Instant::now();
    let line = agent.wait_for_line("registered faults/kept in bucket", secs(3));
    let took = line.at.saturating_duration_since(ready);
    say(&format!("fault: absent at first; registered {:.2} s after it came", took.as_secs_f64()));
    agent.signal("TERM");
    let told = Instant::now();
    assert_eq!(agent.wait_exit(secs(2)), 0);
    assert!(told.elapsed() < millis(500), "{:?}", told.elapsed());
}

/// Nothing is lost, so nothing may be said to be.
#[test]
fn a_server_that_takes_2_s_for_each_reply() {
    let server = Server::any();
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({}));
    let proxy = Proxy::to(server.port());
    proxy.delay_one(Direction::ToClient, secs(2));
    let watch = registry.watch(">");
    let mut agent = aegis(&[
        "run",
        "--service=faults",
        "--instance=kept",
        "--ttl=10s",
        "--interval=3s",
        "-s",
        &proxy.url(),
    ])
    .spawn();
    // Greeting; greeting again, login and its confirmation; bucket; entry;
    // heartbeat: 14 s.
    agent.wait_for_line("registered faults/kept in bucket", secs(25));
    let took = agent.started.elapsed();
    watch.wait_for(3, secs(12));
    assert_eq!(agent.lines().len(), 1, "never in doubt: {}", agent.stderr());
    agent.signal("TERM");
    let told = Instant::now();
    assert_eq!(agent.wait_exit(secs(8)), 0);
    let stopped = told.elapsed();
    assert!(stopped < secs(6), "P4: {stopped:?}");
    say(&format!(
        "fault: slow (2 s per reply); registered in {:.1} s, then no heartbeat missed; SIGTERM in {:.1} s",
        took.as_secs_f64(),
        stopped.as_secs_f64()
    ));
}

/// Whoever comes after servers that hang need not wait for them.
#[test]
fn the_first_servers_of_the_list_hang() {
    let server = Server::any();
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({}));
    let hanging: Vec<Proxy> = (0..3).map(|_| Proxy::to(server.port())).collect();
    for proxy in &hanging {
        proxy.greet(Some(Greeting { bytes: Vec::new(), close: false }));
    }
    let last = Proxy::to(server.port());
    let urls: Vec<String> = hanging.iter().chain([&last]).map(Proxy::url).collect();
    let mut agent =
        aegis(&["run", "--service=faults", "--instance=kept", "-s", &urls.join(",")]).spawn();
    agent.wait_for_line("registered faults/kept in bucket", millis(1_500));
    let first = agent.started.elapsed();
    let before = agent.usage();
    last.refuse(true);
    last.cut();
    agent.wait_for_line("lost faults/kept", secs(12));
    time_passes(millis(3_300));
    last.refuse(false);
    let ready = Instant::now();
    let line = agent.wait_for_line("restored faults/kept", secs(3));
    let took = line.at.saturating_duration_since(ready);
    flat(&agent, (before.threads, before.descriptors));
    say(&format!(
        "fault: three of four servers hang; registered in {:.2} s, back {:.2} s after the fourth",
        first.as_secs_f64(),
        took.as_secs_f64()
    ));
}
