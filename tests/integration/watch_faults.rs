//! `watch` under each fault of the outage matrix: what it told against what
//! really happened.
//!
//! While the fault lasts one agent goes on, one is killed, one is asked to stop,
//! and one is started. Whoever goes on is never called down; whoever is gone is
//! called down once, within TTL + 1 s of its last heartbeat or 2 s after the
//! watcher is back; whoever has come is told once.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::agent::{Agent, aegis};
use crate::harness::cluster::Cluster;
use crate::harness::fault::{duration, say};
use crate::harness::host_clocks::HostClocks;
use crate::harness::network::Says;
use crate::harness::proxy::{Direction, Flow, Greeting, Proxy};
use crate::harness::registry::{Registry, Watch};
use crate::harness::scene::key;
use crate::harness::server::Server;
use crate::harness::strike::{Phase, Strike, World};
use crate::harness::watcher::{Watcher, words};
use crate::harness::{eventually, millis, nothing_happens_for, secs, time_passes};

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
struct Case {
    strike: Strike,
    outage: Duration,
    /// Whether the watcher has to say that it knows nothing.
    is_felt: bool,
    /// It is over at once, of itself.
    passes: bool,
}

impl From<Strike> for Case {
    fn from(strike: Strike) -> Case {
        Case { strike, outage: OUTAGE, is_felt: true, passes: false }
    }
}

