//! Command line and environment into validated options.
//!
//! An option beats the environment, which beats the context, which beats the
//! default. Each message names the option or the variable, the value and the
//! rule; what a file or the environment says wrong exits 78, what the command
//! line says wrong 64. Nothing is read here but the context file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use argh::FromArgs;

use crate::connection::{ServerAddress, Settings};
use crate::context::{self, Context};
use crate::duration::{self, as_setting};
use crate::error::{Failure, Kind};
use crate::health::{Check, HealthOptions};
use crate::instance::{InstanceId, ServiceName, Version};
use crate::kv::{Bucket, Storage};
use crate::login::{Login, Secret, Tls};
use crate::staleness::{DEFAULT_STALE_AFTER, DEFAULT_TTL, Reason};
use crate::url::{self, UrlLogin};

const PROGRAM: &str = "aegis-agent";
const VERBS: [&str; 5] = ["run", "init", "check", "cleanup", "list"];
const DEFAULT_URL: &str = "nats://127.0.0.1:4222";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// Above about 7.4e9 s a server's arithmetic overflows and entries expire at
/// once (CONTRACT section 4); a day is more than a heartbeat needs.
const LONGEST_TTL: Duration = Duration::from_secs(86_400);
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(3_600);
const LONGEST_STALE_AFTER: Duration = Duration::from_secs(10 * 365 * 86_400);
const LONGEST_META: usize = 1_024;
const DEFAULT_HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
const DEFAULT_HEALTH_FAILURES: u32 = 3;

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
}

/// Keeps a service registry in a NATS JetStream key-value bucket true.
#[derive(FromArgs)]
#[cfg_attr(test, derive(argh::ArgsInfo))]
#[argh(
    help_triggers("-h", "--help"),
    note = "Options stand before or after the verb. An option beats its environment
variable, which beats the context, which beats the default. A DURATION is 10s,
500ms, 1m or a number of seconds.

Exit codes: 0 done; 64 usage; 69 NATS or bucket not available; 75 done in
part, run again; 77 refused; 78 bad file or environment. check: 0 ok,
1 warning, 2 critical, 3 unknown."
)]
struct TopArgs {
    /// servers, tls:// for TLS (NATS_URL; default nats://127.0.0.1:4222)
    #[argh(option, short = 's', arg_name = "url[,url...]")]
    nats_url: Option<String>,
    /// user JWT and seed (NATS_CREDS)
    #[argh(option, arg_name = "file")]
    creds: Option<String>,
    /// user nkey seed (NATS_NKEY)
    #[argh(option, arg_name = "file")]
    nkey: Option<String>,
    /// user name (NATS_USER)
    #[argh(option, arg_name = "name")]
    user: Option<String>,
    /// the user's password (NATS_PASSWORD holds the password itself)
    #[argh(option, arg_name = "file")]
    password_file: Option<String>,
    /// a token (NATS_TOKEN holds the token itself)
    #[argh(option, arg_name = "file")]
    token_file: Option<String>,
    /// roots to trust (NATS_CA; default the system's)
    #[argh(option, arg_name = "file")]
    tlsca: Option<String>,
    /// our own certificate (NATS_CERT)
    #[argh(option, arg_name = "file")]
    tlscert: Option<String>,
    /// its key (NATS_KEY)
    #[argh(option, arg_name = "file")]
    tlskey: Option<String>,
    /// a context of the nats CLI (NATS_CONTEXT)
    #[argh(option, arg_name = "name")]
    context: Option<String>,
    /// where replies arrive (AEGIS_INBOX_PREFIX; default _INBOX)
    #[argh(option, arg_name = "prefix")]
    inbox_prefix: Option<String>,
    /// limit of each exchange with NATS (NATS_TIMEOUT; default 5s)
    #[argh(option, arg_name = "duration")]
    timeout: Option<String>,
    /// the bucket (AEGIS_BUCKET; default service_registry)
    #[argh(option, arg_name = "name")]
    bucket: Option<String>,
    /// log more
    #[argh(switch, short = 'v')]
    verbose: bool,
    /// print the version
    #[argh(switch, short = 'V')]
    #[allow(dead_code, reason = "answered before argh, so that it works everywhere")]
    version: bool,
    #[argh(subcommand)]
    verb: VerbArgs,
}

#[derive(FromArgs)]
#[cfg_attr(test, derive(argh::ArgsInfo))]
#[argh(subcommand)]
enum VerbArgs {
    Run(RunArgs),
    Init(InitArgs),
    Check(CheckArgs),
    Cleanup(CleanupArgs),
    List(ListArgs),
}

/// Registers an instance, keeps its entry alive, and takes it out on SIGTERM.
#[derive(FromArgs)]
#[cfg_attr(test, derive(argh::ArgsInfo))]
#[argh(
    subcommand,
    name = "run",
    help_triggers("-h", "--help"),
    note = "SIGTERM and SIGINT deregister and exit 0; SIGHUP reads files and settings
anew and beats at once. NATS being away, too old or refusing never ends it: it
says so once and keeps trying. A failing health check makes the status
UNHEALTHY, and passing ones make it what it was.
The options for connection and bucket are in aegis-agent --help."
)]
struct RunArgs {
    /// name of the service (AEGIS_SERVICE; required)
    #[argh(option, arg_name = "name")]
    service: Option<String>,
    /// name of the instance (AEGIS_INSTANCE; default the host name up to its first dot)
    #[argh(option, arg_name = "id")]
    instance: Option<String>,
    /// version of the service (AEGIS_SERVICE_VERSION; default 0.0.0)
    #[argh(option, arg_name = "x.y.z")]
    service_version: Option<String>,
    /// life of an entry, whole seconds (AEGIS_TTL; default 30s)
    #[argh(option, arg_name = "duration")]
    ttl: Option<String>,
    /// longest time between heartbeats (AEGIS_INTERVAL; default a third of the TTL)
    #[argh(option, arg_name = "duration")]
    interval: Option<String>,
    /// register as STANDBY instead of ACTIVE
    #[argh(switch)]
    standby: bool,
    /// sticky active group (AEGIS_GROUP)
    #[argh(option, arg_name = "name")]
    group: Option<String>,
    /// metadata beside host and pid; repeatable
    #[argh(option, arg_name = "key=value")]
    meta: Vec<String>,
    /// the service is well while this exits 0; no shell (AEGIS_HEALTH_EXEC)
    #[argh(option, arg_name = "command")]
    health_exec: Option<String>,
    /// the service is well while this accepts connections (AEGIS_HEALTH_TCP)
    #[argh(option, arg_name = "host:port")]
    health_tcp: Option<String>,
    /// limit of a check (AEGIS_HEALTH_TIMEOUT; default 2s, at most the interval)
    #[argh(option, arg_name = "duration")]
    health_timeout: Option<String>,
    /// failures in a row before UNHEALTHY (AEGIS_HEALTH_FAILURES; default 3)
    #[argh(option, arg_name = "n")]
    health_failures: Option<String>,
    /// keep this file of Prometheus text up to date (AEGIS_METRICS_FILE)
    #[argh(option, arg_name = "file")]
    metrics_file: Option<String>,
}

