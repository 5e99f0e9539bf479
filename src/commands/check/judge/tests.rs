//! The verdicts on facts made up for the purpose.

use std::collections::BTreeMap;
use std::time::Duration;

use time::SignedDuration;

use super::bucket::{named, names};
use super::*;
use crate::commands::check::census::Census;
use crate::commands::check::facts::{Connected, Gap, GapKind};
use crate::commands::check::row::Grade;
use crate::jetstream::bucket::Bucket;
use crate::jetstream::replies::AccountInfo;
use crate::registry::expiry_test::Probed;

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
        state: crate::jetstream::replies::StreamState::default(),
        ts: None,
        leader: Some("n1".into()),
        majority_heard: Duration::ZERO,
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
        logins: Vec::new(),
        now: time::OffsetDateTime::UNIX_EPOCH,
        probe: None,
    }
}

fn with_stream(config: &Value) -> Facts {
    Facts { stream: Ok(Some(info(config))), ..healthy() }
}

fn gap(kind: GapKind) -> Gap {
    Gap { kind, message: "the reason".into(), hint: Some("the hint".into()) }
}

fn found(facts: &Facts, name: &str) -> Row {
    judge(facts, &[]).into_iter().find(|check| check.name == name).unwrap()
}

fn status(facts: &Facts, name: &str) -> Grade {
    found(facts, name).status
}

#[test]
fn healthy_facts_are_ok_throughout() {
    for check in judge(&healthy(), &[]) {
        let hinted = check.name == "markers";
        assert_eq!((check.status, check.hint.is_some()), (Grade::Ok, hinted), "{check:?}");
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
        let checks = judge(&facts, &[]);
        assert!(checks.iter().any(|check| check.status != Grade::Ok), "{checks:?}");
        for check in checks.into_iter().filter(|check| check.name != "markers") {
            let bare = check.status == Grade::Ok || check.skipped;
            assert_eq!(check.hint.is_none(), bare, "{check:?}");
        }
    }
}

#[test]
fn unreachable_is_critical_and_a_refused_login_is_not_known() {
    for (kind, expected) in [
        (GapKind::Failed, Grade::Critical),
        (GapKind::OutOfTime, Grade::Critical),
        (GapKind::Denied, Grade::Unknown),
        (GapKind::NotMade, Grade::Unknown),
    ] {
        let facts = Facts { connection: Err(gap(kind)), ..healthy() };
        let checks = judge(&facts, &[]);
        assert_eq!(checks[0].status, expected, "{kind:?}");
        let rest = checks[1..].iter().filter(|check| check.name != "login");
        assert!(rest.clone().all(|check| check.skipped), "{checks:?}");
        assert_eq!(checks.len(), 11);
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
        assert_eq!(check.status, Grade::Unknown);
        assert_eq!(
            (check.message.as_str(), check.hint.as_deref()),
            ("the reason", Some("the hint"))
        );
    }
    assert_eq!(status(&facts, "server-version"), Grade::Ok);
}

#[test]
fn jetstream_that_does_not_answer_is_told_from_a_refusal() {
    let mut facts = Facts { stream: Err(gap(GapKind::NoJetStream)), ..healthy() };
    facts.account = Err(gap(GapKind::Denied));
    assert_eq!(status(&facts, "jetstream"), Grade::Critical);
    assert!(found(&facts, "bucket").skipped);
}

#[test]
fn the_version_of_the_leader_counts() {
    let old_leader = with_stream(&json!({ "metadata": { "owner": "us" } }));
    let check = found(&old_leader, "server-version");
    assert_eq!(check.status, Grade::Critical);
    assert!(check.message.contains("n1 (leader of the bucket)"), "{}", check.message);

    let mut old_member = healthy();
    if let Ok(connected) = &mut old_member.connection {
        connected.version = "2.10.25".into();
    }
    assert_eq!(status(&old_member, "server-version"), Grade::Warning);

    let account = Ok(AccountInfo::default());
    let old_meta = Facts { account, ..healthy() };
    assert_eq!(status(&old_meta, "server-version"), Grade::Warning);
}

