//! `list`: who is alive, by the registry's own clock.
//!
//! Reads the whole bucket in one scan. JSON is written as it arrives, in the
//! order of revisions, so that memory does not grow with the bucket; the table
//! is sorted, and keeps one short row an instance.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use crate::cli::options::ListOptions;
use crate::error::{Failure, written};
use crate::instance::entry::{Entry, Unreadable};
use crate::instance::record::{Record, ServiceName};
use crate::instance::staleness::{self, Reason, Ttl, clock_skew, is_stale, judge};
use crate::jetstream::bucket::Bucket;
use crate::jetstream::fitness::Unfit;
use crate::nats::{Connector, Settings};
use crate::registry::Registry;
use crate::registry::failure::RegistryError;
use crate::registry::scan::Scan;
use crate::text::duration::words;
use crate::text::printable::{printable, printable_json};
use crate::text::table::Table;
use crate::text::time::format_time;

/// The columns of the table, and whether they are aligned to the right; the
/// last one is for `--all`.
const COLUMNS: [(&str, bool); 7] = [
    ("SERVICE", false),
    ("INSTANCE", false),
    ("VERSION", false),
    ("STATUS", false),
    ("AGE", true),
    ("TTL LEFT", true),
    ("REASONS", false),
];
/// Unreadable entries that the text names; the rest is counted.
const UNREADABLE_SHOWN: usize = 20;

/// Writes the list to `out`.
pub fn run(
    options: &ListOptions,
    settings: Settings,
    bucket: Bucket,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let connector = Connector::new(settings);
    let mut registry = Registry::connected(connector, bucket)?;
    let info = registry.info_anywhere()?;
    let Some(info) = info else {
        let unfit = Unfit::NoBucket(registry.bucket().clone());
        return Err(RegistryError::Unfit(unfit).into());
    };
    let mut scan = Scan::begin(&mut registry, &info)?;
    let clock = registry.clock().ok_or(RegistryError::NoClock)?;

    let mut summary = Summary::default();
    let mut view = View::begin(options, registry.bucket(), clock.time(registry.boot_clock()), out)?;
    while let Some(entry) = scan.next(&mut registry)? {
        if let Some(shown) = summary.take(entry, options, clock.time(registry.boot_clock())) {
            view.add(&shown)?;
        }
    }
    scan.end(&mut registry);
    view.end(&summary, registry.bucket(), options.service.as_ref())
}

/// One instance with the verdict on it.
struct Shown {
    entry: Entry,
    record: Record,
    reasons: Vec<Reason>,
    skew: Option<time::Duration>,
    now: OffsetDateTime,
}

impl Shown {
    fn stale(&self) -> bool {
        is_stale(&self.reasons)
    }

    fn reason_words(&self) -> Vec<&'static str> {
        let mut words: Vec<_> = self.reasons.iter().map(|reason| reason.as_str()).collect();
        if self.skew.is_some() {
            words.push("clock-skew");
        }
        words
    }
}

/// What is counted beside what is shown.
#[derive(Default)]
struct Summary {
    hidden: BTreeMap<Reason, usize>,
    hidden_entries: usize,
    unreadable: Vec<Unreadable>,
}

impl Summary {
    /// The entry, if it is to be shown; otherwise it is counted.
    fn take(&mut self, entry: Entry, options: &ListOptions, now: OffsetDateTime) -> Option<Shown> {
        let record = match entry.instance()? {
            Ok(record) => record,
            Err(unreadable) => {
                self.unreadable.push(unreadable);
                return None;
            }
        };
        let wanted = options.service.as_ref();
        if wanted.is_some_and(|service| service.as_str() != record.service_name) {
            return None;
        }
        let reasons = judge(&record, &entry.stored, now, options.stale_after);
        if !options.all && is_stale(&reasons) {
            self.hidden_entries += 1;
            for reason in reasons.iter().filter(|reason| reason.is_stale()) {
                *self.hidden.entry(*reason).or_default() += 1;
            }
            return None;
        }
        Some(Shown { skew: clock_skew(&record, &entry.stored), entry, record, reasons, now })
    }
}

/// Where the answer goes, and in which form.
enum View<'a> {
    /// Sorted as the table is: each after its names, and where it begins.
    Json {
        out: &'a mut dyn Write,
        found: Vec<(Box<str>, usize)>,
    },
    Table {
        out: &'a mut dyn Write,
        all: bool,
        table: Table,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonInstance<'a> {
    key: &'a str,
    revision: u64,
    service_name: &'a str,
    instance_id: &'a str,
    version: &'a str,
    status: &'a str,
    last_heartbeat: String,
    sticky_active_group: Option<&'a str>,
    metadata: &'a Map<String, Value>,
    age_seconds: f64,
    ttl_seconds: Option<f64>,
    stale: bool,
    reasons: Vec<&'static str>,
}

