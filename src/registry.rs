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
pub mod follow;
pub mod listing;
pub mod picture;
pub mod scan;

use std::time::{Duration, Instant};

use log::debug;
use time::OffsetDateTime;

use self::clock::{RegistryClock, boot_clock};
use self::failure::RegistryError;
use crate::instance::entry::Entry;
use crate::jetstream::bucket::Bucket;
use crate::jetstream::fitness::{self, Unfit};
use crate::jetstream::replies::{self, ApiError, ReplyError, StreamInfo};
use crate::jetstream::requests::{self, Put};
use crate::jetstream::stored;
use crate::nats::{
    Arrival, Connector, Incoming, Request, RequestError, ServerInfo, Session, Token, answered,
};

/// A question that was not answered by then is asked again: a direct get goes
/// to any replica, and that may be the one that hangs.
const ASK_AGAIN: Duration = Duration::from_millis(500);

const READING: &str = "reading the entry";
/// What is being done while the bucket is looked at.
pub const LOOKING: &str = "looking at the bucket";

/// One bucket, over one session at a time.
pub struct Registry {
    bucket: Bucket,
    connector: Connector,
    session: Option<Session>,
    clock: Option<RegistryClock>,
    /// How long the last question waited for its answer.
    answer_time: Duration,
    /// No exchange goes on after this.
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

    /// Waits until `until`, and attends to the session meanwhile. May end
    /// early.
    pub fn idle_until(&mut self, until: Instant) {
        match self.session.as_mut().filter(|session| !session.has_ended()) {
            Some(session) => session.idle_until(until),
            None => self.connector.idle_until(until),
        }
    }

    /// Queues a request, which leaves with the next wait.
    pub fn send(&mut self, doing: &'static str, request: &Request) -> Result<Token, RegistryError> {
        self.on_session(doing, |session| session.send(request))
    }

    /// What arrives next; see [`Session::receive`].
    pub fn receive(
        &mut self,
        doing: &'static str,
        deadline: Instant,
    ) -> Result<Arrival, RegistryError> {
        self.on_session(doing, |session| session.receive(deadline))
    }

    /// What arrives next, if something does; see [`Session::glance_until`].
    pub fn glance_until(
        &mut self,
        doing: &'static str,
        until: Instant,
    ) -> Result<Option<Arrival>, RegistryError> {
        self.on_session(doing, |session| session.glance_until(until))
    }

    fn on_session<T>(
        &mut self,
        doing: &'static str,
        act: impl FnOnce(&mut Session) -> Result<T, RequestError>,
    ) -> Result<T, RegistryError> {
        let result = self.session.as_mut().ok_or_else(no_session).and_then(act);
        result.map_err(|error| RegistryError::Request(doing, error))
    }

    /// Sends a request and waits for its reply, within the timeout.
    pub fn request(
        &mut self,
        doing: &'static str,
        request: &Request,
    ) -> Result<Incoming, RegistryError> {
        let began = Instant::now();
        let deadline = began + self.timeout();
        let answer = self.on_session(doing, |session| session.request(request, deadline));
        self.answer_time = began.elapsed();
        answer
    }

    /// As `request`, for a question that may be asked twice.
    pub fn ask(
        &mut self,
        doing: &'static str,
        request: &Request,
    ) -> Result<Incoming, RegistryError> {
        let [answer] = self.ask_all([(doing, request.clone())]);
        answer.map(|answer| answer.message)
    }

