//! `watch`: what it tells against what really happened, on real servers, under
//! faults, and with a great many instances.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::{Value, json};
use time::{OffsetDateTime, SignedDuration};

use crate::harness::agent::{Agent, aegis};
use crate::harness::proxy::{Flow, Proxy};
use crate::harness::registry::{Registry, header};
use crate::harness::scene::bucket_with;
use crate::harness::server::{Server, Setup};
use crate::harness::watcher::{Watcher, words};
use crate::harness::{
    eventually, millis, nothing_happens_for, scratch, secs, send_signal, time as rfc3339,
    time_passes,
};

const VERSIONS: [&str; 3] = ["2.11.11", "2.12.8", "2.15.1"];

fn time_of(event: &Value) -> OffsetDateTime {
    rfc3339::parse(event["time"].as_str().expect("a time"))
}

fn key(instance: &str) -> String {
    format!("service-instances__orders-api__{instance}")
}

fn record(instance: &str, status: &str) -> String {
    let heartbeat = rfc3339::rfc3339(rfc3339::now());
    json!({
        "serviceName": "orders-api", "instanceId": instance, "version": "1.0.0", "status": status,
        "lastHeartbeat": heartbeat, "stickyActiveGroup": null, "metadata": {},
    })
    .to_string()
}

fn beat(registry: &mut Registry, instance: &str, ttl: &str) -> OffsetDateTime {
    registry.put(&key(instance), &[("Nats-TTL", ttl)], &record(instance, "ACTIVE"));
    registry.last(&key(instance)).expect("just stored").stored
}

fn agent(url: &str, instance: &str, ttl: &str) -> Agent {
    let ttl = format!("--ttl={ttl}");
    let name = format!("--instance={instance}");
    aegis(&["run", "--service=orders-api", &name, &ttl, "--interval=500ms", "-s", url]).spawn()
}

/// "`down: expired` comes by the registry's clock at store time + TTL (+ at
/// most 1 s)"; 100 ms either way are for the way of an answer and a busy machine.
fn expired_in_time(event: &Value, stored: OffsetDateTime, ttl: i64) {
    let after = time_of(event) - (stored + SignedDuration::seconds(ttl));
    let limits = SignedDuration::milliseconds(-100)..SignedDuration::milliseconds(1_100);
    assert!(limits.contains(&after), "{after} after the end of its TTL: {event}");
}

#[test]
fn every_way_to_come_and_to_go_is_told_once_with_its_reason() {
    for version in VERSIONS {
        for changes in [json!({}), json!({ "subject_delete_marker_ttl": 60_000_000_000_u64 })] {
            ways_to_come_and_to_go(version, &changes);
        }
    }
}

fn ways_to_come_and_to_go(version: &str, changes: &Value) {
    let server = Server::start(version);
    let mut registry = Registry::at(&server.url());
    registry.create(changes);
    beat(&mut registry, "before", "60s");
    registry.put("echo-service", &[], "{}");
    let mut watcher = Watcher::start(&server.url(), &[]);
    watcher.wait_for("synced", secs(3));
    assert_eq!(watcher.words(), ["up before", "synced"]);

    // A crash: SIGKILL, and nobody says anything.
    let mut crashed = agent(&server.url(), "crashed", "2s");
    watcher.wait_for("up crashed", secs(3));
    time_passes(millis(700));
    crashed.signal("KILL");
    crashed.wait_exit(secs(2));
    let stored = registry.last(&key("crashed")).expect("it beat").stored;
    expired_in_time(&watcher.wait_for("down crashed expired", secs(4)), stored, 2);

    // A service that is stopped.
    let stopped = agent(&server.url(), "stopped", "10s");
    watcher.wait_for("up stopped", secs(3));
    let at = Instant::now();
    stopped.signal("TERM");
    watcher.wait_for("down stopped deregistered", secs(1));
    assert!(at.elapsed() < secs(1));

    // Somebody deletes, purges, or cleans up.
    for instance in ["deleted", "purged", "cleaned"] {
        beat(&mut registry, instance, "60s");
        watcher.wait_for(&format!("up {instance}"), secs(2));
    }
    registry.put(&key("deleted"), &[("KV-Operation", "DEL")], "");
    watcher.wait_for("down deleted removed", secs(2));
    registry.purge(&key("purged"));
    watcher.wait_for("down purged removed", secs(8));
    registry.put(&key("cleaned"), &[("Nats-TTL", "60s")], &record("cleaned", "UNHEALTHY"));
    watcher.wait_for("changed cleaned UNHEALTHY", secs(2));
    aegis(&["cleanup", "-s", &server.url()]).run().exits(0);
    watcher.wait_for("down cleaned removed", secs(8));

    // It is back after its time.
    beat(&mut registry, "crashed", "60s");
    watcher.wait_for_nth("up crashed", 2, secs(2));
    let words = watcher.words();
    watcher.stop();
    assert_eq!(
        words,
        [
            "up before",
            "synced",
            "up crashed",
            "down crashed expired",
            "up stopped",
            "down stopped deregistered",
            "up deleted",
            "up purged",
            "up cleaned",
            "down deleted removed",
            "down purged removed",
            "changed cleaned UNHEALTHY",
            "down cleaned removed",
            "up crashed",
        ],
        "{version} {changes}"
    );
}

