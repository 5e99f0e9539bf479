//! Faults that only a network can have: packets that are lost without a word,
//! names that cannot be looked up. Need root; skipped aloud without.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::json;

use crate::harness::agent::aegis;
use crate::harness::fault::{Fault, OUTAGE, duration, now, say};
use crate::harness::network::{Network, SERVER, Says};
use crate::harness::registry::Registry;
use crate::harness::server::{Server, Setup};
use crate::harness::strike::Strike;
use crate::harness::{eventually, millis, secs, time_passes};

fn packets_lost(sides: &'static [&'static str], under_way: usize, outage: Duration) {
    if let Some(strike) = Strike::packets_lost(sides) {
        Fault { under_way, outage, ..strike.into() }.prove();
    }
}

/// The outage is over before the agent gives up its session, and TCP may try again
/// before that: then the heartbeat that is under way comes through.
#[test]
fn packets_are_lost() {
    packets_lost(&["client", "server"], 1, OUTAGE);
}

#[test]
fn packets_to_the_server_are_lost() {
    packets_lost(&["client"], 1, OUTAGE);
}

/// The server's socket has the heartbeats.
#[test]
fn packets_from_the_server_are_lost() {
    packets_lost(&["server"], 1, OUTAGE);
}

/// Long enough for TCP to wait for 6 s between two attempts of its own.
#[test]
fn packets_are_lost_for_long() {
    packets_lost(&["client", "server"], 0, millis(7_300));
}

#[test]
fn a_heartbeat_that_the_network_did_not_take_dies_with_its_agent() {
    let Some(mut network) = Network::enter() else { return };
    let server = Server::with(Setup { host: "0.0.0.0", ..Setup::default() });
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

fn another_address(name_server: u8, says: Says) {
    let at = Ipv4Addr::new(127, name_server, 0, 53);
    Strike::another_address(at, says, |strike| Fault::from(strike).prove());
}

#[test]
fn names_fail_and_the_server_has_another_address() {
    another_address(78, Says::Failure);
}

#[test]
fn the_name_server_is_silent_and_the_server_has_another_address() {
    another_address(79, Says::Nothing);
}
