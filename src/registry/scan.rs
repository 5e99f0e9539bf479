//! A scan: the newest revision of every key of a bucket, through one ephemeral
//! consumer, with a bounded number of messages under way. What an entry is
//! worth is for the verbs to say; the bookkeeping is in `jetstream::pulls`.

// A door: it reads the clock.
#![allow(clippy::disallowed_methods)]

use std::time::{Duration, Instant};

use log::debug;

use super::failure::RegistryError;
use super::{Answer, Registry};
use crate::instance::entry::Entry;
use crate::jetstream::pulls::{Contradiction, Ended, Pulls};
use crate::jetstream::replies::{self, ReplyError, StreamInfo};
use crate::jetstream::{requests, stored};
use crate::nats::{Arrival, Request, RequestError};

/// A session lost this often in a row during a scan, without an entry in
/// between, is an outage.
const FRUITLESS_RESTARTS: u32 = 3;
/// Between two consumers, where the first one is gone.
const CONSUMER_PAUSE: Duration = Duration::from_millis(100);
/// How often another consumer is asked for what a lagging replica may lack, and
/// after which time the first one: healthy replicas are milliseconds behind.
const LOOKS_AGAIN: u32 = 2;
const LAG_PAUSE: Duration = Duration::from_millis(20);
/// How long the server keeps a consumer that nobody asks for messages.
const CONSUMER_KEPT: Duration = Duration::from_secs(30);
/// The same while entries are removed, over a slow link as well.
const REMOVING_KEPT: Duration = Duration::from_secs(300);

/// What a scan is doing, for its errors.
pub const SCANNING: &str = "reading the bucket";

/// What a scan reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    /// The newest revision of every key.
    Newest,
    /// Every revision. In a bucket without history that is the newest of every
    /// key, and it bears that what was read is removed meanwhile.
    Every,
}

/// Reads a bucket in the order of revisions.
pub struct Scan {
    consumer: String,
    reads: Reads,
    history: i64,
    pulls: Pulls,
    /// Without an entry by then the server is silent.
    deadline: Instant,
    /// Sessions lost in a row, and where the last one began.
    restarts: u32,
    resumed_at: u64,
    /// No consumer has delivered anything since then.
    gone_since: Option<Instant>,
    /// Where a replicated bucket ended when its leader was asked; 0 for a bucket
    /// that has no replicas.
    leader_last: u64,
    /// How often another consumer was asked for what lies there.
    looks: u32,
    /// So many messages there were when it began.
    announced: u64,
    /// It was told that there is more.
    extended: bool,
    /// Consumers of this scan before this one.
    generation: u32,
}

impl Scan {
    /// Begins a scan of the newest revisions on the registry's session. `info`
    /// is the bucket's.
    pub fn begin(registry: &mut Registry, info: &StreamInfo) -> Result<Scan, RegistryError> {
        let (consumer, request) = Scan::ask(registry)?;
        let [answer] = registry.ask_all([(SCANNING, request)]);
        Scan::begun(registry, consumer, &answer?, info)
    }

    /// The name of a consumer for a scan on the registry's session, and the
    /// request that makes it, for whoever sends it together with others.
    pub fn ask(registry: &Registry) -> Result<(String, Request), RegistryError> {
        let consumer = consumer_name(registry)?;
        let request = requests::create_consumer(registry.bucket(), &consumer, CONSUMER_KEPT);
        Ok((consumer, request))
    }

    /// Begins a scan with the answer to [`Scan::ask`]'s request.
    pub fn begun(
        registry: &mut Registry,
        consumer: String,
        answer: &Answer,
        info: &StreamInfo,
    ) -> Result<Scan, RegistryError> {
        let pending = made(registry, answer)?;
        let is_replicated = info.number("num_replicas") > 1;
        Ok(Scan {
            leader_last: if is_replicated { info.state.last_seq } else { 0 },
            consumer,
            reads: Reads::Newest,
            history: info.history(),
            pulls: Pulls::over(1..=u64::MAX, pending),
            deadline: Instant::now() + registry.timeout(),
            restarts: 0,
            resumed_at: 0,
            gone_since: None,
            looks: 0,
            announced: pending,
            extended: false,
            generation: 0,
        })
    }

