//! Which causes of an outage were said, so that each is said once. *Pure*.

use std::collections::HashSet;
use std::time::{Duration, Instant};

/// So many causes of one outage are logged. A server that never says the same
/// twice has more: they go to the debug log.
const CAUSES_SAID: usize = 8;

/// An outage that was over within this time is a short one.
const SHORT: Duration = Duration::from_secs(1);
/// So many short ones with the same cause are said.
pub const REPEATS_SAID: u32 = 3;
/// So many servers they may be about.
const PLACES_KNOWN: usize = 32;
/// After so long they are news again.
const FORGOTTEN: Duration = Duration::from_secs(3_600);

/// An outage, and what was said of it.
pub struct Outage {
    /// When it began.
    pub since: Instant,
    /// What it began with.
    pub cause: String,
    /// Nothing was said yet: it is like many before it.
    pub is_quiet: bool,
    /// The causes that were said, without their numbers.
    said: HashSet<String>,
}

impl Outage {
    /// Begins now; nothing was said yet.
    pub fn new(now: Instant) -> Outage {
        let said = HashSet::new();
        Outage { since: now, cause: String::new(), is_quiet: false, said }
    }

    /// The same, with this cause, after others.
    pub fn after(others: &Repeats, cause: &str, now: Instant) -> Outage {
        Outage { cause: named(cause), is_quiet: others.are_known(cause, now), ..Outage::new(now) }
    }

    /// It goes on: whether it was quiet and is so no more.
    pub fn is_to_be_told(&mut self, now: Instant) -> bool {
        let is_long = now.saturating_duration_since(self.since) >= SHORT;
        is_long && std::mem::take(&mut self.is_quiet)
    }

    /// Whether to say this cause.
    pub fn is_news(&mut self, cause: &str) -> bool {
        self.said.len() < CAUSES_SAID && self.said.insert(named(cause))
    }
}

/// Short outages that come again and again: something on the way that closes
/// what is idle makes one between any two heartbeats.
#[derive(Default)]
pub struct Repeats {
    cause: String,
    count: u32,
    last: Option<Instant>,
    /// Where they ended. A move to a server that is new is none of them: a cluster
    /// may be replaced member by member.
    places: Vec<String>,
}

impl Repeats {
    /// Whether one that begins with this cause is like those that were said.
    fn are_known(&self, cause: &str, now: Instant) -> bool {
        let is_fresh = self.last.is_some_and(|last| now < last + FORGOTTEN);
        is_fresh && self.count >= REPEATS_SAID && self.cause == named(cause)
    }

    /// Whether one of them ended at that place before.
    pub fn know(&self, place: &str) -> bool {
        self.places.iter().any(|known| known == place)
    }

    /// An outage is over, at this place. Whether it was the last of its kind to be
    /// said.
    pub fn over(&mut self, outage: &Outage, place: &str, now: Instant) -> bool {
        let is_short = now.saturating_duration_since(outage.since) < SHORT;
        if self.cause != outage.cause || self.last.is_none_or(|last| now >= last + FORGOTTEN) {
            self.places.clear();
        }
        let is_like = self.know(place);
        if !is_like && self.places.len() < PLACES_KNOWN {
            self.places.push(place.to_owned());
        }
        self.count = match (is_short, is_like) {
            (true, true) => self.count.saturating_add(1),
            (true, false) => 1,
            (false, _) => 0,
        };
        (self.cause, self.last) = (outage.cause.clone(), Some(now));
        self.count == REPEATS_SAID
    }
}

/// A cause without its numbers: sequences and the like change each time.
fn named(cause: &str) -> String {
    cause.chars().filter(|c| !c.is_ascii_digit()).collect()
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn short_outages_of_one_kind_are_said_three_times() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let short = Duration::from_millis(20);
        let mut repeats = Repeats::default();
        for round in 0..10 {
            let now = at(10 * round);
            let mut outage = Outage::after(&repeats, &format!("lost {round}"), now);
            assert_eq!(outage.is_quiet, round >= 3, "{round}");
            assert!(!outage.is_to_be_told(now + short));
            assert_eq!(repeats.over(&outage, "a", now + short), round == 2);
        }
        // One that lasts is told after a while, and so is the next one.
        let mut long = Outage::after(&repeats, "lost 7", at(100));
        assert!(long.is_quiet && long.is_to_be_told(at(101)) && !long.is_to_be_told(at(102)));
        repeats.over(&long, "a", at(130));
        assert!(!Outage::after(&repeats, "lost 7", at(140)).is_quiet);
    }

    #[test]
    fn a_move_to_another_server_is_news_and_a_round_of_the_same_ones_is_not() {
        let start = Instant::now();
        let mut repeats = Repeats::default();
        for server in 0..10 {
            let outage = Outage::after(&repeats, "lost", start);
            let place = format!("member {server}");
            assert!(!outage.is_quiet && !repeats.know(&place), "{server}");
            repeats.over(&outage, &place, start);
        }
        let quiet = (0..10).map(|round| {
            let outage = Outage::after(&repeats, "lost", start);
            repeats.over(&outage, &format!("member {round}"), start);
            outage.is_quiet
        });
        assert_eq!(quiet.filter(|quiet| *quiet).count(), 8);
    }

    #[test]
    fn another_cause_and_one_after_an_hour_are_news() {
        let start = Instant::now();
        let mut repeats = Repeats::default();
        for _ in 0..3 {
            repeats.over(&Outage::after(&repeats, "lost", start), "a", start);
        }
        assert!(Outage::after(&repeats, "lost", start).is_quiet);
        assert!(!Outage::after(&repeats, "refused", start).is_quiet);
        assert!(!Outage::after(&repeats, "lost", start + FORGOTTEN).is_quiet);
    }
}
