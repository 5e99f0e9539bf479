//! What stands under an agent's own key: read, written over, and whose it is.
//!
//! Each write carries the revision of the one before. Where something else
//! stands there, it is found out what: nothing, our own earlier attempt, or a
//! twin, with which the agent takes turns.

// It reads the clocks.
#![allow(clippy::disallowed_methods)]

use std::time::{Duration, Instant};

use log::{debug, info, warn};
use serde_json::Value;
use time::OffsetDateTime;

use super::{Agent, CLOCK_TRUST};
use crate::instance::entry::Entry;
use crate::instance::record;
use crate::instance::staleness::Ttl;
use crate::jetstream::replies::{self, ApiError, ReplyError};
use crate::jetstream::requests::Put;
use crate::nats::RequestError;
use crate::registry::EntryResult;
use crate::registry::failure::RegistryError;
use crate::text::printable::printable;
use crate::text::time::format_time;

/// A conflict is resolved by reading and writing again, so often in a row.
pub(super) const CONFLICT_ROUNDS: u32 = 4;
/// Stamps of heartbeats whose fate is unknown; older ones cannot be stored any
/// more, since each carries the revision that it follows.
const STAMPS_KEPT: usize = 32;
/// Heartbeats without a conflict after which a twin is taken to be gone, if
/// what it wrote last would have expired, too.
const TWIN_GONE_AFTER: u32 = 3;

/// What stands under our own key.
pub(super) enum Own {
    /// Nothing, or what was read.
    Seen(Option<Entry>),
    /// We may not look.
    Unknown,
}

/// Somebody else writes our entry.
pub(super) struct Twin {
    who: String,
    quiet_beats: u32,
    /// When it was met last, and how long what it writes lives.
    met: Instant,
    ttl: Duration,
}

impl Agent {
    /// What stands under our own key, if we may know.
    pub(super) fn read_own(&mut self) -> Result<Own, RegistryError> {
        let found = self.registry.get(&self.key);
        self.own(found)
    }

