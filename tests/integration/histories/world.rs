//! A real cluster of three, what stands around it, and what can befall it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::json;

use super::history::{Cleanup, History, Life, MILLI, Micros, Read, SECOND, Spec, Told, Watched};
use super::record::{self, Revisions, Spans, Threads, now};
use crate::harness::agent::{Agent, aegis};
use crate::harness::clock::WallClock;
use crate::harness::cluster::Cluster;
use crate::harness::host_clocks::HostClocks;
use crate::harness::proxy::{Direction, Flow, Proxy};
use crate::harness::registry::Registry;
use crate::harness::watcher::Watcher;
use crate::harness::{eventually, scratch, secs, send_signal};

pub const AGENTS: usize = 10;
const SERVICE: &str = "histories";
/// Two groups of clients with proxies of their own, and one without.
const GROUPS: usize = 2;
const FOREVER: Micros = Micros::MAX / 4;

/// What is to be undone, and when.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Heal {
    Start(usize),
    Thaw(usize),
    Join(usize),
    Open(usize, usize),
    Continue(usize),
    Watch(usize),
}

pub struct World {
    pub cluster: Cluster,
    clock: Option<WallClock>,
    host: HostClocks,
    proxies: Vec<Vec<Proxy>>,
    agents: Vec<Option<Agent>>,
    /// Asked to stop, and since when.
    leaving: Vec<(Agent, Micros)>,
    watchers: Vec<Watcher>,
    threads: Threads,
    revisions: Revisions,
    serving: Vec<Spans>,
    reads: Arc<Mutex<Vec<Read>>>,
    cleanups: Arc<Mutex<Vec<Cleanup>>>,
    pub history: History,
    pub log: Vec<(Micros, String)>,
    pub faults: BTreeMap<&'static str, u64>,
    pub violations: Vec<String>,
    pub ghosts: u64,
    heals: Vec<(Micros, Heal)>,
    /// When this began, on two clocks.
    began: (Instant, Micros),
    pub seed: u64,
    /// When it last had its turn: it has one every few milliseconds.
    turn: Micros,
}

/// A pause of this process that is as long is one of the whole machine.
const STALL: Micros = 400 * MILLI;

impl World {
    /// With delete markers or without.
    pub fn start(seed: u64, markers: bool) -> World {
        let clock = WallClock::new();
        let wrapper = clock.as_ref().map(|clock| clock.wrapper().to_vec()).unwrap_or_default();
        let cluster = Cluster::apart("2.12.8", &wrapper);
        let urls: Vec<String> = cluster.servers.iter().map(|server| server.url()).collect();
        let mut changes = json!({
            "num_replicas": 3,
            "republish": {
                "src": "$KV.service_registry.>", "dest": format!("{}.>", record::RECORD),
            },
        });
        if markers {
            changes["subject_delete_marker_ttl"] = json!(60_000_000_000_u64);
        }
        Registry::at(&urls[0]).create(&changes);
        cluster.leader("service_registry", 0);
        let mut threads = Threads::new();
        let revisions = Revisions::default();
        let serving: Vec<Spans> = (0..3).map(|_| Spans::default()).collect();
        for (number, url) in urls.iter().enumerate() {
            record::revisions(&mut threads, url, &revisions);
            record::serving(&mut threads, url, number, &serving[number]);
        }
        let (reads, cleanups) = (Arc::default(), Arc::default());
        record::reads(&mut threads, &urls, &reads);
        record::cleanups(&mut threads, &urls.join(","), &cleanups);
        let proxy = |server: &crate::harness::server::Server| Proxy::to(server.port());
        let proxies: Vec<Vec<Proxy>> =
            (0..GROUPS).map(|_| cluster.servers.iter().map(proxy).collect()).collect();
        eventually(secs(10), "all servers take what is written", || {
            let count = serving.iter().filter(|spans| !spans.lock().expect("held").is_empty());
            (count.count() == 3).then_some(()).ok_or_else(String::new)
        });
        let began = (Instant::now(), now());
        let spec = |agent: usize| {
            let (ttl, interval) = if agent.is_multiple_of(2) { (20, 3) } else { (6, 1) };
            let instance = format!("h{agent}");
            Spec { instance, ttl: ttl * SECOND, interval: interval * SECOND, group: agent / 2 % 2 }
        };
        let history = History {
            from: began.1,
            agents: (0..AGENTS).map(spec).collect(),
            pauses: vec![Vec::new(); AGENTS],
            closed: vec![vec![Vec::new(); 3]; GROUPS + 1],
            broken: vec![Vec::new(); 3],
            clock: vec![(0, 0)],
            ..History::default()
        };
        let mut world = World {
            cluster,
            clock,
            host: HostClocks::new(),
            proxies,
            agents: (0..AGENTS).map(|_| None).collect(),
            leaving: Vec::new(),
            watchers: Vec::new(),
            threads,
            revisions,
            serving,
            reads,
            cleanups,
            history,
            log: Vec::new(),
            faults: BTreeMap::new(),
            violations: Vec::new(),
            ghosts: 0,
            heals: Vec::new(),
            began,
            seed,
            turn: now(),
        };
        for group in [GROUPS, 1] {
            let url = world.urls(group, 0);
            world.watchers.push(Watcher::start(&url, &[]));
            world.history.watched.push(Watched { group, ..Watched::default() });
        }
        for agent in 0..AGENTS {
            world.start_agent(agent);
        }
        world
    }

