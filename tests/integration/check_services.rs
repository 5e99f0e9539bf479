//! `check --service`: are enough instances alive? In every format, and what
//! Prometheus is told of all services.

use serde_json::{Value, json};

use crate::harness::agent::{Output, aegis};
use crate::harness::registry::Registry;
use crate::harness::server::Server;
use crate::harness::{secs, time as rfc3339};

const TTL: &[(&str, &str)] = &[("Nats-TTL", "60s")];

/// Two of `orders-api` are alive, one of them not well, and one is stale; the
/// only one of `billing` has shut down.
fn registry() -> (Server, Registry) {
    let server = Server::start("2.12.8");
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({ "subject_delete_marker_ttl": 60_000_000_000_u64 }));
    for (service, instance, status, age) in [
        ("orders-api", "a", "ACTIVE", 0),
        ("orders-api", "b", "UNHEALTHY", 0),
        ("orders-api", "c", "ACTIVE", 40),
        ("billing", "d", "SHUTDOWN", 0),
    ] {
        let heartbeat = rfc3339::rfc3339(rfc3339::now() - secs(age));
        let record = format!(
            "{{\"serviceName\":\"{service}\",\"instanceId\":\"{instance}\",\"version\":\"1.0.0\",\
             \"status\":\"{status}\",\"lastHeartbeat\":\"{heartbeat}\",\"stickyActiveGroup\":null,\
             \"metadata\":{{}}}}"
        );
        registry.put(&format!("service-instances__{service}__{instance}"), TTL, &record);
    }
    (server, registry)
}

fn check(server: &Server, options: &[&str]) -> Output {
    aegis(&[&["check", "-s", &server.url()], options].concat()).run()
}

fn services(output: &Output) -> Value {
    let answer = output.json();
    let checks = answer["checks"].as_array().expect("an array").clone();
    checks.into_iter().find(|check| check["name"] == "services").unwrap_or_default()
}

#[test]
fn the_exit_code_says_whether_enough_are_alive() {
    let (server, _registry) = registry();
    assert_eq!(services(&check(&server, &["--json"]).exits(0)), Value::Null, "not asked for");
    let alive = "orders-api: 2 alive (1 ACTIVE, 1 UNHEALTHY)";
    for (wanted, code, message) in [
        (&["orders-api"][..], 0, alive.to_owned()),
        (&["orders-api=2"], 0, alive.to_owned()),
        (&["orders-api=1:3"], 1, format!("{alive}, wanted 3")),
        (&["orders-api=3"], 2, format!("{alive}, wanted at least 3")),
        (&["nobody"], 2, "nobody: 0 alive, wanted at least 1".to_owned()),
        (&["billing"], 2, "billing: 0 alive, wanted at least 1".to_owned()),
        (&["billing=0"], 0, "billing: 0 alive".to_owned()),
        (&["orders-api", "nobody"], 2, format!("nobody: 0 alive, wanted at least 1; {alive}")),
    ] {
        let options: Vec<&str> = wanted.iter().flat_map(|one| ["--service", *one]).collect();
        let output = check(&server, &[&["--json"], &options[..]].concat()).exits(code);
        let row = services(&output);
        assert_eq!(row["message"], message, "{output:#?}");
        assert_eq!(row["hint"].is_null(), code == 0, "{row:#}");
    }
    let row = services(&check(&server, &["--json", "--service=orders-api"]));
    assert_eq!((&row["status"], &row["value"]), (&json!("ok"), &json!(2)));
    let row = services(&check(&server, &["--json", "--service=billing"]).exits(2));
    let hint = format!("aegis-agent -s {} list --all billing", server.url());
    assert_eq!(row["hint"], hint);
    // The registry's rule of staleness holds here, too.
    let output = aegis(&["check", "--json", "--service=orders-api=3", "-s", &server.url()]);
    output.env("AEGIS_STALE_AFTER", "50s").run().exits(0);
    let output = aegis(&["check", "--json", "-s", &server.url()]);
    output.env("AEGIS_SERVICE", "orders-api=2 nobody").run().exits(2);
}

#[test]
fn without_a_registry_it_is_critical_and_says_why() {
    let (mut server, mut registry) = registry();
    registry.delete();
    let row = services(&check(&server, &["--json", "--service=orders-api"]).exits(2));
    assert_eq!(row["message"], "not checked: the bucket does not exist");
    server.kill();
    let row = services(&check(&server, &["--json", "--service=orders-api"]).exits(2));
    assert_eq!(row["message"], "not checked: no connection to NATS");
}

#[test]
fn monitoring_systems_get_it_in_their_words() {
    let (server, _registry) = registry();
    let nagios = check(&server, &["--format=nagios", "--service=orders-api=2:3"]).exits(1).stdout;
    let begins = "AEGIS WARNING: bucket service_registry: services: orders-api: 2 alive \
                  (1 ACTIVE, 1 UNHEALTHY), wanted 3 [aegis-agent";
    assert!(nagios.starts_with(begins), "{nagios}");
    assert!(nagios.contains(" 'instances-orders-api'=2;3:;2:"), "{nagios}");
    // Of every service, asked for or not.
    let prometheus = check(&server, &["--format=prometheus", "--service=nobody"]).exits(2).stdout;
    let samples = prometheus.lines().filter(|line| line.starts_with("aegis_instances{"));
    let labels = "aegis_instances{bucket=\"service_registry\",service=";
    assert_eq!(
        samples.collect::<Vec<_>>(),
        [
            format!("{labels}\"billing\",status=\"ACTIVE\"}} 0"),
            format!("{labels}\"nobody\",status=\"ACTIVE\"}} 0"),
            format!("{labels}\"orders-api\",status=\"ACTIVE\"}} 1"),
            format!("{labels}\"orders-api\",status=\"UNHEALTHY\"}} 1"),
        ]
    );
    assert!(prometheus.contains("check=\"services\"} 2\n"), "{prometheus}");
}

#[test]
fn what_is_asked_wrongly_is_refused_with_the_rule() {
    for (wanted, rule) in [
        ("Orders", "a service name has"),
        ("orders-api=", "NAME[=MIN[:WARN]]"),
        ("orders-api=-1", "NAME[=MIN[:WARN]]"),
        ("orders-api=2:", "NAME[=MIN[:WARN]]"),
        ("orders-api=2:1", "WARN must not be below MIN"),
        ("orders-api=99999999999", "NAME[=MIN[:WARN]]"),
    ] {
        let output = aegis(&["check", "--service", wanted]).run().exits(3);
        assert!(output.stderr.contains(rule), "{wanted}: {output:#?}");
        assert!(output.stderr.contains(&format!("--service {wanted:?}")), "{output:#?}");
    }
    let output = aegis(&["check", "--service=orders-api", "--service=orders-api=2"]).run();
    assert!(output.exits(3).stderr.contains("names a service twice"));
}
