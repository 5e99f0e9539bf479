//! The simulator's server is honest: the same bytes go to it and to real servers,
//! and it answers what they answer. Times and names of their own may differ, and a
//! real answer may say more.

#[path = "../simulation/model/mod.rs"]
mod model;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use self::model::api::Circumstances;
use self::model::{Answer, Jetstream, Session};
use crate::harness::server::Server;
use crate::harness::{millis, secs};

const VERSIONS: [&str; 3] = ["2.11.11", "2.12.8", "2.15.1"];
const BUCKET: &str = "B";
const KEY: &str = "$KV.B.service-instances__orders-api__host-1";
const OTHER: &str = "$KV.B.service-instances__orders-api__host-2";
/// Of an entry that is over, in milliseconds: docs/nats.md.
const LATEST: u128 = 250;

/// A real server and the modelled one, with one connection to each.
struct Both {
    _server: Server,
    version: &'static str,
    stream: TcpStream,
    input: Vec<u8>,
    session: Session,
    jetstream: Jetstream,
    asked: u32,
    rule: &'static str,
    /// Where the two differ.
    found: Vec<String>,
}

/// A message, without what is each server's own.
#[derive(Debug, Clone, PartialEq)]
struct Frame {
    subject: String,
    reply: Option<String>,
    headers: Vec<String>,
    payload: Payload,
}

#[derive(Debug, Clone, PartialEq)]
enum Payload {
    Json(Value),
    Bytes(Vec<u8>),
}

fn wall() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since.expect("after 1970").as_nanos()).expect("before 2262")
}

impl Both {
    fn new(version: &'static str) -> Both {
        let server = Server::start(version);
        let stream = TcpStream::connect(("127.0.0.1", server.port())).expect("it listens");
        stream.set_read_timeout(Some(millis(20))).expect("a time limit can be set");
        let mut both = Both {
            _server: server,
            version,
            stream,
            input: Vec::new(),
            session: Session::default(),
            jetstream: Jetstream::default(),
            asked: 0,
            rule: "",
            found: Vec::new(),
        };
        let hello = "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\
                     \"no_responders\":true,\"protocol\":1}\r\nSUB _INBOX.x.* 1\r\nPING\r\n";
        let mut out = Vec::new();
        assert_eq!(both.session.hear(hello.as_bytes(), &mut out), []);
        assert_eq!(out, b"PONG\r\n");
        both.stream.write_all(hello.as_bytes()).expect("it can be written to");
        both.await_bytes("the PONG", |input| {
            let at = memchr::memmem::find(input, b"PONG\r\n")?;
            input.drain(..at + 6);
            Some(())
        });
        both
    }

    fn await_bytes<T>(&mut self, what: &str, take: impl Fn(&mut Vec<u8>) -> Option<T>) -> T {
        let deadline = Instant::now() + secs(5);
        loop {
            if let Some(taken) = take(&mut self.input) {
                return taken;
            }
            let input = String::from_utf8_lossy(&self.input);
            assert!(Instant::now() < deadline, "{} {}: {what}: {input}", self.version, self.rule);
            let mut buffer = [0; 65_536];
            if let Ok(count) = self.stream.read(&mut buffer) {
                assert!(count > 0, "{}: the server has hung up: {input}", self.rule);
                self.input.extend_from_slice(&buffer[..count]);
            }
        }
    }

    /// Sends a message to both, and holds their answers against each other. What
    /// the real one answered.
    fn ask(&mut self, subject: &str, headers: &[(&str, &str)], payload: &str) -> Vec<Frame> {
        self.asked += 1;
        let reply = format!("_INBOX.x.{}", self.asked);
        let block: String =
            headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let line = match headers {
            [] => format!("PUB {subject} {reply} {}\r\n{payload}\r\n", payload.len()),
            _ => {
                let block = format!("NATS/1.0\r\n{block}\r\n");
                let total = block.len() + payload.len();
                format!("HPUB {subject} {reply} {} {total}\r\n{block}{payload}\r\n", block.len())
            }
        };
        self.stream.write_all(line.as_bytes()).expect("it can be written to");
        let mut modelled = self.modelled(line.as_bytes());
        let expected = frames(&mut modelled);
        assert!(modelled.is_empty(), "{}: half a message", self.rule);
        let real: Vec<Frame> = (0..expected.len())
            .map(|_| self.await_bytes(&format!("an answer to {line:?}"), frame))
            .collect();
        for (real, modelled) in real.iter().zip(&expected) {
            let words = differs(real, modelled);
            if !words.is_empty() {
                self.found.push(format!("{}: {line:?}: {words:?}", self.version));
            }
        }
        assert!(self.input.is_empty(), "{}: {line:?}: more came: {:?}", self.rule, self.input);
        real
    }

