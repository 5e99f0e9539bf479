//! The registry, spoken on a connection: one bucket of service instances.
//!
//! Thin: what to send and what a reply means is decided in `kv`, `fitness` and
//! `instance`; here it is sent, waited for within bounds, and its failures are
//! put into words. What to do about them is the verbs' business.

// The doors read the clock.
#![allow(clippy::disallowed_methods)]

use std::collections::VecDeque;
use std::error::Error as StdError;
use std::fmt;
use std::time::{Duration, Instant};

use log::debug;
use time::OffsetDateTime;

use crate::connection::{ConnectError, Connector, Incoming, RequestError, Session};
use crate::error::{Failure, Kind};
use crate::fitness::{self, Unfit};
use crate::kv::{self, ApiError, Bucket, Put, ReplyError, Request, StoredMessage, StreamInfo};
use crate::look::ServerInfo;
use crate::staleness::{Stored, Ttl, stored_ttl};

/// Largest pull batch: each message waits in the crate's queue with 2.4 KB.
const FULL_BATCH: usize = 1_000;
/// Behind a poison record batches begin small: all of a batch is read again.
const CAREFUL_BATCH: usize = 32;
/// Two pulls under way keep the server busy while one is worked on.
const PULLS: usize = 2;
/// A session lost this often in a row during a scan, with no poison record
/// to blame, is an outage.
const FRUITLESS_RESTARTS: u32 = 3;
/// How long the server keeps a consumer that nobody asks for messages.
const CONSUMER_KEPT: Duration = Duration::from_secs(30);

/// Why an exchange with the registry failed.
#[derive(Debug)]
pub enum RegistryError {
    /// No session came about.
    Connect(ConnectError),
    /// The session failed during what is named.
    Request(&'static str, RequestError),
    /// The server refused what is named.
    Reply(&'static str, ReplyError),
    /// Nothing may be written here.
    Unfit(Unfit),
}

impl RegistryError {
    /// The server's error code, if it is one that refuses.
    pub fn api_code(&self) -> Option<u32> {
        match self {
            RegistryError::Reply(_, ReplyError::Api(error)) => Some(error.err_code),
            _ => None,
        }
    }

    /// What the server does not permit, such as `publish to "..."`.
    pub fn denied(&self) -> Option<&str> {
        match self {
            RegistryError::Request(_, RequestError::Denied(what)) => Some(what),
            _ => None,
        }
    }
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RegistryError::Connect(error) => error.fmt(f),
            RegistryError::Request(doing, error) => write!(f, "{doing}: {error}"),
            RegistryError::Reply(doing, error) => write!(f, "{doing}: {error}"),
            RegistryError::Unfit(unfit) => unfit.fmt(f),
        }
    }
}

impl StdError for RegistryError {}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Failure {
        let text = error.to_string();
        match error {
            RegistryError::Connect(error) => error.into(),
            RegistryError::Unfit(unfit) => unfit.into(),
            RegistryError::Request(_, RequestError::Denied(what)) => {
                Failure::new(Kind::Refused, text).with_hint(format!(
                    "give the user of this program the permission to {what}; \
                     the README lists what each verb needs"
                ))
            }
            RegistryError::Request(_, RequestError::NoResponders) => {
                Failure::new(Kind::Unavailable, text).with_hint(
                    "is JetStream enabled, for this account too, and has the cluster a leader?",
                )
            }
            RegistryError::Request(_, RequestError::TimedOut) => {
                Failure::new(Kind::Unavailable, text).with_hint(
                    "the server may be slow or frozen (see --timeout); a wrong --inbox-prefix \
                     looks the same",
                )
            }
            RegistryError::Request(..) => Failure::new(Kind::Unavailable, text),
            RegistryError::Reply(_, ReplyError::Api(api)) => {
                let failure = Failure::new(Kind::Unavailable, text);
                match api.err_code {
                    ApiError::NO_JETSTREAM | ApiError::NO_JETSTREAM_ACCOUNT => failure.with_hint(
                        "enable JetStream in the server's configuration, for this account too",
                    ),
                    _ => failure,
                }
            }
            RegistryError::Reply(..) => Failure::new(Kind::Unavailable, text),
        }
    }
}

