//! A slow and lossy network: 2 % of the packets are lost and a round trip takes
//! 300 ms, while the kernel's TCP makes of it what it does. Not part of the usual
//! run:
//!
//! ```text
//! AEGIS_LOSSY_SECONDS=600 cargo test --release --locked --test integration lossy:: -- --ignored
//! ```
//!
//! One minute where nothing is said. Needs root; skipped aloud without.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::agent::{Agent, aegis};
use crate::harness::fault::{duration, flat, say};
use crate::harness::network::{Network, SERVER};
use crate::harness::registry::{Entry, Registry};
use crate::harness::server::{Server, Setup};
use crate::harness::watcher::Watcher;
use crate::harness::{secs, time_passes};

const AGENTS: usize = 10;
/// TTL and interval in turns: what bears 3 s, and the default.
const TIMES: [(u64, u64); 2] = [(8, 2), (30, 10)];

#[test]
#[ignore = "takes as long as AEGIS_LOSSY_SECONDS says"]
fn on_a_network_with_2_percent_loss_and_300_ms_no_entry_is_ever_missing() {
    let seconds = std::env::var("AEGIS_LOSSY_SECONDS").ok().and_then(|text| text.parse().ok());
    let length = secs(seconds.unwrap_or(60));
    let Some(mut network) = Network::lossy(2, 150) else { return };
    let server = Server::with(Setup { host: "0.0.0.0", ..Setup::default() });
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({}));
    let record = registry.watch(">");
    let url = format!("nats://{SERVER}:{}", server.port());
    let mut agents: Vec<Agent> = (0..AGENTS)
        .map(|agent| {
            let (ttl, interval) = TIMES[agent % 2];
            aegis(&["run", "--service=far", &format!("--instance=h{agent}")])
                .arg(&format!("--ttl={ttl}s"))
                .arg(&format!("--interval={interval}s"))
                .arg("-s")
                .arg(&url)
                .wrapped(&network.client())
                .spawn()
        })
        .collect();
    for agent in &mut agents {
        agent.wait_for_line("registered far/", secs(20));
    }
    let before: Vec<_> = agents.iter().map(Agent::usage).collect();
    let watch = aegis(&["watch", "--json", "-s", &url]).wrapped(&network.client());
    let mut watcher = Watcher::spawn(&watch);
    watcher.wait_for("synced", secs(20));

    let began = Instant::now();
    let (mut lists, mut failed, mut slowest) = (0, 0, Duration::ZERO);
    while began.elapsed() < length {
        let list = aegis(&["list", "--names", "-s", &url]).wrapped(&network.client()).run();
        lists += 1;
        slowest = slowest.max(list.took);
        if list.code == 0 {
            let names: BTreeSet<&str> = list.stdout.lines().collect();
            assert_eq!(names.len(), AGENTS, "{list:?}");
        } else {
            // A loss in the wrong place may take longer than its time limit.
            failed += 1;
        }
        time_passes(secs(1));
    }
    let seen = record.seen();
    let (mut beats, mut longest) = (0, Duration::ZERO);
    for agent in 0..AGENTS {
        let key = format!("service-instances__far__h{agent}");
        let all: Vec<&Entry> = seen.iter().filter(|one| one.key() == key).collect();
        assert!(all.iter().all(|one| !one.is_marker()));
        let gaps = all.windows(2).map(|pair| duration(pair[1].stored - pair[0].stored));
        let gap = gaps.max().unwrap_or_default();
        let (ttl, interval) = TIMES[agent % 2];
        assert!(gap < secs(ttl), "h{agent} was missing: {gap:?} between two heartbeats");
        longest = longest.max(gap.saturating_sub(secs(interval)));
        beats += all.len();
    }
    let ups = watcher.words().iter().filter(|word| word.starts_with("up")).count();
    let downs = watcher.words().iter().filter(|word| word.starts_with("down")).count();
    assert_eq!((ups, downs), (AGENTS, 0), "{:?}", watcher.words());
    assert!(failed * 20 <= lists, "{failed} of {lists} lists failed");
    for (agent, before) in agents.iter().zip(before) {
        flat(agent, (before.threads, before.descriptors));
    }
    let lost: usize = agents.iter().map(|agent| agent.lines_with("lost ").len()).sum();
    let said = watcher.words().iter().filter(|word| *word == "lost").count();
    say(&format!(
        "lossy network (2 %, 300 ms), {} s: {beats} heartbeats of {AGENTS} agents, none ever missing, \
         {:.2} s late at most; {lost} outages said; watch said lost {said} times and nobody down; \
         {failed} of {lists} lists failed, the slowest took {:.1} s; packets passed and lost: {}",
        length.as_secs(),
        longest.as_secs_f64(),
        slowest.as_secs_f64(),
        network.count()
    ));
    for agent in &agents {
        agent.signal("TERM");
    }
    for agent in &mut agents {
        assert_eq!(agent.wait_exit(secs(7)), 0);
    }
    watcher.stop();
}
