//! Is this server, and is this bucket, fit for a registry? *Pure*: the verdict
//! that `run` refuses by and `check` reports, in the same words and with the
//! same next step.

use std::fmt;
use std::time::Duration;

use crate::error::{Failure, Kind};
use crate::jetstream::bucket::Bucket;
use crate::jetstream::replies::StreamInfo;
use crate::text::duration::as_setting;

/// A server's version: `2.11.4`, `2.12.0-RC.3`, `v2.14.6-vendor.1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerVersion {
    /// Major, minor and patch.
    pub numbers: (u32, u32, u32),
    /// Not a pre-release: sorts after those.
    pub released: bool,
}

impl ServerVersion {
    /// The first server that expires single messages.
    pub const WITH_TTL: (u32, u32) = (2, 11);

    /// Reads a version, or `None` where it does not begin with `N.N.N`.
    pub fn parse(text: &str) -> Option<ServerVersion> {
        let text = text.trim().trim_start_matches('v');
        let (numbers, rest) = match text.find(['-', '+']) {
            Some(at) => text.split_at(at),
            None => (text, ""),
        };
        let mut parts = numbers.split('.').map(|part| part.parse::<u32>().ok());
        let numbers = (parts.next()??, parts.next()??, parts.next()??);
        let lower = rest.to_ascii_lowercase();
        let pre = ["-rc", "-beta", "-alpha", "-preview", "-dev", "-pre"];
        Some(ServerVersion { numbers, released: !pre.iter().any(|word| lower.starts_with(word)) })
    }

    /// Whether the server knows `Nats-TTL`.
    pub fn has_ttl(&self) -> bool {
        (self.numbers.0, self.numbers.1) >= Self::WITH_TTL
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor, patch) = self.numbers;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// A version to upgrade to, in words; `server_bugs` knows none of it.
pub const WITHOUT_BUGS: &str = "2.15.1 has no known TTL bugs";

/// Why nothing may be written here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// The server, or the leader of the bucket, does not know `Nats-TTL`.
    TooOld {
        /// What it says its version is.
        version: String,
    },
    /// The bucket does not exist.
    NoBucket(Bucket),
    /// The bucket has no TTL per message.
    NoFlag(Bucket),
    /// Something of that name exists, and is no bucket to write to.
    NotABucket(Bucket, &'static str),
}

impl Unfit {
    /// The command or the setting that mends it.
    pub fn hint(&self) -> String {
        match self {
            Unfit::TooOld { .. } => {
                format!("upgrade nats-server to 2.11.2 or later; {WITHOUT_BUGS}")
            }
            // Where the flag is off this switches it on, and touches nothing
            // else.
            Unfit::NoBucket(_) | Unfit::NoFlag(_) => "aegis-agent init".into(),
            Unfit::NotABucket(..) => {
                "give another --bucket, or repair the stream with the nats CLI".into()
            }
        }
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfit::TooOld { version } => write!(
                f,
                "server {version} is too old: before 2.11 a TTL is stored and never obeyed, \
                 so entries would live for ever"
            ),
            Unfit::NoBucket(bucket) => write!(f, "bucket {bucket} does not exist"),
            Unfit::NoFlag(bucket) => {
                write!(f, "bucket {bucket} has no per-message TTL (allow_msg_ttl is off)")
            }
            Unfit::NotABucket(bucket, why) => write!(f, "bucket {bucket} cannot be used: {why}"),
        }
    }
}

impl std::error::Error for Unfit {}

impl From<Unfit> for Failure {
    fn from(unfit: Unfit) -> Failure {
        Failure::new(Kind::Unavailable, unfit.to_string()).with_hint(unfit.hint())
    }
}

/// Whether a server without the bucket may be asked to make it.
pub fn judge_server(version: &str) -> Result<(), Unfit> {
    match ServerVersion::parse(version) {
        // A string that says nothing is no reason to refuse: the bucket's
        // echo tells whether the flag was taken.
        None => Ok(()),
        Some(parsed) if parsed.has_ttl() => Ok(()),
        Some(_) => Err(Unfit::TooOld { version: version.to_owned() }),
    }
}

/// Whether the bucket's leader knows `Nats-TTL`. It says so in the stream's
/// metadata from 2.11 on; `connected` is the version of the server that answers.
pub fn judge_leader(info: &StreamInfo, connected: &str) -> Result<(), Unfit> {
    match info.leader_version() {
        Some(version) => judge_server(version),
        None => judge_server(connected).and_then(|()| {
            // A newer member answers for an older leader.
            Err(Unfit::TooOld {
                version: match &info.leader {
                    Some(leader) => format!("{leader} (leader of the bucket)"),
                    None => connected.to_owned(),
                },
            })
        }),
    }
}

