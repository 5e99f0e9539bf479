//! Draining: while the file is there the instance says `STANDBY`, and why.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::agent::{Agent, aegis};
use crate::harness::hanging::HangingFiles;
use crate::harness::registry::{Entry, Registry, Watch};
use crate::harness::server::Server;
use crate::harness::{eventually, millis, scratch, secs, time_passes};

const KEY: &str = "service-instances__orders-api__host-1";
/// Far longer than a test: what is seen was published at once.
const INTERVAL: &str = "--interval=10s";

struct Scene {
    server: Server,
    watch: Watch,
    file: PathBuf,
    metrics: PathBuf,
}

impl Scene {
    fn new() -> Scene {
        let server = Server::any();
        let mut registry = Registry::at(&server.url());
        registry.create(&json!({}));
        let directory = scratch("drain");
        let (file, metrics) = (directory.join("orders-api.drain"), directory.join("metrics"));
        Scene { watch: registry.watch(KEY), server, file, metrics }
    }

    fn agent(&self, options: &[&str]) -> Agent {
        let mut agent = self.starts(options);
        agent.wait_for_line("registered orders-api/host-1", secs(5));
        agent
    }

    fn starts(&self, options: &[&str]) -> Agent {
        let mut agent = aegis(&["run", "--service=orders-api", "--instance=host-1"])
            .arg(&format!("-s={}", self.server.url()))
            .arg(&format!("--drain-file={}", self.file.display()))
            .arg(&format!("--metrics-file={}", self.metrics.display()));
        for option in options {
            agent = agent.arg(option);
        }
        agent.spawn()
    }

    fn statuses(&self) -> impl Iterator<Item = serde_json::Value> {
        self.watch.seen().into_iter().map(|entry| entry.json()["status"].clone())
    }

    /// Waits for an entry with this status and reason.
    fn publishes(&self, status: &str, drain: Option<&str>, within: Duration) -> Entry {
        eventually(within, &format!("{status} and {drain:?}"), || {
            let last = self.watch.seen().pop().ok_or("nothing was written")?;
            let record = last.json();
            let is_so = record["status"] == status && record["metadata"]["drain"].as_str() == drain;
            if is_so { Ok(last) } else { Err(record.to_string()) }
        })
    }
}

#[test]
fn with_a_reload_the_file_takes_effect_at_once_in_both_directions() {
    let scene = Scene::new();
    let mut agent = scene.agent(&[INTERVAL]);
    let before = scene.publishes("ACTIVE", None, secs(1));
    assert_eq!(before.header("Nats-TTL").as_deref(), Some("30s"));
    fs::write(&scene.file, "kernel upgrade\nticket 7\n").expect("writes");
    agent.signal("HUP");
    let drained = scene.publishes("STANDBY", Some("kernel upgrade"), secs(2));
    assert_eq!(drained.header("Nats-TTL").as_deref(), Some("30s"));
    agent.wait_for_line("orders-api/host-1 is draining: kernel upgrade", secs(1));
    // Another reason is told as well.
    fs::write(&scene.file, "disk").expect("writes");
    agent.signal("HUP");
    scene.publishes("STANDBY", Some("disk"), secs(2));
    // It is seen by people.
    let list = aegis(&["list", "-s", &scene.server.url()]).run().exits(0);
    let words: Vec<&str> = list.stdout.split_whitespace().collect();
    assert!(words.contains(&"DRAINING") && words.contains(&"STANDBY"), "{list:?}");
    assert!(list.stdout.lines().nth(1).is_some_and(|row| row.ends_with("  disk")), "{list:?}");
    eventually(secs(2), "the metrics say that it drains", || {
        let text = fs::read_to_string(&scene.metrics).map_err(|e| e.to_string())?;
        let is_so =
            text.lines().any(|l| l.starts_with("aegis_agent_draining{") && l.ends_with(" 1"));
        if is_so { Ok(()) } else { Err(text) }
    });
    fs::remove_file(&scene.file).expect("removes");
    agent.signal("HUP");
    scene.publishes("ACTIVE", None, secs(2));
    agent.wait_for_line("orders-api/host-1 is draining no more", secs(1));
    let list = aegis(&["list", "-s", &scene.server.url()]).run().exits(0);
    assert!(!list.stdout.contains("DRAINING"), "no column without need: {list:?}");
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(5)), 0);
}

/// "looked at before each heartbeat"
#[test]
fn without_a_reload_it_takes_effect_with_the_next_heartbeat() {
    let scene = Scene::new();
    let _agent = scene.agent(&["--interval=500ms", "--ttl=3s"]);
    fs::write(&scene.file, "").expect("writes");
    scene.publishes("STANDBY", Some(""), secs(3));
    fs::remove_file(&scene.file).expect("removes");
    scene.publishes("ACTIVE", None, secs(3));
}

/// "survives reboots"
#[test]
fn an_agent_that_starts_with_the_file_registers_drained() {
    let scene = Scene::new();
    fs::write(&scene.file, "kernel upgrade\n").expect("writes");
    let agent = scene.agent(&[INTERVAL, "--meta=drain=own"]);
    let first = scene.publishes("STANDBY", Some("kernel upgrade"), secs(1));
    assert_eq!(first.revision, 1, "never as ACTIVE");
    fs::remove_file(&scene.file).expect("removes");
    agent.signal("HUP");
    scene.publishes("ACTIVE", Some("own"), secs(2));
}

