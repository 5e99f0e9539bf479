//! `init`: makes the bucket or mends it, and touches nothing else.

use serde_json::{Value, json};

use crate::harness::agent::{Output, aegis};
use crate::harness::cluster::Cluster;
use crate::harness::registry::Registry;
use crate::harness::server::{Server, Setup};
use crate::harness::{eventually, secs};

fn init(url: &str, options: &[&str]) -> Output {
    aegis(&[&["init", "-s", url], options].concat()).run()
}

fn config(registry: &mut Registry) -> Value {
    registry.info().expect("the bucket is there")["config"].clone()
}

fn has(config: &Value, expected: &Value) {
    for (name, value) in expected.as_object().expect("an object") {
        assert_eq!(&config[name], value, "{name} in {config:#}");
    }
}

const FLAGLESS: &str = "allow_msg_ttl";

fn flagless_on(version: &'static str) -> (Server, Registry) {
    let server = Server::start(version);
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({ FLAGLESS: false }));
    (server, registry)
}

#[test]
fn a_missing_bucket_is_made_fit_and_a_second_time_nothing_changes() {
    for version in ["2.11.0", "2.11.11", "2.12.8", "2.14.6", "2.15.1"] {
        let server = Server::start(version);
        let mut registry = Registry::at(&server.url());
        let output = init(&server.url(), &[]).exits(0);
        assert!(output.stdout.starts_with("created bucket service_registry: "), "{output:?}");
        let made = config(&mut registry);
        has(
            &made,
            &json!({
                "name": "KV_service_registry", "subjects": ["$KV.service_registry.>"],
                "max_msgs_per_subject": 1, "allow_msg_ttl": true, "allow_rollup_hdrs": true,
                "allow_direct": true, "discard": "new", "storage": "file", "num_replicas": 1,
                "max_age": 0, "subject_delete_marker_ttl": 60_000_000_000_u64,
            }),
        );
        let output = init(&server.url(), &[]).exits(0);
        assert!(output.stdout.contains("nothing needed changing"), "{output:?}");
        assert_eq!(config(&mut registry), made);
        let fit = aegis(&["check", "-s", &server.url()]).run().code;
        assert_eq!(fit, i32::from(version == "2.11.0"), "a warning for the bugs of 2.11.0");
    }
}

#[test]
fn storage_and_marker_ttl_of_a_new_bucket_are_as_asked_for() {
    let server = Server::start("2.12.8");
    init(&server.url(), &["--storage=memory", "--marker-ttl=90s", "--bucket=other"]).exits(0);
    let made = config(&mut Registry::named(&server.url(), "other"));
    has(&made, &json!({ "storage": "memory", "subject_delete_marker_ttl": 90_000_000_000_u64 }));
}

/// "by sending back the server's own configuration with that one field
/// changed: what this program does not know of survives"
#[test]
fn odd_settings_survive_when_the_flag_is_switched_on() {
    for version in ["2.11.11", "2.12.8", "2.14.6", "2.15.1"] {
        let server = Server::start(version);
        let mut registry = Registry::at(&server.url());
        let mut odd = json!({
            FLAGLESS: false, "description": "of the \u{fc}bermut \"kind\"", "max_msgs_per_subject": 7,
            "max_bytes": 9_999_999, "max_msgs": 12_345, "max_age": 86_400_000_000_000_u64,
            "max_msg_size": 54_321, "max_consumers": 77, "discard": "old", "compression": "s2",
            "duplicate_window": 3_000_000_000_u64, "allow_direct": false, "deny_delete": false,
            "deny_purge": false, "allow_rollup_hdrs": false,
            "subjects": ["$KV.service_registry.>", "another.subject"],
            "republish": { "src": "another.>", "dest": "again.>", "headers_only": true },
            "consumer_limits": { "max_ack_pending": 17, "inactive_threshold": 60_000_000_000_u64 },
            "metadata": { "owner": "platform", "_nats.note": "ours" },
        });
        if version != "2.11.11" {
            odd["allow_atomic"] = json!(true);
        }
        registry.create(&odd);
        registry.put("service-instances__web__a", &[], "{}");
        let mut before = registry.info().expect("it is there");
        assert_eq!(before["config"]["metadata"]["owner"], "platform");
        let output = init(&server.url(), &[]).exits(0);
        assert!(output.stdout.contains("switched per-message TTL on"), "{version}: {output:?}");
        let after = registry.info().expect("it is there");
        before["config"]["allow_msg_ttl"] = json!(true);
        // What the server works out of the flag.
        before["config"]["metadata"]["_nats.req.level"] =
            after["config"]["metadata"]["_nats.req.level"].clone();
        assert_eq!(after["config"], before["config"], "{version}");
        assert_eq!(after["state"]["messages"], 1, "and the data is there");
        assert!(registry.last("service-instances__web__a").is_some());
    }
}

