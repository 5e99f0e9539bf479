//! `list`: what is shown, hidden and reported, whatever lies in the bucket.

use std::io::{BufRead, BufReader};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use time::Duration;

use crate::harness::agent::{Output, aegis};
use crate::harness::proxy::Proxy;
use crate::harness::registry::{Registry, header};
use crate::harness::scene::{any_bucket, bucket_with};
use crate::harness::server::{Server, Setup};
use crate::harness::{eventually, scratch, secs, time as rfc3339};

const TTL: &[(&str, &str)] = &[("Nats-TTL", "60s")];

fn record(service: &str, instance: &str, heartbeat: time::OffsetDateTime) -> String {
    format!(
        "{{\"serviceName\":\"{service}\",\"instanceId\":\"{instance}\",\"version\":\"1.0.0\",\"status\":\"ACTIVE\",\
         \"lastHeartbeat\":\"{}\",\"stickyActiveGroup\":null,\"metadata\":{{}}}}",
        rfc3339::rfc3339(heartbeat)
    )
}

fn fresh(service: &str, instance: &str) -> String {
    record(service, instance, rfc3339::now())
}

fn aged(service: &str, instance: &str, seconds: i64) -> String {
    record(service, instance, rfc3339::now() - Duration::seconds(seconds))
}

fn key(service: &str, instance: &str) -> String {
    format!("service-instances__{service}__{instance}")
}

fn list(server: &Server, options: &[&str]) -> Output {
    let url = server.url();
    let arguments = [&["list", "-s", &url], options].concat();
    aegis(&arguments).run().exits(0)
}

/// `service/instance` of each instance in `list --json`, sorted.
fn names(answer: &Value) -> Vec<String> {
    let instances = answer["instances"].as_array().expect("an array");
    let mut names: Vec<String> = instances
        .iter()
        .map(|one| {
            let text = |name: &str| one[name].as_str().expect("a string").to_owned();
            format!("{}/{}", text("serviceName"), text("instanceId"))
        })
        .collect();
    names.sort();
    names
}

#[test]
fn all_three_key_layouts_are_listed() {
    let (server, mut registry) = any_bucket();
    registry.put("service-instances__orders-api__a", TTL, &fresh("orders-api", "a"));
    registry.put("service-instances.orders-api.b", TTL, &fresh("orders-api", "b"));
    registry.put("service-instances_orders-api_c", TTL, &fresh("orders-api", "c"));
    let answer = list(&server, &["--json"]).json();
    assert_eq!(names(&answer), ["orders-api/a", "orders-api/b", "orders-api/c"]);
    assert_eq!(answer["unreadable"], json!([]));
}

#[test]
fn names_that_the_json_lacks_come_from_the_key() {
    let (server, mut registry) = any_bucket();
    let time = rfc3339::rfc3339(rfc3339::now());
    let bare = format!("{{\"version\":\"1.0.0\",\"last_heartbeat\":\"{time}\"}}");
    registry.put("service-instances__orders-api__a-1", TTL, &bare);
    registry.put("service-instances.orders-api.b-1", TTL, &bare);
    let answer = list(&server, &["--json"]).json();
    assert_eq!(names(&answer), ["orders-api/a-1", "orders-api/b-1"]);
    assert_eq!(answer["instances"][0]["status"], "ACTIVE");
}

/// "the same bucket holds service definitions under plain names such as
/// `echo-service`. They are never ours: not listed"
#[test]
fn definitions_and_other_plain_keys_are_ignored() {
    let (server, mut registry) = any_bucket();
    registry.put("echo-service", &[], "{\"name\":\"echo-service\"}");
    registry.put("not-json", &[], "\u{1b}[31m");
    registry.put("service-instances-of-mine", &[], "x");
    registry.put(&key("orders-api", "a"), TTL, &fresh("orders-api", "a"));
    let answer = list(&server, &["--json"]).json();
    assert_eq!(names(&answer), ["orders-api/a"]);
    assert_eq!(answer["hidden"], json!({ "stale": 0, "unreadable": 0 }));
    assert_eq!(answer["unreadable"], json!([]));
}

