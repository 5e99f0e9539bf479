//! `run`: an agent's life, what it leaves in the registry, what it says, and
//! what it does when the server is away, frozen, too old or misconfigured.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::agent::{Agent, Invocation, aegis};
use crate::harness::cluster::Cluster;
use crate::harness::proxy::{Flow, Proxy};
use crate::harness::registry::{Entry, Registry};
use crate::harness::scene::{KEY, bucket_on};
use crate::harness::server::{Server, Setup};
use crate::harness::{eventually, millis, nothing_happens_for, secs, time_passes};

const REGISTERED: &str = "registered orders-api/host-1 in bucket";

/// An agent with short times: a TTL of 2 s, a heartbeat every 500 ms.
fn agent(url: &str) -> Invocation {
    patient_agent(url, "2s", "500ms")
}

fn patient_agent(url: &str, ttl: &str, interval: &str) -> Invocation {
    aegis(&[
        "run",
        "--service",
        "orders-api",
        "--instance",
        "host-1",
        "--service-version",
        "1.4.2",
        "--ttl",
        ttl,
        "--interval",
        interval,
        "-s",
        url,
    ])
}

fn registered(agent: &mut Agent) {
    agent.wait_for_line(REGISTERED, secs(5));
}

/// Everything in the record but the one field that may change.
fn without_heartbeat(entry: &Entry) -> serde_json::Value {
    let mut json = entry.json();
    json["lastHeartbeat"] = json!("");
    json
}

/// How much later than its `lastHeartbeat` says the entry was stored.
fn lateness(entry: &Entry) -> time::Duration {
    entry.stored - entry.last_heartbeat()
}

fn assert_not_stale(entries: &[Entry]) {
    for entry in entries.iter().filter(|entry| !entry.is_marker()) {
        let late = lateness(entry);
        assert!(
            late.abs() < time::Duration::SECOND,
            "stored {late} after its heartbeat: {entry:?}"
        );
    }
}

fn gone(registry: &mut Registry, key: &str) -> bool {
    registry.last(key).is_none_or(|entry| entry.is_marker())
}

// The life of an agent.

fn life_of_an_agent(version: &str) {
    let (server, mut registry) = bucket_on(version, &json!({}));
    let watch = registry.watch(">");

    let mut polite = agent(&server.url()).spawn();
    let beats = watch.wait_for(5, secs(5));
    for (beat, next) in beats.iter().zip(&beats[1..]) {
        assert!(next.revision > beat.revision);
        assert!(next.last_heartbeat() > beat.last_heartbeat());
        assert_eq!(without_heartbeat(next), without_heartbeat(beat));
    }
    for beat in &beats {
        assert_eq!(beat.key(), KEY);
        assert_eq!(beat.header("Nats-TTL").as_deref(), Some("2s"));
    }
    assert_not_stale(&beats);

    polite.signal("TERM");
    assert_eq!(polite.wait_exit(secs(2)), 0);
    let marker = registry.last(KEY).expect("a marker is left");
    assert_eq!(marker.header("KV-Operation").as_deref(), Some("PURGE"));
    assert_eq!(marker.header("Nats-Rollup").as_deref(), Some("sub"));
    assert_eq!(marker.header("Nats-TTL").as_deref(), Some("60s"));
    assert_eq!(marker.text(), "");
    assert_eq!(registry.revisions(KEY).len(), 1, "the marker alone is left");
    polite.wait_for_line("deregistered orders-api/host-1", secs(1));

    let mut killed = agent(&server.url()).spawn();
    registered(&mut killed);
    let after = beats.len();
    watch.wait_for(after + 4, secs(5));
    killed.signal("KILL");
    killed.wait_exit(secs(2));
    let last = registry.last(KEY).expect("the entry outlives its agent");
    assert!(!last.is_marker());
    eventually(secs(5), "its TTL removes it", || match registry.last(KEY) {
        Some(entry) if !entry.is_marker() => Err(format!("{entry:?}")),
        _ => Ok(()),
    });
    let lived = crate::harness::time::now() - last.stored;
    assert!(
        lived > time::Duration::milliseconds(1_900) && lived < time::Duration::milliseconds(3_500),
        "a TTL of 2 s, lived {lived}"
    );
}

