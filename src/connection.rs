//! The NATS connection: the only file that knows the `nats` crate.
//!
//! A connection is a disposable *session*: bounded and verified before use,
//! given up by its owner at the first unanswered heartbeat, never reconnected.
//!
//! Why it is so, in one place. The promise is an entry back within 3 s of a
//! server being reachable again, and the crate cannot keep it: its recovery
//! waits for TCP (packets lost for 60 s: back 46 s after the network), knows no
//! time limit and outlives its owner (CONTRACT section 5). So:
//!
//! - *Look, then dial.* All servers of the list are looked at side by side
//!   (`looks.rs`), and the crate dials the first that answers, on a helper
//!   thread, waited for no longer than the limit. From the moment at which a
//!   server is reachable the next SYN leaves within 1 s during a look, within
//!   0.2 s + 1.7 s over the pause between two rounds; nothing in a round waits
//!   for a server that hangs.
//! - *Nothing hangs alone.* A dial that is not done after 1.2 s, three times
//!   that of the greeting on a slow server, gets another beside it, to the same
//!   server or the next; the first that succeeds counts.
//! - *Nothing waits for TCP.* A heartbeat is waited for 2.5 s (`schedule.rs`
//!   has the exceptions), lost packets for as long; then the session is
//!   replaced at once. Between the end of an outage and a fresh acknowledgement
//!   lie at most that wait, or one pause and one SYN, and a few round trips:
//!   under 3 s. An outage that begins with the worst heartbeat, one interval
//!   after the last, thus ends in time if it lasts no longer than
//!   TTL - interval - 3 s (the arithmetic is a test of `schedule.rs`).
//! - *Ended for good, at once.* `shutdown(2)` on a session's socket wakes the
//!   crate's reader, whose disconnect callback drops the crate's handles in
//!   the one order that ends both of its threads: the flusher, too, which
//!   otherwise lives on for up to two minutes. Where the crate would connect
//!   again its delay callback ends that thread. Bounds on the way: one session
//!   (two threads), 4 dials, 64 sockets of looks, 8 name look-ups that hang in
//!   the C library for 5 to 30 s.
//! - *Nothing arrives late.* No reconnect buffer; a linger time of 0 throws
//!   away what the network has not taken when the session or the process ends;
//!   and what lies in somebody else's buffers fails by its revision.

// Every item of the crate is deprecated by its makers; the choice stands.
#![allow(deprecated)]
// The doors read the clock.
#![allow(clippy::disallowed_methods)]

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nats::header::HeaderMap;
use time::OffsetDateTime;

use crate::diagnosis::{self, Tried};
use crate::error::{Failure, Kind, plain};
use crate::instance::format_time;
use crate::kv::Request;
use crate::login::{Login, ReadLogin, Tls, check_tls_files, read_login};
use crate::look::{Cause, ServerInfo};
use crate::looks::{Answered, Counted, Looks};
use crate::sockets::CrateSocket;

/// Helper threads that hang in a dial; one more is refused.
const DIALS_LIMIT: usize = 4;
/// A connection whose packets nobody acknowledged for so long is lost.
const LOST_AFTER: Duration = Duration::from_millis(2_500);
/// Messages that may wait in a session: twice what a scan and a clean-up ask
/// for at one time.
const QUEUE_LIMIT: usize = 4_096;
/// Servers taken from a cluster's gossip, at most.
const DISCOVERED_LIMIT: usize = 32;
/// How often a wait looks at what cannot wake it: `-ERR` on the side, a stop.
const GLANCE: Duration = Duration::from_millis(20);
/// The same, while both looks and dials may come to something.
const SHORT_GLANCE: Duration = Duration::from_millis(3);
/// A dial that takes longer is tried again, or another server, beside it.
const AGAIN: Duration = Duration::from_millis(1_200);
/// Errors on the side kept until somebody asks, the newest.
const SIDE_ERRORS: usize = 16;

/// Panics on threads that are not ours: the crate's readers, on bytes that they
/// cannot bear. Such a session neither ends nor says anything by itself.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// To be called for each panic on a thread that is not `main`.
pub fn note_panic() {
    PANICS.fetch_add(1, Ordering::SeqCst);
}

/// How to reach NATS and as whom. `Debug` never shows a secret.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The servers to try, in this order; never empty.
    pub servers: Vec<ServerAddress>,
    /// Who we are.
    pub login: Login,
    /// Certificates.
    pub tls: Tls,
    /// Where replies arrive: a subject prefix without wildcards (`_INBOX`).
    pub inbox_prefix: String,
    /// Bounds each exchange with NATS, connecting included.
    pub timeout: Duration,
}