/// The registry's clock: the server's `ts`, carried forward with the
/// monotonic clock, so that no wall clock of any host is asked.
#[derive(Debug, Clone, Copy)]
pub struct RegistryClock {
    ts: OffsetDateTime,
    seen: Instant,
}

impl RegistryClock {
    /// How long ago the server told it.
    pub fn age(&self) -> Duration {
        self.seen.elapsed()
    }

    /// The registry's time now.
    pub fn now(&self) -> OffsetDateTime {
        let passed = time::Duration::try_from(self.seen.elapsed()).unwrap_or(time::Duration::MAX);
        self.ts.saturating_add(passed)
    }
}

/// One stored revision of a key.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The key, not validated: anyone may write to the bucket.
    pub key: String,
    /// The revision.
    pub revision: u64,
    /// When the server stored it, and for how long.
    pub stored: Stored,
    /// A delete marker, of a client or of the server itself.
    pub deleted: bool,
    /// The value.
    pub value: Vec<u8>,
    /// The client library cannot decode it, and why.
    pub poison: Option<&'static str>,
}

impl Entry {
    fn of_message(bucket: &Bucket, message: StoredMessage) -> Entry {
        let operation = message.header(kv::OPERATION_HEADER);
        Entry {
            key: bucket.key(&message.subject).unwrap_or(&message.subject).to_owned(),
            revision: message.sequence,
            stored: Stored {
                at: message.stored,
                ttl: stored_ttl(message.header(kv::TTL_HEADER).as_deref()),
            },
            deleted: matches!(operation.as_deref(), Some("DEL" | "PURGE"))
                || message.header(kv::MARKER_REASON_HEADER).is_some(),
            poison: message.poison(),
            value: message.data,
        }
    }

    fn of_delivery(bucket: &Bucket, message: Incoming, delivery: &kv::Delivery) -> Entry {
        let key = bucket.key(&message.subject).unwrap_or(&message.subject).to_owned();
        Entry::of_value(message, key, delivery.sequence, delivery.stored)
    }

    fn of_value(message: Incoming, key: String, revision: u64, at: OffsetDateTime) -> Entry {
        let operations = message.header_values(kv::OPERATION_HEADER);
        let deleted = operations.iter().any(|op| matches!(op.trim(), "DEL" | "PURGE"))
            || !message.header_values(kv::MARKER_REASON_HEADER).is_empty();
        // The crate loses the order of several values of one header, and the
        // server obeys the first. Taking the longest errs towards sparing it.
        let ttls = message.header_values(kv::TTL_HEADER);
        let longest =
            ttls.iter().map(|ttl| stored_ttl(Some(ttl.trim()))).max_by_key(|ttl| match ttl {
                Ttl::Never => Duration::ZERO,
                Ttl::After(ttl) => *ttl,
            });
        Entry {
            key,
            revision,
            stored: Stored { at, ttl: longest.unwrap_or(Ttl::Never) },
            deleted,
            poison: None,
            value: message.data,
        }
    }
}

/// One bucket, over one session at a time.
pub struct Registry {
    bucket: Bucket,
    connector: Connector,
    session: Option<Session>,
    clock: Option<RegistryClock>,
    /// No exchange goes on behind this.
    end: Option<Instant>,
}

impl Registry {
    /// A registry that is not connected yet.
    pub fn new(connector: Connector, bucket: Bucket) -> Registry {
        Registry { bucket, connector, session: None, clock: None, end: None }
    }

    /// Connects, within the connector's timeout.
    pub fn connected(connector: Connector, bucket: Bucket) -> Result<Registry, RegistryError> {
        let mut registry = Registry::new(connector, bucket);
        let limit = registry.timeout();
        registry.connect(limit)?;
        Ok(registry)
    }

    /// The bucket.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// Bounds each exchange.
    pub fn timeout(&self) -> Duration {
        let timeout = self.connector.timeout();
        match self.end {
            Some(end) => timeout.min(end.saturating_duration_since(Instant::now())),
            None => timeout,
        }
    }

    /// Bounds all exchanges from now on together.
    pub fn end_within(&mut self, limit: Duration) {
        self.end = Some(Instant::now() + limit);
    }