    /// The servers as a group reaches them, beginning with another one each time.
    fn urls(&self, group: usize, turn: usize) -> String {
        let mut urls: Vec<String> = match self.proxies.get(group) {
            Some(proxies) => proxies.iter().map(Proxy::url).collect(),
            None => self.cluster.servers.iter().map(|server| server.url()).collect(),
        };
        urls.rotate_left(turn % 3);
        urls.join(",")
    }

    fn note(&mut self, words: String) {
        self.log.push((now(), words));
    }

    pub fn befalls(&mut self, kind: &'static str, words: String) {
        *self.faults.entry(kind).or_default() += 1;
        self.note(words);
    }

    pub fn heal_after(&mut self, time: Micros, heal: Heal) {
        self.heals.push((now() + time, heal));
    }

    /// Whether something is to be undone that is like `heal` to whom it befell.
    pub fn is_hurt(&self, is_so: impl Fn(&Heal) -> bool) -> bool {
        self.heals.iter().any(|(_, heal)| is_so(heal))
    }

    pub fn hurt_servers(&self) -> Vec<usize> {
        let server = |heal: &Heal| match heal {
            Heal::Start(server) | Heal::Thaw(server) | Heal::Join(server) => Some(*server),
            _ => None,
        };
        self.heals.iter().filter_map(|(_, heal)| server(heal)).collect()
    }

    /// The machine may have stood still: nobody can be held to anything then.
    fn look_for_stalls(&mut self) {
        let span = (self.turn, now());
        self.turn = span.1;
        if span.1 - span.0 < STALL {
            return;
        }
        *self.faults.entry("stall of the whole machine").or_default() += 1;
        self.note(format!("the machine stood still for {} ms", (span.1 - span.0) / MILLI));
        let watched = self.history.watched.iter_mut().map(|watched| &mut watched.pauses);
        for pauses in self.history.pauses.iter_mut().chain(watched) {
            // Before one that still lasts.
            let place = pauses.partition_point(|pause| pause.0 < span.0);
            pauses.insert(place, span);
        }
    }

    /// Undoes what is due; everything, if `all`.
    pub fn heal(&mut self, all: bool) {
        self.look_for_stalls();
        let due: Vec<(Micros, Heal)>;
        (due, self.heals) = self.heals.drain(..).partition(|(at, _)| all || *at <= now());
        for (_, heal) in due {
            match heal {
                Heal::Start(server) => self.cluster.servers[server].launch(),
                Heal::Thaw(server) => self.cluster.servers[server].thaw(),
                Heal::Join(server) => self.cluster.partition(server, Flow::Forward),
                Heal::Open(group, server) => {
                    let proxy = &self.proxies[group][server];
                    proxy.set(Flow::Forward);
                    proxy.refuse(false);
                }
                Heal::Continue(agent) => {
                    if let Some(process) = &self.agents[agent] {
                        process.signal("CONT");
                    }
                }
                Heal::Watch(watcher) => send_signal(self.watchers[watcher].child.id(), "CONT"),
            }
            let at = now();
            let spans = match heal {
                Heal::Start(server) | Heal::Thaw(server) | Heal::Join(server) => {
                    &mut self.history.broken[server]
                }
                Heal::Open(group, server) => &mut self.history.closed[group][server],
                Heal::Continue(agent) => &mut self.history.pauses[agent],
                Heal::Watch(watcher) => &mut self.history.watched[watcher].pauses,
            };
            if let Some(span) = spans.iter_mut().rfind(|span| span.1 == FOREVER) {
                span.1 = at;
            }
            self.note(format!("healed: {heal:?}"));
        }
        let late = |(_, since): &(Agent, Micros)| now() > since + 6 * SECOND + 400 * MILLI;
        if self.leaving.iter().any(late) {
            self.violations.push("P4: an agent has not ended within 6 s of SIGTERM".to_owned());
        }
        self.leaving.retain_mut(|(agent, _)| agent.is_running());
        for agent in &mut self.agents {
            if agent.as_mut().is_some_and(|agent| !agent.is_running()) {
                let said = agent.take().map(|agent| agent.stderr()).unwrap_or_default();
                self.violations.push(format!("an agent ended by itself: {said}"));
            }
        }
    }