/// Creates the bucket, or switches per-message TTL on in one that exists.
#[derive(FromArgs)]
#[cfg_attr(test, derive(argh::ArgsInfo))]
#[argh(
    subcommand,
    name = "init",
    help_triggers("-h", "--help"),
    note = "Touches nothing else in a bucket that exists. Running it again does no harm.
The options for connection and bucket are in aegis-agent --help."
)]
struct InitArgs {
    /// copies of a new bucket, 1 to 5 (default 1)
    #[argh(option, arg_name = "n")]
    replicas: Option<String>,
    /// life of the server's delete markers in a new bucket (default none)
    #[argh(option, arg_name = "duration")]
    marker_ttl: Option<String>,
    /// file or memory, for a new bucket (default file)
    #[argh(option, arg_name = "kind")]
    storage: Option<String>,
}

/// Says whether per-message TTL really works here, and if not, why.
#[derive(FromArgs)]
#[cfg_attr(test, derive(argh::ArgsInfo))]
#[argh(
    subcommand,
    name = "check",
    help_triggers("-h", "--help"),
    note = "Exit codes: 0 ok, 1 warning, 2 critical, 3 unknown. Without --probe nothing
is written. The options for connection and bucket are in aegis-agent --help."
)]
struct CheckArgs {
    /// store an entry of its own with a TTL of 1 s and wait for it to go
    #[argh(switch)]
    probe: bool,
    /// text, json, nagios or prometheus (default text)
    #[argh(option, arg_name = "format")]
    format: Option<String>,
    /// short for --format json
    #[argh(switch)]
    json: bool,
    /// write to this file, whole or not at all (with --format prometheus)
    #[argh(option, arg_name = "file")]
    output: Option<String>,
}

/// Removes stale entries, and never one that was refreshed meanwhile.
#[derive(FromArgs)]
#[cfg_attr(test, derive(argh::ArgsInfo))]
#[argh(
    subcommand,
    name = "cleanup",
    help_triggers("-h", "--help"),
    note = "Reasons: heartbeat-too-old, status-unhealthy, status-shutdown, no-ttl, expired.
Silent where nothing was removed and nothing is wrong (-v says so). An entry
that is refreshed while this runs stays. Exit code 75: not everything could be
removed, or --max-removals was met; running it again goes on.
The options for connection and bucket are in aegis-agent --help."
)]
struct CleanupArgs {
    /// say what would be removed, remove nothing
    #[argh(switch)]
    dry_run: bool,
    /// age from which a heartbeat is too old (default 35s)
    #[argh(option, arg_name = "duration")]
    stale_after: Option<String>,
    /// only entries that are stale for this reason; repeatable
    #[argh(option, arg_name = "reason")]
    only: Vec<String>,
    /// only this service
    #[argh(option, arg_name = "name")]
    service: Option<String>,
    /// remove nothing and exit 75 if more would go
    #[argh(option, arg_name = "n")]
    max_removals: Option<String>,
    /// remove instance entries that cannot be read, too
    #[argh(switch)]
    unreadable: bool,
    /// answer in JSON
    #[argh(switch)]
    json: bool,
}

/// Shows who is alive.
#[derive(FromArgs)]
#[cfg_attr(test, derive(argh::ArgsInfo))]
#[argh(
    subcommand,
    name = "list",
    help_triggers("-h", "--help"),
    note = "The options for connection and bucket are in aegis-agent --help."
)]
struct ListArgs {
    /// stale ones, too, with the reasons
    #[argh(switch)]
    all: bool,
    /// only this service
    #[argh(option, arg_name = "name")]
    service: Option<String>,
    /// age from which a heartbeat is too old (default 35s)
    #[argh(option, arg_name = "duration")]
    stale_after: Option<String>,
    /// answer in JSON
    #[argh(switch)]
    json: bool,
}

/// Options of the connection and the bucket that take a value.
const GLOBAL: [&str; 14] = [
    "-s",
    "--nats-url",
    "--creds",
    "--nkey",
    "--user",
    "--password-file",
    "--token-file",
    "--tlsca",
    "--tlscert",
    "--tlskey",
    "--context",
    "--inbox-prefix",
    "--timeout",
    "--bucket",
];
const GLOBAL_SWITCHES: [&str; 2] = ["-v", "--verbose"];

/// What each verb takes: options with a value, and switches.
fn options_of(verb: &str) -> (&'static [&'static str], &'static [&'static str]) {
    match verb {
        "run" => (
            &[
                "--service",
                "--instance",
                "--service-version",
                "--ttl",
                "--interval",
                "--group",
                "--meta",
                "--health-exec",
                "--health-tcp",
                "--health-timeout",
                "--health-failures",
                "--metrics-file",
            ],
            &["--standby"],
        ),
        "init" => (&["--replicas", "--marker-ttl", "--storage"], &[]),
        "check" => (&["--format", "--output"], &["--probe", "--json"]),
        "cleanup" => (
            &["--stale-after", "--only", "--service", "--max-removals"],
            &["--dry-run", "--unreadable", "--json"],
        ),
        _ => (&["--service", "--stale-after"], &["--all", "--json"]),
    }
}

