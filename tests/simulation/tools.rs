//! `list` and `cleanup` beside the agents, whole: their sessions, the program's own
//! scan over a consumer, its own removals.
//!
//! They run one after the other on a host of their own, and meet what the servers
//! do and not what befalls the hosts of agents. The judge knows what stood in the
//! bucket all the while: a list shows that, once, and nothing else; a cleanup
//! takes out nothing that beats and leaves nothing that has no TTL. Where all was
//! well meanwhile neither fails.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::rc::Rc;
use std::sync::Arc;

use aegis_agent::cli::options::Verb;
use aegis_agent::cli::{self, Parsed};
use aegis_agent::commands::cleanup::report::Console;
use aegis_agent::commands::{cleanup, list};
use aegis_agent::error::Failure;
use aegis_agent::nats::Connector;
use serde_json::Value;

use crate::cleaner;
use crate::judge::stamp_of;
use crate::model::bucket::{Change, Stored, Wall};
use crate::model::session::Publish;
use crate::outside::Outside;
use crate::plan::{ENV_FILE, Plan};
use crate::rng::Rng;
use crate::run::base;
use crate::world::{Event, Host, MILLI, Micros, SECOND, Shared, World};

/// Where all has been well for so long, a tool does what it is called for.
const WELL: Micros = 12 * SECOND;
/// Whatever happens: connecting, three exchanges, and a scan that is told of other
/// consumers or other servers each time.
const LONGEST: Micros = 90 * SECOND;
/// The age from which a heartbeat is too old, less what a clock may be off.
const TOO_OLD: Wall = 34_500_000_000;
/// Entries beside those of the agents; seldom a full pull of them, or more than one.
const FEW: [u64; 4] = [0, 3, 20, 60];
const MANY: [u64; 4] = [999, 1_000, 1_001, 2_300];

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    List,
    Cleanup,
}

/// One call under way.
pub struct Call {
    tool: Tool,
    /// The verb and its options, as it is shown; and all words.
    name: String,
    words: Vec<String>,
    began: Micros,
    /// What stood there when it began: the revision under each subject.
    stood: BTreeMap<String, Stored>,
    /// Where something has happened since, and where nothing stood for a moment.
    changed: BTreeSet<String>,
    gone: BTreeSet<String>,
    /// All was well all the while.
    is_well: bool,
    /// The registry's clock was set meanwhile.
    stepped: bool,
    /// It is connected, and has asked something.
    asks: bool,
}

/// The tools of one run.
pub struct Tools {
    /// Where they run, if there are any.
    pub slot: Option<usize>,
    call: Option<Call>,
    /// Since when every server has done all that is asked of it.
    well_since: Option<Micros>,
    rng: Rng,
    calls: u64,
}

impl Tools {
    pub fn new(plan: &Plan) -> Tools {
        let has_tools = cleaner::is_there(plan.seed);
        Tools {
            slot: has_tools.then_some(plan.hosts.len()),
            call: None,
            well_since: None,
            rng: Rng::new(plan.seed, 50),
            calls: 0,
        }
    }

    /// The host that they run on: its wall clock is anywhere.
    pub fn host(&mut self) -> Host {
        let off = self.rng.below(7_200 * SECOND) as i64 - 3_600 * SECOND as i64;
        Host { wall_off: off, tells_wakeup: true, ..Host::default() }
    }

    /// When the next one is called.
    pub fn pause(&mut self) -> Micros {
        self.rng.between(SECOND, 40 * SECOND)
    }

    /// Whether it is one of them that runs there.
    pub fn is(&self, slot: usize) -> bool {
        self.slot == Some(slot)
    }

    fn others(&mut self) -> u64 {
        let numbers = if self.rng.one_in(8) { &MANY } else { &FEW };
        *self.rng.pick(numbers)
    }
}

impl World {
    /// Calls one of them.
    pub fn call_tool(&mut self) {
        let Some(slot) = self.tools.slot.filter(|_| !self.over) else { return };
        if self.tools.rng.one_in(3) {
            let count = self.tools.others();
            self.others_register(count);
        }
        let tool = if self.tools.rng.one_in(2) { Tool::List } else { Tool::Cleanup };
        let more: &[&str] = match tool {
            Tool::List => &["list", "--json", "--all"],
            Tool::Cleanup => match self.tools.rng.below(4) {
                0 => &["cleanup", "--json"],
                1 => &["cleanup", "--max-removals", "100000"],
                2 => &["cleanup", "--spare-beating"],
                _ => &["cleanup"],
            },
        };
        let words = ["--nats-url", &self.plan.urls(), "--env-file", ENV_FILE];
        let words: Vec<String> = more.iter().chain(&words).map(|word| (*word).to_owned()).collect();
        let stream = self.cluster.jetstream.buckets.get(self.plan.stream());
        let stood = stream.map(|bucket| {
            let newest = bucket.newest().filter(|one| !one.is_marker());
            newest.map(|one| (one.subject.clone(), one.clone())).collect()
        });
        let now = self.now;
        let is_well = stood.is_some() && self.tools.well_since.is_some_and(|at| at + WELL <= now);
        self.say(|| format!("a tool is called: {}", more.join(" ")));
        self.tools.calls += 1;
        self.tools.call = Some(Call {
            tool,
            name: more.join(" "),
            words,
            began: now,
            stood: stood.unwrap_or_default(),
            changed: BTreeSet::new(),
            gone: BTreeSet::new(),
            is_well,
            stepped: false,
            asks: false,
        });
        for _ in 0..self.tools.rng.below(4) {
            let pause = self.tools.rng.below(6 * self.plan.latency + 3 * MILLI);
            self.after(pause, Event::OthersBeat);
        }
        if self.tools.rng.one_in(4) {
            let pause = self.tools.rng.below(2 * self.plan.latency + 400 * MILLI);
            self.after(pause, Event::CutTool { call: self.tools.calls });
        }
        self.after(LONGEST, Event::ToolIsDue { call: self.tools.calls });
        self.start(slot);
    }