#[test]
fn the_life_of_an_agent_on_2_11_11() {
    life_of_an_agent("2.11.11");
}

#[test]
fn the_life_of_an_agent_on_2_12_8() {
    life_of_an_agent("2.12.8");
}

#[test]
fn the_life_of_an_agent_on_2_15_1() {
    life_of_an_agent("2.15.1");
}

/// Read also by the monitor and by the services themselves, which reject an
/// entry with any field more or less.
#[test]
fn the_record_is_byte_for_byte_the_golden_one() {
    let (server, mut registry) = bucket_on("", &json!({}));
    let mut agent = agent(&server.url())
        .arg("--standby")
        .arg("--group=blue")
        .arg("--meta=zone=eu-1")
        .arg("--meta")
        .arg("note=\"q\" = ü")
        .spawn();
    registered(&mut agent);
    let entry = registry.last(KEY).expect("it is registered");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("the host has a name");
    let record = entry
        .text()
        .replace(entry.json()["lastHeartbeat"].as_str().expect("a string"), "TIME")
        .replace(&format!("\"pid\":\"{}\"", agent.pid()), "\"pid\":\"PID\"")
        .replace(&format!("\"host\":\"{}\"", host.trim()), "\"host\":\"HOST\"");
    assert_eq!(record, include_str!("../golden/record.json").trim_end());
    let time = entry.json()["lastHeartbeat"].as_str().expect("a string").to_owned();
    assert_eq!(time.len(), "2026-11-23T09:37:31.979155+00:00".len(), "{time}");
    assert!(time.ends_with("+00:00"), "{time}");
}

#[test]
fn sigint_deregisters() {
    let (server, mut registry) = bucket_on("", &json!({}));
    let mut agent = agent(&server.url()).spawn();
    registered(&mut agent);
    agent.signal("INT");
    assert_eq!(agent.wait_exit(secs(2)), 0);
    assert_eq!(registry.last(KEY).and_then(|e| e.header("KV-Operation")).as_deref(), Some("PURGE"));
}

#[test]
fn a_second_signal_does_not_skip_deregistering() {
    let (server, mut registry) = bucket_on("", &json!({}));
    let proxy = Proxy::to(server.port());
    let mut agent = agent(&proxy.url()).spawn();
    registered(&mut agent);
    proxy.delay(millis(300));
    agent.signal("TERM");
    time_passes(millis(50));
    agent.signal("TERM");
    agent.signal("INT");
    assert_eq!(agent.wait_exit(secs(6)), 0);
    assert!(registry.last(KEY).is_some_and(|entry| entry.is_marker()));
}

#[test]
fn sighup_beats_at_once() {
    let (server, mut registry) = bucket_on("", &json!({}));
    let watch = registry.watch(KEY);
    // No other heartbeat comes between, in a registry with a rule of its own.
    let mut agent =
        patient_agent(&server.url(), "10m", "3m").env("AEGIS_STALE_AFTER", "1h").spawn();
    registered(&mut agent);
    // A revision that is replaced before it is delivered is never seen.
    watch.wait_for(1, secs(2));
    agent.signal("HUP");
    watch.wait_for(2, secs(1));
    assert!(agent.is_running());
}

#[test]
fn nothing_is_logged_per_heartbeat() {
    let (server, mut registry) = bucket_on("", &json!({}));
    let watch = registry.watch(KEY);
    let agent = agent(&server.url()).spawn();
    watch.wait_for(6, secs(6));
    assert_eq!(agent.lines().len(), 1, "{}", agent.stderr());
    assert!(agent.stderr().contains(REGISTERED), "{}", agent.stderr());
}

#[test]
fn verbose_says_more() {
    let (server, _registry) = bucket_on("", &json!({}));
    let mut agent = agent(&server.url()).arg("--verbose").spawn();
    agent.wait_for_lines("heartbeat", 3, secs(5));
}

