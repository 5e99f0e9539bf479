//! A cluster of three that has lost one member: `list`, `check` and `cleanup`
//! answer as if nothing had happened. A consumer may be placed on the member
//! that is dead, and a member that is cut off lets clients in all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::agent::{Invocation, Output, aegis};
use crate::harness::cluster::Cluster;
use crate::harness::fault::say;
use crate::harness::proxy::{Fate, Flow, Proxy};
use crate::harness::registry::{Client, Registry};
use crate::harness::scene::{any_bucket, together};
use crate::harness::{eventually, secs};

const VERBS: [&str; 3] = ["list", "check", "cleanup"];
const LIVE: usize = 20;
const LONGEST: Duration = secs(3);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    Killed,
    CutOff,
}

/// A cluster that has lost its bucket's leader, or another member, and works
/// again.
struct Wounded {
    cluster: Cluster,
    name: String,
    lost: usize,
}

fn key(name: &str) -> String {
    format!("service-instances__web__{name}")
}

fn entry(name: &str) -> String {
    json!({
        "serviceName": "web", "instanceId": name, "version": "1.0.0", "status": "ACTIVE",
        "lastHeartbeat": "2099-01-01T00:00:00Z", "stickyActiveGroup": null, "metadata": {},
    })
    .to_string()
}

/// A cluster with a bucket of three replicas and live entries in it, and the
/// place of the bucket's leader.
fn healthy(version: &str) -> (Cluster, usize) {
    let cluster = Cluster::with_proxies(version);
    let mut registry = Registry::at(&cluster.servers[0].url());
    eventually(secs(60), "the cluster makes a bucket", || {
        let config = registry.config(&json!({ "num_replicas": 3 }));
        registry.client.api("STREAM.CREATE.KV_service_registry", &config).map(|_| ())
    });
    cluster.leader("service_registry", 0);
    // A member that has just started may not take messages yet.
    eventually(secs(60), "the bucket takes a message", || {
        let reply = registry.client.try_request(b"$KV.service_registry.other", b"", b"x")?;
        let text = String::from_utf8_lossy(&reply.payload).into_owned();
        text.contains("\"seq\"").then_some(()).ok_or(text)
    });
    for i in 0..LIVE {
        let name = format!("live-{i}");
        registry.put(&key(&name), &[("Nats-TTL", "1h")], &entry(&name));
    }
    let leader = cluster.leader("service_registry", 0);
    (cluster, leader)
}

impl Wounded {
    fn new(version: &str, harm: Harm, leader: bool) -> Wounded {
        let (mut cluster, leads) = healthy(version);
        let lost = if leader { leads } else { (leads + 1) % 3 };
        match harm {
            Harm::Killed => cluster.servers[lost].kill(),
            Harm::CutOff => cluster.partition(lost, Flow::Hold),
        }
        let which = if leader { "the bucket's leader" } else { "another member" };
        let name = format!("{version}, {which} {harm:?}");
        let wounded = Wounded { cluster, name, lost };
        wounded.wait_for_leaders();
        wounded
    }

    fn through(&self) -> String {
        self.cluster.servers[(self.lost + 1) % 3].url()
    }

    /// Until what is left has chosen its leaders: of the bucket, and of
    /// JetStream.
    fn wait_for_leaders(&self) {
        eventually(secs(90), "a message is stored, and JetStream is led", || {
            let mut client = Client::login_within(&self.through(), &json!({}), secs(1))?;
            client.patience = secs(1);
            let reply = client.try_request(b"$KV.service_registry.other", b"", b"x")?;
            let text = String::from_utf8_lossy(&reply.payload).into_owned();
            if !text.contains("\"seq\"") {
                return Err(text);
            }
            client.api("INFO", &json!({})).map(|_| ())
        });
    }