    /// Instances of another service register.
    fn others_register(&mut self, count: u64) {
        let all: Vec<u64> = (0..count).collect();
        self.others_store(&all, |other| other % 5 != 2);
    }

    /// Some of them beat, just while a tool is at work.
    pub fn others_beat(&mut self) {
        let first = self.tools.rng.below(1_001);
        let step = self.tools.rng.between(1, 300);
        let some: Vec<u64> = (0..4).map(|at| first + at * step).collect();
        let stands = |other: &u64| {
            let bucket = self.cluster.jetstream.buckets.get(self.plan.stream());
            bucket.is_some_and(|bucket| bucket.last(&other_subject(*other)).is_some())
        };
        let some: Vec<u64> = some.into_iter().filter(stands).collect();
        self.others_store(&some, |_| true);
    }

    /// They store their entries; without a TTL as of the time before there were any.
    fn others_store(&mut self, others: &[u64], has_ttl: impl Fn(u64) -> bool) {
        let Some((leader, now)) = self.cluster.led(self.now) else { return };
        let stamp = crate::model::api::format_time(now);
        let mut changes = Vec::new();
        for &other in others {
            let record = serde_json::json!({
                "serviceName": "other-api", "instanceId": format!("k{other}"), "version": "1.0.0",
                "lastHeartbeat": stamp,
            });
            let headers = if has_ttl(other) { "NATS/1.0\r\nNats-TTL: 45s\r\n\r\n" } else { "" };
            let publish = Publish {
                subject: other_subject(other),
                headers: headers.as_bytes().to_vec(),
                payload: record.to_string().into_bytes(),
                ..Publish::default()
            };
            changes.extend(self.cluster.take(leader, &publish, now).1);
        }
        self.changed(&changes, None);
    }

    /// A connection of the call is cut in its midst.
    pub fn cut_tool(&mut self, call: u64) {
        let Some(slot) = self.tools.slot.filter(|_| self.tools.calls == call) else { return };
        let Some(under_way) = &mut self.tools.call else { return };
        // Before that there is nothing to go on with.
        under_way.is_well &= under_way.asks;
        self.reset_connections(slot);
    }

    /// It has to have ended by now.
    pub fn tool_is_due(&mut self, call: u64) {
        if self.tools.calls == call
            && let Some(Call { name, .. }) = &self.tools.call
        {
            let words = format!("{name} has not ended");
            self.judge.violated(self.now, words);
        }
    }

    /// What a tool can count on now.
    pub fn reconsider_tools(&mut self) {
        if self.tools.slot.is_none() {
            return;
        }
        let stream = self.plan.stream();
        let all = (0..self.cluster.servers.len()).all(|one| self.cluster.serves(one, stream));
        let is_well = all && self.cluster.jetstream.buckets.contains_key(stream);
        self.tools.well_since = match self.tools.well_since {
            _ if !is_well => None,
            None => Some(self.now),
            known => known,
        };
        if let Some(call) = &mut self.tools.call {
            call.is_well &= is_well;
        }
    }

    /// A tool has published something.
    pub fn tool_asks(&mut self) {
        if let Some(call) = &mut self.tools.call {
            call.asks = true;
        }
    }

    /// The clock of the registry was set.
    pub fn tools_see_step(&mut self) {
        if let Some(call) = &mut self.tools.call {
            call.stepped = true;
        }
    }

    /// The store has changed, by a tool's hand or another.
    pub fn tools_see(&mut self, change: &Change, by_tool: bool) {
        let Some(call) = &mut self.tools.call else { return };
        let stored = match change {
            Change::Stored(seq) => {
                let mut buckets = self.cluster.jetstream.buckets.values();
                let found = buckets.find_map(|bucket| bucket.get(*seq));
                if let Some(stored) = found {
                    call.changed.insert(stored.subject.clone());
                    if stored.is_marker() {
                        call.gone.insert(stored.subject.clone());
                    }
                }
                return;
            }
            Change::Expired(stored) | Change::Purged(stored) => stored,
        };
        call.changed.insert(stored.subject.clone());
        let clock = self.cluster.registry_clock(self.now);
        let mut buckets = self.cluster.jetstream.buckets.values();
        let stands = buckets.any(|bucket| bucket.last(&stored.subject).is_some());
        if !stands {
            call.gone.insert(stored.subject.clone());
        }
        if by_tool && !stands && !stored.is_marker() && !call.stepped && beats(stored, clock) {
            let words =
                format!("revision {} of {} beats, and is removed", stored.seq, stored.subject);
            self.judge.violated(self.now, words);
        }
    }

