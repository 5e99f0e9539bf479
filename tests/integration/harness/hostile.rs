//! A server of the tests' own that speaks NATS and means no good: it does what a
//! test wants in the place of a reply, or talks without end, and can be told to
//! behave.

use std::fmt::Display;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::scene::{KEY, record};
use super::{millis, secs, time as rfc3339};

/// A request as it came.
pub struct Asked {
    pub subject: String,
    pub reply: String,
}

impl Asked {
    pub fn is(&self, what: &str) -> bool {
        self.subject.starts_with(what)
    }

    /// The reply subject of what the consumer delivers that is asked.
    pub fn ack(&self, sequence: impl Display, pending: impl Display) -> String {
        let consumer = self.subject.rsplit('.').next().unwrap_or_default();
        let now = rfc3339::now().unix_timestamp_nanos();
        format!("$JS.ACK.KV_service_registry.{consumer}.1.{sequence}.1.{now}.{pending}")
    }
}

/// What the server sends for a request; `None` for what a good one would.
pub type Evil = dyn Fn(&Asked, &mut dyn Write) -> Option<()> + Send + Sync;

/// When a server begins to talk without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// After its greeting: nothing that it is sent is answered.
    Greeted,
    /// After the PONG that makes a session of it.
    Connected,
    /// In the place of the first reply.
    Asked,
    /// In the place of what a consumer delivers, when it is asked for it.
    Pulled,
}

/// How fast it talks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As fast as it is listened to.
    Flood,
    /// A word each 20 ms: there is always something new, and time in between.
    Drip,
    /// Half a megabyte a second, and between it answers as a good server does.
    Beside,
}

/// What it says over and over, for a subject that the client listens to and
/// the number of that subscription.
pub type Chatter = dyn Fn(&str, &str) -> Vec<u8> + Send + Sync;

pub struct Hostile {
    port: u16,
    state: Arc<State>,
}

struct State {
    evil: Box<Evil>,
    chatter: Option<(Stage, Pace, Box<Chatter>)>,
    /// The line that a client is greeted with.
    greeting: Box<dyn Fn(u16) -> Vec<u8> + Send + Sync>,
    good: AtomicBool,
    end: AtomicBool,
    connections: AtomicUsize,
    stored: Mutex<u64>,
}

pub fn info(port: u16) -> Value {
    json!({
        "server_id": "NHOSTILE", "server_name": "hostile", "version": "2.12.8", "go": "go1.25",
        "host": "127.0.0.1", "port": port, "headers": true, "max_payload": 1 << 20, "proto": 1,
        "client_id": 7, "jetstream": true,
    })
}

pub fn greeting(port: u16) -> Vec<u8> {
    format!("INFO {} \r\n", info(port)).into_bytes()
}

impl State {
    fn is_quiet(&self) -> bool {
        self.good.load(Ordering::SeqCst) || self.end.load(Ordering::SeqCst)
    }
}

impl Hostile {
    pub fn start(
        evil: impl Fn(&Asked, &mut dyn Write) -> Option<()> + Send + Sync + 'static,
    ) -> Hostile {
        Hostile::greeting(greeting, evil)
    }

    pub fn greeting(
        greeting: impl Fn(u16) -> Vec<u8> + Send + Sync + 'static,
        evil: impl Fn(&Asked, &mut dyn Write) -> Option<()> + Send + Sync + 'static,
    ) -> Hostile {
        Hostile::listening(Box::new(greeting), Box::new(evil), None)
    }

    /// A server that talks without end from this stage on, and answers nothing
    /// any more unless that is its pace.
    pub fn chatting(
        stage: Stage,
        pace: Pace,
        chatter: impl Fn(&str, &str) -> Vec<u8> + Send + Sync + 'static,
    ) -> Hostile {
        let chatter = Some((stage, pace, Box::new(chatter) as Box<Chatter>));
        Hostile::listening(Box::new(greeting), Box::new(|_, _| None), chatter)
    }

    /// A server that does what `evil` does, and talks beside it from the first
    /// PONG on.
    pub fn talkative(
        chatter: impl Fn(&str, &str) -> Vec<u8> + Send + Sync + 'static,
        evil: impl Fn(&Asked, &mut dyn Write) -> Option<()> + Send + Sync + 'static,
    ) -> Hostile {
        let chatter = (Stage::Connected, Pace::Beside, Box::new(chatter) as Box<Chatter>);
        Hostile::listening(Box::new(greeting), Box::new(evil), Some(chatter))
    }

