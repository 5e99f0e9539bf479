//! The NATS client protocol as bytes. *Pure*: what a server sends is cut into
//! operations, and what we send is put together.
//!
//! Nothing here trusts its input. Lines and payloads have hard bounds, room is
//! made for what has come and never for what was announced, and subjects,
//! headers and payloads may hold any bytes: anyone can store a message.
//!
//! The grammar is that of the "Client Protocol" page of the NATS documentation
//! and of nats-server's `server/parser.go`; headers are those of NATS ADR-4.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use memchr::memchr;

/// The longest line that is read. A server on a host with hundreds of addresses
/// lists them all in its `INFO` line, and a `MSG` line holds a subject of up to
/// 4 KiB.
pub const LONGEST_LINE: usize = 64 << 10;
/// The largest message that is read, headers included: a server takes 64 MiB
/// at most (`MAX_PAYLOAD_MAX_SIZE` in nats-server's `server/const.go`), and
/// adds some headers of its own.
pub const LARGEST_MESSAGE: usize = (64 << 20) + (64 << 10);
/// What a server may add to a message of its `max_payload`: headers of its own,
/// and base64 where it answers in JSON.
const ADDED: usize = 128 << 10;

/// Room that is kept while there is nothing to read.
const KEPT: usize = 256 << 10;

/// One operation of a server.
#[derive(Debug)]
pub enum Operation {
    /// The JSON after `INFO`. Comes first, and again whenever a member of the
    /// cluster joins or goes.
    Info(Vec<u8>),
    /// A message of a subscription.
    Message(Incoming),
    /// The server wants a `PONG`.
    Ping,
    /// The answer to our `PING`.
    Pong,
    /// Something was accepted, in verbose mode.
    Ok,
    /// An error, without its quotes.
    Error(String),
}

/// What came does not follow the protocol: the connection is of no more use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(pub String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Cuts the bytes of a connection into operations, however they are chopped up.
#[derive(Debug)]
pub struct Parser {
    buffer: Vec<u8>,
    /// Everything before this has been handed out.
    at: usize,
    /// No line ends before this.
    searched: usize,
    /// A message whose line was read and whose bytes have not all come.
    head: Option<Head>,
    /// The largest message that is believed.
    largest: usize,
}

#[derive(Debug)]
struct Head {
    /// Where its line begins in the buffer, and the parts of that line.
    line: Range<usize>,
    subject: Range<usize>,
    reply: Option<Range<usize>>,
    headers: usize,
    total: usize,
}

impl Default for Parser {
    fn default() -> Parser {
        Parser { buffer: Vec::new(), at: 0, searched: 0, head: None, largest: LARGEST_MESSAGE }
    }
}

impl Parser {
    /// Believes no message much larger than this from now on: the server's
    /// `max_payload`, in bytes. Its own JSON replies hold a message as base64.
    pub fn set_max_payload(&mut self, bytes: u64) {
        let bytes = usize::try_from(bytes).unwrap_or(LARGEST_MESSAGE);
        self.largest = bytes.saturating_mul(2).saturating_add(ADDED).min(LARGEST_MESSAGE);
    }

