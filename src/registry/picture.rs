//! Who is alive: a picture that is fed with what the bucket stores, and tells
//! what changes. *Pure*: time is the registry's, and comes in with what is
//! known.
//!
//! Time is *knowledge*, not a clock that runs on: `advance` says up to when all
//! that was stored is known. A watcher that is cut off, or late, therefore
//! calls nobody down; when it is back it says `read_anew`, feeds the state, and
//! `complete` tells the differences.
//!
//! One small record a key: 100,000 instances fit into 32 MiB. What an instance
//! says of itself is kept as the shortest JSON from which it can be read again.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::rc::Rc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use crate::instance::entry::{Entry, Marker, Unreadable};
use crate::instance::filter::Filter;
use crate::instance::record::{self, Record, names_in_key};
use crate::instance::staleness::{Stored, Ttl};

/// How long after its TTL an instance is called down. A healthy server removes
/// an entry 4 to 250 ms late; a refresh that comes within that is no death.
pub const LATE: Duration = Duration::from_millis(300);

/// Why an instance is not alive any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownReason {
    /// It put its own delete marker, which has a TTL.
    Deregistered,
    /// Its TTL ran out.
    Expired,
    /// Somebody purged or deleted its entry, or wrote something else over it.
    Removed,
    /// Its heartbeat is too old.
    Stale,
}

impl DownReason {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            DownReason::Deregistered => "deregistered",
            DownReason::Expired => "expired",
            DownReason::Removed => "removed",
            DownReason::Stale => "stale",
        }
    }
}

/// An instance as it was last seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// Its revision; of one that is down by a marker the marker's.
    pub revision: u64,
    /// What it says.
    pub record: Record,
}

/// What is new.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// It appeared, or is back.
    Up(Box<Instance>),
    /// It says something else of itself. Never a mere heartbeat.
    Changed(Box<Instance>),
    /// It is not alive any more, and perhaps more words on why.
    Down(Box<Instance>, DownReason, Option<String>),
    /// From here on the picture is up to date.
    Synced,
    /// From here on nothing is known, and why.
    Lost(String),
}

/// Takes changes as they come.
pub type Sink<'a> = dyn FnMut(Change) + 'a;

/// Microseconds since 1970.
type Micros = i64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EntryKind {
    Live,
    /// Its heartbeat is too old.
    Hidden,
    /// An instance's entry that cannot be read; why stands in `says`.
    Unreadable,
    /// A marker, a service definition, an instance that nobody asked for.
    Other,
}

struct Seen {
    revision: u64,
    stored: Micros,
    heartbeat: Micros,
    /// The time for which it is in the queue; `MAX` where it is not.
    queued: Micros,
    /// Seconds; `None` for ever.
    ttl: Option<u32>,
    /// The reading in which it was last seen.
    reading: u32,
    kind: EntryKind,
    /// The shortest JSON of what it says.
    says: Box<str>,
}

impl Seen {
    /// When the server should remove it.
    fn end(&self) -> Micros {
        self.ttl.map_or(Micros::MAX, |ttl| self.stored.saturating_add(i64::from(ttl) * 1_000_000))
    }

    /// When it is called expired.
    fn expiry(&self) -> Micros {
        self.end().saturating_add(micros(LATE))
    }

    /// When something has to be done about it.
    fn wake(&self, stale_after: Micros) -> Micros {
        match self.kind {
            EntryKind::Live => self.expiry().min(self.stale(stale_after)),
            _ => self.expiry(),
        }
    }

    /// When its heartbeat is too old: beyond the limit, not at it.
    fn stale(&self, stale_after: Micros) -> Micros {
        self.heartbeat.saturating_add(stale_after).saturating_add(1)
    }

    fn instance(&self, key: &str) -> Box<Instance> {
        Box::new(Instance { revision: self.revision, record: self.record(key) })
    }

    /// What it said, read again.
    fn record(&self, key: &str) -> Record {
        let heartbeat = time_of(self.heartbeat);
        let json = format!(
            "{{\"lastHeartbeat\":\"1970-01-01T00:00:00Z\",{}",
            self.says.strip_prefix('{').unwrap_or_default()
        );
        let mut record = record::read(key, json.as_bytes())
            .expect("it was written from a record that had been read");
        record.last_heartbeat = heartbeat;
        record
    }
}

/// Who is alive.
pub struct Picture {
    seen: HashMap<Rc<str>, Seen>,
    /// When to look at a key again: at the latest then something is due.
    queue: BinaryHeap<Reverse<(Micros, Rc<str>)>>,
    filter: Filter,
    stale_after: Micros,
    reading: u32,
    /// While the state is read: what was stored before then is judged as of then.
    /// Afterwards a revision is judged as of its own time, which is an earlier one
    /// where the server's clock was set back.
    read_at: Micros,
    /// Everything that was stored is known, and no state is being read.
    is_current: bool,
    was_synced: bool,
    lost: bool,
    scratch: Vec<u8>,
}

