//! One session: requests out, whatever arrives in its inbox in, and its end.
//!
//! A session is disposable: given up by its owner at the first doubt, never
//! reconnected. Every wait has a deadline, and nothing that arrives pushes it
//! out.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::address::{Members, ServerAddress};
use super::attempt::Served;
use super::certificate::not_after;
use super::failure::{PermissionViolation, RequestError};
use super::handshake::ServerInfo;
use super::stream::{Broken, Stream};
use super::waiter::{Interest, Waiter};
use super::wire::{self, Incoming, Operation, Parser, Request};
use crate::error::plain;
use crate::text::printable::printable;

/// Requests that are remembered until they are answered, so that a refusal can
/// be told to the one that it concerns: more than are ever under way.
const REMEMBERED: usize = 4_096;
/// Operations that are no messages, taken in one go: then the deadline is
/// looked at.
const CHATTER: u32 = 256;
/// The only subscription: everything in our inbox.
const SID: u64 = 1;

/// Which request an answer belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(u64);

impl Token {
    /// The token of the `number`th request of a session.
    pub fn numbered(number: u64) -> Token {
        Token(number)
    }
}

/// What a session has for its owner.
#[derive(Debug)]
pub enum Arrival {
    /// A message: the answer to the request of that token, or what a consumer
    /// delivers.
    Message(Option<Token>, Incoming),
    /// The server does not permit the request of that token; what it would take
    /// reads `publish to "..."`.
    Refused(Token, String),
}

/// What became of some of the bytes that have come.
enum Read {
    /// Something for the owner.
    Arrival(Arrival),
    /// Nothing yet, and there is more to look at.
    More,
    /// Nothing, and all has been looked at.
    All,
}

/// What a session is opened with.
pub(super) struct Opened {
    pub(super) address: ServerAddress,
    pub(super) greeting: Duration,
    pub(super) inbox_prefix: String,
    pub(super) stop_limit: Duration,
    pub(super) members: Members,
    pub(super) waiter: Rc<dyn Waiter>,
}

/// One connection, from the first `PONG` to the first doubt.
pub struct Session {
    /// What the server said of itself when it let us in.
    pub server: ServerInfo,
    /// Where it was reached.
    pub address: ServerAddress,
    /// How long the server took to greet: how slow it, or the way there, is.
    pub greeting: Duration,
    stream: Stream,
    parser: Parser,
    out: Vec<u8>,
    inbox: String,
    subscribed: bool,
    last_token: u64,
    unanswered: VecDeque<(Token, String)>,
    /// The server's last words, or the network's, once it has ended.
    ended: Option<String>,
    last_error: String,
    lame_duck: bool,
    /// How long a wait goes on after a stop.
    stop_limit: Duration,
    /// When a stop was noticed in the middle of a wait.
    stop_noticed: Option<Instant>,
    members: Members,
    waiter: Rc<dyn Waiter>,
}

impl Session {
    pub(super) fn open(served: Served, opened: Opened) -> Session {
        let Served { stream, parser, info, out } = served;
        let (unique, again) = (opened.waiter.random(), opened.waiter.random());
        let session = Session {
            inbox: format!("{}.{unique:016x}{again:08x}", opened.inbox_prefix),
            server: info,
            address: opened.address,
            greeting: opened.greeting,
            stream,
            parser,
            out,
            subscribed: false,
            last_token: 0,
            unanswered: VecDeque::new(),
            ended: None,
            last_error: String::new(),
            lame_duck: false,
            stop_limit: opened.stop_limit,
            stop_noticed: None,
            members: opened.members,
            waiter: opened.waiter,
        };
        session.learn(&session.server.connect_urls);
        session
    }

    /// Where it was reached, and the server's name where it has one.
    pub fn place(&self) -> String {
        let (name, id) = (&self.server.server_name, &self.server.server_id);
        if name.is_empty() || name == id {
            return self.address.to_string();
        }
        format!("{} ({})", self.address, printable(name))
    }

    /// When the certificate of the server ends, if it showed one.
    pub fn certificate_ends(&self) -> Option<OffsetDateTime> {
        not_after(self.stream.certificate()?)
    }

    /// Whether the connection is gone, as far as is known.
    pub fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Whether the server announced that it is going.
    pub fn is_lame_duck(&self) -> bool {
        self.lame_duck
    }

    /// A token that no other session has.
    pub fn unique(&self) -> &str {
        self.inbox.rsplit('.').next().unwrap_or_default()
    }

    /// How many requests it has taken: tells what is made on it apart.
    pub fn requests(&self) -> u64 {
        self.last_token
    }

    /// Whether a stop was asked for.
    pub fn stop_requested(&self) -> bool {
        self.waiter.stop_requested()
    }

