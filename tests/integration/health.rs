//! The health of the service that an agent speaks for: failing, flapping,
//! hanging, absent and noisy checks.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::harness::agent::{Invocation, aegis};
use crate::harness::registry::{Entry, Registry, Watch};
use crate::harness::server::Server;
use crate::harness::{eventually, free_port, millis, nothing_happens_for, scratch, secs};

const KEY: &str = "service-instances__orders-api__host-1";
const UNHEALTHY: &str = "orders-api/host-1 is UNHEALTHY: ";
const AGAIN: &str = "orders-api/host-1 is healthy again: ";

/// A server, a look at what is published, and an agent with an interval of
/// 1 s, which a loaded machine takes to start a shell at worst.
fn scene() -> (Server, Watch, Invocation) {
    let server = Server::any();
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({}));
    let watch = registry.watch(KEY);
    let agent = aegis(&["run", "--service=orders-api", "--instance=host-1", "--ttl=5s"])
        .arg("--interval=1s")
        .arg(&format!("-s={}", server.url()));
    (server, watch, agent)
}

fn status(entry: &Entry) -> String {
    entry.json()["status"].as_str().unwrap_or_default().to_owned()
}

/// Waits until the newest entry has this status; the number of entries then.
fn wait_for_status(watch: &Watch, wanted: &str, within: Duration) -> usize {
    eventually(within, &format!("the status is {wanted}"), || {
        let seen = watch.seen();
        match seen.last().map(status) {
            Some(last) if last == wanted => Ok(seen.len()),
            last => Err(format!("{last:?}")),
        }
    })
}

