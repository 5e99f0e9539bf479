//! The entry under an agent's own key: reads it, writes over it, and tells
//! whose it is.
//!
//! Each write carries the revision of the one before. What follows where
//! something else stands there is decided by `keeper`: nothing, our own earlier
//! attempt, or a duplicate agent, with which this one takes turns.

use log::debug;
use serde_json::Value;
use time::OffsetDateTime;

use super::super::keeper::{CLOCK_TRUST, Found, Keeper, Next, Refusal};
use super::Agent;
use crate::instance::entry::{Entry, Marker};
use crate::instance::record;
use crate::instance::staleness::Ttl;
use crate::jetstream::replies::{self, ApiError, ReplyError};
use crate::jetstream::requests::Put;
use crate::nats::RequestError;
use crate::registry::failure::RegistryError;
use crate::registry::{Aside, EntryResult};
use crate::text::printable::printable;

/// What stands under our own key.
pub(super) enum Own {
    /// Nothing, or what was read.
    Seen(Option<Entry>),
    /// We may not look.
    Unknown,
}

/// Whether an entry with our host and pid is ours, by its revision and stamp.
pub(super) type IsOurs = fn(&Keeper, u64, OffsetDateTime) -> bool;

impl Agent {
    /// What stands under our own key, if we may know.
    pub(super) fn read_own(&mut self) -> Result<Own, RegistryError> {
        let found = self.registry.get_for_decision(&self.key);
        self.own(found)
    }

