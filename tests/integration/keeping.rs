//! How an agent keeps its entry through what happens around it: clocks that are
//! set, an API that does not answer, a bucket that comes out of a backup, a
//! reload, a stop and a sleep of the host, a bucket that has to be made.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::agent::{Agent, Invocation, aegis};
use crate::harness::backup::Backup;
use crate::harness::clock::ServerClock;
use crate::harness::cluster::Cluster;
use crate::harness::fault::{duration, say};
use crate::harness::proxy::{Fate, Proxy};
use crate::harness::registry::{Registry, Watch};
use crate::harness::scene::{KEY, REGISTERED, bucket};
use crate::harness::server::{Server, Setup};
use crate::harness::{eventually, free_port, millis, scratch, secs, time_passes};

fn run(url: &str, ttl: &str, interval: &str) -> Invocation {
    aegis(&["run", "--service=orders-api", "--instance=host-1", "-s", url])
        .arg(&format!("--ttl={ttl}"))
        .arg(&format!("--interval={interval}"))
}

fn registered(invocation: &Invocation) -> Agent {
    let mut agent = invocation.spawn();
    agent.wait_for_line(REGISTERED, secs(8));
    agent
}

/// Is never missing for `time`.
fn lives(registry: &mut Registry, time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        let entry = registry.last(KEY);
        assert!(entry.is_some_and(|entry| !entry.is_marker()), "the entry is missing");
        std::thread::sleep(millis(20));
    }
}

// Clocks.

/// "No healthy agent is hidden for longer than two heartbeats", whichever way
/// the server's clock is set, and by which request its time can be had.
#[test]
fn a_server_whose_clock_is_set_hides_no_agent_for_longer_than_two_heartbeats() {
    for changes in [json!({}), json!({ "allow_direct": false })] {
        let server = Server::any();
        let mut registry = Registry::at(&server.url());
        registry.create(&changes);
        let watch = registry.watch(KEY);
        let (proxy, clock) = ServerClock::of(server.port());
        clock.set(-60);
        let agent = registered(&run(&proxy.url(), "6s", "1s"));
        watch.wait_for(3, secs(5));
        let mut worst = Duration::ZERO;
        for (shift, what) in [
            (0, "set right"),
            (3_600, "an hour ahead"),
            (-3_600, "an hour behind"),
            (0, "right again"),
        ] {
            let count = watch.seen().len();
            clock.set(shift);
            let began = Instant::now();
            // A reader compares what is written with that clock.
            let hidden = eventually(secs(4), what, || {
                let seen = watch.seen();
                let off = |entry: &crate::harness::registry::Entry| {
                    let now = entry.stored + time::Duration::seconds(shift);
                    (now - entry.last_heartbeat()).as_seconds_f64()
                };
                match seen.last().filter(|_| seen.len() > count) {
                    Some(entry) if off(entry).abs() < 2.0 => Ok(began.elapsed()),
                    entry => Err(format!("{:?}", entry.map(off))),
                }
            });
            worst = worst.max(hidden);
            assert!(hidden < millis(2_150), "{what}: hidden for {hidden:?} at 1 s a heartbeat");
        }
        assert!(agent.lines_with("clock was set").len() >= 4, "{}", agent.stderr());
        assert!(agent.lines_with("lost").is_empty(), "{}", agent.stderr());
        say(&format!(
            "fault: server's clock set by an hour ({changes}); hidden for {:.2} s at most (interval 1 s)",
            worst.as_secs_f64()
        ));
    }
}

// An API that does not answer.

/// The answers to questions are lost: acknowledgements pass.
fn without_answers(frame: &str) -> Fate {
    match frame.contains("jetstream.api.v1") || frame.contains("Nats-Sequence") {
        true => Fate::IsLost,
        false => Fate::Passes,
    }
}