#[test]
fn an_agent_that_beats_is_never_called_down_by_a_frozen_or_killed_server() {
    let (mut server, mut registry) = bucket_with(&json!({}));
    let _agents = ["a", "b"].map(|instance| agent(&server.url(), instance, "30s"));
    let mut watcher = Watcher::start(&server.url(), &[]);
    watcher.wait_for("synced", secs(3));
    for instance in ["a", "b"] {
        watcher.wait_for(&format!("up {instance}"), secs(3));
    }
    server.freeze();
    let frozen = Instant::now();
    watcher.wait_for("lost", secs(4));
    assert!(frozen.elapsed() < millis(2_800), "{:?}", frozen.elapsed());
    time_passes(secs(3));
    server.thaw();
    watcher.wait_for_nth("synced", 2, secs(4));
    server.kill();
    watcher.wait_for_nth("lost", 2, secs(1));
    time_passes(secs(2));
    server.start_again();
    watcher.wait_for_nth("synced", 3, secs(6));
    registry.reconnect();
    let words = watcher.words();
    assert_eq!(words.iter().filter(|word| word.starts_with("up")).count(), 2, "{words:?}");
    assert!(!words.iter().any(|word| word.starts_with("down")), "{words:?}");
    let lost = watcher.events().into_iter().find(|event| event["event"] == "lost");
    assert!(lost.expect("there is one")["why"].as_str().is_some_and(|why| !why.is_empty()));
    assert!(watcher.log().contains("up to date again after"), "{}", watcher.log());
    watcher.stop();
}

#[test]
fn what_changed_while_it_was_cut_off_is_told_when_it_is_back() {
    let (server, mut registry) = bucket_with(&json!({}));
    let proxy = Proxy::to(server.port());
    for instance in ["same", "leaves", "changes", "purged", "expires"] {
        beat(&mut registry, instance, if instance == "expires" { "2s" } else { "60s" });
    }
    let mut watcher = Watcher::start(&proxy.url(), &[]);
    watcher.wait_for("synced", secs(3));
    proxy.set(Flow::Hold);
    watcher.wait_for("lost", secs(4));
    registry.put(&key("leaves"), &[("KV-Operation", "PURGE"), ("Nats-TTL", "60s")], "");
    registry.put(&key("changes"), &[("Nats-TTL", "60s")], &record("changes", "STANDBY"));
    registry.purge(&key("purged"));
    beat(&mut registry, "appears", "60s");
    time_passes(secs(2));
    let before = watcher.words().len();
    proxy.cut();
    proxy.set(Flow::Forward);
    let back = Instant::now();
    watcher.wait_for_nth("synced", 2, secs(6));
    assert!(back.elapsed() < millis(4_500), "{:?}", back.elapsed());
    let mut told = watcher.words()[before..].to_vec();
    assert_eq!(told.pop().as_deref(), Some("synced"));
    told.sort();
    assert_eq!(
        told,
        [
            "changed changes STANDBY",
            "down expires expired",
            "down leaves deregistered",
            "down purged removed",
            "up appears",
        ]
    );
    assert_eq!(watcher.words().iter().filter(|word| *word == "lost").count(), 1);
    watcher.stop();
}

