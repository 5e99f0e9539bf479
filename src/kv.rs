//! JetStream key-value as bytes. *Pure*: requests out, replies in, and what a
//! server's error codes mean to an operator.
//!
//! Subjects, headers and JSON are those of the JetStream API (NATS ADR-1,
//! ADR-8 and ADR-43); what servers really do with them is CONTRACT section 4.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use data_encoding::BASE64;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::instance::{key_is_safe, parse_time};

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

/// A request to the server: where to, with which headers, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The subject to publish to.
    pub subject: String,
    /// Headers, each once.
    pub headers: Vec<(&'static str, String)>,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Request {
    fn api(subject: String, body: &Value) -> Request {
        Request { subject, headers: Vec::new(), payload: body.to_string().into_bytes() }
    }

    fn empty(subject: String) -> Request {
        Request { subject, headers: Vec::new(), payload: Vec::new() }
    }
}

/// The name of a bucket: `A-Z a-z 0-9 - _`, at least one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket(String);

impl Bucket {
    /// A bucket of that name, or `None` where a server would not take it.
    pub fn new(name: &str) -> Option<Bucket> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let valid = !name.is_empty() && name.len() <= 200 && name.bytes().all(fits);
        valid.then(|| Bucket(name.to_owned()))
    }

    /// The bucket of CONTRACT section 1.
    pub fn service_registry() -> Bucket {
        Bucket("service_registry".into())
    }

    /// The name as the operator wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The JetStream stream behind the bucket.
    pub fn stream(&self) -> String {
        format!("KV_{}", self.0)
    }

    /// The subject under which the values of a key are stored. The key must
    /// have been validated: see `instance::key_is_safe`.
    pub fn subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.0)
    }

    /// The key of a subject, if the subject belongs to this bucket.
    pub fn key<'a>(&self, subject: &'a str) -> Option<&'a str> {
        let rest = subject.strip_prefix("$KV.")?.strip_prefix(self.as_str())?;
        rest.strip_prefix('.')
    }

    fn all(&self) -> String {
        self.subject(">")
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Asks for the stream's configuration, state and clock.
pub fn stream_info(bucket: &Bucket) -> Request {
    Request::empty(format!("$JS.API.STREAM.INFO.{}", bucket.stream()))
}

/// Asks for the account's limits and the API level.
pub fn account_info() -> Request {
    Request::empty("$JS.API.INFO".into())
}

/// Where a bucket keeps its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// On disk.
    File,
    /// In memory.
    Memory,
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
    Request::api(format!("$JS.API.STREAM.CREATE.{}", bucket.stream()), &config)
}

/// Sends a whole configuration back: an update that omits a field resets it.
pub fn update_stream(bucket: &Bucket, config: &Value) -> Request {
    Request::api(format!("$JS.API.STREAM.UPDATE.{}", bucket.stream()), config)
}

/// Removes the bucket with all that is in it.
pub fn delete_bucket(bucket: &Bucket) -> Request {
    Request::empty(format!("$JS.API.STREAM.DELETE.{}", bucket.stream()))
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
    Request { subject: bucket.subject(put.key), headers, payload: put.value }
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
    Request { subject: bucket.subject(key), headers, payload: Vec::new() }
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
    Request::empty(format!("$JS.API.DIRECT.GET.{stream}.{subject}"))
}

/// Reads the first message of the bucket at or after `sequence`.
pub fn get_next(bucket: &Bucket, sequence: u64) -> Request {
    get_message(bucket, &json!({ "seq": sequence, "next_by_subj": bucket.all() }))
}

/// Reads the newest message stored under a subject as the server gave it.
pub fn get_last_of_subject(bucket: &Bucket, subject: &str) -> Request {
    get_message(bucket, &json!({ "last_by_subj": subject }))
}

fn get_message(bucket: &Bucket, body: &Value) -> Request {
    Request::api(format!("$JS.API.STREAM.MSG.GET.{}", bucket.stream()), body)
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
    let body = format!("{{\"filter\":\"$KV.{bucket}.{key}\",\"seq\":{seq}}}");
    Some(Request {
        subject: format!("$JS.API.STREAM.PURGE.KV_{bucket}"),
        headers: Vec::new(),
        payload: body.into_bytes(),
    })
}