    /// Where to put what was read; only append to it.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        if self.at == self.buffer.len() && self.head.is_none() {
            self.buffer.clear();
            // What one large message took is not kept for ever.
            self.buffer.shrink_to(KEPT);
            (self.at, self.searched) = (0, 0);
        } else if self.at > 0 && self.at * 2 >= self.buffer.len() {
            self.compact();
        }
        &mut self.buffer
    }

    /// Moves what has not been handed out to the front.
    fn compact(&mut self) {
        let by = self.at;
        self.buffer.drain(..by);
        self.at = 0;
        self.searched = self.searched.saturating_sub(by);
        if let Some(head) = &mut self.head {
            let shift = |range: &mut Range<usize>| *range = range.start - by..range.end - by;
            shift(&mut head.line);
            shift(&mut head.subject);
            head.reply.iter_mut().for_each(shift);
        }
    }

    /// What has come and was not handed out.
    pub fn rest(&self) -> &[u8] {
        &self.buffer[self.at..]
    }

    /// Throws away what has come and was not handed out.
    pub fn clear(&mut self) {
        self.head = None;
        self.at = self.buffer.len();
        self.searched = self.at;
    }

    /// The next operation, once all of it has come.
    pub fn parse(&mut self) -> Result<Option<Operation>, Malformed> {
        if let Some(head) = self.head.take() {
            return self.message(head);
        }
        loop {
            let from = self.searched.max(self.at);
            let found = memchr(b'\n', &self.buffer[from..]).map(|found| from + found);
            let end = found.unwrap_or(self.buffer.len());
            if end - self.at > LONGEST_LINE {
                let longest = LONGEST_LINE >> 10;
                return Err(Malformed(format!("a line of it is longer than {longest} KiB")));
            }
            if found.is_none() {
                self.searched = end;
                return Ok(None);
            }
            let start = self.at;
            let stop = if end > start && self.buffer[end - 1] == b'\r' { end - 1 } else { end };
            (self.at, self.searched) = (end + 1, end + 1);
            // An empty line says nothing.
            if stop > start {
                return self.line(start..stop);
            }
        }
    }

    fn line(&mut self, line: Range<usize>) -> Result<Option<Operation>, Malformed> {
        let text = &self.buffer[line.clone()];
        let verb = text.split(|byte| *byte == b' ').next().unwrap_or_default();
        match verb {
            b"MSG" | b"HMSG" => {
                let has_headers = verb.len() == 4;
                let head = self.head_of(line, has_headers)?;
                // The line goes out together with its message.
                self.at = head.line.start;
                self.message(head)
            }
            b"PING" => Ok(Some(Operation::Ping)),
            b"PONG" => Ok(Some(Operation::Pong)),
            b"+OK" => Ok(Some(Operation::Ok)),
            b"INFO" => Ok(Some(Operation::Info(text[4..].to_vec()))),
            b"-ERR" => {
                let words = String::from_utf8_lossy(&text[4..]);
                let words = words.trim();
                let inner = words.strip_prefix('\'').and_then(|words| words.strip_suffix('\''));
                Ok(Some(Operation::Error(inner.unwrap_or(words).to_owned())))
            }
            _ => Err(Malformed(format!("it says {:?}", excerpt(text)))),
        }
    }

    /// Reads `MSG subject sid [reply] size` or
    /// `HMSG subject sid [reply] headers size`.
    fn head_of(&self, line: Range<usize>, has_headers: bool) -> Result<Head, Malformed> {
        let text = &self.buffer[line.clone()];
        let malformed = || Malformed(format!("it says {:?}", excerpt(text)));
        let mut words: [Range<usize>; 6] = std::array::from_fn(|_| 0..0);
        let mut count = 0;
        let mut from = line.start;
        loop {
            let end = memchr(b' ', &self.buffer[from..line.end]).map_or(line.end, |at| from + at);
            if end > from {
                *words.get_mut(count).ok_or_else(malformed)? = from..end;
                count += 1;
            }
            if end == line.end {
                break;
            }
            from = end + 1;
        }
        let least = if has_headers { 5 } else { 4 };
        let reply = match count.checked_sub(least) {
            Some(0) => None,
            Some(1) => Some(words[3].clone()),
            _ => return Err(malformed()),
        };
        let number = |word: &Range<usize>| {
            let digits = &self.buffer[word.clone()];
            // Nine digits are a gigabyte; no honest size has more.
            let size = decimal(digits).filter(|_| digits.len() <= 9);
            size.and_then(|size| usize::try_from(size).ok()).ok_or_else(malformed)
        };
        let total = number(&words[count - 1])?;
        let headers = if has_headers { number(&words[count - 2])? } else { 0 };
        if headers > total {
            return Err(malformed());
        }
        if total > self.largest {
            return Err(Malformed(format!(
                "it announces a message of {total} bytes, more than the {} that are believed",
                self.largest
            )));
        }
        Ok(Head { line, subject: words[1].clone(), reply, headers, total })
    }

    /// The message of `head`, once it has come.
    fn message(&mut self, head: Head) -> Result<Option<Operation>, Malformed> {
        // The line ends with CR LF, or with LF alone.
        let body = match self.buffer.get(head.line.end) {
            Some(b'\r') => head.line.end + 2,
            _ => head.line.end + 1,
        };
        let end = body + head.total;
        if self.buffer.len() < end + 2 {
            self.head = Some(head);
            return Ok(None);
        }
        if &self.buffer[end..end + 2] != b"\r\n" {
            return Err(Malformed("a message of it does not end where it should".into()));
        }
        let start = head.subject.start;
        let shift = |range: Range<usize>| range.start - start..range.end - start;
        let message = Incoming {
            subject: head.subject.len(),
            reply: head.reply.map(shift),
            headers: body - start..body - start + head.headers,
            bytes: self.buffer[start..end].to_vec(),
        };
        (self.at, self.searched) = (end + 2, end + 2);
        Ok(Some(Operation::Message(message)))
    }
}

