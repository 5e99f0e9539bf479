//! The `nats` crate and async-nats doing what the agent and its tools do, each
//! as well as it can: for the benches to measure and for the tests to read and
//! write the same registry.
//!
//! The answer goes to stdout, one `name value` a line. What others wait for
//! (`registered`, `watching`) goes to stderr, as it happens.

// The walls are for the product.
#![allow(clippy::disallowed_methods)]

#[path = "../../cost.rs"]
mod cost;
mod record;
mod with_async_nats;
mod with_nats;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use cost::{Cost, Holding};
use record::Record;

const USAGE: &str = "usage: peers VERB CRATE URL BUCKET [KEY...]
  CRATE is nats or async-nats
  beat .. KEY N [PAUSE_MS]  N heartbeats, every 100 ms unless told otherwise, and what each cost
  list ..                   reads and decodes the newest value of every key
  clean ..                  purges every key, up to the revision that was read
  register, heartbeat .. KEY
  deregister .. KEY         a purge marker for a minute, if the entry is as it was read
  put, create, delete, purge .. KEY
                            as the crate's own key-value bucket does it: no TTL
  read .. KEY               the newest revision, value or marker
  keys ..                   as the crate's own key-value bucket sees them
  watch-once .. KEY         the next revision";

/// TTL of the entries that the peers write.
const TTL: &str = "30s";
/// How long a deregistration stays to be seen.
const MARKER_SECS: u64 = 60;
/// Purges under way.
const WINDOW: usize = 256;
/// Bounds each exchange, and each wait for the next message of a list.
const EXCHANGE: Duration = Duration::from_secs(10);
/// Heartbeats that are not counted: connecting and first uses are over.
const WARM_UP: u64 = 20;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Error>;

/// What the crate's own key-value bucket calls a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Put,
    Delete,
    Purge,
}

/// One revision of a key, as the crate's key-value bucket gives it.
struct Found {
    revision: u64,
    operation: Operation,
    value: Vec<u8>,
}

/// One of the crates, connected, with the bucket.
trait Peer: Sized {
    fn connect(url: &str, bucket: &str) -> Result<Self>;

    /// Stores a value with its TTL and waits for the revision.
    fn beat(&mut self, key: &str, value: Vec<u8>) -> Result<u64>;

    fn pause(&mut self, time: Duration);

    /// Gives key, revision and value of each key's newest revision to `take`.
    fn newest(&mut self, take: impl FnMut(&str, u64, &[u8]) -> Result<()>) -> Result<()>;

    /// Purges these keys up to these revisions; how many messages that were.
    fn purge_all(&mut self, entries: Vec<(String, u64)>) -> Result<u64>;

    /// The marker of a deregistration, if `revision` is still the newest.
    fn deregister(&mut self, key: &str, revision: u64) -> Result<()>;

    fn entry(&mut self, key: &str) -> Result<Option<Found>>;

    /// The header lines of a revision.
    fn header(&mut self, revision: u64) -> Result<Vec<(String, String)>>;

    /// The first revision of `key` after this one.
    fn watch(&mut self, key: &str, after: u64) -> Result<Found>;

    fn keys(&mut self) -> Result<Vec<String>>;

    fn put(&mut self, key: &str, value: Vec<u8>) -> Result<u64>;

    fn create(&mut self, key: &str, value: Vec<u8>) -> Result<u64>;

    fn delete(&mut self, key: &str) -> Result<()>;

    fn purge(&mut self, key: &str) -> Result<()>;
}

