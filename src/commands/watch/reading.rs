//! When to ask the bucket where it ends, and what follows from the answers: the
//! state is whole, or it is to be read anew. *Pure*.

use std::time::{Duration, Instant};

use time::OffsetDateTime;

use crate::registry::picture::Picture;

/// How often the bucket is asked where it ends. It is also asked each time that
/// somebody seems to be gone. A purge makes no event, and is found this way.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// Between two such questions at least.
pub const ASK_PAUSE: Duration = Duration::from_millis(50);
/// After so many answers in a row that name fewer keys than the picture has,
/// the state is read anew. One alone says little: a new entry may have come
/// after it was sent.
const SUSPICIONS: u32 = 2;
/// Where that changed nothing it is not done again before this time; the pause
/// doubles each time.
const FIRST_REREAD_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_REREAD_PAUSE: Duration = Duration::from_secs(600);
/// After an outage of ours, an instance that is missing has this time to refresh
/// its entry before it is called down. An agent that lost the same server is back
/// about as soon as we are; it promises 3 s (docs/outages.md).
const RETURN_GRACE: Duration = Duration::from_millis(1_500);
/// A key whose revision is replaced before it is delivered comes with the next
/// one, which may lie beyond the end that was asked for. So many ends are waited
/// for until as many keys have come as the bucket has.
const ENDS: u32 = 8;

/// One follower.
pub struct Reading {
    began: Instant,
    asked: Instant,
    /// So many times everything had come that there was.
    ends: u32,
    suspicions: u32,
}

impl Reading {
    /// Begins, and asks at once.
    pub fn new(now: Instant) -> Reading {
        Reading { began: now, asked: now, ends: 0, suspicions: 0 }
    }

    /// When to ask next. `left` is the time until somebody is due.
    pub fn ask_at(&self, now: Instant, is_current: bool, left: Option<Duration>) -> Instant {
        if !is_current {
            return self.asked + if self.ends < 2 { ASK_PAUSE } else { ASK_PAUSE * 4 };
        }
        let due = left.map(|left| (now + left).max(self.asked + ASK_PAUSE));
        (self.asked + ASK_EVERY).min(due.unwrap_or(self.asked + ASK_EVERY))
    }

    /// It is asked.
    pub fn asked(&mut self, now: Instant) {
        self.asked = now;
    }

    /// Everything has come that there was at `at`, when the bucket had so many
    /// keys. Whether the state has been read: not while something of it is still
    /// to come, or somebody is missing who may be back within the grace.
    pub fn is_whole(
        &mut self,
        picture: &Picture,
        at: OffsetDateTime,
        keys: u64,
        now: Instant,
    ) -> bool {
        self.ends += 1;
        let missing = picture.missing(at);
        let has_come = picture.keys_read() >= keys && (missing == 0 || self.ends > 1);
        if !has_come && self.ends < ENDS {
            return false;
        }
        let has_grace = picture.is_lost() && now.duration_since(self.began) < RETURN_GRACE;
        missing == 0 || !has_grace
    }

    /// A purge makes no event: it shows in how many keys the bucket has.
    fn suspects(&mut self, picture: &Picture, at: OffsetDateTime, keys: u64) -> bool {
        self.suspicions = if picture.keys(at) > keys { self.suspicions + 1 } else { 0 };
        self.suspicions >= SUSPICIONS
    }
}

/// When the state was read anew because of a suspicion, and may be again.
pub struct Rereads {
    pause: Duration,
    not_before: Instant,
}

impl Rereads {
    /// None so far.
    pub fn new(now: Instant) -> Rereads {
        Rereads { pause: FIRST_REREAD_PAUSE, not_before: now }
    }

