//! Notices at once that the host slept, or that its wall clock was set.
//!
//! A wait counts by a clock that stands still while the host sleeps. Without this
//! a wait that had ten seconds to go still has them to go after a night. A
//! timer for a time that never comes is cancelled by the kernel whenever the
//! wall clock jumps against that clock (`TFD_TIMER_CANCEL_ON_SET`,
//! timerfd_create(2)), and a sleep is such a jump. Between two jumps it costs
//! nothing.

use std::os::fd::{AsFd, OwnedFd};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::nats::Interest;

/// As far away as the kernel takes it without an overflow.
const NEVER: i64 = 1 << 40;

/// The timer that is cancelled.
pub struct ClockChanges {
    timer: OwnedFd,
}

impl ClockChanges {
    /// `None` where the kernel does not do this.
    pub fn watch() -> Option<ClockChanges> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Realtime, flags).ok()?;
        let never = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: NEVER, tv_nsec: 0 },
        };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        timerfd_settime(&timer, flags, &never).ok()?;
        Some(ClockChanges { timer })
    }

    /// What a wait has to look at to be ended by it.
    pub fn interest(&self) -> Interest<'_> {
        Interest::reading(self.timer.as_fd(), false)
    }

    /// It has ended a wait: the next one begins anew.
    pub fn take(&self) {
        // The answer is ECANCELED, which is what it is for.
        let _ = rustix::io::read(&self.timer, &mut [0_u8; 8]);
    }
}
