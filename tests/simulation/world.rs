//! The simulated world: its time, what happens next, and who runs.
//!
//! Each agent is the real one, on a thread of its own, and only one thread runs
//! at a time: whoever waits lets the world go on until somebody has something to
//! do, and hands over to them. Nothing takes time but waits.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::cleaner::{self, Sweep};
use crate::cluster::{Cluster, Errand};
use crate::faults::Fault;
use crate::judge::Judge;
use crate::network::{ConnId, Direction, Network};
use crate::plan::Plan;
use crate::rng::Rng;
use crate::tools::Tools;

/// Microseconds since the world began.
pub type Micros = u64;
pub const MILLI: Micros = 1_000;
pub const SECOND: Micros = 1_000_000;
/// Agents that there can be at one time.
pub const SLOTS: usize = 3;

/// What is going to happen.
#[derive(Debug)]
pub enum Event {
    /// An agent's wait is over by its clock.
    Wake {
        slot: usize,
        wait: u64,
    },
    /// An agent starts.
    Start {
        slot: usize,
    },
    /// Bytes arrive, or an end.
    Deliver {
        conn: ConnId,
        direction: Direction,
    },
    /// A SYN leaves.
    Syn {
        conn: ConnId,
        tries: u32,
    },
    /// What was sent has not been acknowledged for too long.
    Unacknowledged {
        conn: ConnId,
        since: Micros,
    },
    /// A server has done something.
    Done {
        server: usize,
        boot: u64,
        errand: Errand,
    },
    /// A server asks whether its clients are there.
    Pings {
        server: usize,
        boot: u64,
    },
    /// Something in the store is over.
    Expiry {
        turn: u64,
    },
    /// The members that are left choose a leader.
    Election {
        turn: u64,
    },
    /// A fault begins or ends.
    Begin {
        fault: usize,
    },
    End {
        fault: usize,
    },
    /// A cleanup reads, and removes what it has judged.
    Scan,
    Sweep {
        sweep: Sweep,
    },
    /// A tool is called, loses its connection, has to have ended.
    CallTool,
    OthersBeat,
    CutTool {
        call: u64,
    },
    ToolIsDue {
        call: u64,
    },
    /// The judge looks.
    Look,
    /// The run is over.
    Over,
}

struct Due {
    at: Micros,
    order: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Due) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// A host that an agent runs on, and its clocks.
#[derive(Debug, Default)]
pub struct Host {
    /// Its clocks run so many millionths fast.
    pub drift: i64,
    /// Its wall clock is so far off the world's, in microseconds.
    pub wall_off: i64,
    /// It slept so long until now.
    pub slept: Micros,
    /// It sleeps, since then.
    pub asleep: Option<Micros>,
    /// Its kernel ends a wait when the host wakes up.
    pub tells_wakeup: bool,
}

impl Host {
    fn drifted(&self, time: Micros) -> Micros {
        time.saturating_add_signed((time as i64 / 1_000_000) * self.drift)
    }

    /// The clock that stands still while the host sleeps.
    pub fn awake(&self, now: Micros) -> Micros {
        let sleeping = self.asleep.map_or(0, |since| now - since);
        self.drifted(now - self.slept - sleeping)
    }

    /// The clock that does not.
    pub fn boot(&self, now: Micros) -> Micros {
        self.drifted(now)
    }

    /// When the clock of [`Host::awake`] will show `awake`, if it sleeps no more.
    pub fn when(&self, awake: Micros) -> Micros {
        let slower = (awake as i64 / 1_000_000 + 1) * self.drift.abs() + 1;
        let mut at = awake + self.slept;
        at = at.saturating_sub(slower as u64);
        let missing = awake.saturating_sub(self.drifted(at - self.slept.min(at)));
        at + missing + u64::from(missing > 0)
    }
}

/// What an agent's process is about.
#[derive(Debug, Default)]
pub struct Process {
    /// It runs, or waits; otherwise there is none.
    pub alive: bool,
    /// It waits, with the number of this wait.
    pub waiting: Option<u64>,
    waits: u64,
    /// It is among those that go on.
    ready: bool,
    pub stop: bool,
    pub reload: bool,
    pub resumed: bool,
    /// It was stopped (SIGSTOP).
    pub frozen: bool,
    /// It ends at once.
    pub killed: bool,
    /// Waits that ended in this moment, and the moment.
    spins: (Micros, u32),
    /// Which of the processes of this slot it is.
    pub life: u32,
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Main,
    Slot(usize),
}

/// All there is.
pub struct World {
    pub now: Micros,
    queue: BinaryHeap<Due>,
    order: u64,
    pub turn: Turn,
    ready: VecDeque<usize>,
    pub plan: Plan,
    pub hosts: Vec<Host>,
    pub processes: Vec<Process>,
    pub network: Network,
    pub cluster: Cluster,
    pub judge: Judge,
    pub tools: Tools,
    pub rng: Rng,
    pub over: bool,
    pub trace: bool,
    /// Starts the thread of an agent.
    pub launch: Box<dyn Fn(usize) + Send>,
    pub events: u64,
    /// All that happened, where two runs are to be compared.
    pub steps: Option<Vec<String>>,
}

