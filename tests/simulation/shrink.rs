//! From a schedule that fails to the shortest one that still does.

use crate::judge::Violation;
use crate::plan::Plan;
use crate::run::Threads;
use crate::world::{MILLI, SECOND};

/// The shortest plan that is found, and what is wrong with it.
pub fn shrink(threads: &Threads, plan: Plan) -> (Plan, Violation) {
    let fails = |plan: &Plan| threads.run(plan, false).violation;
    let Some(mut violation) = fails(&plan) else {
        let words = "it does not fail again: the simulator is not deterministic".to_owned();
        return (plan, Violation { at: 0, words });
    };
    let mut best = plan;
    // Nothing after the failure matters.
    let mut shorter = best.clone();
    shorter.length = violation.at + SECOND;
    shorter.faults.retain(|fault| fault.at <= violation.at);
    try_it(&fails, &mut best, &mut violation, shorter);
    let mut size = best.faults.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < best.faults.len() {
            let mut fewer = best.clone();
            let end = (at + size).min(fewer.faults.len());
            fewer.faults.drain(at..end);
            if !try_it(&fails, &mut best, &mut violation, fewer) {
                at += size;
            }
        }
        size /= 2;
    }
    for at in 0..best.faults.len() {
        while best.faults[at].lasts > 2 * MILLI {
            let mut briefer = best.clone();
            briefer.faults[at].lasts /= 2;
            if !try_it(&fails, &mut best, &mut violation, briefer) {
                break;
            }
        }
    }
    let changes: [fn(&mut Plan); 7] = [
        |plan| plan.hosts.truncate(1),
        |plan| plan.servers.truncate(1),
        |plan| plan.bucket = None,
        |plan| plan.in_memory = false,
        |plan| plan.lags_and_forgets = false,
        |plan| plan.hosts.iter_mut().for_each(|host| (host.drift, host.wall_off) = (0, 0)),
        |plan| (plan.ttl, plan.interval, plan.latency) = (30, 10, 200),
    ];
    for change in changes {
        let mut simpler = best.clone();
        change(&mut simpler);
        let hosts = simpler.hosts.len();
        if simpler != best
            && simpler.faults.iter().all(|fault| fault.fits(hosts, simpler.servers.len()))
        {
            try_it(&fails, &mut best, &mut violation, simpler);
        }
    }
    (best, violation)
}

fn try_it(
    fails: &dyn Fn(&Plan) -> Option<Violation>,
    best: &mut Plan,
    violation: &mut Violation,
    plan: Plan,
) -> bool {
    match fails(&plan) {
        Some(found) => {
            (*best, *violation) = (plan, found);
            true
        }
        None => false,
    }
}
