//! The outside of one agent: the clocks of its host, its signals, and the wait.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aegis_agent::nats::waiter::poll_all;
use aegis_agent::nats::{Interest, Waiter};
use time::OffsetDateTime;

use crate::cluster::EPOCH;
use crate::rng::Rng;
use crate::world::{Shared, Turn};

/// What unwinds the thread of an agent that is killed.
pub struct Killed;

/// Calls of a clock between two waits: more is a loop without end.
const CALLS_LIMIT: u32 = 5_000_000;

pub struct Outside {
    shared: Arc<Shared>,
    slot: usize,
    rng: RefCell<Rng>,
    /// What the host's clocks show: nothing but a wait takes time.
    awake: Cell<u64>,
    boot: Cell<u64>,
    wall: Cell<i64>,
    calls: Cell<u32>,
    base: Instant,
}

impl Outside {
    /// For the agent of a slot, whose turn it is.
    pub fn new(shared: &Arc<Shared>, slot: usize, base: Instant) -> Outside {
        let world = shared.lock();
        let life = u64::from(world.processes[slot].life);
        let rng = Rng::new(world.plan.seed, 100 + slot as u64 + life * 1_000);
        drop(world);
        let outside = Outside {
            shared: Arc::clone(shared),
            slot,
            rng: RefCell::new(rng),
            awake: Cell::default(),
            boot: Cell::default(),
            wall: Cell::default(),
            calls: Cell::default(),
            base,
        };
        outside.read_clocks();
        outside
    }

    fn read_clocks(&self) {
        let world = self.shared.lock();
        let host = &world.hosts[self.slot];
        self.awake.set(host.awake(world.now));
        self.boot.set(host.boot(world.now));
        self.wall.set(host.boot(world.now) as i64 + host.wall_off);
        self.calls.set(0);
    }

    fn called(&self) {
        self.calls.set(self.calls.get() + 1);
        if self.calls.get() > CALLS_LIMIT {
            let mut world = self.shared.lock();
            let now = world.now;
            world.judge.violated(now, format!("agent {} loops without a wait", self.slot));
            drop(world);
            resume_unwind(Box::new(Killed));
        }
    }
}

impl Waiter for Outside {
    fn wait(&self, interests: &mut [Interest<'_>], until: Option<Instant>) {
        let until =
            until.map(|until| until.saturating_duration_since(self.base).as_micros() as u64);
        let fds: Vec<_> = interests.iter().map(|interest| interest.fd.as_raw_fd()).collect();
        let mut world = self.shared.lock();
        world.collect(self.slot);
        let mut killed = world.processes[self.slot].killed;
        loop {
            let may_be = world.ready(self.slot, &fds);
            if may_be.contains(&true) && !killed {
                // Whatever the kernel says now is true, and no time passes.
                poll_all(interests, Some(self.base));
                let idle = fds.iter().zip(interests.iter()).zip(&may_be);
                for ((fd, _), _) in idle.filter(|((_, one), may_be)| !one.ready && **may_be) {
                    world.exhausted(self.slot, *fd);
                }
                for (one, may_be) in interests.iter_mut().zip(&may_be) {
                    one.ready &= *may_be;
                }
                if interests.iter().any(|one| one.ready) {
                    // The system call itself takes a moment.
                    world.end_wait(self.slot);
                    break;
                }
            }
            if killed {
                drop(world);
                resume_unwind(Box::new(Killed));
            }
            world.begin_wait(self.slot, until);
            world = self.shared.yield_until(world, Turn::Slot(self.slot));
            world.end_wait(self.slot);
            killed = world.processes[self.slot].killed;
            if killed {
                continue;
            }
            let may_be = world.ready(self.slot, &fds);
            if may_be.contains(&true) {
                continue;
            }
            break;
        }
        drop(world);
        self.read_clocks();
    }

    fn stop_requested(&self) -> bool {
        self.shared.lock().processes[self.slot].stop
    }

    fn take_reload(&self) -> bool {
        std::mem::take(&mut self.shared.lock().processes[self.slot].reload)
    }

    fn take_resumed(&self) -> bool {
        std::mem::take(&mut self.shared.lock().processes[self.slot].resumed)
    }

    fn now(&self) -> Instant {
        self.called();
        self.base + Duration::from_micros(self.awake.get())
    }

    fn boot_clock(&self) -> Duration {
        self.called();
        Duration::from_micros(self.boot.get())
    }

    fn wall_clock(&self) -> OffsetDateTime {
        let nanos = EPOCH + self.wall.get() * 1_000;
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanos))
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    fn random(&self) -> u64 {
        self.rng.borrow_mut().next()
    }

    fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let server = match address.ip() {
            std::net::IpAddr::V4(ip) => usize::from(ip.octets()[3]).wrapping_sub(1),
            std::net::IpAddr::V6(_) => usize::MAX,
        };
        self.shared.lock().dial(self.slot, server)
    }
}
