//! The NATS connection: where it goes, and what it lasts. Only `dial.rs` and
//! `session.rs` know the `nats` crate.
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

// The doors read the clock.
#![allow(clippy::disallowed_methods)]

mod dial;
mod session;

use std::error::Error as StdError;
use std::fmt;
use std::net::SocketAddr;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Failure, Kind};
use crate::login::{Login, ReadLogin, Tls, check_tls_files, read_login};
use crate::look::{Cause, ServerInfo};
use crate::looks::{Answered, Counted, Looks, Waker};
use crate::sockets::CrateSocket;

pub use session::{Incoming, RequestError, Session, note_panic};

use dial::Dial;
use session::Shared;

/// Helper threads that hang in a dial; one more is refused.
const DIALS_LIMIT: usize = 4;
/// Servers taken from a cluster's gossip, at most.
const DISCOVERED_LIMIT: usize = 32;
/// How often a wait looks at what cannot wake it: `-ERR` on the side, a stop, the
/// time for another try. Each costs a waking-up: with 3 and 20 ms, 2,000 agents
/// beside their server took all of its CPU when it came back, for half a minute.
const GLANCE: Duration = Duration::from_millis(100);
/// A dial that takes longer is tried again, or another server, beside it.
const AGAIN: Duration = Duration::from_millis(1_200);

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
                if let Some(answer) = looks.step(GLANCE) {
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
                let report = Report { results: sender.clone(), waker: looks.waker() };
                match self.dial(job, &servers[server], info, address, &login, report) {
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
        report: Report,
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
        let counted = Counted::new(&self.dials);
        let helper = move || {
            let _counted = counted;
            // The crate panics on hostile bytes.
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| dial.run(info, address)))
                .unwrap_or_else(|_| Err(Cause::NotNats("what it sends cannot be read".into())));
            report.results.send((number, outcome)).ok();
            report.waker.wake();
        };
        if let Err(error) = thread::Builder::new().name("connect".into()).spawn(helper) {
            return Err(Cause::Other(format!("cannot start a thread: {error}")));
        }
        let began = Instant::now();
        Ok(Pending { number, place, began, patience, tls, is_done: false, socket, shared })
    }
}

/// Where a dial says what became of it.
struct Report {
    results: mpsc::Sender<Outcome>,
    waker: Waker,
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
