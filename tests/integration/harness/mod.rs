//! What the tests stand on: real servers, the built binary, a proxy between
//! them, and a NATS client of its own that shares no code with the program.
//!
//! Every wait has a deadline. A test that fails prints the logs of the servers
//! and agents it still holds.

pub mod agent;
pub mod backup;
pub mod clock;
pub mod cluster;
pub mod document;
pub mod fault;
pub mod front;
pub mod hanging;
pub mod host_clocks;
pub mod hostile;
pub mod info;
pub mod leaf;
pub mod monitor;
pub mod network;
pub mod nkey;
pub mod peers;
pub mod ports;
pub mod proxy;
pub mod registry;
pub mod scene;
pub mod server;
pub mod strike;
pub mod syscalls;
pub mod time;
pub mod watcher;

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

pub use self::ports::free_port;

pub const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Looks every 10 ms until `look` has something, and gives it back; panics
/// with the last complaint when `within` has passed.
pub fn eventually<T>(
    within: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<T, String>,
) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(seen) => return seen,
            Err(why) if start.elapsed() > within => {
                panic!("waited {within:?} for: {what}\nlast seen: {why}")
            }
            Err(_) => sleep(millis(10)),
        }
    }
}

/// Waits, to prove that nothing happens meanwhile: what has not is asserted
/// after it.
pub fn nothing_happens_for(time: Duration) {
    sleep(time);
}

/// Lets time pass that belongs to the scene: an outage of this length, a moment
/// in the middle of an interval.
pub fn time_passes(time: Duration) {
    sleep(time);
}

/// A fresh directory under target/tmp, for one guard's files.
pub fn scratch(purpose: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("{purpose}-{}-{count}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a scratch directory");
    path
}

/// The same for what a server stores: in memory, where there is room. A disk that
/// has to serve somebody else stalls all servers for up to a minute, and is not
/// what a test is about.
pub fn scratch_for_store() -> PathBuf {
    static CLEARED: Once = Once::new();
    CLEARED.call_once(clear_stores);
    let room = rustix::fs::statvfs(MEMORY).map_or(0, |about| about.f_bavail * about.f_frsize);
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = Path::new(MEMORY).join(format!("{STORES}{}-{count}", std::process::id()));
    if room < ROOM_FOR_STORES || std::fs::create_dir(&path).is_err() {
        return scratch("server");
    }
    path
}

const MEMORY: &str = "/dev/shm";
const STORES: &str = "aegis-agent-tests-";
const ROOM_FOR_STORES: u64 = 4 << 30;

/// Removes what runs left there that were killed.
fn clear_stores() {
    for entry in std::fs::read_dir(MEMORY).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(STORES)?.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Sends `signal` (`TERM`, `STOP`, ...) to a process of ours.
pub fn send_signal(pid: u32, signal: &str) {
    // The shell's own `kill` exists where the program `kill` does not.
    let done = std::process::Command::new("sh")
        .args(["-c", &format!("kill -s {signal} {pid}")])
        .output()
        .expect("sh runs");
    assert!(
        done.status.success(),
        "kill -s {signal} {pid}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}
