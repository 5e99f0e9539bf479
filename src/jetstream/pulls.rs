//! The bookkeeping of a scan: what to ask a consumer for, and what its
//! deliveries mean. *Pure*.
//!
//! Memory and time are bounded whatever the server sends: it is asked for a
//! bounded number of messages and bytes at a time, and one that contradicts
//! itself ends the scan.

use std::collections::VecDeque;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use super::stored::Delivery;
use crate::nats::Token;

/// Messages of one pull on a slow link, and while other answers are waited for,
/// which come behind what was asked for.
const SMALLEST_BATCH: usize = 250;
/// A pull that was sent so soon after the one before makes the next one twice as
/// large, and one so late half as large: a server closes the connection of
/// whoever does not take what it writes within 10 s (`write_deadline`).
const SOON: Duration = Duration::from_millis(500);
const LATE: Duration = Duration::from_secs(2);
/// Bytes of one pull for each of its messages: a server cuts off whoever has more
/// than 64 MB to take (`max_pending`).
const BYTES_PER_MESSAGE: usize = 1 << 10;
/// Pulls that end without a message in a row, while the server says that there
/// is more: one or two are honest, when entries expire meanwhile.
const FRUITLESS_PULLS: u32 = 20;
/// What a server says of a consumer that it does not have any more, or is about
/// to lose (`server/consumer.go`).
const GONE: [&str; 3] = ["Consumer Deleted", "Leadership Change", "Server Shutdown"];
/// An honest server delivers what it announced, and what is written while the
/// scan goes on; a scan is faster than all writers together.
const DELIVERIES_PER_ENTRY: u64 = 4;
const MORE_DELIVERIES: u64 = 20_000;

/// What the server says does not fit together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contradiction(String);

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How many messages are asked for at a time: first, and at most. Each pull costs
/// the server a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batches {
    first: usize,
    largest: usize,
}

impl Batches {
    /// For whoever only reads.
    pub const READING: Batches = Batches { first: 1_000, largest: 8_000 };
    /// For whoever keeps what it reads until there is room for a request.
    pub const REMOVING: Batches = Batches { first: SMALLEST_BATCH, largest: 1_000 };
}

/// How a pull ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// There was less than it asked for.
    Early,
    /// Nobody has this consumer any more: the member of the cluster that had it
    /// is gone. A fresh one can go on.
    ConsumerGone,
}

/// A pull to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextPull {
    /// So many messages.
    pub batch: usize,
    /// Of so many bytes together.
    pub max_bytes: Option<usize>,
}

#[derive(Debug)]
struct Pull {
    token: Token,
    batch: usize,
    left: usize,
    served: bool,
}

/// The pulls of one scan, over one consumer after the other.
#[derive(Debug)]
pub struct Pulls {
    under_way: VecDeque<Pull>,
    /// Messages of the next pull, and of any.
    batch: usize,
    largest: usize,
    /// When the last pull was sent.
    asked: Option<Instant>,
    /// Sequence of the last message that this consumer delivered.
    seen: u64,
    /// Sequence of the last message that was of interest.
    last: u64,
    /// Nothing after this sequence is of interest.
    until: u64,
    finished: bool,
    /// Pulls that ended without a message, in a row.
    fruitless: u32,
    /// The next message does not fit into a pull.
    oversized: bool,
    /// Deliveries that are still believed.
    believed: u64,
}

impl Pulls {
    /// A scan of what lies in `range`, over a consumer with `pending` messages,
    /// in such batches.
    pub fn over(range: RangeInclusive<u64>, pending: u64, batches: Batches) -> Pulls {
        let last = range.start().saturating_sub(1);
        Pulls {
            under_way: VecDeque::new(),
            batch: batches.first,
            largest: batches.largest,
            asked: None,
            seen: last,
            last,
            until: *range.end(),
            finished: pending == 0 || range.is_empty(),
            fruitless: 0,
            oversized: false,
            believed: believed(pending),
        }
    }

