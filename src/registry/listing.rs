//! One instance as `list --json` shows it, and as the command of `watch --exec`
//! reads it: the two are the same format. *Pure*.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use crate::instance::entry::Unreadable;
use crate::instance::record::Record;
use crate::instance::staleness::{self, Reason, Stored, Ttl, clock_skew};
use crate::jetstream::bucket::Bucket;
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

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
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
            stale: !self.reasons.is_empty(),
            reasons: self.reason_words(),
        };
        out.write_all(serde_json::to_string(&json).map_err(io::Error::from)?.as_bytes())
    }
}

fn milliseconds(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

/// The document of `list --json`, written as its parts come.
pub struct Document {
    first: bool,
}

impl Document {
    /// Begins it; `now` is the registry's time.
    pub fn begin(
        out: &mut dyn Write,
        bucket: &Bucket,
        now: OffsetDateTime,
    ) -> io::Result<Document> {
        let now = format_time(now);
        write!(
            out,
            "{{\"schema\":1,\"bucket\":\"{bucket}\",\"serverTime\":\"{now}\",\"instances\":["
        )?;
        Ok(Document { first: true })
    }

    /// Adds an instance.
    pub fn add(&mut self, out: &mut dyn Write, listed: &Listed<'_>) -> io::Result<()> {
        if !std::mem::take(&mut self.first) {
            out.write_all(b",")?;
        }
        listed.write(out)
    }

    /// Ends it, with what is not shown.
    pub fn end(
        self,
        out: &mut dyn Write,
        hidden: usize,
        unreadable: &[Unreadable],
    ) -> io::Result<()> {
        let json = serde_json::to_string(unreadable).map_err(io::Error::from)?;
        writeln!(
            out,
            "],\"hidden\":{{\"stale\":{hidden},\"unreadable\":{}}},\"unreadable\":{json}}}",
            unreadable.len()
        )
    }
}