    /// So many calls, each verb in its turn; the summary, and what failed.
    fn calls(&self, count: usize) -> (String, Vec<String>) {
        let mut registry = Registry::at(&self.through());
        let mut failed = Vec::new();
        let mut times: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
        for turn in 0..count {
            let verb = VERBS[turn % 3];
            let dead = format!("dead-{turn}");
            if verb == "cleanup" {
                // No TTL: it is to be removed.
                registry.put(&key(&dead), &[], &entry(&dead));
                // A replica applies a message when it hears of the next one, or
                // within a second: in a registry heartbeats see to that.
                registry.put("other", &[], "x");
            }
            let output = aegis(&[verb, "--json", "-s", &urls(&self.cluster, turn / 3)])
                .within(secs(30))
                .run();
            times.entry(verb).or_default().push(output.took);
            if let Err(why) = fine(verb, &format!("\"{dead}\""), &output) {
                let brief = output.stderr.replace('\n', " / ");
                failed.push(format!("{verb} {turn}: {why} after {:?}: {brief}", output.took));
            } else if output.took > LONGEST {
                failed.push(format!("{verb} {turn}: took {:?}", output.took));
            }
        }
        let mut summary = format!("wounded: {}: {} of {count} failed", self.name, failed.len());
        for (verb, mut times) in times {
            times.sort();
            let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
            summary += &format!(
                "; {verb} median {:.0} ms, slowest {:.2} s",
                median.as_secs_f64() * 1e3,
                worst.as_secs_f64()
            );
        }
        (summary, failed)
    }
}

/// All three servers, one after the other the first of the list.
fn urls(cluster: &Cluster, turn: usize) -> String {
    let mut urls: Vec<String> = cluster.servers.iter().map(|s| s.url()).collect();
    urls.rotate_left(turn % 3);
    urls.join(",")
}

/// Whether the answer is whole.
fn fine(verb: &str, dead: &str, output: &Output) -> Result<(), String> {
    let answer: serde_json::Value =
        serde_json::from_str(&output.stdout).map_err(|error| format!("no answer: {error}"))?;
    let count = |name: &str| answer[name].as_array().map_or(0, Vec::len);
    match verb {
        "list" if output.code == 0 && count("instances") >= LIVE => Ok(()),
        "check" => {
            let checks = answer["checks"].as_array().cloned().unwrap_or_default();
            let bad: Vec<String> = checks
                .iter()
                .filter(|check| check["status"] == "critical" || check["status"] == "unknown")
                .map(|check| format!("{} {}", check["name"], check["message"]))
                .collect();
            if bad.is_empty() && checks.len() > 5 { Ok(()) } else { Err(bad.join("; ")) }
        }
        "cleanup" if output.code == 0 && output.stdout.contains(dead) => Ok(()),
        _ => Err(format!("exit code {}, {}", output.code, output.stdout.trim())),
    }
}

