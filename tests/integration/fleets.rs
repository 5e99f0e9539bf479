//! Many agents on a cluster: all started in the same second, and a rolling upgrade
//! of its members under them, and the way back.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::agent::{Agent, aegis};
use crate::harness::cluster::Cluster;
use crate::harness::fault::say;
use crate::harness::registry::Registry;
use crate::harness::watcher::Watcher;
use crate::harness::{eventually, millis, secs, time_passes};
use crate::histories::history::{History, LATE, Micros, SECOND, Spec};
use crate::histories::record::{self, RECORD, Revisions, Threads, now};

/// Stops before it becomes the agent.
const GATE: [&str; 4] = ["sh", "-c", "kill -STOP $$; exec \"$@\"", "sh"];

/// Lets all go on that have come to the gate.
fn open_the_gate(agents: &[Agent]) {
    for agent in agents {
        eventually(secs(20), "it stands at the gate", || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.pid()));
            let stat = stat.map_err(|error| error.to_string())?;
            if stat.contains(") T ") { Ok(()) } else { Err(stat) }
        });
    }
    let pids: Vec<String> = agents.iter().map(|agent| agent.pid().to_string()).collect();
    let script = format!("kill -s CONT {}", pids.join(" "));
    let done = Command::new("sh").args(["-c", &script]).status().expect("sh runs");
    assert!(done.success(), "{done}");
}

/// Agents of a cluster, and a record of all that it stores.
struct Fleet {
    agents: Vec<Agent>,
    threads: Threads,
    revisions: Revisions,
    started: Micros,
    interval: Micros,
}

impl Fleet {
    /// Starts so many in the same moment, each with another server first.
    fn start(cluster: &Cluster, count: usize, interval: u64) -> Fleet {
        let urls: Vec<String> = cluster.servers.iter().map(|server| server.url()).collect();
        Registry::at(&urls[0]).create(&json!({
            "num_replicas": 3,
            "republish": {
                "src": "$KV.service_registry.>", "dest": format!("{RECORD}.>"),
            },
        }));
        cluster.leader("service_registry", 0);
        let (mut threads, revisions) = (Threads::new(), Revisions::default());
        for url in &urls {
            record::revisions(&mut threads, url, &revisions);
        }
        let agents = (0..count).map(|agent| {
            let mut turned = urls.clone();
            turned.rotate_left(agent % 3);
            let instance = format!("--instance=h{agent}");
            aegis(&["run", "--service=fleet", &instance])
                .arg(&format!("--interval={interval}s"))
                .arg("-s")
                .arg(&turned.join(","))
                .wrapped(&GATE.map(str::to_owned))
                .spawn()
        });
        let agents: Vec<Agent> = agents.collect();
        let started = now();
        open_the_gate(&agents);
        let interval = interval as Micros * SECOND;
        Fleet { agents, threads, revisions, started, interval }
    }

    /// Until each has been stored at least `beats` times since `since`.
    fn all_beat(&self, beats: usize, since: Micros, within: Duration) {
        eventually(within, "each has beaten", || {
            let revisions = self.revisions.lock().expect("not poisoned");
            let beaten = revisions.values().filter(|all| {
                let new = all.iter().filter(|one| one.seen > since).map(|one| one.seq);
                new.collect::<BTreeSet<_>>().len() >= beats
            });
            let count = beaten.count();
            if count == self.agents.len() { Ok(()) } else { Err(format!("{count} of them")) }
        });
    }

    /// No entry was missing from its first revision on; the longest time between
    /// two revisions of one.
    fn was_never_missing(&mut self) -> f64 {
        self.threads.end();
        let agents = (0..self.agents.len()).map(|agent| Spec {
            instance: format!("h{agent}"),
            ttl: 30 * SECOND,
            interval: self.interval,
            group: 0,
        });
        let mut history = History {
            from: self.started,
            to: now(),
            agents: agents.collect(),
            clock: vec![(0, 0)],
            revisions: self.revisions.lock().expect("not poisoned").clone(),
            ..History::default()
        };
        history.settle();
        let (mut longest, mut unseen) = (0, 0);
        for agent in 0..self.agents.len() {
            let all = history.of(agent);
            let first = all.first().map_or(Micros::MAX, |first| first.at);
            let (absences, holes) = history.absences(agent);
            unseen += holes.len();
            for (from, to) in absences {
                let is_missing = from > first - LATE && to - from > LATE;
                assert!(!is_missing, "h{agent} was missing for {} ms", (to - from) / 1_000);
            }
            let gaps = all.windows(2).map(|pair| pair[1].at - pair[0].at);
            longest = longest.max(gaps.max().unwrap_or(0));
        }
        assert!(unseen <= self.agents.len(), "{unseen} revisions were not seen");
        longest as f64 / 1e6
    }
}

