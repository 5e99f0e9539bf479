//! `run --metrics-file`: what monitoring sees of an agent.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Instant;

use crate::harness::agent::{Invocation, aegis};
use crate::harness::registry::Registry;
use crate::harness::scene::any_bucket;
use crate::harness::server::Server;
use crate::harness::{eventually, millis, scratch, secs};

const LABELS: &str = "{service=\"orders-api\",instance_id=\"host-1\",bucket=\"service_registry\"}";

fn agent(server: &Server, interval: &str, file: &Path) -> Invocation {
    aegis(&["run", "--service=orders-api", "--instance=host-1", "--ttl=4s"])
        .arg(&format!("--interval={interval}"))
        .arg(&format!("--metrics-file={}", file.display()))
        .arg(&format!("-s={}", server.url()))
}

/// The value of one metric; `None` where it is not there.
fn value(text: &str, name: &str) -> Option<f64> {
    let start = format!("aegis_agent_{name}{LABELS} ");
    text.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok())
}

fn wait_for(file: &Path, name: &str, wanted: impl Fn(f64) -> bool) -> String {
    eventually(secs(5), name, || {
        let text = std::fs::read_to_string(file).map_err(|e| e.to_string())?;
        match value(&text, name) {
            Some(found) if wanted(found) => Ok(text),
            _ => Err(text),
        }
    })
}

#[test]
fn the_file_follows_an_agent_through_its_life() {
    let mut server = any_bucket().0;
    let directory = scratch("metrics");
    let file = directory.join("aegis.prom");
    let mut agent = agent(&server, "300ms", &file)
        .arg("--health-exec=true")
        .arg("--health-failures=100")
        .spawn();
    let text = wait_for(&file, "registered", |v| v == 1.0);
    assert_eq!(std::fs::metadata(&file).expect("there").permissions().mode() & 0o7777, 0o644);
    assert!(text.ends_with('\n') && text.contains("aegis_agent_build_info{"), "{text}");
    let text = wait_for(&file, "heartbeats_sent_total", |v| v >= 4.0);
    assert_eq!(value(&text, "heartbeats_failed_total"), Some(0.0));
    assert_eq!(value(&text, "outages_total"), Some(0.0));
    assert_eq!(value(&text, "conflicts_total"), Some(0.0));
    assert_eq!(value(&text, "healthy"), Some(1.0));
    assert!(value(&text, "ack_seconds").is_some_and(|v| v > 0.0 && v < 1.0), "{text}");
    assert!(value(&text, "last_ack_age_seconds").is_some_and(|v| v < 1.0), "{text}");
    assert!(value(&text, "clock_offset_seconds").is_some_and(|v| v.abs() < 1.0), "{text}");

    server.kill();
    let text = wait_for(&file, "registered", |v| v == 0.0);
    assert_eq!(value(&text, "outages_total"), Some(1.0));
    // It goes on telling how long it has been.
    wait_for(&file, "last_ack_age_seconds", |v| v > 1.5);
    wait_for(&file, "heartbeats_failed_total", |v| v >= 2.0);
    server.start_again();
    wait_for(&file, "registered", |v| v == 1.0);
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
    let text = std::fs::read_to_string(&file).expect("it stays");
    assert_eq!(value(&text, "registered"), Some(0.0));
    let left: Vec<_> = std::fs::read_dir(&directory).expect("there").flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn a_reader_never_sees_half_of_it_and_it_changes_once_an_interval() {
    let server = any_bucket().0;
    let file = scratch("metrics").join("aegis.prom");
    let _agent = agent(&server, "200ms", &file).spawn();
    wait_for(&file, "registered", |v| v == 1.0);
    let (start, mut inodes) = (Instant::now(), Vec::new());
    while start.elapsed() < secs(3) {
        let text = std::fs::read_to_string(&file).expect("always there");
        assert!(text.contains("build_info") && text.ends_with(" 1\n"), "{text}");
        let modified = std::fs::metadata(&file).expect("there");
        let version = (modified.ino(), modified.mtime_nsec());
        if inodes.last() != Some(&version) {
            inodes.push(version);
        }
        std::thread::sleep(millis(1));
    }
    // 15 intervals, the first version and a moment.
    assert!((8..=17).contains(&inodes.len()), "{} versions in 3 s", inodes.len());
}

#[test]
fn a_file_that_cannot_be_written_is_said_once_and_stops_nothing() {
    let server = any_bucket().0;
    let mut agent = agent(&server, "200ms", Path::new("/nowhere/aegis.prom")).spawn();
    let line = agent.wait_for_line("cannot write the metrics file /nowhere/aegis.prom: ", secs(5));
    assert!(line.text.contains("warning: ") && line.text.ends_with("no such file or directory"));
    agent.wait_for_line("registered orders-api/host-1", secs(5));
    let mut registry = Registry::at(&server.url());
    let watch = registry.watch("service-instances__orders-api__host-1");
    watch.wait_for(4, secs(5));
    assert_eq!(agent.lines_with("metrics file").len(), 1, "{}", agent.stderr());
}
