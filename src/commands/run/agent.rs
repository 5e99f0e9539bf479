//! One agent: its entry, the session it is written on, and what became of
//! the last attempt. What follows from what happens is decided by `keeper`;
//! here it is done: a heartbeat, a registration, a move to another server.

mod bucket;
mod draining;
mod ending;
mod outage;
mod own_entry;
mod reload;

use std::time::Duration;

use log::{debug, info, warn};
use serde_json::Value;
use time::OffsetDateTime;

use super::drain::DrainFile;
use super::keeper::{CLOCK_TRUST, Found, Keeper, News, SessionState, Step};
use super::status::{Labels, Standing};
use super::surroundings::Host;
use crate::cli::options::RunOptions;
use crate::error::Failure;
use crate::instance::entry::Entry;
use crate::instance::record::{self, Record, Status, instance_key};
use crate::jetstream::bucket::Bucket;
use crate::jetstream::fitness::{self, Defeat, Unfit};
use crate::nats::{ConnectError, RequestError, Session};
use crate::registry::Registry;
use crate::registry::Told;
use crate::registry::failure::RegistryError;
use crate::registry::outage::{Outage, Repeats};
use crate::system::ourselves::Helpers;
use crate::text::duration::{as_setting, signed_words};
use crate::text::printable::printable;

use own_entry::{Own, is_immortal};

pub(super) struct Agent {
    pub(super) options: RunOptions,
    pub(super) registry: Registry,
    pub(super) keeper: Keeper,
    key: String,
    /// What does not change from one heartbeat to the next.
    record: Record,
    /// The service's own health; `None` where nothing checks it.
    healthy: Option<bool>,
    drain_file: Option<DrainFile>,
    helpers: Helpers,
    /// Why it drains, while it does.
    draining: Option<String>,
    /// It cannot be told whether to drain, which was said.
    drain_unknown: bool,
    /// The last stamp that was sent, and where the boot clock stood.
    stamped: Option<(OffsetDateTime, Duration)>,
    outage: Option<Outage>,
    repeats: Repeats,
    /// What the bucket does to our TTL, as it was said.
    defeats: Vec<Defeat>,
    /// The bucket's configuration when it was seen last: one that was deleted
    /// is made again like that.
    seen: Option<Value>,
    /// Under our newest revision lies a value without a TTL, which somebody has
    /// stored meanwhile.
    immortal_below: bool,
    pub(super) standing: Standing,
    /// The boot clock at the start: time goes on while the host sleeps.
    started: Duration,
}

impl Agent {
    pub(super) fn new(
        options: RunOptions,
        registry: Registry,
        host: &str,
        servers: String,
        seed: u64,
        helpers: Helpers,
    ) -> Agent {
        let name = format!("{}/{}", options.service, options.instance);
        Agent {
            key: instance_key(&options.service, &options.instance),
            record: record(&options, host),
            standing: Standing::new(name, servers),
            keeper: Keeper::new(options.ttl, options.interval, seed),
            options,
            started: registry.boot_clock(),
            registry,
            healthy: None,
            draining: None,
            drain_unknown: false,
            repeats: Repeats::default(),
            drain_file: None,
            helpers,
            stamped: None,
            outage: None,
            defeats: Vec::new(),
            seen: None,
            immortal_below: false,
        }
    }

    /// Time since the start, the host's sleep included.
    pub(super) fn now(&self) -> Duration {
        self.registry.boot_clock().saturating_sub(self.started)
    }

    /// `orders-api/host-1`, as the log names it.
    fn name(&self) -> String {
        format!("{}/{}", self.options.service, self.options.instance)
    }

    /// The host slept: nobody knows what became of the session.
    pub(super) fn slept(&mut self, now: Duration) {
        self.registry.disconnect();
        self.keeper.slept(now);
    }

