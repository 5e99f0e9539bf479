//! `cleanup`: what goes, what stays, and what it says about it.

use std::process::{Command, Stdio};
use std::sync::Mutex;

use serde_json::{Value, json};
use time::Duration;

use crate::harness::agent::{Output, aegis};
use crate::harness::proxy::Proxy;
use crate::harness::registry::{Registry, header};
use crate::harness::scene::{any_bucket, bucket_with};
use crate::harness::server::{Server, Setup};
use crate::harness::{millis, scratch, secs, time as rfc3339, time_passes};

pub const TTL: &[(&str, &str)] = &[("Nats-TTL", "10m")];

pub fn record(service: &str, instance: &str, status: &str, age: i64) -> String {
    let heartbeat = rfc3339::rfc3339(rfc3339::now() - Duration::seconds(age));
    format!(
        "{{\"serviceName\":\"{service}\",\"instanceId\":\"{instance}\",\"version\":\"1.0.0\",\"status\":\"{status}\",\
         \"lastHeartbeat\":\"{heartbeat}\",\"stickyActiveGroup\":null,\"metadata\":{{}}}}"
    )
}

pub fn fresh(instance: &str) -> String {
    record("orders-api", instance, "ACTIVE", 0)
}

pub fn old(instance: &str) -> String {
    record("orders-api", instance, "ACTIVE", 100)
}

pub fn key(instance: &str) -> String {
    format!("service-instances__orders-api__{instance}")
}

pub fn cleanup(server: &Server, options: &[&str]) -> Output {
    let url = server.url();
    aegis(&[&["cleanup", "-s", &url], options].concat()).run()
}

/// The keys of one array of the answer, sorted.
pub fn keys(answer: &Value, array: &str) -> Vec<String> {
    let all = answer[array].as_array().unwrap_or_else(|| panic!("{array}: {answer}"));
    let mut keys: Vec<String> =
        all.iter().map(|one| one["key"].as_str().expect("a key").to_owned()).collect();
    keys.sort();
    keys
}

/// The keys that the bucket holds, sorted.
pub fn stored(registry: &mut Registry) -> Vec<String> {
    let mut keys: Vec<String> = registry.everything().iter().map(|entry| entry.key()).collect();
    keys.sort();
    keys.dedup();
    keys
}

// What goes and what stays.

type Headers = &'static [(&'static str, &'static str)];

/// Instance, status, age of the heartbeat, headers, and why it goes.
const RULES: &[(&str, &str, i64, Headers, &[&str])] = &[
    ("alive", "ACTIVE", 0, TTL, &[]),
    ("standby", "STANDBY", 0, TTL, &[]),
    ("young", "ACTIVE", 20, TTL, &["clock-skew"]),
    ("ahead", "ACTIVE", -100, TTL, &["clock-skew"]),
    ("old", "ACTIVE", 40, TTL, &["heartbeat-too-old", "clock-skew"]),
    ("unhealthy", "UNHEALTHY", 0, TTL, &["status-unhealthy"]),
    ("shutdown", "SHUTDOWN", 0, TTL, &["status-shutdown"]),
    ("immortal", "ACTIVE", 0, &[], &["no-ttl"]),
    ("never", "ACTIVE", 0, &[("Nats-TTL", "never")], &["no-ttl"]),
    (
        "all",
        "UNHEALTHY",
        1_000,
        &[],
        &["heartbeat-too-old", "status-unhealthy", "no-ttl", "clock-skew"],
    ),
];

const LAYOUTS: &[fn(&str) -> String] = &[
    key,
    |instance| format!("service-instances.orders-api.{instance}"),
    |instance| format!("service-instances_orders-api_{instance}"),
];

const DEFINITIONS: &[&str] = &[
    "echo-service",
    "service-instances",
    "service-instances-doc",
    "service-instances__",
    "service-instance__orders-api__a",
    "service.instances.orders",
];

