//! `cleanup` among others: races, crashes, clusters, slow links, signals, and
//! large buckets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::json;

use crate::cleanup::{TTL, cleanup, fresh, key, keys, old, stored};
use crate::harness::agent::{Output, aegis};
use crate::harness::cluster::Cluster;
use crate::harness::proxy::{Direction, Fate, Flow, Proxy};
use crate::harness::registry::{Registry, header};
use crate::harness::scene::{any_bucket, bucket_with};
use crate::harness::server::Server;
use crate::harness::{eventually, millis, secs, time_passes};

fn fill(registry: &mut Registry, count: usize) {
    registry.fill(count, |i| (key(&format!("i{i}")), header(TTL), old("i")));
}

fn left(registry: &mut Registry) -> u64 {
    registry.info().expect("a bucket")["state"]["messages"].as_u64().expect("a number")
}

fn array(output: &Output, name: &str) -> usize {
    output.json()[name].as_array().map_or(0, Vec::len)
}

// Races.

/// "over 20 rounds not one refreshed entry lost (assert on revisions)"
fn races(history: u64) {
    const ENTRIES: usize = 400;
    let (server, mut registry) = bucket_with(&json!({ "max_msgs_per_subject": history }));
    let proxy = Arc::new(Proxy::to(server.port()));
    proxy.delay_one(Direction::ToServer, millis(40));
    let mut spared = 0;
    for round in 0..20 {
        registry.fill(ENTRIES, |i| (key(&format!("i{i}")), header(TTL), old("i")));
        let stop = Arc::new(AtomicBool::new(false));
        // In every other round the entries have been read and judged, and no removal
        // has come to the server yet, when they are refreshed.
        let is_held = round % 2 == 0;
        let writer = {
            let (stop, url, proxy) = (stop.clone(), server.url(), proxy.clone());
            let before = proxy.bytes(Direction::ToClient);
            std::thread::spawn(move || {
                let mut writer = Registry::at(&url);
                let mut refreshed = Vec::new();
                if is_held {
                    eventually(secs(10), "the entries are read", || {
                        let bytes = proxy.bytes(Direction::ToClient) - before;
                        if bytes > 50_000 { Ok(()) } else { Err(format!("{bytes} bytes")) }
                    });
                    proxy.set_one(Direction::ToServer, Flow::Hold);
                }
                // From the back and from the front, so that some are in time.
                let order = (0..ENTRIES).map(|n| if n % 2 == 0 { n } else { ENTRIES - n });
                for i in order.filter(|i| i % 3 == round % 3) {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let key = key(&format!("i{i}"));
                    let revision = writer.put(&key, TTL, &fresh("i"));
                    refreshed.push((key, revision));
                }
                proxy.set_one(Direction::ToServer, Flow::Forward);
                refreshed
            })
        };
        let output = match is_held {
            true => aegis(&["cleanup", "-s", &proxy.url()]).run().exits(0),
            false => cleanup(&server, &["--json"]).exits(0),
        };
        stop.store(true, Ordering::SeqCst);
        let refreshed = writer.join().expect("the writer ends");
        for (key, revision) in &refreshed {
            let last = registry.last(key).unwrap_or_else(|| panic!("{key} is lost: {output:?}"));
            assert_eq!(last.revision, *revision, "{key}: {output:?}");
        }
        if is_held {
            let words = |of: &str| {
                output
                    .stdout
                    .split(of)
                    .nth(1)
                    .and_then(|rest| rest.split([' ', ',']).next()?.parse::<usize>().ok())
            };
            spared += words("spared ").expect("the last line counts");
            assert_eq!(words("failed "), Some(0), "{output:?}");
        } else {
            assert_eq!(output.json()["failed"], json!([]));
        }
        // What was not refreshed is gone.
        let live: Vec<String> = refreshed.iter().map(|(key, _)| key.clone()).collect();
        for key in stored(&mut registry) {
            assert!(live.contains(&key), "{key} was neither refreshed nor removed");
        }
    }
    assert!(spared > ENTRIES, "{spared} spared: hardly a race was met");
}

