//! Follows a bucket: the newest revision of each key, and after that everything
//! as it is stored.
//!
//! It does so through one ephemeral consumer and pulls that wait. Besides entries
//! it hands out *up to when* it has seen everything. It asks the stream where it
//! ends (`STREAM.INFO`); once that revision has come, nothing that was stored
//! before the answer is still on its way. The first such answer is therefore also
//! the end of the state as it was. Where a leader may not be one any more, it counts
//! as an answer of the time when it was.
//!
//! A session that is silent for `SILENCE` is in doubt: a consumer that has
//! nothing to deliver says so twice a second. A gap in the numbers of the
//! deliveries, and a consumer that is gone, are errors: begin anew.

// A door: it reads the clock.
#![allow(clippy::disallowed_methods)]

pub mod progress;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use self::progress::{Broken, End, Progress};
use super::asking::Ask;
use super::failure::RegistryError;
use super::{LOOKING, Registry};
use crate::instance::entry::Entry;
use crate::jetstream::replies::{self, ReplyError, StreamInfo};
use crate::jetstream::{requests, stored};
use crate::nats::{Arrival, Incoming, RequestError, Token, answered};

/// What is being done, for errors.
pub const FOLLOWING: &str = "following the bucket";

/// Messages and bytes of one pull: a server cuts off whoever has more than
/// 64 MB to take (`max_pending`).
const BATCH: usize = 500;
const PULL_BYTES: usize = 1 << 20;
/// How long a pull waits, and how often the consumer says that it is there.
const PULL_WAITS: Duration = Duration::from_secs(20);
const SIGN_OF_LIFE: Duration = Duration::from_millis(500);
/// Without a sign of life for so long the session is in doubt.
const SILENCE: Duration = Duration::from_secs(2);
/// How long the server keeps a consumer that nobody asks for messages.
const KEPT: Duration = Duration::from_secs(30);
/// A leader that is cut off from the others goes on telling where its stream ends
/// (for 10 s: `lostQuorumInterval` in the server's `raft.go`), and they choose
/// another one after 4 s at the soonest (`minElectionTimeout`). What it says when it
/// has heard of no majority for longer than this is only true of then.
const LEADS_ALONE: Duration = Duration::from_secs(3);
/// What a server says of a consumer that it has no more, or is about to lose.
const GONE: [&str; 3] = ["Consumer Deleted", "Leadership Change", "Server Shutdown"];

/// What was heard.
#[derive(Debug)]
pub enum Heard {
    /// A revision, in the order of storing.
    Entry(Entry),
    /// Everything that was stored up to `at` has been handed out.
    UpTo {
        /// The registry's time.
        at: OffsetDateTime,
        /// So many keys the bucket has.
        keys: u64,
    },
    /// Nothing that matters.
    Nothing,
}

struct Pull {
    token: Token,
    left: usize,
    is_served: bool,
}

/// One consumer on the registry's session.
pub struct Follower {
    consumer: String,
    /// The registry's time when it was made.
    began: OffsetDateTime,
    pulls: VecDeque<Pull>,
    /// The next message does not fit into a pull.
    oversized: bool,
    progress: Progress,
    /// The question for the end of the stream that is under way, and when it
    /// was asked.
    asked: Option<(Token, Instant)>,
    heard: Instant,
}

impl Follower {
    /// Begins on the registry's session. `number` tells it from others there.
    pub fn begin(registry: &mut Registry, number: u32) -> Result<Follower, RegistryError> {
        let Some(session) = registry.session() else {
            return Err(RegistryError::Request(FOLLOWING, registry.lost()));
        };
        let prefix = format!("aegis-{}-w{number}", session.unique());
        let (bucket, name) = (registry.bucket().clone(), prefix.clone());
        // The one that is placed on a dead member is never announced.
        let make = Ask::Otherwise(Box::new(move |turn| {
            requests::create_consumer(&bucket, &format!("{name}-{turn}"), KEPT)
        }));
        let look = Ask::Same(requests::stream_info(registry.bucket()));
        let [info, made] = registry.ask_anywhere(&[(LOOKING, look), (FOLLOWING, make)]);
        let info = registry.take_info(LOOKING, info)?;
        let info = registry.readable(info)?;
        let made = made?;
        let consumer = format!("{prefix}-{}", made.turn);
        replies::read_consumer_info(made.message.data())
            .map_err(|error| RegistryError::Reply(FOLLOWING, error))?;
        let mut follower = Follower {
            consumer,
            began: info.ts.ok_or(RegistryError::NoClock)?,
            pulls: VecDeque::new(),
            oversized: false,
            progress: Progress::new(info.number("num_replicas") > 1),
            asked: None,
            heard: Instant::now(),
        };
        follower.pull(registry)?;
        follower.ask(registry)?;
        Ok(follower)
    }

    /// The registry's time when it began.
    pub fn began(&self) -> OffsetDateTime {
        self.began
    }

    /// When the session is in doubt unless something is heard.
    pub fn deadline(&self) -> Instant {
        self.heard + SILENCE
    }

    /// Asks where the stream ends, unless that is being asked: the answer
    /// becomes [`Heard::UpTo`].
    pub fn ask(&mut self, registry: &mut Registry) -> Result<(), RegistryError> {
        if self.asked.is_none() && !self.progress.is_waiting() {
            let token = registry.send(LOOKING, &requests::stream_info(registry.bucket()))?;
            self.asked = Some((token, Instant::now()));
        }
        Ok(())
    }