fn table(version: &str, changes: &Value) {
    let server = Server::start(version);
    let mut registry = Registry::at(&server.url());
    registry.create(changes);
    let (mut goes, mut stays) = (Vec::new(), Vec::new());
    for definition in DEFINITIONS {
        registry.put(definition, &[], &record("x", "y", "SHUTDOWN", 10_000));
        stays.push((*definition).to_owned());
    }
    for (instance, status, age, headers, reasons) in RULES {
        for (number, layout) in LAYOUTS.iter().enumerate() {
            let name = format!("{instance}{number}");
            let key = layout(&name);
            let value = record("orders-api", &name, status, *age);
            // What lies under the newest revision does not count.
            registry.put(&key, &[], &record("orders-api", &name, "SHUTDOWN", 500));
            let revision = registry.put(&key, headers, &value);
            if reasons.iter().any(|why| *why != "clock-skew") {
                goes.push(json!({ "key": key, "revision": revision, "serviceName": "orders-api",
                    "instanceId": name, "reasons": reasons }));
            } else {
                stays.push(key);
            }
        }
    }
    stays.sort();
    let dry = cleanup(&server, &["--json", "--dry-run"]).exits(0).json();
    assert_eq!(dry["removed"], json!(goes), "the dry run");
    assert_eq!((&dry["dryRun"], dry["scanned"].as_u64()), (&json!(true), Some(30)));
    let text = cleanup(&server, &["--dry-run"]).exits(0).stdout;
    for one in &goes {
        let (key, revision) = (one["key"].as_str().expect("text"), &one["revision"]);
        assert!(text.contains(&format!("would remove {key} (revision {revision}): ")), "{text}");
    }
    assert_eq!(stored(&mut registry).len(), DEFINITIONS.len() + 30, "a dry run removes nothing");

    let answer = cleanup(&server, &["--json"]).exits(0).json();
    let mut removed = answer["removed"].as_array().expect("an array").clone();
    removed.sort_by_key(|one| one["revision"].as_u64());
    assert_eq!(json!(removed), json!(goes));
    assert_eq!((&answer["spared"], &answer["failed"]), (&json!([]), &json!([])));
    assert_eq!(stored(&mut registry), stays);
    assert_eq!(cleanup(&server, &["--json"]).exits(0).json()["removed"], json!([]));
}

#[test]
fn every_rule_holds_in_every_layout_with_history_1() {
    table("", &json!({}));
}

#[test]
fn every_rule_holds_in_every_layout_with_history_10() {
    table("", &json!({ "max_msgs_per_subject": 10 }));
}

/// A server of 2.10 stores the header and never obeys it.
#[test]
fn every_rule_holds_in_every_layout_on_a_server_before_ttl() {
    table("2.10.25", &json!({ "allow_msg_ttl": null }));
}

#[test]
fn without_the_flag_everything_is_without_ttl_and_goes() {
    let (server, mut registry) = bucket_with(&json!({ "allow_msg_ttl": false }));
    registry.put("echo-service", &[], "{}");
    for (number, layout) in LAYOUTS.iter().enumerate() {
        registry.put(&layout(&format!("i{number}")), &[], &fresh("i"));
    }
    let answer = cleanup(&server, &["--json"]).exits(0).json();
    let reasons: Vec<_> =
        answer["removed"].as_array().expect("an array").iter().map(|one| &one["reasons"]).collect();
    assert_eq!(reasons, [&json!(["no-ttl"]); 3]);
    assert_eq!(stored(&mut registry), ["echo-service"]);
}

/// "its own TTL ran out more than 5 s ago and the server has not removed it"
#[test]
fn what_the_server_should_have_expired_goes_and_not_before_the_grace() {
    let server = Server::start("2.10.25");
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({ "allow_msg_ttl": null }));
    registry.put(&key("over"), &[("Nats-TTL", "1s")], &fresh("over"));
    registry.put(&key("not-yet"), &[("Nats-TTL", "5s")], &fresh("not-yet"));
    time_passes(millis(6_100));
    let answer = cleanup(&server, &["--json"]).exits(0).json();
    assert_eq!(answer["removed"][0]["reasons"], json!(["expired"]), "{answer}");
    assert_eq!(keys(&answer, "removed"), [key("over")]);
    assert_eq!(stored(&mut registry), [key("not-yet")]);
}

