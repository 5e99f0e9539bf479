//! Verdicts on the server: who answers, its version, JetStream, its clock.
//! *Pure*.

use std::time::Duration;

use super::super::facts::{Connected, Ending, Facts, Gap, GapKind, Whose};
use super::super::row::{Grade, Row, Unit, metric};
use super::{NEARLY_FULL, room, rounded};
use crate::jetstream::fitness::{self, LOWER_HISTORY, ServerVersion, WITHOUT_BUGS};
use crate::jetstream::replies::StreamInfo;
use crate::jetstream::server_bugs::{Bug, BugKind, fix, known_bugs};
use crate::nats::login::FRESH_IN_CONTEXT;
use crate::registry::failure::WITHOUT_JETSTREAM;
use crate::text::duration::words;
use crate::text::time::format_time_to_second;

/// A clock this far off is worth a warning.
const CLOCK_LIMIT: Duration = Duration::from_secs(1);
/// A login that ends within this is worth a warning.
const LOGIN_LIMIT: time::Duration = time::Duration::days(14);

pub(super) fn connection(facts: &Facts) -> Row {
    const NAME: &str = "connection";
    let connected = match &facts.connection {
        Ok(connected) => connected,
        // With credentials that are not taken we do not know how others fare.
        Err(gap) if gap.kind == GapKind::Denied => {
            return Row::of_gap(NAME, Grade::Unknown, gap);
        }
        Err(gap) if gap.kind == GapKind::NotMade => {
            return Row::of_gap(NAME, Grade::Unknown, gap);
        }
        Err(gap) => return Row::of_gap(NAME, Grade::Critical, gap),
    };
    let cluster = match &connected.cluster {
        Some(cluster) => format!(", cluster {cluster}"),
        None => String::new(),
    };
    let seconds = connected.round_trip.as_secs_f64();
    let message = format!(
        "{}{cluster}, nats-server {}, round trip {}",
        connected.place,
        connected.version,
        // Never nothing.
        words(connected.round_trip.max(Duration::from_micros(1)))
    );
    Row::new(NAME, Grade::Ok, message).value(rounded(seconds, 1e6)).metric(metric(
        "round_trip",
        Unit::Seconds,
        seconds,
        "From a PING to the server's PONG",
    ))
}

/// The version that counts is the leader's; where there is no bucket yet, that
/// of the server that answers.
pub(super) fn server_version(facts: &Facts, connected: &Connected) -> Row {
    const NAME: &str = "server-version";
    let info = facts.stream.as_ref().ok().and_then(Option::as_ref);
    let fit = match info {
        Some(info) => fitness::judge_leader(info, &connected.version),
        None => fitness::judge_server(&connected.version),
    };
    let version = info.and_then(StreamInfo::leader_version).unwrap_or(&connected.version);
    let level = facts.account.as_ref().ok().map(|account| account.level);
    if let Err(unfit) = fit {
        let check = Row::of_unfit(NAME, &unfit);
        return check.value(version);
    }
    let leads = match &facts.stream {
        Ok(Some(_)) => "leads the bucket",
        Ok(None) => "answers; there is no bucket whose leader would count",
        Err(_) => "answers; which one leads the bucket is not known",
    };
    let about = match info.and_then(StreamInfo::leader_level).or(level) {
        Some(level) => format!("nats-server {version} {leads}, API level {level}"),
        None => format!("nats-server {version} {leads}"),
    };
    let parsed = ServerVersion::parse(version);
    let known = known(facts, connected);

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
        let cleanup = "aegis-agent cleanup --only expired";
        let hint = match fix(&known) {
            Some(fixed) => format!(
                "restart nats-server and upgrade it to {fixed} or later; until then: {cleanup}"
            ),
            None => format!("restart nats-server; until then: {cleanup}"),
        };
        return Row::new(NAME, Grade::Critical, message).hint(hint).value(version);
    }
    if let Some(fixed) = fix(&known) {
        let only_history = known.iter().all(|bug| bug.kind == BugKind::WheelLeaks);
        let hint = if only_history {
            format!("upgrade nats-server to {fixed} or later, or: {LOWER_HISTORY}")
        } else {
            format!("upgrade nats-server to {fixed} or later; {WITHOUT_BUGS}")
        };
        let message = format!("{about}: {}", symptoms(&known));
        return Row::new(NAME, Grade::Warning, message).hint(hint).value(version);
    }
    if let Some(older) = older_member(connected, level, parsed) {
        let message = format!(
            "{about}, but {older} is older than 2.11: led by such a server, nothing expires"
        );
        return Row::new(NAME, Grade::Warning, message)
            .hint("upgrade every nats-server of the cluster to 2.11.2 or later")
            .value(version);
    }
    match (parsed, level) {
        (None, None | Some(0)) => {
            Row::new(NAME, Grade::Unknown, format!("version {version:?} cannot be read"))
                .hint("aegis-agent check --probe")
                .value(version)
        }
        _ => Row::new(NAME, Grade::Ok, about).value(version),
    }
}

