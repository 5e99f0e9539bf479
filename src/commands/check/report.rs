//! The answer of `check` in four formats. *Pure*: rows in, text out.
//!
//! Text is for people, JSON is that of docs/registry.md, Nagios is one line with
//! performance data, Prometheus is the text exposition format that the
//! textfile collector of node_exporter reads.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::census::Census;
use super::row::{Grade, Metric, Row, Unit};
use crate::jetstream::bucket::Bucket;
use crate::text::printable::{printable, printable_json};
use crate::text::prometheus::{MetricType, family, label};

/// The worst status of all checks.
pub fn worst(checks: &[Row]) -> Grade {
    Grade::worst(checks.iter().map(|check| check.status))
}

/// For people: a line a check, its hint under it, and what it comes to.
pub fn text(bucket: &Bucket, checks: &[Row], colour: bool) -> String {
    let paint = |status: Grade, word: String| match (colour, status) {
        (false, _) => word,
        (true, Grade::Ok) => format!("\x1b[32m{word}\x1b[0m"),
        (true, Grade::Warning) => format!("\x1b[33m{word}\x1b[0m"),
        (true, Grade::Critical) => format!("\x1b[1;31m{word}\x1b[0m"),
        (true, Grade::Unknown) => format!("\x1b[35m{word}\x1b[0m"),
    };
    let names = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let status = paint(check.status, format!("{:<8}", check.status.as_str()));
        line(&mut text, format_args!("{status}  {:<names$}  {}", check.name, check.message));
        if let Some(hint) = &check.hint {
            line(&mut text, format_args!("{:8}  {:names$}  hint: {hint}", "", ""));
        }
    }
    let worst = worst(checks);
    let counts: Vec<String> = [Grade::Critical, Grade::Warning, Grade::Unknown, Grade::Ok]
        .into_iter()
        .filter_map(|status| {
            let count = checks.iter().filter(|check| check.status == status).count();
            (count > 0).then(|| format!("{count} {}", status.as_str()))
        })
        .collect();
    let verdict = paint(worst, worst.as_str().to_owned());
    line(&mut text, format_args!("bucket {bucket}: {verdict} ({})", counts.join(", ")));
    text
}

/// For programs.
pub fn json(checks: &[Row]) -> String {
    #[derive(Serialize)]
    struct Answer<'a> {
        schema: u32,
        status: Grade,
        checks: &'a [Row],
    }
    let answer = Answer { schema: 1, status: worst(checks), checks };
    let json = serde_json::to_string(&answer)
        .expect("strings, numbers and their lists are always written as JSON");
    printable_json(&json) + "\n"
}

/// For Nagios and its kin: `AEGIS WARNING: text | 'label'=value[unit];warn;crit`.
///
/// The worst comes first, and it alone with its hint: NRPE carries 1 KiB.
pub fn nagios(bucket: &Bucket, checks: &[Row]) -> String {
    let worst = worst(checks);
    let mut text = format!("AEGIS {}: bucket {bucket}", worst.as_str().to_uppercase());
    let bad = [Grade::Critical, Grade::Warning, Grade::Unknown];
    // What only follows from something else need not be read out.
    let found: Vec<String> = bad
        .into_iter()
        .flat_map(|status| checks.iter().filter(move |check| check.status == status))
        .filter(|check| !check.skipped)
        .enumerate()
        .map(|(place, check)| {
            let hint = check.hint.as_ref().filter(|_| place == 0);
            let hint = hint.map_or(String::new(), |hint| format!(" [{hint}]"));
            format!("{}: {}{hint}", check.name, check.message)
        })
        .collect();
    if found.is_empty() {
        text.push_str(&format!(": {} checks ok", checks.len()));
    } else {
        text.push_str(&format!(": {}", found.join("; ")));
    }
    // The bar begins the performance data, and a second line would be another
    // kind of output.
    let mut text = text.replace('|', "/").replace(['\n', '\r'], " ");
    let data: Vec<String> = metrics(checks).map(performance).collect();
    if !data.is_empty() {
        text.push_str(&format!(" | {}", data.join(" ")));
    }
    text.push('\n');
    text
}