/// "one named `*` or `>` must not take others with it"
#[test]
fn hostile_keys_take_nothing_with_them() {
    for history in [1, 10] {
        let (server, mut registry) = bucket_with(&json!({ "max_msgs_per_subject": history }));
        let hostile: &[&[u8]] = &[
            b"*",
            b">",
            b"service-instances__a__*",
            b"service-instances.*.*",
            b"service-instances.>",
            b"service-instances__\xff__a",
            b"service-instances__a:b",
        ];
        registry.put("echo-service", &[], "{}");
        registry.put(&key("alive"), TTL, &fresh("alive"));
        registry.put("service-instances.orders-api.alive", TTL, &fresh("alive"));
        for key in hostile {
            registry.store(key, b"", old("x").as_bytes());
        }
        registry.put("service-instances__a__b", TTL, &fresh("b"));
        registry.put(&key("stale"), TTL, &old("stale"));
        let before = registry.everything().len();
        for options in [&["--json"][..], &["--json", "--unreadable"]] {
            // What was to go and stayed is to be seen by whoever called.
            let code = if options.contains(&"--unreadable") { 75 } else { 0 };
            let answer = cleanup(&server, options).exits(code).json();
            assert_eq!(answer["unreadable"].as_array().map(Vec::len), Some(5), "{answer}");
            assert_eq!(answer["failed"], json!([]), "{answer}");
            assert_eq!(registry.everything().len(), before - 1, "{options:?}: {answer}");
        }
        assert!(registry.last(&key("stale")).is_none());
        let text = cleanup(&server, &["--unreadable"]).exits(75).stdout;
        assert!(text.contains("service-instances__a__*"), "{text}");
        assert!(text.contains("not removed: its key cannot be named safely"), "{text}");
    }
}

/// What the client library of old could not decode is read like any other: it
/// has no TTL, and its heartbeat is too old.
#[test]
fn records_with_odd_headers_are_judged_like_any_other() {
    for history in [1, 10] {
        let (server, mut registry) = bucket_with(&json!({ "max_msgs_per_subject": history }));
        let poison = b"NATS/1.0\r\nno colon here\r\n\r\n";
        let mut bad = Vec::new();
        for i in 0..60 {
            registry.put(&key(&format!("stale{i}")), TTL, &old("s"));
            registry.put(&key(&format!("alive{i}")), TTL, &fresh("a"));
            if i % 20 == 10 {
                bad.push(key(&format!("bad{i}")));
                registry.store(bad[bad.len() - 1].as_bytes(), poison, old("b").as_bytes());
            }
        }
        let answer = cleanup(&server, &["--json"]).exits(0).json();
        let removed = keys(&answer, "removed");
        assert_eq!(removed.len(), 63, "{answer}");
        assert!(bad.iter().all(|key| removed.contains(key)), "{answer}");
        let of_bad =
            answer["removed"].as_array().into_iter().flatten().find(|r| r["key"] == bad[0]);
        let reasons = of_bad.map(|removed| removed["reasons"].clone());
        assert_eq!(reasons, Some(json!(["heartbeat-too-old", "no-ttl", "clock-skew"])));
        for list in ["unreadable", "failed", "spared"] {
            assert_eq!(answer[list], json!([]));
        }
        assert_eq!(stored(&mut registry).len(), 60);
    }
}

/// As text, the bucket is read and cleaned in one pass.
#[test]
fn records_with_odd_headers_go_in_one_pass_with_the_others() {
    let (server, mut registry) = any_bucket();
    let poison = b"NATS/1.0\r\nno colon here\r\n\r\n";
    registry.fill(3_000, |i| match i % 1_000 {
        500 => (key(&format!("bad{i}")), poison.to_vec(), old("b")),
        _ => (key(&format!("stale{i}")), header(TTL), old("s")),
    });
    let output = cleanup(&server, &[]).exits(0);
    assert!(output.stdout.contains("scanned 3000, removed 3000 ("), "{output:?}");
    assert!(output.stdout.contains("spared 0, failed 0, unreadable 0, in"), "{output:?}");
    assert_eq!(stored(&mut registry).len(), 0);
}