    /// Queues a request, which leaves with the next wait, and returns the token
    /// that its answer will have.
    pub fn send(&mut self, request: &Request) -> Result<Token, RequestError> {
        if let Some(fault) = request.fault() {
            return Err(RequestError::Invalid(fault));
        }
        let (size, limit) = (request.size(), self.server.max_payload);
        if limit > 0 && size as u64 > limit {
            return Err(RequestError::TooLarge { size, limit });
        }
        if self.has_ended() {
            return Err(self.lost());
        }
        if !self.subscribed {
            wire::subscribe(&mut self.out, &format!("{}.*", self.inbox), SID);
            self.subscribed = true;
        }
        self.last_token += 1;
        let token = Token(self.last_token);
        let reply = [&self.inbox, ".", &self.last_token.to_string()].concat();
        wire::publish(&mut self.out, request, &reply);
        if self.unanswered.len() == REMEMBERED {
            self.unanswered.pop_front();
        }
        self.unanswered.push_back((token, request.subject.clone()));
        Ok(token)
    }

    /// What arrives next in the inbox, whatever it answers.
    ///
    /// After a stop that comes during the wait it goes on for half of the
    /// connector's timeout: the other half is for an end in good order.
    pub fn receive(&mut self, deadline: Instant) -> Result<Arrival, RequestError> {
        let mut deadline = deadline;
        let mut stopping = self.stop_requested();
        loop {
            let read = self.take_read()?;
            if let Read::Arrival(arrival) = read {
                return Ok(arrival);
            }
            let now = self.waiter.now();
            if now >= deadline {
                return Err(RequestError::TimedOut);
            }
            if !stopping && self.stop_requested() {
                stopping = true;
                self.stop_noticed.get_or_insert(now);
                deadline = self.shortened(deadline, false);
            }
            if matches!(read, Read::More) {
                continue;
            }
            if self.has_ended() {
                return Err(self.lost());
            }
            self.flush();
            self.wait(deadline);
        }
    }

    /// When a wait that takes several arrivals ends, if it began before a stop:
    /// `stopping` tells whether the stop was there already.
    pub fn shortened(&self, deadline: Instant, stopping: bool) -> Instant {
        match self.stop_noticed {
            Some(at) if !stopping => deadline.min(at + self.stop_limit),
            _ => deadline,
        }
    }

    /// What arrives next in the inbox, if something does before `until`. May
    /// end early with nothing, whenever a wait does: for an owner that has more
    /// to attend to.
    pub fn glance_until(&mut self, until: Instant) -> Result<Option<Arrival>, RequestError> {
        match self.take_read()? {
            Read::Arrival(arrival) => return Ok(Some(arrival)),
            Read::More => return Ok(None),
            Read::All => {}
        }
        if self.has_ended() {
            return Err(self.lost());
        }
        self.flush();
        self.wait(until);
        match self.take_read()? {
            Read::Arrival(arrival) => Ok(Some(arrival)),
            Read::More | Read::All => Ok(None),
        }
    }

    /// The answer to one request; other arrivals are dropped.
    pub fn answer(&mut self, token: Token, deadline: Instant) -> Result<Incoming, RequestError> {
        self.answer_to_any(&[token], deadline)
    }

    /// The answer to one of several requests, whichever comes first; other
    /// arrivals are dropped.
    pub fn answer_to_any(
        &mut self,
        tokens: &[Token],
        deadline: Instant,
    ) -> Result<Incoming, RequestError> {
        let stopping = self.stop_requested();
        loop {
            match self.receive(self.shortened(deadline, stopping))? {
                Arrival::Message(Some(token), message) if tokens.contains(&token) => {
                    return answered(message);
                }
                Arrival::Refused(token, what) if tokens.contains(&token) => {
                    return Err(RequestError::Denied(what));
                }
                // What nobody asked for must not keep us from looking.
                _ if self.waiter.now() >= deadline => return Err(RequestError::TimedOut),
                _ => {}
            }
        }
    }

    /// Sends a request and waits for its answer.
    pub fn request(
        &mut self,
        request: &Request,
        deadline: Instant,
    ) -> Result<Incoming, RequestError> {
        let token = self.send(request)?;
        self.answer(token, deadline)
    }