#[test]
fn a_version_that_cannot_be_read_goes_by_the_api_level() {
    let strange = json!({ "metadata": { "_nats.ver": "main-4f1a", "_nats.level": "3" } });
    let mut facts = with_stream(&strange);
    assert_eq!(status(&facts, "server-version"), Grade::Ok);
    facts.account = Err(gap(GapKind::Denied));
    assert_eq!(status(&facts, "server-version"), Grade::Unknown);
    // A vendor's suffix hides no bug.
    let vendor = with_stream(&json!({ "metadata": { "_nats.ver": "2.11.3-vendor.2" } }));
    assert!(found(&vendor, "server-version").message.contains("#6920"));
}

#[test]
fn overdue_entries_are_critical_on_any_version() {
    let census = Census { overdue: 2, most_overdue: Duration::from_secs(70), ..Census::default() };
    let facts = Facts { census: Ok(census), ..healthy() };
    let check = found(&facts, "server-version");
    assert_eq!(check.status, Grade::Critical);
    assert!(check.message.starts_with("2 instances are past their TTL"), "{}", check.message);
    assert!(check.message.contains("by up to 1m10s"), "{}", check.message);
}

#[test]
fn the_clock_warns_from_a_second_on_to_either_side() {
    for (millis, expected) in [
        (999, Grade::Ok),
        (-999, Grade::Ok),
        (1_000, Grade::Warning),
        (-1_000, Grade::Warning),
        (i64::MAX, Grade::Warning),
    ] {
        let facts = Facts { clock: Some(SignedDuration::milliseconds(millis)), ..healthy() };
        assert_eq!(status(&facts, "clock"), expected, "{millis}");
    }
    let facts = Facts { clock: Some(SignedDuration::milliseconds(-250)), ..healthy() };
    let check = found(&facts, "clock");
    assert_eq!(check.message, "this host's clock is 250ms behind the registry's");
    assert_eq!(check.value, Some(json!(-0.25)));
}

#[test]
fn the_value_of_a_time_is_in_seconds() {
    let (put, late) = (Duration::from_millis(2), Duration::from_millis(120));
    let facts = Facts {
        clock: Some(SignedDuration::milliseconds(1_250)),
        probe: Some(Ok(Probed::Expired { put, late })),
        ..with_stream(&json!({ "max_age": 90_000_000_000_u64 }))
    };
    for (name, seconds) in
        [("connection", 0.0004), ("max-age", 90.0), ("clock", 1.25), ("ttl-probe", 0.12)]
    {
        assert_eq!(found(&facts, name).value, Some(json!(seconds)), "{name}");
    }
}

#[test]
fn delete_markers_stretch_where_history_is_not_1() {
    let secs = |n| Some(Duration::from_secs(n));
    let ttls =
        |shortest_ttl, longest_ttl| Census { shortest_ttl, longest_ttl, ..Census::default() };
    for (history, marker, census, words) in [
        (5, 60, ttls(None, None), "stretch a TTL of 30s to that"),
        // Stored as 60 s is what the server made of it.
        (5, 60, ttls(secs(60), secs(60)), "stretch a TTL of 30s to that"),
        (5, 60, ttls(secs(60), secs(300)), "stretch a TTL of 30s to that"),
        (5, 20, ttls(secs(10), secs(30)), "stretch a TTL of 10s to that"),
        (5, 20, ttls(secs(20), secs(30)), "entries have exactly that one"),
        (5, 20, ttls(secs(30), secs(30)), ""),
        (5, 30, ttls(None, None), ""),
        (1, 60, ttls(secs(60), secs(60)), ""),
    ] {
        let stream = json!({
            "max_msgs_per_subject": history,
            "subject_delete_marker_ttl": marker * 1_000_000_000_u64,
        });
        let facts = Facts { census: Ok(census), ..with_stream(&stream) };
        let check = found(&facts, "max-age");
        assert_eq!(check.status == Grade::Warning, !words.is_empty(), "{check:?}");
        assert!(check.message.contains(words), "{check:?}");
        let hint = "aegis-agent init --history 1";
        assert!(words.is_empty() || check.hint.as_deref() == Some(hint), "{check:?}");
    }
}

