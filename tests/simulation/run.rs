//! One run: a plan in, what the judge says out.

use std::cell::RefCell;
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Instant;

use aegis_agent::cli::options::{Invocation, Verb};
use aegis_agent::cli::{self, Parsed};
use aegis_agent::commands::run::attention::Attention;
use aegis_agent::commands::run::surroundings::Host;
use aegis_agent::commands::run::{Settled, keep};
use aegis_agent::error::{Failure, Kind};
use aegis_agent::system::signals::Signals;
use aegis_agent::system::systemd::Manager;

use crate::judge::{Tally, Violation};
use crate::outside::{Killed, Outside};
use crate::plan::{ENV_FILE, Plan};
use crate::tools;
use crate::world::{SLOTS, Shared, Turn, World};

/// What a run came to.
pub struct Outcome {
    pub violation: Option<Violation>,
    pub tally: Tally,
    pub events: u64,
    pub dials: u64,
    pub most_open: usize,
    /// All that happened, where that was asked for.
    pub steps: Vec<String>,
}

type Job = Box<dyn FnOnce() + Send>;

/// Threads on which agents run, kept from run to run.
pub struct Threads {
    jobs: Vec<Sender<Job>>,
}

impl Threads {
    pub fn new() -> Threads {
        let thread = |slot: usize| {
            let (sender, jobs): (Sender<Job>, Receiver<Job>) = channel();
            let name = format!("agent {slot}");
            let run = move || jobs.into_iter().for_each(|job| job());
            thread::Builder::new().name(name).spawn(run).expect("a thread can be started");
            sender
        };
        Threads { jobs: (0..SLOTS).map(thread).collect() }
    }

    /// Carries a plan out.
    pub fn run(&self, plan: &Plan, trace: bool) -> Outcome {
        self.carry_out(plan, trace, false)
    }

    /// The same, and keeps all steps.
    pub fn run_with_steps(&self, plan: &Plan) -> Outcome {
        self.carry_out(plan, false, true)
    }

    fn carry_out(&self, plan: &Plan, trace: bool, steps: bool) -> Outcome {
        let holder: Arc<OnceLock<Arc<Shared>>> = Arc::default();
        let (jobs, place) = (self.jobs.clone(), Arc::clone(&holder));
        let launch = move |slot: usize| {
            let shared = Arc::clone(place.get().expect("the world is there before its agents"));
            jobs[slot].send(Box::new(move || live(&shared, slot))).ok();
        };
        let shared = Shared::new(World::new(plan.clone(), trace, Box::new(launch)));
        holder.set(Arc::clone(&shared)).ok();
        let mut world = shared.lock();
        world.steps = steps.then(Vec::new);
        let mut world = shared.yield_until(world, Turn::Main);
        let now = world.now;
        world.judge.finish(now);
        // The world and what launches its agents hold each other.
        world.launch = Box::new(|_| {});
        Outcome {
            violation: world.judge.violation.clone(),
            tally: world.judge.tally.clone(),
            events: world.events,
            dials: world.network.dials,
            most_open: world.network.most_open,
            steps: world.steps.take().unwrap_or_default(),
        }
    }
}

thread_local! {
    /// What the thread said when it panicked.
    pub static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static ATTENTION: RefCell<Option<Rc<Attention>>> = const { RefCell::new(None) };
}

pub fn base() -> Instant {
    static BASE: OnceLock<Instant> = OnceLock::new();
    #[allow(clippy::disallowed_methods)]
    *BASE.get_or_init(Instant::now)
}

/// The life of one process, on its thread.
fn live(shared: &Arc<Shared>, slot: usize) {
    let mut world = shared.await_turn(shared.lock(), Turn::Slot(slot));
    world.end_wait(slot);
    let plan = world.plan.clone();
    let killed = world.processes[slot].killed;
    let is_tool = world.tools.is(slot);
    drop(world);
    let lived = match (killed, is_tool) {
        (true, _) => Ok(()),
        (false, true) => catch_unwind(AssertUnwindSafe(|| tools::live(shared, slot))),
        (false, false) => catch_unwind(AssertUnwindSafe(|| agent(shared, slot, &plan))),
    };
    let panicked = match lived {
        Err(cause) if !cause.is::<Killed>() => Some(PANIC.take().unwrap_or_default()),
        _ => None,
    };
    let mut world = shared.lock();
    world.ended(slot, panicked);
    shared.leave(world);
}

fn agent(shared: &Arc<Shared>, slot: usize, plan: &Plan) {
    let attention = ATTENTION.with_borrow_mut(|attention| {
        let signals = || Signals::take_all().expect("signals can be taken over");
        let new = || Rc::new(Attention::new(signals(), Manager::from_env()));
        Rc::clone(attention.get_or_insert_with(new))
    });
    let anew = || invocation(plan, slot);
    let (settings, bucket, options) = match anew() {
        Ok(Invocation { settings, bucket, verb: Verb::Run(options), .. }) => {
            (settings, bucket, options)
        }
        Ok(_) => panic!("the simulated agent is called with another verb"),
        Err(failure) => panic!("the simulated agent is called wrongly: {}", failure.chain()),
    };
    let outside = Rc::new(Outside::new(shared, slot, base()));
    let host_name = &plan.hosts[slot].name;
    let begin = Settled { options: *options, settings, bucket, host_name };
    keep(begin, &mut Host::new(attention), outside, &anew);
}

/// The call that the agent of a slot is started with.
fn invocation(plan: &Plan, slot: usize) -> Result<Invocation, Failure> {
    let words = [
        "run",
        "--service",
        "orders-api",
        "--instance",
        &plan.hosts[slot].instance,
        "--nats-url",
        &plan.urls(),
        "--ttl",
        &format!("{}s", plan.ttl),
        "--interval",
        &format!("{}s", plan.interval),
        "--env-file",
        ENV_FILE,
    ];
    let args: Vec<OsString> = words.iter().map(OsString::from).collect();
    match cli::parse(&args, &|_| None, &|| None) {
        Ok(Parsed::Run(invocation)) => Ok(*invocation),
        Ok(Parsed::Print(_)) => Err(Failure::new(Kind::Usage, "no verb")),
        Err(error) => Err(error.failure),
    }
}
