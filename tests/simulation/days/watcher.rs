//! A watcher: the program's own `Picture`, `Reading` and `Progress`, with what
//! `watch.rs` and `follow.rs` do about them in a few lines.
//!
//! The server's side of its consumer is here, too: the newest revision of each key,
//! and then what is stored, in order and a little late; what was replaced before it
//! could be sent is not sent.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use aegis_agent::commands::watch::reading::{Reading, Rereads};
use aegis_agent::instance::entry::{Entry, Marker};
use aegis_agent::instance::filter::Filter;
use aegis_agent::instance::staleness::{DEFAULT_STALE_AFTER, Stored, Ttl};
use aegis_agent::registry::follow::progress::{End, Progress};
use aegis_agent::registry::picture::{Change, Picture};
use aegis_agent::text::time::format_time;

use super::bucket::{Bucket, key, says};
use super::faults::Server;
use super::store::{Revision, SERVER};
use super::{span, stamp};
use crate::rng::Rng;
use crate::world::{MILLI, Micros, SECOND};

const TIMEOUT: Micros = 5 * SECOND;
/// A SYN is sent again after this time, and a question.
const SYN: Micros = 1_200 * MILLI;
const ASK: Micros = 500 * MILLI;
/// Between two attempts to get the registry back.
const RETRY_PAUSE: Micros = 500 * MILLI;
/// The consumer says so often that it is there, and is in doubt after that.
const SIGN: Micros = 500 * MILLI;
const SILENCE: Micros = 2 * SECOND;

/// What a watcher does, as the witness sees it.
pub enum Told {
    Change(Change),
    /// The state is read anew, by a consumer that was made then.
    Begins(Micros),
    /// There are fewer keys than it has seen.
    Suspects,
}

/// What a watcher meets.
pub struct Ground<'a> {
    pub now: Micros,
    pub latency: Micros,
    pub server: &'a Server,
    pub bucket: Bucket<'a>,
}

#[derive(Clone, Copy)]
enum Stage {
    Pause(Micros),
    Connects(Micros),
    Begins(Micros),
    /// There is a consumer; when it was made, and when the question beside that
    /// was answered.
    Made(Micros),
    Follows,
}

/// What ends a follower.
enum Error {
    Session,
    Silence,
    Consumer,
    Contradiction,
}

/// One consumer: both of its sides.
struct Consumer {
    reading: Reading,
    progress: Progress,
    /// What it delivers next, and before that.
    next: u64,
    initial: Vec<(usize, u64)>,
    /// When the first pull reaches it.
    pulled: Micros,
    place: u64,
    /// Under way, and when it arrives.
    lane: VecDeque<(Micros, u64, usize, Revision)>,
    /// When the question for the end was asked; it has not reached the server.
    asked: Option<Micros>,
    is_waiting: bool,
    answer: Option<(Micros, End)>,
    /// When the next sign of life comes.
    sign: Micros,
    is_gone: bool,
    loses_next: bool,
    /// A delivery was lost, and none sent since: the next one shows it.
    has_gap: bool,
}

pub struct Watcher {
    pub at: Micros,
    /// It stands still until then; its packets are dropped until then.
    pub still: Micros,
    pub link: Micros,
    /// The answer to its next question is lost.
    pub loses_answer: bool,
    base: Instant,
    picture: Picture,
    rereads: Rereads,
    stage: Stage,
    session: bool,
    has_begun: bool,
    /// When the session is in doubt.
    doubt: Option<Micros>,
    consumer: Option<Consumer>,
    is_replicated: bool,
    lag: Micros,
    rng: Rng,
}

impl Watcher {
    pub fn new(now: Micros, mut rng: Rng) -> Watcher {
        // A replica lags.
        let lag = *rng.pick(&[0, 0, 5 * MILLI, 50 * MILLI, 300 * MILLI]);
        let base = base();
        Watcher {
            at: now,
            still: 0,
            link: 0,
            loses_answer: false,
            base,
            picture: Picture::new(Filter::default(), DEFAULT_STALE_AFTER),
            rereads: Rereads::new(base + span(now)),
            stage: Stage::Pause(now),
            session: false,
            has_begun: false,
            doubt: None,
            consumer: None,
            is_replicated: lag > 0,
            lag,
            rng,
        }
    }

    /// Nothing gets through in one direction or in both.
    fn is_deaf(&self, ground: &Ground<'_>) -> bool {
        ground.server.dropped.max(self.link) > ground.now
    }

    fn instant(&self, now: Micros) -> Instant {
        self.base + span(now)
    }

    pub fn cut(&mut self, now: Micros) {
        self.session = false;
        self.at = self.at.min(now.max(self.still));
    }