#[test]
fn a_full_bucket_that_discards_the_old_says_what_it_does() {
    let mut facts = with_stream(&json!({ "max_msgs": 10, "discard": "old" }));
    if let Ok(Some(info)) = &mut facts.stream {
        info.state.messages = 8;
    }
    let check = found(&facts, "bucket");
    assert_eq!(check.status, Grade::Warning);
    assert!(check.message.contains("8 of 10 entries used; when it is, the oldest entries go"));
    assert_eq!(check.hint.as_deref(), Some("raise max_msgs of the stream KV_b, or set it to -1"));
}

#[test]
fn an_account_near_any_of_its_limits_is_a_warning() {
    let used = |used, limit| Used { used, limit };
    for (file, memory, expected) in [
        (used(79, 100), used(0, 100), Grade::Ok),
        (used(80, 100), used(0, 0), Grade::Warning),
        (used(0, 100), used(95, 100), Grade::Warning),
        (used(1 << 50, 0), used(1 << 50, 0), Grade::Ok),
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
        (Probed::Expired { put, late: Duration::from_millis(250) }, Grade::Ok),
        (Probed::Expired { put, late: Duration::from_secs(2) }, Grade::Warning),
        (Probed::Changed { put, stored: "1m".into() }, Grade::Warning),
        (Probed::Changed { put, stored: String::new() }, Grade::Warning),
        (Probed::Lingered { put, late: Duration::from_secs(5) }, Grade::Critical),
        (Probed::Refused("the bucket is full (10077)".into()), Grade::Critical),
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

#[test]
fn a_bucket_with_one_replica_in_a_cluster_is_a_warning() {
    let mut facts = healthy();
    assert_eq!(status(&facts, "bucket"), Grade::Ok);
    facts.connection.as_mut().unwrap().cluster = Some("east".into());
    let check = found(&facts, "bucket");
    assert_eq!(check.status, Grade::Warning);
    assert_eq!(check.hint.as_deref(), Some("aegis-agent init --replicas 3"));
    facts.stream = Ok(Some(info(&json!({ "num_replicas": 3 }))));
    assert_eq!(status(&facts, "bucket"), Grade::Ok);
}

#[test]
fn markers_are_told_and_what_makes_them() {
    let none = found(&healthy(), "markers");
    assert_eq!(none.hint.as_deref(), Some("aegis-agent init --marker-ttl 60s"));
    let minute = json!({ "subject_delete_marker_ttl": 60_000_000_000_u64 });
    let with = found(&with_stream(&minute), "markers");
    assert_eq!((with.hint, with.value), (None, Some(json!(60.0))));
}

#[test]
fn a_login_warns_two_weeks_before_it_ends() {
    use crate::commands::check::facts::{Ending, Whose};
    const DAY: i64 = 86_400;
    for (left, grade) in [
        (15 * DAY, Grade::Ok),
        (13 * DAY, Grade::Warning),
        (60, Grade::Warning),
        (-60, Grade::Critical),
    ] {
        let at = healthy().now + time::Duration::seconds(left);
        let of = |what: &str, whose, at| Ending { what: what.into(), whose, at };
        let ending = of("the user JWT in a", Whose::Ours, Some(at));
        let never = of("the certificate b", Whose::Ours, None);
        let later = of("the server's", Whose::Servers, Some(at + time::Duration::DAY));
        let facts = Facts { logins: vec![never, later.clone(), ending], ..healthy() };
        let check = found(&facts, "login");
        assert_eq!(check.status, grade, "{check:?}");
        assert!(check.message.contains("the user JWT in a") && check.message.contains('Z'));
        let servers = Facts { logins: vec![later], ..healthy() };
        let hint = found(&servers, "login").hint.unwrap_or_default();
        assert!(grade == Grade::Ok || hint.is_empty() || hint.contains("tls block"), "{hint}");
        // It is told without a connection, too.
        let facts = Facts { connection: Err(gap(GapKind::Denied)), ..facts };
        assert_eq!(status(&facts, "login"), grade);
    }
}

#[test]
fn a_round_trip_is_never_nothing() {
    for (micros, text) in [(0, "1us"), (40, "40us"), (4_200, "4.2ms"), (1_500_000, "1.5s")] {
        let mut facts = healthy();
        facts.connection.as_mut().unwrap().round_trip = Duration::from_micros(micros);
        let message = found(&facts, "connection").message;
        assert!(message.ends_with(&format!("round trip {text}")), "{message}");
    }
}