    /// Goes on over a fresh consumer with `pending` messages, which may deliver
    /// again what was delivered before.
    pub fn restart(&mut self, pending: u64) {
        self.under_way.clear();
        self.asked = None;
        self.seen = 0;
        self.fruitless = 0;
        self.oversized = false;
        self.believed = self.believed.max(believed(pending));
        self.finished = pending == 0 || self.last >= self.until;
    }

    /// Whether everything has been delivered.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Sequence of the last message that was handed out.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The pull to send now, if one is due; a small one while `others_wait` for
    /// their answers.
    ///
    /// The next one is sent when half of the only one under way has arrived:
    /// the server has sent the other half by then, and earlier it turns down a
    /// second one that may not wait (408). For the same reason one for a
    /// single, large message goes alone.
    pub fn due(&self, others_wait: bool) -> Option<NextPull> {
        if self.finished {
            return None;
        }
        let idle = self.under_way.is_empty();
        if self.oversized {
            return idle.then_some(NextPull { batch: 1, max_bytes: None });
        }
        let is_half_read = match self.under_way.front() {
            Some(pull) if self.under_way.len() == 1 => pull.left * 2 <= pull.batch,
            _ => false,
        };
        let batch = if others_wait { self.batch.min(SMALLEST_BATCH) } else { self.batch };
        let max_bytes = Some(batch * BYTES_PER_MESSAGE);
        (idle || is_half_read).then_some(NextPull { batch, max_bytes })
    }

    /// A pull was sent.
    pub fn sent(&mut self, token: Token, pull: NextPull, now: Instant) {
        self.oversized = false;
        match self.asked.replace(now).map(|asked| now.saturating_duration_since(asked)) {
            Some(took) if took < SOON => self.batch = (self.batch * 2).min(self.largest),
            Some(took) if took > LATE => self.batch = (self.batch / 2).max(SMALLEST_BATCH),
            _ => {}
        }
        self.under_way.push_back(Pull {
            token,
            batch: pull.batch,
            left: pull.batch,
            served: false,
        });
    }