    pub fn loses_consumer(&mut self, now: Micros) {
        if let Some(consumer) = &mut self.consumer {
            consumer.is_gone = true;
            self.at = self.at.min(now.max(self.still));
        }
    }

    pub fn loses_delivery(&mut self) {
        if let Some(consumer) = &mut self.consumer {
            consumer.loses_next = true;
        }
    }

    pub fn has_gap(&self) -> bool {
        self.consumer.as_ref().is_some_and(|consumer| consumer.has_gap)
    }

    /// The stream ends before what was there: a consumer goes, or begins where the
    /// stream ends.
    pub fn rolled_back(&mut self, now: Micros, last: u64) {
        match &mut self.consumer {
            Some(consumer) if self.rng.one_in(2) => consumer.next = consumer.next.min(last + 1),
            _ => self.loses_consumer(now),
        }
    }

    /// The server's part: it sends what there is to send, and answers.
    pub fn serve(&mut self, ground: &Ground<'_>) {
        let (now, server) = (ground.now, ground.server);
        if server.leaderless > now {
            self.loses_consumer(now);
        }
        let is_deaf = self.is_deaf(ground);
        match (is_deaf || server.silent > now, self.doubt) {
            (true, None) => self.doubt = Some(now + SILENCE - self.rng.below(SIGN)),
            (false, Some(doubt)) => {
                // What was sent again after its loss.
                let comes = now + self.rng.below(SYN);
                if comes < doubt || self.still > now {
                    self.doubt = None;
                }
            }
            _ => {}
        }
        let (lag, rng) = (self.lag, &mut self.rng);
        let Some(consumer) = self.consumer.as_mut().filter(|_| self.session) else { return };
        if server.silent > now || consumer.is_gone {
            return;
        }
        if consumer.is_waiting && !is_deaf {
            consumer.is_waiting = false;
            if server.loses_acks <= now && !std::mem::take(&mut self.loses_answer) {
                consumer.answer = Some((now + 2 * ground.latency, ground.bucket.end(now)));
            }
        }
        let last = ground.bucket.last();
        if consumer.pulled > now || (consumer.initial.is_empty() && last < consumer.next) {
            return;
        }
        let initial = std::mem::take(&mut consumer.initial);
        let mut ready: Vec<(u64, usize, Revision)> = Vec::new();
        for (at, store) in ground.bucket.stores() {
            for one in store.revisions.iter().rev() {
                if one.number >= consumer.next || initial.contains(&(at, one.number)) {
                    ready.push((one.number, at, *one));
                }
            }
        }
        ready.sort_unstable_by_key(|(number, ..)| *number);
        consumer.next = consumer.next.max(last + 1);
        // For the witness, it is one until the next call.
        consumer.has_gap &= ready.is_empty();
        for (_, at, revision) in ready {
            consumer.place += 1;
            if std::mem::take(&mut consumer.loses_next) {
                consumer.has_gap = true;
                continue;
            }
            let late = now + ground.latency + rng.below(lag + 1);
            let arrives = consumer.lane.back().map_or(late, |(before, ..)| late.max(*before));
            consumer.lane.push_back((arrives, consumer.place, at, revision));
        }
    }

    /// When it has something to do.
    pub fn plan(&mut self, ground: &Ground<'_>) {
        let now = ground.now;
        let is_heard = !self.is_deaf(ground) && ground.server.silent <= now;
        let at = match self.stage {
            Stage::Follows if self.session => {
                let doubt = self.doubt;
                let Some(consumer) = &mut self.consumer else { return };
                let lane = consumer.lane.front().map(|(at, ..)| *at);
                let answer = consumer.answer.map(|(at, _)| at);
                let timeout = consumer.asked.map(|at| at + TIMEOUT);
                let sign = consumer.progress.is_waiting().then_some(consumer.sign);
                let pulled = (consumer.pulled > now).then_some(consumer.pulled);
                let gone = (consumer.is_gone && is_heard).then_some(now + MILLI);
                let is_current = self.picture.is_current();
                let due = self.picture.next_deadline();
                let left = due.map(|due| Duration::try_from(due - stamp(now)).unwrap_or_default());
                let instant = self.base + span(now);
                let ask = consumer.reading.ask_at(instant, is_current, left);
                let ask = ask.duration_since(self.base).as_micros() as Micros;
                let others = [lane, answer, timeout, sign, pulled, gone, doubt];
                others.into_iter().flatten().min().map_or(ask, |first| first.min(ask))
            }
            Stage::Follows => now,
            _ => self.at,
        };
        self.at = at.max(self.still).max(now);
    }

