//! A TCP proxy between a client and a server that can hold, lose, delay and
//! rewrite what passes, and cut or refuse connections.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::time::{parse, rfc3339};
use super::{free_port, millis};

/// What happens to the bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Forward,
    /// Nothing is read, nothing is lost: a black hole that can heal.
    Hold,
    /// Everything is read and thrown away.
    Discard,
}

/// Which bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
}

/// What becomes of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    Passes,
    IsLost,
    /// The same with this payload.
    Becomes(String),
}

/// What a connection meets in place of the server.
#[derive(Debug, Clone)]
pub struct Greeting {
    pub bytes: Vec<u8>,
    /// Ends the connection after the bytes; otherwise it stays open, silent.
    pub close: bool,
}

type Rewrite = Box<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

struct State {
    target: u16,
    flow: [Mutex<Flow>; 2],
    delay: [Mutex<Duration>; 2],
    /// All connections end when one has passed so many more bytes on.
    fuse: [Mutex<Option<usize>>; 2],
    greeting: Mutex<Option<Greeting>>,
    /// A connection ends on which nothing has passed for so long.
    idle: Mutex<Option<Duration>>,
    rewrite: [Mutex<Option<Rewrite>>; 2],
    refuse: AtomicBool,
    end: AtomicBool,
    /// Raised by `cut`: connections of an earlier generation end.
    generation: AtomicU64,
    bytes: [AtomicU64; 2],
    accepted: AtomicUsize,
    open: AtomicUsize,
}

pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
}

impl Proxy {
    /// A proxy to this port of 127.0.0.1; nothing need listen there yet.
    pub fn to(target: u16) -> Proxy {
        // Who looks whether a port is free holds it for a moment.
        let listening = (0..5).find_map(|_| {
            let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
            Some((address, TcpListener::bind(address).ok()?))
        });
        let (address, listener) = listening.expect("a port for the proxy");
        Proxy::on(address, listener, target)
    }

    /// As `to`, on an address of one's own.
    pub fn listening(address: SocketAddr, target: u16) -> Proxy {
        Proxy::on(address, listen(address), target)
    }

    fn on(address: SocketAddr, listener: TcpListener, target: u16) -> Proxy {
        let state = Arc::new(State {
            target,
            flow: [Mutex::new(Flow::Forward), Mutex::new(Flow::Forward)],
            delay: Default::default(),
            fuse: Default::default(),
            greeting: Mutex::default(),
            idle: Mutex::default(),
            rewrite: Default::default(),
            refuse: AtomicBool::new(false),
            end: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            bytes: Default::default(),
            accepted: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
        });
        listener.set_nonblocking(true).expect("a listener that does not block");
        let shared = state.clone();
        std::thread::spawn(move || accept(&shared, address, listener));
        Proxy { address, state }
    }

    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Both directions.
    pub fn set(&self, flow: Flow) {
        self.set_one(Direction::ToServer, flow);
        self.set_one(Direction::ToClient, flow);
    }

    pub fn set_one(&self, direction: Direction, flow: Flow) {
        *lock(&self.state.flow[direction as usize]) = flow;
    }

    /// Holds each chunk of both directions back this long.
    pub fn delay(&self, time: Duration) {
        self.delay_one(Direction::ToServer, time);
        self.delay_one(Direction::ToClient, time);
    }

    pub fn delay_one(&self, direction: Direction, time: Duration) {
        *lock(&self.state.delay[direction as usize]) = time;
    }

    /// Ends all connections once `bytes` more went in this direction, in the
    /// middle of whatever it is.
    pub fn cut_after(&self, direction: Direction, bytes: usize) {
        *lock(&self.state.fuse[direction as usize]) = Some(bytes);
    }

    /// New connections meet `greeting` and not the server, until `None`.
    pub fn greet(&self, greeting: Option<Greeting>) {
        *lock(&self.state.greeting) = greeting;
    }

    /// Closes a connection on which nothing has passed for so long, in either
    /// direction.
    pub fn close_idle(&self, after: Duration) {
        *lock(&self.state.idle) = Some(after);
    }

    /// Passes what the server says through `rewrite`, chunk by chunk.
    pub fn rewrite(&self, rewrite: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) {
        self.rewrite_way(Direction::ToClient, rewrite);
    }

