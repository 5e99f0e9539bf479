//! What the verbs take: options that have been validated. *Pure*: where they
//! come from is for `settings` and `verbs` to know.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::health::verdict::HealthOptions;
use crate::instance::filter::Filter;
use crate::instance::record::{InstanceId, ServiceName, Version};
use crate::instance::staleness::Reason;
use crate::jetstream::bucket::{Bucket, Storage};
use crate::nats::Settings;

/// A verb with all it needs.
#[derive(Debug)]
pub struct Invocation {
    /// How to reach NATS.
    pub settings: Settings,
    /// The bucket.
    pub bucket: Bucket,
    /// Log more.
    pub verbose: bool,
    /// What may be the reason where no connection comes about, and what to do.
    pub unconnected: Option<String>,
    /// The verb.
    pub verb: Verb,
}

/// A verb with its own options.
#[derive(Debug)]
pub enum Verb {
    /// Speak for one instance.
    Run(Box<RunOptions>),
    /// Prepare a bucket, or mend one.
    Init(InitOptions),
    /// Does TTL work here?
    Check(CheckOptions),
    /// Remove what is stale.
    Cleanup(CleanupOptions),
    /// Who is alive?
    List(ListOptions),
    /// Who comes and goes?
    Watch(WatchOptions),
}

/// Options of `run`.
#[derive(Debug)]
pub struct RunOptions {
    /// The service's name.
    pub service: ServiceName,
    /// The instance's name.
    pub instance: InstanceId,
    /// The service's version.
    pub version: Version,
    /// How long an entry lives; whole seconds.
    pub ttl: Duration,
    /// Longest time between two heartbeats.
    pub interval: Duration,
    /// Register as `STANDBY`.
    pub standby: bool,
    /// `stickyActiveGroup`.
    pub group: Option<String>,
    /// What `--meta` gives.
    pub metadata: BTreeMap<String, String>,
    /// How to tell whether the service is well.
    pub health: Option<HealthOptions>,
    /// Where to write Prometheus text.
    pub metrics_file: Option<PathBuf>,
    /// While this file exists, the instance drains.
    pub drain_file: Option<PathBuf>,
    /// The registry's rule: the age from which readers hide a heartbeat.
    pub stale_after: Duration,
    /// Only show these settings, and whether a start would take them.
    pub check_config: Option<Vec<Effective>>,
    /// What is permitted and not wise.
    pub warnings: Vec<String>,
    /// As in [`Invocation`].
    pub unconnected: Option<String>,
}

/// One setting as a start of `run` would have it: for `--check-config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// The option, without its dashes.
    pub name: &'static str,
    /// As it would be written.
    pub value: String,
    /// The option, the variable and its file, the field of the context, or
    /// `default`.
    pub origin: String,
}

/// Options of `init`.
#[derive(Debug)]
pub struct InitOptions {
    /// So many replicas; `None` where nobody asked for a number.
    pub replicas: Option<u8>,
    /// The server's own delete markers live this long, or there are none;
    /// `None` where nobody asked for either.
    pub marker_ttl: Option<Option<Duration>>,
    /// Where a new bucket keeps its messages.
    pub storage: Option<Storage>,
    /// Lower the history of a bucket to 1.
    pub lower_history: bool,
    /// Take the `max_age` of a bucket away.
    pub drop_max_age: bool,
}

/// How `check` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// For Nagios and its kin: one line with performance data.
    Nagios,
    /// For node_exporter's textfile collector.
    Prometheus,
}

/// How many instances of a service have to be alive: `NAME[=MIN[:WARN]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The service.
    pub service: ServiceName,
    /// Fewer than these are critical.
    pub min: u64,
    /// Fewer than these are a warning.
    pub warn: u64,
}

/// Options of `check`.
#[derive(Debug)]
pub struct CheckOptions {
    /// Try expiry with an entry of our own.
    pub probe: bool,
    /// How to answer.
    pub format: Format,
    /// Write the answer to this file, whole or not at all.
    pub output: Option<PathBuf>,
    /// How many instances of which services have to be alive.
    pub services: Vec<Wanted>,
    /// Age from which a heartbeat is too old.
    pub stale_after: Duration,
    /// Where settings came from, beside the command line and the defaults.
    pub origins: Vec<String>,
}

/// Options of `cleanup`.
#[derive(Debug)]
pub struct CleanupOptions {
    /// Remove nothing.
    pub dry_run: bool,
    /// Age from which a heartbeat is too old.
    pub stale_after: Duration,
    /// Only for these reasons; empty for all.
    pub only: Vec<Reason>,
    /// Only this service.
    pub service: Option<ServiceName>,
    /// Remove nothing if more would go.
    pub max_removals: Option<u64>,
    /// Remove what cannot be read, too.
    pub unreadable: bool,
    /// Remove nothing whose own TTL is still running.
    pub spare_beating: bool,
    /// Answer in JSON.
    pub json: bool,
}

/// Options of `list`.
#[derive(Debug)]
pub struct ListOptions {
    /// Stale ones, too.
    pub all: bool,
    /// Only these.
    pub filter: Filter,
    /// What was asked for by name, as it was written.
    pub asked: Vec<String>,
    /// Age from which a heartbeat is too old.
    pub stale_after: Duration,
    /// More columns.
    pub wide: bool,
    /// Names and nothing else.
    pub names: bool,
    /// Answer in JSON.
    pub json: bool,
}

/// Options of `watch`.
#[derive(Debug)]
pub struct WatchOptions {
    /// Only these.
    pub filter: Filter,
    /// Age from which a heartbeat is too old.
    pub stale_after: Duration,
    /// Write JSON, one event a line.
    pub json: bool,
    /// Program and arguments to run after changes.
    pub exec: Option<Vec<String>>,
    /// Changes within this time go together.
    pub settle: Duration,
}
