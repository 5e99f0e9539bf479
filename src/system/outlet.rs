//! A descriptor that is written to without waiting for whoever reads from it.
//!
//! What cannot be written within the patience that is given is dropped whole
//! and counted; the count is told once something flows again. Others may share
//! the descriptor, and O_NONBLOCK would hold for them as well, since it belongs
//! to the open file description. So a pipe or a terminal is opened anew where
//! that is permitted, a socket is asked each time, and what is left is written
//! to in pieces that a `poll` has found room for.

// A door: it waits.
#![allow(clippy::disallowed_methods)]

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::SendFlags;

/// A pipe with any room at all takes so much in one piece (PIPE_BUF).
pub const LONGEST: usize = 4_096;

/// Where lines go.
pub struct Outlet<F> {
    fd: F,
    way: Way,
    /// The end of a line that was written in part: nothing may stand before it.
    rest: Vec<u8>,
    dropped: u64,
}

/// How a write is kept from waiting.
enum Way {
    /// `send` says so itself.
    Socket,
    /// A description of our own, with O_NONBLOCK.
    OpenedAnew(File),
    /// Written to where `poll` finds room. Somebody who shares it and is
    /// quicker can take that room.
    Polled,
}

impl<F: AsFd> Outlet<F> {
    /// Looks what the descriptor is.
    pub fn new(fd: F) -> Outlet<F> {
        let way = way(fd.as_fd());
        Outlet { fd, way, rest: Vec::new(), dropped: 0 }
    }

    /// Lines that were dropped and not told yet.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Writes a line, or drops and counts it. As long as lines are being
    /// dropped none waits. `told` makes the line that tells their number.
    pub fn write(&mut self, line: &[u8], patience: Duration, told: impl Fn(u64) -> Vec<u8>) {
        let patience = if self.dropped > 0 { Duration::ZERO } else { patience };
        self.catch_up(told);
        if self.dropped > 0 || !self.put(line, patience) {
            self.dropped += 1;
        }
    }

    /// Tells how many lines were dropped, if there were any and it can be done
    /// without waiting.
    pub fn catch_up(&mut self, told: impl Fn(u64) -> Vec<u8>) {
        // The last bytes of a full pipe would take this short line, and nothing
        // after it.
        if self.dropped > 0
            && has_room(self.fd.as_fd(), Instant::now())
            && self.put(&told(self.dropped), Duration::ZERO)
        {
            self.dropped = 0;
        }
    }

    /// Whether the line went out, or has begun to. A reader that is gone for
    /// good misses nothing.
    fn put(&mut self, line: &[u8], patience: Duration) -> bool {
        let before = std::mem::take(&mut self.rest);
        let (begins, bytes) = (before.len(), [&before[..], line].concat());
        let mut done = 0;
        let mut until = Instant::now() + patience;
        while done < bytes.len() {
            match self.write_some(&bytes[done..]) {
                Ok(0) => return true,
                Ok(count) => {
                    done += count;
                    until = Instant::now() + patience;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if Instant::now() < until {
                        has_room(self.fd.as_fd(), until);
                        continue;
                    }
                    let whole = if done > begins { bytes.len() } else { begins };
                    self.rest = bytes[done.min(whole)..whole].to_vec();
                    return done > begins;
                }
                Err(_) => return true,
            }
        }
        true
    }