    /// The same for what clients say.
    pub fn rewrite_requests(&self, rewrite: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) {
        self.rewrite_way(Direction::ToServer, rewrite);
    }

    fn rewrite_way(
        &self,
        direction: Direction,
        rewrite: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static,
    ) {
        *lock(&self.state.rewrite[direction as usize]) = Some(Box::new(rewrite));
    }

    /// Decides about each message that the server sends, frame by frame; a frame
    /// that is torn passes.
    pub fn rewrite_messages(&self, fate: impl Fn(&str) -> Fate + Send + Sync + 'static) {
        self.rewrite(move |bytes| {
            let mut kept = Vec::new();
            let mut rest = bytes;
            while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&rest[..end]).into_owned();
                let words: Vec<&str> = line.split(' ').collect();
                let is_message = matches!(words[0], "MSG" | "HMSG");
                let payload =
                    if is_message { words[words.len() - 1].parse().unwrap_or(0) + 2 } else { 0 };
                let (frame, after) = rest.split_at((end + 2 + payload).min(rest.len()));
                rest = after;
                match is_message.then(|| fate(&String::from_utf8_lossy(frame))) {
                    None | Some(Fate::Passes) => kept.extend_from_slice(frame),
                    Some(Fate::IsLost) => {}
                    Some(Fate::Becomes(text)) => {
                        let head = format!("MSG {} {} {}\r\n", words[1], words[2], text.len());
                        kept.extend(format!("{head}{text}\r\n").bytes());
                    }
                }
            }
            kept.extend_from_slice(rest);
            kept
        });
    }

    /// A proxy to a server whose clock, as its replies tell it, is an hour ahead
    /// of ours, and of its own past.
    pub fn an_hour_ahead(target: u16) -> Proxy {
        let proxy = Proxy::to(target);
        proxy.rewrite(|bytes| {
            // The text stays as long as it was.
            let mut bytes = bytes.to_vec();
            let mark = b"\"ts\":\"";
            let places: Vec<usize> = (0..bytes.len().saturating_sub(mark.len() + 19))
                .filter(|&at| bytes[at..].starts_with(mark))
                .collect();
            for at in places {
                let time = at + mark.len()..at + mark.len() + 19;
                let text = String::from_utf8_lossy(&bytes[time.clone()]).into_owned();
                let later = rfc3339(parse(&format!("{text}Z")) + time::Duration::hours(1));
                bytes[time].copy_from_slice(&later.as_bytes()[..19]);
            }
            bytes
        });
        proxy
    }

    /// Ends all connections; new ones are taken.
    pub fn cut(&self) {
        self.state.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// With `true`, connecting is refused as where nothing listens; the
    /// connections that stand are left alone.
    pub fn refuse(&self, refuse: bool) {
        self.state.refuse.store(refuse, Ordering::SeqCst);
    }

    /// Bytes passed on so far.
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.state.bytes[direction as usize].load(Ordering::SeqCst)
    }

    /// Connections taken so far.
    pub fn accepted(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// Connections that stand.
    pub fn open(&self) -> usize {
        self.state.open.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.end.store(true, Ordering::SeqCst);
        self.cut();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn listen(address: SocketAddr) -> TcpListener {
    let listener = TcpListener::bind(address).expect("the proxy's port is free");
    listener.set_nonblocking(true).expect("a listener that does not block");
    listener
}

fn accept(state: &Arc<State>, address: SocketAddr, listener: TcpListener) {
    let mut listener = Some(listener);
    while !state.end.load(Ordering::SeqCst) {
        if state.refuse.load(Ordering::SeqCst) {
            listener = None;
        }
        match &listener {
            Some(open) => match open.accept() {
                Ok((client, _)) => connect(state, client),
                Err(_) => std::thread::sleep(millis(2)),
            },
            None if state.refuse.load(Ordering::SeqCst) => std::thread::sleep(millis(2)),
            None => listener = Some(listen(address)),
        }
    }
}

fn connect(state: &Arc<State>, client: TcpStream) {
    state.accepted.fetch_add(1, Ordering::SeqCst);
    if let Some(greeting) = lock(&state.greeting).clone() {
        let state = state.clone();
        std::thread::spawn(move || greet(&state, client, &greeting));
        return;
    }
    // A server that is away: the client sees its connection end at once.
    let Ok(server) = TcpStream::connect(("127.0.0.1", state.target)) else {
        return;
    };
    state.open.fetch_add(1, Ordering::SeqCst);
    let generation = state.generation.load(Ordering::SeqCst);
    let ends = [&client, &server].map(|end| {
        end.set_nonblocking(false).expect("blocks");
        end.set_read_timeout(Some(millis(20))).expect("reads with a limit");
        end.set_write_timeout(Some(millis(500))).expect("writes with a limit");
        end.set_nodelay(true).expect("sends at once");
        end.try_clone().expect("a second handle")
    });
    let [client_again, server_again] = ends;
    let closer = state.clone();
    let passed = Arc::new(Mutex::new(Instant::now()));
    let pump = |direction, from, to| spawn_pump(state, direction, generation, &passed, from, to);
    let one = pump(Direction::ToServer, client, server);
    let other = pump(Direction::ToClient, server_again, client_again);
    std::thread::spawn(move || {
        let _ = one.join();
        let _ = other.join();
        closer.open.fetch_sub(1, Ordering::SeqCst);
    });
}

fn greet(state: &State, mut client: TcpStream, greeting: &Greeting) {
    let generation = state.generation.load(Ordering::SeqCst);
    client.set_nonblocking(false).expect("blocks");
    client.set_read_timeout(Some(millis(20))).expect("reads with a limit");
    client.set_write_timeout(Some(millis(500))).expect("writes with a limit");
    let _ = client.write_all(&greeting.bytes);
    let mut open = !greeting.close;
    while open && state.generation.load(Ordering::SeqCst) == generation {
        open = match client.read(&mut [0; 1024]) {
            Ok(count) => count > 0,
            Err(e) => matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        };
    }
    let _ = client.shutdown(Shutdown::Both);
}

fn spawn_pump(
    state: &Arc<State>,
    direction: Direction,
    generation: u64,
    passed: &Arc<Mutex<Instant>>,
    from: TcpStream,
    to: TcpStream,
) -> std::thread::JoinHandle<()> {
    let (state, passed) = (state.clone(), passed.clone());
    std::thread::spawn(move || {
        pump(&state, direction, generation, &passed, &from, &to);
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    })
}

fn pump(
    state: &State,
    direction: Direction,
    generation: u64,
    passed: &Mutex<Instant>,
    mut from: &TcpStream,
    mut to: &TcpStream,
) {
    let current = || state.generation.load(Ordering::SeqCst) == generation;
    let flow = || *lock(&state.flow[direction as usize]);
    let mut chunk = [0; 16 * 1024];
    while current() {
        if lock(&state.idle).is_some_and(|after| lock(passed).elapsed() > after) {
            return;
        }
        if flow() == Flow::Hold {
            std::thread::sleep(millis(2));
            continue;
        }
        let count = match from.read(&mut chunk) {
            Ok(0) => return,
            Ok(count) => count,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => return,
        };
        *lock(passed) = Instant::now();
        let until = Instant::now() + *lock(&state.delay[direction as usize]);
        while current() && (flow() == Flow::Hold || Instant::now() < until) {
            std::thread::sleep(millis(2));
        }
        if flow() == Flow::Discard {
            continue;
        }
        let mut bytes = chunk[..count].to_vec();
        if let Some(rewrite) = &*lock(&state.rewrite[direction as usize]) {
            bytes = rewrite(&bytes);
        }
        let fuse = *lock(&state.fuse[direction as usize]);
        let burns = fuse.is_some_and(|left| left <= bytes.len());
        if let Some(left) = fuse {
            bytes.truncate(left);
            *lock(&state.fuse[direction as usize]) = (!burns).then_some(left - bytes.len());
        }
        let mut sent = 0;
        while sent < bytes.len() && current() {
            match to.write(&bytes[sent..]) {
                Ok(count) => sent += count,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return,
            }
        }
        state.bytes[direction as usize].fetch_add(bytes.len() as u64, Ordering::SeqCst);
        if burns {
            state.generation.fetch_add(1, Ordering::SeqCst);
            return;
        }
    }
}