/// An executable script.
fn script(directory: &Path, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = directory.join("check");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("writes the script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    path
}

/// Processes with this in their command line.
fn running(text: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").expect("Linux").flatten();
    let lines = processes.filter_map(|process| {
        let line = std::fs::read(process.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(text).then_some(line)
    });
    lines.collect()
}

#[test]
fn three_failures_in_a_row_are_unhealthy_and_three_successes_well_again() {
    let (_server, watch, agent) = scene();
    let directory = scratch("health");
    let flag = directory.join("well");
    std::fs::write(&flag, "").expect("well");
    let check = format!("sh -c '[ -e \"{}\" ]'", flag.display());
    let mut agent = agent.arg("--health-exec").arg(&check).spawn();
    watch.wait_for(5, secs(20));
    assert!(watch.seen().iter().all(|entry| status(entry) == "ACTIVE"));

    std::fs::remove_file(&flag).expect("unwell");
    wait_for_status(&watch, "UNHEALTHY", secs(20));
    let line = agent.wait_for_line(UNHEALTHY, secs(1));
    let words = "3 health checks in a row failed, the last: sh: exit status: 1";
    assert!(line.text.ends_with(words), "{}", line.text);
    let seen = watch.seen().len();
    watch.wait_for(seen + 3, secs(20));

    std::fs::write(&flag, "").expect("well");
    wait_for_status(&watch, "ACTIVE", secs(20));
    agent.wait_for_line(AGAIN, secs(1));
    assert_eq!(agent.lines().len(), 3, "each change is said once: {}", agent.stderr());
}

#[test]
fn a_change_is_published_at_once_and_not_with_the_next_heartbeat() {
    let (server, watch, _) = scene();
    let mut agent = aegis(&["run", "--service=orders-api", "--instance=host-1", "--ttl=10m"])
        .arg("--interval=3m")
        .env("AEGIS_STALE_AFTER", "10m")
        .arg("--health-exec=false")
        .arg("--health-failures=1")
        .arg(&format!("-s={}", server.url()))
        .spawn();
    agent.wait_for_line("orders-api/host-1 is UNHEALTHY: a health check failed", secs(5));
    wait_for_status(&watch, "UNHEALTHY", secs(1));
}

#[test]
fn a_flapping_check_changes_nothing() {
    let (_server, watch, agent) = scene();
    let directory = scratch("health");
    let flag = directory.join("flag");
    let flag = flag.display();
    // Fails twice, succeeds once.
    let text = format!("echo x >>'{flag}'; [ $(($(wc -l <'{flag}') % 3)) = 0 ]");
    let check = script(&directory, &text);
    let agent = agent.arg(&format!("--health-exec={}", check.display())).spawn();
    eventually(secs(40), "six checks", || {
        let lines = std::fs::read_to_string(flag.to_string()).unwrap_or_default().lines().count();
        if lines >= 6 { Ok(()) } else { Err(format!("{lines} checks")) }
    });
    assert!(watch.seen().iter().all(|entry| status(entry) == "ACTIVE"));
    assert_eq!(agent.lines().len(), 1, "{}", agent.stderr());
}

#[test]
fn a_hanging_check_delays_no_heartbeat_and_ends_with_all_its_children() {
    let (_server, watch, agent) = scene();
    let directory = scratch("health");
    // Deaf to SIGTERM, with a child of its own; the number tells it apart.
    let number = 1_000_000 + u32::from(free_port());
    let check = script(&directory, &format!("trap '' TERM\nsleep {number} &\nsleep {number}"));
    let mut agent =
        agent.arg(&format!("--health-exec={}", check.display())).arg("--health-timeout=1s").spawn();
    let line = agent.wait_for_line(UNHEALTHY, secs(20));
    assert!(line.text.ends_with("check: not done within 1s"), "{}", line.text);
    let seen = watch.seen().len();
    watch.wait_for(seen + 4, secs(20));
    for pair in watch.seen().windows(2) {
        let apart = pair[1].stored - pair[0].stored;
        // Two seconds if a heartbeat waited for the check.
        assert!(apart < millis(1_800), "{apart} between two heartbeats");
    }
    // At most the check of now runs, not those before: two sleeps and a shell.
    assert!(running(&format!("sleep {number}")).len() <= 2);
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
    eventually(secs(2), "nothing of the check is left", || {
        let left = running(&format!("sleep {number}"));
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

#[test]
fn what_an_ended_check_leaves_behind_is_ended_too() {
    let (_server, watch, agent) = scene();
    let directory = scratch("health");
    let number = 2_000_000 + u32::from(free_port());
    let check = script(&directory, &format!("sleep {number} &\nexit 0"));
    let _agent = agent.arg(&format!("--health-exec={}", check.display())).spawn();
    watch.wait_for(5, secs(20));
    assert!(watch.seen().iter().all(|entry| status(entry) == "ACTIVE"));
    assert!(running(&format!("sleep {number}")).len() <= 1, "they pile up");
}

#[test]
fn a_program_that_is_not_there_is_a_failure_with_its_name() {
    let (_server, watch, agent) = scene();
    let mut agent = agent.arg("--health-exec=/nowhere/check --deep").spawn();
    let line = agent.wait_for_line(UNHEALTHY, secs(20));
    let words = "/nowhere/check: cannot be run: no such file or directory";
    assert!(line.text.ends_with(words), "{}", line.text);
    wait_for_status(&watch, "UNHEALTHY", secs(1));
}

#[test]
fn ten_megabytes_of_output_are_nobodys_business() {
    let (_server, watch, agent) = scene();
    let noise = "sh -c 'head -c 10000000 /dev/zero; head -c 10000000 /dev/zero >&2'";
    let agent = agent.arg("--health-exec").arg(noise).spawn();
    watch.wait_for(6, secs(20));
    assert!(watch.seen().iter().all(|entry| status(entry) == "ACTIVE"), "{}", agent.stderr());
    assert_eq!(agent.lines().len(), 1, "{}", agent.stderr());
    assert!(agent.usage().peak_kib < 30_000, "{:?}", agent.usage());
}

#[test]
fn a_check_inherits_neither_secrets_nor_descriptors() {
    let (server, watch, _) = scene();
    let directory = scratch("health");
    let seen = directory.join("seen");
    let check = script(
        &directory,
        &format!("{{ env; ls -l /proc/$$/fd; echo end; }} >'{}'", seen.display()),
    );
    // The server asks nobody for a login, and takes one all the same.
    let agent = aegis(&["run"])
        .env("AEGIS_SERVICE", "orders-api")
        .env("AEGIS_INSTANCE", "host-1")
        .env("AEGIS_HEALTH_EXEC", &check.display().to_string())
        .env("NATS_URL", &server.url())
        .env("NATS_USER", "agent")
        .env("NATS_PASSWORD", "secret-1")
        .env("DATABASE_PASSWORD", "secret-2")
        .env("NOTIFY_SOCKET", "@nobody")
        .env("TZ", "Europe/Paris")
        .spawn();
    let text = eventually(secs(5), "the check has run", || {
        let text = std::fs::read_to_string(&seen).map_err(|e| e.to_string())?;
        if text.ends_with("end\n") { Ok(text) } else { Err(text) }
    });
    watch.wait_for(1, secs(5));
    for word in ["secret", "NATS", "AEGIS", "NOTIFY", "PASSWORD"] {
        assert!(!text.contains(word), "{word} in {text}");
    }
    assert!(text.contains("TZ=Europe/Paris") && text.contains("PATH="), "{text}");
    // All of ours are sockets: NATS, and the pair that signals wake.
    assert!(text.contains(" 0 -> /dev/null") && !text.contains("socket:"), "{text}");
    drop(agent);
}

#[test]
fn a_port_that_takes_connections_is_well_and_a_standby_comes_back_as_standby() {
    let (_server, watch, agent) = scene();
    let port = free_port();
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("a free port");
    let mut agent = agent
        .arg("--standby")
        .arg(&format!("--health-tcp=localhost:{port}"))
        .arg("--health-failures=2")
        .spawn();
    watch.wait_for(3, secs(20));
    assert!(watch.seen().iter().all(|entry| status(entry) == "STANDBY"));
    drop(listener);
    wait_for_status(&watch, "UNHEALTHY", secs(20));
    let line = agent.wait_for_line(UNHEALTHY, secs(1));
    assert!(line.text.ends_with(&format!("localhost:{port}: connection refused")), "{}", line.text);
    let _listener = TcpListener::bind(("127.0.0.1", port)).expect("still free");
    wait_for_status(&watch, "STANDBY", secs(20));
}

#[test]
fn an_outage_of_the_registry_does_not_hurry_the_checks() {
    let (mut server, watch, _) = scene();
    let directory = scratch("health");
    let count = directory.join("count");
    let check = script(&directory, &format!("echo x >>'{}'", count.display()));
    let mut agent = aegis(&["run", "--service=orders-api", "--instance=host-1"])
        .arg(&format!("--health-exec={}", check.display()))
        .arg(&format!("-s={}", server.url()))
        .spawn();
    watch.wait_for(1, secs(5));
    server.kill();
    agent.wait_for_line("still without registry", secs(5));
    let checks = || std::fs::read_to_string(&count).unwrap_or_default().lines().count();
    let before = checks();
    nothing_happens_for(secs(6));
    // It has tried to connect four times or more.
    let during = checks() - before;
    assert!(during <= 2, "{during} checks in 6 s, with an interval of 10 s");
}

// What checks leave behind, and what they may see.

/// Two processes that have left the check's group, one under the other, and
/// one that ends by itself after its parent. `number` tells them apart.
fn deserters(directory: &Path, number: u32) -> PathBuf {
    let text = format!(
        "setsid sh -c 'sleep {number} & exec sleep {number}' &\n(sleep 0.05 &)\nsleep 0.02\nexit 0"
    );
    script(directory, &text)
}

/// The processes whose parent this is, with their states.
fn children(parent: u32) -> Vec<(u32, char)> {
    let processes = std::fs::read_dir("/proc").expect("Linux").flatten();
    let found = processes.filter_map(|process| {
        let stat = std::fs::read_to_string(process.path().join("stat")).ok()?;
        let pid = stat.split(' ').next()?.parse().ok()?;
        let mut rest = stat.rsplit(')').next()?.split_whitespace();
        let state = rest.next()?.chars().next()?;
        (rest.next()?.parse() == Ok(parent)).then_some((pid, state))
    });
    found.collect()
}

fn zombies(parent: u32) -> usize {
    children(parent).iter().filter(|(_, state)| *state == 'Z').count()
}

/// After some checks nothing of them is left but what the last one started.
fn nothing_piles_up(watch: &Watch, agent: u32, number: u32) {
    watch.wait_for(6, secs(20));
    assert!(watch.seen().iter().all(|entry| status(entry) == "ACTIVE"));
    for what in ["piles up", "still piles up"] {
        eventually(secs(2), what, || {
            let left = running(&format!("sleep {number}"));
            let zombies = zombies(agent);
            if left.is_empty() && zombies == 0 {
                return Ok(());
            }
            Err(format!("{left:?}, {zombies} zombies"))
        });
        nothing_happens_for(millis(700));
    }
}

#[test]
fn what_leaves_the_group_of_its_check_is_ended_too() {
    let (_server, watch, agent) = scene();
    let number = 3_000_000 + u32::from(free_port());
    let check = deserters(&scratch("health"), number);
    let mut agent = agent.arg(&format!("--health-exec={}", check.display())).spawn();
    nothing_piles_up(&watch, agent.pid(), number);
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
    assert_eq!(running(&format!("sleep {number}")), [""; 0]);
}

#[test]
fn a_late_check_ends_with_what_has_left_its_group() {
    let (_server, watch, agent) = scene();
    let number = 4_000_000 + u32::from(free_port());
    let check = script(&scratch("health"), &format!("setsid sleep {number} &\nsleep {number}"));
    let mut agent = agent
        .arg(&format!("--health-exec={}", check.display()))
        .arg("--health-timeout=500ms")
        .spawn();
    watch.wait_for(5, secs(20));
    assert!(running(&format!("sleep {number}")).len() <= 2, "they pile up");
    // In the middle of a check.
    eventually(secs(5), "a check runs", || match running(&format!("sleep {number}")).len() {
        2 => Ok(()),
        count => Err(format!("{count} of it")),
    });
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
    assert_eq!(running(&format!("sleep {number}")), [""; 0]);
}

/// As process 1 of a container, started by a shell beside the service.
#[test]
fn process_1_of_a_container_reaps_everything_and_ends_only_what_checks_left() {
    let (_server, watch, agent) = scene();
    let number = 5_000_000 + u32::from(free_port());
    let service = number + 1_000_000;
    let check = deserters(&scratch("health"), number);
    let script =
        format!("sleep {service} & (setsid sleep {service} &); (sleep 0.3 &); exec \"$@\"");
    let words =
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", &script, "sh"];
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: root is needed for a pid namespace");
        return;
    }
    let agent = agent
        .arg(&format!("--health-exec={}", check.display()))
        .wrapped(&words.map(str::to_owned))
        .spawn();
    watch.wait_for(1, secs(10));
    let inner = children(agent.pid())[0].0;
    nothing_piles_up(&watch, inner, number);
    let mut alive = running(&format!("sleep {service}"));
    alive.retain(|line| line.starts_with("sleep"));
    assert_eq!(alive.len(), 2, "the service was ended: {alive:?}");
}

#[test]
fn a_check_cannot_read_the_secrets_of_an_agent_of_the_same_user() {
    use std::os::unix::fs::PermissionsExt;
    let (server, watch, _) = scene();
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: root is needed to run the agent as another user");
        return;
    }
    let directory = scratch("health");
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777)).expect("chmod");
    let (seen, metrics) = (directory.join("seen"), directory.join("a.prom"));
    let file = seen.display();
    let text = format!(
        "cat /proc/$PPID/environ /proc/$PPID/mem >'{file}' 2>'{file}.why'; echo end >>'{file}'"
    );
    let check = script(&directory, &text);
    let other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let password = "exec \"$@\" --user agent --password-file <(echo secret-1)";
    let wrapper = [&other[..], &["bash", "-c", password, "bash"]].concat();
    let mut agent = aegis(&["run", "--service=orders-api", "--instance=host-1", "--ttl=5s"])
        .arg("--interval=500ms")
        .arg(&format!("--health-exec={}", check.display()))
        .arg(&format!("--metrics-file={}", metrics.display()))
        .env("NATS_URL", &server.url())
        .env("DATABASE_PASSWORD", "secret-2")
        .wrapped(&wrapper.into_iter().map(str::to_owned).collect::<Vec<_>>())
        .spawn();
    let text = eventually(secs(10), "the check has run", || {
        let text = std::fs::read(&seen).map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&text).into_owned();
        if text.ends_with("end\n") { Ok(text) } else { Err(text) }
    });
    assert_eq!(text, "end\n");
    // What is its own stays open to it: the metrics, its pipe, a reload.
    watch.wait_for(3, secs(10));
    eventually(secs(5), "the metrics are written", || {
        std::fs::read_to_string(&metrics).map_err(|error| error.to_string())
    });
    agent.signal("HUP");
    agent.wait_for_line("reloaded the settings of orders-api/host-1", secs(5));
    agent.wait_for_lines("registered orders-api/host-1", 2, secs(5));
    assert_eq!(agent.lines_with("warning").len(), 0, "{}", agent.stderr());
}
