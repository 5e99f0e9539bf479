//! Requests to JetStream and its key-value store, as bytes. *Pure*: what comes
//! back is read by `replies`, which knows the error codes, and by `stored`.
//!
//! Subjects, headers and JSON are those of the JetStream API (NATS ADR-1,
//! ADR-8 and ADR-43); what servers really do with them is in docs/nats.md.

use std::time::Duration;

use serde_json::{Value, json};

use super::bucket::{Bucket, Storage, key_is_safe};
use crate::nats::Request;

/// Header: how long the server keeps this message (2.11+).
pub const TTL_HEADER: &str = "Nats-TTL";
/// Header: `DEL` or `PURGE` makes a message a delete marker.
pub const OPERATION_HEADER: &str = "KV-Operation";
/// Header of the server's own delete markers.
pub const MARKER_REASON_HEADER: &str = "Nats-Marker-Reason";
const ROLLUP_HEADER: &str = "Nats-Rollup";
const EXPECTED_HEADER: &str = "Nats-Expected-Last-Subject-Sequence";

/// How long the purge marker of a deregistration stays for watchers to see.
const MARKER_TTL: &str = "60s";

fn api(bucket: &Bucket, call: &str, body: &Value) -> Request {
    Request::new(bucket.api(call), body.to_string())
}

fn ask(bucket: &Bucket, call: &str) -> Request {
    Request::new(bucket.api(call), "")
}

/// Asks for the stream's configuration, state and clock.
pub fn stream_info(bucket: &Bucket) -> Request {
    ask(bucket, &format!("STREAM.INFO.{}", bucket.stream()))
}

/// Asks for the account's limits and the API level.
pub fn account_info(bucket: &Bucket) -> Request {
    ask(bucket, "INFO")
}

/// Makes a bucket fit for a registry: one revision a key, TTL per message,
/// roll-ups, direct gets.
pub fn create_bucket(
    bucket: &Bucket,
    replicas: u8,
    storage: Storage,
    marker_ttl: Option<Duration>,
) -> Request {
    let mut config = json!({
        "name": bucket.stream(),
        "subjects": [bucket.all()],
        "retention": "limits",
        "max_consumers": -1,
        "max_msgs_per_subject": 1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msg_size": -1,
        "storage": match storage { Storage::File => "file", Storage::Memory => "memory" },
        "discard": "new",
        "num_replicas": replicas,
        "duplicate_window": 120_000_000_000_u64,
        "deny_delete": true,
        "allow_rollup_hdrs": true,
        "allow_direct": true,
        "allow_msg_ttl": true,
    });
    if let Some(ttl) = marker_ttl {
        let nanos = u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX);
        config["subject_delete_marker_ttl"] = json!(nanos);
    }
    api(bucket, &format!("STREAM.CREATE.{}", bucket.stream()), &config)
}

/// Makes a bucket again that was deleted, as its configuration was. What the
/// server has put into the metadata itself (`_nats.*`) it puts there again.
pub fn create_again(bucket: &Bucket, config: &Value) -> Request {
    let mut config = config.clone();
    let metadata = config.get_mut("metadata").and_then(Value::as_object_mut);
    if let Some(metadata) = metadata {
        metadata.retain(|name, _| !name.starts_with("_nats."));
    }
    api(bucket, &format!("STREAM.CREATE.{}", bucket.stream()), &config)
}

/// Sends a whole configuration back: an update that omits a field resets it.
pub fn update_stream(bucket: &Bucket, config: &Value) -> Request {
    api(bucket, &format!("STREAM.UPDATE.{}", bucket.stream()), config)
}

/// Removes the bucket with all that is in it.
pub fn delete_bucket(bucket: &Bucket) -> Request {
    ask(bucket, &format!("STREAM.DELETE.{}", bucket.stream()))
}

/// One heartbeat.
#[derive(Debug, Clone)]
pub struct Put<'a> {
    /// The key, validated.
    pub key: &'a str,
    /// The record's JSON.
    pub value: Vec<u8>,
    /// Whole seconds.
    pub ttl: Duration,
    /// The revision that this one follows; 0 for none. `None` puts blindly.
    pub expected: Option<u64>,
    /// Remove the revisions under this one. Only on the first put of a
    /// session in a bucket with history: on 2.11.10 to 2.15.0 each one leaks
    /// (nats-server #8594).
    pub rollup: bool,
}

/// Stores a value that expires.
pub fn put(bucket: &Bucket, put: Put<'_>) -> Request {
    let mut headers = vec![(TTL_HEADER, format!("{}s", put.ttl.as_secs()))];
    if let Some(revision) = put.expected {
        headers.push((EXPECTED_HEADER, revision.to_string()));
    }
    if put.rollup {
        headers.push((ROLLUP_HEADER, "sub".into()));
    }
    Request { subject: bucket.put_subject(put.key), headers, payload: put.value }
}

/// Puts a delete marker, which itself expires, over exactly `revision`. With
/// `rollup` nothing remains under it; where roll-ups are not allowed the
/// marker is a plain `DEL`.
pub fn deregister(bucket: &Bucket, key: &str, revision: u64, rollup: bool) -> Request {
    let mut headers =
        vec![(TTL_HEADER, MARKER_TTL.into()), (EXPECTED_HEADER, revision.to_string())];
    if rollup {
        headers.push((OPERATION_HEADER, "PURGE".into()));
        headers.push((ROLLUP_HEADER, "sub".into()));
    } else {
        headers.push((OPERATION_HEADER, "DEL".into()));
    }
    Request { subject: bucket.put_subject(key), headers, payload: Vec::new() }
}