/// "the server appends its own `Nats-Sequence`, `Nats-Time-Stamp`"
#[test]
fn spoofed_headers_of_the_server_fool_nobody() {
    for history in [1, 10] {
        let (server, mut registry) = bucket_with(&json!({ "max_msgs_per_subject": history }));
        for i in 0..5 {
            registry.put("filler", &[], &i.to_string());
        }
        let future = rfc3339::rfc3339(rfc3339::now() + Duration::hours(1));
        let spoofed = |sequence: &'static str| {
            [
                ("Nats-TTL", "10m"),
                ("Nats-Sequence", sequence),
                ("Nats-Time-Stamp", "2020-01-01T00:00:00Z"),
                ("Nats-Subject", "$KV.service_registry.filler"),
                ("Nats-Stream", "KV_other"),
            ]
        };
        registry.put(&key("alive"), &spoofed("999999"), &fresh("alive"));
        let one = registry.put(&key("one"), &spoofed("1"), &old("one"));
        let two = registry.put(&key("two"), &spoofed("999999"), &old("two"));
        let three = registry.put(&key("three"), &[("Nats-Time-Stamp", &future)], &fresh("three"));
        let answer = cleanup(&server, &["--json"]).exits(0).json();
        let mut removed: Vec<_> = answer["removed"]
            .as_array()
            .expect("an array")
            .iter()
            .map(|one| one["revision"].as_u64().expect("a number"))
            .collect();
        removed.sort_unstable();
        assert_eq!(removed, [one, two, three], "{answer}");
        assert_eq!(stored(&mut registry), ["filler".to_owned(), key("alive")]);
    }
}

#[test]
fn delete_markers_are_left_to_their_own_end() {
    let (server, mut registry) = any_bucket();
    registry.put(&key("a"), &[("KV-Operation", "DEL")], "");
    registry.put(&key("b"), &[("KV-Operation", "PURGE"), ("Nats-Rollup", "sub")], "");
    let output = cleanup(&server, &[]).exits(0);
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("", ""));
    assert_eq!(stored(&mut registry).len(), 2);
}

// Options.

#[test]
fn only_service_and_stale_after_narrow_it() {
    let (server, mut registry) = any_bucket();
    registry.put(&key("old"), TTL, &old("old"));
    registry.put(&key("immortal"), &[], &fresh("immortal"));
    registry.put(&key("down"), TTL, &record("orders-api", "down", "SHUTDOWN", 0));
    registry.put("service-instances.web.old", TTL, &record("web", "old", "ACTIVE", 100));
    registry.put(&key("broken"), TTL, "[]");
    let would = |options: &[&str]| {
        let options = [&["--json", "--dry-run"], options].concat();
        keys(&cleanup(&server, &options).exits(0).json(), "removed")
    };
    let all = [key("down"), key("immortal"), key("old")];
    assert_eq!(would(&["--service", "orders-api"]), all);
    assert_eq!(would(&["--service=web"]), ["service-instances.web.old"]);
    assert_eq!(would(&["--only", "no-ttl"]), [key("immortal")]);
    assert_eq!(would(&["--only=no-ttl", "--only=status-shutdown"]), all[..2]);
    assert_eq!(would(&["--stale-after=1h", "--service=orders-api"]), all[..2]);
    assert_eq!(would(&["--only=heartbeat-too-old", "--service=orders-api"]), [key("old")]);
    assert_eq!(would(&["--unreadable", "--service=orders-api"]).len(), 4);
    assert_eq!(would(&["--unreadable", "--service=web"]).len(), 1);
    cleanup(&server, &["--only=no-ttl"]).exits(0);
    assert_eq!(stored(&mut registry).len(), 4);
    assert!(registry.last(&key("immortal")).is_none());
}

/// "if more would go, nothing goes, exit 75, and the message says how many
/// and why. It does not latch."
#[test]
fn max_removals_is_a_brake_that_does_not_latch() {
    for history in [1, 10] {
        let (server, mut registry) = bucket_with(&json!({ "max_msgs_per_subject": history }));
        for i in 0..3 {
            registry.put(&key(&format!("old{i}")), TTL, &old("old"));
            registry.put(&key(&format!("no{i}")), &[], &fresh("no"));
        }
        registry.put(&key("alive"), TTL, &fresh("alive"));
        let output = cleanup(&server, &["--max-removals", "5"]).exits(75);
        assert_eq!(output.stdout, "");
        for words in ["6 of 7 entries would go", "heartbeat-too-old 3", "no-ttl 3", "nothing was"] {
            assert!(output.stderr.contains(words), "{words}: {output:?}");
        }
        let answer = cleanup(&server, &["--max-removals=5", "--json"]).exits(75).json();
        assert_eq!((&answer["removed"], &answer["scanned"]), (&json!([]), &json!(7)));
        let output = cleanup(&server, &["--max-removals=5", "--dry-run"]).exits(75);
        assert_eq!(output.stdout.matches("would remove service-").count(), 6, "{output:?}");
        assert_eq!(stored(&mut registry).len(), 7);
        let output = cleanup(&server, &["--max-removals=0"]).exits(75);
        assert!(output.stderr.contains("--max-removals 0"), "{output:?}");
        cleanup(&server, &["--max-removals=6"]).exits(0);
        assert_eq!(stored(&mut registry), [key("alive")]);
        cleanup(&server, &["--max-removals=0"]).exits(0);
    }
}