/// Arguments sorted out: argh knows neither `--name=value` nor options of the
/// program behind the verb.
#[derive(Debug, PartialEq, Eq)]
enum Sorted {
    Version,
    Help(Option<&'static str>),
    Call { verb: &'static str, global: Vec<String>, own: Vec<String> },
}

fn usage(message: impl Into<String>) -> Failure {
    Failure::new(Kind::Usage, message).with_hint(format!("{PROGRAM} --help"))
}

fn sort(args: &[String]) -> Result<Sorted, Failure> {
    let verb = find_verb(args);
    let (own_values, own_switches) = verb.map_or((&[][..], &[][..]), options_of);
    let (mut global, mut own, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    let (mut help, mut version, mut verb_seen) = (false, false, false);
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let (name, inline) = match arg.split_once('=') {
            Some((name, value)) if name.starts_with('-') => (name, Some(value.to_owned())),
            _ => (arg.as_str(), None),
        };
        let is_global = GLOBAL.contains(&name);
        if is_global || own_values.contains(&name) {
            let Some(value) = inline.or_else(|| rest.next().cloned()) else {
                errors.push(format!("{name} needs a value"));
                continue;
            };
            let list = if is_global { &mut global } else { &mut own };
            list.extend([name.to_owned(), value]);
        } else if matches!(name, "-h" | "--help") {
            help = true;
        } else if matches!(name, "-V" | "--version") {
            version = true;
        } else if GLOBAL_SWITCHES.contains(&name) || own_switches.contains(&name) {
            if inline.is_some() {
                errors.push(format!("{name} takes no value"));
            }
            let is_global = GLOBAL_SWITCHES.contains(&name);
            if is_global { &mut global } else { &mut own }.push(name.to_owned());
        } else if name.starts_with('-') && name.len() > 1 {
            errors.push(unknown_option(name, verb));
        } else if !verb_seen && verb == Some(name) {
            verb_seen = true;
        } else if verb.is_none() {
            errors.push(unknown_verb(arg));
        } else {
            errors.push(format!("{arg:?}: an argument that belongs to no option"));
        }
    }
    if version {
        return Ok(Sorted::Version);
    }
    if help {
        return Ok(Sorted::Help(verb));
    }
    if let Some(error) = errors.into_iter().next() {
        return Err(usage(error));
    }
    match verb {
        Some(verb) => Ok(Sorted::Call { verb, global, own }),
        None => Err(usage(format!("no verb: give one of {}", VERBS.join(", ")))),
    }
}

/// The first argument that is neither an option nor the value of one.
fn find_verb(args: &[String]) -> Option<&'static str> {
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if GLOBAL.contains(&arg.as_str()) {
            rest.next();
        } else if !arg.starts_with('-') {
            return VERBS.into_iter().find(|verb| verb == arg);
        }
    }
    None
}

fn unknown_verb(word: &str) -> String {
    let verbs = VERBS.join(", ");
    match nearest(word, VERBS.into_iter()) {
        Some(verb) => format!("{word:?} is no verb: did you mean {verb}? ({verbs})"),
        None => format!("{word:?} is no verb: give one of {verbs}"),
    }
}

fn unknown_option(name: &str, verb: Option<&'static str>) -> String {
    let (values, switches) = verb.map_or((&[][..], &[][..]), options_of);
    let all = GLOBAL.iter().chain(&GLOBAL_SWITCHES).chain(values).chain(switches);
    let of = verb.map_or(String::new(), |verb| format!(" of {verb}"));
    match nearest(name, all.copied()) {
        Some(near) => format!("{name} is no option{of}: did you mean {near}?"),
        None => format!("{name} is no option{of}"),
    }
}

/// The candidate within two typing errors, if there is one.
fn nearest(word: &str, candidates: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let alike = |c: &&str| c.len() > 2 && c.len().abs_diff(word.len()) <= 2;
    let near = candidates.filter(alike).map(|c| (distance(word, c), c));
    near.filter(|(far, _)| *far <= 2).min().map(|(_, c)| c)
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
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
    parse_call(args, lossy, env, host_name).map_err(|failure| UsageError { failure, verb_is_check })
}

