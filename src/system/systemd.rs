//! What systemd is told: the notify protocol of sd_notify(3), and its watchdog.
//!
//! Each call is one datagram that never blocks: a manager too busy to read is
//! told again at the next turn of the loop. The watchdog hears of the loop's
//! progress only. A wait for NATS counts as progress as long as it may last;
//! one that outlasts every bound of an attempt does not.
//!
//! Not the `sd-notify` crate: 0.5 knows no abstract sockets and blocks.

// The doors read the clock.
#![allow(clippy::disallowed_methods)]

use std::cell::{RefCell, RefMut};
use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::{Duration, Instant};

use log::{debug, warn};
use rustix::time::{ClockId, clock_gettime};

use crate::files;

/// A registry that does not answer delays a boot no longer than this.
const READY_WITHOUT_REGISTRY: Duration = Duration::from_secs(10);
/// No environment is larger: the kernel's limit is 2 MiB with the arguments.
const ENVIRONMENT_LIMIT: u64 = 1 << 21;
/// Exchanges that one attempt has at most, roughly: connecting, the bucket,
/// the own key, four rounds of a conflict.
const EXCHANGES: u32 = 30;

/// The service manager; outside systemd a manager that hears nothing.
pub struct Manager {
    socket: Option<UnixDatagram>,
    /// A sign of life at least this often.
    ping_every: Option<Duration>,
    started: Instant,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    ready: bool,
    /// The `STATUS=` that was heard.
    line: String,
    pinged: Option<Instant>,
    /// No attempt of the loop lasts longer.
    patience: Duration,
    /// Until then a wait counts as progress.
    patient_until: Option<Instant>,
}

impl Manager {
    /// The manager that `NOTIFY_SOCKET` names, if any.
    pub fn from_env() -> Manager {
        let socket = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        let socket = socket.and_then(|name| match connect(&name) {
            Ok(socket) => Some(socket),
            Err(error) => {
                warn!("cannot notify systemd at {}: {error}", name.to_string_lossy());
                None
            }
        });
        let variable = |name| env::var(name).ok();
        let ping_every = ping_every(
            variable("WATCHDOG_USEC").as_deref(),
            variable("WATCHDOG_PID").as_deref(),
            std::process::id(),
        );
        Manager {
            ping_every: ping_every.filter(|_| socket.is_some()),
            socket,
            started: Instant::now(),
            state: RefCell::default(),
        }
    }

    /// Each exchange with NATS is bounded by `timeout` from now on.
    pub fn set_timeout(&self, timeout: Duration) {
        self.state().patience = timeout.saturating_mul(EXCHANGES);
    }

    /// The loop turns: whatever it does next has its full time.
    pub fn turn(&self) {
        let now = Instant::now();
        let mut state = self.state();
        state.patient_until = now.checked_add(state.patience);
        self.look(&mut state, now);
    }

    /// Within a wait for NATS.
    pub fn glance(&self) {
        let now = Instant::now();
        let mut state = self.state();
        if state.patient_until.is_none_or(|until| now < until) {
            self.look(&mut state, now);
        }
    }

    /// What became due by the clock alone.
    fn look(&self, state: &mut State, now: Instant) {
        if !state.ready && now.duration_since(self.started) >= READY_WITHOUT_REGISTRY {
            state.ready = self.send("READY=1");
        }
        if let Some(every) = self.ping_every
            && state.pinged.is_none_or(|at| now.duration_since(at) >= every)
            && self.send("WATCHDOG=1")
        {
            state.pinged = Some(now);
        }
    }

    /// When it has to be told something at the latest, by the clock alone.
    pub fn wake_at(&self) -> Option<Instant> {
        self.socket.as_ref()?;
        let (now, state) = (Instant::now(), self.state());
        let ready = (!state.ready).then(|| self.started + READY_WITHOUT_REGISTRY);
        let ping = self.ping_every.map(|every| state.pinged.map_or(now, |at| at + every));
        // What could not be sent is not tried again in a tight loop.
        let soon = now + Duration::from_millis(10);
        ready.into_iter().chain(ping).min().map(|at| at.max(soon))
    }

    /// Whether anybody hears what is told.
    pub fn hears(&self) -> bool {
        self.socket.is_some()
    }

