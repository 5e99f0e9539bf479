//! A disk that is really full: under the server's store, and under the metrics.
//! Needs root for a small tmpfs; skipped aloud without.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::json;

use crate::harness::agent::{Invocation, aegis};
use crate::harness::fault::{flat, say};
use crate::harness::registry::Registry;
use crate::harness::scene::{KEY, REGISTERED, any_bucket};
use crate::harness::server::{Server, Setup};
use crate::harness::watcher::Watcher;
use crate::harness::{eventually, millis, scratch, secs, time_passes};

/// A tmpfs, which can be filled up to its last byte.
struct Disk(PathBuf);

impl Disk {
    /// `None`, said aloud, where that is not permitted.
    fn mounted(at: &Path, size: &str) -> Option<Disk> {
        std::fs::create_dir_all(at).expect("a directory");
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        let output = mount.args(["-t", "tmpfs", "-o", &options, "tests"]).arg(at).output();
        let output = output.expect("mount runs");
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            say(&format!("SKIPPED: no disk can be filled here: {}", why.trim()));
            return None;
        }
        Some(Disk(at.to_owned()))
    }

    fn fill(&self) {
        let path = self.0.join("filler");
        let mut size = 1 << 20;
        let mut text = Vec::new();
        while size > 0 {
            text.resize(size, b'x');
            let mut options = std::fs::OpenOptions::new();
            let file = options.create(true).append(true).open(&path);
            let written = file.and_then(|mut file| std::io::Write::write(&mut file, &text));
            if !written.is_ok_and(|count| count > 0) {
                size /= 2;
            }
        }
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.join("filler")).expect("removes the filler");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// The disk is full for longer than the TTL. The server says so with each write;
/// what it then stores all the same is what expiry has made room for. One that
/// `gives_up` answers no write any more, until it is started again.
fn under_the_store(version: &str, gives_up: bool) {
    let mut server = Server::absent(Setup { version, ..Setup::default() });
    let Some(disk) = Disk::mounted(&server.directory().join("store"), "4m") else { return };
    server.start_again();
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({}));
    let mut agent = short(&server.url()).spawn();
    agent.wait_for_line(REGISTERED, secs(5));
    let before = agent.usage();
    let mut watcher = Watcher::start(&server.url(), &[]);
    watcher.wait_for("up host-1", secs(5));
    disk.fill();
    let filled = Instant::now();
    // What is left of the last page of each file takes some heartbeats.
    let lost = agent.wait_for_line("lost orders-api/host-1", secs(30));
    let expected = if gives_up { "no answer in time" } else { "the server's disk is full (10077)" };
    let hint = "hint: free some room on the disk of the server's store";
    assert!(lost.text.contains(expected), "{version}: {}", lost.text);
    assert!(gives_up || lost.text.contains(hint), "{version}: {}", lost.text);
    for verb in ["list", "check", "cleanup"] {
        let output = aegis(&[verb, "--timeout=1s", "-s", &server.url()]).run();
        assert!(output.took < secs(6), "P4: {verb} took {:?}", output.took);
    }
    time_passes(secs(5));
    assert!(agent.is_running());
    // Room for a heartbeat comes and goes with what has expired.
    assert!(agent.lines().len() <= 16, "no flood: {}", agent.stderr());

    disk.empty();
    if gives_up {
        // Room alone is no cure.
        let revision = registry.last(KEY).map_or(0, |entry| entry.revision);
        time_passes(secs(3));
        assert!(registry.last(KEY).is_none_or(|entry| entry.revision == revision));
        server.restart();
        registry.reconnect();
    }
    let emptied = Instant::now();
    let ended = crate::harness::time::now();
    let fresh = eventually(secs(3), "P2: back within 3 s", || match registry.last(KEY) {
        Some(entry) if entry.stored > ended && !entry.is_marker() => Ok(entry),
        other => Err(format!("{other:?}: {}", agent.stderr())),
    });
    let back = emptied.elapsed();
    assert!((fresh.stored - fresh.last_heartbeat()).abs() < time::Duration::SECOND, "{fresh:?}");
    eventually(secs(4), "it is told as alive", || {
        let last = watcher.words().into_iter().rfind(|word| word.contains("host-1"));
        if last.as_deref() == Some("up host-1") { Ok(()) } else { Err(watcher.words().join(", ")) }
    });
    let seen = registry.last(KEY).map_or(0, |entry| entry.revision);
    eventually(secs(3), "it goes on", || match registry.last(KEY) {
        Some(entry) if entry.revision > seen + 1 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    flat(&agent, (before.threads, before.descriptors));
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
    assert!(registry.last(KEY).is_none_or(|entry| entry.is_marker()), "deregistered");
    watcher.stop();
    say(&format!(
        "fault: disk full under {version}, {:.1} s (TTL 4 s); said after {:.1} s, back {:.2} s after \
         there was room",
        (emptied - filled).as_secs_f64(),
        (lost.at - filled).as_secs_f64(),
        back.as_secs_f64()
    ));
}

fn short(url: &str) -> Invocation {
    aegis(&["run", "--service=orders-api", "--instance=host-1", "--ttl=4s", "--interval=500ms"])
        .arg("-s")
        .arg(url)
}

#[test]
fn a_full_disk_under_a_server_of_2_11_is_said_and_borne() {
    under_the_store("2.11.11", false);
}

#[test]
fn a_full_disk_under_a_server_of_2_12_is_said_and_borne() {
    under_the_store("2.12.8", false);
}

#[test]
fn a_full_disk_under_a_server_of_2_15_is_said_and_borne() {
    under_the_store("2.15.1", true);
}

/// The old metrics stay, whole, until there is room; nothing half-written does.
#[test]
fn a_full_disk_under_the_metrics_stops_no_beat() {
    let (server, mut registry) = any_bucket();
    let watch = registry.watch(KEY);
    let place = scratch("metrics");
    let Some(disk) = Disk::mounted(&place, "1m") else { return };
    let file = place.join("a.prom");
    let option = format!("--metrics-file={}", file.display());
    let mut agent = short(&server.url()).arg(&option).spawn();
    let read = || std::fs::read_to_string(&file).map_err(|error| error.to_string());
    let sent = |text: &str| {
        let line = text.lines().find(|l| l.starts_with("aegis_agent_heartbeats_sent_total"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
    };
    eventually(secs(5), "metrics of two heartbeats", || {
        let text = read()?;
        if sent(&text) >= Some(2) { Ok(()) } else { Err(text) }
    });
    disk.fill();
    let line = agent.wait_for_line("cannot write the metrics file", secs(5));
    assert!(line.text.ends_with("no space left on device"), "{}", line.text);
    let old = read().expect("the old text is there");
    assert!(old.ends_with('\n') && sent(&old).is_some(), "{old}");
    let seen = watch.seen().len();
    watch.wait_for(seen + 8, secs(6));
    assert_eq!(read().as_deref(), Ok(old.as_str()));
    disk.empty();
    let before = sent(&old);
    eventually(secs(3), "the metrics go on", || {
        let text = read()?;
        if sent(&text) > before.map(|count| count + 8) { Ok(()) } else { Err(text) }
    });
    for pair in watch.seen().windows(2) {
        let apart = pair[1].stored - pair[0].stored;
        assert!(apart < millis(1_500), "{apart} between two heartbeats");
    }
    assert_eq!(agent.lines_with("metrics file").len(), 1, "{}", agent.stderr());
    let names = std::fs::read_dir(&place).expect("a directory").flatten();
    let names: Vec<_> = names.map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["a.prom"], "nothing is left behind");
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
}
