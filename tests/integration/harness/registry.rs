//! The registry as the tests see it: a NATS client over a plain socket that
//! shares no code with the program under test, or bugs in encoding and
//! decoding would cancel out. Subjects and headers go out as bytes, so that
//! it can also store what no decent writer would.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{eventually, millis, secs, time as rfc3339};

/// How long one exchange with a server may take.
const EXCHANGE: Duration = secs(10);

/// A NATS client, blocking, one request at a time.
pub struct Client {
    reader: BufReader<TcpStream>,
    inbox: String,
    requests: u64,
    /// What came for subscriptions while a request waited for its reply.
    aside: VecDeque<Message>,
    /// How long one request waits for its reply.
    pub patience: Duration,
}

/// A message as it came off the wire.
#[derive(Debug, Clone)]
pub struct Message {
    pub subject: Vec<u8>,
    pub reply: Option<String>,
    /// With the `NATS/1.0` line and the empty line at its end; empty without.
    pub header: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Client {
    pub fn connect(url: &str) -> Client {
        Client::login(url, &json!({})).unwrap_or_else(|why| panic!("{url}: {why}"))
    }

    /// `login` is merged into CONNECT: `{"user":..,"pass":..}`, `{"auth_token":..}`.
    pub fn login(url: &str, login: &Value) -> Result<Client, String> {
        Client::login_within(url, login, EXCHANGE)
    }

    /// As `login`, from a server that may be frozen.
    pub fn login_within(url: &str, login: &Value, within: Duration) -> Result<Client, String> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let address = url.trim_start_matches("nats://");
        let stream = TcpStream::connect(address).map_err(|e| e.to_string())?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut client = Client {
            reader: BufReader::with_capacity(1 << 16, stream),
            inbox: format!("_INBOX.tests-{}-{count}", std::process::id()),
            requests: 0,
            aside: VecDeque::new(),
            patience: EXCHANGE,
        };
        let until = Instant::now() + within;
        let greeting = client.line(until)?.ok_or("no INFO")?;
        if !greeting.starts_with(b"INFO ") {
            return Err(format!("greets with {:?}", String::from_utf8_lossy(&greeting)));
        }
        let mut options = json!({
            "verbose": false, "pedantic": false, "headers": true, "no_responders": true,
            "protocol": 1, "name": "tests", "lang": "rust", "version": "0",
        });
        merge(&mut options, login);
        let inbox = client.inbox.clone();
        client.send(format!("CONNECT {options}\r\nSUB {inbox}.* 1\r\nPING\r\n").as_bytes())?;
        client.until_pong(until)?;
        Ok(client)
    }

    /// Publishes; `header` is a whole header block or empty.
    pub fn publish(&mut self, subject: &[u8], reply: &str, header: &[u8], payload: &[u8]) {
        let frame = frame(subject, reply, header, payload);
        self.send(&frame).expect("publishes");
    }

    pub fn subscribe(&mut self, subject: &str, id: u32) -> Result<(), String> {
        let command = format!("SUB {subject} {id}\r\nPING\r\n");
        self.send(command.as_bytes())?;
        self.until_pong(Instant::now() + EXCHANGE)
    }

    /// The next message, or `None` when `within` has passed.
    pub fn next(&mut self, within: Duration) -> Result<Option<Message>, String> {
        match self.aside.pop_front() {
            None => self.receive(within),
            first => Ok(first),
        }
    }

    fn receive(&mut self, within: Duration) -> Result<Option<Message>, String> {
        let until = Instant::now() + within;
        while let Some(line) = self.line(until)? {
            let text = String::from_utf8_lossy(&line).into_owned();
            if text == "PING" {
                self.send(b"PONG\r\n")?;
            } else if text.starts_with("-ERR") {
                return Err(text);
            } else if text.starts_with("MSG ") || text.starts_with("HMSG ") {
                return self.message(&line, until).map(Some);
            }
        }
        Ok(None)
    }