/// "Readers take `KV-Operation: DEL|PURGE` or any `Nats-Marker-Reason` as deleted."
#[test]
fn deleted_entries_are_not_listed() {
    let (server, mut registry) = any_bucket();
    registry.put(&key("orders-api", "a"), &[("KV-Operation", "DEL")], "");
    registry.put(&key("orders-api", "b"), &[("KV-Operation", "PURGE"), ("Nats-Rollup", "sub")], "");
    registry.put(&key("orders-api", "c"), &[("Nats-Marker-Reason", "MaxAge")], "");
    let answer = list(&server, &["--json", "--all"]).json();
    assert_eq!(answer["instances"], json!([]));
    assert_eq!(answer["hidden"], json!({ "stale": 0, "unreadable": 0 }));
}

#[test]
fn an_empty_bucket_is_an_empty_list() {
    let (server, _registry) = any_bucket();
    let answer = list(&server, &["--json"]).json();
    assert_eq!(answer["instances"], json!([]));
    assert_eq!(answer["unreadable"], json!([]));
    assert!(list(&server, &[]).stderr.contains("no instances in bucket service_registry"));
    let none = list(&server, &["--service", "nope-x"]).stderr;
    assert!(none.contains("no instances of nope-x in bucket service_registry"), "{none}");
}

#[test]
fn unreadable_entries_are_reported_with_the_reason_and_the_rest_is_listed() {
    let (server, mut registry) = any_bucket();
    registry.put(&key("orders-api", "a"), TTL, &fresh("orders-api", "a"));
    let no_heartbeat =
        "{\"serviceName\":\"orders-api\",\"instanceId\":\"b\",\"version\":\"1.0.0\"}";
    registry.put(&key("orders-api", "b"), TTL, "not json");
    registry.put(&key("orders-api", "c"), TTL, no_heartbeat);
    registry.put(&key("orders-api", "d"), TTL, "");
    registry.put(&key("orders-api", "e"), TTL, &"[".repeat(10_000));
    registry.store(key("orders-api", "f").as_bytes(), &header(TTL), b"{\"serviceName\":\"\xff\"}");
    let revision = registry.put(&key("orders-api", "g"), TTL, "\u{1b}[2J");
    registry.put(&key("orders-api", "z"), TTL, &fresh("orders-api", "z"));
    let answer = list(&server, &["--json"]).json();
    assert_eq!(names(&answer), ["orders-api/a", "orders-api/z"]);
    let unreadable = answer["unreadable"].as_array().expect("an array");
    let keys: Vec<_> =
        unreadable.iter().map(|one| one["key"].as_str().expect("a string")).collect();
    let expected: Vec<String> =
        ["b", "c", "d", "e", "f", "g"].iter().map(|i| key("orders-api", i)).collect();
    assert_eq!(keys, expected);
    assert!(unreadable.iter().all(|one| !one["why"].as_str().expect("a string").is_empty()));
    assert_eq!(unreadable[5]["revision"], revision);
    assert_eq!(answer["hidden"]["unreadable"], 6);

    let text = list(&server, &[]).stderr;
    assert!(text.contains(&key("orders-api", "c")), "{text}");
    assert!(text.contains("6 unreadable"), "{text}");
    assert!(!text.contains('\u{1b}'), "nothing steers the terminal: {text:?}");
}

// Poison: records with bytes that no decent writer stores.

