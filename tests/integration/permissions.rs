//! Least privilege: each verb works under exactly the permissions that
//! docs/permissions.md lists, and where one is missing it says which, and does
//! not wait.
//!
//! The blocks are read out of that document and put into a server's
//! configuration as they are.

use std::time::Duration;

use serde_json::json;

use crate::harness::agent::{Agent, Invocation, Output, aegis};
use crate::harness::registry::Registry;
use crate::harness::server::{Server, Setup};
use crate::harness::{millis, nothing_happens_for, secs};

const KEY: &str = "service-instances__orders-api__host-1";
const OTHER_KEY: &str = "service-instances__orders-api__host-2";
const STALE_KEY: &str = "service-instances__orders-api__gone";
const TTL: &[(&str, &str)] = &[("Nats-TTL", "60s")];
/// A refusal is no time-out: it comes at once, on a busy machine too.
const AT_ONCE: Duration = secs(2);
const TIMEOUT: &str = "5s";

/// A verb that comes to its end, and its block in the document.
struct Verb {
    block: &'static str,
    arguments: &'static [&'static str],
    /// The exit code where a permission is missing.
    refused: i32,
}

/// `run` and `init` have tests of their own.
const VERBS: &[Verb] = &[
    Verb { block: "list", arguments: &["list"], refused: 77 },
    Verb { block: "check", arguments: &["check"], refused: 3 },
    Verb { block: "cleanup", arguments: &["cleanup"], refused: 77 },
];

/// One permission of a block.
#[derive(Debug, Clone)]
struct Permission {
    subscribe: bool,
    subject: String,
    optional: bool,
}

/// The permissions in the block after `<!-- permissions: NAME -->`.
fn block(name: &str) -> Vec<Permission> {
    let text = include_str!("../../docs/permissions.md");
    let marker = format!("<!-- permissions: {name} -->\n```");
    let (_, rest) = text.split_once(&marker).unwrap_or_else(|| panic!("no block {marker}"));
    let (block, _) = rest.split_once("\n```").expect("the block has an end");
    let mut subscribe = false;
    let mut found = Vec::new();
    for line in block.lines().map(str::trim) {
        subscribe |= line.starts_with("subscribe:");
        if let Some((subject, rest)) = line.strip_prefix('"').and_then(|l| l.split_once('"')) {
            let optional = rest.contains("# optional:");
            found.push(Permission { subscribe, subject: subject.to_owned(), optional });
        }
    }
    assert!(found.len() > 2, "{name}: {found:?}");
    found
}

/// Users: one without limits, and one with these permissions.
fn users(permissions: &[Permission]) -> String {
    let subjects = |subscribe: bool| {
        let of = permissions.iter().filter(|one| one.subscribe == subscribe);
        of.map(|one| json!(one.subject).to_string()).collect::<Vec<_>>().join(", ")
    };
    let limits = |subscribe: bool| match subjects(subscribe) {
        // An empty list would mean that all is permitted.
        none if none.is_empty() => "\"nothing\"".to_owned(),
        some => format!("[{some}]"),
    };
    format!(
        "authorization {{ users: [{{ user: admin, password: a }}, {{ user: least, password: b, \
         permissions: {{ publish: {}, subscribe: {} }} }}] }}\n",
        limits(false),
        limits(true)
    )
}

fn server(permissions: &[Permission]) -> Server {
    Server::with(Setup { extra: users(permissions), ..Setup::default() })
}

fn admin(server: &Server) -> Registry {
    Registry::login(&server.url(), "service_registry", &json!({ "user": "admin", "pass": "a" }))
}

fn server_with_bucket(permissions: &[Permission]) -> (Server, Registry) {
    let server = server(permissions);
    let mut registry = admin(&server);
    registry.create(&json!({}));
    (server, registry)
}

fn least(server: &Server, arguments: &[&str]) -> Invocation {
    let url = format!("nats://least:b@127.0.0.1:{}", server.port());
    aegis(arguments)
        .env("NATS_URL", &url)
        .env("AEGIS_INBOX_PREFIX", "_INBOX_aegis")
        .env("NATS_TIMEOUT", TIMEOUT)
}