/// A number of digits and nothing else. By a loop: there are some for each entry
/// of a bucket.
pub fn decimal(digits: &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for byte in digits {
        if !byte.is_ascii_digit() {
            return None;
        }
        number = number.checked_mul(10)?.checked_add(u64::from(byte - b'0'))?;
    }
    (!digits.is_empty()).then_some(number)
}

/// At most 60 characters of what a stranger sent.
pub fn excerpt(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(240)]).chars().take(60).collect()
}

/// A message that arrived: subject, reply subject, headers and payload, each of
/// any bytes. One allocation holds them all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    bytes: Vec<u8>,
    /// The subject's length: it comes first.
    subject: usize,
    reply: Option<Range<usize>>,
    /// The payload follows them.
    headers: Range<usize>,
}

impl Incoming {
    /// The subject: of a reply the inbox that was given; of a consumer's
    /// delivery the subject under which the message is stored.
    pub fn subject(&self) -> &[u8] {
        &self.bytes[..self.subject]
    }

    /// The subject as text; bytes that are not UTF-8 become U+FFFD.
    pub fn subject_text(&self) -> Cow<'_, str> {
        match std::str::from_utf8(self.subject()) {
            Ok(subject) => Cow::Borrowed(subject),
            Err(_) => String::from_utf8_lossy(self.subject()),
        }
    }

    /// The reply subject; a consumer's deliveries carry `$JS.ACK...` here.
    pub fn reply(&self) -> Option<&[u8]> {
        Some(&self.bytes[self.reply.clone()?])
    }

    /// The payload.
    pub fn data(&self) -> &[u8] {
        &self.bytes[self.headers.end..]
    }

    /// The payload, without the rest.
    pub fn into_data(mut self) -> Vec<u8> {
        self.bytes.drain(..self.headers.end);
        self.bytes
    }

    /// The headers.
    pub fn headers(&self) -> Headers<'_> {
        Headers(&self.bytes[self.headers.clone()])
    }

    /// The status code of a message that is not data, such as 404 or 503.
    pub fn status(&self) -> Option<u16> {
        self.headers().status()
    }

    /// The words after the status code.
    pub fn status_text(&self) -> String {
        self.headers().status_text()
    }
}

/// A header block, as it was sent: `NATS/1.0`, perhaps a status, and lines of
/// `Name: value`, in their order and with their duplicates.
#[derive(Debug, Clone, Copy)]
pub struct Headers<'a>(pub &'a [u8]);

impl<'a> Headers<'a> {
    /// Names and values in the order in which they were sent. What is no header
    /// (a line without a colon) is passed over, as the server does.
    pub fn iter(self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        lines(self.0).skip(1).filter_map(|line| {
            let colon = memchr(b':', line)?;
            Some((&line[..colon], line[colon + 1..].trim_ascii()))
        })
    }

    /// All values of a header, in their order. Names have a case.
    pub fn all(self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.iter().filter_map(move |(key, value)| (key == name.as_bytes()).then_some(value))
    }

