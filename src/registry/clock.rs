//! The registry's clock: the server's, carried forward on this host. *Pure*: the
//! boot clock is an argument.

use std::time::Duration;

use time::OffsetDateTime;

/// An answer that took so much longer than the one before tells the time less
/// well.
const VAGUER: Duration = Duration::from_millis(100);
/// The clocks of two hosts drift apart: what was told longer ago is not kept.
const KEPT: Duration = Duration::from_secs(600);

/// The registry's clock: the server's, carried forward with the boot
/// clock, which no step of any wall clock and no suspend disturbs.
#[derive(Debug, Clone, Copy)]
pub struct RegistryClock {
    ts: OffsetDateTime,
    /// The boot clock when the server told it.
    seen: Duration,
    /// How long the answer may have been on its way: so much later it may be.
    slack: Duration,
}

impl RegistryClock {
    /// What the server told in an answer that took `slack`, and came when the
    /// boot clock stood at `seen`. What it stored tells its time as well.
    pub fn told(ts: OffsetDateTime, seen: Duration, slack: Duration) -> RegistryClock {
        RegistryClock { ts, seen, slack }
    }

    /// How long ago the server told it, where the boot clock stands at `boot`.
    fn age(&self, boot: Duration) -> Duration {
        boot.saturating_sub(self.seen)
    }

    /// The better one of this clock and what was told after it. A newer answer
    /// that says the same, and took much longer, tells less.
    pub fn or_newer(self, newer: RegistryClock, boot: Duration) -> RegistryClock {
        let agrees = newer.off_by(self.time(boot), boot) == time::Duration::ZERO;
        let is_vaguer = newer.slack > self.slack + VAGUER;
        if agrees && is_vaguer && self.age(boot) < KEPT { self } else { newer }
    }

    /// How far a clock is off this one: nothing where the time that the answer
    /// took explains the difference.
    pub fn off_by(&self, clock: OffsetDateTime, boot: Duration) -> time::Duration {
        let earliest = self.time(boot);
        let latest = earliest + self.slack;
        if clock < earliest { clock - earliest } else { (clock - latest).max(time::Duration::ZERO) }
    }

    /// The registry's time where the boot clock stands at `boot`.
    pub fn time(&self, boot: Duration) -> OffsetDateTime {
        let passed = time::Duration::try_from(self.age(boot)).unwrap_or(time::Duration::MAX);
        self.ts.saturating_add(passed)
    }
}
