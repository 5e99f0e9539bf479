//! What the client library says when a login or a handshake fails, put into
//! words that name the file and what is wrong with it. *Pure*.
//!
//! The library passes on the server's `-ERR`, TLS alerts (RFC 8446, 6.2) and
//! what rustls thinks of a certificate, each as text; unknown text is shown as
//! it came.

use std::path::Path;

use crate::login::{KEYS_SUPPORTED, Tls};
use crate::look::Cause;

/// What was tried when it failed.
pub struct Tried<'a> {
    /// The host as the operator named it.
    pub host: &'a str,
    /// Certificates, where TLS was used.
    pub tls: Option<&'a Tls>,
    /// Who logged in, in words.
    pub who: &'a str,
}

/// The cause behind an error of the client library's `connect`.
pub fn cause(text: &str, tried: &Tried<'_>) -> Cause {
    if let Some(words) = server_words(text) {
        let lower = words.to_lowercase();
        let refused = ["authorization violation", "authentication expired", "revoked", "jwt"];
        return match refused.iter().any(|word| lower.contains(word)) {
            true => Cause::Login(format!("{words}: {}", tried.who)),
            false => Cause::Other(format!("the server says: {words}")),
        };
    }
    match tried.tls.and_then(|tls| tls_words(text, tried.host, tls)) {
        Some(words) => Cause::Tls(words),
        None => Cause::Other(text.to_owned()),
    }
}

/// The server's own words out of the library's `unexpected line while
/// connecting: Err("...")`.
fn server_words(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("Err(\"")?;
    Some(rest.trim_end_matches("\")").replace('\'', ""))
}

/// `publish to "x"` out of `Permissions Violation for Publish to "x"`, as a
/// permission for it is written: what follows on a token that no two sessions
/// share is `>`, and a key with one is `*`, so that the same refusal reads the
/// same each time.
pub fn refusal(error: &str, unique: &str) -> Option<String> {
    let (_, rest) = error.split_once("Permissions Violation for ")?;
    let (verb, subject) = rest.split_once(" to ")?;
    let verb = if verb.starts_with("Subscri") { "subscribe" } else { "publish" };
    let subject = subject.split('"').find(|part| !part.is_empty())?;
    // A scan's consumer may be named after an earlier session.
    let consumer =
        subject.starts_with("$JS.API.CONSUMER.").then(|| subject.find(".aegis-")).flatten();
    let cut = match subject.find(unique).filter(|_| !unique.is_empty()) {
        Some(at) => subject[..at].rfind('.'),
        None => consumer,
    };
    let cut = cut.map(|dot| {
        let is_key = !subject.starts_with("$JS.API.CONSUMER.") && !subject[dot + 1..].contains('.');
        let wildcard = if is_key { '*' } else { '>' };
        format!("{}.{wildcard}", &subject[..dot])
    });
    Some(format!("{verb} to \"{}\"", cut.as_deref().unwrap_or(subject)))
}

fn tls_words(text: &str, host: &str, tls: &Tls) -> Option<String> {
    if let Some((_, what)) = text.split_once("invalid peer certificate: ") {
        return Some(of_server(what.trim(), host, tls));
    }
    if let Some((_, alert)) = text.split_once("received fatal alert: ") {
        return Some(of_alert(alert.trim(), tls));
    }
    let lower = text.to_lowercase();
    let is = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    if is(&["could not add certificate or key"]) {
        return Some(format!("{} cannot be used together", both(tls)?));
    }
    if is(&["corrupt message"]) {
        return Some("what answers does not speak TLS".into());
    }
    // A server that does not like what it sees may close before its alert is
    // read.
    if is(&["connection reset", "broken pipe", "closed while waiting"]) {
        return Some(match both(tls) {
            Some(files) => format!("the server ended the connection; does it accept {files}?"),
            None => "the server ended the connection during the login".into(),
        });
    }
    is(&["tls", "certificate", "certs", "handshake", "peer"]).then(|| text.to_owned())
}

