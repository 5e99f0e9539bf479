//! One thread: an agent has no other, whatever it waits for, and a tool has at
//! most a short-lived one that looks a name up.

use crate::harness::agent::Agent;
use crate::harness::scene::{REGISTERED, bucket, fill, run, verb};
use crate::harness::server::Setup;
use crate::harness::{eventually, millis, secs};

fn registered(agent: &mut Agent) {
    agent.wait_for_line(REGISTERED, secs(8));
}

/// Whatever it does in the meantime.
fn has_one_thread(agent: &Agent, while_it: &str) {
    assert_eq!(agent.most_threads_for(millis(1_500)), 1, "{while_it}: {}", agent.holds());
}

#[test]
fn an_agent_has_one_thread_with_its_server_there_away_and_frozen() {
    let (mut server, _registry) = bucket(Setup::default());
    let mut agent = run(&server.url()).spawn();
    registered(&mut agent);
    has_one_thread(&agent, "beats");
    server.kill();
    agent.wait_for_line("still without registry", secs(5));
    has_one_thread(&agent, "has no server");
    server.start_again();
    agent.wait_for_line("restored ", secs(5));
    has_one_thread(&agent, "is back");
    server.freeze();
    agent.wait_for_lines("lost ", 2, secs(8));
    has_one_thread(&agent, "has a frozen server");
    server.thaw();
    agent.wait_for_lines("restored ", 2, secs(8));
    has_one_thread(&agent, "is back again");
}

#[test]
fn an_agent_that_starts_without_a_server_has_one_thread() {
    let agent = run("nats://127.0.0.1:9").spawn();
    has_one_thread(&agent, "has never had a server");
}

#[test]
fn an_agent_with_health_checks_has_one_thread() {
    let (server, _registry) = bucket(Setup::default());
    let port = server.port();
    for check in [
        "--health-exec=true".to_owned(),
        "--health-exec=sleep 1".to_owned(),
        format!("--health-tcp=127.0.0.1:{port}"),
        // Nobody listens: each check fails.
        "--health-tcp=127.0.0.1:9".to_owned(),
    ] {
        let mut agent = run(&server.url()).arg(&check).spawn();
        registered(&mut agent);
        has_one_thread(&agent, &check);
    }
}

#[test]
fn no_thread_stays_after_a_look_up() {
    let (mut server, _registry) = bucket(Setup::default());
    let mut agent = run(&format!("nats://localhost:{}", server.port()))
        .arg(&format!("--health-tcp=localhost:{}", server.port()))
        .spawn();
    registered(&mut agent);
    let ends = |agent: &Agent| {
        eventually(secs(2), "it has one thread", || match agent.usage().threads {
            1 => Ok(()),
            _ => Err(agent.holds()),
        });
    };
    ends(&agent);
    // The health check has a name as well, and looks it up each time.
    assert!(agent.most_threads_for(millis(1_500)) <= 2, "{}", agent.holds());
    server.kill();
    agent.wait_for_line("still without registry", secs(5));
    assert!(agent.most_threads_for(millis(1_500)) <= 3, "{}", agent.holds());
    server.start_again();
    agent.wait_for_line("restored ", secs(5));
    ends(&agent);
}

#[test]
fn tools_have_one_thread_and_one_more_for_a_look_up() {
    let (server, mut registry) = bucket(Setup::default());
    fill(&mut registry, "new", 300, 0);
    let mut seen = 0;
    for (url, most) in [(server.url(), 1), (format!("nats://localhost:{}", server.port()), 2)] {
        for tool in ["list", "check", "cleanup", "init"] {
            // Something for a cleanup to do.
            fill(&mut registry, "old", 300, 100);
            let output = verb(tool, &url).run();
            assert!(output.code < 2, "{output:#?}");
            assert!(output.peak_threads <= most, "{tool}, {url}: {output:#?}");
            seen = seen.max(output.peak_threads);
        }
    }
    assert!(seen > 0, "none of them ran for long enough to be looked at");
}