    pub fn kill_server(&mut self, server: usize) {
        self.history.broken[server].push((now(), FOREVER));
        self.cluster.servers[server].kill();
    }

    pub fn freeze_server(&mut self, server: usize) {
        self.history.broken[server].push((now(), FOREVER));
        self.cluster.servers[server].freeze();
    }

    pub fn part_server(&mut self, server: usize) {
        self.history.broken[server].push((now(), FOREVER));
        self.cluster.partition(server, Flow::Hold);
    }

    /// Closes the way of a group to a server: a black hole, answers lost, refused.
    pub fn close(&mut self, group: usize, server: usize, how: u64) {
        self.history.closed[group][server].push((now(), FOREVER));
        let proxy = &self.proxies[group][server];
        match how {
            0 => proxy.set(Flow::Hold),
            1 => proxy.set_one(Direction::ToClient, Flow::Discard),
            _ => {
                proxy.refuse(true);
                proxy.cut();
            }
        }
    }

    /// Sets the clock of all servers so far ahead of the truth.
    pub fn set_clock(&mut self, ahead: Micros) -> bool {
        let Some(clock) = &self.clock else { return false };
        clock.set(ahead / MILLI);
        self.history.clock.push((now(), ahead));
        true
    }

    /// Sets the wall clock of the first group's host.
    pub fn set_host_clock(&mut self, ahead: Micros) {
        self.host.shift(ahead / MILLI, 0);
    }

    pub fn is_alive(&self, agent: usize) -> bool {
        self.agents[agent].is_some()
    }

    pub fn start_agent(&mut self, agent: usize) {
        let spec = &self.history.agents[agent];
        let words = [
            "run".to_owned(),
            format!("--service={SERVICE}"),
            format!("--instance={}", spec.instance),
            format!("--ttl={}s", spec.ttl / SECOND),
            format!("--interval={}s", spec.interval / SECOND),
            format!("-s={}", self.urls(spec.group, agent)),
        ];
        let mut invocation = aegis(&words);
        if spec.group == 0 {
            invocation = self.host.of(invocation);
        }
        let process = invocation.spawn();
        let (pid, from) = (process.pid(), now());
        self.history.lives.push(Life { agent, pid, from, to: FOREVER, was_killed: false });
        self.agents[agent] = Some(process);
    }

    pub fn end_agent(&mut self, agent: usize, kill: bool) {
        let Some(mut process) = self.agents[agent].take() else { return };
        let at = now();
        if let Some(life) = self.history.lives.iter_mut().rev().find(|life| life.agent == agent) {
            (life.to, life.was_killed) = (at, kill);
        }
        // What was stopped cannot obey.
        let stopped = Heal::Continue(agent);
        if self.heals.iter().any(|(_, heal)| *heal == stopped) {
            self.heals.retain(|(_, heal)| *heal != stopped);
            process.signal("CONT");
            let mut pauses = self.history.pauses[agent].iter_mut();
            if let Some(span) = pauses.rfind(|span| span.1 == FOREVER) {
                span.1 = at;
            }
        }
        if kill {
            process.signal("KILL");
            process.wait_exit(secs(5));
        } else {
            process.signal("TERM");
            self.leaving.push((process, at));
        }
    }

    pub fn pause_agent(&mut self, agent: usize) {
        if let Some(process) = &self.agents[agent] {
            process.signal("STOP");
            self.history.pauses[agent].push((now(), FOREVER));
        }
    }