fn run(server: &Server) -> Invocation {
    let arguments =
        ["run", "--service=orders-api", "--instance=host-1", "--ttl=2s", "--interval=500ms"];
    least(server, &arguments)
}

fn without(all: &[Permission], place: usize) -> Vec<Permission> {
    let mut left = all.to_vec();
    left.remove(place);
    left
}

/// What is said where `missing` is: publish or subscribe, and the subject.
fn refusal(missing: &Permission) -> String {
    let verb = if missing.subscribe { "subscribe" } else { "publish" };
    format!("not permitted to {verb} to \"{}\"", missing.subject)
}

fn fill(registry: &mut Registry) {
    let heartbeat = crate::harness::time::rfc3339(crate::harness::time::now());
    for (key, instance) in [(KEY, "host-1"), (OTHER_KEY, "host-2")] {
        let record = json!({
            "serviceName": "orders-api", "instanceId": instance, "version": "1.0.0",
            "status": "ACTIVE", "lastHeartbeat": heartbeat, "stickyActiveGroup": null, "metadata": {},
        });
        registry.put(key, TTL, &record.to_string());
    }
}

/// Something for `cleanup` to do.
fn fill_stale(registry: &mut Registry) {
    registry.put(
        STALE_KEY,
        TTL,
        r#"{"version":"1.0.0","lastHeartbeat":"2026-01-01T00:00:00.000000+00:00"}"#,
    );
}

#[test]
fn each_verb_works_under_exactly_its_permissions() {
    for verb in VERBS {
        let all = block(verb.block);
        let required: Vec<_> = all.iter().filter(|one| !one.optional).cloned().collect();
        for permissions in [all, required] {
            let (server, mut registry) = server_with_bucket(&permissions);
            fill(&mut registry);
            fill_stale(&mut registry);
            let output = least(&server, verb.arguments).run().exits(0);
            assert!(output.took < AT_ONCE, "{}: {output:?}", verb.block);
            assert!(!said(&output).contains("not permitted"), "{}: {output:?}", verb.block);
            let removed = registry.last(STALE_KEY).is_none();
            assert_eq!(removed, verb.block == "cleanup", "{output:?}");
        }
    }
}

#[test]
fn each_verb_names_the_permission_that_is_missing() {
    for verb in VERBS {
        let all = block(verb.block);
        let (mut server, mut registry) = server_with_bucket(&all);
        fill(&mut registry);
        fill_stale(&mut registry);
        for (place, missing) in all.iter().enumerate().filter(|(_, one)| !one.optional) {
            server.configure(&users(&without(&all, place)));
            let output = least(&server, verb.arguments).run().exits(verb.refused);
            let said = said(&output);
            assert!(said.contains(&refusal(missing)), "{}: {output:#?}", missing.subject);
            assert!(said.contains("hint: "), "{output:#?}");
            assert!(output.took < AT_ONCE, "no waiting for an answer: {output:?}");
        }
    }
}

/// `check` says it in its answer, the others in their log.
fn said(output: &Output) -> String {
    format!("{}{}", output.stdout, output.stderr)
}

#[test]
fn check_probes_with_the_optional_permissions() {
    let (server, mut registry) = server_with_bucket(&block("check"));
    fill(&mut registry);
    let output = least(&server, &["check", "--probe"]).run().exits(0);
    assert!(!said(&output).contains("not permitted"), "{output:?}");
    assert_eq!(registry.everything().len(), 2, "the probe leaves nothing behind");
}

#[test]
fn init_makes_a_bucket_under_exactly_its_permissions() {
    let all = block("init");
    let required: Vec<_> = all.iter().filter(|one| !one.optional).cloned().collect();
    for permissions in [all, required] {
        let server = server(&permissions);
        least(&server, &["init"]).run().exits(0);
        let info = admin(&server).info().expect("the bucket");
        assert_eq!(info["config"]["allow_msg_ttl"], true);
        least(&server, &["init"]).run().exits(0);
    }
}