    /// One turn of the loop, as the host sees it.
    pub(super) fn turn(&mut self, host: &mut Host, now: Duration) {
        let labels = labels(&self.options, self.registry.bucket());
        let turned = host.turn(now, self.keeper.due(), &mut self.standing, &labels);
        self.set_status(host);
        // The service's health is to be published at once.
        if turned {
            self.keeper.hurry(now);
        }
        self.listen(now);
    }

    pub(super) fn set_status(&mut self, host: &Host) {
        self.healthy = host.is_healthy();
    }

    /// What the next heartbeat says of the instance.
    fn update_record(&mut self) {
        self.look_for_drain();
        self.record.status = match (&self.draining, self.healthy) {
            (Some(_), _) => Status::Standby,
            (None, Some(false)) => Status::Unhealthy,
            (None, _) => status(&self.options),
        };
        match (&self.draining, self.options.metadata.get(record::DRAIN)) {
            (Some(why), _) => {
                self.record.metadata.insert(record::DRAIN.into(), Value::from(why.as_str()));
            }
            (None, Some(own)) => {
                self.record.metadata.insert(record::DRAIN.into(), Value::from(own.as_str()));
            }
            (None, None) => drop(self.record.metadata.remove(record::DRAIN)),
        }
    }

    pub(super) fn stopped(&mut self, host: &mut Host, now: Duration) {
        let labels = labels(&self.options, self.registry.bucket());
        host.stopped(now, &mut self.standing, &labels);
    }

    /// What to do now.
    pub(super) fn step(&self, now: Duration) -> Step {
        let session = match self.registry.session() {
            None => SessionState::Gone,
            Some(session) if session.is_lame_duck() => SessionState::Leaving,
            Some(_) => SessionState::Serves,
        };
        self.keeper.step(now, session)
    }

    /// Waits for `time`, and attends to the session meanwhile. May end early.
    pub(super) fn idle(&mut self, time: Duration) {
        self.registry.idle_until(self.registry.now() + time);
    }

    /// One heartbeat over `revision`.
    pub(super) fn beat(&mut self, began: Duration, revision: u64) {
        let rollup = std::mem::take(&mut self.immortal_below) && self.may_roll_up();
        match self.write(Some(revision), rollup) {
            Ok(revision) => {
                debug!("heartbeat of {} acknowledged, revision {revision}", self.name());
                let news = self.keeper.beaten(began, self.now());
                self.say(news);
                if self.immortal_below {
                    self.keeper.hurry(self.now());
                }
            }
            // The stop ends everything in good order, on this session.
            Err(RegistryError::Connect(ConnectError::Stopped)) => {}
            Err(error) => {
                self.standing.failed();
                self.give_up(error);
            }
        }
    }

    /// Whether the bucket, when it was seen last, let a put remove the revisions
    /// under it.
    fn may_roll_up(&self) -> bool {
        let allows = |config: &Value| config["allow_rollup_hdrs"].as_bool() == Some(true);
        self.seen.as_ref().is_some_and(allows)
    }

    /// After a stop nothing more is begun: what was under way had its time, and
    /// the rest is for the end.
    pub(super) fn unless_stopped(&self) -> Result<(), RegistryError> {
        match self.registry.stop_requested() {
            true => Err(RegistryError::Connect(ConnectError::Stopped)),
            false => Ok(()),
        }
    }

    /// The session ended by itself, between two heartbeats: none of them failed.
    pub(super) fn say_lost(&mut self) {
        let error = self.registry.lost();
        self.give_up(RegistryError::Request("heartbeat", error));
    }

    fn give_up(&mut self, error: RegistryError) {
        self.registry.disconnect();
        self.keeper.session_lost(self.now());
        self.lost(error);
    }