#[test]
fn no_refreshed_entry_is_ever_lost() {
    races(1);
}

#[test]
fn no_refreshed_entry_is_ever_lost_with_history() {
    races(5);
}

/// "every entry removed once, no errors"
#[test]
fn two_cleanups_at_once_remove_every_entry_once() {
    for history in [1, 5] {
        let (server, mut registry) = bucket_with(&json!({ "max_msgs_per_subject": history }));
        fill(&mut registry, 3_000);
        fill(&mut registry, 3_000);
        let run = || {
            let url = server.url();
            std::thread::spawn(move || aegis(&["cleanup", "--json", "-s", &url]).run().exits(0))
        };
        let both = [run(), run()].map(|one| one.join().expect("it ends"));
        let mut all: Vec<String> =
            both.iter().flat_map(|output| keys(&output.json(), "removed")).collect();
        all.sort();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), 3_000);
        // With history, who finds the key gone cannot tell who it was.
        assert_eq!(count, 3_000, "history {history}: some were reported twice");
        for output in &both {
            assert_eq!((output.stderr.as_str(), array(output, "failed")), ("", 0));
        }
        assert_eq!(left(&mut registry), 0);
    }
}

// Nothing comes back.

fn nothing_comes_back(version: &str, changes: &serde_json::Value, revisions: usize) {
    let mut server = Server::start(version);
    let mut registry = Registry::at(&server.url());
    registry.create(changes);
    let ttl = if changes["allow_msg_ttl"] == false { &[][..] } else { TTL };
    registry.put("echo-service", &[], "{}");
    for _ in 0..revisions {
        for i in 0..50 {
            registry.put(&key(&format!("i{i}")), &[], &old("i"));
            registry.put(&key(&format!("j{i}")), ttl, &old("j"));
        }
    }
    let answer = cleanup(&server, &["--json"]).exits(0).json();
    assert_eq!(keys(&answer, "removed").len(), 100, "{version} {changes}");
    for _ in 0..2 {
        server.restart();
        registry.reconnect();
        eventually(secs(10), "the bucket is back", || registry.info());
        assert_eq!(stored(&mut registry), ["echo-service"], "{version} {changes}");
    }
}

/// "after SIGKILL of the server and restart". With history 1 each key has one
/// revision here: one that was *replaced* has no tombstone, whoever replaced
/// it, and no request can give it one (nats-server #8505).
#[test]
fn after_a_crash_nothing_that_was_removed_comes_back() {
    for version in ["2.11.2", "2.12.8", "2.15.1"] {
        nothing_comes_back(version, &json!({}), 1);
        nothing_comes_back(version, &json!({ "max_msgs_per_subject": 10 }), 3);
        nothing_comes_back(version, &json!({ "allow_msg_ttl": false }), 1);
        let old = json!({ "allow_msg_ttl": false, "max_msgs_per_subject": 10 });
        nothing_comes_back(version, &old, 3);
    }
}

#[test]
fn in_a_cluster_nothing_comes_back_whichever_member_is_killed() {
    let mut cluster = Cluster::start(&["2.12.8"]);
    let mut registry = Registry::at(&cluster.servers[0].url());
    registry.create(&json!({ "num_replicas": 3, "max_msgs_per_subject": 3 }));
    registry.put("echo-service", &[], "{}");
    for _ in 0..2 {
        fill(&mut registry, 300);
    }
    let output = aegis(&["cleanup", "--json", "-s", &cluster.urls()]).run().exits(0);
    assert_eq!(array(&output, "removed"), 300, "{output:?}");
    for victim in 0..3 {
        cluster.servers[victim].kill();
        let leader = cluster.leader("service_registry", (victim + 1) % 3);
        assert_ne!(leader, victim);
        cluster.servers[victim].start_again();
        let mut registry = Registry::at(&cluster.servers[victim].url());
        registry.client.patience = secs(1);
        eventually(secs(20), "the bucket is back", || {
            let info = registry.info()?;
            let replicas = info["cluster"]["replicas"].as_array().cloned().unwrap_or_default();
            let current = replicas.iter().filter(|one| one["current"] == true).count();
            (current == 2).then_some(()).ok_or_else(|| info["cluster"].to_string())
        });
        let all = eventually(secs(20), "the bucket can be read", || {
            let answer = registry.info()?;
            Ok(answer["state"]["messages"].clone())
        });
        assert_eq!(all, 1, "after member {victim} was killed");
    }
}