/// An ephemeral consumer over the newest revision of each key, in memory, that
/// the server forgets after `inactive`.
pub fn create_consumer(bucket: &Bucket, name: &str, inactive: Duration) -> Request {
    let (stream, all) = (bucket.stream(), bucket.all());
    let nanos = u64::try_from(inactive.as_nanos()).unwrap_or(u64::MAX);
    Request::api(
        format!("$JS.API.CONSUMER.CREATE.{stream}.{name}.{all}"),
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
    Request::api(
        format!("$JS.API.CONSUMER.CREATE.{stream}.{name}"),
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
    Request::api(
        format!("$JS.API.STREAM.INFO.{}", bucket.stream()),
        &json!({ "subjects_filter": bucket.subject(key) }),
    )
}

/// Asks how far a consumer has come.
pub fn consumer_info(bucket: &Bucket, name: &str) -> Request {
    let stream = bucket.stream();
    Request::empty(format!("$JS.API.CONSUMER.INFO.{stream}.{name}"))
}

/// Removes a consumer before the server forgets it by itself.
pub fn delete_consumer(bucket: &Bucket, name: &str) -> Request {
    let stream = bucket.stream();
    Request::empty(format!("$JS.API.CONSUMER.DELETE.{stream}.{name}"))
}

/// Asks a consumer for up to `batch` messages of `max_bytes` together, and not
/// to wait for more. A message that does not fit ends the pull with a 409.
pub fn pull(bucket: &Bucket, name: &str, batch: usize, max_bytes: Option<usize>) -> Request {
    let stream = bucket.stream();
    let mut body = json!({ "batch": batch, "no_wait": true });
    if let Some(max_bytes) = max_bytes {
        body["max_bytes"] = json!(max_bytes);
    }
    Request::api(format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}"), &body)
}

/// What the server has against a request.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ApiError {
    /// HTTP-like: 400, 404, 503.
    #[serde(default)]
    pub code: u16,
    /// The number that tells what it is.
    #[serde(default)]
    pub err_code: u32,
    /// In the server's words.
    #[serde(default)]
    pub description: String,
}

impl ApiError {
    /// No such stream.
    pub const NO_STREAM: u32 = 10059;
    /// No message found.
    pub const NO_MESSAGE: u32 = 10037;
    /// No such consumer.
    pub const NO_CONSUMER: u32 = 10014;
    /// The bucket has another last revision than expected.
    pub const WRONG_LAST: u32 = 10071;
    /// The same, from a cluster.
    pub const WRONG_LAST_CLUSTERED: u32 = 10164;
    /// The stream has no TTL per message.
    pub const TTL_DISABLED: u32 = 10166;
    /// Bad configuration, or one that this server does not know.
    pub const BAD_CONFIG: u32 = 10052;
    /// Roll-ups are not permitted.
    pub const ROLLUP: u32 = 10111;
    /// The name is taken, by a stream with another configuration.
    pub const NAME_TAKEN: u32 = 10058;
    /// JetStream is off for the account.
    pub const NO_JETSTREAM_ACCOUNT: u32 = 10039;
    /// JetStream is off.
    pub const NO_JETSTREAM: u32 = 10076;

    /// What an operator should read, where the server's words leave it open.
    fn words(&self) -> Option<&'static str> {
        Some(match self.err_code {
            10059 => "the bucket does not exist",
            10076 => "JetStream is not enabled on the server",
            10039 => "JetStream is not enabled for this account",
            10165 => "the server does not take this TTL",
            10166 => "the bucket has no per-message TTL (allow_msg_ttl is off)",
            10071 | 10164 => "the entry was changed meanwhile",
            10163 => "the cluster is busy with another change of the entry: try again",
            10077 => "the bucket is full",
            10002 => "the account's storage is used up",
            10047 => "the server is out of storage",
            10028 => "the server is out of memory",
            10023 => "the server is out of resources",
            10054 => "the record is larger than the bucket permits",
            10074 => "more than one replica needs a cluster",
            10109 => "the bucket is sealed",
            10110 => "purging is not permitted on the bucket (deny_purge)",
            10057 => "deleting is not permitted on the bucket (deny_delete)",
            10111 => "roll-ups are not permitted on the bucket (allow_rollup_hdrs is off)",
            10058 => "the name is in use by a stream with another configuration",
            10065 => "the bucket's subjects are in use by another stream",
            10008 => "the cluster has no leader (no quorum)",
            _ => return None,
        })
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.words() {
            Some(words) => write!(f, "{words} ({})", self.err_code),
            None => write!(f, "{} ({})", self.description, self.err_code),
        }
    }
}

impl std::error::Error for ApiError {}