    /// The first value of a header, which is the one that servers obey.
    pub fn first(self, name: &str) -> Option<&'a [u8]> {
        self.all(name).next()
    }

    /// The last value of a header, which is the server's own where it adds one.
    pub fn last(self, name: &str) -> Option<&'a str> {
        self.all(name).last().and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The status in the first line.
    pub fn status(self) -> Option<u16> {
        std::str::from_utf8(self.after_version()?.get(..3)?).ok()?.parse().ok()
    }

    /// The words after the status.
    pub fn status_text(self) -> String {
        let rest = self.after_version().and_then(|rest| rest.get(3..)).unwrap_or_default();
        String::from_utf8_lossy(rest).trim().to_owned()
    }

    fn after_version(self) -> Option<&'a [u8]> {
        lines(self.0).next()?.strip_prefix(b"NATS/1.0").map(<[u8]>::trim_ascii_start)
    }
}

/// Lines that end with CR LF; a bare line feed belongs to its line.
fn lines(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(block);
    std::iter::from_fn(move || {
        let block = rest.filter(|block| !block.is_empty())?;
        let mut from = 0;
        let end = loop {
            match memchr(b'\r', &block[from..]).map(|at| from + at) {
                Some(at) if block.get(at + 1) == Some(&b'\n') => break Some(at),
                Some(at) => from = at + 1,
                None => break None,
            }
        };
        match end {
            Some(at) => {
                rest = block.get(at + 2..);
                Some(&block[..at])
            }
            None => {
                rest = None;
                Some(block)
            }
        }
    })
}

/// A message to publish: where to, with which headers, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The subject to publish to.
    pub subject: String,
    /// Headers, in this order.
    pub headers: Vec<(&'static str, String)>,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Request {
    /// A request without headers.
    pub fn new(subject: impl Into<String>, payload: impl Into<Vec<u8>>) -> Request {
        Request { subject: subject.into(), headers: Vec::new(), payload: payload.into() }
    }

    /// Its size as the server counts it against `max_payload`: headers and
    /// payload, in bytes.
    pub fn size(&self) -> usize {
        self.headers_size() + self.payload.len()
    }

    fn headers_size(&self) -> usize {
        if self.headers.is_empty() {
            return 0;
        }
        let lines = self.headers.iter().map(|(name, value)| name.len() + value.len() + 4);
        VERSION.len() + lines.sum::<usize>() + 2
    }

    /// Why it cannot be sent: a space or a line break in a subject or a header
    /// would be a command of its own.
    pub fn fault(&self) -> Option<String> {
        if self.subject.is_empty() || self.subject.bytes().any(|b| b <= b' ' || b == 0x7f) {
            return Some(format!("not a subject: {:?}", self.subject));
        }
        // An empty value is ignored by servers, and the message stored.
        let bad = self.headers.iter().find(|(name, value)| {
            let fits = |b: u8| b.is_ascii_graphic() && b != b':';
            value.is_empty()
                || value.chars().any(char::is_control)
                || name.is_empty()
                || !name.bytes().all(fits)
        });
        bad.map(|(name, value)| format!("not a header value: {name}: {value:?}"))
    }
}

const VERSION: &[u8] = b"NATS/1.0\r\n";

