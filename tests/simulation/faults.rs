//! What can go wrong, and how the world does it.

use serde_json::json;

use crate::judge::SETTLED;
use crate::model::session::Publish;
use crate::network::{Conn, Direction};
use crate::rng::Rng;
use crate::world::{Event, Micros, SECOND, World};

/// Something that goes wrong at a time, and for a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    pub at: Micros,
    pub lasts: Micros,
    pub kind: Kind,
}

/// How an operator takes an entry away.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Delete {
    Marker,
    PurgeMarker,
    Purge,
}

/// What an operator changes about a bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Edit {
    History,
    NoDirect,
    NoRollups,
    Markers,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// The process ends; its kernel lives.
    KillServer {
        server: usize,
    },
    /// The whole host is gone without a word.
    PowerCut {
        server: usize,
    },
    FreezeServer {
        server: usize,
    },
    /// Cut off from the other members, not from its clients.
    PartServer {
        server: usize,
    },
    CloseLink {
        host: usize,
        server: Option<usize>,
        up: bool,
        down: bool,
    },
    SlowLink {
        host: usize,
        server: Option<usize>,
        by: Micros,
    },
    LossyLink {
        host: usize,
        server: Option<usize>,
        one_in: u64,
    },
    ResetConnections {
        host: usize,
    },
    /// Something between forgets the connections: nothing passes any more.
    DropConnections {
        host: usize,
    },
    Sleep {
        host: usize,
    },
    StopProcess {
        host: usize,
    },
    HostClock {
        host: usize,
        by: i64,
    },
    ServerClock {
        by: i64,
    },
    Kill {
        host: usize,
    },
    Term {
        host: usize,
    },
    Reload {
        host: usize,
    },
    DeleteEntry {
        host: usize,
        how: Delete,
    },
    DeleteBucket,
    EditBucket {
        edit: Edit,
    },
    LoseStore {
        server: usize,
    },
    RollBack {
        server: usize,
        last: Micros,
    },
    RefuseLogins {
        server: usize,
    },
    LameDuck {
        server: usize,
    },
    SilentApi {
        server: usize,
    },
    LostAcks {
        server: usize,
    },
    StalledStorage {
        server: usize,
    },
    Downgrade {
        server: usize,
    },
    FullBucket,
    /// Somebody stores a value without a TTL under the agent's key.
    Legacy {
        host: usize,
    },
}

impl Kind {
    /// The word by which it is counted.
    pub fn name(&self) -> String {
        let words = format!("{self:?}");
        words.split([' ', '{']).next().unwrap_or_default().to_owned()
    }
}

const API: &str = "$JS.API";