/// "When JetStream's API is overloaded but puts work, entries live on", over a
/// lost session, too, and with a time limit longer than the entry's life.
#[test]
fn an_api_that_does_not_answer_ends_no_entry() {
    let (server, mut registry) = bucket(Setup::default());
    let proxy = Proxy::to(server.port());
    let agent = registered(&run(&proxy.url(), "3s", "500ms").env("NATS_TIMEOUT", "30s"));
    proxy.rewrite_messages(without_answers);
    lives(&mut registry, secs(2));
    proxy.cut();
    lives(&mut registry, secs(6));
    assert_eq!(agent.lines_with("restored orders-api/host-1").len(), 1, "{}", agent.stderr());
    assert!(agent.lines_with("no answer").is_empty(), "{}", agent.stderr());
}

/// "10163 is tried again at once": the leader has not applied the last write of
/// the key yet.
#[test]
fn a_leader_that_is_not_ready_is_tried_again_at_once() {
    let (server, mut registry) = bucket(Setup::default());
    let watch = registry.watch(KEY);
    let proxy = Proxy::to(server.port());
    let agent = registered(&run(&proxy.url(), "6s", "2s"));
    watch.wait_for(2, secs(5));
    // That this put was stored all the same makes it no easier.
    let left = AtomicUsize::new(1);
    proxy.rewrite_messages(move |frame| {
        let take = |left: usize| left.checked_sub(1);
        let is_first = || left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok();
        if frame.contains("\"seq\":") && is_first() {
            let why = "expected last sequence per subject temporarily unavailable";
            let error = json!({ "code": 503, "err_code": 10163, "description": why });
            return Fate::Becomes(json!({ "error": error }).to_string());
        }
        Fate::Passes
    });
    let count = watch.seen().len();
    let seen = watch.wait_for(count + 2, secs(5));
    let apart = duration(seen[count + 1].stored - seen[count].stored);
    assert!(apart < millis(500), "{apart:?}, with an interval of 2 s");
    watch.wait_for(count + 4, secs(6));
    assert_eq!(agent.lines().len(), 1, "{}", agent.stderr());
}

// A backup.

/// The server's own snapshot and restore, under a live session: the entry is what
/// the agent wrote some heartbeats ago, at the revision that it had then.
#[test]
fn an_agent_does_not_take_its_own_past_for_a_duplicate() {
    let (server, mut registry) = bucket(Setup::default());
    let watch = registry.watch(KEY);
    let mut agent = registered(&run(&server.url(), "30s", "1s"));
    watch.wait_for(2, secs(4));
    let backup = Backup::of(&mut registry);
    let old = registry.last(KEY).expect("registered");
    // Just after a heartbeat: the bucket is away for some milliseconds.
    watch.wait_for(watch.seen().len() + 3, secs(6));
    let newer = registry.last(KEY).expect("registered").revision;
    assert!(newer > old.revision, "{newer}");
    backup.restore(&mut registry);
    let back = registry.last(KEY).expect("it is in the backup");
    assert_eq!((back.revision, back.text()), (old.revision, old.text()));
    agent.wait_for_line("older than the last heartbeat", secs(3));
    eventually(secs(4), "it goes on", || match registry.last(KEY) {
        Some(entry) if entry.revision > old.revision => Ok(()),
        entry => Err(format!("{entry:?}")),
    });
    assert!(agent.lines_with("writes this entry too").is_empty(), "{}", agent.stderr());
    assert!(agent.lines_with("lost").is_empty(), "{}", agent.stderr());
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(5)), 0);
    assert!(registry.last(KEY).is_some_and(|entry| entry.is_marker()), "{}", agent.stderr());
}

