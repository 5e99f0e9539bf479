//! One attempt at one server: the bytes between its socket and the pure
//! `handshake`. Nothing in here waits.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use super::address::ServerAddress;
use super::failure::Cause;
use super::handshake::{Handshake, ServerInfo, Step, Wish, cut_off, refused_in_clear};
use super::login::Tls;
use super::lookup::Lookup;
use super::race::{AttemptId, Stage};
use super::stream::{Broken, Stream};
use super::tls::{self, TlsSetup};
use super::waiter::{Interest, Waiter};
use super::wire::Parser;
use crate::error::plain;

/// Operations that are read of a server before it lets us in; an honest one has
/// a handful.
const OPERATIONS_LIMIT: u32 = 1_000;

/// Reads in one go.
const ROUNDS_LIMIT: u32 = 32;

/// An attempt that is under way.
pub(super) struct Attempt {
    pub(super) id: AttemptId,
    pub(super) server: usize,
    phase: Phase,
}

enum Phase {
    Resolving(Lookup),
    Connecting(Stream, bool),
    Talking(Box<Talk>),
}

struct Talk {
    stream: Stream,
    parser: Parser,
    handshake: Handshake,
    out: Vec<u8>,
    stage: Stage,
    operations: u32,
    /// When `PING` was sent.
    pinged: Option<Instant>,
}

/// What all attempts of a race need.
pub(super) struct Context<'a> {
    pub(super) servers: &'a [ServerAddress],
    pub(super) wish: Wish<'a>,
    pub(super) files: &'a Tls,
    /// Read when it is first needed: a system has many roots.
    pub(super) setup: Option<TlsSetup>,
    pub(super) waiter: &'a dyn Waiter,
}

/// How an attempt stands.
pub(super) enum Progress {
    /// It goes on, and has come so far.
    Waits(Attempt, Stage),
    /// The name was looked up.
    Resolved(Vec<SocketAddr>),
    /// The server serves.
    Ready(Box<Served>),
}

/// A server that has let us in, with the bytes that it sent after its PONG.
pub(super) struct Served {
    pub(super) stream: Stream,
    pub(super) parser: Parser,
    pub(super) info: ServerInfo,
    /// What is still to be sent.
    pub(super) out: Vec<u8>,
}

impl Attempt {
    pub(super) fn resolving(id: AttemptId, server: usize, lookup: Lookup) -> Attempt {
        Attempt { id, server, phase: Phase::Resolving(lookup) }
    }

    pub(super) fn connecting(
        id: AttemptId,
        server: usize,
        socket: TcpStream,
        tls_first: bool,
    ) -> Attempt {
        Attempt { id, server, phase: Phase::Connecting(Stream::new(socket), tls_first) }
    }

    /// What it waits for.
    pub(super) fn interest(&self) -> Interest<'_> {
        match &self.phase {
            Phase::Resolving(lookup) => Interest::reading(lookup.as_fd(), false),
            Phase::Connecting(stream, _) => Interest::connecting(stream.as_fd()),
            Phase::Talking(talk) => {
                let write = !talk.out.is_empty() || talk.stream.wants_write();
                Interest::reading(talk.fd(), write)
            }
        }
    }

    /// Does what can be done without waiting.
    pub(super) fn advance(self, context: &mut Context<'_>) -> Result<Progress, Cause> {
        let Attempt { id, server, phase } = self;
        let waits = |phase, stage| Ok(Progress::Waits(Attempt { id, server, phase }, stage));
        let mut talk = match phase {
            Phase::Resolving(lookup) => {
                return match lookup.result() {
                    None => waits(Phase::Resolving(lookup), Stage::Resolving),
                    Some(Ok(addresses)) => Ok(Progress::Resolved(addresses)),
                    Some(Err(why)) => Err(Cause::Resolve(why)),
                };
            }
            Phase::Connecting(stream, tls_first) => match stream.is_connected() {
                Ok(true) => Talk::begin(stream, tls_first, server, context)?,
                Ok(false) => {
                    return waits(Phase::Connecting(stream, tls_first), Stage::Connecting);
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(Cause::Unanswered);
                }
                Err(error) => return Err(Cause::Tcp(plain(&error))),
            },
            Phase::Talking(talk) => talk,
        };
        if talk.advance(server, context)? {
            return Ok(Progress::Ready(Box::new(talk.served(context.waiter))));
        }
        let stage = talk.stage;
        waits(Phase::Talking(talk), stage)
    }
}