/// Until the bucket has a leader, and each replica has caught up.
fn whole(cluster: &Cluster, through: usize) {
    let leader = cluster.leader("service_registry", through);
    let url = cluster.servers[leader].url();
    eventually(secs(40), "all replicas are current", || {
        let mut registry = Registry::at(&url);
        registry.client.patience = secs(1);
        let cluster = registry.info()?["cluster"].clone();
        let replicas = cluster["replicas"].as_array().cloned().unwrap_or_default();
        let current = replicas.iter().filter(|r| r["current"] == true && r["offline"] != true);
        if current.count() == 2 { Ok(()) } else { Err(cluster.to_string()) }
    });
}

#[test]
fn two_hundred_agents_start_in_the_same_second() {
    const AGENTS: usize = 200;
    let cluster = Cluster::start(&["2.12.8"]);
    let mut fleet = Fleet::start(&cluster, AGENTS, 10);
    let began = Instant::now();
    for agent in &mut fleet.agents {
        agent.wait_for_line("registered fleet/", secs(20));
    }
    let registered = began.elapsed();
    let since = now();
    let list = aegis(&["list", "--names", "-s", &cluster.urls()]).run().exits(0);
    assert_eq!(list.stdout.lines().count(), AGENTS);
    fleet.all_beat(2, since, secs(25));
    for agent in &fleet.agents {
        assert_eq!(agent.lines().len(), 1, "{}", agent.stderr());
    }
    let longest = fleet.was_never_missing();
    say(&format!(
        "fleet: {AGENTS} agents started at once on a cluster; all registered after {:.2} s, none \
         ever missing, {longest:.2} s between two heartbeats of 10 s at most",
        registered.as_secs_f64()
    ));
}

/// Each member in turn is stopped and started as another version, as soon as the
/// one before has caught up.
fn rolling(versions: &[&str], agents: usize) {
    let mut cluster = Cluster::start(&versions[..1]);
    let mut fleet = Fleet::start(&cluster, agents, 5);
    for agent in &mut fleet.agents {
        agent.wait_for_line("registered fleet/", secs(20));
    }
    let mut watcher = Watcher::start(&cluster.urls(), &[]);
    watcher.wait_for("synced", secs(10));
    let begun = Instant::now();
    for version in &versions[1..] {
        for place in 0..3 {
            let member = Instant::now();
            cluster.servers[place].restart_as(version);
            whole(&cluster, place);
            say(&format!(
                "fleet: n{place} is {version}, whole again after {:.1} s",
                member.elapsed().as_secs_f64()
            ));
        }
        let since = now();
        fleet.all_beat(2, since, secs(30));
        let list = aegis(&["list", "--names", "-s", &cluster.urls()]).run().exits(0);
        assert_eq!(list.stdout.lines().count(), agents, "{version}");
    }
    let took = begun.elapsed();
    time_passes(millis(500));
    let told = watcher.words();
    let downs = told.iter().filter(|word| word.starts_with("down")).count();
    assert_eq!(downs, 0, "{told:?}");
    watcher.stop();
    let longest = fleet.was_never_missing();
    let lost: usize = fleet.agents.iter().map(|agent| agent.lines_with("lost ").len()).sum();
    say(&format!(
        "fleet: {agents} agents, {} in {:.0} s; no entry ever missing, {longest:.1} s between two \
         heartbeats of 5 s at most (TTL 30 s), {lost} outages said, watch said lost {} times and \
         nobody down",
        versions.join(" to "),
        took.as_secs_f64(),
        told.iter().filter(|word| *word == "lost").count()
    ));
}

#[test]
fn a_rolling_upgrade_and_the_way_back_leave_no_gap() {
    rolling(&["2.12.8", "2.15.1", "2.12.8"], 10);
}

#[test]
#[ignore = "takes minutes"]
fn a_rolling_upgrade_from_2_11_to_2_15_and_the_way_back_leave_no_gap_of_fifty() {
    rolling(&["2.11.11", "2.12.8", "2.15.1", "2.12.8", "2.11.11"], 50);
}