impl Settings {
    /// Whether the files that are named can be used. Each session reads them
    /// anew; this finds at once what a restart cannot cure.
    pub fn check_files(&self) -> Result<(), Failure> {
        read_login(&self.login)?;
        check_tls_files(&self.tls)
    }
}

/// One server of the list, without its login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAddress {
    /// `tls://` was asked for.
    pub tls: bool,
    /// Host name or address; IPv6 without brackets.
    pub host: String,
    /// Port, 4222 by default.
    pub port: u16,
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Why no session came about: each server that was tried, with its cause.
#[derive(Debug)]
pub enum ConnectError {
    /// A stop was asked for while connecting.
    Stopped,
    /// A file of ours cannot be used (exit 78).
    Config(Failure),
    /// No server of the list served.
    Servers(Vec<(ServerAddress, Cause)>),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Stopped => f.write_str("stopped while connecting"),
            ConnectError::Config(failure) => write!(f, "{}", failure.chain()),
            ConnectError::Servers(tried) => {
                for (index, (server, cause)) in tried.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{server}: {cause}")?;
                }
                Ok(())
            }
        }
    }
}

impl StdError for ConnectError {}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Failure {
        let tried = match error {
            ConnectError::Config(failure) => return failure,
            ConnectError::Stopped => {
                return Failure::new(Kind::Incomplete, error.to_string());
            }
            ConnectError::Servers(ref tried) => tried,
        };
        let refused = tried.iter().find(|(_, cause)| matches!(cause, Cause::Login(_)));
        let kind = if refused.is_some() { Kind::Refused } else { Kind::Unavailable };
        let hint = refused.or(tried.last()).and_then(|(_, cause)| cause.hint());
        let failure = Failure::new(kind, format!("no connection to NATS: {error}"));
        match hint {
            Some(hint) => failure.with_hint(hint),
            None => failure,
        }
    }
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

/// Asked for during every wait; `true` means: come to an end.
pub type StopCheck = Arc<dyn Fn() -> bool + Send + Sync>;

