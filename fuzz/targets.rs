//! What bad input must not break: one function a door, each of which panics
//! where a promise does not hold. libFuzzer calls them (`fuzz_targets/`), and
//! `cargo test` with the seeds and with noise made of them
//! (`tests/properties.rs`).

use std::time::Duration;

use aegis_agent::cli::{self, context};
use aegis_agent::instance::entry::Entry;
use aegis_agent::instance::record;
use aegis_agent::instance::staleness::{self, Stored};
use aegis_agent::jetstream::bucket::{self, Bucket};
use aegis_agent::jetstream::fitness::ServerVersion;
use aegis_agent::jetstream::stored::{self, StoredMessage};
use aegis_agent::jetstream::{replies, requests};
use aegis_agent::nats::handshake::{Handshake, Step, Wish};
use aegis_agent::nats::wire::{Headers, Operation, Parser, Request, publish};
use aegis_agent::nats::{address, login};
use aegis_agent::text::time::{format_time, parse_time};
use aegis_agent::text::{duration, printable};
use time::OffsetDateTime;

/// A target: its name, which is that of its seeds, and its function.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All of them.
pub(crate) const ALL: &[Target] = &[
    ("record", record),
    ("key", key),
    ("reply", reply),
    ("header", header),
    ("version", version),
    ("duration", duration),
    ("url", url),
    ("context", context),
    ("creds", creds),
    ("wire", wire),
    ("handshake", handshake),
    ("arguments", arguments),
];

/// Moments at which somebody might ask.
fn moments() -> [OffsetDateTime; 3] {
    let now =
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let edges = [OffsetDateTime::UNIX_EPOCH, time::Date::MAX.midnight().assume_utc()];
    [now, edges[0], edges[1]]
}

/// A key on the first line, a value after it: what stands in the bucket.
pub(crate) fn record(data: &[u8]) {
    let end = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
    let key = String::from_utf8_lossy(&data[..end]);
    let value = data.get(end + 1..).unwrap_or_default();
    let Ok(record) = record::read(&key, value) else {
        return;
    };
    // What was read is written in a form that is read as the same.
    let json = record.to_json();
    let mut again = record::read(&key, &json).expect("its own JSON can be read");
    let lost = record.last_heartbeat - again.last_heartbeat;
    assert!(lost.abs() < time::Duration::MICROSECOND, "six digits are written");
    again.last_heartbeat = record.last_heartbeat;
    assert_eq!(record, again);
    let fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&json).expect("it is an object");
    assert_eq!(fields.len(), 7, "exactly the seven fields");
    for now in moments() {
        let stored = Stored { at: now, ttl: staleness::stored_ttl(Some("30s")) };
        let reasons = staleness::judge(&record, &stored, now, staleness::DEFAULT_STALE_AFTER);
        assert!(reasons.len() <= 5);
        staleness::age(&record, now);
        staleness::clock_skew(&record, &stored);
    }
}