    /// Replaces the session by a fresh one, within `limit`.
    pub fn connect(&mut self, limit: Duration) -> Result<(), RegistryError> {
        self.session = None;
        let session = self.connector.open(limit).map_err(RegistryError::Connect)?;
        debug!(
            "connected to {} ({}, nats-server {})",
            session.address, session.server.server_name, session.server.version
        );
        self.session = Some(session);
        Ok(())
    }

    /// Gives the session up: it is in doubt.
    pub fn disconnect(&mut self) {
        self.session = None;
    }

    /// The session, if there is one that has not ended.
    pub fn session(&self) -> Option<&Session> {
        self.session.as_ref().filter(|session| !session.has_ended())
    }

    /// What the connected server said of itself.
    pub fn server(&self) -> Option<&ServerInfo> {
        self.session.as_ref().map(|session| &session.server)
    }

    /// The registry's clock, once a reply has told it.
    pub fn clock(&self) -> Option<RegistryClock> {
        self.clock
    }

    /// Sends a request; its reply carries the returned inbox.
    pub fn send(
        &mut self,
        doing: &'static str,
        request: &Request,
    ) -> Result<String, RegistryError> {
        let failed = |error| RegistryError::Request(doing, error);
        let session = self.session.as_mut().ok_or_else(|| failed(no_session()))?;
        session.send(request).map_err(failed)
    }

    /// The next message for this session; see [`Session::receive`].
    pub fn receive(
        &mut self,
        doing: &'static str,
        deadline: Instant,
    ) -> Result<Incoming, RegistryError> {
        let failed = |error| RegistryError::Request(doing, error);
        let session = self.session.as_mut().ok_or_else(|| failed(no_session()))?;
        session.receive(deadline).map_err(failed)
    }

    /// Waits for the reply to one request that was sent, within the timeout.
    pub fn answer(&mut self, doing: &'static str, inbox: &str) -> Result<Incoming, RegistryError> {
        let deadline = Instant::now() + self.timeout();
        let failed = |error| RegistryError::Request(doing, error);
        let session = self.session.as_mut().ok_or_else(|| failed(no_session()))?;
        session.answer(inbox, deadline).map_err(failed)
    }

    /// Sends a request and waits for its reply, within the timeout.
    pub fn request(
        &mut self,
        doing: &'static str,
        request: &Request,
    ) -> Result<Incoming, RegistryError> {
        let inbox = self.send(doing, request)?;
        self.answer(doing, &inbox)
    }

    /// The bucket's configuration and state; sets the registry's clock.
    /// `None` where it does not exist.
    pub fn info(&mut self) -> Result<Option<StreamInfo>, RegistryError> {
        const DOING: &str = "looking at the bucket";
        let request = kv::stream_info(&self.bucket);
        let reply = self.request(DOING, &request)?;
        match self.read_info(DOING, &reply) {
            Err(error) if error.api_code() == Some(ApiError::NO_STREAM) => Ok(None),
            result => result.map(Some),
        }
    }

    /// Makes the bucket, or changes it by `request`, and returns what the
    /// server made of that: it may drop what it does not know.
    pub fn configure(
        &mut self,
        doing: &'static str,
        request: &Request,
    ) -> Result<StreamInfo, RegistryError> {
        let reply = self.request(doing, request)?;
        self.read_info(doing, &reply)
    }

    /// Reads a reply that carries a stream's information, and its clock.
    pub fn read_info(
        &mut self,
        doing: &'static str,
        reply: &Incoming,
    ) -> Result<StreamInfo, RegistryError> {
        let info = kv::read_stream_info(&reply.data).map_err(|e| RegistryError::Reply(doing, e))?;
        self.set_clock(info.ts);
        Ok(info)
    }

    fn set_clock(&mut self, ts: Option<OffsetDateTime>) {
        if let Some(ts) = ts {
            let seen = Instant::now();
            self.clock = Some(RegistryClock { ts, seen });
        }
    }

    /// The bucket, existing and fit to write heartbeats to.
    pub fn fit_info(&mut self) -> Result<StreamInfo, RegistryError> {
        let connected = self.server().map_or(String::new(), |server| server.version.clone());
        let Some(info) = self.info()? else {
            fitness::judge_server(&connected).map_err(RegistryError::Unfit)?;
            return Err(RegistryError::Unfit(Unfit::NoBucket(self.bucket.clone())));
        };
        fitness::judge_bucket(&self.bucket, &info, &connected).map_err(RegistryError::Unfit)?;
        Ok(info)
    }