// What it says.

/// Read by scripts and by other tools: a change here breaks them.
#[test]
fn cleanup_json_is_byte_for_byte_the_golden_one() {
    let (server, mut registry) = any_bucket();
    registry.put("echo-service", &[], "{}");
    registry.put(&key("host-1"), TTL, &old("host-1"));
    let rich = record("orders-api", "host\u{1f}2", "UNHEALTHY", 0).replace('\u{1f}', "\\u001f");
    registry.put("service-instances.orders-api.host-2", &[], &rich);
    registry.put(&key("host-3"), TTL, "[1]");
    registry.put(&key("host-4"), TTL, &fresh("host-4"));
    let raced = registry.put(&key("host-5"), TTL, &old("host-5"));
    let proxy = racing_proxy(&server, registry, key("host-5"));
    let url = proxy.url();
    let dry = aegis(&["cleanup", "--dry-run", "--json", "-s", &server.url()]).run().exits(0);
    let real = aegis(&["cleanup", "--json", "-s", &url]).run().exits(0);
    assert_eq!(raced, 6);
    let golden = include_str!("../golden/cleanup.json");
    let both = format!("{}{}", dry.stdout, real.stdout);
    // The server may answer the second removal first, and that is told first.
    let items = |first: &str, second: &str| format!("[{{\"key\":{first}}},{{\"key\":{second}}}]");
    let (told, _) =
        golden.lines().last().and_then(|line| line.split_once("}],\"")).expect("removed");
    let (_, told) = told.split_once("[{\"key\":").expect("two of them");
    let (first, second) = told.split_once("},{\"key\":").expect("two of them");
    assert_eq!(both.replace(&items(second, first), &items(first, second)), golden);
}

// What beats.

/// "leaves alone every entry whose own TTL is still running by the time at which
/// the server stored it, whatever its stamp and status say"
#[test]
fn with_spare_beating_whatever_was_stored_within_its_ttl_stays() {
    let (server, mut registry) = any_bucket();
    let beating = [("old", "ACTIVE", 1_000), ("sick", "UNHEALTHY", 0), ("stopped", "SHUTDOWN", 0)];
    for (instance, status, age) in beating {
        registry.put(&key(instance), TTL, &record("orders-api", instance, status, age));
    }
    registry.put(&key("broken"), TTL, "{");
    registry.put(&key("forever"), &[], &fresh("forever"));
    registry.put(&key("well"), TTL, &fresh("well"));
    let stays = ["broken", "old", "sick", "stopped"].map(key);

    let text = cleanup(&server, &["--dry-run", "--spare-beating"]).exits(0);
    assert_eq!(text.stdout.matches("would remove").count(), 2, "one, and the sum: {text:?}");
    assert!(text.stdout.contains("spared 3,"), "{text:?}");
    let answer = cleanup(&server, &["--json", "--spare-beating", "--unreadable"]).exits(0).json();
    assert_eq!(keys(&answer, "removed"), [key("forever")]);
    assert_eq!(keys(&answer, "spared"), stays);
    for spared in answer["spared"].as_array().expect("an array") {
        assert_eq!(spared["why"], "beating", "{answer}");
    }
    let text = cleanup(&server, &["--spare-beating"]).exits(0).stdout;
    assert!(text.starts_with("unreadable: ") && text.contains("removed 0, spared 3,"), "{text}");
    let url = server.url();
    let by_variable = aegis(&["cleanup", "--json", "-s", &url]).env("AEGIS_SPARE_BEATING", "yes");
    assert_eq!(keys(&by_variable.run().exits(0).json(), "removed"), [""; 0]);
    assert_eq!(stored(&mut registry).len(), 5);

    let answer = cleanup(&server, &["--json", "--unreadable"]).exits(0).json();
    assert_eq!(keys(&answer, "removed"), stays, "not asked for");
}

