//! When to act next. *Pure*: a function of the time, which comes in as the
//! monotonic time since some start, and of what became of the last attempt.
//!
//! A fleet that was started at once spreads out: the first interval is drawn
//! at random, each later one is shortened by up to 10 %. No interval is ever
//! longer than asked for, and no delay is followed by a burst.

use std::time::Duration;

/// Delays between attempts at a server that does not serve.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
/// Together with the attempt itself this stays under 2 s, the time within
/// which an agent has to be back after its server.
const LAST_BACKOFF: Duration = Duration::from_millis(1700);
/// Heartbeats come from this part of the interval early, so that the time it
/// takes to wake up never makes one late,
const EARLY: f64 = 0.01;
/// to this part, so that a fleet spreads out.
const EARLIEST: f64 = 0.1;

/// What became of the last attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A new session registered: the first acknowledgement on it.
    Registered,
    /// A heartbeat on the session was acknowledged.
    Acknowledged,
    /// A session that had served is given up.
    SessionLost,
    /// A fresh session did not come about, or could not register.
    NotServed,
}

/// The schedule of one agent.
#[derive(Debug, Clone)]
pub struct Schedule {
    interval: Duration,
    random: Random,
    failures: u32,
}

impl Schedule {
    /// A schedule for heartbeats every `interval`; `seed` makes agents differ.
    pub fn new(interval: Duration, seed: u64) -> Schedule {
        Schedule { interval, random: Random(seed), failures: 0 }
    }

    /// When to act next, after an attempt that began at `began` and ended at
    /// `now` with `outcome`. Never before `now`.
    pub fn next(&mut self, began: Duration, now: Duration, outcome: Outcome) -> Duration {
        match outcome {
            Outcome::Registered => {
                self.failures = 0;
                let part = (1.0 - self.random.fraction()) * (1.0 - EARLY);
                (began + self.interval.mul_f64(part)).max(now)
            }
            Outcome::Acknowledged => {
                self.failures = 0;
                let part = 1.0 - EARLY - (EARLIEST - EARLY) * self.random.fraction();
                (began + self.interval.mul_f64(part)).max(now)
            }
            Outcome::SessionLost => now,
            Outcome::NotServed => now + self.backoff(),
        }
    }

    fn backoff(&mut self) -> Duration {
        let doubled = FIRST_BACKOFF.saturating_mul(1 << self.failures.min(4));
        self.failures = self.failures.saturating_add(1);
        let longest = doubled.min(LAST_BACKOFF);
        let shortest = (longest / 2).max(FIRST_BACKOFF);
        shortest + (longest - shortest).mul_f64(self.random.fraction())
    }
}

/// SplitMix64: spreads agents out, which needs no better randomness.
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    /// A number from 0 to 1, 1 excluded.
    fn fraction(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    #[test]
    fn a_day_of_heartbeats_is_never_late_and_never_a_burst() {
        let mut schedule = Schedule::new(INTERVAL, 1);
        let day = Duration::from_secs(86_400);
        let mut now = Duration::ZERO;
        let mut due = schedule.next(now, now, Outcome::Registered);
        let mut beats = 1;
        while due < day {
            assert!(due > now && due - now < INTERVAL, "{now:?} to {due:?}");
            if beats > 1 {
                assert!(due - now >= INTERVAL.mul_f64(0.9), "{now:?} to {due:?}");
            }
            now = due;
            beats += 1;
            due = schedule.next(now, now + Duration::from_millis(1), Outcome::Acknowledged);
        }
        // 8640 at exactly 10 s; 5.8 % more on average.
        assert!((9_050..9_250).contains(&beats), "{beats}");
    }

    #[test]
    fn a_fleet_restarted_together_spreads_over_the_interval() {
        let mut tenths = [0; 10];
        for agent in 0..1_000 {
            let due = Schedule::new(INTERVAL, agent).next(
                Duration::ZERO,
                Duration::ZERO,
                Outcome::Registered,
            );
            assert!(due > Duration::ZERO && due < INTERVAL);
            let index = (due.as_secs_f64() as usize).min(9);
            tenths[index] += 1;
        }
        assert!(tenths.iter().all(|&count| count > 60), "{tenths:?}");
    }

    #[test]
    fn a_beat_that_took_long_is_followed_by_one_and_not_by_several() {
        let mut schedule = Schedule::new(INTERVAL, 7);
        let late = Duration::from_secs(35);
        assert_eq!(schedule.next(Duration::ZERO, late, Outcome::Acknowledged), late);
        let after = schedule.next(late, late, Outcome::Acknowledged);
        assert!(after >= late + INTERVAL.mul_f64(0.9));
    }

    #[test]
    fn a_lost_session_is_replaced_at_once_and_then_with_growing_pauses() {
        let mut schedule = Schedule::new(INTERVAL, 3);
        let mut now = Duration::from_secs(100);
        assert_eq!(schedule.next(now, now, Outcome::SessionLost), now);
        let mut pauses = Vec::new();
        for _ in 0..50 {
            let due = schedule.next(now, now, Outcome::NotServed);
            pauses.push(due - now);
            now = due;
        }
        assert!(pauses.iter().all(|p| (FIRST_BACKOFF..=LAST_BACKOFF).contains(p)), "{pauses:?}");
        assert!(pauses[0] < Duration::from_millis(201));
        assert!(pauses[10..].iter().all(|p| *p >= LAST_BACKOFF / 2));
        assert!(pauses[10..].windows(2).any(|pair| pair[0] != pair[1]), "no jitter");
        schedule.next(now, now, Outcome::Registered);
        assert!(schedule.next(now, now, Outcome::NotServed) - now < Duration::from_millis(201));
    }
}