/// Opens sessions, one server after the other.
pub struct Connector {
    settings: Settings,
    discovered: Vec<ServerAddress>,
    next: usize,
    /// Name look-ups under way.
    lookups: Arc<AtomicUsize>,
    /// Dials under way.
    dials: Arc<AtomicUsize>,
    stop: StopCheck,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl Connector {
    /// A connector that can be neither stopped nor wakes anybody.
    pub fn new(settings: Settings) -> Connector {
        Connector {
            settings,
            discovered: Vec::new(),
            next: 0,
            lookups: Arc::new(AtomicUsize::new(0)),
            dials: Arc::new(AtomicUsize::new(0)),
            stop: Arc::new(|| false),
            wake: Arc::new(|| ()),
        }
    }

    /// `stop` is looked at during every wait of this connector and of its
    /// sessions; `wake` is called when a session ends by itself or its server
    /// announces that it is going. It runs on a thread of the crate.
    pub fn with_signals(mut self, stop: StopCheck, wake: Arc<dyn Fn() + Send + Sync>) -> Connector {
        self.stop = stop;
        self.wake = wake;
        self
    }

    /// How long each exchange may take.
    pub fn timeout(&self) -> Duration {
        self.settings.timeout
    }

    /// Opens a session on the first server that serves, beginning behind the
    /// one that served last, within `limit`; where a server is slow to greet,
    /// within `limit` and as much again for each answer of the login. The
    /// servers of the list come first, then those that a cluster announced.
    pub fn open(&mut self, limit: Duration) -> Result<Session, ConnectError> {
        let began = Instant::now();
        // Only a stop that comes meanwhile ends this: to deregister after one
        // may take a fresh session.
        let stopping = (self.stop)();
        let login = Arc::new(read_login(&self.settings.login).map_err(ConnectError::Config)?);
        check_tls_files(&self.settings.tls).map_err(ConnectError::Config)?;

        let mut servers = self.settings.servers.clone();
        let strangers = self.discovered.iter().filter(|s| !self.knows(s)).cloned();
        servers.extend(strangers.collect::<Vec<_>>());
        let count = servers.len();
        let start = self.next % count;
        servers.rotate_left(start);

        let ends = servers.iter().map(|server| (server.host.clone(), server.port));
        let mut looks = Looks::at(ends, began + limit, &self.lookups);
        let mut answered: Vec<Answered> = Vec::new();
        let mut dials: Vec<Pending> = Vec::new();
        let (sender, results) = mpsc::channel::<Outcome>();
        // Only where the greeting took its time the whole takes longer.
        let mut end = None;
        let mut dialled = 0;
        loop {
            let first = if dials.is_empty() || !looks.are_over() {
                let glance = if dials.is_empty() { GLANCE } else { SHORT_GLANCE };
                if let Some(answer) = looks.step(glance) {
                    let now = Instant::now();
                    // A login takes three answers where the greeting takes one.
                    let login = limit.max((answer.took * 4).min(limit * 2));
                    end.get_or_insert(if stopping { began + limit } else { now + login });
                    answered.push(answer);
                }
                None
            } else {
                results.recv_timeout(GLANCE).ok()
            };
            for (number, outcome) in first.into_iter().chain(results.try_iter()) {
                // The session of a dial that nobody waits for ends by its `Drop`.
                let Some(at) = dials.iter().position(|dial| dial.number == number) else {
                    continue;
                };
                let mut dial = dials.remove(at);
                let place = dial.place;
                dial.is_done = true;
                match outcome {
                    Ok(session) => {
                        self.next = (start + place + 1) % count;
                        self.discovered = discovered(&session.server, servers[place].tls);
                        return Ok(session);
                    }
                    Err(cause) => looks.failed(place, cause),
                }
            }
            if !stopping && (self.stop)() {
                return Err(ConnectError::Stopped);
            }
            let over = looks.are_over() && answered.is_empty() && dials.is_empty();
            if over || end.is_some_and(|end| Instant::now() >= end) {
                break;
            }
            let free = dials.len() < DIALS_LIMIT && dials.iter().all(Pending::hangs);
            if free && !answered.is_empty() {
                let Answered { server, info, address, took } = answered.remove(0);
                dialled += 1;
                let number = dialled;
                let job = Job { number, place: server, greeting: took };
                match self.dial(job, &servers[server], info, address, &login, &sender) {
                    Ok(dial) => dials.push(dial),
                    Err(cause) => looks.failed(server, cause),
                }
            }
            if !dials.is_empty() || !looks.are_over() {
                looks.start_again(&|server| answered.iter().any(|one| one.server == server));
            }
        }
        for dial in &dials {
            looks.failed(dial.place, dial.cause());
        }
        let mut tried: Vec<(ServerAddress, Cause)> = looks
            .causes()
            .into_iter()
            .map(|(place, cause)| (servers[place].clone(), cause))
            .collect();
        // The order of the list and not that of the attempts, so that the same
        // outage reads the same each time.
        tried.sort_by_key(|(server, _)| {
            let listed = self.settings.servers.iter().position(|s| s == server);
            (listed.unwrap_or(usize::MAX), server.host.clone(), server.port)
        });
        Err(ConnectError::Servers(tried))
    }

    fn knows(&self, server: &ServerAddress) -> bool {
        let same = |s: &&ServerAddress| s.host == server.host && s.port == server.port;
        self.settings.servers.iter().find(same).is_some()
    }

    /// Lets the crate dial on a helper thread.
    fn dial(
        &self,
        job: Job,
        server: &ServerAddress,
        info: ServerInfo,
        address: SocketAddr,
        login: &Arc<ReadLogin>,
        results: &mpsc::Sender<Outcome>,
    ) -> Result<Pending, Cause> {
        if self.dials.load(Ordering::SeqCst) >= DIALS_LIMIT {
            return Err(Cause::Other("earlier attempts still hang".into()));
        }
        let tls = server.tls
            || self.settings.tls.ca.is_some()
            || self.settings.tls.client.is_some()
            || info.tls_required;
        let shared = Arc::new(Shared::new(Arc::clone(&self.wake)));
        let socket = Arc::new(CrateSocket::appearing(server.port));
        let dial = Dial {
            server: server.clone(),
            tls: self.settings.tls.clone(),
            use_tls: tls,
            login: Arc::clone(login),
            who: self.settings.login.to_string(),
            inbox_prefix: self.settings.inbox_prefix.clone(),
            socket: Arc::clone(&socket),
            shared: Arc::clone(&shared),
            greeting: job.greeting,
            stop_limit: self.settings.timeout / 2,
            stop: Arc::clone(&self.stop),
        };
        let Job { number, place, greeting } = job;
        let patience = AGAIN.max(greeting * 3);
        let (results, counted) = (results.clone(), Counted::new(&self.dials));
        let helper = move || {
            let _counted = counted;
            // The crate panics on hostile bytes.
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| dial.run(info, address)))
                .unwrap_or_else(|_| Err(Cause::NotNats("what it sends cannot be read".into())));
            results.send((number, outcome)).ok();
        };
        if let Err(error) = thread::Builder::new().name("connect".into()).spawn(helper) {
            return Err(Cause::Other(format!("cannot start a thread: {error}")));
        }
        let began = Instant::now();
        Ok(Pending { number, place, began, patience, tls, is_done: false, socket, shared })
    }
}

