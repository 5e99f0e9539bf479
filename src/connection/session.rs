//! One session: requests out, whatever arrives in its inbox in, and its end.
//!
//! Waits are bounded by their deadline; a refusal that the server tells on the
//! side, a reader that died and a stop are looked at meanwhile.

// Every item of the crate is deprecated by its makers; the choice stands.
#![allow(deprecated)]
// The doors read the clock.
#![allow(clippy::disallowed_methods)]

use std::error::Error as StdError;
use std::fmt;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nats::header::HeaderMap;

use super::dial::Dial;
use super::{GLANCE, ServerAddress, StopCheck};
use crate::diagnosis;
use crate::error::plain;
use crate::jetstream::requests::Request;
use crate::look::{Cause, ServerInfo};

/// Messages that may wait in a session: twice what a scan and a clean-up ask
/// for at one time.
const QUEUE_LIMIT: usize = 4_096;
/// Errors on the side kept until somebody asks, the newest.
const SIDE_ERRORS: usize = 16;

/// Panics on threads that are not ours: the crate's readers, on bytes that they
/// cannot bear. Such a session neither ends nor says anything by itself.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// To be called for each panic on a thread that is not `main`.
pub fn note_panic() {
    PANICS.fetch_add(1, Ordering::SeqCst);
}

/// How many there were.
pub(super) fn panics() -> usize {
    PANICS.load(Ordering::SeqCst)
}

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestError {
    /// Nothing came within the limit. The session is in doubt.
    TimedOut,
    /// The session has ended; the server's last words, if any.
    Lost(String),
    /// The server does not let us; `publish to "..."` or `subscribe to "..."`.
    Denied(String),
    /// Nobody listens on that subject: no JetStream, no stream, no leader.
    NoResponders,
    /// The request itself cannot be sent.
    Invalid(String),
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestError::TimedOut => f.write_str("no answer in time"),
            RequestError::Lost(why) if why.is_empty() => f.write_str("connection lost"),
            RequestError::Lost(why) => write!(f, "connection lost: {why}"),
            RequestError::Denied(what) => write!(f, "not permitted to {what}"),
            RequestError::NoResponders => f.write_str("nobody answers there (503)"),
            RequestError::Invalid(why) => f.write_str(why),
        }
    }
}

impl StdError for RequestError {}

/// A message that arrived in the session's inbox.
#[derive(Debug)]
pub struct Incoming {
    /// The inbox subject of the request it answers; for a message delivered
    /// by a consumer, the subject under which it is stored.
    pub subject: String,
    /// The reply subject; a consumer's deliveries carry `$JS.ACK...` here.
    pub reply: Option<String>,
    /// The payload.
    pub data: Vec<u8>,
    headers: Option<HeaderMap>,
}

impl Incoming {
    /// All values of a header, in no order: the crate loses it.
    pub fn header_values(&self, name: &str) -> Vec<&str> {
        let Some(headers) = &self.headers else {
            return Vec::new();
        };
        let found = headers.iter().find(|(key, _)| key.as_str() == name);
        found.map_or_else(Vec::new, |(_, values)| values.iter().map(String::as_str).collect())
    }

    /// The status code of a message that is not data, such as 404 or 503.
    pub fn status(&self) -> Option<u16> {
        self.header_values("Status").first()?.trim().parse().ok()
    }

    /// This message as an answer: 503 means that nobody is there to give one.
    pub fn answer(self) -> Result<Incoming, RequestError> {
        match self.status() {
            Some(503) => Err(RequestError::NoResponders),
            _ => Ok(self),
        }
    }

    /// The words beside the status code.
    pub fn status_text(&self) -> String {
        self.header_values("Description").join(" ")
    }
}

