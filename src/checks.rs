//! The verdicts of `check`: facts in, ten checks out. *Pure*.
//!
//! What `run` would refuse is said in the words of `fitness`, with the same
//! hint. A check that cannot be made because an earlier one failed is
//! `unknown` and says so. How the facts are come by is for `commands::check`,
//! and how they are printed for `report`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use time::SignedDuration;

use crate::bugs::{Bug, Kind as BugKind, known_bugs};
use crate::census::{Census, RECENT};
use crate::duration::{as_setting, words};
use crate::fitness::{self, ServerVersion, Unfit};
use crate::kv::{AccountInfo, Bucket, StreamInfo, Used};
use crate::staleness::DEFAULT_TTL;
use crate::table::{clipped, printable};

/// A clock this far off is worth a warning.
const CLOCK_LIMIT: Duration = Duration::from_secs(1);
/// A bucket or an account with this share of its room used is nearly full.
const NEARLY_FULL: f64 = 0.8;
/// Expiry comes 4 to 250 ms late on a healthy server (CONTRACT section 4);
/// this leaves room for a busy one.
const LATE_LIMIT: Duration = Duration::from_secs(2);
/// Services that a message names; the rest is counted.
const SERVICES_NAMED: usize = 5;
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
    /// The server went silent, or the connection was lost, during the check.
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
        match &gap.hint {
            Some(hint) => check.hint(hint),
            None => check,
        }
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
    let mut checks = vec![connection(facts)];
    let Ok(connected) = &facts.connection else {
        let rest = ["server-version", "jetstream", "bucket", "ttl-flag", "history", "max-age"];
        let probe = facts.probe.is_some().then_some("ttl-probe");
        let names = rest.into_iter().chain(["legacy-entries", "clock"]).chain(probe);
        checks.extend(names.map(|name| Check::skipped(name, "no connection to NATS")));
        return checks;
    };
    checks.extend([server_version(facts, connected), jetstream(facts, connected), bucket(facts)]);
    match usable(facts) {
        Ok(info) => checks.extend([
            ttl_flag(&facts.bucket, info, connected),
            history(&facts.bucket, info),
            max_age(&facts.bucket, info, facts.census.as_ref().ok()),
            legacy_entries(&facts.bucket, &facts.census),
        ]),
        Err(because) => checks.extend(
            ["ttl-flag", "history", "max-age", "legacy-entries"]
                .map(|name| Check::skipped(name, because)),
        ),
    }
    checks.push(clock(facts));
    if let Some(probe) = &facts.probe {
        checks.push(ttl_probe(probe));
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

fn connection(facts: &Facts) -> Check {
    const NAME: &str = "connection";
    let connected = match &facts.connection {
        Ok(connected) => connected,
        // With credentials that are not taken we do not know how others fare.
        Err(gap) if gap.kind == GapKind::Denied => {
            return Check::of_gap(NAME, Status::Unknown, gap);
        }
        Err(gap) if gap.kind == GapKind::NotMade => {
            return Check::of_gap(NAME, Status::Unknown, gap);
        }
        Err(gap) => return Check::of_gap(NAME, Status::Critical, gap),
    };
    let cluster = match &connected.cluster {
        Some(cluster) => format!(", cluster {cluster}"),
        None => String::new(),
    };
    let millis = connected.round_trip.as_secs_f64() * 1e3;
    let message = format!(
        "{}{cluster}, nats-server {}, round trip {millis:.1} ms",
        connected.place, connected.version
    );
    Check::new(NAME, Status::Ok, message).value(rounded(millis, 1e3)).metric(metric(
        "round_trip",
        Unit::Seconds,
        connected.round_trip.as_secs_f64(),
        "From a connection to the server's greeting",
    ))
}

/// The version that counts is the leader's; where there is no bucket yet, that
/// of the server that answers.
fn server_version(facts: &Facts, connected: &Connected) -> Check {
    const NAME: &str = "server-version";
    let info = facts.stream.as_ref().ok().and_then(Option::as_ref);
    let fit = match info {
        Some(info) => fitness::judge_leader(info, &connected.version),
        None => fitness::judge_server(&connected.version),
    };
    let version = info.and_then(StreamInfo::leader_version).unwrap_or(&connected.version);
    let level = facts.account.as_ref().ok().map(|account| account.level);
    if let Err(unfit) = fit {
        let check = Check::of_unfit(NAME, &unfit);
        return check.value(version);
    }
    let leads = match info {
        Some(_) => "leads the bucket",
        None => "answers; there is no bucket whose leader would count",
    };
    let about = match info.and_then(StreamInfo::leader_level).or(level) {
        Some(level) => format!("nats-server {version} {leads}, API level {level}"),
        None => format!("nats-server {version} {leads}"),
    };
    let parsed = ServerVersion::parse(version);
    let known = parsed.map(|version| known_bugs(version, info.map_or(1, StreamInfo::history)));
    let known = known.unwrap_or_default();

    let census = facts.census.as_ref().ok();
    if let Some(census) = census.filter(|census| census.overdue > 0) {
        let message = format!(
            "{} past their TTL and still there, by up to {} (nats-server {version}); {}",
            if census.overdue == 1 {
                "1 instance is".to_owned()
            } else {
                format!("{} instances are", census.overdue)
            },
            words(census.most_overdue),
            if known.is_empty() {
                "no bug of this version is known to do that".to_owned()
            } else {
                symptoms(&known)
            }
        );
        let cleanup = format!("aegis-agent cleanup --bucket {} --only expired", facts.bucket);
        let hint = match fix(&known) {
            Some(fixed) => format!(
                "restart nats-server and upgrade it to {fixed} or later; until then: {cleanup}"
            ),
            None => format!("restart nats-server; until then: {cleanup}"),
        };
        return Check::new(NAME, Status::Critical, message).hint(hint).value(version);
    }
    if let Some(fixed) = fix(&known) {
        let only_history = known.iter().all(|bug| bug.kind == BugKind::WheelLeaks);
        let hint = if only_history {
            format!("{} (or upgrade nats-server to {fixed} or later)", lower_history(&facts.bucket))
        } else {
            format!("upgrade nats-server to {fixed} or later (2.12.8 has no known TTL bugs)")
        };
        let message = format!("{about}: {}", symptoms(&known));
        return Check::new(NAME, Status::Warning, message).hint(hint).value(version);
    }
    if let Some(older) = older_member(connected, level, parsed) {
        let message = format!(
            "{about}, but {older} is older than 2.11: led by such a server, nothing expires"
        );
        return Check::new(NAME, Status::Warning, message)
            .hint("upgrade every nats-server of the cluster to 2.11 or later")
            .value(version);
    }
    match (parsed, level) {
        (None, None | Some(0)) => {
            Check::new(NAME, Status::Unknown, format!("version {version:?} cannot be read"))
                .hint("aegis-agent check --probe (tries whether entries expire)")
                .value(version)
        }
        _ => Check::new(NAME, Status::Ok, about).value(version),
    }
}

/// A member of the cluster, other than the bucket's leader, that does not know
/// TTLs: the one that answers, or the one that leads JetStream.
fn older_member(
    connected: &Connected,
    level: Option<u32>,
    leader: Option<ServerVersion>,
) -> Option<String> {
    let old = |text: &str| ServerVersion::parse(text).is_some_and(|version| !version.has_ttl());
    if old(&connected.version) {
        return Some(format!("{} ({})", connected.place, connected.version));
    }
    let knows_ttl = leader.is_some_and(|leader| leader.has_ttl());
    (level == Some(0) && knows_ttl).then(|| "the leader of JetStream (API level 0)".to_owned())
}

/// `symptom (mended in 2.11.10, nats-server #7344); ...`
fn symptoms(bugs: &[Bug]) -> String {
    let each = bugs.iter().map(|bug| {
        format!("{} (mended in {}, nats-server {})", bug.symptom, bug.fixed_in, bug.source)
    });
    each.collect::<Vec<_>>().join("; ")
}

/// The first version without any of these bugs.
fn fix(bugs: &[Bug]) -> Option<&'static str> {
    bugs.iter().map(|bug| bug.fixed_in).max_by_key(|fixed| ServerVersion::parse(fixed))
}

