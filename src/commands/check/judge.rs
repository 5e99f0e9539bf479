//! The verdicts of `check`: facts in, ten checks out. *Pure*.
//!
//! What `run` would refuse is said in the words of `fitness`, with the same
//! hint. A check that cannot be made because an earlier one failed is
//! `unknown` and says so. How the facts are come by is for `commands::check`,
//! and how they are printed for `report`.

mod bucket;
mod expiry;
mod server;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use time::SignedDuration;

use super::census::Census;
use crate::jetstream::bucket::Bucket;
use crate::jetstream::fitness::{self, Unfit, lower_history};
use crate::jetstream::replies::{AccountInfo, StreamInfo, Used};
use crate::text::printable::{clipped, printable};

/// A bucket or an account with this share of its room used is nearly full.
const NEARLY_FULL: f64 = 0.8;
/// Text of the server's in a message is cut behind this.
const LONGEST_TEXT: usize = 500;

/// How one check, or all of them together, came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// All well.
    Ok,
    /// Works, or nearly, and will hurt.
    Warning,
    /// Does not work.
    Critical,
    /// Could not be found out.
    Unknown,
}

impl Status {
    /// The word for it in every format.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Critical => "critical",
            Status::Unknown => "unknown",
        }
    }

    /// The exit code, which is that of a monitoring plug-in.
    pub fn code(self) -> u8 {
        match self {
            Status::Ok => 0,
            Status::Warning => 1,
            Status::Critical => 2,
            Status::Unknown => 3,
        }
    }

    /// What is known to be wrong weighs more than what is not known: an
    /// unreachable server leaves nine checks `unknown` and is critical. This
    /// is the order of the monitoring plug-ins' own `max_state`.
    fn weight(self) -> u8 {
        match self {
            Status::Ok => 0,
            Status::Unknown => 1,
            Status::Warning => 2,
            Status::Critical => 3,
        }
    }

    /// The worst of them; `ok` for none.
    pub fn worst(statuses: impl IntoIterator<Item = Status>) -> Status {
        statuses.into_iter().max_by_key(|status| status.weight()).unwrap_or(Status::Ok)
    }
}

impl Serialize for Status {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One check, as the JSON has it; `metrics` is for the monitoring formats.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// One of the names of CONTRACT section 3.
    pub name: &'static str,
    /// How it came out.
    pub status: Status,
    /// The facts seen. Printable.
    pub message: String,
    /// The command or the setting that mends it, where it is not ok.
    pub hint: Option<String>,
    /// The fact as a number, a switch or a version: see the README.
    pub value: Option<Value>,
    /// What monitoring systems draw.
    #[serde(skip)]
    pub metrics: Vec<Metric>,
    /// Not made, because an earlier one failed.
    #[serde(skip)]
    pub skipped: bool,
}

/// A number for monitoring systems.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// Lower-case words joined by `_`, without unit.
    pub name: &'static str,
    /// What it is, in one sentence without a full stop.
    pub help: &'static str,
    /// What it is counted in.
    pub unit: Unit,
    /// The number.
    pub value: f64,
    /// From where on it warns, as a Nagios range; empty for nowhere.
    pub warn: String,
    /// From where on it is critical, as a Nagios range; empty for nowhere.
    pub critical: String,
}

/// What a metric is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
}

/// Why a fact is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// What kind of reason.
    pub kind: GapKind,
    /// In words.
    pub message: String,
    /// The next step, if there is one to name.
    pub hint: Option<String>,
}

/// Why a fact is missing, as far as it changes the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapKind {
    /// A login, a permission or a file of ours is missing.
    Denied,
    /// JetStream does not answer, or says that it is off.
    NoJetStream,
    /// Nobody is there, or the server refuses.
    Failed,
    /// The server went silent, the connection was lost, or the answer makes no
    /// sense.
    OutOfTime,
    /// Not tried.
    NotMade,
}

/// The server that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// Address and name. Printable.
    pub place: String,
    /// Its cluster.
    pub cluster: Option<String>,
    /// Its version.
    pub version: String,
    /// It has JetStream itself.
    pub jetstream: bool,
    /// Network and server, there and back.
    pub round_trip: Duration,
}