fn parse_call(
    args: &[OsString],
    lossy: Vec<String>,
    env: &dyn Fn(&str) -> Option<OsString>,
    host_name: &dyn Fn() -> Option<String>,
) -> Result<Parsed, Failure> {
    if let Some(broken) = args.iter().position(|arg| arg.to_str().is_none()) {
        return Err(usage(format!("{:?}: is not UTF-8", lossy[broken])));
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
        .map_err(|exit| usage(exit.output.trim().replace('\n', " ")))?;
    let source = Source { env };
    let mut verb = match &top.verb {
        VerbArgs::Run(args) => Verb::Run(source.run(args, host_name)?),
        VerbArgs::Init(args) => Verb::Init(init(args)?),
        VerbArgs::Check(args) => Verb::Check(check(args)?),
        VerbArgs::Cleanup(args) => Verb::Cleanup(cleanup(args)?),
        VerbArgs::List(args) => Verb::List(ListOptions {
            all: args.all,
            service: option(&args.service, "--service").map(Given::read_from_str).transpose()?,
            stale_after: stale_after(&args.stale_after)?,
            json: args.json,
        }),
    };
    let (settings, bucket) = source.connection(&top)?;
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

/// A value, and where it came from.
struct Given {
    name: &'static str,
    text: String,
    kind: Kind,
}

impl Given {
    fn bad(&self, rule: impl std::fmt::Display) -> Failure {
        Failure::new(self.kind, format!("{} {:?}: {rule}", self.name, self.text))
    }

    fn read<T, E: std::fmt::Display>(
        self,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Result<T, Failure> {
        read(&self.text).map_err(|rule| self.bad(rule))
    }

    fn read_from_str<T: FromStr<Err: std::fmt::Display>>(self) -> Result<T, Failure> {
        self.read(str::parse)
    }

    fn duration(self, from: Duration, to: Duration) -> Result<Duration, Failure> {
        self.read(|text| {
            let parsed = duration::parse(text).map_err(|error| error.to_string())?;
            if !(from..=to).contains(&parsed) {
                let (from, to) = (as_setting(from), duration::words(to));
                return Err(format!("must be from {from} to {to}"));
            }
            Ok(parsed)
        })
    }
}

fn option(value: &Option<String>, name: &'static str) -> Option<Given> {
    let kind = Kind::Usage;
    value.clone().map(|text| Given { name, text, kind })
}

fn from_context(value: &Option<String>, name: &'static str) -> Option<Given> {
    let kind = Kind::Config;
    value.clone().map(|text| Given { name, text, kind })
}

/// Where values come from beside the command line.
struct Source<'a> {
    env: &'a dyn Fn(&str) -> Option<OsString>,
}

impl Source<'_> {
    /// A variable; one that is empty counts as not set.
    fn env(&self, name: &'static str) -> Result<Option<Given>, Failure> {
        let Some(value) = (self.env)(name).filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        let kind = Kind::Config;
        match value.into_string() {
            Ok(text) => Ok(Some(Given { name, text, kind })),
            Err(_) => Err(Failure::new(kind, format!("{name} is not UTF-8"))),
        }
    }

    fn given(
        &self,
        value: &Option<String>,
        name: &'static str,
        variable: &'static str,
    ) -> Result<Option<Given>, Failure> {
        match option(value, name) {
            Some(given) => Ok(Some(given)),
            None => self.env(variable),
        }
    }

    fn run(
        &self,
        args: &RunArgs,
        host_name: &dyn Fn() -> Option<String>,
    ) -> Result<RunOptions, Failure> {
        let service = self
            .given(&args.service, "--service", "AEGIS_SERVICE")?
            .ok_or_else(|| {
                usage("--service (or AEGIS_SERVICE) is required: the service to speak for")
            })?
            .read_from_str()?;
        let instance = match self.given(&args.instance, "--instance", "AEGIS_INSTANCE")? {
            Some(given) => given.read_from_str()?,
            None => default_instance(host_name)?,
        };
        let version = self
            .given(&args.service_version, "--service-version", "AEGIS_SERVICE_VERSION")?
            .unwrap_or(Given { name: "--service-version", text: "0.0.0".into(), kind: Kind::Usage })
            .read_from_str()?;
        let ttl = match self.given(&args.ttl, "--ttl", "AEGIS_TTL")? {
            Some(given) => given.read(read_ttl)?,
            None => DEFAULT_TTL,
        };
        let interval = match self.given(&args.interval, "--interval", "AEGIS_INTERVAL")? {
            Some(given) => given.read(|text| read_interval(text, ttl))?,
            None => ttl / 3,
        };
        let mut warnings = Vec::new();
        if interval > ttl / 3 {
            warnings.push(format!(
                "interval {} is more than a third of the TTL {}: one or two lost heartbeats, \
                 and a live instance vanishes",
                as_setting(interval),
                as_setting(ttl)
            ));
        }
        let group = self.given(&args.group, "--group", "AEGIS_GROUP")?;
        let health = self.health(args, interval, &mut warnings)?;
        let metrics_file =
            self.given(&args.metrics_file, "--metrics-file", "AEGIS_METRICS_FILE")?;
        Ok(RunOptions {
            service,
            instance,
            version,
            ttl,
            interval,
            standby: args.standby,
            group: group.map(|given| given.read(read_group)).transpose()?,
            metadata: read_metadata(&args.meta)?,
            health,
            metrics_file: metrics_file.map(|given| given.read(read_file_name)).transpose()?,
            warnings,
        })
    }

    fn health(
        &self,
        args: &RunArgs,
        interval: Duration,
        warnings: &mut Vec<String>,
    ) -> Result<Option<HealthOptions>, Failure> {
        let exec = self.given(&args.health_exec, "--health-exec", "AEGIS_HEALTH_EXEC")?;
        let tcp = self.given(&args.health_tcp, "--health-tcp", "AEGIS_HEALTH_TCP")?;
        let exec = exec.map(|given| given.read(Check::exec)).transpose()?;
        let tcp = tcp.map(|given| given.read(Check::tcp)).transpose()?;
        let timeout =
            self.given(&args.health_timeout, "--health-timeout", "AEGIS_HEALTH_TIMEOUT")?;
        let timeout = match timeout {
            Some(given) => {
                let timeout = given.duration(Duration::from_millis(1), LONGEST_TIMEOUT)?;
                if timeout > interval {
                    warnings.push(format!(
                        "the limit {} of a health check is longer than the interval: {} it is",
                        as_setting(timeout),
                        as_setting(interval)
                    ));
                }
                timeout.min(interval)
            }
            None => DEFAULT_HEALTH_TIMEOUT.min(interval),
        };
        let failures =
            self.given(&args.health_failures, "--health-failures", "AEGIS_HEALTH_FAILURES")?;
        let failures = failures.map(|given| {
            given.read(|text| match text.parse() {
                Ok(failures @ 1..=1_000) => Ok(failures),
                _ => Err("must be a whole number from 1 to 1000"),
            })
        });
        let failures = failures.transpose()?.unwrap_or(DEFAULT_HEALTH_FAILURES);
        let checks: Vec<Check> = exec.into_iter().chain(tcp).collect();
        Ok((!checks.is_empty()).then_some(HealthOptions { checks, timeout, failures }))
    }

    fn connection(&self, top: &TopArgs) -> Result<(Settings, Bucket), Failure> {
        let context = match self.given(&top.context, "--context", "NATS_CONTEXT")? {
            Some(given) => context::load(&given.text, self.env)?,
            None => Context::default(),
        };
        let url = self
            .given(&top.nats_url, "--nats-url", "NATS_URL")?
            .or(from_context(&context.url, "url of the context"));
        let (servers, url_login) = read_urls(url)?;
        let inbox_prefix = self
            .given(&top.inbox_prefix, "--inbox-prefix", "AEGIS_INBOX_PREFIX")?
            .or(from_context(&context.inbox_prefix, "inbox_prefix of the context"));
        let bucket = self.given(&top.bucket, "--bucket", "AEGIS_BUCKET")?;
        let bucket = match bucket {
            Some(given) => {
                given.read(|text| Bucket::new(text).ok_or("must be 1 to 200 of A-Z a-z 0-9 - _"))?
            }
            None => Bucket::service_registry(),
        };
        let timeout = match self.given(&top.timeout, "--timeout", "NATS_TIMEOUT")? {
            Some(given) => given.duration(Duration::from_millis(1), LONGEST_TIMEOUT)?,
            None => DEFAULT_TIMEOUT,
        };
        let settings = Settings {
            servers,
            login: self.login(top, &context, url_login)?,
            tls: self.tls(top, &context)?,
            inbox_prefix: match inbox_prefix {
                Some(given) => given.read(read_inbox_prefix)?,
                None => "_INBOX".into(),
            },
            timeout,
        };
        Ok((settings, bucket))
    }

    fn tls(&self, top: &TopArgs, context: &Context) -> Result<Tls, Failure> {
        let file = |value, name, variable, from: &Option<String>| {
            let given = self.given(value, name, variable)?;
            Ok::<_, Failure>(given.map(|given| given.text).or(from.clone()).map(PathBuf::from))
        };
        let ca = file(&top.tlsca, "--tlsca", "NATS_CA", &context.ca)?;
        let cert = file(&top.tlscert, "--tlscert", "NATS_CERT", &context.cert)?;
        let key = file(&top.tlskey, "--tlskey", "NATS_KEY", &context.key)?;
        let client = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => return Err(usage("--tlscert needs --tlskey (or NATS_KEY)")),
            (None, Some(_)) => return Err(usage("--tlskey needs --tlscert (or NATS_CERT)")),
        };
        Ok(Tls { ca, client })
    }

    /// The login of the first source that has one: the command line, the
    /// environment, the context, the URL.
    fn login(
        &self,
        top: &TopArgs,
        context: &Context,
        url: Option<UrlLogin>,
    ) -> Result<Login, Failure> {
        let text = |name| Ok::<_, Failure>(self.env(name)?.map(|given| given.text));
        let (env_user, env_password) = (text("NATS_USER")?, text("NATS_PASSWORD")?);
        let password_file = top.password_file.as_ref().map(|path| Secret::File(path.into()));
        if password_file.is_some() && top.user.is_none() && env_user.is_none() {
            return Err(usage("--password-file needs --user (or NATS_USER)"));
        }
        let mut given = Vec::new();
        let user =
            top.user.clone().or_else(|| env_user.clone().filter(|_| password_file.is_some()));
        if let Some(name) = user {
            let password = password_file.or(env_password.clone().map(Secret::Text));
            let Some(password) = password else {
                return Err(usage("--user needs --password-file (or NATS_PASSWORD)"));
            };
            given.push(("--user", Login::User { name, password }));
        }
        let file = |path: &String| PathBuf::from(path);
        given.extend(top.creds.as_ref().map(|path| ("--creds", Login::Creds(file(path)))));
        given.extend(top.nkey.as_ref().map(|path| ("--nkey", Login::Nkey(file(path)))));
        let token = |path| ("--token-file", Login::Token(Secret::File(file(path))));
        given.extend(top.token_file.as_ref().map(token));
        if let Some(login) = only(given, Kind::Usage)? {
            return Ok(login);
        }

        let mut given = Vec::new();
        if let Some(name) = env_user {
            let Some(password) = env_password else {
                let what = "NATS_USER needs NATS_PASSWORD or --password-file";
                return Err(Failure::new(Kind::Config, what));
            };
            let password = Secret::Text(password);
            given.push(("NATS_USER", Login::User { name, password }));
        }
        let creds = text("NATS_CREDS")?.map(|path| ("NATS_CREDS", Login::Creds(path.into())));
        let nkey = text("NATS_NKEY")?.map(|path| ("NATS_NKEY", Login::Nkey(path.into())));
        let token =
            text("NATS_TOKEN")?.map(|token| ("NATS_TOKEN", Login::Token(Secret::Text(token))));
        given.extend(creds.into_iter().chain(nkey).chain(token));
        if let Some(login) = only(given, Kind::Config)? {
            return Ok(login);
        }

        let mut given = Vec::new();
        if let Some(name) = context.user.clone() {
            let password = Secret::Text(context.password.clone().unwrap_or_default());
            given.push(("user of the context", Login::User { name, password }));
        }
        let creds =
            context.creds.as_ref().map(|path| ("creds of the context", Login::Creds(file(path))));
        let nkey =
            context.nkey.as_ref().map(|path| ("nkey of the context", Login::Nkey(file(path))));
        let token = context.token.clone().map(Secret::Text);
        let token = token.map(|token| ("token of the context", Login::Token(token)));
        given.extend(creds.into_iter().chain(nkey).chain(token));
        if let Some(login) = only(given, Kind::Config)? {
            return Ok(login);
        }

        Ok(match url {
            None => Login::None,
            Some(UrlLogin::Token(token)) => Login::Token(Secret::Text(token)),
            Some(UrlLogin::User(name, password)) => {
                Login::User { name, password: Secret::Text(password) }
            }
        })
    }
}

