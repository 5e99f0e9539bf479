//! A scan: the newest revision of every key of a bucket, with a bounded number
//! of messages under way, past records that the client library cannot decode.
//!
//! What an entry is worth is for the verbs to say.

// The doors read the clock.
#![allow(clippy::disallowed_methods)]

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use log::debug;

use crate::connection::{Incoming, RequestError};
use crate::instance::entry::Entry;
use crate::jetstream::replies::{self, ApiError, ReplyError, StreamInfo};
use crate::jetstream::requests::{self, Request};
use crate::jetstream::stored::{self, StoredMessage};
use crate::registry::Registry;
use crate::registry::failure::RegistryError;

/// Largest pull batch: each message waits in the crate's queue with 2.4 KB.
const FULL_BATCH: usize = 1_000;
/// Behind a poison record batches begin small: all of a batch is read again.
const CAREFUL_BATCH: usize = 32;
/// Bytes of one pull: large values wait in the crate's queue as well, and a
/// server cuts off whoever has more than 64 MB to take (`max_pending`).
const PULL_BYTES: usize = 4 << 20;
/// A session lost this often in a row during a scan, with no poison record
/// to blame, is an outage.
const FRUITLESS_RESTARTS: u32 = 3;
/// Pulls that end without a message in a row, while the server says that there
/// is more: one or two are honest, when entries expire meanwhile.
const FRUITLESS_PULLS: u32 = 20;
/// An honest server delivers what it announced, and what is written while the
/// scan goes on; a scan is faster than all writers together.
const DELIVERIES_PER_ENTRY: u64 = 4;
const MORE_DELIVERIES: u64 = 20_000;
/// How long the server keeps a consumer that nobody asks for messages.
const CONSUMER_KEPT: Duration = Duration::from_secs(30);
/// The same while entries are removed, over a slow link as well.
const REMOVING_KEPT: Duration = Duration::from_secs(300);

/// What a scan is doing, for its errors.
pub const SCANNING: &str = "reading the bucket";

/// Reads the newest revision of every key, in the order of revisions, through
/// one ephemeral consumer, with a bounded number of messages under way.
///
/// A *poison* record, which the client library cannot decode, ends the session
/// each time it is delivered. The server's consumer has then moved on, so what
/// was lost with the session is read one by one in a form that is safe, and
/// the scan goes on behind it.
pub struct Scan {
    consumer: String,
    history: i64,
    batch: usize,
    pulls: VecDeque<Pull>,
    /// Read again after a poison record, not handed out yet.
    reread: VecDeque<Entry>,
    /// Sequence of the last message that arrived.
    last: u64,
    /// Nothing behind this sequence is of interest.
    until: u64,
    /// A consumer of this scan is a place to begin at: another one can go on.
    removing: bool,
    /// Where the current session began, so that one without any progress is
    /// known; `None` for the first.
    resumed_at: Option<u64>,
    finished: bool,
    restarts: u32,
    /// Pulls that ended without a message, in a row.
    fruitless: u32,
    /// The next message does not fit into a pull.
    oversized: bool,
    /// Deliveries that are still believed.
    believed: u64,
}

struct Pull {
    inbox: String,
    left: usize,
    served: bool,
}

impl Scan {
    /// Begins a scan on the registry's session. `info` is the bucket's.
    pub fn begin(registry: &mut Registry, info: &StreamInfo) -> Result<Scan, RegistryError> {
        let (consumer, request) = Scan::ask(registry)?;
        let reply = registry.request(SCANNING, &request)?;
        Scan::begun(registry, consumer, &reply, info)
    }

    /// The name of a consumer for a scan on the registry's session, and the
    /// request that makes it, for whoever sends it together with others.
    pub fn ask(registry: &Registry) -> Result<(String, Request), RegistryError> {
        let consumer = consumer_name(registry)?;
        let request = requests::create_consumer(registry.bucket(), &consumer, CONSUMER_KEPT);
        Ok((consumer, request))
    }

    /// Begins a scan with the reply to [`Scan::ask`]'s request.
    pub fn begun(
        registry: &mut Registry,
        consumer: String,
        reply: &Incoming,
        info: &StreamInfo,
    ) -> Result<Scan, RegistryError> {
        Scan::over(registry, consumer, reply, info, 1..=u64::MAX)
    }

    /// Begins a scan that bears that what it has read is removed meanwhile:
    /// over *every* revision from `first` on, up to the last one that `info`
    /// knows. In a bucket without history that is the newest of every key.
    pub fn begin_removing(
        registry: &mut Registry,
        info: &StreamInfo,
        first: u64,
    ) -> Result<Scan, RegistryError> {
        // Another name than that of an earlier scan on this session.
        let consumer = format!("{}-r", consumer_name(registry)?);
        let request = requests::create_reader(registry.bucket(), &consumer, first, REMOVING_KEPT);
        let reply = registry.request(SCANNING, &request)?;
        Scan::over(registry, consumer, &reply, info, first..=info.state.last_seq)
    }