    /// Begins a scan that bears that what it has read is removed meanwhile:
    /// over *every* revision from `first` on, up to the last one that `info`
    /// knows.
    pub fn begin_removing(
        registry: &mut Registry,
        info: &StreamInfo,
        first: u64,
    ) -> Result<Scan, RegistryError> {
        // Another name than that of an earlier scan on this session.
        let consumer = format!("{}-r", consumer_name(registry)?);
        let request = requests::create_reader(registry.bucket(), &consumer, first, REMOVING_KEPT);
        let [answer] = registry.ask_all([(SCANNING, request)]);
        let pending = made(registry, &answer?)?;
        Ok(Scan {
            leader_last: 0,
            consumer,
            reads: Reads::Every,
            history: info.history(),
            pulls: Pulls::over(first..=info.state.last_seq, pending),
            deadline: Instant::now() + registry.timeout(),
            restarts: 0,
            resumed_at: 0,
            gone_since: None,
            looks: 0,
            announced: pending,
            extended: false,
            generation: 0,
        })
    }

    /// So many messages there were when it began: keys, where it reads the
    /// newest revisions.
    pub fn announced(&self) -> u64 {
        self.announced
    }

    /// Goes on up to revision `last`, if it ended before.
    pub fn extend(&mut self, last: u64) {
        self.leader_last = self.leader_last.max(last);
        self.extended = true;
    }

    /// Whether it was told to go on.
    pub fn was_extended(&self) -> bool {
        self.extended
    }

    /// The next entry, delete markers included; `None` at the end.
    pub fn next(&mut self, registry: &mut Registry) -> Result<Option<Entry>, RegistryError> {
        while !self.is_finished() || self.look_again(registry)? {
            match self.step(registry) {
                Ok(Some(entry)) => return Ok(Some(entry)),
                Ok(None) => {}
                Err(error) => self.go_on_after(registry, error)?,
            }
        }
        Ok(None)
    }

    /// Whether there may be more, although the consumer has no more: it reads
    /// one replica of the bucket, and that one may lag behind the leader, who
    /// said where the bucket ends. What lies there may have expired as well, so
    /// another consumer is asked, which is likely on another replica.
    fn look_again(&mut self, registry: &mut Registry) -> Result<bool, RegistryError> {
        if self.pulls.last() >= self.leader_last || self.looks == LOOKS_AGAIN {
            return Ok(false);
        }
        self.looks += 1;
        registry.idle_until(Instant::now() + LAG_PAUSE * self.looks);
        self.restart(registry)?;
        Ok(true)
    }

    fn step(&mut self, registry: &mut Registry) -> Result<Option<Entry>, RegistryError> {
        self.pull(registry)?;
        let arrival = registry.receive(SCANNING, self.deadline)?;
        let entry = self.take(registry, arrival)?;
        if entry.is_none() && Instant::now() >= self.deadline {
            return Err(RegistryError::Request(SCANNING, RequestError::TimedOut));
        }
        Ok(entry)
    }

    /// Whether everything has been read.
    pub fn is_finished(&self) -> bool {
        self.pulls.is_finished()
    }

    /// Without an entry by then the server is silent; `None` where it was not
    /// asked for any.
    pub fn deadline(&self) -> Option<Instant> {
        self.pulls.are_under_way().then_some(self.deadline)
    }

