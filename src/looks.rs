//! Several looks at once: which server of a list answers first.
//!
//! One after the other would not do: whoever waits for a server that drops
//! packets, or is frozen, does not notice that the one behind it is back. So
//! the looks are started in the order of the list, a moment apart, and go on
//! side by side; what failed or hangs is tried again beside the old try, since
//! a lost SYN is repeated by the kernel after 1, 3, 7 s and a lost question to
//! a name server after 5 s. All of it in one thread, by `poll`; only name
//! look-ups, which know no time limit, have helper threads, of a limited
//! number.

// The doors read the clock.
#![allow(clippy::disallowed_methods)]

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::plain;
use crate::look::{Cause, InfoLine, ServerInfo, TLS_PROBE};
use crate::sockets::LookSocket;

/// Name look-ups that hang, at most; one more waits until one of them ends.
/// The C library's last for 5 to 30 s where no name server answers.
const LOOKUPS_LIMIT: usize = 8;
/// Sockets of looks at one time, at most.
const SOCKETS_LIMIT: usize = 64;
/// Addresses of one name that are tried.
const ADDRESSES_LIMIT: usize = 8;
/// From one start to the next, unless a look fails before.
const STAGGER: Duration = Duration::from_millis(150);
/// A server that did not connect by then gets another look beside the first.
const AGAIN_UNCONNECTED: Duration = Duration::from_millis(1_200);
/// A server that connected and is silent gets another look by then: more
/// would fill the backlog of one that is frozen.
const AGAIN_SILENT: Duration = Duration::from_millis(2_500);
/// A server that connected and is silent by then, or by half of the time that
/// there is, is asked whether it waits for a TLS handshake.
const PROBE_AFTER: Duration = Duration::from_secs(1);

/// A server that answered.
pub(crate) struct Answered {
    /// Its place in the list.
    pub(crate) server: usize,
    /// What it said.
    pub(crate) info: ServerInfo,
    /// The address that answered.
    pub(crate) address: SocketAddr,
    /// From the start of this look to the answer.
    pub(crate) took: Duration,
}

/// Looks at the servers of a list.
pub(crate) struct Looks {
    servers: Vec<Candidate>,
    /// What to start next: a server, by an address or by its name.
    queue: Vec<(usize, Option<SocketAddr>)>,
    under_way: Vec<Look>,
    deadline: Instant,
    last_start: Option<Instant>,
    stagger: Duration,
    probe_after: Duration,
    lookups: Arc<AtomicUsize>,
    /// Ends a wait: its other end is with the helper threads.
    woken: Option<UnixStream>,
    waker: Waker,
}

/// Ends the wait of [`Looks::step`]; for helper threads. Without a pair of
/// sockets (no descriptors left) the wait ends by its limit.
#[derive(Clone, Default)]
pub(crate) struct Waker(Option<Arc<UnixStream>>);

impl Waker {
    pub(crate) fn wake(&self) {
        if let Some(socket) = &self.0 {
            // A full one wakes as well.
            (&**socket).write_all(&[0]).ok();
        }
    }

    fn pair() -> (Option<UnixStream>, Waker) {
        let pair = UnixStream::pair().and_then(|(woken, waker)| {
            woken.set_nonblocking(true)?;
            waker.set_nonblocking(true)?;
            Ok((woken, waker))
        });
        match pair {
            Ok((woken, waker)) => (Some(woken), Waker(Some(Arc::new(waker)))),
            Err(_) => (None, Waker::default()),
        }
    }
}

struct Candidate {
    host: String,
    port: u16,
    started: Instant,
    cause: Option<Cause>,
}

struct Look {
    server: usize,
    began: Instant,
    step: Step,
    /// Asked whether it waits for a TLS handshake.
    probed: bool,
}

enum Step {
    Resolving(Receiver<io::Result<Vec<SocketAddr>>>),
    Connecting(LookSocket, SocketAddr),
    Reading(LookSocket, SocketAddr, InfoLine, Instant),
}

/// What one look did when it was looked after.
enum Progress {
    Waits(Step),
    Resolved(Vec<SocketAddr>),
    Answered(ServerInfo, SocketAddr),
    Failed(Cause),
}

impl Looks {
    /// Looks at `servers` (host and port), first come, first started, until
    /// `deadline`. `lookups` counts helper threads, also of earlier looks.
    pub(crate) fn at(
        servers: impl Iterator<Item = (String, u16)>,
        deadline: Instant,
        lookups: &Arc<AtomicUsize>,
    ) -> Looks {
        let now = Instant::now();
        let servers: Vec<Candidate> = servers
            .map(|(host, port)| Candidate { host, port, started: now, cause: None })
            .collect();
        let count = u32::try_from(servers.len()).unwrap_or(u32::MAX).max(1);
        let (woken, waker) = Waker::pair();
        Looks {
            queue: (0..servers.len()).map(|server| (server, None)).collect(),
            servers,
            under_way: Vec::new(),
            deadline,
            last_start: None,
            // Whoever stands last still gets half of the time.
            stagger: STAGGER.min(deadline.saturating_duration_since(now) / 2 / count),
            probe_after: PROBE_AFTER.min(deadline.saturating_duration_since(now) / 2),
            lookups: Arc::clone(lookups),
            woken,
            waker,
        }
    }