/// "`cleanup` beside a clock that jumped [...] ahead deletes four live entries
/// stored seconds before: with `--spare-beating` it cannot"
#[test]
fn with_spare_beating_a_clock_that_jumped_takes_the_dead_and_not_the_living() {
    let (server, mut registry) = any_bucket();
    let url = server.url();
    let agent = |name: &str| {
        let words = ["run", "--service=orders-api", "--ttl=30s", "--interval=1s", "-s", &url];
        let mut agent = aegis(&words).arg(&format!("--instance={name}")).spawn();
        agent.wait_for_line("registered orders-api/", secs(5));
        agent
    };
    let _agents = [agent("a"), agent("b")];
    registry.put(&key("dead"), &[("Nats-TTL", "30s")], &fresh("dead"));
    let proxy = Proxy::an_hour_ahead(server.port());
    let jumped = |options: &[&str]| {
        let url = proxy.url();
        let words = [&["cleanup", "--json", "-s", &url], options].concat();
        aegis(&words).env("AEGIS_STALE_AFTER", "8s").run().exits(0)
    };
    let dry = jumped(&["--dry-run"]).json();
    // One that beats while this reads is seen as it was or as it is.
    let goes = keys(&dry, "removed");
    let living = [key("a"), key("b")].iter().any(|key| goes.contains(key));
    assert!(living && goes.contains(&key("dead")), "without it: {goes:?}");
    let output = jumped(&["--spare-beating"]);
    assert_eq!(keys(&output.json(), "removed"), [key("dead")]);
    assert!(output.stderr.contains("waiting 3s before removing: "), "{output:?}");
    assert_eq!(stored(&mut registry), [key("a"), key("b")]);
}

/// "so `--unreadable` no longer deletes a living entry"
#[test]
fn an_entry_with_a_status_of_a_newer_sdk_is_no_unreadable_one() {
    let (server, mut registry) = any_bucket();
    registry.put(&key("a"), TTL, &record("orders-api", "a", "DRAINING", 0));
    registry.put(&key("b"), TTL, &record("orders-api", "b", "no word", 0));
    let answer = cleanup(&server, &["--json", "--unreadable"]).exits(0).json();
    assert_eq!(keys(&answer, "removed"), [key("b")]);
    assert_eq!(stored(&mut registry), [key("a")]);
}

/// A proxy behind which the entry is refreshed when the scan that is followed
/// by its removal reads it.
fn racing_proxy(server: &Server, registry: Registry, key: String) -> Proxy {
    let proxy = Proxy::to(server.port());
    let racer = Mutex::new(Some(registry));
    proxy.rewrite(move |bytes| {
        let text = String::from_utf8_lossy(bytes);
        // The name of that scan's consumer has it.
        if text.contains(&key)
            && text.contains("-r-")
            && let Some(mut registry) = racer.lock().expect("no panic while it was held").take()
        {
            registry.put(&key, TTL, &fresh("host-5"));
        }
        bytes.to_vec()
    });
    proxy
}

#[test]
fn for_cron_it_is_silent_where_nothing_was_done_and_nothing_is_wrong() {
    let (server, mut registry) = any_bucket();
    registry.put("echo-service", &[], "{}");
    registry.put(&key("alive"), TTL, &fresh("alive"));
    for options in [&[][..], &["--max-removals=3"]] {
        let output = cleanup(&server, options).exits(0);
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("", ""), "{options:?}");
    }
    for (option, done) in [("--verbose", "removed"), ("--dry-run", "would remove")] {
        let output = cleanup(&server, &[option]).exits(0);
        let words = format!("scanned 1, {done} 0, spared 0, failed 0, unreadable 0, in ");
        assert!(output.stdout.starts_with(&words), "{output:?}");
    }
}

