//! An agent's own key: puts with questions beside them, and the marker at the
//! end.
//!
//! A question beside a put leaves in the same write, and nobody waits for its
//! answer. It is read with the acknowledgement (99.7 % of them come with it,
//! tried on 2.12.8) or during the wait after it, and what it tells is kept for
//! whoever asks. So it neither delays a heartbeat nor makes one fail.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use log::debug;
use time::OffsetDateTime;

use super::Registry;
use super::clock::RegistryClock;
use super::failure::{DEREGISTERING, RegistryError, TooLarge, WRITING};
use crate::instance::entry::Entry;
use crate::jetstream::replies::{self, ApiError, ReplyError, StreamInfo};
use crate::jetstream::requests::{self, Put};
use crate::jetstream::stored;
use crate::nats::{Arrival, Incoming, RequestError, Token, answered};

/// Puts whose times are known. The answer to a question beside a put tells of
/// the one before it, or of the one before that where a replica lags.
const PUTS_KNOWN: usize = 4;

/// What is asked beside a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aside {
    /// When the server stored our entry: that is its clock.
    Time,
    /// The bucket's configuration, and its leader.
    Bucket,
    /// What stands there before this put. It is asked ahead of the put, in the
    /// same write.
    Entry,
}

/// What an answer told that nobody waited for.
#[derive(Debug)]
pub enum Told {
    /// The registry's clock was set.
    Time,
    /// The bucket as it is; the clock was set as well.
    Bucket(Box<StreamInfo>),
    /// The entry under the key before the put; `None` for nothing.
    Entry(Option<Box<Entry>>),
    /// That may not be read.
    EntryDenied,
}

/// By which request the time of our entry can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum TimeSource {
    #[default]
    DirectGet,
    /// Direct access is off.
    MessageGet,
    /// Neither is permitted.
    Nothing,
}

/// What was stored, told from anything else under our key: revisions alone begin
/// anew in a bucket that was made anew or restored, and values can be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    revision: u64,
    hash: u64,
}

impl Mark {
    fn of(revision: u64, value: &[u8]) -> Mark {
        let mut hasher = DefaultHasher::new();
        hasher.write(value);
        Mark { revision, hash: hasher.finish() }
    }
}

/// A put, with the boot clock when it was sent and when it was acknowledged.
#[derive(Debug, Clone, Copy)]
struct Acknowledged {
    mark: Mark,
    sent: Duration,
    at: Duration,
}

/// A question that nobody waits for.
#[derive(Debug)]
struct Asked {
    token: Token,
    what: Aside,
    source: TimeSource,
    sent: Duration,
    key: String,
}

/// What a registry knows beside its session.
#[derive(Debug, Default)]
pub(super) struct Asides {
    asked: Vec<Asked>,
    source: TimeSource,
    puts: VecDeque<Acknowledged>,
    /// Of the own key, as a read told it, where the put is not acknowledged yet.
    unmatched: Option<(Mark, OffsetDateTime)>,
    told: Vec<Told>,
    is_replicated: bool,
    /// The bucket's `max_msg_size`, where it has one and was seen.
    largest: Option<u64>,
    leader_denied: bool,
}

impl Asides {
    /// Another session: what was asked is not answered any more, and what is
    /// permitted may have changed. What was stored stays stored.
    pub(super) fn forget(&mut self) {
        self.asked.clear();
        self.unmatched = None;
        self.source = TimeSource::default();
        self.leader_denied = false;
    }

    pub(super) fn note(&mut self, info: &StreamInfo) {
        self.is_replicated = info.number("num_replicas") > 1;
        self.largest = u64::try_from(info.number("max_msg_size")).ok().filter(|size| *size > 0);
    }

    pub(super) fn asks_leader(&self) -> bool {
        self.is_replicated && !self.leader_denied
    }

    pub(super) fn leader_refused(&mut self) {
        self.leader_denied = true;
    }

    /// When the server stored what we put, and how well that tells its clock.
    fn clock_of(&self, mark: Mark, stored: OffsetDateTime) -> Option<RegistryClock> {
        let put = self.puts.iter().find(|put| put.mark == mark)?;
        Some(RegistryClock::told(stored, put.at, put.at.saturating_sub(put.sent)))
    }
}

