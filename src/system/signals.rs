//! Signals as a wait with a deadline: the only place where the program sleeps.
//!
//! SIGTERM and SIGINT set a flag that stays; SIGHUP is counted until taken; a
//! connection that ends wakes the wait as well.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};

use crate::error::{Failure, Kind};

/// Registered handlers, and the pipe that they write to.
pub struct Signals {
    stop: Arc<AtomicBool>,
    hangup: Arc<AtomicBool>,
    reader: UnixStream,
    writer: Arc<UnixStream>,
}

impl Signals {
    /// Takes over SIGTERM and SIGINT, and SIGHUP where `hangup` is asked for.
    pub fn take(hangup: bool) -> Result<Signals, Failure> {
        Signals::register(hangup).map_err(|error| {
            Failure::new(Kind::Unavailable, "cannot take over signals").with_source(error)
        })
    }

    fn register(hangup: bool) -> io::Result<Signals> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        writer.set_nonblocking(true)?;
        let signals = Signals {
            stop: Arc::new(AtomicBool::new(false)),
            hangup: Arc::new(AtomicBool::new(false)),
            reader,
            writer: Arc::new(writer),
        };
        // The flag first: whoever is woken finds it set.
        for signal in [SIGTERM, SIGINT] {
            flag::register(signal, Arc::clone(&signals.stop))?;
            pipe::register(signal, signals.writer.try_clone()?)?;
        }
        if hangup {
            flag::register(SIGHUP, Arc::clone(&signals.hangup))?;
            pipe::register(SIGHUP, signals.writer.try_clone()?)?;
        }
        Ok(signals)
    }

    /// Whether to stop; for waits elsewhere.
    pub fn stop_check(&self) -> Arc<dyn Fn() -> bool + Send + Sync> {
        let stop = Arc::clone(&self.stop);
        Arc::new(move || stop.load(Ordering::SeqCst))
    }

    /// Ends the current or the next wait; for other threads.
    pub fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        let writer = Arc::clone(&self.writer);
        Arc::new(move || {
            // A full pipe wakes as well.
            (&*writer).write_all(&[0]).ok();
        })
    }

    /// Whether SIGTERM or SIGINT has come.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Whether SIGHUP has come since this was last asked.
    pub fn take_hangup(&self) -> bool {
        self.hangup.swap(false, Ordering::SeqCst)
    }

    /// Waits for a signal or a waker, `limit` at most. May end early.
    ///
    /// By `poll`, whose timer is exact; the time limit of a socket's read goes
    /// by the kernel's timer wheel, and was 16 ms late in 500 ms.
    pub fn wait(&mut self, limit: Duration) {
        let limit = Timespec::try_from(limit).ok();
        let mut fds = [PollFd::new(&self.reader, PollFlags::IN)];
        // A deadline or an interruption: the caller looks at the clock anyway.
        if poll(&mut fds, limit.as_ref()).is_ok_and(|ready| ready > 0) {
            let _ = self.reader.read(&mut [0; 64]);
        }
    }
}