#[test]
fn the_journal_gets_priorities_instead_of_times() {
    let mut server = Server::absent(Setup::default());
    let mut agent = agent(&server.url()).env("JOURNAL_STREAM", "8:1").spawn();
    let warning = agent.wait_for_line("cannot register", secs(5));
    assert!(warning.text.starts_with("<4>cannot register"), "{}", warning.text);
    server.start_again();
    let news = agent.wait_for_line(REGISTERED, secs(5));
    assert!(news.text.starts_with("<6>registered"), "{}", news.text);
}

#[test]
fn each_interval_is_shortened_by_up_to_a_tenth() {
    let (server, mut registry) = bucket_on("", &json!({}));
    let watch = registry.watch(KEY);
    let _agent = agent(&server.url()).spawn();
    let beats = watch.wait_for(14, secs(10));
    // The first interval is drawn from all of it.
    let gaps: Vec<f64> = beats[1..]
        .windows(2)
        .map(|pair| (pair[1].last_heartbeat() - pair[0].last_heartbeat()).as_seconds_f64())
        .collect();
    // 60 ms for a busy machine.
    assert!(gaps.iter().all(|gap| (0.39..0.56).contains(gap)), "{gaps:?}");
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    assert!(mean < 0.5, "never longer than the interval, shorter on average: {gaps:?}");
}

#[test]
fn the_first_intervals_of_a_fleet_differ() {
    let (server, mut registry) = bucket_on("", &json!({}));
    let watch = registry.watch(">");
    let fleet: Vec<Agent> = (0..6)
        .map(|i| {
            let instance = format!("--instance=h{i}");
            let options = ["--ttl=8s", "--interval=2s", "-s", &server.url()].map(str::to_owned);
            let mut all = vec!["run".to_owned(), "--service=fleet".to_owned(), instance];
            all.extend(options);
            aegis(&all).spawn()
        })
        .collect();
    let firsts: Vec<f64> = eventually(secs(8), "two beats of each", || {
        let seen = watch.seen();
        let first = |i: usize| {
            let key = format!("service-instances__fleet__h{i}");
            let mut beats =
                seen.iter().filter(|entry| entry.key() == key).map(|entry| entry.stored);
            let (first, second) = (beats.next()?, beats.next()?);
            Some((second - first).as_seconds_f64())
        };
        (0..fleet.len())
            .map(first)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| format!("{} revisions", seen.len()))
    });
    assert!(firsts.iter().all(|first| (0.0..2.2).contains(first)), "{firsts:?}");
    let spread = firsts.iter().cloned().fold(f64::MIN, f64::max)
        - firsts.iter().cloned().fold(f64::MAX, f64::min);
    // Six draws from 2 s lie within 0.3 s once in 3,000 runs.
    assert!(spread > 0.3, "{firsts:?}");
}

// The bucket.

#[test]
fn the_bucket_is_made_where_there_is_none() {
    let server = Server::any();
    let mut agent = agent(&server.url()).arg("--bucket=other").spawn();
    agent.wait_for_line("registered orders-api/host-1", secs(5));
    let mut registry = Registry::named(&server.url(), "other");
    let config = registry.info().expect("it is made")["config"].clone();
    for (field, value) in [
        ("subjects", json!(["$KV.other.>"])),
        ("max_msgs_per_subject", json!(1)),
        ("allow_msg_ttl", json!(true)),
        ("allow_rollup_hdrs", json!(true)),
        ("allow_direct", json!(true)),
        ("deny_delete", json!(true)),
        ("discard", json!("new")),
        ("storage", json!("file")),
        ("num_replicas", json!(1)),
        ("max_age", json!(0)),
    ] {
        assert_eq!(config[field], value, "{field} in {config}");
    }
    assert!(registry.last(KEY).is_some());
}

#[test]
fn a_bucket_without_the_flag_is_refused_with_the_command_that_mends_it() {
    let server = Server::any();
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({ "allow_msg_ttl": false }));
    let mut agent = agent(&server.url()).spawn();
    agent.wait_for_line(&format!("aegis-agent -s {} init", server.url()), secs(5));
    nothing_happens_for(secs(3));
    assert_eq!(registry.everything().len(), 0);
    assert_eq!(agent.lines().len(), 1, "said once: {}", agent.stderr());
    assert!(agent.is_running());

    registry.update(&json!({ "allow_msg_ttl": true }));
    agent.wait_for_line(REGISTERED, secs(3));
}