    /// Moves to another server while this one, which is shutting down, still
    /// serves. Where there is no other, this one is used until it ends.
    pub(super) fn move_on(&mut self, began: Duration) {
        let limit = self.keeper.move_limit(began, self.registry.timeout());
        match self.registry.move_on(limit) {
            Ok(()) => {
                info!("{}: the server is shutting down (lame-duck mode): moved", self.name());
                self.keeper.moved();
                self.registration(began, Agent::register_here);
            }
            // A stop was asked for: the loop ends everything in good order.
            Err(RegistryError::Connect(ConnectError::Stopped)) => {}
            Err(error) => {
                let cause = Failure::from(error).chain();
                match self.keeper.cannot_move(self.now()) {
                    true => warn!(
                        "{}: the server is shutting down (lame-duck mode), and no other serves: {cause}",
                        self.name()
                    ),
                    false => debug!("{}: no other server yet: {cause}", self.name()),
                }
            }
        }
    }

    /// Registers on a fresh session.
    pub(super) fn register(&mut self, began: Duration) {
        self.registration(began, |agent| {
            let limit = agent.keeper.connect_limit(agent.now(), agent.registry.timeout());
            agent.registry.connect(limit)?;
            agent.register_here()
        });
    }

    fn registration(
        &mut self,
        began: Duration,
        register: fn(&mut Agent) -> Result<u64, RegistryError>,
    ) {
        let is_first = !self.keeper.was_registered();
        match register(self) {
            Ok(revision) => {
                self.keeper.registered(began, self.now());
                self.say_registered(revision, is_first);
            }
            Err(RegistryError::Connect(ConnectError::Stopped)) => {
                self.keeper.not_served(began, self.now());
            }
            Err(error) => {
                self.registry.disconnect();
                self.standing.failed();
                if is_silence(&error) {
                    self.keeper.was_silent();
                }
                self.keeper.not_served(began, self.now());
                self.lost(error);
            }
        }
    }

    /// Registers on the session that there is.
    fn register_here(&mut self) -> Result<u64, RegistryError> {
        self.keeper.registers(self.registry.choices(), self.registry.greeting());
        let limit = self.keeper.question_limit(self.now(), self.registry.timeout());
        let key = self.key.clone();
        let (info, entry) = self.registry.within(limit, |registry| registry.info_and_entry(&key));
        self.unless_stopped()?;
        let info = match info.and_then(|found| self.registry.fit(found)) {
            Ok(info) => Some(info),
            Err(RegistryError::Unfit(Unfit::NoBucket(_))) => Some(self.create_bucket()?),
            Err(error) if is_silence(&error) && self.keeper.may_put_unseen() => {
                let connected = self.registry.server().map_or("", |server| &server.version);
                fitness::judge_server(connected).map_err(RegistryError::Unfit)?;
                debug!("{}: {error}; the entry is written all the same", self.name());
                None
            }
            Err(error) => return Err(error),
        };
        if let Some(info) = &info {
            self.saw(info);
            self.keeper.answered(self.registry.answer_time());
        }
        let own = match entry {
            Err(error) if is_silence(&error) && info.is_none() => Own::Unknown,
            entry => self.own(entry)?,
        };
        let (expected, immortal_below) = match &own {
            Own::Seen(Some(entry)) => (entry.revision, is_immortal(entry)),
            Own::Seen(None) => (0, false),
            // A refusal will tell the revision; what lies there may have no TTL.
            Own::Unknown => (self.keeper.last().unwrap_or(0), true),
        };
        // With more than one revision a key, the one below comes back when the
        // newest expires.
        let rollup = info.is_some_and(|info| info.history() != 1 && info.flag("allow_rollup_hdrs"));
        let mut revision = self.write(Some(expected), rollup)?;
        if immortal_below && revision != 1 {
            // A crash of the server can bring back what was replaced last:
            // let that be a value that expires (nats-server #8505).
            revision = self.write(Some(revision), false)?;
        }
        Ok(revision)
    }