fn lower_history(bucket: &Bucket) -> String {
    format!("nats stream edit {} --max-msgs-per-subject=1", bucket.stream())
}

fn jetstream(facts: &Facts, connected: &Connected) -> Check {
    const NAME: &str = "jetstream";
    let off = |gap: &Gap| gap.kind == GapKind::NoJetStream;
    let stream_gap = facts.stream.as_ref().err().filter(|gap| off(gap));
    let account = match (&facts.account, stream_gap) {
        (Ok(account), _) => account,
        (Err(gap), _) | (_, Some(gap)) if off(gap) => {
            let message = if connected.jetstream {
                "JetStream is on for this server, and does not answer this account"
            } else {
                "JetStream is not enabled on this server"
            };
            return Check::new(NAME, Status::Critical, format!("{message} ({})", gap.message))
                .hint("enable JetStream in the server's configuration, for this account too");
        }
        (Err(gap), _) => return Check::of_gap(NAME, Status::Unknown, gap),
    };
    let (fullest, text) = account.rooms().into_iter().fold(
        (0.0_f64, String::new()),
        |(fullest, text), (name, used)| {
            let comma = if text.is_empty() { "" } else { ", " };
            let Some(share) = used.share() else {
                return (fullest, text);
            };
            (fullest.max(share), format!("{text}{comma}{name} {}", room(used)))
        },
    );
    let limits = if text.is_empty() { "no limit of storage".to_owned() } else { text };
    let message = format!("enabled for this account, API level {}: {limits}", account.level);
    let check = if fullest >= NEARLY_FULL {
        let message = format!(
            "the account is nearly full ({limits}): when it is, no heartbeat is stored and every \
             service expires"
        );
        Check::new(NAME, Status::Warning, message)
            .hint("raise the account's JetStream limits, or remove streams that are not needed")
    } else {
        Check::new(NAME, Status::Ok, message)
    };
    match fullest {
        share if share > 0.0 => check.value(rounded(share, 1e4)),
        _ => check,
    }
}