/// The world, and how threads hand it to each other.
pub struct Shared {
    world: Mutex<World>,
    bells: [Condvar; SLOTS],
    main: Condvar,
}

impl Shared {
    pub fn new(world: World) -> Arc<Shared> {
        let bells = std::array::from_fn(|_| Condvar::new());
        Arc::new(Shared { world: Mutex::new(world), bells, main: Condvar::new() })
    }

    pub fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the world go on until it is the turn of `mine`.
    pub fn yield_until<'a>(
        &'a self,
        mut world: MutexGuard<'a, World>,
        mine: Turn,
    ) -> MutexGuard<'a, World> {
        world.turn = world.go_on();
        if world.turn != mine {
            self.ring(world.turn);
        }
        self.await_turn(world, mine)
    }

    /// Waits for the first turn.
    pub fn await_turn<'a>(
        &'a self,
        mut world: MutexGuard<'a, World>,
        mine: Turn,
    ) -> MutexGuard<'a, World> {
        let bell = match mine {
            Turn::Main => &self.main,
            Turn::Slot(slot) => &self.bells[slot],
        };
        while world.turn != mine {
            world = bell.wait(world).unwrap_or_else(PoisonError::into_inner);
        }
        world
    }

    /// A thread has done all it had to do.
    pub fn leave(&self, mut world: MutexGuard<'_, World>) {
        world.turn = world.go_on();
        self.ring(world.turn);
    }

    fn ring(&self, turn: Turn) {
        match turn {
            Turn::Main => self.main.notify_one(),
            Turn::Slot(slot) => self.bells[slot].notify_one(),
        }
    }
}

impl World {
    pub fn new(plan: Plan, trace: bool, launch: Box<dyn Fn(usize) + Send>) -> World {
        let mut rng = Rng::new(plan.seed, 1);
        let hosts = plan.hosts.iter().map(|host| Host {
            drift: host.drift,
            wall_off: host.wall_off,
            tells_wakeup: host.tells_wakeup,
            ..Host::default()
        });
        let mut tools = Tools::new(&plan);
        let hosts = hosts.chain(tools.slot.map(|_| tools.host()));
        let first_call = tools.slot.map(|_| tools.pause());
        let mut world = World {
            now: 0,
            queue: BinaryHeap::new(),
            order: 0,
            turn: Turn::Main,
            ready: VecDeque::new(),
            hosts: hosts.collect(),
            processes: (0..SLOTS).map(|_| Process::default()).collect(),
            network: Network::new(&plan),
            cluster: Cluster::new(&plan, &mut rng),
            judge: Judge::new(&plan),
            tools,
            rng,
            over: false,
            trace,
            launch,
            events: 0,
            steps: None,
            plan,
        };
        for fault in 0..world.plan.faults.len() {
            let at = world.plan.faults[fault].at;
            world.at(at, Event::Begin { fault });
        }
        for slot in 0..world.plan.hosts.len() {
            if let Some(at) = world.plan.hosts[slot].starts {
                world.at(at, Event::Start { slot });
            }
        }
        for server in 0..world.cluster.servers.len() {
            world.at(2 * SECOND, Event::Pings { server, boot: 0 });
        }
        if let Some(at) = cleaner::first(world.plan.seed) {
            world.at(at, Event::Scan);
        }
        if let Some(at) = first_call {
            world.at(at, Event::CallTool);
        }
        world.at(world.plan.length, Event::Over);
        world.reconsider();
        world
    }

    pub fn at(&mut self, at: Micros, event: Event) {
        self.order += 1;
        self.queue.push(Due { at: at.max(self.now), order: self.order, event });
    }

    pub fn after(&mut self, time: Micros, event: Event) {
        self.at(self.now + time, event);
    }

    /// Says what happens, where it is to be seen.
    pub fn say(&self, words: impl FnOnce() -> String) {
        if self.trace {
            crate::trace(self.now, &words());
        }
    }