fn none_fails(versions: &[&str], harms: &[(Harm, bool)], count: usize) {
    let mut all = Vec::new();
    for version in versions {
        for &(harm, leader) in harms {
            let wounded = Wounded::new(version, harm, leader);
            let began = Instant::now();
            let (summary, failed) = wounded.calls(count);
            say(&format!("{summary}; in {:.1} s", began.elapsed().as_secs_f64()));
            all.extend(failed.into_iter().map(|why| format!("{}: {why}", wounded.name)));
        }
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

// Each version, each harm, twice: all of it takes minutes (the last test).

#[test]
fn on_2_11_11_no_call_fails() {
    none_fails(&["2.11.11"], &[(Harm::CutOff, true), (Harm::Killed, false)], 15);
}

#[test]
fn on_2_12_8_no_call_fails() {
    none_fails(&["2.12.8"], &[(Harm::Killed, false), (Harm::CutOff, false)], 15);
}

#[test]
fn on_2_14_6_no_call_fails() {
    none_fails(&["2.14.6"], &[(Harm::CutOff, true), (Harm::Killed, true)], 15);
}

#[test]
fn on_2_15_1_no_call_fails() {
    none_fails(&["2.15.1"], &[(Harm::Killed, true), (Harm::CutOff, false)], 15);
}

/// Each verb, through each member first, all at once and at a moment at which
/// the bucket has no leader: they wait for one, within their timeout.
fn none_fails_during_an_election(
    version: &str,
    timeout: &str,
    may_be_incomplete: bool,
    end: fn(&mut Cluster, usize),
) {
    let (mut cluster, leader) = healthy(version);
    let mut registry = Registry::at(&cluster.servers[leader].url());
    let dead: BTreeSet<String> = (0..9).map(|n| format!("dead-{n}")).collect();
    for name in &dead {
        registry.put(&key(name), &[], &entry(name));
    }
    registry.put("other", &[], "x");
    let calls: Vec<(&str, String)> =
        (0..9).map(|turn| (VERBS[turn % 3], urls(&cluster, turn / 3))).collect();
    let runs = calls.iter().map(|(verb, urls)| {
        aegis(&[*verb, "--json", "--timeout", timeout, "-s", urls]).within(secs(150))
    });
    let runs: Vec<Invocation> = runs.collect();
    end(&mut cluster, leader);
    let (mut removed, mut failed, mut slowest) = (BTreeSet::new(), Vec::new(), Duration::ZERO);
    let mut remove = |output: &Output| {
        // One that failed says nothing there, and is told of below.
        if output.stdout.is_empty() {
            return;
        }
        let names = output.json()["removed"].as_array().cloned().unwrap_or_default();
        removed
            .extend(names.iter().filter_map(|one| one["instanceId"].as_str().map(str::to_owned)));
    };
    let (mut incomplete, mut told) = (0, Vec::new());
    for (output, (verb, _)) in together(&runs).iter().zip(&calls) {
        if *verb == "cleanup" {
            told.push(format!("{}{}", output.stdout, output.stderr));
        }
        slowest = slowest.max(output.took);
        // Three cleanups share the work.
        remove(output);
        if may_be_incomplete && *verb == "cleanup" && output.code == 75 {
            incomplete += 1;
        } else if let Err(why) = fine(verb, "", output) {
            failed.push(format!("{verb}: {why} after {:?}: {}", output.took, output.stderr));
        }
    }
    say(&format!(
        "election, {version}: {} of 9 failed, {incomplete} incomplete, slowest {slowest:?}",
        failed.len()
    ));
    assert!(failed.is_empty(), "{failed:#?}");
    if incomplete > 0 {
        // "Run again": no call of any member fails any more.
        let output = aegis(&["cleanup", "--json", "-s", &urls(&cluster, leader)]).run().exits(0);
        remove(&output);
    }
    assert_eq!(removed, dead, "{}", told.join("\n"));
    registry = Registry::at(&cluster.servers[(leader + 1) % 3].url());
    for name in &dead {
        assert!(registry.last(&key(name)).is_none_or(|entry| entry.is_marker()), "{name}");
    }
}

/// An election is over in 10 s; beside busy loops one of 2.15.1 was seen to last for
/// more than 20 s, in which both servers said 10008.
fn none_fails_while_a_killed_leader_is_replaced(version: &str) {
    none_fails_during_an_election(version, "60s", false, |cluster, leader| {
        cluster.servers[leader].kill();
    });
}

#[test]
fn while_a_leader_that_was_killed_is_replaced_no_call_fails_on_2_11_11() {
    none_fails_while_a_killed_leader_is_replaced("2.11.11");
}

#[test]
fn while_a_leader_that_was_killed_is_replaced_no_call_fails_on_2_12_8() {
    none_fails_while_a_killed_leader_is_replaced("2.12.8");
}

#[test]
fn while_a_leader_that_was_killed_is_replaced_no_call_fails_on_2_14_6() {
    none_fails_while_a_killed_leader_is_replaced("2.14.6");
}

#[test]
fn while_a_leader_that_was_killed_is_replaced_no_call_fails_on_2_15_1() {
    none_fails_while_a_killed_leader_is_replaced("2.15.1");
}

/// It is cut off and does not know it yet: it reads as if nothing were wrong, and
/// what it is to remove it does not answer. What was not removed then is said.
#[test]
fn while_a_leader_that_was_cut_off_is_replaced_reading_never_fails() {
    none_fails_during_an_election("2.15.1", "20s", true, |cluster, leader| {
        cluster.partition(leader, Flow::Hold);
    });
}

#[test]
fn while_a_leader_steps_down_no_call_fails() {
    none_fails_during_an_election("2.14.6", "5s", false, |cluster, leader| {
        let mut client =
            Client::login(&cluster.servers[leader].url(), &json!({})).expect("it is up");
        client
            .api("STREAM.LEADER.STEPDOWN.KV_service_registry", &json!({}))
            .expect("it steps down");
    });
}

/// A member that says that there is no leader does not know more than those who
/// say nothing, and may be choosing one.
#[test]
fn while_some_are_silent_who_says_no_ends_no_call() {
    let (server, mut registry) = any_bucket();
    registry.put(&key("live"), &[("Nats-TTL", "1h")], &entry("live"));
    let members = [Proxy::to(server.port()), Proxy::to(server.port())];
    let is_question = |frame: &str| frame.contains("jetstream.api.v1");
    members[1].rewrite_messages(move |frame| match is_question(frame) {
        true => Fate::Becomes(leaderless()),
        false => Fate::Passes,
    });
    let urls = format!("{},{}", members[0].url(), members[1].url());
    for verb in VERBS {
        let elects = Instant::now() + secs(2);
        members[0].rewrite_messages(move |frame| match is_question(frame) {
            true if Instant::now() < elects => Fate::IsLost,
            _ => Fate::Passes,
        });
        let output = aegis(&[verb, "--json", "--timeout=10s", "-s", &urls]).run();
        assert!(output.code < 2, "{verb}: {output:?}");
    }
}

/// Each member says at once that the cluster has no leader, for as long as it is
/// choosing one. Where it gets none, each verb says so within its timeout.
#[test]
fn while_everybody_says_that_there_is_no_leader_no_call_fails() {
    let (server, mut registry) = any_bucket();
    registry.put(&key("live"), &[("Nats-TTL", "1h")], &entry("live"));
    let members = [Proxy::to(server.port()), Proxy::to(server.port())];
    let elect = |time: Duration| {
        let elected = Instant::now() + time;
        for member in &members {
            member.rewrite_messages(move |frame| match frame.contains("jetstream.api.v1") {
                true if Instant::now() < elected => Fate::Becomes(leaderless()),
                _ => Fate::Passes,
            });
        }
    };
    let both = format!("{},{}", members[0].url(), members[1].url());
    for urls in [both, members[0].url()] {
        for verb in VERBS {
            elect(secs(2));
            let before = members[0].accepted();
            let output = aegis(&[verb, "--json", "--timeout=10s", "-s", &urls]).run();
            assert!(output.code < 2, "{verb}: {output:?}");
            assert!((secs(1)..secs(5)).contains(&output.took), "{verb}: {output:?}");
            let opened = members[0].accepted() - before;
            assert!(opened < 12, "{verb}: {opened} connections");
        }
        // Also after more rounds than a patience that doubles could count.
        elect(secs(18));
        let output =
            aegis(&["list", "--json", "--timeout=30s", "-s", &urls]).within(secs(40)).run();
        assert_eq!(output.code, 0, "{output:?}");
        elect(secs(60));
        let output = aegis(&["list", "--timeout=2s", "-s", &urls]).run().exits(69);
        assert!(output.stderr.contains("the cluster has no leader (no quorum)"), "{output:?}");
        assert!(output.stderr.contains("hint: choosing a leader takes up to 10s"), "{output:?}");
        assert!((secs(1)..secs(4)).contains(&output.took), "{output:?}");
    }
}

/// A member that is cut off, or has just stopped leading, may take a removal and
/// never answer it: another one is asked while there is time.
#[test]
fn who_never_answers_a_removal_is_given_up_for_another_member() {
    let (server, mut registry) = any_bucket();
    for n in 0..50 {
        let name = format!("dead-{n}");
        registry.put(&key(&name), &[], &entry(&name));
    }
    let members = [Proxy::to(server.port()), Proxy::to(server.port())];
    members[0].rewrite_messages(|frame| match frame.contains("stream_purge_response") {
        true => Fate::IsLost,
        false => Fate::Passes,
    });
    let urls = format!("{},{}", members[0].url(), members[1].url());
    let output = aegis(&["cleanup", "--json", "-s", &urls]).run().exits(0);
    assert_eq!(output.json()["removed"].as_array().map_or(0, Vec::len), 50, "{output:?}");
    assert!((secs(2)..secs(4)).contains(&output.took), "{:?}", output.took);
    assert_eq!((members[0].accepted(), members[1].accepted()), (1, 1));

    // Where there is no other, its time is the timeout.
    registry.put(&key("dead"), &[], &entry("dead"));
    let alone = members[0].url();
    let output = aegis(&["cleanup", "--json", "--timeout=3s", "-s", &alone]).run().exits(75);
    assert!(output.stdout.contains("no answer in time"), "{output:?}");
    assert!((secs(3)..secs(7)).contains(&output.took), "{:?}", output.took);
}

/// What a member says that knows of no leader.
fn leaderless() -> String {
    json!({
        "type": "io.nats.jetstream.api.v1.error",
        "error": {
            "code": 503, "err_code": 10008,
            "description": "JetStream system temporarily unavailable",
        },
    })
    .to_string()
}

/// "0 of 200 list, check, cleanup calls may fail, each within 3 s"
#[test]
#[ignore = "takes many minutes"]
fn with_one_member_of_three_lost_none_of_200_calls_fails_on_any_version() {
    let versions = std::env::var("AEGIS_WOUNDED").unwrap_or_default();
    let versions: Vec<&str> = match versions.as_str() {
        "" => vec!["2.11.11", "2.12.8", "2.14.6", "2.15.1"],
        given => given.split(',').collect(),
    };
    let harms =
        [(Harm::Killed, true), (Harm::Killed, false), (Harm::CutOff, true), (Harm::CutOff, false)];
    none_fails(&versions, &harms, 200);
}
