//! Standard output that nobody may be reading: never waited for.
//!
//! What cannot be written at once waits in a bounded buffer. A pipe or a
//! terminal is opened anew for that, because whether writing waits belongs to
//! the open file, which others share (the shell, say).

// A door: it reads the clock.
#![allow(clippy::disallowed_methods)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, OFlags, fstat};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use crate::nats::Interest;

/// So much is kept for the reader; the writer waits when it is full.
const MOST: usize = 1 << 20;
/// Written when there is so much, even if more is to come.
const CHUNK: usize = 64 << 10;
/// Where writing might wait: pipes and terminals that have any room take this.
const SMALL: usize = 512;
/// A buffer that stays full for so long is given up: nobody reads any more.
const PATIENCE: Duration = Duration::from_secs(10);

/// How to write without waiting.
enum Way {
    /// Our own open file, which does not wait.
    Own(File),
    Socket,
    /// A regular file never waits.
    Plain,
    /// Little at a time, when there is room.
    Careful,
}

/// Standard output.
pub(super) struct Output {
    stdout: io::Stdout,
    way: Way,
    buffer: Vec<u8>,
    /// Everything before this has been written.
    at: usize,
    /// Writing got nowhere since then.
    stuck: Option<Instant>,
    closed: bool,
    failed: Option<io::Error>,
}

impl Output {
    /// Looks at what standard output is.
    pub(super) fn open() -> Output {
        let stdout = io::stdout();
        let kind = fstat(&stdout).map(|stat| FileType::from_raw_mode(stat.st_mode));
        let way = match kind {
            Ok(FileType::Fifo | FileType::CharacterDevice) => {
                let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits();
                let flags = i32::try_from(flags).unwrap_or_default();
                let anew = File::options().write(true).custom_flags(flags).open("/proc/self/fd/1");
                anew.map_or(Way::Careful, Way::Own)
            }
            Ok(FileType::Socket) => Way::Socket,
            Ok(FileType::RegularFile) => Way::Plain,
            _ => Way::Careful,
        };
        Output { stdout, way, buffer: Vec::new(), at: 0, stuck: None, closed: false, failed: None }
    }

    /// Nobody reads any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Why nothing can be written, other than that nobody reads.
    pub(super) fn failure(&mut self) -> Option<io::Error> {
        self.failed.take()
    }

    /// Whether no more is taken for now.
    pub(super) fn is_full(&self) -> bool {
        self.waiting() >= MOST
    }

    /// Bytes that wait to be written.
    pub(super) fn waiting(&self) -> usize {
        self.buffer.len() - self.at
    }

    /// When a full buffer is given up, unless somebody reads.
    pub(super) fn patience_ends(&self) -> Instant {
        self.stuck.unwrap_or_else(Instant::now) + PATIENCE
    }

    /// Takes a line, which leaves with the next wait.
    pub(super) fn push(&mut self, line: &str) {
        if self.closed {
            return;
        }
        self.buffer.extend_from_slice(line.as_bytes());
        self.buffer.push(b'\n');
        if self.waiting() >= CHUNK && self.stuck.is_none() {
            self.write();
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.way {
            Way::Own(file) => file.as_fd(),
            _ => self.stdout.as_fd(),
        }
    }

    /// What to wait for: room, where something waits; and in any case that the
    /// last reader goes.
    pub(super) fn interest(&self) -> Option<Interest<'_>> {
        let write = self.waiting() > 0;
        (!self.closed && (write || !matches!(self.way, Way::Plain))).then(|| Interest {
            fd: self.fd(),
            read: false,
            write,
            ready: false,
        })
    }

    /// There is room, or the last reader is gone.
    pub(super) fn ready(&mut self) {
        if self.waiting() == 0 {
            self.closed = true;
        }
        self.write();
    }

    /// Writes what can be written now.
    pub(super) fn write(&mut self) {
        let waiting = self.waiting();
        while self.waiting() > 0 && !self.closed {
            match self.write_some() {
                Ok(count) => {
                    self.at += count;
                    self.stuck = None;
                    if matches!(self.way, Way::Careful) {
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(errno) => {
                    self.closed = true;
                    let is_gone = matches!(errno, Errno::PIPE | Errno::CONNRESET);
                    self.failed = (!is_gone).then(|| errno.into());
                }
            }
        }
        if self.waiting() == 0 {
            self.buffer.clear();
            // What a burst took is not kept for ever.
            self.buffer.shrink_to(CHUNK);
            self.at = 0;
        } else if self.at > MOST {
            self.buffer.drain(..self.at);
            self.at = 0;
        }
        if waiting > 0 && self.waiting() == waiting {
            self.stuck.get_or_insert_with(Instant::now);
        }
    }

    fn write_some(&self) -> rustix::io::Result<usize> {
        let bytes = &self.buffer[self.at..];
        match &self.way {
            Way::Own(file) => rustix::io::write(file, bytes),
            Way::Plain => rustix::io::write(&self.stdout, bytes),
            Way::Socket => send(&self.stdout, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
            Way::Careful => {
                let mut interest =
                    [Interest { fd: self.fd(), read: false, write: true, ready: false }];
                crate::nats::waiter::poll_all(&mut interest, Some(Instant::now()));
                if !interest[0].ready {
                    return Err(Errno::AGAIN);
                }
                rustix::io::write(&self.stdout, &bytes[..bytes.len().min(SMALL)])
            }
        }
    }
}
