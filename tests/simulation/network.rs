//! The network between agents and servers: connections as bytes that take time.
//!
//! An agent's end is a real socket, and the other end of it is ours. Within a
//! connection nothing is lost, doubled or changes its place, as TCP has it; but
//! pieces are cut anywhere, wait while the way is closed, and die with the
//! connection.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::{io, mem};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::model::Session;
use crate::plan::Plan;
use crate::world::{Event, MILLI, Micros, SECOND, World};

pub type ConnId = u64;

/// What was sent and is not acknowledged ends the connection of an agent after
/// this time: it asks its kernel for that (`TCP_USER_TIMEOUT`).
const USER_TIMEOUT: Micros = 2_500 * MILLI;
const LONGEST_PIECE: usize = 48 << 10;
/// Connections that one agent may have open at one time.
const OPEN_LIMIT: usize = 66;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the agent to the server.
    Up,
    Down,
}

/// The way between one host and one server.
#[derive(Clone, Debug, Default)]
pub struct Link {
    /// How many faults close it, in each direction.
    pub up_closed: u32,
    pub down_closed: u32,
    /// So much slower than usual.
    pub slower: Micros,
    /// One in so many pieces is lost at first; 0 for none.
    pub loses: u64,
}

impl Link {
    pub fn is_open(&self, direction: Direction) -> bool {
        match direction {
            Direction::Up => self.up_closed == 0,
            Direction::Down => self.down_closed == 0,
        }
    }

    /// Whether it is as it should be.
    pub fn is_good(&self) -> bool {
        self.up_closed == 0 && self.down_closed == 0 && self.slower == 0 && self.loses == 0
    }
}

enum Piece {
    Bytes(Vec<u8>),
    /// The end of the connection: nothing comes after it.
    End,
}

#[derive(Default)]
struct Flow {
    /// On its way, with the time of its arrival.
    coming: VecDeque<(Micros, Piece)>,
    /// Waits until the way is open again.
    held: VecDeque<Piece>,
    last: Micros,
}

/// One connection.
pub struct Conn {
    pub slot: usize,
    /// When the agent began it.
    pub began: Micros,
    pub server: usize,
    /// The number of the agent's socket.
    fd: RawFd,
    /// The same socket, until it is connected.
    dialling: Option<UnixStream>,
    ours: Option<UnixStream>,
    up: Flow,
    down: Flow,
    unacknowledged: Option<Micros>,
    /// There may be something to read for the agent.
    readable: bool,
    /// The server's end, once it has taken the connection.
    pub session: Option<Session>,
    /// Has come, and a frozen server has not read it.
    pub unread: Vec<u8>,
    /// The server has greeted.
    pub greeted: bool,
    /// The agent has closed it, or was told that it is gone.
    pub closed: bool,
    /// Something between has forgotten it: nothing passes any more.
    dropped: bool,
    /// The server's end is gone; what comes is answered with a reset.
    pub orphan: bool,
}

pub struct Network {
    pub conns: BTreeMap<ConnId, Conn>,
    pub next: ConnId,
    pub links: Vec<Vec<Link>>,
    listener: UnixListener,
    address: UnixAddr,
    latency: Micros,
    pub dials: u64,
    /// The most that were open at one time.
    pub most_open: usize,
}

static LISTENERS: AtomicU64 = AtomicU64::new(0);

/// A place for sockets to connect to, of this process alone.
fn listener() -> io::Result<(UnixListener, UnixAddr)> {
    let number = LISTENERS.fetch_add(1, Ordering::Relaxed);
    let name = format!("aegis-simulation-{}-{number}", std::process::id());
    let address = UnixAddr::from_abstract_name(name)?;
    Ok((UnixListener::bind_addr(&address)?, address))
}

impl Network {
    pub fn new(plan: &Plan) -> Network {
        let (listener, address) = listener().expect("an abstract socket can be bound");
        let servers = plan.servers.len();
        // One more for tools.
        let hosts = plan.hosts.len() + 1;
        Network {
            conns: BTreeMap::new(),
            next: 0,
            links: vec![vec![Link::default(); servers]; hosts],
            listener,
            address,
            latency: plan.latency,
            dials: 0,
            most_open: 0,
        }
    }

    /// The connections of an agent that is no more.
    pub fn forget(&mut self, slot: usize) {
        self.conns.retain(|_, conn| conn.slot != slot || conn.dialling.is_none());
    }

    fn open(&self, slot: usize) -> usize {
        self.conns.values().filter(|conn| conn.slot == slot && !conn.closed).count()
    }

