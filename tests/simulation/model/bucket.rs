//! A stream that is a key-value bucket: what it stores, what it refuses, and
//! when it lets go.
//!
//! Facts and sources are in docs/nats.md. Times are the server's wall clock in
//! nanoseconds.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde_json::{Value, json};

use super::session::{Publish, matches};

/// Nanoseconds since 1970 by the server's wall clock.
pub type Wall = i64;
const SECOND: Wall = 1_000_000_000;

/// A refusal of the API: code, number, words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub u16, pub u32, pub String);

impl Refusal {
    fn new(code: u16, number: u32, words: &str) -> Refusal {
        Refusal(code, number, words.to_owned())
    }
}

/// A stored message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub subject: String,
    pub seq: u64,
    pub at: Wall,
    pub headers: Vec<u8>,
    pub payload: Vec<u8>,
    /// Its TTL in seconds.
    pub ttl: Option<i64>,
    /// When the server lets it go: some time after its end.
    pub goes: Option<Wall>,
}

impl Stored {
    /// Whether it came with a TTL: a server that obeys none keeps it all the same.
    pub fn names_ttl(&self) -> bool {
        memchr::memmem::find(&self.headers, b"\r\nNats-TTL:").is_some()
    }

    /// The TTL that it came with, in seconds: a bucket with history and markers
    /// stretches it.
    pub fn asked_ttl(&self) -> Option<i64> {
        const NAME: &[u8] = b"\r\nNats-TTL: ";
        let at = memchr::memmem::find(&self.headers, NAME)? + NAME.len();
        let text = &self.headers[at..];
        let end = text.iter().position(|byte| !byte.is_ascii_digit())?;
        std::str::from_utf8(&text[..end]).ok()?.parse().ok()
    }

    /// Whether it stands for nothing.
    pub fn is_marker(&self) -> bool {
        let has = |name: &str| memchr::memmem::find(&self.headers, name.as_bytes()).is_some();
        has("\r\nKV-Operation: DEL") || has("\r\nKV-Operation: PURGE") || has("Nats-Marker-Reason")
    }
}

/// What happened to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Stored(u64),
    Expired(Stored),
    Purged(Stored),
}

/// One stream.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// As the server echoes it.
    pub config: Value,
    pub created: Wall,
    pub last_seq: u64,
    messages: BTreeMap<u64, Stored>,
    subjects: HashMap<String, VecDeque<u64>>,
    /// The least `goes` of all.
    next_end: Option<Wall>,
    /// The server obeys TTLs.
    pub obeys_ttl: bool,
    pub full: bool,
}

impl Bucket {
    pub fn new(config: Value, created: Wall, obeys_ttl: bool) -> Bucket {
        Bucket {
            config,
            created,
            last_seq: 0,
            messages: BTreeMap::new(),
            subjects: HashMap::new(),
            next_end: None,
            obeys_ttl,
            full: false,
        }
    }

    fn flag(&self, name: &str) -> bool {
        self.config[name].as_bool() == Some(true)
    }

    pub fn number(&self, name: &str) -> i64 {
        self.config[name].as_i64().unwrap_or(0)
    }

    pub fn allows_direct(&self) -> bool {
        self.flag("allow_direct")
    }

    pub fn allows_ttl(&self) -> bool {
        self.flag("allow_msg_ttl")
    }

    /// Whether what is stored may remove what lies under it, or nothing lies there.
    pub fn buries(&self) -> bool {
        self.flag("allow_rollup_hdrs") || self.number("max_msgs_per_subject") == 1
    }

    /// Whether a value without a TTL lies under this key.
    pub fn has_endless(&self, subject: &str) -> bool {
        let is = |one: &Stored| one.ttl.is_none() && !one.is_marker();
        let seqs = self.subjects.get(subject).into_iter().flatten();
        seqs.filter_map(|seq| self.messages.get(seq)).any(is)
    }

    pub fn stream(&self) -> &str {
        self.config["name"].as_str().unwrap_or_default()
    }

    /// Whether messages of this subject are stored here.
    pub fn takes(&self, subject: &str) -> bool {
        let subjects = self.config["subjects"].as_array();
        subjects.is_some_and(|all| {
            all.iter().any(|one| one.as_str().is_some_and(|one| matches(one, subject)))
        })
    }

