//! `check`: each check in each of its states, on real servers.

use serde_json::{Value, json};

use crate::harness::agent::{Output, aegis};
use crate::harness::cluster::Cluster;
use crate::harness::proxy::Proxy;
use crate::harness::registry::{Registry, header};
use crate::harness::scene::bucket_on;
use crate::harness::server::{Server, Setup};
use crate::harness::{eventually, secs, time as rfc3339};

const NAMES: [&str; 11] = [
    "connection",
    "server-version",
    "jetstream",
    "bucket",
    "ttl-flag",
    "history",
    "max-age",
    "legacy-entries",
    "clock",
    "markers",
    "login",
];

fn record(service: &str, instance: &str) -> String {
    format!(
        "{{\"serviceName\":\"{service}\",\"instanceId\":\"{instance}\",\"version\":\"1.0.0\",\"status\":\"ACTIVE\",\
         \"lastHeartbeat\":\"{}\",\"stickyActiveGroup\":null,\"metadata\":{{}}}}",
        rfc3339::rfc3339(rfc3339::now())
    )
}

fn key(service: &str, instance: &str) -> String {
    format!("service-instances__{service}__{instance}")
}

fn check(url: &str, options: &[&str]) -> Output {
    let output = aegis(&[&["check", "--json", "-s", url], options].concat()).run();
    assert_eq!(output.stderr, "", "a report, and nothing beside it: {output:#?}");
    output
}

fn names(answer: &Value) -> Vec<&str> {
    let checks = answer["checks"].as_array().expect("an array");
    checks.iter().map(|one| one["name"].as_str().expect("a name")).collect()
}

fn one<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let checks = answer["checks"].as_array().expect("an array");
    checks.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name} in {answer:#}"))
}

fn word<'a>(answer: &'a Value, name: &str, field: &str) -> &'a str {
    one(answer, name)[field].as_str().unwrap_or_default()
}

/// The check has this status, and its message holds each of the texts.
fn says(answer: &Value, name: &str, status: &str, texts: &[&str]) {
    let check = one(answer, name);
    assert_eq!(check["status"], status, "{check:#}");
    for text in texts {
        assert!(word(answer, name, "message").contains(text), "{text:?} in {check:#}");
    }
    assert_eq!(check["hint"].is_null(), status == "ok" || is_skipped(check), "{check:#}");
}

fn is_skipped(check: &Value) -> bool {
    check["message"].as_str().is_some_and(|message| message.starts_with("not checked: "))
}

fn hints(answer: &Value, name: &str, text: &str) {
    assert!(word(answer, name, "hint").contains(text), "{text:?} in {:#}", one(answer, name));
}

/// A command of ours that goes where `check` went.
fn ours(server: &Server, words: &str) -> String {
    format!("aegis-agent -s {} {words}", server.url())
}

/// All but the named checks are ok.
fn else_ok(answer: &Value, but: &[&str]) {
    for check in answer["checks"].as_array().expect("an array") {
        let name = check["name"].as_str().expect("a name");
        assert!(but.contains(&name) || check["status"] == "ok", "{check:#}");
    }
}

#[test]
fn a_healthy_bucket_is_ok_on_every_good_version() {
    for (version, level) in [("2.11.11", 1), ("2.12.8", 3), ("2.14.6", 4), ("2.15.1", 5)] {
        let (server, mut registry) = bucket_on(version, &json!({}));
        registry.put(&key("orders-api", "a"), &[("Nats-TTL", "30s")], &record("orders-api", "a"));
        let answer = check(&server.url(), &[]).exits(0).json();
        assert_eq!((&answer["schema"], &answer["status"]), (&json!(1), &json!("ok")), "{answer:#}");
        assert_eq!(names(&answer), NAMES, "without --probe there is no ttl-probe");
        else_ok(&answer, &[]);
        let port = server.port().to_string();
        says(&answer, "connection", "ok", &[&port, version, "round trip"]);
        says(&answer, "server-version", "ok", &[version, &format!("API level {level}")]);
        says(&answer, "bucket", "ok", &["1 replica", "file storage", "1 entry"]);
        says(&answer, "legacy-entries", "ok", &["1 instance, each with a TTL"]);
        assert_eq!(one(&answer, "server-version")["value"], version);
        assert_eq!(one(&answer, "ttl-flag")["value"], true);
        assert_eq!(one(&answer, "history")["value"], 1);
        assert_eq!(one(&answer, "legacy-entries")["value"], 0);
        assert!(one(&answer, "clock")["value"].as_f64().expect("a number").abs() < 1.0);
    }
}