    /// Says how things stand, where that is news. `registered` makes it ready.
    pub fn tell(&self, registered: bool, line: &str) {
        let mut state = self.state();
        let ready = registered && !state.ready;
        if !ready && state.line == line {
            return;
        }
        let message = format!("{}STATUS={line}", if ready { "READY=1\n" } else { "" });
        if self.send(&message) {
            state.ready |= ready;
            state.line = line.to_owned();
        }
    }

    /// A reload begins. In one datagram with its time, as systemd 253 and
    /// later ask of `Type=notify-reload`.
    pub fn reloading(&self) {
        let now = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default();
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
    }

    /// The reload has ended, well or not.
    pub fn reloaded(&self) {
        let mut state = self.state();
        state.ready |= self.send("READY=1");
    }

    /// The agent is about to end.
    pub fn stopping(&self, line: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={line}"));
    }

    fn send(&self, message: &str) -> bool {
        let Some(socket) = &self.socket else {
            return true;
        };
        match socket.send(message.as_bytes()) {
            Ok(_) => true,
            Err(error) => {
                debug!("systemd does not take {message:?}: {error}");
                false
            }
        }
    }

    fn state(&self) -> RefMut<'_, State> {
        self.state.borrow_mut()
    }
}

/// `@name` is a socket in the abstract name space.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::other("neither a path nor an abstract socket")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The environment as it was when `systemctl reload` was called. A process
/// keeps the environment that it was started with; so the unit's `ExecReload=`,
/// for which systemd reads `EnvironmentFile=` anew, leaves its own in the
/// unit's runtime directory (`env -0`), where only we can read it.
pub fn reloaded_environment() -> Option<BTreeMap<String, OsString>> {
    let directory = env::var_os("RUNTIME_DIRECTORY")?;
    // With several of them, the first.
    let directory = directory.as_bytes().split(|b| *b == b':').next()?;
    let path = Path::new(OsStr::from_bytes(directory)).join("environment");
    let text = files::read(&path, ENVIRONMENT_LIMIT).ok()?;
    let variables = text.split(|b| *b == 0).filter_map(|variable| {
        let at = variable.iter().position(|b| *b == b'=')?;
        let name = std::str::from_utf8(&variable[..at]).ok()?.to_owned();
        Some((name, OsStr::from_bytes(&variable[at + 1..]).to_owned()))
    });
    Some(variables.collect())
}

/// Half of the watchdog's time (sd_watchdog_enabled(3)), if there is one and
/// it is for us.
fn ping_every(usec: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    let usec: u64 = usec?.parse().ok()?;
    let ours = pid.is_none_or(|pid| pid.is_empty() || pid.parse() == Ok(own));
    (usec > 0 && ours).then(|| Duration::from_micros(usec / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_fed_at_half_its_time_if_it_is_ours() {
        let second = Some(Duration::from_secs(1));
        assert_eq!(ping_every(Some("2000000"), None, 7), second);
        assert_eq!(ping_every(Some("2000000"), Some("7"), 7), second);
        assert_eq!(ping_every(Some("2000000"), Some("8"), 7), None);
        for usec in [None, Some(""), Some("0"), Some("-1"), Some("soon")] {
            assert_eq!(ping_every(usec, Some("7"), 7), None, "{usec:?}");
        }
    }

    fn manager(patience: Duration) -> (Manager, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let manager = Manager {
            socket: Some(ours),
            ping_every: Some(Duration::ZERO),
            started: Instant::now(),
            state: RefCell::new(State { patience, ..State::default() }),
        };
        (manager, theirs)
    }

    fn heard(socket: &UnixDatagram) -> Option<String> {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    #[test]
    fn a_wait_that_outlasts_every_bound_is_no_progress() {
        let (manager, socket) = manager(Duration::ZERO);
        manager.turn();
        assert_eq!(heard(&socket).as_deref(), Some("WATCHDOG=1"));
        manager.glance();
        assert_eq!(heard(&socket), None);
    }

    #[test]
    fn a_status_is_sent_when_it_is_news() {
        let (manager, socket) = manager(Duration::from_secs(1));
        manager.tell(false, "a");
        manager.tell(false, "a");
        manager.tell(true, "a");
        manager.tell(true, "b");
        assert_eq!(heard(&socket).as_deref(), Some("STATUS=a"));
        assert_eq!(heard(&socket).as_deref(), Some("READY=1\nSTATUS=a"));
        assert_eq!(heard(&socket).as_deref(), Some("STATUS=b"));
        assert_eq!(heard(&socket), None);
    }
}
