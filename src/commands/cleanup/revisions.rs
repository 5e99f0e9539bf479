//! The revisions that a cleanup has judged, where it counts before it removes.
//! *Pure*.
//!
//! Eight bytes each: a megabyte for 100,000 entries.

use std::ops::RangeInclusive;

/// Revisions in ascending order, 0 not among them.
#[derive(Debug, Default)]
pub struct Revisions(Vec<u64>);

impl Revisions {
    /// Adds a revision; one that is not above all others is left out.
    pub fn push(&mut self, revision: u64) {
        if revision > self.0.last().copied().unwrap_or(0) {
            self.0.push(revision);
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// From the first one to the last; empty where there is none.
    pub fn range(&self) -> RangeInclusive<u64> {
        self.0.first().copied().unwrap_or(1)..=self.0.last().copied().unwrap_or(0)
    }

    /// Whether the list holds this revision.
    pub fn holds(&self, revision: u64) -> bool {
        self.0.binary_search(&revision).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_is_found_and_nothing_else() {
        let all = [1, 2, 3, 900, 901, u64::MAX - 1];
        let mut list = Revisions::default();
        all.into_iter().for_each(|revision| list.push(revision));
        assert_eq!((list.count(), list.range()), (all.len(), 1..=u64::MAX - 1));
        for revision in (0..1_000).chain([u64::MAX - 2, u64::MAX - 1, u64::MAX]) {
            assert_eq!(list.holds(revision), all.contains(&revision), "{revision}");
        }
        assert!(Revisions::default().count() == 0 && Revisions::default().range().is_empty());
    }

    #[test]
    fn what_does_not_ascend_is_left_out() {
        let mut list = Revisions::default();
        [0, 7, 7, 6, 8].into_iter().for_each(|revision| list.push(revision));
        assert_eq!((list.count(), list.range()), (2, 7..=8));
        assert!(!list.holds(6) && list.holds(7) && list.holds(8) && !list.holds(9));
    }
}