#[test]
fn on_a_slow_link_expiry_is_in_time_and_nobody_is_lost() {
    let (server, mut registry) = bucket_with(&json!({}));
    let proxy = Proxy::to(server.port());
    proxy.delay(millis(250));
    let _alive = agent(&server.url(), "alive", "2s");
    let mut watcher = Watcher::start(&proxy.url(), &[]);
    watcher.wait_for("synced", secs(10));
    let stored = beat(&mut registry, "dies", "2s");
    expired_in_time(&watcher.wait_for("down dies expired", secs(5)), stored, 2);
    nothing_happens_for(secs(3));
    let mut told = watcher.words();
    told.retain(|word| word != "synced" && word != "up alive");
    assert_eq!(told, ["up dies", "down dies expired"]);
    watcher.stop();
}

/// The watcher itself is stopped for longer than a TTL.
#[test]
fn a_watcher_that_was_stopped_itself_calls_nobody_down() {
    let (server, _registry) = bucket_with(&json!({}));
    let _agent = agent(&server.url(), "a", "2s");
    let mut watcher = Watcher::start(&server.url(), &[]);
    watcher.wait_for("up a", secs(3));
    watcher.wait_for("synced", secs(3));
    send_signal(watcher.child.id(), "STOP");
    time_passes(secs(6));
    send_signal(watcher.child.id(), "CONT");
    nothing_happens_for(secs(3));
    assert!(!watcher.words().iter().any(|word| word.starts_with("down")), "{:?}", watcher.words());
    watcher.stop();
}

#[test]
fn it_waits_for_server_and_bucket_and_says_so_once() {
    let mut server = Server::absent(Setup::default());
    let mut watcher = Watcher::start(&server.url(), &["--timeout=1s"]);
    let lost = watcher.wait_for("lost", secs(4));
    assert!(lost["why"].as_str().is_some_and(|why| why.contains("refused")), "{lost}");
    server.start_again();
    let wanted = "does not exist";
    eventually(secs(6), "it misses the bucket", || match watcher.log() {
        log if log.contains(wanted) => Ok(()),
        log => Err(log),
    });
    // The command that is named goes to this server.
    let hint = format!("hint: aegis-agent -s {} init", server.url());
    assert!(watcher.log().contains(&hint), "{}", watcher.log());
    Registry::at(&server.url()).create(&json!({}));
    watcher.wait_for("synced", secs(4));
    assert_eq!(watcher.words(), ["lost", "synced"]);
    watcher.stop();
    let mut waiting = Watcher::start("nats://127.0.0.1:1", &[]);
    waiting.wait_for("lost", secs(8));
    waiting.stop();
}

#[test]
fn a_bucket_that_is_deleted_and_made_anew_is_followed() {
    let (server, mut registry) = bucket_with(&json!({}));
    beat(&mut registry, "a", "60s");
    let mut watcher = Watcher::start(&server.url(), &[]);
    watcher.wait_for("synced", secs(3));
    registry.delete();
    let lost = watcher.wait_for("lost", secs(4));
    assert!(lost["why"].as_str().is_some_and(|why| why.contains("does not exist")), "{lost}");
    registry.create(&json!({}));
    beat(&mut registry, "b", "60s");
    watcher.wait_for_nth("synced", 2, secs(6));
    assert_eq!(watcher.words(), ["up a", "synced", "lost", "up b", "down a removed", "synced"],);
    watcher.stop();
}

/// A key whose revision is replaced between the consumer's look and its delivery
/// comes with the next one. Nobody is missing for that: neither where the state is
/// read anew because of a purge, nor at the start.
#[test]
fn a_state_that_is_read_among_many_heartbeats_is_whole() {
    const COUNT: usize = 300;
    let (server, mut registry) = bucket_with(&json!({ "storage": "memory" }));
    let headers = header(&[("Nats-TTL", "60s")]);
    let each = move |i: usize| {
        let instance = format!("i{i}");
        (key(&instance), headers.clone(), record(&instance, "ACTIVE"))
    };
    registry.fill(COUNT, &each);
    let end = Arc::new(AtomicBool::new(false));
    let writer = {
        let (end, url) = (end.clone(), server.url());
        std::thread::spawn(move || {
            let mut registry = Registry::at(&url);
            while !end.load(Ordering::SeqCst) {
                registry.fill(COUNT, &each);
            }
        })
    };
    let mut watcher = Watcher::start(&server.url(), &[]);
    watcher.wait_for("synced", secs(5));
    for round in 1..=12 {
        if round % 4 == 1 {
            let name = format!("gone{round}");
            beat(&mut registry, &name, "60s");
            watcher.wait_for(&format!("up {name}"), secs(3));
            registry.purge(&key(&name));
            watcher.wait_for(&format!("down {name} removed"), secs(8));
        }
        // At the start.
        let mut other = Watcher::start(&server.url(), &[]);
        other.wait_for("synced", secs(5));
        let told = other.words();
        let synced = told.iter().position(|word| word == "synced");
        assert_eq!(synced, Some(COUNT), "round {round}: all are told before it");
        other.stop();
    }
    end.store(true, Ordering::SeqCst);
    writer.join().expect("the writer ends");
    let told = watcher.words();
    let down = told.iter().filter(|word| word.starts_with("down") && !word.contains("gone"));
    assert_eq!(down.collect::<Vec<_>>(), Vec::<&String>::new());
    watcher.stop();
}