    /// Asks for more, where that is due.
    pub fn pull(&mut self, registry: &mut Registry) -> Result<(), RegistryError> {
        let Some(next) = self.pulls.due() else { return Ok(()) };
        let request = requests::pull(registry.bucket(), &self.consumer, next.batch, next.max_bytes);
        match registry.send(SCANNING, &request) {
            Ok(token) => {
                if !self.pulls.are_under_way() {
                    self.deadline = Instant::now() + registry.timeout();
                }
                self.pulls.sent(token, next);
            }
            // What came before the session ended is still to be had.
            Err(RegistryError::Request(_, RequestError::Lost(_))) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Whether an arrival is for this scan.
    pub fn owns(&self, arrival: &Arrival) -> bool {
        match arrival {
            Arrival::Message(Some(token), _) | Arrival::Refused(token, _) => {
                self.pulls.is_under_way(*token)
            }
            Arrival::Message(None, _) => true,
        }
    }

    /// Takes an arrival; an entry, if it brought one.
    pub fn take(
        &mut self,
        registry: &Registry,
        arrival: Arrival,
    ) -> Result<Option<Entry>, RegistryError> {
        let (token, message) = match arrival {
            Arrival::Message(token, message) => (token, message),
            Arrival::Refused(token, what) if self.pulls.is_under_way(token) => {
                return Err(RegistryError::Request(SCANNING, RequestError::Denied(what)));
            }
            Arrival::Refused(..) => return Ok(None),
        };
        let contradicted = |why: Contradiction| {
            RegistryError::Reply(SCANNING, ReplyError::Unreadable(why.to_string()))
        };
        if let Some(token) = token {
            let (status, text) = (message.status(), message.status_text());
            return match self.pulls.ended(token, status, &text).map_err(contradicted)? {
                Ended::Early => Ok(None),
                Ended::ConsumerGone => {
                    Err(RegistryError::Request(SCANNING, RequestError::NoResponders))
                }
            };
        }
        let Some(delivery) = message.reply().and_then(stored::delivery) else {
            return Ok(None);
        };
        let is_new = self.pulls.delivered(&delivery).map_err(contradicted)?;
        self.deadline = Instant::now() + registry.timeout();
        self.gone_since = None;
        Ok(is_new.then(|| Entry::of_delivery(registry.bucket(), message, &delivery)))
    }

    /// Removes the consumer, before the server forgets it by itself.
    pub fn end(self, registry: &mut Registry) {
        let request = requests::delete_consumer(registry.bucket(), &self.consumer);
        if let Err(error) = registry.request(SCANNING, &request) {
            debug!("the consumer {} is left to its end: {error}", self.consumer);
        }
    }

    /// Goes on after what can be survived: a lost session, and a consumer that
    /// went with its member of the cluster. The error is what cannot.
    pub fn go_on_after(
        &mut self,
        registry: &mut Registry,
        error: RegistryError,
    ) -> Result<(), RegistryError> {
        match &error {
            RegistryError::Request(_, RequestError::Lost(why)) => {
                debug!("session lost after revision {}: {why}", self.pulls.last());
                self.count_restart(error)?;
                let limit = registry.timeout();
                registry.connect(limit)?;
                self.restart(registry)
            }
            RegistryError::Request(SCANNING, RequestError::NoResponders) => {
                debug!("the consumer is gone after revision {}", self.pulls.last());
                let now = Instant::now();
                if now >= *self.gone_since.get_or_insert(now) + registry.timeout() {
                    return Err(error);
                }
                registry.idle_until(Instant::now() + CONSUMER_PAUSE);
                self.restart(registry)
            }
            _ => Err(error),
        }
    }

    fn count_restart(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        let last = self.pulls.last();
        self.restarts = if self.resumed_at == last { self.restarts + 1 } else { 1 };
        self.resumed_at = last;
        if self.restarts > FRUITLESS_RESTARTS { Err(error) } else { Ok(()) }
    }

    /// Goes on with a fresh consumer on the registry's session.
    pub fn restart(&mut self, registry: &mut Registry) -> Result<(), RegistryError> {
        self.generation += 1;
        self.consumer = format!("{}-{}", consumer_name(registry)?, self.generation);
        let bucket = registry.bucket();
        // Where the newest of a key has to be told from older ones the server
        // does it, and delivers all of them again.
        let request = if self.reads == Reads::Newest && self.history != 1 {
            requests::create_consumer(bucket, &self.consumer, CONSUMER_KEPT)
        } else {
            let first = self.pulls.last() + 1;
            requests::create_reader(bucket, &self.consumer, first, REMOVING_KEPT)
        };
        let [answer] = registry.ask_all([(SCANNING, request)]);
        let pending = made(registry, &answer?)?;
        self.pulls.restart(pending);
        Ok(())
    }
}

/// How many messages the consumer has that was made.
fn made(registry: &mut Registry, answer: &Answer) -> Result<u64, RegistryError> {
    let made = replies::read_consumer_info(answer.message.data())
        .map_err(|error| RegistryError::Reply(SCANNING, error))?;
    registry.set_clock(made.ts, answer.arrived);
    Ok(made.pending)
}

fn consumer_name(registry: &Registry) -> Result<String, RegistryError> {
    match registry.session() {
        Some(session) => Ok(format!("aegis-{}", session.unique())),
        None => {
            let error = RequestError::Lost("not connected".into());
            Err(RegistryError::Request(SCANNING, error))
        }
    }
}