/// Key and header block of one, as servers take them from any writer.
type Poison = (&'static str, &'static [u8], &'static [u8]);

const POISON: &[Poison] = &[
    (
        "header is not UTF-8",
        b"service-instances__bad__1",
        b"NATS/1.0\r\nNats-TTL: 60s\r\nx: \xff\xfe\r\n\r\n",
    ),
    ("header name is not UTF-8", b"service-instances__bad__1", b"NATS/1.0\r\n\xff: x\r\n\r\n"),
    (
        "header line without a colon",
        b"service-instances__bad__1",
        b"NATS/1.0\r\nno colon here\r\n\r\n",
    ),
    ("status line is not a number", b"service-instances__bad__1", b"NATS/1.0 abc\r\nx: y\r\n\r\n"),
    ("no version line", b"service-instances__bad__1", b"x: y\r\n\r\n"),
    ("block without its end", b"service-instances__bad__1", b"NATS/1.0\r\nx: y"),
    ("block of one byte", b"service-instances__bad__1", b"x"),
    ("subject is not UTF-8", b"service-instances__bad__\xff", b"NATS/1.0\r\nNats-TTL: 60s\r\n\r\n"),
    ("subject of a plain key is not UTF-8", b"plain\xff", b""),
    ("key is a wildcard", b"service-instances__bad__*", b""),
    ("key is another wildcard", b"service-instances.bad.>", b""),
];

/// Stores three good instances and the poison at `places` among them; asserts
/// that the good ones are all listed, and the bad ones reported.
fn poison_is_survived(history: u64, places: &[usize], times: usize) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let server = Server::any();
    for (what, bad_key, bad_header) in POISON {
        let name = format!("poison{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut registry = Registry::named(&server.url(), &name);
        registry.create(&json!({ "max_msgs_per_subject": history }));
        for place in 0..=3 {
            if places.contains(&place) {
                for i in 0..times {
                    // Different keys of the same kind.
                    let mut bad_key = bad_key.to_vec();
                    if times > 1 {
                        bad_key.splice(..0, format!("service-instances__bad__{place}{i}.").bytes());
                    }
                    registry.store(&bad_key, bad_header, fresh("bad", "1").as_bytes());
                }
            }
            if place < 3 {
                let instance = format!("i{place}");
                registry.put(&key("good", &instance), TTL, &fresh("good", &instance));
            }
        }
        let answer = list(&server, &["--json", "--bucket", &name]).json();
        let good: Vec<_> =
            names(&answer).into_iter().filter(|name| name.starts_with("good/")).collect();
        assert_eq!(good, ["good/i0", "good/i1", "good/i2"], "{what}: {answer}");
        let reported = answer["unreadable"].as_array().expect("an array").len();
        let listed = names(&answer).len() - 3;
        let ignored = bad_key.starts_with(b"plain") && times == 1;
        let distinct = match (times, places.len()) {
            (1, _) => 1,
            (times, places) => times * places,
        };
        let seen = reported + listed;
        let expected = if ignored { 0 } else { distinct };
        assert_eq!(seen, expected, "{what}: reported or listed: {answer}");
        registry.delete();
    }
}

#[test]
fn poison_at_the_start_hides_nothing() {
    poison_is_survived(1, &[0], 1);
}

#[test]
fn poison_in_the_middle_hides_nothing() {
    poison_is_survived(1, &[1], 1);
}

#[test]
fn poison_at_the_end_hides_nothing() {
    poison_is_survived(1, &[3], 1);
}

#[test]
fn much_poison_hides_nothing() {
    poison_is_survived(1, &[0, 1, 2, 3], 5);
}

#[test]
fn poison_in_a_bucket_with_history_hides_nothing() {
    poison_is_survived(10, &[0, 1, 2, 3], 1);
    poison_is_survived(10, &[0, 2], 3);
}

/// In a bucket with history the poison may be an old revision of a good key,
/// and good old revisions lie under a poisoned one.
#[test]
fn of_a_key_that_was_poisoned_once_the_newest_revision_counts() {
    let (server, mut registry) = bucket_with(&json!({ "max_msgs_per_subject": 10 }));
    let poison = b"NATS/1.0\r\nno colon\r\n\r\n";
    registry.put(&key("good", "a"), TTL, &fresh("good", "a"));
    registry.store(key("good", "b").as_bytes(), poison, b"x");
    registry.put(&key("good", "b"), TTL, &fresh("good", "b"));
    registry.put(&key("bad", "c"), TTL, &fresh("bad", "c"));
    registry.store(key("bad", "c").as_bytes(), poison, b"x");
    registry.put(&key("good", "d"), TTL, &fresh("good", "d"));
    let answer = list(&server, &["--json"]).json();
    assert_eq!(names(&answer), ["good/a", "good/b", "good/d"], "{answer}");
    assert_eq!(answer["unreadable"].as_array().map(Vec::len), Some(1), "{answer}");
    assert_eq!(answer["unreadable"][0]["key"], key("bad", "c"));
}

// What is hidden and what is shown.

/// "`"stale"` is the first word and `"reasons"` lists the reasons of both"
#[test]
fn stale_is_what_readers_hide_and_reasons_are_those_of_cleanup_too() {
    let (server, mut registry) = any_bucket();
    let sick = fresh("orders-api", "sick").replace("ACTIVE", "UNHEALTHY");
    let draining = fresh("orders-api", "draining").replace("ACTIVE", "DRAINING");
    registry.put(&key("orders-api", "sick"), TTL, &sick);
    registry.put(&key("orders-api", "draining"), TTL, &draining);
    registry.put(&key("orders-api", "forever"), &[], &fresh("orders-api", "forever"));
    registry.put(&key("orders-api", "old"), TTL, &aged("orders-api", "old", 40));
    let answer = list(&server, &["--json", "--all"]).json();
    let all = answer["instances"].as_array().expect("an array");
    let seen: Vec<Value> = all
        .iter()
        .map(|one| json!([one["instanceId"], one["status"], one["stale"], one["reasons"]]))
        .collect();
    assert_eq!(
        seen,
        [
            json!(["draining", "DRAINING", false, []]),
            json!(["forever", "ACTIVE", false, ["no-ttl"]]),
            json!(["old", "ACTIVE", true, ["heartbeat-too-old", "clock-skew"]]),
            json!(["sick", "UNHEALTHY", false, ["status-unhealthy"]]),
        ]
    );
    let answer = list(&server, &["--json"]).json();
    let shown = ["orders-api/draining", "orders-api/forever", "orders-api/sick"];
    assert_eq!(names(&answer), shown, "what is not stale is shown");
    assert_eq!(answer["hidden"], json!({ "stale": 1, "unreadable": 0 }));
    let text = list(&server, &[]);
    assert!(text.stdout.contains("DRAINING"), "{text:?}");
    assert!(text.stderr.contains("hidden: 1 stale"), "{text:?}");
}

/// "`AEGIS_STALE_AFTER`, in the host's settings for a registry with another rule"
#[test]
fn the_registrys_rule_comes_from_the_hosts_settings() {
    let (server, mut registry) = any_bucket();
    registry.put(&key("orders-api", "old"), TTL, &aged("orders-api", "old", 60));
    let directory = scratch("rule");
    let file = directory.join("agent.env");
    let text = format!("NATS_URL={}\nAEGIS_STALE_AFTER=2m\n", server.url());
    std::fs::write(&file, text).expect("writes");
    let file = file.display().to_string();
    let by_host = aegis(&["list", "--json", "--env-file", &file]).run().exits(0).json();
    assert_eq!(names(&by_host), ["orders-api/old"]);
    let by_variable =
        aegis(&["list", "--json", "--env-file", &file]).env("AEGIS_STALE_AFTER", "9s");
    assert_eq!(names(&by_variable.run().exits(0).json()), [""; 0]);
    let cleanup = aegis(&["cleanup", "--json", "--dry-run", "--env-file", &file]);
    assert_eq!(cleanup.run().exits(0).json()["removed"], json!([]));
    std::fs::remove_dir_all(directory).expect("removes its own directory");
}

#[test]
fn old_heartbeats_are_hidden_counted_and_shown_by_all() {
    let (server, mut registry) = any_bucket();
    registry.put(&key("orders-api", "young"), TTL, &aged("orders-api", "young", 30));
    registry.put(&key("orders-api", "old"), TTL, &aged("orders-api", "old", 40));
    let answer = list(&server, &["--json"]).json();
    assert_eq!(names(&answer), ["orders-api/young"]);
    assert_eq!(answer["hidden"], json!({ "stale": 1, "unreadable": 0 }));
    let text = list(&server, &[]).stderr;
    assert!(text.contains("1 instance") && text.contains("heartbeat-too-old 1"), "{text}");

    let answer = list(&server, &["--json", "--all"]).json();
    assert_eq!(names(&answer), ["orders-api/old", "orders-api/young"]);
    assert_eq!(answer["hidden"]["stale"], 0);
    let old = answer["instances"]
        .as_array()
        .and_then(|all| all.iter().find(|one| one["instanceId"] == "old"));
    let old = old.expect("it is there");
    assert_eq!(old["stale"], true);
    assert!(old["reasons"].as_array().expect("an array").contains(&json!("heartbeat-too-old")));
    let age = old["ageSeconds"].as_f64().expect("a number");
    assert!((40.0..50.0).contains(&age), "{age}");
}

#[test]
fn stale_after_moves_the_limit() {
    let (server, mut registry) = any_bucket();
    registry.put(&key("orders-api", "a"), TTL, &aged("orders-api", "a", 3));
    registry.put(&key("orders-api", "b"), TTL, &aged("orders-api", "b", 50));
    assert_eq!(list(&server, &["--json", "--stale-after", "1s"]).json()["instances"], json!([]));
    let answer = list(&server, &["--json", "--stale-after=2m"]).json();
    assert_eq!(names(&answer), ["orders-api/a", "orders-api/b"]);
}

#[test]
fn service_shows_that_service_alone() {
    let (server, mut registry) = any_bucket();
    registry.put(&key("orders", "a"), TTL, &fresh("orders", "a"));
    registry.put(&key("orders-api", "a"), TTL, &fresh("orders-api", "a"));
    registry.put("service-instances.orders-api.b", TTL, &fresh("orders-api", "b"));
    registry.put(&key("payments", "a"), TTL, &aged("payments", "a", 100));
    let answer = list(&server, &["--json", "--service", "orders-api"]).json();
    assert_eq!(names(&answer), ["orders-api/a", "orders-api/b"]);
    assert_eq!(answer["hidden"]["stale"], 0, "of this service");
    assert_eq!(list(&server, &["--json", "--service=absent"]).json()["instances"], json!([]));
}

/// "`list` hides `heartbeat-too-old` and `expired`", not the other reasons.
#[test]
fn unhealthy_and_immortal_entries_are_shown_with_their_reasons() {
    let (server, mut registry) = any_bucket();
    for (instance, status) in [("u", "UNHEALTHY"), ("s", "SHUTDOWN"), ("b", "STANDBY")] {
        let record = fresh("orders-api", instance).replace("ACTIVE", status);
        registry.put(&key("orders-api", instance), TTL, &record);
    }
    registry.put(&key("orders-api", "immortal"), &[], &fresh("orders-api", "immortal"));
    registry.put(
        &key("orders-api", "never"),
        &[("Nats-TTL", "never")],
        &fresh("orders-api", "never"),
    );
    let answer = list(&server, &["--json"]).json();
    let mut reasons: Vec<(String, String, Value)> = answer["instances"]
        .as_array()
        .expect("an array")
        .iter()
        .map(|one| {
            (
                one["instanceId"].as_str().expect("a string").to_owned(),
                one["reasons"].to_string(),
                one["ttlSeconds"].clone(),
            )
        })
        .collect();
    reasons.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [
        ("b", "[]", json!(60.0)),
        ("immortal", "[\"no-ttl\"]", Value::Null),
        ("never", "[\"no-ttl\"]", Value::Null),
        ("s", "[\"status-shutdown\"]", json!(60.0)),
        ("u", "[\"status-unhealthy\"]", json!(60.0)),
    ]
    .map(|(instance, why, ttl)| (instance.to_owned(), why.to_owned(), ttl));
    assert_eq!(reasons, expected);
}

/// "the server's `ts` in a JetStream API reply; never the wall clock of the
/// host that happens to ask"
#[test]
fn ages_are_by_the_clock_of_the_registry() {
    let (server, mut registry) = any_bucket();
    registry.put(&key("orders-api", "a"), &[("Nats-TTL", "2h")], &fresh("orders-api", "a"));
    let proxy = Proxy::an_hour_ahead(server.port());
    let answer = aegis(&["list", "--json", "--all", "-s", &proxy.url()]).run().exits(0).json();
    let age = answer["instances"][0]["ageSeconds"].as_f64().expect("a number");
    assert!((3_600.0..3_620.0).contains(&age), "{answer}");
    let time = rfc3339::parse(answer["serverTime"].as_str().expect("a string"));
    assert!((time - rfc3339::now() - Duration::HOUR).abs() < Duration::seconds(10), "{answer}");
}

#[test]
fn an_agent_is_listed_as_it_registered() {
    let server = Server::any();
    let mut agent =
        aegis(&["run", "--service=orders-api", "--instance=host-1", "-s", &server.url()]).spawn();
    agent.wait_for_line("registered orders-api/host-1", secs(5));
    let answer = list(&server, &["--json"]).json();
    let one = &answer["instances"][0];
    assert_eq!(one["key"], key("orders-api", "host-1"));
    assert_eq!(one["metadata"]["pid"], agent.pid().to_string());
    assert_eq!(
        (&one["ttlSeconds"], &one["stale"], &one["reasons"]),
        (&json!(30.0), &json!(false), &json!([]))
    );
    let output = list(&server, &[]);
    let text = output.stdout;
    let lines: Vec<&str> = text.lines().collect();
    let words = |line: usize| lines[line].split_whitespace().take(4).collect::<Vec<_>>();
    assert_eq!(words(0), ["SERVICE", "INSTANCE", "VERSION", "STATUS"], "{text}");
    assert_eq!(words(1), ["orders-api", "host-1", "0.0.0", "ACTIVE"], "{text}");
    assert_eq!(lines.len(), 2, "nothing that is no row: {text}");
    assert!(output.stderr.starts_with("1 instance"), "{}", output.stderr);
}

#[test]
fn the_table_is_sorted_by_service_and_instance() {
    let (server, mut registry) = any_bucket();
    for (service, instance) in [("web", "b"), ("api", "z"), ("web", "a"), ("api", "c")] {
        registry.put(&key(service, instance), TTL, &fresh(service, instance));
    }
    let text = list(&server, &[]).stdout;
    let rows: Vec<String> = text
        .lines()
        .skip(1)
        .take(4)
        .map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join("/"))
        .collect();
    assert_eq!(rows, ["api/c", "api/z", "web/a", "web/b"], "{text}");
}

