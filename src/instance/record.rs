//! The instance record: its names, its key and its JSON (docs/registry.md).
//!
//! Strict in what it writes: seven fields in a fixed order, because other
//! readers reject an entry with any other. Lenient in what it reads: both
//! spellings of names, many spellings of time. What cannot be read is a value
//! with a reason, never a panic: anyone may write to the bucket. Whether an
//! instance is stale is for `staleness` to say. *Pure*.

mod fields;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use self::fields::{Field, Fields, Given, Metadata};
use crate::text::printable::clipped;
use crate::text::time::{format_time, parse_time};

/// Most records fit into so many bytes.
const LIKELY_SIZE: usize = 512;

/// What every instance key starts with; the next character tells the layout.
const PREFIX: &str = "service-instances";

/// The name of a service: 3 to 64 of `a-z`, `0-9` and `-`, beginning with a
/// letter and not ending with `-`. It never holds a `_`, so keys can be split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceName(String);

/// The name of one instance of a service: 1 to 100 of `A-Z`, `a-z`, `0-9`,
/// `-`, `_` and `=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceId(String);

/// The version of a service: three decimal numbers with dots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(String);

/// A name or version breaks its rule; `Display` says the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidName(&'static str);

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Error for InvalidName {}

impl FromStr for ServiceName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<ServiceName, InvalidName> {
        let fits = (3..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && !text.ends_with('-');
        if fits {
            Ok(ServiceName(text.to_owned()))
        } else {
            Err(InvalidName(
                "a service name has 3 to 64 of a-z, 0-9 and -, begins with a letter \
                 and does not end with -",
            ))
        }
    }
}

impl FromStr for InstanceId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<InstanceId, InvalidName> {
        let fits = (1..=100).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'='));
        if fits {
            Ok(InstanceId(text.to_owned()))
        } else {
            Err(InvalidName("an instance id has 1 to 100 of A-Z, a-z, 0-9, -, _ and ="))
        }
    }
}

impl FromStr for Version {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Version, InvalidName> {
        let mut parts = 0;
        let numbers_only = text.split('.').all(|part| {
            parts += 1;
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())
        });
        if numbers_only && parts == 3 {
            Ok(Version(text.to_owned()))
        } else {
            Err(InvalidName("a version is three numbers with dots, such as 1.4.2"))
        }
    }
}

macro_rules! text_of {
    ($($name:ident),*) => {$(
        impl $name {
            /// The text, as validated.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    )*};
}
text_of!(ServiceName, InstanceId, Version);

/// What an instance says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Serves; also what a record without a status means.
    Active,
    /// Ready to take over.
    Standby,
    /// Runs and knows that it is of no use.
    Unhealthy,
    /// Gone. Read and cleaned, never written: strict readers reject it.
    Shutdown,
    /// A word of a newer SDK: shown as it is and treated like `Active`, so
    /// that no tool takes a living instance for a broken record.
    Unknown(Word),
}

/// The key of the metadata that says why an instance drains.
pub const DRAIN: &str = "drain";

impl Record {
    /// Why it drains, if it does: the first line of its drain file, which may be
    /// empty.
    pub fn draining(&self) -> Option<&str> {
        self.metadata.get(DRAIN)?.as_str().filter(|_| self.status == Status::Standby)
    }
}

/// A word that may be a status: 1 to 64 of `A-Z`, `a-z`, `0-9`, `-` and `_`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word(String);

impl Status {
    /// The word in the record.
    pub fn as_str(&self) -> &str {
        match self {
            Status::Active => "ACTIVE",
            Status::Standby => "STANDBY",
            Status::Unhealthy => "UNHEALTHY",
            Status::Shutdown => "SHUTDOWN",
            Status::Unknown(Word(word)) => word,
        }
    }

    /// The status of exactly that word: the ones that we know are upper-case,
    /// as all readers demand. `None` for what is no word.
    pub fn parse(text: &str) -> Option<Status> {
        let known = [Status::Active, Status::Standby, Status::Unhealthy, Status::Shutdown];
        if let Some(status) = known.into_iter().find(|status| status.as_str() == text) {
            return Some(status);
        }
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        let is_word = (1..=64).contains(&text.len()) && text.bytes().all(fits);
        is_word.then(|| Status::Unknown(Word(text.to_owned())))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One entry of the registry. Names are plain text, not validated: an entry of
/// another writer is shown and judged even if ours would not have written it.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The service, from the JSON or else from the key.
    pub service_name: String,
    /// The instance, from the JSON or else from the key.
    pub instance_id: String,
    /// The version as written.
    pub version: String,
    /// What the instance says about itself.
    pub status: Status,
    /// When it last said so; written with microseconds.
    pub last_heartbeat: OffsetDateTime,
    /// The group of which one member at a time is active.
    pub sticky_active_group: Option<String>,
    /// Everything else; sorted by key when written.
    pub metadata: Map<String, Value>,
}

impl Record {
    /// The value to store: compact JSON with exactly the seven fields, in the
    /// order of docs/registry.md.
    pub fn to_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Fields<'a> {
            service_name: &'a str,
            instance_id: &'a str,
            version: &'a str,
            status: &'a str,
            last_heartbeat: String,
            sticky_active_group: Option<&'a str>,
            metadata: &'a Map<String, Value>,
        }
        let mut json = Vec::with_capacity(LIKELY_SIZE);
        let fields = Fields {
            service_name: &self.service_name,
            instance_id: &self.instance_id,
            version: &self.version,
            status: self.status.as_str(),
            last_heartbeat: format_time(self.last_heartbeat),
            sticky_active_group: self.sticky_active_group.as_deref(),
            metadata: &self.metadata,
        };
        serde_json::to_writer(&mut json, &fields)
            .expect("text and JSON values under text keys always serialise");
        json
    }
}

/// The key under which an instance is written:
/// `service-instances__{service}__{instance}`.
pub fn instance_key(service: &ServiceName, instance: &InstanceId) -> String {
    format!("{PREFIX}__{service}__{instance}")
}

/// Whether a key stands under the instance prefix of one of the three layouts,
/// readable or not. Everything else in the bucket is never ours: definitions
/// have plain names, `service-instances-doc` and `service-instances` among
/// them.
pub fn is_instance_key(key: &str) -> bool {
    key.strip_prefix(PREFIX)
        .and_then(|rest| rest.strip_prefix("__").or_else(|| rest.strip_prefix(['.', '_'])))
        .is_some_and(|names| !names.is_empty())
}

/// Service and instance as an instance key of any of the three layouts names
/// them; neither is empty, nothing else about them is checked.
pub fn names_in_key(key: &str) -> Option<(&str, &str)> {
    let rest = key.strip_prefix(PREFIX)?;
    // The double underscore first: `__a__b` would also split as `_`, `_a__b`.
    [("__", "__"), (".", "."), ("_", "_")]
        .into_iter()
        .filter_map(|(start, between)| rest.strip_prefix(start)?.split_once(between))
        .find(|(service, instance)| !service.is_empty() && !instance.is_empty())
}

/// Why a value is not a record; `Display` says it in words, in one line of at
/// most 200 characters that is safe to print.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreadable {
    /// The value has no bytes.
    Empty,
    /// Not JSON, with what the parser says and where.
    NotJson(String),
    /// JSON, but not an object.
    NotAnObject,
    /// A required field is not there, or null.
    Missing(&'static str),
    /// A field that cannot be what it says: its name, an excerpt of its value
    /// and what is wrong with it.
    Field(&'static str, String, &'static str),
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::Empty => f.write_str("empty value"),
            Unreadable::NotJson(why) => write!(f, "not JSON: {why}"),
            Unreadable::NotAnObject => f.write_str("not a JSON object"),
            Unreadable::Missing(field) => write!(f, "{field} missing"),
            Unreadable::Field(field, value, wrong) => write!(f, "{field} {value}: {wrong}"),
        }
    }
}

