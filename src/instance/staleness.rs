//! When is an entry stale or removable, and why (CONTRACT section 2).
//!
//! Two words, each with one rule for every verb. *Stale*: not alive any more,
//! as far as the registry's clock can tell; readers hide it. *Removable*: what
//! `cleanup` takes, which is whatever is stale and three reasons more. Takes a
//! record, what the server says about how it was stored, and the registry's
//! clock; gives every reason that applies. *Pure*.

use std::error::Error;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use time::{OffsetDateTime, SignedDuration};

use crate::instance::record::{Record, Status};
use crate::text::duration;

/// How long an entry lives without a heartbeat, unless told otherwise.
pub const DEFAULT_TTL: Duration = Duration::from_secs(30);

/// The time between two heartbeats, unless told otherwise: a third of the TTL,
/// and never more than this, because readers do not know an entry's TTL.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);

/// The age beyond which a heartbeat is too old, unless told otherwise: the
/// default TTL and 5 s. The SDK and the monitor keep to it, too.
pub const DEFAULT_STALE_AFTER: Duration = Duration::from_secs(35);

/// What an interval has to keep away from the stale limit: a heartbeat that
/// comes so much late must not make a living instance look stale.
pub const INTERVAL_MARGIN: Duration = Duration::from_secs(5);

/// How long after its TTL an entry may still be there before it is stale.
/// Healthy servers remove it 4 to 250 ms late (CONTRACT section 4).
pub const EXPIRY_GRACE: Duration = Duration::from_secs(5);

/// How far `lastHeartbeat` and the store time may lie apart.
pub const SKEW_LIMIT: Duration = Duration::from_secs(5);

/// One reason why an entry is stale or removable, in the order in which they
/// are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The last heartbeat is longer ago than the limit.
    HeartbeatTooOld,
    /// The instance says that it is unhealthy.
    StatusUnhealthy,
    /// The instance says that it has shut down.
    StatusShutdown,
    /// Stored without a TTL: it would live for ever.
    NoTtl,
    /// Its TTL ran out and the server has not removed it.
    Expired,
}

impl Reason {
    /// All reasons, in order.
    pub const ALL: [Reason; 5] = [
        Reason::HeartbeatTooOld,
        Reason::StatusUnhealthy,
        Reason::StatusShutdown,
        Reason::NoTtl,
        Reason::Expired,
    ];

    /// The word for it, in options and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::HeartbeatTooOld => "heartbeat-too-old",
            Reason::StatusUnhealthy => "status-unhealthy",
            Reason::StatusShutdown => "status-shutdown",
            Reason::NoTtl => "no-ttl",
            Reason::Expired => "expired",
        }
    }

    /// Whether it makes an entry stale, and not only removable: the filter that
    /// the monitor applies, and what the server should have done.
    pub fn is_stale(self) -> bool {
        matches!(self, Reason::HeartbeatTooOld | Reason::Expired)
    }
}

/// Whether readers hide an entry with these reasons. With any reason at all it
/// is removable.
pub fn is_stale(reasons: &[Reason]) -> bool {
    reasons.iter().any(|reason| reason.is_stale())
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(text: &str) -> Result<Reason, UnknownReason> {
        Reason::ALL.into_iter().find(|reason| reason.as_str() == text).ok_or(UnknownReason)
    }
}

/// The text is not the word for a reason; `Display` names them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownReason;

impl fmt::Display for UnknownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = Reason::ALL.map(Reason::as_str).join(", ");
        write!(f, "not a reason (one of {words})")
    }
}

impl Error for UnknownReason {}

/// How long the server was asked to keep an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ttl {
    /// For ever.
    Never,
    /// This long after it was stored; whole seconds.
    After(Duration),
}

/// What the server says about how an entry was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// When, by the server's clock.
    pub at: OffsetDateTime,
    /// The TTL it was stored with.
    pub ttl: Ttl,
}

/// The TTL that a `Nats-TTL` header asks for, as a server of 2.11 reads it:
/// a Go duration or whole seconds, at least 1 s, the fraction cut off
/// (`parseMessageTTL` in nats-server's `server/stream.go`). No header, an
/// empty one and `never` mean [`Ttl::Never`]; so does all that such a server
/// refuses, because only one of 2.10 can have stored it, and obeys nothing.
pub fn stored_ttl(header: Option<&str>) -> Ttl {
    let text = header.unwrap_or_default().trim_start_matches(' ');
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let secs = if is_number {
        // Read as an i64 there.
        text.parse::<i64>().ok().and_then(|n| u64::try_from(n).ok())
    } else {
        let unsigned = text.strip_prefix('+').unwrap_or(text);
        duration::parse_go(unsigned).ok().map(|d| d.as_secs())
    };
    match secs {
        None | Some(0) => Ttl::Never,
        Some(secs) => Ttl::After(Duration::from_secs(secs)),
    }
}

