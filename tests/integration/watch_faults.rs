//! `watch` under each fault of the outage matrix: what it told against what
//! really happened.
//!
//! While the fault lasts one agent goes on, one is killed, one is asked to stop,
//! and one is started. Whoever goes on is never called down; whoever is gone is
//! called down once, within TTL + 1 s of its last heartbeat or 2 s after the
//! watcher is back; whoever has come is told once.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::agent::{Agent, aegis};
use crate::harness::cluster::Cluster;
use crate::harness::fault::{World, duration, say};
use crate::harness::host_clocks::HostClocks;
use crate::harness::network::{Names, Network, SERVER, Says};
use crate::harness::proxy::{Direction, Flow, Greeting, Proxy};
use crate::harness::registry::{Registry, Watch};
use crate::harness::scene::key;
use crate::harness::server::{Server, Setup};
use crate::harness::watcher::{Watcher, words};
use crate::harness::{eventually, free_port, millis, nothing_happens_for, secs, time_passes};

/// Longer than the TTL of those that go, and than the silence that a watcher
/// doubts; shorter than what an agent that stays can bear.
const OUTAGE: Duration = millis(3_400);
const SHORT: u64 = 2;
const LONG: u64 = 9;
/// Back within 3 s of a server being reachable, and the 1.5 s that agents are
/// given to be back as well; and who is gone is told 2 s after that.
const BACK: Duration = millis(4_500);
const GRACE: Duration = secs(2);
/// For the way of a line, on a busy machine.
const HEARD: Duration = millis(400);

fn agent(url: &str, instance: &str, ttl: u64) -> Agent {
    let (name, ttl) = (format!("--instance={instance}"), format!("--ttl={ttl}s"));
    aegis(&["run", "--service=orders-api", &name, &ttl, "--interval=500ms", "-s", url]).spawn()
}

/// A fault, and what may be said of it.
struct Case<'a> {
    name: &'a str,
    /// The watcher's servers; the proxy where nothing is said.
    url: Option<String>,
    environment: Vec<(&'a str, &'a str)>,
    wrapper: Vec<String>,
    outage: Duration,
    /// Nothing that was stored outlives it: whoever stays may be told anew.
    empties: bool,
    /// Whether the watcher has to say that it knows nothing.
    is_felt: bool,
    /// It is over at once, of itself.
    passes: bool,
}

fn named(name: &str) -> Case<'_> {
    Case {
        name,
        url: None,
        environment: Vec::new(),
        wrapper: Vec::new(),
        outage: OUTAGE,
        empties: false,
        is_felt: true,
        passes: false,
    }
}

