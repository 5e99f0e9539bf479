//! The JetStream of a server or a cluster: its API, and what it does with what
//! is published.

use std::collections::{BTreeMap, VecDeque};

use data_encoding::BASE64;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::bucket::{Bucket, Change, Refusal, Stored, Wall};
use super::session::{Publish, matches};

/// What is sent back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub headers: Vec<u8>,
    pub payload: Vec<u8>,
    /// Messages that come before it, for whoever asked, with the reply subject
    /// of each.
    pub delivered: Vec<(Stored, String)>,
}

impl Answer {
    fn json(value: &Value) -> Answer {
        Answer { payload: value.to_string().into_bytes(), ..Answer::default() }
    }

    fn status(line: &str) -> Answer {
        let headers = format!("NATS/1.0 {line}\r\n\r\n").into_bytes();
        Answer { headers, ..Answer::default() }
    }

    /// Nobody is there to answer what was sent to `subject`.
    pub fn no_responders(subject: &str, version: &str) -> Answer {
        // Servers tell which subject that was from 2.12 on.
        match version.starts_with("2.10.") || version.starts_with("2.11.") {
            true => Answer::status("503"),
            false => Answer::status(&format!("503\r\nNats-Subject: {subject}")),
        }
    }

    /// The API refuses.
    pub fn refused(kind: &str, refusal: &Refusal) -> Answer {
        let Refusal(code, number, words) = refusal;
        Answer::json(&json!({
            "type": format!("io.nats.jetstream.api.v1.{kind}_response"),
            "error": { "code": code, "err_code": number, "description": words },
        }))
    }
}

/// Who asks, and when.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    /// The wall clock of the server that answers.
    pub now: Wall,
    /// How late something goes after its end.
    pub late: Wall,
    /// The version of the leader.
    pub version: &'a str,
    /// The leader's name, where there is a cluster.
    pub leader: Option<&'a str>,
    /// Members of the cluster.
    pub members: usize,
}

impl Circumstances<'_> {
    fn obeys_ttl(&self) -> bool {
        !self.version.starts_with("2.10.")
    }
}

struct Consumer {
    stream: String,
    filter: Option<String>,
    /// It delivers no older revisions of a key.
    last_only: bool,
    /// Sequences still to be delivered.
    left: VecDeque<u64>,
    /// What was stored later has not been looked at.
    until: u64,
    delivered: u64,
}

/// All streams.
#[derive(Default)]
pub struct Jetstream {
    pub buckets: BTreeMap<String, Bucket>,
    consumers: BTreeMap<String, Consumer>,
}

impl Jetstream {
    /// What is done about a message that was published, what is answered, and
    /// what has changed. `None`: nobody ever answers.
    pub fn take(
        &mut self,
        publish: &Publish,
        at: Circumstances<'_>,
    ) -> (Option<Answer>, Vec<Change>) {
        if let Some(call) = publish.subject.strip_prefix("$JS.API.") {
            return self.call(call, publish, at);
        }
        let Some(bucket) = self.buckets.values_mut().find(|one| one.takes(&publish.subject)) else {
            return (Some(Answer::no_responders(&publish.subject, at.version)), Vec::new());
        };
        let stream = bucket.stream().to_owned();
        match bucket.publish(publish, at.now, at.late, at.leader.is_some()) {
            Ok(seq) => {
                let answer = Answer::json(&json!({ "stream": stream, "seq": seq }));
                (Some(answer), vec![Change::Stored(seq)])
            }
            Err(Refusal(code, number, words)) => {
                let error = json!({ "code": code, "err_code": number, "description": words });
                let answer = json!({ "error": error, "stream": stream, "seq": 0 });
                (Some(Answer::json(&answer)), Vec::new())
            }
        }
    }

