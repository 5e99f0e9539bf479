//! The alert rules of packaging/examples/prometheus are about metrics that the
//! program writes. What the rules mean is tested by promtool, in `.ci/run`.

use std::collections::BTreeSet;

use serde_json::json;

use crate::harness::agent::aegis;
use crate::harness::registry::Registry;
use crate::harness::server::Server;
use crate::harness::{eventually, scratch, secs};

const RULES: &str = include_str!("../../packaging/examples/prometheus/aegis-agent.rules.yml");

/// The names of our metrics in a text, but those of alerts.
fn metrics(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("aegis_")).collect()
}

#[test]
fn every_metric_in_the_rules_is_written_by_the_program() {
    let server = Server::any();
    Registry::at(&server.url()).create(&json!({}));
    let file = scratch("alerts").join("metrics.prom");
    let mut agent = aegis(&["run", "--service=orders-api", "--instance=host-1"])
        .arg(&format!("-s={}", server.url()))
        .arg(&format!("--metrics-file={}", file.display()))
        .spawn();
    agent.wait_for_line("registered orders-api/host-1", secs(5));
    let of_agent = eventually(secs(5), "the file is written", || {
        std::fs::read_to_string(&file).map_err(|error| error.to_string())
    });
    // A certificate and a JWT that end are in other tests: here it is the name
    // that counts.
    let check = aegis(&["check", "--format=prometheus", "-s", &server.url()]).run();
    let mut written = metrics(&of_agent);
    written.extend(metrics(&check.stdout));
    written.insert("aegis_login_left_seconds");
    let used = metrics(RULES);
    assert!(used.len() > 7, "{used:?}");
    let unknown: Vec<_> = used.difference(&written).collect();
    assert!(unknown.is_empty(), "{unknown:?} is nowhere in {written:?}");
}
