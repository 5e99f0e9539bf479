//! No fault leaves a lie in the registry: one test for each, with what was
//! measured printed. The promises and how they are held against a fault stand
//! in `harness/fault.rs`.

use std::time::Instant;

use serde_json::json;

use crate::harness::agent::aegis;
use crate::harness::fault::{Fault, World, flat, say};
use crate::harness::proxy::{Direction, Flow, Greeting, Proxy};
use crate::harness::registry::Registry;
use crate::harness::server::{Server, Setup};
use crate::harness::{millis, nothing_happens_for, secs};

fn named(name: &str) -> Fault<'_> {
    Fault { name, ..Fault::default() }
}

/// Whoever connects meets `bytes` in place of a server.
fn greeted_with(name: &str, bytes: &[u8], close: bool) {
    let greeting = Greeting { bytes: bytes.to_vec(), close };
    named(name).prove(
        &mut World::of(Server::any()),
        |world| {
            world.proxy.greet(Some(greeting));
            world.proxy.cut();
        },
        |world| {
            // In this order: whoever is let through must not be cut.
            world.proxy.cut();
            world.proxy.greet(None);
        },
    );
}

#[test]
fn refused() {
    named("refused").prove(
        &mut World::of(Server::any()),
        |world| {
            world.proxy.refuse(true);
            world.proxy.cut();
        },
        |world| world.proxy.refuse(false),
    );
}

#[test]
fn silent() {
    greeted_with("silent", b"", false);
}

#[test]
fn garbage_instead_of_info() {
    greeted_with("garbage instead of INFO", b"HTTP/1.1 400 Bad Request\r\n\r\n\0\xff", false);
}

#[test]
fn an_info_of_a_megabyte() {
    let info = [b"INFO {\"server_name\":\"".to_vec(), vec![b'x'; 1 << 20]].concat();
    greeted_with("a 1 MB INFO", &info, false);
}

#[test]
fn closed_in_the_middle_of_a_line() {
    greeted_with("closed mid-line", b"INFO {\"server_id\":\"NA", true);
}

#[test]
fn a_tls_handshake_that_stalls() {
    let info = b"INFO {\"server_id\":\"N\",\"version\":\"2.12.8\",\"proto\":1,\"headers\":true,\
        \"max_payload\":1048576,\"tls_required\":true} \r\n";
    greeted_with("TLS handshake stalled", info, false);
}

/// The connections stand, and nothing passes in either direction.
#[test]
fn a_black_hole_behind_a_proxy() {
    Fault { under_way: 2, ..named("black hole (proxy)") }.prove(
        &mut World::of(Server::any()),
        |world| world.proxy.set(Flow::Hold),
        |world| world.proxy.set(Flow::Forward),
    );
}

#[test]
fn acknowledgements_are_lost() {
    Fault { under_way: 1, ..named("one-way loss, to the agent (proxy)") }.prove(
        &mut World::of(Server::any()),
        |world| world.proxy.set_one(Direction::ToClient, Flow::Discard),
        |world| world.proxy.set_one(Direction::ToClient, Flow::Forward),
    );
}

#[test]
fn heartbeats_are_lost() {
    named("one-way loss, to the server (proxy)").prove(
        &mut World::of(Server::any()),
        |world| world.proxy.set_one(Direction::ToServer, Flow::Discard),
        |world| world.proxy.set_one(Direction::ToServer, Flow::Forward),
    );
}

#[test]
fn frozen() {
    let mut world = World::of(Server::any());
    let url = Some(world.server.url());
    Fault { under_way: 2, url, ..named("frozen") }.prove(
        &mut world,
        |world| world.server.freeze(),
        |world| world.server.thaw(),
    );
}

#[test]
fn killed() {
    let mut world = World::of(Server::any());
    let url = Some(world.server.url());
    Fault { url, ..named("killed") }.prove(
        &mut world,
        |world| world.server.kill(),
        |world| {
            world.server.start_again();
            world.registry.reconnect();
        },
    );
}

#[test]
fn restarted_with_an_empty_store() {
    let mut world = World::of(Server::any());
    let url = Some(world.server.url());
    Fault { url, keeps: false, ..named("restarted with an empty store") }.prove(
        &mut world,
        |world| world.server.kill(),
        |world| world.server.restart_empty(),
    );
}

#[test]
fn the_bucket_deleted() {
    Fault { keeps: false, ..named("bucket deleted, nobody creates it") }.prove(
        &mut World::of(Server::any()),
        |world| {
            world.registry.delete();
        },
        |_| (),
    );
}

/// "A full bucket refuses even a refresh of the same size"
#[test]
fn the_bucket_is_full() {
    let mut world = World::of(Server::any());
    world.registry.update(&json!({ "max_bytes": 20_000 }));
    // Room for a heartbeat comes and goes as entries expire.
    Fault { flaps: true, ..named("bucket full") }.prove(
        &mut world,
        |world| {
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
        },
        |world| world.registry.purge("filler.>"),
    );
}

#[test]
fn the_login_is_withdrawn_and_given_back() {
    let users = "no_auth_user: tests\nauthorization { users: [\
        { user: agent, password: \"right\" }, { user: tests, password: tests } ] }\n";
    let server = Server::with(Setup { extra: users.to_owned(), ..Setup::default() });
    let environment = [("NATS_USER", "agent"), ("NATS_PASSWORD", "right")];
    let environment = environment.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec();
    Fault { environment, ..named("login expired") }.prove(
        &mut World::of(server),
        |world| world.server.reconfigure("\"right\"", "\"other\""),
        |world| world.server.reconfigure("\"other\"", "\"right\""),
    );
}

#[test]
fn cut_in_the_middle_of_a_heartbeat() {
    named("cut mid-request").prove(
        &mut World::of(Server::any()),
        |world| world.proxy.cut_after(Direction::ToServer, 60),
        |_| (),
    );
}

/// The heartbeat is stored; the agent does not know, and finds its own.
#[test]
fn cut_in_the_middle_of_an_acknowledgement() {
    named("cut mid-reply").prove(
        &mut World::of(Server::any()),
        |world| world.proxy.cut_after(Direction::ToClient, 15),
        |_| (),
    );
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
    nothing_happens_for(millis(3_300));
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
