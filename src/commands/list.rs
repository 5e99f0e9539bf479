//! `list`: who is alive, by the registry's own clock.
//!
//! Reads the whole bucket in one scan. Every answer is sorted, so one short text
//! an instance is kept until the end; nothing is written before. An entry that
//! is refreshed meanwhile is delivered twice, and shown once.

mod keys;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};

use serde_json::Value;
use time::OffsetDateTime;

use self::keys::{Fate, Keys};
use crate::cli::options::ListOptions;
use crate::error::{Failure, written};
use crate::instance::entry::{Entry, Unreadable};
use crate::instance::record::Record;
use crate::instance::staleness::{self, Reason, clock_skew, is_stale, judge};
use crate::jetstream::bucket::Bucket;
use crate::nats::{Connector, Settings};
use crate::registry::Registry;
use crate::registry::failure::RegistryError;
use crate::registry::listing::{Document, Listed};
use crate::registry::scan::Scan;
use crate::text::duration::{signed_words, words};
use crate::text::printable::printable;
use crate::text::table::Table;

/// The columns of the table, and whether they are aligned to the right.
const COLUMNS: [(&str, bool); 6] = [
    ("SERVICE", false),
    ("INSTANCE", false),
    ("VERSION", false),
    ("STATUS", false),
    ("AGE", true),
    ("TTL LEFT", true),
];
/// More of them, for `--wide`.
const WIDE: [(&str, bool); 5] =
    [("HOST", false), ("PID", true), ("GROUP", false), ("REVISION", true), ("METADATA", false)];
/// There only where somebody drains: the reason.
const DRAINING: (&str, bool) = ("DRAINING", false);
/// The last one, for `--all`.
const REASONS: (&str, bool) = ("REASONS", false);
/// Unreadable entries that the text names; the rest is counted.
const UNREADABLE_SHOWN: usize = 20;

/// Writes the list to `out`, and what counts it to `footer`, if that is
/// somewhere else.
pub fn run(
    options: &ListOptions,
    settings: Settings,
    bucket: Bucket,
    out: &mut dyn Write,
    footer: Option<&mut dyn Write>,
) -> Result<(), Failure> {
    over(options, Connector::new(settings), bucket, out, footer)
}

/// The same, over a connector whose waiter tells the time.
pub fn over(
    options: &ListOptions,
    connector: Connector,
    bucket: Bucket,
    out: &mut dyn Write,
    footer: Option<&mut dyn Write>,
) -> Result<(), Failure> {
    let mut registry = Registry::connected(connector, bucket)?;
    let info = registry.info_anywhere()?;
    let info = registry.readable(info)?;
    let mut scan = Scan::begin(&mut registry, &info)?;
    let clock = registry.clock().ok_or(RegistryError::NoClock)?;

    let mut summary = Summary {
        hidden: BTreeMap::new(),
        hidden_entries: 0,
        unreadable: Vec::new(),
        keys: Keys::until(info.state.last_seq),
    };
    let began = clock.time(registry.boot_clock());
    let mut view = View::new(options);
    let mut is_complete = false;
    while !is_complete {
        while let Some(entry) = scan.next(&mut registry)? {
            if let Some(shown) = summary.take(entry, options, clock.time(registry.boot_clock())) {
                view.add(&shown, options)?;
            }
        }
        // The server counts what is left without stopping writes: a key that is
        // missing may have been refreshed just then.
        is_complete = summary.keys.count() as u64 >= scan.announced() || scan.was_extended();
        if !is_complete {
            let info = registry.info_anywhere()?;
            scan.extend(info.map_or(0, |info| info.state.last_seq));
        }
    }
    scan.end(&mut registry);
    written(view.write(&summary, (registry.bucket(), options, began), out, footer))
}

/// One instance with the verdict on it.
struct Shown {
    entry: Entry,
    record: Record,
    reasons: Vec<Reason>,
    now: OffsetDateTime,
}

/// What is counted beside what is shown.
struct Summary {
    hidden: BTreeMap<Reason, usize>,
    hidden_entries: usize,
    unreadable: Vec<Unreadable>,
    keys: Keys,
}