#[test]
fn names_status_and_metadata_choose_what_is_shown() {
    let (server, mut registry) = any_bucket();
    for (service, instance) in [("orders", "a"), ("orders-api", "a"), ("orders-api", "b")] {
        registry.put(&key(service, instance), TTL, &fresh(service, instance));
    }
    let in_zone = fresh("web", "z").replace("ACTIVE", "STANDBY").replace(
        "\"metadata\":{}",
        "\"metadata\":{\"zone\":\"west\",\"port\":80,\"host\":\"h 1\"}",
    );
    registry.put(&key("web", "z"), TTL, &in_zone);
    for (options, expected) in [
        (&["orders-api"][..], "orders-api/a orders-api/b"),
        (&["orders-api/b", "web"], "orders-api/b web/z"),
        (&["--service", "orders"], "orders/a"),
        (&["--status", "standby"], "web/z"),
        (&["--status=ACTIVE", "orders-api/a"], "orders-api/a"),
        (&["--meta", "zone"], "web/z"),
        (&["--meta", "zone=west", "--meta=port=80"], "web/z"),
        (&["--meta", "zone=east"], ""),
    ] {
        let answer = list(&server, &[options, &["--json"]].concat()).json();
        assert_eq!(names(&answer).join(" "), expected, "{options:?}");
        let output = list(&server, &[options, &["--names"]].concat());
        assert_eq!(output.stdout.split_whitespace().collect::<Vec<_>>().join(" "), expected);
        assert_eq!(output.stderr, "", "names and nothing else");
    }
    let wide = list(&server, &["--wide", "web"]).stdout;
    let rows: Vec<Vec<&str>> = wide
        .lines()
        .map(|line| line.split("  ").map(str::trim).filter(|w| !w.is_empty()).collect())
        .collect();
    assert_eq!(rows[0][6..], ["HOST", "PID", "GROUP", "REVISION", "METADATA"], "{wide}");
    assert_eq!(rows[1][6..], ["h 1", "-", "-", "4", "port=80,zone=west"], "{wide}");
    let none = list(&server, &["web/nobody"]);
    assert_eq!(none.stdout, "");
    assert!(none.stderr.contains("no instances of web/nobody"), "{none:?}");
}

