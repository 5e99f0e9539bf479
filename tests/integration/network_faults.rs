//! Faults that only a network can have: packets that are lost without a word,
//! names that cannot be looked up. Need root; skipped aloud without.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde_json::json;

use crate::harness::agent::aegis;
use crate::harness::fault::{Fault, World, duration, now, say};
use crate::harness::network::{Names, Network, SERVER, Says};
use crate::harness::proxy::Proxy;
use crate::harness::registry::Registry;
use crate::harness::server::{Server, Setup};
use crate::harness::{eventually, free_port, millis, secs, time_passes};

fn server() -> Server {
    Server::with(Setup { host: "0.0.0.0", ..Setup::default() })
}

/// Loses what comes from `sides`, for so long.
fn packets_lost(name: &str, sides: &[&str], outage: Duration) {
    let Some(mut network) = Network::enter() else { return };
    let mut world = World::of(server());
    let fault = Fault {
        name,
        // The server's socket has it, or the router has lost it.
        under_way: usize::from(sides == ["server"]),
        url: Some(format!("nats://{SERVER}:{}", world.server.port())),
        wrapper: network.client(),
        outage,
        ..Fault::default()
    };
    let network = std::cell::RefCell::new(&mut network);
    fault.prove(
        &mut world,
        |_| sides.iter().for_each(|side| network.borrow_mut().lose(side)),
        |_| sides.iter().for_each(|side| network.borrow_mut().pass(side)),
    );
}

#[test]
fn packets_are_lost() {
    packets_lost("packets lost (network)", &["client", "server"], millis(1_900));
}

#[test]
fn packets_to_the_server_are_lost() {
    packets_lost("one-way loss, to the server (network)", &["client"], millis(1_900));
}

#[test]
fn packets_from_the_server_are_lost() {
    packets_lost("one-way loss, to the agent (network)", &["server"], millis(1_900));
}

/// Long enough for TCP to wait for 6 s between two attempts of its own.
#[test]
fn packets_are_lost_for_long() {
    packets_lost("packets lost (network)", &["client", "server"], millis(7_300));
}

#[test]
fn a_heartbeat_that_the_network_did_not_take_dies_with_its_agent() {
    let Some(mut network) = Network::enter() else { return };
    let server = server();
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({}));
    let watch = registry.watch(">");
    let url = format!("nats://{SERVER}:{}", server.port());
    let mut agent =
        aegis(&["run", "--service=faults", "--instance=kept", "--ttl=3s", "--interval=300ms"])
            .arg("-s")
            .arg(&url)
            .wrapped(&network.client())
            .spawn();
    watch.wait_for(3, secs(5));
    network.lose("client");
    // Its next heartbeat waits for TCP to try again.
    time_passes(millis(500));
    agent.signal("KILL");
    let killed = now();
    agent.wait_exit(secs(2));
    network.pass("client");
    let key = "service-instances__faults__kept";
    eventually(secs(4), "P3: it is gone within TTL + 1 s", || match registry.last(key) {
        None => Ok(()),
        Some(entry) => Err(format!("{entry:?}")),
    });
    let gone = duration(now() - killed);
    assert!(watch.seen().iter().all(|entry| entry.stored < killed), "{:?}", watch.seen());
    say(&format!(
        "fault: SIGKILL while packets are lost; nothing delivered after it, gone in {:.2} s of TTL 3 s",
        gone.as_secs_f64()
    ));
}

/// The server is away, its name cannot be looked up, and it comes back at
/// another address.
fn another_address(name: &str, address: Ipv4Addr, says: Says) {
    let at = |last: u8| Ipv4Addr::new(127, address.octets()[1], 1, last);
    let Some(names) = Names::served_at(address, Says::Address(at(1))) else { return };
    let mut world = World::of(Server::any());
    let port = free_port();
    let old = Proxy::listening(SocketAddr::from((at(1), port)), world.server.port());
    let new = Proxy::listening(SocketAddr::from((at(2), port)), world.server.port());
    let fault = Fault {
        name,
        url: Some(format!("nats://nats.test:{port}")),
        wrapper: names.client(),
        ..Fault::default()
    };
    fault.prove(
        &mut world,
        |_| {
            names.say(says);
            old.refuse(true);
            old.cut();
        },
        |_| names.say(Says::Address(at(2))),
    );
    assert!(new.accepted() > 0);
}

#[test]
fn names_fail_and_the_server_has_another_address() {
    another_address("DNS failing, another address", Ipv4Addr::new(127, 78, 0, 53), Says::Failure);
}

#[test]
fn the_name_server_is_silent_and_the_server_has_another_address() {
    another_address("DNS silent, another address", Ipv4Addr::new(127, 79, 0, 53), Says::Nothing);
}
