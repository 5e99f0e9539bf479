//! Opens sessions: one `poll` over all attempts at all servers of a list. Whom
//! to try and when is decided in `race`, what is said in `handshake`.
//!
//! The attempt is the connection: the first server that lets us in is the
//! session, and the others are closed. From the moment at which a server is
//! reachable the next SYN leaves within 1.2 s, and nothing waits for a server
//! that hangs.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::address::{Members, ServerAddress};
use super::attempt::{Attempt, Context, Progress};
use super::failure::{Cause, ConnectError};
use super::handshake::Wish;
use super::login::{Login, ReadLogin, Tls, check_tls_files, read_login};
use super::lookup::Lookups;
use super::race::{Action, Begin, Entrant, Race, Stage};
use super::session::{Opened, Session};
use super::waiter::{Alone, Interest, Waiter};
use crate::error::{Failure, plain};
use crate::text::time::format_time_to_second;

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
    /// The name of the connection in the server's monitoring, such as
    /// `aegis-agent orders-api/host-1`.
    pub name: String,
    /// TLS comes before the server's first word (`handshake_first`). Where this
    /// is not said it is found out, which takes a second.
    pub tls_first: bool,
    /// The context of the `nats` CLI that was named, for commands that go where
    /// this call went.
    pub context: Option<String>,
}

impl Settings {
    /// Whether the files that are named can be used. Each session reads them
    /// anew; this finds at once what a restart cannot cure.
    pub fn check_files(&self) -> Result<(), Failure> {
        read_login(&self.login)?;
        check_tls_files(&self.tls)
    }
}

/// So often a race begins anew because the process was stopped in it.
const RESUMES_LIMIT: u32 = 3;

/// Opens sessions, one server after the other.
pub struct Connector {
    settings: Settings,
    members: Members,
    /// Servers that want TLS before their first word.
    tls_first: Vec<ServerAddress>,
    /// Where the next race begins.
    next: usize,
    lookups: Lookups,
    waiter: Rc<dyn Waiter>,
}

impl Connector {
    /// A connector whose waits attend to nothing else, and cannot be stopped.
    pub fn new(settings: Settings) -> Connector {
        Connector {
            settings,
            members: Members::default(),
            tls_first: Vec::new(),
            next: 0,
            lookups: Lookups::default(),
            waiter: Rc::new(Alone),
        }
    }

    /// All waits of this connector and of its sessions are `waiter`'s.
    pub fn with_waiter(mut self, waiter: Rc<dyn Waiter>) -> Connector {
        self.waiter = waiter;
        self
    }

    /// How long each exchange may take.
    pub fn timeout(&self) -> Duration {
        self.settings.timeout
    }

    /// What it was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How many servers there are to choose from.
    pub fn choices(&self) -> usize {
        let (listed, members) = (&self.settings.servers, self.members.borrow());
        let is_new = |(at, member): &(usize, &ServerAddress)| {
            let before = listed.iter().chain(&members[..*at]);
            !before.into_iter().any(|server| server.is_at(member))
        };
        listed.len() + members.iter().enumerate().filter(is_new).count()
    }

    /// The clocks, the network, and the wait.
    pub fn waiter(&self) -> &Rc<dyn Waiter> {
        &self.waiter
    }

    /// Waits until `until`; may end early.
    pub fn idle_until(&self, until: Instant) {
        self.waiter.wait(&mut [], Some(until));
    }