    /// The same, out of an answer that has come.
    pub(super) fn own(&self, found: EntryResult) -> Result<Own, RegistryError> {
        match found {
            Ok(found) => Ok(Own::Seen(found)),
            Err(error) if error.denied().is_some() => {
                debug!("{error}: twins cannot be told apart");
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
        let mut round = 0;
        loop {
            round += 1;
            let stamp = self.stamp();
            self.record.last_heartbeat = stamp;
            let put = Put {
                key: &self.key,
                value: self.record.to_json(),
                ttl: self.options.ttl,
                expected,
                rollup,
            };
            let sent = Instant::now();
            let limit = self.patience.limit(self.registry.timeout(), self.life());
            self.standing.sent();
            let error = match self.registry.put_within(put, limit) {
                Ok(revision) => {
                    let (now, took) = (self.started.elapsed(), sent.elapsed());
                    self.patience.acknowledged(took);
                    self.stored_at = Some(sent);
                    let utc = OffsetDateTime::now_utc();
                    self.standing.acknowledged(revision, utc, now, took);
                    if let Some(clock) = self.registry.clock() {
                        self.standing.set_clock_offset(clock.off_by(utc).as_seconds_f64());
                    }
                    self.stamps.clear();
                    self.remember(stamp);
                    return Ok(revision);
                }
                Err(error) => error,
            };
            self.remember(stamp);
            if matches!(error, RegistryError::Request(_, RequestError::TimedOut)) {
                self.patience.waited_in_vain();
            }
            let Some(last) = conflict(&error) else {
                return Err(error);
            };
            self.standing.conflict();
            if round == CONFLICT_ROUNDS {
                return Err(error);
            }
            expected = Some(match self.read_own()? {
                Own::Seen(found) => self.resolve(found),
                Own::Unknown => self.resolve_unseen(last.ok_or(error)?),
            });
        }
    }

    /// The revision to follow, after a conflict.
    fn resolve(&mut self, found: Option<Entry>) -> u64 {
        let registered = self.revision.is_some();
        let Some(entry) = found else {
            if registered {
                info!(
                    "{}: the entry was gone (expired or removed): registering again",
                    self.name()
                );
            }
            return 0;
        };
        if entry.deleted {
            if registered {
                info!("{}: the entry was deleted by somebody: registering again", self.name());
            }
        } else if registered && !self.wrote(&entry) {
            let ttl = match entry.stored.ttl {
                Ttl::After(ttl) => ttl,
                Ttl::Never => self.options.ttl,
            };
            self.met(writer(&self.key, &entry.value), ttl);
        }
        entry.revision
    }

    /// As `resolve`, where our own key cannot be read: what stands there is
    /// `last`. Each revision of ours on this session was acknowledged, so this
    /// one is somebody else's.
    fn resolve_unseen(&mut self, last: u64) -> u64 {
        if self.revision.is_some() && last != 0 {
            let who = "somebody else (who: the entry cannot be read)";
            self.met(who.to_owned(), self.options.ttl);
        }
        last
    }

    /// Somebody else wrote our entry since our last heartbeat.
    fn met(&mut self, who: String, ttl: Duration) {
        let news = self.twin.as_ref().is_none_or(|twin| twin.who != who);
        self.standing.set_twin(Some(who.clone()));
        self.twin = Some(Twin { who, quiet_beats: 0, met: Instant::now(), ttl });
        if news {
            warn!(
                "{}: {} writes this entry too; both take turns. Give one of them another --instance",
                self.name(),
                self.twin_name()
            );
        }
    }

    /// Another heartbeat was acknowledged: a twin may be gone.
    pub(super) fn look_for_twin(&mut self) {
        if let Some(twin) = &mut self.twin {
            twin.quiet_beats += 1;
            if twin.quiet_beats > TWIN_GONE_AFTER && twin.met.elapsed() > twin.ttl {
                info!("{}: {} writes this entry no more", self.name(), self.twin_name());
                self.twin = None;
                self.standing.set_twin(None);
            }
        }
    }

    /// How long our entry lives on without another heartbeat.
    pub(super) fn life(&self) -> Duration {
        let since = self.stored_at.map(|at| at.elapsed());
        since.map_or(Duration::ZERO, |since| self.options.ttl.saturating_sub(since))
    }

    pub(super) fn twin_name(&self) -> String {
        self.twin.as_ref().map_or(String::new(), |twin| twin.who.clone())
    }

    pub(super) fn wrote(&self, entry: &Entry) -> bool {
        let Ok(record) = record::read(&self.key, &entry.value) else {
            return false;
        };
        // The rest of the metadata can change with a reload.
        let same = |name: &str| record.metadata.get(name) == self.record.metadata.get(name);
        let stamp = format_time(record.last_heartbeat);
        let sent = |at: &OffsetDateTime| format_time(*at) == stamp;
        same("host") && same("pid") && self.stamps.iter().any(sent)
    }

    fn remember(&mut self, stamp: OffsetDateTime) {
        if self.stamps.len() == STAMPS_KEPT {
            self.stamps.remove(0);
        }
        self.stamps.push(stamp);
    }

    /// Our own time, or the registry's where ours is off.
    fn stamp(&self) -> OffsetDateTime {
        let own = OffsetDateTime::now_utc();
        match self.registry.clock() {
            Some(clock) if clock.off_by(own).unsigned_abs() > CLOCK_TRUST => clock.now(),
            _ => own,
        }
    }
}

/// Whether a refusal means that another revision stands there; with its
/// number where the server tells it.
pub(super) fn conflict(error: &RegistryError) -> Option<Option<u64>> {
    match error {
        RegistryError::Reply(_, ReplyError::Api(api))
            if matches!(api.err_code, ApiError::WRONG_LAST | ApiError::WRONG_LAST_CLUSTERED) =>
        {
            Some(replies::last_revision(api))
        }
        _ => None,
    }
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