/// The same for a call that is wrong: nothing was checked.
pub fn nagios_usage(message: &str) -> String {
    format!("AEGIS UNKNOWN: {}\n", printable(message).replace('|', "/"))
}

fn metrics(checks: &[Row]) -> impl Iterator<Item = &Metric> {
    checks.iter().flat_map(|check| &check.metrics)
}

/// `'label'=value[unit];warn;crit`, without the semicolons at the end.
fn performance(metric: &Metric) -> String {
    let unit = match metric.unit {
        Unit::Count => "",
        Unit::Seconds => "s",
        Unit::Bytes => "B",
    };
    let (name, value) = (&metric.name, number(metric.value));
    let text = format!("'{name}'={value}{unit};{};{}", metric.warn, metric.critical);
    text.trim_end_matches(';').to_owned()
}

/// Never in scientific notation, and no more digits than a clock has.
fn number(value: f64) -> String {
    let text = format!("{value:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// For the textfile collector of node_exporter.
pub fn prometheus(bucket: &Bucket, checks: &[Row], census: Option<&Census>) -> String {
    let mut text = String::new();
    let bucket = label(bucket.as_str());
    let worst = worst(checks);
    gauge(
        &mut text,
        "aegis_status",
        "How all checks came out together: 0 ok, 1 warning, 2 critical, 3 unknown",
        [(format!("bucket=\"{bucket}\""), f64::from(worst.code()))],
    );
    gauge(
        &mut text,
        "aegis_check_status",
        "How each check came out: 0 ok, 1 warning, 2 critical, 3 unknown",
        checks.iter().map(|check| {
            let labels = format!("bucket=\"{bucket}\",check=\"{}\"", label(check.name));
            (labels, f64::from(check.status.code()))
        }),
    );
    let version = checks.iter().find(|check| check.name == "server-version");
    if let Some(version) = version.and_then(|check| check.value.as_ref()?.as_str()) {
        gauge(
            &mut text,
            "aegis_server_info",
            "The version of nats-server that counts for the bucket",
            [(format!("bucket=\"{bucket}\",version=\"{}\"", label(&printable(version))), 1.0)],
        );
    }
    // One family a name, whatever check it comes from.
    let mut seen = BTreeMap::new();
    let services = |check: &&Row| check.name != "services";
    for metric in checks.iter().filter(services).flat_map(|check| &check.metrics) {
        if seen.insert(&metric.name, ()).is_some() {
            continue;
        }
        let unit = match metric.unit {
            Unit::Count => "",
            Unit::Seconds => "_seconds",
            Unit::Bytes => "_bytes",
        };
        let name = format!("aegis_{}{unit}", metric.name);
        gauge(&mut text, &name, metric.help, [(format!("bucket=\"{bucket}\""), metric.value)]);
    }
    if let Some(census) = census.filter(|census| !census.alive.is_empty()) {
        instances(&mut text, &bucket, census);
    }
    text
}

/// Who is alive. A service that has entries and nobody alive is there with 0, so
/// that an alert sees it.
fn instances(text: &mut String, bucket: &str, census: &Census) {
    let samples = census.alive.iter().flat_map(|(service, statuses)| {
        let service = label(&printable(service));
        let none = (!statuses.contains_key("ACTIVE")).then_some(("ACTIVE", 0));
        let some = statuses.iter().map(|(status, count)| (status.as_str(), *count));
        let samples = none.into_iter().chain(some).map(move |(status, count)| {
            let status = label(&printable(status));
            let labels = format!("bucket=\"{bucket}\",service=\"{service}\",status=\"{status}\"");
            (labels, count as f64)
        });
        samples.collect::<Vec<_>>()
    });
    gauge(text, "aegis_instances", "Instances that are alive", samples);
}

fn gauge(
    text: &mut String,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (String, f64)>,
) {
    let samples = samples.into_iter().map(|(labels, value)| (labels, number(value)));
    family(text, name, MetricType::Gauge, help, samples);
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &'static str, status: Grade, message: &str) -> Row {
        let (hint, value, metrics, skipped) = (None, None, Vec::new(), false);
        Row { name, status, message: message.to_owned(), hint, value, metrics, skipped }
    }

    fn metric(name: &'static str, unit: Unit, value: f64) -> Metric {
        let (warn, critical) = (String::new(), String::new());
        let name = name.into();
        Metric { name, help: "A \\ thing", unit, value, warn, critical }
    }

    fn bucket() -> Bucket {
        Bucket::new("b").unwrap()
    }

    #[test]
    fn known_trouble_weighs_more_than_what_is_not_known() {
        use Grade::{Critical, Ok, Unknown, Warning};
        for (statuses, expected) in [
            (&[][..], Ok),
            (&[Ok, Unknown], Unknown),
            (&[Unknown, Warning], Warning),
            (&[Critical, Unknown, Unknown], Critical),
            (&[Warning, Critical], Critical),
        ] {
            assert_eq!(Grade::worst(statuses.iter().copied()), expected, "{statuses:?}");
        }
    }

    #[test]
    fn a_bar_in_a_message_begins_no_performance_data() {
        let mut one = check("bucket", Grade::Warning, "a | b\nc");
        one.metrics.push(metric("size", Unit::Bytes, 12.0));
        assert_eq!(
            nagios(&bucket(), &[check("connection", Grade::Ok, ""), one]),
            "AEGIS WARNING: bucket b: bucket: a / b c | 'size'=12B\n"
        );
    }

    #[test]
    fn a_dead_connection_is_all_that_nagios_hears() {
        let mut skipped = check("bucket", Grade::Unknown, "not checked");
        skipped.skipped = true;
        let checks = [check("connection", Grade::Critical, "connection refused"), skipped];
        assert_eq!(
            nagios(&bucket(), &checks),
            "AEGIS CRITICAL: bucket b: connection: connection refused\n"
        );
    }

    #[test]
    fn the_worst_comes_first_for_nagios() {
        let checks = [
            check("connection", Grade::Ok, ""),
            check("history", Grade::Warning, "w"),
            check("ttl-flag", Grade::Critical, "c"),
        ];
        assert_eq!(
            nagios(&bucket(), &checks),
            "AEGIS CRITICAL: bucket b: ttl-flag: c; history: w\n"
        );
    }

    #[test]
    fn thresholds_stand_after_the_value() {
        let mut one = metric("clock", Unit::Seconds, -0.25);
        assert_eq!(performance(&one), "'clock'=-0.25s");
        one.critical = "5".into();
        assert_eq!(performance(&one), "'clock'=-0.25s;;5");
        one.warn = "-1:1".into();
        assert_eq!(performance(&one), "'clock'=-0.25s;-1:1;5");
    }

    #[test]
    fn numbers_are_plain_whatever_their_size() {
        for (value, text) in [
            (0.0, "0"),
            (-0.000_000_1, "0"),
            (0.000_012, "0.000012"),
            (1e15, "1000000000000000"),
            (100.0, "100"),
            (1.5, "1.5"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn labels_and_help_are_escaped_for_prometheus() {
        let mut version = check("server-version", Grade::Ok, "");
        version.value = Some("2.12.8\"\\\u{1b}".into());
        version.metrics.push(metric("size", Unit::Bytes, 1.0));
        let text = prometheus(&bucket(), &[version], None);
        assert!(text.contains("version=\"2.12.8\\\"\\\\\\\\u{1b}\"} 1\n"), "{text}");
        assert!(text.contains("# HELP aegis_size_bytes A \\\\ thing\n"), "{text}");
    }

    #[test]
    fn colour_is_only_around_the_words_of_the_status() {
        let checks = [check("connection", Grade::Critical, "m")];
        let plain = text(&bucket(), &checks, false);
        assert_eq!(plain, "critical  connection  m\nbucket b: critical (1 critical)\n");
        let painted = text(&bucket(), &checks, true);
        assert!(painted.starts_with("\x1b[1;31mcritical\x1b[0m  connection  m\n"), "{painted:?}");
        assert_eq!(painted.replace("\x1b[1;31m", "").replace("\x1b[0m", ""), plain);
    }
}