impl Error for Unreadable {}

/// Reads the value of an instance key as leniently as docs/registry.md says.
/// A null field counts as missing, and so does an empty name; of a field given
/// twice the last counts, and camelCase beats snake_case.
pub fn read(key: &str, value: &[u8]) -> Result<Record, Unreadable> {
    read_fields(key, value, Metadata::Kept)
}

/// The same for whoever judges many, without the metadata of an instance unless
/// it may drain: half of the work.
pub fn read_to_judge(key: &str, value: &[u8]) -> Result<Record, Unreadable> {
    match read_fields(key, value, Metadata::Forgotten) {
        Ok(record) if record.status != Status::Standby => Ok(record),
        // What is wrong is said with what stands there.
        _ => read(key, value),
    }
}

fn read_fields(key: &str, value: &[u8], metadata: Metadata) -> Result<Record, Unreadable> {
    if value.is_empty() {
        return Err(Unreadable::Empty);
    }
    let mut fields = Fields::read(value, metadata)?;
    let key_names = || names_in_key(key);
    let service_name = fields
        .name(Field::ServiceName)?
        .or_else(|| Some(key_names()?.0.to_owned()))
        .ok_or(Unreadable::Missing("serviceName"))?;
    let instance_id = fields
        .name(Field::InstanceId)?
        .or_else(|| Some(key_names()?.1.to_owned()))
        .ok_or(Unreadable::Missing("instanceId"))?;
    Ok(Record {
        service_name,
        instance_id,
        version: fields
            .text(Field::Version, "not text")?
            .ok_or(Unreadable::Missing("version"))?
            .into_owned(),
        status: match fields.text(Field::Status, "not text")? {
            None => Status::Active,
            Some(word) => Status::parse(&word).ok_or_else(|| {
                field_error(Field::Status, &Value::String(word.into()), "not a word")
            })?,
        },
        last_heartbeat: match fields.text(Field::LastHeartbeat, "not a time")? {
            None => return Err(Unreadable::Missing("lastHeartbeat")),
            Some(text) => parse_time(&text).ok_or_else(|| {
                field_error(Field::LastHeartbeat, &Value::String(text.into()), "not a time")
            })?,
        },
        sticky_active_group: fields
            .text(Field::StickyActiveGroup, "not text")?
            .map(Cow::into_owned),
        metadata: match fields.take(Field::Metadata) {
            None => Map::new(),
            Some(Given::Other(Value::Object(map))) => map,
            Some(other) => {
                return Err(field_error(Field::Metadata, &other.into_value(), "not an object"));
            }
        },
    })
}

fn field_error(field: Field, value: &Value, wrong: &'static str) -> Unreadable {
    let excerpt = match value {
        Value::String(text) => format!("\"{}\"", clipped(text, 60)),
        Value::Array(_) => "[…]".to_owned(),
        Value::Object(_) => "{…}".to_owned(),
        other => other.to_string(),
    };
    Unreadable::Field(field.as_str(), excerpt, wrong)
}
