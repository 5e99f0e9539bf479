//! Why an exchange with the registry failed, and what an operator does about
//! it. *Pure*.

use std::error::Error as StdError;
use std::fmt;

use crate::error::{Failure, Kind};
use crate::jetstream::fitness::Unfit;
use crate::jetstream::replies::{ApiError, ReplyError};
use crate::nats::{ConnectError, Request, RequestError};
use crate::text::printable::clipped;

/// What is being done while a bucket is made.
pub const CREATING: &str = "creating the bucket";

/// What to do about a server that has no JetStream itself.
pub const WITHOUT_JETSTREAM: &str = "enable JetStream there; if it is a leaf node, and the bucket \
                                     is in its hub, give the hub's domain with --js-domain \
                                     (AEGIS_JS_DOMAIN)";

/// What is being done while a heartbeat is written.
pub const WRITING: &str = "writing the entry";
/// What is being done while the own entry is taken out.
pub const DEREGISTERING: &str = "deregistering";

/// Why an exchange with the registry failed.
#[derive(Debug)]
pub enum RegistryError {
    /// No session came about.
    Connect(ConnectError),
    /// The session failed during what is named.
    Request(&'static str, RequestError),
    /// The server refused what is named.
    Reply(&'static str, ReplyError),
    /// The record is too large to be stored.
    TooLarge(TooLarge),
    /// Nothing may be written here.
    Unfit(Unfit),
    /// The server does not say what time it is.
    NoClock,
}

/// A record that is too large.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooLarge {
    /// So many bytes it has, with its headers, which servers count.
    pub size: usize,
    /// Who takes how many, and which setting says so.
    pub limit: String,
    /// The largest piece of metadata, and its size.
    pub largest: Option<(String, usize)>,
}

impl TooLarge {
    /// The error, in these words where the record's size is why.
    pub fn named(error: RegistryError, put: &Request, largest: Option<u64>) -> RegistryError {
        match TooLarge::of(&error, put, largest) {
            Some(large) => RegistryError::TooLarge(large),
            None => error,
        }
    }

    /// What is wrong with a record, if its size is why it was not stored. `largest`
    /// is the bucket's `max_msg_size`, where that is known.
    fn of(error: &RegistryError, put: &Request, largest: Option<u64>) -> Option<TooLarge> {
        let limit = match error {
            RegistryError::Request(_, RequestError::TooLarge { limit, .. }) => {
                format!("the server takes {limit} bytes (max_payload)")
            }
            RegistryError::Reply(_, ReplyError::Api(api))
                if api.err_code == ApiError::TOO_LARGE =>
            {
                let most = largest.filter(|largest| *largest < put.size() as u64);
                let most = most.map_or("less".to_owned(), |largest| format!("{largest} bytes"));
                format!("the bucket takes {most} (max_msg_size, {})", ApiError::TOO_LARGE)
            }
            _ => return None,
        };
        let record: serde_json::Value = serde_json::from_slice(&put.payload).unwrap_or_default();
        let metadata = record.get("metadata").and_then(|metadata| metadata.as_object());
        let sizes = metadata.into_iter().flatten().map(|(name, value)| {
            let size = value.as_str().map_or_else(|| value.to_string().len(), str::len);
            (name.clone(), size)
        });
        Some(TooLarge { size: put.size(), limit, largest: sizes.max_by_key(|(_, size)| *size) })
    }
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the record has {} bytes with its headers, and {}", self.size, self.limit)?;
        match &self.largest {
            Some((name, size)) => {
                let name = clipped(name, 64);
                write!(f, "; its largest metadata is {name} with {size} bytes")
            }
            None => Ok(()),
        }
    }
}

impl RegistryError {
    /// The server's error code, if it is one that refuses.
    pub fn api_code(&self) -> Option<u32> {
        match self {
            RegistryError::Reply(_, ReplyError::Api(error)) => Some(error.err_code),
            _ => None,
        }
    }

    /// The causes in words, without the servers' names.
    pub fn why(&self) -> String {
        match self {
            RegistryError::Connect(ConnectError::Servers(tried)) => {
                let mut causes: Vec<String> = Vec::new();
                for cause in tried.iter().map(|(_, cause)| cause.to_string()) {
                    if !causes.contains(&cause) {
                        causes.push(cause);
                    }
                }
                causes.join(", ")
            }
            error => error.to_string(),
        }
    }

    /// What the server does not permit, such as `publish to "..."`.
    pub fn denied(&self) -> Option<&str> {
        match self {
            RegistryError::Request(_, RequestError::Denied(what)) => Some(what),
            _ => None,
        }
    }
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RegistryError::Connect(error) => error.fmt(f),
            RegistryError::Request(doing, error) => write!(f, "{doing}: {error}"),
            RegistryError::Reply(doing, error) => write!(f, "{doing}: {error}"),
            RegistryError::TooLarge(record) => write!(f, "{WRITING}: {record}"),
            RegistryError::Unfit(unfit) => unfit.fmt(f),
            RegistryError::NoClock => {
                f.write_str("the server does not tell its time (no ts in its replies)")
            }
        }
    }
}