fn main() -> ExitCode {
    let begun = Instant::now();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match *words {
        [verb, "nats", url, bucket, ref rest @ ..] => {
            perform::<with_nats::Blocking>(begun, verb, url, bucket, rest)
        }
        [verb, "async-nats", url, bucket, ref rest @ ..] => {
            perform::<with_async_nats::Async>(begun, verb, url, bucket, rest)
        }
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn perform<P: Peer>(
    begun: Instant,
    verb: &str,
    url: &str,
    bucket: &str,
    rest: &[&str],
) -> Result<()> {
    let peer = &mut P::connect(url, bucket)?;
    match (verb, rest) {
        ("beat", [key, count]) => beat(peer, begun, key, count.parse()?, 100),
        ("beat", [key, count, pause]) => beat(peer, begun, key, count.parse()?, pause.parse()?),
        ("list", []) => list(peer, begun),
        ("clean", []) => clean(peer, begun),
        ("register" | "heartbeat", [key]) => revision(peer.beat(key, Record::now(key)?)?),
        ("deregister", [key]) => deregister(peer, key),
        ("put", [key]) => revision(peer.put(key, Record::now(key)?)?),
        ("create", [key]) => revision(peer.create(key, Record::now(key)?)?),
        ("delete", [key]) => peer.delete(key),
        ("purge", [key]) => peer.purge(key),
        ("read", [key]) => read(peer, key),
        ("keys", []) => {
            peer.keys()?.iter().for_each(|key| println!("key {key}"));
            Ok(())
        }
        ("watch-once", [key]) => watch_once(peer, key),
        _ => Err(USAGE.into()),
    }
}

fn revision(revision: u64) -> Result<()> {
    println!("revision {revision}");
    Ok(())
}

fn beat<P: Peer>(peer: &mut P, begun: Instant, key: &str, count: u64, pause_ms: u64) -> Result<()> {
    let me = std::process::id();
    let mut first = None;
    for number in 1..=count {
        peer.beat(key, Record::now(key)?)?;
        if number == 1 {
            eprintln!("registered");
            println!("start_to_registered_ms {:.3}", milliseconds(begun));
        }
        if number == WARM_UP.min(count) {
            first = Some((Cost::of(me), count - number));
        }
        if number < count {
            peer.pause(Duration::from_millis(pause_ms));
        }
    }
    if let Some((before, beats @ 1..)) = first {
        let each = Cost::of(me).since(&before, beats);
        println!("heartbeats {beats}");
        println!("cpu_us {:.1}", each.cpu_us);
        println!("voluntary_switches {:.2}", each.voluntary);
        println!("involuntary_switches {:.2}", each.involuntary);
    }
    memory();
    Ok(())
}

fn list<P: Peer>(peer: &mut P, begun: Instant) -> Result<()> {
    let (mut count, mut instances, mut others) = (0_u64, 0_u64, 0_u64);
    peer.newest(|_, _, value| {
        count += 1;
        match serde_json::from_slice::<Record>(value) {
            Ok(record) if !record.service_name.is_empty() => instances += 1,
            // Markers, definitions, and what nobody can read.
            _ => others += 1,
        }
        Ok(())
    })?;
    println!("count {count}");
    println!("instances {instances}");
    println!("others {others}");
    println!("took_ms {:.3}", milliseconds(begun));
    memory();
    Ok(())
}

fn clean<P: Peer>(peer: &mut P, begun: Instant) -> Result<()> {
    let mut entries = Vec::new();
    peer.newest(|key, revision, _| {
        // What can be stored as a key may be a wildcard, and as a filter it
        // would purge the keys of others.
        if is_valid(key) {
            entries.push((key.to_owned(), revision));
        }
        Ok(())
    })?;
    println!("count {}", entries.len());
    println!("purged {}", peer.purge_all(entries)?);
    println!("took_ms {:.3}", milliseconds(begun));
    memory();
    Ok(())
}

fn is_valid(key: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-/_=.".contains(&byte);
    !key.is_empty() && !key.starts_with('.') && !key.ends_with('.') && key.bytes().all(allowed)
}

fn deregister<P: Peer>(peer: &mut P, key: &str) -> Result<()> {
    let found = peer.entry(key)?.ok_or("there is no entry")?;
    peer.deregister(key, found.revision)
}

fn read<P: Peer>(peer: &mut P, key: &str) -> Result<()> {
    let Some(found) = peer.entry(key)? else {
        println!("operation none");
        return Ok(());
    };
    show(&found);
    // Of the revision that was read: a newer one may be there by now.
    for (name, value) in peer.header(found.revision)? {
        println!("header {name}: {value}");
    }
    Ok(())
}

fn watch_once<P: Peer>(peer: &mut P, key: &str) -> Result<()> {
    let after = peer.entry(key)?.map_or(0, |found| found.revision);
    show(&peer.watch(key, after)?);
    Ok(())
}

fn show(found: &Found) {
    let operation = match found.operation {
        Operation::Put => "put",
        Operation::Delete => "delete",
        Operation::Purge => "purge",
    };
    println!("revision {}", found.revision);
    println!("operation {operation}");
    println!("value {}", String::from_utf8_lossy(&found.value));
}

fn memory() {
    let holding = Holding::of(std::process::id());
    println!("resident_kib {}", holding.resident);
    println!("anonymous_kib {}", holding.anonymous);
    println!("peak_kib {}", holding.peak);
    println!("threads {}", holding.threads);
}

fn milliseconds(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}