impl Registry {
    /// Stores a value that expires, and returns its revision.
    pub fn put(&mut self, put: Put<'_>) -> Result<u64, RegistryError> {
        self.put_within(put, self.timeout(), &[])
    }

    /// As `put`; waits no longer than `limit` for the acknowledgement. Asks
    /// what stands in `asides` in the same write, and does not wait for that.
    pub fn put_within(
        &mut self,
        put: Put<'_>,
        limit: Duration,
        asides: &[Aside],
    ) -> Result<u64, RegistryError> {
        const DOING: &str = WRITING;
        let mut deadline = self.now() + limit.min(self.timeout());
        let stopping = self.stop_requested();
        let key = put.key.to_owned();
        let sent = self.boot_clock();
        for aside in asides.iter().filter(|aside| **aside == Aside::Entry) {
            self.ask_aside(*aside, &key, sent);
        }
        let request = requests::put(&self.bucket, put);
        let largest = self.asides.largest;
        let named = |error| TooLarge::named(error, &request, largest);
        let token = self.send(DOING, &request).map_err(named)?;
        for aside in asides.iter().filter(|aside| **aside != Aside::Entry) {
            self.ask_aside(*aside, &key, sent);
        }
        let reply = loop {
            let failed = |error| RegistryError::Request(DOING, error);
            match self.receive(DOING, deadline)? {
                Arrival::Message(Some(of), message) if of == token => {
                    break answered(message).map_err(failed)?;
                }
                Arrival::Refused(of, what) if of == token => {
                    return Err(failed(RequestError::Denied(what)));
                }
                other => self.take_aside(other),
            }
            // What nobody asked for must not keep us from looking, nor a stop waiting.
            deadline = self
                .session
                .as_ref()
                .map_or(deadline, |session| session.shortened(deadline, stopping));
            if self.now() >= deadline {
                return Err(failed(RequestError::TimedOut));
            }
        };
        let revision = replies::acknowledged(reply.data())
            .map_err(|error| named(RegistryError::Reply(DOING, error)))?;
        let mark = Mark::of(revision, &request.payload);
        self.acknowledged(Acknowledged { mark, sent, at: self.boot_clock() });
        Ok(revision)
    }

    fn acknowledged(&mut self, put: Acknowledged) {
        if self.asides.puts.len() == PUTS_KNOWN {
            self.asides.puts.pop_front();
        }
        self.asides.puts.push_back(put);
        // Anything else that was read is somebody else's, and stays that.
        if let Some((mark, stored)) = self.asides.unmatched.take()
            && mark == put.mark
        {
            self.set_clock_by(mark, stored);
        }
    }

    /// Whether our entry tells the registry's time.
    pub fn entry_tells_time(&self) -> bool {
        self.asides.source != TimeSource::Nothing
    }

