//! Which keys have been seen, and what became of each, in eight bytes a key.
//! *Pure*.
//!
//! A key that is refreshed while the bucket is read comes again. Most come once,
//! as they were when the reading began. Only what was stored after that can be a
//! key for the second time. So the first ones lie in a plain list, which is
//! sorted when the first of the later ones comes.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// What became of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Other,
    Shown,
    Unreadable,
    /// Hidden: its heartbeat is too old, its TTL is over, or both.
    Hidden {
        old: bool,
        expired: bool,
    },
}

/// The lowest bits of a hash hold the fate. That two of a hundred thousand keys
/// have the same rest is as likely as 1 in 10^8.
const FATE: u64 = 7;

impl Fate {
    fn bits(self) -> u64 {
        match self {
            Fate::Other => 0,
            Fate::Shown => 1,
            Fate::Unreadable => 2,
            Fate::Hidden { old, expired } => 4 + u64::from(old) + 2 * u64::from(expired),
        }
    }

    fn of(bits: u64) -> Fate {
        match bits & FATE {
            1 => Fate::Shown,
            2 => Fate::Unreadable,
            bits @ 4.. => Fate::Hidden { old: bits & 1 > 0, expired: bits & 2 > 0 },
            _ => Fate::Other,
        }
    }
}

/// The keys of one reading.
pub(super) struct Keys {
    /// Nothing up to this revision comes twice.
    until: u64,
    first: Vec<u64>,
    is_sorted: bool,
    later: HashMap<u64, Fate>,
    /// So many of those that came later had come before.
    again: usize,
    hasher: RandomState,
}

impl Keys {
    /// No keys yet, in a bucket that ended at revision `until` when the reading
    /// began.
    pub(super) fn until(until: u64) -> Keys {
        Keys {
            until,
            first: Vec::new(),
            is_sorted: true,
            later: HashMap::new(),
            again: 0,
            hasher: RandomState::new(),
        }
    }

    /// How many different keys were seen.
    pub(super) fn count(&self) -> usize {
        self.first.len() + self.later.len() - self.again
    }

    fn hash(&self, key: &str) -> u64 {
        self.hasher.hash_one(key) & !FATE
    }

    /// What became of a key that comes at `revision`, if it was seen before.
    pub(super) fn fate(&mut self, key: &str, revision: u64) -> Option<Fate> {
        if revision <= self.until {
            return None;
        }
        let hash = self.hash(key);
        self.later.get(&hash).copied().or_else(|| self.first_fate(hash))
    }

    fn first_fate(&mut self, hash: u64) -> Option<Fate> {
        if !self.is_sorted {
            self.first.sort_unstable();
            self.is_sorted = true;
        }
        let at = self.first.partition_point(|one| *one < hash);
        let found = self.first.get(at).filter(|found| **found & !FATE == hash)?;
        Some(Fate::of(*found))
    }

    /// Notes what becomes of a key that comes at `revision`.
    pub(super) fn note(&mut self, key: &str, revision: u64, fate: Fate) {
        let hash = self.hash(key);
        if revision <= self.until {
            self.first.push(hash | fate.bits());
            self.is_sorted = false;
        } else if self.later.insert(hash, fate).is_none() && self.first_fate(hash).is_some() {
            self.again += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_comes_again_is_known_with_its_last_fate() {
        let fates = [
            Fate::Other,
            Fate::Shown,
            Fate::Unreadable,
            Fate::Hidden { old: true, expired: false },
            Fate::Hidden { old: false, expired: true },
            Fate::Hidden { old: true, expired: true },
        ];
        let mut keys = Keys::until(1_000);
        for number in 0..1_000 {
            let fate = fates[number as usize % fates.len()];
            assert_eq!(keys.fate(&format!("k{number}"), number + 1), None);
            keys.note(&format!("k{number}"), number + 1, fate);
        }
        for number in 0..1_000 {
            let fate = fates[number as usize % fates.len()];
            assert_eq!(keys.fate(&format!("k{number}"), 1_001 + number), Some(fate));
        }
        assert_eq!((keys.fate("new", 2_001), keys.count()), (None, 1_000));
        keys.note("new", 2_001, Fate::Shown);
        keys.note("k7", 2_002, Fate::Other);
        keys.note("k7", 2_003, Fate::Shown);
        assert_eq!((keys.fate("k7", 2_004), keys.count()), (Some(Fate::Shown), 1_001));
    }
}
