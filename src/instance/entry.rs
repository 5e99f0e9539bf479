//! One entry of the bucket: a stored revision of a key, and the instance
//! record in it, if it is one.
//!
//! Anyone may write to the bucket, so nothing here is trusted: what cannot be
//! read is a value with a reason. What an instance's entry is worth is for
//! `staleness` to say. *Pure*.

use serde::Serialize;
use time::OffsetDateTime;

use crate::instance::record::{self, Record};
use crate::instance::staleness::{Stored, Ttl, stored_ttl};
use crate::jetstream::bucket::{self, Bucket};
use crate::jetstream::requests;
use crate::jetstream::stored::{self, StoredMessage};
use crate::nats::{Headers, Incoming};

/// Who says that there is no value any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// A client: it deleted or purged the key.
    Client,
    /// The server: a TTL took the entry.
    Expired,
    /// The server, for any other reason (`Purge`, `Remove`: ADR-48).
    Server,
}

/// One stored revision of a key.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The key, not validated: anyone may write to the bucket.
    pub key: String,
    /// The revision.
    pub revision: u64,
    /// When the server stored it, and for how long.
    pub stored: Stored,
    /// Whose delete marker it is, if it is one.
    pub marker: Option<Marker>,
    /// The value.
    pub value: Vec<u8>,
}

impl Entry {
    /// Out of a reply of `STREAM.MSG.GET`.
    pub fn of_message(bucket: &Bucket, message: StoredMessage) -> Entry {
        let (marker, ttl) = marks(Headers(&message.headers));
        Entry {
            key: bucket.key(&message.subject).unwrap_or(&message.subject).to_owned(),
            revision: message.sequence,
            stored: Stored { at: message.stored, ttl },
            marker,
            value: message.data,
        }
    }

    /// Out of a message that a consumer delivered.
    pub fn of_delivery(bucket: &Bucket, message: Incoming, delivery: &stored::Delivery) -> Entry {
        let subject = message.subject_text();
        let key = bucket.key(&subject).unwrap_or(&subject).to_owned();
        Entry::of_value(message, key, delivery.sequence, delivery.stored)
    }

    /// Out of a value whose key and origin are known.
    pub fn of_value(message: Incoming, key: String, revision: u64, at: OffsetDateTime) -> Entry {
        let (marker, ttl) = marks(message.headers());
        let stored = Stored { at, ttl };
        Entry { key, revision, stored, marker, value: message.into_data() }
    }

    /// Whether it is a delete marker.
    pub fn is_deleted(&self) -> bool {
        self.marker.is_some()
    }

    /// The instance record in it. `None` for what is no instance: a
    /// delete marker, a service definition.
    pub fn instance(&self) -> Option<Result<Record, Unreadable>> {
        self.read_by(record::read)
    }

    /// The same, without metadata where they say nothing of its state: see
    /// [`record::read_to_judge`].
    pub fn instance_to_judge(&self) -> Option<Result<Record, Unreadable>> {
        self.read_by(record::read_to_judge)
    }

    fn read_by(
        &self,
        read: fn(&str, &[u8]) -> Result<Record, record::Unreadable>,
    ) -> Option<Result<Record, Unreadable>> {
        if self.is_deleted() || !record::is_instance_key(&self.key) {
            return None;
        }
        let unreadable =
            |why: String| Unreadable { key: self.key.clone(), revision: self.revision, why };
        if !bucket::key_is_safe(&self.key) {
            return Some(Err(unreadable("its key is not valid".to_owned())));
        }
        Some(read(&self.key, &self.value).map_err(|why| unreadable(why.to_string())))
    }
}

/// Whose delete marker the headers are of, and the TTL in them: the first one,
/// which is the one that the server obeys.
fn marks(headers: Headers<'_>) -> (Option<Marker>, Ttl) {
    let (mut marker, mut ttl) = (None, None);
    for (name, value) in headers.iter() {
        if name == requests::OPERATION_HEADER.as_bytes() && matches!(value, b"DEL" | b"PURGE") {
            marker = marker.or(Some(Marker::Client));
        } else if name == requests::MARKER_REASON_HEADER.as_bytes() {
            marker = Some(if value == b"MaxAge" { Marker::Expired } else { Marker::Server });
        } else if name == requests::TTL_HEADER.as_bytes() && ttl.is_none() {
            ttl = Some(value);
        }
    }
    let ttl = ttl.and_then(|ttl| std::str::from_utf8(ttl).ok());
    (marker, stored_ttl(ttl))
}

/// An entry that cannot be read, and why.
#[derive(Debug, Clone, Serialize)]
pub struct Unreadable {
    /// Its key.
    pub key: String,
    /// Its revision.
    pub revision: u64,
    /// The reason, in words.
    pub why: String,
}