    /// Publishes and waits for the reply.
    pub fn try_request(
        &mut self,
        subject: &[u8],
        header: &[u8],
        payload: &[u8],
    ) -> Result<Message, String> {
        self.requests += 1;
        let reply = format!("{}.{}", self.inbox, self.requests);
        self.send(&frame(subject, &reply, header, payload))?;
        let until = Instant::now() + self.patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let message = self.receive(left)?.ok_or("no reply")?;
            if message.subject != reply.as_bytes() {
                self.aside.push_back(message);
                continue;
            }
            return match message.header.starts_with(b"NATS/1.0 503") {
                true => Err("no responders".to_owned()),
                false => Ok(message),
            };
        }
    }

    /// Asks the JetStream API; an error in the reply is an `Err` with its text.
    pub fn api(&mut self, what: &str, body: &Value) -> Result<Value, String> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let reply = self.try_request(format!("$JS.API.{what}").as_bytes(), b"", body.as_bytes())?;
        answer(&reply)
    }

    fn message(&mut self, line: &[u8], until: Instant) -> Result<Message, String> {
        let words: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
        let length =
            |word: &[u8]| std::str::from_utf8(word).ok().and_then(|w| w.parse::<usize>().ok());
        let headers = words[0] == b"HMSG";
        let total = words.last().copied().and_then(length).ok_or("no length")?;
        let header = match headers {
            true => length(words[words.len() - 2]).ok_or("no header length")?,
            false => 0,
        };
        let has_reply = words.len() == if headers { 6 } else { 5 };
        let mut bytes = vec![0; total + 2];
        self.fill(&mut bytes, until)?;
        bytes.truncate(total);
        Ok(Message {
            subject: words[1].to_vec(),
            reply: has_reply.then(|| String::from_utf8_lossy(words[3]).into_owned()),
            payload: bytes.split_off(header),
            header: bytes,
        })
    }

    fn until_pong(&mut self, until: Instant) -> Result<(), String> {
        loop {
            match self.line(until)?.ok_or("no PONG")?.as_slice() {
                b"PONG" => return Ok(()),
                b"PING" => self.send(b"PONG\r\n")?,
                error if error.starts_with(b"-ERR") => {
                    return Err(String::from_utf8_lossy(error).into_owned());
                }
                _ => {}
            }
        }
    }

    /// One protocol line without its end; `None` when `until` has passed
    /// before its first byte.
    fn line(&mut self, until: Instant) -> Result<Option<Vec<u8>>, String> {
        let mut line = Vec::new();
        loop {
            self.limit(until)?;
            match self.reader.read_until(b'\n', &mut line) {
                Ok(0) => return Err("the server closed the connection".to_owned()),
                Ok(_) if line.ends_with(b"\r\n") => {
                    line.truncate(line.len() - 2);
                    return Ok(Some(line));
                }
                Ok(_) => {}
                Err(e) if is_timeout(&e) && Instant::now() < until => {}
                Err(e) if is_timeout(&e) && line.is_empty() => return Ok(None),
                Err(e) => return Err(e.to_string()),
            }
        }
    }

    fn fill(&mut self, bytes: &mut [u8], until: Instant) -> Result<(), String> {
        let mut filled = 0;
        while filled < bytes.len() {
            self.limit(until.max(Instant::now() + secs(2)))?;
            match self.reader.read(&mut bytes[filled..]) {
                Ok(0) => return Err("the server closed the connection".to_owned()),
                Ok(count) => filled += count,
                Err(e) => return Err(e.to_string()),
            }
        }
        Ok(())
    }

    fn limit(&mut self, until: Instant) -> Result<(), String> {
        if !self.reader.buffer().is_empty() {
            return Ok(());
        }
        let left = until.saturating_duration_since(Instant::now()).max(millis(1));
        self.reader.get_ref().set_read_timeout(Some(left)).map_err(|e| e.to_string())
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.reader.get_mut().write_all(bytes).map_err(|e| e.to_string())
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn frame(subject: &[u8], reply: &str, header: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(payload.len() + header.len() + subject.len() + 64);
    frame.extend(if header.is_empty() { &b"PUB "[..] } else { b"HPUB " });
    frame.extend(subject);
    frame.push(b' ');
    if !reply.is_empty() {
        frame.extend(format!("{reply} ").bytes());
    }
    if !header.is_empty() {
        frame.extend(format!("{} ", header.len()).bytes());
    }
    frame.extend(format!("{}\r\n", header.len() + payload.len()).bytes());
    frame.extend(header);
    frame.extend(payload);
    frame.extend(b"\r\n");
    frame
}

/// The JSON of a JetStream reply, or its error as text.
fn answer(reply: &Message) -> Result<Value, String> {
    let value: Value = serde_json::from_slice(&reply.payload).map_err(|e| e.to_string())?;
    match value.get("error") {
        Some(error) => Err(format!("{} {}", error["err_code"], error["description"])),
        None => Ok(value),
    }
}

/// Puts the fields of `extra` over those of `base`.
fn merge(base: &mut Value, extra: &Value) {
    if let (Some(base), Some(extra)) = (base.as_object_mut(), extra.as_object()) {
        for (name, value) in extra {
            base.insert(name.clone(), value.clone());
        }
    }
}

/// A header block of these lines.
pub fn header(lines: &[(&str, &str)]) -> Vec<u8> {
    if lines.is_empty() {
        return Vec::new();
    }
    let mut block = b"NATS/1.0\r\n".to_vec();
    for (name, value) in lines {
        block.extend(format!("{name}: {value}\r\n").bytes());
    }
    block.extend(b"\r\n");
    block
}

/// One stored message of a bucket.
#[derive(Debug, Clone)]
pub struct Entry {
    pub key: Vec<u8>,
    pub revision: u64,
    pub stored: OffsetDateTime,
    pub header: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Entry {
    pub fn key(&self) -> String {
        String::from_utf8_lossy(&self.key).into_owned()
    }

    /// The value of the header line `name`.
    pub fn header(&self, name: &str) -> Option<String> {
        String::from_utf8_lossy(&self.header).lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            (found == name).then(|| value.trim().to_owned())
        })
    }

    /// The names of its header lines, sorted.
    pub fn header_names(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.header);
        let mut names: Vec<String> =
            text.lines().skip(1).filter_map(|l| Some(l.split_once(':')?.0.to_owned())).collect();
        names.sort();
        names
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.payload).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }

    pub fn last_heartbeat(&self) -> OffsetDateTime {
        let json = self.json();
        rfc3339::parse(json["lastHeartbeat"].as_str().expect("lastHeartbeat is a string"))
    }

    /// A deletion of any kind, not a value.
    pub fn is_marker(&self) -> bool {
        self.header("KV-Operation").is_some() || self.header("Nats-Marker-Reason").is_some()
    }
}