/// Every reason why the entry is stale or removable at `now`, the registry's
/// clock; none if it is alive and well. Exactly at a limit is not yet beyond
/// it, and a heartbeat in the future is not too old.
pub fn judge(
    record: &Record,
    stored: &Stored,
    now: OffsetDateTime,
    stale_after: Duration,
) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if age(record, now) > stale_after {
        reasons.push(Reason::HeartbeatTooOld);
    }
    match record.status {
        Status::Active | Status::Standby | Status::Unknown(_) => {}
        Status::Unhealthy => reasons.push(Reason::StatusUnhealthy),
        Status::Shutdown => reasons.push(Reason::StatusShutdown),
    }
    if stored.ttl == Ttl::Never {
        reasons.push(Reason::NoTtl);
    }
    if overdue(stored, now).is_some() {
        reasons.push(Reason::Expired);
    }
    reasons
}

/// How long ago the server should have removed the entry, where it is longer
/// than [`EXPIRY_GRACE`]: a server with a bug, or one that is frozen.
pub fn overdue(stored: &Stored, now: OffsetDateTime) -> Option<Duration> {
    let left = ttl_left(stored, now)?;
    let over = left.is_negative().then(|| left.unsigned_abs())?;
    (over > EXPIRY_GRACE).then_some(over)
}

/// Whether the entry's own TTL is still running: somebody stored it so lately
/// that it goes by itself if nobody refreshes it, whatever it says.
pub fn is_beating(stored: &Stored, now: OffsetDateTime) -> bool {
    ttl_left(stored, now).is_some_and(|left| left.is_positive())
}

/// How far the writer's clock was ahead of the server's (negative: behind)
/// when the entry was stored, if by more than [`SKEW_LIMIT`].
pub fn clock_skew(record: &Record, stored: &Stored) -> Option<SignedDuration> {
    let skew = record.last_heartbeat - stored.at;
    (skew.unsigned_abs() > SKEW_LIMIT).then_some(skew)
}

/// How long ago the last heartbeat was; negative if it lies in the future.
pub fn age(record: &Record, now: OffsetDateTime) -> SignedDuration {
    now - record.last_heartbeat
}

