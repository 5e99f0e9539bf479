//! The crate's part of a connection: from a server that was looked at to a
//! session, on a helper thread. What the crate says of failures is put into
//! words by `diagnosis.rs`.

// Every item of the crate is deprecated by its makers; the choice stands.
#![allow(deprecated)]
// The doors read the clock.
#![allow(clippy::disallowed_methods)]

use std::io;
use std::net::SocketAddr;
use std::panic;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::session::{self, Session, Shared};
use super::{ServerAddress, StopCheck};
use crate::diagnosis::{self, Tried};
use crate::error::plain;
use crate::login::{ReadLogin, Tls};
use crate::look::{Cause, ServerInfo};
use crate::sockets::CrateSocket;
use crate::text::time::format_time;

/// A connection whose packets nobody acknowledged for so long is lost.
const LOST_AFTER: Duration = Duration::from_millis(2_500);

/// The crate's part of a connection, on its helper thread.
pub(super) struct Dial {
    pub(super) server: ServerAddress,
    pub(super) tls: Tls,
    pub(super) use_tls: bool,
    pub(super) login: Arc<ReadLogin>,
    pub(super) who: String,
    pub(super) inbox_prefix: String,
    pub(super) socket: Arc<CrateSocket>,
    pub(super) shared: Arc<Shared>,
    pub(super) greeting: Duration,
    pub(super) stop_limit: Duration,
    pub(super) stop: StopCheck,
}

impl Dial {
    /// Lets the crate connect to the server that was looked at.
    pub(super) fn run(self, info: ServerInfo, address: SocketAddr) -> Result<Session, Cause> {
        let (tls, shared) = (self.use_tls, Arc::clone(&self.shared));
        if tls && info.tls_verify && self.tls.client.is_none() {
            let why = "the server wants a certificate of ours: give --tlscert and --tlskey";
            return Err(Cause::Tls(why.into()));
        }
        let options = self.options(tls, &shared)?;
        // The certificate is checked against the host in the URL; without TLS
        // the address that answered saves a second look-up.
        let url = if tls { format!("tls://{}", self.server) } else { format!("nats://{address}") };

        let panics = session::panics();
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

        Session::open(connection, socket, tls, info, panics, self)
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

fn key_pair(seed: &str) -> Result<nkeys::KeyPair, Cause> {
    nkeys::KeyPair::from_seed(seed).map_err(|error| Cause::Login(error.to_string()))
}
