//! The registry's clock: the server's, carried forward on this host. Reads the
//! boot clock.

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

    /// How long ago the server told it.
    pub fn age(&self) -> Duration {
        boot_clock().saturating_sub(self.seen)
    }

    /// The better one of this clock and what was told after it. A newer answer
    /// that says the same, and took much longer, tells less.
    pub fn or_newer(self, newer: RegistryClock) -> RegistryClock {
        let agrees = newer.off_by(self.now()) == time::Duration::ZERO;
        let is_vaguer = newer.slack > self.slack + VAGUER;
        if agrees && is_vaguer && self.age() < KEPT { self } else { newer }
    }

    /// How far a clock is off this one: nothing where the time that the answer
    /// took explains the difference.
    pub fn off_by(&self, clock: OffsetDateTime) -> time::Duration {
        let earliest = self.now();
        let latest = earliest + self.slack;
        if clock < earliest { clock - earliest } else { (clock - latest).max(time::Duration::ZERO) }
    }

    /// The registry's time now.
    pub fn now(&self) -> OffsetDateTime {
        let passed = time::Duration::try_from(self.age()).unwrap_or(time::Duration::MAX);
        self.ts.saturating_add(passed)
    }
}

/// Time since the host started, its sleep included.
pub fn boot_clock() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}
