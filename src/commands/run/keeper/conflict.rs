//! What follows from a put that was not acknowledged, and from what stands there
//! instead. *Pure*.

use std::time::Duration;

use time::OffsetDateTime;

use super::duplicate::Duplicate;
use super::{Keeper, News};

/// A conflict is resolved by writing again, so often in a row.
pub const CONFLICT_ROUNDS: u32 = 4;
/// Who writes an entry that may not be read.
pub(super) const UNREAD: &str = "somebody else (who: the entry cannot be read)";

/// Why a put was not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Another revision stands there (10071, 10164); which one, where the
    /// server tells: 0 for none.
    Conflict(Option<u64>),
    /// Another write of the key is under way (10163).
    Busy,
    /// Nothing was heard of it: it may be stored all the same.
    Unanswered,
    /// Anything else.
    Other,
}

/// What follows from a put that was not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Put again, over this revision (`None`: over whatever there is).
    Put(Option<u64>),
    /// The same, and ask who wrote that revision: nobody waits for the answer.
    PutAndAsk(u64),
    /// Look what stands there, and ask again with what was found.
    Look,
    /// Give the session up.
    GiveUp,
}

/// What stands under our key, where something else was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A delete marker; the server's own where a TTL took the entry.
    Marker {
        /// Its revision.
        revision: u64,
        /// A TTL took the entry; otherwise somebody deleted it.
        expired: bool,
    },
    /// What we have written ourselves: its answer did not come.
    Own {
        /// Its revision.
        revision: u64,
    },
    /// What `who` has written, and how long it lives.
    Others {
        /// Its revision.
        revision: u64,
        /// Who says to have written it.
        who: String,
        /// Its TTL.
        ttl: Duration,
    },
    /// It cannot be read, or not in time.
    Unknown,
}

impl Keeper {
    /// What follows from a put that was not acknowledged, in this round.
    pub fn refused(
        &mut self,
        refusal: Refusal,
        over: Option<u64>,
        round: u32,
    ) -> (Next, Option<News>) {
        match refusal {
            Refusal::Unanswered => {
                self.patience.waited_in_vain();
                (Next::GiveUp, None)
            }
            Refusal::Other => (Next::GiveUp, None),
            _ if round >= CONFLICT_ROUNDS => (Next::GiveUp, None),
            Refusal::Busy => (Next::Put(over), None),
            Refusal::Conflict(last) => self.conflict(last),
        }
    }

    fn conflict(&self, last: Option<u64>) -> (Next, Option<News>) {
        match (self.current, last) {
            (None, Some(last)) => (Next::Put(Some(last)), None),
            (Some(_), Some(0)) => (Next::Put(Some(0)), Some(News::EntryGone)),
            // Revisions only grow: whoever wrote that one did so before us.
            (Some(ours), Some(last)) if last < ours => {
                (Next::Put(Some(last)), Some(News::BucketRestored))
            }
            // Who wrote it is worth a line, and no wait.
            (Some(_), Some(last)) => (Next::PutAndAsk(last), None),
            (_, None) => (Next::Look, None),
        }
    }

    /// What follows from what stands there; `last` as the refusal told it.
    pub fn found(
        &mut self,
        now: Duration,
        last: Option<u64>,
        found: Found,
    ) -> (Next, Option<News>) {
        let ours = self.current;
        let on_session = |news: News| ours.is_some().then_some(news);
        let put = |revision| Next::Put(Some(revision));
        match found {
            Found::Nothing => (put(0), on_session(News::EntryGone)),
            // A replica that lags: the refusal knows better.
            Found::Marker { revision, .. }
            | Found::Own { revision }
            | Found::Others { revision, .. }
                if last.is_some_and(|last| revision < last) =>
            {
                (Next::Put(last), None)
            }
            Found::Marker { revision, expired } => {
                let news = if expired { News::EntryGone } else { News::EntryDeleted };
                (put(revision), on_session(news))
            }
            Found::Own { revision } => (put(revision), None),
            // Either a replica that lags, or an old copy of the bucket: neither
            // tells of somebody who writes now.
            Found::Others { revision, .. } if ours.is_some_and(|ours| revision < ours) => {
                (put(revision), None)
            }
            Found::Others { revision, who, ttl } => {
                let news = ours.and_then(|_| self.met(now, who, ttl));
                (put(revision), news)
            }
            Found::Unknown => match last {
                // Each revision of ours on this session was acknowledged, so
                // this one is somebody else's.
                Some(last) if last != 0 && ours.is_some() => {
                    let news = self.met(now, UNREAD.to_owned(), self.ttl);
                    (put(last), news)
                }
                Some(last) => (put(last), None),
                None => (Next::GiveUp, None),
            },
        }
    }

    /// What stood there before our last put, where something else was expected:
    /// the answer to [`Next::PutAndAsk`].
    pub fn stood(&mut self, now: Duration, found: Found) -> Option<News> {
        let ours = self.current?;
        match found {
            Found::Nothing | Found::Marker { expired: true, .. } => Some(News::EntryGone),
            Found::Marker { .. } => Some(News::EntryDeleted),
            // The answer came so late that it tells of our own put.
            Found::Own { .. } => None,
            Found::Others { revision, who, ttl } if revision < ours => self.met(now, who, ttl),
            Found::Others { .. } => None,
            Found::Unknown => self.met(now, UNREAD.to_owned(), self.ttl),
        }
    }

    /// Somebody else wrote our entry since our last heartbeat.
    fn met(&mut self, now: Duration, who: String, ttl: Duration) -> Option<News> {
        let is_new = self.duplicate() != Some(who.as_str());
        if self.duplicate.is_none() {
            // The last question for the time was answered with the other's.
            self.time_asked_at = self.beats;
        }
        self.duplicate = Some(Duplicate::met(who.clone(), now, ttl));
        is_new.then_some(News::Duplicate(who))
    }

    /// Whether an entry that names our host and pid is really ours. A stamp
    /// that we have not sent is that of another agent with the same host and
    /// pid, as there are in containers; unless it is older than what we wrote:
    /// then the bucket was restored.
    pub fn is_ours(&self, revision: u64, stamp: OffsetDateTime) -> bool {
        self.is_ours_after(self.last, revision, stamp)
    }

    /// The same for what stood there before our last put, for [`Keeper::stood`].
    pub fn was_ours(&self, revision: u64, stamp: OffsetDateTime) -> bool {
        // That put may have been the second: the first one was stored, and refused.
        let in_doubt = self.stamps_before.contains(&stamp);
        in_doubt || self.is_ours_after(self.before, revision, stamp)
    }

    fn is_ours_after(&self, known: Option<u64>, revision: u64, stamp: OffsetDateTime) -> bool {
        let is_older = known.is_some_and(|known| revision < known) && stamp <= self.newest_stamp;
        is_older || self.stamps.contains(&stamp)
    }
}