/// "It never lowers history on its own but names the command."
#[test]
fn history_is_left_alone_and_the_command_is_named() {
    let (server, mut registry) = flagless_on("2.12.8");
    registry.update(&json!({ FLAGLESS: false, "max_msgs_per_subject": 10 }));
    let output = init(&server.url(), &[]).exits(0);
    assert!(
        output.stdout.contains(&format!("aegis-agent -s {} init --history 1", server.url())),
        "{output:?}"
    );
    assert_eq!(config(&mut registry)["max_msgs_per_subject"], 10);
}

/// "`--history 1` and `--max-age none` (mend an existing bucket on request)"
#[test]
fn what_is_asked_for_is_mended_in_an_old_bucket_and_nothing_else() {
    for version in ["2.11.2", "2.11.11", "2.12.8", "2.14.6", "2.15.1"] {
        let server = Server::start(version);
        let mut registry = Registry::at(&server.url());
        registry.create(&json!({
            "max_msgs_per_subject": 10, "max_age": 10_000_000_000_u64,
            "duplicate_window": 10_000_000_000_u64, "max_bytes": 99_999_999,
            "description": "ours",
        }));
        registry.put("service-instances__web__a", &[], "{}");
        registry.put("service-instances__web__a", &[], "{}");
        let before = config(&mut registry);
        let output = init(&server.url(), &[]).exits(0);
        for words in ["max_age 10s is not longer", "init --max-age none", "init --history 1"] {
            assert!(output.stdout.contains(words), "{version}: {output:?}");
        }
        assert!(!output.stdout.contains("nothing needed changing"), "{output:?}");
        assert_eq!(config(&mut registry), before);
        // Markers would stretch TTLs here.
        let output = init(&server.url(), &["--marker-ttl=60s"]).exits(0);
        assert!(output.stdout.contains("delete markers need history 1"), "{output:?}");
        assert_eq!(config(&mut registry), before);

        let options = ["--history", "1", "--max-age", "none", "--marker-ttl", "60s"];
        let output = init(&server.url(), &options).exits(0);
        for words in ["history 1 (was 10", "max_age none (was 10s)", "delete markers for 1m"] {
            assert!(output.stdout.contains(words), "{version}: {output:?}");
        }
        let after = config(&mut registry);
        let mut expected = before;
        expected["max_msgs_per_subject"] = json!(1);
        expected["max_age"] = json!(0);
        expected["subject_delete_marker_ttl"] = json!(60_000_000_000_u64);
        expected["metadata"] = after["metadata"].clone();
        assert_eq!(after, expected, "{version}");
        assert_eq!(registry.revisions("service-instances__web__a").len(), 1);
        let output = init(&server.url(), &options).exits(0);
        assert!(output.stdout.contains("nothing needed changing"), "{output:?}");
        init(&server.url(), &["--marker-ttl=none"]).exits(0);
        assert!(config(&mut registry)["subject_delete_marker_ttl"].as_u64().unwrap_or(0) == 0);
    }
}

#[test]
fn storage_of_an_old_bucket_stays_and_a_bad_wish_is_usage() {
    let (server, mut registry) = flagless_on("2.12.8");
    let output = init(&server.url(), &["--storage=memory"]).exits(0);
    assert!(output.stdout.contains("storage is file"), "{output:?}");
    assert_eq!(config(&mut registry)["storage"], "file");
    init(&server.url(), &["--history=5"]).exits(64);
    init(&server.url(), &["--max-age=1h"]).exits(64);
}