    fn write_some(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.way {
            Way::Socket => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                Ok(rustix::net::send(&self.fd, bytes, flags)?)
            }
            Way::OpenedAnew(file) => (&*file).write(bytes),
            Way::Polled if has_room(self.fd.as_fd(), Instant::now()) => {
                Ok(rustix::io::write(&self.fd, &bytes[..bytes.len().min(LONGEST)])?)
            }
            Way::Polled => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

fn way(fd: BorrowedFd<'_>) -> Way {
    let Ok(kind) = fd.try_clone_to_owned().and_then(|fd| File::from(fd).metadata()) else {
        return Way::Polled;
    };
    let kind = kind.file_type();
    if kind.is_socket() {
        return Way::Socket;
    }
    // A file that is opened anew would be written to from its beginning.
    if !kind.is_fifo() && !fd.is_terminal() {
        return Way::Polled;
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let anew = OpenOptions::new().write(true).custom_flags(flags.bits().cast_signed()).open(path);
    // Not permitted where another user made the pipe.
    anew.map_or(Way::Polled, Way::OpenedAnew)
}

/// Whether something can be written, or fails at once; waits for that.
fn has_room(fd: BorrowedFd<'_>, until: Instant) -> bool {
    let left = until.saturating_duration_since(Instant::now());
    let left = Timespec::try_from(left).unwrap_or_default();
    match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], Some(&left)) {
        Ok(count) => count > 0,
        Err(Errno::INTR) => false,
        // Nothing that can be polled: it says itself what is wrong.
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read, pipe};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    const LINE: &[u8] = &[b'x'; 1_000];

    fn told(count: u64) -> Vec<u8> {
        format!("<{count} lost>").into_bytes()
    }

    fn fill<F: AsFd>(outlet: &mut Outlet<F>) -> u64 {
        let began = Instant::now();
        let mut written = 0;
        while outlet.dropped() == 0 {
            outlet.write(LINE, Duration::ZERO, told);
            written += 1;
            assert!(written < 100_000, "it never fills");
        }
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        written - 1
    }

    /// Fills it, reads a part of it, and looks at all that comes out.
    fn never_waits_and_tells(mut outlet: Outlet<impl AsFd>, mut reader: impl Read) {
        let whole = fill(&mut outlet);
        outlet.write(LINE, Duration::from_secs(60), told);
        assert_eq!(outlet.dropped(), 2);
        // A socket has room for `poll` when three quarters of it are free.
        let mut out = vec![0; usize::try_from(whole).unwrap() * LINE.len() / 10 * 9];
        reader.read_exact(&mut out).unwrap();
        outlet.write(b"[after]", Duration::ZERO, told);
        assert_eq!(outlet.dropped(), 0);
        drop(outlet);
        reader.read_to_end(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let end = text.trim_start_matches('x');
        assert_eq!(end, "<2 lost>[after]");
        let lines = (text.len() - end.len()) as f64 / LINE.len() as f64;
        assert!(lines.fract() == 0.0, "lines in part: {lines}");
        assert!(lines >= whole as f64, "{lines} of {whole}");
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_not_waited_for_and_its_loss_is_told() {
        let (reader, writer) = pipe().unwrap();
        let shared = writer.try_clone().unwrap();
        let outlet = Outlet::new(writer);
        assert!(matches!(outlet.way, Way::OpenedAnew(_)));
        let flags = rustix::fs::fcntl_getfl(&shared).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK), "it is shared with others");
        drop(shared);
        never_waits_and_tells(outlet, reader);
    }

    #[test]
    fn a_pipe_that_cannot_be_opened_anew_is_polled() {
        let (reader, writer) = pipe().unwrap();
        let outlet = Outlet { fd: writer, way: Way::Polled, rest: Vec::new(), dropped: 0 };
        never_waits_and_tells(outlet, reader);
    }

    #[test]
    fn a_socket_that_nobody_reads_is_not_waited_for_and_its_loss_is_told() {
        let (reader, writer) = UnixStream::pair().unwrap();
        never_waits_and_tells(Outlet::new(writer), reader);
    }

    #[test]
    fn a_slow_reader_gets_everything_where_there_is_patience() {
        let (mut reader, writer): (PipeReader, _) = pipe().unwrap();
        let mut outlet = Outlet::new(writer);
        let reading = thread::spawn(move || {
            let (mut count, mut buffer) = (0, [0; 16_384]);
            loop {
                thread::sleep(Duration::from_millis(20));
                match reader.read(&mut buffer).unwrap() {
                    0 => return count,
                    more => count += more,
                }
            }
        });
        for _ in 0..200 {
            outlet.write(LINE, Duration::from_secs(10), told);
        }
        assert_eq!(outlet.dropped(), 0);
        drop(outlet);
        assert_eq!(reading.join().unwrap(), 200 * LINE.len());
    }

    #[test]
    fn a_reader_that_is_gone_misses_nothing() {
        let (reader, writer) = pipe().unwrap();
        let mut outlet = Outlet::new(writer);
        fill(&mut outlet);
        drop(reader);
        outlet.write(LINE, Duration::from_secs(60), told);
        assert_eq!(outlet.dropped(), 0);
    }
}