/// The server delivers an entry again that is refreshed while it is read, and
/// counts what is left apart from storing.
#[test]
fn what_is_refreshed_meanwhile_is_shown_exactly_once() {
    const COUNT: usize = 300;
    let (server, mut registry) = any_bucket();
    let put = |registry: &mut Registry| {
        let headers = header(TTL);
        registry.fill(COUNT, |i| {
            let instance = format!("host-{i:04}");
            (key("orders-api", &instance), headers.clone(), fresh("orders-api", &instance))
        });
    };
    put(&mut registry);
    let expected: Vec<String> = (0..COUNT).map(|i| format!("orders-api/host-{i:04}")).collect();
    let end = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = {
        let (end, url) = (end.clone(), server.url());
        std::thread::spawn(move || {
            let mut registry = Registry::at(&url);
            let mut rounds = 0;
            while !end.load(Ordering::Relaxed) {
                put(&mut registry);
                rounds += 1;
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            rounds
        })
    };
    for _ in 0..30 {
        let answer = list(&server, &["--json"]).json();
        let names = names(&answer);
        let twice: Vec<_> = names.windows(2).filter(|two| two[0] == two[1]).collect();
        assert!(twice.is_empty(), "{twice:?}");
        let missing: Vec<_> = expected.iter().filter(|name| !names.contains(name)).collect();
        assert!(missing.is_empty() && names.len() == COUNT, "{missing:?}");
    }
    end.store(true, Ordering::Relaxed);
    assert!(writer.join().expect("the writer ends") > 3, "it was refreshed meanwhile");
}

/// Read by scripts and by other tools: a change here breaks them.
#[test]
fn list_json_is_byte_for_byte_the_golden_one() {
    let (server, mut registry) = any_bucket();
    let heartbeat = rfc3339::parse("2024-01-02T03:04:05.678901+00:00");
    let plain = record("orders-api", "host-1", heartbeat);
    let rich = plain
        .replace("\"host-1\"", "\"host-2\"")
        .replace("ACTIVE", "UNHEALTHY")
        .replace("null", "\"blue\"")
        .replace("{}", "{\"host\":\"h\\u001b\\\"\",\"pid\":\"4711\"}");
    registry.put("echo-service", &[], "{}");
    registry.put(&key("orders-api", "host-1"), TTL, &plain);
    registry.put("service-instances.orders-api.host-2", &[], &rich);
    registry.put(&key("orders-api", "host-3"), TTL, "[1]");
    let output = list(&server, &["--json", "--all"]).stdout;
    let normalised =
        with_value(&with_value(&output, "\"serverTime\":\"", "TIME"), "\"ageSeconds\":", "AGE");
    assert_eq!(normalised, include_str!("../golden/list.json"));
}

/// Every value that follows `before` replaced by `word`.
fn with_value(text: &str, before: &str, word: &str) -> String {
    let mut parts = text.split(before);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |done, part| {
        let end = part.find([',', '"', '}']).unwrap_or(0);
        format!("{done}{before}{word}{}", &part[end..])
    })
}

