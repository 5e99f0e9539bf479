//! A census of the bucket for `check`: how many instances there are, which
//! would live for ever and who writes those, and which should be gone by now.
//!
//! Counts only, so that memory does not grow with the bucket. *Pure*.

use std::collections::BTreeMap;
use std::time::Duration;

use time::OffsetDateTime;

use crate::cli::options::Wanted;
use crate::instance::entry::Entry;
use crate::instance::record::{self, Status, names_in_key};
use crate::instance::staleness::{DEFAULT_INTERVAL, Ttl, is_stale, judge, overdue};

/// An entry without a TTL that was stored this recently is being rewritten by
/// a program that runs: two and a half heartbeats, so that one may be late.
pub const RECENT: Duration = Duration::from_millis(DEFAULT_INTERVAL.as_millis() as u64 * 5 / 2);

/// Services told apart; the rest is counted together.
const SERVICES_KNOWN: usize = 1_000;

/// Statuses told apart of each of them.
const STATUSES_KNOWN: usize = 16;

/// What is counted of the instance entries; definitions and delete markers
/// are never counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// Instance entries, readable or not.
    pub instances: u64,
    /// Of those without a TTL: how many each service has.
    pub legacy: BTreeMap<String, u64>,
    /// Of those without a TTL: entries of services beyond the ones told apart.
    pub legacy_of_others: u64,
    /// Of those without a TTL: how many each service stored within [`RECENT`].
    pub rewritten: BTreeMap<String, u64>,
    /// Past their TTL by more than the grace, and still there.
    pub overdue: u64,
    /// The longest time that one of them is past its TTL.
    pub most_overdue: Duration,
    /// The shortest TTL in use.
    pub shortest_ttl: Option<Duration>,
    /// The longest TTL in use.
    pub longest_ttl: Option<Duration>,
    /// Instances that are alive, by service and status; counted on request. A
    /// service with none is there as well, if it has an entry.
    pub alive: BTreeMap<String, BTreeMap<String, u64>>,
}

/// What makes an instance count as alive.
#[derive(Debug, Clone, Copy)]
pub struct Roll<'a> {
    /// Age from which its heartbeat is too old.
    pub stale_after: Duration,
    /// Services that are always told apart, however many others there are.
    pub wanted: &'a [Wanted],
}

impl Census {
    /// Counts one entry, as of `now` in registry time.
    pub fn count(&mut self, entry: &Entry, now: OffsetDateTime) {
        if entry.is_deleted() || !record::is_instance_key(&entry.key) {
            return;
        }
        self.instances += 1;
        let Ttl::After(ttl) = entry.stored.ttl else {
            return self.count_legacy(entry, now);
        };
        self.shortest_ttl = Some(self.shortest_ttl.map_or(ttl, |shortest| shortest.min(ttl)));
        self.longest_ttl = self.longest_ttl.max(Some(ttl));
        if let Some(overdue) = overdue(&entry.stored, now) {
            self.overdue += 1;
            self.most_overdue = self.most_overdue.max(overdue);
        }
    }

    /// Counts one entry among those that are alive, as of `now` in registry
    /// time, if it is.
    pub fn call(&mut self, entry: &Entry, now: OffsetDateTime, roll: Roll<'_>) {
        let Some(Ok(record)) = entry.instance_to_judge() else { return };
        let service = &record.service_name;
        if !self.alive.contains_key(service) {
            let is_wanted = roll.wanted.iter().any(|one| one.service.as_str() == service);
            if !is_wanted && self.alive.len() >= SERVICES_KNOWN {
                return;
            }
            self.alive.insert(service.clone(), BTreeMap::new());
        }
        let is_alive = record.status != Status::Shutdown
            && !is_stale(&judge(&record, &entry.stored, now, roll.stale_after));
        if let Some(statuses) = self.alive.get_mut(service).filter(|_| is_alive) {
            let word = record.status.as_str();
            let known = statuses.len() < STATUSES_KNOWN || statuses.contains_key(word);
            *statuses.entry(if known { word } else { "OTHER" }.to_owned()).or_default() += 1;
        }
    }

    fn count_legacy(&mut self, entry: &Entry, now: OffsetDateTime) {
        let service = match entry.instance_to_judge() {
            Some(Ok(record)) => record.service_name,
            _ => names_in_key(&entry.key).map_or("unreadable", |(service, _)| service).to_owned(),
        };
        if now - entry.stored.at < RECENT {
            add(&mut self.rewritten, &service);
        }
        if !add(&mut self.legacy, &service) {
            self.legacy_of_others += 1;
        }
    }

    /// All instance entries without a TTL.
    pub fn legacy_total(&self) -> u64 {
        self.legacy.values().sum::<u64>() + self.legacy_of_others
    }
}