impl StdError for RegistryError {}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Failure {
        let text = error.to_string();
        match error {
            RegistryError::Connect(error) => error.into(),
            RegistryError::Unfit(unfit) => unfit.into(),
            RegistryError::TooLarge(record) => {
                let failure = Failure::new(Kind::Unavailable, text);
                match record.largest {
                    Some((name, _)) => {
                        let name = clipped(&name, 64);
                        failure.with_hint(format!("shorten or leave out --meta {name}=..."))
                    }
                    None => failure,
                }
            }
            RegistryError::NoClock => Failure::new(Kind::Unavailable, text),
            RegistryError::Request(CREATING, RequestError::Denied(what)) => {
                let text =
                    format!("the bucket does not exist, and this user is not permitted to {what}");
                Failure::new(Kind::Refused, text).with_hint(format!(
                    "give this user the permission to {what}, or let a user who has it make the bucket \
                     once, by: aegis-agent init"
                ))
            }
            RegistryError::Request(_, RequestError::Denied(what))
                if what.starts_with("subscribe") =>
            {
                Failure::new(Kind::Refused, text).with_hint(format!(
                    "replies arrive there: --inbox-prefix must be one that \
                     this user may subscribe to, or permit it to {what}"
                ))
            }
            RegistryError::Request(_, RequestError::Denied(what)) => {
                Failure::new(Kind::Refused, text)
                    .with_hint(format!("give the user of this program the permission to {what}"))
            }
            // Nobody takes messages for the bucket's subjects any more.
            RegistryError::Request(WRITING | DEREGISTERING, RequestError::NoResponders) => {
                Failure::new(
                    Kind::Unavailable,
                    format!("{text}: the bucket is gone, or no server leads it"),
                )
                .with_hint("aegis-agent check")
            }
            RegistryError::Request(_, RequestError::NoResponders) => {
                Failure::new(Kind::Unavailable, text).with_hint(
                    "is JetStream enabled, for this account too, and has the cluster a leader?",
                )
            }
            RegistryError::Request(_, RequestError::NoJetStream) => {
                Failure::new(Kind::Unavailable, text).with_hint(WITHOUT_JETSTREAM)
            }
            RegistryError::Request(_, RequestError::TimedOut) => {
                Failure::new(Kind::Unavailable, text)
                    .with_hint("the server may be slow or frozen: a longer --timeout gives it time")
            }
            RegistryError::Request(..) => Failure::new(Kind::Unavailable, text),
            RegistryError::Reply(_, ReplyError::Api(api)) => {
                let failure = Failure::new(Kind::Unavailable, text);
                match api.err_code {
                    ApiError::NO_JETSTREAM | ApiError::NO_JETSTREAM_ACCOUNT => failure.with_hint(
                        "enable JetStream in the server's configuration, for this account too",
                    ),
                    _ if api.is_disk_full() => {
                        failure.with_hint("free some room on the disk of the server's store")
                    }
                    ApiError::BUCKET_FULL => failure.with_hint("aegis-agent check"),
                    ApiError::NO_LEADER => failure.with_hint(
                        "choosing a leader takes up to 10s, and more than half of the cluster's \
                         servers: are they up?",
                    ),
                    ApiError::ACCOUNT_FULL
                    | ApiError::NO_STORAGE
                    | ApiError::NO_MEMORY
                    | ApiError::NO_RESOURCES => {
                        failure.with_hint("raise the limits of JetStream, or free some room")
                    }
                    _ => failure,
                }
            }
            RegistryError::Reply(..) => Failure::new(Kind::Unavailable, text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_too_large_names_its_largest_metadata() {
        let put = Request::new("", *br#"{"metadata":{"a":"1","labels":"0123456789","n":12}}"#);
        let words = |error, largest| TooLarge::named(error, &put, largest).to_string();
        let server = RequestError::TooLarge { size: put.size(), limit: 40 };
        let api = ApiError { code: 400, err_code: ApiError::TOO_LARGE, description: String::new() };
        let bucket = || RegistryError::Reply(WRITING, ReplyError::Api(api.clone()));
        for (said, limit) in [
            (
                words(RegistryError::Request(WRITING, server), None),
                "the server takes 40 bytes (max_payload)",
            ),
            (words(bucket(), Some(30)), "the bucket takes 30 bytes (max_msg_size, 10054)"),
            (words(bucket(), None), "the bucket takes less (max_msg_size, 10054)"),
            // Lowered since.
            (words(bucket(), Some(99)), "the bucket takes less (max_msg_size, 10054)"),
        ] {
            let ends = "; its largest metadata is labels with 10 bytes";
            let words = format!("the record has 51 bytes with its headers, and {limit}{ends}");
            assert_eq!(said, format!("{WRITING}: {words}"));
        }
        let lost = RegistryError::Request(WRITING, RequestError::TimedOut);
        assert_eq!(TooLarge::of(&lost, &put, None), None);
    }

    #[test]
    fn a_bucket_that_is_gone_is_not_called_jetstream_off() {
        let gone = RegistryError::Request(WRITING, RequestError::NoResponders);
        let failure = Failure::from(gone);
        assert!(failure.chain().contains("the bucket is gone"), "{}", failure.chain());
        assert_eq!(failure.hint(), Some("aegis-agent check"));
        let look = RegistryError::Request("looking", RequestError::NoResponders);
        assert!(Failure::from(look).hint().is_some_and(|hint| hint.contains("JetStream")));
    }
}