    /// A tool has ended by itself.
    pub fn tool_answered(&mut self, answer: Result<String, Failure>) {
        let Some(call) = self.tools.call.take() else { return };
        let pause = self.tools.pause();
        self.after(pause, Event::CallTool);
        let took = (self.now - call.began) / MILLI;
        let name = &call.name;
        let end = match &answer {
            Ok(_) => "is done".to_owned(),
            Err(failure) => format!("fails: {}", failure.chain()),
        };
        self.say(|| format!("{name} {end} after {took} ms; well: {}", call.is_well));
        *self
            .judge
            .tally
            .tools
            .entry(ended(call.tool, answer.is_ok(), call.is_well))
            .or_default() += 1;
        let found = match &answer {
            Err(_) if call.is_well => Some(format!("{name} {end}, and all is well")),
            Err(_) => None,
            Ok(shown) if call.tool == Tool::List => misread(&call, shown),
            Ok(_) => left(&call),
        };
        if let Some(found) = found {
            self.judge.violated(self.now, found);
        }
    }
}

fn other_subject(other: u64) -> String {
    format!("$KV.service_registry.service-instances__other-api__k{other}")
}

fn ended(tool: Tool, is_done: bool, is_well: bool) -> String {
    let name = if tool == Tool::List { "list" } else { "cleanup" };
    let how = match (is_done, is_well) {
        (true, true) => "done",
        (true, false) => "done in trouble",
        (false, _) => "failed in trouble",
    };
    format!("{name} {how}")
}

/// Whether somebody stands behind it, by its own TTL and by its stamp.
fn beats(stored: &Stored, clock: Wall) -> bool {
    let asked = stored.ttl.and(stored.asked_ttl());
    let runs = asked.is_some_and(|ttl| stored.at + ttl * 1_000_000_000 > clock);
    runs && stamp_of(&stored.payload).is_some_and(|stamp| clock - stamp < TOO_OLD)
}

/// What is wrong with a list.
fn misread(call: &Call, shown: &str) -> Option<String> {
    let Ok(list) = serde_json::from_str::<Value>(shown) else {
        return Some(format!("a list is no JSON: {shown}"));
    };
    let entries = ["instances", "unreadable"].map(|part| list[part].as_array().cloned());
    let mut seen = BTreeSet::new();
    for one in entries.into_iter().flatten().flatten() {
        let subject = format!("$KV.service_registry.{}", one["key"].as_str().unwrap_or_default());
        let stood = call.stood.get(&subject).map(|stored| stored.seq);
        if stood != one["revision"].as_u64() && !call.changed.contains(&subject) {
            return Some(format!("a list shows {one}, and {stood:?} stands there"));
        }
        if !seen.insert(subject) {
            return Some(format!("a list shows {one} twice"));
        }
    }
    let missing = call.stood.keys().find(|one| !call.gone.contains(*one) && !seen.contains(*one));
    missing.map(|one| format!("a list of {} does not show {one}", seen.len()))
}

/// What a cleanup should have taken out.
fn left(call: &Call) -> Option<String> {
    let mut stayed = call.stood.iter().filter(|(subject, _)| !call.changed.contains(*subject));
    let (subject, stored) = stayed.find(|(_, stored)| !stored.names_ttl())?;
    Some(format!("revision {} of {subject} has no TTL, and a cleanup left it", stored.seq))
}

/// The life of a tool, on its thread.
pub fn live(shared: &Arc<Shared>, slot: usize) {
    let outside = Rc::new(Outside::new(shared, slot, base()));
    let words = match &shared.lock().tools.call {
        Some(call) => call.words.clone(),
        None => return,
    };
    let args: Vec<OsString> = words.iter().map(OsString::from).collect();
    let Ok(Parsed::Run(call)) = cli::parse(&args, &|_| None, &|| None) else {
        panic!("a tool is called wrongly: {words:?}");
    };
    let connector = Connector::new(call.settings).with_waiter(outside);
    let mut out = Vec::new();
    let answer = match call.verb {
        Verb::List(options) => {
            list::over(&options, connector, call.bucket, &mut out, Some(&mut Vec::new()))
        }
        Verb::Cleanup(options) => {
            let console = Console { out: &mut out, loud: false, progress: None };
            cleanup::over(options, connector, call.bucket, console)
        }
        _ => panic!("no tool: {words:?}"),
    };
    let out = String::from_utf8_lossy(&out).into_owned();
    shared.lock().tool_answered(answer.map(|()| out));
}
