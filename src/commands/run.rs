//! `run`: speaks for one instance until it is told to stop.
//!
//! One thread and one `poll`: it waits until `keeper` says to act, and does what
//! it says.
//! A session that does not acknowledge one heartbeat is given up; its
//! successor registers anew. What a restart cannot cure ends the agent before
//! this begins; nothing that NATS does ever ends it. SIGHUP replaces settings
//! and session: the new one is up before the old one goes.

// The loop reads the clocks.
#![allow(clippy::disallowed_methods)]

mod agent;
pub mod attention;
mod config;
mod drain;
mod keeper;
pub mod schedule;
pub mod status;
pub mod surroundings;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write;
use std::rc::Rc;
use std::time::Duration;

use log::{info, warn};

use self::attention::Attention;
use self::keeper::Step;
use self::surroundings::Host;
use crate::cli::options::{Invocation, RunOptions};
use crate::error::Failure;
use crate::jetstream::bucket::Bucket;
use crate::nats::{Connector, Settings};
use crate::registry::Registry;
use crate::system::signals::Signals;
use crate::system::systemd::Manager;

use agent::Agent;

/// A suspend shorter than this changes nothing.
const SUSPEND_NOTICED: Duration = Duration::from_secs(1);

/// The call read anew, for a reload.
pub type Anew<'a> = dyn Fn() -> Result<Invocation, Failure> + 'a;

/// Runs the agent until SIGTERM or SIGINT; `anew` is asked on SIGHUP. `out` is
/// for what `--check-config` shows.
pub fn run(
    options: RunOptions,
    settings: Settings,
    bucket: Bucket,
    host_name: &str,
    anew: &Anew<'_>,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    if let Some(effective) = &options.check_config {
        return config::check(effective, &options.warnings, &settings, out);
    }
    for warning in &options.warnings {
        warn!("{warning}");
    }
    let attention = Rc::new(Attention::new(Signals::take_all()?, Manager::from_env()));
    let (signals, manager) = (&attention.signals, &attention.manager);
    settings.check_files()?;
    let connect = |settings: Settings| Connector::new(settings).with_waiter(attention.clone());
    let servers = list(&settings);
    manager.set_timeout(settings.timeout);
    let mut host = Host::new(Rc::clone(&attention));
    host.configure(options.health.as_ref(), options.metrics_file.as_ref(), options.interval);
    let registry = Registry::new(connect(settings), bucket);
    let mut agent = Agent::new(options, registry, host_name, servers, seed());

    let mut slept = Slept::new();
    while !signals.stopped() {
        let now = agent.now();
        agent.turn(&mut host, now);
        if signals.take_hangup() {
            manager.reloading();
            if let Some(timeout) = agent.reload(anew, host_name, connect) {
                let options = &agent.options;
                let (health, metrics) = (options.health.as_ref(), options.metrics_file.as_ref());
                host.configure(health, metrics, options.interval);
                agent.set_status(&host);
                manager.set_timeout(timeout);
            } else {
                agent.keeper.hurry(now);
            }
            manager.reloaded();
            // What it has changed is told before the next wait.
            continue;
        }
        if slept.passed() {
            info!("the host was suspended: heartbeat at once");
            agent.slept(now);
        } else if signals.take_resumed() {
            agent.keeper.resumed(now);
        }
        match agent.step(now) {
            Step::Wait(until) => agent.idle(host.sleep(now, until)),
            Step::Beat(revision) => agent.beat(now, revision),
            Step::SayLost => agent.say_lost(),
            Step::Move => agent.move_on(now),
            Step::Register => agent.register(now),
        }
    }
    host.stopping(&agent.standing);
    agent.stop();
    let now = agent.now();
    agent.stopped(&mut host, now);
    attention.sweep_all();
    Ok(())
}

/// The servers, as a person lists them.
fn list(settings: &Settings) -> String {
    let servers: Vec<String> = settings.servers.iter().map(ToString::to_string).collect();
    servers.join(", ")
}

/// Differs from agent to agent, without a source of randomness of our own.
fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Notices that the host slept: the boot clock goes on meanwhile, the
/// monotonic clock does not.
struct Slept {
    ahead: Duration,
}

impl Slept {
    fn new() -> Slept {
        Slept { ahead: Self::ahead() }
    }

    fn passed(&mut self) -> bool {
        let ahead = Self::ahead();
        let slept = ahead.saturating_sub(self.ahead) > SUSPEND_NOTICED;
        self.ahead = ahead;
        slept
    }

    fn ahead() -> Duration {
        use rustix::time::{ClockId, clock_gettime};
        let at = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
        at(ClockId::Boottime).saturating_sub(at(ClockId::Monotonic))
    }
}