    /// Whether the state is read anew, after an answer that the bucket has so
    /// many keys at `at`.
    pub fn is_due(
        &mut self,
        reading: &mut Reading,
        picture: &Picture,
        (at, keys): (OffsetDateTime, u64),
        now: Instant,
    ) -> bool {
        if !reading.suspects(picture, at, keys) || now < self.not_before {
            return false;
        }
        self.not_before = now + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_REREAD_PAUSE);
        true
    }

    /// What was suspected was so.
    pub fn were_right(&mut self, now: Instant) {
        *self = Rereads::new(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::entry::Entry;
    use crate::instance::filter::Filter;
    use crate::instance::staleness::{DEFAULT_STALE_AFTER, Stored, Ttl};

    fn at(seconds: u64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn take(picture: &mut Picture, instance: &str, revision: u64) {
        let value = "{\"version\":\"1.0.0\",\"lastHeartbeat\":\"1970-01-01T00:00:10Z\"}";
        let entry = Entry {
            key: format!("service-instances__orders-api__{instance}"),
            revision,
            stored: Stored { at: at(10), ttl: Ttl::After(Duration::from_secs(30)) },
            marker: None,
            value: value.into(),
        };
        picture.take(&entry, &mut |_| ());
    }

    /// A picture that knows two instances, and reads the state anew.
    fn reading(is_lost: bool) -> Picture {
        let mut picture = Picture::new(Filter::default(), DEFAULT_STALE_AFTER);
        picture.read_anew(at(10));
        take(&mut picture, "a", 1);
        take(&mut picture, "b", 2);
        picture.complete(at(10), &mut |_| ());
        if is_lost {
            picture.lost("refused", &mut |_| ());
        }
        picture.read_anew(at(11));
        picture
    }

    #[test]
    fn the_end_is_asked_for_often_while_it_matters() {
        let now = base();
        let mut reading = Reading::new(now);
        let ms = Duration::from_millis;
        let in_time = |reading: &Reading, is_current, left| {
            reading.ask_at(now, is_current, left).duration_since(now)
        };
        assert_eq!(in_time(&reading, false, None), ms(50));
        assert_eq!(in_time(&reading, true, None), ms(2_000));
        assert_eq!(in_time(&reading, true, Some(ms(300))), ms(300));
        assert_eq!(in_time(&reading, true, Some(ms(0))), ms(50));
        assert_eq!(in_time(&reading, true, Some(ms(9_000))), ms(2_000));
        reading.ends = 2;
        assert_eq!(in_time(&reading, false, None), ms(200));
        reading.asked(now + ms(70));
        assert_eq!(in_time(&reading, true, None), ms(2_070));
    }

    #[test]
    fn the_state_is_whole_once_all_has_come_and_whoever_may_be_back_had_time() {
        let now = base();
        // Nobody is missing.
        let mut picture = reading(true);
        take(&mut picture, "a", 1);
        take(&mut picture, "b", 3);
        assert!(Reading::new(now).is_whole(&picture, at(12), 2, now));
        // Something is still to come, until that has been long.
        let mut reading_on = Reading::new(now);
        for end in 1..=ENDS {
            let is_whole = reading_on.is_whole(&picture, at(12), 3, now);
            assert_eq!(is_whole, end == ENDS, "{end}");
        }
        // One is missing: a second look, and after an outage the grace.
        for (is_lost, expected) in [(false, [false, true, true]), (true, [false, false, true])] {
            let mut picture = reading(is_lost);
            take(&mut picture, "a", 1);
            let mut reading = Reading::new(now);
            let is_whole = [Duration::ZERO, Duration::ZERO, RETURN_GRACE]
                .map(|after| reading.is_whole(&picture, at(12), 1, now + after));
            assert_eq!(is_whole, expected, "{is_lost}");
        }
    }

    #[test]
    fn fewer_keys_twice_are_a_purge_and_not_looked_for_all_the_time() {
        let now = base();
        let mut picture = reading(false);
        picture.complete(at(10), &mut |_| ());
        picture.read_anew(at(10));
        take(&mut picture, "a", 5);
        picture.complete(at(10), &mut |_| ());
        let (mut reading, mut rereads) = (Reading::new(now), Rereads::new(now));
        let mut is_due = |keys, after| {
            rereads.is_due(&mut reading, &picture, (at(11), keys), now + Duration::from_secs(after))
        };
        assert_eq!([0, 1, 0, 0].map(|keys| is_due(keys, 0)), [false, false, false, true]);
        // In vain: not again for 10 s, then for 20 s.
        assert_eq!([9, 10, 29, 30].map(|after| is_due(0, after)), [false, true, false, true]);
        rereads.were_right(now);
        assert!(rereads.is_due(&mut reading, &picture, (at(11), 0), now));
    }

    #[allow(clippy::disallowed_methods)]
    fn base() -> Instant {
        Instant::now()
    }
}