    /// What the modelled server sends for these bytes.
    fn modelled(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for publish in self.session.hear(bytes, &mut out) {
            let at = Circumstances {
                now: wall(),
                late: 0,
                version: self.version,
                leader: None,
                members: 1,
            };
            let (answer, _) = self.jetstream.take(&publish, at);
            let (Some(Answer { headers, payload, delivered }), Some(to)) = (answer, publish.reply)
            else {
                continue;
            };
            for (stored, reply) in &delivered {
                let (headers, payload) = (&stored.headers, &stored.payload);
                self.session.deliver_as(
                    &stored.subject,
                    &to,
                    Some(reply),
                    headers,
                    payload,
                    &mut out,
                );
            }
            if delivered.is_empty() || !headers.is_empty() {
                self.session.deliver(&to, None, &headers, &payload, &mut out);
            }
        }
        out
    }

    fn api(&mut self, call: &str, body: &Value) -> Vec<Frame> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.ask(&format!("$JS.API.{call}"), &[], &body)
    }

    /// A bucket in the place of the one that there was.
    fn bucket(&mut self, changes: &Value) {
        self.api("STREAM.DELETE.KV_B", &Value::Null);
        self.api("STREAM.CREATE.KV_B", &config(changes));
    }

    fn put(&mut self, headers: &[(&str, &str)]) {
        self.ask(KEY, headers, "{\"a\":1}");
    }

    fn get(&mut self) -> Vec<Frame> {
        self.ask(&format!("$JS.API.DIRECT.GET.KV_B.{KEY}"), &[], "")
    }
}

fn config(changes: &Value) -> Value {
    let mut config = json!({
        "name": "KV_B", "subjects": ["$KV.B.>"], "retention": "limits",
        "max_msgs_per_subject": 1, "storage": "file", "discard": "new", "num_replicas": 1,
        "deny_delete": true, "allow_rollup_hdrs": true, "allow_direct": true,
        "allow_msg_ttl": true,
    });
    for (name, value) in changes.as_object().into_iter().flatten() {
        match value {
            Value::Null => drop(config.as_object_mut().expect("an object").remove(name)),
            value => config[name] = value.clone(),
        }
    }
    config
}

fn frames(input: &mut Vec<u8>) -> Vec<Frame> {
    std::iter::from_fn(|| frame(input)).collect()
}

/// Takes one message out of what has come.
fn frame(input: &mut Vec<u8>) -> Option<Frame> {
    if input.starts_with(b"PING\r\n") || input.starts_with(b"INFO ") {
        let end = memchr::memmem::find(input, b"\r\n")?;
        input.drain(..end + 2);
        return frame(input);
    }
    let end = memchr::memmem::find(input, b"\r\n")?;
    let line = String::from_utf8_lossy(&input[..end]).into_owned();
    let words: Vec<&str> = line.split(' ').collect();
    let numbers = if words[0] == "HMSG" { 2 } else { 1 };
    assert!(words[0] == "MSG" || words[0] == "HMSG", "no message: {line}");
    let number = |at: usize| words[at].parse::<usize>().expect("a number");
    let total = number(words.len() - 1);
    let headers = if numbers == 2 { number(words.len() - 2) } else { 0 };
    if input.len() < end + 2 + total + 2 {
        return None;
    }
    let body = &input[end + 2..end + 2 + total];
    let block = String::from_utf8_lossy(&body[..headers]).into_owned();
    let payload = match serde_json::from_slice(&body[headers..]) {
        Ok(value @ Value::Object(_)) => Payload::Json(value),
        _ => Payload::Bytes(body[headers..].to_vec()),
    };
    let reply = (words.len() == 4 + numbers).then(|| acknowledgement(words[3]));
    let is_own = |line: &str| line.starts_with("Nats-Time-Stamp:");
    let frame = Frame {
        subject: words[1].to_owned(),
        reply,
        headers: block.split("\r\n").filter(|line| !is_own(line)).map(str::to_owned).collect(),
        payload,
    };
    input.drain(..end + 2 + total + 2);
    Some(frame)
}