    /// What was told meanwhile.
    pub fn take_told(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.asides.told)
    }

    /// Asks without waiting; it is no harm where that does not succeed.
    fn ask_aside(&mut self, what: Aside, key: &str, sent: Duration) {
        let source = match what {
            // A decision hangs on it, and a replica may lag.
            Aside::Entry if self.asides.asks_leader() => TimeSource::MessageGet,
            _ => self.asides.source,
        };
        let request = match (what, source) {
            (Aside::Entry, TimeSource::Nothing) => {
                self.asides.told.push(Told::EntryDenied);
                return;
            }
            (Aside::Time, TimeSource::Nothing) => return,
            (Aside::Time | Aside::Entry, TimeSource::DirectGet) => {
                requests::direct_get(&self.bucket, key)
            }
            (Aside::Time | Aside::Entry, TimeSource::MessageGet) => {
                requests::get_last(&self.bucket, key)
            }
            (Aside::Bucket, _) => requests::stream_info(&self.bucket),
        };
        // An earlier one that is not answered yet is not waited for any longer.
        self.asides.asked.retain(|asked| asked.what != what);
        if let Ok(token) = self.send("asking beside a heartbeat", &request) {
            let key = key.to_owned();
            self.asides.asked.push(Asked { token, what, source, sent, key });
        }
    }

    /// Takes what came without being waited for.
    pub(super) fn take_aside(&mut self, arrival: Arrival) {
        let (token, answer) = match arrival {
            Arrival::Message(Some(token), message) => (token, answered(message)),
            Arrival::Message(None, _) => return,
            Arrival::Refused(token, what) => (token, Err(RequestError::Denied(what))),
        };
        let Some(place) = self.asides.asked.iter().position(|asked| asked.token == token) else {
            return;
        };
        let asked = self.asides.asked.swap_remove(place);
        match asked.what {
            Aside::Time => self.take_time(&asked, answer),
            Aside::Bucket => self.take_bucket(&asked, answer),
            Aside::Entry => self.take_stood(asked, answer),
        }
    }

    /// Takes what stood under the key before a put.
    fn take_stood(&mut self, asked: Asked, answer: Result<Incoming, RequestError>) {
        let told = match (answer, asked.source) {
            (Ok(message), TimeSource::MessageGet) => match stored::read_message(message.data()) {
                Ok(message) => {
                    Told::Entry(Some(Box::new(Entry::of_message(&self.bucket, message))))
                }
                Err(ReplyError::Api(error)) if error.err_code == ApiError::NO_MESSAGE => {
                    Told::Entry(None)
                }
                Err(_) => return,
            },
            (Ok(message), _) => match stored::direct_origin(message.headers()) {
                Some((revision, at)) => {
                    let entry = Entry::of_value(message, asked.key, revision, at);
                    Told::Entry(Some(Box::new(entry)))
                }
                None if message.status() == Some(404) => Told::Entry(None),
                None => return,
            },
            (Err(RequestError::NoResponders), TimeSource::DirectGet) => {
                self.asides.source = TimeSource::MessageGet;
                return;
            }
            // The next one is asked of whoever may be asked.
            (Err(RequestError::Denied(_)), TimeSource::MessageGet) if self.asides.asks_leader() => {
                self.asides.leader_refused();
                return;
            }
            (Err(RequestError::Denied(_)), _) => {
                self.asides.source = TimeSource::Nothing;
                Told::EntryDenied
            }
            (Err(_), _) => return,
        };
        self.asides.told.push(told);
    }

    fn take_time(&mut self, asked: &Asked, answer: Result<Incoming, RequestError>) {
        let origin = match answer {
            Ok(message) => match asked.source {
                TimeSource::MessageGet => stored::read_message(message.data())
                    .ok()
                    .map(|message| (Mark::of(message.sequence, &message.data), message.stored)),
                _ => stored::direct_origin(message.headers())
                    .map(|(revision, stored)| (Mark::of(revision, message.data()), stored)),
            },
            Err(RequestError::NoResponders) if asked.source == TimeSource::DirectGet => {
                self.asides.source = TimeSource::MessageGet;
                // At once, so that a clock that was set shows as soon as ever.
                self.ask_aside(Aside::Time, &asked.key, asked.sent);
                None
            }
            Err(RequestError::Denied(what)) => {
                debug!("not permitted to {what}: the entry does not tell the registry's time");
                self.asides.source = TimeSource::Nothing;
                None
            }
            Err(_) => None,
        };
        if let Some((mark, stored)) = origin
            && !self.set_clock_by(mark, stored)
        {
            self.asides.unmatched = Some((mark, stored));
        }
    }

    /// Sets the clock by the time at which something of ours was stored.
    fn set_clock_by(&mut self, mark: Mark, stored: OffsetDateTime) -> bool {
        let Some(told) = self.asides.clock_of(mark, stored) else { return false };
        self.tell_clock(told);
        self.asides.told.push(Told::Time);
        true
    }

    fn take_bucket(&mut self, asked: &Asked, answer: Result<Incoming, RequestError>) {
        let info = match answer {
            Ok(message) => replies::read_stream_info(message.data()).map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match info {
            Ok(info) => {
                let now = self.boot_clock();
                if let Some(ts) = info.ts {
                    self.tell_clock(RegistryClock::told(ts, now, now.saturating_sub(asked.sent)));
                    self.asides.told.push(Told::Time);
                }
                self.asides.told.push(Told::Bucket(Box::new(info)));
            }
            Err(why) => debug!("looking at the bucket beside a heartbeat: {why}"),
        }
    }

    /// Puts a delete marker over exactly `revision`: a purge marker, which
    /// leaves nothing under it, where the bucket permits.
    pub fn deregister(&mut self, key: &str, revision: u64) -> Result<(), RegistryError> {
        const DOING: &str = DEREGISTERING;
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
