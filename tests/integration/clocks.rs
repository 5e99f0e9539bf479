//! Clocks that jump under the agent: a suspend of the host, steps of the wall
//! clock. A library of a few lines, compiled here and loaded before the C
//! library, shifts what the agent reads.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use crate::harness::agent::{Agent, aegis};
use crate::harness::fault::{duration, say};
use crate::harness::registry::Entry;
use crate::harness::scene::{KEY, any_bucket};
use crate::harness::{eventually, millis, scratch, secs};

const SHIM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/timerfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* The file holds how many milliseconds the wall clock and the boot clock are
   ahead of the truth: "<wall> <boot>". */
int clock_gettime(clockid_t clock, struct timespec *at)
{
    int result = syscall(SYS_clock_gettime, clock, at);
    const char *path = getenv("SHIFT");
    char text[64] = {0};
    char *rest;
    long long wall, boot, shift, nanos;
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (result != 0 || file < 0)
        return result;
    if (read(file, text, sizeof text - 1) < 0)
        text[0] = 0;
    close(file);
    wall = strtoll(text, &rest, 10);
    boot = strtoll(rest, NULL, 10);
    shift = clock == CLOCK_REALTIME ? wall : clock == CLOCK_BOOTTIME ? boot : 0;
    nanos = at->tv_nsec + shift % 1000 * 1000000LL;
    at->tv_sec += shift / 1000 + nanos / 1000000000LL;
    nanos %= 1000000000LL;
    if (nanos < 0) {
        nanos += 1000000000LL;
        at->tv_sec -= 1;
    }
    at->tv_nsec = nanos;
    return 0;
}

/* The timer that the kernel cancels when the host wakes up: here a pipe. */
int timerfd_create(clockid_t clock, int flags)
{
    const char *path = getenv("WAKES");
    (void)clock;
    (void)flags;
    return path ? open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC) : -1;
}

int timerfd_settime(int timer, int flags, const struct itimerspec *to, struct itimerspec *from)
{
    (void)timer;
    (void)flags;
    (void)to;
    (void)from;
    return 0;
}
"#;

/// The clocks of one agent.
struct Clocks {
    library: PathBuf,
    shift: PathBuf,
    wakes: PathBuf,
}

impl Clocks {
    fn new() -> Clocks {
        let directory = scratch("clocks");
        let source = directory.join("shift.c");
        let library = directory.join("shift.so");
        std::fs::write(&source, SHIM).expect("writes the source");
        let compiler = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .output()
            .expect("cc runs: the tests need a C compiler");
        assert!(compiler.status.success(), "{}", String::from_utf8_lossy(&compiler.stderr));
        let wakes = directory.join("wakes");
        let made = Command::new("mkfifo").arg(&wakes).status().expect("mkfifo runs");
        assert!(made.success(), "{made}");
        let clocks = Clocks { library, shift: directory.join("shift"), wakes };
        clocks.shift(0, 0);
        clocks
    }

    /// By how many milliseconds the clocks are ahead from now on.
    fn shift(&self, wall: i64, boot: i64) {
        let fresh = self.shift.with_extension("new");
        std::fs::write(&fresh, format!("{wall} {boot}")).expect("writes the shift");
        std::fs::rename(fresh, &self.shift).expect("puts it in place");
    }

    /// The host wakes up: what the kernel tells whoever has asked.
    fn wake(&self) {
        let mut pipe = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.wakes)
            .expect("opens the pipe, whoever else has");
        pipe.write_all(&[1; 8]).expect("writes into the pipe");
    }

    fn agent(&self, url: &str, ttl: &str, interval: &str) -> Agent {
        let words =
            ["run", "--service=orders-api", "--instance=host-1", "--ttl", ttl, "--interval"];
        let mut agent = aegis(&words)
            .arg(interval)
            .arg("-s")
            .arg(url)
            .env("LD_PRELOAD", &self.library.display().to_string())
            .env("SHIFT", &self.shift.display().to_string())
            .env("WAKES", &self.wakes.display().to_string())
            .spawn();
        agent.wait_for_line("registered orders-api/host-1", secs(5));
        agent
    }
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
    let clocks = Clocks::new();
    let agent = clocks.agent(&server.url(), "3s", "300ms");
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
    let clocks = Clocks::new();
    clocks.shift(-600, 0);
    let _agent = clocks.agent(&server.url(), "3s", "300ms");
    for entry in watch.wait_for(3, secs(5)) {
        assert!((0.5..0.8).contains(&off(&entry)), "{:.3} s: {entry:?}", off(&entry));
    }
}

#[test]
fn a_clock_that_is_off_from_the_start_is_said_and_not_used() {
    let (server, mut registry) = any_bucket();
    let watch = registry.watch(KEY);
    let clocks = Clocks::new();
    clocks.shift(-7_200_000, 0);
    let mut agent = clocks.agent(&server.url(), "3s", "300ms");
    agent.wait_for_line("clock is -2h00m off", secs(2));
    // The service is not known to be on time before the bucket was looked at.
    for entry in watch.wait_for(4, secs(5)) {
        assert!(off(&entry).abs() < 1.0, "{:.3} s off: {entry:?}", off(&entry));
    }
}

/// "The schedule survives a suspend (`CLOCK_BOOTTIME` gap: beat at once)"
#[test]
fn after_a_suspend_it_beats_at_once_on_a_fresh_session() {
    let (server, mut registry) = any_bucket();
    let watch = registry.watch(KEY);
    let clocks = Clocks::new();
    let mut agent = clocks.agent(&server.url(), "20s", "4s");
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
