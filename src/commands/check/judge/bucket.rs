//! Verdicts on the bucket: its room, its settings, and its entries. *Pure*.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::census::{Census, RECENT};
use super::super::facts::{Connected, Facts, Gap, GapKind};
use super::super::row::{Grade, Row, Unit, metric};
use super::{NEARLY_FULL, bytes, room, rounded};
use crate::instance::staleness::DEFAULT_TTL;
use crate::jetstream::bucket::Bucket;
use crate::jetstream::fitness::{self, DROP_MAX_AGE, LOWER_HISTORY, ServerVersion, Unfit};
use crate::jetstream::replies::{StreamInfo, Used};
use crate::jetstream::server_bugs::{BugKind, known_bugs};
use crate::text::duration::{as_setting, words};
use crate::text::printable::clipped;

/// No entry of an agent is shorter, as the server counts it: record, subject, headers
/// and 30 more bytes. Where there is less room no heartbeat fits.
const SHORTEST_ENTRY: u64 = 250;
/// Services that a message names; the rest is counted.
const SERVICES_NAMED: usize = 5;

pub(super) fn bucket(facts: &Facts, connected: &Connected) -> Row {
    const NAME: &str = "bucket";
    let info = match &facts.stream {
        Ok(Some(info)) => info,
        Ok(None) => return Row::of_unfit(NAME, &Unfit::NoBucket(facts.bucket.clone())),
        Err(gap) if gap.kind == GapKind::NoJetStream => {
            return Row::skipped(NAME, "JetStream does not answer");
        }
        // The server says that it cannot be had: no leader, say.
        Err(gap) if gap.kind == GapKind::Failed => {
            return Row::of_gap(NAME, Grade::Critical, gap);
        }
        Err(gap) => return Row::of_gap(NAME, Grade::Unknown, gap),
    };
    if let Err(unfit) = fitness::judge_kind(&facts.bucket, info) {
        return Row::of_unfit(NAME, &unfit);
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
        let by_bytes = by_bytes.filter(|used| used.share() >= by_count.and_then(|u| u.share()));
        let what = match (by_bytes, by_count) {
            (Some(used), _) => room(used),
            (None, count) => {
                count.map_or(String::new(), |u| format!("{} of {} entries used", u.used, u.limit))
            }
        };
        let refuses = info.word("discard") != "old";
        let left = by_bytes.map(|used| used.limit.saturating_sub(used.used));
        // A warning either way: `--probe` is refused in a full one, which is critical.
        let (full, when) = match left {
            Some(left) if refuses && left < SHORTEST_ENTRY => ("full", ""),
            _ => ("nearly full", "when it is, "),
        };
        let follows = match refuses {
            false => "the oldest entries go, alive or not",
            true => "even a refresh is refused and every live service expires",
        };
        message = format!("bucket {} is {full}: {what}; {when}{follows}", facts.bucket);
        Row::new(NAME, Grade::Warning, message).hint(more_room(&facts.bucket, info, by_bytes))
    } else if let Some(cluster) = connected.cluster.as_ref().filter(|_| replicas == 1) {
        let message = format!("{message}; it is lost when one server of the cluster {cluster} is");
        Row::new(NAME, Grade::Warning, message).hint("aegis-agent init --replicas 3")
    } else {
        Row::new(NAME, Grade::Ok, message)
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

pub(super) fn ttl_flag(bucket: &Bucket, info: &StreamInfo, connected: &Connected) -> Row {
    const NAME: &str = "ttl-flag";
    match fitness::judge_flag(bucket, info) {
        Ok(()) => Row::new(NAME, Grade::Ok, "per-message TTL is on (allow_msg_ttl)").value(true),
        Err(unfit) => {
            let check = Row::of_unfit(NAME, &unfit).value(false);
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

pub(super) fn history(bucket: &Bucket, info: &StreamInfo) -> Row {
    const NAME: &str = "history";
    let history = info.history();
    if history == 1 {
        return Row::new(NAME, Grade::Ok, "1 revision a key").value(1);
    }
    let kept = if history < 1 { "all".to_owned() } else { history.to_string() };
    let message = format!(
        "bucket {bucket} keeps {kept} revisions a key: when an entry expires, the one under it is \
         current again, and one without TTL comes back for ever; to lower it drops the older ones"
    );
    let message = match info.flag("allow_rollup_hdrs") {
        true => message,
        false => format!("{message}; {}", fitness::NO_ROLLUPS),
    };
    Row::new(NAME, Grade::Warning, message).hint(LOWER_HISTORY).value(history)
}

pub(super) fn max_age(info: &StreamInfo, census: Option<&Census>) -> Row {
    const NAME: &str = "max-age";
    let nanos = |name| Duration::from_nanos(u64::try_from(info.number(name)).unwrap_or(0));
    let (age, marker) = (nanos("max_age"), nanos("subject_delete_marker_ttl"));
    let ttl = census.and_then(|census| census.longest_ttl).unwrap_or(DEFAULT_TTL);
    // Not the longest TTL: that may be one that markers have stretched.
    let shortest = census.and_then(|census| census.shortest_ttl);
    let least = shortest.map_or(DEFAULT_TTL, |shortest| shortest.min(DEFAULT_TTL));
    let stretched = !marker.is_zero() && shortest == Some(marker);
    let check = if !age.is_zero() && age <= ttl {
        Row::new(NAME, Grade::Warning, fitness::cut_short(age, ttl)).hint(DROP_MAX_AGE)
    } else if info.history() != 1 && (marker > least || stretched) {
        let whose = if marker > least {
            format!("a TTL of {}", as_setting(least))
        } else {
            "shorter TTLs (entries have exactly that one)".to_owned()
        };
        Row::new(NAME, Grade::Warning, fitness::stretched(marker, &whose)).hint(LOWER_HISTORY)
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
        Row::new(NAME, Grade::Ok, format!("{age}{marker}"))
    };
    check.value(rounded(age.as_secs_f64(), 1e3))
}

pub(super) fn legacy_entries(census: &Result<Census, Gap>) -> Row {
    const NAME: &str = "legacy-entries";
    let census = match census {
        Ok(census) => census,
        Err(gap) => return Row::of_gap(NAME, Grade::Unknown, gap),
    };
    let total = census.legacy_total();
    let instances =
        format!("{} instance{}", census.instances, if census.instances == 1 { "" } else { "s" });
    let cleanup = "aegis-agent cleanup --only no-ttl";
    let recent = format!("the last {}", words(RECENT));
    let check = if total == 0 {
        let message = match census.instances {
            0 => "no instances".to_owned(),
            _ => format!("{instances}, each with a TTL"),
        };
        Row::new(NAME, Grade::Ok, message)
    } else if census.rewritten.is_empty() {
        let message = format!(
            "{total} of {instances} would live for ever (no Nats-TTL): {}; leftovers, none was \
             written in {recent}",
            named(&census.legacy)
        );
        Row::new(NAME, Grade::Warning, message).hint(cleanup)
    } else {
        let count: u64 = census.rewritten.values().sum();
        let message = format!(
            "{total} of {instances} would live for ever (no Nats-TTL): {}; {count} of them written \
             in {recent}: an old SDK is still running",
            named(&census.legacy)
        );
        Row::new(NAME, Grade::Warning, message).hint(format!(
            "update the SDK of {} first, which writes without Nats-TTL; then: {cleanup}",
            names(&census.rewritten)
        ))
    };
    let number = |n: u64| n as f64;
    check
        .value(total)
        .metric(metric(
            "instance_entries",
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

/// The `nats` CLI 0.5.1 edits a stream of a bucket on a terminal only, and a
/// bucket that has per-message TTL only where it has delete markers, too (10052).
fn more_room(bucket: &Bucket, info: &StreamInfo, bytes: Option<Used>) -> String {
    let Some(used) = bytes else {
        return format!("raise max_msgs of the stream {}, or set it to -1", bucket.stream());
    };
    if info.number("subject_delete_marker_ttl") > 0 {
        return format!("nats kv edit {bucket} --max-bucket-size={}", used.limit.saturating_mul(2));
    }
    format!(
        "the nats CLI edits buckets with delete markers only, so first: {LOWER_HISTORY} \
         --marker-ttl 60s"
    )
}

/// Not having them is a choice: a bucket of an older registry has none.
pub(super) fn markers(info: &StreamInfo) -> Row {
    const NAME: &str = "markers";
    let nanos = u64::try_from(info.number("subject_delete_marker_ttl")).unwrap_or(0);
    let check = match Duration::from_nanos(nanos) {
        Duration::ZERO if info.history() == 1 => Row::new(
            NAME,
            Grade::Ok,
            "no delete markers: nothing tells a watcher of the bucket that an entry has expired",
        )
        .hint("aegis-agent init --marker-ttl 60s"),
        Duration::ZERO => {
            Row::new(NAME, Grade::Ok, "no delete markers, which history above 1 does not permit")
        }
        ttl => Row::new(
            NAME,
            Grade::Ok,
            format!("a delete marker tells for {} that an entry has expired", as_setting(ttl)),
        ),
    };
    check.value(rounded(nanos as f64 / 1e9, 1e3))
}

/// `orders-api 30, web 20, and 7 more services`: those with most first.
pub(super) fn named(counts: &BTreeMap<String, u64>) -> String {
    let mut most: Vec<_> = counts.iter().collect();
    most.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    listed(most.iter().map(|(name, count)| format!("{} {count}", clipped(name, 64))).collect())
}

pub(super) fn names(counts: &BTreeMap<String, u64>) -> String {
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