// Large buckets, closed pipes.

fn fill(registry: &mut Registry, count: usize) {
    let headers = header(&[("Nats-TTL", "10m")]);
    registry.fill(count, |i| {
        let (service, instance) = (format!("service-{:03}", i % 500), format!("host-{i:06}"));
        (key(&service, &instance), headers.clone(), fresh(&service, &instance))
    });
}

#[test]
fn a_hundred_thousand_entries_are_listed_quickly_and_in_little_memory() {
    let (server, mut registry) = any_bucket();
    fill(&mut registry, 100_000);
    // Both are sorted, and so are held until the last one has come.
    for (options, most_kib) in
        [(&["--json", "--stale-after=1h"][..], 64 * 1024), (&["--stale-after=1h"], 64 * 1024)]
    {
        let output = aegis(&["list", "-s", &server.url()]);
        let output = options.iter().fold(output, |call, option| call.arg(option));
        let output = output.within(secs(90)).run().exits(0);
        eprintln!(
            "list {options:?}: 100,000 entries in {:?}, at most {} KiB resident",
            output.took, output.peak_kib
        );
        let lines = match options[0] {
            "--json" => output.json()["instances"].as_array().map_or(0, Vec::len),
            _ => output.stdout.lines().filter(|line| line.starts_with("service-")).count(),
        };
        assert_eq!(lines, 100_000);
        // Without optimisation everything takes ten times as long, and beside others.
        let limit = if cfg!(debug_assertions) { secs(60) } else { secs(5) };
        assert!(output.took < limit, "{:?}", output.took);
        assert!(output.peak_kib < most_kib, "{} KiB", output.peak_kib);
    }
}