#[test]
fn two_at_once_do_no_harm() {
    for flagless in [false, true] {
        let server = Server::start("2.12.8");
        let mut registry = Registry::at(&server.url());
        if flagless {
            registry.create(&json!({ FLAGLESS: false }));
        }
        let url = server.url();
        let mut running: Vec<_> = (0..4).map(|_| aegis(&["init", "-s", &url]).spawn()).collect();
        for agent in &mut running {
            assert_eq!(agent.wait_exit(secs(15)), 0, "{}", agent.stderr());
        }
        has(&config(&mut registry), &json!({ FLAGLESS: true, "max_msgs_per_subject": 1 }));
        assert_eq!(registry.info().expect("it is there")["state"]["messages"], 0);
    }
}

/// Two that want different buckets: one wins, the other mends what is there.
#[test]
fn two_at_once_that_differ_end_with_one_good_bucket() {
    let server = Server::start("2.12.8");
    let url = server.url();
    let mut running: Vec<_> = ["file", "memory", "file", "memory"]
        .map(|storage| aegis(&["init", "-s", &url, "--storage", storage]).spawn())
        .into();
    for agent in &mut running {
        assert_eq!(agent.wait_exit(secs(15)), 0, "{}", agent.stderr());
    }
    has(&config(&mut Registry::at(&url)), &json!({ FLAGLESS: true }));
}

// Servers that cannot.

#[test]
fn a_server_of_2_10_is_refused_and_nothing_is_made() {
    let server = Server::start("2.10.25");
    let output = init(&server.url(), &[]).exits(69);
    assert!(output.stderr.contains("2.10.25 is too old"), "{output:?}");
    assert!(output.stderr.contains("upgrade nats-server to 2.11.2 or later"), "{output:?}");
    let mut registry = Registry::at(&server.url());
    assert!(registry.info().is_err(), "no bucket was made");
    registry.create(&json!({}));
    let before = config(&mut registry);
    init(&server.url(), &[]).exits(69);
    assert_eq!(config(&mut registry), before);
}

#[test]
fn a_server_that_cannot_switch_it_on_is_told_and_what_helps() {
    let (server, mut registry) = flagless_on("2.11.0");
    let before = config(&mut registry);
    let output = init(&server.url(), &[]).exits(69);
    assert!(output.stderr.contains("10052"), "{output:?}");
    assert!(output.stderr.contains("2.11.2 and later can"), "{output:?}");
    assert_eq!(output.stdout, "");
    assert_eq!(config(&mut registry), before);
}

/// "Where the server takes the flag but does not act on it (2.11.2 to .4) it
/// finds out by the probe and says what helps."
#[test]
fn a_server_that_takes_the_flag_and_does_not_act_on_it_is_found_out() {
    let (mut server, mut registry) = flagless_on("2.11.4");
    for said in ["switched per-message TTL on", "nothing needed changing"] {
        let output = init(&server.url(), &[]).exits(75);
        assert!(output.stdout.contains(said), "{output:?}");
        assert!(output.stderr.contains("does not act on it"), "{output:?}");
        assert!(output.stderr.contains("restart nats-server"), "{output:?}");
        let state = registry.info().expect("it is there")["state"].clone();
        assert_eq!(state["messages"], 0, "no probe stays behind: {state}");
    }
    server.stop();
    server.start_again();
    let output = init(&server.url(), &[]).exits(0);
    assert!(output.stdout.contains("a TTL of 1s was obeyed"), "{output:?}");
}

#[test]
fn more_replicas_than_servers_is_said_in_words() {
    let server = Server::start("2.12.8");
    let output = init(&server.url(), &["--replicas=3"]).exits(69);
    assert!(output.stderr.contains("more than one replica needs a cluster"), "{output:?}");
    let command = format!("aegis-agent -s {} init --replicas 1", server.url());
    assert!(output.stderr.contains(&command), "{output:?}");
    assert!(Registry::at(&server.url()).info().is_err());
}