/// `12.0 MiB of 1.0 GiB used`
fn room(used: Used) -> String {
    format!("{} of {} used", bytes(used.used), bytes(used.limit))
}

fn bucket(facts: &Facts) -> Check {
    const NAME: &str = "bucket";
    let info = match &facts.stream {
        Ok(Some(info)) => info,
        Ok(None) => return Check::of_unfit(NAME, &Unfit::NoBucket(facts.bucket.clone())),
        Err(gap) if gap.kind == GapKind::NoJetStream => {
            return Check::skipped(NAME, "JetStream does not answer");
        }
        Err(gap) => return Check::of_gap(NAME, Status::Unknown, gap),
    };
    if let Err(unfit) = fitness::judge_kind(&facts.bucket, info) {
        return Check::of_unfit(NAME, &unfit);
    }
    let limit = |name: &str| u64::try_from(info.number(name)).ok().filter(|limit| *limit > 0);
    let by_bytes = limit("max_bytes").map(|limit| Used { used: info.state.bytes, limit });
    let by_count = limit("max_msgs").map(|limit| Used { used: info.state.messages, limit });
    let replicas = info.number("num_replicas").max(1);
    let mut message = format!(
        "bucket {}: {replicas} replica{}, {} storage, {} entr{}, {}",
        facts.bucket,
        if replicas == 1 { "" } else { "s" },
        info.word("storage"),
        info.state.messages,
        if info.state.messages == 1 { "y" } else { "ies" },
        match by_bytes {
            Some(used) => room(used),
            None => bytes(info.state.bytes),
        }
    );
    let share = |used: Option<Used>| used.and_then(|used| used.share()).unwrap_or(0.0_f64);
    let mut check = if share(by_bytes).max(share(by_count)) >= NEARLY_FULL {
        let (what, option) = if share(by_bytes) >= share(by_count) {
            (by_bytes.map(room), format!("--max-bytes={}", by_bytes.map_or(0, |u| u.limit * 2)))
        } else {
            let used = by_count.map(|u| format!("{} of {} entries used", u.used, u.limit));
            (used, format!("--max-msgs={}", by_count.map_or(0, |u| u.limit * 2)))
        };
        message = format!(
            "bucket {} is nearly full: {}; {}",
            facts.bucket,
            what.unwrap_or_default(),
            match info.word("discard") {
                "old" => "when it is, the oldest entries go, alive or not",
                _ => "when it is, even a refresh is refused and every live service expires",
            }
        );
        Check::new(NAME, Status::Warning, message)
            .hint(format!("nats stream edit {} {option}", facts.bucket.stream()))
    } else {
        Check::new(NAME, Status::Ok, message)
    };
    let number = |n: u64| n as f64;
    let mut size = metric(
        "bucket_size",
        Unit::Bytes,
        number(info.state.bytes),
        "What is stored in the bucket",
    );
    if let Some(used) = by_bytes {
        size = size.warns(format!("{:.0}", number(used.limit) * NEARLY_FULL));
        check = check.metric(metric(
            "bucket_limit",
            Unit::Bytes,
            number(used.limit),
            "What may be stored in the bucket",
        ));
    }
    check.metrics.insert(0, size);
    check.value(info.state.bytes)
}

