//! The registry's clock: the server's, carried forward on this host. Reads the
//! boot clock.

use std::time::Duration;

use time::OffsetDateTime;

/// The registry's clock: the server's `ts`, carried forward with the boot
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
    /// boot clock stood at `seen`.
    pub fn told(ts: OffsetDateTime, seen: Duration, slack: Duration) -> RegistryClock {
        RegistryClock { ts, seen, slack }
    }

    /// How long ago the server told it.
    pub fn age(&self) -> Duration {
        boot_clock().saturating_sub(self.seen)
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