    fn over(
        registry: &mut Registry,
        consumer: String,
        reply: &Incoming,
        info: &StreamInfo,
        range: RangeInclusive<u64>,
    ) -> Result<Scan, RegistryError> {
        let made = replies::read_consumer_info(&reply.data)
            .map_err(|error| RegistryError::Reply(SCANNING, error))?;
        registry.set_clock(made.ts);
        Ok(Scan {
            consumer,
            history: info.history(),
            batch: FULL_BATCH,
            pulls: VecDeque::new(),
            reread: VecDeque::new(),
            last: range.start().saturating_sub(1),
            until: *range.end(),
            removing: *range.end() != u64::MAX,
            resumed_at: None,
            finished: made.pending == 0 || range.is_empty(),
            restarts: 0,
            fruitless: 0,
            oversized: false,
            believed: made
                .pending
                .saturating_mul(DELIVERIES_PER_ENTRY)
                .saturating_add(MORE_DELIVERIES),
        })
    }

    /// The next entry, delete markers included; `None` at the end.
    pub fn next(&mut self, registry: &mut Registry) -> Result<Option<Entry>, RegistryError> {
        loop {
            if let Some(entry) = self.reread.pop_front() {
                return Ok(Some(entry));
            }
            if self.finished {
                return Ok(None);
            }
            match self.step(registry) {
                Ok(Some(entry)) => return Ok(Some(entry)),
                Ok(None) => {}
                Err(RegistryError::Request(_, RequestError::Lost(why))) => {
                    self.resume(registry, &why)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Removes the consumer, before the server forgets it by itself.
    pub fn end(self, registry: &mut Registry) {
        self.delete_consumer(registry);
    }

    fn delete_consumer(&self, registry: &mut Registry) {
        let request = requests::delete_consumer(registry.bucket(), &self.consumer);
        if let Err(error) = registry.request(SCANNING, &request) {
            debug!("the consumer {} is left to its end: {error}", self.consumer);
        }
    }

    fn step(&mut self, registry: &mut Registry) -> Result<Option<Entry>, RegistryError> {
        if self.oversized {
            // Alone: while another pull waits, the server turns down one that
            // may not wait (408).
            if self.pulls.is_empty() {
                self.pull(registry, 1, None)?;
                self.oversized = false;
            }
        } else if self.pulls.is_empty() || self.is_half_read() {
            match self.pull(registry, self.batch, Some(PULL_BYTES)) {
                // What came before the session ended is still to be had.
                Err(RegistryError::Request(_, RequestError::Lost(_))) if !self.pulls.is_empty() => {
                }
                pulled => pulled?,
            }
        }
        let deadline = Instant::now() + registry.timeout();
        let message = registry.receive(SCANNING, deadline)?;
        let Some(delivery) = message.reply.as_deref().and_then(stored::delivery) else {
            return self.take_status(&message).map(|()| None);
        };
        if let Some(pull) = self.pulls.front_mut() {
            pull.served = true;
            pull.left -= 1;
            if pull.left == 0 {
                self.pulls.pop_front();
                self.batch = (self.batch * 2).min(FULL_BATCH);
            }
        }
        if delivery.sequence <= self.last {
            return Err(contradiction("a sequence that does not rise"));
        }
        self.believed = match self.believed.checked_sub(1) {
            Some(left) => left,
            None => return Err(contradiction("more messages than the bucket can hold")),
        };
        self.fruitless = 0;
        self.last = delivery.sequence;
        if delivery.pending == 0 || delivery.sequence >= self.until {
            self.finished = true;
            self.pulls.clear();
        }
        if delivery.sequence > self.until {
            return Ok(None);
        }
        Ok(Some(Entry::of_delivery(registry.bucket(), message, &delivery)))
    }

    /// Whether half of the only pull under way has arrived. The server has sent
    /// the other half by then; earlier it turns down a second one (408).
    fn is_half_read(&self) -> bool {
        match self.pulls.front() {
            Some(pull) if self.pulls.len() == 1 => pull.left <= self.batch / 2,
            _ => false,
        }
    }

    fn pull(
        &mut self,
        registry: &mut Registry,
        batch: usize,
        bytes: Option<usize>,
    ) -> Result<(), RegistryError> {
        let request = requests::pull(registry.bucket(), &self.consumer, batch, bytes);
        let inbox = registry.send(SCANNING, &request)?;
        self.pulls.push_back(Pull { inbox, left: batch, served: false });
        Ok(())
    }

    /// A pull ends with a status when there was less than it asked for.
    fn take_status(&mut self, message: &Incoming) -> Result<(), RegistryError> {
        let Some(at) = self.pulls.iter().position(|pull| pull.inbox == message.subject) else {
            return Ok(());
        };
        let served = self.pulls.remove(at).is_some_and(|pull| pull.served);
        // As many as were asked for, with bytes to spare. From a replicated
        // bucket it can overtake the last of them.
        if message.status() == Some(409) && message.status_text().contains("Batch Completed") {
            return Ok(());
        }
        self.fruitless += 1;
        if self.fruitless > FRUITLESS_PULLS {
            return Err(contradiction("no messages, and says that there are more"));
        }
        match message.status() {
            Some(404) if !served && self.pulls.is_empty() => {
                self.finished = true;
                Ok(())
            }
            Some(404 | 408) => Ok(()),
            // The pull is full, or its first message alone is larger.
            Some(409) if message.status_text().contains("MaxBytes") => {
                self.oversized |= !served;
                Ok(())
            }
            status => {
                let status = status.map_or(String::new(), |status| status.to_string());
                let why = format!("the server ended it: {status} {}", message.status_text());
                Err(RegistryError::Reply(SCANNING, ReplyError::Unreadable(why)))
            }
        }
    }

    /// Goes on with a fresh session after the last one ended.
    fn resume(&mut self, registry: &mut Registry, why: &str) -> Result<(), RegistryError> {
        self.restarts += 1;
        if self.restarts > FRUITLESS_RESTARTS {
            return Err(RegistryError::Request(SCANNING, RequestError::Lost(why.to_owned())));
        }
        let why = if why.is_empty() { "the connection ended" } else { why };
        debug!("session lost behind revision {}: {why}", self.last);
        self.pulls.clear();
        self.fruitless = 0;
        self.batch = CAREFUL_BATCH;
        let limit = registry.timeout();
        registry.connect(limit)?;
        if self.removing {
            return self.resume_removing(registry);
        }
        let request = requests::consumer_info(registry.bucket(), &self.consumer);
        let reply = registry.request(SCANNING, &request)?;
        let info = replies::read_consumer_info(&reply.data)
            .map_err(|error| RegistryError::Reply(SCANNING, error))?;
        self.reread(registry, info.delivered)?;
        self.finished = info.pending == 0;
        Ok(())
    }

    /// Goes on with a consumer that begins behind the last message. A session
    /// that died before it brought one has met a poison record, perhaps: that
    /// one message is read in the safe form.
    fn resume_removing(&mut self, registry: &mut Registry) -> Result<(), RegistryError> {
        if self.resumed_at == Some(self.last) {
            if !self.reread_one(registry, self.until)? {
                self.finished = true;
                return Ok(());
            }
            self.restarts = 0;
        } else if self.resumed_at.is_some() {
            self.restarts = 1;
        }
        self.resumed_at = Some(self.last);
        self.delete_consumer(registry);
        self.consumer = format!("{}-r", consumer_name(registry)?);
        let first = self.last + 1;
        let request =
            requests::create_reader(registry.bucket(), &self.consumer, first, REMOVING_KEPT);
        let reply = registry.request(SCANNING, &request)?;
        let made = replies::read_consumer_info(&reply.data)
            .map_err(|error| RegistryError::Reply(SCANNING, error))?;
        self.finished = made.pending == 0 || self.last >= self.until;
        Ok(())
    }

    /// Reads what was delivered to nobody, up to sequence `through`.
    fn reread(&mut self, registry: &mut Registry, through: u64) -> Result<(), RegistryError> {
        while self.last < through && self.reread_one(registry, through)? {}
        self.last = self.last.max(through);
        Ok(())
    }

    /// Reads the next message up to sequence `through`; `false` if there is
    /// none.
    fn reread_one(&mut self, registry: &mut Registry, through: u64) -> Result<bool, RegistryError> {
        let request = requests::get_next(registry.bucket(), self.last + 1);
        let reply = registry.request(SCANNING, &request)?;
        let message = match stored::read_message(&reply.data) {
            Ok(message) => message,
            Err(ReplyError::Api(error)) if error.err_code == ApiError::NO_MESSAGE => {
                return Ok(false);
            }
            Err(error) => return Err(RegistryError::Reply(SCANNING, error)),
        };
        if message.sequence > through {
            return Ok(false);
        }
        self.last = message.sequence;
        if message.poison().is_some() {
            self.restarts = 0;
        }
        if self.history == 1 || is_newest(registry, &message)? {
            self.reread.push_back(Entry::of_message(registry.bucket(), message));
        }
        Ok(true)
    }
}

fn contradiction(what: &str) -> RegistryError {
    let why = format!("the server contradicts itself: it delivers {what}");
    RegistryError::Reply(SCANNING, ReplyError::Unreadable(why))
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

/// Whether no later revision of the message's key exists.
fn is_newest(registry: &mut Registry, message: &StoredMessage) -> Result<bool, RegistryError> {
    let request = requests::get_last_of_subject(registry.bucket(), &message.subject);
    let reply = registry.request(SCANNING, &request)?;
    match stored::read_message(&reply.data) {
        Ok(last) => Ok(last.sequence == message.sequence),
        // A subject that is not UTF-8 cannot be asked for: show it.
        Err(ReplyError::Api(_)) => Ok(message.poison().is_some()),
        Err(error) => Err(RegistryError::Reply(SCANNING, error)),
    }
}
