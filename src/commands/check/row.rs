//! One line of `check`'s answer: a name, how it came out, and the facts seen.
//! *Pure*. How it is printed is for `report` to say.

use std::borrow::Cow;

use serde::{Serialize, Serializer};
use serde_json::Value;

use super::facts::Gap;
use crate::jetstream::fitness::Unfit;
use crate::text::printable::{clipped, printable};

/// Text of the server's in a message is cut after this.
pub(super) const LONGEST_TEXT: usize = 500;

/// How one check, or all of them together, came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grade {
    /// All well.
    Ok,
    /// Works, or nearly, and will hurt.
    Warning,
    /// Does not work.
    Critical,
    /// Could not be found out.
    Unknown,
}

impl Grade {
    /// The word for it in every format.
    pub fn as_str(self) -> &'static str {
        match self {
            Grade::Ok => "ok",
            Grade::Warning => "warning",
            Grade::Critical => "critical",
            Grade::Unknown => "unknown",
        }
    }

    /// The exit code, which is that of a monitoring plug-in.
    pub fn code(self) -> u8 {
        match self {
            Grade::Ok => 0,
            Grade::Warning => 1,
            Grade::Critical => 2,
            Grade::Unknown => 3,
        }
    }

    /// What is known to be wrong weighs more than what is not known: an
    /// unreachable server leaves nine checks `unknown` and is critical. This
    /// is the order of the monitoring plug-ins' own `max_state`.
    fn weight(self) -> u8 {
        match self {
            Grade::Ok => 0,
            Grade::Unknown => 1,
            Grade::Warning => 2,
            Grade::Critical => 3,
        }
    }

    /// The worst of them; `ok` for none.
    pub fn worst(statuses: impl IntoIterator<Item = Grade>) -> Grade {
        statuses.into_iter().max_by_key(|status| status.weight()).unwrap_or(Grade::Ok)
    }
}

impl Serialize for Grade {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One check, as the JSON has it; `metrics` is for the monitoring formats.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// One of the names that docs/registry.md lists.
    pub name: &'static str,
    /// How it came out.
    pub status: Grade,
    /// The facts seen. Printable.
    pub message: String,
    /// The command or the setting that mends it; where it is ok, that makes it
    /// better.
    pub hint: Option<String>,
    /// The fact as a number, a switch or a version: see docs/registry.md.
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
    /// Lower-case words joined by `_`, without unit; of a service `instances-`
    /// and its name.
    pub name: Cow<'static, str>,
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

impl Row {
    pub(super) fn new(name: &'static str, status: Grade, message: impl Into<String>) -> Row {
        // Servers and whoever writes to the bucket choose parts of it.
        let message = printable(&message.into());
        Row { name, status, message, hint: None, value: None, metrics: Vec::new(), skipped: false }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Row {
        self.hint = Some(printable(&hint.into()));
        self
    }

    pub(super) fn value(mut self, value: impl Into<Value>) -> Row {
        self.value = Some(value.into());
        self
    }

    pub(super) fn metric(mut self, metric: Metric) -> Row {
        self.metrics.push(metric);
        self
    }

    /// Not made, because of what came before.
    pub(super) fn skipped(name: &'static str, because: &str) -> Row {
        let check = Row::new(name, Grade::Unknown, format!("not checked: {because}"));
        Row { skipped: true, ..check }
    }

    pub(super) fn of_unfit(name: &'static str, unfit: &Unfit) -> Row {
        Row::new(name, Grade::Critical, unfit.to_string()).hint(unfit.hint())
    }

    /// A fact that could not be had.
    pub(super) fn of_gap(name: &'static str, status: Grade, gap: &Gap) -> Row {
        let check = Row::new(name, status, clipped(&gap.message, LONGEST_TEXT));
        check.hint(gap.hint.as_deref().unwrap_or("more is said by: aegis-agent check -v"))
    }
}

pub(super) fn metric(name: &'static str, unit: Unit, value: f64, help: &'static str) -> Metric {
    let name = Cow::Borrowed(name);
    Metric { name, help, unit, value, warn: String::new(), critical: String::new() }
}

impl Metric {
    pub(super) fn warns(mut self, range: impl Into<String>) -> Metric {
        self.warn = range.into();
        self
    }

    pub(super) fn alarms(mut self, range: impl Into<String>) -> Metric {
        self.critical = range.into();
        self
    }
}
