//! A server whose clock can be set: a proxy that changes every time of the
//! server's own in what it says. What it stores keeps the true time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::proxy::Proxy;
use super::time::{parse, rfc3339};

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