#[test]
fn over_an_entry_without_a_ttl_it_beats_twice_at_once() {
    let (server, mut registry) = bucket_on("", &json!({}));
    registry.put(KEY, &[], "{\"legacy\":true}");
    let watch = registry.watch(KEY);
    let _agent = patient_agent(&server.url(), "1m", "20s").spawn();
    let beats = watch.wait_for(2, secs(3));
    assert!(
        beats.iter().all(|beat| beat.header("Nats-TTL").as_deref() == Some("1m")
            || beat.header("Nats-TTL").as_deref() == Some("60s")),
        "{beats:?}"
    );
    let apart = beats[1].stored - beats[0].stored;
    assert!(apart < time::Duration::milliseconds(500), "{apart}");
    assert!(beats[1].last_heartbeat() >= beats[0].last_heartbeat());
}

#[test]
fn with_history_the_first_put_alone_rolls_up_and_nothing_comes_back() {
    let server = Server::any();
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({ "max_msgs_per_subject": 10 }));
    registry.put(KEY, &[], "{\"legacy\":1}");
    registry.put(KEY, &[], "{\"legacy\":2}");
    let watch = registry.watch(KEY);
    let mut agent = agent(&server.url()).spawn();
    let beats = watch.wait_for(5, secs(6));
    let rollups: Vec<_> = beats.iter().map(|beat| beat.header("Nats-Rollup")).collect();
    assert_eq!(rollups[0].as_deref(), Some("sub"));
    assert!(rollups[1..].iter().all(Option::is_none), "{rollups:?}");
    agent.signal("KILL");
    agent.wait_exit(secs(2));
    // Each revision below has a TTL of its own and has to go too.
    eventually(secs(6), "nothing is left", || match registry.revisions(KEY) {
        none if none.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    });
    nothing_happens_for(secs(1));
    assert!(registry.last(KEY).is_none());
}

/// "After `kill -9` or a power cut the entry is gone within TTL + 1 s": also where
/// another program stored a value without a TTL between two heartbeats.
#[test]
fn a_value_without_a_ttl_that_came_between_two_heartbeats_does_not_come_back() {
    for history in [1, 10] {
        let server = Server::any();
        let mut registry = Registry::at(&server.url());
        registry.create(&json!({ "max_msgs_per_subject": history }));
        let mut agent = agent(&server.url()).spawn();
        registered(&mut agent);
        registry.put(KEY, &[], "{\"legacy\":1}");
        let watch = registry.watch(KEY);
        // The one that meets it, the one at once after that, and the next one.
        let beats = watch.wait_for(3, secs(4));
        let at_once = beats[1].stored - beats[0].stored;
        assert!(at_once < time::Duration::milliseconds(300), "{history}: {at_once}");
        let next = beats[2].stored - beats[1].stored;
        assert!(next > time::Duration::milliseconds(300), "{history}: {next}");
        agent.signal("KILL");
        agent.wait_exit(secs(2));
        eventually(secs(6), "nothing is left", || match registry.revisions(KEY) {
            none if none.is_empty() => Ok(()),
            left => Err(format!("{history}: {left:?}")),
        });
    }
}

#[test]
fn where_rollups_are_not_allowed_it_deregisters_with_del() {
    let server = Server::any();
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({ "allow_rollup_hdrs": false }));
    let mut agent = agent(&server.url()).spawn();
    registered(&mut agent);
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
    let marker = registry.last(KEY).expect("a marker is left");
    assert_eq!(marker.header("KV-Operation").as_deref(), Some("DEL"));
    assert_eq!(marker.header("Nats-TTL").as_deref(), Some("60s"));
}

#[test]
fn an_entry_that_somebody_removed_is_back_with_the_next_heartbeat() {
    let (server, mut registry) = bucket_on("", &json!({}));
    let mut agent = agent(&server.url()).spawn();
    registered(&mut agent);
    registry.purge(KEY);
    eventually(millis(1_500), "it is back", || registry.last(KEY).ok_or_else(String::new));
}