/// "`check` without `--probe` writes nothing"
#[test]
fn without_probe_nothing_is_written_and_no_consumer_stays() {
    let (server, mut registry) = bucket_on("", &json!({}));
    registry.put(&key("orders-api", "a"), &[], &record("orders-api", "a"));
    registry.put("echo-service", &[], "{}");
    let state = |registry: &mut Registry| registry.info().expect("it is there")["state"].clone();
    let before = state(&mut registry);
    for format in ["text", "json", "nagios", "prometheus"] {
        aegis(&["check", "-s", &server.url(), "--format", format]).run().exits(1);
    }
    assert_eq!(state(&mut registry), before);
}

// Versions.

/// "what `run` refuses at the start is said in the same words, with the same hint"
#[test]
fn a_server_of_2_10_is_critical_in_the_words_of_run() {
    let (server, mut registry) = bucket_on("2.10.25", &json!({}));
    registry.put(&key("orders-api", "a"), &[("Nats-TTL", "30s")], &record("orders-api", "a"));
    let answer = check(&server.url(), &["--probe"]).exits(2).json();
    says(&answer, "server-version", "critical", &["2.10.25", "too old"]);
    says(&answer, "ttl-flag", "critical", &["allow_msg_ttl is off"]);
    hints(&answer, "ttl-flag", "upgrade nats-server to 2.11.2 or later");
    says(&answer, "ttl-probe", "unknown", &["too old"]);
    run_says_the_same(&server.url(), &answer, "server-version");
}

fn run_says_the_same(url: &str, answer: &Value, name: &str) {
    let mut agent = aegis(&["run", "--service=web", "--instance=x", "-s", url]).spawn();
    let line = agent.wait_for_line(word(answer, name, "message"), secs(10));
    assert!(line.text.contains(word(answer, name, "hint")), "{} {answer:#}", line.text);
}

#[test]
fn a_missing_flag_is_critical_in_the_words_of_run() {
    let (server, _registry) = bucket_on("2.12.8", &json!({ "allow_msg_ttl": false }));
    let answer = check(&server.url(), &["--probe"]).exits(2).json();
    says(&answer, "ttl-flag", "critical", &["allow_msg_ttl is off"]);
    hints(&answer, "ttl-flag", &ours(&server, "init"));
    says(&answer, "ttl-probe", "unknown", &["not checked", "allow_msg_ttl is off"]);
    else_ok(&answer, &["ttl-flag", "ttl-probe"]);
    run_says_the_same(&server.url(), &answer, "ttl-flag");
}

#[test]
fn a_version_with_known_bugs_is_a_warning_with_symptom_and_fix() {
    let (server, _registry) = bucket_on("2.11.0", &json!({}));
    let answer = check(&server.url(), &[]).exits(1).json();
    says(&answer, "server-version", "warning", &["2.11.0", "250ms apart", "2.11.10", "#7344"]);
    says(&answer, "server-version", "warning", &["after a crash", "2.11.2"]);
    hints(&answer, "server-version", "2.11.10");
    else_ok(&answer, &["server-version"]);
}

#[test]
fn where_the_server_cannot_switch_the_flag_on_the_upgrade_comes_first() {
    let (server, _registry) = bucket_on("2.11.0", &json!({ "allow_msg_ttl": false }));
    let answer = check(&server.url(), &[]).exits(2).json();
    hints(&answer, "ttl-flag", "2.11.2 or later");
    hints(&answer, "ttl-flag", &ours(&server, "init"));
}

/// "a symptom that this bucket shows right now (instances past their TTL and
/// still there) is critical"
#[test]
fn instances_past_their_ttl_and_still_there_are_critical() {
    let (server, mut registry) = bucket_on("2.11.4", &json!({ "allow_msg_ttl": false }));
    // This version takes the flag and does not act on it.
    registry.update(&json!({}));
    registry.put(&key("orders-api", "a"), &[("Nats-TTL", "1s")], &record("orders-api", "a"));
    let output = eventually(secs(20), "it is overdue", || {
        let output = check(&server.url(), &[]);
        if output.code == 2 { Ok(output) } else { Err(output.stdout) }
    });
    let answer = output.json();
    says(&answer, "server-version", "critical", &["1 instance is past", "2.11.4", "restart"]);
    hints(&answer, "server-version", "restart nats-server");
    hints(&answer, "server-version", &ours(&server, "cleanup --only expired"));
}

