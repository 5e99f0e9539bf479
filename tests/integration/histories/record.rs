//! Who writes down what happens: each server's own words on what it stored, when
//! it takes what is written, what `list` shows and `cleanup` removes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use super::history::{Cleanup, MILLI, Micros, Read, Revision, Span};
use crate::harness::agent::{Output, aegis};
use crate::harness::registry::{Client, Entry, header};
use crate::harness::{millis, secs, time as rfc3339};

/// What the bucket's stream republishes goes here, before the subject.
pub const RECORD: &str = "record";
const ANSWER: Duration = millis(400);
/// A server that was away for less was not: on a busy machine a probe is late.
const HICCUP: Micros = 900 * MILLI;

pub fn now() -> Micros {
    micros(rfc3339::now())
}

pub fn micros(at: time::OffsetDateTime) -> Micros {
    Micros::try_from(at.unix_timestamp_nanos() / 1_000).expect("a time of this age")
}

/// Threads that go on until they are told to end.
pub struct Threads {
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    pub fn new() -> Threads {
        Threads { end: Arc::default(), threads: Vec::new() }
    }

    /// Does `work` again and again, with a pause.
    fn again(&mut self, pause: Duration, mut work: impl FnMut(&AtomicBool) + Send + 'static) {
        let end = self.end.clone();
        self.threads.push(std::thread::spawn(move || {
            while !end.load(Ordering::SeqCst) {
                work(&end);
                std::thread::sleep(pause);
            }
        }));
    }

    pub fn end(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().expect("a recorder does not panic");
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
    }
}

pub type Revisions = Arc<Mutex<BTreeMap<String, Vec<Revision>>>>;

/// Hears what the stream republishes, through one server.
pub fn revisions(threads: &mut Threads, url: &str, into: &Revisions) {
    let (url, into) = (url.to_owned(), into.clone());
    threads.again(millis(100), move |end| {
        let _ = hear(&url, &into, end);
    });
}

fn hear(url: &str, into: &Revisions, end: &AtomicBool) -> Result<(), String> {
    let mut client = Client::login_within(url, &json!({}), millis(500))?;
    client.subscribe(&format!("{RECORD}.>"), 2)?;
    while !end.load(Ordering::SeqCst) {
        let Some(message) = client.next(millis(100))? else { continue };
        let seen = now();
        let entry = Entry {
            key: message.subject,
            revision: 0,
            stored: rfc3339::now(),
            header: message.header,
            payload: message.payload,
        };
        let Some((instance, revision)) = revision(&entry, seen) else { continue };
        into.lock().expect("not poisoned").entry(instance).or_default().push(revision);
    }
    Ok(())
}

fn revision(entry: &Entry, seen: Micros) -> Option<(String, Revision)> {
    let instance = entry.key().rsplit_once("__")?.1.to_owned();
    let number = |name: &str| entry.header(name)?.parse::<u64>().ok();
    let json: Option<Value> = serde_json::from_slice(&entry.payload).ok();
    let pid = json.and_then(|json| json["metadata"]["pid"].as_str()?.parse().ok());
    let stored = micros(rfc3339::parse(&entry.header("Nats-Time-Stamp")?));
    let seq = number("Nats-Sequence")?;
    let before = number("Nats-Last-Sequence")?;
    Some((
        instance,
        Revision { seq, stored, at: 0, before, pid, is_marker: entry.is_marker(), seen },
    ))
}

pub type Spans = Arc<Mutex<Vec<Span>>>;

/// Notes when a server takes what is written: each time that it does so in time,
/// and the time between two such times.
pub fn serving(threads: &mut Threads, url: &str, number: usize, into: &Spans) {
    let (url, into) = (url.to_owned(), into.clone());
    let mut client: Option<Client> = None;
    threads.again(millis(100), move |_| {
        let from = now();
        let is_taken = match client.take().map_or_else(|| probe_client(&url), Ok) {
            Ok(mut connected) => match probe(&mut connected, number) {
                Ok(()) => {
                    client = Some(connected);
                    true
                }
                Err(_) => false,
            },
            Err(_) => false,
        };
        if !is_taken {
            return;
        }
        let mut spans = into.lock().expect("not poisoned");
        match spans.last_mut() {
            Some(last) if from - last.1 < HICCUP => last.1 = now(),
            _ => spans.push((from, now())),
        }
    });
}

fn probe_client(url: &str) -> Result<Client, String> {
    let mut client = Client::login_within(url, &json!({}), ANSWER)?;
    client.patience = ANSWER;
    Ok(client)
}

fn probe(client: &mut Client, number: usize) -> Result<(), String> {
    let subject = format!("$KV.service_registry.probe-{number}");
    let reply = client.try_request(subject.as_bytes(), &header(&[("Nats-TTL", "60s")]), b"x")?;
    let text = String::from_utf8_lossy(&reply.payload).into_owned();
    if text.contains("\"seq\"") { Ok(()) } else { Err(text) }
}

fn verb(words: &[&str], url: &str) -> (Micros, Output, Micros) {
    let from = now();
    let output = aegis(words).arg("--timeout=2s").arg("-s").arg(url).within(secs(60)).run();
    (from, output, now())
}

/// Lists, again and again: through one server after the other, and through all.
pub fn reads(threads: &mut Threads, urls: &[String], into: &Arc<Mutex<Vec<Read>>>) {
    let (urls, into) = (urls.to_vec(), into.clone());
    let mut turn = 0;
    threads.again(millis(300), move |_| {
        turn += 1;
        let url = urls.get(turn % 4).cloned().unwrap_or_else(|| urls.join(","));
        let (from, output, to) = verb(&["list", "--json"], &url);
        let shown = match output.code {
            0 => names(&output.json()["instances"]),
            _ => Vec::new(),
        };
        let read = Read { from, to, code: output.code, shown };
        into.lock().expect("not poisoned").push(read);
    });
}

fn names(instances: &Value) -> Vec<String> {
    let names = instances.as_array().into_iter().flatten();
    names.filter_map(|one| one["instanceId"].as_str().map(str::to_owned)).collect()
}

/// Cleans up, again and again, as the timer does.
pub fn cleanups(threads: &mut Threads, urls: &str, into: &Arc<Mutex<Vec<Cleanup>>>) {
    let (urls, into) = (urls.to_owned(), into.clone());
    threads.again(secs(2), move |_| {
        let cleanup = cleanup(&urls);
        into.lock().expect("not poisoned").push(cleanup);
    });
}

pub fn cleanup(urls: &str) -> Cleanup {
    let (from, output, to) = verb(&["cleanup", "--spare-beating", "--json"], urls);
    let answer: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
    let removed = answer["removed"].as_array().into_iter().flatten().map(|one| {
        let key = one["key"].as_str().unwrap_or_default().to_owned();
        (key, one["revision"].as_u64().unwrap_or(0), one["reasons"].to_string())
    });
    Cleanup { from, to, code: output.code, removed: removed.collect() }
}