impl Case<'_> {
    fn prove(
        &self,
        world: &mut World,
        begin: impl FnOnce(&mut World),
        end: impl FnOnce(&mut World),
    ) {
        let direct = world.server.url();
        let mut record = world.registry.watch(">");
        let _stays = agent(&direct, "stays", LONG);
        let [mut dies, leaves] = ["dies", "leaves"].map(|name| agent(&direct, name, SHORT));
        let url = self.url.clone().unwrap_or_else(|| world.proxy.url());
        let mut watch = aegis(&["watch", "--json", "-s", &url]).wrapped(&self.wrapper);
        for (name, value) in &self.environment {
            watch = watch.env(name, value);
        }
        let mut watcher = Watcher::spawn(&watch);
        watcher.wait_for("synced", secs(5));
        for name in ["up stays", "up dies", "up leaves"] {
            watcher.wait_for(name, secs(5));
        }

        let began = Instant::now();
        begin(world);
        time_passes(millis(300));
        dies.signal("KILL");
        dies.wait_exit(secs(2));
        leaves.signal("TERM");
        let _comes = agent(&direct, "comes", LONG);
        time_passes(self.outage.saturating_sub(began.elapsed()));
        end(world);
        let outage = began.elapsed();
        let ended = if self.passes { began } else { Instant::now() };
        if self.empties {
            eventually(BACK, "the bucket is there", || {
                world.registry.reconnect();
                world.registry.info()
            });
            record = Watch::from_the_start(&direct);
        }
        let all = ["down dies", "down leaves", "up comes"];
        eventually(BACK + GRACE + secs(SHORT + 1), "all that happened is told", || {
            let told = watcher.words();
            let is_told = |wanted: &&str| told.iter().any(|word| word.starts_with(wanted));
            if all.iter().all(is_told) { Ok(()) } else { Err(told.join(", ")) }
        });
        // And nothing of it twice.
        nothing_happens_for(millis(2_500));
        self.judge(&watcher, &record, (began, ended), outage);
        watcher.stop();
    }

    fn judge(&self, watcher: &Watcher, record: &Watch, span: (Instant, Instant), outage: Duration) {
        let (began, ended) = span;
        let told = watcher.told();
        let of = |instance: &str| -> Vec<(Instant, String)> {
            let of = told.iter().filter(|(_, event)| event["instanceId"] == instance);
            of.map(|(at, event)| (*at, event["event"].as_str().unwrap_or_default().to_owned()))
                .collect()
        };
        let events = |instance: &str| -> Vec<String> {
            of(instance).into_iter().map(|(_, event)| event).collect()
        };
        let first = |word: &str, after: Instant| {
            told.iter().find(|(at, event)| words(event) == word && *at >= after).map(|(at, _)| *at)
        };
        match self.empties {
            false => assert_eq!(events("stays"), ["up"], "{}: never away", self.name),
            true => assert_eq!(events("stays").last().map(String::as_str), Some("up")),
        }
        assert_eq!(events("comes"), ["up"], "{}", self.name);
        let lost = first("lost", began);
        // What passes begins with the next message.
        let ended = if self.passes { lost.unwrap_or(ended) } else { ended };
        let synced = first("synced", lost.unwrap_or(began).max(ended));
        assert_eq!(lost.is_some(), self.is_felt, "{}: whether it said lost", self.name);
        let back = synced.map(|at| at.saturating_duration_since(ended));
        if self.is_felt {
            let back = back.unwrap_or_else(|| panic!("{}: not synced again", self.name));
            assert!(back < BACK + HEARD, "{}: back after {back:?}", self.name);
        }
        let mut latest = Duration::ZERO;
        for instance in ["dies", "leaves"] {
            assert_eq!(events(instance), ["up", "down"], "{}: {instance}", self.name);
            let at = of(instance)[1].0;
            let seen = record.seen();
            let last = seen.iter().rfind(|one| one.key() == key(instance) && !one.is_marker());
            // By the time at which the server stored it, which is ours.
            let age = last.map(|last| duration(crate::harness::time::now() - last.stored));
            let due = age.map(|age| Instant::now() - age + secs(SHORT + 1) + HEARD);
            let late = at.saturating_duration_since(ended);
            let in_time = due.is_some_and(|due| at <= due);
            let grace = back.unwrap_or_default() + GRACE + HEARD;
            assert!(in_time || late < grace, "{}: {instance} told {late:?} after it", self.name);
            latest = latest.max(late);
        }
        say(&format!(
            "watch: {}, {:.1} s; {}; all that went told {:.2} s after it at the latest",
            self.name,
            outage.as_secs_f64(),
            match (lost, back) {
                (Some(at), Some(back)) => format!(
                    "lost said after {:.2} s, synced {:.2} s after its end",
                    (at - began).as_secs_f64(),
                    back.as_secs_f64()
                ),
                _ => "not felt".to_owned(),
            },
            latest.as_secs_f64()
        ));
    }
}

fn world() -> World {
    World::of(Server::any())
}