    fn listening(
        greeting: Box<dyn Fn(u16) -> Vec<u8> + Send + Sync>,
        evil: Box<Evil>,
        chatter: Option<(Stage, Pace, Box<Chatter>)>,
    ) -> Hostile {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let state = Arc::new(State {
            evil,
            greeting,
            chatter,
            good: AtomicBool::new(false),
            end: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            stored: Mutex::new(0),
        });
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.end.load(Ordering::SeqCst) {
                    return;
                }
                let shared = shared.clone();
                std::thread::spawn(move || serve(&shared, stream, port));
            }
        });
        Hostile { port, state }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// From now on it behaves.
    pub fn behave(&self) {
        self.state.good.store(true, Ordering::SeqCst);
    }

    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.state.end.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn serve(state: &Arc<State>, stream: TcpStream, port: u16) -> Option<()> {
    state.connections.fetch_add(1, Ordering::SeqCst);
    let good = || state.good.load(Ordering::SeqCst);
    // Nobody reads what an endless writer sends: that must not keep a thread.
    stream.set_write_timeout(Some(secs(5))).ok()?;
    let writer = Arc::new(Mutex::new(stream.try_clone().ok()?));
    let send = |bytes: &[u8]| writer.lock().ok()?.write_all(bytes).ok();
    send(&if good() { greeting(port) } else { (state.greeting)(port) })?;
    let mut heard = ("_INBOX.x".to_owned(), "1".to_owned());
    chat(state, Stage::Greeted, &heard, &writer)?;
    let mut is_connected = false;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match *words.first()? {
            "PING" => {
                send(b"PONG\r\n")?;
                if !std::mem::replace(&mut is_connected, true) {
                    chat(state, Stage::Connected, &heard, &writer)?;
                }
            }
            "SUB" => {
                let subject = words.get(1)?.replace(['*', '>'], "x");
                heard = (subject, (*words.last()?).to_owned());
            }
            "PUB" | "HPUB" => {
                let size: usize = words.last()?.parse().ok()?;
                let mut payload = vec![0; size + 2];
                reader.read_exact(&mut payload).ok()?;
                let header = words[0] == "HPUB";
                let has_reply = words.len() == if header { 5 } else { 4 };
                let reply = if has_reply { words[2] } else { "" }.to_owned();
                let asked = Asked { subject: words[1].to_owned(), reply };
                chat(state, Stage::Asked, &heard, &writer)?;
                if asked.is("$JS.API.CONSUMER.MSG.NEXT.") {
                    let pull = (asked.reply.clone(), heard.1.clone());
                    chat(state, Stage::Pulled, &pull, &writer)?;
                }
                let writer = &mut *writer.lock().ok()?;
                if good() || (state.evil)(&asked, writer).is_none() {
                    behave(state, &asked, writer)?;
                }
            }
            _ => {}
        }
    }
}

/// Talks until nobody listens any more or the server is to behave, if this is
/// the stage for it; `None` after that.
fn chat(
    state: &Arc<State>,
    stage: Stage,
    (subject, id): &(String, String),
    writer: &Arc<Mutex<TcpStream>>,
) -> Option<()> {
    let chatter = state.chatter.as_ref().filter(|(at, ..)| *at == stage && !state.is_quiet());
    let Some((_, pace, words)) = chatter else { return Some(()) };
    let (words, pace) = (words(subject, id), *pace);
    if pace == Pace::Beside {
        let (state, writer) = (state.clone(), writer.clone());
        std::thread::spawn(move || talk(&state, &words, pace, &writer));
        return Some(());
    }
    talk(state, &words, pace, writer);
    None
}

fn talk(state: &State, words: &[u8], pace: Pace, writer: &Mutex<TcpStream>) -> Option<()> {
    let (size, pause) = match pace {
        Pace::Flood => (60_000, millis(0)),
        Pace::Drip => (0, millis(20)),
        Pace::Beside => (2_000, millis(5)),
    };
    let words = words.repeat(1 + size / words.len().max(1));
    while !state.is_quiet() {
        writer.lock().ok()?.write_all(&words).ok()?;
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    None
}

pub fn msg(writer: &mut dyn Write, subject: &str, reply: &str, payload: &[u8]) -> Option<()> {
    write!(writer, "MSG {subject} 1 {reply} {}\r\n", payload.len()).ok()?;
    writer.write_all(payload).ok()?;
    writer.write_all(b"\r\n").ok()
}

pub fn stream_info() -> Value {
    json!({
        "type": "io.nats.jetstream.api.v1.stream_info_response",
        "config": {
            "name": "KV_service_registry", "subjects": ["$KV.service_registry.>"],
            "max_msgs_per_subject": 1, "allow_msg_ttl": true, "allow_direct": true,
            "allow_rollup_hdrs": true, "metadata": { "_nats.ver": "2.12.8", "_nats.level": "3" },
        },
        "state": { "messages": 1, "bytes": 100, "first_seq": 1, "last_seq": 1, "num_subjects": 1 },
        "ts": rfc3339::rfc3339(rfc3339::now()),
    })
}

pub fn consumer_info(pending: u64) -> Value {
    json!({
        "stream_name": "KV_service_registry", "num_pending": pending,
        "delivered": { "consumer_seq": 0, "stream_seq": 0 }, "ts": rfc3339::rfc3339(rfc3339::now()),
    })
}

/// What a good server does: one instance, and room for ours.
fn behave(state: &State, asked: &Asked, writer: &mut dyn Write) -> Option<()> {
    let mut json = |value: Value| msg(writer, &asked.reply, "", value.to_string().as_bytes());
    if asked.reply.is_empty() {
        Some(())
    } else if asked.is("$JS.API.STREAM.INFO.") {
        json(stream_info())
    } else if asked.is("$JS.API.STREAM.PURGE.") {
        json(json!({ "success": true, "purged": 1 }))
    } else if asked.is("$JS.API.CONSUMER.MSG.NEXT.") {
        let subject = format!("$KV.service_registry.{KEY}");
        msg(writer, &subject, &asked.ack(1, 0), record("host-1", 0).as_bytes())
    } else if asked.is("$JS.API.CONSUMER.") {
        json(consumer_info(1))
    } else if asked.is("$JS.API.DIRECT.GET.") {
        let header = "NATS/1.0 404 Message Not Found\r\n\r\n";
        let size = header.len();
        write!(writer, "HMSG {} 1 {size} {size}\r\n{header}\r\n", asked.reply).ok()
    } else if asked.is("$JS.API.STREAM.MSG.GET.") {
        json(
            json!({ "error": { "code": 404, "err_code": 10037, "description": "no message found" } }),
        )
    } else if asked.is("$KV.") {
        let mut stored = state.stored.lock().ok()?;
        *stored += 1;
        let seq = *stored;
        json(json!({ "stream": "KV_service_registry", "seq": seq }))
    } else {
        json(json!({ "error": { "code": 400, "err_code": 10000, "description": "no" } }))
    }
}
