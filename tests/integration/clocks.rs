//! Clocks that jump under the agent: a suspend of the host, steps of the wall
//! clock.

use std::time::Instant;

use crate::harness::agent::{Agent, aegis};
use crate::harness::clock::WallClock;
use crate::harness::fault::{duration, say};
use crate::harness::host_clocks::HostClocks;
use crate::harness::registry::Entry;
use crate::harness::scene::{KEY, any_bucket, bucket, key};
use crate::harness::server::Setup;
use crate::harness::watcher::Watcher;
use crate::harness::{eventually, millis, secs, time_passes};

fn agent(clocks: &HostClocks, url: &str, ttl: &str, interval: &str) -> Agent {
    let words = ["run", "--service=orders-api", "--instance=host-1", "--ttl", ttl, "--interval"];
    let mut agent = clocks.of(aegis(&words).arg(interval).arg("-s").arg(url)).spawn();
    agent.wait_for_line("registered orders-api/host-1", secs(5));
    agent
}

fn off(entry: &Entry) -> f64 {
    (entry.stored - entry.last_heartbeat()).as_seconds_f64()
}

/// "`lastHeartbeat` is stamped in registry time when the host's clock is more
/// than 1 s off", and a step disturbs nothing.
#[test]
fn steps_of_the_wall_clock_show_nowhere() {
    let (server, mut registry) = any_bucket();
    let watch = registry.watch(KEY);
    let clocks = HostClocks::new();
    let agent = agent(&clocks, &server.url(), "3s", "300ms");
    watch.wait_for(3, secs(5));
    for (wall, what) in [
        (3_600_000, "an hour ahead"),
        (-86_400_000, "a day behind"),
        (1_500, "1.5 s ahead"),
        (0, "right again"),
    ] {
        let count = watch.seen().len();
        clocks.shift(wall, 0);
        let seen = watch.wait_for(count + 5, secs(5));
        let gaps = seen[count - 1..].windows(2).map(|pair| pair[1].stored - pair[0].stored);
        let longest = gaps.max().expect("several").as_seconds_f64();
        assert!(longest < 0.6, "{what}: {longest} s between two heartbeats of 0.3 s");
        for entry in &seen {
            assert!(off(entry).abs() < 1.0, "{what}: {:.3} s off: {entry:?}", off(entry));
        }
    }
    assert_eq!(agent.lines().len(), 1, "{}", agent.stderr());
}

#[test]
fn a_clock_that_is_a_little_off_is_left_alone() {
    let (server, mut registry) = any_bucket();
    let watch = registry.watch(KEY);
    let clocks = HostClocks::new();
    clocks.shift(-600, 0);
    let _agent = agent(&clocks, &server.url(), "3s", "300ms");
    for entry in watch.wait_for(3, secs(5)) {
        assert!((0.5..0.8).contains(&off(&entry)), "{:.3} s: {entry:?}", off(&entry));
    }
}

#[test]
fn a_clock_that_is_off_from_the_start_is_said_and_not_used() {
    let (server, mut registry) = any_bucket();
    let watch = registry.watch(KEY);
    let clocks = HostClocks::new();
    clocks.shift(-7_200_000, 0);
    let mut agent = agent(&clocks, &server.url(), "3s", "300ms");
    agent.wait_for_line("clock is -2h00m off", secs(2));
    // The service is not known to be on time before the bucket was looked at.
    for entry in watch.wait_for(4, secs(5)) {
        assert!(off(&entry).abs() < 1.0, "{:.3} s off: {entry:?}", off(&entry));
    }
}