#[test]
fn a_cluster_gets_three_replicas_or_as_many_as_asked_for() {
    let cluster = Cluster::start(&["2.12.8"]);
    // JetStream elects its leader first.
    Registry::named(&cluster.servers[0].url(), "first").create(&json!({ "num_replicas": 3 }));
    let output = init(&cluster.urls(), &[]).exits(0);
    assert!(output.stdout.contains("3 replicas"), "{output:?}");
    let made = config(&mut Registry::at(&cluster.servers[2].url()));
    let markers = 60_000_000_000_u64;
    has(&made, &json!({ "num_replicas": 3, FLAGLESS: true, "subject_delete_marker_ttl": markers }));
    let output = init(&cluster.urls(), &["--replicas=1", "--bucket=alone"]).exits(0);
    assert!(output.stdout.contains("1 replica,"), "{output:?}");
    // The hint of check mends it.
    let check = || aegis(&["check", "--json", "--bucket=alone", "-s", &cluster.urls()]).run();
    let before = check().exits(1).json();
    let row = &before["checks"][3];
    assert_eq!((&row["name"], &row["status"]), (&json!("bucket"), &json!("warning")), "{row:#}");
    assert!(row["hint"].as_str().expect("a hint").ends_with(" init --replicas 3"), "{row:#}");
    init(&cluster.urls(), &["--bucket=alone", "--replicas=3"]).exits(0);
    eventually(secs(10), "it has three", || match check().json()["checks"][3]["status"].as_str() {
        Some("ok") => Ok(()),
        status => Err(format!("{status:?}")),
    });
}

/// A leader of 2.10 drops the flag without a word: the bucket is not left so.
#[test]
fn in_a_mixed_cluster_no_bucket_without_the_flag_is_left() {
    let cluster = Cluster::start(&["2.10.25", "2.12.8", "2.10.25"]);
    Registry::named(&cluster.servers[1].url(), "first").create(&json!({ FLAGLESS: false }));
    for name in ["a", "b", "c", "d"] {
        let output = init(&cluster.servers[1].url(), &["--bucket", name]);
        let info = Registry::named(&cluster.servers[1].url(), name).info();
        match output.code {
            0 => assert_eq!(info.expect("made")["config"][FLAGLESS], true, "{output:?}"),
            69 => {
                assert!(output.stderr.contains("2.11.2 or later"), "{output:?}");
                assert!(info.is_err(), "it is not left behind: {output:?} {info:?}");
            }
            _ => panic!("{output:?}"),
        }
    }
}

// What is no bucket, and what is not permitted.

#[test]
fn a_stream_that_is_no_bucket_is_left_alone() {
    let server = Server::start("2.12.8");
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({ "subjects": ["orders.>"], FLAGLESS: false }));
    let before = config(&mut registry);
    let output = init(&server.url(), &[]).exits(69);
    assert!(output.stderr.contains("no key-value bucket"), "{output:?}");
    assert_eq!(config(&mut registry), before);
}

#[test]
fn subjects_that_another_stream_has_are_said_in_words() {
    let server = Server::start("2.12.8");
    let mut other = Registry::named(&server.url(), "other");
    other.create(&json!({ "subjects": ["$KV.service_registry.>"] }));
    let output = init(&server.url(), &[]).exits(69);
    assert!(output.stderr.contains("in use by another stream"), "{output:?}");
}

#[test]
fn a_missing_permission_exits_77_and_is_named() {
    let server = Server::with(Setup {
        extra: "authorization { users: [\n\
                { user: reader, password: p, permissions: { publish: [\"$JS.API.STREAM.INFO.>\"], subscribe: [\"_INBOX.>\"] } }\n\
                ] }\n"
            .to_owned(),
        ..Setup::default()
    });
    let output = aegis(&["init", "-s", &server.url(), "--user=reader"])
        .env("NATS_PASSWORD", "p")
        .run()
        .exits(77);
    assert!(output.stderr.contains("$JS.API.STREAM.CREATE.KV_service_registry"), "{output:?}");
}

#[test]
fn without_jetstream_or_without_a_server_it_exits_69() {
    let server = Server::with(Setup { jetstream: false, ..Setup::default() });
    let output = init(&server.url(), &[]).exits(69);
    assert!(output.stderr.contains("JetStream"), "{output:?}");
    let absent = Server::absent(Setup::default());
    let output = init(&absent.url(), &[]).exits(69);
    assert!(output.stderr.contains(&absent.port().to_string()), "{output:?}");
}