#[test]
fn names_choose_what_is_watched() {
    let (server, mut registry) = bucket_with(&json!({}));
    let mut watcher = Watcher::start(&server.url(), &["orders-api/a", "web"]);
    watcher.wait_for("synced", secs(3));
    for instance in ["b", "a"] {
        beat(&mut registry, instance, "60s");
    }
    watcher.wait_for("up a", secs(2));
    registry.purge(&key("b"));
    nothing_happens_for(secs(1));
    assert_eq!(watcher.words(), ["synced", "up a"]);
    watcher.stop();
}

#[test]
fn what_is_up_is_what_list_shows() {
    let (server, mut registry) = bucket_with(&json!({ "max_msgs_per_subject": 5 }));
    let old = rfc3339::rfc3339(rfc3339::now() - SignedDuration::seconds(40));
    for i in 0..60 {
        let instance = format!("i{}", i % 25);
        let mut text = record(&instance, ["ACTIVE", "STANDBY", "UNHEALTHY", "SHUTDOWN"][i % 4]);
        match i % 7 {
            0 => text = "x".into(),
            1 => {
                let mut json: Value = serde_json::from_str(&text).expect("JSON");
                json["lastHeartbeat"] = json!(old);
                text = json.to_string();
            }
            _ => {}
        }
        let headers: &[(&str, &str)] = match i % 5 {
            0 => &[],
            1 => &[("Nats-TTL", "60s"), ("KV-Operation", "DEL")],
            _ => &[("Nats-TTL", "60s")],
        };
        registry.put(&key(&instance), headers, &text);
    }
    registry.store(b"service-instances__bad__*", b"NATS/1.0\r\nno colon\r\n\r\n", b"{}");
    let list = aegis(&["list", "--json", "-s", &server.url()]).run().exits(0).json();
    let mut watcher = Watcher::start(&server.url(), &[]);
    watcher.wait_for("synced", secs(3));
    let field = |of: &Value, name: &str| of[name].to_string();
    let mut listed: Vec<_> = list["instances"]
        .as_array()
        .expect("an array")
        .iter()
        .map(|one| (field(one, "instanceId"), field(one, "revision"), field(one, "status")))
        .collect();
    let mut up: Vec<_> = watcher
        .events()
        .iter()
        .filter(|event| event["event"] == "up")
        .map(|one| (field(one, "instanceId"), field(one, "revision"), field(one, "status")))
        .collect();
    listed.sort();
    up.sort();
    assert!(listed.len() > 5, "{list}");
    assert_eq!(up, listed);
    watcher.stop();
}

#[test]
fn text_is_for_people_and_ctrl_c_is_exit_0() {
    let (server, mut registry) = bucket_with(&json!({}));
    beat(&mut registry, "host-1", "60s");
    let mut running = aegis(&["watch", "-s", &server.url()]).spawn();
    time_passes(secs(1));
    running.signal("INT");
    assert_eq!(running.wait_exit(secs(2)), 0);
    let output = aegis(&["watch", "-s", &server.url()]);
    let mut child = output.command().spawn().expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = || lines.next().expect("a line").expect("reads");
    assert!(next().starts_with("times of day are those of UTC"));
    let up = next();
    assert_eq!(&up[8..], " up    orders-api/host-1  1.0.0 ACTIVE");
    assert_eq!(&next()[8..], " synced");
    // The reader goes, and nothing else happens.
    drop(lines);
    let status = eventually(secs(2), "watch ends with its reader", || {
        child.try_wait().expect("waits").ok_or_else(|| "it runs".to_owned())
    });
    assert_eq!(status.code(), Some(0));
}

