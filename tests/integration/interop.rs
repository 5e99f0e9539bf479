//! Others at the same registry: the key-value buckets of the `nats` crate and of
//! async-nats read what our agent wrote, and our tools read what they wrote.

use serde_json::{Value, json};

use crate::harness::agent::{Agent, Output, aegis};
use crate::harness::peers::{self, Build, CRATES, peers};
use crate::harness::registry::{Registry, Watch, header};
use crate::harness::scene::{self, KEY};
use crate::harness::server::Server;
use crate::harness::{eventually, secs};

const BUCKET: &str = "service_registry";

fn bucket() -> (Server, Registry) {
    bucket_with(&json!({}))
}

fn bucket_with(changes: &Value) -> (Server, Registry) {
    // Building them may take a minute, in which agents beat and markers expire.
    peers::binary(Build::Quick);
    scene::bucket_with(changes)
}

/// A registered agent of ours.
fn agent(server: &Server, times: &[&str]) -> Agent {
    let url = server.url();
    let words = ["run", "-s", &url, "--service=orders-api", "--instance=host-1"];
    let mut agent = aegis(&[&words[..], times].concat()).spawn();
    agent.wait_for_line("registered orders-api/host-1", secs(10));
    agent
}

/// One that does not beat again while a test looks.
fn calm_agent(server: &Server) -> Agent {
    agent(server, &["--ttl=30s", "--interval=10s"])
}

fn stop(mut agent: Agent) {
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(10)), 0);
}

/// `verb` as this crate does it.
fn run(name: &str, server: &Server, verb: &str, rest: &[&str]) -> Output {
    let url = server.url();
    peers(Build::Quick, &[&[verb, name, &url, BUCKET], rest].concat()).run()
}

fn done(name: &str, server: &Server, verb: &str, rest: &[&str]) -> Answer {
    Answer(run(name, server, verb, rest).exits(0).stdout)
}

/// The `name value` lines of a peer.
#[derive(Debug)]
struct Answer(String);

impl Answer {
    fn all(&self, name: &str) -> Vec<&str> {
        let values = self.0.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        values.collect()
    }

    fn get(&self, name: &str) -> &str {
        let first = self.all(name).first().copied();
        first.unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }

    fn number(&self, name: &str) -> u64 {
        self.get(name).parse().unwrap_or_else(|_| panic!("{name} is no number in {self:?}"))
    }

    /// Fails unless it is a value, byte for byte one of those that were stored.
    fn is_a_value_of(&self, watch: &Watch) {
        assert_eq!(self.get("operation"), "put", "{self:?}");
        let revision = self.number("revision");
        let stored = eventually(secs(5), "the revision is seen", || {
            let seen = watch.seen().into_iter().find(|entry| entry.revision == revision);
            seen.ok_or_else(|| format!("no revision {revision}"))
        });
        assert_eq!(self.get("value"), stored.text());
    }
}

fn list(server: &Server) -> Value {
    aegis(&["list", "--json", "-s", &server.url()]).run().exits(0).json()
}

/// Fails unless our `list` sees nothing, and nothing hidden either.
fn lists_nothing(server: &Server, after: &str) {
    let answer = list(server);
    assert_eq!(answer["instances"], json!([]), "after {after}");
    assert_eq!(answer["hidden"], json!({ "stale": 0, "unreadable": 0 }), "after {after}");
}

// They read what we wrote.

#[test]
fn each_peer_reads_what_the_agent_registered() {
    for name in CRATES {
        let (server, mut registry) = bucket();
        let watch = registry.watch(KEY);
        let agent = calm_agent(&server);
        let answer = done(name, &server, "read", &[KEY]);
        answer.is_a_value_of(&watch);
        assert!(answer.all("header").contains(&"Nats-TTL: 30s"), "{name}: {answer:?}");
        let keys = done(name, &server, "keys", &[]);
        assert_eq!(keys.all("key"), [KEY], "{name}");
        stop(agent);
    }
}

#[test]
fn each_peer_watches_the_agents_heartbeats() {
    for name in CRATES {
        let (server, mut registry) = bucket();
        let watch = registry.watch(KEY);
        let agent = agent(&server, &["--ttl=3s", "--interval=500ms"]);
        let answer = done(name, &server, "watch-once", &[KEY]);
        assert!(answer.number("revision") > 1, "{name}: {answer:?}");
        answer.is_a_value_of(&watch);
        stop(agent);
    }
}

#[test]
fn each_peer_takes_a_deregistration_for_a_purge() {
    for name in CRATES {
        let (server, _registry) = bucket();
        let agent = calm_agent(&server);
        let url = server.url();
        let mut watcher = peers(Build::Quick, &["watch-once", name, &url, BUCKET, KEY]).spawn();
        watcher.wait_for_line("watching", secs(10));
        stop(agent);
        let output = watcher.wait_output(secs(10)).exits(0);
        assert_eq!(Answer(output.stdout).get("operation"), "purge", "{name}");

        let answer = done(name, &server, "read", &[KEY]);
        assert_eq!((answer.get("operation"), answer.get("value")), ("purge", ""), "{name}");
        let headers = answer.all("header");
        for line in ["KV-Operation: PURGE", "Nats-TTL: 60s"] {
            assert!(headers.contains(&line), "{name}: no {line} in {headers:?}");
        }
        assert_eq!(done(name, &server, "keys", &[]).0, "", "{name}");
    }
}

