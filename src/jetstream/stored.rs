//! Messages of a bucket in the three ways they come: delivered by a consumer,
//! got directly, or as `STREAM.MSG.GET` gives them. *Pure*.
//!
//! Anyone may have stored one: whatever its bytes are, the answer is a value or
//! a reason, never a panic.

use data_encoding::BASE64;
use serde::Deserialize;
use time::OffsetDateTime;

use super::replies::{ReplyError, reply};
use crate::text::time::parse_time;

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