/// `$JS.ACK...` without the time.
fn acknowledgement(reply: &str) -> String {
    let mut words: Vec<&str> = reply.split('.').collect();
    if let [.., time, _] = words.as_mut_slice() {
        *time = "time";
    }
    words.join(".")
}

/// What the modelled answer says, and the real one does not.
fn differs(real: &Frame, modelled: &Frame) -> Vec<String> {
    let mut words = Vec::new();
    let heads = |frame: &Frame| (frame.subject.clone(), frame.reply.clone(), frame.headers.clone());
    if heads(real) != heads(modelled) {
        words.push(format!("{:?} and not {:?}", heads(modelled), heads(real)));
    }
    match (&real.payload, &modelled.payload) {
        (Payload::Json(real), Payload::Json(modelled)) => missing("", real, modelled, &mut words),
        (real, modelled) if real == modelled => {}
        (real, modelled) => words.push(format!("{modelled:?} and not {real:?}")),
    }
    words
}

fn missing(path: &str, real: &Value, modelled: &Value, words: &mut Vec<String>) {
    // Times, and what only fills a store.
    const OWN: [&str; 4] = [".ts", ".created", ".message.time", ".state.bytes"];
    if OWN.contains(&path) {
        return;
    }
    match (real, modelled) {
        (Value::Object(real), Value::Object(modelled)) => {
            for (name, value) in modelled {
                let path = format!("{path}.{name}");
                // Go leaves out what is nothing.
                let none = match value {
                    Value::Number(_) => json!(0),
                    Value::Bool(_) => json!(false),
                    _ => Value::Null,
                };
                missing(&path, real.get(name).unwrap_or(&none), value, words);
            }
            // A refusal is all that is said.
            if real.contains_key("error") != modelled.contains_key("error") {
                words.push(format!("{path}: refused, or not"));
            }
        }
        (real, modelled) if real == modelled => {}
        (real, modelled) => words.push(format!("{path}: {modelled} and not {real}")),
    }
}

fn each(rule: &'static str, versions: &[&'static str], act: impl Fn(&mut Both)) {
    let mut found = Vec::new();
    for version in versions {
        let mut both = Both::new(version);
        both.rule = rule;
        act(&mut both);
        found.append(&mut both.found);
    }
    assert!(found.is_empty(), "{rule}: the model and the servers differ:\n{}", found.join("\n"));
}

#[test]
fn where_there_is_no_stream() {
    each("no stream", &VERSIONS, |both| {
        both.put(&[]);
        both.get();
        for call in ["STREAM.INFO.KV_B", "STREAM.DELETE.KV_B"] {
            both.api(call, &Value::Null);
        }
        both.api("STREAM.PURGE.KV_B", &json!({ "filter": KEY }));
        both.api("STREAM.MSG.GET.KV_B", &json!({ "last_by_subj": KEY }));
        both.api("STREAM.UPDATE.KV_B", &config(&json!({})));
        let consumer = json!({ "stream_name": "KV_B", "config": { "name": "c" } });
        both.api("CONSUMER.CREATE.KV_B.c", &consumer);
    });
}

#[test]
fn a_stream_is_made_told_and_changed() {
    each("streams", &VERSIONS, |both| {
        both.bucket(&json!({}));
        both.api("STREAM.CREATE.KV_B", &config(&json!({})));
        both.api("STREAM.CREATE.KV_B", &config(&json!({ "max_msgs_per_subject": 5 })));
        both.api("STREAM.INFO.KV_B", &Value::Null);
        both.put(&[("Nats-TTL", "30s")]);
        both.ask(OTHER, &[("Nats-TTL", "30s")], "x");
        both.api("STREAM.INFO.KV_B", &json!({ "subjects_filter": ">" }));
        both.api("STREAM.UPDATE.KV_B", &config(&json!({ "max_msgs_per_subject": 5 })));
        both.put(&[]);
        both.put(&[]);
        both.api("STREAM.UPDATE.KV_B", &config(&json!({})));
        both.api("STREAM.INFO.KV_B", &Value::Null);
        both.api("STREAM.UPDATE.KV_B", &config(&json!({ "allow_msg_ttl": false })));
        both.api("STREAM.CREATE.KV_C", &config(&json!({ "name": "KV_C", "num_replicas": 3 })));
    });
}

