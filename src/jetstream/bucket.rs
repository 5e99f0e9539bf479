//! A bucket's name, and what follows from it: its stream, and the subjects
//! under which its keys are stored (NATS ADR-8). *Pure*.

use std::fmt;
use std::time::Duration;

use super::replies::ApiError;

/// A bucket, by its name: `A-Z a-z 0-9 - _`, at least one of them; and the
/// JetStream domain in which it is, if that is not the one of the server that
/// is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    name: String,
    domain: Option<String>,
}

impl Bucket {
    /// A bucket of that name, or `None` where a server would not take it.
    pub fn new(name: &str) -> Option<Bucket> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let valid = !name.is_empty() && name.len() <= 200 && name.bytes().all(fits);
        valid.then(|| Bucket { name: name.to_owned(), domain: None })
    }

    /// The bucket of that name in another domain.
    pub fn in_domain(self, domain: Option<String>) -> Bucket {
        Bucket { domain, ..self }
    }

    /// Whether a JetStream domain can have this name: it is one token of a
    /// subject.
    pub fn is_domain(name: &str) -> bool {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        !name.is_empty() && name.len() <= 200 && name.bytes().all(fits)
    }

    /// The bucket of docs/registry.md.
    pub fn service_registry() -> Bucket {
        Bucket { name: "service_registry".into(), domain: None }
    }

    /// The name as the operator wrote it.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The domain that was asked for.
    pub fn domain(&self) -> Option<&str> {
        self.domain.as_deref()
    }

    /// A subject of the JetStream API, such as `$JS.API.STREAM.INFO.KV_x` or
    /// `$JS.hub.API.STREAM.INFO.KV_x`.
    pub fn api(&self, call: &str) -> String {
        match &self.domain {
            Some(domain) => ["$JS.", domain, ".API.", call].concat(),
            None => ["$JS.API.", call].concat(),
        }
    }

    /// The subject to publish a value of `key` to. In another domain the API's
    /// prefix leads there (`generateJSMappingTable` in nats-server's
    /// `server/jetstream_api.go`). The key must have been validated.
    pub fn put_subject(&self, key: &str) -> String {
        match &self.domain {
            Some(domain) => ["$JS.", domain, ".API.", &self.subject(key)].concat(),
            None => self.subject(key),
        }
    }

    /// The JetStream stream that the bucket is.
    pub fn stream(&self) -> String {
        ["KV_", &self.name].concat()
    }

    /// The subject under which the values of a key are stored. The key must
    /// have been validated: see [`key_is_safe`].
    pub fn subject(&self, key: &str) -> String {
        ["$KV.", &self.name, ".", key].concat()
    }

    /// The key of a subject, if the subject belongs to this bucket.
    pub fn key<'a>(&self, subject: &'a str) -> Option<&'a str> {
        let rest = subject.strip_prefix("$KV.")?.strip_prefix(self.as_str())?;
        rest.strip_prefix('.')
    }

    /// The subject of all of its keys.
    pub fn all(&self) -> String {
        self.subject(">")
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Where a bucket keeps its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// On disk.
    File,
    /// In memory.
    Memory,
}

/// How long the server's own delete markers stay in a bucket that we make: a
/// watcher that was cut off for less learns of a crash from them.
pub const MARKER_TTL: Duration = Duration::from_secs(60);
/// Copies of a bucket that is made in a cluster: one server may be lost.
const REPLICAS_IN_CLUSTER: u8 = 3;

/// What a new bucket gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewBucket {
    /// Copies.
    pub replicas: u8,
    /// Where its messages are kept.
    pub storage: Storage,
    /// How long the server's own delete markers stay; `None` for no markers.
    pub marker_ttl: Option<Duration>,
}

impl NewBucket {
    /// What a bucket gets where nobody asked for anything else. `cluster` is
    /// the name of the connected server's cluster. The JetStream of another
    /// domain may be in a cluster all the same: there the larger number is
    /// tried first, and a refusal tells (see [`NewBucket::after_refusal`]).
    pub fn standard(bucket: &Bucket, cluster: Option<&str>) -> NewBucket {
        let is_clustered = cluster.is_some_and(|name| !name.is_empty());
        let many = is_clustered || bucket.domain().is_some();
        NewBucket {
            replicas: if many { REPLICAS_IN_CLUSTER } else { 1 },
            storage: Storage::File,
            marker_ttl: Some(MARKER_TTL),
        }
    }