/// What the crate's threads and the session's owner share.
pub(super) struct Shared {
    /// Dropped by `end` in this order: the connection first, which sets the
    /// crate's shutdown flag, then the subscription, whose UNSUB wakes the
    /// flusher, which sees the flag.
    held: Mutex<Option<(nats::Connection, nats::Subscription)>>,
    ended: AtomicBool,
    lame_duck: AtomicBool,
    errors: Mutex<Vec<String>>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl Shared {
    pub(super) fn new(wake: Arc<dyn Fn() + Send + Sync>) -> Shared {
        Shared {
            held: Mutex::new(None),
            ended: AtomicBool::new(false),
            lame_duck: AtomicBool::new(false),
            errors: Mutex::new(Vec::new()),
            wake,
        }
    }

    fn hold(&self, connection: nats::Connection, subscription: nats::Subscription) {
        *lock(&self.held) = Some((connection, subscription));
        // The connection may have ended before it was stored.
        if self.has_ended() {
            self.end();
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    pub(super) fn end(&self) {
        if self.end_quietly() {
            (self.wake)();
        }
    }

    /// Ends it, and tells whether it had not ended before.
    pub(super) fn end_quietly(&self) -> bool {
        let first = !self.ended.swap(true, Ordering::SeqCst);
        let held = lock(&self.held).take();
        if let Some((connection, subscription)) = held {
            drop(connection);
            drop(subscription);
        }
        first
    }

    pub(super) fn note(&self, error: String) {
        let mut errors = lock(&self.errors);
        if errors.len() == SIDE_ERRORS {
            errors.remove(0);
        }
        errors.push(error);
    }

    pub(super) fn announce_lame_duck(&self) {
        self.lame_duck.store(true, Ordering::SeqCst);
        (self.wake)();
    }
}

enum Arrival {
    Message(nats::Message),
    Nothing,
    Ended,
}

/// One connection, from a verified server to the first doubt.
///
/// Dropping it ends the crate's threads, whatever state they are in.
pub struct Session {
    /// What the server said of itself.
    pub server: ServerInfo,
    /// Where it was reached.
    pub address: ServerAddress,
    /// How long the server took to greet: how slow it, or the way there, is.
    pub greeting: Duration,
    receive: Box<dyn Fn(Duration) -> Arrival + Send>,
    shared: Arc<Shared>,
    socket: Option<TcpStream>,
    inbox: String,
    next_token: u64,
    tls: bool,
    /// How long a wait goes on after a stop.
    stop_limit: Duration,
    stop: StopCheck,
    /// Panics before this session.
    panics: usize,
}

impl Session {
    /// A session on a connection that the crate has just made, over `socket`
    /// where that is known; `panics` were seen before.
    pub(super) fn open(
        connection: nats::Connection,
        socket: Option<TcpStream>,
        tls: bool,
        info: ServerInfo,
        panics: usize,
        dial: Dial,
    ) -> Result<Session, Cause> {
        let shared = dial.shared;
        let unique = connection.new_inbox();
        let unique = unique.rsplit('.').next().unwrap_or_default();
        let inbox = format!("{}.{unique}", dial.inbox_prefix);
        let subscription = connection
            .subscribe(&format!("{inbox}.*"))
            .map_err(|error| Cause::Other(plain(&error)))?;
        // The crate's queue has no bound of its own: a server that sends what
        // nobody asked for would fill the memory.
        subscription.set_message_limits(QUEUE_LIMIT);
        let receiver = subscription.receiver().clone();
        shared.hold(connection, subscription);
        Ok(Session {
            receive: Box::new(move |limit| match receiver.recv_timeout(limit) {
                Ok(message) => Arrival::Message(message),
                Err(error) if error.is_timeout() => Arrival::Nothing,
                Err(_) => Arrival::Ended,
            }),
            shared,
            socket,
            inbox,
            next_token: 0,
            tls,
            stop: dial.stop,
            panics,
            server: info,
            address: dial.server,
            greeting: dial.greeting,
            stop_limit: dial.stop_limit,
        })
    }

    /// Where it was reached, and the server's name where it has one.
    pub fn place(&self) -> String {
        let (name, id) = (&self.server.server_name, &self.server.server_id);
        if name.is_empty() || name == id {
            return self.address.to_string();
        }
        format!("{} ({})", self.address, crate::text::printable::printable(name))
    }

    /// Whether the connection is gone, as far as TCP knows.
    pub fn has_ended(&self) -> bool {
        self.shared.has_ended() || self.reader_died()
    }

    /// Whether a reader of the crate died since this session began; most likely
    /// its own.
    fn reader_died(&self) -> bool {
        panics() != self.panics
    }

    /// Whether the server announced that it is going.
    pub fn is_lame_duck(&self) -> bool {
        self.shared.lame_duck.load(Ordering::SeqCst)
    }

    /// A token that no other session has.
    pub fn unique(&self) -> &str {
        self.inbox.rsplit('.').next().unwrap_or_default()
    }

    /// Whether a stop was asked for.
    pub fn stop_requested(&self) -> bool {
        (self.stop)()
    }

    /// Sends a request and returns the inbox subject that its answer will
    /// carry. Does not wait.
    pub fn send(&mut self, request: &Request) -> Result<String, RequestError> {
        validate(request)?;
        self.next_token += 1;
        let inbox = format!("{}.{}", self.inbox, self.next_token);
        let mut headers = HeaderMap::new();
        for (name, value) in &request.headers {
            headers.insert(*name, value.as_str());
        }
        let headers = (!request.headers.is_empty()).then_some(&headers);
        self.publish(&request.subject, Some(&inbox), headers, &request.payload)?;
        Ok(inbox)
    }

    fn publish(
        &self,
        subject: &str,
        reply: Option<&str>,
        headers: Option<&HeaderMap>,
        payload: &[u8],
    ) -> Result<(), RequestError> {
        let held = lock(&self.shared.held);
        let Some((connection, _)) = held.as_ref() else {
            return Err(self.lost());
        };
        connection.publish_with_reply_or_headers(subject, reply, headers, payload).map_err(
            |error| match self.lost() {
                RequestError::Lost(why) if why.is_empty() => RequestError::Lost(plain(&error)),
                lost => lost,
            },
        )
    }

    /// The next message in the inbox, whatever it answers.
    ///
    /// A refusal on the side is reported as [`RequestError::Denied`] as soon
    /// as it is seen. After a stop that comes during the wait it goes on for
    /// half of the connector's timeout: the other half is to end in good order,
    /// and what is answered by then ends best.
    pub fn receive(&mut self, deadline: Instant) -> Result<Incoming, RequestError> {
        let started = Instant::now();
        let mut deadline = deadline;
        let mut stopping = (self.stop)();
        let mut nudge = self.tls.then(|| started + deadline.saturating_duration_since(started) / 2);
        loop {
            let now = Instant::now();
            let left = deadline.saturating_duration_since(now);
            match (self.receive)(left.min(GLANCE)) {
                Arrival::Message(message) => return Ok(incoming(message)),
                Arrival::Ended => return Err(self.lost()),
                Arrival::Nothing => {}
            }
            if let Some(denied) = self.take_refusal() {
                return Err(denied);
            }
            if self.reader_died() {
                return Err(RequestError::Lost("what the server sends cannot be read".into()));
            }
            if left.is_zero() {
                return Err(RequestError::TimedOut);
            }
            if !stopping && (self.stop)() {
                stopping = true;
                deadline = now + self.stop_limit;
            }
            if nudge.is_some_and(|at| now >= at) {
                // With TLS a message can lie decrypted in the crate's buffer
                // without anything to wake its reader; new bytes do.
                nudge = None;
                self.publish(&format!("{}.0", self.inbox), None, None, b"")?;
            }
        }
    }

    /// Sends a request and waits for its answer; answers to earlier requests
    /// are dropped.
    pub fn request(
        &mut self,
        request: &Request,
        deadline: Instant,
    ) -> Result<Incoming, RequestError> {
        let inbox = self.send(request)?;
        self.answer(&inbox, deadline)
    }

    /// Waits for the answer to a request that was sent before.
    pub fn answer(&mut self, inbox: &str, deadline: Instant) -> Result<Incoming, RequestError> {
        loop {
            let message = self.receive(deadline)?;
            if message.subject == inbox {
                return message.answer();
            }
        }
    }

    /// The first refusal on the side since the last look, if it concerns a
    /// request of ours.
    fn take_refusal(&self) -> Option<RequestError> {
        let mut errors = lock(&self.shared.errors);
        let own = format!("\"{}.", self.inbox);
        let found = errors.iter().enumerate().find_map(|(index, error)| {
            let refused = diagnosis::refusal(error, self.unique())?;
            // The nudge of `receive` needs no permission.
            (!(error.contains("Publish") && error.contains(&own))).then_some((index, refused))
        });
        let (index, refused) = found?;
        errors.remove(index);
        Some(RequestError::Denied(refused))
    }

    /// Why the session ended: the server's last words, if any.
    pub fn lost(&self) -> RequestError {
        let errors = lock(&self.shared.errors);
        RequestError::Lost(errors.last().cloned().unwrap_or_default())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        match &self.socket {
            // The reader wakes and ends everything on its own thread, with
            // none of the crate's locks held.
            Some(socket) => {
                socket.shutdown(Shutdown::Both).ok();
                // One that died does not; the flusher would stay for good.
                if self.reader_died() {
                    self.shared.end();
                }
            }
            None => self.shared.end(),
        }
    }
}

/// Keeps what the crate does not check out of the wire: a space or a line
/// break in a subject or a header injects commands.
fn validate(request: &Request) -> Result<(), RequestError> {
    let subject = &request.subject;
    if subject.is_empty() || subject.bytes().any(|b| b <= b' ' || b == 0x7f) {
        return Err(RequestError::Invalid(format!("not a subject: {subject:?}")));
    }
    for (name, value) in &request.headers {
        if value.is_empty() || value.chars().any(char::is_control) {
            return Err(RequestError::Invalid(format!("not a header value: {name}: {value:?}")));
        }
    }
    Ok(())
}

fn incoming(mut message: nats::Message) -> Incoming {
    Incoming {
        subject: message.subject.clone(),
        reply: message.reply.clone(),
        headers: message.headers.clone(),
        data: std::mem::take(&mut message.data),
    }
}

/// A lock whose holder panicked still guards good data here: each is a plain
/// value replaced whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
