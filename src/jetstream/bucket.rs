//! A bucket's name, and what follows from it: its stream, and the subjects
//! under which its keys are stored (NATS ADR-8). *Pure*.

use std::fmt;

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
    /// have been validated: see [`key_is_safe`].
    pub fn subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.0)
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
        f.write_str(&self.0)
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

/// Whether a key may be put into a subject or a filter: `[-/_=.a-zA-Z0-9]+`
/// (ADR-8), no dot at either end and no two in a row. A key `*` or `>` can be
/// *stored*, and as a filter it would take other keys with it.
pub fn key_is_safe(key: &str) -> bool {
    key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'/' | b'_' | b'=' | b'.'))
        && key.split('.').all(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

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
