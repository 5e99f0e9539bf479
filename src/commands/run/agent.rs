//! One agent: its entry, the session it is written on, and what became of
//! the last attempt. The loop says when to act; here is done what is due: a
//! heartbeat, a registration, a move to another server, a reload.

// It reads the clocks.
#![allow(clippy::disallowed_methods)]

mod ending;
mod outage;
mod own_entry;

use std::time::{Duration, Instant};

use log::{debug, info, warn};
use serde_json::Value;
use time::OffsetDateTime;

use super::schedule::{Outcome, Patience};
use super::status::{Labels, Standing};
use super::surroundings::Host;
use super::{Anew, list};
use crate::cli::call::Call;
use crate::cli::options::{Invocation, RunOptions, Verb};
use crate::error::{Failure, Kind};
use crate::instance::record::{Record, Status, instance_key};
use crate::instance::staleness::Ttl;
use crate::jetstream::bucket::{self, Bucket};
use crate::jetstream::fitness::{self, Defeat, Unfit};
use crate::jetstream::replies::{ApiError, StreamInfo};
use crate::jetstream::requests;
use crate::nats::{ConnectError, Session, Settings};
use crate::registry::Registry;
use crate::registry::failure::{CREATING, RegistryError};
use crate::text::duration::{as_setting, words};
use crate::text::printable::printable;

use outage::Outage;
use own_entry::{Own, Twin};

/// Our clock is trusted up to this difference from the registry's.
const CLOCK_TRUST: Duration = Duration::from_secs(1);
/// The registry's clock is asked for again after this time.
const CLOCK_KEPT: Duration = Duration::from_secs(600);
/// The same in a cluster, whose next leader may be one that obeys no TTL.
const LEADER_KEPT: Duration = Duration::from_secs(60);
/// A session that ended sooner is not replaced at once.
const SHORT_SESSION: Duration = Duration::from_secs(1);
/// While a server is going, another one is looked for so often.
const MOVE_AGAIN: Duration = Duration::from_secs(2);

pub(super) struct Agent {
    pub(super) options: RunOptions,
    pub(super) registry: Registry,
    key: String,
    /// What does not change from one heartbeat to the next.
    record: Record,
    /// Our last acknowledged revision, on the session that there is.
    revision: Option<u64>,
    /// When the session registered, since `started`.
    registered_at: Duration,
    /// An acknowledgement was seen at all: there may be an entry of ours.
    ever_registered: bool,
    /// `lastHeartbeat` of what we sent and may find again.
    stamps: Vec<OffsetDateTime>,
    /// When the heartbeat was sent that was acknowledged last.
    stored_at: Option<Instant>,
    patience: Patience,
    /// The server is going, and another one is looked for next at this time,
    /// since `started`.
    moving: Option<Duration>,
    outage: Option<Outage>,
    /// What the bucket does to our TTL, as it was said.
    defeats: Vec<Defeat>,
    twin: Option<Twin>,
    pub(super) standing: Standing,
    started: Instant,
}

impl Agent {
    pub(super) fn new(
        options: RunOptions,
        registry: Registry,
        host: &str,
        servers: String,
    ) -> Agent {
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
            stamps: Vec::new(),
            stored_at: None,
            patience: Patience::default(),
            moving: None,
            outage: None,
            defeats: Vec::new(),
            twin: None,
            started: Instant::now(),
        }
    }

    /// `orders-api/host-1`, as the log names it.
    fn name(&self) -> String {
        format!("{}/{}", self.options.service, self.options.instance)
    }

    /// Nobody knows what became of the session while the host slept.
    pub(super) fn resume(&mut self) {
        self.registry.disconnect();
        self.revision = None;
    }

    /// One turn of the loop, as the host sees it. Whether the service's health
    /// has turned, so that its status is to be published at once.
    pub(super) fn turn(&mut self, host: &mut Host, now: Duration, due: Duration) -> bool {
        let labels = labels(&self.options, self.registry.bucket());
        let turned = host.turn(now, due, &mut self.standing, &labels);
        self.set_status(host);
        turned
    }

    pub(super) fn set_status(&mut self, host: &Host) {
        self.record.status = match host.is_healthy() {
            Some(false) => Status::Unhealthy,
            _ => status(&self.options),
        };
    }

    pub(super) fn stopped(&mut self, host: &mut Host, now: Duration) {
        let labels = labels(&self.options, self.registry.bucket());
        host.stopped(now, &mut self.standing, &labels);
    }

    /// Takes over what the command line's files and the environment say now,
    /// and returns how to connect. What is wrong leaves everything as it was.
    pub(super) fn reload(&mut self, anew: &Anew<'_>, host: &str) -> Option<Settings> {
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
    pub(super) fn wants_a_new_session(&self, now: Duration) -> Option<Duration> {
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
    pub(super) fn beat(&mut self) -> Outcome {
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
        self.look_for_twin();
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
        let (info, entry) = self.registry.info_and_entry(&self.key);
        let info = match info.and_then(|found| self.registry.fit(found)) {
            Err(RegistryError::Unfit(Unfit::NoBucket(_))) => self.create_bucket()?,
            info => info?,
        };
        self.say_defeats(&info);
        let own = self.own(entry)?;
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

    /// Warns where the bucket takes our TTL and does not keep to it, once.
    fn say_defeats(&mut self, info: &StreamInfo) {
        let bucket = self.registry.bucket();
        let defeats = fitness::ttl_defeats(info, self.options.ttl);
        for defeat in defeats.iter().filter(|defeat| !self.defeats.contains(defeat)) {
            let call = Call::of(self.registry.settings(), bucket);
            warn!("bucket {bucket}: {}; hint: {}", defeat.message, call.complete(&defeat.hint));
        }
        self.defeats = defeats;
    }

    fn create_bucket(&mut self) -> Result<StreamInfo, RegistryError> {
        let bucket = self.registry.bucket().clone();
        let request = requests::create_bucket(&bucket, 1, bucket::Storage::File, None);
        match self.registry.configure(CREATING, &request) {
            Ok(info) => {
                let connected = self.registry.server().map_or("", |server| &server.version);
                fitness::judge_bucket(&bucket, &info, connected).map_err(RegistryError::Unfit)?;
                info!("created bucket {bucket}");
                Ok(info)
            }
            // Another was quicker, with other settings.
            Err(error) if error.api_code() == Some(ApiError::NAME_TAKEN) => {
                self.registry.fit_info()
            }
            Err(error) => Err(error),
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
        if !self.ever_registered
            && let (Some(domain), None) = (&session.server.domain, self.registry.bucket().domain())
        {
            info!(
                "{}: the registry is the one in the JetStream domain {} of this server; \
                 --js-domain (AEGIS_JS_DOMAIN) names another",
                self.name(),
                printable(domain)
            );
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