#[test]
fn init_mends_a_bucket_with_its_optional_permissions() {
    let all = block("init");
    let server = server(&all);
    let mut registry = admin(&server);
    registry.create(&json!({ "allow_msg_ttl": false }));
    let output = least(&server, &["init"]).run().exits(0);
    assert!(output.stdout.contains("a TTL of 1s was obeyed"), "{output:?}");
    assert_eq!(registry.info().expect("the bucket")["config"]["allow_msg_ttl"], true);
}

#[test]
fn init_names_the_permission_that_is_missing() {
    let all = block("init");
    for (place, missing) in all.iter().enumerate() {
        let updates = missing.subject.contains("UPDATE");
        if missing.optional && !updates {
            continue;
        }
        let server = server(&without(&all, place));
        if updates {
            admin(&server).create(&json!({ "allow_msg_ttl": false }));
        }
        let output = least(&server, &["init"]).run().exits(77);
        assert!(output.stderr.contains(&refusal(missing)), "{output:#?}");
        assert!(output.stderr.contains("hint: "), "{output:#?}");
        assert!(output.took < AT_ONCE, "no waiting for an answer: {output:?}");
    }
}

/// Records that the client library of old could not decode took permissions of
/// their own; now they take what all take.
#[test]
fn list_reads_odd_records_with_the_least_permissions() {
    let all = block("list");
    let needed: Vec<_> = all.iter().filter(|one| !one.optional).cloned().collect();
    let (server, mut registry) = server_with_bucket(&needed);
    fill(&mut registry);
    registry.store(b"service-instances__bad__1", b"NATS/1.0\r\nno colon\r\n\r\n", b"x");
    let answer = least(&server, &["list", "--json"]).run().exits(0).json();
    assert_eq!(answer["instances"].as_array().map(Vec::len), Some(2), "{answer}");
    assert_eq!(answer["unreadable"][0]["key"], "service-instances__bad__1");
}

// `watch`.

#[test]
fn watch_works_under_exactly_its_permissions() {
    let all = block("watch");
    let required: Vec<_> = all.iter().filter(|one| !one.optional).cloned().collect();
    for permissions in [all, required] {
        let (server, mut registry) = server_with_bucket(&permissions);
        fill(&mut registry);
        let mut watch = least(&server, &["watch", "--json"]).spawn();
        nothing_happens_for(millis(1_500));
        watch.signal("TERM");
        assert_eq!(watch.wait_exit(secs(2)), 0);
        assert_eq!(watch.stderr(), "");
        let stdout = watch.stdout();
        let words: Vec<_> = stdout.lines().filter_map(|line| line.split('"').nth(5)).collect();
        assert_eq!(words, ["up", "up", "synced"]);
        drop(server);
    }
}

#[test]
fn watch_names_the_permission_that_is_missing_and_goes_on_when_it_is_given() {
    let all = block("watch");
    for (place, missing) in all.iter().enumerate().filter(|(_, one)| !one.optional) {
        let (mut server, mut registry) = server_with_bucket(&without(&all, place));
        fill(&mut registry);
        let mut watch = least(&server, &["watch", "--json"]).spawn();
        let line = watch.wait_for_line("nothing is known of the registry", AT_ONCE).text;
        assert!(line.contains(&refusal(missing)) && line.contains("hint: "), "{line}");
        server.configure(&users(&all));
        watch.wait_for_line("up to date again", secs(5));
        watch.signal("TERM");
        assert_eq!(watch.wait_exit(secs(2)), 0);
    }
}

// `run`.

