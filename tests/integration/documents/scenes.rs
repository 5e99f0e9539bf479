//! The scenes of the documents: which server and which bucket belong to a
//! block, and how its commands are run.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::harness::agent::{Agent, aegis, binary};
use crate::harness::registry::Registry;
use crate::harness::server::{Server, Setup};
use crate::harness::{eventually, scratch, secs, time as rfc3339};

const TTL: &[(&str, &str)] = &[("Nats-TTL", "30s")];
/// Where documents have their configuration; here it is a directory of the test's.
const ETC: &str = "/etc/aegis-agent/";

/// The name of a scene, and who plays the commands of a block in it.
type Scene = (&'static str, fn(&str) -> String);

const SCENES: [Scene; 30] = [
    ("list", |block| living().types(block)),
    ("first use", |block| Stage::empty().types(block)),
    ("run", |block| Stage::bucket().runs(block, |_, _| ())),
    ("check", |block| living().types(block)),
    ("cleanup", |block| mixed().types(block)),
    ("watch", watch),
    ("watch json", watch),
    ("status", status),
    ("metrics", metrics),
    ("health", health),
    ("outage", outage),
    ("init", |block| old_bucket().types(block)),
    ("init on 2.11.4", |block| without_flag_on("2.11.4").types(block)),
    ("no server", no_server),
    ("no bucket", |block| Stage::empty().types(block)),
    ("no flag", |block| unregistered(&without_flag(), block)),
    ("no flag, init", |block| without_flag().types(block)),
    ("old server", |block| Stage::on("2.10.25").types(block)),
    ("login refused", login_refused),
    ("not permitted", not_permitted),
    ("mixed", |block| mixed().types(block)),
    ("history", |block| with_history().types(block)),
    ("flag without effect", |block| flag_without_effect().types(block)),
    ("nearly full", |block| filled(4_200).types(block)),
    ("full", |block| unregistered(&filled(3_800), block)),
    ("clock", |block| clock().types(block)),
    ("duplicate", duplicate),
    ("limit", |block| mixed().types(block)),
    ("json", |block| mixed().types(block)),
    ("check metrics", |block| living().types(block)),
];

/// The names of all scenes.
pub const NAMES: [&str; SCENES.len()] = {
    let mut names = [""; SCENES.len()];
    let mut at = 0;
    while at < SCENES.len() {
        names[at] = SCENES[at].0;
        at += 1;
    }
    names
};

/// Plays a scene with the commands of `block`; what was typed and printed.
pub fn play(scene: &str, block: &str) -> String {
    let found = SCENES.iter().find(|(name, _)| *name == scene);
    let (_, play) = found.unwrap_or_else(|| panic!("no scene {scene:?}"));
    play(block)
}

/// A server, and what a shell on that host has in its environment.
struct Stage {
    server: Server,
    environment: Vec<(String, String)>,
    etc: PathBuf,
    exit_code: i32,
}

impl Stage {
    fn with(server: Server) -> Stage {
        let environment = vec![
            ("NATS_URL".to_owned(), server.url()),
            ("AEGIS_INSTANCE".to_owned(), "host-1".to_owned()),
        ];
        Stage { server, environment, etc: scratch("etc"), exit_code: 0 }
    }

    fn on(version: &'static str) -> Stage {
        Stage::with(Server::start(version))
    }

    /// A server without a bucket.
    fn empty() -> Stage {
        Stage::on("2.12.8")
    }

    /// A server with a bucket as `init` makes it.
    fn bucket() -> Stage {
        let stage = Stage::empty();
        let minute = 60_000_000_000_u64;
        stage.registry().create(&json!({ "subject_delete_marker_ttl": minute }));
        stage
    }

    fn registry(&self) -> Registry {
        Registry::at(&self.server.url())
    }

    fn env(mut self, name: &str, value: &str) -> Stage {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What the document may show of what was printed here.
    fn shown(&self, text: &str) -> String {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let mut shown = String::new();
        for line in text.replace(&format!("{}/", self.etc.display()), ETC).lines() {
            shown += &line
                .replace(&format!(":{}", self.server.port()), ":4222")
                .replace(&format!("(host {}, pid", host.trim()), "(host web-7, pid");
            shown.push('\n');
        }
        match shown.split_once("(host web-7, pid ").map(|(before, rest)| (before, rest.find(')'))) {
            Some((before, Some(end))) => {
                let rest = &shown[before.len() + "(host web-7, pid ".len() + end..];
                format!("{before}(host web-7, pid 4711{rest}")
            }
            _ => shown,
        }
    }

    /// Types the commands of the block into a shell, one after the other.
    fn types(mut self, block: &str) -> String {
        let mut said = String::new();
        for command in block.lines().filter_map(|line| line.strip_prefix("$ ")) {
            said += &format!("$ {command}\n");
            let printed = match command {
                "echo $?" => format!("{}\n", self.exit_code),
                command => self.shell(command),
            };
            said += &self.shown(&printed);
        }
        said
    }

    fn shell(&mut self, command: &str) -> String {
        let program = PathBuf::from(binary());
        let place = program.parent().expect("a directory").display().to_string();
        let command = command.replace(ETC, &format!("{}/", self.etc.display()));
        let output = Command::new("timeout")
            .args(["20", "sh", "-c", &format!("exec 2>&1; {command}")])
            .env_clear()
            .env("PATH", format!("{place}:/usr/local/bin:/usr/bin:/bin"))
            .env("HOME", concat!(env!("CARGO_TARGET_TMPDIR"), "/home"))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .output()
            .expect("timeout and sh run");
        self.exit_code = output.status.code().unwrap_or(-1);
        assert_ne!(self.exit_code, 124, "`{command}` does not end");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Starts the agent whose command begins the block.
    fn agent(&self, block: &str) -> Agent {
        let command = block.lines().next().and_then(|line| line.strip_prefix("$ aegis-agent "));
        let command = command.unwrap_or_else(|| panic!("begins with an agent: {block}"));
        let words = shlex::split(command).expect("words");
        let mut agent = aegis(&words);
        for (name, value) in &self.environment {
            agent = agent.env(name, value);
        }
        agent.spawn()
    }

    /// Runs the agent of the block's first line; when it has registered,
    /// `happens`, and then it is stopped with ^C.
    fn runs(mut self, block: &str, happens: fn(&mut Stage, &mut Agent)) -> String {
        let mut agent = self.agent(block);
        agent.wait_for_line("registered orders-api/host-1", secs(10));
        happens(&mut self, &mut agent);
        let before = agent.lines().len();
        agent.signal("INT");
        assert_eq!(agent.wait_exit(secs(10)), 0);
        let lines = log(&agent);
        let command = block.lines().next().unwrap_or_default();
        let said =
            format!("{command}\n{}^C\n{}", lines[..before].concat(), lines[before..].concat());
        self.shown(&said)
    }
}

/// What it logged, as on a terminal: without the times before the lines.
fn log(agent: &Agent) -> Vec<String> {
    let lines = agent.lines().into_iter();
    let lines = lines.map(|line| match line.text.find("aegis-agent: ") {
        Some(place) => line.text[place..].to_owned(),
        None => line.text,
    });
    lines.map(|line| format!("{line}\n")).collect()
}

fn record(service: &str, instance: &str, version: &str, age: Duration) -> String {
    format!(
        "{{\"serviceName\":\"{service}\",\"instanceId\":\"{instance}\",\"version\":\"{version}\",\
         \"status\":\"ACTIVE\",\"lastHeartbeat\":\"{}\",\"stickyActiveGroup\":null,\
         \"metadata\":{{\"host\":\"{instance}\",\"pid\":\"4711\"}}}}",
        rfc3339::rfc3339(rfc3339::now() - age)
    )
}

fn key(service: &str, instance: &str) -> String {
    format!("service-instances__{service}__{instance}")
}

/// Two instances that are alive.
fn living() -> Stage {
    let stage = Stage::bucket();
    fill(&mut stage.registry(), TTL);
    stage
}

fn fill(registry: &mut Registry, ttl: &[(&str, &str)]) {
    for (service, version) in [("orders-api", "1.4.2"), ("payments", "2.0.1")] {
        registry.put(
            &key(service, "host-1"),
            ttl,
            &record(service, "host-1", version, Duration::ZERO),
        );
    }
}

/// Beside those, one that an old SDK left behind nine days ago, and a value
/// that is no record.
fn mixed() -> Stage {
    let stage = living();
    let mut registry = stage.registry();
    let long_ago = record("orders-api", "host-9", "1.1.0", secs(9 * 86_400 + 60));
    registry.put(&key("orders-api", "host-9"), &[], &long_ago);
    registry.put(&key("payments", "host-2"), TTL, "not JSON");
    stage
}

fn with_history() -> Stage {
    let stage = Stage::empty();
    let mut registry = stage.registry();
    registry.create(&json!({ "max_msgs_per_subject": 10 }));
    fill(&mut registry, TTL);
    stage
}

/// An instance whose host has a clock that is a minute behind.
fn clock() -> Stage {
    let stage = living();
    let late = record("billing", "host-3", "3.1.0", secs(60));
    stage.registry().put(&key("billing", "host-3"), TTL, &late);
    stage
}

fn without_flag() -> Stage {
    without_flag_on("2.12.8")
}

fn without_flag_on(version: &'static str) -> Stage {
    let stage = Stage::on(version);
    stage.registry().create(&json!({ "allow_msg_ttl": false }));
    stage
}

/// A server that took the flag in an update, and acts on it only after a restart.
fn flag_without_effect() -> Stage {
    let stage = without_flag_on("2.11.4");
    stage.registry().update(&json!({}));
    stage
}

/// A bucket with so much room in it and two services, and a definition.
fn filled(room: usize) -> Stage {
    let stage = Stage::empty();
    let mut registry = stage.registry();
    registry.create(&json!({ "max_bytes": room, "discard": "new" }));
    fill(&mut registry, TTL);
    registry.put("echo-service", &[], &"x".repeat(3_000));
    stage
}

/// A bucket from before per-message TTL, with history.
fn old_bucket() -> Stage {
    let stage = Stage::empty();
    let old = json!({ "allow_msg_ttl": false, "max_msgs_per_subject": 10 });
    Registry::named(&stage.server.url(), "old").create(&old);
    stage
}

/// What an agent says that cannot register.
fn unregistered(stage: &Stage, block: &str) -> String {
    let mut agent = stage.agent(block);
    agent.wait_for_line("cannot register", secs(10));
    let lines = log(&agent).concat();
    stage.shown(&format!("{}\n{lines}", block.lines().next().unwrap_or_default()))
}

fn no_server(block: &str) -> String {
    let mut stage = Stage::empty();
    stage.server.kill();
    stage.types(block)
}

fn with_users(extra: &str) -> Stage {
    let server =
        Server::with(Setup { version: "2.12.8", extra: extra.to_owned(), ..Setup::default() });
    let admin = json!({ "user": "admin", "pass": "a" });
    Registry::login(&server.url(), "service_registry", &admin).create(&json!({}));
    Stage::with(server)
}

fn login_refused(block: &str) -> String {
    let users = "authorization { users: [{ user: admin, password: a }, \
                 { user: orders, password: right }] }\n";
    let stage = with_users(users);
    std::fs::write(stage.etc.join("orders.password"), "wrong\n").expect("writes");
    stage.types(block)
}

fn not_permitted(block: &str) -> String {
    let users = "authorization { users: [{ user: admin, password: a }, \
                 { user: reader, password: b, permissions: { publish: \
                 [\"$JS.API.STREAM.INFO.KV_service_registry\"], subscribe: \"_INBOX.>\" } }] }\n";
    let stage = with_users(users);
    stage.env("NATS_USER", "reader").env("NATS_PASSWORD", "b").types(block)
}

fn duplicate(block: &str) -> String {
    let stage = Stage::bucket();
    let mut agent = stage.agent(block);
    agent.wait_for_line("registered orders-api/host-1", secs(10));
    let _other = stage.agent(block);
    let line = agent.wait_for_line("another agent", secs(10)).text;
    let line = &line[line.find("aegis-agent: ").expect("our line")..];
    let list = aegis(&["list"]).arg("-s").arg(&stage.server.url()).run().exits(0);
    assert_eq!(list.stdout.matches("orders-api").count(), 1, "one entry: {list:?}");
    let lines = format!("{}\n{}{line}\n", block.lines().next().unwrap_or_default(), log(&agent)[0]);
    stage.shown(&lines)
}

/// The registry goes away and comes back. JetStream may take a moment longer
/// than the server, which is a cause of its own; one is enough to show.
fn outage(block: &str) -> String {
    let said = Stage::bucket().runs(block, |stage, agent| {
        stage.server.kill();
        agent.wait_for_line("lost orders-api/host-1", secs(10));
        agent.wait_for_line("connection refused", secs(10));
        stage.server.start_again();
        agent.wait_for_line("restored orders-api/host-1", secs(10));
    });
    let mut causes = 0;
    let lines = said.lines().filter(|line| {
        causes += u32::from(line.contains("still without registry"));
        causes < 2 || !line.contains("still without registry")
    });
    lines.map(|line| format!("{line}\n")).collect()
}

/// One instance comes, says something else, and another one dies.
fn watch(block: &str) -> String {
    let stage = Stage::bucket();
    let mut registry = stage.registry();
    let put = |registry: &mut Registry, service: &str, ttl: &str, status: &str| {
        let text = record(service, "host-1", "1.4.2", Duration::ZERO);
        let text = text.replace("ACTIVE", status);
        registry.put(&key(service, "host-1"), &[("Nats-TTL", ttl)], &text);
    };
    put(&mut registry, "orders-api", "30s", "ACTIVE");
    let stage = stage.env("TZ", "UTC");
    let watcher = stage.agent(block);
    // The text has a line before the events, of which the first two come at once.
    let first = usize::from(!block.contains("--json")) + 2;
    let happens = [
        ("", "", ""),
        ("payments", "2s", "ACTIVE"),
        ("orders-api", "30s", "STANDBY"),
        ("", "", ""),
    ];
    for (lines, (service, ttl, status)) in (first..).zip(happens) {
        if !service.is_empty() {
            put(&mut registry, service, ttl, status);
        }
        eventually(secs(10), "the next event", || {
            let said = watcher.said();
            if said.lines().count() >= lines { Ok(()) } else { Err(said) }
        });
    }
    format!("{}\n{}", block.lines().next().unwrap_or_default(), watcher.said())
}

/// The service is not there, and then it is.
fn health(block: &str) -> String {
    let address = "localhost:8080";
    let port = crate::harness::free_port();
    let here = block.replace(address, &format!("127.0.0.1:{port}"));
    let stage = Stage::bucket();
    let mut agent = stage.agent(&here);
    agent.wait_for_line("is UNHEALTHY", secs(20));
    let _service = std::net::TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    agent.wait_for_line("is healthy again", secs(20));
    let said = log(&agent).concat().replace(&format!("127.0.0.1:{port}"), address);
    stage.shown(&format!("{}\n{said}", block.lines().next().unwrap_or_default()))
}

/// What systemd is told, seen at the socket on which it is told.
fn status(block: &str) -> String {
    let stage = Stage::bucket();
    let path = stage.etc.join("notify");
    let manager = UnixDatagram::bind(&path).expect("binds a path");
    manager.set_read_timeout(Some(secs(10))).expect("takes a limit");
    let stage = stage.env("NOTIFY_SOCKET", &path.display().to_string());
    let mut agent = stage.agent("$ aegis-agent run --service orders-api\n");
    agent.wait_for_line("registered orders-api/host-1", secs(10));
    let status = eventually(secs(10), "the status says that it is registered", || {
        let mut buffer = [0; 4096];
        let length = manager.recv(&mut buffer).map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix("STATUS="));
        line.filter(|line| line.starts_with("registered ")).map(str::to_owned).ok_or(text.clone())
    });
    let command = block.lines().next().unwrap_or_default();
    stage.shown(&format!("{command}\nStatusText={status}\n"))
}

/// The file of `--metrics-file`, without its lines of description.
fn metrics(block: &str) -> String {
    let stage = Stage::bucket();
    let file = stage.etc.join("metrics.prom");
    let stage = stage.env("AEGIS_METRICS_FILE", &file.display().to_string());
    let mut agent = stage.agent("$ aegis-agent run --service orders-api\n");
    agent.wait_for_line("registered orders-api/host-1", secs(10));
    let text = eventually(secs(10), "the file says that it is registered", || {
        let text = std::fs::read_to_string(&file).map_err(|e| e.to_string())?;
        if text.contains("aegis_agent_ack_seconds{") { Ok(text) } else { Err(text) }
    });
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let samples: String = samples.map(|line| format!("{line}\n")).collect();
    let command = block.lines().next().unwrap_or_default();
    stage.shown(&format!("{command}\n{samples}"))
}