/// The known bugs of the version that counts, as far as this bucket meets them.
pub(super) fn known(facts: &Facts, connected: &Connected) -> Vec<Bug> {
    let info = facts.stream.as_ref().ok().and_then(Option::as_ref);
    let version = info.and_then(StreamInfo::leader_version).unwrap_or(&connected.version);
    let version = ServerVersion::parse(version);
    let bugs = version.map(|version| known_bugs(version, info.map_or(1, StreamInfo::history)));
    bugs.unwrap_or_default()
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

/// `symptom (fixed in 2.11.10, nats-server #7344); ...`
fn symptoms(bugs: &[Bug]) -> String {
    let each = bugs.iter().map(|bug| {
        format!("{} (fixed in {}, nats-server {})", bug.symptom, bug.fixed_in, bug.source)
    });
    each.collect::<Vec<_>>().join("; ")
}

pub(super) fn jetstream(facts: &Facts, connected: &Connected) -> Row {
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
            let hint = match (connected.jetstream, facts.bucket.domain()) {
                (false, None) => WITHOUT_JETSTREAM,
                _ => "enable JetStream in the server's configuration, for this account too",
            };
            return Row::new(NAME, Grade::Critical, format!("{message} ({})", gap.message))
                .hint(hint);
        }
        (Err(gap), _) => return Row::of_gap(NAME, Grade::Unknown, gap),
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
        Row::new(NAME, Grade::Warning, message)
            .hint("raise the account's JetStream limits, or remove streams that are not needed")
    } else {
        Row::new(NAME, Grade::Ok, message)
    };
    match fullest {
        share if share > 0.0 => check.value(rounded(share, 1e4)),
        _ => check,
    }
}

/// When our login ends. Nobody else warns, and every program with that login is
/// shut out at once.
pub(super) fn login(facts: &Facts) -> Row {
    const NAME: &str = "login";
    let now = match facts.clock {
        Some(ahead) => facts.now.checked_sub(ahead).unwrap_or(facts.now),
        None => facts.now,
    };
    let ends = facts.logins.iter().filter_map(|login| login.at.map(|at| (at, login)));
    let Some((at, Ending { what, whose, .. })) = ends.min_by_key(|(at, _)| *at) else {
        let message = match facts.logins.as_slice() {
            [] => "nothing in the login ends by itself".to_owned(),
            [one, ..] => format!("{} never ends", one.what),
        };
        return Row::new(NAME, Grade::Ok, message);
    };
    let left = at - now;
    let when = format_time_to_second(at);
    let (grade, message) = if left.is_negative() || left.is_zero() {
        let ago = words(left.unsigned_abs());
        (Grade::Critical, format!("{what} ended at {when}, {ago} ago"))
    } else {
        let message = format!("{what} ends at {when}, in {}", words(left.unsigned_abs()));
        (if left < LOGIN_LIMIT { Grade::Warning } else { Grade::Ok }, message)
    };
    let days = left.as_seconds_f64();
    let check = Row::new(NAME, grade, message).value(rounded(days, 1.0)).metric(
        metric("login_left", Unit::Seconds, days, "Time until the login ends").warns("1209600:"),
    );
    match (grade, whose) {
        (Grade::Ok, _) => check,
        (_, Whose::Ours) => {
            check.hint("put a fresh one into that file: it is read again, and no restart is needed")
        }
        (_, Whose::OursInContext) => check.hint(FRESH_IN_CONTEXT),
        (_, Whose::Servers) => {
            check.hint("a fresh one has to go into the files of the tls block of nats-server, which reads them when it is reloaded")
        }
    }
}

pub(super) fn clock(facts: &Facts) -> Row {
    const NAME: &str = "clock";
    let Some(offset) = facts.clock else {
        return Row::skipped(NAME, "the server tells its time only with the bucket");
    };
    let millis = i64::try_from(offset.whole_milliseconds()).unwrap_or(i64::MAX);
    let side = if millis < 0 { "behind" } else { "ahead of" };
    let by = words(Duration::from_millis(millis.unsigned_abs()));
    let message = format!("this host's clock is {by} {side} the registry's");
    let check = if offset.unsigned_abs() >= CLOCK_LIMIT {
        let message = format!("{message}: programs that compare times here see wrong ages");
        Row::new(NAME, Grade::Warning, message)
            .hint("is this host's clock synchronised, and the server's? timedatectl tells")
    } else {
        Row::new(NAME, Grade::Ok, message)
    };
    let seconds = offset.as_seconds_f64();
    let help = "How far this host's clock is ahead of the registry's";
    let offset = metric("clock_offset", Unit::Seconds, seconds, help);
    check.value(rounded(seconds, 1e3)).metric(offset.warns("-1:1"))
}