    /// One step.
    pub fn step(&mut self, ground: &Ground<'_>, out: &mut Vec<Told>) {
        let (now, server) = (ground.now, ground.server);
        if self.still > now {
            self.at = self.still;
            return;
        }
        let is_deaf = self.is_deaf(ground);
        match self.stage {
            Stage::Pause(until) if now < until => self.at = until,
            Stage::Pause(_) => self.follow(now),
            Stage::Connects(until) => {
                if now >= until {
                    return self.lost(now, "no connection in time", out);
                }
                if is_deaf || server.silent > now {
                    self.at = until.min(now + if is_deaf { SYN } else { ASK });
                    return;
                }
                if server.refuses > now || server.leaves > now {
                    return self.lost(now, "refused", out);
                }
                self.session = true;
                (self.stage, self.at) = (Stage::Begins(now + TIMEOUT), now + 2 * ground.latency);
            }
            Stage::Begins(until) => {
                if !self.session || server.leaderless > now {
                    return self.lost(now, "no leader, or no session", out);
                }
                if is_deaf || server.silent > now || server.loses_acks > now {
                    if now >= until {
                        return self.lost(now, "no answer", out);
                    }
                    self.at = until.min(now + ASK);
                    return;
                }
                self.make(ground);
            }
            Stage::Made(_) if !self.session => self.lost(now, "the session has ended", out),
            Stage::Made(info) => self.begins(info, now, out),
            Stage::Follows => {
                if let Err(error) = self.hear(ground, out) {
                    self.failed(&error, now, out);
                }
            }
        }
    }

    /// Follows the bucket, on a session.
    fn follow(&mut self, now: Micros) {
        self.has_begun = false;
        self.consumer = None;
        self.stage = match self.session {
            true => Stage::Begins(now + TIMEOUT),
            false => Stage::Connects(now + TIMEOUT),
        };
        self.at = now + MILLI;
    }

    /// The server makes a consumer. The question beside it may have been asked
    /// again.
    fn make(&mut self, ground: &Ground<'_>) {
        let now = ground.now;
        let later = if self.rng.one_in(8) { self.rng.below(ASK) } else { 0 };
        let newest = ground.bucket.stores();
        let newest = newest.filter_map(|(at, store)| Some((at, store.newest()?.number)));
        self.consumer = Some(Consumer {
            reading: Reading::new(self.instant(now)),
            progress: Progress::new(self.is_replicated),
            next: ground.bucket.last() + 1,
            initial: newest.collect(),
            pulled: now + later + 3 * ground.latency,
            place: 0,
            lane: VecDeque::new(),
            asked: None,
            is_waiting: false,
            answer: None,
            sign: now + later + 3 * ground.latency + SIGN,
            is_gone: false,
            loses_next: false,
            has_gap: false,
        });
        self.stage = Stage::Made(now + later);
        self.at = now + later + 2 * ground.latency;
    }

    fn begins(&mut self, info: Micros, now: Micros, out: &mut Vec<Told>) {
        let instant = self.instant(now);
        self.has_begun = true;
        self.picture.read_anew(stamp(info));
        out.push(Told::Begins(info));
        self.stage = Stage::Follows;
        if let Some(consumer) = &mut self.consumer {
            consumer.reading = Reading::new(instant);
            consumer.ask(now);
        }
    }