#[test]
fn a_deleted_bucket_is_made_again() {
    let (server, mut registry) = bucket_on("", &json!({}));
    let mut agent = agent(&server.url()).spawn();
    registered(&mut agent);
    registry.delete();
    agent.wait_for_line("restored orders-api/host-1", secs(4));
    assert!(registry.last(KEY).is_some());
}

#[test]
fn poison_under_its_own_key_does_not_keep_it_from_registering() {
    let (server, mut registry) = bucket_on("", &json!({}));
    for poison in [&b"NATS/1.0\r\nno colon\r\n\r\n"[..], b"NATS/1.0\r\nx: \xff\r\n\r\n"] {
        registry.store(KEY.as_bytes(), poison, b"x");
        let mut agent = agent(&server.url()).spawn();
        registered(&mut agent);
        let own = registry.last(KEY).expect("it is there");
        assert_eq!(own.json()["metadata"]["pid"], agent.pid().to_string());
    }
}

/// `check` says the same, in the same words.
#[test]
fn a_bucket_that_defeats_its_ttl_is_said_once() {
    let minute = 60_000_000_000_u64;
    for (changes, words) in [
        (json!({ "max_age": 1_000_000_000_u64 }), "max_age 1s is not longer than the TTL of 2s"),
        (
            json!({ "max_msgs_per_subject": 10, "subject_delete_marker_ttl": minute }),
            "delete markers of 1m stretch a TTL of 2s to that",
        ),
        (
            json!({ "max_msgs_per_subject": 10, "allow_rollup_hdrs": false }),
            "roll-ups are not allowed (allow_rollup_hdrs)",
        ),
    ] {
        let server = Server::any();
        let mut registry = Registry::at(&server.url());
        registry.create(&changes);
        let mut agent = patient_agent(&server.url(), "2s", "500ms").spawn();
        registered(&mut agent);
        let line = agent.wait_for_line(words, secs(2)).text;
        assert!(line.contains("warning: bucket service_registry: "), "{line}");
        assert!(line.contains("hint: aegis-agent -s ") && line.contains(" init --"), "{line}");
        agent.signal("HUP");
        agent.wait_for_lines("registered orders-api/host-1", 2, secs(3));
        assert_eq!(agent.lines_with(words).len(), 1, "{}", agent.stderr());
    }
}

#[test]
fn an_agent_whose_heartbeats_were_all_refused_never_had_an_entry() {
    let server = Server::any();
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({ "max_bytes": 1_024, "max_msg_size": 100 }));
    let mut agent = agent(&server.url()).spawn();
    agent.wait_for_line("cannot register orders-api/host-1", secs(5));
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(5)), 0);
    agent.wait_for_line("stopped orders-api/host-1 before it was registered", secs(1));
}

// Others at the same key.

#[test]
fn an_agent_that_was_replaced_leaves_the_entry_of_its_successor_alone() {
    let (server, mut registry) = bucket_on("", &json!({}));
    let mut first = patient_agent(&server.url(), "1m", "20s").spawn();
    registered(&mut first);
    let mut second = patient_agent(&server.url(), "1m", "20s").spawn();
    registered(&mut second);
    let theirs = registry.last(KEY).expect("it is there");
    assert_eq!(theirs.json()["metadata"]["pid"], second.pid().to_string());
    first.signal("TERM");
    assert_eq!(first.wait_exit(secs(5)), 0);
    let left = registry.last(KEY).expect("it is still there");
    assert_eq!(left.revision, theirs.revision);
}

#[test]
fn two_agents_of_one_name_take_turns_and_say_so_once() {
    let (server, mut registry) = bucket_on("", &json!({}));
    let mut first = agent(&server.url()).spawn();
    registered(&mut first);
    let mut second = agent(&server.url()).spawn();
    registered(&mut second);
    let other = format!("pid {}", second.pid());
    first.wait_for_line(&other, secs(5));
    let watch = registry.watch(KEY);
    watch.wait_for(12, secs(10));
    let pids: std::collections::BTreeSet<String> =
        watch.seen().iter().map(|entry| entry.json()["metadata"]["pid"].to_string()).collect();
    assert_eq!(pids.len(), 2, "both are seen");
    for agent in [&first, &second] {
        assert!(agent.lines_with("writes this entry too").len() <= 1, "{}", agent.stderr());
    }
}

