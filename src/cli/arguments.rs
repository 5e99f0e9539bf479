//! The command line as argh takes it, and with it the texts of `--help`, the
//! man pages and the completions. Values are still text here: what they have to
//! be is for `verbs` and `settings`.

use argh::FromArgs;

/// Keeps a service registry in a NATS JetStream key-value bucket up to date.
#[derive(FromArgs)]
#[cfg_attr(test, derive(argh::ArgsInfo))]
#[argh(
    help_triggers("-h", "--help"),
    note = "Options stand before or after the verb. An option beats its environment
variable, which beats the context, which beats the same variable in the host's
file (--env-file), which beats the default. Variables of switches are true, yes
or 1; false, no or 0. A DURATION is 10s, 500ms, 1m or a number of seconds.

Exit codes: 0 done; 64 usage; 69 NATS or bucket not available; 75 done in
part, run again; 77 refused; 78 bad file or environment. check: 0 ok,
1 warning, 2 critical, 3 unknown."
)]
pub(super) struct TopArgs {
    /// servers, tls:// for TLS (NATS_URL; default nats://127.0.0.1:4222)
    #[argh(option, short = 's', arg_name = "url[,url...]")]
    pub(super) nats_url: Option<String>,
    /// user JWT and seed (NATS_CREDS)
    #[argh(option, arg_name = "file")]
    pub(super) creds: Option<String>,
    /// user nkey seed (NATS_NKEY)
    #[argh(option, arg_name = "file")]
    pub(super) nkey: Option<String>,
    /// user name (NATS_USER)
    #[argh(option, arg_name = "name")]
    pub(super) user: Option<String>,
    /// the user's password (NATS_PASSWORD holds the password itself)
    #[argh(option, arg_name = "file")]
    pub(super) password_file: Option<String>,
    /// a token (NATS_TOKEN holds the token itself)
    #[argh(option, arg_name = "file")]
    pub(super) token_file: Option<String>,
    /// roots to trust (NATS_CA; default the system's)
    #[argh(option, arg_name = "file")]
    pub(super) tlsca: Option<String>,
    /// our own certificate (NATS_CERT)
    #[argh(option, arg_name = "file")]
    pub(super) tlscert: Option<String>,
    /// its key (NATS_KEY)
    #[argh(option, arg_name = "file")]
    pub(super) tlskey: Option<String>,
    /// a context of the nats CLI (NATS_CONTEXT)
    #[argh(option, arg_name = "name")]
    pub(super) context: Option<String>,
    /// where replies arrive (AEGIS_INBOX_PREFIX; default _INBOX)
    #[argh(option, arg_name = "prefix")]
    pub(super) inbox_prefix: Option<String>,
    /// limit of each exchange with NATS (NATS_TIMEOUT; default 5s)
    #[argh(option, arg_name = "duration")]
    pub(super) timeout: Option<String>,
    /// the bucket (AEGIS_BUCKET; default service_registry)
    #[argh(option, arg_name = "name")]
    pub(super) bucket: Option<String>,
    /// where the bucket's JetStream is: its domain (AEGIS_JS_DOMAIN)
    #[argh(option, arg_name = "name")]
    pub(super) js_domain: Option<String>,
    /// settings of this host, in the syntax of systemd's EnvironmentFile= (default /etc/aegis-agent/agent.env where it can be read)
    #[argh(option, arg_name = "file")]
    #[allow(dead_code, reason = "read before argh: it may hold AEGIS_CLEANUP_OPTIONS")]
    pub(super) env_file: Option<String>,
    /// log more
    #[argh(switch, short = 'v')]
    pub(super) verbose: bool,
    /// print the version
    #[argh(switch, short = 'V')]
    #[allow(dead_code, reason = "answered before argh, so that it works everywhere")]
    pub(super) version: bool,
    #[argh(subcommand)]
    pub(super) verb: VerbArgs,
}