// JetStream and the account.

#[test]
fn without_jetstream_that_is_critical_and_the_rest_unknown() {
    let server = Server::with(Setup { jetstream: false, ..Setup::default() });
    let answer = check(&server.url(), &["--probe"]).exits(2).json();
    says(&answer, "jetstream", "critical", &["not enabled on this server"]);
    hints(&answer, "jetstream", "enable JetStream");
    for name in ["bucket", "ttl-flag", "history", "max-age", "legacy-entries", "ttl-probe"] {
        says(&answer, name, "unknown", &["not checked: "]);
    }
    says(&answer, "connection", "ok", &[]);
}

#[test]
fn an_account_without_jetstream_is_critical() {
    let server = Server::with(Setup {
        extra: "accounts {\n\
                A: { jetstream: enabled, users: [ { user: a, password: p } ] }\n\
                B: { users: [ { user: b, password: p } ] }\n\
                }\n"
        .to_owned(),
        ..Setup::default()
    });
    let output = aegis(&["check", "--json", "-s", &server.url(), "--user=b"])
        .env("NATS_PASSWORD", "p")
        .run()
        .exits(2);
    says(&output.json(), "jetstream", "critical", &["account"]);
    hints(&output.json(), "jetstream", "for this account too");
}

#[test]
fn an_account_that_is_nearly_full_is_a_warning() {
    let server = Server::with(Setup {
        extra: "accounts { A: { jetstream: { max_mem: 1M, max_file: 100K }, \
                users: [ { user: a, password: p } ] } }\n"
            .to_owned(),
        ..Setup::default()
    });
    let login = json!({ "user": "a", "pass": "p" });
    let mut registry = Registry::login(&server.url(), "service_registry", &login);
    registry.create(&json!({}));
    let run = || {
        let agent = aegis(&["check", "--json", "-s", &server.url(), "--user=a"]);
        agent.env("NATS_PASSWORD", "p").run()
    };
    says(&run().exits(0).json(), "jetstream", "ok", &["file storage", "of 97.7 KiB used"]);
    registry.put("echo-service", &[], &"x".repeat(85 * 1024));
    says(&run().exits(1).json(), "jetstream", "warning", &["nearly full"]);
}

// Permissions.

fn with_permissions(publish: &str) -> (Server, Registry) {
    let server = Server::with(Setup {
        extra: format!(
            "authorization {{ users: [\n\
             {{ user: admin, password: p }}\n\
             {{ user: reader, password: p, permissions: {{ publish: [{publish}], \
             subscribe: [\"_INBOX.>\"] }} }}\n\
             ] }}\n"
        ),
        ..Setup::default()
    });
    let admin = json!({ "user": "admin", "pass": "p" });
    let mut registry = Registry::login(&server.url(), "service_registry", &admin);
    registry.create(&json!({}));
    (server, registry)
}

fn check_as_reader(server: &Server, options: &[&str]) -> Output {
    let url = server.url();
    let arguments = [&["check", "--json", "-s", &url, "--user=reader"], options].concat();
    aegis(&arguments).env("NATS_PASSWORD", "p").run()
}

/// "Permission refused is `unknown` with the subject that was refused and the
/// permission to add."
#[test]
fn what_is_not_permitted_is_unknown_and_names_the_permission() {
    let (server, _registry) = with_permissions("\"nothing\"");
    let answer = check_as_reader(&server, &[]).exits(3).json();
    assert_eq!(answer["status"], "unknown");
    for (name, subject) in
        [("jetstream", "$JS.API.INFO"), ("bucket", "$JS.API.STREAM.INFO.KV_service_registry")]
    {
        says(&answer, name, "unknown", &[&format!("publish to \"{subject}\"")]);
        hints(&answer, name, &format!("the permission to publish to \"{subject}\""));
    }
    says(&answer, "history", "unknown", &["not checked: the bucket could not be looked at"]);
    says(&answer, "connection", "ok", &[]);
}

#[test]
fn one_refused_subject_leaves_the_other_checks_alone() {
    let (server, _registry) = with_permissions("\"$JS.API.INFO\", \"$JS.API.STREAM.INFO.>\"");
    let answer = check_as_reader(&server, &["--probe"]).exits(3).json();
    says(&answer, "legacy-entries", "unknown", &["$JS.API.CONSUMER.CREATE.KV_service_registry.>"]);
    hints(&answer, "legacy-entries", "$JS.API.CONSUMER.CREATE");
    says(&answer, "ttl-probe", "unknown", &["publish to \"$KV.service_registry.aegis-probe.*\""]);
    else_ok(&answer, &["legacy-entries", "ttl-probe"]);
}

