//! What systemd is told, seen by a datagram socket of the test's own.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::agent::{Invocation, aegis};
use crate::harness::document::{quoted, table};
use crate::harness::registry::Registry;
use crate::harness::scene::{KEY, any_bucket};
use crate::harness::server::{Server, Setup};
use crate::harness::{
    eventually, free_port, millis, nothing_happens_for, scratch, secs, time_passes,
};

/// The service manager's end.
struct Manager {
    socket: UnixDatagram,
    name: String,
    heard: Vec<(Instant, String)>,
}

impl Manager {
    /// In the abstract name space.
    fn new() -> Manager {
        let name = format!("aegis-agent-test-{}-{}", std::process::id(), free_port());
        let address = SocketAddr::from_abstract_name(&name).expect("an abstract name");
        let socket = UnixDatagram::bind_addr(&address).expect("binds it");
        Manager::on(socket, format!("@{name}"))
    }

    /// At a path, as systemd has it.
    fn at(path: &Path) -> Manager {
        let socket = UnixDatagram::bind(path).expect("binds a path");
        Manager::on(socket, path.display().to_string())
    }

    fn on(socket: UnixDatagram, name: String) -> Manager {
        socket.set_nonblocking(true).expect("does not block");
        Manager { socket, name, heard: Vec::new() }
    }

    /// Everything heard so far.
    fn hear(&mut self) -> &[(Instant, String)] {
        let mut buffer = [0; 8192];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            let text = String::from_utf8(buffer[..length].to_vec()).expect("UTF-8");
            self.heard.push((Instant::now(), text));
        }
        &self.heard
    }

    /// The first message from number `from` on that holds `text` in a line of
    /// its own start, with its number and its time.
    fn wait_for(&mut self, from: usize, text: &str, within: Duration) -> (usize, Instant, String) {
        eventually(within, &format!("a message with {text:?}"), || {
            let heard = self.hear();
            let found = heard
                .iter()
                .enumerate()
                .skip(from)
                .find(|(_, (_, message))| message.lines().any(|line| line.starts_with(text)));
            match found {
                Some((number, (at, message))) => Ok((number, *at, message.clone())),
                None => Err(format!("{heard:#?}")),
            }
        })
    }
}

fn agent(url: &str, manager: &Manager) -> Invocation {
    aegis(&["run", "--service", "orders-api", "--instance", "host-1", "-s", url])
        .env("AEGIS_TTL", "2s")
        .env("AEGIS_INTERVAL", "500ms")
        .env("NOTIFY_SOCKET", &manager.name)
}

/// `14:02:11` and no more.
fn is_time_of_day(text: &str) -> bool {
    text.len() == 9
        && text.bytes().enumerate().all(|(at, b)| match at {
            2 | 5 => b == b':',
            8 => b == b'Z',
            _ => b.is_ascii_digit(),
        })
}

