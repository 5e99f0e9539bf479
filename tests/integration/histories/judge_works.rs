//! The judge of histories sees what it is there to see: a run of which all is
//! well, and one for each thing that is not.

use super::history::{
    Cleanup, History, Life, MILLI, Micros, Read, Revision, SECOND, Spec, Told, Watched,
};
use super::judge::judge;

const END: Micros = 120 * SECOND;

/// One agent that beats each second and is shown, and a watcher that told of it.
fn well() -> History {
    let spec = Spec { instance: "h0".to_owned(), ttl: 6 * SECOND, interval: SECOND, group: 0 };
    let life = Life { agent: 0, pid: 7, from: SECOND, to: Micros::MAX / 4, was_killed: false };
    let reads = (2..119).map(|second| Read {
        from: second * SECOND,
        to: second * SECOND + 20 * MILLI,
        code: 0,
        shown: vec!["h0".to_owned()],
    });
    let told = vec![told(SECOND, "synced", ""), told(SECOND + 50 * MILLI, "up", "h0")];
    let mut history = History {
        from: 0,
        to: END,
        agents: vec![spec],
        lives: vec![life],
        pauses: vec![Vec::new()],
        serving: vec![vec![(0, END)]; 3],
        closed: vec![vec![Vec::new(); 3]],
        broken: vec![Vec::new(); 3],
        clock: vec![(0, 0)],
        reads: reads.collect(),
        watched: vec![Watched { told, ..Watched::default() }],
        ..History::default()
    };
    beats(&mut history, 1..119);
    history
}

fn beats(history: &mut History, seconds: std::ops::Range<i64>) {
    let all = history.revisions.entry("h0".to_owned()).or_default();
    all.clear();
    for second in seconds {
        let at = second * SECOND + 30 * MILLI;
        let before = all.last().map_or(0, |last: &Revision| last.seq);
        let seq = second as u64;
        let is_marker = false;
        all.push(Revision { seq, stored: at, at: 0, before, pid: Some(7), is_marker, seen: at });
    }
}

/// Nothing is stored between these two, and what stood there is gone.
fn gap(history: &mut History, from: Micros, to: Micros) {
    let all = history.revisions.get_mut("h0").expect("it beats");
    all.retain(|one| !(from..to).contains(&one.stored));
    let next = all.iter_mut().find(|one| one.stored >= to).expect("it beats again");
    next.before = 0;
    history.reads.retain(|read| !(from + SECOND..to).contains(&read.from));
}

fn told(at: Micros, event: &str, instance: &str) -> Told {
    let (event, instance) = (event.to_owned(), instance.to_owned());
    Told { at, event, instance, reason: "expired".to_owned() }
}

fn says(mut history: History, wanted: &str) {
    history.settle();
    let violations = judge(&history).violations;
    match wanted {
        "" => assert!(violations.is_empty(), "{violations:#?}"),
        _ => {
            let found = violations.iter().any(|one| one.contains(wanted));
            assert!(found, "no {wanted:?} in {violations:#?}");
        }
    }
}

#[test]
fn where_all_is_well_nothing_is_said() {
    says(well(), "");
}

#[test]
fn a_missing_entry_of_a_healthy_agent_is_seen() {
    let mut history = well();
    gap(&mut history, 40 * SECOND, 50 * SECOND);
    says(history, "P1: the entry of h0 is missing");
}

/// A purge leaves nothing but that nothing stood there.
#[test]
fn an_entry_that_somebody_took_is_seen() {
    let mut history = well();
    history.revisions.get_mut("h0").expect("it beats")[60].before = 0;
    says(history, "P1: the entry of h0 is missing");
}