/// A bucket of a server, read and written by the tests.
pub struct Registry {
    pub client: Client,
    pub bucket: String,
    url: String,
}

impl Registry {
    /// The bucket `service_registry` of the server at `url`; it need not exist.
    pub fn at(url: &str) -> Registry {
        Registry::named(url, "service_registry")
    }

    pub fn named(url: &str, bucket: &str) -> Registry {
        Registry::login(url, bucket, &json!({}))
    }

    /// As the user of `login`, which is merged into CONNECT.
    pub fn login(url: &str, bucket: &str, login: &Value) -> Registry {
        Registry {
            client: Client::login(url, login).unwrap_or_else(|why| panic!("{url}: {why}")),
            bucket: bucket.to_owned(),
            url: url.to_owned(),
        }
    }

    /// Connects anew, after the server was away.
    pub fn reconnect(&mut self) {
        self.client = eventually(secs(10), "the tests' client connects", || {
            Client::login(&self.url, &json!({}))
        });
    }

    fn stream(&self) -> String {
        format!("KV_{}", self.bucket)
    }

    fn subject(&self, key: &[u8]) -> Vec<u8> {
        [b"$KV.", self.bucket.as_bytes(), b".", key].concat()
    }

    /// The stream configuration of a bucket fit for the program, with the
    /// fields of `changes` put over it.
    pub fn config(&self, changes: &Value) -> Value {
        let mut config = json!({
            "name": self.stream(),
            "subjects": [format!("$KV.{}.>", self.bucket)],
            "max_msgs_per_subject": 1, "discard": "new", "storage": "file", "num_replicas": 1,
            "allow_rollup_hdrs": true, "deny_delete": true, "allow_direct": true, "allow_msg_ttl": true,
        });
        merge(&mut config, changes);
        config
    }

    /// Makes the bucket as `config(changes)`; JetStream may still be starting.
    pub fn create(&mut self, changes: &Value) {
        let what = format!("STREAM.CREATE.{}", self.stream());
        let config = self.config(changes);
        // A cluster that has no leader yet does not answer at all.
        self.client.patience = secs(1);
        // On a busy host its first election alone was seen to take 20 s.
        eventually(secs(60), "the bucket is made", || self.client.api(&what, &config));
        self.client.patience = EXCHANGE;
    }

    pub fn update(&mut self, changes: &Value) {
        let what = format!("STREAM.UPDATE.{}", self.stream());
        let config = self.config(changes);
        self.client.api(&what, &config).expect("updates the bucket");
    }