#[test]
fn replies_that_may_not_be_received_are_unknown() {
    let (server, _registry) = with_permissions("\">\"");
    let output = check_as_reader(&server, &["--inbox-prefix=_OTHER", "--timeout=2s"]).exits(3);
    assert!(output.took < secs(5), "{output:?}");
    says(&output.json(), "bucket", "unknown", &["_OTHER"]);
}

#[test]
fn a_refused_login_is_unknown_and_shows_no_secret() {
    let server = Server::with(Setup {
        extra: "authorization { user: good, password: right }\n".to_owned(),
        ..Setup::default()
    });
    let output = aegis(&["check", "--json", "-s", &server.url(), "--user=good"])
        .env("NATS_PASSWORD", "swordfish")
        .run()
        .exits(3);
    says(&output.json(), "connection", "unknown", &["login refused"]);
    assert!(!output.stdout.contains("swordfish"), "{output:?}");
}

// The bucket.

#[test]
fn a_missing_bucket_is_critical_and_names_the_command_that_makes_it() {
    let server = Server::any();
    let answer = check(&server.url(), &["--bucket=absent", "--probe"]).exits(2).json();
    says(&answer, "bucket", "critical", &["bucket absent does not exist"]);
    assert_eq!(one(&answer, "bucket")["hint"], ours(&server, "--bucket absent init"));
    for name in ["ttl-flag", "history", "max-age", "legacy-entries", "clock", "ttl-probe"] {
        says(&answer, name, "unknown", &["not checked: "]);
    }
}

#[test]
fn a_stream_that_is_no_bucket_a_mirror_or_sealed_is_critical() {
    let server = Server::start("2.12.8");
    let mut other = Registry::named(&server.url(), "other");
    other.create(&json!({ "subjects": ["orders.>"] }));
    let answer = check(&server.url(), &["--bucket=other", "--probe"]).exits(2).json();
    says(&answer, "bucket", "critical", &["no key-value bucket"]);
    says(&answer, "legacy-entries", "unknown", &["not checked: "]);

    let mut mirror = Registry::named(&server.url(), "mirror");
    mirror.create(&json!({
        "subjects": null, "mirror": { "name": "KV_other" }, "discard": "old",
        "allow_rollup_hdrs": false, "allow_msg_ttl": false,
    }));
    let answer = check(&server.url(), &["--bucket=mirror"]).exits(2).json();
    says(&answer, "bucket", "critical", &["mirror"]);

    let mut sealed = Registry::named(&server.url(), "sealed");
    sealed.create(&json!({}));
    sealed.update(&json!({ "sealed": true, "deny_purge": true, "allow_rollup_hdrs": false }));
    let answer = check(&server.url(), &["--bucket=sealed"]).exits(2).json();
    says(&answer, "bucket", "critical", &["sealed"]);
}

#[test]
fn a_bucket_that_is_nearly_full_is_a_warning_before_it_is_full() {
    let (server, mut registry) = bucket_on("", &json!({ "max_bytes": 10_240 }));
    registry.put("echo-service", &[], &"x".repeat(8_000));
    let answer = check(&server.url(), &[]).exits(0).json();
    says(&answer, "bucket", "ok", &["of 10.0 KiB used"]);
    registry.put("foxtrot-service", &[], &"x".repeat(1_000));
    let answer = check(&server.url(), &[]).exits(1).json();
    says(&answer, "bucket", "warning", &["nearly full", "every live service expires"]);
    hints(&answer, "bucket", &ours(&server, "init --history 1 --marker-ttl 60s"));
    else_ok(&answer, &["bucket"]);
}

#[test]
fn history_above_1_is_a_warning_that_says_what_happens() {
    let (server, _registry) = bucket_on("2.15.1", &json!({ "max_msgs_per_subject": 10 }));
    let answer = check(&server.url(), &[]).exits(1).json();
    says(&answer, "history", "warning", &["keeps 10 revisions", "the one under it is current"]);
    hints(&answer, "history", &ours(&server, "init --history 1"));
    assert_eq!(one(&answer, "history")["value"], 10);
    else_ok(&answer, &["history"]);
    // The leak of #8594 needs history, and was mended in 2.15.1.
    let (server, _registry) = bucket_on("2.14.6", &json!({ "max_msgs_per_subject": 10 }));
    let answer = check(&server.url(), &[]).exits(1).json();
    says(&answer, "server-version", "warning", &["#8594", "2.15.1"]);
}