#[test]
fn the_revision_that_is_expected() {
    const EXPECTED: &str = "Nats-Expected-Last-Subject-Sequence";
    each("expected revision", &VERSIONS, |both| {
        both.bucket(&json!({}));
        for expected in ["7", "0", "0", "1", "1", "", "99999999999", "3"] {
            both.put(&[(EXPECTED, expected)]);
            // What was acknowledged is stored.
            both.get();
        }
        both.api("STREAM.PURGE.KV_B", &json!({ "filter": KEY }));
        both.put(&[(EXPECTED, "4")]);
        both.put(&[(EXPECTED, "0")]);
    });
}

#[test]
fn the_ttl_of_a_message() {
    each("TTL header", &VERSIONS, |both| {
        both.bucket(&json!({}));
        let values = [
            "30s", "1m", "1m30s", "2", "1", "0", "-1", "500ms", "1500ms", "abc", "never", "", "1d",
            "1h",
        ];
        for ttl in values {
            both.put(&[("Nats-TTL", ttl)]);
            both.get();
        }
        // Names are case-sensitive.
        both.put(&[("nats-ttl", "abc")]);
        both.bucket(&json!({ "allow_msg_ttl": null }));
        both.put(&[("Nats-TTL", "30s")]);
        both.put(&[("Nats-TTL", "")]);
        both.put(&[]);
    });
}

#[test]
fn history_roll_ups_and_markers() {
    each("history", &VERSIONS, |both| {
        both.bucket(&json!({ "max_msgs_per_subject": 3 }));
        for _ in 0..4 {
            both.put(&[("Nats-TTL", "30s")]);
        }
        for seq in 1..=5 {
            both.api("STREAM.MSG.GET.KV_B", &json!({ "seq": seq }));
        }
        both.put(&[("Nats-Rollup", "sub"), ("Nats-TTL", "30s")]);
        both.api("STREAM.MSG.GET.KV_B", &json!({ "seq": 4 }));
        both.put(&[("KV-Operation", "PURGE"), ("Nats-Rollup", "sub"), ("Nats-TTL", "60s")]);
        both.get();
        both.api("STREAM.MSG.GET.KV_B", &json!({ "last_by_subj": KEY }));
        both.ask(KEY, &[("KV-Operation", "DEL")], "");
        both.get();
        both.api("STREAM.INFO.KV_B", &Value::Null);
        both.bucket(&json!({ "allow_rollup_hdrs": false }));
        both.put(&[("Nats-Rollup", "sub")]);
        both.put(&[]);
    });
}

#[test]
fn a_purge_by_key_and_sequence() {
    each("purge", &VERSIONS, |both| {
        both.bucket(&json!({ "max_msgs_per_subject": 10 }));
        for _ in 0..4 {
            both.put(&[]);
            both.ask(OTHER, &[], "y");
        }
        both.api("STREAM.PURGE.KV_B", &json!({ "filter": KEY, "seq": 4 }));
        both.api("STREAM.PURGE.KV_B", &json!({ "filter": KEY, "seq": 4 }));
        both.api("STREAM.INFO.KV_B", &json!({ "subjects_filter": ">" }));
        both.api("STREAM.PURGE.KV_B", &json!({ "filter": KEY, "seq": 8 }));
        both.get();
        both.ask(&format!("$JS.API.DIRECT.GET.KV_B.{OTHER}"), &[], "");
        both.api("STREAM.PURGE.KV_B", &json!({}));
        both.api("STREAM.INFO.KV_B", &Value::Null);
        both.put(&[]);
    });
}

#[test]
fn reads_direct_and_by_message() {
    each("reads", &VERSIONS, |both| {
        both.bucket(&json!({}));
        both.get();
        both.api("STREAM.MSG.GET.KV_B", &json!({ "last_by_subj": KEY }));
        both.put(&[]);
        both.get();
        both.put(&[("Nats-TTL", "30s"), ("X-Other", "z")]);
        both.get();
        both.api("STREAM.MSG.GET.KV_B", &json!({ "last_by_subj": KEY }));
        both.bucket(&json!({ "allow_direct": false }));
        both.put(&[]);
        both.get();
    });
}

