//! A duplicate agent: somebody else who writes our entry. *Pure*.

use std::time::Duration;

/// Heartbeats without a conflict after which it is taken to be gone, if what it
/// wrote last would have expired, too.
const GONE_AFTER: u32 = 3;

/// Somebody else who writes our entry.
#[derive(Debug)]
pub(super) struct Duplicate {
    who: String,
    quiet_beats: u32,
    /// When it was met last, and how long what it writes lives.
    met: Duration,
    ttl: Duration,
}

impl Duplicate {
    pub(super) fn met(who: String, met: Duration, ttl: Duration) -> Duplicate {
        Duplicate { who, quiet_beats: 0, met, ttl }
    }

    pub(super) fn who(&self) -> &str {
        &self.who
    }

    pub(super) fn into_who(self) -> String {
        self.who
    }

    /// Another heartbeat of ours was acknowledged: whether the other is gone.
    pub(super) fn is_gone(&mut self, now: Duration) -> bool {
        self.quiet_beats += 1;
        self.quiet_beats > GONE_AFTER && now.saturating_sub(self.met) > self.ttl
    }
}