#[test]
fn where_no_server_serves_for_long_an_entry_may_be_missing_and_then_not() {
    let mut history = well();
    let outage = vec![(0, 40 * SECOND), (60 * SECOND, END)];
    history.serving = vec![outage; 3];
    gap(&mut history, 41 * SECOND, 62 * SECOND);
    let watched = &mut history.watched[0].told;
    watched.push(told(41 * SECOND, "lost", ""));
    watched.push(told(61 * SECOND, "down", "h0"));
    watched.push(told(61 * SECOND, "synced", ""));
    watched.push(told(62 * SECOND + 40 * MILLI, "up", "h0"));
    says(history.clone(), "");
    // A short outage does not show.
    history.serving = vec![vec![(0, 40 * SECOND), (41 * SECOND, END)]; 3];
    says(history, "P1: the entry of h0 is missing");
}

#[test]
fn a_list_that_hides_the_living_or_shows_the_dead_is_seen() {
    let mut history = well();
    history.reads[50].shown.clear();
    says(history, "list does not show h0");
    let mut history = well();
    history.lives[0].to = 60 * SECOND;
    beats(&mut history, 1..60);
    history.reads.retain(|read| read.from < 65 * SECOND);
    history.watched[0].told.push(told(65 * SECOND + 500 * MILLI, "down", "h0"));
    says(history.clone(), "");
    history.reads.push(Read { from: 80 * SECOND, to: 81 * SECOND, ..history.reads[0].clone() });
    says(history, "list shows h0, which is gone");
}

#[test]
fn a_watcher_that_calls_the_living_down_twice_late_or_never_is_seen() {
    let mut history = well();
    history.watched[0].told.push(told(50 * SECOND, "down", "h0"));
    history.watched[0].told.push(told(50 * SECOND, "up", "h0"));
    says(history.clone(), "is called down (expired) and was never away");
    history.watched[0].told.push(told(51 * SECOND, "up", "h0"));
    says(history, "h0 up twice");
    let mut history = well();
    history.lives[0].to = 60 * SECOND;
    beats(&mut history, 1..60);
    history.reads.clear();
    says(history.clone(), "in the end {\"h0\"}, not {}");
    history.watched[0].told.push(told(70 * SECOND, "down", "h0"));
    says(history, "was not told in time");
    let mut history = well();
    history.watched[0].told.push(told(50 * SECOND, "lost", ""));
    says(history, "watch 0 is not up to date, and could be");
}

#[test]
fn a_cleanup_of_the_living_and_a_return_of_the_dead_are_seen() {
    let mut history = well();
    let removed = vec![("service-instances__s__h0".to_owned(), 50, "stale".to_owned())];
    let (from, to) = (50 * SECOND + 100 * MILLI, 50 * SECOND + 200 * MILLI);
    history.cleanups.push(Cleanup { from, to, code: 0, removed });
    says(history, "cleanup took service-instances__s__h0 50");
    let mut history = well();
    history.lives[0].to = 60 * SECOND;
    beats(&mut history, 1..63);
    history.reads.clear();
    let all = history.revisions.get_mut("h0").expect("it beats");
    all[59].is_marker = true;
    all[59].pid = None;
    says(history, "h0 is back after it deregistered");
}

/// It was stored by the new clock, 5 ms before it was written down that the clock
/// was set.
#[test]
fn a_step_of_the_clock_that_is_written_down_late_is_no_gap() {
    for step in [-20 * SECOND, 3 * SECOND] {
        let mut history = well();
        history.clock.push((60 * SECOND + 35 * MILLI, step));
        for one in history.revisions.get_mut("h0").expect("it beats") {
            if one.stored >= 60 * SECOND {
                one.stored += step;
            }
        }
        says(history, "");
    }
}

/// The clock of the servers is set: what they stamped is told by true time.
#[test]
fn steps_of_the_clock_are_no_gaps() {
    for step in [-60 * SECOND, -2 * SECOND, 2 * SECOND, 3 * SECOND] {
        let mut history = well();
        history.clock.push((60 * SECOND, step));
        for one in history.revisions.get_mut("h0").expect("it beats") {
            if one.stored >= 60 * SECOND {
                one.stored += step;
            }
        }
        says(history, "");
    }
}