fn fill(registry: &mut Registry, count: usize, ttl: &str) {
    let headers = header(&[("Nats-TTL", ttl)]);
    registry.fill(count, |i| {
        let instance = format!("host-{i:06}");
        (key(&instance), headers.clone(), record(&instance, "ACTIVE"))
    });
}

#[test]
fn a_reader_that_does_not_read_keeps_it_from_nothing_and_ends_it_in_time() {
    let (server, mut registry) = bucket_with(&json!({}));
    fill(&mut registry, 8_000, "10m");
    let invocation = aegis(&["watch", "--json", "-s", &server.url()]);
    for stop in [true, false] {
        let mut child = invocation.command().stderr(Stdio::piped()).spawn().expect("starts");
        if stop {
            time_passes(secs(3));
            send_signal(child.id(), "TERM");
        }
        let limit = if stop { secs(1) } else { secs(20) };
        let status = eventually(limit, "it ends although nobody reads", || {
            child.try_wait().expect("waits").ok_or_else(|| "it runs".to_owned())
        });
        let mut log = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut log).expect("reads");
        assert_eq!(status.code(), Some(if stop { 0 } else { 75 }), "{log}");
        assert_eq!(log.contains("nobody reads standard output"), !stop, "{log}");
    }
}

// `--exec`.

/// A command that writes what it was told to files of its own.
fn script(body: &str) -> (std::path::PathBuf, String) {
    let directory = scratch("exec");
    let path = directory.join("hook");
    let text = format!("#!/bin/sh\ncd '{}'\n{body}\n", directory.display());
    std::fs::write(&path, text).expect("writes the script");
    let permissions = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&path, permissions).expect("makes it executable");
    (directory, path.display().to_string())
}

fn runs(directory: &std::path::Path) -> Vec<(u64, Vec<String>)> {
    let mut runs = Vec::new();
    for number in 1.. {
        let read = |what: &str| std::fs::read_to_string(directory.join(format!("{what}.{number}")));
        let (Ok(events), Ok(state)) = (read("events"), read("state")) else { break };
        let state: Value = serde_json::from_str(&state).expect("the state is JSON");
        let names = state["instances"].as_array().expect("an array").iter();
        let names = names.map(|one| one["instanceId"].as_str().expect("a name").to_owned());
        runs.push((events.trim().parse().expect("a number"), names.collect()));
    }
    runs
}

const RECORD: &str = "n=$(($(cat count 2>/dev/null || echo 0) + 1))
cat >state; echo $AEGIS_EVENTS >events
mv state state.$n; mv events events.$n; echo $n >count";

fn wait_for_runs(directory: &std::path::Path, count: usize) -> Vec<(u64, Vec<String>)> {
    eventually(secs(5), &format!("{count} runs"), || match runs(directory) {
        runs if runs.len() >= count => Ok(runs),
        runs => Err(format!("{runs:?}")),
    })
}

#[test]
fn the_command_reads_the_state_after_each_change_and_changes_go_together() {
    let (server, mut registry) = bucket_with(&json!({}));
    beat(&mut registry, "a", "60s");
    let (directory, command) = script(RECORD);
    let mut watcher = Watcher::start(&server.url(), &["--exec", &command, "--settle=300ms"]);
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(wait_for_runs(&directory, 1), [(1, names(&["a"]))]);
    for instance in ["b", "c", "d"] {
        beat(&mut registry, instance, "60s");
    }
    assert_eq!(wait_for_runs(&directory, 2)[1..], [(3, names(&["a", "b", "c", "d"]))]);
    // A heartbeat is no change.
    beat(&mut registry, "a", "60s");
    nothing_happens_for(millis(800));
    assert_eq!(runs(&directory).len(), 2);
    registry.put(&key("c"), &[("KV-Operation", "DEL")], "");
    let list = aegis(&["list", "--json", "-s", &server.url()]).run().exits(0).json();
    wait_for_runs(&directory, 3);
    let state = std::fs::read_to_string(directory.join("state.3")).expect("it was written");
    let state: Value = serde_json::from_str(&state).expect("JSON");
    let but_time = |mut document: Value| {
        document["serverTime"] = Value::Null;
        for one in document["instances"].as_array_mut().into_iter().flatten() {
            one["ageSeconds"] = Value::Null;
        }
        document
    };
    assert_eq!(but_time(state), but_time(list), "as list --json prints it");
    watcher.stop();
}

