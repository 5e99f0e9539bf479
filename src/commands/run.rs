//! `run`: speaks for one instance until it is told to stop.
//!
//! One thread: it waits on signals until the schedule says to act, and beats.
//! A session that does not acknowledge one heartbeat is given up; its
//! successor registers anew. What a restart cannot cure ends the agent before
//! this begins; nothing that NATS does ever ends it. SIGHUP replaces settings
//! and session, while the entry stays.

// The loop reads the clocks.
#![allow(clippy::disallowed_methods)]

use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use serde_json::Value;
use time::OffsetDateTime;

use crate::cli::{Invocation, RunOptions, Verb};
use crate::connection::{ConnectError, Connector, RequestError, Session, Settings, StopCheck};
use crate::duration::{as_setting, words};
use crate::entry::Entry;
use crate::error::{Failure, Kind};
use crate::fitness::{self, Unfit};
use crate::host::Host;
use crate::instance::{self, Record, Status, instance_key};
use crate::kv::{self, ApiError, Bucket, Put, ReplyError, StreamInfo};
use crate::registry::{CREATING, Registry, RegistryError};
use crate::schedule::{Outcome, Patience, Schedule};
use crate::signals::Signals;
use crate::staleness::Ttl;
use crate::standing::{Labels, Standing};
use crate::systemd::Manager;

/// Our clock is trusted up to this difference from the registry's.
const CLOCK_TRUST: Duration = Duration::from_secs(1);
/// The registry's clock is asked for again after this time.
const CLOCK_KEPT: Duration = Duration::from_secs(600);
/// The same in a cluster, whose next leader may be one that obeys no TTL.
const LEADER_KEPT: Duration = Duration::from_secs(60);
/// A conflict is resolved by reading and writing again, so often in a row.
const CONFLICT_ROUNDS: u32 = 4;
/// Stamps of heartbeats whose fate is unknown; older ones cannot be stored any
/// more, since each carries the revision that it follows.
const STAMPS_KEPT: usize = 32;
/// Heartbeats without a conflict after which a twin is taken to be gone, if
/// what it wrote last would have expired, too.
const TWIN_GONE_AFTER: u32 = 3;
/// A session that ended sooner is not replaced at once.
const SHORT_SESSION: Duration = Duration::from_secs(1);
/// Causes of one outage that are said; more are a server that never says the
/// same twice, and go to the debug log.
const CAUSES_SAID: usize = 8;
/// While a server is going, another one is looked for so often.
const MOVE_AGAIN: Duration = Duration::from_secs(2);
/// A suspend shorter than this changes nothing.
const SUSPEND_NOTICED: Duration = Duration::from_secs(1);

/// The call read anew, for a reload.
pub type Anew<'a> = dyn Fn() -> Result<Invocation, Failure> + 'a;

