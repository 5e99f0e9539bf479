//! Clusters: three servers, a bucket of three replicas, ten agents. The loss
//! of any one server is never visible; without a quorum nothing can be
//! written, and that is said.
//!
//! With the default times, since the election of a leader takes as long as it
//! takes: 4 to 10 s.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::agent::{Agent, aegis};
use crate::harness::cluster::Cluster;
use crate::harness::fault::{flat, say};
use crate::harness::proxy::Flow;
use crate::harness::registry::{Client, Registry};
use crate::harness::{eventually, millis, secs, time_passes};

const AGENTS: usize = 10;

fn key(agent: usize) -> String {
    format!("service-instances__fleet__h{agent}")
}

/// Looks at all entries, again and again, through whichever server answers.
struct Lookout {
    seen: Arc<Mutex<Seen>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default, Clone)]
struct Seen {
    /// Rounds in which every question was answered.
    rounds: usize,
    /// Entries that were not there, and when.
    missing: Vec<(String, Instant)>,
    /// The newest revision of each agent, and when it was seen first.
    newest: Vec<(u64, Option<Instant>)>,
}

impl Lookout {
    fn over(urls: Vec<String>) -> Lookout {
        let seen =
            Arc::new(Mutex::new(Seen { newest: vec![(0, None); AGENTS], ..Seen::default() }));
        let end = Arc::new(AtomicBool::new(false));
        let thread = {
            let (seen, end) = (seen.clone(), end.clone());
            std::thread::spawn(move || {
                let mut turn = 0;
                while !end.load(Ordering::Relaxed) {
                    let _ = look(&urls[turn % urls.len()], &seen, &end);
                    turn += 1;
                    std::thread::sleep(millis(20));
                }
            })
        };
        Lookout { seen, end, thread: Some(thread) }
    }

