//! Servers whose clock can be set. [`WallClock`] sets the clock that a real
//! server reads, so that what it stores and lets expire goes by it;
//! [`ServerClock`] is a proxy that only changes what a server says of its time:
//! what it stores keeps the true one.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::fault::say;
use super::proxy::Proxy;
use super::scratch;
use super::time::{parse, rfc3339};

/// The wall clock of one server or of several, which are started by `wrapper`.
pub struct WallClock {
    shift: PathBuf,
    wrapper: Vec<String>,
}

impl WallClock {
    /// A clock that is right. `None`, said aloud, where no program can be traced.
    pub fn new() -> Option<WallClock> {
        let directory = scratch("wall-clock");
        let tool = directory.join("step_clock");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/integration/harness/step_clock.c");
        let built = Command::new("cc").args(["-O1", "-o"]).arg(&tool).arg(source).output();
        let built = built.expect("cc runs: Rust needs a C compiler as well");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let shift = directory.join("shift");
        let wrapper = vec![tool.display().to_string(), shift.display().to_string()];
        let clock = WallClock { shift, wrapper };
        clock.set(3_600_000);
        // An hour later is another hour.
        let date =
            Command::new(&clock.wrapper[0]).arg(&clock.shift).args(["/bin/date", "+%s"]).output();
        let told = date.ok().and_then(|date| String::from_utf8(date.stdout).ok());
        let told = told.and_then(|text| text.trim().parse::<i64>().ok());
        let true_time = super::time::now().unix_timestamp();
        clock.set(0);
        if !told.is_some_and(|told| (3_590..3_610).contains(&(told - true_time))) {
            say("SKIPPED: no program can be traced here: the clock of a server cannot be set");
            return None;
        }
        Some(clock)
    }

    /// What starts a program with this clock.
    pub fn wrapper(&self) -> &[String] {
        &self.wrapper
    }

    /// By how many milliseconds it is ahead from now on.
    pub fn set(&self, millis: i64) {
        let fresh = self.shift.with_extension("new");
        std::fs::write(&fresh, millis.to_string()).expect("writes the shift");
        std::fs::rename(fresh, &self.shift).expect("puts it in place");
    }
}

/// Where a server tells its time: replies of the API, headers of a direct get,
/// and messages of `STREAM.MSG.GET`.
const MARKS: [&[u8]; 3] = [b"\"ts\":\"", b"Nats-Time-Stamp: ", b"\"time\":\""];
/// Up to the second: the text stays as long as it was.
const LENGTH: usize = "2026-11-23T09:37:31".len();

/// The clock of the server, as it tells it.
pub struct ServerClock(Arc<AtomicI64>);

impl ServerClock {
    /// A proxy to a server whose clock is right until it is set.
    pub fn of(target: u16) -> (Proxy, ServerClock) {
        let shift = Arc::new(AtomicI64::new(0));
        let proxy = Proxy::to(target);
        let shared = shift.clone();
        proxy.rewrite(move |bytes| shifted(bytes, shared.load(Ordering::SeqCst)));
        (proxy, ServerClock(shift))
    }

    /// By how many seconds it is ahead from now on.
    pub fn set(&self, seconds: i64) {
        self.0.store(seconds, Ordering::SeqCst);
    }
}

fn shifted(bytes: &[u8], seconds: i64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for mark in MARKS {
        let last = bytes.len().saturating_sub(mark.len() + LENGTH);
        let places: Vec<usize> = (0..last).filter(|&at| bytes[at..].starts_with(mark)).collect();
        for at in places {
            let time = at + mark.len()..at + mark.len() + LENGTH;
            let text = String::from_utf8_lossy(&bytes[time.clone()]).into_owned();
            let told = parse(&format!("{text}Z")) + time::Duration::seconds(seconds);
            bytes[time].copy_from_slice(&rfc3339(told).as_bytes()[..LENGTH]);
        }
    }
    bytes
}
