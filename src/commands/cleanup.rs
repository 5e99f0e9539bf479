//! `cleanup`: removes what is stale, and nothing that came back meanwhile.
//!
//! Reads the bucket and removes from it at the same time, on one session and
//! within bounds. Sometimes it must know more before the first entry goes: how
//! many there are, which revision is the newest of its key, or who is still
//! beating. Then it reads the bucket first, keeps the revisions that it judged,
//! and removes exactly those.

pub mod remover;
pub mod report;
pub mod revisions;
pub mod selection;

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use log::info;

use self::remover::{Fate, REMOVING, Remover};
use self::report::{Console, Counts, Report, Style};
use self::revisions::Revisions;
use self::selection::{Choice, Selection, Target, Unread};
use crate::cli::options::CleanupOptions;
use crate::error::{Failure, Kind};
use crate::instance::entry::Entry;
use crate::instance::staleness::INTERVAL_MARGIN;
use crate::jetstream::bucket::Bucket;
use crate::jetstream::replies::StreamInfo;
use crate::nats::{Arrival, ConnectError, Connector, RequestError, Settings};
use crate::registry::Registry;
use crate::registry::clock::RegistryClock;
use crate::registry::failure::RegistryError;
use crate::registry::scan::{SCANNING, Scan};
use crate::system::signals::Signals;
use crate::text::duration::words;

/// After so many failures it ends: whatever is wrong, it is not the entries,
/// and the answer names each of them.
const MOST_FAILURES: u64 = 1_000;

/// Sessions lost in a row without one answer in between that are an outage.
const FRUITLESS_SESSIONS: u32 = 2;
/// Entries that wait for their turn; more are not asked for meanwhile.
const READY_LIMIT: usize = 256;
/// The longest time that a beating instance is given to show itself.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

const RUN_AGAIN: &str = "run it again: what is still there is removed then";

/// Removes what is stale, or says what would be removed.
pub fn run(
    options: CleanupOptions,
    settings: Settings,
    bucket: Bucket,
    console: Console<'_>,
) -> Result<(), Failure> {
    let signals = Rc::new(Signals::take()?);
    over(options, Connector::new(settings).with_waiter(signals), bucket, console)
}

/// The same, over a connector whose waiter hears of a stop and tells the time.
pub fn over(
    options: CleanupOptions,
    connector: Connector,
    bucket: Bucket,
    console: Console<'_>,
) -> Result<(), Failure> {
    let style = Style { json: options.json, dry_run: options.dry_run };
    let report = Report::new(console, style, connector.waiter().now());
    let mut registry = Registry::connected(connector, bucket)?;
    let info = registry.info_anywhere()?;
    let info = registry.readable(info)?;
    let clock = registry.clock().ok_or(RegistryError::NoClock)?;
    let remover = Remover::new(&info, &registry);
    let mut cleanup = Cleanup {
        selection: Selection {
            stale_after: options.stale_after,
            only: options.only,
            service: options.service,
            unreadable: options.unreadable,
            spare_beating: options.spare_beating,
        },
        dry_run: options.dry_run,
        max_removals: options.max_removals,
        registry,
        info,
        clock,
        remover,
        report,
    };
    cleanup.run(options.json)
}

struct Cleanup<'a> {
    selection: Selection,
    dry_run: bool,
    max_removals: Option<u64>,
    registry: Registry,
    info: StreamInfo,
    clock: RegistryClock,
    remover: Remover,
    report: Report<'a>,
}

/// Why a pass ended before its end.
enum End {
    /// A signal.
    Stopped,
    /// Nothing more can be read or removed.
    Failed(Failure),
}

impl<T: Into<Failure>> From<T> for End {
    fn from(error: T) -> End {
        End::Failed(error.into())
    }
}