    /// `STREAM.INFO`; `Err` where there is no bucket.
    pub fn info(&mut self) -> Result<Value, String> {
        let what = format!("STREAM.INFO.{}", self.stream());
        self.client.api(&what, &Value::Null)
    }

    pub fn delete(&mut self) {
        let what = format!("STREAM.DELETE.{}", self.stream());
        self.client.api(&what, &Value::Null).expect("deletes the bucket");
    }

    /// Stores a value and returns its revision.
    pub fn put(&mut self, key: &str, headers: &[(&str, &str)], payload: &str) -> u64 {
        self.store(key.as_bytes(), &header(headers), payload.as_bytes())
    }

    /// Stores whatever bytes it is given and returns the revision.
    pub fn store(&mut self, key: &[u8], header: &[u8], payload: &[u8]) -> u64 {
        let subject = self.subject(key);
        // Nothing is stored where nobody responds: a member of a cluster learns
        // last of a bucket that was made through another one.
        let reply = eventually(secs(10), "somebody stores", || {
            match self.client.try_request(&subject, header, payload) {
                Err(why) if why == "no responders" => Err(why),
                reply => Ok(reply),
            }
        });
        let reply = answer(&reply.expect("stores")).expect("stores");
        reply["seq"].as_u64().expect("the revision")
    }

    /// Stores `count` values quickly: `each` makes key, header block, payload.
    pub fn fill(&mut self, count: usize, mut each: impl FnMut(usize) -> (String, Vec<u8>, String)) {
        // The server drops what it cannot take in at once, so each window is
        // acknowledged before the next.
        for start in (0..count).step_by(1_000) {
            let end = count.min(start + 1_000);
            let mut window = Vec::new();
            for i in start..end - 1 {
                let (key, header, payload) = each(i);
                window.extend(frame(
                    &self.subject(key.as_bytes()),
                    "",
                    &header,
                    payload.as_bytes(),
                ));
            }
            self.client.send(&window).expect("fills the bucket");
            let (key, header, payload) = each(end - 1);
            self.store(key.as_bytes(), &header, payload.as_bytes());
        }
    }

    /// What a read of the key finds now: a value, a marker or nothing.
    pub fn last(&mut self, key: &str) -> Option<Entry> {
        let subject = String::from_utf8_lossy(&self.subject(key.as_bytes())).into_owned();
        self.get(&json!({ "last_by_subj": subject }))
    }

    /// Everything the stream holds, in the order of storing, markers too.
    pub fn everything(&mut self) -> Vec<Entry> {
        self.from(1, ">")
    }

    /// Every stored revision of one key.
    pub fn revisions(&mut self, key: &str) -> Vec<Entry> {
        self.from(1, key)
    }

    fn from(&mut self, first: u64, keys: &str) -> Vec<Entry> {
        let mut next = first;
        let mut found = Vec::new();
        let subject = format!("$KV.{}.{keys}", self.bucket);
        while let Some(entry) = self.get(&json!({ "seq": next, "next_by_subj": subject })) {
            next = entry.revision + 1;
            found.push(entry);
        }
        found
    }

    fn get(&mut self, request: &Value) -> Option<Entry> {
        let what = format!("STREAM.MSG.GET.{}", self.stream());
        let reply = match self.client.api(&what, request) {
            Ok(reply) => reply,
            Err(why) if why.starts_with("10037") => return None,
            Err(why) => panic!("STREAM.MSG.GET {request}: {why}"),
        };
        let message = &reply["message"];
        let bytes = |name: &str| base64(message[name].as_str().unwrap_or_default());
        // JSON cannot carry a subject that is not UTF-8: the server puts
        // U+FFFD in its place.
        let subject = message["subject"].as_str().expect("a subject").as_bytes();
        let prefix = format!("$KV.{}.", self.bucket);
        Some(Entry {
            key: subject[prefix.len()..].to_vec(),
            revision: message["seq"].as_u64().expect("a sequence"),
            stored: rfc3339::parse(message["time"].as_str().expect("a time")),
            header: bytes("hdrs"),
            payload: bytes("data"),
        })
    }

    /// Removes every revision of one key, without a trace.
    pub fn purge(&mut self, key: &str) {
        let what = format!("STREAM.PURGE.{}", self.stream());
        let filter = format!("$KV.{}.{key}", self.bucket);
        self.client.api(&what, &json!({ "filter": filter })).expect("purges");
    }

