//! The servers: one alone, or a cluster of three with one JetStream.
//!
//! What a server answers is in `model`; here is who answers, when, and who does
//! not: a leader that is dead, frozen or cut off, members without a quorum, a
//! server that was restarted as another version.

use std::collections::BTreeMap;
use std::mem;

use crate::consumers;
use crate::judge::Writer;
use crate::model::bucket::{Bucket, Change, Wall};
use crate::model::session::Publish;
use crate::model::{Answer, Jetstream, Session, api};
use crate::network::ConnId;
use crate::plan::Plan;
use crate::rng::Rng;
use crate::world::{Event, MILLI, Micros, SECOND, World};

/// The world's wall clock when it begins, in nanoseconds.
pub const EPOCH: Wall = 1_795_424_400_000_000_000;
/// A server asks its clients so often whether they are there.
const PING_INTERVAL: Micros = 120 * SECOND;
/// Questions that are not answered before it ends the connection.
const PINGS_OUT: u32 = 2;

/// Something that a server has begun.
#[derive(Debug)]
pub enum Errand {
    Greet { conn: ConnId },
    Take { conn: ConnId, slot: usize, publish: Publish },
    Answer { conn: ConnId, to: String, answer: Answer },
}

/// One server.
pub struct Server {
    pub name: String,
    pub version: String,
    /// How many faults keep it down, and how many without power.
    pub down: u32,
    pub powered: bool,
    pub frozen: u32,
    /// It is about to go, and takes nobody any more.
    pub lame: u32,
    pub refuses: u32,
    /// It is cut off from the other members.
    pub parted: u32,
    /// Its API answers nothing.
    pub api_silent: u32,
    /// It stores, and its answers are lost.
    pub acks_lost: u32,
    /// What it stores waits.
    pub stalled: u32,
    /// Its clock is so far off, in microseconds.
    pub clock_off: i64,
    /// What it knew when it left the others, and until when it knows no more.
    view: Option<(BTreeMap<String, Bucket>, Option<Micros>)>,
    /// Counts its starts.
    pub boot: u64,
    /// What it does once it goes on.
    backlog: Vec<Errand>,
    /// What it stores once its storage goes on.
    stalled_errands: Vec<Errand>,
}

impl Server {
    /// Whether its kernel takes connections for it.
    pub fn listens(&self) -> bool {
        self.down == 0 && self.lame == 0
    }

    pub fn runs(&self) -> bool {
        self.down == 0 && self.frozen == 0
    }

    /// Whether it does all that is asked of it.
    fn serves(&self) -> bool {
        self.runs()
            && self.lame == 0
            && self.refuses == 0
            && self.parted == 0
            && self.api_silent == 0
            && self.acks_lost == 0
            && self.stalled == 0
            && !self.version.starts_with("2.10.")
    }
}

/// Who has changed what is stored.
#[derive(Clone, Copy)]
enum By {
    Agent(Writer),
    Tool,
    Anybody,
}

/// Who leads, as one member sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leader {
    Is(usize),
    Nobody,
    /// It does not answer, and nobody has noticed.
    Silent,
}

pub struct Cluster {
    pub servers: Vec<Server>,
    pub jetstream: Jetstream,
    leader: Option<usize>,
    /// Writes that wait for a quorum.
    pending: Vec<(ConnId, usize, Publish)>,
    elections: u64,
    /// On which member each consumer is.
    pub homes: BTreeMap<String, usize>,
    expiries: u64,
    expiry_at: Option<Micros>,
    /// What is stored is gone when the server ends.
    pub in_memory: bool,
    pub rng: Rng,
}