    /// Connections that a server has, in their order.
    pub fn of_server(&self, server: usize) -> Vec<ConnId> {
        let of = |conn: &Conn| conn.server == server && conn.session.is_some();
        self.conns.iter().filter(|(_, conn)| of(conn)).map(|(id, _)| *id).collect()
    }
}

impl World {
    /// An agent begins to connect.
    pub fn dial(&mut self, slot: usize, server: usize) -> io::Result<TcpStream> {
        self.collect(slot);
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket: OwnedFd =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let fd = socket.as_raw_fd();
        // Whoever had that number before is closed, and was given up where it had
        // not come about. The kernel gives numbers as it likes.
        self.network
            .conns
            .retain(|_, conn| conn.slot != slot || conn.fd != fd || conn.dialling.is_none());
        for conn in self.network.conns.values_mut().filter(|conn| conn.fd == fd) {
            conn.fd = -1;
        }
        let dialling = UnixStream::from(socket.try_clone()?);
        let id = self.network.next;
        self.network.next += 1;
        self.network.dials += 1;
        self.network.conns.insert(
            id,
            Conn {
                slot,
                began: self.now,
                server,
                fd,
                dialling: Some(dialling),
                ours: None,
                up: Flow::default(),
                down: Flow::default(),
                unacknowledged: None,
                readable: false,
                session: None,
                unread: Vec::new(),
                greeted: false,
                closed: false,
                dropped: false,
                orphan: false,
            },
        );
        let open = self.network.open(slot);
        self.network.most_open = self.network.most_open.max(open);
        if open > OPEN_LIMIT {
            self.judge.violated(self.now, format!("agent {slot} has {open} connections open"));
        }
        self.say(|| format!("agent {slot} begins connection {id} to server {server}"));
        self.after(0, Event::Syn { conn: id, tries: 0 });
        Ok(TcpStream::from(socket))
    }

    pub fn syn(&mut self, id: ConnId, tries: u32) {
        let Some(conn) = self.network.conns.get(&id).filter(|conn| conn.dialling.is_some()) else {
            return;
        };
        let (slot, server) = (conn.slot, conn.server);
        let link = self.network.links[slot][server].clone();
        let lost = link.loses > 0 && self.rng.one_in(link.loses);
        let place = &self.cluster.servers[server];
        if !link.is_good() && (lost || link.up_closed > 0 || link.down_closed > 0) || !place.powered
        {
            // The kernel's own pauses.
            let pause = [1, 2, 4, 8, 16][tries.min(4) as usize] * SECOND;
            self.after(pause, Event::Syn { conn: id, tries: tries + 1 });
            return;
        }
        let listens = place.listens();
        self.connected(id, listens);
    }