/// Why a reply is of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyError {
    /// The server refuses, and says why.
    Api(ApiError),
    /// The reply is not what the API promises.
    Unreadable(String),
}

impl fmt::Display for ReplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplyError::Api(error) => error.fmt(f),
            ReplyError::Unreadable(why) => write!(f, "reply of the server cannot be read: {why}"),
        }
    }
}

impl std::error::Error for ReplyError {}

fn reply<T: DeserializeOwned>(data: &[u8]) -> Result<T, ReplyError> {
    #[derive(Deserialize)]
    struct Refusal {
        error: Option<ApiError>,
    }
    let unreadable = |error: serde_json::Error| ReplyError::Unreadable(error.to_string());
    let refusal: Refusal = serde_json::from_slice(data).map_err(unreadable)?;
    match refusal.error {
        Some(error) => Err(ReplyError::Api(error)),
        None => serde_json::from_slice(data).map_err(unreadable),
    }
}

/// The revision that an acknowledged put has.
pub fn acknowledged(data: &[u8]) -> Result<u64, ReplyError> {
    #[derive(Deserialize)]
    struct Ack {
        seq: u64,
    }
    reply::<Ack>(data).map(|ack| ack.seq)
}

/// The revision behind `wrong last sequence: N`; 0 when there is none.
pub fn last_revision(error: &ApiError) -> Option<u64> {
    let (_, number) = error.description.rsplit_once(": ")?;
    number.trim().parse().ok()
}

/// Whether the stream in a reply of `STREAM.CREATE` is new: a stream with the
/// same configuration may have been there.
pub fn did_create(data: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Created {
        #[serde(default)]
        did_create: bool,
    }
    reply::<Created>(data).is_ok_and(|reply| reply.did_create)
}

/// Whether a reply of `STREAM.DELETE` says that it is done.
pub fn deleted(data: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Deleted {
        success: bool,
    }
    reply::<Deleted>(data).is_ok_and(|reply| reply.success)
}

/// How many messages a purge removed.
pub fn purged(data: &[u8]) -> Result<u64, ReplyError> {
    // Read once and not as `reply` does, because there are many.
    #[derive(Deserialize)]
    struct Purged {
        error: Option<ApiError>,
        purged: Option<u64>,
    }
    let unreadable = |error: serde_json::Error| ReplyError::Unreadable(error.to_string());
    match serde_json::from_slice(data).map_err(unreadable)? {
        Purged { error: Some(error), .. } => Err(ReplyError::Api(error)),
        Purged { purged: Some(purged), .. } => Ok(purged),
        _ => Err(ReplyError::Unreadable("purged missing".into())),
    }
}

/// What an account may use of JetStream, and the API level of whoever answers
/// for JetStream: in a cluster its leader.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccountInfo {
    /// 0 before 2.11, which does not tell it.
    pub level: u32,
    /// Storage on disk.
    pub file: Vec<Used>,
    /// Storage in memory.
    pub memory: Vec<Used>,
}

/// What is used of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// So much.
    pub used: u64,
    /// Of so much; 0 for no limit.
    pub limit: u64,
}

impl Used {
    /// The used share, 0 to 1; `None` without a limit.
    pub fn share(&self) -> Option<f64> {
        (self.limit > 0).then(|| self.used as f64 / self.limit as f64)
    }
}

impl AccountInfo {
    /// Everything that has a limit, named.
    pub fn rooms(&self) -> Vec<(&'static str, Used)> {
        let file = self.file.iter().map(|used| ("file storage", *used));
        let memory = self.memory.iter().map(|used| ("memory storage", *used));
        file.chain(memory).filter(|(_, used)| used.limit > 0).collect()
    }
}

/// Reads a reply of `$JS.API.INFO`. Limits stand for the whole account, or for
/// each tier of replicas.
pub fn read_account_info(data: &[u8]) -> Result<AccountInfo, ReplyError> {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Limits {
        max_memory: i64,
        max_storage: i64,
    }
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Tier {
        memory: u64,
        storage: u64,
        limits: Limits,
    }
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Api {
        level: u32,
    }
    #[derive(Deserialize)]
    struct Info {
        #[serde(flatten)]
        whole: Tier,
        #[serde(default)]
        tiers: BTreeMap<String, Tier>,
        #[serde(default)]
        api: Api,
    }
    let info: Info = reply(data)?;
    let tiers =
        if info.tiers.is_empty() { vec![info.whole] } else { info.tiers.into_values().collect() };
    let used = |used: u64, limit: i64| Used { used, limit: u64::try_from(limit).unwrap_or(0) };
    Ok(AccountInfo {
        level: info.api.level,
        file: tiers.iter().map(|t| used(t.storage, t.limits.max_storage)).collect(),
        memory: tiers.iter().map(|t| used(t.memory, t.limits.max_memory)).collect(),
    })
}