impl Cluster {
    pub fn new(plan: &Plan, rng: &mut Rng) -> Cluster {
        let server = |(number, version): (usize, &String)| Server {
            name: format!("n{}", number + 1),
            version: version.clone(),
            down: 0,
            powered: true,
            frozen: 0,
            lame: 0,
            refuses: 0,
            parted: 0,
            api_silent: 0,
            acks_lost: 0,
            stalled: 0,
            clock_off: 0,
            view: None,
            boot: 0,
            backlog: Vec::new(),
            stalled_errands: Vec::new(),
        };
        let mut cluster = Cluster {
            servers: plan.servers.iter().enumerate().map(server).collect(),
            jetstream: Jetstream::default(),
            leader: Some(rng.below(plan.servers.len() as u64) as usize),
            pending: Vec::new(),
            elections: 0,
            homes: BTreeMap::new(),
            expiries: 0,
            expiry_at: None,
            in_memory: plan.in_memory,
            rng: Rng::new(plan.seed, 2),
        };
        if let Some(config) = &plan.bucket {
            let publish = Publish {
                subject: format!("$JS.API.STREAM.CREATE.{}", plan.stream()),
                payload: config.to_string().into_bytes(),
                ..Publish::default()
            };
            let leader = cluster.leader.unwrap_or(0);
            let now = cluster.wall(leader, 0);
            cluster.take(leader, &publish, now);
        }
        cluster
    }

    /// The next expiry is to be found anew.
    pub fn forget_expiry(&mut self) {
        self.expiry_at = None;
    }

    /// Whether the store lets go what is over.
    pub fn lets_go(&self) -> bool {
        self.leader.is_some_and(|leader| {
            let server = &self.servers[leader];
            server.runs() && !server.version.starts_with("2.10.") && self.has_quorum(leader)
        })
    }

    fn is_clustered(&self) -> bool {
        self.servers.len() > 1
    }

    /// A server's wall clock.
    pub fn wall(&self, server: usize, now: Micros) -> Wall {
        EPOCH + (now as i64 + self.servers[server].clock_off) * 1_000
    }

    /// The clock by which the registry goes now.
    pub fn registry_clock(&self, now: Micros) -> Wall {
        self.wall(self.leader.unwrap_or(0), now)
    }

    pub fn reaches(&self, one: usize, other: usize) -> bool {
        let (a, b) = (&self.servers[one], &self.servers[other]);
        one == other || (a.runs() && b.runs() && a.parted == 0 && b.parted == 0)
    }

    fn has_quorum(&self, leader: usize) -> bool {
        let reached = (0..self.servers.len()).filter(|one| self.reaches(leader, *one));
        reached.count() > self.servers.len() / 2
    }

    fn leader_of(&self, server: usize) -> Leader {
        match self.leader {
            None => Leader::Nobody,
            Some(leader) if self.servers[leader].runs() && self.reaches(server, leader) => {
                Leader::Is(leader)
            }
            // Its end was noticed by all: its routes are closed.
            Some(leader) if self.servers[leader].down > 0 && self.servers[leader].powered => {
                Leader::Nobody
            }
            Some(_) => Leader::Silent,
        }
    }

    /// Whether a server lets clients in, and does not do what they need: who
    /// meets it finds that out by waiting.
    pub fn is_trap(&self, server: usize, stream: &str) -> bool {
        let it = &self.servers[server];
        it.runs() && it.lame == 0 && it.refuses == 0 && !self.serves(server, stream)
    }

    /// Whether a server does, now, all that an agent needs.
    pub fn serves(&self, server: usize, stream: &str) -> bool {
        let Leader::Is(leader) = self.leader_of(server) else { return false };
        // An election that is due, or a member that has just come back.
        let is_fit = self.jetstream.buckets.get(stream).is_none_or(|bucket| {
            bucket.allows_ttl()
                && bucket.obeys_ttl
                && !bucket.full
                && (bucket.number("num_replicas") as usize) <= self.servers.len()
        });
        self.servers[server].serves()
            && self.servers[leader].serves()
            && self.has_quorum(leader)
            && is_fit
    }

    /// Who leads and can do something, and its clock.
    pub fn led(&self, now: Micros) -> Option<(usize, Wall)> {
        let leader = self.leader?;
        let leads = self.servers[leader].runs() && self.has_quorum(leader);
        leads.then(|| (leader, self.wall(leader, now)))
    }