/// Runs the agent until SIGTERM or SIGINT; `anew` is asked on SIGHUP.
pub fn run(
    options: RunOptions,
    settings: Settings,
    bucket: Bucket,
    host_name: &str,
    anew: &Anew<'_>,
) -> Result<(), Failure> {
    for warning in &options.warnings {
        warn!("{warning}");
    }
    let mut signals = Signals::take(true).map_err(|error| {
        Failure::new(Kind::Unavailable, "cannot take over signals").with_source(error)
    })?;
    settings.check_files()?;
    let manager = Arc::new(Manager::from_env());
    let stop = {
        let (manager, stop) = (Arc::clone(&manager), signals.stop_check());
        // Asked during every wait for NATS: the place for a sign of life.
        Arc::new(move || {
            manager.glance();
            stop()
        })
    };
    let waker = signals.waker();
    let connect = |settings: Settings| {
        let stop: StopCheck = stop.clone();
        manager.set_timeout(settings.timeout);
        Connector::new(settings).with_signals(stop, Arc::clone(&waker))
    };
    let servers = list(&settings);
    let mut host = Host::new(Arc::clone(&manager), signals.waker());
    host.configure(options.health.as_ref(), options.metrics_file.as_ref(), options.interval);
    let mut agent =
        Agent::new(options, Registry::new(connect(settings), bucket), host_name, servers);
    let mut schedule = Schedule::new(agent.options.interval, seed());

    let start = Instant::now();
    let mut slept = Slept::new();
    let mut due = Duration::ZERO;
    while !signals.stopped() {
        let now = start.elapsed();
        let turned = agent.turn(&mut host, now, due);
        if signals.take_hangup() {
            host.manager.reloading();
            if let Some(settings) = agent.reload(anew, host_name) {
                let options = &agent.options;
                let (health, metrics) = (options.health.as_ref(), options.metrics_file.as_ref());
                host.configure(health, metrics, options.interval);
                agent.set_status(&host);
                schedule = Schedule::new(agent.options.interval, seed());
                agent.registry.replace_connector(connect(settings));
            }
            host.manager.reloaded();
            due = now;
        }
        if slept.passed() {
            info!("the host was suspended: heartbeat at once");
            agent.resume();
            due = now;
        } else if turned {
            due = now;
        } else if let Some(at) = agent.wants_a_new_session(now) {
            due = due.min(at);
        }
        if now < due {
            signals.wait(host.sleep(now, due));
            continue;
        }
        let outcome = agent.beat();
        due = schedule.next(now, start.elapsed(), outcome);
    }
    host.stopping(&agent.standing);
    agent.stop();
    agent.stopped(&mut host, start.elapsed());
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

/// What stands under our own key.
enum Own {
    /// Nothing, or what was read.
    Seen(Option<Entry>),
    /// We may not look, or looking ends the session.
    Unknown,
}

struct Agent {
    options: RunOptions,
    registry: Registry,
    key: String,
    /// What does not change from one heartbeat to the next.
    record: Record,
    /// Our last acknowledged revision, on the session that there is.
    revision: Option<u64>,
    /// When the session registered, since `started`.
    registered_at: Duration,
    /// An acknowledgement was seen at all: there may be an entry of ours.
    ever_registered: bool,
    /// Reading our own key ended a session: somebody stored a record there
    /// that the client library cannot decode.
    unsafe_to_read: bool,
    /// `lastHeartbeat` of what we sent and may find again.
    stamps: Vec<String>,
    /// When the heartbeat was sent that was acknowledged last.
    stored_at: Option<Instant>,
    patience: Patience,
    /// The server is going, and another one is looked for next at this time,
    /// since `started`.
    moving: Option<Duration>,
    outage: Option<Outage>,
    twin: Option<Twin>,
    standing: Standing,
    started: Instant,
}

/// The registry is out of reach, or refuses.
struct Outage {
    since: Instant,
    /// The causes that were said, without their numbers.
    said: HashSet<String>,
}

/// Somebody else writes our entry.
struct Twin {
    who: String,
    quiet_beats: u32,
    /// When it was met last, and how long what it writes lives.
    met: Instant,
    ttl: Duration,
}

impl Agent {
    fn new(options: RunOptions, registry: Registry, host: &str, servers: String) -> Agent {
        let name = format!("{}/{}", options.service, options.instance);
        Agent {
            key: instance_key(&options.service, &options.instance),
            record: record(&options, host),
            standing: Standing::new(name, servers),
            options,
            registry,
            revision: None,
            registered_at: Duration::ZERO,
            ever_registered: false,
            unsafe_to_read: false,
            stamps: Vec::new(),
            stored_at: None,
            patience: Patience::default(),
            moving: None,
            outage: None,
            twin: None,
            started: Instant::now(),
        }
    }

    /// `orders-api/host-1`, as the log names it.
    fn name(&self) -> String {
        format!("{}/{}", self.options.service, self.options.instance)
    }

    /// Nobody knows what became of the session while the host slept.
    fn resume(&mut self) {
        self.registry.disconnect();
        self.revision = None;
    }

    /// One turn of the loop, as the host sees it. Whether the service's health
    /// has turned, so that its status is to be published at once.
    fn turn(&mut self, host: &mut Host, now: Duration, due: Duration) -> bool {
        let labels = labels(&self.options, self.registry.bucket());
        let turned = host.turn(now, due, &mut self.standing, &labels);
        self.set_status(host);
        turned
    }

    fn set_status(&mut self, host: &Host) {
        self.record.status = match host.is_healthy() {
            Some(false) => Status::Unhealthy,
            _ => status(&self.options),
        };
    }

    fn stopped(&mut self, host: &mut Host, now: Duration) {
        let labels = labels(&self.options, self.registry.bucket());
        host.stopped(now, &mut self.standing, &labels);
    }

    /// Takes over what the command line's files and the environment say now,
    /// and returns how to connect. What is wrong leaves everything as it was.
    fn reload(&mut self, anew: &Anew<'_>, host: &str) -> Option<Settings> {
        let fresh = anew().and_then(|fresh| match fresh {
            Invocation { settings, bucket, verb: Verb::Run(options), .. } => {
                settings.check_files().map(|()| (settings, bucket, options))
            }
            _ => Err(Failure::new(Kind::Usage, "not a call of run")),
        });
        let (settings, bucket, mut options) = match fresh {
            Ok(fresh) => fresh,
            Err(failure) => {
                warn!("reload: {}; everything stays as it was", failure.chain());
                return None;
            }
        };
        for warning in &options.warnings {
            warn!("{warning}");
        }
        let same = options.service == self.options.service
            && options.instance == self.options.instance
            && bucket == *self.registry.bucket();
        if !same {
            warn!("reload: service, instance and bucket change with a restart only");
            options.service = self.options.service.clone();
            options.instance = self.options.instance.clone();
        }
        self.record = record(&options, host);
        self.standing.set_servers(list(&settings));
        self.options = options;
        // The next attempt registers on a fresh session, over our own entry.
        self.revision = None;
        info!("reloaded the settings of {}", self.name());
        Some(settings)
    }

    /// When to act because the session has ended by itself, or its server is
    /// going.
    fn wants_a_new_session(&self, now: Duration) -> Option<Duration> {
        self.revision?;
        match self.registry.session() {
            // A server that ends each session at once is not asked in a tight
            // loop.
            None => {
                let age = self.started.elapsed().saturating_sub(self.registered_at);
                Some(now + SHORT_SESSION.saturating_sub(age))
            }
            Some(session) if session.is_lame_duck() => Some(self.moving.unwrap_or(now)),
            Some(_) => None,
        }
    }

    /// One heartbeat, or one attempt to register.
    fn beat(&mut self) -> Outcome {
        let session = self.registry.session();
        match self.revision {
            Some(_) if session.is_none() => {
                self.revision = None;
                let error = self.registry.lost();
                // Between two heartbeats: none of them failed.
                self.lost(RegistryError::Request("heartbeat", error));
            }
            Some(revision) => {
                let moved = session.is_some_and(Session::is_lame_duck) && self.move_on();
                if !moved {
                    return match self.heartbeat(revision) {
                        Ok(()) => Outcome::Acknowledged,
                        Err(error) => {
                            self.revision = None;
                            self.registry.disconnect();
                            self.standing.failed();
                            self.lost(error);
                            Outcome::SessionLost
                        }
                    };
                }
                return self.registration(Agent::register_here);
            }
            None => {}
        }
        self.registration(Agent::register)
    }

    /// Moves to another server while this one, which is going, still serves.
    /// Where there is no other, it serves on for as long as it does.
    fn move_on(&mut self) -> bool {
        let first = self.moving.is_none();
        // The entry has to be kept alive meanwhile.
        let limit = self.registry.timeout().min(self.life() / 2);
        let result = self.registry.move_on(limit);
        let now = self.started.elapsed();
        match result {
            Ok(()) => {
                info!("{}: the server is shutting down (lame-duck mode): moved", self.name());
                self.moving = None;
                self.revision = None;
                true
            }
            // The stop ends everything in good order, here.
            Err(RegistryError::Connect(ConnectError::Stopped)) => false,
            Err(error) => {
                self.moving = Some(now + MOVE_AGAIN);
                let cause = Failure::from(error).chain();
                match first {
                    true => warn!(
                        "{}: the server is shutting down (lame-duck mode), and no other serves: {cause}",
                        self.name()
                    ),
                    false => debug!("{}: no other server yet: {cause}", self.name()),
                }
                false
            }
        }
    }

    fn registration(&mut self, register: fn(&mut Agent) -> Result<u64, RegistryError>) -> Outcome {
        match register(self) {
            Ok(revision) => {
                self.registered(revision);
                Outcome::Registered
            }
            Err(RegistryError::Connect(ConnectError::Stopped)) => Outcome::NotServed,
            Err(error) => {
                self.registry.disconnect();
                self.standing.failed();
                self.lost(error);
                Outcome::NotServed
            }
        }
    }

    fn heartbeat(&mut self, revision: u64) -> Result<(), RegistryError> {
        let clustered = self.registry.server().is_some_and(|server| server.cluster.is_some());
        let kept = if clustered { LEADER_KEPT } else { CLOCK_KEPT };
        if self.registry.clock().is_none_or(|clock| clock.age() > kept) {
            self.registry.fit_info()?;
        }
        let revision = self.write(Some(revision), false)?;
        self.revision = Some(revision);
        if let Some(twin) = &mut self.twin {
            twin.quiet_beats += 1;
            if twin.quiet_beats > TWIN_GONE_AFTER && twin.met.elapsed() > twin.ttl {
                info!("{}: {} writes this entry no more", self.name(), self.twin_name());
                self.twin = None;
                self.standing.set_twin(None);
            }
        }
        debug!("heartbeat of {} acknowledged, revision {revision}", self.name());
        Ok(())
    }

    /// Registers on a fresh session.
    fn register(&mut self) -> Result<u64, RegistryError> {
        self.moving = None;
        let limit = self.registry.timeout();
        self.registry.connect(limit)?;
        self.register_here()
    }

    /// Registers on the session that there is.
    fn register_here(&mut self) -> Result<u64, RegistryError> {
        if !self.unsafe_to_read {
            self.registry.get_ahead(&self.key)?;
        }
        let info = match self.registry.fit_info() {
            Err(RegistryError::Unfit(Unfit::NoBucket(_))) => self.create_bucket()?,
            info => {
                // The answer about our own key may have ended it.
                self.unsafe_to_read |= is_lost(&info);
                info?
            }
        };
        let own = self.read_own()?;
        self.patience.answered(self.registry.answer_time());
        let (expected, immortal_below) = match &own {
            Own::Seen(Some(entry)) => {
                (entry.revision, entry.stored.ttl == Ttl::Never && !entry.deleted)
            }
            Own::Seen(None) => (0, false),
            // A refusal will tell the revision; what lies there may have no TTL.
            Own::Unknown => (0, true),
        };
        // With more than one revision a key, the one below comes back when the
        // newest expires.
        let rollup = info.history() != 1 && info.flag("allow_rollup_hdrs");
        let mut revision = self.write(Some(expected), rollup)?;
        if immortal_below && revision != 1 {
            // A crash of the server can bring back what was replaced last:
            // let that be a value that expires (nats-server #8505).
            revision = self.write(Some(revision), false)?;
        }
        Ok(revision)
    }

    fn create_bucket(&mut self) -> Result<StreamInfo, RegistryError> {
        let bucket = self.registry.bucket().clone();
        let maker = format!("{} (pid {})", self.name(), std::process::id());
        let request = kv::create_bucket_as(&maker, &bucket);
        match self.registry.configure(CREATING, &request) {
            Ok(info) => {
                let connected = self.registry.server().map_or("", |server| &server.version);
                fitness::judge_bucket(&bucket, &info, connected).map_err(RegistryError::Unfit)?;
                info!("created bucket {bucket}");
                Ok(info)
            }
            // Another was quicker.
            Err(error) if error.api_code() == Some(ApiError::NAME_TAKEN) => {
                self.registry.fit_info()
            }
            Err(error) => Err(error),
        }
    }

    /// What stands under our own key, if we may know.
    fn read_own(&mut self) -> Result<Own, RegistryError> {
        if self.unsafe_to_read {
            return Ok(Own::Unknown);
        }
        match self.registry.get(&self.key) {
            Ok(found) => Ok(Own::Seen(found)),
            Err(error) if error.denied().is_some() => {
                debug!("{error}: twins cannot be told apart");
                Ok(Own::Unknown)
            }
            lost => {
                self.unsafe_to_read |= is_lost(&lost);
                lost.map(Own::Seen)
            }
        }
    }

    /// Writes one heartbeat over `expected`. Where something else stands
    /// there, finds out what, and takes its turn.
    fn write(&mut self, expected: Option<u64>, rollup: bool) -> Result<u64, RegistryError> {
        let mut expected = expected;
        let mut round = 0;
        loop {
            round += 1;
            let stamp = self.stamp();
            self.record.last_heartbeat = stamp;
            let put = Put {
                key: &self.key,
                value: self.record.to_json(),
                ttl: self.options.ttl,
                expected,
                rollup,
            };
            let sent = Instant::now();
            let limit = self.patience.limit(self.registry.timeout(), self.life());
            self.standing.sent();
            let error = match self.registry.put_within(put, limit) {
                Ok(revision) => {
                    let (now, took) = (self.started.elapsed(), sent.elapsed());
                    self.patience.acknowledged(took);
                    self.stored_at = Some(sent);
                    let utc = OffsetDateTime::now_utc();
                    self.standing.acknowledged(revision, utc, now, took);
                    if let Some(clock) = self.registry.clock() {
                        self.standing.set_clock_offset(clock.off_by(utc).as_seconds_f64());
                    }
                    self.stamps.clear();
                    self.remember(stamp);
                    self.unsafe_to_read = false;
                    return Ok(revision);
                }
                Err(error) => error,
            };
            self.remember(stamp);
            if matches!(error, RegistryError::Request(_, RequestError::TimedOut)) {
                self.patience.waited_in_vain();
            }
            let Some(last) = conflict(&error) else {
                return Err(error);
            };
            self.standing.conflict();
            if round == CONFLICT_ROUNDS {
                return Err(error);
            }
            expected = Some(match self.read_own()? {
                Own::Seen(found) => self.resolve(found),
                Own::Unknown => self.resolve_unseen(last.ok_or(error)?),
            });
        }
    }

    /// The revision to follow, after a conflict.
    fn resolve(&mut self, found: Option<Entry>) -> u64 {
        let registered = self.revision.is_some();
        let Some(entry) = found else {
            if registered {
                info!(
                    "{}: the entry was gone (expired or removed): registering again",
                    self.name()
                );
            }
            return 0;
        };
        if entry.deleted {
            if registered {
                info!("{}: the entry was deleted by somebody: registering again", self.name());
            }
        } else if registered && !self.wrote(&entry) {
            let ttl = match entry.stored.ttl {
                Ttl::After(ttl) => ttl,
                Ttl::Never => self.options.ttl,
            };
            self.met(writer(&self.key, &entry.value), ttl);
        }
        entry.revision
    }

    /// As `resolve`, where our own key cannot be read: what stands there is
    /// `last`. Each revision of ours on this session was acknowledged, so this
    /// one is somebody else's.
    fn resolve_unseen(&mut self, last: u64) -> u64 {
        if self.revision.is_some() && last != 0 {
            let who = "somebody else (who: the entry cannot be read)";
            self.met(who.to_owned(), self.options.ttl);
        }
        last
    }

    /// Somebody else wrote our entry since our last heartbeat.
    fn met(&mut self, who: String, ttl: Duration) {
        let news = self.twin.as_ref().is_none_or(|twin| twin.who != who);
        self.standing.set_twin(Some(who.clone()));
        self.twin = Some(Twin { who, quiet_beats: 0, met: Instant::now(), ttl });
        if news {
            warn!(
                "{}: {} writes this entry too; both take turns. Give one of them another --instance",
                self.name(),
                self.twin_name()
            );
        }
    }

    /// How long our entry lives on without another heartbeat.
    fn life(&self) -> Duration {
        let since = self.stored_at.map(|at| at.elapsed());
        since.map_or(Duration::ZERO, |since| self.options.ttl.saturating_sub(since))
    }

    fn twin_name(&self) -> String {
        self.twin.as_ref().map_or(String::new(), |twin| twin.who.clone())
    }

    fn wrote(&self, entry: &Entry) -> bool {
        let Ok(record) = instance::read(&self.key, &entry.value) else {
            return false;
        };
        // The rest of the metadata can change with a reload.
        let same = |name: &str| record.metadata.get(name) == self.record.metadata.get(name);
        let stamp = instance::format_time(record.last_heartbeat);
        same("host") && same("pid") && self.stamps.contains(&stamp)
    }

    fn remember(&mut self, stamp: OffsetDateTime) {
        if self.stamps.len() == STAMPS_KEPT {
            self.stamps.remove(0);
        }
        self.stamps.push(instance::format_time(stamp));
    }

    /// Our own time, or the registry's where ours is off.
    fn stamp(&self) -> OffsetDateTime {
        let own = OffsetDateTime::now_utc();
        match self.registry.clock() {
            Some(clock) if clock.off_by(own).unsigned_abs() > CLOCK_TRUST => clock.now(),
            _ => own,
        }
    }

    fn registered(&mut self, revision: u64) {
        self.revision = Some(revision);
        self.registered_at = self.started.elapsed();
        let Some(session) = self.registry.session() else {
            return;
        };
        let at = session.place();
        match self.outage.take() {
            Some(outage) if self.ever_registered => info!(
                "restored {} at {at} after {}, revision {revision}",
                self.name(),
                words(outage.since.elapsed())
            ),
            None if self.ever_registered => {
                info!("registered {} at {at}, revision {revision}", self.name());
            }
            _ => info!(
                "registered {} in bucket {} at {at}, revision {revision}: TTL {}, heartbeat every {}",
                self.name(),
                self.registry.bucket(),
                as_setting(self.options.ttl),
                as_setting(self.options.interval)
            ),
        }
        self.ever_registered = true;
        if let Some(clock) = self.registry.clock() {
            let off = clock.off_by(OffsetDateTime::now_utc());
            if off.unsigned_abs() > CLOCK_TRUST {
                warn!(
                    "this host's clock is {:+.1} s off the registry's: heartbeats carry registry time",
                    off.as_seconds_f64()
                );
            }
        }
    }

    /// Says each cause of an outage once.
    fn lost(&mut self, error: RegistryError) {
        self.standing.lost(&error.why(), OffsetDateTime::now_utc());
        let failure = Failure::from(error);
        let cause = failure.chain();
        let name = self.name();
        let (first, outage) = match &mut self.outage {
            Some(outage) => (false, outage),
            none => (true, none.insert(Outage { since: Instant::now(), said: HashSet::new() })),
        };
        if outage.said.len() >= CAUSES_SAID || !outage.said.insert(without_numbers(&cause)) {
            debug!("{name}: {cause}");
            return;
        }
        let hint = failure.hint().map_or(String::new(), |hint| format!("; hint: {hint}"));
        match (first, self.ever_registered) {
            (true, true) => warn!("lost {name}: {cause}; trying again until it is back{hint}"),
            (true, false) => {
                warn!("cannot register {name}: {cause}; trying again until it works{hint}");
            }
            (false, _) => warn!("still without registry, {name}: {cause}{hint}"),
        }
    }

    /// Takes our entry out of the registry, if that can be done within the
    /// time limit; otherwise its TTL does it.
    fn stop(&mut self) {
        // An attempt whose answer did not come may have been stored.
        if !self.ever_registered && self.stamps.is_empty() {
            info!("stopped {} before it was registered", self.name());
            return;
        }
        let began = Instant::now();
        // What was under way when the stop came has had the first half.
        self.registry.end_within(self.registry.timeout() / 2);
        match self.deregister() {
            Ok(true) => info!("deregistered {} in {}", self.name(), words(began.elapsed())),
            Ok(false) => info!("stopped {}: its entry is not ours any more", self.name()),
            Err(error) => warn!(
                "stopped {} without deregistering: {}; its entry expires within {}",
                self.name(),
                Failure::from(error).chain(),
                as_setting(self.options.ttl)
            ),
        }
    }

    fn deregister(&mut self) -> Result<bool, RegistryError> {
        let mut known = self.revision.filter(|_| self.registry.session().is_some());
        let mut round = 0;
        loop {
            round += 1;
            if self.registry.session().is_none() {
                let limit = self.registry.timeout();
                self.registry.connect(limit)?;
            }
            let revision = match known.take() {
                Some(revision) => revision,
                None => match self.read_own()? {
                    Own::Seen(Some(entry)) if !entry.deleted && self.wrote(&entry) => {
                        entry.revision
                    }
                    Own::Seen(_) | Own::Unknown => return Ok(false),
                },
            };
            match self.registry.deregister(&self.key, revision) {
                Ok(()) => return Ok(true),
                Err(error) if round < CONFLICT_ROUNDS => {
                    debug!("deregistering, round {round}: {error}");
                    if conflict(&error).is_none() {
                        self.registry.disconnect();
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A cause by which it is known again: sequences and the like change each time.
fn without_numbers(cause: &str) -> String {
    cause.chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// What does not change from one heartbeat to the next.
fn record(options: &RunOptions, host: &str) -> Record {
    let mut metadata = serde_json::Map::new();
    for (key, value) in &options.metadata {
        metadata.insert(key.clone(), Value::from(value.as_str()));
    }
    metadata.insert("host".into(), Value::from(host));
    metadata.insert("pid".into(), Value::from(std::process::id().to_string()));
    Record {
        service_name: options.service.as_str().to_owned(),
        instance_id: options.instance.as_str().to_owned(),
        version: options.version.as_str().to_owned(),
        status: status(options),
        last_heartbeat: OffsetDateTime::UNIX_EPOCH,
        sticky_active_group: options.group.clone(),
        metadata,
    }
}

/// Whose metrics they are.
fn labels<'a>(options: &'a RunOptions, bucket: &'a Bucket) -> Labels<'a> {
    let (service, instance) = (options.service.as_str(), options.instance.as_str());
    Labels { service, instance, bucket: bucket.as_str() }
}

/// The status of a service that is well.
fn status(options: &RunOptions) -> Status {
    if options.standby { Status::Standby } else { Status::Active }
}

/// Whether the session ended.
fn is_lost<T>(result: &Result<T, RegistryError>) -> bool {
    matches!(result, Err(RegistryError::Request(_, RequestError::Lost(_))))
}

/// Whether a refusal means that another revision stands there; with its
/// number where the server tells it.
fn conflict(error: &RegistryError) -> Option<Option<u64>> {
    match error {
        RegistryError::Reply(_, ReplyError::Api(api))
            if matches!(api.err_code, ApiError::WRONG_LAST | ApiError::WRONG_LAST_CLUSTERED) =>
        {
            Some(kv::last_revision(api))
        }
        _ => None,
    }
}

/// Who wrote a record, as far as it says: `another agent (host h, pid 1)`.
fn writer(key: &str, value: &[u8]) -> String {
    let Ok(record) = instance::read(key, value) else {
        return "another program".into();
    };
    let said = |name: &str| match record.metadata.get(name) {
        Some(Value::String(text)) => crate::table::printable(text),
        Some(value @ Value::Number(_)) => value.to_string(),
        _ => "unknown".into(),
    };
    format!("another agent (host {}, pid {})", said("host"), said("pid"))
}