    /// Stores a message that goes `late` nanoseconds after its end, or says why
    /// not.
    pub fn publish(
        &mut self,
        publish: &Publish,
        now: Wall,
        late: Wall,
        is_clustered: bool,
    ) -> Result<u64, Refusal> {
        let header = |name: &str| publish.header(name).filter(|value| !value.is_empty());
        let mut ttl = None;
        if let Some(text) = header("Nats-TTL")
            && self.obeys_ttl
        {
            if !self.allows_ttl() {
                return Err(Refusal::new(400, 10166, "per-message TTL is disabled"));
            }
            ttl = match read_ttl(text) {
                Some(ttl) => ttl,
                None => return Err(Refusal::new(400, 10165, "invalid per-message TTL")),
            };
        }
        let rollup = header("Nats-Rollup");
        if rollup.is_some() && !self.flag("allow_rollup_hdrs") {
            return Err(Refusal::new(500, 10111, "rollup not permitted"));
        }
        if let Some(expected) = header("Nats-Expected-Last-Subject-Sequence") {
            let last = self.last(&publish.subject).map_or(0, |stored| stored.seq);
            if expected.parse() != Ok(last) {
                // Where another write of the key is under way it does not say which.
                if is_clustered && late % 4 == 0 {
                    return Err(Refusal::new(400, 10164, "wrong last sequence"));
                }
                let words = format!("wrong last sequence: {last}");
                return Err(Refusal::new(400, 10071, &words));
            }
        }
        if self.full {
            return Err(Refusal::new(503, 10077, "maximum bytes exceeded"));
        }
        if let (Some(ttl), true) = (&mut ttl, self.number("max_msgs_per_subject") != 1) {
            // A shorter TTL is raised to that of the markers.
            *ttl = (*ttl).max(self.number("subject_delete_marker_ttl") / SECOND);
        }
        if rollup == Some("sub") {
            self.remove_all(&publish.subject, u64::MAX);
        }
        self.last_seq += 1;
        let seq = self.last_seq;
        self.keep(Stored {
            subject: publish.subject.clone(),
            seq,
            at: now,
            headers: publish.headers.clone(),
            payload: publish.payload.clone(),
            ttl,
            goes: ttl.map(|ttl| now.saturating_add(ttl.saturating_mul(SECOND)) + late),
        });
        let history = self.number("max_msgs_per_subject");
        if history > 0 {
            let revisions = self.subjects.get(&publish.subject).map_or(0, VecDeque::len);
            for _ in history as usize..revisions {
                let oldest = self.subjects[&publish.subject][0];
                self.remove(oldest);
            }
        }
        Ok(seq)
    }

    fn keep(&mut self, stored: Stored) {
        if let Some(goes) = stored.goes {
            self.next_end = Some(self.next_end.map_or(goes, |end| end.min(goes)));
        }
        self.subjects.entry(stored.subject.clone()).or_default().push_back(stored.seq);
        self.messages.insert(stored.seq, stored);
    }

    fn remove(&mut self, seq: u64) -> Option<Stored> {
        let stored = self.messages.remove(&seq)?;
        if let Some(revisions) = self.subjects.get_mut(&stored.subject) {
            revisions.retain(|one| *one != seq);
            if revisions.is_empty() {
                self.subjects.remove(&stored.subject);
            }
        }
        Some(stored)
    }

    /// Removes the revisions of a subject before `seq`.
    fn remove_all(&mut self, subject: &str, seq: u64) -> Vec<Stored> {
        let revisions = self.subjects.get(subject).cloned().unwrap_or_default();
        let gone = revisions.into_iter().filter(|one| *one < seq);
        gone.filter_map(|one| self.remove(one)).collect()
    }

    /// Purges as the API does: everything that matches, before `seq`.
    pub fn purge(&mut self, filter: Option<&str>, seq: Option<u64>) -> Vec<Stored> {
        let before = seq.unwrap_or(u64::MAX);
        if let Some(subject) = filter.filter(|filter| !filter.contains(['*', '>'])) {
            return self.remove_all(subject, before);
        }
        let wanted = |subject: &String| filter.is_none_or(|filter| matches(filter, subject));
        let mut subjects: Vec<String> =
            self.subjects.keys().filter(|one| wanted(one)).cloned().collect();
        subjects.sort();
        subjects.iter().flat_map(|subject| self.remove_all(subject, before)).collect()
    }

    /// Forgets what was stored since then, as after a crash or out of a backup.
    pub fn roll_back(&mut self, since: Wall) -> Vec<Stored> {
        let newer = self.messages.values().filter(|stored| stored.at >= since);
        let newer: Vec<u64> = newer.map(|stored| stored.seq).collect();
        let gone: Vec<Stored> = newer.into_iter().filter_map(|seq| self.remove(seq)).collect();
        if let Some(first) = gone.first() {
            self.last_seq = first.seq - 1;
        }
        gone
    }