/// Whether what is stored under the bucket's name is a bucket, and takes writes.
pub fn judge_kind(bucket: &Bucket, info: &StreamInfo) -> Result<(), Unfit> {
    if info.is_mirror {
        return Err(Unfit::NotABucket(bucket.clone(), "it is a mirror of another stream"));
    }
    if info.flag("sealed") {
        return Err(Unfit::NotABucket(bucket.clone(), "it is sealed"));
    }
    if info.config.get("subject_transform").is_some_and(|transform| !transform.is_null()) {
        return Err(Unfit::NotABucket(
            bucket.clone(),
            "it stores what is written under other subjects (subject_transform)",
        ));
    }
    let subjects = info.config.get("subjects").and_then(|s| s.as_array());
    let ours = bucket.subject(">");
    if !subjects.is_some_and(|list| list.iter().any(|s| s.as_str() == Some(ours.as_str()))) {
        return Err(Unfit::NotABucket(
            bucket.clone(),
            "the stream of that name is no key-value bucket",
        ));
    }
    Ok(())
}

/// Whether what is registered can be read from what is stored under the bucket's
/// name: a mirror or a sealed bucket takes no writes, and is read like any other.
pub fn judge_readable(bucket: &Bucket, info: &StreamInfo) -> Result<(), Unfit> {
    let sources = info.config.get("sources").and_then(|sources| sources.as_array());
    let is_copy = info.is_mirror || sources.is_some_and(|sources| !sources.is_empty());
    if is_copy || info.flag("sealed") { Ok(()) } else { judge_kind(bucket, info) }
}

/// Whether messages of the bucket may carry a TTL of their own.
pub fn judge_flag(bucket: &Bucket, info: &StreamInfo) -> Result<(), Unfit> {
    if info.allows_ttl() { Ok(()) } else { Err(Unfit::NoFlag(bucket.clone())) }
}

/// Whether heartbeats may be written to this bucket: all of the above.
pub fn judge_bucket(bucket: &Bucket, info: &StreamInfo, connected: &str) -> Result<(), Unfit> {
    judge_leader(info, connected)?;
    judge_kind(bucket, info)?;
    judge_flag(bucket, info)
}

/// A setting of the bucket that defeats a TTL without refusing it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defeat {
    /// What happens to entries.
    pub message: String,
    /// The command that mends it.
    pub hint: String,
}

/// What the bucket does to entries with this TTL instead of what was asked:
/// `max_age` ends them first, and where history is not 1 a delete-marker TTL
/// stretches shorter ones (the server rewrites the header, docs/nats.md).
pub fn ttl_defeats(info: &StreamInfo, ttl: Duration) -> Vec<Defeat> {
    let nanos = |name| Duration::from_nanos(u64::try_from(info.number(name)).unwrap_or(0));
    let (age, marker) = (nanos("max_age"), nanos("subject_delete_marker_ttl"));
    let mut defeats = Vec::new();
    if !age.is_zero() && age <= ttl {
        defeats.push(Defeat { message: cut_short(age, ttl), hint: DROP_MAX_AGE.to_owned() });
    }
    if info.history() != 1 && marker > ttl {
        defeats.push(Defeat {
            message: stretched(marker, &format!("a TTL of {}", as_setting(ttl))),
            hint: LOWER_HISTORY.to_owned(),
        });
    }
    if info.history() != 1 && !info.flag("allow_rollup_hdrs") {
        defeats.push(Defeat { message: NO_ROLLUPS.into(), hint: LOWER_HISTORY.to_owned() });
    }
    defeats
}

/// What happens where agents may not remove what lies under their entry.
pub const NO_ROLLUPS: &str = "roll-ups are not allowed (allow_rollup_hdrs) and history is not 1: an \
    older entry without TTL comes back when the one over it expires";

/// What a `max_age` does to a TTL that is not shorter.
pub fn cut_short(age: Duration, ttl: Duration) -> String {
    format!(
        "max_age {} is not longer than the TTL of {}: it ends entries first, alive or not",
        as_setting(age),
        as_setting(ttl)
    )
}

/// What a delete-marker TTL does to `whose`, such as `a TTL of 30s`.
pub fn stretched(marker: Duration, whose: &str) -> String {
    format!(
        "delete markers of {} stretch {whose} to that, because history is not 1: the dead stay \
         listed",
        as_setting(marker)
    )
}

/// The command that leaves one revision a key, and drops the older ones.
pub const LOWER_HISTORY: &str = "aegis-agent init --history 1";
/// The command that leaves the end of entries to their own TTL.
pub const DROP_MAX_AGE: &str = "aegis-agent init --max-age none";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_with_and_without_suffix() {
        for (text, numbers, released) in [
            ("2.10.25", (2, 10, 25), true),
            ("v2.11.0", (2, 11, 0), true),
            ("2.12.0-RC.3", (2, 12, 0), false),
            ("2.14.0-preview.1", (2, 14, 0), false),
            ("2.11.4-vendor.1", (2, 11, 4), true),
            ("2.11.4+build", (2, 11, 4), true),
        ] {
            let version = ServerVersion::parse(text).unwrap();
            assert_eq!((version.numbers, version.released), (numbers, released), "{text}");
        }
        for text in ["", "2", "2.11", "latest", "2.x.1", "99999999999.1.1"] {
            assert_eq!(ServerVersion::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_release_candidate_sorts_before_its_release() {
        let candidate = ServerVersion::parse("2.12.0-RC.3").unwrap();
        assert!(candidate < ServerVersion::parse("2.12.0").unwrap());
        assert!(candidate > ServerVersion::parse("2.11.99").unwrap());
    }
}