impl Picture {
    /// An empty picture of the instances that `filter` wants.
    pub fn new(filter: Filter, stale_after: Duration) -> Picture {
        Picture {
            seen: HashMap::new(),
            queue: BinaryHeap::new(),
            filter,
            stale_after: micros(stale_after),
            reading: 0,
            read_at: 0,
            is_current: false,
            was_synced: false,
            lost: false,
            scratch: Vec::new(),
        }
    }

    /// Whether it is up to date, as far as is known.
    pub fn is_current(&self) -> bool {
        self.is_current
    }

    /// Whether it was said that nothing is known.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// The watcher is cut off: said once, and nobody is called down.
    pub fn lost(&mut self, why: &str, out: &mut Sink<'_>) {
        self.is_current = false;
        if !std::mem::replace(&mut self.lost, true) {
            out(Change::Lost(why.to_owned()));
        }
    }

    /// The state of the bucket at `at` follows, entry by entry, and after it
    /// what is stored from then on.
    pub fn read_anew(&mut self, at: OffsetDateTime) {
        self.is_current = false;
        self.reading = self.reading.wrapping_add(1);
        self.read_at = micros_of(at);
    }

    /// A revision was stored. All that come in one reading come in their order.
    pub fn take(&mut self, entry: &Entry, out: &mut Sink<'_>) {
        let known = self.seen.get(entry.key.as_str());
        if known.is_some_and(|seen| seen.reading == self.reading && entry.revision <= seen.revision)
        {
            return;
        }
        let new = |kind, says: Box<str>, heartbeat| Seen {
            revision: entry.revision,
            stored: micros_of(entry.stored.at),
            heartbeat,
            queued: Micros::MAX,
            ttl: match entry.stored.ttl {
                Ttl::Never => None,
                Ttl::After(ttl) => Some(u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX)),
            },
            reading: self.reading,
            kind,
            says,
        };
        match entry.instance() {
            None => {
                let (reason, why) = gone(entry);
                self.cover(&entry.key, new(EntryKind::Other, "".into(), 0), reason, why, out);
            }
            Some(Err(Unreadable { why, .. })) => {
                let words = Some(format!("its record cannot be read: {why}"));
                let seen = new(EntryKind::Unreadable, why.into(), 0);
                self.cover(&entry.key, seen, DownReason::Removed, words, out);
            }
            Some(Ok(record)) if !self.filter.wants(&record) => {
                // Its status or metadata may have been what was asked for.
                let words = Some("it is not what was asked for any more".to_owned());
                self.cover(
                    &entry.key,
                    new(EntryKind::Other, "".into(), 0),
                    DownReason::Removed,
                    words,
                    out,
                );
            }
            Some(Ok(record)) => {
                let mut says = std::mem::take(&mut self.scratch);
                say(&record, &entry.key, &mut says);
                let same = known.is_some_and(|seen| seen.says.as_bytes() == says);
                let heartbeat = micros_of(record.last_heartbeat);
                if same && known.is_some_and(|seen| seen.kind == EntryKind::Live) {
                    let seen = new(EntryKind::Live, "".into(), heartbeat);
                    self.beat(&entry.key, seen, out);
                } else {
                    let text = String::from_utf8_lossy(&says).into();
                    self.show(&entry.key, new(EntryKind::Live, text, heartbeat), record, out);
                }
                self.scratch = says;
            }
        }
    }

    /// Something that is no instance stands under the key now.
    fn cover(
        &mut self,
        key: &str,
        seen: Seen,
        reason: DownReason,
        why: Option<String>,
        out: &mut Sink<'_>,
    ) {
        if let Some(known) = self.seen.get(key).filter(|known| known.kind == EntryKind::Live) {
            let mut instance = known.instance(key);
            instance.revision = seen.revision;
            out(Change::Down(instance, reason, why));
        }
        self.put(key, seen);
    }

    /// A heartbeat of an instance that is alive and says what it said before.
    fn beat(&mut self, key: &str, new: Seen, out: &mut Sink<'_>) {
        let judged_at = self.read_at.max(new.stored);
        let Some(known) = self.seen.get_mut(key) else { return };
        let seen = Seen { queued: known.queued, says: std::mem::take(&mut known.says), ..new };
        *known = seen;
        if known.wake(self.stale_after) > judged_at || !self.is_current {
            self.queue_up(key);
        } else {
            self.fall(key, judged_at, out);
        }
    }

    /// An instance that is new, or says something new.
    fn show(&mut self, key: &str, mut new: Seen, record: Record, out: &mut Sink<'_>) {
        let judged_at = self.read_at.max(new.stored);
        let is_alive = new.wake(self.stale_after) > judged_at;
        let known = self.seen.get(key).filter(|known| known.kind == EntryKind::Live);
        let revision = new.revision;
        let instance = || Box::new(Instance { revision, record: record.clone() });
        match (known, is_alive) {
            (None, true) => out(Change::Up(instance())),
            (None, false) => new.kind = EntryKind::Hidden,
            (Some(known), _) => {
                let old = known.record(key);
                let name =
                    |record: &Record| (record.service_name.clone(), record.instance_id.clone());
                if name(&old) == name(&record) {
                    out(Change::Changed(instance()));
                } else {
                    let old = Box::new(Instance { revision, record: old });
                    let why = Some("its entry names another instance".to_owned());
                    out(Change::Down(old, DownReason::Removed, why));
                    out(Change::Up(instance()));
                }
            }
        }
        let was_alive = known.is_some();
        self.put(key, new);
        // While the state is read, what follows may say otherwise.
        if was_alive && !is_alive && self.is_current {
            self.fall(key, judged_at, out);
        }
    }

    fn put(&mut self, key: &str, mut new: Seen) {
        match self.seen.get_mut(key) {
            Some(known) => {
                new.queued = known.queued;
                *known = new;
            }
            None => {
                self.seen.insert(key.into(), new);
            }
        }
        self.queue_up(key);
    }

    /// Puts a key into the queue, unless it stands there for an earlier time:
    /// then it is looked at, and put back. A heartbeat so costs nothing here.
    fn queue_up(&mut self, key: &str) {
        let Some((key, _)) = self.seen.get_key_value(key) else { return };
        let key = Rc::clone(key);
        let Some(seen) = self.seen.get_mut(&key) else { return };
        let wake = seen.wake(self.stale_after);
        if wake < seen.queued {
            seen.queued = wake;
            self.queue.push(Reverse((wake, key)));
        }
    }

    /// Everything that was stored up to `at` is known: whoever was not heard of
    /// by then is down.
    pub fn advance(&mut self, at: OffsetDateTime, out: &mut Sink<'_>) {
        if self.is_current {
            self.fall_until(micros_of(at), out);
        }
    }

    fn fall_until(&mut self, at: Micros, out: &mut Sink<'_>) {
        while let Some(Reverse((due, _))) = self.queue.peek()
            && *due <= at
        {
            let Some(Reverse((due, key))) = self.queue.pop() else { return };
            let Some(seen) = self.seen.get_mut(&key).filter(|seen| seen.queued == due) else {
                continue;
            };
            seen.queued = Micros::MAX;
            // In the order of their times, so what waits for later goes back.
            if seen.wake(self.stale_after) <= due {
                self.fall(&key, due, out);
            } else {
                self.queue_up(&key);
            }
        }
    }

    /// What is due for a key at `at`: down, or forgotten.
    fn fall(&mut self, key: &str, at: Micros, out: &mut Sink<'_>) {
        let Some(seen) = self.seen.get_mut(key) else { return };
        let expired = seen.expiry() <= at;
        if seen.kind == EntryKind::Live {
            let reason = if expired { DownReason::Expired } else { DownReason::Stale };
            out(Change::Down(seen.instance(key), reason, None));
            seen.kind = EntryKind::Hidden;
        }
        if expired {
            self.seen.remove(key);
        } else {
            self.queue_up(key);
        }
    }

    /// How many are called down if the state that was read is all there is at
    /// `at`.
    pub fn missing(&self, at: OffsetDateTime) -> usize {
        let at = micros_of(at);
        let is_missing = |seen: &&Seen| {
            seen.kind == EntryKind::Live
                && (seen.reading != self.reading || seen.wake(self.stale_after) <= at)
        };
        self.seen.values().filter(is_missing).count()
    }

    /// The state has been read: at `at` there is nothing else. Tells the
    /// differences, and that the picture is up to date, where it was not.
    pub fn complete(&mut self, at: OffsetDateTime, out: &mut Sink<'_>) {
        let at = micros_of(at);
        let reading = self.reading;
        self.seen.retain(|key, seen| {
            if seen.reading == reading {
                return true;
            }
            if seen.kind == EntryKind::Live {
                let reason =
                    if seen.end() <= at { DownReason::Expired } else { DownReason::Removed };
                out(Change::Down(seen.instance(key), reason, None));
            }
            false
        });
        self.is_current = true;
        self.read_at = Micros::MIN;
        self.fall_until(at, out);
        let is_first = !std::mem::replace(&mut self.was_synced, true);
        if std::mem::take(&mut self.lost) || is_first {
            out(Change::Synced);
        }
    }

    /// When somebody is down at the latest, unless heard of before; nobody is
    /// while the picture is not up to date.
    pub fn next_deadline(&mut self) -> Option<OffsetDateTime> {
        if !self.is_current {
            return None;
        }
        while let Some(Reverse((due, key))) = self.queue.peek() {
            let wake = match self.seen.get(key) {
                Some(seen) if seen.queued == *due => seen.wake(self.stale_after),
                _ => Micros::MIN,
            };
            if wake == *due {
                return Some(time_of(wake));
            }
            let Reverse((_, key)) = self.queue.pop()?;
            if wake > Micros::MIN
                && let Some(seen) = self.seen.get_mut(&key)
            {
                seen.queued = Micros::MAX;
                self.queue_up(&key);
            }
        }
        None
    }

    /// How many keys the bucket should have at `at`, of all kinds.
    pub fn keys(&self, at: OffsetDateTime) -> u64 {
        let at = micros_of(at);
        self.seen.values().filter(|seen| seen.end() > at).count() as u64
    }

    /// How many keys have come since the state is read, of all kinds.
    pub fn keys_read(&self) -> u64 {
        self.seen.values().filter(|seen| seen.reading == self.reading).count() as u64
    }

    /// How many are alive.
    pub fn live(&self) -> usize {
        self.seen.values().filter(|seen| seen.kind == EntryKind::Live).count()
    }

    /// Everything that `list` shows, to `each`, in no order; then how many are
    /// hidden, and what cannot be read.
    pub fn show_all<E>(
        &self,
        mut each: impl FnMut(&str, u64, &Record, &Stored) -> Result<(), E>,
    ) -> Result<(usize, Vec<Unreadable>), E> {
        let (mut hidden, mut unreadable) = (0, Vec::new());
        for (key, seen) in &self.seen {
            match seen.kind {
                EntryKind::Live => {
                    let ttl = seen
                        .ttl
                        .map_or(Ttl::Never, |secs| Ttl::After(Duration::from_secs(secs.into())));
                    let stored = Stored { at: time_of(seen.stored), ttl };
                    each(key, seen.revision, &seen.record(key), &stored)?;
                }
                EntryKind::Hidden => hidden += 1,
                EntryKind::Unreadable => unreadable.push(Unreadable {
                    key: key.to_string(),
                    revision: seen.revision,
                    why: seen.says.to_string(),
                }),
                EntryKind::Other => {}
            }
        }
        unreadable.sort_unstable_by_key(|one| one.revision);
        Ok((hidden, unreadable))
    }
}