/// "an older revision that comes back when the newest expires" is a stale
/// entry like any other, and goes the next time.
#[test]
fn what_lay_under_a_live_entry_goes_when_it_has_come_back() {
    let (server, mut registry) = bucket_with(&json!({ "max_msgs_per_subject": 10 }));
    registry.put(&key("a"), &[], &old("a"));
    registry.put(&key("a"), &[("Nats-TTL", "2s")], &fresh("a"));
    assert_eq!(cleanup(&server, &[]).exits(0).stdout, "");
    eventually(secs(5), "the newest expires", || match registry.revisions(&key("a")).len() {
        1 => Ok(()),
        n => Err(format!("{n} revisions")),
    });
    let answer = cleanup(&server, &["--json"]).exits(0).json();
    assert_eq!(keys(&answer, "removed"), [key("a")]);
    assert!(stored(&mut registry).is_empty());
}

// Slow links, lost replies, crashes in the middle, signals.

#[test]
fn a_slow_link_makes_it_slow_and_not_fail() {
    let (server, mut registry) = any_bucket();
    fill(&mut registry, 2_000);
    let proxy = Proxy::to(server.port());
    proxy.delay(millis(100));
    let output = aegis(&["cleanup", "--json", "-s", &proxy.url(), "--timeout=20s"])
        .within(secs(60))
        .run()
        .exits(0);
    assert_eq!((array(&output, "removed"), left(&mut registry)), (2_000, 0));
}

/// "an acknowledgement that does not come within `--timeout` counts as failed,
/// exit 75, and running it again finishes the job"
#[test]
fn a_reply_that_does_not_come_is_a_failure_and_the_next_run_finishes() {
    let (server, mut registry) = any_bucket();
    fill(&mut registry, 20_000);
    let proxy = Proxy::to(server.port());
    let agent = aegis(&["cleanup", "--json", "-s", &proxy.url(), "--timeout=500ms"]).spawn();
    eventually(secs(20), "some are removed", || match left(&mut registry) {
        n if n < 19_000 => Ok(()),
        n => Err(n.to_string()),
    });
    proxy.set_one(Direction::ToClient, Flow::Discard);
    let mut agent = agent;
    assert_eq!(agent.wait_exit(secs(15)), 75);
    assert!(agent.stderr().contains("hint: run it again"), "{}", agent.stderr());
    assert!(left(&mut registry) > 0, "it ended in the middle");
    cleanup(&server, &[]).exits(0);
    assert_eq!(left(&mut registry), 0);
}

/// Whoever's connection is cut asks again, and neither fails nor lies.
#[test]
fn a_connection_that_is_cut_in_the_middle_costs_nothing() {
    let (server, mut registry) = any_bucket();
    fill(&mut registry, 10_000);
    let proxy = Proxy::to(server.port());
    let url = proxy.url();
    let run = std::thread::spawn(move || aegis(&["cleanup", "--json", "-s", &url]).run());
    eventually(secs(20), "some are removed", || match left(&mut registry) {
        n if n < 9_500 => Ok(()),
        n => Err(n.to_string()),
    });
    proxy.cut();
    let output = run.join().expect("it ends").exits(0);
    assert_eq!((array(&output, "removed"), array(&output, "failed")), (10_000, 0), "{output:?}");
    assert_eq!(left(&mut registry), 0);
}

