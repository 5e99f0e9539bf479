//! One socket, with or without TLS on it. Nothing in here waits.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::tcp;

/// A connection whose packets nobody acknowledged for so long is lost. TCP's own
/// patience is a quarter of an hour.
const LOST_AFTER: Duration = Duration::from_millis(2_500);
/// Room that there is at least for one read, and what that grows to where the
/// peer has more to say than fits.
const LEAST_ROOM: usize = 4 << 10;
const BUSY_ROOM: usize = 64 << 10;
/// Room that there is at most, so that one reader does not keep all others
/// waiting.
const MOST_ROOM: usize = 256 << 10;
/// So much is kept of what a peer says where TLS is due: a refusal in clear.
const FIRST_LIMIT: usize = 256;

/// Why nothing more can be read or written.
#[derive(Debug)]
pub(super) enum Broken {
    /// The peer closed the connection.
    Closed,
    /// The network says so.
    Io(io::Error),
    /// TLS says so.
    Tls(rustls::Error),
}

impl From<Errno> for Broken {
    fn from(error: Errno) -> Broken {
        Broken::Io(error.into())
    }
}

/// A socket that never blocks.
pub(super) struct Stream {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    /// What the peer said first, where TLS was due.
    first: Vec<u8>,
    /// Room for the next read.
    room: usize,
}

impl Stream {
    /// What comes about on a socket that begins to connect.
    pub(super) fn new(socket: TcpStream) -> Stream {
        Stream { socket, tls: None, first: Vec::new(), room: LEAST_ROOM }
    }

    /// Whether the connection has come about.
    pub(super) fn is_connected(&self) -> io::Result<bool> {
        let connected = tcp::is_connected(&self.socket)?;
        if connected {
            self.prepare();
        }
        Ok(connected)
    }

    fn prepare(&self) {
        self.socket.set_nodelay(true).ok();
        // Lost packets end it before TCP's own patience does; a server that is
        // merely slow acknowledges what it was sent.
        let lost_after = u32::try_from(LOST_AFTER.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(&self.socket, lost_after).ok();
        // What the network has not taken yet dies with the session, and with the
        // process: a heartbeat must not arrive after its time.
        sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO)).ok();
    }

    /// Begins a TLS handshake; `first` has come in clear already, where TLS was
    /// due.
    pub(super) fn secure(
        &mut self,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        first: &[u8],
    ) -> Result<(), rustls::Error> {
        self.tls = Some(Box::new(ClientConnection::new(config, name)?));
        self.first = first[..first.len().min(FIRST_LIMIT)].to_vec();
        Ok(())
    }

    /// What the peer said first where TLS was due, as far as it is kept.
    pub(super) fn first_words(&self) -> &[u8] {
        &self.first
    }

    /// Whether a TLS handshake is under way.
    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// Whether there is TLS on it.
    pub(super) fn is_secured(&self) -> bool {
        self.tls.is_some()
    }

    /// The certificate that the peer has shown itself with, in DER.
    pub(super) fn certificate(&self) -> Option<&[u8]> {
        let shown = self.tls.as_ref()?.peer_certificates()?;
        shown.first().map(|certificate| certificate.as_ref())
    }

    /// Whether TLS has something to write.
    pub(super) fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Reads what there is and appends it; whether there was anything.
    pub(super) fn read(&mut self, into: &mut Vec<u8>) -> Result<bool, Broken> {
        if self.tls.is_some() {
            return self.read_tls(into);
        }
        if into.capacity() - into.len() < self.room {
            into.reserve(into.len().clamp(self.room, MOST_ROOM));
        }
        match rustix::io::read(&self.socket, spare_capacity(into)) {
            Ok(0) => Err(Broken::Closed),
            Ok(_) => {
                if into.len() == into.capacity() {
                    self.room = (self.room * 2).min(BUSY_ROOM);
                }
                Ok(true)
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn read_tls(&mut self, into: &mut Vec<u8>) -> Result<bool, Broken> {
        let Some(tls) = self.tls.as_mut() else { return Ok(false) };
        let mut any = false;
        // Some rounds, and not until there is nothing left: a peer that sends
        // without end must not keep everybody else waiting.
        for _ in 0..16 {
            let handshaking = tls.is_handshaking();
            let mut socket =
                Kept { socket: &self.socket, first: handshaking.then_some(&mut self.first) };
            match tls.read_tls(&mut socket) {
                Ok(0) => return if any { Ok(true) } else { Err(Broken::Closed) },
                Ok(_) => {}
                Err(error) if is_nothing_yet(&error) => break,
                Err(error) => return Err(Broken::Io(error)),
            }
            let state = match tls.process_new_packets() {
                Ok(state) => state,
                Err(error) => {
                    // Our own alert, so that the server's log says why.
                    tls.write_tls(&mut &self.socket).ok();
                    return Err(Broken::Tls(error));
                }
            };
            if handshaking && !tls.is_handshaking() {
                self.first = Vec::new();
            }
            let count = state.plaintext_bytes_to_read();
            if count > 0 {
                let start = into.len();
                into.resize(start + count, 0);
                tls.reader().read_exact(&mut into[start..]).map_err(Broken::Io)?;
            }
            any = true;
            if state.peer_has_closed() {
                break;
            }
        }
        Ok(any)
    }

    /// Writes what can be written of `out` and takes that out of it.
    pub(super) fn write(&mut self, out: &mut Vec<u8>) -> Result<(), Broken> {
        let Some(tls) = self.tls.as_mut() else {
            let mut written = 0;
            while written < out.len() {
                match rustix::net::send(
                    &self.socket,
                    &out[written..],
                    rustix::net::SendFlags::NOSIGNAL,
                ) {
                    Ok(count) => written += count,
                    Err(Errno::WOULDBLOCK) => break,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            out.drain(..written);
            return Ok(());
        };
        loop {
            if !out.is_empty() && !tls.is_handshaking() {
                let count = tls.writer().write(out).map_err(Broken::Io)?;
                out.drain(..count);
            }
            if !tls.wants_write() {
                return Ok(());
            }
            match tls.write_tls(&mut &self.socket) {
                Ok(_) => {}
                Err(error) if is_nothing_yet(&error) => return Ok(()),
                Err(error) => return Err(Broken::Io(error)),
            }
        }
    }
}

/// A socket; the first bytes that are read from it are kept, where that is
/// asked for.
struct Kept<'a> {
    socket: &'a TcpStream,
    first: Option<&'a mut Vec<u8>>,
}

impl Read for Kept<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.socket.read(buffer)?;
        if let Some(first) = &mut self.first {
            let room = FIRST_LIMIT.saturating_sub(first.len());
            first.extend_from_slice(&buffer[..count.min(room)]);
        }
        Ok(count)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn is_nothing_yet(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