/// Between two heartbeats: the agent learns of it only when it deregisters.
#[test]
fn an_entry_out_of_a_backup_is_taken_out_at_the_end() {
    let (server, mut registry) = bucket(Setup::default());
    let watch = registry.watch(KEY);
    let mut agent = registered(&run(&server.url(), "30s", "10s"));
    watch.wait_for(1, secs(3));
    let backup = Backup::of(&mut registry);
    let old = registry.last(KEY).expect("registered").revision;
    agent.signal("HUP");
    watch.wait_for(2, secs(3));
    backup.restore(&mut registry);
    assert_eq!(registry.last(KEY).expect("it is in the backup").revision, old);
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(5)), 0);
    assert!(registry.last(KEY).is_some_and(|entry| entry.is_marker()), "{}", agent.stderr());
    assert!(agent.lines_with("writes this entry too").is_empty(), "{}", agent.stderr());
}

// A reload.

/// The longest time between two heartbeats.
fn longest_gap(watch: &Watch) -> Duration {
    let seen = watch.seen();
    let gaps = seen.windows(2).map(|pair| duration(pair[1].stored - pair[0].stored));
    gaps.max().expect("several heartbeats")
}

/// "What is wrong is a warning, and everything stays as it was": a password that
/// is refused, and a user who may not write.
#[test]
fn a_reload_that_cannot_register_leaves_the_session_as_it_was() {
    let extra = "authorization { users: [ { user: tests, password: t }, \
                 { user: agent, password: right }, \
                 { user: other, password: other, permissions: { publish: \"nothing\" } } ] }\n";
    let server = Server::with(Setup { extra: extra.into(), ..Setup::default() });
    let login = json!({ "user": "tests", "pass": "t" });
    let mut registry = Registry::login(&server.url(), "service_registry", &login);
    registry.create(&json!({}));
    let url = |who: &str| format!("nats://{who}@127.0.0.1:{}", server.port());
    let directory = scratch("reload");
    let environment = directory.join("environment");
    let write = |who: &str| {
        std::fs::write(&environment, format!("NATS_URL={}\0", url(who))).expect("writes it");
    };
    let invocation = aegis(&["run", "--service=orders-api", "--instance=host-1"])
        .arg("--ttl=2s")
        .arg("--interval=500ms")
        .env("NATS_URL", &url("agent:right"))
        .env("RUNTIME_DIRECTORY", &directory.display().to_string());
    let mut agent = registered(&invocation);
    let mut tests = Beats::begin(&mut registry);
    for (round, (who, why)) in
        [("agent:wrong", "login refused"), ("other:other", "not permitted")].iter().enumerate()
    {
        write(who);
        agent.signal("HUP");
        let lines = agent.wait_for_lines("everything stays as it was", round + 1, secs(4));
        assert!(lines[round].text.contains(why), "{}", lines[round].text);
        tests.goes_on(&mut registry, secs(2));
    }
    assert!(agent.lines_with("lost").is_empty(), "{}", agent.stderr());
    assert!(agent.lines_with("restored").is_empty(), "{}", agent.stderr());
    write("agent:right");
    agent.signal("HUP");
    agent.wait_for_line("reloaded the settings", secs(4));
    tests.goes_on(&mut registry, secs(2));
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(4)), 0);
}

/// The heartbeats of one entry, looked at through a login of the tests' own.
struct Beats {
    revision: u64,
}

impl Beats {
    fn begin(registry: &mut Registry) -> Beats {
        Beats { revision: registry.last(KEY).expect("it is registered").revision }
    }

    /// It is never missing for `time`, and beats.
    fn goes_on(&mut self, registry: &mut Registry, time: Duration) {
        lives(registry, time);
        let revision = registry.last(KEY).expect("it is there").revision;
        assert!(revision >= self.revision + 3, "from {} to {revision}", self.revision);
        self.revision = revision;
    }
}