#[test]
fn head_closes_the_pipe_and_list_exits_0() {
    let (server, mut registry) = any_bucket();
    fill(&mut registry, 5_000);
    for options in [&["list", "--json"][..], &["list"]] {
        let mut child =
            aegis(options).arg("-s").arg(&server.url()).command().spawn().expect("starts");
        let mut first = String::new();
        let mut reader = BufReader::with_capacity(16, child.stdout.take().expect("piped"));
        if options.contains(&"--json") {
            std::io::Read::read_exact(&mut reader, &mut [0; 16]).expect("some output");
        } else {
            reader.read_line(&mut first).expect("a line");
            assert!(first.starts_with("SERVICE"), "{first}");
        }
        drop(reader);
        let status = eventually(secs(10), "list ends", || {
            child.try_wait().expect("waits").ok_or_else(|| "it runs".to_owned())
        });
        let mut errors = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().expect("piped"), &mut errors)
            .expect("reads");
        assert_eq!((status.code(), errors.as_str()), (Some(0), ""), "list {options:?}");
    }
}

// What goes wrong.

#[test]
fn without_a_server_it_exits_69() {
    let server = Server::absent(Setup::default());
    let output = aegis(&["list", "-s", &server.url()]).run().exits(69);
    assert!(output.stderr.contains(&server.port().to_string()), "names the server: {output:?}");
    assert_eq!(output.stdout, "");
}