/// Which dial it was, and what became of it.
type Outcome = (u64, Result<Session, Cause>);

/// What is to be dialled: the server at `place` of the list.
struct Job {
    number: u64,
    place: usize,
    /// How long the server took to greet.
    greeting: Duration,
}

/// A dial under way. Dropping it takes what it waits for away from it.
struct Pending {
    number: u64,
    place: usize,
    began: Instant,
    /// When to try beside it.
    patience: Duration,
    tls: bool,
    is_done: bool,
    socket: Arc<CrateSocket>,
    shared: Arc<Shared>,
}

impl Pending {
    /// It takes so long that another may be tried beside it; and its socket is
    /// known, so that they are not mixed up.
    fn hangs(&self) -> bool {
        self.began.elapsed() >= self.patience && self.socket.is_found()
    }

    fn cause(&self) -> Cause {
        match self.tls {
            true => Cause::Tls("the handshake was not finished in time".into()),
            false => Cause::Silent,
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.is_done {
            self.shared.end_quietly();
            self.socket.shut();
        }
    }
}

/// The other members of a cluster, as its server announced them.
fn discovered(server: &ServerInfo, tls: bool) -> Vec<ServerAddress> {
    let mut found = Vec::new();
    for url in server.connect_urls.iter().take(DISCOVERED_LIMIT) {
        if let Some((host, port)) = url.rsplit_once(':')
            && let Ok(port) = port.parse()
        {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            found.push(ServerAddress { tls, host: host.to_owned(), port });
        }
    }
    found
}

/// The crate's part of a connection, on its helper thread.
struct Dial {
    server: ServerAddress,
    tls: Tls,
    use_tls: bool,
    login: Arc<ReadLogin>,
    who: String,
    inbox_prefix: String,
    socket: Arc<CrateSocket>,
    shared: Arc<Shared>,
    greeting: Duration,
    stop_limit: Duration,
    stop: StopCheck,
}

impl Dial {
    /// Lets the crate connect to the server that was looked at.
    fn run(self, info: ServerInfo, address: SocketAddr) -> Result<Session, Cause> {
        let (tls, shared) = (self.use_tls, Arc::clone(&self.shared));
        if tls && info.tls_verify && self.tls.client.is_none() {
            let why = "the server wants a certificate of ours: give --tlscert and --tlskey";
            return Err(Cause::Tls(why.into()));
        }
        let options = self.options(tls, &shared)?;
        // The certificate is checked against the host in the URL; without TLS
        // the address that answered saves a second look-up.
        let url = if tls { format!("tls://{}", self.server) } else { format!("nats://{address}") };

        let panics = PANICS.load(Ordering::SeqCst);
        let connection = options.connect(url.as_str()).map_err(|e| self.cause_of(&e, tls))?;
        let socket = self.socket.take();
        if let Some(socket) = &socket {
            // A frozen peer fills the socket's buffer: bound what then blocks.
            socket.set_write_timeout(Some(Duration::from_secs(5))).ok();
            // Lost packets end it before TCP's own patience does; a server that
            // is merely slow acknowledges what it was sent.
            let lost_after = u32::try_from(LOST_AFTER.as_millis()).unwrap_or(u32::MAX);
            rustix::net::sockopt::set_tcp_user_timeout(socket, lost_after).ok();
            // What the network has not taken yet dies with the session, and
            // with the process: a heartbeat must not arrive after its time.
            rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO)).ok();
        }