/// How many revisions there are, out of a reply to [`count_revisions`].
pub fn revision_count(data: &[u8]) -> Result<u64, ReplyError> {
    #[derive(Deserialize)]
    struct State {
        #[serde(default)]
        subjects: Option<BTreeMap<String, u64>>,
    }
    #[derive(Deserialize)]
    struct Info {
        state: State,
    }
    let info = reply::<Info>(data)?;
    Ok(info.state.subjects.unwrap_or_default().values().sum())
}

/// A stream's configuration, state and clock.
#[derive(Debug, Clone)]
pub struct StreamInfo {
    /// The configuration as the server gave it, with all that this program
    /// does not know of.
    pub config: Value,
    /// Messages, bytes, sequences.
    pub state: StreamState,
    /// The server's clock when it answered.
    pub ts: Option<OffsetDateTime>,
    /// The leader's name, in a cluster.
    pub leader: Option<String>,
    /// The stream is a mirror of another.
    pub is_mirror: bool,
}

/// What a stream holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StreamState {
    /// Messages, markers included.
    pub messages: u64,
    /// Bytes stored.
    pub bytes: u64,
    /// First sequence.
    pub first_seq: u64,
    /// Last sequence.
    pub last_seq: u64,
    /// Subjects, that is keys.
    pub num_subjects: u64,
    /// Consumers at work.
    pub consumer_count: u64,
}

/// Reads a reply of `STREAM.INFO`, `CREATE` or `UPDATE`.
pub fn read_stream_info(data: &[u8]) -> Result<StreamInfo, ReplyError> {
    #[derive(Deserialize)]
    struct Cluster {
        leader: Option<String>,
    }
    #[derive(Deserialize)]
    struct Info {
        config: Value,
        #[serde(default)]
        state: StreamState,
        ts: Option<String>,
        cluster: Option<Cluster>,
        mirror: Option<Value>,
    }
    let info: Info = reply(data)?;
    if !info.config.is_object() {
        return Err(ReplyError::Unreadable("config is no object".into()));
    }
    Ok(StreamInfo {
        is_mirror: info.mirror.is_some() || info.config.get("mirror").is_some_and(|m| !m.is_null()),
        config: info.config,
        state: info.state,
        ts: info.ts.and_then(|ts| parse_time(&ts)),
        leader: info.cluster.and_then(|cluster| cluster.leader),
    })
}

impl StreamInfo {
    /// A switch of the configuration, `false` where the server lacks it.
    pub fn flag(&self, name: &str) -> bool {
        self.config.get(name).and_then(Value::as_bool) == Some(true)
    }

    /// A number of the configuration; 0 where it is missing.
    pub fn number(&self, name: &str) -> i64 {
        self.config.get(name).and_then(Value::as_i64).unwrap_or(0)
    }

    /// A word of the configuration.
    pub fn word(&self, name: &str) -> &str {
        self.config.get(name).and_then(Value::as_str).unwrap_or("")
    }

    /// Whether messages may carry a TTL of their own.
    pub fn allows_ttl(&self) -> bool {
        self.flag("allow_msg_ttl")
    }

    /// Revisions kept for each key; -1 for all.
    pub fn history(&self) -> i64 {
        self.number("max_msgs_per_subject")
    }

    /// The version of the stream's leader, from 2.11 on.
    pub fn leader_version(&self) -> Option<&str> {
        self.metadata("_nats.ver")
    }

    /// The JetStream API level of the stream's leader, from 2.11 on.
    pub fn leader_level(&self) -> Option<u32> {
        self.metadata("_nats.level")?.parse().ok()
    }

    fn metadata(&self, name: &str) -> Option<&str> {
        self.config.get("metadata")?.get(name)?.as_str()
    }
}

/// What a consumer's creation or information tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerInfo {
    /// Messages still to be delivered.
    pub pending: u64,
    /// Sequence of the last message that was sent to anybody.
    pub delivered: u64,
    /// The server's clock when it answered.
    pub ts: Option<OffsetDateTime>,
}