/// Appends a publication of `request` that is to be answered at `reply`.
pub fn publish(out: &mut Vec<u8>, request: &Request, reply: &str) {
    let Request { subject, headers, payload } = request;
    let size = request.size().to_string();
    if headers.is_empty() {
        push(out, &["PUB ", subject, " ", reply, " ", &size, "\r\n"]);
    } else {
        let header_size = request.headers_size().to_string();
        push(out, &["HPUB ", subject, " ", reply, " ", &header_size, " ", &size, "\r\n"]);
        out.extend_from_slice(VERSION);
        for (name, value) in headers {
            push(out, &[name, ": ", value, "\r\n"]);
        }
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// Appends a subscription to `subject` under the number `sid`.
pub fn subscribe(out: &mut Vec<u8>, subject: &str, sid: u64) {
    push(out, &["SUB ", subject, " ", &sid.to_string(), "\r\n"]);
}

/// Asks whether the server is there, and has read all that was sent before.
pub const PING: &[u8] = b"PING\r\n";
/// The answer to the server's `PING`.
pub const PONG: &[u8] = b"PONG\r\n";

fn push(out: &mut Vec<u8>, parts: &[&str]) {
    out.reserve(parts.iter().map(|part| part.len()).sum());
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that comes of these bytes, given in pieces of `chunk`.
    fn operations(bytes: &[u8], chunk: usize) -> Result<Vec<Operation>, Malformed> {
        let mut parser = Parser::default();
        let mut found = Vec::new();
        for piece in bytes.chunks(chunk) {
            parser.buffer().extend_from_slice(piece);
            while let Some(operation) = parser.parse()? {
                found.push(operation);
            }
        }
        Ok(found)
    }

    fn message(bytes: &[u8], chunk: usize) -> Incoming {
        match operations(bytes, chunk).unwrap().remove(0) {
            Operation::Message(message) => message,
            other => panic!("{other:?}"),
        }
    }

    const SESSION: &[u8] = b"INFO {\"a\":1} \r\n+OK\r\nPING\r\nMSG a.b 1 5\r\nhe\r\nl\r\n\
        MSG a 1 _INBOX.x.7 0\r\n\r\nHMSG k 1 r 24 26\r\nNATS/1.0\r\nA: b\r\nA:c \r\n\r\n\0\xff\r\n\
        HMSG s 1 31 31\r\nNATS/1.0 503  No Responders\r\n\r\n\r\n-ERR 'Stale Connection'\r\nPONG\r\n";

    #[test]
    fn a_session_reads_the_same_wherever_it_is_cut() {
        let whole = format!("{:?}", operations(SESSION, SESSION.len()).unwrap());
        for chunk in 1..SESSION.len() {
            assert_eq!(
                format!("{:?}", operations(SESSION, chunk).unwrap()),
                whole,
                "cut at {chunk}"
            );
        }
        let operations = operations(SESSION, SESSION.len()).unwrap();
        assert_eq!(operations.len(), 9);
        let Operation::Message(hello) = &operations[3] else { panic!("{operations:?}") };
        assert_eq!(
            (hello.subject(), hello.reply(), hello.data()),
            (&b"a.b"[..], None, &b"he\r\nl"[..])
        );
        let Operation::Message(empty) = &operations[4] else { panic!("{operations:?}") };
        assert_eq!((empty.reply(), empty.data()), (Some(&b"_INBOX.x.7"[..]), &b""[..]));
        let Operation::Message(headers) = &operations[5] else { panic!("{operations:?}") };
        assert_eq!(headers.headers().all("A").collect::<Vec<_>>(), [b"b", b"c"]);
        assert_eq!((headers.headers().last("A"), headers.data()), (Some("c"), &b"\0\xff"[..]));
        assert_eq!(headers.status(), None);
        let Operation::Message(status) = &operations[6] else { panic!("{operations:?}") };
        assert_eq!((status.status(), status.status_text().as_str()), (Some(503), "No Responders"));
        let Operation::Error(words) = &operations[7] else { panic!("{operations:?}") };
        assert_eq!(words, "Stale Connection");
    }

    #[test]
    fn any_bytes_are_carried_in_subject_headers_and_payload() {
        let headers = b"NATS/1.1\r\nno colon\r\nA: x\ny\r\n\xff: \xfe\r\n\r\n";
        let head = format!(" 1 {} {}\r\n", headers.len(), headers.len());
        let bytes = [b"HMSG k\xff\t\x01", head.as_bytes(), headers, b"\r\n"].concat();
        for chunk in 1..bytes.len() {
            let message = message(&bytes, chunk);
            assert_eq!(message.subject(), b"k\xff\t\x01");
            assert_eq!(message.headers().first("A"), Some(&b"x\ny"[..]));
            assert_eq!(message.headers().iter().count(), 2);
            assert_eq!(message.status(), None);
        }
    }

    #[test]
    fn what_breaks_the_protocol_is_said_and_not_guessed() {
        for bytes in [
            &b"HELLO\r\n"[..],
            b"MSG a 1\r\n",
            b"MSG a 1 x\r\n",
            b"MSG a 1 -1\r\n",
            b"MSG a 1 r s 1\r\n",
            b"MSG a 1 99999999999999999999\r\n",
            b"MSG a 1 999999999\r\n",
            b"HMSG a 1 5\r\n",
            b"HMSG a 1 5 4\r\n\r\n",
            b"MSG a 1 1\r\nab\r\n",
        ] {
            for chunk in [1, 3, bytes.len()] {
                assert!(operations(bytes, chunk).is_err(), "{:?}", String::from_utf8_lossy(bytes));
            }
        }
    }

    #[test]
    fn a_line_of_64_kib_is_read_and_a_longer_one_ends_it() {
        let info = |length: usize| format!("INFO {}\r\n", "x".repeat(length - 5)).into_bytes();
        for chunk in [1_000, LONGEST_LINE * 2] {
            assert_eq!(operations(&info(LONGEST_LINE - 1), chunk).unwrap().len(), 1);
            assert!(operations(&info(LONGEST_LINE + 2), chunk).is_err());
            assert!(operations(&vec![b'x'; LONGEST_LINE + 1], chunk).is_err());
        }
    }

    #[test]
    fn no_room_is_made_for_what_was_only_announced() {
        let mut parser = Parser::default();
        parser.buffer().extend_from_slice(b"MSG a 1 67000000\r\nabc");
        assert!(matches!(parser.parse(), Ok(None)));
        assert!(parser.buffer.capacity() < 1 << 10);
        let mut parser = Parser::default();
        parser.set_max_payload(1 << 20);
        parser.buffer().extend_from_slice(b"MSG a 1 67000000\r\nabc");
        assert!(parser.parse().is_err());
    }

    #[test]
    fn a_large_message_leaves_no_large_room() {
        let mut parser = Parser::default();
        parser.buffer().extend_from_slice(b"MSG a 1 8000000\r\n");
        parser.buffer().resize(8_000_017, b'x');
        parser.buffer().extend_from_slice(b"\r\n");
        assert!(matches!(parser.parse(), Ok(Some(_))));
        assert!(parser.buffer().capacity() <= KEPT);
    }

    /// Numbers that look random, the same in every run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 33) as usize % end
        }
    }

    /// What was published comes back as the server would deliver it: the same
    /// subject, headers in their order, the same payload.
    #[test]
    fn what_is_written_is_read_again() {
        let mut random = Random(12);
        for _ in 0..2_000 {
            let word = |random: &mut Random| {
                let length = 1 + random.below(12);
                (0..length).map(|_| char::from(b'a' + random.below(26) as u8)).collect::<String>()
            };
            let mut request = Request::new(word(&mut random), vec![]);
            let length = random.below(300);
            request.payload = (0..length).map(|_| random.below(256) as u8).collect();
            for _ in 0..random.below(4) {
                let name = ["Nats-TTL", "Nats-Rollup", "KV-Operation"][random.below(3)];
                request.headers.push((name, word(&mut random)));
            }
            assert_eq!(request.fault(), None);
            let mut bytes = Vec::new();
            publish(&mut bytes, &request, "_INBOX.a.1");
            // A delivery names the subscription after the subject.
            let text = bytes.strip_prefix(b"H").unwrap_or(&bytes);
            let (has_headers, rest) = (text.len() < bytes.len(), &text[4..]);
            let space = memchr(b' ', rest).unwrap();
            let verb: &[u8] = if has_headers { b"HMSG " } else { b"MSG " };
            let wire = [verb, &rest[..space], b" 1", &rest[space..]].concat();
            let message = message(&wire, 1 + random.below(wire.len()));
            assert_eq!(message.subject(), request.subject.as_bytes());
            assert_eq!(message.reply(), Some(&b"_INBOX.a.1"[..]));
            assert_eq!(message.data(), request.payload);
            let sent: Vec<_> =
                request.headers.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
            assert_eq!(message.headers().iter().collect::<Vec<_>>(), sent);
            assert_eq!(message.into_data(), request.payload);
        }
    }

    #[test]
    fn nothing_can_be_smuggled_into_a_line() {
        let request = |subject: &str| Request::new(subject, vec![]);
        for subject in ["", "a b", "a\r\nPUB b 0", "a\tb", "\x7f"] {
            assert!(request(subject).fault().is_some(), "{subject:?}");
        }
        for value in ["", "a\r\nB: c", "a\nb", "\0"] {
            let headers = vec![("A", value.to_owned())];
            assert!(Request { headers, ..request("a") }.fault().is_some(), "{value:?}");
        }
    }
}