#[test]
fn a_reload_makes_the_new_session_before_it_gives_up_the_old_one() {
    let (server, mut registry) = bucket(Setup::default());
    let watch = registry.watch(KEY);
    let proxy = Proxy::to(server.port());
    let mut agent = registered(&run(&proxy.url(), "3s", "500ms"));
    watch.wait_for(2, secs(3));
    // The login takes a while.
    proxy.delay(millis(100));
    agent.signal("HUP");
    eventually(secs(3), "two sessions stand side by side", || match proxy.open() {
        2 => Ok(()),
        count => Err(format!("{count} connections")),
    });
    agent.wait_for_line("reloaded the settings", secs(3));
    let count = watch.seen().len();
    watch.wait_for(count + 3, secs(5));
    assert!(longest_gap(&watch) < millis(1_500), "{:?}", longest_gap(&watch));
    eventually(secs(3), "the old one is given up", || match proxy.open() {
        1 => Ok(()),
        count => Err(format!("{count} connections")),
    });
}

// A stop of the process.

#[test]
fn after_sigcont_it_beats_at_once() {
    let (server, mut registry) = bucket(Setup::default());
    let watch = registry.watch(KEY);
    let agent = registered(&run(&server.url(), "30s", "6s"));
    let mut worst = Duration::ZERO;
    for round in 0..2 {
        let count = watch.seen().len();
        if round > 0 {
            // Stopped right after a heartbeat, with the whole interval to go.
            watch.wait_for(count + 1, secs(8));
        }
        let count = watch.seen().len();
        agent.signal("STOP");
        time_passes(millis(300));
        agent.signal("CONT");
        let began = Instant::now();
        watch.wait_for(count + 1, secs(8));
        worst = worst.max(began.elapsed());
    }
    assert!(worst < millis(900), "{worst:?} after SIGCONT, with an interval of 6 s");
    say(&format!(
        "fault: stopped and continued; heartbeat {:.2} s later (interval 6 s)",
        worst.as_secs_f64()
    ));
}

// A bucket that has to be made.

fn config(registry: &mut Registry) -> Value {
    registry.info().expect("the bucket is there")["config"].clone()
}

const MINUTE: u64 = 60_000_000_000;

#[test]
fn a_new_bucket_has_delete_markers() {
    let server = Server::any();
    let _agent = registered(&run(&server.url(), "6s", "1s"));
    let made = config(&mut Registry::at(&server.url()));
    assert_eq!(made["num_replicas"], 1, "{made}");
    assert_eq!(made["subject_delete_marker_ttl"], MINUTE, "{made}");
}

/// "After a deleted bucket it is made again as it was last seen."
#[test]
fn a_bucket_that_was_deleted_is_made_again_as_it_was() {
    for storage in ["file", "memory"] {
        let server = Server::any();
        let mut registry = Registry::at(&server.url());
        registry.create(&json!({
            "description": "ours", "max_bytes": 10_000_000, "storage": storage,
            "subject_delete_marker_ttl": 2 * MINUTE, "metadata": { "owner": "us" },
        }));
        let mut agent = registered(&run(&server.url(), "6s", "500ms"));
        let before = config(&mut registry);
        registry.delete();
        agent.wait_for_line("created bucket service_registry again, as it was", secs(5));
        agent.wait_for_line("restored orders-api/host-1", secs(3));
        assert_eq!(config(&mut registry), before);
    }
}

/// What it says of a bucket that it made, with the instance registered by then.
/// `None` if the answer to the creation was lost, which is said: the routes of a
/// young cluster are closed and opened while its members get to know each other,
/// and the bucket that is found after that may be anybody's.
fn made_by(agent: &mut Agent, words: &str, registered: &str) -> Option<String> {
    eventually(secs(60), words, || {
        if agent.lines_with(registered).is_empty() {
            return Err(agent.stderr());
        }
        match agent.lines_with(words).pop() {
            Some(line) => Ok(Some(line.text)),
            None if agent.stderr().contains("creating the bucket: no answer in time") => Ok(None),
            None => Err(agent.stderr()),
        }
    })
}