    /// What comes next.
    fn hear(&mut self, ground: &Ground<'_>, out: &mut Vec<Told>) -> Result<(), Error> {
        let now = ground.now;
        let (instant, is_deaf) = (self.instant(now), self.is_deaf(ground));
        if !self.session {
            return Err(Error::Session);
        }
        let comes_after = ground.server.dropped.max(self.link) + self.rng.below(SYN);
        let Some(consumer) = &mut self.consumer else { return Err(Error::Session) };
        let is_current = self.picture.is_current();
        let due = self.picture.next_deadline();
        let left = due.map(|due| Duration::try_from(due - stamp(now)).unwrap_or_default());
        if instant >= consumer.reading.ask_at(instant, is_current, left) {
            consumer.ask(now);
            consumer.reading.asked(instant);
        }
        if let Some(end) = consumer.progress.reached() {
            return self.up_to(end, now, out);
        }
        if let Some((at, ..)) = consumer.lane.front_mut().filter(|(at, ..)| *at <= now) {
            if is_deaf {
                *at = comes_after;
                return Ok(());
            }
            let Some((_, place, key, revision)) = consumer.lane.pop_front() else { return Ok(()) };
            consumer
                .progress
                .delivered(place, revision.number)
                .map_err(|_| Error::Contradiction)?;
            consumer.sign = now + SIGN;
            let entry = entry(key, &revision);
            let mut tell = |change| out.push(Told::Change(change));
            self.picture.take(&entry, &mut tell);
            self.picture.advance(entry.stored.at, &mut tell);
            return Ok(());
        }
        if let Some((at, end)) = consumer.answer.as_mut().filter(|(at, _)| *at <= now) {
            if is_deaf {
                *at = comes_after;
                return Ok(());
            }
            let end = *end;
            (consumer.answer, consumer.asked) = (None, None);
            if consumer.sign <= now {
                consumer.sign = now + self.rng.below(SIGN);
            }
            consumer.progress.ends(end);
            return match consumer.progress.reached() {
                Some(end) => self.up_to(end, now, out),
                None => Ok(()),
            };
        }
        if consumer.is_gone && !is_deaf && ground.server.silent <= now {
            return Err(Error::Consumer);
        }
        if consumer.sign <= now {
            consumer.sign = now + SIGN;
            let is_said = self.is_replicated || consumer.lane.is_empty();
            if is_said && !is_deaf && ground.server.silent <= now {
                consumer.progress.is_idle();
            }
            return Ok(());
        }
        let unanswered = consumer.asked.is_some_and(|at| now >= at + TIMEOUT);
        if unanswered || self.doubt.is_some_and(|doubt| now >= doubt) {
            return Err(Error::Silence);
        }
        Ok(())
    }

    fn up_to(&mut self, end: End, now: Micros, out: &mut Vec<Told>) -> Result<(), Error> {
        let instant = self.instant(now);
        let Some(consumer) = &mut self.consumer else { return Ok(()) };
        let reading = &mut consumer.reading;
        let End { at, keys, .. } = end;
        if self.picture.is_current() {
            self.picture.advance(at, &mut |change| out.push(Told::Change(change)));
            if self.rereads.is_due(reading, &self.picture, (at, keys), instant) {
                out.push(Told::Suspects);
                self.follow(now);
            }
        } else if reading.is_whole(&self.picture, at, keys, instant) {
            let keys = self.picture.keys(at);
            self.picture.complete(at, &mut |change| out.push(Told::Change(change)));
            if self.picture.keys(at) < keys {
                self.rereads.were_right(instant);
            }
        }
        Ok(())
    }

    fn failed(&mut self, error: &Error, now: Micros, out: &mut Vec<Told>) {
        let why = match error {
            Error::Consumer if self.has_begun && self.picture.is_current() => {
                return self.follow(now);
            }
            Error::Consumer => "the consumer is gone",
            Error::Session => "the session has ended",
            Error::Silence => "silence",
            Error::Contradiction => "a contradiction",
        };
        // The session goes on after a reply that contradicts.
        let session = self.session && matches!(error, Error::Contradiction);
        self.lost(now, why, out);
        self.session = session;
    }

    fn lost(&mut self, now: Micros, why: &str, out: &mut Vec<Told>) {
        self.picture.lost(why, &mut |change| out.push(Told::Change(change)));
        (self.session, self.consumer, self.doubt) = (false, None, None);
        self.loses_answer = false;
        self.stage = Stage::Pause(now + RETRY_PAUSE);
        self.at = now + RETRY_PAUSE;
    }
}

impl Consumer {
    fn ask(&mut self, now: Micros) {
        if self.asked.is_none() && !self.progress.is_waiting() {
            self.asked = Some(now);
            self.is_waiting = true;
        }
    }
}

/// A revision as a consumer delivers it.
fn entry(at: usize, revision: &Revision) -> Entry {
    let marker = match revision.by {
        SERVER => Some(Marker::Expired),
        _ => revision.marker.then_some(Marker::Client),
    };
    let value = match marker {
        Some(_) => Vec::new(),
        None => match says(revision) {
            Some((major, minor)) => format!(
                "{{\"serviceName\":\"orders-api\",\"instanceId\":\"i{at}\",\
                 \"version\":\"{major}.{minor}.0\",\"status\":\"ACTIVE\",\"lastHeartbeat\":\"{}\",\
                 \"stickyActiveGroup\":null,\"metadata\":{{}}}}",
                format_time(revision.stamp)
            )
            .into_bytes(),
            None => b"{".to_vec(),
        },
    };
    let ttl = revision.ttl.map_or(Ttl::Never, |ttl| Ttl::After(span(ttl)));
    let stored = Stored { at: stamp(revision.stored), ttl };
    Entry { key: key(at).to_owned(), revision: revision.number, stored, marker, value }
}

/// Some moment: only what is between two of them counts.
#[allow(clippy::disallowed_methods)]
fn base() -> Instant {
    Instant::now()
}