    /// The newest revision of a subject.
    pub fn last(&self, subject: &str) -> Option<&Stored> {
        self.messages.get(self.subjects.get(subject)?.back()?)
    }

    pub fn get(&self, seq: u64) -> Option<&Stored> {
        self.messages.get(&seq)
    }

    /// What was stored after this revision.
    pub fn newer(&self, than: u64) -> impl Iterator<Item = &Stored> {
        self.messages.range(than + 1..).map(|(_, stored)| stored)
    }

    /// The newest revision of each subject.
    pub fn newest(&self) -> impl Iterator<Item = &Stored> {
        self.subjects.values().filter_map(|seqs| self.messages.get(seqs.back()?))
    }

    pub fn messages(&self) -> impl Iterator<Item = &Stored> {
        self.messages.values()
    }

    /// When the next message goes, at the earliest.
    pub fn next_end(&self) -> Option<Wall> {
        self.next_end
    }

    /// Lets go whatever is over at `now`; a marker goes `late` after its end.
    pub fn expire(&mut self, now: Wall, late: Wall) -> Vec<Change> {
        if self.next_end.is_none_or(|end| end > now) {
            return Vec::new();
        }
        let over: Vec<u64> = self
            .messages
            .values()
            .filter(|stored| stored.goes.is_some_and(|goes| goes <= now))
            .map(|stored| stored.seq)
            .collect();
        let mut changes = Vec::new();
        let markers = self.number("subject_delete_marker_ttl") / SECOND;
        for seq in over {
            let is_last = |stored: &Stored| self.last(&stored.subject).map(|s| s.seq) == Some(seq);
            let leaves_marker = self
                .messages
                .get(&seq)
                .is_some_and(|stored| markers > 0 && !stored.is_marker() && is_last(stored));
            let Some(stored) = self.remove(seq) else { continue };
            let subject = stored.subject.clone();
            changes.push(Change::Expired(stored));
            if leaves_marker {
                self.last_seq += 1;
                let headers = format!(
                    "NATS/1.0\r\nNats-Marker-Reason: MaxAge\r\nNats-TTL: {}\r\n\
                     Nats-Rollup: sub\r\n\r\n",
                    go_duration(markers)
                );
                self.keep(Stored {
                    subject,
                    seq: self.last_seq,
                    at: now,
                    headers: headers.into_bytes(),
                    payload: Vec::new(),
                    ttl: Some(markers),
                    goes: Some(now + markers * SECOND + late),
                });
                changes.push(Change::Stored(self.last_seq));
            }
        }
        self.next_end = self.messages.values().filter_map(|stored| stored.goes).min();
        changes
    }

    /// The state of a stream, as the API tells it.
    pub fn state(&self) -> Value {
        let bytes: usize = self
            .messages
            .values()
            .map(|stored| 22 + stored.subject.len() + stored.headers.len() + stored.payload.len())
            .sum();
        let none = if self.last_seq == 0 { 0 } else { self.last_seq + 1 };
        let first = self.messages.keys().next().copied().unwrap_or(none);
        json!({
            "messages": self.messages.len(),
            "bytes": bytes,
            "first_seq": first,
            "last_seq": self.last_seq,
            "num_subjects": self.subjects.len(),
            "consumer_count": 0,
        })
    }
}

/// A TTL in seconds; `Some(None)` for `never`, `None` for what is none.
fn read_ttl(text: &str) -> Option<Option<i64>> {
    if text == "never" {
        return Some(None);
    }
    if let Ok(secs) = text.parse::<i64>() {
        return (secs >= 1).then_some(Some(secs));
    }
    let (mut secs, mut number) = (0.0, String::new());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if c.is_ascii_digit() || c == '.' {
            number.push(c);
            rest = &rest[1..];
            continue;
        }
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let factor = match &rest[..unit] {
            "ns" => 1e-9,
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            _ => return None,
        };
        secs += number.parse::<f64>().ok()? * factor;
        number.clear();
        rest = &rest[unit..];
    }
    (number.is_empty() && secs >= 1.0).then_some(Some(secs as i64))
}

/// Whole seconds as Go writes a duration: `1m0s`.
fn go_duration(secs: i64) -> String {
    match (secs / 3_600, secs / 60 % 60, secs % 60) {
        (0, 0, secs) => format!("{secs}s"),
        (0, minutes, secs) => format!("{minutes}m{secs}s"),
        (hours, minutes, secs) => format!("{hours}h{minutes}m{secs}s"),
    }
}
