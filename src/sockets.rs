//! The sockets of this process, told apart: the crate does not hand out the
//! one that it opens, and a session without a handle to it could not be woken.
//!
//! It is the one that appeared during the dial and is no look's. Told by inode,
//! since descriptors are used again, and the looks keep a list of theirs.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use log::debug;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// The descriptors of looks that are under way: what `/proc` shows beside
/// them is the crate's.
static LOOKING: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Holds the looks still: none opens or closes a socket meanwhile.
fn sockets_of_looks() -> MutexGuard<'static, BTreeSet<RawFd>> {
    LOOKING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A socket that is known to be a look's for as long as it is open.
pub(crate) struct LookSocket(Option<TcpStream>);

impl LookSocket {
    /// Starts to connect and does not wait for it.
    pub(crate) fn connect(address: SocketAddr) -> io::Result<LookSocket> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let mut known = sockets_of_looks();
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        known.insert(socket.as_raw_fd());
        drop(known);
        let socket = LookSocket(Some(TcpStream::from(socket)));
        match rustix::net::connect(socket.stream(), &address) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        self.0.as_ref().expect("taken by drop alone")
    }
}

impl Drop for LookSocket {
    fn drop(&mut self) {
        let mut known = sockets_of_looks();
        if let Some(socket) = self.0.take() {
            known.remove(&socket.as_raw_fd());
            // Closed while the set is held: its number may be another's at once.
            drop(socket);
        }
    }
}

/// The socket that the crate opens for a dial: it hands it out in no other way
/// than by opening it.
pub(crate) struct CrateSocket {
    /// The sockets from before.
    known: HashSet<OsString>,
    port: u16,
    found: Mutex<Option<TcpStream>>,
}

impl CrateSocket {
    /// A socket to this port that is not there yet.
    pub(crate) fn appearing(port: u16) -> CrateSocket {
        let known = open_sockets().into_iter().map(|(_, inode)| inode).collect();
        CrateSocket { known, port, found: Mutex::new(None) }
    }

    /// Whether it has appeared.
    pub(crate) fn is_found(&self) -> bool {
        self.find().is_some()
    }

    /// A handle of our own to it, once it is connected.
    pub(crate) fn take(&self) -> Option<TcpStream> {
        self.find().take()
    }

    /// Wakes whoever reads from it or writes to it.
    pub(crate) fn shut(&self) {
        if let Some(socket) = &*self.find() {
            socket.shutdown(Shutdown::Both).ok();
        }
    }

    #[allow(unsafe_code)]
    fn find(&self) -> MutexGuard<'_, Option<TcpStream>> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.is_some() {
            return found;
        }
        let looks = sockets_of_looks();
        for (fd, inode) in open_sockets() {
            if self.known.contains(&inode) || looks.contains(&fd) {
                continue;
            }
            // SAFETY: the descriptor was open a moment ago and is only
            // duplicated; were it closed meanwhile, that fails with EBADF.
            let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
            let socket = borrowed.try_clone_to_owned().map(TcpStream::from);
            *found = socket
                .ok()
                .filter(|socket| socket.peer_addr().is_ok_and(|peer| peer.port() == self.port));
            if found.is_some() {
                break;
            }
        }
        found
    }
}

/// The sockets of this process: descriptor and inode, since descriptors are
/// used again. Empty where `/proc` is not mounted: then a session cannot be
/// woken, and ends when its server next speaks.
fn open_sockets() -> Vec<(RawFd, OsString)> {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else {
        debug!("/proc/self/fd cannot be read: stuck connections cannot be woken");
        return Vec::new();
    };
    let sockets = entries.flatten().filter_map(|entry| {
        let inode = fs::read_link(entry.path()).ok()?.into_os_string();
        let is_socket = inode.as_encoded_bytes().starts_with(b"socket:");
        Some((entry.file_name().to_str()?.parse().ok()?, inode)).filter(|_| is_socket)
    });
    sockets.collect()
}
