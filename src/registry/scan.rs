//! A scan: the newest revision of every key of a bucket, through one ephemeral
//! consumer.
//!
//! A bounded number of messages is under way. What an entry is worth is for the
//! verbs to say; the bookkeeping is in `jetstream::pulls`.

// A door: it reads the clock.
#![allow(clippy::disallowed_methods)]

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use log::debug;

use super::Registry;
use super::asking::{Answer, Ask};
use super::failure::RegistryError;
use crate::instance::entry::Entry;
use crate::jetstream::pulls::{Batches, Contradiction, Ended, Pulls};
use crate::jetstream::replies::{self, ReplyError, StreamInfo};
use crate::jetstream::{requests, stored};
use crate::nats::{Arrival, RequestError, Session};

/// A session lost this often in a row during a scan, without an entry in
/// between, is an outage.
const FRUITLESS_RESTARTS: u32 = 3;
/// Between two consumers, where the first one is gone.
const CONSUMER_PAUSE: Duration = Duration::from_millis(100);
/// Other consumers are asked for what a lagging replica may lack, each after such a
/// time: healthy replicas lag by some milliseconds, on a busy machine by more.
const LAG_PAUSES: [Duration; 3] =
    [Duration::from_millis(30), Duration::from_millis(100), Duration::from_millis(300)];
/// A consumer that was asked for messages and has not delivered any by then is
/// given up for another one: the member of the cluster that has it may be dead.
/// Longer where the server is slow to greet.
const CONSUMER_PATIENCE: Duration = Duration::from_millis(700);
/// How long an answer to the removal of a consumer is waited for.
const ENDING: Duration = Duration::from_millis(300);
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
    /// key, and what was read may be removed meanwhile.
    Every,
}

/// Reads a bucket in the order of revisions.
pub struct Scan {
    consumer: String,
    reads: Reads,
    history: i64,
    /// The bucket is in a cluster, and a consumer on any member of it.
    is_clustered: bool,
    pulls: Pulls,
    /// Without an entry by then the server is silent.
    deadline: Instant,
    /// When this consumer was asked, or delivered last.
    heard: Instant,
    /// This consumer took the place of a silent one: its time limit goes on
    /// from there.
    replaced: bool,
    /// Sessions lost in a row, and where the last one began.
    restarts: u32,
    resumed_at: u64,
    /// No consumer has delivered anything since then.
    gone_since: Option<Instant>,
    /// Where a replicated bucket ended when its leader was asked; 0 for a bucket
    /// that has no replicas.
    leader_last: u64,
    /// How often another consumer was asked for what lies there.
    looks: usize,
    /// So many messages there were when it began.
    announced: u64,
    /// It was told that there is more.
    extended: bool,
}

impl Scan {
    /// Begins a scan of the newest revisions on the registry's session. `info`
    /// is the bucket's.
    pub fn begin(registry: &mut Registry, info: &StreamInfo) -> Result<Scan, RegistryError> {
        registry.ensure_session()?;
        let (consumer, ask) = Scan::ask(registry)?;
        let [answer] = registry.ask_anywhere(&[(SCANNING, ask)]);
        Scan::begun(registry, consumer, &answer?, info)
    }

    /// The name of consumers for a scan on the registry's session, and the
    /// question that makes them, for whoever sends it together with others.
    pub fn ask(registry: &Registry) -> Result<(String, Ask), RegistryError> {
        let name = consumer_name(registry)?;
        let (bucket, prefix) = (registry.bucket().clone(), name.clone());
        let ask = Ask::Otherwise(Box::new(move |turn| {
            requests::create_consumer(&bucket, &numbered(&prefix, turn), CONSUMER_KEPT)
        }));
        Ok((name, ask))
    }

    /// Begins a scan with the answer to [`Scan::ask`]'s question.
    pub fn begun(
        registry: &mut Registry,
        name: String,
        answer: &Answer,
        info: &StreamInfo,
    ) -> Result<Scan, RegistryError> {
        let pending = made(registry, answer)?;
        let is_replicated = info.number("num_replicas") > 1;
        let leader_last = if is_replicated { info.state.last_seq } else { 0 };
        let pulls = Pulls::over(1..=u64::MAX, pending, Batches::READING);
        let consumer = numbered(&name, answer.turn);
        let scan = Scan::over(registry, consumer, Reads::Newest, info, pulls);
        Ok(Scan { leader_last, announced: pending, ..scan })
    }