/// What a revision means that holds no instance.
fn gone(entry: &Entry) -> (DownReason, Option<String>) {
    let reason = match (entry.marker, entry.stored.ttl) {
        (Some(Marker::Expired), _) => DownReason::Expired,
        // The agent's own marker has a TTL; what people delete with has none.
        (Some(Marker::Client), Ttl::After(_)) => DownReason::Deregistered,
        _ => DownReason::Removed,
    };
    (reason, None)
}

/// The shortest JSON from which the record can be read again, without its
/// heartbeat: what the key says and what is usual is left out.
fn say(record: &Record, key: &str, out: &mut Vec<u8>) {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Says<'a> {
        version: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        status: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        sticky_active_group: Option<&'a str>,
        #[serde(skip_serializing_if = "Map::is_empty")]
        metadata: &'a Map<String, Value>,
        #[serde(skip_serializing_if = "Option::is_none")]
        service_name: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        instance_id: Option<&'a str>,
    }
    let names = names_in_key(key);
    let unless = |text, usual: Option<&str>| (usual != Some(text)).then_some(text);
    out.clear();
    let says = Says {
        version: &record.version,
        status: unless(record.status.as_str(), Some("ACTIVE")),
        sticky_active_group: record.sticky_active_group.as_deref(),
        metadata: &record.metadata,
        service_name: unless(&record.service_name, names.map(|(service, _)| service)),
        instance_id: unless(&record.instance_id, names.map(|(_, instance)| instance)),
    };
    serde_json::to_writer(out, &says).expect("text and JSON values always serialise");
}

fn micros(duration: Duration) -> Micros {
    Micros::try_from(duration.as_micros()).unwrap_or(Micros::MAX)
}

fn micros_of(time: OffsetDateTime) -> Micros {
    Micros::try_from(time.unix_timestamp_nanos().div_euclid(1_000)).unwrap_or(Micros::MAX)
}

fn time_of(micros: Micros) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1_000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests;
