//! `check --probe`: expiry tried on real servers, and nothing left behind.

use serde_json::{Value, json};

use crate::harness::agent::{Output, aegis};
use crate::harness::cluster::Cluster;
use crate::harness::registry::Registry;
use crate::harness::scene::bucket_on;
use crate::harness::server::{Server, Setup};
use crate::harness::{eventually, secs};

fn probe(url: &str) -> Output {
    aegis(&["check", "--probe", "--json", "-s", url]).run()
}

fn probed(output: &Output) -> Value {
    let answer = output.json();
    let last = answer["checks"].as_array().and_then(|all| all.last().cloned());
    let last = last.expect("there are checks");
    assert_eq!(last["name"], "ttl-probe", "{answer:#}");
    last
}

fn messages(registry: &mut Registry) -> u64 {
    registry.info().expect("it is there")["state"]["messages"].as_u64().expect("a number")
}

/// A server that takes the flag and does not act on it.
fn deaf() -> (Server, Registry) {
    let (server, mut registry) = bucket_on("2.11.4", &json!({ "allow_msg_ttl": false }));
    registry.update(&json!({}));
    (server, registry)
}

#[test]
fn expiry_is_seen_and_its_delay_reported() {
    for version in ["2.11.0", "2.11.11", "2.12.8", "2.14.6", "2.15.1"] {
        let (server, mut registry) = bucket_on(version, &json!({}));
        let watch = registry.watch(">");
        let output = probe(&server.url());
        let check = probed(&output);
        // A machine that is busy with other tests may be late.
        assert!(
            ["ok", "warning"].contains(&check["status"].as_str().expect("a word")),
            "{check:#}"
        );
        let message = check["message"].as_str().expect("a message");
        assert!(message.contains("obeyed: put in ") && message.contains("gone "), "{check:#}");
        assert!(check["value"].as_f64().expect("a number") >= 0.0, "{check:#}");
        eprintln!("nats-server {version}: {message}");
        assert_eq!(messages(&mut registry), 0);
        // One put under a key that is no instance's, with the TTL.
        let seen = watch.wait_for(1, secs(5));
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert!(seen[0].key().starts_with("aegis-probe."), "{seen:?}");
        assert_eq!(seen[0].header("Nats-TTL").as_deref(), Some("1s"));
    }
}

/// The server leaves a marker of its own where that is configured.
#[test]
fn no_delete_marker_of_the_server_stays_behind() {
    let marker = json!({ "subject_delete_marker_ttl": 60_000_000_000_u64 });
    for version in ["2.11.11", "2.12.8", "2.15.1"] {
        let (server, mut registry) = bucket_on(version, &marker);
        let output = probe(&server.url());
        assert!(probed(&output)["message"].as_str().expect("text").contains("was obeyed"));
        assert_eq!(messages(&mut registry), 0, "{version}");
    }
}

#[test]
fn a_stretched_ttl_is_seen_in_the_stored_header() {
    let (server, mut registry) = bucket_on(
        "2.12.8",
        &json!({ "subject_delete_marker_ttl": 60_000_000_000_u64, "max_msgs_per_subject": 10 }),
    );
    let output = probe(&server.url()).exits(1);
    let check = probed(&output);
    assert_eq!(check["status"], "warning", "{check:#}");
    assert!(check["message"].as_str().expect("text").contains("\"1m\""), "{check:#}");
    assert_eq!(messages(&mut registry), 0);
}

#[test]
fn a_probe_that_does_not_expire_is_critical_and_is_removed() {
    let (server, mut registry) = deaf();
    registry.put("service-instances__web__a", &[("Nats-TTL", "1h")], "{}");
    let output = probe(&server.url()).exits(2);
    let check = probed(&output);
    assert_eq!(check["status"], "critical", "{check:#}");
    assert!(check["message"].as_str().expect("text").contains("not obeyed"), "{check:#}");
    assert!(check["hint"].as_str().expect("text").contains("restart nats-server"), "{check:#}");
    assert!(output.took < secs(12), "{output:?}");
    assert_eq!(messages(&mut registry), 1, "the instance stays, the probe is gone");
}

