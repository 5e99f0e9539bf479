//! How far a follower has come: what was delivered, and whether that is all that
//! there was when the stream was asked where it ends. *Pure*.

use time::OffsetDateTime;

/// Signs of life without a delivery after which the end of the stream is not
/// waited for any more: whatever stood there is gone. A replica may lag, so
/// there it takes more.
const IDLE_SIGNS: u32 = 1;
const IDLE_SIGNS_OF_A_REPLICA: u32 = 3;

/// Where the stream ended, when it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The registry's time of the answer.
    pub at: OffsetDateTime,
    /// So many messages the stream had.
    pub messages: u64,
    /// The sequence of the last one that was ever stored.
    pub last: u64,
    /// So many keys the bucket has.
    pub keys: u64,
}

/// Why a follower cannot go on: another one has to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// A delivery is missing.
    Gap,
    /// A sequence does not rise.
    Falls,
}

/// What has come of one consumer.
#[derive(Debug)]
pub struct Progress {
    /// The last sequence that came.
    seen: u64,
    /// What was waited for in vain up to there is gone.
    passed: u64,
    /// So many deliveries have come.
    place: u64,
    /// The end that is waited for, and the signs of life since then, without a
    /// delivery.
    end: Option<(End, u32)>,
    idle_signs: u32,
}

impl Progress {
    /// Nothing has come.
    pub fn new(is_replicated: bool) -> Progress {
        let idle_signs = if is_replicated { IDLE_SIGNS_OF_A_REPLICA } else { IDLE_SIGNS };
        Progress { seen: 0, passed: 0, place: 0, end: None, idle_signs }
    }

    /// A delivery, with its number among those of the consumer, from 1.
    pub fn delivered(&mut self, place: u64, sequence: u64) -> Result<(), Broken> {
        if place != self.place + 1 {
            return Err(Broken::Gap);
        }
        if sequence <= self.seen {
            return Err(Broken::Falls);
        }
        (self.place, self.seen) = (place, sequence);
        if let Some((_, idle)) = &mut self.end {
            *idle = 0;
        }
        Ok(())
    }

    /// The consumer says that it has nothing to deliver.
    pub fn is_idle(&mut self) {
        if let Some((_, idle)) = &mut self.end {
            *idle += 1;
        }
    }

    /// An end is waited for.
    pub fn is_waiting(&self) -> bool {
        self.end.is_some()
    }

    /// The answer to the question for the end.
    pub fn ends(&mut self, end: End) {
        self.end = Some((end, 0));
    }

    /// Where the stream ended, once everything up to there has come.
    pub fn reached(&mut self) -> Option<End> {
        let (seen, idle_signs) = (self.seen.max(self.passed), self.idle_signs);
        let has_come = |(end, idle): &mut (End, u32)| {
            // In an empty bucket nothing can come.
            seen >= end.last || end.messages == 0 || *idle >= idle_signs
        };
        let (end, _) = self.end.take_if(has_come)?;
        self.passed = end.last;
        Some(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(messages: u64, last: u64) -> End {
        End { at: OffsetDateTime::UNIX_EPOCH, messages, last, keys: messages }
    }

    #[test]
    fn an_end_is_reached_once_all_before_it_has_come() {
        let mut progress = Progress::new(false);
        progress.ends(end(2, 7));
        for (place, sequence) in [(1, 3), (2, 7)] {
            assert_eq!(progress.reached(), None);
            assert_eq!(progress.delivered(place, sequence), Ok(()));
        }
        assert_eq!(progress.reached(), Some(end(2, 7)));
        assert!(!progress.is_waiting() && progress.reached().is_none());
    }

    #[test]
    fn an_empty_bucket_is_at_its_end() {
        let mut progress = Progress::new(true);
        progress.ends(end(0, 12));
        assert_eq!(progress.reached(), Some(end(0, 12)));
        // What is stored after that comes like everything else.
        assert_eq!(progress.delivered(1, 12), Ok(()));
    }

    #[test]
    fn what_is_gone_is_not_waited_for() {
        for (is_replicated, signs) in [(false, 1), (true, 3)] {
            let mut progress = Progress::new(is_replicated);
            progress.is_idle();
            progress.ends(end(1, 2));
            // A delivery shows that more may be on its way.
            progress.is_idle();
            assert_eq!(progress.reached().is_some(), signs == 1);
            assert_eq!(progress.delivered(1, 1), Ok(()));
            progress.ends(end(1, 2));
            for sign in 1..=signs {
                progress.is_idle();
                assert_eq!(progress.reached().is_some(), sign == signs);
            }
            // Nor is it the next time.
            progress.ends(end(1, 2));
            assert!(progress.reached().is_some());
        }
    }

    #[test]
    fn what_does_not_fit_ends_it() {
        let mut progress = Progress::new(false);
        assert_eq!(progress.delivered(2, 1), Err(Broken::Gap));
        assert_eq!(progress.delivered(1, 5), Ok(()));
        assert_eq!(progress.delivered(2, 5), Err(Broken::Falls));
    }
}