fn lives(agent: &mut Agent, registry: &mut Registry) {
    agent.wait_for_line("registered orders-api/host-1", secs(4));
    let first = registry.last(KEY).expect("it is registered").revision;
    crate::harness::eventually(secs(4), "it beats", || match registry.last(KEY) {
        Some(entry) if entry.revision > first + 2 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
    assert_eq!(agent.lines_with("deregistered").len(), 1, "{}", agent.stderr());
    assert!(agent.lines_with("not permitted").is_empty(), "{}", agent.stderr());
    assert!(registry.last(KEY).is_none_or(|entry| entry.is_marker()));
}

#[test]
fn run_works_under_exactly_its_permissions() {
    let all = block("run");
    let (server, mut registry) = server_with_bucket(&all);
    lives(&mut run(&server).spawn(), &mut registry);
    let required: Vec<_> = all.into_iter().filter(|one| !one.optional).collect();
    let (server, mut registry) = server_with_bucket(&required);
    lives(&mut run(&server).spawn(), &mut registry);
    // Over an entry whose revision it may not look up.
    registry.put(KEY, TTL, "{}");
    lives(&mut run(&server).spawn(), &mut registry);
}

#[test]
fn run_makes_the_bucket_where_it_may() {
    let server = server(&block("run"));
    let mut agent = run(&server).spawn();
    agent.wait_for_line("created bucket service_registry", secs(4));
    lives(&mut agent, &mut admin(&server));
}

#[test]
fn run_says_whom_to_ask_where_it_may_not_make_the_bucket() {
    let all = block("run");
    let place = all.iter().position(|one| one.subject.contains("CREATE")).expect("it is listed");
    let server = server(&without(&all, place));
    let mut agent = run(&server).spawn();
    let line = agent.wait_for_line("cannot register", AT_ONCE).text;
    assert!(line.contains("the bucket does not exist") && line.ends_with(" init"), "{line}");
    assert!(line.contains(&refusal(&all[place])), "{line}");
    admin(&server).create(&json!({}));
    agent.wait_for_line("registered orders-api/host-1", secs(4));
}

#[test]
fn run_names_the_permission_that_is_missing_once_and_goes_on_when_it_is_given() {
    let all = block("run");
    for (place, missing) in all.iter().enumerate().filter(|(_, one)| !one.optional) {
        let (mut server, mut registry) = server_with_bucket(&without(&all, place));
        let mut agent = run(&server).spawn();
        let line = agent.wait_for_line("cannot register", AT_ONCE).text;
        assert!(line.contains(&refusal(missing)) && line.contains("hint: "), "{line}");
        nothing_happens_for(millis(1_200));
        assert_eq!(agent.lines().len(), 1, "{}", agent.stderr());
        assert!(registry.last(KEY).is_none(), "nothing is stored that cannot be acknowledged");
        server.configure(&users(&all));
        let mut registry = admin(&server);
        agent.wait_for_line("registered orders-api/host-1", secs(4));
        crate::harness::eventually(secs(2), "it is stored", || {
            registry.last(KEY).map(|_| ()).ok_or_else(|| agent.stderr())
        });
    }
}

#[test]
fn a_permission_that_is_withdrawn_is_said_once() {
    let all = block("run");
    let (mut server, _registry) = server_with_bucket(&all);
    let mut agent = run(&server).spawn();
    agent.wait_for_line("registered", secs(4));
    let place = all.iter().position(|one| one.subject.starts_with("$KV.")).expect("it is listed");
    server.configure(&users(&without(&all, place)));
    let line = agent.wait_for_line("not permitted", secs(5)).text;
    assert!(line.contains(KEY), "{line}");
    nothing_happens_for(secs(1));
    assert_eq!(agent.lines_with("not permitted").len(), 1, "{}", agent.stderr());
    server.configure(&users(&all));
    agent.wait_for_line("restored", secs(4));
}

/// "With a wrong inbox prefix the publish *is stored* and never acknowledged."
#[test]
fn a_wrong_inbox_prefix_is_said_before_anything_is_stored() {
    let all = block("run");
    let (server, mut registry) = server_with_bucket(&all);
    let mut agent = run(&server).env("AEGIS_INBOX_PREFIX", "_INBOX").spawn();
    let line = agent.wait_for_line("cannot register", AT_ONCE).text;
    assert!(line.contains("not permitted to subscribe to \"_INBOX.>\""), "{line}");
    assert!(line.contains("--inbox-prefix"), "{line}");
    nothing_happens_for(millis(1_200));
    assert_eq!(agent.lines().len(), 1, "{}", agent.stderr());
    assert!(registry.last(KEY).is_none());
    let list = least(&server, &["list"]).env("AEGIS_INBOX_PREFIX", "_OTHER").run().exits(77);
    assert!(list.stderr.contains("not permitted to subscribe to \"_OTHER.>\""), "{list:#?}");
    assert!(list.took < AT_ONCE, "{list:#?}");
}