#[test]
fn without_the_bucket_it_exits_69_and_names_the_command_that_makes_it() {
    let server = Server::any();
    let output = aegis(&["list", "-s", &server.url(), "--bucket=absent"]).run().exits(69);
    assert!(output.stderr.contains("absent"), "{output:?}");
    let command = format!("aegis-agent -s {} --bucket absent init", server.url());
    assert!(output.stderr.contains(&command), "{output:?}");
}

#[test]
fn without_jetstream_it_exits_69() {
    let server = Server::with(Setup { jetstream: false, ..Setup::default() });
    let output = aegis(&["list", "-s", &server.url()]).run().exits(69);
    assert!(output.stderr.to_lowercase().contains("jetstream"), "{output:?}");
}

#[test]
fn a_frozen_server_costs_no_more_than_the_timeout() {
    let (mut server, _registry) = any_bucket();
    server.freeze();
    let output = aegis(&["list", "-s", &server.url(), "--timeout=1s"]).run().exits(69);
    assert!(output.took < secs(3), "{output:?}");
}

#[test]
fn a_refused_login_exits_77() {
    let server = Server::with(Setup {
        extra: "authorization { user: good, password: right }\n".to_owned(),
        ..Setup::default()
    });
    let output = aegis(&["list", "-s", &server.url(), "--user=good"])
        .env("NATS_PASSWORD", "wrong")
        .run()
        .exits(77);
    assert!(!output.stderr.contains("wrong"), "no secret in a message: {output:?}");
}

#[test]
fn a_missing_permission_exits_77_and_is_named() {
    let server = Server::with(Setup {
        extra: "authorization { users: [\n\
                { user: admin, password: a }\n\
                { user: reader, password: r, permissions: { publish: [\"$JS.API.STREAM.INFO.>\"], subscribe: [\"_INBOX.>\"] } }\n\
                ] }\n"
            .to_owned(),
        ..Setup::default()
    });
    let url = server.url();
    let mut admin =
        Registry::login(&url, "service_registry", &json!({ "user": "admin", "pass": "a" }));
    admin.create(&json!({}));
    let output =
        aegis(&["list", "-s", &url, "--user=reader"]).env("NATS_PASSWORD", "r").run().exits(77);
    assert!(output.stderr.contains("CONSUMER.CREATE"), "{output:?}");
}
