//! The floor under every figure: a bare socket that does no work beyond the
//! protocol's framing. What the server delivers to it, and takes from it, no
//! program can beat.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const BATCH: usize = 8_000;
/// Purges under way.
const WINDOW: usize = 256;
const LIMIT: Duration = Duration::from_secs(600);

/// A logged-in connection with one inbox.
pub struct Socket {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
}

impl Socket {
    pub fn connect(port: u16) -> Socket {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connects");
        stream.set_nodelay(true).expect("an option");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("an option");
        let mut socket = Socket { stream, buffer: Vec::with_capacity(1 << 17), start: 0 };
        socket.line();
        socket.send(
            "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\
             \"no_responders\":true,\"protocol\":1}\r\nSUB floor.* 1\r\nPING\r\n",
        );
        while socket.line() != "PONG" {}
        socket
    }

    fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).expect("sends");
    }

    fn fill(&mut self) {
        if self.start > 1 << 16 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        let length = self.buffer.len();
        self.buffer.resize(length + (1 << 16), 0);
        let count = self.stream.read(&mut self.buffer[length..]).expect("the server sends");
        assert!(count > 0, "the server closed the connection");
        self.buffer.truncate(length + count);
    }

    fn line(&mut self) -> String {
        loop {
            let rest = &self.buffer[self.start..];
            if let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8_lossy(&rest[..end]).into_owned();
                self.start += end + 2;
                return line;
            }
            self.fill();
        }
    }

    /// The words of the next message's first line, and its bytes.
    fn message(&mut self) -> (Vec<String>, Vec<u8>) {
        loop {
            let line = self.line();
            if line == "PING" {
                self.send("PONG\r\n");
            }
            if !line.starts_with("MSG ") && !line.starts_with("HMSG ") {
                continue;
            }
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let total: usize = words.last().and_then(|w| w.parse().ok()).expect("a length");
            while self.buffer.len() - self.start < total + 2 {
                self.fill();
            }
            let bytes = self.buffer[self.start..self.start + total].to_vec();
            self.start += total + 2;
            return (words, bytes);
        }
    }

    fn publish(&mut self, subject: &str, header: &str, body: &str) {
        self.send(&frame(subject, header, body));
    }

    /// One exchange; its answer.
    pub fn request(&mut self, subject: &str, header: &str, body: &str) -> String {
        self.publish(subject, header, body);
        String::from_utf8_lossy(&self.message().1).into_owned()
    }

    /// Takes the newest revision of every key; their subjects and sequences.
    pub fn read_all(&mut self, stream: &str, keep: bool) -> (Duration, usize, Vec<(String, u64)>) {
        let begun = Instant::now();
        let filter = stream.replacen("KV_", "$KV.", 1) + ".>";
        let create = format!(
            "{{\"stream_name\":\"{stream}\",\"config\":{{\"name\":\"floor\",\"deliver_policy\":\
             \"last_per_subject\",\"ack_policy\":\"none\",\"filter_subject\":\"{filter}\",\
             \"mem_storage\":true,\"num_replicas\":1,\"inactive_threshold\":5000000000}}}}"
        );
        self.publish(&format!("$JS.API.CONSUMER.CREATE.{stream}.floor.{filter}"), "", &create);
        // What earlier pulls ended with may come before.
        let made = loop {
            let text = String::from_utf8_lossy(&self.message().1).into_owned();
            if text.contains("consumer_create_response") {
                break text;
            }
        };
        assert!(!made.contains("\"error\""), "{made}");
        if made.contains("\"num_pending\":0,") || made.contains("\"num_pending\":0}") {
            return (begun.elapsed(), 0, Vec::new());
        }
        let next = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.floor");
        let pull = format!("{{\"batch\":{BATCH},\"expires\":20000000000}}");
        let (mut count, mut found) = (0, Vec::new());
        self.publish(&next, "", &pull);
        self.publish(&next, "", &pull);
        loop {
            assert!(begun.elapsed() < LIMIT, "the floor takes too long");
            let (words, _) = self.message();
            // What an earlier pull ended with may still come.
            let Some(reply) = words.iter().find(|word| word.starts_with("$JS.ACK.")) else {
                continue;
            };
            count += 1;
            if keep {
                let sequence = reply.split('.').nth(5).and_then(|s| s.parse().ok());
                found.push((words[1].clone(), sequence.expect("a sequence")));
            }
            if reply.ends_with(".0") {
                break;
            }
            if count % BATCH == 0 {
                self.publish(&next, "", &pull);
            }
        }
        let took = begun.elapsed();
        // Statuses of pulls that found nothing come before the next answer.
        self.publish(&format!("$JS.API.CONSUMER.DELETE.{stream}.floor"), "", "");
        while !String::from_utf8_lossy(&self.message().1).contains("success") {}
        (took, count, found)
    }

    /// Purges each of these; the time it took.
    pub fn purge_all(&mut self, stream: &str, entries: &[(String, u64)]) -> Duration {
        let begun = Instant::now();
        let subject = format!("$JS.API.STREAM.PURGE.{stream}");
        self.pipeline(entries.len(), WINDOW, |i| {
            let (filter, sequence) = &entries[i];
            let body = format!("{{\"filter\":\"{filter}\",\"seq\":{}}}", sequence + 1);
            frame(&subject, "", &body)
        });
        begun.elapsed()
    }

    /// Puts `count` values, each under the subject that `subject` says.
    pub fn put_all(
        &mut self,
        count: usize,
        window: usize,
        header: &str,
        value: &str,
        subject: impl Fn(usize) -> String,
    ) {
        self.pipeline(count, window, |i| frame(&subject(i), header, value));
    }

    /// Sends `count` requests, at most `window` of them unanswered.
    fn pipeline(&mut self, count: usize, window: usize, request: impl Fn(usize) -> String) {
        let begun = Instant::now();
        let (mut sent, mut answered) = (0, 0);
        while answered < count {
            assert!(begun.elapsed() < LIMIT, "the floor takes too long");
            let mut text = String::new();
            while sent < count && sent - answered < window {
                text.push_str(&request(sent));
                sent += 1;
            }
            self.send(&text);
            // Half a window at a time, so that the server is never idle.
            let until = sent.min(answered + window / 2);
            while answered < until {
                // Statuses, of earlier pulls, come with a header.
                answered += usize::from(self.message().0[0] == "MSG");
            }
        }
    }
}

fn frame(subject: &str, header: &str, body: &str) -> String {
    if header.is_empty() {
        return format!("PUB {subject} floor.1 {}\r\n{body}\r\n", body.len());
    }
    let total = header.len() + body.len();
    format!("HPUB {subject} floor.1 {} {total}\r\n{header}{body}\r\n", header.len())
}
