//! The JSON of `list --json`, which the command of `watch --exec` reads, too.
//! *Pure*.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use crate::instance::entry::Unreadable;
use crate::instance::record::Record;
use crate::instance::staleness::{self, Reason, Stored, Ttl, clock_skew, is_stale};
use crate::jetstream::bucket::Bucket;
use crate::text::printable::printable_json;
use crate::text::time::format_time;

/// An instance with the verdict on it.
pub struct Listed<'a> {
    /// Its key.
    pub key: &'a str,
    /// Its revision.
    pub revision: u64,
    /// What it says.
    pub record: &'a Record,
    /// How it was stored.
    pub stored: &'a Stored,
    /// What is wrong with it.
    pub reasons: &'a [Reason],
    /// The registry's time of the verdict.
    pub now: OffsetDateTime,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Json<'a> {
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

impl Listed<'_> {
    /// The words for what is wrong with it.
    fn reason_words(&self) -> Vec<&'static str> {
        let mut words: Vec<_> = self.reasons.iter().map(|reason| reason.as_str()).collect();
        if clock_skew(self.record, self.stored).is_some() {
            words.push("clock-skew");
        }
        words
    }

    fn json(&self) -> io::Result<String> {
        let record = self.record;
        let json = Json {
            key: self.key,
            revision: self.revision,
            service_name: &record.service_name,
            instance_id: &record.instance_id,
            version: &record.version,
            status: record.status.as_str(),
            last_heartbeat: format_time(record.last_heartbeat),
            sticky_active_group: record.sticky_active_group.as_deref(),
            metadata: &record.metadata,
            age_seconds: milliseconds(staleness::age(record, self.now).as_seconds_f64()),
            ttl_seconds: match self.stored.ttl {
                Ttl::After(ttl) => Some(ttl.as_secs_f64()),
                Ttl::Never => None,
            },
            stale: is_stale(self.reasons),
            reasons: self.reason_words(),
        };
        serde_json::to_string(&json).map(|json| printable_json(&json)).map_err(io::Error::from)
    }
}

fn milliseconds(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

/// The document of `list --json`: sorted as the table is, so that it can be
/// compared with an earlier one.
#[derive(Default)]
pub struct Document {
    /// Each after its names, and where it begins.
    instances: Vec<(Box<str>, usize)>,
}

impl Document {
    /// Adds an instance.
    pub fn add(&mut self, listed: &Listed<'_>) -> io::Result<()> {
        let Record { service_name, instance_id, .. } = listed.record;
        let names = format!("{service_name}\0{instance_id}\0");
        let begins = names.len();
        self.instances.push(((names + &listed.json()?).into(), begins));
        Ok(())
    }

    /// Writes it, with what is not shown; `now` is the registry's time.
    pub fn write(
        mut self,
        out: &mut dyn Write,
        (bucket, now): (&Bucket, OffsetDateTime),
        hidden: usize,
        unreadable: &[Unreadable],
    ) -> io::Result<()> {
        self.instances.sort_unstable();
        let now = format_time(now);
        let head = "{\"schema\":1,\"bucket\":";
        write!(out, "{head}\"{bucket}\",\"serverTime\":\"{now}\",\"instances\":[")?;
        for (place, (text, begins)) in self.instances.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            write!(out, "{comma}{}", &text[*begins..])?;
        }
        let count = unreadable.len();
        let unreadable = serde_json::to_string(unreadable).map_err(io::Error::from)?;
        let unreadable = printable_json(&unreadable);
        writeln!(
            out,
            "],\"hidden\":{{\"stale\":{hidden},\"unreadable\":{count}}},\"unreadable\":{unreadable}}}"
        )
    }
}