    /// What to ask for next, where the server refused this number of replicas:
    /// one fewer where the cluster has not that many members with room (10005),
    /// one alone where there is no cluster (10074). `None` for other refusals,
    /// and where there is nothing left to try.
    pub fn after_refusal(&self, err_code: u32) -> Option<NewBucket> {
        let replicas = match err_code {
            ApiError::TOO_FEW_MEMBERS => self.replicas.saturating_sub(1),
            ApiError::NO_CLUSTER => 1,
            _ => return None,
        };
        ((1..self.replicas).contains(&replicas)).then_some(NewBucket { replicas, ..*self })
    }
}

/// Whether a key may be put into a subject or a filter: `[-/_=.a-zA-Z0-9]+`
/// (ADR-8), no dot at either end and no two in a row. A key `*` or `>` can be
/// *stored*, and as a filter it would take other keys with it.
pub fn key_is_safe(key: &str) -> bool {
    let mut before = b'.';
    for byte in key.bytes() {
        let fits = match byte {
            b'.' => before != b'.',
            b'-' | b'/' | b'_' | b'=' => true,
            _ => byte.is_ascii_alphanumeric(),
        };
        if !fits {
            return false;
        }
        before = byte;
    }
    before != b'.'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_stands_in_front_of_what_is_asked_and_written() {
        let here = Bucket::service_registry();
        assert_eq!(here.api("INFO"), "$JS.API.INFO");
        assert_eq!(here.put_subject("a"), "$KV.service_registry.a");
        let hub = here.in_domain(Some("hub".into()));
        assert_eq!(hub.api("INFO"), "$JS.hub.API.INFO");
        assert_eq!(hub.put_subject("a"), "$JS.hub.API.$KV.service_registry.a");
        assert_eq!(hub.subject("a"), "$KV.service_registry.a");
        assert!(Bucket::is_domain("hub-1") && !Bucket::is_domain("a.b") && !Bucket::is_domain("*"));
    }

    #[test]
    fn a_new_bucket_has_three_replicas_in_a_cluster_and_one_elsewhere() {
        let here = Bucket::service_registry();
        let replicas = |bucket: &Bucket, cluster| NewBucket::standard(bucket, cluster).replicas;
        assert_eq!(replicas(&here, None), 1);
        assert_eq!(replicas(&here, Some("")), 1);
        assert_eq!(replicas(&here, Some("east")), 3);
        assert_eq!(replicas(&here.clone().in_domain(Some("hub".into())), None), 3);
        assert_eq!(NewBucket::standard(&here, None).marker_ttl, Some(Duration::from_secs(60)));
    }

    #[test]
    fn a_cluster_that_is_too_small_is_asked_for_fewer_replicas() {
        let three = NewBucket::standard(&Bucket::service_registry(), Some("east"));
        let two = three.after_refusal(10005).expect("two");
        let one = two.after_refusal(10005).expect("one");
        assert_eq!((two.replicas, one.replicas), (2, 1));
        assert_eq!(one.after_refusal(10005), None);
        assert_eq!(three.after_refusal(10074), Some(one));
        assert_eq!(one.after_refusal(10074), None);
        assert_eq!(three.after_refusal(10058), None);
    }

    #[test]
    fn only_keys_that_are_one_subject_are_safe() {
        for key in ["a", "service-instances.web.a", "A/b_c=d.e-f", "-", "a.b"] {
            assert!(key_is_safe(key), "{key}");
        }
        for key in [
            "",
            ".",
            "..",
            ".a",
            "a.",
            "a..b",
            "*",
            ">",
            "a.*",
            "a.>",
            "service-instances__a__*",
            "a b",
            "a\tb",
            "a\r\nPUB x 0",
            "ä",
            "a\0",
            "a:b",
            "a\\b",
            "a$b",
            "a\u{202e}b",
        ] {
            assert!(!key_is_safe(key), "{key:?}");
        }
    }
}