#[test]
fn a_new_bucket_in_a_cluster_has_three_replicas() {
    let cluster = Cluster::start(&["2.12.8"]);
    let mut agent = run(&cluster.urls(), "6s", "1s").spawn();
    if let Some(line) =
        made_by(&mut agent, "created bucket service_registry: 3 replicas", REGISTERED)
    {
        assert!(line.contains("delete markers for 1m"), "{line}");
    }
    let mut registry = Registry::at(&cluster.servers[0].url());
    let made = config(&mut registry);
    assert_eq!(made["num_replicas"], 3, "{made}");
    assert_eq!(made["subject_delete_marker_ttl"], MINUTE, "{made}");

    // After it was deleted, too: it was made with one replica then.
    registry.delete();
    made_by(&mut agent, "created bucket service_registry again, as it was", "restored orders-api");
    assert_eq!(config(&mut registry)["num_replicas"], 3);
}

/// A cluster that has just started does not know its members yet, and says that it
/// has too few: they are waited for. (Here it is asked for more than it has.)
#[test]
fn members_that_a_cluster_does_not_know_yet_are_waited_for() {
    const TOO_MANY: usize = 2;
    // Nobody learns of a way around the proxy.
    let cluster = Cluster::apart("2.12.8", &[]);
    let url = cluster.servers[0].url();
    Registry::named(&url, "until_they_know_each_other").create(&json!({ "num_replicas": 3 }));
    let proxy = Proxy::to(cluster.servers[0].port());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    proxy.rewrite_requests(move |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let is_asked = ["STREAM.CREATE", "STREAM.UPDATE"].iter().any(|what| text.contains(what));
        if is_asked && count.fetch_add(1, Ordering::SeqCst) < TOO_MANY {
            return text.replace("\"num_replicas\":3", "\"num_replicas\":5").into_bytes();
        }
        bytes.to_vec()
    });
    let mut agent = run(&proxy.url(), "6s", "1s").spawn();
    made_by(&mut agent, "created bucket service_registry: 3 replicas", REGISTERED);
    assert!(asked.swap(0, Ordering::SeqCst) > TOO_MANY);
    let mut registry = Registry::at(&url);
    registry.delete();
    made_by(&mut agent, "created bucket service_registry again, as it was", "restored orders-api");
    assert!(asked.load(Ordering::SeqCst) > TOO_MANY);
    assert_eq!(config(&mut registry)["num_replicas"], 3);
    // Also where somebody asks for them.
    agent.signal("KILL");
    agent.wait_exit(secs(2));
    registry.delete();
    registry.create(&json!({}));
    asked.store(0, Ordering::SeqCst);
    aegis(&["init", "--replicas=3", "-s", &proxy.url()]).run().exits(0);
    assert!(asked.load(Ordering::SeqCst) > TOO_MANY);
    assert_eq!(config(&mut registry)["num_replicas"], 3);
}

#[test]
fn a_cluster_of_two_gets_two_replicas_and_it_is_said() {
    let ports = [free_port(), free_port()];
    let servers = [0, 1].map(|place| {
        let routes = format!("nats://127.0.0.1:{}", ports[1 - place]);
        let extra = format!(
            "server_name: n{place}\ncluster {{ name: tests, listen: \"127.0.0.1:{}\", \
             routes: [\"{routes}\"] }}\n",
            ports[place]
        );
        let mut server = Server::absent(Setup { extra, ..Setup::default() });
        server.launch();
        server
    });
    let mut servers = servers.map(|mut server| {
        server.wait_until_ready();
        server
    });
    let mut agent = run(&servers[0].url(), "6s", "1s").spawn();
    if made_by(&mut agent, "created bucket service_registry: 2 replicas", REGISTERED).is_some() {
        let line = agent.wait_for_line("has 2 of the 3 replicas that it should have", secs(5)).text;
        assert!(line.ends_with(" init --replicas 3"), "{line}");
    }
    assert_eq!(config(&mut Registry::at(&servers[0].url()))["num_replicas"], 2);
    servers[1].kill();
}