/// "leaves nothing behind, also when interrupted", even where nothing expires.
#[test]
fn an_interrupted_probe_leaves_nothing_behind() {
    let (server, mut registry) = deaf();
    for signal in ["TERM", "INT"] {
        let mut agent = aegis(&["check", "--probe", "-s", &server.url()]).spawn();
        eventually(secs(10), "the probe is stored", || match messages(&mut registry) {
            0 => Err("nothing is stored".to_owned()),
            _ => Ok(()),
        });
        agent.signal(signal);
        // What is known of this version weighs more than what was not found out.
        assert_eq!(agent.wait_exit(secs(5)), 1, "a warning");
        assert_eq!(messages(&mut registry), 0, "after SIG{signal}");
    }
}

/// Where purging is not permitted a marker takes its place, for a second.
#[test]
fn without_the_permission_to_purge_the_probe_still_goes() {
    let server = Server::with(Setup {
        version: "2.12.8",
        extra: "authorization { users: [\n\
                { user: admin, password: p }\n\
                { user: prober, password: p, permissions: { publish: { allow: \">\", \
                deny: \"$JS.API.STREAM.PURGE.>\" } } }\n\
                ] }\n"
            .to_owned(),
        ..Setup::default()
    });
    let admin = json!({ "user": "admin", "pass": "p" });
    let mut registry = Registry::login(&server.url(), "service_registry", &admin);
    registry.create(&json!({ "subject_delete_marker_ttl": 60_000_000_000_u64 }));
    let output = aegis(&["check", "--probe", "--json", "-s", &server.url(), "--user=prober"])
        .env("NATS_PASSWORD", "p")
        .run();
    assert!(probed(&output)["message"].as_str().expect("text").contains("was obeyed"));
    eventually(secs(10), "the marker is gone", || match messages(&mut registry) {
        0 => Ok(()),
        count => Err(format!("{count} messages: {:?}", registry.everything())),
    });
}

/// The same refusal meets every heartbeat. (A probe of a few bytes was taken, and
/// stayed, since its delete marker did not fit: "a TTL was not obeyed".)
#[test]
fn a_full_bucket_refuses_the_probe_and_that_is_critical() {
    for version in ["2.11.11", "2.12.8", "2.15.1"] {
        let minute = 60_000_000_000_u64;
        let config = json!({ "max_bytes": 4_096, "subject_delete_marker_ttl": minute });
        let (server, mut registry) = bucket_on(version, &config);
        let own = "$KV.service_registry.echo-service".len() + 30;
        for (left, refused) in [(170, true), (600, false)] {
            registry.put("echo-service", &[], &"x".repeat(4_096 - left - own));
            let output = probe(&server.url());
            let check = probed(&output);
            assert_eq!(check["status"] == "critical", refused, "{version}: {check:#}");
            let message = check["message"].as_str().expect("text");
            assert_eq!(message.contains("bucket is full"), refused, "{version}: {check:#}");
            let answer = output.json();
            let bucket = answer["checks"].as_array().into_iter().flatten();
            let bucket = bucket.into_iter().find(|check| check["name"] == "bucket").expect("it");
            assert_eq!(bucket["status"], "warning", "{version}: {bucket:#}");
            let message = bucket["message"].as_str().expect("text");
            assert_eq!(message.contains("is full: "), refused, "{version}: {bucket:#}");
            registry.purge("echo-service");
        }
    }
}

/// A replica that has not heard of the probe yet does not count as its expiry.
#[test]
fn in_a_cluster_expiry_is_seen_through_every_member() {
    let cluster = Cluster::start(&["2.12.8"]);
    let mut registry = Registry::at(&cluster.servers[0].url());
    registry.create(&json!({ "num_replicas": 3 }));
    for server in &cluster.servers {
        // Right after the start a member may not have the bucket yet.
        eventually(secs(30), "the cluster has settled", || {
            let output = aegis(&["check", "--timeout=1s", "-s", &server.url()]).run();
            if output.code == 0 { Ok(()) } else { Err(output.stdout) }
        });
        let output = probe(&server.url());
        assert!(output.took >= secs(1), "{output:?}");
        let message = probed(&output)["message"].clone();
        assert!(message.as_str().expect("text").contains("was obeyed"), "{message}");
    }
    eventually(secs(5), "nothing is left", || match messages(&mut registry) {
        0 => Ok(()),
        count => Err(format!("{count} messages")),
    });
}
