//! Replies of the JetStream API: what they tell of account, bucket and consumer,
//! and what a server's error codes mean to an operator. *Pure*.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use time::OffsetDateTime;

use crate::text::time::parse_time;

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
    /// The bucket has another last revision than expected.
    pub const WRONG_LAST: u32 = 10071;
    /// The same, from a cluster.
    pub const WRONG_LAST_CLUSTERED: u32 = 10164;
    /// Another write of the key is under way in the cluster: try again.
    pub const WRITE_UNDER_WAY: u32 = 10163;
    /// Bad configuration, or one that this server does not know.
    pub const BAD_CONFIG: u32 = 10052;
    /// Roll-ups are not permitted.
    pub const ROLLUP: u32 = 10111;
    /// The name is taken, by a stream with another configuration.
    pub const NAME_TAKEN: u32 = 10058;
    /// JetStream is off for the account.
    pub const NO_JETSTREAM_ACCOUNT: u32 = 10039;
    /// The cluster has no leader.
    pub const NO_LEADER: u32 = 10008;
    /// JetStream is off.
    pub const NO_JETSTREAM: u32 = 10076;
    /// The server does not take this TTL.
    pub const BAD_TTL: u32 = 10165;
    /// The stream has no per-message TTL.
    pub const NO_TTL: u32 = 10166;
    /// The bucket is full.
    pub const BUCKET_FULL: u32 = 10077;
    /// The account may store no more.
    pub const ACCOUNT_FULL: u32 = 10002;
    /// The server has no room on its disk.
    pub const NO_STORAGE: u32 = 10047;
    /// The server has no room in its memory.
    pub const NO_MEMORY: u32 = 10028;
    /// The server has not enough of something else.
    pub const NO_RESOURCES: u32 = 10023;
    /// The message is larger than the stream takes.
    pub const TOO_LARGE: u32 = 10054;
    /// More than one replica needs a cluster.
    pub const NO_CLUSTER: u32 = 10074;
    /// The cluster has not so many members with room.
    pub const TOO_FEW_MEMBERS: u32 = 10005;
    /// The stream is sealed.
    pub const SEALED: u32 = 10109;
    /// The stream does not permit to purge.
    pub const NO_PURGE: u32 = 10110;
    /// The stream does not permit to delete.
    pub const NO_DELETE: u32 = 10057;
    /// Another stream has the subjects.
    pub const SUBJECTS_TAKEN: u32 = 10065;

    /// Whether the disk under the server's store has no room.
    pub fn is_disk_full(&self) -> bool {
        self.err_code == ApiError::BUCKET_FULL && self.description.contains("no space left")
    }

    /// What an operator should read, where the server's words leave it open.
    fn words(&self) -> Option<&'static str> {
        Some(match self.err_code {
            ApiError::NO_STREAM => "the bucket does not exist",
            ApiError::NO_JETSTREAM => "JetStream is not enabled on the server",
            ApiError::NO_JETSTREAM_ACCOUNT => "JetStream is not enabled for this account",
            ApiError::BAD_TTL => "the server does not take this TTL",
            ApiError::NO_TTL => "the bucket has no per-message TTL (allow_msg_ttl is off)",
            ApiError::WRONG_LAST | ApiError::WRONG_LAST_CLUSTERED => {
                "the entry was changed meanwhile"
            }
            ApiError::WRITE_UNDER_WAY => {
                "the cluster is busy with another change of the entry: try again"
            }
            // Whatever storing failed with: a limit of the bucket, mostly.
            ApiError::BUCKET_FULL if self.is_disk_full() => "the server's disk is full",
            ApiError::BUCKET_FULL => "the bucket is full",
            ApiError::ACCOUNT_FULL => "the account's storage is used up",
            ApiError::NO_STORAGE => "the server is out of storage",
            ApiError::NO_MEMORY => "the server is out of memory",
            ApiError::NO_RESOURCES => "the server is out of resources",
            ApiError::TOO_LARGE => "the record is larger than the bucket permits",
            ApiError::NO_CLUSTER => "more than one replica needs a cluster",
            ApiError::SEALED => "the bucket is sealed",
            ApiError::NO_PURGE => "purging is not permitted on the bucket (deny_purge)",
            ApiError::NO_DELETE => "deleting is not permitted on the bucket (deny_delete)",
            ApiError::ROLLUP => {
                "roll-ups are not permitted on the bucket (allow_rollup_hdrs is off)"
            }
            ApiError::NAME_TAKEN => "the name is in use by a stream with another configuration",
            ApiError::SUBJECTS_TAKEN => "the bucket's subjects are in use by another stream",
            ApiError::NO_LEADER => "the cluster has no leader (no quorum)",
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

#[derive(Deserialize)]
struct ErrorReply {
    error: Option<ApiError>,
}

/// What the server has against a request, if it says so.
pub fn refusal_in(data: &[u8]) -> Option<ApiError> {
    serde_json::from_slice::<ErrorReply>(data).ok()?.error
}

pub(super) fn reply<T: DeserializeOwned>(data: &[u8]) -> Result<T, ReplyError> {
    let unreadable = |error: serde_json::Error| ReplyError::Unreadable(error.to_string());
    let refusal: ErrorReply = serde_json::from_slice(data).map_err(unreadable)?;
    match refusal.error {
        Some(error) => Err(ReplyError::Api(error)),
        None => serde_json::from_slice(data).map_err(unreadable),
    }
}

/// The revision that an acknowledged put has.
pub fn acknowledged(data: &[u8]) -> Result<u64, ReplyError> {
    // Read once and not as `reply` does, because there are many.
    #[derive(Deserialize)]
    struct Ack {
        error: Option<ApiError>,
        seq: Option<u64>,
    }
    let unreadable = |error: serde_json::Error| ReplyError::Unreadable(error.to_string());
    match serde_json::from_slice(data).map_err(unreadable)? {
        Ack { error: Some(error), .. } => Err(ReplyError::Api(error)),
        Ack { seq: Some(seq), .. } => Ok(seq),
        _ => Err(ReplyError::Unreadable("seq missing".into())),
    }
}

/// The `N` of `wrong last sequence: N`; 0 when there is none.
pub fn last_revision(error: &ApiError) -> Option<u64> {
    let (_, number) = error.description.rsplit_once(": ")?;
    number.trim().parse().ok()
}

/// Whether a reply of `STREAM.CREATE` is for a new stream: one with the same
/// configuration may have been there before.
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

/// How many revisions there are, out of a reply to [`count_revisions`](super::requests::count_revisions).
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
    /// How long ago the leader of a replicated stream last heard of so many members
    /// as it needs to lead.
    pub majority_heard: Duration,
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
    #[derive(Deserialize, Default)]
    struct Cluster {
        leader: Option<String>,
        replicas: Option<Vec<Replica>>,
    }
    #[derive(Deserialize)]
    struct Replica {
        /// Nanoseconds since it was last heard of.
        #[serde(default)]
        active: i64,
    }
    /// With itself, more than half.
    fn majority(replicas: Option<Vec<Replica>>) -> Duration {
        let silence = |one: &Replica| u64::try_from(one.active).unwrap_or(0);
        let mut silences: Vec<u64> = replicas.iter().flatten().map(silence).collect();
        silences.sort_unstable();
        let others = silences.len().div_ceil(2);
        Duration::from_nanos(others.checked_sub(1).map_or(0, |last| silences[last]))
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
    let cluster = info.cluster.unwrap_or_default();
    Ok(StreamInfo {
        is_mirror: info.mirror.is_some() || info.config.get("mirror").is_some_and(|m| !m.is_null()),
        config: info.config,
        state: info.state,
        ts: info.ts.and_then(|ts| parse_time(&ts)),
        leader: cluster.leader,
        majority_heard: majority(cluster.replicas),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn majority_heard(replicas: &str) -> Duration {
        let info = format!("{{\"config\":{{}},\"cluster\":{{\"leader\":\"n1\"{replicas}}}}}");
        read_stream_info(info.as_bytes()).expect("a stream").majority_heard
    }

    #[test]
    fn a_leader_needs_more_than_half_of_the_members_with_itself() {
        let second = Duration::from_secs(1);
        for (replicas, heard) in [
            ("", 0),
            (",\"replicas\":null", 0),
            (",\"replicas\":[{\"active\":-1}]", 0),
            (",\"replicas\":[{\"active\":7000000000}]", 7),
            (",\"replicas\":[{\"active\":7000000000},{\"active\":2000000000}]", 2),
            (
                ",\"replicas\":[{\"active\":7000000000},{},{\"active\":3000000000},{\"active\":9000000000}]",
                3,
            ),
        ] {
            assert_eq!(majority_heard(replicas), second * heard, "{replicas}");
        }
    }
}
