//! Many revisions in little memory: an ascending list, kept as runs. *Pure*.
//!
//! A cleanup that counts before it removes keeps what it has judged in here: a
//! million entries that were stored one after another take a few bytes, and
//! the worst case, every other one, two bytes each.

/// Revisions in ascending order, 0 not among them.
#[derive(Debug, Default)]
pub struct Revisions {
    /// Pairs of variable-length numbers: the gap before a run, its length.
    runs: Vec<u8>,
    /// Where the last run that is in `runs` ended (exclusive).
    written: u64,
    /// The run that still grows.
    open: Run,
    count: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Run {
    start: u64,
    /// Exclusive.
    end: u64,
}

impl Revisions {
    /// Adds a revision; one that is not above all others is left out.
    pub fn push(&mut self, revision: u64) {
        let Some(end) = revision.checked_add(1).filter(|_| revision >= self.open.end.max(1)) else {
            return;
        };
        if revision == self.open.end && self.count > 0 {
            self.open.end = end;
        } else {
            self.close();
            self.open = Run { start: revision, end };
        }
        self.count += 1;
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The first one; 0 where there is none.
    pub fn first(&self) -> u64 {
        self.runs().next().map_or(0, |run| run.start)
    }

    /// Looks revisions up, each above the one before.
    pub fn lookup(&self) -> Lookup<'_> {
        let mut runs = self.runs();
        Lookup { run: runs.next(), runs }
    }

    fn close(&mut self) {
        if self.open.end > self.open.start {
            write(&mut self.runs, self.open.start - self.written);
            write(&mut self.runs, self.open.end - self.open.start);
            self.written = self.open.end;
        }
    }

    fn runs(&self) -> Runs<'_> {
        Runs { bytes: self.runs.iter(), at: 0, open: Some(self.open) }
    }
}

struct Runs<'a> {
    bytes: std::slice::Iter<'a, u8>,
    at: u64,
    open: Option<Run>,
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        if let (Some(gap), Some(length)) = (read(&mut self.bytes), read(&mut self.bytes)) {
            let start = self.at + gap;
            self.at = start + length;
            return Some(Run { start, end: self.at });
        }
        self.open.take().filter(|run| run.end > run.start)
    }
}

/// A walk through the list.
pub struct Lookup<'a> {
    run: Option<Run>,
    runs: Runs<'a>,
}

impl Lookup<'_> {
    /// Whether the list holds this revision, which is above all asked before.
    pub fn holds(&mut self, revision: u64) -> bool {
        while self.run.is_some_and(|run| run.end <= revision) {
            self.run = self.runs.next();
        }
        self.run.is_some_and(|run| run.start <= revision)
    }
}

/// Seven bits a byte, the highest bit set on all but the last.
fn write(bytes: &mut Vec<u8>, mut number: u64) {
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return;
        }
        bytes.push(low | 0x80);
    }
}

fn read(bytes: &mut std::slice::Iter<'_, u8>) -> Option<u64> {
    let (mut number, mut shift) = (0, 0);
    loop {
        let byte = *bytes.next()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
        shift += 7;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(all: &[u64]) -> Revisions {
        let mut list = Revisions::default();
        for &revision in all {
            list.push(revision);
        }
        list
    }

    #[test]
    fn what_was_put_in_is_found_and_nothing_else() {
        for all in [
            &[][..],
            &[1],
            &[5],
            &[1, 2, 3],
            &[1, 3, 5, 7],
            &[2, 3, 4, 900, 901, 1_000_000, u64::MAX - 2, u64::MAX - 1],
        ] {
            let list = of(all);
            assert_eq!(list.count(), all.len() as u64, "{all:?}");
            assert_eq!(list.first(), all.first().copied().unwrap_or(0), "{all:?}");
            let mut lookup = list.lookup();
            for revision in 1..2_000 {
                assert_eq!(lookup.holds(revision), all.contains(&revision), "{all:?} {revision}");
            }
            for revision in all.iter().filter(|&&r| r >= 2_000) {
                assert!(!lookup.holds(revision - 1) || all.contains(&(revision - 1)));
                assert!(lookup.holds(*revision), "{all:?} {revision}");
            }
        }
    }

    #[test]
    fn what_does_not_ascend_is_left_out() {
        let list = of(&[0, 7, 7, 6, 8, u64::MAX]);
        assert_eq!((list.count(), list.first()), (2, 7));
        let mut lookup = list.lookup();
        assert!(!lookup.holds(6) && lookup.holds(7) && lookup.holds(8) && !lookup.holds(9));
    }

    #[test]
    fn a_million_take_little() {
        let mut dense = Revisions::default();
        let mut sparse = Revisions::default();
        for n in 1..=1_000_000 {
            dense.push(n);
            sparse.push(n * 2);
        }
        assert_eq!((dense.count(), dense.runs.len()), (1_000_000, 0));
        assert_eq!(sparse.count(), 1_000_000);
        assert!(sparse.runs.len() <= 2_000_000, "{}", sparse.runs.len());
    }
}