// Servers that are too old, away, gone or frozen.

#[test]
fn to_a_server_before_2_11_nothing_is_written() {
    let server = Server::start("2.10.25");
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({}));
    let mut agent = agent(&server.url()).spawn();
    agent.wait_for_line("2.10.25 is too old", secs(5));
    nothing_happens_for(secs(3));
    assert_eq!(registry.everything().len(), 0);
    assert_eq!(agent.lines().len(), 1, "said once: {}", agent.stderr());
    assert!(agent.is_running());
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(6)), 0);
}

#[test]
fn on_a_server_before_2_11_no_bucket_is_made() {
    let server = Server::start("2.10.25");
    let mut agent = agent(&server.url()).spawn();
    agent.wait_for_line("2.10.25 is too old", secs(5));
    nothing_happens_for(secs(2));
    assert!(Registry::at(&server.url()).info().is_err());
    assert!(agent.is_running());
}

#[test]
fn a_server_upgraded_from_2_10_is_taken_at_once() {
    let mut server = Server::start("2.10.25");
    let mut agent = agent(&server.url()).spawn();
    agent.wait_for_line("2.10.25 is too old", secs(5));
    server.restart_as("2.12.8");
    agent.wait_for_line(REGISTERED, secs(3));
}

#[test]
fn it_waits_for_a_server_that_is_absent_at_first() {
    let mut server = Server::absent(Setup::default());
    let mut agent = agent(&server.url()).spawn();
    agent.wait_for_line("cannot register orders-api/host-1", secs(5));
    nothing_happens_for(secs(4));
    assert_eq!(agent.lines().len(), 1, "said once: {}", agent.stderr());
    server.start_again();
    let ready = Instant::now();
    let line = agent.wait_for_line(REGISTERED, secs(5));
    let took = line.at.saturating_duration_since(ready);
    assert!(took < secs(2), "registered {took:?} after the server was ready");
}

#[test]
fn it_is_back_within_2_s_of_its_server_and_stores_nothing_stale() {
    let (mut server, mut registry) = bucket_on("", &json!({}));
    let watch = registry.watch(KEY);
    let mut agent = agent(&server.url()).spawn();
    watch.wait_for(3, secs(5));
    server.kill();
    agent.wait_for_line("lost orders-api/host-1", secs(8));
    time_passes(secs(4));
    let before = watch.seen().len();
    server.start_again();
    let ready = Instant::now();
    let line = agent.wait_for_line("restored orders-api/host-1", secs(5));
    let took = line.at.saturating_duration_since(ready);
    assert!(took < secs(2), "restored {took:?} after the server was ready");
    let seen = watch.wait_for(before + 4, secs(5));
    assert_not_stale(&seen);
    assert_eq!(agent.lines_with("lost").len(), 1, "{}", agent.stderr());
    assert_eq!(agent.lines_with("restored").len(), 1, "{}", agent.stderr());
    // The cause changes once, from a connection that ends to one that is refused.
    assert!(agent.lines().len() <= 4, "{}", agent.stderr());
}

#[test]
fn it_is_back_within_2_s_of_a_freeze_and_stores_at_most_what_was_under_way() {
    let (mut server, mut registry) = bucket_on("", &json!({}));
    let watch = registry.watch(KEY);
    let mut agent = agent(&server.url()).arg("--timeout=1s").spawn();
    watch.wait_for(3, secs(5));
    server.freeze();
    agent.wait_for_line("lost orders-api/host-1", secs(5));
    time_passes(secs(4));
    let before = watch.seen().len();
    server.thaw();
    let thawed = Instant::now();
    let line = agent.wait_for_line("restored orders-api/host-1", secs(5));
    let took = line.at.saturating_duration_since(thawed);
    assert!(took < secs(2), "restored {took:?} after the thaw");
    let seen = watch.wait_for(before + 5, secs(6));
    let late: Vec<_> = seen.iter().filter(|e| lateness(e).abs() > time::Duration::SECOND).collect();
    assert!(late.len() <= 1, "{late:?}");
}