    fn seen(&self) -> Seen {
        self.seen.lock().expect("no panic while it was held").clone()
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn look(url: &str, seen: &Mutex<Seen>, end: &AtomicBool) -> Result<(), String> {
    let address = url.trim_start_matches("nats://").parse().expect("an address");
    // A frozen server would hold the look-out up.
    std::net::TcpStream::connect_timeout(&address, millis(200)).map_err(|e| e.to_string())?;
    let mut client = Client::login_within(url, &json!({}), millis(500))?;
    client.patience = millis(700);
    while !end.load(Ordering::Relaxed) {
        for agent in 0..AGENTS {
            let subject = format!("$KV.service_registry.{}", key(agent));
            let what = "STREAM.MSG.GET.KV_service_registry";
            let answer = client.api(what, &json!({ "last_by_subj": subject }));
            let at = Instant::now();
            let mut seen = seen.lock().expect("no panic while it was held");
            match answer {
                Ok(reply) => {
                    let revision = reply["message"]["seq"].as_u64().unwrap_or(0);
                    if revision > seen.newest[agent].0 {
                        seen.newest[agent] = (revision, Some(at));
                    }
                }
                Err(why) if why.starts_with("10037") => seen.missing.push((key(agent), at)),
                Err(why) => return Err(why),
            }
        }
        seen.lock().expect("no panic while it was held").rounds += 1;
        std::thread::sleep(millis(50));
    }
    Ok(())
}

/// A cluster under its fleet, all of which has registered.
struct Fleet {
    cluster: Cluster,
    agents: Vec<Agent>,
    lookout: Lookout,
}

impl Fleet {
    fn start(interval: &str, timeouts: [&str; 2]) -> Fleet {
        let cluster = Cluster::with_proxies("2.12.8");
        Registry::at(&cluster.servers[0].url()).create(&json!({ "num_replicas": 3 }));
        cluster.leader("service_registry", 0);
        let urls: Vec<String> = cluster.servers.iter().map(|server| server.url()).collect();
        let mut agents: Vec<Agent> = (0..AGENTS)
            .map(|agent| {
                let mut turned = urls.clone();
                turned.rotate_left(agent % 3);
                let instance = format!("--instance=h{agent}");
                aegis(&["run", "--service=fleet", &instance, "--interval", interval])
                    .arg("-s")
                    .arg(&turned.join(","))
                    .env("NATS_TIMEOUT", timeouts[agent % 2])
                    .spawn()
            })
            .collect();
        for agent in &mut agents {
            agent.wait_for_line("registered fleet/", secs(20));
        }
        let lookout = Lookout::over(urls);
        eventually(secs(10), "everybody is seen", || {
            let rounds = lookout.seen().rounds;
            (rounds > 0).then_some(()).ok_or_else(|| "no round yet".to_owned())
        });
        Fleet { cluster, agents, lookout }
    }

    /// Until every agent has been acknowledged after `since`.
    fn all_beat(&self, since: Instant, within: Duration) -> Duration {
        let before = self.lookout.seen().newest;
        eventually(within, "a heartbeat of each", || {
            let now = self.lookout.seen().newest;
            let late = now.iter().zip(&before).filter(|(now, before)| now.0 <= before.0).count();
            (late == 0).then_some(()).ok_or_else(|| format!("{late} agents have not beaten"))
        });
        since.elapsed()
    }

    /// Until each replica has caught up.
    fn whole(&self) {
        let place = self.leader();
        let mut registry = Registry::at(&self.cluster.servers[place].url());
        registry.client.patience = secs(1);
        eventually(secs(30), "all replicas are current", || {
            let cluster = registry.info()?["cluster"].clone();
            let replicas = cluster["replicas"].as_array().cloned().unwrap_or_default();
            let current = replicas.iter().filter(|r| r["current"] == true && r["offline"] != true);
            match current.count() {
                2 => Ok(()),
                _ => Err(cluster.to_string()),
            }
        });
    }

    fn leader(&self) -> usize {
        self.cluster.leader("service_registry", 0)
    }

    fn one_is_lost(
        &mut self,
        name: &str,
        which: usize,
        harm: impl FnOnce(&mut Cluster),
        heal: impl FnOnce(&mut Cluster),
    ) {
        let before: Vec<_> = self.agents.iter().map(|agent| agent.usage()).collect();
        let began = Instant::now();
        harm(&mut self.cluster);
        let beat = self.all_beat(began, secs(26));
        heal(&mut self.cluster);
        self.whole();
        let seen = self.lookout.seen();
        assert!(seen.missing.is_empty(), "P1: {name}: missing {:?}", seen.missing);
        for (agent, before) in self.agents.iter().zip(before) {
            flat(agent, (before.threads, before.descriptors));
        }
        let lost: usize = self.agents.iter().map(|agent| agent.lines_with("lost ").len()).sum();
        say(&format!(
            "fault: cluster, n{which} {name} under {AGENTS} agents; nobody missing in {} rounds of looking, \
             each had beaten {:.1} s later; outages said so far {lost}",
            seen.rounds,
            beat.as_secs_f64()
        ));
    }
}

/// "each killed, frozen, partitioned and lame-ducked in turn under ten agents;
/// no entry missing while two are up": no wait is longer than the entry has to
/// live, whatever timeout was given.
#[test]
fn no_entry_is_missing_while_two_servers_of_three_are_up() {
    let mut fleet = Fleet::start("10s", ["5s", "30s"]);
    let leader = fleet.leader();
    fleet.one_is_lost(
        "(the leader) killed",
        leader,
        |cluster| cluster.servers[leader].kill(),
        |cluster| cluster.servers[leader].start_again(),
    );
    let leader = fleet.leader();
    fleet.one_is_lost(
        "(the leader) frozen",
        leader,
        |cluster| cluster.servers[leader].freeze(),
        |cluster| cluster.servers[leader].thaw(),
    );
    let leader = fleet.leader();
    let lame = (leader + 1) % 3;
    fleet.one_is_lost(
        "lame duck",
        lame,
        |cluster| cluster.servers[lame].lame_duck(),
        |cluster| {
            cluster.servers[lame].kill();
            cluster.servers[lame].start_again();
        },
    );
    let leader = fleet.leader();
    fleet.one_is_lost(
        "(the leader) partitioned",
        leader,
        |cluster| cluster.partition(leader, Flow::Hold),
        |cluster| cluster.partition(leader, Flow::Forward),
    );
    for agent in &fleet.agents {
        for line in agent.lines_with("lost ").iter().zip(agent.lines_with("restored ")) {
            assert!(line.0.at <= line.1.at, "{}", agent.stderr());
        }
    }
}

/// "no quorum: reported, back within P2 when it returns"
#[test]
fn without_a_quorum_it_is_said_and_when_it_returns_everybody_is_back() {
    let mut fleet = Fleet::start("2s", ["5s", "5s"]);
    let leader = fleet.leader();
    let other = (leader + 1) % 3;
    fleet.cluster.servers[leader].kill();
    fleet.cluster.servers[other].kill();
    for agent in &mut fleet.agents {
        agent.wait_for_line("lost fleet/", secs(12));
    }
    time_passes(secs(2));
    fleet.cluster.servers[other].launch();
    let last = (leader + 2) % 3;
    // Back is the quorum when the bucket has a leader that takes a message.
    let url = fleet.cluster.servers[last].url();
    let stored = eventually(secs(40), "the cluster stores again", || {
        let mut client = Client::login(&url, &json!({}))?;
        client.patience = millis(300);
        let reply = client.try_request(b"$KV.service_registry.probe", b"", b"x")?;
        let text = String::from_utf8_lossy(&reply.payload).into_owned();
        match text.contains("\"seq\"") {
            true => Ok(Instant::now()),
            false => Err(text),
        }
    });
    let mut worst = Duration::ZERO;
    for agent in &mut fleet.agents {
        let line = agent.wait_for_line("restored fleet/", secs(4));
        worst = worst.max(line.at.saturating_duration_since(stored));
        assert!(agent.lines_with("lost ").len() <= 2, "{}", agent.stderr());
    }
    assert!(worst < secs(3), "P2: back {worst:?} after the quorum");
    say(&format!(
        "fault: cluster, two of three killed under {AGENTS} agents; all back {:.2} s after the quorum",
        worst.as_secs_f64()
    ));
}

/// Its clients are told long before it goes.
#[test]
fn the_session_moves_before_a_lame_duck_goes() {
    let mut cluster = Cluster::start(&["2.12.8"]);
    Registry::at(&cluster.servers[1].url()).create(&json!({ "num_replicas": 3 }));
    let leader = cluster.leader("service_registry", 1);
    let lame = (leader + 1) % 3;
    let urls = [lame, leader].map(|place| cluster.servers[place].url());
    let mut agent =
        aegis(&["run", "--service=fleet", "--instance=h0", "--ttl=6s", "--interval=1s", "-s"])
            .arg(&urls.join(","))
            .spawn();
    agent.wait_for_line("registered fleet/h0", secs(10));
    let before = agent.usage();
    cluster.servers[lame].lame_duck();
    // It tells its clients once its own JetStream has shut down, which took more
    // than 3 s on a busy host.
    agent.wait_for_line("lame-duck mode): moved", secs(30));
    let moved = agent.wait_for_lines("registered fleet/h0", 2, secs(3)).remove(1);
    assert!(moved.text.contains(&urls[1]["nats://".len()..]), "{}", moved.text);
    let mut registry = Registry::at(&urls[1]);
    let revision = registry.last(&key(0)).map_or(0, |entry| entry.revision);
    eventually(secs(5), "it goes on", || match registry.last(&key(0)) {
        Some(entry) if entry.revision > revision + 1 => Ok(()),
        entry => Err(format!("{entry:?}")),
    });
    assert!(agent.lines_with("lost").is_empty(), "{}", agent.stderr());
    flat(&agent, (before.threads, before.descriptors));
}
