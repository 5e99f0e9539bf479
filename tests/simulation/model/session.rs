//! One connection of a client, as its server sees it: the client protocol.

/// The first byte of who wants TLS before anything else.
const TLS_HANDSHAKE: u8 = 22;

/// What a client published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Publish {
    pub subject: String,
    pub reply: Option<String>,
    /// The header block with its first line and its last, or nothing.
    pub headers: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Publish {
    /// The value of a header; names are case-sensitive.
    pub fn header(&self, name: &str) -> Option<&str> {
        let text = std::str::from_utf8(&self.headers).ok()?;
        let mut lines = text.split("\r\n").skip(1);
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }
}

/// The server's side of a connection.
#[derive(Debug, Default)]
pub struct Session {
    input: Vec<u8>,
    /// `CONNECT` was heard.
    pub connected: bool,
    /// Number and subject of each subscription.
    subscriptions: Vec<(String, String)>,
    /// Questions whether the client is there that it has not answered.
    pub pings: u32,
    /// The client broke the protocol.
    pub broken: bool,
    /// It wanted TLS, which is not to be had.
    pub is_tls: bool,
}

impl Session {
    /// Takes bytes of the client; answers the protocol's own questions into
    /// `out`, and returns what was published.
    pub fn hear(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Vec<Publish> {
        self.input.extend_from_slice(bytes);
        if self.input.is_empty() {
            return Vec::new();
        }
        let mut published = Vec::new();
        if !self.connected && self.input[0] == TLS_HANDSHAKE {
            self.is_tls = true;
            return self.breaks(out, published);
        }
        let mut at = 0;
        while let Some(length) = memchr::memmem::find(&self.input[at..], b"\r\n") {
            let line = String::from_utf8_lossy(&self.input[at..at + length]).into_owned();
            let body = at + length + 2;
            let mut words = line.split_ascii_whitespace();
            let operation = words.next().unwrap_or_default().to_ascii_uppercase();
            let words: Vec<&str> = words.collect();
            at = match operation.as_str() {
                "CONNECT" => {
                    self.connected = true;
                    body
                }
                "PING" => {
                    out.extend_from_slice(b"PONG\r\n");
                    body
                }
                "PONG" => {
                    self.pings = 0;
                    body
                }
                "SUB" if words.len() == 2 => {
                    self.subscriptions.push((words[1].to_owned(), words[0].to_owned()));
                    body
                }
                "UNSUB" => {
                    self.subscriptions.retain(|(sid, _)| Some(&sid.as_str()) != words.first());
                    body
                }
                "PUB" | "HPUB" => match message(&operation, &words, &self.input[body..]) {
                    Some(Ok((publish, taken))) => {
                        published.push(publish);
                        body + taken
                    }
                    // The rest is still on its way.
                    Some(Err(())) => break,
                    None => return self.breaks(out, published),
                },
                _ => return self.breaks(out, published),
            };
        }
        self.input.drain(..at);
        published
    }

    fn breaks(&mut self, out: &mut Vec<u8>, published: Vec<Publish>) -> Vec<Publish> {
        out.extend_from_slice(b"-ERR 'Unknown Protocol Operation'\r\n");
        self.broken = true;
        published
    }

    /// A message for this client, if it has subscribed to the subject.
    pub fn deliver(
        &self,
        subject: &str,
        reply: Option<&str>,
        headers: &[u8],
        payload: &[u8],
        out: &mut Vec<u8>,
    ) {
        self.deliver_as(subject, subject, reply, headers, payload, out);
    }

    /// A message that goes `to` where this client has subscribed, under the subject
    /// by which it was stored.
    pub fn deliver_as(
        &self,
        subject: &str,
        to: &str,
        reply: Option<&str>,
        headers: &[u8],
        payload: &[u8],
        out: &mut Vec<u8>,
    ) {
        let wants = |pattern: &str| matches(pattern, to);
        let Some((sid, _)) = self.subscriptions.iter().find(|(_, pattern)| wants(pattern)) else {
            return;
        };
        let reply = reply.map(|reply| format!(" {reply}")).unwrap_or_default();
        let line = match headers.len() {
            0 => format!("MSG {subject} {sid}{reply} {}\r\n", payload.len()),
            length => {
                format!("HMSG {subject} {sid}{reply} {length} {}\r\n", length + payload.len())
            }
        };
        out.extend_from_slice(line.as_bytes());
        out.extend_from_slice(headers);
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
    }
}

/// A message and how many bytes it took; `Some(Err)` where it is not all there,
/// `None` where it is none.
#[allow(clippy::type_complexity)]
fn message(operation: &str, words: &[&str], rest: &[u8]) -> Option<Result<(Publish, usize), ()>> {
    let sizes = if operation == "HPUB" { 2 } else { 1 };
    let (names, numbers) = words.split_at_checked(words.len().checked_sub(sizes)?)?;
    let (subject, reply) = match names {
        [subject] => (subject, None),
        [subject, reply] => (subject, Some((*reply).to_owned())),
        _ => return None,
    };
    let total: usize = numbers.last()?.parse().ok()?;
    let headers: usize = if sizes == 2 { numbers[0].parse().ok()? } else { 0 };
    if rest.len() < total + 2 {
        return Some(Err(()));
    }
    let publish = Publish {
        subject: (*subject).to_owned(),
        reply,
        headers: rest[..headers.min(total)].to_vec(),
        payload: rest[headers.min(total)..total].to_vec(),
    };
    Some(Ok((publish, total + 2)))
}

/// Whether a subject matches a pattern with `*` and `>`.
pub fn matches(pattern: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in pattern.split('.') {
        match (wanted, tokens.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}
