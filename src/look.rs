//! Look, then dial: what the first line of a server says. *Pure*.
//!
//! The `nats` crate has no time limit against a peer that is silent, panics
//! on a line longer than its buffer, and hides what a stranger says. So it only
//! ever meets a server that has been looked at: one that answers in time,
//! speaks NATS and is not about to go.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

/// The longest line the crate can read: `proto.rs` has a buffer of 4096 bytes
/// and panics behind it.
const LONGEST_INFO: usize = 4096;

/// A TLS record with an empty ClientHello, for a server that says nothing:
/// whoever waits for TLS answers with an alert, and nothing comes of it.
pub const TLS_PROBE: [u8; 9] = [0x16, 3, 1, 0, 4, 1, 0, 0, 0];
/// Types of TLS records that answer a ClientHello: alert, handshake.
const TLS_RECORDS: [u8; 2] = [0x15, 0x16];

/// What a server says of itself before anybody logs in (its `INFO` line).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServerInfo {
    /// Unique to the process of the server.
    pub server_id: String,
    /// The server's configured name, or its id.
    pub server_name: String,
    /// Version, such as `2.12.8` or `2.14.0-RC.1`.
    pub version: String,
    /// Name of the cluster, if it is in one.
    pub cluster: Option<String>,
    /// The server has JetStream, for whichever account.
    pub jetstream: bool,
    /// Largest payload in bytes.
    pub max_payload: u64,
    /// TLS is a must.
    pub tls_required: bool,
    /// Clients have to show a certificate.
    pub tls_verify: bool,
    /// In lame-duck mode: going away soon.
    pub ldm: bool,
    /// Other members of the cluster, as `host:port`.
    pub connect_urls: Vec<String>,
    /// From the moment TCP stood to the end of the line: one way there, one
    /// back, and the server's reaction.
    #[serde(skip)]
    pub round_trip: Duration,
}

/// Why one server did not serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The name has no address.
    Resolve(String),
    /// TCP did not come about: refused, no route.
    Tcp(String),
    /// TCP was not answered within the limit.
    Unanswered,
    /// Connected, and then nothing.
    Silent,
    /// What answered does not speak NATS.
    NotNats(String),
    /// The server waits for the TLS handshake and says nothing before it.
    HandshakeFirst,
    /// The server is about to go (lame-duck mode).
    LameDuck,
    /// The TLS handshake failed.
    Tls(String),
    /// Who we are was not accepted.
    Login(String),
    /// Anything else, in the words of the server or the crate.
    Other(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Resolve(why) => write!(f, "name not found: {why}"),
            Cause::Tcp(why) | Cause::Other(why) => f.write_str(why),
            Cause::Unanswered => f.write_str("no answer (host down, or packets dropped)"),
            Cause::Silent => f.write_str("connected, but the server stays silent"),
            Cause::NotNats(seen) => write!(f, "not a NATS server: {seen}"),
            Cause::HandshakeFirst => f.write_str(
                "the server wants the TLS handshake first (handshake_first in its tls block), \
                 which is not supported",
            ),
            Cause::LameDuck => f.write_str("the server is shutting down (lame-duck mode)"),
            Cause::Tls(why) => write!(f, "TLS: {why}"),
            Cause::Login(why) => write!(f, "login refused: {why}"),
        }
    }
}

impl Cause {
    /// The next step, if there is one to name.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Cause::Resolve(_) => Some("check the host name in --nats-url (NATS_URL) and DNS"),
            Cause::Tcp(_) | Cause::Unanswered => {
                Some("is nats-server running there? check --nats-url (NATS_URL) and firewalls")
            }
            Cause::Silent => Some("the server may be frozen or overloaded"),
            Cause::HandshakeFirst => Some(
                "in the server's tls block give handshake_first a delay, such as 300ms, or false",
            ),
            Cause::NotNats(_) => Some("check the port in --nats-url (NATS_URL)"),
            Cause::Tls(_) => {
                Some("check --tlsca, --tlscert and --tlskey against the server's certificate")
            }
            Cause::Login(_) => Some(
                "check --creds, --nkey, --user with --password-file, or --token-file, whichever this server wants",
            ),
            Cause::LameDuck | Cause::Other(_) => None,
        }
    }
}

/// The `INFO` line of a server, as it comes in.
#[derive(Debug, Default)]
pub struct InfoLine {
    read: Vec<u8>,
}

impl InfoLine {
    /// Whether nothing has come yet.
    pub fn is_empty(&self) -> bool {
        self.read.is_empty()
    }

    /// Takes what was read, nothing at the end of the connection, and returns
    /// what the server said once its line is complete.
    pub fn add(&mut self, bytes: &[u8]) -> Result<Option<ServerInfo>, Cause> {
        if bytes.is_empty() {
            return Err(match self.read.is_empty() {
                true => Cause::Other("the server closed the connection at once".into()),
                false => Cause::NotNats("it closed in the middle of a line".into()),
            });
        }
        self.read.extend_from_slice(bytes);
        if self.read.first().is_some_and(|first| TLS_RECORDS.contains(first)) {
            return Err(Cause::HandshakeFirst);
        }
        if let Some(end) = self.read.iter().position(|&byte| byte == b'\n')
            && end < LONGEST_INFO
        {
            return parse_info_line(&self.read[..end]).map(Some);
        }
        if self.read.len() >= LONGEST_INFO {
            return Err(Cause::NotNats(format!(
                "its first line is longer than {LONGEST_INFO} bytes"
            )));
        }
        Ok(None)
    }
}

fn parse_info_line(line: &[u8]) -> Result<ServerInfo, Cause> {
    let text = String::from_utf8_lossy(line);
    let text = text.lines().next().unwrap_or_default();
    if let Some(words) = text.strip_prefix("-ERR") {
        let words = words.trim().trim_matches('\'');
        return Err(Cause::Other(format!("the server says: {}", excerpt(words))));
    }
    let json = text.strip_prefix("INFO").unwrap_or_default();
    serde_json::from_str(json).map_err(|_| Cause::NotNats(format!("it says {:?}", excerpt(text))))
}

/// At most 60 characters of what a stranger sent.
fn excerpt(text: &str) -> String {
    text.chars().take(60).collect()
}