#[test]
fn a_max_age_shorter_than_the_ttl_is_a_warning() {
    let (server, mut registry) = bucket_on(
        "",
        &json!({ "max_age": 10_000_000_000_u64, "duplicate_window": 10_000_000_000_u64 }),
    );
    let answer = check(&server.url(), &[]).exits(1).json();
    says(&answer, "max-age", "warning", &["max_age 10s", "TTL of 30s"]);
    hints(&answer, "max-age", &ours(&server, "init --max-age none"));
    assert_eq!(one(&answer, "max-age")["value"], 10.0);
    else_ok(&answer, &["max-age"]);
    // What counts is the TTL that is in use.
    registry.put(&key("orders-api", "a"), &[("Nats-TTL", "9s")], &record("orders-api", "a"));
    let answer = check(&server.url(), &[]).exits(0).json();
    says(&answer, "max-age", "ok", &["longer than the TTL of 9s"]);
}

#[test]
fn delete_markers_stretch_the_ttl_only_with_history() {
    let marker = 60_000_000_000_u64;
    let (server, _registry) = bucket_on("2.12.8", &json!({ "subject_delete_marker_ttl": marker }));
    let answer = check(&server.url(), &[]).exits(0).json();
    says(&answer, "max-age", "ok", &["delete markers stay 1m"]);
    let (server, mut registry) = bucket_on(
        "2.12.8",
        &json!({ "subject_delete_marker_ttl": marker, "max_msgs_per_subject": 10 }),
    );
    let answer = check(&server.url(), &[]).exits(1).json();
    says(&answer, "max-age", "warning", &["delete markers of 1m stretch a TTL of 30s"]);
    // Also where it has happened: the server rewrites the header.
    registry.put(&key("orders-api", "a"), &[("Nats-TTL", "30s")], &record("orders-api", "a"));
    let answer = check(&server.url(), &[]).exits(1).json();
    says(&answer, "max-age", "warning", &["delete markers of 1m stretch a TTL of 30s"]);
    hints(&answer, "max-age", "init --history 1");
}

// Legacy entries.

/// 450 instances with a TTL, 50 without, and definitions.
fn mixed_bucket() -> (Server, Registry) {
    let (server, mut registry) = bucket_on("", &json!({}));
    let ttl = header(&[("Nats-TTL", "2h")]);
    registry.fill(500, |i| {
        let service = ["orders-api", "web", "billing"][if i < 30 { 0 } else { 1 + i % 2 }];
        let instance = format!("i{i}");
        let header = if i < 50 { Vec::new() } else { ttl.clone() };
        (key(service, &instance), header, record(service, &instance))
    });
    for name in ["echo-service", "service-instances", "orders-api"] {
        registry.put(name, &[], "{}");
    }
    (server, registry)
}

#[test]
fn legacy_entries_that_are_being_rewritten_name_who_writes_them() {
    let (server, _registry) = mixed_bucket();
    let answer = check(&server.url(), &[]).exits(1).json();
    says(
        &answer,
        "legacy-entries",
        "warning",
        &["50 of 500 instances", "orders-api 30, billing 10, web 10", "old SDK is still running"],
    );
    hints(&answer, "legacy-entries", "update the SDK of billing, orders-api, web first");
    hints(&answer, "legacy-entries", &ours(&server, "cleanup --only no-ttl"));
    assert_eq!(one(&answer, "legacy-entries")["value"], 50);
    else_ok(&answer, &["legacy-entries"]);
}

#[test]
fn legacy_entries_of_yesterday_are_leftovers_that_cleanup_removes() {
    let (server, _registry) = mixed_bucket();
    let proxy = Proxy::an_hour_ahead(server.port());
    let answer = check(&proxy.url(), &[]).exits(1).json();
    says(&answer, "legacy-entries", "warning", &["50 of 500 instances", "leftovers"]);
    assert_eq!(
        one(&answer, "legacy-entries")["hint"],
        format!("aegis-agent -s {} cleanup --only no-ttl", proxy.url())
    );
}