impl Case {
    fn prove(mut self) {
        let direct = self.strike.world.server.url();
        let mut record = self.strike.world.registry.watch(">");
        let _stays = agent(&direct, "stays", LONG);
        let [mut dies, leaves] = ["dies", "leaves"].map(|name| agent(&direct, name, SHORT));
        let watch = self.strike.meets(aegis(&["watch", "--json"]));
        let mut watcher = Watcher::spawn(&watch);
        watcher.wait_for("synced", secs(5));
        for name in ["up stays", "up dies", "up leaves"] {
            watcher.wait_for(name, secs(5));
        }

        let began = Instant::now();
        self.strike.begin();
        time_passes(millis(300));
        dies.signal("KILL");
        dies.wait_exit(secs(2));
        leaves.signal("TERM");
        let _comes = agent(&direct, "comes", LONG);
        time_passes(self.outage.saturating_sub(began.elapsed()));
        self.strike.end();
        let outage = began.elapsed();
        let ended = if self.passes { began } else { Instant::now() };
        // Nothing that was stored outlives it: whoever stays may be told anew.
        if !self.strike.keeps {
            let registry = &mut self.strike.world.registry;
            eventually(BACK, "the bucket is there", || {
                registry.reconnect();
                registry.info()
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
        let name = &self.strike.name;
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
        match self.strike.keeps {
            true => assert_eq!(events("stays"), ["up"], "{name}: never away"),
            false => assert_eq!(events("stays").last().map(String::as_str), Some("up")),
        }
        assert_eq!(events("comes"), ["up"], "{name}");
        let lost = first("lost", began);
        // What passes begins with the next message.
        let ended = if self.passes { lost.unwrap_or(ended) } else { ended };
        let synced = first("synced", lost.unwrap_or(began).max(ended));
        assert_eq!(lost.is_some(), self.is_felt, "{name}: whether it said lost");
        let back = synced.map(|at| at.saturating_duration_since(ended));
        if self.is_felt {
            let back = back.unwrap_or_else(|| panic!("{name}: not synced again"));
            assert!(back < BACK + HEARD, "{name}: back after {back:?}");
        }
        let mut latest = Duration::ZERO;
        for instance in ["dies", "leaves"] {
            assert_eq!(events(instance), ["up", "down"], "{name}: {instance}");
            let at = of(instance)[1].0;
            let seen = record.seen();
            let last = seen.iter().rfind(|one| one.key() == key(instance) && !one.is_marker());
            // By the time at which the server stored it, which is ours.
            let age = last.map(|last| duration(crate::harness::time::now() - last.stored));
            let due = age.map(|age| Instant::now() - age + secs(SHORT + 1) + HEARD);
            let late = at.saturating_duration_since(ended);
            let in_time = due.is_some_and(|due| at <= due);
            let grace = back.unwrap_or_default() + GRACE + HEARD;
            assert!(in_time || late < grace, "{name}: {instance} told {late:?} after it");
            latest = latest.max(late);
        }
        say(&format!(
            "watch: {name}, {:.1} s; {}; all that went told {:.2} s after it at the latest",
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

fn prove(case: impl Into<Case>) {
    case.into().prove();
}

fn that_passes(strike: Strike) -> Case {
    Case { passes: true, ..strike.into() }
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
fn a_black_hole() {
    prove(Strike::a_black_hole());
}

#[test]
fn what_the_server_says_is_lost() {
    prove(Strike::one_way_loss(Direction::ToClient));
}

/// The consumer goes on for as long as it was asked for: only questions, and the
/// next pull, are lost.
#[test]
fn what_the_watcher_says_is_lost() {
    let strike = Strike::one_way_loss(Direction::ToServer);
    prove(Case { outage: millis(7_500), ..strike.into() });
}

#[test]
fn cut_in_the_middle_of_a_message() {
    prove(that_passes(Strike::cut_after("cut mid-message", Direction::ToClient, 15)));
}

#[test]
fn cut_in_the_middle_of_a_question() {
    prove(that_passes(Strike::cut_after("cut mid-request", Direction::ToServer, 15)));
}

#[test]
fn slow() {
    let strike = Strike::new("slow (300 ms each way)", |world, phase| {
        world.proxy.delay(if phase == Phase::Begins { millis(300) } else { Duration::ZERO });
    });
    prove(Case { is_felt: false, ..strike.into() });
}

#[test]
fn frozen() {
    prove(Strike::frozen());
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
    prove(that_passes(Strike::the_bucket_deleted()));
}

/// Nothing can be written: that is no fault of the watcher's.
#[test]
fn the_bucket_is_full() {
    let strike = Strike::new("bucket full", |world, phase| {
        let bytes = if phase == Phase::Begins { 1 } else { -1 };
        world.registry.update(&json!({ "max_bytes": bytes }));
    });
    prove(Case { is_felt: false, ..strike.into() });
}

#[test]
fn the_login_is_withdrawn_and_given_back() {
    prove(Strike::the_login_is_withdrawn());
}

/// Three of four servers let nobody in.
#[test]
fn the_first_servers_of_the_list_hang() {
    let mut strike = Strike::refused();
    let port = strike.world.server.port();
    let hanging: Vec<Proxy> = (0..3).map(|_| Proxy::to(port)).collect();
    for proxy in &hanging {
        proxy.greet(Some(Greeting { bytes: Vec::new(), close: false }));
    }
    let urls: Vec<String> = hanging.iter().chain([&strike.world.proxy]).map(Proxy::url).collect();
    strike.name = "three of four servers hang, the fourth refuses".to_owned();
    strike.url = urls.join(",");
    prove(strike);
}

/// The wall clock of the watcher's host is set.
#[test]
fn the_clock_of_the_host_is_set() {
    let clocks = HostClocks::new();
    let mut world = World::of(Server::any());
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

fn packets_lost(sides: &'static [&'static str], outage: Duration) {
    if let Some(strike) = Strike::packets_lost(sides) {
        prove(Case { outage, ..strike.into() });
    }
}

#[test]
fn packets_are_lost() {
    packets_lost(&["client", "server"], OUTAGE);
}

#[test]
fn packets_from_the_server_are_lost() {
    packets_lost(&["server"], OUTAGE);
}

/// Where the acknowledgements of TCP do not pass, nothing does for long.
#[test]
fn packets_to_the_server_are_lost() {
    packets_lost(&["client"], millis(5_500));
}

#[test]
fn packets_are_lost_for_long() {
    packets_lost(&["client", "server"], millis(7_300));
}

#[test]
fn names_fail_and_the_server_has_another_address() {
    Strike::another_address(Ipv4Addr::new(127, 88, 0, 53), Says::Failure, prove);
}

#[test]
fn the_name_server_is_silent_and_the_server_has_another_address() {
    Strike::another_address(Ipv4Addr::new(127, 89, 0, 53), Says::Nothing, prove);
}

// A cluster.

/// A leader that is cut off from the others tells for 10 s more where its stream
/// ends; they have another one after 4 s, to whom agents go on beating.
#[test]
fn beside_a_leader_that_is_cut_off_nobody_is_called_down() {
    let cluster = Cluster::with_proxies("2.12.8");
    Registry::at(&cluster.servers[0].url()).create(&json!({ "num_replicas": 3 }));
    let url = |member: usize| cluster.servers[member % 3].url();
    // Where they took too long to choose, the entry was away: another time.
    let is_shown = (0..6).any(|round| {
        let leader = cluster.leader("service_registry", 0);
        let instance = format!("beats{round}");
        let others = format!("{},{}", url(leader + 1), url(leader + 2));
        let name = format!("--instance={instance}");
        let _beats = aegis(&["run", "--service=orders-api", &name, "--ttl=9s", "--interval=1s"])
            .arg("-s")
            .arg(&others)
            .spawn();
        let (mut beside, mut truth) =
            (Watcher::start(&url(leader), &[]), Watcher::start(&others, &[]));
        for watcher in [&beside, &truth] {
            watcher.wait_for(&format!("up {instance}"), secs(20));
        }
        cluster.partition(leader, Flow::Hold);
        time_passes(secs(12));
        let down = format!("down {instance} expired");
        let told = [&beside, &truth].map(|watcher| watcher.words().contains(&down));
        cluster.partition(leader, Flow::Forward);
        truth.wait_for("synced", secs(20));
        beside.stop();
        truth.stop();
        say(&format!("watch: its leader cut off, round {round}: called down {told:?}"));
        assert!(!told[0] || told[1], "{:?}\n{:?}", beside.told(), truth.told());
        !told[1]
    });
    assert!(is_shown, "the others never chose in time");
}

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
