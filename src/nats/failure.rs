//! What goes wrong between us and a server, in words. *Pure*.
//!
//! `Cause` says why one server did not serve, `ConnectError` why none did, and
//! `RequestError` why a request has no answer.

use std::error::Error as StdError;
use std::fmt;

use super::address::ServerAddress;
use super::login::{FRESH_IN_CONTEXT, FRESH_IN_FILE, IN_CONTEXT};
use crate::error::{Failure, Kind};

/// What the message of a failure to connect begins with.
pub const NO_CONNECTION: &str = "no connection to NATS";

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
    /// The server is about to go (lame-duck mode).
    LameDuck,
    /// What answered a TLS handshake does not speak TLS.
    NotTls,
    /// The TLS handshake failed.
    Tls(String),
    /// Who we are was not accepted.
    Login(String),
    /// The server closed the connection and said nothing.
    Closed,
    /// Anything else, in the words of the server.
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
            Cause::LameDuck => f.write_str("the server is shutting down (lame-duck mode)"),
            Cause::NotTls => f.write_str("TLS: what answers does not speak TLS"),
            Cause::Tls(why) => write!(f, "TLS: {why}"),
            Cause::Login(why) => write!(f, "login refused: {why}"),
            Cause::Closed => f.write_str("the server closed the connection at once"),
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
            Cause::NotNats(_) => Some("check the port in --nats-url (NATS_URL)"),
            Cause::Tls(_) | Cause::NotTls => {
                Some("check --tlsca, --tlscert and --tlskey against the server's certificate")
            }
            Cause::Login(why) if why.to_lowercase().contains("expired") => {
                Some(match why.contains(IN_CONTEXT) {
                    true => FRESH_IN_CONTEXT,
                    false => FRESH_IN_FILE,
                })
            }
            Cause::Login(_) => Some(
                "check --creds, --nkey, --user with --password-file, or --token-file, whichever this server wants",
            ),
            Cause::Other(why) if is_connection_limit(why) => {
                Some("raise max_connections of nats-server, or of the account")
            }
            Cause::Other(why) if is_late(why) => Some(
                "the way to the server is slower than its limit for a login: raise timeout in the authorization block of nats-server",
            ),
            Cause::LameDuck | Cause::Closed | Cause::Other(_) => None,
        }
    }

    /// How far the attempt came: of several at one server the one that came
    /// furthest tells most.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Cause::Unanswered => 0,
            Cause::Silent => 1,
            Cause::Resolve(_) | Cause::Tcp(_) | Cause::Closed => 2,
            Cause::NotNats(_) | Cause::NotTls | Cause::LameDuck | Cause::Other(_) => 3,
            Cause::Tls(_) => 4,
            Cause::Login(_) => 5,
        }
    }
}

/// Whether a server's words tell of a limit of connections: "maximum connections
/// exceeded", or "maximum account active connections exceeded".
pub(super) fn is_connection_limit(words: &str) -> bool {
    words.contains("maximum") && words.contains("connections")
}

/// The cause in an `-ERR` that comes instead of a session; `who` logged in.
pub(super) fn refused_login(words: &str, who: &str) -> Cause {
    let lower = words.to_lowercase();
    let refused = ["authorization violation", "authentication", "revoked", "jwt"];
    match !is_late(words) && refused.iter().any(|word| lower.contains(word)) {
        true => Cause::Login(format!("{words}: {who}")),
        false => Cause::Other(format!("the server says: {words}")),
    }
}

/// The login came too late: nothing is said of who it was.
fn is_late(words: &str) -> bool {
    words.to_lowercase().contains("authentication timeout")
}

/// Why no session came about: each server that was tried, with its cause.
#[derive(Debug)]
pub enum ConnectError {
    /// A stop was asked for while connecting.
    Stopped,
    /// A file of ours cannot be used (exit 78).
    Config(Failure),
    /// No server of the list served.
    Servers(Vec<(ServerAddress, Cause)>),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Stopped => f.write_str("stopped while connecting"),
            ConnectError::Config(failure) => write!(f, "{}", failure.chain()),
            ConnectError::Servers(tried) if tried.is_empty() => {
                f.write_str("no time was left to try a server")
            }
            ConnectError::Servers(tried) => {
                for (index, (server, cause)) in tried.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{server}: {cause}")?;
                }
                Ok(())
            }
        }
    }
}