/// The clock of a real server is set, with all that it stores and lets expire.
/// Whoever beats is never called down by a step back; a step forward by more than
/// a TTL takes every entry, and each is back with its next heartbeat. A death is
/// told in time by the new clock.
#[test]
fn a_server_whose_clock_is_set_hides_nobody_for_longer_than_an_interval() {
    let Some(clock) = WallClock::new() else { return };
    let wrapper = clock.wrapper().to_vec();
    let (server, mut registry) = bucket(Setup { wrapper, ..Setup::default() });
    let start = |instance: &str, ttl: &str| {
        let (name, ttl) = (format!("--instance={instance}"), format!("--ttl={ttl}"));
        aegis(&["run", "--service=orders-api", &name, &ttl, "--interval=500ms", "-s"])
            .arg(&server.url())
            .spawn()
    };
    let _stays = start("stays", "6s");
    let mut watcher = Watcher::start(&server.url(), &[]);
    watcher.wait_for("up stays", secs(5));
    watcher.wait_for("synced", secs(5));
    let count = |watcher: &Watcher, wanted: &str| {
        watcher.words().iter().filter(|word| *word == wanted).count()
    };
    let mut last = 0;
    for (round, ahead) in [-60_000, -3_600_000, -3_598_000, 0, 3_600_000, 0].into_iter().enumerate()
    {
        let before = count(&watcher, "up stays");
        // By more than its TTL.
        let forward = ahead - last > 6_000;
        last = ahead;
        clock.set(ahead);
        let instance = format!("dies{round}");
        let mut dies = start(&instance, "2s");
        dies.wait_for_line("registered orders-api/", secs(5));
        watcher.wait_for(&format!("up {instance}"), secs(4));
        time_passes(millis(1_200));
        dies.signal("KILL");
        dies.wait_exit(secs(2));
        let killed = Instant::now();
        let down = format!("down {instance} expired");
        eventually(millis(3_400), &down, || match count(&watcher, &down) {
            0 => Err(watcher.words().join(", ")),
            _ => Ok(()),
        });
        let took = killed.elapsed();
        // The server removes it when its own timer says so.
        eventually(secs(7), "list shows who is alive", || {
            let list = aegis(&["list", "--names", "-s", &server.url()]).run().exits(0);
            match list.stdout.as_str() {
                "orders-api/stays\n" => Ok(()),
                other => Err(format!("{ahead} ms: {other}")),
            }
        });
        let ups = count(&watcher, "up stays") - before;
        assert!(ups <= usize::from(forward), "{ahead} ms: {:?}", watcher.words());
        // Expired, or stale where a heartbeat that was under way came before that: its
        // time is by the clock of before.
        let downs = ["down stays expired", "down stays stale"].map(|word| count(&watcher, word));
        let told = downs.iter().sum::<usize>();
        assert_eq!(count(&watcher, "up stays") - 1, told, "{:?}", watcher.words());
        let seen = registry.last(&key("stays")).expect("it beats");
        assert!(off(&seen).abs() < 1.0, "{ahead} ms: stamped {:.3} s off", off(&seen));
        say(&format!(
            "fault: server's clock set to {ahead} ms ahead; told up again {ups} times, a death told \
             {:.2} s after it (TTL 2 s)",
            took.as_secs_f64()
        ));
    }
    watcher.stop();
}

/// "The schedule survives a suspend (`CLOCK_BOOTTIME` gap: beat at once)"
#[test]
fn after_a_suspend_it_beats_at_once_on_a_fresh_session() {
    let (server, mut registry) = any_bucket();
    let watch = registry.watch(KEY);
    let clocks = HostClocks::new();
    let mut agent = agent(&clocks, &server.url(), "20s", "4s");
    watch.wait_for(2, secs(9));
    // Suspended for an hour: the boot clock and the wall clock went on.
    let count = watch.seen().len();
    clocks.shift(0, 3_600_000);
    clocks.wake();
    let woken = Instant::now();
    agent.wait_for_line("the host was suspended: heartbeat at once", millis(1_500));
    let seen = watch.wait_for(count + 1, secs(1));
    let took = woken.elapsed();
    assert!(took < millis(1_500), "at once, with an interval of 4 s: {took:?}");
    assert!(off(&seen[count]).abs() < 1.0, "{:?}", seen[count]);
    let gap = eventually(secs(10), "the schedule goes on", || match &watch.seen()[..] {
        [.., one, two] if watch.seen().len() > count + 2 => Ok(duration(two.stored - one.stored)),
        _ => Err(String::new()),
    });
    assert!(gap < millis(4_200), "{gap:?}");
    assert!(agent.lines_with("lost").is_empty(), "{}", agent.stderr());
    say(&format!(
        "fault: host suspended for an hour; heartbeat {:.2} s after it woke (interval 4 s)",
        took.as_secs_f64()
    ));
}