    /// Sends several questions at once and waits for all answers, within one
    /// timeout. What is not answered is asked again twice a second: a cluster
    /// that is choosing a leader does not answer at all, and nobody tells when
    /// it has.
    pub fn ask_all<const N: usize>(
        &mut self,
        questions: [(&'static str, Request); N],
    ) -> [Result<Answer, RegistryError>; N] {
        self.ask_until(questions, |open| open.iter().all(Question::is_answered))
    }

    /// As `ask_all`, until enough is known.
    fn ask_until<const N: usize>(
        &mut self,
        questions: [(&'static str, Request); N],
        is_enough: impl Fn(&[Question]) -> bool,
    ) -> [Result<Answer, RegistryError>; N] {
        let began = Instant::now();
        let deadline = began + self.timeout();
        let mut open = questions.map(|(doing, request)| Question {
            doing,
            request,
            tokens: Vec::new(),
            answer: None,
        });
        let failed = self.exchange(&mut open, &is_enough, deadline).err();
        self.answer_time = began.elapsed();
        open.map(|question| {
            let none = || Err(failed.clone().unwrap_or(RequestError::TimedOut));
            let answer = question.answer.unwrap_or_else(none);
            answer.map_err(|error| RegistryError::Request(question.doing, error))
        })
    }

    /// Asks until enough questions have their answer; the error is the fate of
    /// those that have none.
    fn exchange(
        &mut self,
        open: &mut [Question],
        is_enough: &dyn Fn(&[Question]) -> bool,
        deadline: Instant,
    ) -> Result<(), RequestError> {
        let session = self.session.as_mut().ok_or_else(no_session)?;
        let stopping = session.stop_requested();
        // Where everything takes long, more questions make it longer.
        let again = ASK_AGAIN.max(session.greeting * 2);
        while !is_enough(open) {
            for question in open.iter_mut().filter(|question| !question.is_answered()) {
                match session.send(&question.request) {
                    Ok(token) => question.tokens.push(token),
                    Err(error) => question.answer = Some(Err(error)),
                }
            }
            let until = deadline.min(Instant::now() + again);
            while !is_enough(open) {
                match session.receive(until) {
                    Ok(arrival) => take_answer(open, arrival),
                    Err(RequestError::TimedOut)
                        if until < deadline && session.stop_requested() == stopping =>
                    {
                        break;
                    }
                    Err(error) => return Err(error),
                }
                if Instant::now() >= until {
                    break;
                }
            }
            if Instant::now() >= deadline {
                return Err(RequestError::TimedOut);
            }
        }
        Ok(())
    }

    /// The bucket's configuration and state; sets the registry's clock.
    /// `None` where it does not exist.
    pub fn info(&mut self) -> Result<Option<StreamInfo>, RegistryError> {
        let [answer] = self.ask_all([(LOOKING, requests::stream_info(&self.bucket))]);
        self.take_info(LOOKING, answer)
    }

    /// Reads the answer to a question for the bucket, as `info` does.
    pub fn take_info(
        &mut self,
        doing: &'static str,
        answer: Result<Answer, RegistryError>,
    ) -> Result<Option<StreamInfo>, RegistryError> {
        let answer = answer?;
        match self.info_of(doing, &answer.message, answer.arrived) {
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
        self.info_of(doing, reply, boot_clock())
    }

    fn info_of(
        &mut self,
        doing: &'static str,
        reply: &Incoming,
        arrived: Duration,
    ) -> Result<StreamInfo, RegistryError> {
        let info =
            replies::read_stream_info(reply.data()).map_err(|e| RegistryError::Reply(doing, e))?;
        self.set_clock(info.ts, arrived);
        Ok(info)
    }

    /// Sets the registry's clock by the `ts` of a reply that came when the boot
    /// clock stood at `arrived`.
    fn set_clock(&mut self, ts: Option<OffsetDateTime>, arrived: Duration) {
        if let Some(ts) = ts {
            self.clock = Some(RegistryClock::told(ts, arrived, self.answer_time));
        }
    }

    /// The bucket, existing and fit to write heartbeats to.
    pub fn fit_info(&mut self) -> Result<StreamInfo, RegistryError> {
        let found = self.info()?;
        self.fit(found)
    }

    /// The bucket that was found, if it is fit to write heartbeats to.
    pub fn fit(&self, found: Option<StreamInfo>) -> Result<StreamInfo, RegistryError> {
        let connected = self.server().map_or("", |server| server.version.as_str());
        let Some(info) = found else {
            fitness::judge_server(connected).map_err(RegistryError::Unfit)?;
            return Err(RegistryError::Unfit(Unfit::NoBucket(self.bucket.clone())));
        };
        fitness::judge_bucket(&self.bucket, &info, connected).map_err(RegistryError::Unfit)?;
        Ok(info)
    }

    /// The bucket, and what stands under a key, in one exchange: each as `info`
    /// and `get` tell it.
    pub fn info_and_entry(&mut self, key: &str) -> (InfoResult, EntryResult) {
        let questions = [
            (LOOKING, requests::stream_info(&self.bucket)),
            (READING, requests::direct_get(&self.bucket, key)),
        ];
        // A server of 2.10 does not answer for the entries of a bucket that does
        // not exist.
        let [info, entry] = self.ask_until(questions, |open| {
            open.iter().all(Question::is_answered) || open[0].is_refused()
        });
        let info = self.take_info(LOOKING, info);
        let entry = match (&info, entry) {
            // Where there is no bucket nobody answers for its entries.
            (Ok(None), _) => Ok(None),
            (_, entry) => self.take_entry(key, entry.map(|answer| answer.message)),
        };
        (info, entry)
    }

    /// The newest revision of a key, markers included; `None` where there is
    /// none.
    pub fn get(&mut self, key: &str) -> EntryResult {
        let reply = self.ask(READING, &requests::direct_get(&self.bucket, key));
        self.take_entry(key, reply)
    }

    fn take_entry(&mut self, key: &str, reply: Result<Incoming, RegistryError>) -> EntryResult {
        let reply = match reply {
            // Direct access is off.
            Err(RegistryError::Request(_, RequestError::NoResponders)) => {
                return self.get_message(READING, &requests::get_last(&self.bucket, key));
            }
            reply => reply?,
        };
        if let Some((revision, at)) = stored::direct_origin(reply.headers()) {
            return Ok(Some(Entry::of_value(reply, key.to_owned(), revision, at)));
        }
        let status = match reply.status() {
            Some(404) => return Ok(None),
            Some(status) => format!("status {status} {}", reply.status_text()),
            None => "the revision is missing".into(),
        };
        Err(RegistryError::Reply(READING, ReplyError::Unreadable(status)))
    }

    /// One stored message by `STREAM.MSG.GET`; `None` where there is none.
    pub fn get_message(
        &mut self,
        doing: &'static str,
        request: &Request,
    ) -> Result<Option<Entry>, RegistryError> {
        let reply = self.ask(doing, request)?;
        match stored::read_message(reply.data()) {
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
        let reply = self.on_session(DOING, |session| session.request(&request, deadline))?;
        replies::acknowledged(reply.data()).map_err(|error| RegistryError::Reply(DOING, error))
    }

    /// Puts a delete marker over exactly `revision`: a purge marker, which
    /// leaves nothing under it, where the bucket permits.
    pub fn deregister(&mut self, key: &str, revision: u64) -> Result<(), RegistryError> {
        const DOING: &str = "deregistering";
        for rollup in [true, false] {
            let request = requests::deregister(&self.bucket, key, revision, rollup);
            let reply = self.request(DOING, &request)?;
            match replies::acknowledged(reply.data()) {
                Ok(_) => return Ok(()),
                Err(ReplyError::Api(error)) if rollup && error.err_code == ApiError::ROLLUP => {}
                Err(error) => return Err(RegistryError::Reply(DOING, error)),
            }
        }
        Ok(())
    }
}

/// The bucket's configuration and state; `None` where there is no bucket.
pub type InfoResult = Result<Option<StreamInfo>, RegistryError>;
/// The newest revision of a key; `None` where there is none.
pub type EntryResult = Result<Option<Entry>, RegistryError>;

/// The answer to a question.
pub struct Answer {
    /// The reply.
    pub message: Incoming,
    /// Where the boot clock stood when it came.
    pub arrived: Duration,
}

/// A question that is under way.
struct Question {
    doing: &'static str,
    request: Request,
    /// Of each time it was asked.
    tokens: Vec<Token>,
    answer: Option<Result<Answer, RequestError>>,
}

impl Question {
    fn is_answered(&self) -> bool {
        self.answer.is_some()
    }

    /// Whether what was asked cannot be had.
    fn is_refused(&self) -> bool {
        let error = |answer: &Answer| replies::refusal_in(answer.message.data()).is_some();
        self.answer.as_ref().is_some_and(|answer| answer.as_ref().map_or(true, error))
    }
}

/// Gives an arrival to the question that it answers, if there is one.
fn take_answer(open: &mut [Question], arrival: Arrival) {
    let (token, answer) = match arrival {
        Arrival::Message(Some(token), message) => (token, answered(message)),
        Arrival::Message(None, _) => return,
        Arrival::Refused(token, what) => (token, Err(RequestError::Denied(what))),
    };
    let of = open.iter_mut().find(|question| question.tokens.contains(&token));
    if let Some(question) = of {
        let arrived = boot_clock();
        let answer = answer.map(|message| Answer { message, arrived });
        question.answer.get_or_insert(answer);
    }
}

fn no_session() -> RequestError {
    RequestError::Lost("not connected".into())
}