        let unique = connection.new_inbox();
        let unique = unique.rsplit('.').next().unwrap_or_default();
        let inbox = format!("{}.{unique}", self.inbox_prefix);
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
            stop: Arc::clone(&self.stop),
            panics,
            server: info,
            address: self.server.clone(),
            greeting: self.greeting,
            stop_limit: self.stop_limit,
        })
    }

    /// What the crate's error is about, with what is known of the login.
    fn cause_of(&self, error: &io::Error, tls: bool) -> Cause {
        let mut who = self.who.clone();
        if let Some(at) = self.login.expires()
            // The server's clock may be a little ahead of ours.
            && at < OffsetDateTime::now_utc() + Duration::from_secs(2)
        {
            who = format!("{who}, whose user JWT expired at {}", format_time(at));
        }
        let tls = tls.then_some(&self.tls);
        diagnosis::cause(&plain(error), &Tried { host: &self.server.host, tls, who: &who })
    }

    fn options(&self, tls: bool, shared: &Arc<Shared>) -> Result<nats::Options, Cause> {
        let options = match &*self.login {
            ReadLogin::None => nats::Options::new(),
            ReadLogin::User(name, password) => nats::Options::with_user_pass(name, password),
            ReadLogin::Token(token) => nats::Options::with_token(token),
            // Not the crate's reader of credentials files: its regular
            // expressions are a megabyte of the binary.
            ReadLogin::Creds { jwt, seed } => {
                let (jwt, pair) = (jwt.clone(), key_pair(seed)?);
                nats::Options::with_jwt(
                    move || Ok(jwt.clone()),
                    move |nonce| pair.sign(nonce).unwrap_or_default(),
                )
            }
            ReadLogin::Nkey(seed) => {
                let pair = key_pair(seed)?;
                let public = pair.public_key();
                nats::Options::with_nkey(&public, move |nonce| pair.sign(nonce).unwrap_or_default())
            }
        };
        let (errors, gone, closed, lame, delay) = (
            Arc::clone(shared),
            Arc::clone(shared),
            Arc::clone(shared),
            Arc::clone(shared),
            Arc::clone(shared),
        );
        // The callbacks only store and wake: they must neither log nor call
        // the crate, which holds its locks in some of them.
        let mut options = options
            .with_name("aegis-agent")
            .max_reconnects(1)
            .reconnect_buffer_size(0)
            // Asked before each attempt to connect: an attempt that nobody waits
            // for, and the crate's own reconnecting, end here with their thread.
            .reconnect_delay_callback(move |_| match delay.has_ended() {
                true => panic::resume_unwind(Box::new("the session has ended")),
                false => Duration::ZERO,
            })
            .error_callback(move |error| errors.note(plain(&error)))
            .disconnect_callback(move || gone.end())
            .close_callback(move || closed.end())
            .reconnect_callback(|| ())
            .lame_duck_callback(move || lame.announce_lame_duck())
            .tls_required(tls);
        match (&self.tls.ca, tls) {
            (Some(ca), _) => options = options.add_root_certificate(ca),
            // Without a CA the system's roots are read, which takes time and
            // memory, and fails where they are broken: name an empty one.
            (None, false) => options = options.add_root_certificate("/dev/null"),
            (None, true) => {}
        }
        if let Some((cert, key)) = &self.tls.client {
            options = options.client_cert(cert, key);
        }
        Ok(options)
    }
}

/// What the crate's threads and the session's owner share.
struct Shared {
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
    fn new(wake: Arc<dyn Fn() + Send + Sync>) -> Shared {
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

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    fn end(&self) {
        if self.end_quietly() {
            (self.wake)();
        }
    }

    /// Ends it, and tells whether it had not ended before.
    fn end_quietly(&self) -> bool {
        let first = !self.ended.swap(true, Ordering::SeqCst);
        let held = lock(&self.held).take();
        if let Some((connection, subscription)) = held {
            drop(connection);
            drop(subscription);
        }
        first
    }

    fn note(&self, error: String) {
        let mut errors = lock(&self.errors);
        if errors.len() == SIDE_ERRORS {
            errors.remove(0);
        }
        errors.push(error);
    }

    fn announce_lame_duck(&self) {
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
    /// Where it was reached, and the server's name where it has one.
    pub fn place(&self) -> String {
        let (name, id) = (&self.server.server_name, &self.server.server_id);
        if name.is_empty() || name == id {
            return self.address.to_string();
        }
        format!("{} ({})", self.address, crate::table::printable(name))
    }

    /// Whether the connection is gone, as far as TCP knows.
    pub fn has_ended(&self) -> bool {
        self.shared.has_ended() || self.reader_died()
    }

    /// Whether a reader of the crate died since this session began; most likely
    /// its own.
    fn reader_died(&self) -> bool {
        PANICS.load(Ordering::SeqCst) != self.panics
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

fn key_pair(seed: &str) -> Result<nkeys::KeyPair, Cause> {
    nkeys::KeyPair::from_seed(seed).map_err(|error| Cause::Login(error.to_string()))
}

/// A lock whose holder panicked still guards good data here: each is a plain
/// value replaced whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