    /// Opens a session on the first server that serves, beginning after the
    /// one that served last, within `limit`; where a server is slow to greet,
    /// within `limit` and as much again for each answer of the login. The
    /// servers of the list come first, then those that a cluster announced.
    pub fn open(&mut self, limit: Duration) -> Result<Session, ConnectError> {
        let began = self.waiter.now();
        // Only a stop that comes from now on ends this: after an earlier one a
        // fresh session may be needed to deregister.
        let stopping = self.waiter.stop_requested();
        let login = read_login(&self.settings.login).map_err(ConnectError::Config)?;
        check_tls_files(&self.settings.tls).map_err(ConnectError::Config)?;

        let servers = self.servers();
        let entrant = |server| Entrant {
            address: literal(server),
            tls_first: self.settings.tls_first
                || self.tls_first.iter().any(|known| known.is_at(server)),
        };
        let new_race = || Race::new(servers.iter().map(entrant).collect(), limit, !stopping);
        let who = who(&self.settings.login, &login, self.waiter.wall_clock());
        let context = Context {
            servers: &servers,
            wish: Wish {
                tls: false,
                tls_first: false,
                has_certificate: self.settings.tls.client.is_some(),
                login: &login,
                who: &who,
                name: &self.settings.name,
            },
            files: &self.settings.tls,
            setup: None,
            waiter: &*self.waiter,
        };
        let run = Run {
            race: new_race(),
            new_race: &new_race,
            resumes: RESUMES_LIMIT,
            context,
            attempts: Vec::new(),
            lookups: &self.lookups,
            began,
            wants_tls: self.settings.tls.ca.is_some() || self.settings.tls.client.is_some(),
        };
        let won = run.until_won(stopping);
        let won = won.map_err(|error| in_order(error, &self.settings.servers))?;
        self.won(&servers, won)
    }

    /// The list, and after it the members that are not in it, beginning after
    /// the one that served last.
    fn servers(&self) -> Vec<ServerAddress> {
        let mut servers = self.settings.servers.clone();
        for member in self.members.borrow().iter() {
            if !servers.iter().any(|server| server.is_at(member)) {
                servers.push(member.clone());
            }
        }
        let start = self.next % servers.len();
        servers.rotate_left(start);
        servers
    }

    fn won(&mut self, servers: &[ServerAddress], won: Won) -> Result<Session, ConnectError> {
        let address = servers[won.server].clone();
        let count = servers.len();
        let start = self.next % count;
        self.next = (start + won.server + 1) % count;
        self.tls_first.retain(|known| !known.is_at(&address));
        if won.tls_first {
            self.tls_first.push(address.clone());
        }
        Ok(Session::open(
            *won.served,
            Opened {
                address,
                greeting: won.greeting,
                inbox_prefix: self.settings.inbox_prefix.clone(),
                stop_limit: self.settings.timeout / 2,
                members: Rc::clone(&self.members),
                waiter: Rc::clone(&self.waiter),
            },
        ))
    }
}

/// One race, and the attempts in it.
struct Run<'a> {
    race: Race,
    /// The same, at its start.
    new_race: &'a dyn Fn() -> Race,
    /// So often it may still begin anew.
    resumes: u32,
    context: Context<'a>,
    /// Each with the time at which its server greeted, and whether TLS came
    /// first.
    attempts: Vec<Running>,
    lookups: &'a Lookups,
    began: Instant,
    /// Certificates are given, so TLS is wanted of every server.
    wants_tls: bool,
}

struct Running {
    attempt: Attempt,
    tls_first: bool,
    greeting: Option<Duration>,
}

/// The attempt that was let in.
struct Won {
    server: usize,
    served: Box<super::attempt::Served>,
    tls_first: bool,
    greeting: Duration,
}

