//! Looks up names, beside everything else. The threads for this are the only ones
//! that the program starts, since look-ups of the C library have no time limit.
//! An address never needs one.

use std::cell::RefCell;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;

use crate::error::plain;

/// So many look-ups of one name may hang at a time: they last for 5 to 30 s
/// where no name server answers. Each name has a number of its own, so that one
/// cannot use up those of another.
const LOOKUPS_A_NAME: usize = 6;
/// The same of all names together.
const LOOKUPS_LIMIT: usize = 64;
/// What a look-up needs, NSS modules included.
const STACK: usize = 512 << 10;

/// Knows the look-ups that are under way, also those that nobody waits for any
/// more.
#[derive(Default)]
pub struct Lookups(RefCell<Vec<(String, Arc<()>)>>);

/// One look-up. Its descriptor can be read once it has ended.
pub struct Lookup {
    result: Receiver<io::Result<Vec<SocketAddr>>>,
    ended: UnixStream,
}

impl Lookups {
    /// Begins to look up a name. The error is the reason, in words.
    pub fn begin(&self, host: &str, port: u16) -> Result<Lookup, String> {
        let mut under_way = self.0.borrow_mut();
        // The other reference is with the thread.
        under_way.retain(|(_, one)| Arc::strong_count(one) > 1);
        let same = under_way.iter().filter(|(name, _)| name == host).count();
        if same >= LOOKUPS_A_NAME || under_way.len() >= LOOKUPS_LIMIT {
            return Err("the name server does not answer".into());
        }
        let (sender, result) = mpsc::sync_channel(1);
        let (ended, end) = UnixStream::pair().map_err(|error| plain(&error))?;
        let counted = Arc::new(());
        under_way.push((host.to_owned(), Arc::clone(&counted)));
        let host = host.to_owned();
        let helper = move || {
            let found = (host.as_str(), port).to_socket_addrs();
            sender.send(found.map(Iterator::collect)).ok();
            drop(counted);
            // Whoever waits is woken by the end of this.
            drop(end);
        };
        let thread = thread::Builder::new().name("resolve".into()).stack_size(STACK);
        match thread.spawn(helper) {
            Ok(_) => Ok(Lookup { result, ended }),
            Err(error) => Err(format!("cannot start a thread: {}", plain(&error))),
        }
    }
}

impl Lookup {
    /// The addresses, once they are there.
    pub fn result(&self) -> Option<Result<Vec<SocketAddr>, String>> {
        match self.result.try_recv() {
            Ok(found) => Some(found.map_err(|error| plain(&error))),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err("the look-up failed".into())),
        }
    }
}

impl AsFd for Lookup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}