    /// Whether the server was asked for messages that have not come.
    pub fn are_under_way(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// Whether that request is a pull of this scan that is under way.
    pub fn is_under_way(&self, token: Token) -> bool {
        self.under_way.iter().any(|pull| pull.token == token)
    }

    /// Takes a delivery; whether it is of interest.
    pub fn delivered(&mut self, delivery: &Delivery) -> Result<bool, Contradiction> {
        if let Some(pull) = self.under_way.front_mut() {
            pull.served = true;
            pull.left = pull.left.saturating_sub(1);
            if pull.left == 0 {
                self.under_way.pop_front();
            }
        }
        if delivery.sequence <= self.seen {
            return Err(contradiction("a sequence that does not rise"));
        }
        self.believed = match self.believed.checked_sub(1) {
            Some(left) => left,
            None => return Err(contradiction("more messages than the bucket can hold")),
        };
        self.seen = delivery.sequence;
        self.fruitless = 0;
        if delivery.pending == 0 || delivery.sequence >= self.until {
            self.finished = true;
            self.under_way.clear();
        }
        let is_new = delivery.sequence > self.last && delivery.sequence <= self.until;
        self.last = self.last.max(delivery.sequence.min(self.until));
        Ok(is_new)
    }

    /// A pull ended with a status.
    pub fn ended(
        &mut self,
        token: Token,
        status: Option<u16>,
        text: &str,
    ) -> Result<Ended, Contradiction> {
        let Some(at) = self.under_way.iter().position(|pull| pull.token == token) else {
            return Ok(Ended::Early);
        };
        let served = self.under_way.remove(at).is_some_and(|pull| pull.served);
        // As many as were asked for, with bytes to spare. From a replicated
        // bucket it can overtake the last of them.
        if status == Some(409) && text.contains("Batch Completed") {
            return Ok(Ended::Early);
        }
        let is_gone = |text: &str| GONE.iter().any(|word| text.contains(word));
        if status == Some(503) || (status == Some(409) && is_gone(text)) {
            return Ok(Ended::ConsumerGone);
        }
        self.fruitless += 1;
        if self.fruitless > FRUITLESS_PULLS {
            return Err(contradiction("no messages, and says that there are more"));
        }
        match status {
            Some(404) if !served && self.under_way.is_empty() => {
                self.finished = true;
                Ok(Ended::Early)
            }
            Some(404 | 408) => Ok(Ended::Early),
            // The pull is full, or its first message alone is larger.
            Some(409) if text.contains("MaxBytes") => {
                self.oversized |= !served;
                Ok(Ended::Early)
            }
            status => {
                let status = status.map_or(String::new(), |status| status.to_string());
                Err(Contradiction(format!("the server ended it: {status} {text}")))
            }
        }
    }
}

fn believed(pending: u64) -> u64 {
    pending.saturating_mul(DELIVERIES_PER_ENTRY).saturating_add(MORE_DELIVERIES)
}

fn contradiction(what: &str) -> Contradiction {
    Contradiction(format!("the server contradicts itself: it delivers {what}"))
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    #[allow(clippy::disallowed_methods)]
    fn base() -> Instant {
        Instant::now()
    }

    fn over(range: RangeInclusive<u64>, pending: u64) -> Pulls {
        Pulls::over(range, pending, Batches::READING)
    }

    fn delivery(sequence: u64, pending: u64) -> Delivery {
        Delivery { sequence, place: sequence, stored: OffsetDateTime::UNIX_EPOCH, pending }
    }

    fn pull(pulls: &mut Pulls, token: u64) -> NextPull {
        let next = pulls.due(false).expect("one is due");
        pulls.sent(Token::numbered(token), next, base());
        next
    }

    #[test]
    fn the_next_pull_is_due_when_half_of_the_last_has_come() {
        let mut pulls = over(1..=u64::MAX, 2_000);
        assert_eq!(pull(&mut pulls, 1).batch, Batches::READING.first);
        for sequence in 1..Batches::READING.first as u64 / 2 {
            assert_eq!(pulls.delivered(&delivery(sequence, 2_000 - sequence)), Ok(true));
            assert_eq!(pulls.due(false), None, "after {sequence}");
        }
        pulls.delivered(&delivery(500, 1_500)).unwrap();
        pull(&mut pulls, 2);
        assert_eq!(pulls.due(false), None);
    }

    #[test]
    fn a_quick_link_gets_larger_pulls_and_a_slow_one_smaller() {
        let mut pulls = over(1..=u64::MAX, 1_000_000);
        let mut now = base();
        let mut batches = |between: Duration, pulls: &mut Pulls| -> Vec<usize> {
            let mut batches = Vec::new();
            for turn in 0..6 {
                pulls.under_way.clear();
                let next = pulls.due(false).expect("one is due");
                assert_eq!(next.max_bytes, Some(next.batch << 10));
                batches.push(next.batch);
                now += between;
                pulls.sent(Token::numbered(turn), next, now);
            }
            batches
        };
        let quick = Duration::from_millis(100);
        assert_eq!(batches(quick, &mut pulls), [1_000, 1_000, 2_000, 4_000, 8_000, 8_000]);
        let fair = Duration::from_secs(1);
        assert_eq!(batches(fair, &mut pulls), [8_000; 6]);
        let slow = Duration::from_secs(3);
        assert_eq!(batches(slow, &mut pulls), [8_000, 4_000, 2_000, 1_000, 500, 250]);
        assert_eq!(batches(slow, &mut pulls), [250; 6]);
        let mut removing = Pulls::over(1..=u64::MAX, 1_000_000, Batches::REMOVING);
        assert_eq!(batches(quick, &mut removing), [250, 250, 500, 1_000, 1_000, 1_000]);
        removing.under_way.clear();
        assert_eq!(removing.due(true).map(|next| next.batch), Some(250));
    }

    #[test]
    fn it_is_finished_with_the_last_message_or_after_what_matters() {
        let mut pulls = over(1..=u64::MAX, 2);
        pull(&mut pulls, 1);
        pulls.delivered(&delivery(7, 1)).unwrap();
        assert!(!pulls.is_finished());
        assert_eq!(pulls.delivered(&delivery(9, 0)), Ok(true));
        assert!(pulls.is_finished() && pulls.due(false).is_none());
        let mut pulls = over(5..=8, 9);
        pull(&mut pulls, 1);
        assert_eq!(pulls.delivered(&delivery(9, 4)), Ok(false));
        assert!(pulls.is_finished());
        assert!(over(1..=9, 0).is_finished());
    }

    #[test]
    fn after_a_restart_nothing_comes_twice() {
        let mut pulls = over(1..=u64::MAX, 3);
        pull(&mut pulls, 1);
        assert_eq!(pulls.delivered(&delivery(1, 2)), Ok(true));
        assert_eq!(pulls.delivered(&delivery(2, 1)), Ok(true));
        pulls.restart(3);
        pull(&mut pulls, 2);
        let again: Vec<_> = (1..=3).map(|at| pulls.delivered(&delivery(at, 3 - at))).collect();
        assert_eq!(again, [Ok(false), Ok(false), Ok(true)]);
        assert!(pulls.is_finished());
    }

    #[test]
    fn a_record_larger_than_a_pull_is_asked_for_alone() {
        let mut pulls = over(1..=u64::MAX, 2);
        pull(&mut pulls, 1);
        let (token, status) = (Token::numbered(1), Some(409));
        pulls.ended(token, status, "Message Size Exceeds MaxBytes").unwrap();
        assert_eq!(pull(&mut pulls, 2), NextPull { batch: 1, max_bytes: None });
        assert_eq!(pulls.due(false), None);
        pulls.delivered(&delivery(1, 1)).unwrap();
        assert!(pull(&mut pulls, 3).batch >= Batches::READING.first);
    }

    #[test]
    fn a_server_that_contradicts_itself_ends_it() {
        let mut pulls = over(1..=u64::MAX, 2);
        pull(&mut pulls, 1);
        pulls.delivered(&delivery(5, 1)).unwrap();
        assert!(pulls.delivered(&delivery(5, 1)).is_err());

        let mut pulls = over(1..=u64::MAX, 1);
        let most = DELIVERIES_PER_ENTRY + MORE_DELIVERIES;
        let taken = (1..).find(|at| pulls.delivered(&delivery(*at, 1)).is_err());
        assert_eq!(taken, Some(most + 1));

        let mut pulls = over(1..=u64::MAX, 1);
        let ended = (1..).find(|token| {
            pull(&mut pulls, *token);
            pulls.ended(Token::numbered(*token), Some(408), "Request Timeout").is_err()
        });
        assert_eq!(ended, Some(u64::from(FRUITLESS_PULLS) + 1));
    }

    #[test]
    fn a_consumer_that_is_gone_is_told_from_an_end() {
        for (status, text, ended) in [
            (503, "No Responders", Ended::ConsumerGone),
            (409, "Consumer Deleted", Ended::ConsumerGone),
            (409, "Leadership Change", Ended::ConsumerGone),
            (409, "Batch Completed", Ended::Early),
            (408, "Request Timeout", Ended::Early),
        ] {
            let mut pulls = over(1..=u64::MAX, 1);
            pull(&mut pulls, 1);
            assert_eq!(pulls.ended(Token::numbered(1), Some(status), text), Ok(ended));
        }
    }

    #[test]
    fn a_status_for_somebody_else_is_nothing() {
        let mut pulls = over(1..=u64::MAX, 1);
        pull(&mut pulls, 1);
        assert_eq!(pulls.ended(Token::numbered(9), Some(500), "?"), Ok(Ended::Early));
        assert!(pulls.is_under_way(Token::numbered(1)) && !pulls.is_finished());
    }
}