/// Once they are let in, at any byte: between two questions, in the middle of one,
/// between the two readings of a cleanup.
#[test]
fn wherever_its_connection_is_cut_no_call_fails() {
    /// What a client says of itself, and that it is there.
    const LOGIN: u64 = 250;
    let (server, mut registry) = any_bucket();
    let proxy = Proxy::to(server.port());
    let calls: [&[&str]; 3] = [&["list", "--json", "--all"], &["cleanup", "--json"], &["check"]];
    for words in calls {
        let mut call = |cut_after: Option<u64>| {
            fill(&mut registry, 5);
            if let Some(bytes) = cut_after {
                proxy.cut_after(Direction::ToServer, usize::try_from(bytes).expect("few"));
            }
            let (before, dials) = (proxy.bytes(Direction::ToServer), proxy.accepted());
            let output = aegis(words).arg("-s").arg(&proxy.url()).run();
            let count = ["removed", "instances"].map(|name| match words[0] {
                "check" => 0,
                _ => array(&output, name),
            });
            let said = proxy.bytes(Direction::ToServer) - before;
            (output.code, count, said, proxy.accepted() - dials, output)
        };
        let (code, count, all, dials, _) = call(None);
        assert_eq!(dials, 1);
        let mut again = 0;
        for at in (LOGIN..all).step_by(60) {
            let (code_then, count_then, _, dials, output) = call(Some(at));
            assert_eq!((code_then, count_then), (code, count), "cut after {at}: {output:?}");
            again += dials - 1;
        }
        assert!(again > 0, "{words:?} was never cut");
    }
}

#[test]
fn a_server_killed_in_the_middle_is_exit_75_and_the_next_run_finishes() {
    let (mut server, mut registry) = any_bucket();
    fill(&mut registry, 20_000);
    let mut agent = aegis(&["cleanup", "-s", &server.url(), "--timeout=1s"]).spawn();
    eventually(secs(20), "some are removed", || match left(&mut registry) {
        n if n < 19_000 => Ok(()),
        n => Err(n.to_string()),
    });
    server.kill();
    assert_eq!(agent.wait_exit(secs(10)), 75, "{}", agent.stderr());
    assert!(agent.stderr().contains("removals"), "{}", agent.stderr());
    server.start_again();
    registry.reconnect();
    eventually(secs(10), "the bucket is back", || registry.info());
    cleanup(&server, &[]).exits(0);
    assert_eq!(left(&mut registry), 0);
}

