//! When to act next. *Pure*: a function of the time, which comes in as the
//! monotonic time since some start, and of what became of the last attempt.
//!
//! A fleet that was started at once spreads out: the first interval is drawn
//! at random, each later one is shortened by up to 10 %. No interval is ever
//! longer than asked for, and no delay is followed by a burst.

use std::time::Duration;

/// Delays between attempts at a server that does not serve.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
/// Together with the attempt itself this stays under 2 s: an agent has to be back
/// within 3 s of its server.
const LAST_BACKOFF: Duration = Duration::from_millis(1700);
/// The wait for an acknowledgement where nothing speaks for another: longer
/// than a server that takes 2 s for each reply, shorter than the 3 s within
/// which an agent has to be back.
const PATIENCE: Duration = Duration::from_millis(2_500);
/// A busy host alone can take this long.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);
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

    /// Another interval, from the next heartbeat on.
    pub fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
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
            // Attempts keep their distance from begin to begin, so that one
            // that took long is not followed by a long pause as well.
            Outcome::NotServed => {
                let least = FIRST_BACKOFF.mul_f64(1.0 + self.random.fraction());
                (began + self.backoff()).max(now + least)
            }
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

/// How long a heartbeat is waited for. *Pure*.
///
/// Short by default, since a session whose peer is gone tells so in no other
/// way; longer where answers take their time, so that a slow server is not
/// taken for a dead one; and never so long that the entry expires meanwhile.
#[derive(Debug, Clone, Copy, Default)]
pub struct Patience {
    /// What the last answer took.
    last: Duration,
    /// Waits in a row that were in vain.
    in_vain: u32,
}

impl Patience {
    /// A heartbeat was acknowledged after `took`.
    pub fn acknowledged(&mut self, took: Duration) {
        *self = Patience { last: took, in_vain: 0 };
    }

    /// Another question was answered after `took`.
    pub fn answered(&mut self, took: Duration) {
        self.last = took;
    }

    /// What the last answer took.
    pub fn last(&self) -> Duration {
        self.last
    }

    /// No acknowledgement came.
    pub fn waited_in_vain(&mut self) {
        self.in_vain = self.in_vain.saturating_add(1);
    }

    /// The longest wait, where each exchange is bounded by `timeout` and the
    /// entry lives for another `life`; zero where there is none.
    pub fn limit(&self, timeout: Duration, life: Duration) -> Duration {
        let usual = PATIENCE.saturating_mul(1 << self.in_vain.min(6));
        let limit = usual.max(self.last * 3).min(timeout);
        match life.is_zero() {
            true => limit,
            // The second half is for a fresh session.
            false => limit.min((life / 2).max(LEAST_PATIENCE)),
        }
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
        assert!(pauses[0] < 2 * FIRST_BACKOFF);
        assert!(pauses[10..].iter().all(|p| *p >= LAST_BACKOFF / 2));
        assert!(pauses[10..].windows(2).any(|pair| pair[0] != pair[1]), "no jitter");
        schedule.next(now, now, Outcome::Registered);
        assert!(schedule.next(now, now, Outcome::NotServed) - now < 2 * FIRST_BACKOFF);
        let hung = now + Duration::from_secs(5);
        assert!(schedule.next(now, hung, Outcome::NotServed) - hung < 2 * FIRST_BACKOFF);
    }

    #[test]
    fn patience_grows_with_slow_answers_and_ends_before_the_entry() {
        let timeout = Duration::from_secs(5);
        let life = Duration::from_secs(20);
        let mut patience = Patience::default();
        assert_eq!(patience.limit(timeout, life), Duration::from_millis(2_500));
        patience.acknowledged(Duration::from_millis(1));
        assert_eq!(patience.limit(timeout, life), Duration::from_millis(2_500));
        patience.acknowledged(Duration::from_secs(2));
        assert_eq!(patience.limit(timeout, life), timeout);
        assert_eq!(patience.limit(timeout, Duration::from_secs(6)), Duration::from_secs(3));
        assert_eq!(patience.limit(timeout, Duration::from_millis(100)), LEAST_PATIENCE);
        assert_eq!(patience.limit(Duration::from_millis(700), life), Duration::from_millis(700));
        patience.acknowledged(Duration::ZERO);
        patience.waited_in_vain();
        assert_eq!(patience.limit(timeout, Duration::ZERO), timeout);
    }

    /// The worst case on paper, for every kind of loss: packets that are lost
    /// until some moment, a flow that is lost for good, a server that is
    /// refused, silent or after others of its list.
    #[test]
    fn a_heartbeat_lost_in_the_worst_moment_is_made_good_before_the_entry_expires() {
        let (ttl, interval) = (30.0, 10.0);
        let patience = Patience::default()
            .limit(Duration::from_secs(5), Duration::from_secs_f64(ttl - interval));
        let (patience, pause) = (patience.as_secs_f64(), LAST_BACKOFF.as_secs_f64());
        // A SYN leaves at least each second while a look lasts (5 s).
        let (syn, look) = (1.0, 5.0);
        for tenths in 0..=170 {
            let outage = f64::from(tenths) / 10.0;
            let back = if outage < patience {
                // The flow itself may be lost for good: it is waited for.
                patience
            } else {
                let within_a_round = outage + syn;
                let over_a_pause = outage + pause + syn.min(look);
                f64::max(within_a_round, over_a_pause)
            };
            assert!(back < outage + 3.0, "{outage} s: back after {back} s");
            assert!(interval + back < ttl, "{outage} s: back {} s after", interval + back);
        }
    }
}