    /// Begins a scan during which what it has read may be removed: over *every*
    /// revision of this range, or up to the last one that `info` knows.
    pub fn begin_removing(
        registry: &mut Registry,
        info: &StreamInfo,
        range: Option<RangeInclusive<u64>>,
    ) -> Result<Scan, RegistryError> {
        let first = range.as_ref().map_or(1, |range| *range.start());
        registry.ensure_session()?;
        let session = session_of(registry)?.unique().to_owned();
        let (name, ask) = reading_from(registry, first, REMOVING_KEPT)?;
        let [answer] = registry.ask_anywhere(&[(SCANNING, ask)]);
        let answer = answer?;
        let pending = made(registry, &answer)?;
        // A leader that is cut off and does not know it yet tells an old end.
        let moved = session_of(registry)?.unique() != session;
        let told = if moved && range.is_none() { registry.info_anywhere()? } else { None };
        let last = told.map_or(0, |info| info.state.last_seq).max(info.state.last_seq);
        let range = range.unwrap_or(first..=last);
        let is_replicated = info.number("num_replicas") > 1;
        let leader_last = if is_replicated { *range.end() } else { 0 };
        let consumer = numbered(&name, answer.turn);
        let pulls = Pulls::over(range, pending, Batches::REMOVING);
        Ok(Scan { leader_last, ..Scan::over(registry, consumer, Reads::Every, info, pulls) })
    }

    fn over(
        registry: &Registry,
        consumer: String,
        reads: Reads,
        info: &StreamInfo,
        pulls: Pulls,
    ) -> Scan {
        Scan {
            leader_last: 0,
            consumer,
            reads,
            history: info.history(),
            is_clustered: may_be_elsewhere(registry),
            pulls,
            deadline: registry.now() + registry.timeout(),
            heard: registry.now(),
            replaced: false,
            restarts: 0,
            resumed_at: 0,
            gone_since: None,
            looks: 0,
            announced: 0,
            extended: false,
        }
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
        loop {
            if self.is_finished() {
                match self.looks_again(registry) {
                    Ok(true) => {}
                    Ok(false) => return Ok(None),
                    Err(error) => self.go_on_after(registry, error)?,
                }
                continue;
            }
            match self.step(registry) {
                Ok(Some(entry)) => return Ok(Some(entry)),
                Ok(None) => {}
                Err(error) => self.go_on_after(registry, error)?,
            }
        }
    }

    /// Asks again, and tells so, where the consumer has no more and the
    /// bucket may: a consumer reads one replica, which may lag behind the
    /// leader, who said where the bucket ends. What is missing may also have
    /// expired, so another consumer is asked, which is likely on another
    /// replica.
    pub fn looks_again(&mut self, registry: &mut Registry) -> Result<bool, RegistryError> {
        let Some(pause) = LAG_PAUSES.get(self.looks) else { return Ok(false) };
        if self.pulls.last() >= self.leader_last {
            return Ok(false);
        }
        self.looks += 1;
        registry.pause_until(registry.now() + *pause);
        self.restart(registry)?;
        Ok(true)
    }

    fn step(&mut self, registry: &mut Registry) -> Result<Option<Entry>, RegistryError> {
        self.pull(registry, false)?;
        let arrival = registry.receive(SCANNING, self.silent_at(registry))?;
        let entry = self.take(registry, arrival)?;
        if entry.is_none() && registry.now() >= self.deadline {
            return Err(RegistryError::Request(SCANNING, RequestError::TimedOut));
        }
        Ok(entry)
    }

    /// Without an entry by then something is wrong: with the consumer, or with
    /// the server. Where that is alone they are one, and whoever is silent is
    /// slow: what it has sent comes before anything that another consumer has.
    fn silent_at(&self, registry: &Registry) -> Instant {
        if !self.is_clustered {
            return self.deadline;
        }
        self.deadline.min(self.heard + registry.patience(CONSUMER_PATIENCE))
    }

    /// Whether everything has been read.
    pub fn is_finished(&self) -> bool {
        self.pulls.is_finished()
    }

    /// Without an entry by then something is wrong; `None` where the server was
    /// not asked for any.
    pub fn deadline(&self, registry: &Registry) -> Option<Instant> {
        self.pulls.are_under_way().then(|| self.silent_at(registry))
    }

    /// The last revision that was read.
    pub fn last(&self) -> u64 {
        self.pulls.last()
    }

    /// Whether the consumer is silent and another one may not be.
    pub fn may_replace_consumer(&self, registry: &Registry) -> bool {
        let now = registry.now();
        self.pulls.are_under_way() && now >= self.silent_at(registry) && now < self.deadline
    }