    /// What was told without being waited for.
    fn listen(&mut self, now: Duration) {
        for told in self.registry.take_told() {
            match told {
                Told::Time => self.compare_clocks(now),
                Told::Entry(entry) => {
                    // It is replaced by now, and may come back: with history when
                    // ours has expired, else by a crash (nats-server #8505). Another
                    // heartbeat at once puts an end to it.
                    if entry.as_ref().is_some_and(|entry| is_immortal(entry)) {
                        self.immortal_below = true;
                        self.keeper.hurry(now);
                    }
                    let whose = |entry: Box<Entry>| self.whose(&entry, Keeper::was_ours);
                    let found = entry.map_or(Found::Nothing, whose);
                    let news = self.keeper.stood(now, found);
                    self.say(news);
                }
                Told::EntryDenied => {
                    let news = self.keeper.stood(now, Found::Unknown);
                    self.say(news);
                }
                Told::Bucket(info) => {
                    if let Err(unfit) = self.registry.fit(Some(*info.clone())) {
                        self.give_up(unfit);
                        return;
                    }
                    self.saw(&info);
                }
            }
        }
    }

    /// Whether the last heartbeat carries a time by which readers hide it: one
    /// of the clocks was set.
    fn compare_clocks(&mut self, now: Duration) {
        let Some((stamp, at)) = self.stamped else { return };
        let carried = stamp + self.registry.boot_clock().saturating_sub(at);
        let Some(off) = self.registry.off_by(carried) else { return };
        if self.keeper.clock_told(now, off) {
            info!(
                "{}: the registry's clock was set: the last heartbeat was {} off it; \
                 another one at once",
                self.name(),
                signed_words(off)
            );
        }
    }

    fn say(&mut self, news: Option<News>) {
        let name = self.name();
        match news {
            None => {}
            Some(News::EntryGone) => {
                info!("{name}: the entry was gone (expired or removed): registering again");
            }
            Some(News::EntryDeleted) => {
                info!("{name}: the entry was deleted by somebody: registering again");
            }
            Some(News::BucketRestored) => warn!(
                "{name}: the bucket is older than the last heartbeat (restored from a backup, or \
                 made anew): registering again"
            ),
            Some(News::Duplicate(who)) => {
                warn!(
                    "{name}: {who} writes this entry too (a duplicate agent); both take turns. \
                     Give one of them another --instance"
                );
            }
            Some(News::DuplicateGone(who)) => info!("{name}: {who} no longer writes this entry"),
        }
        self.standing.set_duplicate(self.keeper.duplicate().map(str::to_owned));
    }

    fn say_registered(&mut self, revision: u64, is_first: bool) {
        let Some(session) = self.registry.session() else {
            return;
        };
        let at = session.place();
        match self.outage.take() {
            Some(outage) if !is_first => self.restored(&outage, &at, revision),
            None if !is_first => {
                info!("registered {} at {at}, revision {revision}", self.name());
            }
            _ => self.say_first(session, &at, revision),
        }
        if let Some(off) = self.registry.off_by(self.registry.wall_clock())
            && off.unsigned_abs() > CLOCK_TRUST
        {
            warn!(
                "this host's clock is {} off the registry's: heartbeats carry registry time",
                signed_words(off)
            );
        }
    }

    fn say_first(&self, session: &Session, at: &str, revision: u64) {
        let bucket = self.registry.bucket();
        info!(
            "registered {} in bucket {bucket} at {at}, revision {revision}: TTL {}, heartbeat every {}",
            self.name(),
            as_setting(self.options.ttl),
            as_setting(self.options.interval)
        );
        if let (Some(domain), None) = (&session.server.domain, bucket.domain()) {
            info!(
                "{}: the registry is the one in the JetStream domain {} of this server; \
                 --js-domain (AEGIS_JS_DOMAIN) names another",
                self.name(),
                printable(domain)
            );
        }
    }
}

/// Whether nobody has answered in time, on a session that stands.
fn is_silence(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Request(_, RequestError::TimedOut))
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
