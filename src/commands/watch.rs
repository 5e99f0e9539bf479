//! `watch`: a live picture of who is alive, and a command for each change.
//!
//! One thread and one `poll`. The picture decides (`registry::picture`), the
//! follower brings what is stored (`registry::follow`), and here the two are
//! joined: what is known up to when, when to ask, and what to say. Nothing that
//! NATS does ends it; a signal, or a reader that goes, does.

// The loop reads the clocks.
#![allow(clippy::disallowed_methods)]

mod attention;
mod hook;
mod lines;
mod output;
pub mod reading;

use std::cell::RefCell;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use time::{OffsetDateTime, UtcOffset};

use self::attention::Attention;
use self::hook::Hook;
use self::lines::Lines;
use self::output::Output;
use self::reading::{ASK_PAUSE, Reading, Rereads};
use crate::cli::call::Call;
use crate::cli::options::WatchOptions;
use crate::error::{Failure, Kind, written};
use crate::instance::staleness;
use crate::jetstream::bucket::Bucket;
use crate::nats::failure::NO_CONNECTION;
use crate::nats::{ConnectError, Connector, RequestError, Settings, Waiter};
use crate::registry::Registry;
use crate::registry::failure::RegistryError;
use crate::registry::follow::{FOLLOWING, Follower, Heard};
use crate::registry::listing::{Document, Listed};
use crate::registry::outage::Outage;
use crate::registry::picture::{Change, Picture};
use crate::system::signals::Signals;
use crate::text::duration::words;

/// Between two attempts to get the registry back.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Runs until a signal comes or nobody reads any more. `unconnected` is what may
/// be the reason where no connection comes about.
pub fn run(
    options: WatchOptions,
    settings: Settings,
    bucket: Bucket,
    unconnected: Option<String>,
) -> Result<(), Failure> {
    settings.check_files()?;
    let hook = options.exec.map(|command| Hook::new(command, options.settle));
    let attention = Rc::new(Attention {
        signals: Signals::take_with_children()?,
        output: RefCell::new(Output::open()),
        hook: RefCell::new(hook),
    });
    let lines = match options.json {
        true => Lines::Json,
        false => Lines::Text(local_offset(&attention.signals)),
    };
    if let Some(line) = lines.first() {
        attention.output.borrow_mut().push(&line);
    }
    let connector = Connector::new(settings).with_waiter(attention.clone());
    let mut watcher = Watcher {
        registry: Registry::new(connector, bucket),
        picture: Picture::new(options.filter, options.stale_after),
        teller: Teller { attention: Rc::clone(&attention), lines },
        stale_after: options.stale_after,
        followers: 0,
        has_begun: false,
        outage: None,
        unconnected,
        rereads: Rereads::new(Instant::now()),
    };
    let result = watcher.run();
    let failure = attention.output.borrow_mut().failure();
    result.and_then(|()| failure.map_or(Ok(()), |error| written(Err(error))))
}

/// Turns changes into lines, and tells the command of them.
struct Teller {
    attention: Rc<Attention>,
    lines: Lines,
}

impl Teller {
    fn tell(&self, change: &Change, now: OffsetDateTime) {
        self.attention.output.borrow_mut().push(&self.lines.line(change, now));
        if let Some(hook) = self.attention.hook.borrow_mut().as_mut() {
            match change {
                Change::Synced => hook.synced(Instant::now()),
                Change::Lost(_) => {}
                _ => hook.changed(Instant::now()),
            }
        }
    }
}

/// Why a follower has come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Over,
    /// The state is to be read anew, and nothing is wrong.
    ReadAnew,
}

struct Watcher {
    registry: Registry,
    picture: Picture,
    teller: Teller,
    stale_after: Duration,
    /// Consumers so far.
    followers: u32,
    /// The last attempt to follow the bucket came as far as a consumer.
    has_begun: bool,
    outage: Option<Outage>,
    /// What may be the reason where no connection comes about.
    unconnected: Option<String>,
    rereads: Rereads,
}

impl Watcher {
    fn run(&mut self) -> Result<(), Failure> {
        let attention = Rc::clone(&self.teller.attention);
        while !attention.is_over() {
            self.has_begun = false;
            match self.follow() {
                Ok(Ok(End::Over)) => break,
                Ok(Ok(End::ReadAnew)) => {}
                Ok(Err(error))
                    if self.has_begun && self.picture.is_current() && is_gone(&error) =>
                {
                    // Another one can be had at once.
                    debug!("the consumer is gone: {error}");
                }
                Ok(Err(error)) => self.lost(error),
                Err(failure) => return Err(failure),
            }
        }
        attention.output.borrow_mut().write();
        Ok(())
    }