    /// What ends a wait of `step`.
    pub(crate) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Goes on, for `limit` at most, and returns as soon as a server answers.
    pub(crate) fn step(&mut self, limit: Duration) -> Option<Answered> {
        let now = Instant::now();
        self.start_due(now);
        self.wait(limit.min(self.deadline.saturating_duration_since(now)), now);
        let answered = self.look_after();
        if Instant::now() >= self.deadline {
            self.give_up();
        }
        answered
    }

    /// Nobody is left, or the time is up.
    pub(crate) fn are_over(&self) -> bool {
        self.under_way.is_empty() && self.queue.is_empty()
    }

    /// A server that answered did not serve after all.
    pub(crate) fn failed(&mut self, server: usize, cause: Cause) {
        self.servers[server].cause = Some(cause);
    }

    /// Why each server that was tried did not serve, by its place.
    pub(crate) fn causes(self) -> Vec<(usize, Cause)> {
        let causes = self.servers.into_iter().map(|server| server.cause);
        causes.enumerate().filter_map(|(place, cause)| Some((place, cause?))).collect()
    }

    fn start_due(&mut self, now: Instant) {
        while !self.queue.is_empty() && self.under_way.len() < SOCKETS_LIMIT {
            if self.last_start.is_some_and(|last| now < last + self.stagger) {
                return;
            }
            let (server, address) = self.queue.remove(0);
            match self.start(server, address) {
                Ok(step) => {
                    self.last_start = Some(now);
                    self.under_way.push(Look { server, began: now, step, probed: false });
                }
                Err(cause) => self.servers[server].cause = Some(cause),
            }
            self.servers[server].started = now;
        }
    }

    fn start(&self, server: usize, address: Option<SocketAddr>) -> Result<Step, Cause> {
        let Candidate { host, port, .. } = &self.servers[server];
        let literal = host.parse().ok().map(|ip: IpAddr| SocketAddr::new(ip, *port));
        match address.or(literal) {
            Some(address) => {
                let socket =
                    LookSocket::connect(address).map_err(|error| Cause::Tcp(plain(&error)))?;
                Ok(Step::Connecting(socket, address))
            }
            None => self.resolve(host.clone(), *port).map(Step::Resolving),
        }
    }