impl Run<'_> {
    fn until_won(mut self, stopping: bool) -> Result<Won, ConnectError> {
        let waiter = self.context.waiter;
        loop {
            while let Some(action) = self.race.next(self.elapsed()) {
                match action {
                    Action::Begin(begin) => self.begin(begin),
                    Action::GiveUp(id) => self.attempts.retain(|one| one.attempt.id != id),
                }
            }
            let now = self.elapsed();
            if !stopping && waiter.stop_requested() {
                return Err(ConnectError::Stopped);
            }
            if self.race.is_over(now) {
                return Err(ConnectError::Servers(self.causes()));
            }
            let until = self.began + self.race.wake_at(now);
            let mut interests: Vec<Interest<'_>> =
                self.attempts.iter().map(|one| one.attempt.interest()).collect();
            waiter.wait(&mut interests, Some(until));
            // The process was stopped: whoever was waited for may be long gone, and
            // what was measured means nothing.
            if self.resumes > 0 && waiter.take_resumed() {
                self.resumes -= 1;
                self.attempts.clear();
                (self.race, self.began) = ((self.new_race)(), waiter.now());
                continue;
            }
            let ready: Vec<bool> = interests.iter().map(|interest| interest.ready).collect();
            if let Some(won) = self.advance(&ready) {
                return Ok(won);
            }
        }
    }

    fn elapsed(&self) -> Duration {
        self.context.waiter.now().saturating_duration_since(self.began)
    }

    fn begin(&mut self, begin: Begin) {
        let Begin { id, server, address, tls_first } = begin;
        let ServerAddress { host, port, .. } = &self.context.servers[server];
        let attempt = match address {
            Some(address) => match self.context.waiter.connect(address) {
                Ok(socket) => Ok(Attempt::connecting(id, server, socket, tls_first)),
                Err(error) => Err(Cause::Tcp(plain(&error))),
            },
            None => match self.lookups.begin(host, *port) {
                Ok(lookup) => Ok(Attempt::resolving(id, server, lookup)),
                Err(why) => Err(Cause::Resolve(why)),
            },
        };
        match attempt {
            Ok(attempt) => self.attempts.push(Running { attempt, tls_first, greeting: None }),
            Err(cause) => self.race.failed(id, cause),
        }
    }

    /// Goes on with the attempts for which something has happened.
    fn advance(&mut self, ready: &[bool]) -> Option<Won> {
        let attempts = std::mem::take(&mut self.attempts);
        let mut ready = ready.iter().copied().chain(std::iter::repeat(false));
        for Running { attempt, tls_first, greeting } in attempts {
            if !ready.next().unwrap_or(false) {
                self.attempts.push(Running { attempt, tls_first, greeting });
                continue;
            }
            let (id, server) = (attempt.id, attempt.server);
            self.context.wish.tls = self.wants_tls || self.context.servers[server].tls;
            let progress = attempt.advance(&mut self.context);
            let now = self.elapsed();
            match progress {
                Ok(Progress::Waits(attempt, stage)) => {
                    self.race.reached(id, stage, now);
                    let greeted = stage == Stage::LoggingIn;
                    let greeting = match greeting {
                        None if greeted => Some(self.race.took(id, now)),
                        known => known,
                    };
                    self.attempts.push(Running { attempt, tls_first, greeting });
                }
                Ok(Progress::Resolved(addresses)) => self.race.resolved(id, addresses),
                Ok(Progress::Ready(served)) => {
                    let greeting = greeting.unwrap_or_else(|| self.race.took(id, now));
                    return Some(Won { server, served, tls_first, greeting });
                }
                Err(cause) => self.race.failed(id, cause),
            }
        }
        None
    }

    fn causes(self) -> Vec<(ServerAddress, Cause)> {
        let servers = self.context.servers;
        let causes = self.race.causes().into_iter();
        causes.map(|(place, cause)| (servers[place].clone(), cause)).collect()
    }
}

/// The order of the list and not that of the attempts, so that the same outage
/// reads the same each time.
fn in_order(error: ConnectError, list: &[ServerAddress]) -> ConnectError {
    let ConnectError::Servers(mut tried) = error else {
        return error;
    };
    tried.sort_by_key(|(server, _)| {
        let listed = list.iter().position(|listed| listed.is_at(server));
        (listed.unwrap_or(usize::MAX), server.host.clone(), server.port)
    });
    ConnectError::Servers(tried)
}

/// The address of a server that is named by it.
fn literal(server: &ServerAddress) -> Option<SocketAddr> {
    let address: IpAddr = server.host.parse().ok()?;
    Some(SocketAddr::new(address, server.port))
}

/// Who logs in, in words, with what is known to be wrong with it.
fn who(login: &Login, read: &ReadLogin, now: OffsetDateTime) -> String {
    match read.expires() {
        // The server's clock may be a little ahead of ours.
        Some(at) if at < now + Duration::from_secs(2) => {
            format!("{login}, whose user JWT expired at {}", format_time_to_second(at))
        }
        _ => login.to_string(),
    }
}