/// Reads the newest value of one key with all its headers, by the API that
/// needs no direct access and answers in JSON.
pub fn get_last(bucket: &Bucket, key: &str) -> Request {
    get_message(bucket, &json!({ "last_by_subj": bucket.subject(key) }))
}

/// Reads the newest value of one key from whichever replica is nearest. The
/// permission for it names the key.
pub fn direct_get(bucket: &Bucket, key: &str) -> Request {
    let (stream, subject) = (bucket.stream(), bucket.subject(key));
    ask(bucket, &["DIRECT.GET.", &stream, ".", &subject].concat())
}

fn get_message(bucket: &Bucket, body: &Value) -> Request {
    api(bucket, &format!("STREAM.MSG.GET.{}", bucket.stream()), body)
}

/// Removes the revisions of exactly `key` up to and including `revision`: a
/// compare-and-set by nature, since a refreshed entry has a higher one.
///
/// `None` for what must not be sent: a key that is a wildcard takes others with
/// it, and `seq` 1 purges everything on 2.12.9, 2.14.1 and before (nats-server
/// #8241).
pub fn purge(bucket: &Bucket, key: &str, revision: u64) -> Option<Request> {
    let seq = revision.checked_add(1).filter(|seq| *seq > 1 && key_is_safe(key))?;
    // By hand, because there are many: nothing in a safe key needs escaping.
    let name = bucket.as_str();
    let (filter, seq) = ([r#"{"filter":"$KV."#, name, ".", key].concat(), seq.to_string());
    let body = [&filter, r#"","seq":"#, &seq, "}"].concat();
    Some(Request::new(bucket.api(&["STREAM.PURGE.KV_", name].concat()), body))
}

/// An ephemeral consumer over the newest revision of each key, in memory, that
/// the server forgets after `inactive`.
pub fn create_consumer(bucket: &Bucket, name: &str, inactive: Duration) -> Request {
    let (stream, all) = (bucket.stream(), bucket.all());
    let nanos = u64::try_from(inactive.as_nanos()).unwrap_or(u64::MAX);
    api(
        bucket,
        &format!("CONSUMER.CREATE.{stream}.{name}.{all}"),
        &json!({
            "stream_name": stream,
            "config": {
                "name": name,
                "deliver_policy": "last_per_subject",
                "ack_policy": "none",
                "filter_subject": all,
                "inactive_threshold": nanos,
                "mem_storage": true,
                "num_replicas": 1,
                "max_waiting": 8,
            },
        }),
    )
}

/// An ephemeral consumer over all that is stored from sequence `first` on.
///
/// Without a filter and without `last_per_subject`: while the server has to
/// maintain such a list, each purge of several revisions makes it count all of
/// the bucket's keys anew (`storeUpdates` in nats-server's `server/stream.go`).
pub fn create_reader(bucket: &Bucket, name: &str, first: u64, inactive: Duration) -> Request {
    let stream = bucket.stream();
    let nanos = u64::try_from(inactive.as_nanos()).unwrap_or(u64::MAX);
    api(
        bucket,
        &format!("CONSUMER.CREATE.{stream}.{name}"),
        &json!({
            "stream_name": stream,
            "config": {
                "name": name,
                "deliver_policy": "by_start_sequence",
                "opt_start_seq": first.max(1),
                "ack_policy": "none",
                "inactive_threshold": nanos,
                "mem_storage": true,
                "num_replicas": 1,
                "max_waiting": 8,
            },
        }),
    )
}

/// Asks how many revisions of exactly `key` there are, by the one request that
/// whoever may purge is permitted anyway.
pub fn count_revisions(bucket: &Bucket, key: &str) -> Request {
    api(
        bucket,
        &format!("STREAM.INFO.{}", bucket.stream()),
        &json!({ "subjects_filter": bucket.subject(key) }),
    )
}

/// Asks a consumer for what it has and for what comes within `expires`, up to
/// `batch` messages of `max_bytes` together, with a sign of life (status 100)
/// every `heartbeat` in which nothing comes.
pub fn waiting_pull(
    bucket: &Bucket,
    name: &str,
    batch: usize,
    max_bytes: Option<usize>,
    expires: Duration,
    heartbeat: Duration,
) -> Request {
    let stream = bucket.stream();
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let mut body = json!({
        "batch": batch, "expires": nanos(expires), "idle_heartbeat": nanos(heartbeat),
    });
    if let Some(max_bytes) = max_bytes {
        body["max_bytes"] = json!(max_bytes);
    }
    api(bucket, &format!("CONSUMER.MSG.NEXT.{stream}.{name}"), &body)
}

/// Removes a consumer before the server forgets it by itself.
pub fn delete_consumer(bucket: &Bucket, name: &str) -> Request {
    let stream = bucket.stream();
    ask(bucket, &format!("CONSUMER.DELETE.{stream}.{name}"))
}

/// Asks a consumer for up to `batch` messages of `max_bytes` together, and not
/// to wait for more. A message that does not fit ends the pull with a 409.
pub fn pull(bucket: &Bucket, name: &str, batch: usize, max_bytes: Option<usize>) -> Request {
    let stream = bucket.stream();
    let mut body = json!({ "batch": batch, "no_wait": true });
    if let Some(max_bytes) = max_bytes {
        body["max_bytes"] = json!(max_bytes);
    }
    api(bucket, &format!("CONSUMER.MSG.NEXT.{stream}.{name}"), &body)
}