#[test]
fn a_black_hole_is_noticed_and_survived() {
    let (server, mut registry) = bucket_on("", &json!({}));
    let proxy = Proxy::to(server.port());
    let mut agent = agent(&proxy.url()).arg("--timeout=1s").spawn();
    registered(&mut agent);
    proxy.set(Flow::Hold);
    agent.wait_for_line("lost orders-api/host-1", secs(4));
    eventually(secs(4), "its entry expires", || match gone(&mut registry, KEY) {
        true => Ok(()),
        false => Err("it is there".to_owned()),
    });
    proxy.cut();
    proxy.set(Flow::Forward);
    let healed = Instant::now();
    let line = agent.wait_for_line("restored orders-api/host-1", secs(5));
    assert!(line.at.saturating_duration_since(healed) < secs(3));
}

/// None of them is a frame.
#[test]
fn hostile_bytes_cost_a_session_and_not_the_agent() {
    let (server, mut registry) = bucket_on("", &json!({}));
    let proxy = Proxy::to(server.port());
    let mut agent = agent(&proxy.url()).arg("--timeout=1s").spawn();
    registered(&mut agent);
    let hostile: [&[u8]; 5] = [
        b"HMSG a 1 9 5\r\nxxxxxxxxx\r\n",
        b"MSG a 1 -5\r\n",
        b"MSG \xff\xfe 1 3\r\nabc\r\n",
        b"INFO {]\r\n",
        b"\0\0\0\0\r\n\r\nMSG\r\n",
    ];
    for (round, bytes) in hostile.into_iter().enumerate() {
        let once = AtomicBool::new(false);
        proxy.rewrite(move |honest| match once.swap(true, Ordering::SeqCst) {
            false => [bytes, honest].concat(),
            true => honest.to_vec(),
        });
        let seen = registry.last(KEY).map_or(0, |entry| entry.revision);
        eventually(secs(8), "it beats again", || match registry.last(KEY) {
            Some(entry) if entry.revision > seen + 3 => Ok(()),
            entry => Err(format!("round {round}: {entry:?}")),
        });
        assert!(agent.is_running());
    }
    assert!(!agent.stderr().contains("panicked"), "{}", agent.stderr());
}

#[test]
fn a_delay_is_followed_by_one_heartbeat_and_not_by_a_burst() {
    let (server, mut registry) = bucket_on("", &json!({}));
    let watch = registry.watch(KEY);
    let mut agent = patient_agent(&server.url(), "20s", "500ms").spawn();
    registered(&mut agent);
    watch.wait_for(3, secs(5));
    agent.signal("STOP");
    time_passes(secs(3));
    let before = watch.seen().len();
    agent.signal("CONT");
    let seen = watch.wait_for(before + 4, secs(5));
    let gaps: Vec<f64> = seen[before..]
        .windows(2)
        .map(|pair| (pair[1].stored - pair[0].stored).as_seconds_f64())
        .collect();
    assert!(gaps.iter().all(|&gap| gap > 0.35), "{gaps:?}");
}

#[test]
fn heartbeats_cost_no_memory() {
    let (server, mut registry) = bucket_on("", &json!({}));
    let mut agent = patient_agent(&server.url(), "5s", "10ms").spawn();
    registered(&mut agent);
    let mut beats = |count: u64| {
        eventually(secs(60), "many heartbeats", || {
            let revision = registry.last(KEY).map_or(0, |entry| entry.revision);
            if revision >= count { Ok(()) } else { Err(format!("revision {revision}")) }
        });
        agent.usage()
    };
    let (early, late) = (beats(200), beats(1_000));
    eprintln!("after 200 heartbeats {early:?}, after 1,000 {late:?}");
    assert_eq!((late.threads, late.descriptors), (early.threads, early.descriptors));
    assert!(late.anonymous_kib < early.anonymous_kib + 200, "{early:?}, {late:?}");
    assert!(late.resident_kib < 16 * 1024, "{late:?}");
}