impl Summary {
    /// The entry, if it is to be shown; otherwise it is counted. Of a key that
    /// comes again only the last verdict counts, but what is shown is shown.
    fn take(&mut self, entry: Entry, options: &ListOptions, now: OffsetDateTime) -> Option<Shown> {
        match self.keys.fate(&entry.key, entry.revision) {
            Some(Fate::Shown) => return None,
            Some(Fate::Hidden { old, expired }) => {
                self.hidden_entries -= 1;
                for (of, reason) in [(old, Reason::HeartbeatTooOld), (expired, Reason::Expired)] {
                    if let Some(count) = self.hidden.get_mut(&reason).filter(|_| of) {
                        *count -= 1;
                    }
                }
                self.hidden.retain(|_, count| *count > 0);
            }
            Some(Fate::Unreadable) => self.unreadable.retain(|one| one.key != entry.key),
            Some(Fate::Other) | None => {}
        }
        let (fate, alive) = self.judge(&entry, options, now);
        self.keys.note(&entry.key, entry.revision, fate);
        let (record, reasons) = alive?;
        Some(Shown { entry, record, reasons, now })
    }

    fn judge(
        &mut self,
        entry: &Entry,
        options: &ListOptions,
        now: OffsetDateTime,
    ) -> (Fate, Option<(Record, Vec<Reason>)>) {
        let shows_metadata = options.json || options.wide || !options.filter.meta.is_empty();
        let found = if shows_metadata { entry.instance() } else { entry.instance_to_judge() };
        let record = match found {
            None => return (Fate::Other, None),
            Some(Ok(record)) => record,
            Some(Err(unreadable)) => {
                self.unreadable.push(unreadable);
                return (Fate::Unreadable, None);
            }
        };
        if !options.filter.wants(&record) {
            return (Fate::Other, None);
        }
        let reasons = judge(&record, &entry.stored, now, options.stale_after);
        if !options.all && is_stale(&reasons) {
            self.hidden_entries += 1;
            let hiding: Vec<_> = reasons.iter().filter(|reason| reason.is_stale()).collect();
            for reason in &hiding {
                *self.hidden.entry(**reason).or_default() += 1;
            }
            let old = hiding.contains(&&Reason::HeartbeatTooOld);
            let expired = hiding.contains(&&Reason::Expired);
            return (Fate::Hidden { old, expired }, None);
        }
        (Fate::Shown, Some((record, reasons)))
    }
}

/// The answer so far, in the form that was asked for.
enum View {
    Json(Document),
    Table(Table),
    Names(Vec<String>),
}

impl View {
    fn new(options: &ListOptions) -> View {
        if options.json {
            return View::Json(Document::default());
        }
        if options.names {
            return View::Names(Vec::new());
        }
        let mut columns = COLUMNS.to_vec();
        if options.wide {
            columns.extend(WIDE);
        }
        columns.push(DRAINING);
        let draining = columns.len() - 1;
        if options.all {
            columns.push(REASONS);
        }
        View::Table(Table::new(&columns).with_optional(draining))
    }

    fn add(&mut self, shown: &Shown, options: &ListOptions) -> Result<(), Failure> {
        let Record { service_name, instance_id, .. } = &shown.record;
        match self {
            View::Json(document) => return written(document.add(&shown.listed())),
            View::Table(table) => table.push(shown.as_row(options)),
            View::Names(names) => names.push(printable(&format!("{service_name}/{instance_id}"))),
        }
        Ok(())
    }