    /// Lets things happen until it is somebody's turn.
    fn go_on(&mut self) -> Turn {
        loop {
            while let Some(slot) = self.ready.pop_front() {
                let process = &mut self.processes[slot];
                process.ready = false;
                if process.alive && process.waiting.is_some() {
                    return Turn::Slot(slot);
                }
            }
            if self.over && self.processes.iter().all(|process| !process.alive) {
                return Turn::Main;
            }
            let Some(due) = self.queue.pop() else { return Turn::Main };
            self.now = due.at;
            self.events += 1;
            if let Some(steps) = &mut self.steps {
                steps.push(format!("{} {:?} {:?}", due.at, due.event, self.rng));
            }
            self.happen(due.event);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Wake { slot, wait } => {
                if self.processes[slot].waiting == Some(wait) {
                    self.wake(slot);
                }
            }
            Event::Start { slot } => self.start(slot),
            Event::Deliver { conn, direction } => self.deliver(conn, direction),
            Event::Syn { conn, tries } => self.syn(conn, tries),
            Event::Unacknowledged { conn, since } => self.unacknowledged(conn, since),
            Event::Done { server, boot, errand } => self.done(server, boot, errand),
            Event::Pings { server, boot } => self.pings(server, boot),
            Event::Expiry { turn } => self.expiry(turn),
            Event::Election { turn } => self.election(turn),
            Event::Begin { fault } => self.begin(fault),
            Event::End { fault } => self.end(fault),
            Event::Scan => self.scan(),
            Event::Sweep { sweep } => self.sweep(&sweep),
            Event::CallTool => self.call_tool(),
            Event::OthersBeat => self.others_beat(),
            Event::CutTool { call } => self.cut_tool(call),
            Event::ToolIsDue { call } => self.tool_is_due(call),
            Event::Look => self.look(),
            Event::Over => {
                self.over = true;
                for slot in 0..SLOTS {
                    self.kill(slot);
                }
            }
        }
    }

    /// An agent goes on, if it can.
    pub fn wake(&mut self, slot: usize) {
        let process = &mut self.processes[slot];
        let can = !process.frozen && self.hosts.get(slot).is_some_and(|host| host.asleep.is_none());
        if (can || process.killed) && process.waiting.is_some() && !process.ready {
            process.ready = true;
            self.ready.push_back(slot);
        }
    }

    pub fn start(&mut self, slot: usize) {
        if self.over || self.processes[slot].alive || self.hosts[slot].asleep.is_some() {
            return;
        }
        let life = self.processes[slot].life + 1;
        self.processes[slot] =
            Process { alive: true, waiting: Some(0), life, ..Process::default() };
        if !self.tools.is(slot) {
            self.say(|| format!("agent {slot} starts"));
            self.judge.started(slot, self.now);
        }
        self.reconsider();
        (self.launch)(slot);
        self.wake(slot);
    }

    /// `kill -9`.
    pub fn kill(&mut self, slot: usize) {
        if self.processes[slot].alive && !self.processes[slot].killed {
            self.processes[slot].killed = true;
            if !self.over {
                self.say(|| format!("agent {slot} is killed"));
                self.judge.killed(slot, self.now);
                self.look_at_the_dead();
                self.reconsider();
            }
            self.wake(slot);
        }
    }

    /// The agent of a slot waits until `until` by its own clock.
    pub fn begin_wait(&mut self, slot: usize, until: Option<Micros>) {
        let process = &mut self.processes[slot];
        process.waits += 1;
        process.waiting = Some(process.waits);
        let wait = process.waits;
        if process.killed {
            self.wake(slot);
        }
        if let Some(until) = until {
            let jitter = self.rng.below(300);
            let at = self.hosts[slot].when(until) + jitter;
            self.at(at, Event::Wake { slot, wait });
        }
    }

    /// The wait is over.
    pub fn end_wait(&mut self, slot: usize) {
        let now = self.now;
        let process = &mut self.processes[slot];
        process.waiting = None;
        let (at, spins) = &mut process.spins;
        if now / SECOND == *at / SECOND {
            *spins += 1;
            if *spins == 20_000 {
                process.killed = true;
                self.judge.violated(now, format!("agent {slot} spins: 20,000 waits in a second"));
            }
        } else {
            (*at, *spins) = (now, 0);
        }
    }

    /// The thread of an agent has ended.
    pub fn ended(&mut self, slot: usize, panicked: Option<String>) {
        self.collect(slot);
        let process = &mut self.processes[slot];
        process.alive = false;
        process.waiting = None;
        let killed = process.killed;
        self.network.forget(slot);
        if let Some(words) = panicked {
            self.judge.violated(self.now, format!("agent {slot} panicked: {words}"));
        } else if !killed && !self.tools.is(slot) {
            self.say(|| format!("agent {slot} has ended"));
            self.judge.ended(slot, self.now);
            self.look_at_the_dead();
        }
        self.reconsider();
        if !self.over
            && let Some(pause) = self.plan.hosts.get(slot).and_then(|host| host.restarts)
        {
            self.after(pause, Event::Start { slot });
        }
    }

    fn look_at_the_dead(&mut self) {
        let ttl = self.plan.ttl * SECOND;
        for lives in [ttl, 2 * ttl] {
            self.after(lives + 1_500 * MILLI, Event::Look);
        }
    }

    pub fn fault(&self, fault: usize) -> &Fault {
        &self.plan.faults[fault]
    }
}