impl World {
    pub fn begin(&mut self, fault: usize) {
        let Fault { lasts, kind, .. } = self.fault(fault).clone();
        self.say(|| format!("fault {fault} begins, for {} ms: {kind:?}", lasts / 1_000));
        let has_end = match kind {
            Kind::KillServer { server } => {
                self.stop_server(server, true);
                true
            }
            Kind::PowerCut { server } => {
                self.stop_server(server, false);
                true
            }
            Kind::LoseStore { server } => {
                self.stop_server(server, true);
                if self.cluster.servers.len() == 1 {
                    self.lose_store(None);
                }
                true
            }
            Kind::RollBack { server, last } => {
                self.stop_server(server, true);
                if self.cluster.servers.len() == 1 {
                    self.lose_store(Some(last));
                }
                true
            }
            Kind::Downgrade { server } => {
                self.stop_server(server, true);
                if self.cluster.servers.len() == 1 {
                    self.cluster.servers[server].version = "2.10.25".into();
                }
                self.start_server(server);
                true
            }
            Kind::FreezeServer { server } => {
                self.member_leaves(server);
                self.cluster.servers[server].frozen += 1;
                self.members_changed();
                true
            }
            Kind::PartServer { server } => {
                self.member_leaves(server);
                self.cluster.servers[server].parted += 1;
                self.members_changed();
                true
            }
            Kind::RefuseLogins { server } => {
                self.cluster.servers[server].refuses += 1;
                // Who is in is put out.
                for id in self.network.of_server(server) {
                    let words = b"-ERR 'Authentication Revoked'\r\n".to_vec();
                    self.send(id, Direction::Down, words);
                    self.server_closes(id);
                }
                true
            }
            Kind::LameDuck { server } => {
                self.cluster.servers[server].lame += 1;
                for id in self.network.of_server(server) {
                    let info = json!({ "server_id": "N", "version": "2.12.8", "ldm": true });
                    self.send(id, Direction::Down, format!("INFO {info} \r\n").into_bytes());
                }
                true
            }
            Kind::SilentApi { server } => {
                self.cluster.servers[server].api_silent += 1;
                true
            }
            Kind::LostAcks { server } => {
                self.cluster.servers[server].acks_lost += 1;
                true
            }
            Kind::StalledStorage { server } => {
                self.cluster.servers[server].stalled += 1;
                true
            }
            Kind::FullBucket => {
                self.set_full(true);
                true
            }
            Kind::CloseLink { .. } | Kind::SlowLink { .. } | Kind::LossyLink { .. } => {
                self.change_links(&kind, true);
                true
            }
            Kind::Sleep { host } => {
                let is_awake = self.hosts[host].asleep.is_none();
                if is_awake {
                    self.hosts[host].asleep = Some(self.now);
                }
                self.judge.disturbed(host);
                is_awake
            }
            Kind::StopProcess { host } => {
                let runs = self.processes[host].alive && !self.processes[host].frozen;
                self.processes[host].frozen |= runs;
                self.judge.disturbed(host);
                runs
            }
            Kind::ResetConnections { host } => {
                self.judge.interrupted(host, self.now);
                self.reset_connections(host);
                false
            }
            Kind::DropConnections { host } => {
                self.judge.dropped(host, self.now);
                for id in self.conns_of(host) {
                    self.drop_connection(id);
                }
                false
            }
            Kind::HostClock { host, by } => {
                self.hosts[host].wall_off += by;
                false
            }
            Kind::ServerClock { by } => {
                for server in &mut self.cluster.servers {
                    server.clock_off += by;
                }
                self.judge.clock_stepped(self.now);
                self.tools_see_step();
                self.cluster.forget_expiry();
                self.plan_expiry();
                false
            }
            Kind::Kill { host } => {
                self.kill(host);
                false
            }
            Kind::Term { host } => {
                self.terminate(host);
                false
            }
            Kind::Reload { host } => {
                self.processes[host].reload = true;
                self.wake(host);
                false
            }
            Kind::DeleteEntry { host, how } => {
                self.delete_entry(host, how);
                false
            }
            Kind::DeleteBucket => {
                self.judge.renumbered(self.network.next);
                let stream = self.plan.stream();
                self.operate_call(&format!("STREAM.DELETE.{stream}"), "");
                false
            }
            Kind::EditBucket { edit } => {
                self.edit_bucket(edit);
                false
            }
            Kind::Legacy { host } => {
                let subject = self.plan.subject(host);
                let payload = br#"{"serviceName":"orders-api","instanceId":"host-1","version":"1.0.0","lastHeartbeat":"2026-11-23T09:00:00Z"}"#.to_vec();
                self.operate(&Publish { subject, payload, ..Publish::default() });
                false
            }
        };
        self.judge.befell(&kind);
        if has_end {
            self.after(lasts, Event::End { fault });
        }
        self.reconsider();
    }

    pub fn end(&mut self, fault: usize) {
        let kind = self.fault(fault).kind.clone();
        self.say(|| format!("fault {fault} ends: {kind:?}"));
        match kind {
            Kind::KillServer { server }
            | Kind::PowerCut { server }
            | Kind::LoseStore { server }
            | Kind::RollBack { server, .. } => self.start_server(server),
            Kind::Downgrade { server } => {
                self.stop_server(server, true);
                self.cluster.servers[server].version = self.plan.servers[server].clone();
                self.start_server(server);
            }
            Kind::FreezeServer { server } => {
                self.cluster.servers[server].frozen -= 1;
                if self.cluster.servers[server].frozen == 0 {
                    self.thaw_server(server);
                }
            }
            Kind::PartServer { server } => {
                self.cluster.servers[server].parted -= 1;
                self.member_returns(server);
                self.members_changed();
            }
            Kind::RefuseLogins { server } => self.cluster.servers[server].refuses -= 1,
            Kind::LameDuck { server } => {
                // It goes, and another one comes.
                self.cluster.servers[server].lame -= 1;
                self.stop_server(server, true);
                self.start_server(server);
            }
            Kind::SilentApi { server } => self.cluster.servers[server].api_silent -= 1,
            Kind::LostAcks { server } => self.cluster.servers[server].acks_lost -= 1,
            Kind::StalledStorage { server } => {
                self.cluster.servers[server].stalled -= 1;
                if self.cluster.servers[server].stalled == 0 {
                    self.unstall(server);
                }
            }
            Kind::FullBucket => self.set_full(false),
            Kind::CloseLink { .. } | Kind::SlowLink { .. } | Kind::LossyLink { .. } => {
                self.change_links(&kind, false);
            }
            Kind::Sleep { host } => self.wake_host(host),
            Kind::StopProcess { host } => {
                self.processes[host].frozen = false;
                self.processes[host].resumed = true;
                self.goes_on(host);
                self.wake(host);
            }
            _ => {}
        }
        self.reconsider();
    }