impl Cleanup<'_> {
    fn run(&mut self, json: bool) -> Result<(), Failure> {
        // The JSON says how many were scanned before it names the first.
        let looks_twice = self.selection.spare_beating || self.info.history() != 1;
        let counts_first = json || self.max_removals.is_some() || (looks_twice && !self.dry_run);
        let (mut end, mut over) = (Ok(()), None);
        if counts_first {
            let mut found = Counts::default();
            let counted = self.count(&mut found);
            self.report.begin_removals(self.registry.bucket());
            let with_ttl = found.with_ttl;
            over = self.max_removals.filter(|most| found.removed > *most).map(|most| (most, found));
            match counted {
                // A dry run shows what the brake is about.
                Ok(revisions) if revisions.count() > 0 && (over.is_none() || self.dry_run) => {
                    end = self.let_beat(with_ttl).and_then(|()| self.remove(Some(&revisions)));
                }
                counted => end = counted.map(|_| ()),
            }
        } else {
            end = end.and_then(|()| self.remove(None));
        }
        let written = self.report.end(self.registry.now());
        self.outcome(end, over).and(written)
    }

    /// Reads the bucket, judges, and keeps which revisions are to go.
    fn count(&mut self, found: &mut Counts) -> Result<Revisions, End> {
        let mut scan = Scan::begin(&mut self.registry, &self.info)?;
        let mut revisions = Revisions::default();
        while let Some(entry) = scan.next(&mut self.registry)? {
            self.go_on()?;
            if let Some(target) = self.judge(entry, true) {
                found.remove(&target);
                revisions.push(target.revision);
            }
        }
        found.scanned = self.report.counts.scanned;
        // The member that told where the bucket ends may have been cut off from
        // the others.
        self.info.state.last_seq = self.info.state.last_seq.max(scan.last());
        scan.end(&mut self.registry);
        Ok(revisions)
    }

    /// Where beating entries are to be spared, an entry whose TTL is over is a
    /// surprise: a healthy server would have removed it. Its server has a bug,
    /// or the server's clock jumped and all entries look old at once. So whoever
    /// lives gets the time to beat once more before anything goes; what was
    /// refreshed then has a later revision, and stays.
    fn let_beat(&mut self, with_ttl: u64) -> Result<(), End> {
        if !self.selection.spare_beating || self.dry_run || with_ttl == 0 {
            return Ok(());
        }
        let longest_interval = self.selection.stale_after.saturating_sub(INTERVAL_MARGIN);
        let wait = longest_interval.min(LONGEST_WAIT);
        info!(
            "waiting {} before removing: {with_ttl} of the entries had a TTL, and an instance that \
             is alive refreshes its entry meanwhile",
            words(wait)
        );
        let until = self.registry.now() + wait;
        while self.registry.now() < until {
            self.registry.idle_until(until);
            self.go_on()?;
        }
        Ok(self.registry.ensure_session()?)
    }

    /// Reads the bucket and removes what is stale: of the revisions that were
    /// judged before, where there are such, and otherwise of all.
    fn remove(&mut self, judged: Option<&Revisions>) -> Result<(), End> {
        if self.dry_run {
            return self.show(judged);
        }
        let range = judged.map(Revisions::range);
        let mut scan = Scan::begin_removing(&mut self.registry, &self.info, range)?;
        let removed = self.remove_scanned(&mut scan, judged);
        if let Err(End::Stopped) = removed {
            // Whatever ended it: what was sent has an answer.
            self.drain()?;
        }
        removed?;
        scan.end(&mut self.registry);
        Ok(())
    }

    /// A dry run: says what would go.
    fn show(&mut self, judged: Option<&Revisions>) -> Result<(), End> {
        let mut scan = Scan::begin(&mut self.registry, &self.info)?;
        while let Some(entry) = scan.next(&mut self.registry)? {
            self.go_on()?;
            if let Some(target) = self.wanted(entry, judged) {
                self.report.take(&target, Fate::Removed);
            }
        }
        scan.end(&mut self.registry);
        Ok(())
    }

    /// Reads and removes at the same time, on one session: what was read waits
    /// until there is room for its removal, and nothing more is asked for
    /// meanwhile.
    fn remove_scanned(&mut self, scan: &mut Scan, judged: Option<&Revisions>) -> Result<(), End> {
        let mut ready: VecDeque<Entry> = VecDeque::new();
        let mut fruitless = 0;
        loop {
            self.ask_again();
            while self.remover.has_room()
                && let Some(entry) = ready.pop_front()
            {
                self.go_on()?;
                let Some(target) = self.wanted(entry, judged) else { continue };
                let report = &mut self.report;
                let sink = &mut |target: &Target, fate| report.take(target, fate);
                if self.remover.remove(&mut self.registry, target, sink).is_err() {
                    break;
                }
            }
            if scan.is_finished() && ready.is_empty() && self.remover.is_idle() {
                match scan.looks_again(&mut self.registry) {
                    Ok(true) => {}
                    Ok(false) => return Ok(()),
                    Err(error) => scan.go_on_after(&mut self.registry, error)?,
                }
                continue;
            }
            if ready.len() < READY_LIMIT {
                scan.pull(&mut self.registry, !self.remover.is_idle())?;
            }
            let deadline = scan
                .deadline(&self.registry)
                .into_iter()
                .chain(self.remover.deadline(&self.registry))
                .min();
            let deadline = deadline.unwrap_or_else(|| self.registry.now());
            match self.registry.receive(SCANNING, deadline) {
                Ok(arrival) => {
                    let before = (ready.len(), self.remover.under_way());
                    if scan.owns(&arrival) {
                        match scan.take(&self.registry, arrival) {
                            Ok(entry) => ready.extend(entry),
                            Err(error) => {
                                self.drain()?;
                                scan.go_on_after(&mut self.registry, error)?;
                            }
                        }
                    } else {
                        self.removed(arrival)?;
                    }
                    // What nobody asked for is no progress.
                    if before != (ready.len(), self.remover.under_way()) {
                        fruitless = 0;
                    }
                }
                Err(RegistryError::Request(_, RequestError::TimedOut))
                    if self.remover.is_due(&self.registry) => {}
                Err(error @ RegistryError::Request(_, RequestError::TimedOut))
                    if scan.may_replace_consumer(&self.registry) =>
                {
                    self.drain()?;
                    scan.go_on_after(&mut self.registry, error)?;
                }
                Err(RegistryError::Request(_, RequestError::TimedOut))
                    if self.remover.time_to_move(&self.registry).is_some() =>
                {
                    self.move_on(Some(scan))?;
                }
                Err(error) => {
                    fruitless += 1;
                    self.session_lost(error, fruitless, Some(scan))?;
                }
            }
            self.go_on()?;
        }
    }

    /// Waits until nothing is under way any more, within the timeout of each.
    fn drain(&mut self) -> Result<(), End> {
        let mut fruitless = 0;
        while let Some(deadline) = self.remover.deadline(&self.registry) {
            self.ask_again();
            match self.registry.receive(REMOVING, deadline) {
                Ok(arrival) => self.removed(arrival)?,
                Err(RegistryError::Request(_, RequestError::TimedOut))
                    if self.remover.is_due(&self.registry) => {}
                Err(RegistryError::Request(_, RequestError::TimedOut))
                    if self.remover.time_to_move(&self.registry).is_some() =>
                {
                    self.move_on(None)?;
                }
                Err(error) => {
                    fruitless += 1;
                    self.session_lost(error, fruitless, None)?;
                }
            }
        }
        Ok(())
    }

    /// Sends again what met a bucket without a leader, if that is due. Where the
    /// session is lost it waits for the next one.
    fn ask_again(&mut self) {
        let report = &mut self.report;
        let sink = &mut |target: &Target, fate| report.take(target, fate);
        self.remover.ask_again(&mut self.registry, sink);
    }

    fn removed(&mut self, arrival: Arrival) -> Result<(), Failure> {
        let report = &mut self.report;
        let sink = &mut |target: &Target, fate| report.take(target, fate);
        self.remover.take(&mut self.registry, arrival, sink)
    }

    /// The session is in doubt or at its end: goes on with a fresh one, unless
    /// that has been tried in vain.
    fn session_lost(
        &mut self,
        error: RegistryError,
        fruitless: u32,
        scan: Option<&mut Scan>,
    ) -> Result<(), End> {
        let can_go_on = matches!(
            error,
            RegistryError::Request(_, RequestError::Lost(_) | RequestError::TimedOut)
        );
        if !can_go_on || self.registry.stop_requested() || fruitless > FRUITLESS_SESSIONS {
            return Err(self.give_up(error));
        }
        let limit = self.registry.timeout();
        if let Err(error) = self.registry.connect(limit) {
            return Err(self.give_up(error));
        }
        let resumed = self.restart(scan).and_then(|()| {
            let sink = &mut |target: &Target, fate| self.report.take(target, fate);
            self.remover.resume(&mut self.registry, sink)
        });
        // A session that ended at once leaves work open: it is for the next
        // one.
        match resumed {
            Err(RegistryError::Request(_, RequestError::Lost(_) | RequestError::TimedOut))
                if fruitless < FRUITLESS_SESSIONS =>
            {
                Ok(())
            }
            Err(error) => Err(self.give_up(error)),
            Ok(()) => Ok(()),
        }
    }

    /// A member of the cluster that is silent may be cut off from the others, or
    /// have lost what was under way as it stopped leading: goes on with another one,
    /// if one lets us in while there is time.
    fn move_on(&mut self, scan: Option<&mut Scan>) -> Result<(), End> {
        let time = self.remover.time_to_move(&self.registry).unwrap_or_default();
        let has_moved = self.registry.move_on(time).is_ok();
        let resumed = self.restart(scan.filter(|_| has_moved)).and_then(|()| {
            let sink = &mut |target: &Target, fate| self.report.take(target, fate);
            self.remover.was_silent(&mut self.registry, has_moved, sink)
        });
        match resumed {
            // The next wait says so.
            Err(RegistryError::Request(_, RequestError::Lost(_) | RequestError::TimedOut)) => {
                Ok(())
            }
            Err(error) => Err(self.give_up(error)),
            Ok(()) => Ok(()),
        }
    }

    /// Goes on reading on another session. Before the removals do: it waits for its
    /// own answer only.
    fn restart(&mut self, scan: Option<&mut Scan>) -> Result<(), RegistryError> {
        match scan.filter(|scan| !scan.is_finished()) {
            Some(scan) => scan.restart(&mut self.registry),
            None => Ok(()),
        }
    }

    /// Nothing more can be removed; what was under way has failed.
    fn give_up(&mut self, error: RegistryError) -> End {
        let why = match &error {
            RegistryError::Request(_, error) => error.to_string(),
            error => error.to_string(),
        };
        let report = &mut self.report;
        self.remover.fail_all(&why, &mut |target, fate| report.take(target, fate));
        self.registry.disconnect();
        match error {
            RegistryError::Connect(ConnectError::Stopped) => {
                Failure::new(Kind::Incomplete, "stopped while removing entries").into()
            }
            error => error.into(),
        }
    }

    /// The entry as a target, if it goes and was not left out by an earlier
    /// look.
    fn wanted(&mut self, entry: Entry, judged: Option<&Revisions>) -> Option<Target> {
        let is_first = judged.is_none();
        let was_judged = judged.is_none_or(|judged| judged.holds(entry.revision));
        if was_judged { self.judge(entry, is_first) } else { None }
    }

    /// The entry as a target, if it is to go; otherwise it stays. Counted and
    /// reported where this is the `first` look at it.
    fn judge(&mut self, entry: Entry, first: bool) -> Option<Target> {
        let now = self.clock.time(self.registry.boot_clock());
        let target = match self.selection.judge(entry, now) {
            Choice::NotOurs => return None,
            Choice::Keep => None,
            Choice::Beating(key) => {
                if first {
                    self.report.beating(&key);
                }
                None
            }
            Choice::Remove(target) => Some(target),
            Choice::Unreadable(unreadable, unread) => {
                if first {
                    self.report.unreadable(&unreadable, matches!(unread, Unread::Stuck));
                }
                if first && matches!(unread, Unread::Beating) {
                    self.report.beating(&unreadable.key);
                }
                match unread {
                    Unread::Remove(target) => Some(target),
                    Unread::Keep | Unread::Beating | Unread::Stuck => None,
                }
            }
        };
        self.report.counts.scanned += u64::from(first);
        target
    }

    /// Between two entries: whether to go on.
    fn go_on(&mut self) -> Result<(), End> {
        self.report.tick(self.registry.now());
        if self.registry.stop_requested() {
            return Err(End::Stopped);
        }
        if self.report.counts.failed >= MOST_FAILURES {
            let message = format!("{MOST_FAILURES} entries could not be removed: giving up");
            return Err(Failure::new(Kind::Incomplete, message).with_hint(RUN_AGAIN).into());
        }
        Ok(())
    }

    /// The exit code, and what stands on stderr.
    fn outcome(&self, end: Result<(), End>, over: Option<(u64, Counts)>) -> Result<(), Failure> {
        let Counts { removed, failed, stuck, .. } = self.report.counts;
        let partly = !self.dry_run && removed + failed > 0;
        match end {
            Err(End::Failed(failure)) if partly && failure.kind() == Kind::Unavailable => {
                let message = format!("stopped after {removed} removals: {}", failure.chain());
                Err(Failure::new(Kind::Incomplete, message).with_hint(RUN_AGAIN))
            }
            Err(End::Failed(failure)) => Err(failure),
            Err(End::Stopped) => {
                let message = format!("stopped by a signal after {removed} removals");
                Err(Failure::new(Kind::Incomplete, message).with_hint(RUN_AGAIN))
            }
            Ok(()) => match over {
                Some((most, found)) => Err(over_the_limit(most, &found)),
                None if failed > 0 => {
                    let message = format!("{failed} entries could not be removed");
                    Err(Failure::new(Kind::Incomplete, message).with_hint(RUN_AGAIN))
                }
                None if stuck > 0 && !self.dry_run => {
                    let message = format!(
                        "unreadable entries that could not be removed: {stuck}; their keys cannot be \
                         named safely"
                    );
                    Err(Failure::new(Kind::Incomplete, message))
                }
                None => Ok(()),
            },
        }
    }
}

fn over_the_limit(most: u64, found: &Counts) -> Failure {
    let message = format!(
        "{} of {} entries would go ({}), more than --max-removals {most}: nothing was removed",
        found.removed,
        found.scanned,
        found.reasons()
    );
    Failure::new(Kind::Incomplete, message).with_hint(
        "is the registry's clock right, and are the services really gone? a larger --max-removals \
         lets them go; without it they are shown by: aegis-agent cleanup --dry-run",
    )
}
