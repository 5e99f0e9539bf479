//! The registry, spoken on a connection: one bucket of service instances.
//!
//! Thin: what to send and what a reply means is decided in `jetstream` and
//! `instance`; here it is sent, waited for within bounds, and its failures are
//! put into words. What to do about them is the verbs' business.

pub mod asking;
pub mod clock;
pub mod expiry_test;
pub mod failure;
pub mod follow;
pub mod listing;
pub mod making;
pub mod outage;
mod own_key;
pub mod picture;
pub mod scan;

use std::time::{Duration, Instant};

use log::debug;
use time::OffsetDateTime;

use self::asking::{Answer, Ask, Question};
use self::clock::RegistryClock;
use self::failure::RegistryError;
use self::own_key::Asides;
pub use self::own_key::{Aside, Told};
use crate::instance::entry::Entry;
use crate::jetstream::bucket::Bucket;
use crate::jetstream::fitness::{self, Unfit};
use crate::jetstream::replies::{self, ApiError, ReplyError, StreamInfo};
use crate::jetstream::requests;
use crate::jetstream::stored;
use crate::nats::{
    Arrival, ConnectError, Connector, Incoming, Request, RequestError, ServerInfo, Session,
    Settings, Token,
};

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
    /// Number of the last question that is asked otherwise each time.
    turns: u32,
    /// No exchange goes on after this.
    end: Option<Instant>,
    asides: Asides,
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
            turns: 0,
            end: None,
            asides: Asides::default(),
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

    /// Moves to a fresh session of another connector, within `limit`, and
    /// returns what there was, for [`Registry::take_back`]. Where none comes
    /// about everything stays as it was.
    pub fn change_connector(
        &mut self,
        mut connector: Connector,
        limit: Duration,
    ) -> Result<Former, RegistryError> {
        let session = connector.open(limit).map_err(RegistryError::Connect)?;
        self.asides.forget();
        Ok(Former {
            session: self.session.replace(session),
            connector: std::mem::replace(&mut self.connector, connector),
        })
    }

    /// Goes back to the connector and the session of before.
    pub fn take_back(&mut self, former: Former) {
        self.session = former.session;
        self.connector = former.connector;
        self.asides.forget();
    }

    /// The bucket.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// How many servers there are to choose from.
    pub fn choices(&self) -> usize {
        self.connector.choices()
    }

    /// How NATS is reached.
    pub fn settings(&self) -> &Settings {
        self.connector.settings()
    }

    /// Bounds each exchange.
    pub fn timeout(&self) -> Duration {
        let timeout = self.connector.timeout();
        match self.end {
            Some(end) => timeout.min(end.saturating_duration_since(self.now())),
            None => timeout,
        }
    }

    /// Does something that ends within `limit`, as a whole.
    pub fn within<T>(&mut self, limit: Duration, act: impl FnOnce(&mut Registry) -> T) -> T {
        let before = self.end;
        let end = self.now() + limit;
        self.end = Some(before.map_or(end, |before| before.min(end)));
        let done = act(self);
        self.end = before;
        done
    }

    /// Bounds all exchanges from now on together.
    pub fn end_within(&mut self, limit: Duration) {
        self.end = Some(self.now() + limit);
    }

    /// Replaces the session by a fresh one, within `limit`.
    pub fn connect(&mut self, limit: Duration) -> Result<(), RegistryError> {
        self.session = None;
        self.asides.forget();
        let session = self.connector.open(limit).map_err(RegistryError::Connect)?;
        debug!(
            "connected to {} ({}, nats-server {})",
            session.address, session.server.server_name, session.server.version
        );
        self.session = Some(session);
        Ok(())
    }

    /// Connects again where the session has ended.
    pub fn ensure_session(&mut self) -> Result<(), RegistryError> {
        match self.session() {
            Some(_) => Ok(()),
            None => self.connect(self.timeout()),
        }
    }

    /// Moves to a fresh session, within `limit`; keeps the one there is where
    /// none comes about.
    pub fn move_on(&mut self, limit: Duration) -> Result<(), RegistryError> {
        let session = self.connector.open(limit).map_err(RegistryError::Connect)?;
        self.asides.forget();
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

    /// How long the server took to let us in; nothing without a session.
    pub fn greeting(&self) -> Duration {
        self.session.as_ref().map_or(Duration::ZERO, |session| session.greeting)
    }

    /// How long whoever usually answers within `least` is waited for: longer where
    /// the server was slow to let us in.
    pub fn patience(&self, least: Duration) -> Duration {
        least.max(self.greeting() * 4)
    }

    /// Why the session ended: the server's last words, if any.
    pub fn lost(&self) -> RequestError {
        self.session.as_ref().map_or_else(no_session, Session::lost)
    }

    /// What the connected server said of itself.
    pub fn server(&self) -> Option<&ServerInfo> {
        self.session.as_ref().map(|session| &session.server)
    }

    /// The clock that waits go by.
    pub fn now(&self) -> Instant {
        self.connector.waiter().now()
    }

    /// Time since this host started, its sleep included.
    pub fn boot_clock(&self) -> Duration {
        self.connector.waiter().boot_clock()
    }

    /// This host's own idea of the time.
    pub fn wall_clock(&self) -> OffsetDateTime {
        self.connector.waiter().wall_clock()
    }

    /// The registry's clock, once a reply has told it.
    pub fn clock(&self) -> Option<RegistryClock> {
        self.clock
    }

    /// The registry's time, once a reply has told it.
    pub fn time(&self) -> Option<OffsetDateTime> {
        self.clock.map(|clock| clock.time(self.boot_clock()))
    }

    /// How far a clock is off the registry's, once a reply has told that.
    pub fn off_by(&self, clock: OffsetDateTime) -> Option<time::Duration> {
        self.clock.map(|known| known.off_by(clock, self.boot_clock()))
    }

    /// Whether a stop was asked for.
    pub fn stop_requested(&self) -> bool {
        self.connector.waiter().stop_requested()
    }

    /// How long the last question waited for its answer.
    pub fn answer_time(&self) -> Duration {
        self.answer_time
    }

    /// Waits until `until`, and attends to the session meanwhile. May end
    /// early.
    pub fn idle_until(&mut self, until: Instant) {
        match self.session.as_mut().filter(|session| !session.has_ended()) {
            Some(session) => {
                for arrival in session.idle_until(until) {
                    self.take_aside(arrival);
                }
            }
            None => self.connector.idle_until(until),
        }
    }

    /// Waits until `until`, whatever comes meanwhile, unless a stop does.
    pub fn pause_until(&mut self, until: Instant) {
        let stopping = self.stop_requested();
        while self.now() < until && self.stop_requested() == stopping {
            self.idle_until(until);
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
        let began = self.now();
        let deadline = began + self.timeout();
        let answer = self.on_session(doing, |session| session.request(request, deadline));
        self.answer_time = self.now().saturating_duration_since(began);
        answer
    }

    /// As `request`; waits no longer than `limit`, or four times as long as the
    /// server took to greet.
    pub fn request_within(
        &mut self,
        doing: &'static str,
        request: &Request,
        limit: Duration,
    ) -> Result<Incoming, RegistryError> {
        let deadline = self.now() + self.patience(limit).min(self.timeout());
        self.on_session(doing, |session| session.request(request, deadline))
    }

    /// The bucket's configuration and state; sets the registry's clock.
    /// `None` where it does not exist.
    pub fn info(&mut self) -> Result<Option<StreamInfo>, RegistryError> {
        let [answer] = self.ask_all([(LOOKING, requests::stream_info(&self.bucket))]);
        self.take_info(LOOKING, answer)
    }

    /// As `info`, from whichever member of the cluster tells.
    pub fn info_anywhere(&mut self) -> InfoResult {
        let question = (LOOKING, Ask::Same(requests::stream_info(&self.bucket)));
        let [answer] = self.ask_anywhere(&[question]);
        self.take_info(LOOKING, answer)
    }

    /// Reads the answer to a question for the bucket, as `info` does.
    pub fn take_info(
        &mut self,
        doing: &'static str,
        answer: Result<Answer, RegistryError>,
    ) -> Result<Option<StreamInfo>, RegistryError> {
        let answer = answer.map_err(|error| match (error, self.bucket.domain()) {
            (RegistryError::Request(doing, RequestError::NoResponders), Some(domain)) => {
                RegistryError::Request(doing, RequestError::NoDomain(domain.to_owned()))
            }
            (RegistryError::Request(doing, RequestError::NoResponders), None)
                if self.server().is_some_and(|server| !server.jetstream) =>
            {
                RegistryError::Request(doing, RequestError::NoJetStream)
            }
            (error, _) => error,
        })?;
        match self.info_of(doing, &answer.message, answer.arrived) {
            Err(error) if error.api_code() == Some(ApiError::NO_STREAM) => Ok(None),
            result => result.map(Some),
        }
    }

    /// Reads a reply that carries a stream's information, and its clock.
    pub fn read_info(
        &mut self,
        doing: &'static str,
        reply: &Incoming,
    ) -> Result<StreamInfo, RegistryError> {
        self.info_of(doing, reply, self.boot_clock())
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
            self.tell_clock(RegistryClock::told(ts, arrived, self.answer_time));
        }
    }

    fn tell_clock(&mut self, told: RegistryClock) {
        let boot = self.boot_clock();
        self.clock = Some(self.clock.map_or(told, |known| known.or_newer(told, boot)));
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

    /// The bucket that was found, if what is registered can be read from it.
    pub fn readable(&self, found: Option<StreamInfo>) -> Result<StreamInfo, RegistryError> {
        let bucket = &self.bucket;
        let info = found.ok_or_else(|| RegistryError::Unfit(Unfit::NoBucket(bucket.clone())))?;
        fitness::judge_readable(bucket, &info).map_err(RegistryError::Unfit)?;
        Ok(info)
    }

    /// Notes whether the bucket has replicas, which may lag, and how large its
    /// messages may be.
    pub fn note(&mut self, info: &StreamInfo) {
        self.asides.note(info);
    }

    /// The bucket, and what stands under a key, in one exchange: each as `info`
    /// and `get` tell it.
    pub fn info_and_entry(&mut self, key: &str) -> (InfoResult, EntryResult) {
        let stopping = self.stop_requested();
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
            (_, entry) => self.take_entry(key, entry.map(|answer| answer.message), stopping),
        };
        (info, entry)
    }

    /// The newest revision of a key, markers included; `None` where there is
    /// none.
    pub fn get(&mut self, key: &str) -> EntryResult {
        let stopping = self.stop_requested();
        let reply = self.ask(READING, &requests::direct_get(&self.bucket, key));
        self.take_entry(key, reply, stopping)
    }

    /// Reads the answer to a direct get that was asked before a stop, or after it
    /// where that was `stopping`.
    fn take_entry(
        &mut self,
        key: &str,
        reply: Result<Incoming, RegistryError>,
        stopping: bool,
    ) -> EntryResult {
        let reply = match reply {
            // What was under way when the stop came has had its time.
            Err(_) if self.stop_requested() != stopping => {
                return Err(RegistryError::Connect(ConnectError::Stopped));
            }
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

    /// As `get`, from the leader, where it may be asked and the bucket has
    /// replicas: a direct get is answered by any of them, and that one may lag.
    pub fn get_for_decision(&mut self, key: &str) -> EntryResult {
        if self.asides.asks_leader() {
            let request = requests::get_last(&self.bucket, key);
            match self.get_message(READING, &request) {
                Err(error) if error.denied().is_some() => self.asides.leader_refused(),
                result => return result,
            }
        }
        self.get(key)
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
}

/// The bucket's configuration and state; `None` where there is no bucket.
pub type InfoResult = Result<Option<StreamInfo>, RegistryError>;
/// The newest revision of a key; `None` where there is none.
pub type EntryResult = Result<Option<Entry>, RegistryError>;

/// What a registry spoke through before it moved.
pub struct Former {
    session: Option<Session>,
    connector: Connector,
}

fn no_session() -> RequestError {
    RequestError::Lost("not connected".into())
}