    /// Looks a name up on a thread of its own, which may hang.
    fn resolve(
        &self,
        host: String,
        port: u16,
    ) -> Result<Receiver<io::Result<Vec<SocketAddr>>>, Cause> {
        if self.lookups.load(Ordering::SeqCst) >= LOOKUPS_LIMIT {
            return Err(Cause::Resolve("the name server does not answer".into()));
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        let (counted, waker) = (Counted::new(&self.lookups), self.waker());
        let helper = move || {
            let _counted = counted;
            let found = (host.as_str(), port).to_socket_addrs();
            sender.send(found.map(|found| found.take(ADDRESSES_LIMIT).collect())).ok();
            waker.wake();
        };
        match thread::Builder::new().name("resolve".into()).spawn(helper) {
            Ok(_) => Ok(receiver),
            Err(error) => Err(Cause::Other(format!("cannot start a thread: {error}"))),
        }
    }

    /// Waits until something may have happened.
    fn wait(&self, limit: Duration, now: Instant) {
        let limit = match (self.queue.is_empty(), self.last_start) {
            (false, Some(last)) => limit.min((last + self.stagger).saturating_duration_since(now)),
            _ => limit,
        };
        let mut fds: Vec<PollFd<'_>> = Vec::new();
        for look in &self.under_way {
            match &look.step {
                Step::Resolving(_) => {}
                Step::Connecting(socket, _) => {
                    fds.push(PollFd::new(socket.stream(), PollFlags::OUT));
                }
                Step::Reading(socket, ..) => fds.push(PollFd::new(socket.stream(), PollFlags::IN)),
            }
        }
        if let Some(woken) = &self.woken {
            fds.push(PollFd::new(woken, PollFlags::IN));
        }
        // Ends early where a signal comes: the caller looks anyway.
        let _ = poll(&mut fds, Timespec::try_from(limit).ok().as_ref());
        if let Some(mut woken) = self.woken.as_ref() {
            let _ = woken.read(&mut [0; 64]);
        }
    }

    fn look_after(&mut self) -> Option<Answered> {
        let mut answered = None;
        for Look { server, began, step, probed } in std::mem::take(&mut self.under_way) {
            match step.advance() {
                Progress::Waits(step) => {
                    let probed = probed || (began.elapsed() >= self.probe_after && step.probe());
                    self.under_way.push(Look { server, began, step, probed });
                }
                Progress::Resolved(addresses) if addresses.is_empty() => {
                    self.lost(server, Cause::Resolve("it has no address".into()));
                }
                Progress::Resolved(addresses) => {
                    let found = addresses.into_iter().map(|address| (server, Some(address)));
                    self.queue.splice(0..0, found);
                    self.last_start = None;
                }
                Progress::Answered(info, _) if info.ldm => self.lost(server, Cause::LameDuck),
                Progress::Answered(info, address) if answered.is_none() => {
                    answered = Some(Answered { server, info, address, took: began.elapsed() });
                }
                // The second at once: it will answer again if it is needed.
                Progress::Answered(..) => self.queue.push((server, None)),
                Progress::Failed(cause) => self.lost(server, cause),
            }
        }
        answered
    }

    fn lost(&mut self, server: usize, cause: Cause) {
        self.servers[server].cause = Some(cause);
        // Whoever stands behind it need not wait.
        self.last_start = None;
    }

    /// Another look at each server whose last one failed or hangs: for as long
    /// as somebody else is waited for anyway.
    pub(crate) fn start_again(&mut self, except: &dyn Fn(usize) -> bool) {
        let now = Instant::now();
        if now >= self.deadline {
            return;
        }
        for server in 0..self.servers.len() {
            let looks = || self.under_way.iter().filter(|look| look.server == server);
            let silent = looks().any(|look| matches!(look.step, Step::Reading(..)));
            let pause = if silent { AGAIN_SILENT } else { AGAIN_UNCONNECTED };
            let queued = self.queue.iter().any(|(queued, _)| *queued == server);
            if !queued && !except(server) && now >= self.servers[server].started + pause {
                self.queue.push((server, None));
            }
        }
    }

    /// The time is up: names what each hanging look waits for.
    fn give_up(&mut self) {
        self.queue.clear();
        for look in self.under_way.drain(..) {
            let cause = match look.step {
                Step::Resolving(_) => Cause::Resolve("the name server does not answer".into()),
                Step::Connecting(..) => Cause::Unanswered,
                Step::Reading(..) => Cause::Silent,
            };
            // Of several looks at one server the one that came furthest counts.
            let known = &mut self.servers[look.server].cause;
            if !matches!((&known, &cause), (Some(Cause::Silent), Cause::Unanswered)) {
                *known = Some(cause);
            }
        }
    }
}

impl Step {
    /// Asks a server that has said nothing yet; tells whether it did.
    fn probe(&self) -> bool {
        match self {
            Step::Reading(socket, _, line, _) if line.is_empty() => {
                let mut socket = socket.stream();
                socket.write_all(&TLS_PROBE).ok();
                true
            }
            _ => false,
        }
    }

    fn advance(self) -> Progress {
        match self {
            Step::Resolving(receiver) => match receiver.try_recv() {
                Ok(Ok(addresses)) => Progress::Resolved(addresses),
                Ok(Err(error)) => Progress::Failed(Cause::Resolve(plain(&error))),
                Err(TryRecvError::Empty) => Progress::Waits(Step::Resolving(receiver)),
                Err(TryRecvError::Disconnected) => {
                    Progress::Failed(Cause::Resolve("the look-up failed".into()))
                }
            },
            Step::Connecting(socket, address) => match connected(socket.stream()) {
                Ok(true) => {
                    Step::Reading(socket, address, InfoLine::default(), Instant::now()).advance()
                }
                Ok(false) => Progress::Waits(Step::Connecting(socket, address)),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    Progress::Failed(Cause::Unanswered)
                }
                Err(error) => Progress::Failed(Cause::Tcp(plain(&error))),
            },
            Step::Reading(socket, address, mut line, since) => {
                match read_on(socket.stream(), &mut line) {
                    Ok(Some(info)) => {
                        let info = ServerInfo { round_trip: since.elapsed(), ..info };
                        Progress::Answered(info, address)
                    }
                    Ok(None) => Progress::Waits(Step::Reading(socket, address, line, since)),
                    Err(cause) => Progress::Failed(cause),
                }
            }
        }
    }
}

fn connected(socket: &TcpStream) -> io::Result<bool> {
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    match socket.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}

fn read_on(mut socket: &TcpStream, line: &mut InfoLine) -> Result<Option<ServerInfo>, Cause> {
    let mut chunk = [0; 1024];
    loop {
        match socket.read(&mut chunk) {
            Ok(count) => {
                if let Some(info) = line.add(&chunk[..count])? {
                    return Ok(Some(info));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(Cause::Tcp(plain(&error))),
        }
    }
}

/// One of the helper threads that are under way, however it ends.
pub(crate) struct Counted(Arc<AtomicUsize>);

impl Counted {
    pub(crate) fn new(count: &Arc<AtomicUsize>) -> Counted {
        count.fetch_add(1, Ordering::SeqCst);
        Counted(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