#[test]
fn a_command_that_fails_is_reported_and_runs_again_with_the_next_change() {
    let (server, mut registry) = bucket_with(&json!({}));
    let (directory, command) = script(&format!("{RECORD}\n[ $n -gt 1 ] || exit 3"));
    let mut watcher = Watcher::start(&server.url(), &["--exec", &command]);
    wait_for_runs(&directory, 1);
    eventually(secs(2), "the failure is reported", || match watcher.log() {
        log if log.contains("exit status: 3") => Ok(()),
        log => Err(log),
    });
    nothing_happens_for(millis(500));
    assert_eq!(runs(&directory).len(), 1);
    beat(&mut registry, "a", "60s");
    wait_for_runs(&directory, 2);
    eventually(secs(2), "it is said that it works", || match watcher.log() {
        log if log.contains("works again") => Ok(()),
        log => Err(log),
    });
    watcher.stop();
}

#[test]
fn a_command_that_hangs_delays_no_event_and_is_ended_with_all_its_children() {
    let (server, mut registry) = bucket_with(&json!({}));
    let (directory, command) = script("sleep 100 & echo $! >child; echo $$ >pid; wait");
    let mut watcher = Watcher::start(&server.url(), &["--exec", &command]);
    let pids = eventually(secs(3), "the command runs", || {
        let read = |name: &str| std::fs::read_to_string(directory.join(name));
        match (read("pid"), read("child")) {
            (Ok(pid), Ok(child)) if !pid.is_empty() && !child.is_empty() => Ok([pid, child]),
            other => Err(format!("{other:?}")),
        }
    });
    beat(&mut registry, "a", "1s");
    watcher.wait_for("up a", millis(500));
    watcher.wait_for("down a expired", secs(3));
    watcher.stop();
    for pid in pids.map(|pid| pid.trim().to_owned()) {
        eventually(secs(2), "nothing of it is left", || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let is_gone = stat.is_empty() || stat.contains(") Z ");
            if is_gone { Ok(()) } else { Err(stat) }
        });
    }
}

// Against the truth.

type Histories = BTreeMap<String, Vec<String>>;

/// What each instance did by the server's own record, told from the revisions
/// alone. What came a little too late may have been `told` as down or not: a
/// watcher that does not get to run just then sees it first.
fn truth(seen: &[crate::harness::registry::Entry], ttl: i64, told: &Histories) -> Histories {
    let little = SignedDuration::seconds(1);
    let mut of: BTreeMap<String, Vec<(OffsetDateTime, bool)>> = BTreeMap::new();
    for entry in seen {
        let instance = entry.key().rsplit("__").next().expect("a name").to_owned();
        of.entry(instance).or_default().push((entry.stored, entry.is_marker()));
    }
    let mut truth = BTreeMap::new();
    for (instance, revisions) in of {
        let said = told.get(&instance);
        let down = format!("down {instance} expired");
        let mut told = Vec::new();
        let mut alive_until: Option<OffsetDateTime> = None;
        for (stored, is_marker) in revisions {
            let is_said = said.and_then(|said| said.get(told.len())) == Some(&down);
            if alive_until.is_some_and(|until| {
                stored > until && (is_said || stored > until.saturating_add(little))
            }) {
                told.push(down.clone());
                alive_until = None;
            }
            match (is_marker, alive_until) {
                (true, Some(_)) => {
                    told.push(format!("down {instance} deregistered"));
                    alive_until = None;
                }
                (true, None) => {}
                (false, until) => {
                    if until.is_none() {
                        told.push(format!("up {instance}"));
                    }
                    alive_until = Some(stored + SignedDuration::milliseconds(ttl * 1_000 + 300));
                }
            }
        }
        if alive_until.is_some() {
            told.push(format!("down {instance} expired"));
        }
        truth.insert(instance, told);
    }
    truth
}