    fn call(
        &mut self,
        call: &str,
        publish: &Publish,
        at: Circumstances<'_>,
    ) -> (Option<Answer>, Vec<Change>) {
        let words: Vec<&str> = call.split('.').collect();
        let body: Value = serde_json::from_slice(&publish.payload).unwrap_or(Value::Null);
        let mut changes = Vec::new();
        let answer = match words.as_slice() {
            ["STREAM", "INFO", stream] => match self.buckets.get(*stream) {
                Some(bucket) => described("stream_info", bucket, &body, at, None),
                None => Answer::refused("stream_info", &no_stream()),
            },
            ["STREAM", "CREATE", stream] => self.create(stream, &body, at),
            ["STREAM", "UPDATE", stream] => self.update(stream, &body, at, &mut changes),
            ["STREAM", "DELETE", stream] => match self.buckets.remove(*stream) {
                Some(mut bucket) => {
                    changes.extend(bucket.purge(None, None).into_iter().map(Change::Purged));
                    Answer::json(&json!({
                        "type": "io.nats.jetstream.api.v1.stream_delete_response",
                        "success": true,
                    }))
                }
                None => Answer::refused("stream_delete", &no_stream()),
            },
            ["STREAM", "PURGE", stream] => match self.buckets.get_mut(*stream) {
                Some(bucket) => {
                    let gone = bucket.purge(body["filter"].as_str(), body["seq"].as_u64());
                    let purged = gone.len();
                    changes.extend(gone.into_iter().map(Change::Purged));
                    Answer::json(&json!({
                        "type": "io.nats.jetstream.api.v1.stream_purge_response",
                        "success": true,
                        "purged": purged,
                    }))
                }
                None => Answer::refused("stream_purge", &no_stream()),
            },
            ["STREAM", "MSG", "GET", stream] => match self.buckets.get(*stream) {
                Some(bucket) => message(bucket, &body),
                None => Answer::refused("stream_msg_get", &no_stream()),
            },
            ["DIRECT", "GET", stream, subject @ ..] => {
                match self.buckets.get(*stream).filter(|bucket| bucket.allows_direct()) {
                    Some(bucket) => direct(bucket.last(&subject.join(".")), stream),
                    None => Answer::no_responders(&publish.subject, at.version),
                }
            }
            ["CONSUMER", "CREATE", stream, name, ..] => self.consume(stream, name, &body, at),
            ["CONSUMER", "DELETE", stream, name] => {
                let known = self.consumers.remove(*name).is_some();
                let answer = if known { Ok(json!({ "success": true })) } else { Err(()) };
                match (answer, self.buckets.contains_key(*stream)) {
                    (Ok(answer), _) => Answer::json(&answer),
                    (Err(()), true) => Answer::refused("consumer_delete", &no_consumer()),
                    (Err(()), false) => Answer::refused("consumer_delete", &no_stream()),
                }
            }
            ["CONSUMER", "MSG", "NEXT", _, name] => match self.pull(name, &body) {
                Some(answer) => answer,
                None => Answer::no_responders(&publish.subject, at.version),
            },
            _ => Answer::no_responders(&publish.subject, at.version),
        };
        (Some(answer), changes)
    }

    fn create(&mut self, stream: &str, wanted: &Value, at: Circumstances<'_>) -> Answer {
        const KIND: &str = "stream_create";
        let replicas = wanted["num_replicas"].as_u64().unwrap_or(1) as usize;
        if replicas > 1 && at.leader.is_none() {
            let refusal =
                Refusal(500, 10074, "replicas > 1 not supported in non-clustered mode".into());
            return Answer::refused(KIND, &refusal);
        }
        if replicas > at.members.max(1) {
            let refusal = Refusal(400, 10005, "no suitable peers for placement".into());
            return Answer::refused(KIND, &refusal);
        }
        let config = echoed(wanted, at);
        if let Some(bucket) = self.buckets.get(stream) {
            if same(&bucket.config, &config) {
                return described(KIND, bucket, &Value::Null, at, Some(false));
            }
            let words = "stream name already in use with a different configuration";
            return Answer::refused(KIND, &Refusal(400, 10058, words.into()));
        }
        let bucket = Bucket::new(config, at.now, at.obeys_ttl());
        let answer = described(KIND, &bucket, &Value::Null, at, Some(true));
        self.buckets.insert(stream.to_owned(), bucket);
        answer
    }

    fn update(
        &mut self,
        stream: &str,
        wanted: &Value,
        at: Circumstances<'_>,
        changes: &mut Vec<Change>,
    ) -> Answer {
        const KIND: &str = "stream_update";
        let Some(bucket) = self.buckets.get_mut(stream) else {
            return Answer::refused(KIND, &no_stream());
        };
        let config = echoed(wanted, at);
        if bucket.allows_ttl() && config["allow_msg_ttl"].as_bool() != Some(true) {
            let words = "message TTL status can not be disabled";
            return Answer::refused(KIND, &Refusal(500, 10052, words.into()));
        }
        bucket.config = config;
        let history = bucket.number("max_msgs_per_subject");
        let mut counts = BTreeMap::new();
        let mut stored: Vec<(String, u64)> =
            bucket.messages().map(|one| (one.subject.clone(), one.seq)).collect();
        stored.reverse();
        for (subject, seq) in stored {
            let count: &mut i64 = counts.entry(subject.clone()).or_default();
            *count += 1;
            if history > 0 && *count == history {
                let gone = bucket.purge(Some(&subject), Some(seq));
                changes.extend(gone.into_iter().map(Change::Purged));
            }
        }
        described(KIND, bucket, &Value::Null, at, None)
    }