    /// What comes next, before `until`; may end early with nothing.
    pub fn next(
        &mut self,
        registry: &mut Registry,
        until: Instant,
    ) -> Result<Heard, RegistryError> {
        if let Some(heard) = self.reached() {
            return Ok(heard);
        }
        self.pull(registry)?;
        let arrival = registry.glance_until(FOLLOWING, until.min(self.deadline()))?;
        let now = Instant::now();
        let Some(arrival) = arrival else {
            // What has come and was not read is read first: we may have been
            // stopped ourselves.
            let silent = now >= self.deadline();
            let unanswered = self.asked.is_some_and(|(_, at)| now >= at + registry.timeout());
            if silent || unanswered {
                return Err(RegistryError::Request(FOLLOWING, RequestError::TimedOut));
            }
            return Ok(Heard::Nothing);
        };
        self.take(registry, arrival, now)
    }

    fn take(
        &mut self,
        registry: &mut Registry,
        arrival: Arrival,
        now: Instant,
    ) -> Result<Heard, RegistryError> {
        match arrival {
            Arrival::Message(None, message) => self.delivered(registry, message, now),
            Arrival::Message(Some(token), message) => {
                if self.asked.is_some_and(|(asked, _)| asked == token) {
                    self.asked = None;
                    self.answered(registry, message)?;
                    return Ok(self.reached().unwrap_or(Heard::Nothing));
                }
                self.told(token, &message, now)?;
                Ok(self.reached().unwrap_or(Heard::Nothing))
            }
            Arrival::Refused(_, what) => {
                Err(RegistryError::Request(FOLLOWING, RequestError::Denied(what)))
            }
        }
    }

    /// Where the stream ended, if everything up to there has come.
    fn reached(&mut self) -> Option<Heard> {
        let end = self.progress.reached()?;
        Some(Heard::UpTo { at: end.at, keys: end.keys })
    }

    fn answered(
        &mut self,
        registry: &mut Registry,
        message: Incoming,
    ) -> Result<(), RegistryError> {
        let failed = |error| RegistryError::Request(LOOKING, error);
        let message = answered(message).map_err(failed)?;
        let info: StreamInfo = registry.read_info(LOOKING, &message)?;
        let in_doubt = info.majority_heard.saturating_sub(LEADS_ALONE);
        let end = End {
            at: info.ts.ok_or(RegistryError::NoClock)? - in_doubt,
            messages: info.state.messages,
            last: info.state.last_seq,
            keys: info.state.num_subjects,
        };
        self.progress.ends(end);
        Ok(())
    }

    fn delivered(
        &mut self,
        registry: &Registry,
        message: Incoming,
        now: Instant,
    ) -> Result<Heard, RegistryError> {
        let delivery = message.reply().and_then(|reply| stored::delivery(reply, &self.consumer));
        let Some(delivery) = delivery else {
            return Ok(Heard::Nothing);
        };
        self.progress.delivered(delivery.place, delivery.sequence).or_else(broken)?;
        self.heard = now;
        if let Some(pull) = self.pulls.front_mut() {
            pull.is_served = true;
            pull.left -= 1;
            if pull.left == 0 {
                self.pulls.pop_front();
            }
        }
        Ok(Heard::Entry(Entry::of_delivery(registry.bucket(), message, &delivery)))
    }

    /// A status for a pull: a sign of life, or its end.
    fn told(
        &mut self,
        token: Token,
        message: &Incoming,
        now: Instant,
    ) -> Result<(), RegistryError> {
        let Some(place) = self.pulls.iter().position(|pull| pull.token == token) else {
            return Ok(());
        };
        let text = message.status_text();
        match message.status() {
            Some(100) => {
                self.heard = now;
                if place == 0 {
                    self.progress.is_idle();
                }
            }
            Some(503 | 404) => return gone(),
            Some(409) if GONE.iter().any(|word| text.contains(word)) => return gone(),
            Some(status) => {
                self.heard = now;
                let pull = self.pulls.remove(place);
                let is_served = pull.is_some_and(|pull| pull.is_served);
                self.oversized |= status == 409 && text.contains("MaxBytes") && !is_served;
            }
            None => {}
        }
        Ok(())
    }

    /// Asks for more before what was asked for has all come.
    fn pull(&mut self, registry: &mut Registry) -> Result<(), RegistryError> {
        let (batch, max_bytes, is_due) = match self.oversized {
            // A single, large message goes alone.
            true => (1, None, self.pulls.is_empty()),
            false => {
                let half_read = self.pulls.front().is_none_or(|pull| pull.left * 2 <= BATCH);
                (BATCH, Some(PULL_BYTES), self.pulls.len() < 2 && half_read)
            }
        };
        if !is_due {
            return Ok(());
        }
        let bucket = registry.bucket();
        let (name, life) = (&self.consumer, SIGN_OF_LIFE);
        let request = requests::waiting_pull(bucket, name, batch, max_bytes, PULL_WAITS, life);
        let token = registry.send(FOLLOWING, &request)?;
        self.oversized = false;
        self.pulls.push_back(Pull { token, left: batch, is_served: false });
        Ok(())
    }

    /// Has the consumer removed; does not wait for the answer.
    pub fn end(self, registry: &mut Registry) {
        let request = requests::delete_consumer(registry.bucket(), &self.consumer);
        if registry.send(FOLLOWING, &request).is_ok() {
            registry.idle_until(Instant::now());
        }
    }
}

fn gone<T>() -> Result<T, RegistryError> {
    Err(RegistryError::Request(FOLLOWING, RequestError::NoResponders))
}

fn broken<T>(how: Broken) -> Result<T, RegistryError> {
    let contradiction =
        |why: &str| Err(RegistryError::Reply(FOLLOWING, ReplyError::Unreadable(why.to_owned())));
    match how {
        Broken::Gap => contradiction("a delivery is missing"),
        Broken::Falls => contradiction("a sequence that does not rise"),
    }
}