/// One login a source: two would leave open who we are.
fn only(mut given: Vec<(&'static str, Login)>, kind: Kind) -> Result<Option<Login>, Failure> {
    if let [(first, _), (second, _), ..] = given.as_slice() {
        let what = format!("{first} and {second}: only one kind of login can be given");
        return Err(Failure::new(kind, what));
    }
    Ok(given.pop().map(|(_, login)| login))
}

fn read_urls(given: Option<Given>) -> Result<(Vec<ServerAddress>, Option<UrlLogin>), Failure> {
    let (name, kind, text) = match given {
        Some(given) => (given.name, given.kind, given.text),
        None => ("", Kind::Usage, DEFAULT_URL.to_owned()),
    };
    // Not through `Given`, which shows the value: it may hold a password.
    url::parse_list(&text).map_err(|rule| Failure::new(kind, format!("{name} {rule}")))
}

fn default_instance(host_name: &dyn Fn() -> Option<String>) -> Result<InstanceId, Failure> {
    let host = host_name().unwrap_or_default();
    let short = host.split('.').next().unwrap_or_default();
    short.parse().map_err(|rule| {
        usage(format!("the host name {short:?} cannot be the instance: {rule}; give --instance"))
    })
}

fn read_ttl(text: &str) -> Result<Duration, String> {
    let rule = "must be a whole number of seconds from 1s to 1 day (24h)";
    match duration::parse(text) {
        Ok(ttl)
            if ttl.subsec_nanos() == 0 && (1..=LONGEST_TTL.as_secs()).contains(&ttl.as_secs()) =>
        {
            Ok(ttl)
        }
        Ok(_) => Err(rule.into()),
        Err(error) => Err(format!("{error}; {rule}")),
    }
}

fn read_interval(text: &str, ttl: Duration) -> Result<Duration, String> {
    let interval = duration::parse(text).map_err(|error| error.to_string())?;
    if interval < SHORTEST_INTERVAL {
        return Err(format!("must be at least {}", as_setting(SHORTEST_INTERVAL)));
    }
    if interval >= ttl {
        return Err(format!(
            "must be shorter than the TTL {} (a third of it is best), or every entry expires between heartbeats",
            as_setting(ttl)
        ));
    }
    Ok(interval)
}

fn read_group(text: &str) -> Result<String, &'static str> {
    let fits =
        !text.is_empty() && text.chars().count() <= 100 && !text.chars().any(char::is_control);
    if !fits {
        return Err("must be 1 to 100 printable characters");
    }
    Ok(text.to_owned())
}

