//! Names and addresses of servers: many addresses of one name, names that hang
//! beside one that does not, IPv6 alone. Names of one's own need root; where
//! that is missing it is said aloud.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::harness::agent::Invocation;
use crate::harness::network::{Names, Says};
use crate::harness::proxy::{Greeting, Proxy};
use crate::harness::scene::{REGISTERED, bucket, run, verb};
use crate::harness::server::Setup;
use crate::harness::{free_port, secs};

/// `list` and `run` find the server of this URL, and soon.
fn found(url: &str, within: Duration, wrapped: &dyn Fn(Invocation) -> Invocation) {
    let output = wrapped(verb("list", url)).run().exits(0);
    assert!(output.took < within, "{output:#?}");
    let mut agent = wrapped(run(url)).spawn();
    let line = agent.wait_for_line(REGISTERED, within);
    let took = line.at.saturating_duration_since(agent.started);
    assert!(took < within, "registered after {took:?}");
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
}

fn at(network: u8, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, network, 1, last)
}

/// "a name with any number of addresses (only the first eight are tried today)"
#[test]
fn of_twenty_addresses_of_a_name_the_last_is_tried_too() {
    let says = Says::Addresses(at(81, 1), 20);
    let Some(names) = Names::served_at(at(81, 53), says) else { return };
    let (server, _registry) = bucket(Setup::default());
    let port = free_port();
    let last = SocketAddr::from((at(81, 20), port));
    let _proxy = Proxy::listening(last, server.port());
    let wrapper = names.client();
    found(&format!("nats://nats.test:{port}"), secs(3), &|i| i.wrapped(&wrapper));
}

/// The first ones accept and say nothing: they must not be waited for one
/// after the other.
#[test]
fn of_twenty_addresses_of_a_name_some_may_hang() {
    let says = Says::Addresses(at(82, 1), 20);
    let Some(names) = Names::served_at(at(82, 53), says) else { return };
    let (server, _registry) = bucket(Setup::default());
    let port = free_port();
    let silent: Vec<Proxy> = (1..=4)
        .map(|last| {
            let proxy = Proxy::listening(SocketAddr::from((at(82, last), port)), 9);
            proxy.greet(Some(Greeting { bytes: Vec::new(), close: false }));
            proxy
        })
        .collect();
    let _proxy = Proxy::listening(SocketAddr::from((at(82, 20), port)), server.port());
    let wrapper = names.client();
    found(&format!("nats://nats.test:{port}"), secs(6), &|i| i.wrapped(&wrapper));
    assert!(silent.iter().any(|proxy| proxy.accepted() > 0), "none of them was tried");
}

#[test]
fn names_that_hang_do_not_hold_up_one_that_does_not() {
    let Some(names) = Names::served_at(at(83, 53), Says::Nothing) else { return };
    let (server, _registry) = bucket(Setup::default());
    names.say_of("good.test", Says::Address(at(83, 1)));
    let port = free_port();
    let _proxy = Proxy::listening(SocketAddr::from((at(83, 1), port)), server.port());
    let wrapper = names.client();
    for hanging in [1, 3, 12] {
        let mut urls: Vec<String> =
            (0..hanging).map(|n| format!("nats://hangs{n}.test:{port}")).collect();
        urls.push(format!("nats://good.test:{port}"));
        found(&urls.join(","), secs(3), &|i| i.wrapped(&wrapper));
    }
}

/// An address needs no look-up, and waits for none.
#[test]
fn names_that_hang_do_not_hold_up_an_address() {
    let Some(names) = Names::served_at(at(84, 53), Says::Nothing) else { return };
    let (server, _registry) = bucket(Setup::default());
    let wrapper = names.client();
    let urls: Vec<String> = (0..12).map(|n| format!("nats://hangs{n}.test:4222")).collect();
    let urls = format!("{},{}", urls.join(","), server.url());
    found(&urls, secs(3), &|i| i.wrapped(&wrapper));
}

#[test]
fn a_server_that_has_ipv6_alone_is_found_by_its_address() {
    let (server, _registry) = bucket(Setup::default());
    let address = SocketAddr::from((Ipv6Addr::LOCALHOST, free_port()));
    let proxy = Proxy::listening(address, server.port());
    assert!(proxy.url().contains("[::1]"), "{}", proxy.url());
    found(&proxy.url(), secs(3), &|invocation| invocation);
}

#[test]
fn a_server_that_has_ipv6_alone_is_found_by_its_name() {
    let says = Says::Address6(Ipv6Addr::LOCALHOST);
    let Some(names) = Names::served_at(at(85, 53), says) else { return };
    let (server, _registry) = bucket(Setup::default());
    let port = free_port();
    let address = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port);
    let _proxy = Proxy::listening(address, server.port());
    let wrapper = names.client();
    found(&format!("nats://nats.test:{port}"), secs(3), &|i| i.wrapped(&wrapper));
}