fn ttl_flag(bucket: &Bucket, info: &StreamInfo, connected: &Connected) -> Check {
    const NAME: &str = "ttl-flag";
    match fitness::judge_flag(bucket, info) {
        Ok(()) => Check::new(NAME, Status::Ok, "per-message TTL is on (allow_msg_ttl)").value(true),
        Err(unfit) => {
            let check = Check::of_unfit(NAME, &unfit).value(false);
            // Where `init` would refuse as well, the first step comes first.
            if let Err(too_old) = fitness::judge_leader(info, &connected.version) {
                return check.hint(format!("{}; then: {}", too_old.hint(), unfit.hint()));
            }
            let version = info.leader_version().and_then(ServerVersion::parse);
            let bugs = version.map(|version| known_bugs(version, 1)).unwrap_or_default();
            if bugs.iter().any(|bug| bug.kind == BugKind::ForgottenByCrash) {
                let first = "upgrade nats-server to 2.11.2 or later, which can switch it on";
                return check.hint(format!("{first}; then: {}", unfit.hint()));
            }
            check
        }
    }
}

fn history(bucket: &Bucket, info: &StreamInfo) -> Check {
    const NAME: &str = "history";
    let history = info.history();
    if history == 1 {
        return Check::new(NAME, Status::Ok, "1 revision a key").value(1);
    }
    let kept = if history < 1 { "all".to_owned() } else { history.to_string() };
    let message = format!(
        "bucket {bucket} keeps {kept} revisions a key: when an entry expires, the one under it is \
         current again, and one without TTL comes back for ever"
    );
    Check::new(NAME, Status::Warning, message)
        .hint(format!("{} (drops the old revisions)", lower_history(bucket)))
        .value(history)
}

fn max_age(bucket: &Bucket, info: &StreamInfo, census: Option<&Census>) -> Check {
    const NAME: &str = "max-age";
    let nanos = |name| Duration::from_nanos(u64::try_from(info.number(name)).unwrap_or(0));
    let (age, marker) = (nanos("max_age"), nanos("subject_delete_marker_ttl"));
    let ttl = census.and_then(|census| census.longest_ttl).unwrap_or(DEFAULT_TTL);
    let check = if !age.is_zero() && age <= ttl {
        let message = format!(
            "max_age {} is not longer than the TTL of {}: it ends entries first, alive or not",
            as_setting(age),
            as_setting(ttl)
        );
        Check::new(NAME, Status::Warning, message)
            .hint(format!("nats stream edit {} --max-age=0s", bucket.stream()))
    } else if info.history() != 1 && marker > ttl {
        let message = format!(
            "delete markers of {} stretch a TTL of {} to that, because history is not 1: \
             the dead stay listed",
            as_setting(marker),
            as_setting(ttl)
        );
        Check::new(NAME, Status::Warning, message).hint(lower_history(bucket))
    } else {
        let age = match age {
            Duration::ZERO => "no max_age".to_owned(),
            age => {
                format!("max_age {}, longer than the TTL of {}", as_setting(age), as_setting(ttl))
            }
        };
        let marker = match marker {
            Duration::ZERO => String::new(),
            marker => format!("; delete markers stay {}", as_setting(marker)),
        };
        Check::new(NAME, Status::Ok, format!("{age}{marker}"))
    };
    check.value(rounded(age.as_secs_f64(), 1e3))
}