fn read_metadata(given: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut metadata = BTreeMap::new();
    for text in given {
        let bad = |rule: &str| usage(format!("--meta {text:?}: {rule}"));
        let (key, value) = text.split_once('=').ok_or_else(|| bad("must be KEY=VALUE"))?;
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if key.is_empty() || key.len() > 64 || !key.bytes().all(fits) {
            return Err(bad("the key must be 1 to 64 of A-Z a-z 0-9 . _ -"));
        }
        if matches!(key, "host" | "pid") {
            return Err(bad("host and pid are set by the agent itself"));
        }
        if value.len() > LONGEST_META || value.chars().any(char::is_control) {
            return Err(bad("the value must have no control characters and at most 1024 bytes"));
        }
        if metadata.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(bad("the key is given twice"));
        }
    }
    Ok(metadata)
}

fn read_file_name(text: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(text);
    if path.file_name().is_none() || text.ends_with('/') || text.contains('\0') {
        return Err("must be the name of a file");
    }
    Ok(path)
}

fn read_inbox_prefix(text: &str) -> Result<String, &'static str> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    let token = |token: &str| !token.is_empty() && token.bytes().all(fits);
    if text.len() > 200 || !text.split('.').all(token) {
        return Err("must be words of A-Z a-z 0-9 - _ joined by dots, without wildcards");
    }
    Ok(text.to_owned())
}

fn stale_after(value: &Option<String>) -> Result<Duration, Failure> {
    match option(value, "--stale-after") {
        Some(given) => given.duration(Duration::from_millis(1), LONGEST_STALE_AFTER),
        None => Ok(DEFAULT_STALE_AFTER),
    }
}

fn init(args: &InitArgs) -> Result<InitOptions, Failure> {
    let replicas = option(&args.replicas, "--replicas").map(|given| {
        given.read(|text| match text.parse() {
            Ok(count @ 1..=5) => Ok(count),
            _ => Err("must be a number from 1 to 5"),
        })
    });
    let marker_ttl = option(&args.marker_ttl, "--marker-ttl");
    let storage = option(&args.storage, "--storage").map(|given| {
        given.read(|text| match text {
            "file" => Ok(Storage::File),
            "memory" => Ok(Storage::Memory),
            _ => Err("must be file or memory"),
        })
    });
    Ok(InitOptions {
        replicas: replicas.transpose()?.unwrap_or(1),
        marker_ttl: marker_ttl.map(|given| given.read(read_ttl)).transpose()?,
        storage: storage.transpose()?.unwrap_or(Storage::File),
    })
}

fn check(args: &CheckArgs) -> Result<CheckOptions, Failure> {
    let format = option(&args.format, "--format").map(|given| {
        given.read(|text| match text {
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            "nagios" => Ok(Format::Nagios),
            "prometheus" => Ok(Format::Prometheus),
            _ => Err("must be text, json, nagios or prometheus"),
        })
    });
    let format = match (format.transpose()?, args.json) {
        (None | Some(Format::Json), true) => Format::Json,
        (Some(_), true) => return Err(usage("--json and --format say different things: give one")),
        (format, false) => format.unwrap_or(Format::Text),
    };
    if args.output.is_some() && format != Format::Prometheus {
        return Err(usage("--output is for --format prometheus"));
    }
    Ok(CheckOptions { probe: args.probe, format, output: args.output.as_ref().map(PathBuf::from) })
}

fn cleanup(args: &CleanupArgs) -> Result<CleanupOptions, Failure> {
    let only = args.only.iter().map(|text| {
        let given = option(&Some(text.clone()), "--only");
        given.map_or(Err(usage("--only needs a value")), Given::read_from_str)
    });
    let max_removals = option(&args.max_removals, "--max-removals").map(|given| {
        given.read(|text| text.parse().map_err(|_| "must be a whole number, 0 or more"))
    });
    Ok(CleanupOptions {
        dry_run: args.dry_run,
        stale_after: stale_after(&args.stale_after)?,
        only: only.collect::<Result<_, _>>()?,
        service: option(&args.service, "--service").map(Given::read_from_str).transpose()?,
        max_removals: max_removals.transpose()?,
        unreadable: args.unreadable,
        json: args.json,
    })
}

/// The man pages and completions that are shipped.
#[cfg(test)]
mod pages;

#[cfg(test)]
mod tests {
    use super::*;

    fn call(args: &str, env: &[(&str, &str)]) -> Result<Parsed, UsageError> {
        let args: Vec<OsString> =
            args.split(' ').filter(|a| !a.is_empty()).map(OsString::from).collect();
        let env: BTreeMap<String, OsString> =
            env.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
        parse(&args, &|name| env.get(name).cloned(), &|| Some("host-1.example.org".into()))
    }

    fn ok(args: &str, env: &[(&str, &str)]) -> Invocation {
        match call(args, env) {
            Ok(Parsed::Run(invocation)) => *invocation,
            other => panic!("{args}: {other:?}"),
        }
    }

    fn run_options(args: &str, env: &[(&str, &str)]) -> RunOptions {
        match ok(args, env).verb {
            Verb::Run(options) => options,
            other => panic!("{other:?}"),
        }
    }