#[test]
fn a_random_history_is_told_as_it_was() {
    let (server, mut registry) = bucket_with(&json!({}));
    let record_of_all = registry.watch(">");
    let mut watcher = Watcher::start(&server.url(), &[]);
    watcher.wait_for("synced", secs(3));
    let seed = u64::from(std::process::id());
    eprintln!("seed {seed}");
    let mut random: u64 = 0x9e37_79b9_7f4a_7c15_u64 ^ seed;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let mut agents: Vec<Option<Agent>> = (0..8).map(|_| None).collect();
    let end = Instant::now() + secs(20);
    while Instant::now() < end {
        let place = next(8) as usize;
        agents[place] = match agents[place].take() {
            None => Some(agent(&server.url(), &format!("i{place}"), "2s")),
            Some(mut one) => match next(4) {
                0 => {
                    one.signal("KILL");
                    one.wait_exit(secs(2));
                    None
                }
                1 => {
                    one.signal("TERM");
                    one.wait_exit(secs(3));
                    None
                }
                2 => {
                    one.signal("STOP");
                    time_passes(millis(next(3_000)));
                    one.signal("CONT");
                    Some(one)
                }
                _ => Some(one),
            },
        };
        time_passes(millis(next(300)));
    }
    drop(agents);
    // The last one is gone 2.3 s after its last heartbeat.
    time_passes(secs(5));
    let mut told = Histories::new();
    for event in watcher.events() {
        if let Some(instance) = event["instanceId"].as_str() {
            // The process that follows one that died has another pid.
            if event["event"] != "changed" {
                told.entry(instance.to_owned()).or_default().push(words(&event));
            }
        }
    }
    let truth = truth(&record_of_all.seen(), 2, &told);
    let changes: usize = truth.values().map(Vec::len).sum();
    assert!(changes > 20, "{truth:?}");
    assert_eq!(told, truth);
    watcher.stop();
}

// A great many.

#[test]
fn a_hundred_thousand_instances_and_their_heartbeats_fit_into_little_memory() {
    const COUNT: usize = 100_000;
    let (server, mut registry) = bucket_with(&json!({ "storage": "memory" }));
    fill(&mut registry, COUNT, "10m");
    let invocation = aegis(&["watch", "--json", "--stale-after=1h", "-s", &server.url()]);
    let mut command = invocation.command();
    let mut child = command.spawn().expect("starts");
    let lines = Arc::new(Mutex::new(BTreeMap::<String, u64>::new()));
    let (into, stdout) = (lines.clone(), child.stdout.take().expect("piped"));
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let word = line.split('"').nth(5).unwrap_or_default().to_owned();
            *into.lock().expect("not poisoned").entry(word).or_default() += 1;
        }
    });
    let count = |word: &str| lines.lock().expect("not poisoned").get(word).copied().unwrap_or(0);
    let began = Instant::now();
    eventually(secs(60), "the state is told", || match count("synced") {
        0 => Err(format!("{} up", count("up"))),
        _ => Ok(()),
    });
    let synced = began.elapsed();
    let status = |name: &str| {
        let path = format!("/proc/{}/status", child.id());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        line.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0)
    };
    let cpu = || {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
        let words: Vec<u64> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .map(|word| word.parse().unwrap_or(0))
            .collect();
        10 * (words[11] + words[12])
    };
    let (before, start) = (cpu(), Instant::now());
    let mut beats = 0;
    // Ten thousand a second, for five seconds unless a minute is asked for.
    let seconds = std::env::var("AEGIS_WATCH_SECONDS").ok().and_then(|text| text.parse().ok());
    for round in 1..=seconds.unwrap_or(5_u32) {
        let headers = header(&[("Nats-TTL", "10m")]);
        registry.fill(10_000, |i| {
            let instance = format!("host-{:06}", i * 10 + round as usize % 10);
            (key(&instance), headers.clone(), record(&instance, "ACTIVE"))
        });
        beats += 10_000;
        std::thread::sleep((start + secs(1) * round).saturating_duration_since(Instant::now()));
    }
    let (took, used) = (start.elapsed(), cpu() - before);
    eprintln!(
        "watch: {COUNT} instances told in {synced:?}; {beats} heartbeats in {took:?} took {used} ms \
         of CPU; {} KiB resident, {} KiB at most",
        status("VmRSS"),
        status("VmHWM")
    );
    assert_eq!((count("up"), count("changed"), count("down")), (COUNT as u64, 0, 0));
    // The program itself, its buffers and the picture.
    assert!(status("VmHWM") < 48 << 10, "{} KiB", status("VmHWM"));
    child.kill().expect("ends it");
    child.wait().expect("waits");
}