    /// The newest revision of a key, markers included; `None` where there is
    /// none.
    pub fn get(&mut self, key: &str) -> Result<Option<Entry>, RegistryError> {
        const DOING: &str = "reading the entry";
        let request = kv::direct_get(&self.bucket, key);
        let reply = match self.request(DOING, &request) {
            // Direct access is off.
            Err(RegistryError::Request(_, RequestError::NoResponders)) => {
                return self.get_message(DOING, &kv::get_last(&self.bucket, key));
            }
            reply => reply?,
        };
        if let Some((revision, at)) = kv::direct_origin(|name| reply.header_values(name)) {
            return Ok(Some(Entry::of_value(reply, key.to_owned(), revision, at)));
        }
        match reply.status() {
            Some(404) => Ok(None),
            // Its writer put headers of the same names, and the crate loses
            // which came last: ask in the other way.
            None => self.get_message(DOING, &kv::get_last(&self.bucket, key)),
            Some(status) => Err(RegistryError::Reply(
                DOING,
                ReplyError::Unreadable(format!("status {status} {}", reply.status_text())),
            )),
        }
    }

    /// One stored message by `STREAM.MSG.GET`; `None` where there is none.
    pub fn get_message(
        &mut self,
        doing: &'static str,
        request: &Request,
    ) -> Result<Option<Entry>, RegistryError> {
        let reply = self.request(doing, request)?;
        match kv::read_message(&reply.data) {
            Ok(message) => Ok(Some(Entry::of_message(&self.bucket, message))),
            Err(ReplyError::Api(error)) if error.err_code == ApiError::NO_MESSAGE => Ok(None),
            Err(error) => Err(RegistryError::Reply(doing, error)),
        }
    }

    /// Stores a value that expires, and returns its revision.
    pub fn put(&mut self, put: Put<'_>) -> Result<u64, RegistryError> {
        const DOING: &str = "writing the entry";
        let request = kv::put(&self.bucket, put);
        let reply = self.request(DOING, &request)?;
        kv::acknowledged(&reply.data).map_err(|error| RegistryError::Reply(DOING, error))
    }

    /// Puts a delete marker over exactly `revision`: a purge marker, which
    /// leaves nothing under it, where the bucket permits.
    pub fn deregister(&mut self, key: &str, revision: u64) -> Result<(), RegistryError> {
        const DOING: &str = "deregistering";
        for rollup in [true, false] {
            let request = kv::deregister(&self.bucket, key, revision, rollup);
            let reply = self.request(DOING, &request)?;
            match kv::acknowledged(&reply.data) {
                Ok(_) => return Ok(()),
                Err(ReplyError::Api(error)) if rollup && error.err_code == ApiError::ROLLUP => {}
                Err(error) => return Err(RegistryError::Reply(DOING, error)),
            }
        }
        Ok(())
    }
}

fn no_session() -> RequestError {
    RequestError::Lost("not connected".into())
}

const SCANNING: &str = "reading the bucket";

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
    finished: bool,
    restarts: u32,
}

struct Pull {
    inbox: String,
    left: usize,
    served: bool,
}

impl Scan {
    /// Begins a scan on the registry's session. `info` is the bucket's.
    pub fn begin(registry: &mut Registry, info: &StreamInfo) -> Result<Scan, RegistryError> {
        let consumer = match registry.session.as_ref() {
            Some(session) => format!("aegis-{}", session.unique()),
            None => return Err(RegistryError::Request(SCANNING, no_session())),
        };
        let request = kv::create_consumer(&registry.bucket, &consumer, CONSUMER_KEPT);
        let reply = registry.request(SCANNING, &request)?;
        let made = kv::read_consumer_info(&reply.data)
            .map_err(|error| RegistryError::Reply(SCANNING, error))?;
        registry.set_clock(made.ts);
        Ok(Scan {
            consumer,
            history: info.history(),
            batch: FULL_BATCH,
            pulls: VecDeque::new(),
            reread: VecDeque::new(),
            last: 0,
            finished: made.pending == 0,
            restarts: 0,
        })
    }

    /// Whether nothing is under way: then other requests may use the session.
    pub fn is_between_batches(&self) -> bool {
        self.pulls.is_empty()
    }