    pub fn take(
        &mut self,
        leader: usize,
        publish: &Publish,
        now: Wall,
    ) -> (Option<Answer>, Vec<Change>) {
        let late = self.rng.between(4_000_000, 250_000_000) as Wall;
        let is_clustered = self.is_clustered();
        let server = &self.servers[leader];
        let at = api::Circumstances {
            now,
            late,
            version: &server.version,
            leader: is_clustered.then_some(server.name.as_str()),
            members: self.servers.len(),
        };
        self.jetstream.take(publish, at)
    }
}

impl World {
    /// A server's kernel has taken a connection.
    pub fn accepted(&mut self, id: ConnId, server: usize) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        conn.session = Some(Session::default());
        let delay = 100 + self.rng.below(400);
        let boot = self.cluster.servers[server].boot;
        self.after(delay, Event::Done { server, boot, errand: Errand::Greet { conn: id } });
    }

    fn greet(&mut self, id: ConnId, server: usize) {
        let Some(conn) = self.network.conns.get_mut(&id).filter(|conn| !conn.greeted) else {
            return;
        };
        conn.greeted = true;
        let it = &self.cluster.servers[server];
        let mut info = serde_json::json!({
            "server_id": format!("N{server}{}", it.boot),
            "server_name": it.name,
            "version": it.version,
            "proto": 1,
            "host": "127.0.0.1",
            "port": 4222,
            "headers": true,
            "max_payload": 1_048_576,
            "jetstream": true,
            "client_id": id,
        });
        if self.cluster.is_clustered() {
            let members =
                (0..self.cluster.servers.len()).filter(|one| self.cluster.reaches(server, *one));
            let urls: Vec<String> = members.map(|one| format!("10.0.0.{}:4222", one + 1)).collect();
            info["cluster"] = "simulated".into();
            info["connect_urls"] = urls.into();
        }
        self.send(id, crate::network::Direction::Down, format!("INFO {info} \r\n").into_bytes());
    }

    /// Bytes of a client have come.
    pub fn arrived(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let server = conn.server;
        if self.cluster.servers[server].frozen > 0 {
            conn.unread.extend_from_slice(bytes);
            return;
        }
        self.hear(id, bytes);
    }

    fn hear(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let (server, slot) = (conn.server, conn.slot);
        let Some(session) = conn.session.as_mut() else { return };
        let was_connected = session.connected;
        let mut out = Vec::new();
        let published = session.hear(bytes, &mut out);
        let (connected, broken, is_tls) = (session.connected, session.broken, session.is_tls);
        if connected && !was_connected && self.cluster.servers[server].refuses > 0 {
            let words = b"-ERR 'Authorization Violation'\r\n".to_vec();
            self.send(id, crate::network::Direction::Down, words);
            self.server_closes(id);
            return;
        }
        if !out.is_empty() {
            self.send(id, crate::network::Direction::Down, out);
        }
        if broken {
            if !is_tls {
                self.judge.violated(self.now, "an agent broke the protocol".into());
            }
            self.server_closes(id);
            return;
        }
        let boot = self.cluster.servers[server].boot;
        let mut delay = 30;
        for publish in published {
            delay += 10 + self.rng.below(100);
            let errand = Errand::Take { conn: id, slot, publish };
            self.after(delay, Event::Done { server, boot, errand });
        }
    }

    /// A client has closed its connection.
    pub fn client_left(&mut self, id: ConnId) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        if self.cluster.servers[conn.server].frozen > 0 {
            // What has come and was not read may be read all the same.
            if self.rng.one_in(2) {
                conn.unread.clear();
            }
            return;
        }
        self.network.conns.remove(&id);
    }

    pub fn done(&mut self, server: usize, boot: u64, errand: Errand) {
        let it = &mut self.cluster.servers[server];
        if it.boot != boot || it.down > 0 {
            return;
        }
        if it.frozen > 0 {
            it.backlog.push(errand);
            return;
        }
        match errand {
            Errand::Greet { conn } => self.greet(conn, server),
            Errand::Take { conn, slot, publish } => self.take(server, conn, slot, publish),
            Errand::Answer { conn, to, answer } => self.answer(conn, &to, &answer),
        }
    }

    fn take(&mut self, server: usize, conn: ConnId, slot: usize, publish: Publish) {
        let is_tool = self.tools.is(slot);
        if is_tool {
            self.tool_asks();
        }
        if let Some(name) = consumers::pulled(&publish) {
            return self.pull(server, conn, &publish, name);
        }
        let is_call = publish.subject.starts_with("$JS.API.");
        let is_direct = publish.subject.starts_with("$JS.API.DIRECT.GET.");
        let leader = match self.cluster.leader_of(server) {
            Leader::Is(leader) => leader,
            // Any member has a copy to read from.
            _ if is_direct => server,
            Leader::Nobody if is_call => {
                // Without a leader the API refuses, or says nothing.
                if self.rng.one_in(2) {
                    let words = "JetStream system temporarily unavailable".to_owned();
                    let refusal = crate::model::bucket::Refusal(503, 10_008, words);
                    self.reply(server, conn, &publish, Answer::refused("error", &refusal), 0);
                }
                return;
            }
            Leader::Nobody => {
                let version = &self.cluster.servers[server].version;
                let answer = Answer::no_responders(&publish.subject, version);
                return self.reply(server, conn, &publish, answer, 0);
            }
            Leader::Silent => return,
        };
        let (this, that) = (&self.cluster.servers[server], &self.cluster.servers[leader]);
        if is_call && (this.api_silent > 0 || that.api_silent > 0) {
            return;
        }
        if that.stalled > 0 && !is_direct {
            let errand = Errand::Take { conn, slot, publish };
            self.cluster.servers[leader].stalled_errands.push(errand);
            return;
        }
        if !is_direct && !self.cluster.has_quorum(leader) {
            self.cluster.pending.push((conn, slot, publish));
            return;
        }
        let now = self.cluster.wall(leader, self.now);
        if let Some(answer) = self.lagging(server, leader, is_direct, &publish, now) {
            return self.reply(server, conn, &publish, answer, 50);
        }
        let (answer, changes) = self.cluster.take(leader, &publish, now);
        let given_up = self.network.conns.get(&conn).is_none_or(|conn| conn.closed);
        if let Some(name) = consumers::created(&publish) {
            self.place_consumer(name, leader);
        }
        let by = if is_tool { By::Tool } else { By::Agent(Writer { slot, conn, given_up }) };
        self.has_changed(&changes, by);
        if let Some(answer) = answer
            && that_answers(&self.cluster.servers[leader], &changes)
        {
            let commit =
                if self.cluster.is_clustered() { 300 + self.rng.below(3 * MILLI) } else { 50 };
            self.reply(server, conn, &publish, answer, commit);
        }
    }

    /// A member leaves the others: it knows what it knows.
    pub fn member_leaves(&mut self, server: usize) {
        if self.plan.lags_and_forgets && self.cluster.is_clustered() {
            let view = self.cluster.jetstream.buckets.clone();
            self.cluster.servers[server].view.get_or_insert((view, None)).1 = None;
        }
    }

    /// It is back, and lags for a while.
    pub fn member_returns(&mut self, server: usize) {
        let it = &mut self.cluster.servers[server];
        let is_back = it.runs() && it.parted == 0;
        if let Some((_, until)) = it.view.as_mut().filter(|_| is_back) {
            let lag = Rng::new(self.plan.seed, 40 + self.now).between(100, 2_000) * MILLI;
            *until = Some(self.now + lag);
        }
    }

    /// What a member that lags answers to a direct get.
    fn lagging(
        &mut self,
        server: usize,
        leader: usize,
        is_direct: bool,
        publish: &Publish,
        now: Wall,
    ) -> Option<Answer> {
        let it = &mut self.cluster.servers[server];
        if it.view.as_ref()?.1.is_some_and(|until| until < self.now) {
            it.view = None;
        }
        let (buckets, _) = it.view.as_mut().filter(|_| is_direct)?;
        if server == leader && it.parted == 0 {
            return None;
        }
        for bucket in buckets.values_mut() {
            if bucket.number("subject_delete_marker_ttl") == 0 {
                bucket.expire(now, 0);
            }
        }
        // The leader knows all; this one what it knew.
        let known = mem::replace(&mut self.cluster.jetstream.buckets, mem::take(buckets));
        let answer = self.cluster.take(server, publish, now).0;
        let view = mem::replace(&mut self.cluster.jetstream.buckets, known);
        if let Some((buckets, _)) = &mut self.cluster.servers[server].view {
            *buckets = view;
        }
        answer
    }

    pub fn reply(
        &mut self,
        server: usize,
        conn: ConnId,
        publish: &Publish,
        answer: Answer,
        delay: Micros,
    ) {
        let Some(to) = publish.reply.clone() else { return };
        let boot = self.cluster.servers[server].boot;
        let errand = Errand::Answer { conn, to, answer };
        self.after(delay, Event::Done { server, boot, errand });
    }

    fn answer(&mut self, id: ConnId, to: &str, answer: &Answer) {
        let Some(session) = self.network.conns.get(&id).and_then(|conn| conn.session.as_ref())
        else {
            return;
        };
        let mut out = Vec::new();
        for (stored, reply) in &answer.delivered {
            let (headers, payload) = (&stored.headers, &stored.payload);
            session.deliver_as(&stored.subject, to, Some(reply), headers, payload, &mut out);
        }
        if answer.delivered.is_empty() || !answer.headers.is_empty() {
            session.deliver(to, None, &answer.headers, &answer.payload, &mut out);
        }
        self.send(id, crate::network::Direction::Down, out);
    }

    /// What an operator asks of JetStream, past the network.
    pub fn operate(&mut self, publish: &Publish) {
        let Some(leader) = self.cluster.leader.filter(|leader| {
            self.cluster.servers[*leader].runs() && self.cluster.has_quorum(*leader)
        }) else {
            return;
        };
        let now = self.cluster.wall(leader, self.now);
        let (_, changes) = self.cluster.take(leader, publish, now);
        self.changed(&changes, None);
        self.reconsider();
    }

    /// The store has changed: the judge hears of it.
    pub fn changed(&mut self, changes: &[Change], by: Option<Writer>) {
        self.has_changed(changes, by.map_or(By::Anybody, By::Agent));
    }

    fn has_changed(&mut self, changes: &[Change], who: By) {
        let by = if let By::Agent(writer) = who { Some(writer) } else { None };
        let clock = self.cluster.registry_clock(self.now);
        let bucket = self.cluster.jetstream.buckets.get(self.plan.stream());
        let lies = |subject: &str| bucket.is_some_and(|bucket| bucket.has_endless(subject));
        self.judge.lies_below(lies, bucket.is_none_or(Bucket::buries));
        for change in changes {
            let buckets = &self.cluster.jetstream.buckets;
            let stands = |subject: &str| {
                let last = buckets.values().find_map(|bucket| bucket.last(subject));
                last.is_some_and(|last| !last.is_marker())
            };
            match change {
                Change::Stored(seq) => {
                    if let Some(stored) = buckets.values().find_map(|bucket| bucket.get(*seq)) {
                        self.judge.stored(self.now, clock, stored, by);
                    }
                }
                Change::Expired(stored) | Change::Purged(stored) => {
                    let expired = matches!(change, Change::Expired(_));
                    self.judge.removed(self.now, stored, expired, stands(&stored.subject));
                }
            }
        }
        let is_tool = matches!(who, By::Tool);
        if is_tool {
            self.judge.tally.cleaned += changes.len() as u64;
        }
        for (at, change) in changes.iter().enumerate() {
            // What lay under another revision stood for nothing.
            let is_over = |later: &Change| match (change, later) {
                (Change::Purged(one), Change::Purged(later)) => one.subject == later.subject,
                _ => false,
            };
            let stood = !changes[at + 1..].iter().any(is_over);
            self.tools_see(change, is_tool && stood);
        }
        if self.trace && !changes.is_empty() {
            let words: Vec<String> = changes.iter().map(described).collect();
            self.say(|| format!("the store: {}", words.join(", ")));
        }
        self.plan_expiry();
        if !changes.is_empty() {
            self.look();
        }
    }

    /// The next time at which something is over.
    pub fn plan_expiry(&mut self) {
        let ends = self.cluster.jetstream.buckets.values().filter_map(|bucket| bucket.next_end());
        let Some(end) = ends.min() else { return };
        let off = self.cluster.servers[self.cluster.leader.unwrap_or(0)].clock_off;
        let at = ((end - EPOCH) / 1_000 - off + 1).max(0) as Micros;
        if self.cluster.expiry_at.is_none_or(|planned| at < planned) {
            self.cluster.expiries += 1;
            self.cluster.expiry_at = Some(at);
            let turn = self.cluster.expiries;
            self.at(at, Event::Expiry { turn });
        }
    }

    pub fn expiry(&mut self, turn: u64) {
        if turn != self.cluster.expiries {
            return;
        }
        self.cluster.expiry_at = None;
        // Nobody is there to let anything go, or nobody who knows how to.
        let leader = self.cluster.leader.filter(|leader| {
            let server = &self.cluster.servers[*leader];
            server.runs() && !server.version.starts_with("2.10.")
        });
        let Some(leader) = leader else { return };
        let now = self.cluster.wall(leader, self.now);
        let has_quorum = self.cluster.has_quorum(leader);
        let late = self.cluster.rng.between(4_000_000, 250_000_000) as Wall;
        let mut changes = Vec::new();
        for bucket in self.cluster.jetstream.buckets.values_mut() {
            // With markers a cluster lets nothing go without a quorum.
            if has_quorum || bucket.number("subject_delete_marker_ttl") == 0 {
                changes.extend(bucket.expire(now, late));
            }
        }
        if !has_quorum && changes.is_empty() {
            return self.after(SECOND, Event::Expiry { turn });
        }
        self.changed(&changes, None);
    }

    /// Something has changed among the members: whether a leader is missed, and
    /// what goes on.
    pub fn members_changed(&mut self) {
        let fine = self.cluster.leader.is_some_and(|leader| {
            self.cluster.servers[leader].runs() && self.cluster.has_quorum(leader)
        });
        self.cluster.elections += 1;
        if fine || !self.cluster.is_clustered() {
            for (conn, slot, publish) in mem::take(&mut self.cluster.pending) {
                if let Some(leader) = self.cluster.leader {
                    let boot = self.cluster.servers[leader].boot;
                    let errand = Errand::Take { conn, slot, publish };
                    self.after(MILLI, Event::Done { server: leader, boot, errand });
                }
            }
            self.cluster.expiry_at = None;
            self.plan_expiry();
        } else {
            let turn = self.cluster.elections;
            let pause = self.rng.between(4 * SECOND, 9 * SECOND);
            self.after(pause, Event::Election { turn });
        }
        self.reconsider();
    }

    pub fn election(&mut self, turn: u64) {
        if turn != self.cluster.elections {
            return;
        }
        let able: Vec<usize> = (0..self.cluster.servers.len())
            .filter(|one| self.cluster.servers[*one].runs() && self.cluster.has_quorum(*one))
            .collect();
        if able.is_empty() {
            return self.after(SECOND, Event::Election { turn });
        }
        let leader = *self.rng.pick(&able);
        self.say(|| format!("server {leader} leads"));
        self.cluster.leader = Some(leader);
        // What the old leader had not committed is lost.
        self.cluster.pending.clear();
        self.cluster.expiry_at = None;
        self.plan_expiry();
        self.reconsider();
    }

    /// A server asks its clients whether they are there.
    pub fn pings(&mut self, server: usize, boot: u64) {
        if self.cluster.servers[server].boot != boot {
            return;
        }
        self.after(PING_INTERVAL, Event::Pings { server, boot });
        if !self.cluster.servers[server].runs() {
            return;
        }
        for id in self.network.of_server(server) {
            let Some(conn) = self.network.conns.get_mut(&id) else { continue };
            let Some(session) = conn.session.as_mut() else { continue };
            session.pings += 1;
            if session.pings > PINGS_OUT {
                let words = b"-ERR 'Stale Connection'\r\n".to_vec();
                self.send(id, crate::network::Direction::Down, words);
                self.server_closes(id);
            } else {
                self.send(id, crate::network::Direction::Down, b"PING\r\n".to_vec());
            }
        }
    }

    /// A server ends; `powered`: its kernel is there to close its connections.
    pub fn stop_server(&mut self, server: usize, powered: bool) {
        self.cluster.homes.retain(|_, home| *home != server || !powered);
        self.member_leaves(server);
        let it = &mut self.cluster.servers[server];
        it.down += 1;
        it.powered &= powered;
        it.boot += 1;
        it.backlog.clear();
        it.stalled_errands.clear();
        for id in self.network.of_server(server) {
            if powered {
                self.server_closes(id);
            } else {
                self.server_vanishes(id);
            }
        }
        if self.cluster.in_memory && !self.cluster.is_clustered() {
            self.lose_store(None);
        }
        self.members_changed();
    }

    pub fn start_server(&mut self, server: usize) {
        let it = &mut self.cluster.servers[server];
        it.down -= 1;
        if it.down > 0 {
            return;
        }
        it.powered = true;
        self.cluster.homes.retain(|_, home| *home != server);
        self.member_returns(server);
        let it = &self.cluster.servers[server];
        let boot = it.boot;
        let obeys = !it.version.starts_with("2.10.");
        self.after(2 * SECOND, Event::Pings { server, boot });
        if !self.cluster.is_clustered() {
            for bucket in self.cluster.jetstream.buckets.values_mut() {
                bucket.obeys_ttl = obeys;
            }
        }
        for slot in 0..self.hosts.len() {
            self.release(slot, server);
        }
        self.members_changed();
    }

    /// All that was stored in the last while is gone, or everything.
    pub fn lose_store(&mut self, last: Option<Micros>) {
        let clock = self.cluster.registry_clock(self.now);
        let mut changes = Vec::new();
        self.judge.renumbered(self.network.next);
        match last {
            None => {
                for (_, mut bucket) in mem::take(&mut self.cluster.jetstream.buckets) {
                    changes.extend(bucket.purge(None, None).into_iter().map(Change::Purged));
                }
            }
            Some(last) => {
                self.judge.rolled_back(self.now);
                let since = clock - last as Wall * 1_000;
                for bucket in self.cluster.jetstream.buckets.values_mut() {
                    changes.extend(bucket.roll_back(since).into_iter().map(Change::Purged));
                }
            }
        }
        self.changed(&changes, None);
    }

    /// A server that was frozen goes on with what has come meanwhile.
    pub fn thaw_server(&mut self, server: usize) {
        self.member_returns(server);
        let backlog = mem::take(&mut self.cluster.servers[server].backlog);
        let boot = self.cluster.servers[server].boot;
        for errand in backlog {
            self.done(server, boot, errand);
        }
        for id in self.network.of_server(server) {
            let Some(conn) = self.network.conns.get_mut(&id) else { continue };
            let unread = mem::take(&mut conn.unread);
            let left = conn.closed;
            if !unread.is_empty() {
                self.hear(id, &unread);
            }
            if left {
                self.network.conns.remove(&id);
            }
        }
        self.members_changed();
    }

    /// The storage of a server goes on with what has come meanwhile.
    pub fn unstall(&mut self, server: usize) {
        let boot = self.cluster.servers[server].boot;
        for errand in mem::take(&mut self.cluster.servers[server].stalled_errands) {
            self.after(MILLI, Event::Done { server, boot, errand });
        }
    }
}

fn that_answers(leader: &Server, changes: &[Change]) -> bool {
    leader.acks_lost == 0 || changes.is_empty()
}

fn described(change: &Change) -> String {
    match change {
        Change::Stored(seq) => format!("revision {seq} is stored"),
        Change::Expired(stored) => format!("revision {} has expired", stored.seq),
        Change::Purged(stored) => format!("revision {} is removed", stored.seq),
    }
}