    /// The same, out of an answer that has come.
    pub(super) fn own(&self, found: EntryResult) -> Result<Own, RegistryError> {
        match found {
            Ok(found) => Ok(Own::Seen(found)),
            Err(error) if error.denied().is_some() => {
                debug!("{error}: duplicate agents cannot be told apart");
                Ok(Own::Unknown)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes one heartbeat over `expected`. Where something else stands
    /// there, finds out what, and takes its turn.
    pub(super) fn write(
        &mut self,
        expected: Option<u64>,
        rollup: bool,
    ) -> Result<u64, RegistryError> {
        let mut expected = expected;
        let mut asks = false;
        let mut round = 0;
        loop {
            round += 1;
            self.unless_stopped()?;
            let error = match self.put(expected, rollup, asks) {
                Ok(revision) => return Ok(revision),
                Err(error) => error,
            };
            let refusal = refusal(&error);
            if let Refusal::Conflict(_) = refusal {
                self.standing.conflict();
            }
            let (mut next, news) = self.keeper.refused(refusal, expected, round);
            self.say(news);
            if let (Next::Look, Refusal::Conflict(last)) = (next, refusal) {
                let found = self.look(&error)?;
                let (after, news) = self.keeper.found(self.now(), last, found);
                self.say(news);
                next = after;
            }
            match next {
                Next::Put(over) => (expected, asks) = (over, false),
                Next::PutAndAsk(over) => (expected, asks) = (Some(over), true),
                Next::Look | Next::GiveUp => return Err(error),
            }
        }
    }

    /// One put, and the questions that are sent with it: with `asks` also who
    /// wrote what stands there.
    fn put(
        &mut self,
        expected: Option<u64>,
        rollup: bool,
        asks: bool,
    ) -> Result<u64, RegistryError> {
        self.update_record();
        let stamp = self.stamp();
        self.record.last_heartbeat = stamp;
        self.stamped = Some((stamp, self.registry.boot_clock()));
        let sent = self.now();
        let limit = self.keeper.put_limit(sent, self.registry.timeout());
        let is_clustered = self.registry.server().is_some_and(|server| server.cluster.is_some());
        let tells_time = self.registry.entry_tells_time();
        // A registration has asked already.
        let asides = match self.keeper.is_registered() {
            true if asks => &[Aside::Entry, Aside::Time],
            true => self.keeper.asides(sent, is_clustered, tells_time),
            false => &[],
        };
        let put = Put {
            key: &self.key,
            value: self.record.to_json(),
            ttl: self.options.ttl,
            expected,
            rollup,
        };
        self.standing.sent();
        self.keeper.sent(stamp);
        let revision = self.registry.put_within(put, limit, asides)?;
        let now = self.now();
        self.keeper.acknowledged(sent, now, revision);
        let utc = self.registry.wall_clock();
        self.standing.acknowledged(revision, utc, now, now.saturating_sub(sent));
        if let Some(off) = self.registry.off_by(utc) {
            self.standing.set_clock_offset(off.as_seconds_f64());
        }
        Ok(revision)
    }

    /// Reads what stands there, and takes no longer for it than the entry
    /// lives; `refusal` is why.
    fn look(&mut self, refusal: &RegistryError) -> Result<Found, RegistryError> {
        let limit = self.keeper.look_limit(self.now(), self.registry.timeout());
        let key = self.key.clone();
        let found = self.registry.within(limit, |registry| registry.get_for_decision(&key));
        let lost = |error: &RegistryError| {
            matches!(error, RegistryError::Request(_, RequestError::Lost(_)))
        };
        match found {
            Ok(None) => Ok(Found::Nothing),
            Ok(Some(entry)) => {
                self.immortal_below |= is_immortal(&entry);
                Ok(self.whose(&entry, Keeper::is_ours))
            }
            Err(error) if lost(&error) => Err(error),
            Err(error) => {
                debug!("{refusal}, and what stands there is not known: {error}");
                Ok(Found::Unknown)
            }
        }
    }

    pub(super) fn whose(&self, entry: &Entry, is_ours: IsOurs) -> Found {
        let revision = entry.revision;
        if let Some(marker) = entry.marker {
            return Found::Marker { revision, expired: marker == Marker::Expired };
        }
        if self.wrote(entry, is_ours) {
            return Found::Own { revision };
        }
        let ttl = match entry.stored.ttl {
            Ttl::After(ttl) => ttl,
            Ttl::Never => self.options.ttl,
        };
        Found::Others { revision, who: writer(&self.key, &entry.value), ttl }
    }

    pub(super) fn wrote(&self, entry: &Entry, is_ours: IsOurs) -> bool {
        let Ok(record) = record::read(&self.key, &entry.value) else {
            return false;
        };
        // The rest of the metadata can change with a reload.
        let same = |name: &str| record.metadata.get(name) == self.record.metadata.get(name);
        same("host") && same("pid") && is_ours(&self.keeper, entry.revision, record.last_heartbeat)
    }

    /// Our own time, or the registry's where ours is off; as exact as it is
    /// written.
    fn stamp(&self) -> OffsetDateTime {
        let own = self.registry.wall_clock();
        let is_off = |off: time::Duration| off.unsigned_abs() > CLOCK_TRUST;
        let time = match self.registry.time() {
            Some(time) if self.registry.off_by(own).is_some_and(is_off) => time,
            _ => own,
        };
        time.replace_microsecond(time.microsecond()).unwrap_or(time)
    }
}

fn refusal(error: &RegistryError) -> Refusal {
    match error {
        RegistryError::Reply(_, ReplyError::Api(api)) => match api.err_code {
            ApiError::WRONG_LAST | ApiError::WRONG_LAST_CLUSTERED => {
                Refusal::Conflict(replies::last_revision(api))
            }
            ApiError::WRITE_UNDER_WAY => Refusal::Busy,
            _ => Refusal::Other,
        },
        RegistryError::Request(_, RequestError::TimedOut) => Refusal::Unanswered,
        _ => Refusal::Other,
    }
}

/// Whether an entry stands for something and never ends by itself.
pub(super) fn is_immortal(entry: &Entry) -> bool {
    entry.stored.ttl == Ttl::Never && !entry.is_deleted()
}

/// Whether a refusal means that another revision stands there, or is about to.
pub(super) fn is_conflict(error: &RegistryError) -> bool {
    matches!(refusal(error), Refusal::Conflict(_) | Refusal::Busy)
}

/// Who wrote a record, as far as it says: `another agent (host h, pid 1)`.
fn writer(key: &str, value: &[u8]) -> String {
    let Ok(record) = record::read(key, value) else {
        return "another program".into();
    };
    let said = |name: &str| match record.metadata.get(name) {
        Some(Value::String(text)) => printable(text),
        Some(value @ Value::Number(_)) => value.to_string(),
        _ => "unknown".into(),
    };
    format!("another agent (host {}, pid {})", said("host"), said("pid"))
}