/// Counts one more under `name`, unless there are too many names already.
fn add(counts: &mut BTreeMap<String, u64>, name: &str) -> bool {
    if let Some(count) = counts.get_mut(name) {
        *count += 1;
        return true;
    }
    let room = counts.len() < SERVICES_KNOWN;
    if room {
        counts.insert(name.to_owned(), 1);
    }
    room
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::entry::Marker;
    use crate::instance::staleness::Stored;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn entry(key: &str, age_secs: i64, ttl: Ttl) -> Entry {
        Entry {
            key: key.to_owned(),
            revision: 1,
            stored: Stored { at: NOW - time::Duration::seconds(age_secs), ttl },
            marker: None,
            value: b"{}".to_vec(),
        }
    }

    fn counted(entries: &[Entry]) -> Census {
        let mut census = Census::default();
        for entry in entries {
            census.count(entry, NOW);
        }
        census
    }

    const SECS_30: Ttl = Ttl::After(Duration::from_secs(30));

    #[test]
    fn definitions_and_delete_markers_are_not_counted() {
        let mut marker = entry("service-instances__web__a", 1, Ttl::Never);
        marker.marker = Some(Marker::Client);
        assert_eq!(counted(&[entry("echo-service", 1, Ttl::Never), marker]), Census::default());
    }

    #[test]
    fn what_was_stored_lately_without_ttl_is_being_rewritten() {
        let census = counted(&[
            entry("service-instances__web__a", 24, Ttl::Never),
            entry("service-instances__web__b", 25, Ttl::Never),
            entry("service-instances.api.c", 4_000, Ttl::Never),
            entry("service-instances__api__d", 1, SECS_30),
        ]);
        assert_eq!(census.instances, 4);
        assert_eq!(census.legacy_total(), 3);
        assert_eq!(census.legacy, [("web".into(), 2), ("api".into(), 1)].into());
        assert_eq!(census.rewritten, [("web".into(), 1)].into());
    }

    #[test]
    fn an_entry_is_overdue_after_its_ttl_and_the_grace() {
        let census = counted(&[
            entry("service-instances__web__a", 35, SECS_30),
            entry("service-instances__web__b", 36, SECS_30),
            entry("service-instances__web__c", 95, Ttl::After(Duration::from_secs(60))),
        ]);
        assert_eq!((census.overdue, census.most_overdue), (2, Duration::from_secs(35)));
        assert_eq!(census.shortest_ttl, Some(Duration::from_secs(30)));
        assert_eq!(census.longest_ttl, Some(Duration::from_secs(60)));
    }

    #[test]
    fn who_is_alive_is_counted_by_service_and_status() {
        let wanted = [Wanted { service: "api".parse().unwrap(), min: 1, warn: 1 }];
        let roll = Roll { stale_after: Duration::from_secs(35), wanted: &wanted };
        let mut census = Census::default();
        for (key, status, heartbeat) in [
            ("service-instances__web__a", "ACTIVE", "1970-01-01T00:00:00Z"),
            ("service-instances__web__b", "STANDBY", "1969-12-31T23:59:30Z"),
            ("service-instances__web__c", "ACTIVE", "1969-12-31T23:59:24Z"),
            ("service-instances__web__d", "SHUTDOWN", "1970-01-01T00:00:00Z"),
            ("service-instances__api__e", "ACTIVE", "1969-12-31T23:00:00Z"),
            ("echo-service", "ACTIVE", "1970-01-01T00:00:00Z"),
        ] {
            let value = format!(
                "{{\"version\":\"1.0.0\",\"status\":\"{status}\",\"lastHeartbeat\":\"{heartbeat}\"}}"
            );
            census.call(&Entry { value: value.into(), ..entry(key, 0, SECS_30) }, NOW, roll);
        }
        let web = [("ACTIVE".to_owned(), 1), ("STANDBY".to_owned(), 1)];
        assert_eq!(
            census.alive,
            [("web".to_owned(), web.into()), ("api".to_owned(), BTreeMap::new())].into()
        );
        for number in 0..5_000 {
            let key = format!("service-instances__service-{number}__a");
            census.call(&entry(&key, 0, SECS_30), NOW, roll);
            let value = b"{\"version\":\"1.0.0\",\"lastHeartbeat\":\"1970-01-01T00:00:00Z\"}";
            census.call(&Entry { value: value.to_vec(), ..entry(&key, 0, SECS_30) }, NOW, roll);
        }
        assert_eq!(census.alive.len(), SERVICES_KNOWN);
    }

    #[test]
    fn the_names_of_services_take_bounded_memory() {
        let entries: Vec<Entry> = (0..5_000)
            .map(|i| entry(&format!("service-instances__service-{i}__a"), 1, Ttl::Never))
            .collect();
        let census = counted(&entries);
        assert_eq!(census.legacy_total(), 5_000);
        assert_eq!((census.legacy.len(), census.rewritten.len()), (SERVICES_KNOWN, SERVICES_KNOWN));
    }
}