fn of_server(what: &str, host: &str, tls: &Tls) -> String {
    let issuer = match &tls.ca {
        Some(ca) => format!("is not signed by any CA in {}", ca.display()),
        None => "is not signed by any CA that this system trusts (--tlsca names another)".into(),
    };
    let words = match what {
        "Expired" => "has expired".into(),
        "NotValidYet" => "is not valid yet, by this host's clock".into(),
        "NotValidForName" => format!("is not for the name {host}"),
        "UnknownIssuer" => issuer,
        "InvalidPurpose" => "is not meant for a server".into(),
        "Revoked" => "has been revoked".into(),
        "BadSignature" => "has a signature that is not its CA's".into(),
        other if other.contains("CaUsedAsEndEntity") => {
            "is that of a CA, which no server may use".into()
        }
        other if other.contains("UnsupportedSignatureAlgorithm") => {
            format!("has a signature that is not supported; {KEYS_SUPPORTED}")
        }
        other => format!("is not valid: {other}"),
    };
    format!("the server's certificate {words}")
}

fn of_alert(alert: &str, tls: &Tls) -> String {
    let ours = match &tls.client {
        Some((cert, _)) => format!("our certificate {}", cert.display()),
        None => "that we show no certificate".into(),
    };
    let words = match alert {
        "HandshakeFailure" | "InsufficientSecurity" => {
            return format!(
                "the server found no common ground for the handshake; a certificate with a \
                 P-521 key does that, which is not supported; {KEYS_SUPPORTED}"
            );
        }
        "ProtocolVersion" => return "the server speaks neither TLS 1.2 nor 1.3".into(),
        "CertificateExpired" => "it has expired",
        "CertificateRevoked" => "it has been revoked",
        "UnknownCA" => "it does not know its CA",
        "DecryptError" | "IllegalParameter" => "key and certificate do not belong together",
        "UnsupportedCertificate" | "BadCertificate" | "CertificateUnknown" | "AccessDenied" => {
            "it does not accept it"
        }
        "CertificateRequired" => "it wants one (--tlscert with --tlskey)",
        other => return format!("the server ended the handshake: {other}"),
    };
    format!("the server refuses {ours}: {words}")
}

fn both(tls: &Tls) -> Option<String> {
    let (cert, key) = tls.client.as_ref()?;
    let show = |path: &Path| path.display().to_string();
    Some(format!("the certificate {} and the key {}", show(cert), show(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("Publish to \"$KV.a.aegis-probe.uNi\"", "publish to \"$KV.a.aegis-probe.*\""),
            ("Subscription to \"uNi\" using queue \"q\"", "subscribe to \"uNi\""),
        ] {
            let error = format!("Permissions Violation for {subject}");
            assert_eq!(refusal(&error, "uNi").as_deref(), Some(permission));
        }
        assert_eq!(refusal("Stale Connection", "uNi"), None);
        assert_eq!(refusal("Permissions Violation for ", ""), None);
    }

    #[test]
    fn each_failure_names_its_file() {
        let plain = Tls::default();
        let full =
            Tls { ca: Some("/ca.pem".into()), client: Some(("/c.pem".into(), "/k.pem".into())) };
        for (text, tls, words) in [
            (
                "unexpected line while connecting: Err(\"Authorization Violation\")",
                None,
                "login refused: Authorization Violation: user \"a\"",
            ),
            (
                "unexpected line while connecting: Err(\"maximum connections exceeded\")",
                None,
                "the server says: maximum connections exceeded",
            ),
            ("no route to host", Some(&plain), "no route to host"),
            (
                "TLS error: invalid peer certificate: UnknownIssuer",
                Some(&plain),
                "TLS: the server's certificate is not signed by any CA that this system trusts \
                 (--tlsca names another)",
            ),
            (
                "TLS error: invalid peer certificate: UnknownIssuer",
                Some(&full),
                "TLS: the server's certificate is not signed by any CA in /ca.pem",
            ),
            (
                "TLS error: invalid peer certificate: NotValidForName",
                Some(&full),
                "TLS: the server's certificate is not for the name nats.example",
            ),
            (
                "TLS error: received fatal alert: CertificateExpired",
                Some(&full),
                "TLS: the server refuses our certificate /c.pem: it has expired",
            ),
            (
                "connection reset by peer",
                Some(&full),
                "TLS: the server ended the connection; does it accept the certificate /c.pem and \
                 the key /k.pem?",
            ),
            (
                "could not add certificate or key",
                Some(&full),
                "TLS: the certificate /c.pem and the key /k.pem cannot be used together",
            ),
            (
                "TLS error: received corrupt message of type InvalidContentType",
                Some(&plain),
                "TLS: what answers does not speak TLS",
            ),
        ] {
            let tried = Tried { host: "nats.example", tls, who: "user \"a\"" };
            assert_eq!(cause(text, &tried).to_string(), words);
        }
    }
}