/// "create", a compare-and-set, is refused over a value and takes a marker's place.
#[test]
fn each_peer_creates_an_entry_over_a_deregistration_and_not_before() {
    for name in CRATES {
        let (server, mut registry) = bucket();
        let agent = calm_agent(&server);
        let refused = run(name, &server, "create", &[KEY]).exits(1);
        let why = ["wrong last sequence", "already exists"];
        assert!(why.iter().any(|text| refused.stderr.contains(text)), "{name}: {refused:?}");
        stop(agent);
        let marker = registry.last(KEY).expect("a marker");
        assert!(marker.is_marker(), "{name}: {marker:?}");

        let created = done(name, &server, "create", &[KEY]).number("revision");
        assert!(created > marker.revision, "{name}");
        let answer = list(&server);
        assert_eq!(answer["instances"][0]["revision"], created, "{name}: {answer}");
    }
}

/// The server's own marker, where a bucket has them: async-nats calls it a
/// purge. The `nats` crate is older than these markers and calls it a value of
/// no bytes.
#[test]
fn each_peer_finds_the_servers_marker_of_an_agent_that_was_killed() {
    for name in CRATES {
        let markers = json!({ "subject_delete_marker_ttl": 60_000_000_000_u64 });
        let (server, mut registry) = bucket_with(&markers);
        let agent = agent(&server, &["--ttl=2s", "--interval=500ms"]);
        agent.signal("KILL");
        eventually(secs(10), "the server's marker", || {
            let last = registry.last(KEY).ok_or("nothing")?;
            if last.is_marker() { Ok(()) } else { Err(last.text()) }
        });
        let answer = done(name, &server, "read", &[KEY]);
        let expected = if name == "nats" { "put" } else { "purge" };
        assert_eq!((answer.get("operation"), answer.get("value")), (expected, ""), "{name}");
        let headers = answer.all("header");
        assert!(headers.contains(&"Nats-Marker-Reason: MaxAge"), "{name}: {answer:?}");
        lists_nothing(&server, name);
    }
}

// We read what they wrote.

#[test]
fn what_each_peer_registers_beats_and_deregisters_is_listed_so() {
    for name in CRATES {
        let (server, _registry) = bucket();
        let mut last = 0;
        for verb in ["register", "heartbeat"] {
            let revision = done(name, &server, verb, &[KEY]).number("revision");
            assert!(revision > last, "{name} {verb}");
            last = revision;
            let answer = list(&server);
            let one = &answer["instances"][0];
            assert_eq!(one["key"], KEY, "{name} {verb}: {answer}");
            assert_eq!(
                (&one["serviceName"], &one["instanceId"]),
                (&json!("orders-api"), &json!("host-1"))
            );
            assert_eq!((&one["revision"], &one["ttlSeconds"]), (&json!(revision), &json!(30.0)));
            assert_eq!((&one["stale"], &one["reasons"]), (&json!(false), &json!([])), "{name}");
            assert_eq!(one["metadata"]["host"], "host-1", "{name}");
            assert_eq!(answer["instances"].as_array().map(Vec::len), Some(1), "{name}");
        }
        done(name, &server, "deregister", &[KEY]);
        lists_nothing(&server, name);
    }
}

#[test]
fn what_each_peer_puts_without_a_ttl_is_listed_until_it_deletes_it() {
    for name in CRATES {
        let (server, _registry) = bucket();
        for removal in ["delete", "purge"] {
            let revision = done(name, &server, "put", &[KEY]).number("revision");
            let answer = list(&server);
            let one = &answer["instances"][0];
            assert_eq!((&one["revision"], &one["ttlSeconds"]), (&json!(revision), &json!(null)));
            done(name, &server, removal, &[KEY]);
            lists_nothing(&server, &format!("{name} {removal}"));
        }
    }
}

#[test]
fn the_agent_registers_over_the_markers_of_each_peer() {
    for name in CRATES {
        for removal in ["delete", "purge", "deregister"] {
            let (server, mut registry) = bucket();
            let watch = registry.watch(KEY);
            done(name, &server, "register", &[KEY]);
            done(name, &server, removal, &[KEY]);
            let marker = registry.last(KEY).expect("a marker");
            assert!(marker.is_marker(), "{name} {removal}: {marker:?}");

            let agent = calm_agent(&server);
            let answer = done(name, &server, "read", &[KEY]);
            assert!(answer.number("revision") > marker.revision, "{name} {removal}: {answer:?}");
            answer.is_a_value_of(&watch);
            stop(agent);
        }
    }
}

// What the benches measure is done.

#[test]
fn each_peer_beats_lists_and_cleans_as_often_as_it_says() {
    const ENTRIES: u64 = 2_500;
    for name in CRATES {
        let (server, mut registry) = bucket();
        let answer = done(name, &server, "beat", &[KEY, "30", "1"]);
        assert_eq!(answer.number("heartbeats"), 10, "{name}: after 20 to warm up");
        let beaten = registry.last(KEY).expect("an entry");
        assert_eq!((beaten.revision, beaten.header("Nats-TTL")), (30, Some("30s".to_owned())));

        let record = beaten.text();
        registry.fill(2_500, |i| {
            let key = format!("service-instances__orders-api__i{i}");
            (key, header(&[("Nats-TTL", "60s")]), record.clone())
        });
        registry.put("echo-service", &[], "{}");
        let answer = done(name, &server, "list", &[]);
        assert_eq!(answer.number("count"), ENTRIES + 2, "{name}");
        assert_eq!(answer.number("instances"), ENTRIES + 1, "{name}");

        let answer = done(name, &server, "clean", &[]);
        assert_eq!(answer.number("purged"), ENTRIES + 2, "{name}");
        assert_eq!(registry.info().expect("a bucket")["state"]["messages"], 0, "{name}");
    }
}