impl<'a> View<'a> {
    fn begin(
        options: &ListOptions,
        bucket: &Bucket,
        now: OffsetDateTime,
        out: &'a mut dyn Write,
    ) -> Result<View<'a>, Failure> {
        if !options.json {
            let all = options.all;
            let columns = if all { &COLUMNS[..] } else { &COLUMNS[..COLUMNS.len() - 1] };
            return Ok(View::Table { out, all, table: Table::new(columns) });
        }
        let now = format_time(now);
        written(write!(
            out,
            "{{\"schema\":1,\"bucket\":\"{bucket}\",\"serverTime\":\"{now}\",\"instances\":["
        ))?;
        Ok(View::Json { out, found: Vec::new() })
    }

    fn add(&mut self, shown: &Shown) -> Result<(), Failure> {
        match self {
            View::Json { found, .. } => {
                let json = serde_json::to_string(&shown.as_json()).map_err(io::Error::from);
                written(json.map(|json| {
                    let record = &shown.record;
                    let names = format!("{}\0{}\0", record.service_name, record.instance_id);
                    let begins = names.len();
                    found.push(((names + &printable_json(&json)).into(), begins));
                }))
            }
            View::Table { all, table, .. } => {
                table.push(shown.as_row(*all));
                Ok(())
            }
        }
    }

    fn end(
        self,
        summary: &Summary,
        bucket: &Bucket,
        service: Option<&ServiceName>,
    ) -> Result<(), Failure> {
        match self {
            View::Json { out, mut found } => {
                found.sort();
                for (place, (text, begins)) in found.iter().enumerate() {
                    let comma = if place == 0 { "" } else { "," };
                    written(write!(out, "{comma}{}", &text[*begins..]))?;
                }
                let unreadable =
                    serde_json::to_string(&summary.unreadable).map_err(io::Error::from);
                written(unreadable.and_then(|unreadable| {
                    let unreadable = printable_json(&unreadable);
                    writeln!(
                        out,
                        "],\"hidden\":{{\"stale\":{},\"unreadable\":{}}},\"unreadable\":{unreadable}}}",
                        summary.hidden_entries,
                        summary.unreadable.len()
                    )?;
                    out.flush()
                }))
            }
            View::Table { out, all, table } => {
                written(write_table(out, all, table, summary, (bucket, service)))
            }
        }
    }
}

impl Shown {
    fn as_json(&self) -> JsonInstance<'_> {
        let record = &self.record;
        JsonInstance {
            key: &self.entry.key,
            revision: self.entry.revision,
            service_name: &record.service_name,
            instance_id: &record.instance_id,
            version: &record.version,
            status: record.status.as_str(),
            last_heartbeat: format_time(record.last_heartbeat),
            sticky_active_group: record.sticky_active_group.as_deref(),
            metadata: &record.metadata,
            age_seconds: milliseconds(staleness::age(record, self.now).as_seconds_f64()),
            ttl_seconds: match self.entry.stored.ttl {
                Ttl::After(ttl) => Some(ttl.as_secs_f64()),
                Ttl::Never => None,
            },
            stale: self.stale(),
            reasons: self.reason_words(),
        }
    }

    fn as_row(&self, all: bool) -> Vec<String> {
        let record = &self.record;
        let age = staleness::age(record, self.now);
        let left = staleness::ttl_left(&self.entry.stored, self.now);
        let mut row = vec![
            record.service_name.clone(),
            record.instance_id.clone(),
            record.version.clone(),
            record.status.as_str().to_owned(),
            signed_words(age),
            left.map_or("never expires".into(), signed_words),
        ];
        if all {
            let mut reasons: Vec<String> = self.reasons.iter().map(Reason::to_string).collect();
            if let Some(skew) = self.skew {
                reasons.push(format!("clock-skew {:+.1} s", skew.as_seconds_f64()));
            }
            row.push(reasons.join(" "));
        }
        row
    }
}

fn milliseconds(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

fn signed_words(duration: time::Duration) -> String {
    let sign = if duration.is_negative() { "-" } else { "" };
    let size: Duration = duration.unsigned_abs();
    format!("{sign}{}", words(size))
}

fn write_table(
    out: &mut dyn Write,
    all: bool,
    mut table: Table,
    summary: &Summary,
    (bucket, service): (&Bucket, Option<&ServiceName>),
) -> io::Result<()> {
    if table.is_empty() {
        let of = service.map_or(String::new(), |service| format!(" of {}", service.as_str()));
        writeln!(out, "no instances{of} in bucket {bucket}")?;
    } else {
        table.sort();
        table.write(out)?;
    }
    for entry in summary.unreadable.iter().take(UNREADABLE_SHOWN) {
        let (key, why) = (printable(&entry.key), printable(&entry.why));
        writeln!(out, "unreadable: {key} (revision {}): {why}", entry.revision)?;
    }
    writeln!(out, "{}", summary.line(table.len(), all))?;
    out.flush()
}

impl Summary {
    /// `3 instances; hidden: 2 stale (heartbeat-too-old 2, expired 1); 1 unreadable`
    fn line(&self, shown: usize, all: bool) -> String {
        let mut line = match shown {
            1 => "1 instance".to_owned(),
            count => format!("{count} instances"),
        };
        if self.hidden_entries > 0 {
            let why: Vec<_> = self.hidden.iter().map(|(r, count)| format!("{r} {count}")).collect();
            line.push_str(&format!(
                "; hidden: {} stale ({}), shown by --all",
                self.hidden_entries,
                why.join(", ")
            ));
        } else if !all {
            line.push_str("; nothing hidden");
        }
        match self.unreadable.len() {
            0 => {}
            count if count > UNREADABLE_SHOWN => {
                line.push_str(&format!("; {count} unreadable, the first {UNREADABLE_SHOWN} named"));
            }
            count => line.push_str(&format!("; {count} unreadable")),
        }
        line
    }
}