/// How the live test came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probed {
    /// As it should.
    Expired {
        /// From the put to its acknowledgement.
        put: Duration,
        /// From the end of its TTL until it was seen to be gone.
        late: Duration,
    },
    /// The server stored another TTL than it was asked for.
    Changed {
        /// From the put to its acknowledgement.
        put: Duration,
        /// The header as it was stored; empty for none.
        stored: String,
    },
    /// It was still there.
    Lingered {
        /// From the put to its acknowledgement.
        put: Duration,
        /// How long after its TTL.
        late: Duration,
    },
    /// The server did not take it, and says why.
    Refused(String),
}

/// All that was found out.
#[derive(Debug)]
pub struct Facts {
    /// The bucket's name.
    pub bucket: Bucket,
    /// Who answered.
    pub connection: Result<Connected, Gap>,
    /// What the account may use.
    pub account: Result<AccountInfo, Gap>,
    /// What is stored under the bucket's name; `None` where nothing is.
    pub stream: Result<Option<StreamInfo>, Gap>,
    /// What lies in the bucket.
    pub census: Result<Census, Gap>,
    /// How far this host's clock is ahead of the registry's.
    pub clock: Option<SignedDuration>,
    /// The live test; `None` where it was not asked for.
    pub probe: Option<Result<Probed, Gap>>,
}

impl Check {
    fn new(name: &'static str, status: Status, message: impl Into<String>) -> Check {
        // Servers and whoever writes to the bucket choose parts of it.
        let message = printable(&message.into());
        Check {
            name,
            status,
            message,
            hint: None,
            value: None,
            metrics: Vec::new(),
            skipped: false,
        }
    }

    fn hint(mut self, hint: impl Into<String>) -> Check {
        self.hint = Some(printable(&hint.into()));
        self
    }

    fn value(mut self, value: impl Into<Value>) -> Check {
        self.value = Some(value.into());
        self
    }

    fn metric(mut self, metric: Metric) -> Check {
        self.metrics.push(metric);
        self
    }

    /// Not made, because of what came before.
    fn skipped(name: &'static str, because: &str) -> Check {
        let check = Check::new(name, Status::Unknown, format!("not checked: {because}"));
        Check { skipped: true, ..check }
    }

    fn of_unfit(name: &'static str, unfit: &Unfit) -> Check {
        Check::new(name, Status::Critical, unfit.to_string()).hint(unfit.hint())
    }

    /// A fact that could not be had.
    fn of_gap(name: &'static str, status: Status, gap: &Gap) -> Check {
        let check = Check::new(name, status, clipped(&gap.message, LONGEST_TEXT));
        check.hint(gap.hint.as_deref().unwrap_or("try again with -v, which says more"))
    }
}

fn metric(name: &'static str, unit: Unit, value: f64, help: &'static str) -> Metric {
    Metric { name, help, unit, value, warn: String::new(), critical: String::new() }
}

impl Metric {
    fn warns(mut self, range: impl Into<String>) -> Metric {
        self.warn = range.into();
        self
    }

    fn alarms(mut self, range: impl Into<String>) -> Metric {
        self.critical = range.into();
        self
    }
}

/// The checks, in the order of CONTRACT section 3; `ttl-probe` only where it
/// was asked for: an expiry that nobody tried is not "ok", and as `unknown` it
/// would make every plain check fail.
pub fn judge(facts: &Facts) -> Vec<Check> {
    let mut checks = vec![server::connection(facts)];
    let Ok(connected) = &facts.connection else {
        let rest = ["server-version", "jetstream", "bucket", "ttl-flag", "history", "max-age"];
        let probe = facts.probe.is_some().then_some("ttl-probe");
        let names = rest.into_iter().chain(["legacy-entries", "clock"]).chain(probe);
        checks.extend(names.map(|name| Check::skipped(name, "no connection to NATS")));
        return checks;
    };
    checks.extend([
        server::server_version(facts, connected),
        server::jetstream(facts, connected),
        bucket::bucket(facts),
    ]);
    match usable(facts) {
        Ok(info) => checks.extend([
            bucket::ttl_flag(&facts.bucket, info, connected),
            bucket::history(&facts.bucket, info),
            bucket::max_age(&facts.bucket, info, facts.census.as_ref().ok()),
            bucket::legacy_entries(&facts.bucket, &facts.census),
        ]),
        Err(because) => checks.extend(
            ["ttl-flag", "history", "max-age", "legacy-entries"]
                .map(|name| Check::skipped(name, because)),
        ),
    }
    checks.push(server::clock(facts));
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
