//! The registry, spoken on a connection: one bucket of service instances.
//!
//! Thin: what to send and what a reply means is decided in `jetstream` and
//! `instance`; here it is sent, waited for within bounds, and its failures are
//! put into words. What to do about them is the verbs' business.

// The doors read the clock.
#![allow(clippy::disallowed_methods)]

pub mod clock;
pub mod expiry_test;
pub mod failure;
pub mod scan;

use std::time::{Duration, Instant};

use log::debug;
use time::OffsetDateTime;

use self::clock::RegistryClock;
use self::failure::RegistryError;
use crate::connection::{Connector, Incoming, RequestError, Session};
use crate::instance::entry::Entry;
use crate::jetstream::bucket::Bucket;
use crate::jetstream::fitness::{self, Unfit};
use crate::jetstream::replies::{self, ApiError, ReplyError, StreamInfo};
use crate::jetstream::requests::{self, Put, Request};
use crate::jetstream::stored;
use crate::look::ServerInfo;

/// A question that was not answered by then is asked again: a direct get goes
/// to any replica, and that may be the one that hangs.
const ASK_AGAIN: Duration = Duration::from_millis(500);

const READING: &str = "reading the entry";

/// A question that was sent before its answer is waited for.
struct Ahead {
    request: Request,
    inbox: String,
    answer: Option<Result<Incoming, RequestError>>,
}

/// One bucket, over one session at a time.
pub struct Registry {
    bucket: Bucket,
    connector: Connector,
    session: Option<Session>,
    clock: Option<RegistryClock>,
    /// How long the last question waited for its answer.
    answer_time: Duration,
    ahead: Option<Ahead>,
    /// No exchange goes on behind this.
    end: Option<Instant>,
}

impl Registry {
    /// A registry that is not connected yet.
    pub fn new(connector: Connector, bucket: Bucket) -> Registry {
        Registry {
            bucket,
            connector,
            session: None,
            clock: None,
            answer_time: Duration::ZERO,
            ahead: None,
            end: None,
        }
    }

    /// Connects, within the connector's timeout.
    pub fn connected(connector: Connector, bucket: Bucket) -> Result<Registry, RegistryError> {
        let mut registry = Registry::new(connector, bucket);
        let limit = registry.timeout();
        registry.connect(limit)?;
        Ok(registry)
    }

    /// Speaks through another connector from now on, on a fresh session.
    pub fn replace_connector(&mut self, connector: Connector) {
        self.session = None;
        self.ahead = None;
        self.connector = connector;
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
        self.ahead = None;
        let session = self.connector.open(limit).map_err(RegistryError::Connect)?;
        debug!(
            "connected to {} ({}, nats-server {})",
            session.address, session.server.server_name, session.server.version
        );
        self.session = Some(session);
        Ok(())
    }

    /// Moves to a fresh session, within `limit`; keeps the one there is where
    /// none comes about.
    pub fn move_on(&mut self, limit: Duration) -> Result<(), RegistryError> {
        let session = self.connector.open(limit).map_err(RegistryError::Connect)?;
        self.session = Some(session);
        self.ahead = None;
        Ok(())
    }

    /// Gives the session up: it is in doubt.
    pub fn disconnect(&mut self) {
        self.session = None;
        self.ahead = None;
    }

    /// The session, if there is one that has not ended.
    pub fn session(&self) -> Option<&Session> {
        self.session.as_ref().filter(|session| !session.has_ended())
    }

    /// Why the session ended: the server's last words, if any.
    pub fn lost(&self) -> RequestError {
        self.session.as_ref().map_or_else(no_session, Session::lost)
    }

    /// What the connected server said of itself.
    pub fn server(&self) -> Option<&ServerInfo> {
        self.session.as_ref().map(|session| &session.server)
    }

    /// The registry's clock, once a reply has told it.
    pub fn clock(&self) -> Option<RegistryClock> {
        self.clock
    }

    /// How long the last question waited for its answer.
    pub fn answer_time(&self) -> Duration {
        self.answer_time
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
        let began = Instant::now();
        let inbox = self.send(doing, request)?;
        let answer = self.answer(doing, &inbox);
        self.answer_time = began.elapsed();
        answer
    }

    /// As `request`, for a question that may be asked twice: asked again twice a
    /// second until it is answered. A cluster that is choosing a leader does
    /// not answer at all, and nobody tells when it has.
    pub fn ask(
        &mut self,
        doing: &'static str,
        request: &Request,
    ) -> Result<Incoming, RegistryError> {
        let began = Instant::now();
        let deadline = began + self.timeout();
        let failed = |error| RegistryError::Request(doing, error);
        let session = self.session.as_mut().ok_or_else(|| failed(no_session()))?;
        let stopping = session.stop_requested();
        // Where everything takes long, more questions make it longer.
        let again = ASK_AGAIN.max(session.greeting * 2);
        let mut inboxes = Vec::new();
        if let Some(ahead) = self.ahead.take_if(|ahead| ahead.request == *request) {
            if let Some(answer) = ahead.answer {
                return answer.map_err(failed);
            }
            inboxes.push(ahead.inbox);
        }
        let mut asked = !inboxes.is_empty();
        loop {
            if !std::mem::take(&mut asked) {
                inboxes.push(session.send(request).map_err(failed)?);
            }
            let until = deadline.min(Instant::now() + again);
            match answer_to_any(session, &inboxes, &mut self.ahead, until) {
                Err(RequestError::TimedOut)
                    if until < deadline && session.stop_requested() == stopping => {}
                result => {
                    self.answer_time = began.elapsed();
                    return result.map_err(failed);
                }
            }
        }
    }

