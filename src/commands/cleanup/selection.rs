//! What a cleanup takes, what it leaves alone, and what became of it. *Pure*.
//!
//! An entry goes for the reasons of `staleness`, narrowed by the options; what
//! cannot be read goes only by name; everything else in the bucket is not
//! ours. Where beating entries are to be spared, none goes whose own TTL is
//! still running. How a removal is sent and waited for is for `remover` to say.

use std::time::Duration;

use time::{OffsetDateTime, SignedDuration};

use crate::error::{Failure, Kind};
use crate::instance::entry::{Entry, Unreadable};
use crate::instance::record::{self, ServiceName};
use crate::instance::staleness::{Reason, Ttl, clock_skew, is_beating, judge};
use crate::jetstream::bucket;
use crate::jetstream::replies::ApiError;

/// The word where an entry goes because it cannot be read.
pub const UNREADABLE: &str = "unreadable";

/// What is to go.
#[derive(Debug)]
pub struct Selection {
    /// Age from which a heartbeat is too old.
    pub stale_after: Duration,
    /// Stale for one of these reasons; empty for any.
    pub only: Vec<Reason>,
    /// Of this service.
    pub service: Option<ServiceName>,
    /// What cannot be read, too.
    pub unreadable: bool,
    /// Nothing whose own TTL is still running.
    pub spare_beating: bool,
}

/// What is to become of one entry.
#[derive(Debug)]
pub enum Choice {
    /// Not an instance: a definition, a delete marker. Never ours.
    NotOurs,
    /// Alive, or not selected.
    Keep,
    /// It would go, and stays because its own TTL is still running: its key.
    Beating(String),
    /// It goes.
    Remove(Target),
    /// It cannot be read.
    Unreadable(Unreadable, Unread),
}

/// What is to become of an entry that cannot be read.
#[derive(Debug)]
pub enum Unread {
    /// Not selected.
    Keep,
    /// As in [`Choice::Beating`].
    Beating,
    /// It goes.
    Remove(Target),
    /// It was to go. Its key is no plain key: as a filter it could match
    /// others, or cannot be written at all.
    Stuck,
}

/// An entry that was judged: exactly this revision goes, with what lies under
/// it. Its key is safe in a filter.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The key.
    pub key: String,
    /// The revision that was judged.
    pub revision: u64,
    /// The service, as far as it is known.
    pub service_name: String,
    /// The instance, as far as it is known.
    pub instance_id: String,
    /// Why; empty where it cannot be read.
    pub reasons: Vec<Reason>,
    /// How far its writer's clock was off.
    pub skew: Option<SignedDuration>,
    /// It was stored with a TTL.
    pub has_ttl: bool,
}

impl Target {
    /// The reasons in words, `clock-skew` last.
    pub fn words(&self) -> Vec<&'static str> {
        let mut words: Vec<_> = self.reasons.iter().map(|reason| reason.as_str()).collect();
        if words.is_empty() {
            words.push(UNREADABLE);
        }
        if self.skew.is_some() {
            words.push("clock-skew");
        }
        words
    }
}

impl Selection {
    /// Judges an entry at `now`, the registry's clock.
    pub fn judge(&self, entry: Entry, now: OffsetDateTime) -> Choice {
        let record = match entry.instance_to_judge() {
            None => return Choice::NotOurs,
            Some(Ok(record)) => record,
            Some(Err(unreadable)) => {
                return Choice::Unreadable(unreadable, self.unread(&entry, now));
            }
        };
        let wanted = self.service.as_ref();
        if wanted.is_some_and(|service| service.as_str() != record.service_name) {
            return Choice::Keep;
        }
        let reasons = judge(&record, &entry.stored, now, self.stale_after);
        let selected = |reason: &Reason| self.only.is_empty() || self.only.contains(reason);
        if !reasons.iter().any(selected) {
            return Choice::Keep;
        }
        if self.spares(&entry, now) {
            return Choice::Beating(entry.key);
        }
        Choice::Remove(Target {
            has_ttl: has_ttl(&entry),
            skew: clock_skew(&record, &entry.stored),
            key: entry.key,
            revision: entry.revision,
            service_name: record.service_name,
            instance_id: record.instance_id,
            reasons,
        })
    }

    fn spares(&self, entry: &Entry, now: OffsetDateTime) -> bool {
        self.spare_beating && is_beating(&entry.stored, now)
    }

    /// What becomes of an unreadable entry: it goes if that is asked for and
    /// its key can be put into a filter.
    fn unread(&self, entry: &Entry, now: OffsetDateTime) -> Unread {
        let (service, instance) = record::names_in_key(&entry.key).unwrap_or_default();
        let other = |wanted: &ServiceName| wanted.as_str() != service;
        if !self.unreadable || self.service.as_ref().is_some_and(other) {
            return Unread::Keep;
        }
        if self.spares(entry, now) {
            return Unread::Beating;
        }
        if !record::is_instance_key(&entry.key) || !bucket::key_is_safe(&entry.key) {
            return Unread::Stuck;
        }
        Unread::Remove(Target {
            key: entry.key.clone(),
            revision: entry.revision,
            service_name: service.to_owned(),
            instance_id: instance.to_owned(),
            reasons: Vec::new(),
            skew: None,
            has_ttl: has_ttl(entry),
        })
    }
}