#[test]
fn a_consumer_is_made_and_pulled() {
    each("consumers", &VERSIONS, |both| {
        both.bucket(&json!({ "max_msgs_per_subject": 5 }));
        for _ in 0..2 {
            both.put(&[("Nats-TTL", "30s")]);
            both.ask(OTHER, &[], "y");
        }
        let consumer = json!({ "stream_name": "KV_B", "config": {
            "name": "c", "deliver_policy": "last_per_subject", "ack_policy": "none",
            "filter_subject": "$KV.B.>", "inactive_threshold": 5_000_000_000_u64,
            "mem_storage": true, "num_replicas": 1,
        } });
        both.api("CONSUMER.CREATE.KV_B.c.$KV.B.>", &consumer);
        let pull = |batch: u32| json!({ "batch": batch, "no_wait": true });
        both.api("CONSUMER.MSG.NEXT.KV_B.c", &pull(1));
        both.api("CONSUMER.MSG.NEXT.KV_B.c", &pull(5));
        both.api("CONSUMER.MSG.NEXT.KV_B.c", &pull(5));
        both.api("CONSUMER.DELETE.KV_B.c", &Value::Null);
        both.api("CONSUMER.DELETE.KV_B.c", &Value::Null);
        both.api("CONSUMER.MSG.NEXT.KV_B.c", &pull(1));
    });
}

#[test]
fn a_bucket_that_is_full() {
    each("full", &VERSIONS, |both| {
        both.bucket(&json!({ "max_bytes": 10 }));
        both.jetstream.buckets.values_mut().for_each(|bucket| bucket.full = true);
        both.put(&[]);
        both.get();
    });
}

/// "Expiry comes 4 to 250 ms late on a healthy server", and with markers the server
/// says that it was so.
#[test]
fn an_entry_goes_a_little_late_and_leaves_a_marker_where_that_is_asked() {
    for markers in [json!({}), json!({ "subject_delete_marker_ttl": 60_000_000_000_u64 })] {
        each("expiry", &VERSIONS, |both| {
            both.bucket(&markers);
            both.ask(OTHER, &[("Nats-TTL", "30s")], "y");
            let began = Instant::now();
            both.put(&[("Nats-TTL", "2s")]);
            let stored = Instant::now();
            sleep(millis(1_300).saturating_sub(began.elapsed()));
            // Until its end everybody reads it.
            both.get();
            let call = json!({ "seq": 2 }).to_string();
            let gone = loop {
                both.asked += 1;
                let (reply, size) = (format!("_INBOX.x.{}", both.asked), call.len());
                let line = format!("PUB $JS.API.STREAM.MSG.GET.KV_B {reply} {size}\r\n{call}\r\n");
                both.stream.write_all(line.as_bytes()).expect("it can be written to");
                let answer = both.await_bytes("what stands there", frame);
                match answer.payload {
                    Payload::Json(value) if value.get("error").is_some() => break Instant::now(),
                    _ => sleep(millis(2)),
                }
            };
            let late = gone.saturating_duration_since(began + secs(2)).as_millis();
            // The machine itself may be slow.
            let slow = stored.duration_since(began).as_millis() + 100;
            assert!(late <= LATEST + slow, "{} {late} ms late", both.version);
            // The model may have stored it a little after the server did.
            let now = wall() + 500_000_000;
            both.jetstream.buckets.values_mut().for_each(|bucket| drop(bucket.expire(now, 0)));
            both.get();
            both.api("STREAM.INFO.KV_B", &Value::Null);
            both.put(&[("Nats-Expected-Last-Subject-Sequence", "2")]);
        });
    }
}

/// "A server of 2.10 stores and acknowledges any value of the header and never
/// expires it."
#[test]
fn a_server_of_2_10_knows_no_ttl() {
    each("2.10", &["2.10.25"], |both| {
        both.bucket(&json!({}));
        both.api("STREAM.INFO.KV_B", &Value::Null);
        for ttl in ["1s", "abc", "30s", "1"] {
            both.put(&[("Nats-TTL", ttl)]);
            both.get();
        }
        sleep(Duration::from_millis(1_400));
        let now = wall();
        both.jetstream.buckets.values_mut().for_each(|bucket| drop(bucket.expire(now, 0)));
        both.get();
    });
}