    /// Sends the question of [`Registry::get`] ahead of others: the crate pauses
    /// for 5 ms between two flushes, and one will do for both.
    pub fn get_ahead(&mut self, key: &str) -> Result<(), RegistryError> {
        let request = requests::direct_get(&self.bucket, key);
        let inbox = self.send(READING, &request)?;
        self.ahead = Some(Ahead { request, inbox, answer: None });
        Ok(())
    }

    /// The bucket's configuration and state; sets the registry's clock.
    /// `None` where it does not exist.
    pub fn info(&mut self) -> Result<Option<StreamInfo>, RegistryError> {
        const DOING: &str = "looking at the bucket";
        let request = requests::stream_info(&self.bucket);
        let reply = self.ask(DOING, &request)?;
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
        let info =
            replies::read_stream_info(&reply.data).map_err(|e| RegistryError::Reply(doing, e))?;
        self.set_clock(info.ts);
        Ok(info)
    }

    /// Sets the registry's clock by the `ts` of a reply that has just come.
    pub fn set_clock(&mut self, ts: Option<OffsetDateTime>) {
        if let Some(ts) = ts {
            self.clock = Some(RegistryClock::told(ts, self.answer_time));
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
        let request = requests::direct_get(&self.bucket, key);
        let reply = match self.ask(READING, &request) {
            // Direct access is off.
            Err(RegistryError::Request(_, RequestError::NoResponders)) => {
                return self.get_message(READING, &requests::get_last(&self.bucket, key));
            }
            reply => reply?,
        };
        if let Some((revision, at)) = stored::direct_origin(|name| reply.header_values(name)) {
            return Ok(Some(Entry::of_value(reply, key.to_owned(), revision, at)));
        }
        match reply.status() {
            Some(404) => Ok(None),
            // Its writer put headers of the same names, and the crate loses
            // which came last: ask in the other way.
            None => self.get_message(READING, &requests::get_last(&self.bucket, key)),
            Some(status) => Err(RegistryError::Reply(
                READING,
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
        let reply = self.ask(doing, request)?;
        match stored::read_message(&reply.data) {
            Ok(message) => Ok(Some(Entry::of_message(&self.bucket, message))),
            Err(ReplyError::Api(error)) if error.err_code == ApiError::NO_MESSAGE => Ok(None),
            Err(error) => Err(RegistryError::Reply(doing, error)),
        }
    }

    /// Stores a value that expires, and returns its revision.
    pub fn put(&mut self, put: Put<'_>) -> Result<u64, RegistryError> {
        self.put_within(put, self.timeout())
    }

    /// As `put`; waits no longer than `limit` for the acknowledgement.
    pub fn put_within(&mut self, put: Put<'_>, limit: Duration) -> Result<u64, RegistryError> {
        const DOING: &str = "writing the entry";
        let request = requests::put(&self.bucket, put);
        let deadline = Instant::now() + limit.min(self.timeout());
        let failed = |error| RegistryError::Request(DOING, error);
        let session = self.session.as_mut().ok_or_else(|| failed(no_session()))?;
        let reply = session.request(&request, deadline).map_err(failed)?;
        replies::acknowledged(&reply.data).map_err(|error| RegistryError::Reply(DOING, error))
    }

    /// Puts a delete marker over exactly `revision`: a purge marker, which
    /// leaves nothing under it, where the bucket permits.
    pub fn deregister(&mut self, key: &str, revision: u64) -> Result<(), RegistryError> {
        const DOING: &str = "deregistering";
        for rollup in [true, false] {
            let request = requests::deregister(&self.bucket, key, revision, rollup);
            let reply = self.request(DOING, &request)?;
            match replies::acknowledged(&reply.data) {
                Ok(_) => return Ok(()),
                Err(ReplyError::Api(error)) if rollup && error.err_code == ApiError::ROLLUP => {}
                Err(error) => return Err(RegistryError::Reply(DOING, error)),
            }
        }
        Ok(())
    }
}

/// Waits for the answer to one of several requests, whichever comes first; an
/// answer to the question that was sent ahead is put aside.
fn answer_to_any(
    session: &mut Session,
    inboxes: &[String],
    ahead: &mut Option<Ahead>,
    deadline: Instant,
) -> Result<Incoming, RequestError> {
    loop {
        let received = session.receive(deadline);
        let ahead = ahead.as_mut().filter(|ahead| match &received {
            Ok(message) => message.subject == ahead.inbox,
            // A refusal names the subject; all else concerns both.
            Err(RequestError::Denied(what)) => {
                what.contains(&format!("\"{}\"", ahead.request.subject))
            }
            Err(_) => false,
        });
        match (ahead, received) {
            (Some(ahead), received) => ahead.answer = Some(received.and_then(Incoming::answer)),
            (None, Ok(message)) if inboxes.contains(&message.subject) => return message.answer(),
            (None, Ok(_)) => {}
            (None, Err(error)) => return Err(error),
        }
    }
}

fn no_session() -> RequestError {
    RequestError::Lost("not connected".into())
}