    pub fn pause_watcher(&mut self, watcher: usize) {
        send_signal(self.watchers[watcher].child.id(), "STOP");
        self.history.watched[watcher].pauses.push((now(), FOREVER));
    }

    /// An entry of the time before TTLs: for `cleanup` to take.
    pub fn haunt(&mut self) {
        let number = self.ghosts;
        let hurt = self.hurt_servers();
        let Some(server) = (0..3).find(|server| !hurt.contains(server)) else { return };
        let url = self.cluster.servers[server].url();
        let stored = crate::harness::registry::Client::login_within(&url, &json!({}), secs(1))
            .and_then(|mut client| {
                client.patience = secs(1);
                let subject = format!("$KV.service_registry.service-instances__ghosts__g{number}");
                let record = crate::harness::scene::record(&format!("g{number}"), 900);
                client.try_request(subject.as_bytes(), b"", record.as_bytes())
            });
        if stored.is_ok() {
            self.ghosts += 1;
        }
    }

    /// Ends the recording; the agents run on.
    pub fn finish(&mut self) {
        self.threads.end();
        self.history.to = now();
        self.history.revisions = self.revisions.lock().expect("not poisoned").clone();
        self.history.serving =
            self.serving.iter().map(|spans| spans.lock().expect("not poisoned").clone()).collect();
        self.history.reads = self.reads.lock().expect("not poisoned").clone();
        self.history.cleanups = self.cleanups.lock().expect("not poisoned").clone();
        let (instant, micros) = self.began;
        for (watched, watcher) in self.history.watched.iter_mut().zip(&self.watchers) {
            watched.told = (watcher.told().iter())
                .map(|(at, event)| Told {
                    at: micros + at.saturating_duration_since(instant).as_micros() as Micros,
                    event: event["event"].as_str().unwrap_or_default().to_owned(),
                    instance: event["instanceId"].as_str().unwrap_or_default().to_owned(),
                    reason: event["reason"]
                        .as_str()
                        .or(event["why"].as_str())
                        .unwrap_or_default()
                        .to_owned(),
                })
                .collect();
        }
        self.history.settle();
    }

    /// All that is known of the run, in the order of time, to a file.
    pub fn write_down(&self) -> std::path::PathBuf {
        let mut lines = self.log.clone();
        for (number, watched) in self.history.watched.iter().enumerate() {
            lines.extend(watched.told.iter().map(|told| {
                let words =
                    format!("watch {number}: {} {} {}", told.event, told.instance, told.reason);
                (told.at, words)
            }));
        }
        for (instance, revisions) in &self.history.revisions {
            lines.extend(revisions.iter().map(|one| {
                let mark = if one.is_marker { " marker" } else { "" };
                let words = format!(
                    "stored {instance} {} after {}, by {:?}{mark}, server {:.3}",
                    one.seq,
                    one.before,
                    one.pid,
                    one.stored as f64 / 1e6
                );
                (one.at, words)
            }));
        }
        for read in &self.history.reads {
            let words = format!(
                "list {} in {} ms: {:?}",
                read.code,
                (read.to - read.from) / MILLI,
                read.shown
            );
            lines.push((read.from, words));
        }
        for one in &self.history.cleanups {
            lines.push((
                one.from,
                format!(
                    "cleanup {} in {} ms: {:?}",
                    one.code,
                    (one.to - one.from) / MILLI,
                    one.removed
                ),
            ));
        }
        for (server, spans) in self.history.serving.iter().enumerate() {
            for (from, to) in spans {
                lines.push((*from, format!("n{server} serves")));
                lines.push((*to, format!("n{server} serves no more")));
            }
        }
        for (agent, process) in self.agents.iter().enumerate() {
            let Some(process) = process else { continue };
            let (instant, micros) = self.began;
            lines.extend(process.lines().iter().map(|line| {
                let at = line.at.saturating_duration_since(instant).as_micros() as Micros;
                (micros + at, format!("agent h{agent}: {}", line.text))
            }));
        }
        lines.sort();
        let text: String =
            lines.iter().map(|(at, words)| format!("{:.3} {words}\n", *at as f64 / 1e6)).collect();
        let logs: String = (self.watchers.iter().enumerate())
            .map(|(number, watcher)| format!("--- log of watch {number}:\n{}", watcher.log()))
            .collect();
        let path = scratch("history").join(format!("seed-{}", self.seed));
        std::fs::write(&path, text + &logs).expect("writes the history");
        path
    }
}