#[derive(FromArgs)]
#[cfg_attr(test, derive(argh::ArgsInfo))]
#[argh(subcommand)]
pub(super) enum VerbArgs {
    Run(RunArgs),
    Init(InitArgs),
    Check(CheckArgs),
    Cleanup(CleanupArgs),
    List(ListArgs),
    Watch(WatchArgs),
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
pub(super) struct RunArgs {
    /// name of the service (AEGIS_SERVICE; required)
    #[argh(option, arg_name = "name")]
    pub(super) service: Option<String>,
    /// name of the instance (AEGIS_INSTANCE; default the host name up to its first dot)
    #[argh(option, arg_name = "id")]
    pub(super) instance: Option<String>,
    /// version of the service (AEGIS_SERVICE_VERSION; default 0.0.0)
    #[argh(option, arg_name = "x.y.z")]
    pub(super) service_version: Option<String>,
    /// life of an entry, whole seconds (AEGIS_TTL; default 30s)
    #[argh(option, arg_name = "duration")]
    pub(super) ttl: Option<String>,
    /// longest time between heartbeats (AEGIS_INTERVAL; default a third of the TTL, at most 10s)
    #[argh(option, arg_name = "duration")]
    pub(super) interval: Option<String>,
    /// register as STANDBY instead of ACTIVE (AEGIS_STANDBY)
    #[argh(switch)]
    pub(super) standby: bool,
    /// sticky active group (AEGIS_GROUP)
    #[argh(option, arg_name = "name")]
    pub(super) group: Option<String>,
    /// metadata beside host and pid; repeatable (AEGIS_META, words as in a shell)
    #[argh(option, arg_name = "key=value")]
    pub(super) meta: Vec<String>,
    /// the service is well while this exits 0; no shell (AEGIS_HEALTH_EXEC)
    #[argh(option, arg_name = "command")]
    pub(super) health_exec: Option<String>,
    /// the service is well while this accepts connections (AEGIS_HEALTH_TCP)
    #[argh(option, arg_name = "host:port")]
    pub(super) health_tcp: Option<String>,
    /// limit of a check (AEGIS_HEALTH_TIMEOUT; default 2s, at most the interval)
    #[argh(option, arg_name = "duration")]
    pub(super) health_timeout: Option<String>,
    /// failures in a row before UNHEALTHY (AEGIS_HEALTH_FAILURES; default 3)
    #[argh(option, arg_name = "n")]
    pub(super) health_failures: Option<String>,
    /// keep this file of Prometheus text up to date (AEGIS_METRICS_FILE)
    #[argh(option, arg_name = "file")]
    pub(super) metrics_file: Option<String>,
    /// while this file exists: STANDBY, with its first line as the reason (AEGIS_DRAIN_FILE)
    #[argh(option, arg_name = "file")]
    pub(super) drain_file: Option<String>,
    /// show the settings, where each comes from, and what a start would refuse; do not start
    #[argh(switch)]
    pub(super) check_config: bool,
}

/// Creates the bucket, or switches per-message TTL on in one that exists.
#[derive(FromArgs)]
#[cfg_attr(test, derive(argh::ArgsInfo))]
#[argh(
    subcommand,
    name = "init",
    help_triggers("-h", "--help"),
    note = "In a bucket that exists it changes what was asked for by an option, and
nothing else. Running it again does no harm.
The options for connection and bucket are in aegis-agent --help."
)]
pub(super) struct InitArgs {
    /// copies, 1 to 5 (AEGIS_REPLICAS; of a new bucket: 3 in a cluster, else 1)
    #[argh(option, arg_name = "n")]
    pub(super) replicas: Option<String>,
    /// life of the server's delete markers, or none (AEGIS_MARKER_TTL; of a new bucket: 60s)
    #[argh(option, arg_name = "duration")]
    pub(super) marker_ttl: Option<String>,
    /// keep one revision of a key, and drop the older ones: 1 (AEGIS_HISTORY)
    #[argh(option, arg_name = "n")]
    pub(super) history: Option<String>,
    /// let nothing end an entry but its own TTL: none (AEGIS_MAX_AGE)
    #[argh(option, arg_name = "duration")]
    pub(super) max_age: Option<String>,
    /// file or memory, for a new bucket (AEGIS_STORAGE; default file)
    #[argh(option, arg_name = "kind")]
    pub(super) storage: Option<String>,
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
pub(super) struct CheckArgs {
    /// store an entry of its own with a TTL of 1s and wait for it to go (AEGIS_PROBE)
    #[argh(switch)]
    pub(super) probe: bool,
    /// at least MIN instances of this service are alive (default 1), else critical; fewer
    /// than WARN: warning; repeatable (AEGIS_SERVICE)
    #[argh(option, arg_name = "name[=min[:warn]]")]
    pub(super) service: Vec<String>,
    /// text, json, nagios or prometheus (AEGIS_FORMAT; default text)
    #[argh(option, arg_name = "format")]
    pub(super) format: Option<String>,
    /// short for --format json (AEGIS_JSON)
    #[argh(switch)]
    pub(super) json: bool,
    /// write to this file, whole or not at all, with --format prometheus (AEGIS_OUTPUT)
    #[argh(option, arg_name = "file")]
    pub(super) output: Option<String>,
}

/// Removes entries that nobody keeps alive, and never one that was refreshed
/// meanwhile.
#[derive(FromArgs)]
#[cfg_attr(test, derive(argh::ArgsInfo))]
#[argh(
    subcommand,
    name = "cleanup",
    help_triggers("-h", "--help"),
    note = "An entry is removable while it is stale (heartbeat-too-old, expired: readers
hide it) or for another reason (status-unhealthy, status-shutdown, no-ttl).
Silent where nothing was removed and nothing is wrong (-v says so). An entry
that is refreshed while this runs stays. Exit code 75: not everything could be
removed, or --max-removals was met; running it again goes on. With
--spare-beating an entry whose TTL is over gets the time of one more heartbeat.
The options for connection and bucket are in aegis-agent --help."
)]
pub(super) struct CleanupArgs {
    /// say what would be removed, remove nothing (AEGIS_DRY_RUN)
    #[argh(switch)]
    pub(super) dry_run: bool,
    /// age from which a heartbeat is too old (AEGIS_STALE_AFTER; default 35s)
    #[argh(option, arg_name = "duration")]
    pub(super) stale_after: Option<String>,
    /// only entries that are removable for this reason; repeatable (AEGIS_ONLY, words)
    #[argh(option, arg_name = "reason")]
    pub(super) only: Vec<String>,
    /// only this service (AEGIS_SERVICE)
    #[argh(option, arg_name = "name")]
    pub(super) service: Option<String>,
    /// remove nothing and exit 75 if more would go (AEGIS_MAX_REMOVALS)
    #[argh(option, arg_name = "n")]
    pub(super) max_removals: Option<String>,
    /// remove instance entries that cannot be read, too (AEGIS_UNREADABLE)
    #[argh(switch)]
    pub(super) unreadable: bool,
    /// leave every entry alone whose own TTL is still running (AEGIS_SPARE_BEATING)
    #[argh(switch)]
    pub(super) spare_beating: bool,
    /// answer in JSON (AEGIS_JSON)
    #[argh(switch)]
    pub(super) json: bool,
}

