//! Two agents of one name: a mistake that hides failures. Both say so, naming
//! the other, and no heartbeat is missed because of it.

use serde_json::json;

use crate::harness::agent::{Agent, aegis};
use crate::harness::cluster::Cluster;
use crate::harness::proxy::{Fate, Proxy};
use crate::harness::registry::Registry;
use crate::harness::scene::{KEY, any_bucket};
use crate::harness::server::Server;
use crate::harness::{eventually, nothing_happens_for, secs};

const TOO: &str = "writes this entry too";

fn agent(server: &Server, ttl: &str, interval: &str) -> Agent {
    agent_at(&server.url(), ttl, interval)
}

fn agent_at(url: &str, ttl: &str, interval: &str) -> Agent {
    let words = ["run", "--service=orders-api", "--instance=host-1", "--ttl", ttl, "--interval"];
    registered(aegis(&words).arg(interval).arg("-s").arg(url).spawn())
}

fn registered(mut agent: Agent) -> Agent {
    agent.wait_for_line("registered orders-api/host-1 in bucket", secs(5));
    agent
}

/// "take turns, but both say so in the log once, naming the other's host and
/// pid, until it ends. Never a missed heartbeat because of this."
#[test]
fn both_duplicates_name_the_other_once_and_none_misses_a_heartbeat() {
    let (server, mut registry) = any_bucket();
    let mut first = agent(&server, "3s", "500ms");
    let mut second = agent(&server, "3s", "500ms");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("the host has a name");
    let other =
        |agent: &Agent| format!("another agent (host {}, pid {})", host.trim(), agent.pid());
    let line = first.wait_for_line(TOO, secs(5)).text;
    assert!(line.contains(&other(&second)), "{line}");
    let line = second.wait_for_line(TOO, secs(5)).text;
    assert!(line.contains(&other(&first)), "{line}");

    let watch = registry.watch(KEY);
    watch.wait_for(16, secs(12));
    let seen = watch.seen();
    for agent in [&first, &second] {
        let pid = json!(agent.pid().to_string());
        let beats: Vec<_> = seen.iter().filter(|e| e.json()["metadata"]["pid"] == pid).collect();
        let gaps: Vec<f64> = beats
            .windows(2)
            .map(|pair| (pair[1].stored - pair[0].stored).as_seconds_f64())
            .collect();
        assert!(
            gaps.len() > 4 && gaps.iter().all(|&gap| gap < 0.7),
            "a heartbeat missed: {gaps:?}"
        );
        assert_eq!(agent.lines_with(TOO).len(), 1, "{}", agent.stderr());
    }

    second.signal("TERM");
    assert_eq!(second.wait_exit(secs(3)), 0);
    first.wait_for_line("no longer writes this entry", secs(8));
    assert!(registry.last(KEY).is_some_and(|entry| !entry.is_marker()), "the first is there");
    assert_eq!(first.lines_with(TOO).len(), 1, "{}", first.stderr());
}

/// The other may beat far less often than we do.
#[test]
fn a_duplicate_that_beats_seldom_is_said_once() {
    let (server, mut registry) = any_bucket();
    let slow = agent(&server, "9s", "3s");
    let watch = registry.watch(KEY);
    let mut quick = agent(&server, "2s", "200ms");
    quick.wait_for_line(TOO, secs(6));
    let pid = json!(slow.pid().to_string());
    let count = || watch.seen().iter().filter(|e| e.json()["metadata"]["pid"] == pid).count();
    eventually(secs(12), "four heartbeats of the slow one", || match count() {
        4.. => Ok(()),
        few => Err(format!("{few}")),
    });
    for agent in [&slow, &quick] {
        assert_eq!(agent.lines_with(TOO).len(), 1, "{}", agent.stderr());
        assert!(agent.lines_with("no more").is_empty(), "{}", agent.stderr());
    }
}

/// "its own earlier incarnation (a restart after a crash): take over silently"
#[test]
fn an_agent_restarted_after_a_crash_takes_over_silently() {
    let (server, mut registry) = any_bucket();
    let mut crashed = agent(&server, "20s", "300ms");
    crashed.signal("KILL");
    crashed.wait_exit(secs(2));
    let left = registry.last(KEY).expect("its entry is there");
    let watch = registry.watch(KEY);
    let next = agent(&server, "20s", "300ms");
    let seen = watch.wait_for(4, secs(5));
    assert!(seen[0].revision > left.revision);
    assert_eq!(seen[0].json()["metadata"]["pid"], next.pid().to_string());
    assert_eq!(next.lines().len(), 1, "silently: {}", next.stderr());
}

/// "nothing there (expired, cleaned): register again and say so"
#[test]
fn an_entry_that_was_removed_is_said_and_registered_again() {
    let (server, mut registry) = any_bucket();
    let mut agent = agent(&server, "20s", "300ms");
    registry.purge(KEY);
    agent.wait_for_line("the entry was gone (expired or removed): registering again", secs(2));
    registry.put(KEY, &[("KV-Operation", "DEL")], "");
    agent.wait_for_line("the entry was deleted by somebody: registering again", secs(2));
    nothing_happens_for(secs(1));
    assert_eq!(agent.lines().len(), 3, "{}", agent.stderr());
    assert!(registry.last(KEY).is_some_and(|entry| !entry.is_marker()));
}

/// "Never a missed heartbeat because of this": nor one that the other deletes.
#[test]
fn a_duplicate_that_stops_leaves_the_entry_to_the_other() {
    let (server, mut registry) = any_bucket();
    let mut first = agent(&server, "4s", "1s");
    let mut second = agent(&server, "4s", "1s");
    for agent in [&mut first, &mut second] {
        agent.wait_for_line(TOO, secs(5));
    }
    let watch = registry.watch(KEY);
    // Right after a heartbeat of the one that goes: the entry is its own.
    let pid = json!(first.pid().to_string());
    eventually(secs(5), "it beats", || {
        let own = watch.seen().last().is_some_and(|e| e.json()["metadata"]["pid"] == pid);
        if own { Ok(()) } else { Err("the other did".to_owned()) }
    });
    first.signal("TERM");
    assert_eq!(first.wait_exit(secs(5)), 0);
    let line = first.wait_for_line("the entry is left to another agent", secs(1)).text;
    assert!(line.contains(&format!("pid {}", second.pid())), "{line}");
    let count = watch.seen().len();
    watch.wait_for(count + 3, secs(6));
    assert!(watch.seen().iter().all(|entry| !entry.is_marker()), "{:?}", watch.seen());
    second.signal("TERM");
    assert_eq!(second.wait_exit(secs(5)), 0);
}

/// "Reads for a decision come from the leader": a direct get is answered by any
/// replica, and that one may lag.
#[test]
fn in_a_cluster_the_leader_is_asked_who_the_duplicate_is() {
    let cluster = Cluster::start(&["2.12.8"]);
    Registry::at(&cluster.servers[0].url()).create(&json!({ "num_replicas": 3 }));
    cluster.leader("service_registry", 0);
    let proxy = Proxy::to(cluster.servers[0].port());
    proxy.rewrite_messages(|frame| match frame.contains("Nats-Sequence") {
        true => Fate::IsLost,
        false => Fate::Passes,
    });
    let mut first = agent_at(&proxy.url(), "6s", "1s");
    let second = agent_at(&cluster.servers[1].url(), "6s", "1s");
    let line = first.wait_for_line(TOO, secs(6)).text;
    assert!(line.contains(&format!("pid {})", second.pid())), "{line}");
}