    fn goes_on(&mut self, host: usize) {
        if !self.processes[host].frozen && self.hosts[host].asleep.is_none() {
            self.judge.goes_on(host, self.now);
        }
    }

    fn wake_host(&mut self, host: usize) {
        if let Some(since) = self.hosts[host].asleep.take() {
            self.hosts[host].slept += self.now - since;
            self.forget_sleeper(host, self.now - since);
            self.goes_on(host);
            let pause = if self.hosts[host].tells_wakeup { 0 } else { self.rng.below(SECOND) };
            if let Some(wait) = self.processes[host].waiting {
                // The timers of its kernel go on with what was left, but for one.
                self.after(pause, Event::Wake { slot: host, wait });
            } else if !self.processes[host].alive {
                self.after(pause, Event::Start { slot: host });
            }
        }
    }

    /// Something between has forgotten the connections of a host that slept for
    /// long: what the judge asks of its agent is the same.
    fn forget_sleeper(&mut self, host: usize, slept: Micros) {
        let mut rng = Rng::new(self.plan.seed, 30 + self.now);
        if self.plan.lags_and_forgets && slept > 5 * SECOND && rng.one_in(2) {
            for id in self.conns_of(host) {
                self.drop_connection(id);
            }
        }
    }

    /// SIGTERM.
    fn terminate(&mut self, host: usize) {
        if self.processes[host].alive && !self.processes[host].stop {
            self.processes[host].stop = true;
            self.judge.asked_to_stop(host, self.now);
            if self.processes[host].frozen || self.hosts[host].asleep.is_some() {
                self.judge.disturbed(host);
            }
            self.after(SECOND / 2, Event::Look);
            self.wake(host);
        }
    }

    fn change_links(&mut self, kind: &Kind, begins: bool) {
        let (host, of) = match kind {
            Kind::CloseLink { host, server, .. }
            | Kind::SlowLink { host, server, .. }
            | Kind::LossyLink { host, server, .. } => (*host, *server),
            _ => return,
        };
        for server in 0..self.cluster.servers.len() {
            if of.is_some_and(|of| of != server) {
                continue;
            }
            let link = &mut self.network.links[host][server];
            let count = |number: &mut u32, begins: bool| match begins {
                true => *number += 1,
                false => *number = number.saturating_sub(1),
            };
            match kind {
                Kind::CloseLink { up, down, .. } => {
                    if *up {
                        count(&mut link.up_closed, begins);
                    }
                    if *down {
                        count(&mut link.down_closed, begins);
                    }
                }
                Kind::SlowLink { by, .. } => link.slower = if begins { *by } else { 0 },
                Kind::LossyLink { one_in, .. } => link.loses = if begins { *one_in } else { 0 },
                _ => {}
            }
            if !begins {
                self.release(host, server);
            }
        }
    }

    pub fn reset_connections(&mut self, slot: usize) {
        for id in self.conns_of(slot) {
            self.server_closes(id);
            self.reset(id);
        }
    }

    fn conns_of(&self, host: usize) -> Vec<u64> {
        let conns = self.network.conns.iter();
        conns
            .filter(|(_, conn)| conn.slot == host && conn.session.is_some())
            .map(|(id, _)| *id)
            .collect()
    }

    fn set_full(&mut self, full: bool) {
        for bucket in self.cluster.jetstream.buckets.values_mut() {
            bucket.full = full;
        }
    }

    fn operate_call(&mut self, call: &str, body: &str) {
        let subject = format!("{API}.{call}");
        self.operate(&Publish { subject, payload: body.as_bytes().to_vec(), ..Publish::default() });
    }

    fn delete_entry(&mut self, host: usize, how: Delete) {
        let subject = self.plan.subject(host);
        let headers = match how {
            Delete::Purge => {
                let body = json!({ "filter": subject }).to_string();
                let stream = self.plan.stream();
                return self.operate_call(&format!("STREAM.PURGE.{stream}"), &body);
            }
            Delete::Marker => "NATS/1.0\r\nKV-Operation: DEL\r\n\r\n",
            Delete::PurgeMarker => "NATS/1.0\r\nKV-Operation: PURGE\r\nNats-Rollup: sub\r\n\r\n",
        };
        self.operate(&Publish {
            subject,
            headers: headers.as_bytes().to_vec(),
            ..Publish::default()
        });
    }

