//! Clusters with TLS whose certificates are for a name: the members that an
//! agent knows by gossip are announced by their addresses, and verified under
//! the name that its list gave.

use std::time::Duration;

use crate::harness::agent::Agent;
use crate::harness::fault::duration;
use crate::harness::front::Front;
use crate::harness::registry::Entry;
use crate::harness::scene::{KEY, REGISTERED, run, with_ca};
use crate::harness::{eventually, nothing_happens_for, secs};

/// Of the agents of `run`.
const TTL: Duration = secs(6);

fn agent(front: &Front, scheme: &str) -> Agent {
    let mut agent = with_ca(run(&front.url(scheme))).spawn();
    let line = agent.wait_for_line(REGISTERED, secs(10));
    assert!(line.text.contains("(m0)"), "{}", line.text);
    agent
}

/// The agent moved to this member, and its entry was never gone.
fn moved(front: &mut Front, agent: &mut Agent, member: usize, seen: &dyn Fn() -> Vec<Entry>) {
    let place = front.place(member);
    let line = agent.wait_for_line(&place, secs(5));
    assert!(line.text.contains(" orders-api/host-1 at "), "{}", agent.stderr());
    let count = seen().len();
    eventually(secs(3), "it goes on there", || match seen().len() {
        now if now >= count + 3 => Ok(()),
        now => Err(format!("{now} heartbeats")),
    });
    let seen = seen();
    assert!(seen.iter().all(|entry| !entry.is_marker()), "{seen:?}");
    for pair in seen.windows(2) {
        let gap = duration(pair[1].stored - pair[0].stored);
        assert!(gap < TTL, "it was gone: {gap:?} between two heartbeats");
    }
    assert!(front.hub.registry.last(KEY).is_some());
}

#[test]
fn an_agent_moves_to_a_member_that_it_knows_by_gossip_only() {
    for scheme in ["tls", "nats"] {
        let mut front = Front::start(&["server-name"; 3]);
        let watch = front.hub.registry.watch(KEY);
        let mut agent = agent(&front, scheme);
        front.members[0].kill();
        front.members[1].kill();
        moved(&mut front, &mut agent, 2, &|| watch.seen());
    }
}

/// "members that join later are known at once (INFO comes again)"
#[test]
fn an_agent_moves_to_a_member_that_joined_after_it_had_connected() {
    let mut front = Front::start(&["server-name"; 2]);
    let watch = front.hub.registry.watch(KEY);
    let mut agent = agent(&front, "tls");
    front.join("server-name");
    front.members[0].kill();
    front.members[1].kill();
    moved(&mut front, &mut agent, 2, &|| watch.seen());
}

/// All members are replaced, one after the other, as an upgrade does it: the
/// list names none of those that are there in the end.
#[test]
fn an_agent_follows_a_cluster_whose_members_are_all_replaced() {
    let mut front = Front::start(&["server-name"; 2]);
    let watch = front.hub.registry.watch(KEY);
    let mut agent = agent(&front, "tls");
    for old in 0..3 {
        front.join("server-name");
        // The one that the agent is at goes: there are two others.
        front.members[old].kill();
        eventually(secs(5), "the agent is at one that runs", || {
            let lines = agent.lines_with(" orders-api/host-1 ");
            let last = lines.last().map(|line| line.text.clone()).unwrap_or_default();
            let at =
                (old + 1..front.members.len()).any(|member| last.contains(&front.place(member)));
            if at { Ok(()) } else { Err(agent.stderr()) }
        });
    }
    let last = front.members.len() - 1;
    front.members[last - 1].kill();
    moved(&mut front, &mut agent, last, &|| watch.seen());
}

/// Its certificate is for somebody else: that it was announced by a member that
/// is trusted does not make it one.
#[test]
fn a_member_whose_certificate_is_for_another_name_is_not_taken() {
    let mut front = Front::start(&["server-name", "server-elsewhere"]);
    let mut agent = agent(&front, "tls");
    front.members[0].kill();
    agent.wait_for_line("lost ", secs(5));
    nothing_happens_for(secs(3));
    assert!(agent.lines_with("restored").is_empty(), "{}", agent.stderr());
    front.members[0].start_again();
    let line = agent.wait_for_line("restored orders-api/host-1 at ", secs(5));
    assert!(line.text.contains("(m0)"), "{}", line.text);
}