/// A key that is called safe can be put into a subject: it names itself alone.
pub(crate) fn key(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    record::names_in_key(&text);
    let bucket = Bucket::service_registry();
    if record::is_instance_key(&text) {
        assert!(text.starts_with("service-instances"));
    }
    if !bucket::key_is_safe(&text) {
        return;
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-/_=.".contains(&b);
    assert!(!text.is_empty() && text.bytes().all(plain), "{text:?}");
    assert!(!text.starts_with('.') && !text.ends_with('.'), "{text:?}");
    assert_eq!(bucket.key(&bucket.subject(&text)), Some(&*text));
    for revision in [0, 1, u64::MAX] {
        if let Some(request) = requests::purge(&bucket, &text, revision) {
            let body: serde_json::Value =
                serde_json::from_slice(&request.payload).expect("the request is JSON");
            assert_eq!(body["filter"], bucket.subject(&text).as_str());
            assert!(body["seq"].as_u64().is_some_and(|seq| seq > 1), "seq 1 purges all");
        }
    }
}

/// Whatever a server may answer to whatever was asked.
pub(crate) fn reply(data: &[u8]) {
    let refused = |error: replies::ReplyError| {
        let _ = error.to_string();
        if let replies::ReplyError::Api(error) = error {
            replies::last_revision(&error);
        }
    };
    replies::acknowledged(data).map(drop).unwrap_or_else(refused);
    replies::purged(data).map(drop).unwrap_or_else(refused);
    replies::read_consumer_info(data).map(drop).unwrap_or_else(refused);
    if let Ok(info) = replies::read_stream_info(data) {
        let facts = (info.history(), info.allows_ttl(), info.leader_version(), info.leader_level());
        let _ = format!("{facts:?}{}", info.word("storage"));
    }
    match stored::read_message(data) {
        Ok(message) => entry(message),
        Err(error) => refused(error),
    }
    if let Some(delivery) = stored::delivery(data, "aegis-1-0") {
        assert!(data.starts_with(b"$JS.ACK."), "{delivery:?}");
    }
}

fn entry(message: StoredMessage) {
    let entry = Entry::of_message(&Bucket::service_registry(), message);
    match entry.instance() {
        Some(Ok(record)) => {
            assert!(bucket::key_is_safe(&entry.key), "{:?}", entry.key);
            for now in moments() {
                staleness::judge(&record, &entry.stored, now, Duration::from_secs(35));
                staleness::ttl_left(&entry.stored, now);
            }
        }
        Some(Err(unreadable)) => assert!(!unreadable.why.is_empty()),
        None => {}
    }
}

/// The header block of a stored message, and words of a server.
pub(crate) fn header(data: &[u8]) {
    let message = StoredMessage {
        subject: "$KV.service_registry.service-instances__abc__i".into(),
        sequence: 7,
        stored: moments()[0],
        headers: data.to_vec(),
        data: b"{}".to_vec(),
    };
    let headers = Headers(data);
    for (name, value) in headers.iter() {
        assert!(name.len() + value.len() < data.len());
        assert!(!name.contains(&b':'));
    }
    for name in [requests::TTL_HEADER, requests::OPERATION_HEADER, requests::MARKER_REASON_HEADER] {
        assert_eq!(headers.first(name).is_some(), headers.all(name).count() > 0);
        let value = headers.first(name).and_then(|value| std::str::from_utf8(value).ok());
        staleness::stored_ttl(value);
    }
    assert!(headers.status().is_none_or(|status| status < 1_000));
    assert!(headers.status_text().len() <= data.len() * 3);
    stored::direct_origin(headers);
    entry(message);
    let text = String::from_utf8_lossy(data);
    let shown = printable::clipped(&text, 80);
    assert!(shown.chars().count() <= 80 && !shown.chars().any(char::is_control), "{shown:?}");
}

/// Versions of servers and of services, and times.
pub(crate) fn version(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(version) = ServerVersion::parse(&text) {
        let again = ServerVersion::parse(&version.to_string()).expect("its own text can be read");
        assert_eq!(version.numbers, again.numbers);
    }
    if let Ok(version) = text.parse::<record::Version>() {
        assert_eq!(version.as_str(), text);
        assert!(version.as_str().bytes().all(|b| b.is_ascii_digit() || b == b'.'));
    }
    if let Some(at) = parse_time(&text) {
        let written = format_time(at);
        let again = parse_time(&written).expect("its own text can be read");
        assert!((again - at).abs() < time::Duration::MICROSECOND, "{text} {written}");
    }
}

/// Durations of settings and of headers.
pub(crate) fn duration(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(parsed) = duration::parse(&text) {
        let _ = duration::words(parsed);
        let again = duration::parse(&duration::as_setting(parsed)).expect("its own text");
        assert_eq!(parsed, again, "{text}");
    }
    let _ = duration::parse_go(&text);
    staleness::stored_ttl(Some(&text));
}

/// URLs: a login is taken out of them, and no error shows it.
pub(crate) fn url(data: &[u8]) {
    const SECRET: &str = "qZ7secretQz";
    let text = String::from_utf8_lossy(data);
    if let Ok((servers, _)) = address::parse_list(&text) {
        assert!(!servers.is_empty());
        for server in servers {
            assert!(server.port != 0 && !server.host.is_empty());
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
            assert!(server.host.bytes().all(plain), "{server}");
        }
    }
    let host = text.replace(',', "");
    if host.contains(SECRET) {
        // The fuzzer has learnt the word; a host may be shown.
        return;
    }
    for login in [format!("u:{SECRET}"), SECRET.to_owned(), format!("u:{SECRET}{host}")] {
        for scheme in ["nats://", "tls://", "ws://", ""] {
            let url = format!("{scheme}{login}@{host}");
            if let Err(error) = address::parse_list(&url) {
                assert!(!error.contains(SECRET), "{url} gives {error}");
            }
            assert!(!address::redact(&url).contains(SECRET), "{url}");
        }
    }
}

/// The nats CLI's context files.
pub(crate) fn context(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let env = |name: &str| (name == "A").then(|| "/a".into());
    let home = std::path::Path::new("/home/op");
    if let Err(error) = context::read(&text, Some(home), &env) {
        assert!(!error.is_empty() && error.len() < 300 + text.len());
    }
    // A secret in a field that is refused is not shown.
    for start in ["op://", "data:;base64,"] {
        let quoted = serde_json::Value::from(format!("{start}qZ7secretQz{text}"));
        for field in ["password", "token", "creds", "nkey"] {
            let text = format!("{{\"{field}\":{quoted}}}");
            match context::read(&text, Some(home), &env).err() {
                Some(error) => assert!(!error.contains("qZ7secretQz"), "{error}"),
                None => assert_ne!(start, "op://", "{field}: it is refused"),
            }
        }
    }
}

/// Credentials, certificates and keys.
pub(crate) fn creds(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(login) = login::read_creds(&text) {
        login.expires();
        if let login::ReadLogin::Creds { jwt, seed } = login {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            assert!(jwt.bytes().all(plain) && seed.bytes().all(plain), "they go into a frame");
        }
    }
    for marker in ["CERTIFICATE", "PRIVATE KEY"] {
        let _ = login::judge_pem(&text, marker);
    }
}

/// All that a parser makes of these bytes, in pieces of `size`.
fn operations(data: &[u8], size: usize) -> (Vec<String>, bool) {
    let mut parser = Parser::default();
    parser.set_max_payload(1 << 20);
    let mut found = Vec::new();
    for piece in data.chunks(size) {
        parser.buffer().extend_from_slice(piece);
        loop {
            match parser.parse() {
                Ok(Some(operation)) => found.push(format!("{operation:?}")),
                Ok(None) => break,
                Err(bad) => {
                    assert!(bad.to_string().len() < 600);
                    return (found, false);
                }
            }
        }
    }
    (found, true)
}

/// What a server sends, in pieces of any size: the same comes of it, and what
/// we publish is read again as it was.
pub(crate) fn wire(data: &[u8]) {
    let (&first, rest) = data.split_first().unwrap_or((&1, &[]));
    let size = usize::from(first).max(1);
    let whole = operations(rest, rest.len().max(1));
    assert_eq!(operations(rest, size), whole, "in pieces of {size}");

    let mut request = Request::new(String::from_utf8_lossy(rest), rest);
    request.headers = vec![("Nats-TTL", String::from_utf8_lossy(data).into_owned())];
    // The subject is all of it here; a server's line has an end.
    if request.fault().is_some() || data.len() > 16 << 10 {
        return;
    }
    let mut out = Vec::new();
    publish(&mut out, &request, "_INBOX.a.1");
    // As a server would deliver it: with the number of a subscription.
    let line = out.windows(2).position(|two| two == b"\r\n").expect("it has a first line");
    let words = String::from_utf8_lossy(&out[..line]).into_owned();
    let words: Vec<&str> = words.split(' ').collect();
    let ["HPUB", subject, reply, header, size] = words[..] else { panic!("{words:?}") };
    let mut frame = format!("HMSG {subject} 1 {reply} {header} {size}").into_bytes();
    frame.extend_from_slice(&out[line..]);
    let mut parser = Parser::default();
    parser.set_max_payload(1 << 20);
    parser.buffer().extend_from_slice(&frame);
    match parser.parse() {
        Ok(Some(Operation::Message(message))) => {
            assert_eq!(message.subject_text(), subject);
            let ttl = message.headers().first("Nats-TTL").unwrap_or_default();
            assert_eq!(String::from_utf8_lossy(ttl).trim(), String::from_utf8_lossy(data).trim());
            assert_eq!(message.into_data(), rest);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(parser.parse(), Ok(None)) && parser.rest().is_empty(), "one frame");
}

/// A server's words during a login, in pieces of any size.
pub(crate) fn handshake(data: &[u8]) {
    let (&first, rest) = data.split_first().unwrap_or((&1, &[]));
    let size = usize::from(first).max(1);
    let login = login::ReadLogin::User("u".into(), "qZ7secretQz".into());
    for (tls, tls_first) in [(false, false), (true, false), (false, true)] {
        let wish = Wish {
            tls,
            tls_first,
            has_certificate: false,
            login: &login,
            who: "user \"u\"",
            name: "aegis-agent list",
        };
        let (mut handshake, mut step) = Handshake::begin(&wish);
        let mut secured = false;
        let mut parser = Parser::default();
        let mut pieces = rest.chunks(size);
        'talk: loop {
            match &step {
                Step::Secure => {
                    assert!(!secured, "TLS once");
                    secured = true;
                    parser.clear();
                    step = handshake.secured(&wish).expect("nothing was said");
                    continue;
                }
                Step::Send(bytes) if bytes.starts_with(b"CONNECT") => {
                    assert!(secured || !tls, "no login without TLS");
                }
                Step::Ready => break,
                _ => {}
            }
            let operation = loop {
                match parser.parse() {
                    Ok(Some(operation)) => break operation,
                    Ok(None) => match pieces.next() {
                        Some(piece) => parser.buffer().extend_from_slice(piece),
                        None => break 'talk,
                    },
                    Err(_) => break 'talk,
                }
            };
            if matches!(&operation, Operation::Info(json) if json.len() > 64 << 10) {
                panic!("a line beyond its bound");
            }
            match handshake.heard(operation, &wish) {
                Ok(next) => step = next,
                Err(cause) => {
                    assert!(cause.to_string().len() < 1_000);
                    assert!(!cause.to_string().contains("qZ7secretQz") || rest.len() > 10);
                    break;
                }
            }
        }
        if let Some(info) = handshake.info() {
            let _ = ServerVersion::parse(&info.version);
        }
    }
}

/// The command line: an argument a line.
pub(crate) fn arguments(data: &[u8]) {
    use std::os::unix::ffi::OsStringExt;
    let arguments: Vec<_> =
        data.split(|&b| b == b'\n').map(|a| std::ffi::OsString::from_vec(a.to_vec())).collect();
    let (env, host) = (|_: &str| None, || Some("host.example".to_owned()));
    if let Err(error) = cli::parse(&arguments, &env, &host) {
        assert!([64, 78].contains(&error.failure.exit_code()), "{:?}", error.failure);
    }
}
