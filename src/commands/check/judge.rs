//! The verdicts of `check`: facts in, rows out. *Pure*.
//!
//! What `run` would refuse is said in the words of `fitness`, with the same
//! hint. A check that cannot be made because an earlier one failed is
//! `unknown` and says so. How the facts are come by is for `facts` to know,
//! and how they are printed for `report`.

mod bucket;
mod expiry;
mod server;
mod services;
#[cfg(test)]
mod tests;

use serde_json::{Value, json};

use super::facts::Facts;
use super::row::Row;
use crate::cli::options::Wanted;
use crate::jetstream::fitness;
use crate::jetstream::replies::{StreamInfo, Used};

/// A bucket or an account with this share of its room used is nearly full.
const NEARLY_FULL: f64 = 0.8;

/// The checks, in the order of docs/registry.md; `ttl-probe` only where it
/// was asked for: an expiry that nobody tried is not "ok", and as `unknown` it
/// would make every plain check fail.
pub fn judge(facts: &Facts, wanted: &[Wanted]) -> Vec<Row> {
    let mut checks = vec![server::connection(facts)];
    let Ok(connected) = &facts.connection else {
        let rest = ["server-version", "jetstream", "bucket", "ttl-flag", "history", "max-age"];
        let probe = facts.probe.is_some().then_some("ttl-probe");
        let names = rest.into_iter().chain(["legacy-entries", "clock", "markers"]);
        let skipped = |name| Row::skipped(name, "no connection to NATS");
        checks.extend(names.map(skipped));
        checks.push(server::login(facts));
        checks.extend((!wanted.is_empty()).then(|| skipped("services")));
        checks.extend(probe.map(skipped));
        return checks;
    };
    checks.extend([
        server::server_version(facts, connected),
        server::jetstream(facts, connected),
        bucket::bucket(facts, connected),
    ]);
    match usable(facts) {
        Ok(info) => checks.extend([
            bucket::ttl_flag(&facts.bucket, info, connected),
            bucket::history(&facts.bucket, info),
            bucket::max_age(info, facts.census.as_ref().ok()),
            bucket::legacy_entries(&facts.census),
        ]),
        Err(because) => checks.extend(
            ["ttl-flag", "history", "max-age", "legacy-entries"]
                .map(|name| Row::skipped(name, because)),
        ),
    }
    checks.push(server::clock(facts));
    checks.push(match usable(facts) {
        Ok(info) => bucket::markers(info),
        Err(because) => Row::skipped("markers", because),
    });
    checks.push(server::login(facts));
    if !wanted.is_empty() {
        checks.push(match usable(facts) {
            Ok(_) => services::services(&facts.census, wanted),
            Err(because) => Row::skipped("services", because),
        });
    }
    if let Some(probe) = &facts.probe {
        checks.push(expiry::ttl_probe(probe, &server::known(facts, connected)));
    }
    checks
}

/// The stream, if it is a bucket; else why what concerns one is not checked.
fn usable(facts: &Facts) -> Result<&StreamInfo, &'static str> {
    match &facts.stream {
        Ok(Some(info)) => match fitness::judge_kind(&facts.bucket, info) {
            Ok(()) => Ok(info),
            Err(_) => Err("there is no usable bucket"),
        },
        Ok(None) => Err("the bucket does not exist"),
        Err(_) => Err("the bucket could not be looked at"),
    }
}

/// `12.0 MiB of 1.0 GiB used`
fn room(used: Used) -> String {
    format!("{} of {} used", bytes(used.used), bytes(used.limit))
}

/// Rounded to `1 / scale`, as a JSON number.
fn rounded(value: f64, scale: f64) -> Value {
    json!((value * scale).round() / scale)
}

/// `512 B`, `3.4 KiB`, `1.0 GiB`
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut size = count as f64 / 1024.0;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}