    fn failure(args: &str, env: &[(&str, &str)]) -> (u8, String) {
        match call(args, env) {
            Err(error) => (error.failure.exit_code(), error.failure.chain()),
            Ok(parsed) => panic!("{args} was taken: {parsed:?}"),
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let options = run_options("run --service orders-api", &[]);
        assert_eq!(options.instance.as_str(), "host-1");
        assert_eq!(options.version.as_str(), "0.0.0");
        assert_eq!((options.ttl.as_secs(), options.interval.as_secs()), (30, 10));
        let call = ok("list", &[]);
        assert_eq!(call.bucket.as_str(), "service_registry");
        assert_eq!(call.settings.inbox_prefix, "_INBOX");
        assert_eq!(call.settings.timeout.as_secs(), 5);
        let server = &call.settings.servers[0];
        assert_eq!((server.host.as_str(), server.port, server.tls), ("127.0.0.1", 4222, false));
    }

    #[test]
    fn options_stand_before_or_after_the_verb_and_take_their_value_in_both_ways() {
        for args in [
            "--bucket b -s nats://a:1 list --json",
            "list --bucket b --json -s nats://a:1",
            "list --json --bucket=b --nats-url=nats://a:1",
            "--nats-url=nats://a:1 list --bucket=b --json",
            "-s=nats://a:1 --bucket=b list --json",
        ] {
            let call = ok(args, &[]);
            assert_eq!(call.bucket.as_str(), "b", "{args}");
            assert_eq!(call.settings.servers[0].host, "a", "{args}");
            assert!(matches!(call.verb, Verb::List(ListOptions { json: true, .. })), "{args}");
        }
    }

    #[test]
    fn a_value_may_look_like_an_option_or_hold_an_equals_sign() {
        let options = run_options("run --service=abc --meta=a=-b=c --meta d=--ttl", &[]);
        assert_eq!(options.metadata["a"], "-b=c");
        assert_eq!(options.metadata["d"], "--ttl");
        // The value of an option is no verb.
        assert!(matches!(ok("--bucket run list", &[]).verb, Verb::List(_)));
    }

    #[test]
    fn an_option_beats_the_environment_and_an_empty_variable_is_none() {
        let env = [("AEGIS_SERVICE", "from-env"), ("AEGIS_TTL", "60s"), ("AEGIS_INSTANCE", "")];
        let options = run_options("run", &env);
        assert_eq!(options.service.as_str(), "from-env");
        assert_eq!((options.ttl.as_secs(), options.interval.as_secs()), (60, 20));
        assert_eq!(options.instance.as_str(), "host-1");
        let options = run_options("run --service given --ttl 9", &env);
        assert_eq!((options.service.as_str(), options.ttl.as_secs()), ("given", 9));
    }

    #[test]
    fn help_and_version_work_everywhere() {
        for args in
            ["-V", "--version", "run -V", "--bogus --version", "list --json -V", "-V nonsense"]
        {
            let text = match call(args, &[]) {
                Ok(Parsed::Print(text)) => text,
                other => panic!("{args}: {other:?}"),
            };
            assert_eq!(text, format!("aegis-agent {}\n", env!("CARGO_PKG_VERSION")));
        }
        for (args, word) in [
            ("-h", "cleanup"),
            ("--help", "NATS_URL"),
            ("run --help", "AEGIS_TTL"),
            ("--help run", "AEGIS_TTL"),
            ("run --ttl bogus -h", "AEGIS_TTL"),
            ("cleanup -h", "--max-removals"),
            ("check --help", "--probe"),
            ("init --help", "--marker-ttl"),
            ("list --help", "--stale-after"),
        ] {
            match call(args, &[]) {
                Ok(Parsed::Print(text)) => assert!(text.contains(word), "{args}: {text}"),
                other => panic!("{args}: {other:?}"),
            }
        }
    }

    #[test]
    fn each_wrong_option_is_named_with_its_value_and_its_rule() {
        let run = "run --service orders-api";
        for (args, words) in [
            ("", "no verb: give one of run, init, check, cleanup, list"),
            ("lst", "did you mean list?"),
            ("list extra", "\"extra\": an argument that belongs to no option"),
            ("list --servce x", "did you mean --service?"),
            ("list --ttl 3", "--ttl is no option of list"),
            ("list --json=yes", "--json takes no value"),
            ("list --bucket", "--bucket needs a value"),
            ("list --bucket a --bucket b", "duplicate"),
            ("run", "--service (or AEGIS_SERVICE) is required"),
            ("run --service Orders", "--service \"Orders\": "),
            (&format!("{run} --instance a.b"), "--instance \"a.b\": "),
            (&format!("{run} --service-version 1.2"), "--service-version \"1.2\": "),
            (&format!("{run} --ttl 500ms"), "--ttl \"500ms\": must be a whole number of seconds"),
            (&format!("{run} --ttl 0"), "--ttl \"0\": must be a whole"),
            (&format!("{run} --ttl 25h"), "--ttl \"25h\": must be a whole"),
            (&format!("{run} --ttl 1.5s"), "--ttl \"1.5s\": must be a whole"),
            (&format!("{run} --ttl soon"), "--ttl \"soon\": not a duration"),
            (
                &format!("{run} --ttl 9s --interval 9s"),
                "--interval \"9s\": must be shorter than the TTL 9s",
            ),
            (&format!("{run} --interval 0"), "--interval \"0\": must be at least 10ms"),
            (&format!("{run} --interval x"), "--interval \"x\": not a duration"),
            (&format!("{run} --meta x"), "--meta \"x\": must be KEY=VALUE"),
            (&format!("{run} --meta pid=1"), "host and pid are set by the agent itself"),
            (&format!("{run} --meta a=1 --meta a=2"), "the key is given twice"),
            (&format!("{run} --meta =1"), "the key must be"),
            (&format!("{run} --health-exec '"), "--health-exec \"'\": has a quote without its end"),
            (&format!("{run} --health-tcp 80"), "--health-tcp \"80\": must be HOST:PORT"),
            (&format!("{run} --health-timeout 0"), "--health-timeout \"0\": must be from 1ms"),
            (&format!("{run} --health-failures 0"), "--health-failures \"0\": must be a whole"),
            (&format!("{run} --metrics-file /a/.."), "--metrics-file \"/a/..\": must be the name"),
            ("list --timeout 0", "--timeout \"0\": must be from 1ms"),
            ("list --timeout 2h", "--timeout \"2h\": must be from 1ms"),
            ("list --stale-after -1", "--stale-after \"-1\": not a duration"),
            ("list --bucket a.b", "--bucket \"a.b\": must be 1 to 200 of"),
            ("list --inbox-prefix a.>", "--inbox-prefix \"a.>\": must be words"),
            ("list --service UP", "--service \"UP\": "),
            ("list -s http://a", "--nats-url http://a: the scheme must be nats or tls"),
            ("list --user u", "--user needs --password-file"),
            ("list --password-file f", "--password-file needs --user"),
            ("list --creds a --nkey b", "--creds and --nkey: only one kind of login"),
            ("list --tlscert a", "--tlscert needs --tlskey"),
            ("list --tlskey a", "--tlskey needs --tlscert"),
            ("init --replicas 6", "--replicas \"6\": must be a number from 1 to 5"),
            ("init --storage disk", "--storage \"disk\": must be file or memory"),
            ("init --marker-ttl 1ms", "--marker-ttl \"1ms\": must be a whole"),
            ("check --format xml", "--format \"xml\": must be text, json"),
            ("check --json --format nagios", "--json and --format say different things"),
            ("check --output f", "--output is for --format prometheus"),
            ("cleanup --only old", "--only \"old\": "),
            ("cleanup --max-removals -1", "--max-removals \"-1\": must be a whole number"),
        ] {
            let (code, message) = failure(args, &[]);
            assert!(message.contains(words), "{args}: {message}");
            assert_eq!(code, 64, "{args}: {message}");
        }
    }

    #[test]
    fn what_the_environment_says_wrong_is_named_by_its_variable() {
        for (name, value, words) in [
            ("AEGIS_TTL", "0", "AEGIS_TTL \"0\": must be"),
            ("AEGIS_SERVICE", "X", "AEGIS_SERVICE \"X\": "),
            ("NATS_URL", "ftp://a", "NATS_URL ftp://a: the scheme"),
            ("NATS_TIMEOUT", "x", "NATS_TIMEOUT \"x\": not a duration"),
            ("AEGIS_BUCKET", "a b", "AEGIS_BUCKET \"a b\": "),
            ("NATS_CONTEXT", "../x", "must be the plain name"),
        ] {
            let args = if name == "AEGIS_SERVICE" { "run" } else { "run --service orders-api" };
            let (code, message) = failure(args, &[(name, value)]);
            assert!(message.contains(words), "{name}: {message}");
            assert_eq!(code, 78, "{name}: {message}");
        }
    }

    #[test]
    fn a_wrong_call_of_check_is_unknown() {
        let error = call("check --bogus", &[]).unwrap_err();
        assert!(error.verb_is_check);
        assert!(!call("list --bogus", &[]).unwrap_err().verb_is_check);
    }

    #[test]
    fn a_long_interval_is_a_warning() {
        let options = run_options("run --service abc --ttl 30 --interval 11", &[]);
        assert!(options.warnings[0].contains("interval 11s is more than a third of the TTL 30s"));
        assert!(run_options("run --service abc --ttl 30 --interval 10", &[]).warnings.is_empty());
    }

    #[test]
    fn health_comes_from_options_and_environment_and_is_never_slower_than_the_heart() {
        let health = |args: &str, env: &[(&str, &str)]| {
            run_options(&format!("run --service abc {args}"), env).health
        };
        assert_eq!(health("--health-timeout 1s", &[]), None);
        let env = [("AEGIS_HEALTH_EXEC", "/bin/check -q 'a b'"), ("AEGIS_HEALTH_FAILURES", "5")];
        let both = health("--health-tcp [::1]:80", &env).unwrap();
        let words = ["/bin/check", "-q", "a b"].map(str::to_owned).to_vec();
        let tcp = Check::Tcp { host: "::1".into(), port: 80 };
        assert_eq!(both.checks, [Check::Exec(words), tcp]);
        assert_eq!((both.timeout, both.failures), (Duration::from_secs(2), 5));
        let fast = "--health-tcp a:1 --interval 500ms";
        assert_eq!(health(fast, &[]).unwrap().timeout, Duration::from_millis(500));
        let slow = run_options(&format!("run --service abc --health-timeout 1s {fast}"), &[]);
        assert_eq!(slow.health.unwrap().timeout, Duration::from_millis(500));
        assert!(slow.warnings[0].contains("longer than the interval"), "{:?}", slow.warnings);
    }

    #[test]
    fn the_login_comes_from_the_first_source_that_has_one_and_is_never_shown() {
        let login =
            |args: &str, env: &[(&str, &str)]| format!("{:?}", ok(args, env).settings.login);
        assert_eq!(login("list", &[]), "None");
        assert_eq!(
            login("list -s nats://u:secret@a", &[]),
            "User { name: \"u\", password: Text(..) }"
        );
        assert_eq!(login("list -s nats://secret@a", &[]), "Token(Text(..))");
        let env = [("NATS_TOKEN", "secret")];
        assert_eq!(login("list -s nats://u:secret@a", &env), "Token(Text(..))");
        assert_eq!(login("list --creds /c", &env), "Creds(\"/c\")");
        let env = [("NATS_USER", "u"), ("NATS_PASSWORD", "secret")];
        assert_eq!(login("list", &env), "User { name: \"u\", password: Text(..) }");
        assert_eq!(login("list --user v", &env), "User { name: \"v\", password: Text(..) }");
        assert_eq!(
            login("list --password-file /p", &env),
            "User { name: \"u\", password: File(\"/p\") }"
        );
        let (code, message) = failure("list", &[("NATS_CREDS", "/c"), ("NATS_TOKEN", "secret")]);
        assert_eq!(code, 78);
        assert_eq!(message, "NATS_CREDS and NATS_TOKEN: only one kind of login can be given");
    }

    #[test]
    fn what_is_not_utf_8_is_refused() {
        use std::os::unix::ffi::OsStringExt;
        let broken = OsString::from_vec(vec![b'-', 0xff]);
        let error = parse(std::slice::from_ref(&broken), &|_| None, &|| None).unwrap_err();
        assert_eq!(error.failure.exit_code(), 64);
        let env = |name: &str| (name == "NATS_URL").then(|| broken.clone());
        let error = parse(&["list".into()], &env, &|| None).unwrap_err();
        assert_eq!(error.failure.exit_code(), 78);
        assert_eq!(error.failure.chain(), "NATS_URL is not UTF-8");
    }

    #[test]
    fn a_host_name_that_cannot_be_an_instance_says_what_to_give() {
        let args = ["run".into(), "--service=orders-api".into()];
        let error = parse(&args, &|_| None, &|| Some("hôst".into())).unwrap_err();
        assert!(error.failure.chain().contains("give --instance"));
    }
}