    /// Writes it: the table to `out`, and what counts it to `footer`, if that
    /// is somewhere else.
    fn write(
        self,
        summary: &Summary,
        (bucket, options, now): (&Bucket, &ListOptions, OffsetDateTime),
        out: &mut dyn Write,
        footer: Option<&mut dyn Write>,
    ) -> io::Result<()> {
        match self {
            View::Json(document) => {
                let (hidden, unreadable) = (summary.hidden_entries, &summary.unreadable);
                document.write(out, (bucket, now), hidden, unreadable)?;
                out.flush()
            }
            View::Names(mut names) => {
                names.sort_unstable();
                names.iter().try_for_each(|name| writeln!(out, "{name}"))?;
                out.flush()
            }
            View::Table(mut table) => {
                if !table.is_empty() {
                    table.sort();
                    table.write(out)?;
                }
                out.flush()?;
                let text = summary.footer(table.len(), bucket, options);
                match footer {
                    // A log that cannot be written to is no reason to fail.
                    Some(footer) => drop(footer.write_all(text.as_bytes())),
                    None => out.write_all(text.as_bytes()).and_then(|()| out.flush())?,
                }
                Ok(())
            }
        }
    }
}

impl Shown {
    fn listed(&self) -> Listed<'_> {
        Listed {
            key: &self.entry.key,
            revision: self.entry.revision,
            record: &self.record,
            stored: &self.entry.stored,
            reasons: &self.reasons,
            now: self.now,
        }
    }

    fn as_row(&self, options: &ListOptions) -> Vec<Cow<'_, str>> {
        let record = &self.record;
        let age = staleness::age(record, self.now);
        let left = staleness::ttl_left(&self.entry.stored, self.now);
        let mut row: Vec<Cow<'_, str>> = Vec::with_capacity(COLUMNS.len() + WIDE.len() + 2);
        row.push(record.service_name.as_str().into());
        row.push(record.instance_id.as_str().into());
        row.push(record.version.as_str().into());
        row.push(record.status.as_str().into());
        row.push(time_words(age).into());
        row.push(left.map_or("never expires".into(), |left| time_words(left).into()));
        if options.wide {
            let or_none = |text: Option<String>| text.filter(|text| !text.is_empty());
            let of = |key: &str| or_none(record.metadata.get(key).map(plain_text));
            let group = or_none(record.sticky_active_group.clone());
            // Every cell holds something, so that columns can be cut by words.
            let cells = [of("host"), of("pid"), group, Some(self.entry.revision.to_string())];
            row.extend(cells.map(|cell| cell.map_or("-".into(), Cow::Owned)));
            row.push(metadata_words(record).into());
        }
        let why = record.draining().map_or("", |why| if why.is_empty() { "yes" } else { why });
        row.push(why.into());
        if options.all {
            let mut reasons: Vec<String> = self.reasons.iter().map(Reason::to_string).collect();
            if let Some(skew) = clock_skew(record, &self.entry.stored) {
                reasons.push(format!("clock-skew {}", signed_words(skew)));
            }
            row.push(reasons.join(" ").into());
        }
        row
    }
}

/// `zone=a,rack=7`, without what has a column of its own.
fn metadata_words(record: &Record) -> String {
    let others = record.metadata.iter().filter(|(key, _)| !matches!(key.as_str(), "host" | "pid"));
    let words: Vec<_> = others.map(|(key, value)| format!("{key}={}", plain_text(value))).collect();
    if words.is_empty() { "-".into() } else { words.join(",") }
}

fn plain_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn time_words(duration: time::Duration) -> String {
    let size = words(duration.unsigned_abs());
    if duration.is_negative() { format!("-{size}") } else { size }
}

impl Summary {
    /// What is wrong, and how many there are.
    fn footer(&self, shown: usize, bucket: &Bucket, options: &ListOptions) -> String {
        let mut text = String::new();
        if shown == 0 {
            let of = match options.asked.is_empty() {
                true => String::new(),
                false => format!(" of {}", options.asked.join(" or ")),
            };
            text.push_str(&format!("no instances{of} in bucket {bucket}\n"));
        }
        for entry in self.unreadable.iter().take(UNREADABLE_SHOWN) {
            let (key, why) = (printable(&entry.key), printable(&entry.why));
            text.push_str(&format!("unreadable: {key} (revision {}): {why}\n", entry.revision));
        }
        text.push_str(&self.line(shown, options.all));
        text.push('\n');
        text
    }

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