    fn consume(&mut self, stream: &str, name: &str, body: &Value, at: Circumstances<'_>) -> Answer {
        const KIND: &str = "consumer_create";
        let Some(bucket) = self.buckets.get(stream) else {
            return Answer::refused(KIND, &no_stream());
        };
        let config = &body["config"];
        let filter = config["filter_subject"].as_str().map(str::to_owned);
        let first = config["opt_start_seq"].as_u64().unwrap_or(0);
        let last_only = config["deliver_policy"] == "last_per_subject";
        let wanted = |stored: &&Stored| {
            stored.seq >= first
                && filter.as_ref().is_none_or(|filter| matches(filter, &stored.subject))
                && (!last_only || bucket.last(&stored.subject).map(|s| s.seq) == Some(stored.seq))
        };
        let left: VecDeque<u64> =
            bucket.messages().filter(wanted).map(|stored| stored.seq).collect();
        // It counts from before the first that it delivers.
        let before = left.front().map_or(bucket.last_seq, |first| first - 1);
        let is_new = !at.version.starts_with("2.11.") && !at.version.starts_with("2.12.");
        let floor = if is_new { before } else { 0 };
        let answer = Answer::json(&json!({
            "type": format!("io.nats.jetstream.api.v1.{KIND}_response"),
            "stream_name": stream,
            "name": name,
            "created": format_time(at.now),
            "config": config,
            "delivered": { "consumer_seq": 0, "stream_seq": before },
            "ack_floor": { "consumer_seq": 0, "stream_seq": floor },
            "num_ack_pending": 0,
            "num_redelivered": 0,
            "num_waiting": 0,
            "num_pending": left.len(),
            "ts": format_time(at.now),
        }));
        let until = bucket.last_seq;
        let stream = stream.to_owned();
        let consumer = Consumer { stream, filter, last_only, left, until, delivered: 0 };
        self.consumers.insert(name.to_owned(), consumer);
        answer
    }

    fn pull(&mut self, name: &str, body: &Value) -> Option<Answer> {
        let consumer = self.consumers.get_mut(name)?;
        let bucket = self.buckets.get(&consumer.stream)?;
        // What was stored meanwhile.
        let newer = bucket.newer(consumer.until).filter(|stored| {
            let filter = consumer.filter.as_ref();
            filter.is_none_or(|filter| matches(filter, &stored.subject))
        });
        consumer.left.extend(newer.map(|stored| stored.seq));
        consumer.until = bucket.last_seq;
        let batch = body["batch"].as_u64().unwrap_or(1) as usize;
        let mut answer = Answer::status("404 No Messages");
        while answer.delivered.len() < batch && !consumer.left.is_empty() {
            let Some(seq) = consumer.left.pop_front() else { break };
            // What went meanwhile is not delivered.
            let Some(stored) = bucket.get(seq) else { continue };
            let last = bucket.last(&stored.subject).map_or(seq, |last| last.seq);
            if consumer.last_only && last != seq {
                continue;
            }
            consumer.delivered += 1;
            let reply = format!(
                "$JS.ACK.{}.{name}.1.{seq}.{}.{}.{}",
                consumer.stream,
                consumer.delivered,
                stored.at,
                consumer.left.len()
            );
            answer.delivered.push((stored.clone(), reply));
        }
        if answer.delivered.len() == batch {
            // A pull that got all it asked for ends without a word.
            answer.headers.clear();
        }
        debug_assert!(consumer.filter.as_ref().is_none_or(|filter| !filter.is_empty()));
        Some(answer)
    }
}

/// What the server adds to a configuration, and what it does not know.
fn echoed(wanted: &Value, at: Circumstances<'_>) -> Value {
    let mut config = wanted.clone();
    let defaults = json!({
        "retention": "limits", "max_consumers": -1, "max_msgs": -1, "max_bytes": -1,
        "max_age": 0, "max_msgs_per_subject": -1, "max_msg_size": -1, "discard": "old",
        "storage": "file", "num_replicas": 1, "duplicate_window": 120_000_000_000_u64,
        "compression": "none", "allow_direct": false, "mirror_direct": false, "sealed": false,
        "deny_delete": false, "deny_purge": false, "allow_rollup_hdrs": false,
        "consumer_limits": {},
    });
    if let (Some(config), Value::Object(defaults)) = (config.as_object_mut(), defaults) {
        for (name, value) in defaults {
            config.entry(name).or_insert(value);
        }
        if at.obeys_ttl() {
            let level = if at.version.starts_with("2.11.") {
                "1"
            } else if at.version.starts_with("2.12.") {
                "3"
            } else {
                "5"
            };
            let needs_level = config.get("allow_msg_ttl").and_then(Value::as_bool) == Some(true)
                || config.get("subject_delete_marker_ttl").and_then(Value::as_i64) > Some(0);
            let metadata = config.entry("metadata").or_insert_with(|| json!({}));
            metadata["_nats.ver"] = json!(at.version);
            metadata["_nats.level"] = json!(level);
            metadata["_nats.req.level"] = json!(if needs_level { "1" } else { "0" });
            config.entry("allow_msg_ttl").or_insert(json!(false));
        } else {
            config.remove("allow_msg_ttl");
            config.remove("subject_delete_marker_ttl");
        }
    }
    config
}

