//! Command line and environment into validated options.
//!
//! An option beats the environment, which beats the context, which beats the
//! default. Each message names the option or the variable, the value and the
//! rule; what a file or the environment says wrong exits 78, what the command
//! line says wrong 64. Nothing is read here but the context file.

mod arguments;
pub mod context;
#[cfg(test)]
mod pages;
mod settings;
mod sorting;
#[cfg(test)]
mod tests;
mod values;
mod verbs;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use argh::FromArgs;

use self::arguments::{TopArgs, VerbArgs};
use self::sorting::{Sorted, find_verb, sort};
use self::values::Source;
use crate::connection::Settings;
use crate::error::{Failure, Kind};
use crate::health::verdict::HealthOptions;
use crate::instance::record::{InstanceId, ServiceName, Version};
use crate::instance::staleness::Reason;
use crate::jetstream::bucket::{Bucket, Storage};
use crate::url;

const PROGRAM: &str = "aegis-agent";

/// What to do.
#[derive(Debug)]
pub enum Parsed {
    /// Run a verb.
    Run(Box<Invocation>),
    /// Print this on standard output: help or version.
    Print(String),
}

/// A verb with all it needs.
#[derive(Debug)]
pub struct Invocation {
    /// How to reach NATS.
    pub settings: Settings,
    /// The bucket.
    pub bucket: Bucket,
    /// Log more.
    pub verbose: bool,
    /// The verb.
    pub verb: Verb,
}

/// A verb with its own options.
#[derive(Debug)]
pub enum Verb {
    /// Speak for one instance.
    Run(RunOptions),
    /// Prepare a bucket, or mend one.
    Init(InitOptions),
    /// Does TTL work here?
    Check(CheckOptions),
    /// Remove what is stale.
    Cleanup(CleanupOptions),
    /// Who is alive?
    List(ListOptions),
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
    /// What is permitted and not wise.
    pub warnings: Vec<String>,
}

/// Options of `init`.
#[derive(Debug)]
pub struct InitOptions {
    /// Replicas of a new bucket.
    pub replicas: u8,
    /// The server's own delete markers live this long.
    pub marker_ttl: Option<Duration>,
    /// Where a new bucket keeps its messages.
    pub storage: Storage,
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

/// Options of `check`.
#[derive(Debug)]
pub struct CheckOptions {
    /// Try expiry with an entry of our own.
    pub probe: bool,
    /// How to answer.
    pub format: Format,
    /// Write the answer to this file, whole or not at all.
    pub output: Option<PathBuf>,
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
    /// Answer in JSON.
    pub json: bool,
}

/// Options of `list`.
#[derive(Debug)]
pub struct ListOptions {
    /// Stale ones, too.
    pub all: bool,
    /// Only this service.
    pub service: Option<ServiceName>,
    /// Age from which a heartbeat is too old.
    pub stale_after: Duration,
    /// Answer in JSON.
    pub json: bool,
}

/// A call that cannot be carried out.
#[derive(Debug)]
pub struct UsageError {
    /// What is wrong with it.
    pub failure: Failure,
    /// `check` has an exit code of its own for that.
    pub verb_is_check: bool,
    /// What was asked of `check`, where its own options are right: it answers
    /// in the format that was asked for whatever the settings are.
    pub check: Option<Box<(CheckOptions, Bucket)>>,
}

/// Parses a call. `args` are without the program's name; `env` looks a variable
/// up; `host_name` is the default instance.
pub fn parse(
    args: &[OsString],
    env: &dyn Fn(&str) -> Option<OsString>,
    host_name: &dyn Fn() -> Option<String>,
) -> Result<Parsed, UsageError> {
    let lossy: Vec<String> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let verb_is_check = find_verb(&lossy) == Some("check");
    let mut check = None;
    parse_call(args, lossy, env, host_name, &mut check).map_err(|failure| UsageError {
        check: check.filter(|_| failure.kind() == Kind::Config).map(Box::new),
        failure,
        verb_is_check,
    })
}

fn parse_call(
    args: &[OsString],
    lossy: Vec<String>,
    env: &dyn Fn(&str) -> Option<OsString>,
    host_name: &dyn Fn() -> Option<String>,
    check: &mut Option<(CheckOptions, Bucket)>,
) -> Result<Parsed, Failure> {
    if let Some(broken) = args.iter().position(|arg| arg.to_str().is_none()) {
        return Err(usage(format!("{:?}: is not UTF-8", url::shown(&lossy[broken]))));
    }
    let (verb, global, own) = match sort(&lossy)? {
        Sorted::Version => {
            return Ok(Parsed::Print(format!("{PROGRAM} {}\n", env!("CARGO_PKG_VERSION"))));
        }
        Sorted::Help(verb) => return Ok(Parsed::Print(help(verb))),
        Sorted::Call { verb, global, own } => (verb, global, own),
    };
    let words: Vec<&str> = global.iter().map(String::as_str).chain([verb]).collect();
    let words: Vec<&str> = words.into_iter().chain(own.iter().map(String::as_str)).collect();
    let top = TopArgs::from_args(&[PROGRAM], &words)
        .map_err(|exit| usage(url::shown(&exit.output.trim().replace('\n', " "))))?;
    let source = Source { env };
    let mut verb = match &top.verb {
        VerbArgs::Run(args) => Verb::Run(verbs::run(&source, args, host_name)?),
        VerbArgs::Init(args) => Verb::Init(verbs::init(args)?),
        VerbArgs::Check(args) => Verb::Check(verbs::check(args)?),
        VerbArgs::Cleanup(args) => Verb::Cleanup(verbs::cleanup(args)?),
        VerbArgs::List(args) => Verb::List(verbs::list(args)?),
    };
    let (settings, bucket) = match settings::connection(&source, &top) {
        Ok(both) => both,
        Err(failure) => {
            if let Verb::Check(options) = verb {
                let bucket = settings::bucket(&source, &top);
                *check = Some((options, bucket.unwrap_or_else(|_| Bucket::service_registry())));
            }
            return Err(failure);
        }
    };
    if let Verb::Run(options) = &mut verb
        && top
            .nats_url
            .as_deref()
            .is_some_and(|url| url.split(',').any(|one| url::redact(one) != one))
    {
        options.warnings.push(
            "the login in --nats-url can be read by every user of this host (ps): put the URL into \
             NATS_URL, or use --creds, --user with --password-file, or --token-file"
                .into(),
        );
    }
    Ok(Parsed::Run(Box::new(Invocation { settings, bucket, verbose: top.verbose, verb })))
}

fn help(verb: Option<&'static str>) -> String {
    let words: Vec<&str> = verb.into_iter().chain(["--help"]).collect();
    match TopArgs::from_args(&[PROGRAM], &words) {
        Err(exit) => exit.output,
        Ok(_) => String::new(),
    }
}

fn usage(message: impl Into<String>) -> Failure {
    Failure::new(Kind::Usage, message).with_hint(format!("{PROGRAM} --help"))
}