/// Reads a reply of `CONSUMER.CREATE` or `CONSUMER.INFO`.
pub fn read_consumer_info(data: &[u8]) -> Result<ConsumerInfo, ReplyError> {
    #[derive(Deserialize)]
    struct Delivered {
        stream_seq: u64,
    }
    #[derive(Deserialize)]
    struct Info {
        num_pending: u64,
        delivered: Delivered,
        ts: Option<String>,
    }
    let info: Info = reply(data)?;
    Ok(ConsumerInfo {
        pending: info.num_pending,
        delivered: info.delivered.stream_seq,
        ts: info.ts.and_then(|ts| parse_time(&ts)),
    })
}

/// What stands in the reply subject of a delivered message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The revision.
    pub sequence: u64,
    /// When the server stored it.
    pub stored: OffsetDateTime,
    /// How many messages the consumer still has.
    pub pending: u64,
}

/// Reads `$JS.ACK.<stream>.<consumer>.<n>.<sequence>.<n>.<nanoseconds>.<pending>`,
/// or the longer form with domain and account in front (ADR-15).
pub fn delivery(reply: &str) -> Option<Delivery> {
    let tokens: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
    let at = match tokens.len() {
        7 => 3,
        9.. => 5,
        _ => return None,
    };
    Some(Delivery {
        sequence: tokens.get(at)?.parse().ok()?,
        stored: from_nanos(tokens.get(at + 2)?.parse().ok()?)?,
        pending: tokens.get(at + 3)?.parse().ok()?,
    })
}

fn from_nanos(nanos: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanos)).ok()
}

/// Revision and store time out of the headers of a direct get. `None` where
/// they are missing, or where the publisher set headers of the same names: the
/// server appends its own, and which is the last cannot be told any more.
pub fn direct_origin<'a>(
    values: impl Fn(&'static str) -> Vec<&'a str>,
) -> Option<(u64, OffsetDateTime)> {
    let only = |name| match values(name).as_slice() {
        [value] => Some(value.trim()),
        _ => None,
    };
    let revision = only("Nats-Sequence")?.parse().ok()?;
    Some((revision, parse_time(only("Nats-Time-Stamp")?)?))
}

/// A stored message as `STREAM.MSG.GET` gives it: safe to read whatever bytes
/// somebody stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMessage {
    /// The subject; bytes that are not UTF-8 are shown as U+FFFD.
    pub subject: String,
    /// The revision.
    pub sequence: u64,
    /// When the server stored it.
    pub stored: OffsetDateTime,
    /// The header block, raw.
    pub headers: Vec<u8>,
    /// The value.
    pub data: Vec<u8>,
}

/// Reads a reply of `STREAM.MSG.GET`.
pub fn read_message(data: &[u8]) -> Result<StoredMessage, ReplyError> {
    #[derive(Deserialize)]
    struct Message {
        subject: String,
        seq: u64,
        time: String,
        #[serde(default)]
        hdrs: String,
        #[serde(default)]
        data: String,
    }
    #[derive(Deserialize)]
    struct Reply {
        message: Message,
    }
    let message = reply::<Reply>(data)?.message;
    let unreadable = |what: &str| ReplyError::Unreadable(format!("{what} of a message"));
    Ok(StoredMessage {
        stored: parse_time(&message.time).ok_or_else(|| unreadable("time"))?,
        headers: BASE64.decode(message.hdrs.as_bytes()).map_err(|_| unreadable("headers"))?,
        data: BASE64.decode(message.data.as_bytes()).map_err(|_| unreadable("data"))?,
        subject: message.subject,
        sequence: message.seq,
    })
}

impl StoredMessage {
    /// Why the client library cannot decode this message, if it cannot: such
    /// a record ends every connection that it is delivered to.
    pub fn poison(&self) -> Option<&'static str> {
        if self.subject.contains('\u{fffd}') {
            return Some("its subject is not UTF-8");
        }
        if self.subject.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Some("its subject holds white space");
        }
        let Ok(text) = std::str::from_utf8(&self.headers) else {
            return Some("its headers are not UTF-8");
        };
        let lines = text.split("\r\n").skip(1);
        if lines.filter(|line| !line.is_empty()).any(|line| !line.contains(':')) {
            return Some("a line of its headers has no colon");
        }
        None
    }

    /// The first value of a header, as the server itself takes it.
    pub fn header(&self, name: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.headers);
        let mut values = text.split("\r\n").skip(1).filter_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key == name).then(|| value.trim().to_owned())
        });
        values.next()
    }
}