    /// Sees each revision of `key` (`>` for all) as it is stored from now on.
    pub fn watch(&mut self, key: &str) -> Watch {
        let after = self.info().map_or(0, |info| info["state"]["last_seq"].as_u64().unwrap_or(0));
        Watch::start(&self.url, &self.bucket, key, after + 1)
    }
}

/// Sees every revision of a key as the server stored it, in a thread of its
/// own; connects again when the server was away.
pub struct Watch {
    seen: Arc<Mutex<Vec<Entry>>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn start(url: &str, bucket: &str, key: &str, first: u64) -> Watch {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let end = Arc::new(AtomicBool::new(false));
        let thread = {
            let (seen, end) = (seen.clone(), end.clone());
            let (url, bucket, key) = (url.to_owned(), bucket.to_owned(), key.to_owned());
            let mut next = first;
            std::thread::spawn(move || {
                while !end.load(Ordering::Relaxed) {
                    // Errors mean that the server or the bucket is not there (yet).
                    let _ = follow(&url, &bucket, &key, &mut next, &seen, &end);
                    std::thread::sleep(millis(10));
                }
            })
        };
        Watch { seen, end, thread: Some(thread) }
    }

    /// Sees all that the registry bucket of this server holds and will hold.
    pub fn from_the_start(url: &str) -> Watch {
        Watch::start(url, "service_registry", ">", 1)
    }

    pub fn seen(&self) -> Vec<Entry> {
        self.seen.lock().expect("no panic while it was held").clone()
    }

    /// Waits until `count` revisions were seen, and returns all seen so far.
    pub fn wait_for(&self, count: usize, within: Duration) -> Vec<Entry> {
        eventually(within, &format!("{count} revisions"), || {
            let seen = self.seen();
            match seen.len() >= count {
                true => Ok(seen),
                false => Err(format!("{} revisions: {}", seen.len(), summary(&seen))),
            }
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if std::thread::panicking() {
            eprintln!("--- revisions seen: {}", summary(&self.seen()));
        }
    }
}

fn summary(entries: &[Entry]) -> String {
    entries.iter().fold(String::new(), |text, e| {
        let header = String::from_utf8_lossy(&e.header).trim().replace("\r\n", "; ");
        format!(
            "{text}\n  {} r{} {} [{header}] {}",
            rfc3339::rfc3339(e.stored),
            e.revision,
            e.key(),
            e.text()
        )
    })
}

fn follow(
    url: &str,
    bucket: &str,
    key: &str,
    next: &mut u64,
    seen: &Mutex<Vec<Entry>>,
    end: &AtomicBool,
) -> Result<(), String> {
    let mut client = Client::login(url, &json!({}))?;
    let inbox = format!("{}.watch.x", client.inbox);
    client.subscribe(&inbox, 2)?;
    let config = json!({
        "stream_name": format!("KV_{bucket}"),
        "config": {
            "deliver_subject": inbox, "deliver_policy": "by_start_sequence", "opt_start_seq": *next,
            "ack_policy": "none", "mem_storage": true, "num_replicas": 1,
            "filter_subject": format!("$KV.{bucket}.{key}"), "inactive_threshold": 5_000_000_000_u64,
        },
    });
    client.api(&format!("CONSUMER.CREATE.KV_{bucket}"), &config)?;
    while !end.load(Ordering::Relaxed) {
        let Some(message) = client.next(millis(50))? else {
            continue;
        };
        let Some(ack) = message.reply else { continue };
        // $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<ns>.<pending>
        let words: Vec<&str> = ack.split('.').collect();
        let number = |at: usize| {
            words.get(at).and_then(|w| w.parse::<i128>().ok()).ok_or(format!("reply {ack}"))
        };
        let revision = number(5)? as u64;
        let stored =
            OffsetDateTime::from_unix_timestamp_nanos(number(7)?).map_err(|e| e.to_string())?;
        *next = revision + 1;
        seen.lock().expect("no panic while it was held").push(Entry {
            key: message.subject[format!("$KV.{bucket}.").len()..].to_vec(),
            revision,
            stored,
            header: message.header,
            payload: message.payload,
        });
    }
    Ok(())
}

fn base64(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for character in text.bytes().filter(|&b| b != b'=') {
        let six = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => panic!("not base64: {text:?}"),
        };
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}
