//! `run`: speaks for one instance until it is told to stop.
//!
//! One thread and one `poll`: it waits until `keeper` says to act, and does what
//! it says. A session that does not acknowledge one heartbeat is given up; its
//! successor registers anew. What a restart cannot cure ends the agent before
//! the loop begins; nothing that NATS does ever ends it. SIGHUP replaces settings
//! and session: the new one is up before the old one goes.

mod agent;
pub mod attention;
mod config;
pub mod drain;
pub mod keeper;
pub mod schedule;
pub mod status;
pub mod surroundings;

use std::io::Write;
use std::rc::Rc;
use std::time::{Duration, Instant};

use log::{info, warn};

use self::attention::Attention;
use self::keeper::Step;
use self::surroundings::Host;
use crate::cli::options::{Invocation, RunOptions};
use crate::error::Failure;
use crate::jetstream::bucket::Bucket;
use crate::nats::{Connector, Settings, Waiter};
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
    settings.check_files()?;
    let mut host = Host::new(Rc::clone(&attention));
    let settled = Settled { options, settings, bucket, host_name };
    keep(settled, &mut host, attention.clone(), anew);
    attention.sweep_all();
    Ok(())
}

/// What an agent begins with.
pub struct Settled<'a> {
    /// Whom it speaks for.
    pub options: RunOptions,
    /// How to reach NATS.
    pub settings: Settings,
    /// The bucket.
    pub bucket: Bucket,
    /// The host's name.
    pub host_name: &'a str,
}

/// The loop: keeps the entry until `outside` asks for a stop, and takes it out
/// then. `anew` is asked when `outside` tells of other settings.
pub fn keep(begin: Settled<'_>, host: &mut Host, outside: Rc<dyn Waiter>, anew: &Anew<'_>) {
    let Settled { options, settings, bucket, host_name } = begin;
    let connect = |settings: Settings| Connector::new(settings).with_waiter(Rc::clone(&outside));
    let servers = list(&settings);
    host.set_timeout(settings.timeout);
    host.configure(options.health.as_ref(), options.metrics_file.as_ref(), options.interval);
    let registry = Registry::new(connect(settings), bucket);
    let mut agent =
        Agent::new(options, registry, host_name, servers, outside.random(), host.helpers());

    let mut slept = Slept::new(&*outside);
    while !outside.stop_requested() {
        let now = agent.now();
        agent.turn(host, now);
        if outside.take_reload() {
            host.reloading();
            if let Some(timeout) = agent.reload(anew, host_name, connect) {
                let options = &agent.options;
                let (health, metrics) = (options.health.as_ref(), options.metrics_file.as_ref());
                host.configure(health, metrics, options.interval);
                agent.set_status(host);
                host.set_timeout(timeout);
            } else {
                agent.keeper.hurry(now);
            }
            host.reloaded();
            // What it has changed is told before the next wait.
            continue;
        }
        if slept.passed(&*outside) {
            info!("the host was suspended: heartbeat at once");
            agent.slept(now);
        } else if outside.take_resumed() {
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
    agent.stopped(host, now);
}

/// The servers, as a person lists them.
fn list(settings: &Settings) -> String {
    let servers: Vec<String> = settings.servers.iter().map(ToString::to_string).collect();
    servers.join(", ")
}

/// Notices that the host slept: the boot clock goes on meanwhile, the clock of
/// the waits does not.
struct Slept {
    boot: Duration,
    waits: Instant,
}

impl Slept {
    fn new(outside: &dyn Waiter) -> Slept {
        Slept { boot: outside.boot_clock(), waits: outside.now() }
    }

    fn passed(&mut self, outside: &dyn Waiter) -> bool {
        let now = Slept::new(outside);
        let awake = now.waits.saturating_duration_since(self.waits);
        let passed = now.boot.saturating_sub(self.boot);
        *self = now;
        passed.saturating_sub(awake) > SUSPEND_NOTICED
    }
}
