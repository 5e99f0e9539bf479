//! Messages of a bucket in the three ways they come: delivered by a consumer,
//! got directly, or as `STREAM.MSG.GET` gives them. *Pure*.
//!
//! Anyone may have stored one: whatever its bytes are, the answer is a value or
//! a reason, never a panic.

use data_encoding::BASE64;
use memchr::{memchr, memchr_iter};
use serde::Deserialize;
use time::OffsetDateTime;

use super::replies::{ReplyError, reply};
use crate::nats::Headers;
use crate::nats::wire::decimal;
use crate::text::time::parse_time;

/// What stands in the reply subject of a delivered message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The revision.
    pub sequence: u64,
    /// Its number among all that this consumer delivered, from 1.
    pub place: u64,
    /// When the server stored it.
    pub stored: OffsetDateTime,
    /// How many messages the consumer still has.
    pub pending: u64,
}

/// Reads `$JS.ACK.<stream>.<consumer>.<n>.<sequence>.<n>.<nanoseconds>.<pending>`,
/// or the longer form with domain and account in front (ADR-15). `None` for what
/// is none, and for what another consumer delivers: one that was given up goes
/// on for a while.
pub fn delivery(reply: &[u8], consumer: &str) -> Option<Delivery> {
    let mut rest = reply.strip_prefix(b"$JS.ACK.")?;
    // Without a list: there is one for each entry of a bucket.
    let before = match memchr_iter(b'.', rest).count() {
        6 => 1,
        8.. => 3,
        _ => return None,
    };
    for _ in 0..before {
        rest = &rest[memchr(b'.', rest)? + 1..];
    }
    rest = rest.strip_prefix(consumer.as_bytes())?.strip_prefix(b".")?;
    rest = &rest[memchr(b'.', rest)? + 1..];
    let mut number = || {
        let (digits, after) = rest.split_at(memchr(b'.', rest).unwrap_or(rest.len()));
        rest = after.get(1..).unwrap_or_default();
        decimal(digits)
    };
    Some(Delivery {
        sequence: number()?,
        place: number()?,
        stored: from_nanos(number()?)?,
        pending: number()?,
    })
}

fn from_nanos(nanos: u64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanos)).ok()
}

/// Revision and store time out of the headers of a direct get. The server
/// appends its own after whatever the publisher put there, so the last of a
/// name counts. `None` where they are missing.
pub fn direct_origin(headers: Headers<'_>) -> Option<(u64, OffsetDateTime)> {
    let (mut revision, mut at) = (None, None);
    for (name, value) in headers.iter() {
        match name {
            b"Nats-Sequence" => revision = Some(value),
            b"Nats-Time-Stamp" => at = Some(value),
            _ => {}
        }
    }
    Some((decimal(revision?)?, parse_time(std::str::from_utf8(at?).ok()?)?))
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