    /// Follows the bucket until that fails. Another session may cure the inner
    /// error.
    fn follow(&mut self) -> Result<Result<End, RegistryError>, Failure> {
        if self.registry.session().is_none() {
            let limit = self.registry.timeout();
            if let Err(error) = self.registry.connect(limit) {
                return Ok(Err(error));
            }
        }
        self.followers += 1;
        let mut follower = match Follower::begin(&mut self.registry, self.followers) {
            Ok(follower) => follower,
            Err(error) => return Ok(Err(error)),
        };
        self.has_begun = true;
        self.picture.read_anew(follower.began());
        let mut reading = Reading::new(Instant::now());
        loop {
            if self.teller.attention.is_over() {
                follower.end(&mut self.registry);
                return Ok(Ok(End::Over));
            }
            self.wait_for_readers()?;
            match self.step(&mut follower, &mut reading) {
                Ok(None) => {}
                Ok(Some(end)) => {
                    follower.end(&mut self.registry);
                    return Ok(Ok(end));
                }
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    fn step(
        &mut self,
        follower: &mut Follower,
        reading: &mut Reading,
    ) -> Result<Option<End>, RegistryError> {
        let until = self.plan(follower, reading)?;
        let heard = follower.next(&mut self.registry, until)?;
        let now = self.now();
        let Watcher { picture, teller, .. } = self;
        let mut tell = |change: Change| teller.tell(&change, now);
        match heard {
            Heard::Entry(entry) => {
                picture.take(&entry, &mut tell);
                picture.advance(entry.stored.at, &mut tell);
            }
            Heard::UpTo { at, keys } => {
                if picture.is_current() {
                    picture.advance(at, &mut tell);
                    let answer = (at, keys);
                    if self.rereads.is_due(reading, picture, answer, Instant::now()) {
                        debug!("the bucket has {keys} keys, fewer than were seen: reading it anew");
                        return Ok(Some(End::ReadAnew));
                    }
                    return Ok(None);
                }
                self.complete(at, keys, reading);
            }
            Heard::Nothing => {}
        }
        Ok(None)
    }

    /// Asks and starts what is due, and says when there is more to do.
    fn plan(
        &mut self,
        follower: &mut Follower,
        reading: &mut Reading,
    ) -> Result<Instant, RegistryError> {
        let now = Instant::now();
        let is_current = self.picture.is_current();
        let due = self.picture.next_deadline();
        let left = due.map(|due| Duration::try_from(due - self.now()).unwrap_or_default());
        let mut ask_at = reading.ask_at(now, is_current, left);
        if now >= ask_at {
            follower.ask(&mut self.registry)?;
            reading.asked(now);
            ask_at = now + ASK_PAUSE;
        }
        let due = self.teller.attention.hook.borrow().as_ref().and_then(Hook::due);
        let mut until = ask_at.min(follower.deadline());
        if let Some(due) = due.filter(|_| self.picture.is_current()) {
            if due <= now {
                let state = self.state();
                if let Some(hook) = self.teller.attention.hook.borrow_mut().as_mut() {
                    hook.start(state, now);
                }
            } else {
                until = until.min(due);
            }
        }
        Ok(until)
    }

    /// The state has been read, if it is whole.
    fn complete(&mut self, at: OffsetDateTime, keys: u64, reading: &mut Reading) {
        if !reading.is_whole(&self.picture, at, keys, Instant::now()) {
            return;
        }
        let now = self.now();
        let Watcher { picture, teller, .. } = self;
        let keys = picture.keys(at);
        picture.complete(at, &mut |change| teller.tell(&change, now));
        if picture.keys(at) < keys {
            self.rereads.were_right(Instant::now());
        }
        if let Some(outage) = self.outage.take() {
            info!("up to date again after {}", words(outage.since.elapsed()));
        }
    }

    /// Nobody is called down for that; it is tried again, after a pause.
    fn lost(&mut self, error: RegistryError) {
        if self.teller.attention.is_over()
            || matches!(error, RegistryError::Connect(ConnectError::Stopped))
        {
            return;
        }
        let why = error.why();
        if matches!(error, RegistryError::Request(..)) {
            self.registry.disconnect();
        }
        let now = self.now();
        let Watcher { picture, teller, .. } = self;
        picture.lost(&why, &mut |change| teller.tell(&change, now));
        self.warn(error);
        let until = Instant::now() + RETRY_PAUSE;
        while Instant::now() < until && !self.teller.attention.is_over() {
            self.registry.idle_until(until);
        }
    }

    fn warn(&mut self, error: RegistryError) {
        let failure = Failure::from(error).with_note(NO_CONNECTION, self.unconnected.clone());
        let cause = failure.chain();
        let is_first = self.outage.is_none();
        let outage = self.outage.get_or_insert_with(|| Outage::new(Instant::now()));
        if !outage.is_news(&cause) {
            debug!("{cause}");
            return;
        }
        let call = Call::of(self.registry.settings(), self.registry.bucket());
        let hint = call.hint_of(&failure);
        match is_first {
            true => warn!("nothing is known of the registry: {cause}; trying again{hint}"),
            false => warn!("still without registry: {cause}{hint}"),
        }
    }

    /// Reads nothing more while too much waits for a reader; the error is that
    /// nobody reads at all.
    fn wait_for_readers(&self) -> Result<(), Failure> {
        let attention = &self.teller.attention;
        while attention.output.borrow().is_full() && !attention.is_over() {
            let until = attention.output.borrow().patience_ends();
            if Instant::now() >= until {
                let waiting = attention.output.borrow().waiting() >> 10;
                return Err(Failure::new(
                    Kind::Incomplete,
                    format!("nobody reads standard output: {waiting} KiB of events wait"),
                )
                .with_hint("start it again: it begins with the whole state"));
            }
            attention.wait(&mut [], Some(until));
        }
        Ok(())
    }

    /// The registry's time, as far as it is known.
    fn now(&self) -> OffsetDateTime {
        self.registry.time().unwrap_or_else(|| self.registry.wall_clock())
    }

    /// What `list --json` would print.
    fn state(&self) -> Vec<u8> {
        let now = self.now();
        let mut out = Vec::new();
        let written = (|| {
            let mut document = Document::default();
            let (hidden, unreadable) = self.picture.show_all(|key, revision, record, stored| {
                let reasons = staleness::judge(record, stored, now, self.stale_after);
                let reasons = &reasons;
                document.add(&Listed { key, revision, record, stored, reasons, now })
            })?;
            document.write(&mut out, (self.registry.bucket(), now), hidden, &unreadable)
        })();
        if let Err(error) = written {
            debug!("the state cannot be written: {error}");
        }
        out
    }
}

/// Only the consumer is gone.
fn is_gone(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Request(FOLLOWING, RequestError::NoResponders))
}

/// How far local time is from UTC, as `date` says it: our own answer would take
/// a reader of the zone files. UTC where it gives none.
fn local_offset(signals: &Signals) -> UtcOffset {
    let asked = Command::new("date").arg("+%z").stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let Ok(mut child) = asked else { return UtcOffset::UTC };
    let end = Instant::now() + Duration::from_secs(1);
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < end && !signals.stopped() {
        signals.wait_until(end);
    }
    let Ok(Some(_)) = child.try_wait() else {
        child.kill().ok();
        return UtcOffset::UTC;
    };
    let mut text = String::new();
    if let Some(mut out) = child.stdout.take() {
        std::io::Read::read_to_string(&mut out, &mut text).ok();
    }
    read_offset(text.trim()).unwrap_or(UtcOffset::UTC)
}

/// `+0530`, `-0330`.
fn read_offset(text: &str) -> Option<UtcOffset> {
    let sign = match text.get(..1)? {
        "+" => 1,
        "-" => -1,
        _ => return None,
    };
    let (hours, minutes): (i8, i8) = (text.get(1..3)?.parse().ok()?, text.get(3..5)?.parse().ok()?);
    UtcOffset::from_hms(sign * hours, sign * minutes, 0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_of_date_is_read() {
        for (text, expected) in [
            ("+0000", Some((0, 0))),
            ("+0530", Some((5, 30))),
            ("-0330", Some((-3, -30))),
            ("", None),
            ("UTC", None),
            ("+1", None),
            ("+9900", None),
        ] {
            let read = read_offset(text).map(|offset| (offset.as_hms().0, offset.as_hms().1));
            assert_eq!(read, expected, "{text}");
        }
    }
}