    /// The agent's socket is connected, or refused.
    fn connected(&mut self, id: ConnId, listens: bool) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let Some(dialling) = conn.dialling.take() else { return };
        let connected = rustix::net::SocketAddrUnix::new_abstract_name(
            self.network.address.as_abstract_name().unwrap_or_default(),
        )
        .and_then(|address| rustix::net::connect(&dialling, &address))
        .map_err(io::Error::from)
        .and_then(|()| self.network.listener.accept());
        let (slot, server) = (conn.slot, conn.server);
        match connected {
            Ok((ours, _)) if listens => {
                ours.set_nonblocking(true).ok();
                conn.ours = Some(ours);
                conn.readable = true;
                self.accepted(id, server);
            }
            // A byte that is not read when its reader goes is a reset.
            Ok((ours, _)) => {
                (&dialling).write_all(b"x").ok();
                drop(ours);
                conn.closed = true;
                conn.readable = true;
            }
            Err(error) => {
                self.judge.violated(self.now, format!("the simulator cannot connect: {error}"));
            }
        }
        self.wake(slot);
    }

    /// Takes what an agent has written, and notices what it has closed.
    pub fn collect(&mut self, slot: usize) {
        let mut buffer = [0_u8; 16 << 10];
        let ids: Vec<ConnId> = self
            .network
            .conns
            .iter()
            .filter(|(_, conn)| conn.slot == slot && !conn.closed && conn.ours.is_some())
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            while let Some(ours) =
                self.network.conns.get_mut(&id).and_then(|conn| conn.ours.as_mut())
            {
                match ours.read(&mut buffer) {
                    Ok(0) => {
                        self.agent_closed(id);
                        break;
                    }
                    Ok(count) => {
                        self.send(id, Direction::Up, buffer[..count].to_vec());
                        if count < buffer.len() {
                            // An end is seen the next time, if there is one.
                            continue;
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => {
                        self.agent_closed(id);
                        break;
                    }
                }
            }
        }
    }

    fn agent_closed(&mut self, id: ConnId) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        conn.closed = true;
        conn.ours = None;
        conn.unacknowledged = None;
        // What the network has not taken yet dies with it.
        conn.up.held.clear();
        conn.down = Flow::default();
        let server = conn.server;
        if conn.orphan || conn.session.is_none() {
            self.network.conns.remove(&id);
            return;
        }
        self.say(|| format!("connection {id} to server {server} is closed by the agent"));
        self.send_piece(id, Direction::Up, Piece::End);
    }

    /// Sends bytes over a connection.
    pub fn send(&mut self, id: ConnId, direction: Direction, bytes: Vec<u8>) {
        // Pieces are cut anywhere.
        let mut rest = bytes;
        // A kernel takes no more at a time.
        while rest.len() > LONGEST_PIECE {
            let tail = rest.split_off(LONGEST_PIECE);
            self.send_piece(id, direction, Piece::Bytes(mem::replace(&mut rest, tail)));
        }
        while rest.len() > 1 && self.rng.one_in(8) {
            let tail = rest.split_off(1 + self.rng.below(rest.len() as u64 - 1) as usize);
            self.send_piece(id, direction, Piece::Bytes(mem::replace(&mut rest, tail)));
        }
        self.send_piece(id, direction, Piece::Bytes(rest));
    }

    fn send_piece(&mut self, id: ConnId, direction: Direction, piece: Piece) {
        let now = self.now;
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let link = &self.network.links[conn.slot][conn.server];
        let powered = self.cluster.servers[conn.server].powered;
        let open = link.is_open(direction) && powered && !conn.dropped;
        let acknowledges = open && link.is_open(Direction::Down) || conn.closed;
        let slower = link.slower;
        let mut delay = self.network.latency / 2 + self.rng.below(self.network.latency / 2 + 1);
        delay += slower / 2 + self.rng.below(slower / 2 + 1);
        if link.loses > 0 && self.rng.one_in(link.loses) {
            // Sent again after the kernel's least pause, or twice that.
            delay += 200 * MILLI * self.rng.between(1, 2);
        }
        if direction == Direction::Up && !acknowledges && conn.unacknowledged.is_none() {
            conn.unacknowledged = Some(now);
            self.at(now + USER_TIMEOUT, Event::Unacknowledged { conn: id, since: now });
        }
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let flow = match direction {
            Direction::Up => &mut conn.up,
            Direction::Down => &mut conn.down,
        };
        if !open || !flow.held.is_empty() {
            flow.held.push_back(piece);
            return;
        }
        flow.last = flow.last.max(now + delay);
        let at = flow.last;
        flow.coming.push_back((at, piece));
        self.at(at, Event::Deliver { conn: id, direction });
    }

    /// Something arrives.
    pub fn deliver(&mut self, id: ConnId, direction: Direction) {
        let now = self.now;
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let link = &self.network.links[conn.slot][conn.server];
        let powered = self.cluster.servers[conn.server].powered;
        let open = link.is_open(direction) && powered && !conn.dropped;
        let flow = match direction {
            Direction::Up => &mut conn.up,
            Direction::Down => &mut conn.down,
        };
        let Some((at, _)) = flow.coming.front() else { return };
        if *at > now {
            return;
        }
        let Some((_, piece)) = flow.coming.pop_front() else { return };
        if !open || !flow.held.is_empty() {
            // It was on its way when the way was closed.
            flow.held.push_back(piece);
            if direction == Direction::Up && conn.unacknowledged.is_none() && !conn.closed {
                conn.unacknowledged = Some(now);
                self.at(now + USER_TIMEOUT, Event::Unacknowledged { conn: id, since: now });
            }
            return;
        }
        match (direction, piece) {
            (Direction::Up, piece) if conn.orphan => {
                // A kernel that does not know the connection resets it.
                if matches!(piece, Piece::Bytes(_)) && !conn.closed {
                    self.send_piece(id, Direction::Down, Piece::End);
                } else if conn.closed {
                    self.network.conns.remove(&id);
                }
            }
            (Direction::Up, Piece::Bytes(bytes)) => self.arrived(id, &bytes),
            (Direction::Up, Piece::End) => self.client_left(id),
            (Direction::Down, Piece::Bytes(bytes)) => {
                if let Some(ours) = &mut conn.ours {
                    match ours.write(&bytes) {
                        Ok(count) if count == bytes.len() => {}
                        _ => conn.ours = None,
                    }
                    conn.readable = true;
                    let slot = conn.slot;
                    self.wake(slot);
                }
            }
            (Direction::Down, Piece::End) => self.reset(id),
        }
    }

    /// The agent's socket tells that the connection is gone.
    pub fn reset(&mut self, id: ConnId) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let slot = conn.slot;
        conn.ours = None;
        conn.dialling = None;
        conn.readable = true;
        conn.closed = true;
        if conn.session.is_none() {
            conn.orphan = true;
        }
        self.say(|| format!("connection {id} ends for agent {slot}"));
        self.wake(slot);
    }

    pub fn unacknowledged(&mut self, id: ConnId, since: Micros) {
        let conn = self.network.conns.get(&id);
        if conn.is_some_and(|conn| conn.unacknowledged == Some(since) && !conn.closed) {
            self.say(|| format!("connection {id}: what was sent is not acknowledged"));
            if let Some(conn) = self.network.conns.get_mut(&id) {
                conn.up.held.clear();
            }
            self.reset(id);
        }
    }

    /// A way has opened again: what was held goes on, after a pause.
    pub fn release(&mut self, slot: usize, server: usize) {
        let ids: Vec<ConnId> = self
            .network
            .conns
            .iter()
            .filter(|(_, conn)| conn.slot == slot && conn.server == server)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            let powered = self.cluster.servers[server].powered;
            let Some(conn) = self.network.conns.get_mut(&id) else { continue };
            let link = &self.network.links[slot][server];
            if conn.dropped {
                continue;
            }
            let pause = 20 * MILLI + self.rng.below(800 * MILLI);
            if link.is_open(Direction::Up) && link.is_open(Direction::Down) && powered {
                conn.unacknowledged = None;
            }
            for direction in [Direction::Up, Direction::Down] {
                let Some(conn) = self.network.conns.get_mut(&id) else { continue };
                let open = self.network.links[slot][server].is_open(direction) && powered;
                let flow = match direction {
                    Direction::Up => &mut conn.up,
                    Direction::Down => &mut conn.down,
                };
                if !open || flow.held.is_empty() {
                    continue;
                }
                flow.last = flow.last.max(self.now + pause);
                let at = flow.last;
                // What was sent later must not come before it.
                let later = mem::take(&mut flow.coming).into_iter().map(|(_, piece)| piece);
                flow.coming = flow.held.drain(..).chain(later).map(|piece| (at, piece)).collect();
                for _ in 0..flow.coming.len() {
                    self.at(at, Event::Deliver { conn: id, direction });
                }
            }
        }
    }

    /// Something between forgets a connection.
    pub fn drop_connection(&mut self, id: ConnId) {
        if let Some(conn) = self.network.conns.get_mut(&id) {
            conn.dropped = true;
        }
    }

    /// The server ends a connection.
    pub fn server_closes(&mut self, id: ConnId) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        conn.session = None;
        conn.unread.clear();
        conn.orphan = true;
        if conn.closed {
            self.network.conns.remove(&id);
            return;
        }
        self.send_piece(id, Direction::Down, Piece::End);
    }

    /// The server's end vanishes without a word (a power cut).
    pub fn server_vanishes(&mut self, id: ConnId) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        conn.session = None;
        conn.unread.clear();
        conn.orphan = true;
        conn.down = Flow::default();
        if conn.closed {
            self.network.conns.remove(&id);
        }
    }

    /// Which of the sockets an agent waits for may be ready. Those that it does not
    /// wait for, and that have not come about, it has given up.
    pub fn ready(&mut self, slot: usize, waited: &[RawFd]) -> Vec<bool> {
        self.network.conns.retain(|_, conn| {
            let is_waited = waited.contains(&conn.fd);
            let is_over = conn.closed && conn.ours.is_none() && conn.session.is_none();
            conn.slot != slot || is_waited || (conn.dialling.is_none() && !is_over)
        });
        let may_be = |fd: &RawFd| {
            // The newest of that number. One that is known no more has ended.
            let mut conns = self.network.conns.values().rev();
            conns.find(|conn| conn.slot == slot && conn.fd == *fd).is_none_or(|conn| conn.readable)
        };
        waited.iter().map(may_be).collect()
    }

    /// A socket was found to have nothing to read.
    pub fn exhausted(&mut self, slot: usize, fd: RawFd) {
        let mut conns = self.network.conns.values_mut().rev();
        if let Some(conn) = conns.find(|conn| conn.slot == slot && conn.fd == fd) {
            conn.readable = false;
        }
    }
}