impl Talk {
    fn begin(
        stream: Stream,
        tls_first: bool,
        server: usize,
        context: &mut Context<'_>,
    ) -> Result<Box<Talk>, Cause> {
        let wish = Wish { tls_first, ..context.wish.clone() };
        let (handshake, step) = Handshake::begin(&wish);
        let mut parser = Parser::default();
        // No message is due before we are let in.
        parser.set_max_payload(0);
        let mut talk = Box::new(Talk {
            stream,
            parser,
            handshake,
            out: Vec::new(),
            stage: Stage::Silent,
            operations: 0,
            pinged: None,
        });
        talk.take(step, server, context)?;
        Ok(talk)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn served(self, waiter: &dyn Waiter) -> Served {
        let Talk { stream, parser, handshake, pinged, out, .. } = self;
        let mut info = handshake.into_info();
        let pinged = pinged.map(|pinged| waiter.now().saturating_duration_since(pinged));
        info.round_trip = pinged.unwrap_or_default();
        Served { stream, parser, info, out }
    }

    /// Reads and writes what can be; whether the server serves.
    fn advance(&mut self, server: usize, context: &mut Context<'_>) -> Result<bool, Cause> {
        // Some rounds, and then the other attempts have their turn: a peer that
        // talks without end must not keep them waiting.
        for _ in 0..ROUNDS_LIMIT {
            // What the peer said tells more than that it takes nothing any
            // more.
            let written = self.stream.write(&mut self.out);
            let securing = self.stream.is_handshaking();
            let read = self.stream.read(self.parser.buffer());
            if securing && !self.stream.is_handshaking() && read.is_ok() {
                let step = self.handshake.secured(&context.wish)?;
                self.take(step, server, context)?;
            }
            if self.hear(server, context)? {
                return Ok(true);
            }
            match (read, written) {
                (Err(broken), _) | (Ok(false), Err(broken)) => {
                    return Err(self.cause(broken, &context.servers[server], context.files));
                }
                (Ok(false), Ok(())) => break,
                (Ok(true), _) => {}
            }
        }
        // Where this fails the next read tells why, if anything does.
        self.stream.write(&mut self.out).ok();
        Ok(false)
    }

    /// Takes what the server said; whether it serves.
    fn hear(&mut self, server: usize, context: &mut Context<'_>) -> Result<bool, Cause> {
        loop {
            let operation = self.parser.parse().map_err(|bad| Cause::NotNats(bad.0))?;
            let Some(operation) = operation else { return Ok(false) };
            self.operations += 1;
            if self.operations > OPERATIONS_LIMIT {
                return Err(Cause::NotNats("it talks without end".into()));
            }
            let step = self.handshake.heard(operation, &context.wish)?;
            if step == Step::Ready {
                if let Some(info) = self.handshake.info() {
                    self.parser.set_max_payload(info.max_payload);
                }
                return Ok(true);
            }
            self.take(step, server, context)?;
        }
    }

    fn take(&mut self, step: Step, server: usize, context: &mut Context<'_>) -> Result<(), Cause> {
        match step {
            Step::Wait | Step::Ready => {}
            Step::Send(bytes) => {
                self.pinged.get_or_insert_with(|| context.waiter.now());
                self.stage = Stage::LoggingIn;
                self.out.extend_from_slice(&bytes);
            }
            Step::Secure => {
                self.stage = Stage::Securing;
                let first = self.parser.rest().to_vec();
                self.parser.clear();
                let setup = match context.setup.take() {
                    Some(setup) => setup,
                    None => TlsSetup::read(context.files)?,
                };
                let names = context.servers[server].names();
                let config = setup.config(&names);
                context.setup = Some(setup);
                let name = tls::server_name(names[0])?;
                self.stream
                    .secure(config?, name, &first)
                    .map_err(|error| tls::cause(&error, names[0], context.files))?;
            }
        }
        Ok(())
    }

    /// Why the connection broke.
    fn cause(&self, broken: Broken, server: &ServerAddress, files: &Tls) -> Cause {
        let host = server.names()[0];
        // One that takes no more connections says so before TLS.
        if let Some(cause) = refused_in_clear(self.stream.first_words()) {
            return cause;
        }
        match broken {
            Broken::Tls(error) => tls::cause(&error, host, files),
            Broken::Closed if !self.parser.rest().is_empty() => cut_off(self.parser.rest()),
            _ if self.stream.is_secured() => tls::cause_of_end(files),
            Broken::Closed if self.stage == Stage::LoggingIn => {
                Cause::Other("the server closed the connection during the login".into())
            }
            Broken::Closed => Cause::Closed,
            Broken::Io(error) => Cause::Tcp(plain(&error)),
        }
    }
}