/// "stops sending, waits for what is in flight (bounded), reports what was
/// done, exit 75"
/// A consumer is made on a replica that has not got the newest message yet: by what
/// the leader says of the bucket that shows, and other ones are asked. A session
/// that is lost meanwhile is made anew.
#[test]
fn what_a_lagging_replica_lacks_is_asked_for_again() {
    const LAGGING: usize = 3;
    for (verb, cuts) in [("list", false), ("list", true), ("cleanup", false), ("cleanup", true)] {
        let (server, mut registry) = any_bucket();
        fill(&mut registry, 5);
        let proxy = Proxy::to(server.port());
        let made = Arc::new(AtomicUsize::new(0));
        let seen = made.clone();
        let last = registry.info().expect("a bucket")["state"]["last_seq"].as_u64().unwrap_or(0);
        proxy.rewrite_messages(move |frame| {
            let payload = frame.split_once("\r\n").map_or("", |(_, rest)| rest.trim_end());
            if payload.contains("consumer_create_response") {
                seen.fetch_add(1, Ordering::SeqCst);
            }
            if !payload.contains("stream_info_response") {
                return Fate::Passes;
            }
            let replicas = payload.replace("\"num_replicas\":1,", "\"num_replicas\":3,");
            let end = |last: u64| format!("\"last_seq\":{last},");
            Fate::Becomes(replicas.replace(&end(last), &end(last + 1)))
        });
        let arguments = match verb {
            "list" => vec!["list", "--all", "--json"],
            _ => vec!["cleanup", "--json"],
        };
        let url = proxy.url();
        let call = std::thread::spawn(move || aegis(&arguments).arg("-s").arg(&url).run());
        // With --json `cleanup` reads twice, and the first time as `list` does.
        eventually(secs(5), "the third consumer is made", || {
            let count = made.load(Ordering::SeqCst);
            if count == LAGGING { Ok(()) } else { Err(count.to_string()) }
        });
        registry.put(&key("late"), TTL, &old("late"));
        if cuts {
            time_passes(millis(100));
            proxy.cut();
        }
        let output = call.join().expect("it ends").exits(0);
        assert!(output.took >= millis(430), "{verb}, cut: {cuts}: {output:?}");
        let what = if verb == "list" { "instances" } else { "removed" };
        assert_eq!(array(&output, what), 6, "{verb}, cut: {cuts}: {output:?}");
        assert_eq!(left(&mut registry), if verb == "list" { 6 } else { 0 });
        assert_eq!(proxy.accepted(), if cuts { 2 } else { 1 });
    }
}

#[test]
fn a_signal_in_the_middle_ends_it_in_good_order() {
    for signal in ["INT", "TERM"] {
        let (server, mut registry) = any_bucket();
        fill(&mut registry, 20_000);
        let mut agent = aegis(&["cleanup", "-s", &server.url()]).spawn();
        eventually(secs(20), "some are removed", || match left(&mut registry) {
            n if n < 19_500 => Ok(()),
            n => Err(n.to_string()),
        });
        agent.signal(signal);
        assert_eq!(agent.wait_exit(secs(5)), 75, "{signal}");
        let removed = 20_000 - left(&mut registry);
        assert!(removed < 20_000);
        let words = format!("stopped by a signal after {removed} removals");
        assert!(agent.stderr().contains(&words), "{words}: {}", agent.stderr());
    }
}

#[test]
fn a_signal_while_the_server_is_frozen_is_obeyed_within_the_timeout() {
    let (mut server, mut registry) = any_bucket();
    fill(&mut registry, 20_000);
    let mut agent = aegis(&["cleanup", "-s", &server.url(), "--timeout=3s"]).spawn();
    eventually(secs(20), "some are removed", || match left(&mut registry) {
        n if n < 19_500 => Ok(()),
        n => Err(n.to_string()),
    });
    server.freeze();
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(6)), 75);
    server.thaw();
}

// Large buckets.

/// "resident memory under 16 MiB at 100,000"
#[test]
fn a_hundred_thousand_entries_are_removed_quickly_and_in_little_memory() {
    let (server, mut registry) = any_bucket();
    registry.put("echo-service", &[], "{}");
    for options in [&[][..], &["--json"]] {
        fill(&mut registry, 100_000);
        let url = server.url();
        // Patient, because the tests share the machine: it is not the subject.
        let output = aegis(&[&["cleanup", "-s", &url, "--timeout=30s"], options].concat())
            .within(secs(120))
            .run()
            .exits(0);
        eprintln!(
            "cleanup {options:?}: 100,000 entries in {:?}, at most {} KiB resident",
            output.took, output.peak_kib
        );
        match options {
            [] => assert!(output.stdout.contains("removed 100000 ("), "{output:?}"),
            _ => assert_eq!(array(&output, "removed"), 100_000),
        }
        assert_eq!(left(&mut registry), 1);
        assert!(output.peak_kib < 16 * 1024, "{} KiB", output.peak_kib);
        let limit = if cfg!(debug_assertions) { secs(90) } else { secs(15) };
        assert!(output.took < limit, "{:?}", output.took);
    }
}