impl StdError for ConnectError {}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Failure {
        let tried = match error {
            ConnectError::Config(failure) => return failure,
            ConnectError::Stopped => {
                return Failure::new(Kind::Incomplete, error.to_string());
            }
            ConnectError::Servers(ref tried) => tried,
        };
        let refused = tried.iter().find(|(_, cause)| matches!(cause, Cause::Login(_)));
        let kind = if refused.is_some() { Kind::Refused } else { Kind::Unavailable };
        let hint = refused.or(tried.last()).and_then(|(_, cause)| cause.hint());
        let failure = Failure::new(kind, format!("{NO_CONNECTION}: {error}"));
        match hint {
            Some(hint) => failure.with_hint(hint),
            None => failure,
        }
    }
}

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestError {
    /// Nothing came within the limit. The session is in doubt.
    TimedOut,
    /// The session has ended; the server's last words, if any.
    Lost(String),
    /// The server does not let us; `publish to "..."` or `subscribe to "..."`.
    Denied(String),
    /// Nobody listens on that subject: no JetStream, no stream, no leader.
    NoResponders,
    /// The same for a JetStream domain, by its name.
    NoDomain(String),
    /// The same of a server that has no JetStream itself.
    NoJetStream,
    /// The request itself cannot be sent.
    Invalid(String),
    /// Headers and payload together are larger than the server takes, in
    /// bytes.
    TooLarge {
        /// So large it is.
        size: usize,
        /// So much the server takes (`max_payload`).
        limit: u64,
    },
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestError::TimedOut => f.write_str("no answer in time"),
            RequestError::Lost(why) if why.is_empty() => f.write_str("connection lost"),
            RequestError::Lost(why) => write!(f, "connection lost: {why}"),
            RequestError::Denied(what) => write!(f, "not permitted to {what}"),
            RequestError::NoResponders => f.write_str("nobody answers there (503)"),
            RequestError::NoDomain(name) => {
                write!(f, "nobody answers for the JetStream domain {name} (503)")
            }
            RequestError::NoJetStream => {
                f.write_str("nobody answers there (503), and this server has no JetStream")
            }
            RequestError::Invalid(why) => f.write_str(why),
            RequestError::TooLarge { size, limit } => {
                write!(f, "it has {size} bytes, and the server takes {limit} (max_payload)")
            }
        }
    }
}

impl StdError for RequestError {}

/// A permission that the server says we lack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PermissionViolation {
    /// The subject as the server names it.
    pub(super) subject: String,
    /// To subscribe, not to publish.
    pub(super) is_subscription: bool,
}

impl PermissionViolation {
    /// Reads `Permissions Violation for Publish to "x"` and its kin.
    pub(super) fn read(error: &str) -> Option<PermissionViolation> {
        let (_, rest) = error.split_once("Permissions Violation for ")?;
        let (verb, subject) = rest.split_once(" to ")?;
        let subject = subject.split('"').find(|part| !part.is_empty())?;
        let is_subscription = verb.starts_with("Subscri");
        Some(PermissionViolation { subject: subject.to_owned(), is_subscription })
    }

    /// The refusal as a permission for it is written: what follows on a token
    /// that no two sessions share is `>`, and a key with one is `*`, so that the
    /// same refusal reads the same each time.
    pub(super) fn permission(&self, unique: &str) -> String {
        let verb = if self.is_subscription { "subscribe" } else { "publish" };
        let subject = self.subject.as_str();
        let of_consumer = subject.contains(".CONSUMER.");
        // A scan's consumer may be named after an earlier session.
        let consumer = of_consumer.then(|| subject.find(".aegis-")).flatten();
        let cut = match subject.find(unique).filter(|_| !unique.is_empty()) {
            Some(at) => subject[..at].rfind('.'),
            None => consumer,
        };
        let cut = cut.map(|dot| {
            let is_key = !of_consumer && !subject[dot + 1..].contains('.');
            let wildcard = if is_key { '*' } else { '>' };
            format!("{}.{wildcard}", &subject[..dot])
        });
        format!("{verb} to \"{}\"", cut.as_deref().unwrap_or(subject))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_no_server_was_tried_that_is_said() {
        let failure = Failure::from(ConnectError::Servers(Vec::new()));
        assert_eq!(failure.chain(), "no connection to NATS: no time was left to try a server");
    }

    #[test]
    fn a_refusal_reads_as_the_permission_for_it() {
        for (subject, permission) in [
            ("Publish to \"$JS.API.STREAM.INFO.KV_a\"", "publish to \"$JS.API.STREAM.INFO.KV_a\""),
            ("Subscription to \"_I.x.uNi.*\"", "subscribe to \"_I.x.>\""),
            (
                "Publish to \"$JS.API.CONSUMER.CREATE.KV_a.aegis-uNi.$KV.a.>\"",
                "publish to \"$JS.API.CONSUMER.CREATE.KV_a.>\"",
            ),
            (
                "Publish to \"$JS.API.CONSUMER.INFO.KV_a.aegis-other\"",
                "publish to \"$JS.API.CONSUMER.INFO.KV_a.>\"",
            ),
            (
                "Publish to \"$JS.hub.API.CONSUMER.INFO.KV_a.aegis-other\"",
                "publish to \"$JS.hub.API.CONSUMER.INFO.KV_a.>\"",
            ),
            ("Publish to \"$KV.a.aegis-probe.uNi\"", "publish to \"$KV.a.aegis-probe.*\""),
            ("Subscription to \"uNi\" using queue \"q\"", "subscribe to \"uNi\""),
        ] {
            let error = format!("Permissions Violation for {subject}");
            let refusal = PermissionViolation::read(&error).unwrap();
            assert_eq!(refusal.permission("uNi"), permission);
        }
        assert_eq!(PermissionViolation::read("Stale Connection"), None);
        assert_eq!(PermissionViolation::read("Permissions Violation for "), None);
    }

    #[test]
    fn a_refused_login_names_who_was_refused() {
        for (words, cause) in [
            ("Authorization Violation", "login refused: Authorization Violation: user \"a\""),
            (
                "User Authentication Expired",
                "login refused: User Authentication Expired: user \"a\"",
            ),
            ("maximum connections exceeded", "the server says: maximum connections exceeded"),
            ("Authentication Timeout", "the server says: Authentication Timeout"),
            (
                "maximum account active connections exceeded",
                "the server says: maximum account active connections exceeded",
            ),
        ] {
            let refused = refused_login(words, "user \"a\"");
            assert_eq!(refused.to_string(), cause);
            assert!(refused.hint().is_some(), "{cause}");
        }
    }
}