    /// Asks for more, where that is due; for less while `others_wait` for answers
    /// on this session.
    pub fn pull(
        &mut self,
        registry: &mut Registry,
        others_wait: bool,
    ) -> Result<(), RegistryError> {
        let Some(next) = self.pulls.due(others_wait) else { return Ok(()) };
        let request = requests::pull(registry.bucket(), &self.consumer, next.batch, next.max_bytes);
        match registry.send(SCANNING, &request) {
            Ok(token) => {
                let now = registry.now();
                if !self.pulls.are_under_way() {
                    self.heard = now;
                    if !self.replaced {
                        self.deadline = now + registry.timeout();
                    }
                }
                self.pulls.sent(token, next, now);
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
        let delivery = message.reply().and_then(|reply| stored::delivery(reply, &self.consumer));
        let Some(delivery) = delivery else {
            return Ok(None);
        };
        let is_new = self.pulls.delivered(&delivery).map_err(contradicted)?;
        self.heard = registry.now();
        self.deadline = self.heard + registry.timeout();
        self.replaced = false;
        self.gone_since = None;
        Ok(is_new.then(|| Entry::of_delivery(registry.bucket(), message, &delivery)))
    }

    /// Removes the consumer, before the server forgets it by itself.
    pub fn end(self, registry: &mut Registry) {
        let request = requests::delete_consumer(registry.bucket(), &self.consumer);
        if let Err(error) = registry.request_within(SCANNING, &request, ENDING) {
            debug!("the consumer {} is left to its end: {error}", self.consumer);
        }
    }

    /// Goes on after a lost session, and after a consumer that went away with
    /// its member of the cluster, in words or in silence. Gives back every
    /// other error.
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
                let now = registry.now();
                if now >= *self.gone_since.get_or_insert(now) + registry.timeout() {
                    return Err(error);
                }
                registry.pause_until(registry.now() + CONSUMER_PAUSE);
                self.restart(registry)
            }
            RegistryError::Request(SCANNING, RequestError::TimedOut)
                if self.may_replace_consumer(registry) =>
            {
                debug!("the consumer is silent after revision {}", self.pulls.last());
                self.replaced = true;
                self.restart_by(registry, self.deadline)
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

    /// Goes on with a fresh consumer.
    pub fn restart(&mut self, registry: &mut Registry) -> Result<(), RegistryError> {
        self.restart_by(registry, registry.now() + registry.timeout())
    }

    fn restart_by(
        &mut self,
        registry: &mut Registry,
        deadline: Instant,
    ) -> Result<(), RegistryError> {
        registry.ensure_session()?;
        // Not waited for: where it fails the server forgets it by itself.
        let request = requests::delete_consumer(registry.bucket(), &self.consumer);
        registry.send(SCANNING, &request).ok();
        // Where the newest of a key has to be told from older ones the server
        // does it, and delivers all of them again.
        let (name, ask) = if self.reads == Reads::Newest && self.history != 1 {
            Scan::ask(registry)?
        } else {
            let kept = if self.reads == Reads::Every { REMOVING_KEPT } else { CONSUMER_KEPT };
            reading_from(registry, self.pulls.last() + 1, kept)?
        };
        let [answer] = registry.ask_anywhere_until(&[(SCANNING, ask)], deadline);
        let answer = answer?;
        let pending = made(registry, &answer)?;
        self.consumer = numbered(&name, answer.turn);
        self.pulls.restart(pending);
        self.heard = registry.now();
        self.deadline = deadline;
        Ok(())
    }
}

/// The name of consumers over all that is stored from `first` on, and the
/// question that makes them.
fn reading_from(
    registry: &Registry,
    first: u64,
    kept: Duration,
) -> Result<(String, Ask), RegistryError> {
    let name = format!("{}-r", consumer_name(registry)?);
    let (bucket, prefix) = (registry.bucket().clone(), name.clone());
    let ask = Ask::Otherwise(Box::new(move |turn| {
        requests::create_reader(&bucket, &numbered(&prefix, turn), first, kept)
    }));
    Ok((name, ask))
}

/// The name of one of several consumers.
fn numbered(name: &str, turn: u32) -> String {
    format!("{name}-{turn}")
}

/// Whether a consumer may be on another server than the one that we talk to.
fn may_be_elsewhere(registry: &Registry) -> bool {
    let cluster = registry.server().and_then(|server| server.cluster.as_ref());
    cluster.is_some_and(|name| !name.is_empty()) || registry.bucket().domain().is_some()
}

/// How many messages the consumer has that was made.
fn made(registry: &mut Registry, answer: &Answer) -> Result<u64, RegistryError> {
    let made = replies::read_consumer_info(answer.message.data())
        .map_err(|error| RegistryError::Reply(SCANNING, error))?;
    registry.set_clock(made.ts, answer.arrived);
    Ok(made.pending)
}

/// No other consumer of this session has that name: what one delivers that was
/// given up is told from what its successor does.
fn consumer_name(registry: &Registry) -> Result<String, RegistryError> {
    let session = session_of(registry)?;
    Ok(format!("aegis-{}-{}", session.unique(), session.requests()))
}

fn session_of(registry: &Registry) -> Result<&Session, RegistryError> {
    registry.session().ok_or_else(|| {
        let error = RequestError::Lost("not connected".into());
        RegistryError::Request(SCANNING, error)
    })
}