/// What others can store must not keep anybody from counting.
#[test]
fn poison_is_counted_and_hides_nothing() {
    let (server, mut registry) = bucket_on("", &json!({}));
    for i in 0..3 {
        registry.put(&key("web", &format!("a{i}")), &[], &record("web", "a"));
        let poisoned = key("bad", &format!("b{i}"));
        registry.store(poisoned.as_bytes(), b"NATS/1.0\r\nno colon\r\n\r\n", b"x");
        registry.put(&key("web", &format!("c{i}")), &[("Nats-TTL", "1h")], "not json");
    }
    registry.store(b"\xff\xfe", b"", b"");
    let answer = check(&server.url(), &[]).exits(1).json();
    says(&answer, "legacy-entries", "warning", &["6 of 9 instances", "bad 3, web 3"]);
}

// Clocks.

#[test]
fn a_clock_that_differs_is_a_warning() {
    let (server, _registry) = bucket_on("", &json!({}));
    let answer = check(&Proxy::an_hour_ahead(server.port()).url(), &[]).exits(1).json();
    says(&answer, "clock", "warning", &["behind the registry's"]);
    hints(&answer, "clock", "timedatectl");
    let seconds = one(&answer, "clock")["value"].as_f64().expect("a number");
    assert!((-3_610.0..-3_590.0).contains(&seconds), "{seconds}");
    else_ok(&answer, &["clock"]);
}

// Clusters.

#[test]
fn a_cluster_is_named_with_its_server_and_replicas() {
    let cluster = Cluster::start(&["2.12.8"]);
    let mut registry = Registry::at(&cluster.servers[0].url());
    registry.create(&json!({}));
    let url = cluster.servers[0].url();
    let answer = eventually(secs(30), "one replica is a warning", || {
        let output = check(&url, &["--timeout=1s"]);
        if output.code == 1 { Ok(output.json()) } else { Err(output.stdout) }
    });
    says(&answer, "bucket", "warning", &["1 replica", "lost when one server of the cluster tests"]);
    let command = format!("aegis-agent -s {url} init --replicas 3");
    assert_eq!(word(&answer, "bucket", "hint"), command);
    let words: Vec<&str> = command.split(' ').skip(1).collect();
    aegis(&words).run().exits(0);
    for server in &cluster.servers {
        // Right after the start a member may not have the bucket yet.
        let answer = eventually(secs(30), "the cluster has settled", || {
            let output = check(&server.url(), &["--timeout=1s"]);
            if output.code == 0 { Ok(output.json()) } else { Err(output.stdout) }
        });
        says(&answer, "connection", "ok", &["(n", "cluster tests"]);
        says(&answer, "bucket", "ok", &["3 replicas"]);
    }
}

/// "The version that counts is the stream leader's."
#[test]
fn in_a_mixed_cluster_the_leader_of_the_bucket_counts() {
    let cluster = Cluster::start(&["2.10.25", "2.12.8", "2.12.8"]);
    let mut registry = Registry::at(&cluster.servers[1].url());
    registry.create(&json!({}));
    let led_by_old = cluster.leader("service_registry", 1) == 0;
    let through_new = check(&cluster.servers[1].url(), &[]).json();
    let through_old = check(&cluster.servers[0].url(), &[]).json();
    if led_by_old {
        says(&through_new, "server-version", "critical", &["n0 (leader of the bucket)"]);
        says(&through_old, "server-version", "critical", &["2.10.25"]);
    } else {
        says(&through_old, "server-version", "warning", &["2.12.8 leads the bucket", "2.10.25"]);
        hints(&through_old, "server-version", "every nats-server of the cluster");
    }
}

/// Two of three servers are gone: nothing can be written, and that is said. Which
/// rows say it depends on who led: the one that is left may go on telling what the
/// bucket is like.
#[test]
fn without_a_quorum_the_report_comes_in_time() {
    let mut cluster = Cluster::start(&["2.12.8"]);
    let url = cluster.servers[0].url();
    Registry::at(&url).create(&json!({ "num_replicas": 3 }));
    cluster.servers[1].kill();
    cluster.servers[2].kill();
    let output = eventually(secs(30), "the quorum is missed", || {
        let output = check(&url, &["--timeout=1s", "--probe"]);
        assert!(output.took < secs(6), "{output:?}");
        if output.code >= 2 { Ok(output) } else { Err(output.stdout) }
    });
    let answer = output.json();
    says(&answer, "connection", "ok", &[]);
    let probe = word(&answer, "ttl-probe", "status");
    assert!(["unknown", "critical"].contains(&probe), "{answer:#}");
    let said = ["no answer in time", "no leader", "nobody answers"];
    assert!(said.iter().any(|words| output.stdout.contains(words)), "{answer:#}");
}
