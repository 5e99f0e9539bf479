//! One entry of the bucket: a stored revision of a key, and the instance
//! record in it, if it is one.
//!
//! Anyone may write to the bucket, so nothing here is trusted: what cannot be
//! read is a value with a reason. What an instance's entry is worth is for
//! `staleness` to say. *Pure*.

use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;

use crate::connection::Incoming;
use crate::instance::record::{self, Record};
use crate::instance::staleness::{Stored, Ttl, stored_ttl};
use crate::jetstream::bucket::{self, Bucket};
use crate::jetstream::requests;
use crate::jetstream::stored::{self, StoredMessage};

/// One stored revision of a key.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The key, not validated: anyone may write to the bucket.
    pub key: String,
    /// The revision.
    pub revision: u64,
    /// When the server stored it, and for how long.
    pub stored: Stored,
    /// A delete marker, of a client or of the server itself.
    pub deleted: bool,
    /// The value.
    pub value: Vec<u8>,
    /// The client library cannot decode it, and why.
    pub poison: Option<&'static str>,
}

impl Entry {
    /// Out of a reply of `STREAM.MSG.GET`.
    pub fn of_message(bucket: &Bucket, message: StoredMessage) -> Entry {
        let operation = message.header(requests::OPERATION_HEADER);
        Entry {
            key: bucket.key(&message.subject).unwrap_or(&message.subject).to_owned(),
            revision: message.sequence,
            stored: Stored {
                at: message.stored,
                ttl: stored_ttl(message.header(requests::TTL_HEADER).as_deref()),
            },
            deleted: matches!(operation.as_deref(), Some("DEL" | "PURGE"))
                || message.header(requests::MARKER_REASON_HEADER).is_some(),
            poison: message.poison(),
            value: message.data,
        }
    }

    /// Out of a message that a consumer delivered.
    pub fn of_delivery(bucket: &Bucket, message: Incoming, delivery: &stored::Delivery) -> Entry {
        let key = bucket.key(&message.subject).unwrap_or(&message.subject).to_owned();
        Entry::of_value(message, key, delivery.sequence, delivery.stored)
    }

    /// Out of a value whose key and origin are known.
    pub fn of_value(message: Incoming, key: String, revision: u64, at: OffsetDateTime) -> Entry {
        let operations = message.header_values(requests::OPERATION_HEADER);
        let deleted = operations.iter().any(|op| matches!(op.trim(), "DEL" | "PURGE"))
            || !message.header_values(requests::MARKER_REASON_HEADER).is_empty();
        // The crate loses the order of several values of one header, and the
        // server obeys the first. Taking the longest errs towards sparing it.
        let ttls = message.header_values(requests::TTL_HEADER);
        let longest =
            ttls.iter().map(|ttl| stored_ttl(Some(ttl.trim()))).max_by_key(|ttl| match ttl {
                Ttl::Never => Duration::ZERO,
                Ttl::After(ttl) => *ttl,
            });
        Entry {
            key,
            revision,
            stored: Stored { at, ttl: longest.unwrap_or(Ttl::Never) },
            deleted,
            poison: None,
            value: message.data,
        }
    }

    /// An instance record out of an self. `None` for what is no instance: a
    /// delete marker, a service definition.
    pub fn instance(&self) -> Option<Result<Record, Unreadable>> {
        if self.deleted || !record::is_instance_key(&self.key) {
            return None;
        }
        let unreadable =
            |why: String| Unreadable { key: self.key.clone(), revision: self.revision, why };
        if let Some(why) = self.poison {
            return Some(Err(unreadable(why.to_owned())));
        }
        if !bucket::key_is_safe(&self.key) {
            return Some(Err(unreadable("its key is not valid".to_owned())));
        }
        Some(record::read(&self.key, &self.value).map_err(|why| unreadable(why.to_string())))
    }
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