    /// The next entry, delete markers included; `None` at the end.
    ///
    /// New batches are asked for `ahead` of need, or only once the last one
    /// has been handed out.
    pub fn next(
        &mut self,
        registry: &mut Registry,
        ahead: bool,
    ) -> Result<Option<Entry>, RegistryError> {
        loop {
            if let Some(entry) = self.reread.pop_front() {
                return Ok(Some(entry));
            }
            if self.finished {
                return Ok(None);
            }
            match self.step(registry, ahead) {
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
        let request = kv::delete_consumer(&registry.bucket, &self.consumer);
        if let Err(error) = registry.request(SCANNING, &request) {
            debug!("the consumer {} is left to its end: {error}", self.consumer);
        }
    }

    fn step(
        &mut self,
        registry: &mut Registry,
        ahead: bool,
    ) -> Result<Option<Entry>, RegistryError> {
        if self.pulls.is_empty() || (ahead && self.pulls.len() < PULLS) {
            while self.pulls.len() < PULLS {
                let request = kv::pull(&registry.bucket, &self.consumer, self.batch);
                let inbox = registry.send(SCANNING, &request)?;
                self.pulls.push_back(Pull { inbox, left: self.batch, served: false });
            }
        }
        let deadline = Instant::now() + registry.timeout();
        let message = registry.receive(SCANNING, deadline)?;
        let Some(delivery) = message.reply.as_deref().and_then(kv::delivery) else {
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
        self.last = delivery.sequence;
        if delivery.pending == 0 {
            self.finished = true;
            self.pulls.clear();
        }
        Ok(Some(Entry::of_delivery(&registry.bucket, message, &delivery)))
    }

    /// A pull ends with a status when there was less than it asked for.
    fn take_status(&mut self, message: &Incoming) -> Result<(), RegistryError> {
        let Some(at) = self.pulls.iter().position(|pull| pull.inbox == message.subject) else {
            return Ok(());
        };
        let pull = self.pulls.remove(at);
        match message.status() {
            Some(404) if pull.is_some_and(|pull| !pull.served) && self.pulls.is_empty() => {
                self.finished = true;
                Ok(())
            }
            Some(404 | 408) => Ok(()),
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
        debug!("session lost behind revision {}: {why}", self.last);
        self.pulls.clear();
        self.batch = CAREFUL_BATCH;
        let limit = registry.timeout();
        registry.connect(limit)?;
        let request = kv::consumer_info(&registry.bucket, &self.consumer);
        let reply = registry.request(SCANNING, &request)?;
        let info = kv::read_consumer_info(&reply.data)
            .map_err(|error| RegistryError::Reply(SCANNING, error))?;
        self.reread(registry, info.delivered)?;
        self.finished = info.pending == 0;
        Ok(())
    }

    /// Reads what was delivered to nobody, up to sequence `through`.
    fn reread(&mut self, registry: &mut Registry, through: u64) -> Result<(), RegistryError> {
        while self.last < through {
            let request = kv::get_next(&registry.bucket, self.last + 1);
            let reply = registry.request(SCANNING, &request)?;
            let message = match kv::read_message(&reply.data) {
                Ok(message) => message,
                Err(ReplyError::Api(error)) if error.err_code == ApiError::NO_MESSAGE => break,
                Err(error) => return Err(RegistryError::Reply(SCANNING, error)),
            };
            if message.sequence > through {
                break;
            }
            self.last = message.sequence;
            if message.poison().is_some() {
                self.restarts = 0;
            }
            if self.history == 1 || is_newest(registry, &message)? {
                self.reread.push_back(Entry::of_message(&registry.bucket, message));
            }
        }
        self.last = self.last.max(through);
        Ok(())
    }
}

/// Whether no later revision of the message's key exists.
fn is_newest(registry: &mut Registry, message: &StoredMessage) -> Result<bool, RegistryError> {
    let request = kv::get_last_of_subject(&registry.bucket, &message.subject);
    let reply = registry.request(SCANNING, &request)?;
    match kv::read_message(&reply.data) {
        Ok(last) => Ok(last.sequence == message.sequence),
        // A subject that is not UTF-8 cannot be asked for: show it.
        Err(ReplyError::Api(_)) => Ok(message.poison().is_some()),
        Err(error) => Err(RegistryError::Reply(SCANNING, error)),
    }
}