/// Shows who is alive.
#[derive(FromArgs)]
#[cfg_attr(test, derive(argh::ArgsInfo))]
#[argh(
    subcommand,
    name = "list",
    help_triggers("-h", "--help"),
    note = "Names before or after the options show only these: SERVICE or SERVICE/INSTANCE.
Where standard output is no terminal it has the table only, and all other lines
go to standard error.
The options for connection and bucket are in aegis-agent --help."
)]
pub(super) struct ListArgs {
    /// only these
    #[argh(positional, arg_name = "service[/instance]")]
    pub(super) asked: Vec<String>,
    /// stale ones, too, with all reasons (AEGIS_ALL)
    #[argh(switch)]
    pub(super) all: bool,
    /// only this service (AEGIS_SERVICE)
    #[argh(option, arg_name = "name")]
    pub(super) service: Option<String>,
    /// only those of this status (AEGIS_STATUS)
    #[argh(option, arg_name = "status")]
    pub(super) status: Option<String>,
    /// only those with this in their metadata; repeatable (AEGIS_HAS_META)
    #[argh(option, arg_name = "key[=value]")]
    pub(super) meta: Vec<String>,
    /// host, pid, group, revision and metadata, too (AEGIS_WIDE)
    #[argh(switch)]
    pub(super) wide: bool,
    /// only names, one service/instance a line (AEGIS_NAMES)
    #[argh(switch)]
    pub(super) names: bool,
    /// age from which a heartbeat is too old (AEGIS_STALE_AFTER; default 35s)
    #[argh(option, arg_name = "duration")]
    pub(super) stale_after: Option<String>,
    /// answer in JSON (AEGIS_JSON)
    #[argh(switch)]
    pub(super) json: bool,
}

/// Tells who comes and goes, as it happens.
#[derive(FromArgs)]
#[cfg_attr(test, derive(argh::ArgsInfo))]
#[argh(
    subcommand,
    name = "watch",
    help_triggers("-h", "--help"),
    note = "Names before or after the options watch only these: SERVICE or SERVICE/INSTANCE.
First the state as it is, then synced, then changes: up, changed, and down with
the reason (deregistered, expired, removed, stale). While NATS is away it says
lost, once, and calls nobody down; NATS being away never ends it. The command of
--exec reads the state as list --json prints it; AEGIS_EVENTS is the number of
changes. SIGTERM, SIGINT and a closed pipe: exit code 0.
The options for connection and bucket are in aegis-agent --help."
)]
pub(super) struct WatchArgs {
    /// only these
    #[argh(positional, arg_name = "service[/instance]")]
    pub(super) asked: Vec<String>,
    /// one event a line, in JSON (AEGIS_JSON)
    #[argh(switch)]
    pub(super) json: bool,
    /// run this after changes; no shell (AEGIS_EXEC)
    #[argh(option, arg_name = "command")]
    pub(super) exec: Option<String>,
    /// changes within this time go together (AEGIS_SETTLE; default 200ms)
    #[argh(option, arg_name = "duration")]
    pub(super) settle: Option<String>,
    /// age from which a heartbeat is too old (AEGIS_STALE_AFTER; default 35s)
    #[argh(option, arg_name = "duration")]
    pub(super) stale_after: Option<String>,
}