fn legacy_entries(bucket: &Bucket, census: &Result<Census, Gap>) -> Check {
    const NAME: &str = "legacy-entries";
    let census = match census {
        Ok(census) => census,
        Err(gap) => return Check::of_gap(NAME, Status::Unknown, gap),
    };
    let total = census.legacy_total();
    let instances =
        format!("{} instance{}", census.instances, if census.instances == 1 { "" } else { "s" });
    let cleanup = format!("aegis-agent cleanup --bucket {bucket} --only no-ttl");
    let recent = format!("the last {}", words(RECENT));
    let check = if total == 0 {
        let message = match census.instances {
            0 => "no instances".to_owned(),
            _ => format!("{instances}, each with a TTL"),
        };
        Check::new(NAME, Status::Ok, message)
    } else if census.rewritten.is_empty() {
        let message = format!(
            "{total} of {instances} would live for ever (no Nats-TTL): {}; leftovers, none was \
             written in {recent}",
            named(&census.legacy)
        );
        Check::new(NAME, Status::Warning, message).hint(cleanup)
    } else {
        let count: u64 = census.rewritten.values().sum();
        let message = format!(
            "{total} of {instances} would live for ever (no Nats-TTL): {}; {count} of them written \
             in {recent}: an old SDK is still running",
            named(&census.legacy)
        );
        Check::new(NAME, Status::Warning, message).hint(format!(
            "update the SDK of {} first, which writes without Nats-TTL; then: {cleanup}",
            names(&census.rewritten)
        ))
    };
    let number = |n: u64| n as f64;
    check
        .value(total)
        .metric(metric(
            "instances",
            Unit::Count,
            number(census.instances),
            "Instance entries in the bucket",
        ))
        .metric(
            metric(
                "legacy_entries",
                Unit::Count,
                number(total),
                "Instance entries that would live for ever",
            )
            .warns("0"),
        )
        .metric(
            metric(
                "overdue_entries",
                Unit::Count,
                number(census.overdue),
                "Instance entries past their TTL and still there",
            )
            .alarms("0"),
        )
}

/// `orders-api 30, web 20, and 7 more services`: those with most first.
fn named(counts: &BTreeMap<String, u64>) -> String {
    let mut most: Vec<_> = counts.iter().collect();
    most.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    listed(most.iter().map(|(name, count)| format!("{} {count}", clipped(name, 64))).collect())
}

fn names(counts: &BTreeMap<String, u64>) -> String {
    listed(counts.keys().map(|name| clipped(name, 64)).collect())
}

fn listed(mut names: Vec<String>) -> String {
    let more = names.len().saturating_sub(SERVICES_NAMED);
    names.truncate(SERVICES_NAMED);
    match more {
        0 => names.join(", "),
        1 => format!("{}, and 1 more service", names.join(", ")),
        more => format!("{}, and {more} more services", names.join(", ")),
    }
}

fn clock(facts: &Facts) -> Check {
    const NAME: &str = "clock";
    let Some(offset) = facts.clock else {
        return Check::skipped(NAME, "the server tells its time only with the bucket");
    };
    let millis = i64::try_from(offset.whole_milliseconds()).unwrap_or(i64::MAX);
    let side = if millis < 0 { "behind" } else { "ahead of" };
    let by = match millis.unsigned_abs() {
        millis @ 0..10_000 => format!("{millis} ms"),
        millis => words(Duration::from_millis(millis)),
    };
    let message = format!("this host's clock is {by} {side} the registry's");
    let check = if offset.unsigned_abs() >= CLOCK_LIMIT {
        let message = format!("{message}: programs that compare times here see wrong ages");
        Check::new(NAME, Status::Warning, message)
            .hint("timedatectl (is this host's clock synchronised, and the server's?)")
    } else {
        Check::new(NAME, Status::Ok, message)
    };
    let offset = metric(
        "clock_offset",
        Unit::Seconds,
        offset.as_seconds_f64(),
        "How far this host's clock is ahead of the registry's",
    );
    check.value(millis).metric(offset.warns("-1:1"))
}