#[test]
fn twenty_cut_connections_leave_no_thread_and_no_descriptor_behind() {
    let (server, _registry) = bucket_on("", &json!({}));
    let proxy = Proxy::to(server.port());
    // Of outages that are over at once only the first are told without it.
    let mut agent = agent(&proxy.url()).arg("--verbose").spawn();
    registered(&mut agent);
    let before = agent.usage();
    for round in 1..=20 {
        proxy.cut();
        agent.wait_for_lines("restored", round, secs(5));
    }
    eventually(secs(5), "threads and descriptors as before", || {
        let now = agent.usage();
        match (now.threads, now.descriptors) == (before.threads, before.descriptors) {
            true => Ok(()),
            false => Err(format!("before {before:?}, now {now:?}")),
        }
    });
}

/// Runs an agent, does `harm` to its server, sends SIGTERM and returns how
/// long the agent took to end, with 0.
fn stopped_after(timeout: &str, harm: impl FnOnce(&mut Server)) -> (Duration, String) {
    let (mut server, _registry) = bucket_on("", &json!({}));
    let mut agent =
        patient_agent(&server.url(), "30s", "10s").arg("--timeout").arg(timeout).spawn();
    registered(&mut agent);
    harm(&mut server);
    agent.signal("TERM");
    let start = Instant::now();
    assert_eq!(agent.wait_exit(secs(15)), 0);
    (start.elapsed(), agent.stderr())
}

#[test]
fn sigterm_with_the_server_frozen_ends_it_within_its_timeout() {
    let (took, said) = stopped_after("2s", Server::freeze);
    assert!(took < secs(3), "{took:?}");
    assert!(said.contains("without deregistering"), "{said}");
}

#[test]
fn sigterm_with_the_server_gone_ends_it_within_its_timeout() {
    let (took, said) = stopped_after("2s", Server::kill);
    assert!(took < secs(3), "{took:?}");
    assert!(said.contains("without deregistering"), "{said}");
}

#[test]
fn sigterm_before_it_ever_registered_ends_it_at_once() {
    let server = Server::absent(Setup::default());
    let mut agent = agent(&server.url()).spawn();
    agent.wait_for_line("cannot register", secs(5));
    agent.signal("TERM");
    let start = Instant::now();
    assert_eq!(agent.wait_exit(secs(10)), 0);
    assert!(start.elapsed() < secs(1), "{:?}", start.elapsed());
}

#[test]
fn sigterm_while_it_connects_to_a_silent_peer_ends_it_within_its_timeout() {
    let mut server = Server::any();
    server.freeze();
    let mut agent = agent(&server.url()).arg("--timeout=3s").spawn();
    // It is waiting for the greeting by now.
    time_passes(millis(500));
    agent.signal("TERM");
    let start = Instant::now();
    assert_eq!(agent.wait_exit(secs(10)), 0);
    assert!(start.elapsed() < secs(4), "{:?}", start.elapsed());
}

#[test]
fn refused_logins_are_said_once_and_tried_again() {
    let server = Server::with(Setup {
        extra: "authorization { user: good, password: right }\n".to_owned(),
        ..Setup::default()
    });
    let mut agent =
        agent(&server.url()).env("NATS_USER", "good").env("NATS_PASSWORD", "wrong").spawn();
    agent.wait_for_line("cannot register", secs(5));
    nothing_happens_for(secs(3));
    assert_eq!(agent.lines().len(), 1, "{}", agent.stderr());
    assert!(!agent.stderr().contains("wrong"), "no secret in the log: {}", agent.stderr());
    assert!(agent.is_running());
}

#[test]
fn with_three_servers_it_outlives_the_one_that_it_is_connected_to() {
    let mut cluster = Cluster::start(&["2.12.8"]);
    Registry::at(&cluster.servers[0].url()).create(&json!({ "num_replicas": 3 }));
    let leader = cluster.leader("service_registry", 0);
    // The leader comes first: the agent connects to it and loses both.
    let order = [leader, (leader + 1) % 3, (leader + 2) % 3];
    let urls: Vec<String> = order.iter().map(|&place| cluster.servers[place].url()).collect();
    let mut agent = patient_agent(&urls.join(","), "20s", "1s").spawn();
    registered(&mut agent);
    cluster.servers[leader].kill();
    agent.wait_for_line("restored orders-api/host-1", secs(20));
    let mut registry = Registry::at(&urls[1]);
    assert!(registry.last(KEY).is_some_and(|entry| !entry.is_marker()));
}