#[test]
fn for_cron_a_removal_is_a_line_and_many_are_counted() {
    let (server, mut registry) = any_bucket();
    registry.put(&key("a"), TTL, &record("orders-api", "a", "SHUTDOWN", 0));
    let output = cleanup(&server, &[]).exits(0);
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(lines[0], format!("removed {} (revision 1): status-shutdown", key("a")));
    let words = "scanned 1, removed 1 (status-shutdown 1), spared 0, failed 0, unreadable 0, in ";
    assert!(lines[1].starts_with(words), "{output:?}");
    assert_eq!((lines.len(), output.stderr.as_str()), (2, ""));

    registry.fill(50, |i| (key(&format!("i{i}")), header(TTL), old("i")));
    let output = cleanup(&server, &[]).exits(0);
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(lines.len(), 22, "{output:?}");
    assert_eq!(lines[20], "removed 30 more");
    assert!(lines[21].contains("removed 50 (heartbeat-too-old 50)"), "{output:?}");
}

#[test]
fn on_a_terminal_long_work_shows_its_progress() {
    let (server, mut registry) = any_bucket();
    registry.fill(3_000, |i| (key(&format!("i{i}")), header(TTL), old("i")));
    let proxy = Proxy::to(server.port());
    proxy.delay(millis(250));
    let script = "import pty,sys,os\nsys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    let output = Command::new("python3")
        .args([
            "-c",
            script,
            env!("CARGO_BIN_EXE_aegis-agent"),
            "cleanup",
            "-s",
            &proxy.url(),
            "--timeout=30s",
        ])
        .stdin(Stdio::null())
        .output()
        .expect("python3 runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains(" scanned, ") && text.contains(" removed\u{1b}[K"), "{text:?}");
    assert!(text.contains("scanned 3000, removed 3000"), "{text:?}");
}

/// "a record stamped 60 s in the past by a host with a wrong clock, but stored
/// this second: removed by the rule, and reported as `clock-skew`"
#[test]
fn a_wrong_clock_of_the_writer_is_reported_with_its_amount() {
    let (server, mut registry) = any_bucket();
    registry.put(&key("a"), TTL, &record("orders-api", "a", "ACTIVE", 60));
    let text = cleanup(&server, &["--dry-run"]).exits(0).stdout;
    assert!(text.contains("heartbeat-too-old clock-skew -1m0"), "{text}");
    let answer = cleanup(&server, &["--json"]).exits(0).json();
    assert_eq!(answer["removed"][0]["reasons"], json!(["heartbeat-too-old", "clock-skew"]));
    assert!(stored(&mut registry).is_empty());
}

/// Sets the wall clock of a program 100 s back, and no other clock.
fn wrong_clock() -> String {
    let directory = scratch("clock");
    let source = directory.join("clock.c");
    let library = directory.join("clock.so");
    let code = "#define _GNU_SOURCE\n#include <time.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n\
        int clock_gettime(clockid_t id, struct timespec *at) {\n\
        int done = syscall(SYS_clock_gettime, id, at);\n\
        if (done == 0 && id == CLOCK_REALTIME) at->tv_sec -= 100;\n\
        return done;\n}\n";
    std::fs::write(&source, code).expect("writes");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status()
        .expect("a C compiler, which the build needs anyway");
    assert!(status.success());
    library.display().to_string()
}

/// "is *not* stale, because it stamps registry time"
#[test]
fn an_agent_of_ours_on_a_host_with_a_wrong_clock_is_not_stale() {
    let (server, mut registry) = any_bucket();
    let library = wrong_clock();
    let mut agent = aegis(&["run", "--service=orders-api", "--instance=a", "-s", &server.url()])
        .env("LD_PRELOAD", &library)
        .spawn();
    agent.wait_for_line("this host's clock is -1m40s off the registry's", secs(5));
    let revision = registry.last(&key("a")).expect("it is registered").revision;
    let wrong_here = aegis(&["cleanup", "--json", "-s", &server.url()])
        .env("LD_PRELOAD", &library)
        .run()
        .exits(0)
        .json();
    for answer in [wrong_here, cleanup(&server, &["--json"]).exits(0).json()] {
        assert_eq!((&answer["removed"], &answer["scanned"]), (&json!([]), &json!(1)));
    }
    assert!(registry.last(&key("a")).is_some_and(|entry| entry.revision >= revision));
}

// Refusals.

#[test]
fn without_the_bucket_it_exits_69_and_names_the_command_that_makes_it() {
    let server = Server::any();
    let output = cleanup(&server, &["--bucket=absent"]).exits(69);
    let command = format!("aegis-agent -s {} --bucket absent init", server.url());
    assert!(output.stderr.contains(&command), "{output:?}");
    let absent = Server::absent(Setup::default());
    cleanup(&absent, &["--json"]).exits(69);
}

fn with_users(purge: &str) -> (Server, Registry) {
    let reading = "\"$JS.API.STREAM.INFO.KV_service_registry\", \
        \"$JS.API.CONSUMER.CREATE.KV_service_registry.>\", \
        \"$JS.API.CONSUMER.DELETE.KV_service_registry.>\", \
        \"$JS.API.CONSUMER.MSG.NEXT.KV_service_registry.>\"";
    let server = Server::with(Setup {
        extra: format!(
            "authorization {{ users: [\n\
             {{ user: admin, password: a }}\n\
             {{ user: cleaner, password: c, permissions: {{ publish: [{reading}{purge}], subscribe: [\"_INBOX.>\"] }} }}\n\
             ] }}\n"
        ),
        ..Setup::default()
    });
    let admin = json!({ "user": "admin", "pass": "a" });
    let registry = Registry::login(&server.url(), "service_registry", &admin);
    (server, registry)
}

/// "cleanup: what list needs, `$JS.API.STREAM.PURGE.S`"
#[test]
fn the_permissions_of_the_contract_are_enough() {
    let (server, mut registry) = with_users(", \"$JS.API.STREAM.PURGE.KV_service_registry\"");
    for history in [1, 10] {
        registry.create(&json!({ "max_msgs_per_subject": history }));
        for i in 0..30 {
            registry.put(&key(&format!("i{i}")), TTL, &old("i"));
            registry.put(&key(&format!("i{i}")), TTL, &old("i"));
        }
        for options in [&["--dry-run"][..], &["--max-removals=30"], &["--json"]] {
            cleanup(&server, &[&["--user=cleaner"], options].concat());
            let url = server.url();
            aegis(&[&["cleanup", "-s", &url, "--user=cleaner"], options].concat())
                .env("NATS_PASSWORD", "c")
                .run()
                .exits(0);
        }
        assert!(stored(&mut registry).is_empty());
        registry.delete();
    }
}

#[test]
fn a_permission_to_read_but_not_to_write_exits_77_and_removes_nothing() {
    let (server, mut registry) = with_users("");
    registry.create(&json!({}));
    registry.fill(1_000, |i| (key(&format!("i{i}")), header(TTL), old("i")));
    let url = server.url();
    let output = aegis(&["cleanup", "--json", "-s", &url, "--user=cleaner"])
        .env("NATS_PASSWORD", "c")
        .run()
        .exits(77);
    assert!(output.stderr.contains("$JS.API.STREAM.PURGE.KV_service_registry"), "{output:?}");
    assert!(output.took < secs(4), "{output:?}");
    let answer = output.json();
    assert_eq!(answer["removed"], json!([]));
    assert!(answer["failed"].as_array().is_some_and(|failed| !failed.is_empty()), "{answer}");
    assert_eq!(registry.info().expect("a bucket")["state"]["messages"], 1_000);
    aegis(&["cleanup", "--dry-run", "-s", &url, "--user=cleaner"])
        .env("NATS_PASSWORD", "c")
        .run()
        .exits(0);
}

#[test]
fn where_purging_is_denied_on_the_bucket_it_says_what_is_needed() {
    let (server, mut registry) =
        bucket_with(&json!({ "deny_purge": true, "allow_rollup_hdrs": false }));
    assert_eq!(cleanup(&server, &[]).exits(0).stderr, "");
    registry.put(&key("a"), TTL, &old("a"));
    let output = cleanup(&server, &[]).exits(77);
    assert!(output.stderr.contains("purging is not permitted on the bucket"), "{output:?}");
    assert!(output.stderr.contains("bucket without deny_purge"), "{output:?}");
}

#[test]
fn head_closes_the_pipe_and_the_work_is_done_all_the_same() {
    let (server, mut registry) = any_bucket();
    registry.fill(2_000, |i| (key(&format!("i{i}")), header(TTL), old("i")));
    let mut child = aegis(&["cleanup", "--json", "-s", &server.url()])
        .command()
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    drop(child.stdout.take());
    let status = crate::harness::eventually(secs(20), "cleanup ends", || {
        child.try_wait().expect("waits").ok_or_else(|| "it runs".to_owned())
    });
    assert_eq!(status.code(), Some(0));
    assert!(stored(&mut registry).is_empty());
}