    /// Waits until `until` and reads what comes between two requests: the server
    /// wants to know whether we are there, and tells who joins its cluster.
    /// Returns the answers that nobody has waited for. May end early.
    pub fn idle_until(&mut self, until: Instant) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        self.flush();
        // What was left over goes before a wait.
        if !self.read_some(&mut arrivals) && arrivals.is_empty() {
            self.wait(until);
            self.read_some(&mut arrivals);
        }
        self.flush();
        arrivals
    }

    /// Reads some of what has come; whether there may be more.
    fn read_some(&mut self, arrivals: &mut Vec<Arrival>) -> bool {
        for _ in 0..CHATTER {
            match self.take_read() {
                Ok(Read::Arrival(arrival)) => arrivals.push(arrival),
                Ok(Read::More) => return true,
                Ok(Read::All) | Err(_) => return false,
            }
        }
        true
    }

    /// Why the session ended: the server's last words, if any.
    pub fn lost(&self) -> RequestError {
        let network = self.ended.as_deref().unwrap_or_default();
        let words = if self.last_error.is_empty() { network } else { &self.last_error };
        RequestError::Lost(words.to_owned())
    }

    /// One wait, and what has come by its end.
    fn wait(&mut self, until: Instant) {
        let waiter = Rc::clone(&self.waiter);
        let write = !self.out.is_empty() || self.stream.wants_write();
        let mut interests = [Interest::reading(self.stream.as_fd(), write)];
        waiter.wait(&mut interests, Some(until));
        if interests[0].ready {
            self.read();
        }
    }

    fn read(&mut self) {
        if self.has_ended() {
            return;
        }
        match self.stream.read(self.parser.buffer()) {
            Ok(_) => {}
            Err(broken) => self.end(broken),
        }
    }

    fn flush(&mut self) {
        if self.has_ended() || (self.out.is_empty() && !self.stream.wants_write()) {
            return;
        }
        if let Err(broken) = self.stream.write(&mut self.out) {
            // What the server said before it closed tells more.
            for _ in 0..16 {
                match self.stream.read(self.parser.buffer()) {
                    Ok(true) => {}
                    Ok(false) | Err(_) => break,
                }
            }
            self.end(broken);
        }
    }

    fn end(&mut self, broken: Broken) {
        let words = match broken {
            Broken::Closed => String::new(),
            Broken::Io(error) => plain(&error),
            Broken::Tls(error) => format!("TLS: {error}"),
        };
        self.ended.get_or_insert(words);
    }

    /// The next arrival among what has come.
    fn take_read(&mut self) -> Result<Read, RequestError> {
        for _ in 0..CHATTER {
            let operation = match self.parser.parse() {
                Ok(Some(operation)) => operation,
                Ok(None) => return Ok(Read::All),
                Err(bad) => {
                    self.ended = Some(format!("what the server sends cannot be read: {bad}"));
                    return Err(self.lost());
                }
            };
            match operation {
                Operation::Message(message) => return Ok(Read::Arrival(self.arrived(message))),
                Operation::Ping => self.out.extend_from_slice(wire::PONG),
                Operation::Pong | Operation::Ok => {}
                Operation::Info(json) => self.informed(&json),
                Operation::Error(words) => {
                    if let Some(arrival) = self.refused(words)? {
                        return Ok(Read::Arrival(arrival));
                    }
                }
            }
            // A server that only asks is answered before there is too much.
            if self.out.len() > wire::LONGEST_LINE {
                self.flush();
            }
        }
        Ok(Read::More)
    }

    fn arrived(&mut self, message: Incoming) -> Arrival {
        let token = self.token(message.subject());
        if let Some(token) = token {
            // They were numbered in this order.
            if let Ok(at) = self.unanswered.binary_search_by_key(&token, |(sent, _)| *sent) {
                self.unanswered.remove(at);
            }
        }
        Arrival::Message(token, message)
    }

    fn token(&self, subject: &[u8]) -> Option<Token> {
        let rest = subject.strip_prefix(self.inbox.as_bytes())?.strip_prefix(b".")?;
        std::str::from_utf8(rest).ok()?.parse().ok().map(Token)
    }

    /// `INFO` comes again when a member joins or goes, and when the server is
    /// about to go itself.
    fn informed(&mut self, json: &[u8]) {
        if let Ok(info) = ServerInfo::read(json) {
            self.lame_duck |= info.ldm;
            self.learn(&info.connect_urls);
        }
    }

    /// Takes over whom the server announces, unless that is nobody but itself.
    fn learn(&self, urls: &[String]) {
        let members = self.address.members(urls);
        if members.iter().any(|member| !member.is_at(&self.address)) {
            *self.members.borrow_mut() = members;
        }
    }

    fn refused(&mut self, words: String) -> Result<Option<Arrival>, RequestError> {
        let Some(refusal) = PermissionViolation::read(&words) else {
            // The server closes the connection after such words.
            self.last_error = printable(&words.chars().take(300).collect::<String>());
            return Ok(None);
        };
        let what = refusal.permission(self.unique());
        if refusal.is_subscription {
            // Nothing will ever arrive.
            return Err(RequestError::Denied(what));
        }
        let of = self.unanswered.iter().position(|(_, subject)| *subject == refusal.subject);
        Ok(of
            .and_then(|at| self.unanswered.remove(at))
            .map(|(token, _)| Arrival::Refused(token, what)))
    }
}

/// This message as an answer: 503 means that nobody is there to give one.
pub fn answered(message: Incoming) -> Result<Incoming, RequestError> {
    match message.status() {
        Some(503) if message.data().is_empty() => Err(RequestError::NoResponders),
        _ => Ok(message),
    }
}