    fn edit_bucket(&mut self, edit: Edit) {
        let stream = self.plan.stream();
        let Some(bucket) = self.cluster.jetstream.buckets.get(stream) else { return };
        let mut config = bucket.config.clone();
        match edit {
            Edit::History => {
                let history = *self.rng.pick(&[1, 5, 64]);
                config["max_msgs_per_subject"] = json!(history);
            }
            Edit::NoDirect => config["allow_direct"] = json!(!bucket.allows_direct()),
            Edit::NoRollups => {
                let allows = config["allow_rollup_hdrs"].as_bool() == Some(true);
                config["allow_rollup_hdrs"] = json!(!allows);
            }
            Edit::Markers => {
                let has = bucket.number("subject_delete_marker_ttl") > 0;
                let nanos = if has { 0 } else { 60_000_000_000_u64 };
                config["subject_delete_marker_ttl"] = json!(nanos);
            }
        }
        self.operate_call(&format!("STREAM.UPDATE.{stream}"), &config.to_string());
    }

    /// What every agent can count on now: the judge hears of it.
    pub fn reconsider(&mut self) {
        let stream = self.plan.stream();
        let clock = self.cluster.registry_clock(self.now);
        self.judge.clock_is(self.now, clock);
        self.judge.store_lets_go(self.now, self.cluster.lets_go());
        self.reconsider_tools();
        let mut changed = false;
        for slot in 0..self.plan.hosts.len() {
            let process = &self.processes[slot];
            let goes_on = process.alive
                && !process.killed
                && !process.stop
                && !process.frozen
                && self.hosts[slot].asleep.is_none();
            let traps = (0..self.cluster.servers.len())
                .filter(|server| self.cluster.is_trap(*server, stream))
                .count();
            let mut good: Vec<bool> = (0..self.cluster.servers.len())
                .map(|server| {
                    self.network.links[slot][server].is_good()
                        && self.cluster.serves(server, stream)
                })
                .collect();
            if process.stop && good.contains(&false) {
                self.judge.troubled(slot);
            }
            let halves = (0..good.len()).filter(|server| self.is_half_there(slot, *server)).count();
            good.iter_mut().for_each(|good| *good &= goes_on);
            changed |= self.judge.conditions(slot, self.now, &good, traps as u64, halves as u64);
        }
        if changed {
            for grace in self.judge.graces() {
                self.after(grace + 1_000, Event::Look);
                self.after(self.plan.interval * SECOND + grace + 1_000, Event::Look);
            }
        }
    }

    /// Whether an agent has a session over a way that is cut, where there are other
    /// servers: it waits there for an acknowledgement before it asks another one.
    fn is_half_there(&self, slot: usize, server: usize) -> bool {
        let of = |conn: &&Conn| conn.slot == slot && conn.server == server && !conn.closed;
        let is_session =
            |conn: &Conn| conn.session.as_ref().is_some_and(|session| session.connected);
        let link = &self.network.links[slot][server];
        let is_cut = !link.is_open(Direction::Up) || !link.is_open(Direction::Down);
        is_cut
            && self.cluster.servers.len() > 1
            && self.network.conns.values().filter(of).any(is_session)
    }

    /// The judge looks at what there is.
    pub fn look(&mut self) {
        let open: Vec<usize> = (0..self.plan.hosts.len())
            .map(|slot| {
                let conns = self.network.conns.values();
                let is_old = |conn: &Conn| conn.began + SETTLED < self.now;
                conns.filter(|conn| conn.slot == slot && !conn.closed && is_old(conn)).count()
            })
            .collect();
        if let Some(again) = self.judge.look(self.now, &open) {
            self.at(again, Event::Look);
        }
    }
}

impl Fault {
    /// Whether there are the hosts and servers that it is about.
    pub fn fits(&self, hosts: usize, servers: usize) -> bool {
        let (host, server) = match self.kind {
            Kind::KillServer { server }
            | Kind::PowerCut { server }
            | Kind::FreezeServer { server }
            | Kind::PartServer { server }
            | Kind::LoseStore { server }
            | Kind::RollBack { server, .. }
            | Kind::RefuseLogins { server }
            | Kind::LameDuck { server }
            | Kind::SilentApi { server }
            | Kind::LostAcks { server }
            | Kind::StalledStorage { server }
            | Kind::Downgrade { server } => (0, server),
            Kind::CloseLink { host, server, .. }
            | Kind::SlowLink { host, server, .. }
            | Kind::LossyLink { host, server, .. } => (host, server.unwrap_or(0)),
            Kind::ResetConnections { host }
            | Kind::DropConnections { host }
            | Kind::Sleep { host }
            | Kind::StopProcess { host }
            | Kind::HostClock { host, .. }
            | Kind::Kill { host }
            | Kind::Term { host }
            | Kind::Reload { host }
            | Kind::DeleteEntry { host, .. }
            | Kind::Legacy { host } => (host, 0),
            Kind::ServerClock { .. }
            | Kind::DeleteBucket
            | Kind::EditBucket { .. }
            | Kind::FullBucket => (0, 0),
        };
        host < hosts && server < servers
    }
}