#[test]
fn ready_comes_with_the_first_acknowledgement_and_the_status_says_so() {
    let (server, mut registry) = any_bucket();
    let directory = std::env::temp_dir().join(format!("aegis-notify-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a short path");
    let mut manager = Manager::at(&directory.join("notify"));
    let _agent = agent(&server.url(), &manager).spawn();
    let (_, _, message) = manager.wait_for(0, "READY=1", secs(5));
    let before = &manager.heard[0].1;
    assert_eq!(
        before,
        &format!("STATUS=registering orders-api/host-1; trying 127.0.0.1:{}", server.port())
    );
    let status = message.strip_prefix("READY=1\nSTATUS=").expect("one datagram");
    let words: Vec<&str> = status.split(", ").collect();
    let revision = registry.last(KEY).expect("registered").revision;
    assert_eq!(words[0], "registered orders-api/host-1");
    let said: u64 = words[1].strip_prefix("revision ").expect("its revision").parse().expect("n");
    assert!((1..=revision).contains(&said), "{status}");
    assert!(is_time_of_day(words[2].strip_prefix("last ack ").expect("when")), "{status}");
    let took = words[3].strip_suffix("us").or(words[3].strip_suffix("ms")).expect("a duration");
    assert!(took.parse::<f64>().is_ok(), "{status}");
    let _ = std::fs::remove_dir_all(directory);
}

#[test]
fn without_a_registry_it_is_ready_after_ten_seconds() {
    let absent = Server::absent(Setup::default());
    let mut frozen = Server::any();
    frozen.freeze();
    let mut managers = [Manager::new(), Manager::new()];
    let started = Instant::now();
    let mut agents = [&absent, &frozen]
        .map(|server| server.url())
        .into_iter()
        .zip(&managers)
        .map(|(url, manager)| agent(&url, manager).env("WATCHDOG_USEC", "2000000").spawn());
    let _agents = [agents.next(), agents.next()];
    for (manager, why) in
        managers.iter_mut().zip(["connection refused", "connected, but the server stays silent"])
    {
        let port = if why == "connection refused" { absent.port() } else { frozen.port() };
        let (_, at, message) = manager.wait_for(0, "READY=1", secs(13));
        assert_eq!(message, "READY=1");
        let after = at - started;
        assert!(after >= millis(9_900) && after < millis(12_000), "{after:?}");
        let (_, _, status) = manager.wait_for(0, "STATUS=no registry since ", secs(1));
        let rest = status.strip_prefix("STATUS=no registry since ").expect("found by it");
        assert!(is_time_of_day(&rest[..9]), "{status}");
        assert_eq!(&rest[9..], format!(": {why}; trying 127.0.0.1:{port}"));
        assert_fed(manager, secs(2));
    }
}

/// The watchdog would not have bitten: from the first to the last message.
fn assert_fed(manager: &mut Manager, watchdog: Duration) {
    let pings: Vec<Instant> =
        manager.hear().iter().filter(|(_, m)| m == "WATCHDOG=1").map(|(at, _)| *at).collect();
    assert!(pings.len() > 4, "{:#?}", manager.heard);
    for pair in pings.windows(2) {
        assert!(pair[1] - pair[0] < watchdog, "no sign of life for {:?}", pair[1] - pair[0]);
    }
}

#[test]
fn the_status_tells_of_an_outage_and_of_its_end() {
    let (mut server, _registry) = any_bucket();
    let mut manager = Manager::new();
    let _agent = agent(&server.url(), &manager).spawn();
    let (first, ..) = manager.wait_for(0, "READY=1", secs(5));
    server.kill();
    let (lost, ..) = manager.wait_for(first + 1, "STATUS=no registry since ", secs(5));
    server.start_again();
    let (back, _, message) = manager.wait_for(lost + 1, "STATUS=registered orders-api", secs(10));
    assert!(!message.contains("READY"), "{message}");
    // Each heartbeat has news: its revision and its time.
    manager.wait_for(back + 1, "STATUS=registered orders-api", secs(5));
}

/// A status without what differs from host to host and from time to time.
fn shape(status: &str) -> String {
    let is_number = |text: &str| text.parse::<f64>().is_ok();
    let mut words: Vec<String> = Vec::new();
    for word in status.split(' ') {
        let bare = word.trim_end_matches([',', ';', ':']);
        let took = bare.strip_suffix("us").or(bare.strip_suffix("ms")).is_some_and(is_number);
        let known = match bare {
            _ if is_time_of_day(bare) => "TIME",
            _ if bare.rsplit_once(':').is_some_and(|(_, port)| is_number(port)) => "SERVER",
            _ if took || is_number(bare) => "N",
            _ => bare,
        };
        words.push(word.replacen(bare, known, 1));
    }
    words.join(" ").replace("SERVER, SERVER", "SERVER")
}

/// Each row of the table in docs/systemd.md is said in the life of one agent, and
/// nothing else.
#[test]
fn the_statuses_are_those_of_the_document() {
    let rows = table("systemd.md", "status");
    let documented: Vec<String> = rows.iter().map(|row| shape(quoted(&row[0])[0])).collect();
    // What may stand after the name, and the cause of an outage.
    let registered = rows.iter().find(|row| row[0].contains("registered ")).expect("its row");
    let additions = quoted(&registered[1]);
    assert_eq!(additions, ["as UNHEALTHY", "as STANDBY (draining: kernel upgrade)"]);

    let directory = scratch("statuses");
    let (healthy, drain) = (directory.join("healthy"), directory.join("drain"));
    std::fs::write(&healthy, "").expect("writes");
    let mut server = Server::absent(Setup::default());
    let mut manager = Manager::new();
    let mut watched = agent(&server.url(), &manager)
        .env("AEGIS_HEALTH_EXEC", &format!("test -e {}", healthy.display()))
        .env("AEGIS_HEALTH_FAILURES", "1")
        .env("AEGIS_DRAIN_FILE", &drain.display().to_string())
        .spawn();
    let (lost, ..) = manager.wait_for(0, "STATUS=no registry since ", secs(5));
    server.start_again();
    let (first, ..) = manager.wait_for(lost, "STATUS=registered orders-api/host-1, ", secs(8));
    std::fs::remove_file(&healthy).expect("it is there");
    let (sick, ..) = manager.wait_for(first, "STATUS=registered orders-api/host-1 as UN", secs(5));
    std::fs::write(&drain, "kernel upgrade\n").expect("writes");
    let (drained, ..) = manager.wait_for(sick, "STATUS=registered orders-api/host-1 as S", secs(5));
    let other = Manager::new();
    let _duplicate = agent(&server.url(), &other).spawn();
    eventually(secs(8), "the duplicate agent is named", || {
        let heard = &manager.hear()[drained..];
        let named = heard.iter().any(|(_, message)| {
            message.contains("(host ")
                && message.ends_with(" writes this entry too (duplicate agent)")
        });
        if named { Ok(()) } else { Err(format!("{heard:#?}")) }
    });
    watched.signal("TERM");
    manager.wait_for(drained, "STATUS=deregistering", secs(3));
    assert_eq!(watched.wait_exit(secs(6)), 0);

    let mut said = Vec::new();
    for (_, message) in manager.hear() {
        for status in message.lines().filter_map(|line| line.strip_prefix("STATUS=")) {
            let (status, rest) = status.split_once("; another agent ").unwrap_or((status, ""));
            assert!(rest.is_empty() || rest.contains("duplicate agent"), "{message}");
            let plain = additions.iter().fold(status.to_owned(), |status, addition| {
                status.replace(&format!(" {addition}"), "")
            });
            said.push(shape(&plain));
        }
    }
    for status in &documented {
        assert!(said.contains(status), "never said: {status}\n{said:#?}");
    }
    for status in &said {
        let is_outage = status.starts_with("no registry since TIME: ");
        assert!(is_outage || documented.contains(status), "not in the document: {status}");
    }
}

#[test]
fn the_watchdog_is_fed_by_the_loop_whatever_the_server_does() {
    let (mut server, _registry) = any_bucket();
    let mut manager = Manager::new();
    let agent = agent(&server.url(), &manager).env("WATCHDOG_USEC", "2000000").spawn();
    manager.wait_for(0, "READY=1", secs(5));
    server.freeze();
    let end = Instant::now() + secs(7);
    while Instant::now() < end {
        manager.hear();
        time_passes(millis(5));
    }
    assert_fed(&mut manager, secs(2));
    // And by nothing else: an agent that is stopped gives no sign of life.
    agent.signal("STOP");
    time_passes(millis(100));
    let before = manager.hear().len();
    nothing_happens_for(millis(1_500));
    assert_eq!(manager.hear().len(), before);
    agent.signal("CONT");
    manager.wait_for(before, "WATCHDOG=1", secs(2));
}

#[test]
fn a_watchdog_for_another_process_is_not_fed() {
    let (server, _registry) = any_bucket();
    let mut manager = Manager::new();
    let _agent = agent(&server.url(), &manager)
        .env("WATCHDOG_USEC", "200000")
        .env("WATCHDOG_PID", "1")
        .spawn();
    manager.wait_for(0, "READY=1", secs(5));
    nothing_happens_for(millis(600));
    assert!(manager.hear().iter().all(|(_, message)| !message.contains("WATCHDOG")));
}

#[test]
fn a_manager_that_does_not_read_delays_nothing() {
    let (server, mut registry) = any_bucket();
    let manager = Manager::new();
    let watch = registry.watch(KEY);
    let mut agent = agent(&server.url(), &manager)
        .env("AEGIS_INTERVAL", "10ms")
        .env("WATCHDOG_USEC", "1000")
        .spawn();
    // Far more messages than a socket holds (net.unix.max_dgram_qlen).
    watch.wait_for(600, secs(20));
    assert!(agent.is_running());
    assert_eq!(agent.lines().len(), 1, "{}", agent.stderr());
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
}

#[test]
fn a_manager_that_is_not_there_is_a_warning() {
    let (server, _registry) = any_bucket();
    let mut manager = Manager::new();
    manager.name = "/nowhere/notify".into();
    let mut agent = agent(&server.url(), &manager).spawn();
    agent.wait_for_line("cannot notify systemd at /nowhere/notify: ", secs(5));
    agent.wait_for_line("registered orders-api/host-1", secs(5));
}

#[test]
fn stopping_is_announced_before_the_entry_goes() {
    let (server, _registry) = any_bucket();
    let mut manager = Manager::new();
    let mut agent = agent(&server.url(), &manager).spawn();
    manager.wait_for(0, "READY=1", secs(5));
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
    let last = manager.hear().last().expect("heard").1.clone();
    assert_eq!(last, "STOPPING=1\nSTATUS=deregistering orders-api/host-1");
}

/// "both say so in the log once and in every status, naming the other's host
/// and pid, until it ends"
#[test]
fn the_status_names_a_duplicate_until_it_is_gone() {
    let (server, _registry) = any_bucket();
    let mut manager = Manager::new();
    let first = agent(&server.url(), &manager).spawn();
    let (ready, ..) = manager.wait_for(0, "READY=1", secs(5));
    let mut theirs = Manager::new();
    let mut second = agent(&server.url(), &theirs).spawn();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("the host has a name");
    let too = |pid: u32| {
        format!(
            "; another agent (host {}, pid {pid}) writes this entry too (duplicate agent)",
            host.trim()
        )
    };
    let (from, status) = eventually(secs(5), "a status with the other", || {
        let heard = manager.hear();
        let found = heard.iter().position(|(_, message)| message.ends_with(&too(second.pid())));
        found.map(|at| (at, heard[at].1.clone())).ok_or_else(|| format!("{heard:#?}"))
    });
    assert!(from > ready && status.starts_with("STATUS=registered orders-api/host-1, revision "));
    eventually(secs(5), "the other says so as well", || {
        let heard = theirs.hear();
        let found = heard.iter().any(|(_, message)| message.ends_with(&too(first.pid())));
        if found { Ok(()) } else { Err(format!("{heard:#?}")) }
    });
    second.signal("TERM");
    assert_eq!(second.wait_exit(secs(3)), 0);
    let (gone, status) = eventually(secs(8), "a status without the other", || {
        let heard = manager.hear();
        let after = heard.iter().enumerate().skip(from);
        let mut alone = after.filter(|(_, (_, message))| !message.contains("another"));
        alone.next().map(|(at, heard)| (at, heard.1.clone())).ok_or_else(|| format!("{heard:#?}"))
    });
    assert!(gone > from + 1, "in every status meanwhile");
    assert!(status.starts_with("STATUS=registered orders-api/host-1, revision "), "{status}");
}

// Reload.

/// Three heartbeats more, and the entry is never gone.
fn goes_on(registry: &mut Registry) {
    let mut revision = || {
        let entry = registry.last(KEY).expect("it does not disappear");
        assert!(!entry.is_marker(), "it was deleted");
        entry.revision
    };
    let first = revision();
    eventually(secs(5), "three heartbeats more", || match revision() {
        now if now >= first + 3 => Ok(()),
        now => Err(format!("from {first} to {now}")),
    });
}

/// A unit's runtime directory with the environment that `ExecReload=` leaves.
fn reloaded_environment(directory: &Path, variables: &[(&str, &str)]) {
    let text: String = variables.iter().map(|(n, v)| format!("{n}={v}\0")).collect();
    std::fs::write(directory.join("environment"), text).expect("writes the environment");
}

fn monotonic() -> u64 {
    let now = std::fs::read_to_string("/proc/uptime").expect("Linux");
    let seconds: f64 = now.split(' ').next().expect("uptime").parse().expect("seconds");
    (seconds * 1e6) as u64
}

#[test]
fn a_reload_is_announced_with_its_time_in_one_datagram_and_then_ready() {
    let (server, mut registry) = any_bucket();
    let watch = registry.watch(KEY);
    let mut manager = Manager::new();
    let runtime = scratch("runtime");
    let variables = [
        ("AEGIS_TTL", "3s"),
        ("AEGIS_INTERVAL", "500ms"),
        ("AEGIS_SERVICE_VERSION", "2.0.0"),
        ("AEGIS_GROUP", "blue"),
    ];
    let mut agent = agent(&server.url(), &manager)
        .env("RUNTIME_DIRECTORY", &runtime.display().to_string())
        .spawn();
    let (ready, ..) = manager.wait_for(0, "READY=1", secs(5));
    reloaded_environment(&runtime, &variables);
    agent.signal("HUP");
    let (reloading, _, message) = manager.wait_for(ready + 1, "RELOADING=1", secs(2));
    let usec = message.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("with its time");
    // The clock of /proc/uptime goes on while the host sleeps.
    assert!(usec.parse::<u64>().expect("a number") <= monotonic() + 20_000, "{message}");
    let (_, _, message) = manager.wait_for(reloading + 1, "READY=1", secs(2));
    assert_eq!(message, "READY=1");
    agent.wait_for_line("reloaded the settings of orders-api/host-1", secs(2));

    let entry = eventually(secs(5), "the new settings are in the entry", || {
        let entry = registry.last(KEY).expect("it does not disappear");
        if entry.json()["version"] == "2.0.0" { Ok(entry) } else { Err(entry.text()) }
    });
    assert_eq!(entry.json()["stickyActiveGroup"], "blue");
    assert_eq!(entry.header("Nats-TTL").as_deref(), Some("3s"));
    assert!(watch.seen().iter().all(|entry| !entry.is_marker()), "it never disappeared");
    assert!(agent.lines_with("writes this entry too").is_empty());
}

#[test]
fn a_reload_reads_credentials_anew_and_what_is_wrong_leaves_everything_as_it_was() {
    let extra = "authorization { users: [ \
                 { user: old, password: secret-1 }, { user: new, password: secret-2 } ] }\n";
    let server = Server::with(Setup { extra: extra.into(), ..Setup::default() });
    let login = json!({ "user": "old", "pass": "secret-1" });
    let mut registry = Registry::login(&server.url(), "service_registry", &login);
    registry.create(&json!({}));
    let mut manager = Manager::new();
    let runtime = scratch("runtime");
    let password = runtime.join("password");
    std::fs::write(&password, "secret-1\n").expect("writes the password");
    let mut agent = agent(&server.url(), &manager)
        .arg(&format!("--password-file={}", password.display()))
        .env("NATS_USER", "old")
        .env("RUNTIME_DIRECTORY", &runtime.display().to_string())
        .spawn();
    manager.wait_for(0, "READY=1", secs(5));

    std::fs::write(&password, "").expect("empties the password");
    agent.signal("HUP");
    let line = agent.wait_for_line("reload: password file", secs(2));
    assert!(line.text.ends_with("it is empty; everything stays as it was"), "{}", line.text);
    goes_on(&mut registry);
    let from = manager.hear().len();

    std::fs::write(&password, "secret-2\n").expect("rotates the password");
    let times = [("AEGIS_TTL", "2s"), ("AEGIS_INTERVAL", "500ms")];
    let all: Vec<_> = times.into_iter().chain([("NATS_USER", "new")]).collect();
    reloaded_environment(&runtime, &all);
    agent.signal("HUP");
    manager.wait_for(from, "RELOADING=1", secs(2));
    agent.wait_for_line("reloaded the settings", secs(2));
    goes_on(&mut registry);
    assert!(agent.lines_with("lost").is_empty(), "{}", agent.stderr());
}

#[test]
fn a_reload_does_not_change_who_the_agent_speaks_for() {
    let (server, mut registry) = any_bucket();
    let manager = Manager::new();
    let runtime: PathBuf = scratch("runtime");
    reloaded_environment(&runtime, &[("AEGIS_BUCKET", "other")]);
    let mut agent = agent(&server.url(), &manager)
        .env("RUNTIME_DIRECTORY", &runtime.display().to_string())
        .spawn();
    agent.wait_for_line("registered orders-api/host-1", secs(5));
    agent.signal("HUP");
    agent.wait_for_line("service, instance and bucket change with a restart only", secs(2));
    nothing_happens_for(millis(500));
    assert!(!registry.last(KEY).expect("still there").is_marker());
}