/// A drained service that is not well stays drained, and comes back as what it
/// is.
#[test]
fn draining_stands_above_the_health_of_the_service() {
    let scene = Scene::new();
    fs::write(&scene.file, "kernel upgrade").expect("writes");
    let health = ["--interval=500ms", "--ttl=3s", "--health-exec=false", "--health-failures=1"];
    let mut agent = scene.agent(&health);
    agent.wait_for_line("orders-api/host-1 is UNHEALTHY", secs(5));
    scene.publishes("STANDBY", Some("kernel upgrade"), secs(2));
    assert!(scene.statuses().all(|status| status == "STANDBY"));
    fs::remove_file(&scene.file).expect("removes");
    scene.publishes("UNHEALTHY", None, secs(3));
}

/// The first look takes its time, and the first health check ends meanwhile.
#[test]
fn a_health_check_that_ends_during_the_first_look_does_not_end_it() {
    let Some(mut files) = HangingFiles::mounted() else { return };
    let scene = Scene { file: files.file(), ..Scene::new() };
    files.tell("write kernel upgrade");
    files.tell("hang");
    let mut agent = scene.starts(&[INTERVAL, "--health-exec=sleep 0.2"]);
    time_passes(millis(700));
    assert!(agent.lines_with("registered").is_empty(), "{}", agent.stderr());
    files.tell("go");
    agent.wait_for_line("registered orders-api/host-1", secs(5));
    scene.publishes("STANDBY", Some("kernel upgrade"), secs(1));
    assert!(scene.statuses().all(|status| status == "STANDBY"), "never as ACTIVE");
    agent.signal("KILL");
    agent.wait_exit(secs(2));
    // A stop does.
    files.tell("hang");
    let mut agent = scene.starts(&[INTERVAL]);
    time_passes(millis(500));
    let told = Instant::now();
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
    assert!(told.elapsed() < secs(1), "{:?}", told.elapsed());
}

/// What stands there need not be a file, nor be ours to read.
#[test]
fn what_cannot_be_read_drains_without_a_reason_and_blocks_nothing() {
    let scene = Scene::new();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &scene.file,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .expect("makes a FIFO");
    let mut agent = scene.agent(&["--interval=500ms", "--ttl=3s"]);
    scene.publishes("STANDBY", Some(""), secs(2));
    assert!(agent.is_running());
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
}

#[test]
fn the_watcher_tells_the_reason() {
    let scene = Scene::new();
    let agent = scene.agent(&[INTERVAL]);
    let watcher = aegis(&["watch", "-s", &scene.server.url()]).spawn();
    let says = |text: &str| {
        eventually(secs(5), text, || {
            let said = watcher.said();
            if said.contains(text) { Ok(()) } else { Err(said) }
        });
    };
    says("synced");
    fs::write(&scene.file, "kernel upgrade").expect("writes");
    agent.signal("HUP");
    says("changed orders-api/host-1  0.0.0 STANDBY  draining: kernel upgrade\n");
    agent.signal("TERM");
    says("down  orders-api/host-1  deregistered");
}

/// The file system of the drain file hangs, as a network share does: no heartbeat
/// is late, nothing changes, and a stop comes through.
#[test]
fn a_file_system_that_hangs_under_the_file_stops_no_beat() {
    let Some(mut files) = HangingFiles::mounted() else { return };
    let scene = Scene { file: files.file(), ..Scene::new() };
    let mut agent = scene.agent(&["--interval=500ms", "--ttl=3s"]);
    scene.publishes("ACTIVE", None, secs(1));
    // The metrics are told of in like words, on a host that is busy.
    let unknown = "drain is there: its file system does not answer";
    for (file, status, reason) in
        [("write kernel upgrade", "STANDBY", Some("kernel upgrade")), ("remove", "ACTIVE", None)]
    {
        files.tell(file);
        scene.publishes(status, reason, secs(3));
        // What is told while it hangs is heard when it goes on.
        let said = agent.lines_with(unknown).len();
        files.tell("hang");
        agent.wait_for_line(unknown, secs(3));
        let before = scene.watch.seen().len();
        let seen = scene.watch.wait_for(before + 8, secs(6));
        for entry in &seen[before..] {
            assert_eq!(entry.json()["status"], status, "nothing changes meanwhile");
        }
        assert_eq!(agent.lines_with(unknown).len(), said + 1, "{}", agent.stderr());
        assert!(agent.usage().threads == 1);
        files.tell("go");
    }
    files.tell("write disk");
    scene.publishes("STANDBY", Some("disk"), secs(3));
    for pair in scene.watch.seen().windows(2) {
        let apart = pair[1].stored - pair[0].stored;
        assert!(apart < millis(1_500), "{apart} between two heartbeats");
    }
    // A stop while it hangs; and a reload.
    files.tell("hang");
    let said = agent.lines_with(unknown).len();
    agent.signal("HUP");
    agent.wait_for_lines(unknown, said + 1, secs(3));
    let told = Instant::now();
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
    assert!(told.elapsed() < secs(2), "{:?}", told.elapsed());
    let last = scene.watch.seen().pop().expect("it was written");
    assert!(last.is_marker(), "deregistered: {last:?}");
}