/// How long until the server removes the entry (negative: how long ago it
/// should have); nothing if it lives for ever.
pub fn ttl_left(stored: &Stored, now: OffsetDateTime) -> Option<SignedDuration> {
    match stored.ttl {
        Ttl::Never => None,
        Ttl::After(ttl) => {
            let ttl = SignedDuration::try_from(ttl).unwrap_or(SignedDuration::MAX);
            Some(ttl.saturating_sub(now - stored.at))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Map;
    use time::{PlainDateTime, UtcOffset};

    const NOW: OffsetDateTime = match OffsetDateTime::from_unix_timestamp(1_795_426_651) {
        Ok(now) => now,
        Err(_) => OffsetDateTime::UNIX_EPOCH,
    };

    const NANO: SignedDuration = SignedDuration::nanoseconds(1);

    fn record(status: Status, last_heartbeat: OffsetDateTime) -> Record {
        Record {
            service_name: "orders-api".to_owned(),
            instance_id: "host-1".to_owned(),
            version: "1.4.2".to_owned(),
            status,
            last_heartbeat,
            sticky_active_group: None,
            metadata: Map::new(),
        }
    }

    fn stored(at: OffsetDateTime) -> Stored {
        Stored { at, ttl: Ttl::After(DEFAULT_TTL) }
    }

    fn verdict(record: &Record, stored: &Stored) -> Vec<Reason> {
        judge(record, stored, NOW, DEFAULT_STALE_AFTER)
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        assert_eq!(DEFAULT_INTERVAL * 3, DEFAULT_TTL);
        assert_eq!(DEFAULT_TTL + Duration::from_secs(5), DEFAULT_STALE_AFTER);
    }

    #[test]
    fn an_entry_with_a_fresh_heartbeat_and_a_ttl_is_alive() {
        for status in [Status::Active, Status::Standby] {
            assert_eq!(verdict(&record(status, NOW), &stored(NOW)), []);
        }
    }

    // "heartbeat-too-old | now - lastHeartbeat > 35 s"
    #[test]
    fn a_heartbeat_is_too_old_beyond_the_limit_and_not_at_it() {
        let limit = SignedDuration::seconds(35);
        for (ago, expected) in [
            (SignedDuration::ZERO, vec![]),
            (limit - NANO, vec![]),
            (limit, vec![]),
            (limit + NANO, vec![Reason::HeartbeatTooOld]),
            (SignedDuration::days(10_000), vec![Reason::HeartbeatTooOld]),
            (SignedDuration::seconds(-36), vec![]),
            (SignedDuration::days(-10_000), vec![]),
        ] {
            let record = record(Status::Active, NOW - ago);
            assert_eq!(verdict(&record, &stored(NOW)), expected, "{ago}");
        }
    }

    #[test]
    fn the_limit_of_the_heartbeat_is_an_argument() {
        let record = record(Status::Active, NOW - SignedDuration::seconds(100));
        let judge_after = |secs| judge(&record, &stored(NOW), NOW, Duration::from_secs(secs));
        assert_eq!(judge_after(100), []);
        assert_eq!(judge_after(99), [Reason::HeartbeatTooOld]);
        assert_eq!(judge_after(0), [Reason::HeartbeatTooOld]);
    }

    #[test]
    fn the_status_is_a_reason_of_its_own() {
        for (status, reason) in [
            (Status::Unhealthy, Reason::StatusUnhealthy),
            (Status::Shutdown, Reason::StatusShutdown),
        ] {
            assert_eq!(verdict(&record(status, NOW), &stored(NOW)), [reason]);
        }
    }

    // "A record whose status is a word that we do not know (a newer SDK's) is
    // [...] treated like `ACTIVE`"
    #[test]
    fn a_status_that_we_do_not_know_is_no_reason() {
        let draining = || Status::parse("DRAINING").unwrap();
        assert_eq!(verdict(&record(draining(), NOW), &stored(NOW)), []);
        let old = record(draining(), NOW - SignedDuration::seconds(36));
        assert_eq!(verdict(&old, &stored(NOW)), [Reason::HeartbeatTooOld]);
    }

    // "stale: [...] Readers hide it. [...] removable: what cleanup takes:
    // whatever is stale, and status-unhealthy, status-shutdown, no-ttl"
    #[test]
    fn stale_and_removable_are_two_words() {
        let stale = Reason::ALL.map(|reason| is_stale(&[reason]));
        assert_eq!(stale, [true, false, false, false, true]);
        assert!(!is_stale(&[]));
        assert!(is_stale(&[Reason::StatusUnhealthy, Reason::NoTtl, Reason::Expired]));
    }

    #[test]
    fn an_entry_beats_until_its_own_ttl_is_over() {
        let beats = |ago: SignedDuration| is_beating(&stored(NOW - ago), NOW);
        let ttl = SignedDuration::seconds(30);
        assert!(beats(SignedDuration::ZERO) && beats(ttl - NANO));
        assert!(!beats(ttl) && !beats(ttl + NANO));
        assert!(beats(SignedDuration::seconds(-60)), "stored in the future");
        assert!(!is_beating(&Stored { at: NOW, ttl: Ttl::Never }, NOW));
    }

    #[test]
    fn an_entry_without_a_ttl_is_removable_however_fresh() {
        let stored = Stored { at: NOW, ttl: Ttl::Never };
        assert_eq!(verdict(&record(Status::Active, NOW), &stored), [Reason::NoTtl]);
    }

    // "its own TTL ran out more than 5 s ago (store time + Nats-TTL)"
    #[test]
    fn an_entry_is_expired_five_seconds_after_its_ttl() {
        let limit = SignedDuration::seconds(35);
        for (ago, expected) in [
            (SignedDuration::seconds(31), vec![]),
            (limit, vec![]),
            (limit + NANO, vec![Reason::Expired]),
            (SignedDuration::seconds(-1_000), vec![]),
        ] {
            let record = record(Status::Active, NOW);
            assert_eq!(verdict(&record, &stored(NOW - ago)), expected, "{ago}");
        }
    }

    #[test]
    fn all_reasons_that_apply_are_given_in_order() {
        let old = NOW - SignedDuration::hours(1);
        assert_eq!(
            verdict(&record(Status::Unhealthy, old), &stored(old)),
            [Reason::HeartbeatTooOld, Reason::StatusUnhealthy, Reason::Expired]
        );
        let forever = Stored { at: old, ttl: Ttl::Never };
        assert_eq!(
            verdict(&record(Status::Shutdown, old), &forever),
            [Reason::HeartbeatTooOld, Reason::StatusShutdown, Reason::NoTtl]
        );
        assert!(Reason::ALL.is_sorted());
    }

    #[test]
    fn an_offset_in_a_time_changes_nothing() {
        let east = UtcOffset::from_hms(14, 0, 0).unwrap();
        let record = record(Status::Active, NOW.to_offset(east));
        assert_eq!(verdict(&record, &stored(NOW.to_offset(east))), []);
        assert_eq!(age(&record, NOW), SignedDuration::ZERO);
    }

    #[test]
    fn ttl_headers_mean_what_the_server_makes_of_them() {
        for (header, secs) in [
            ("30s", 30),
            ("30", 30),
            ("1", 1),
            ("1s", 1),
            ("1m30s", 90),
            ("1.9s", 1),
            ("1999ms", 1),
            ("0.5m", 30),
            ("24h", 86_400),
            ("+30s", 30),
            (" 30s", 30),
            ("1000000us", 1),
            ("007", 7),
            ("86400", 86_400),
            ("9223372036854775807", i64::MAX as u64),
        ] {
            let expected = Ttl::After(Duration::from_secs(secs));
            assert_eq!(stored_ttl(Some(header)), expected, "{header:?}");
        }
    }

    #[test]
    fn headers_that_only_an_old_server_stores_are_no_ttl() {
        assert_eq!(stored_ttl(None), Ttl::Never);
        for header in [
            "",
            "  ",
            "never",
            "NEVER",
            "Never",
            "0",
            "00",
            "0s",
            "999ms",
            "500ms",
            "-1",
            "-30s",
            "+30",
            "--30s",
            "+-30s",
            "1.5",
            "30 s",
            "30s ",
            "1d",
            "soon",
            "30S",
            "1e3s",
            "9223372036854775808",
            "99999999999999999999999999",
            "9999999999h",
            "\u{1b}",
        ] {
            assert_eq!(stored_ttl(Some(header)), Ttl::Never, "{header:?}");
        }
    }

    #[test]
    fn skew_is_told_beyond_five_seconds_either_way() {
        let limit = SignedDuration::seconds(5);
        for (ahead, expected) in [
            (SignedDuration::ZERO, None),
            (limit, None),
            (-limit, None),
            (limit + NANO, Some(limit + NANO)),
            (-limit - NANO, Some(-limit - NANO)),
            (SignedDuration::seconds(-60), Some(SignedDuration::seconds(-60))),
        ] {
            let record = record(Status::Active, NOW + ahead);
            assert_eq!(clock_skew(&record, &stored(NOW)), expected, "{ahead}");
        }
    }

    #[test]
    fn what_is_left_of_a_ttl_goes_below_zero() {
        let left = |ago| ttl_left(&stored(NOW - SignedDuration::seconds(ago)), NOW);
        assert_eq!(left(0), Some(SignedDuration::seconds(30)));
        assert_eq!(left(30), Some(SignedDuration::ZERO));
        assert_eq!(left(31), Some(SignedDuration::seconds(-1)));
        let forever = Stored { at: NOW, ttl: Ttl::Never };
        assert_eq!(ttl_left(&forever, NOW), None);
    }

    #[test]
    fn the_ends_of_time_are_judged_without_panic() {
        let mut times = vec![NOW, OffsetDateTime::UNIX_EPOCH];
        for end in [PlainDateTime::MIN, PlainDateTime::MAX] {
            for hours in [-25, 0, 25] {
                times.push(end.assume_offset(UtcOffset::from_hms(hours, 0, 0).unwrap()));
            }
        }
        let durations = [Duration::ZERO, DEFAULT_TTL, Duration::MAX];
        for &last_heartbeat in &times {
            let record = record(Status::Active, last_heartbeat);
            for &at in &times {
                for ttl in durations {
                    let stored = Stored { at, ttl: Ttl::After(ttl) };
                    clock_skew(&record, &stored);
                    for &now in &times {
                        age(&record, now);
                        let left = ttl_left(&stored, now);
                        assert!(left.is_some());
                        let reasons = judge(&record, &stored, now, Duration::MAX);
                        assert!(!is_beating(&stored, now) || overdue(&stored, now).is_none());
                        assert!(!reasons.contains(&Reason::HeartbeatTooOld));
                        assert!(ttl < Duration::MAX || reasons.is_empty());
                    }
                }
            }
        }
    }

    #[test]
    fn the_words_for_reasons_are_those_of_the_contract() {
        let words =
            ["heartbeat-too-old", "status-unhealthy", "status-shutdown", "no-ttl", "expired"];
        assert_eq!(Reason::ALL.map(Reason::as_str), words);
        for reason in Reason::ALL {
            assert_eq!(reason.to_string().parse(), Ok(reason));
        }
        assert_eq!("".parse::<Reason>(), Err(UnknownReason));
        assert_eq!(
            UnknownReason.to_string(),
            "not a reason (one of heartbeat-too-old, status-unhealthy, status-shutdown, no-ttl, expired)"
        );
    }
}