/// Whether two configurations are the same, but for what the server adds.
fn same(one: &Value, other: &Value) -> bool {
    let plain = |config: &Value| {
        let mut config = config.clone();
        config["metadata"] = Value::Null;
        config
    };
    plain(one) == plain(other)
}

fn described(
    kind: &str,
    bucket: &Bucket,
    body: &Value,
    at: Circumstances<'_>,
    did_create: Option<bool>,
) -> Answer {
    let mut config = bucket.config.clone();
    // The leader of now, which may be older than who made the bucket.
    if at.obeys_ttl() {
        config["metadata"]["_nats.ver"] = json!(at.version);
    } else if let Some(config) = config.as_object_mut() {
        config.remove("metadata");
        config.remove("allow_msg_ttl");
        config.remove("subject_delete_marker_ttl");
    }
    let mut reply = json!({
        "type": format!("io.nats.jetstream.api.v1.{kind}_response"),
        "total": 0,
        "offset": 0,
        "limit": 0,
        "config": config,
        "created": format_time(bucket.created),
        "state": bucket.state(),
        "ts": format_time(at.now),
    });
    if let Some(filter) = body["subjects_filter"].as_str() {
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for stored in bucket.messages().filter(|stored| matches(filter, &stored.subject)) {
            *counts.entry(&stored.subject).or_default() += 1;
        }
        (reply["total"], reply["limit"]) = (json!(counts.len()), json!(100_000));
        reply["state"]["subjects"] = json!(counts);
    }
    if did_create == Some(true) {
        reply["did_create"] = json!(true);
    }
    if let Some(leader) = at.leader {
        reply["cluster"] = json!({ "name": "simulated", "leader": leader });
    }
    Answer::json(&reply)
}

fn no_stream() -> Refusal {
    Refusal(404, 10059, "stream not found".into())
}

fn no_consumer() -> Refusal {
    Refusal(404, 10014, "consumer not found".into())
}

fn message(bucket: &Bucket, body: &Value) -> Answer {
    let found = match (body["last_by_subj"].as_str(), body["seq"].as_u64()) {
        (Some(subject), _) => bucket.last(subject),
        (None, Some(seq)) => bucket.get(seq),
        (None, None) => None,
    };
    let Some(stored) = found else {
        return Answer::refused("stream_msg_get", &Refusal(404, 10037, "no message found".into()));
    };
    let mut message = json!({
        "subject": stored.subject,
        "seq": stored.seq,
        "time": format_time(stored.at),
    });
    if !stored.headers.is_empty() {
        message["hdrs"] = json!(BASE64.encode(&stored.headers));
    }
    if !stored.payload.is_empty() {
        message["data"] = json!(BASE64.encode(&stored.payload));
    }
    Answer::json(&json!({
        "type": "io.nats.jetstream.api.v1.stream_msg_get_response",
        "message": message,
    }))
}

/// The answer of a direct get: the message with the server's own headers after
/// those of whoever stored it.
pub fn direct(found: Option<&Stored>, stream: &str) -> Answer {
    let Some(stored) = found else { return Answer::status("404 Message Not Found") };
    let mut headers = match stored.headers.len() {
        0 => b"NATS/1.0\r\n".to_vec(),
        length => stored.headers[..length - 2].to_vec(),
    };
    headers.extend_from_slice(
        format!(
            "Nats-Stream: {stream}\r\nNats-Subject: {}\r\nNats-Sequence: {}\r\nNats-Time-Stamp: {}\r\n\r\n",
            stored.subject,
            stored.seq,
            format_time(stored.at)
        )
        .as_bytes(),
    );
    Answer { headers, payload: stored.payload.clone(), delivered: Vec::new() }
}

/// RFC 3339 with as many digits as Go writes.
pub fn format_time(at: Wall) -> String {
    let Ok(time) = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at)) else {
        return "0001-01-01T00:00:00Z".into();
    };
    let (date, clock) = (time.date(), time.time());
    let mut text = format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second()
    );
    if clock.nanosecond() > 0 {
        text.push_str(format!(".{:09}", clock.nanosecond()).trim_end_matches('0'));
    }
    text.push('Z');
    text
}