fn ttl_probe(probe: &Result<Probed, Gap>) -> Check {
    const NAME: &str = "ttl-probe";
    let millis = |d: Duration| rounded(d.as_secs_f64() * 1e3, 10.0);
    let put_metric = |put: &Duration| {
        let help = "From a put with a TTL to its acknowledgement";
        metric("probe_put", Unit::Seconds, put.as_secs_f64(), help)
    };
    let late_metric = |late: &Duration| {
        let help = "How long after its TTL the probe was gone";
        metric("probe_expiry_delay", Unit::Seconds, late.as_secs_f64(), help)
            .warns(LATE_LIMIT.as_secs().to_string())
    };
    let (check, put, late) = match probe {
        Err(gap) if gap.kind == GapKind::NotMade => return Check::skipped(NAME, &gap.message),
        Err(gap) => return Check::of_gap(NAME, Status::Unknown, gap),
        Ok(Probed::Refused(why)) => {
            let message =
                format!("the server does not store a probe: {}", clipped(why, LONGEST_TEXT));
            return Check::new(NAME, Status::Critical, message)
                .hint("heartbeats meet the same: see the other checks");
        }
        Ok(Probed::Expired { put, late }) => {
            let message = format!(
                "a 1 s TTL was obeyed: put in {} ms, gone {} ms after its end",
                millis(*put),
                late.as_millis()
            );
            let check = if *late < LATE_LIMIT {
                Check::new(NAME, Status::Ok, message)
            } else {
                let message = format!("{message}: 4 to 250 ms are usual");
                Check::new(NAME, Status::Warning, message)
                    .hint("look at the load of the server, and at the server-version check")
            };
            (check.value(millis(*late)), put, Some(late))
        }
        Ok(Probed::Changed { put, stored }) => {
            let stored = match stored.as_str() {
                "" => "without one".to_owned(),
                stored => format!("with {stored:?}"),
            };
            let message = format!("a 1 s TTL was not taken: the server stored the probe {stored}");
            let check = Check::new(NAME, Status::Warning, message)
                .hint("see the max-age check: delete markers stretch TTLs where history is not 1");
            (check, put, None)
        }
        Ok(Probed::Lingered { put, late }) => {
            let message =
                format!("a 1 s TTL was not obeyed: still there {} after its end", words(*late));
            let check = Check::new(NAME, Status::Critical, message).hint(
                "restart nats-server; if it does so again upgrade it (2.12.8 has no known TTL bugs)",
            );
            (check, put, Some(late))
        }
    };
    let check = check.metric(put_metric(put));
    match late {
        Some(late) => check.metric(late_metric(late)),
        None => check,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn info(config: &Value) -> StreamInfo {
        let mut whole = json!({
            "name": "KV_b", "subjects": ["$KV.b.>"], "max_msgs_per_subject": 1, "storage": "file",
            "num_replicas": 1, "allow_msg_ttl": true,
            "metadata": { "_nats.ver": "2.12.8", "_nats.level": "3" },
        });
        for (name, value) in config.as_object().unwrap() {
            whole[name] = value.clone();
        }
        StreamInfo {
            is_mirror: false,
            config: whole,
            state: crate::kv::StreamState::default(),
            ts: None,
            leader: Some("n1".into()),
        }
    }

    fn healthy() -> Facts {
        Facts {
            bucket: Bucket::new("b").unwrap(),
            connection: Ok(Connected {
                place: "127.0.0.1:4222".into(),
                cluster: None,
                version: "2.12.8".into(),
                jetstream: true,
                round_trip: Duration::from_micros(400),
            }),
            account: Ok(AccountInfo { level: 3, ..AccountInfo::default() }),
            stream: Ok(Some(info(&json!({})))),
            census: Ok(Census::default()),
            clock: Some(SignedDuration::ZERO),
            probe: None,
        }
    }

    fn with_stream(config: &Value) -> Facts {
        Facts { stream: Ok(Some(info(config))), ..healthy() }
    }

    fn gap(kind: GapKind) -> Gap {
        Gap { kind, message: "the reason".into(), hint: Some("the hint".into()) }
    }

    fn found(facts: &Facts, name: &str) -> Check {
        judge(facts).into_iter().find(|check| check.name == name).unwrap()
    }

    fn status(facts: &Facts, name: &str) -> Status {
        found(facts, name).status
    }

    #[test]
    fn healthy_facts_are_ok_throughout() {
        for check in judge(&healthy()) {
            assert_eq!((check.status, &check.hint), (Status::Ok, &None), "{check:?}");
        }
    }

    #[test]
    fn a_check_that_is_not_ok_has_a_hint_unless_it_was_skipped() {
        for facts in [
            with_stream(&json!({ "allow_msg_ttl": false, "max_msgs_per_subject": -1 })),
            with_stream(&json!({ "metadata": {}, "max_age": 1_000_000_000_u64 })),
            with_stream(&json!({ "sealed": true })),
            Facts { stream: Ok(None), ..healthy() },
            Facts { stream: Err(gap(GapKind::Denied)), ..healthy() },
            Facts { account: Err(gap(GapKind::OutOfTime)), ..healthy() },
            Facts { connection: Err(gap(GapKind::Failed)), ..healthy() },
            Facts { census: Err(gap(GapKind::Denied)), ..healthy() },
            Facts { clock: Some(SignedDuration::seconds(-5)), ..healthy() },
            Facts { probe: Some(Err(gap(GapKind::NotMade))), ..healthy() },
        ] {
            let checks = judge(&facts);
            assert!(checks.iter().any(|check| check.status != Status::Ok), "{checks:?}");
            for check in checks {
                let bare = check.status == Status::Ok || check.skipped;
                assert_eq!(check.hint.is_none(), bare, "{check:?}");
            }
        }
    }

    #[test]
    fn unreachable_is_critical_and_a_refused_login_is_not_known() {
        for (kind, expected) in [
            (GapKind::Failed, Status::Critical),
            (GapKind::OutOfTime, Status::Critical),
            (GapKind::Denied, Status::Unknown),
            (GapKind::NotMade, Status::Unknown),
        ] {
            let facts = Facts { connection: Err(gap(kind)), ..healthy() };
            let checks = judge(&facts);
            assert_eq!(checks[0].status, expected, "{kind:?}");
            assert!(checks[1..].iter().all(|check| check.skipped), "{checks:?}");
            assert_eq!(checks.len(), 9);
        }
    }

    #[test]
    fn what_was_refused_is_unknown_wherever_it_is_missed() {
        let facts = Facts {
            account: Err(gap(GapKind::Denied)),
            census: Err(gap(GapKind::Denied)),
            ..healthy()
        };
        for name in ["jetstream", "legacy-entries"] {
            let check = found(&facts, name);
            assert_eq!(check.status, Status::Unknown);
            assert_eq!(
                (check.message.as_str(), check.hint.as_deref()),
                ("the reason", Some("the hint"))
            );
        }
        assert_eq!(status(&facts, "server-version"), Status::Ok);
    }

    #[test]
    fn jetstream_that_does_not_answer_is_told_from_a_refusal() {
        let mut facts = Facts { stream: Err(gap(GapKind::NoJetStream)), ..healthy() };
        facts.account = Err(gap(GapKind::Denied));
        assert_eq!(status(&facts, "jetstream"), Status::Critical);
        assert!(found(&facts, "bucket").skipped);
    }

    #[test]
    fn the_version_of_the_leader_counts() {
        let old_leader = with_stream(&json!({ "metadata": { "owner": "us" } }));
        let check = found(&old_leader, "server-version");
        assert_eq!(check.status, Status::Critical);
        assert!(check.message.contains("n1 (leader of the bucket)"), "{}", check.message);

        let mut old_member = healthy();
        if let Ok(connected) = &mut old_member.connection {
            connected.version = "2.10.25".into();
        }
        assert_eq!(status(&old_member, "server-version"), Status::Warning);

        let account = Ok(AccountInfo::default());
        let old_meta = Facts { account, ..healthy() };
        assert_eq!(status(&old_meta, "server-version"), Status::Warning);
    }

    #[test]
    fn a_version_that_cannot_be_read_goes_by_the_api_level() {
        let strange = json!({ "metadata": { "_nats.ver": "main-4f1a", "_nats.level": "3" } });
        let mut facts = with_stream(&strange);
        assert_eq!(status(&facts, "server-version"), Status::Ok);
        facts.account = Err(gap(GapKind::Denied));
        assert_eq!(status(&facts, "server-version"), Status::Unknown);
        // A vendor's suffix hides no bug.
        let vendor = with_stream(&json!({ "metadata": { "_nats.ver": "2.11.3-vendor.2" } }));
        assert!(found(&vendor, "server-version").message.contains("#6920"));
    }

    #[test]
    fn overdue_entries_are_critical_on_any_version() {
        let census =
            Census { overdue: 2, most_overdue: Duration::from_secs(70), ..Census::default() };
        let facts = Facts { census: Ok(census), ..healthy() };
        let check = found(&facts, "server-version");
        assert_eq!(check.status, Status::Critical);
        assert!(check.message.starts_with("2 instances are past their TTL"), "{}", check.message);
        assert!(check.message.contains("by up to 1m10s"), "{}", check.message);
    }

    #[test]
    fn the_clock_warns_from_a_second_on_to_either_side() {
        for (millis, expected) in [
            (999, Status::Ok),
            (-999, Status::Ok),
            (1_000, Status::Warning),
            (-1_000, Status::Warning),
            (i64::MAX, Status::Warning),
        ] {
            let facts = Facts { clock: Some(SignedDuration::milliseconds(millis)), ..healthy() };
            assert_eq!(status(&facts, "clock"), expected, "{millis}");
        }
        let facts = Facts { clock: Some(SignedDuration::milliseconds(-250)), ..healthy() };
        let check = found(&facts, "clock");
        assert_eq!(check.message, "this host's clock is 250 ms behind the registry's");
        assert_eq!(check.value, Some(json!(-250)));
    }

    #[test]
    fn a_full_bucket_that_discards_the_old_says_what_it_does() {
        let mut facts = with_stream(&json!({ "max_msgs": 10, "discard": "old" }));
        if let Ok(Some(info)) = &mut facts.stream {
            info.state.messages = 8;
        }
        let check = found(&facts, "bucket");
        assert_eq!(check.status, Status::Warning);
        assert!(check.message.contains("8 of 10 entries used; when it is, the oldest entries go"));
        assert_eq!(check.hint.as_deref(), Some("nats stream edit KV_b --max-msgs=20"));
    }

    #[test]
    fn an_account_near_any_of_its_limits_is_a_warning() {
        let used = |used, limit| Used { used, limit };
        for (file, memory, expected) in [
            (used(79, 100), used(0, 100), Status::Ok),
            (used(80, 100), used(0, 0), Status::Warning),
            (used(0, 100), used(95, 100), Status::Warning),
            (used(1 << 50, 0), used(1 << 50, 0), Status::Ok),
        ] {
            let account = AccountInfo { level: 3, file: vec![file], memory: vec![memory] };
            let facts = Facts { account: Ok(account), ..healthy() };
            assert_eq!(status(&facts, "jetstream"), expected, "{file:?} {memory:?}");
        }
    }

    #[test]
    fn the_probe_is_judged_by_what_was_seen() {
        let put = Duration::from_millis(5);
        for (probed, expected) in [
            (Probed::Expired { put, late: Duration::from_millis(250) }, Status::Ok),
            (Probed::Expired { put, late: Duration::from_secs(2) }, Status::Warning),
            (Probed::Changed { put, stored: "1m".into() }, Status::Warning),
            (Probed::Changed { put, stored: String::new() }, Status::Warning),
            (Probed::Lingered { put, late: Duration::from_secs(5) }, Status::Critical),
            (Probed::Refused("the bucket is full (10077)".into()), Status::Critical),
        ] {
            let facts = Facts { probe: Some(Ok(probed.clone())), ..healthy() };
            assert_eq!(status(&facts, "ttl-probe"), expected, "{probed:?}");
        }
    }

    #[test]
    fn many_services_are_named_by_their_number() {
        let counts: BTreeMap<String, u64> =
            (1..=8).map(|i| (format!("s{i}"), if i == 8 { 9 } else { 1 })).collect();
        assert_eq!(named(&counts), "s8 9, s1 1, s2 1, s3 1, s4 1, and 3 more services");
        assert_eq!(names(&counts), "s1, s2, s3, s4, s5, and 3 more services");
    }

    #[test]
    fn nothing_that_a_server_says_reaches_a_terminal_raw() {
        let strange = json!({ "metadata": { "_nats.ver": "2.12.8-\u{1b}[2J" } });
        let check = found(&with_stream(&strange), "server-version");
        assert!(check.message.contains("\\u{1b}"), "{}", check.message);
    }

    #[test]
    fn sizes_are_read_by_people() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1 << 30, "1.0 GiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