fn has_ttl(entry: &Entry) -> bool {
    entry.stored.ttl != Ttl::Never
}

/// What follows from a server's reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It is gone, and we did it.
    Removed,
    /// It was refreshed meanwhile, or went by itself.
    Spared,
    /// The reply leaves it open: count what is left of the key.
    Look,
}

/// After the server purged `purged` revisions up to the one that was judged.
/// `in_doubt`: this may have been done by an earlier request of ours, whose
/// reply was lost.
pub fn after_purge(history: i64, purged: u64, in_doubt: bool) -> Next {
    match purged {
        0 if in_doubt => Next::Look,
        0 => Next::Spared,
        _ if history == 1 => Next::Removed,
        // Older revisions may have gone from under one that was refreshed.
        _ => Next::Look,
    }
}

/// After a purge, when `left` revisions of the key are left: they are later
/// than the one that was judged.
pub fn after_look(left: u64) -> Next {
    if left == 0 { Next::Removed } else { Next::Spared }
}

/// A refusal that meets every entry alike: no use in going on.
pub fn refusal(error: &ApiError) -> Option<Failure> {
    let hint = match error.err_code {
        ApiError::NO_PURGE => {
            "removal needs a bucket without deny_purge, and a server never switches that off \
             again: copy the entries that live into a new bucket, such as aegis-agent init makes"
        }
        ApiError::SEALED => "a sealed bucket is never written to again: give another --bucket",
        _ => return None,
    };
    Some(Failure::new(Kind::Refused, format!("nothing can be removed: {error}")).with_hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::entry::Marker;
    use crate::instance::staleness::{Stored, Ttl};
    use crate::text::time::format_time;

    const NOW: OffsetDateTime = match OffsetDateTime::from_unix_timestamp(1_795_426_651) {
        Ok(now) => now,
        Err(_) => OffsetDateTime::UNIX_EPOCH,
    };

    fn selection() -> Selection {
        Selection {
            stale_after: Duration::from_secs(35),
            only: Vec::new(),
            service: None,
            unreadable: false,
            spare_beating: false,
        }
    }

    fn entry(key: &str, heartbeat_ago: i64, status: &str) -> Entry {
        let at = format_time(NOW - SignedDuration::seconds(heartbeat_ago));
        Entry {
            key: key.to_owned(),
            revision: 7,
            stored: Stored { at: NOW, ttl: Ttl::After(Duration::from_secs(30)) },
            marker: None,
            value: format!(
                "{{\"version\":\"1.0.0\",\"status\":\"{status}\",\"lastHeartbeat\":\"{at}\"}}"
            )
            .into_bytes(),
        }
    }

    fn goes(selection: &Selection, entry: Entry) -> Option<Vec<&'static str>> {
        match selection.judge(entry, NOW) {
            Choice::Remove(target) | Choice::Unreadable(_, Unread::Remove(target)) => {
                Some(target.words())
            }
            _ => None,
        }
    }

    const KEY: &str = "service-instances__web__a";

    #[test]
    fn what_is_stale_goes_with_every_reason_and_the_skew() {
        assert_eq!(goes(&selection(), entry(KEY, 0, "ACTIVE")), None);
        assert_eq!(goes(&selection(), entry(KEY, 0, "UNHEALTHY")), Some(vec!["status-unhealthy"]));
        assert_eq!(
            goes(&selection(), entry(KEY, 60, "SHUTDOWN")),
            Some(vec!["heartbeat-too-old", "status-shutdown", "clock-skew"])
        );
    }

    #[test]
    fn what_is_no_instance_is_not_ours_however_old() {
        for key in ["web", "service-instances", "service-instances-doc", "service-instances__"] {
            let verdict = selection().judge(entry(key, 1_000, "SHUTDOWN"), NOW);
            assert!(matches!(verdict, Choice::NotOurs), "{key}");
        }
        let marker = Entry { marker: Some(Marker::Client), ..entry(KEY, 1_000, "SHUTDOWN") };
        assert!(matches!(selection().judge(marker, NOW), Choice::NotOurs));
    }

    #[test]
    fn only_and_service_narrow_it() {
        let only = Selection { only: vec![Reason::StatusShutdown], ..selection() };
        assert_eq!(goes(&only, entry(KEY, 60, "ACTIVE")), None);
        assert!(goes(&only, entry(KEY, 60, "SHUTDOWN")).is_some_and(|words| words.len() == 3));
        let service = Selection { service: "web".parse().ok(), ..selection() };
        assert!(goes(&service, entry(KEY, 60, "ACTIVE")).is_some());
        assert!(goes(&service, entry("service-instances.web2.a", 60, "ACTIVE")).is_none());
    }

    // "leaves alone every entry whose own TTL is still running by the time at
    // which the server stored it, whatever its stamp and status say"
    #[test]
    fn what_beats_is_spared_whatever_it_says_and_nothing_else_is() {
        let sparing = Selection { spare_beating: true, unreadable: true, ..selection() };
        let stored = |secs: i64, ttl| Stored { at: NOW - SignedDuration::seconds(secs), ttl };
        let ttl = Ttl::After(Duration::from_secs(30));
        let at = |secs, ttl, heartbeat, status: &str| Entry {
            stored: stored(secs, ttl),
            ..entry(KEY, heartbeat, status)
        };
        for (heartbeat, status) in [(0, "UNHEALTHY"), (1_000, "ACTIVE"), (99, "SHUTDOWN")] {
            let choice = sparing.judge(at(29, ttl, heartbeat, status), NOW);
            assert!(matches!(choice, Choice::Beating(key) if key == KEY), "{heartbeat} {status}");
            assert!(goes(&sparing, at(30, ttl, heartbeat, status)).is_some(), "its TTL is over");
            assert!(goes(&selection(), at(29, ttl, heartbeat, status)).is_some(), "not asked for");
        }
        assert!(goes(&sparing, at(0, Ttl::Never, 0, "ACTIVE")).is_some(), "it never beats");
        assert!(matches!(sparing.judge(at(0, ttl, 0, "ACTIVE"), NOW), Choice::Keep), "alive");
        let broken = |secs| Entry { value: b"x".to_vec(), ..at(secs, ttl, 0, "ACTIVE") };
        let choice = sparing.judge(broken(29), NOW);
        assert!(matches!(choice, Choice::Unreadable(_, Unread::Beating)));
        assert_eq!(goes(&sparing, broken(31)), Some(vec!["unreadable"]));
    }

    #[test]
    fn a_status_of_a_newer_sdk_does_not_make_an_entry_unreadable() {
        let all = Selection { unreadable: true, ..selection() };
        assert!(matches!(all.judge(entry(KEY, 0, "DRAINING"), NOW), Choice::Keep));
        assert_eq!(
            goes(&all, entry(KEY, 60, "DRAINING")),
            Some(vec!["heartbeat-too-old", "clock-skew"])
        );
    }

    #[test]
    fn what_cannot_be_read_goes_only_by_name_and_by_a_safe_key() {
        let broken = |key: &str| Entry { value: b"x".to_vec(), ..entry(key, 0, "ACTIVE") };
        assert_eq!(goes(&selection(), broken(KEY)), None);
        let all = Selection { unreadable: true, ..selection() };
        assert_eq!(goes(&all, broken(KEY)), Some(vec!["unreadable"]));
        assert_eq!(goes(&all, broken("service-instances__nonsense")), Some(vec!["unreadable"]));
        for key in [
            "service-instances__a__*",
            "service-instances.>",
            "service-instances__a__\u{fffd}",
            "service-instances__a b",
            "service-instances..a",
            "echo-service",
            "*",
            ">",
        ] {
            assert_eq!(goes(&all, broken(key)), None, "{key}");
        }
        let stuck = |selection: &Selection, key| {
            let verdict = selection.judge(broken(key), NOW);
            matches!(verdict, Choice::Unreadable(_, Unread::Stuck))
        };
        assert!(stuck(&all, "service-instances__web__*"));
        assert!(!stuck(&selection(), "service-instances__web__*"), "nobody asked for it");
        let service = Selection { service: "web".parse().ok(), ..all };
        assert!(stuck(&service, "service-instances__web__*"));
        assert!(!stuck(&service, "service-instances__other__*"), "it is not selected");
        assert!(!stuck(&service, "service-instances__other__a"), "it is not selected");
        assert!(goes(&service, broken(KEY)).is_some());
        assert!(goes(&service, broken("service-instances__other__a")).is_none());
    }

    #[test]
    fn a_reply_is_taken_for_what_it_says() {
        for (history, purged, in_doubt, next) in [
            (1, 1, false, Next::Removed),
            (1, 0, false, Next::Spared),
            (1, 1, true, Next::Removed),
            (1, 0, true, Next::Look),
            (10, 0, false, Next::Spared),
            (10, 1, false, Next::Look),
            (10, 9, true, Next::Look),
            (-1, 1, false, Next::Look),
        ] {
            assert_eq!(after_purge(history, purged, in_doubt), next, "{history} {purged}");
        }
        assert_eq!(after_look(0), Next::Removed);
        assert_eq!(after_look(2), Next::Spared);
    }
}