/// Whoever connects meets `bytes` in place of a server.
fn greeted_with(name: &str, bytes: &[u8], close: bool) {
    let greeting = Greeting { bytes: bytes.to_vec(), close };
    named(name).prove(
        &mut world(),
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
        &mut world(),
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

#[test]
fn a_black_hole() {
    named("black hole (proxy)").prove(
        &mut world(),
        |world| world.proxy.set(Flow::Hold),
        |world| world.proxy.set(Flow::Forward),
    );
}

#[test]
fn what_the_server_says_is_lost() {
    named("one-way loss, to the watcher (proxy)").prove(
        &mut world(),
        |world| world.proxy.set_one(Direction::ToClient, Flow::Discard),
        |world| world.proxy.set_one(Direction::ToClient, Flow::Forward),
    );
}

/// The consumer goes on for as long as it was asked for: only questions, and the
/// next pull, are lost.
#[test]
fn what_the_watcher_says_is_lost() {
    let outage = millis(7_500);
    Case { outage, ..named("one-way loss, to the server (proxy)") }.prove(
        &mut world(),
        |world| world.proxy.set_one(Direction::ToServer, Flow::Discard),
        |world| world.proxy.set_one(Direction::ToServer, Flow::Forward),
    );
}

#[test]
fn cut_in_the_middle_of_a_message() {
    Case { passes: true, ..named("cut mid-message") }.prove(
        &mut world(),
        |world| world.proxy.cut_after(Direction::ToClient, 15),
        |_| (),
    );
}

#[test]
fn cut_in_the_middle_of_a_question() {
    Case { passes: true, ..named("cut mid-request") }.prove(
        &mut world(),
        |world| world.proxy.cut_after(Direction::ToServer, 15),
        |_| (),
    );
}

#[test]
fn slow() {
    Case { is_felt: false, ..named("slow (300 ms each way)") }.prove(
        &mut world(),
        |world| world.proxy.delay(millis(300)),
        |world| world.proxy.delay(Duration::ZERO),
    );
}

#[test]
fn frozen() {
    let mut world = world();
    Case { url: Some(world.server.url()), ..named("frozen") }.prove(
        &mut world,
        |world| world.server.freeze(),
        |world| world.server.thaw(),
    );
}

#[test]
fn killed() {
    let mut world = world();
    Case { url: Some(world.server.url()), ..named("killed") }.prove(
        &mut world,
        |world| world.server.kill(),
        |world| world.server.start_again(),
    );
}

#[test]
fn restarted_with_an_empty_store() {
    let mut world = world();
    Case { url: Some(world.server.url()), empties: true, ..named("an empty store") }.prove(
        &mut world,
        |world| world.server.kill(),
        |world| world.server.restart_empty(),
    );
}

#[test]
fn the_bucket_deleted() {
    Case { empties: true, passes: true, ..named("bucket deleted") }.prove(
        &mut world(),
        |world| world.registry.delete(),
        |_| (),
    );
}

/// Nothing can be written: that is no fault of the watcher's.
#[test]
fn the_bucket_is_full() {
    Case { is_felt: false, ..named("bucket full") }.prove(
        &mut world(),
        |world| world.registry.update(&json!({ "max_bytes": 1 })),
        |world| world.registry.update(&json!({ "max_bytes": -1 })),
    );
}

#[test]
fn the_login_is_withdrawn_and_given_back() {
    let users = "no_auth_user: tests\nauthorization { users: [\
        { user: agent, password: \"right\" }, { user: tests, password: tests } ] }\n";
    let server = Server::with(Setup { extra: users.to_owned(), ..Setup::default() });
    let environment = vec![("NATS_USER", "agent"), ("NATS_PASSWORD", "right")];
    Case { environment, ..named("login withdrawn") }.prove(
        &mut World::of(server),
        |world| world.server.reconfigure("\"right\"", "\"other\""),
        |world| world.server.reconfigure("\"other\"", "\"right\""),
    );
}

/// Three of four servers let nobody in.
#[test]
fn the_first_servers_of_the_list_hang() {
    let mut world = world();
    let hanging: Vec<Proxy> = (0..3).map(|_| Proxy::to(world.server.port())).collect();
    for proxy in &hanging {
        proxy.greet(Some(Greeting { bytes: Vec::new(), close: false }));
    }
    let urls: Vec<String> = hanging.iter().chain([&world.proxy]).map(Proxy::url).collect();
    Case { url: Some(urls.join(",")), ..named("three of four servers hang, the fourth refuses") }
        .prove(
            &mut world,
            |world| {
                world.proxy.refuse(true);
                world.proxy.cut();
            },
            |world| world.proxy.refuse(false),
        );
}

/// The wall clock of the watcher's host is set.
#[test]
fn the_clock_of_the_host_is_set() {
    let clocks = HostClocks::new();
    let mut world = world();
    let mut watch = clocks.of(aegis(&["watch", "--json", "-s", &world.server.url()]));
    watch = watch.arg("--verbose");
    let mut watcher = Watcher::spawn(&watch);
    let _stays = agent(&world.server.url(), "stays", 3);
    watcher.wait_for("up stays", secs(5));
    for (round, wall) in [3_600_000, -86_400_000, 1_500, 0].into_iter().enumerate() {
        clocks.shift(wall, 0);
        let instance = format!("dies{round}");
        let mut dies = agent(&world.server.url(), &instance, SHORT);
        watcher.wait_for(&format!("up {instance}"), secs(3));
        dies.signal("KILL");
        dies.wait_exit(secs(2));
        let stored = world.registry.last(&key(&instance)).expect("it beat").stored;
        watcher.wait_for(&format!("down {instance} expired"), secs(SHORT + 2));
        let told = duration(crate::harness::time::now() - stored);
        assert!(told < secs(SHORT + 1) + HEARD, "{wall} ms: told {told:?} after its heartbeat");
    }
    let of = |word: &&String| word.contains("stays") || *word == "lost";
    assert_eq!(watcher.words().iter().filter(of).collect::<Vec<_>>(), ["up stays"]);
    watcher.stop();
}

// The network: packets and names.

/// Loses what comes from `sides`.
fn packets_lost(name: &str, sides: &[&str], outage: Duration) {
    let Some(mut network) = Network::enter() else { return };
    let mut world = World::of(Server::with(Setup { host: "0.0.0.0", ..Setup::default() }));
    let case = Case {
        url: Some(format!("nats://{SERVER}:{}", world.server.port())),
        wrapper: network.client(),
        outage,
        ..named(name)
    };
    let network = std::cell::RefCell::new(&mut network);
    case.prove(
        &mut world,
        |_| sides.iter().for_each(|side| network.borrow_mut().lose(side)),
        |_| sides.iter().for_each(|side| network.borrow_mut().pass(side)),
    );
}

#[test]
fn packets_are_lost() {
    packets_lost("packets lost (network)", &["client", "server"], OUTAGE);
}

#[test]
fn packets_from_the_server_are_lost() {
    packets_lost("one-way loss, to the watcher (network)", &["server"], OUTAGE);
}

/// Where the acknowledgements of TCP do not pass, nothing does for long.
#[test]
fn packets_to_the_server_are_lost() {
    packets_lost("one-way loss, to the server (network)", &["client"], millis(5_500));
}

#[test]
fn packets_are_lost_for_long() {
    packets_lost("packets lost (network)", &["client", "server"], millis(7_300));
}

/// The server's name cannot be looked up, and it comes back at another address.
fn another_address(name: &str, address: Ipv4Addr, says: Says) {
    let at = |last: u8| Ipv4Addr::new(127, address.octets()[1], 1, last);
    let Some(names) = Names::served_at(address, Says::Address(at(1))) else { return };
    let mut world = world();
    let port = free_port();
    let old = Proxy::listening(SocketAddr::from((at(1), port)), world.server.port());
    let new = Proxy::listening(SocketAddr::from((at(2), port)), world.server.port());
    let url = Some(format!("nats://nats.test:{port}"));
    Case { url, wrapper: names.client(), ..named(name) }.prove(
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
    another_address("DNS failing, another address", Ipv4Addr::new(127, 88, 0, 53), Says::Failure);
}

#[test]
fn the_name_server_is_silent_and_the_server_has_another_address() {
    another_address("DNS silent, another address", Ipv4Addr::new(127, 89, 0, 53), Says::Nothing);
}

// A cluster.

/// Each member in turn: the leader killed, frozen and cut off, another one a
/// lame duck; then two at once.
#[test]
fn members_of_a_cluster_are_lost() {
    let mut cluster = Cluster::with_proxies("2.12.8");
    Registry::at(&cluster.servers[0].url()).create(&json!({ "num_replicas": 3 }));
    let urls = cluster.urls();
    let start = |instance: &str, ttl: &str| {
        let (name, ttl) = (format!("--instance={instance}"), format!("--ttl={ttl}"));
        aegis(&["run", "--service=orders-api", &name, &ttl, "--interval=1s", "-s", &urls]).spawn()
    };
    let _stays = start("stays", "25s");
    // One is told of all servers, one of each alone.
    let mut watchers = vec![Watcher::start(&urls, &[])];
    watchers.extend(cluster.servers.iter().map(|server| Watcher::start(&server.url(), &[])));
    for watcher in &watchers {
        watcher.wait_for("up stays", secs(20));
        watcher.wait_for("synced", secs(20));
    }
    for (round, fault) in ["killed", "frozen", "partitioned", "lame duck"].into_iter().enumerate() {
        let instance = format!("dies{round}");
        let mut dies = start(&instance, "4s");
        for watcher in &watchers {
            watcher.wait_for(&format!("up {instance}"), secs(20));
        }
        let leader = cluster.leader("service_registry", 0);
        let lame = (leader + 1) % 3;
        match fault {
            "killed" => cluster.servers[leader].kill(),
            "frozen" => cluster.servers[leader].freeze(),
            "partitioned" => cluster.partition(leader, Flow::Hold),
            _ => cluster.servers[lame].lame_duck(),
        }
        let began = Instant::now();
        dies.signal("KILL");
        dies.wait_exit(secs(2));
        time_passes(secs(8));
        match fault {
            "killed" => cluster.servers[leader].start_again(),
            "frozen" => cluster.servers[leader].thaw(),
            "partitioned" => cluster.partition(leader, Flow::Forward),
            _ => {
                cluster.servers[lame].kill();
                cluster.servers[lame].start_again();
            }
        }
        let mut told = Vec::new();
        for watcher in &watchers {
            let down = format!("down {instance} expired");
            watcher.wait_for(&down, secs(20));
            let event = watcher.told().into_iter().find(|(_, event)| words(event) == down);
            told.push(event.map_or(0.0, |(at, _)| (at - began).as_secs_f64()));
        }
        say(&format!("watch: member {fault}; the death told by all {told:.1?} s after it"));
    }
    nothing_happens_for(secs(3));
    for watcher in &mut watchers {
        let of = |name: &str| -> Vec<String> {
            let words = watcher.words().into_iter();
            words.filter(|word| word.contains(name)).collect()
        };
        assert_eq!(of("stays"), ["up stays"]);
        for round in 0..4 {
            let up = [format!("up dies{round}"), format!("down dies{round} expired")];
            assert_eq!(of(&format!("dies{round}")), up);
        }
        watcher.stop();
    }
}
