//! What a cleanup did: lines for people and for cron, JSON for programs.
//!
//! Written while it happens, so that memory does not grow with the bucket:
//! only what follows the removals in the JSON is kept, as the text that it will
//! be. Both name entries in the order of their revisions. Text says nothing where
//! nothing was done and nothing is wrong, unless that was the question
//! (`--dry-run`).
//! An output that fails does not stop the work: it is reported at the end.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use log::error;
use serde::Serialize;

use super::remover::Fate;
use super::selection::{Target, UNREADABLE};
use crate::error::{Failure, written};
use crate::instance::entry::Unreadable;
use crate::jetstream::bucket::Bucket;
use crate::text::duration::{signed_words, words};
use crate::text::printable::{clipped, printable, printable_json};

/// Lines of one kind; the rest is counted.
const LINES: u64 = 20;
/// The longest key and the longest reason on a line.
const WIDEST: usize = 200;
/// Work that takes longer shows its progress on a terminal, so often.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Where a verb may write to.
pub struct Console<'a> {
    /// The answer.
    pub out: &'a mut dyn Write,
    /// Say also that there was nothing to do.
    pub loud: bool,
    /// A terminal that shows how far it is.
    pub progress: Option<&'a mut dyn Write>,
}

/// How the answer is to look.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// JSON instead of lines.
    pub json: bool,
    /// Nothing is removed: say what would be.
    pub dry_run: bool,
}

/// How many of what.
#[derive(Debug, Default)]
pub struct Counts {
    /// Instance entries that were looked at, readable or not.
    pub scanned: u64,
    /// Removed; with a dry run, what would be.
    pub removed: u64,
    /// The same by reason; an entry may have several.
    pub by_reason: BTreeMap<&'static str, u64>,
    /// Of those removed: stored with a TTL.
    pub with_ttl: u64,
    /// Refreshed or gone in between, or beating.
    pub spared: u64,
    /// Not removed.
    pub failed: u64,
    /// Cannot be read.
    pub unreadable: u64,
    /// Of these: were to go, and could not.
    pub stuck: u64,
}

impl Counts {
    /// Counts one that goes.
    pub fn remove(&mut self, target: &Target) {
        self.removed += 1;
        self.with_ttl += u64::from(target.has_ttl);
        if target.reasons.is_empty() {
            *self.by_reason.entry(UNREADABLE).or_default() += 1;
        }
        for reason in &target.reasons {
            *self.by_reason.entry(reason.as_str()).or_default() += 1;
        }
    }

    /// `heartbeat-too-old 3, no-ttl 5`
    pub fn reasons(&self) -> String {
        let each: Vec<_> = self.by_reason.iter().map(|(why, n)| format!("{why} {n}")).collect();
        each.join(", ")
    }
}

/// The report while it grows.
pub struct Report<'a> {
    console: Console<'a>,
    style: Style,
    /// What was counted so far.
    pub counts: Counts,
    spared: List,
    failed: List,
    unreadable: List,
    broken: Option<io::Error>,
    began: Instant,
    progress_due: Option<Instant>,
}

/// The inside of a JSON array, as text.
#[derive(Default)]
struct List(String);

impl List {
    fn push(&mut self, item: &impl Serialize) {
        // Text and numbers always serialise.
        if let Ok(json) = serde_json::to_string(item) {
            if !self.0.is_empty() {
                self.0.push(',');
            }
            self.0.push_str(&printable_json(&json));
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonRemoved<'a> {
    key: &'a str,
    revision: u64,
    service_name: &'a str,
    instance_id: &'a str,
    reasons: Vec<&'static str>,
}

#[derive(Serialize)]
struct JsonWhy<'a> {
    key: &'a str,
    why: &'a str,
}

impl<'a> Report<'a> {
    /// An empty report, begun at `now`.
    pub fn new(console: Console<'a>, style: Style, now: Instant) -> Report<'a> {
        let progress_due = console.progress.is_some().then(|| now + PROGRESS_AFTER);
        Report {
            console,
            style,
            counts: Counts::default(),
            spared: List::default(),
            failed: List::default(),
            unreadable: List::default(),
            broken: None,
            began: now,
            progress_due,
        }
    }

    /// Writes the head of the JSON. Removals follow it, so the number of entries
    /// must be known by now.
    pub fn begin_removals(&mut self, bucket: &Bucket) {
        if self.style.json {
            let (dry_run, scanned) = (self.style.dry_run, self.counts.scanned);
            self.write(format_args!(
                "{{\"schema\":1,\"bucket\":\"{bucket}\",\"dryRun\":{dry_run},\"scanned\":{scanned},\"removed\":["
            ));
        }
    }

    /// Takes what became of a target.
    pub fn take(&mut self, target: &Target, fate: Fate) {
        match fate {
            Fate::Removed => self.removed(target),
            Fate::Spared => self.spared(&target.key, "refreshed"),
            Fate::Failed(why) => {
                self.counts.failed += 1;
                if self.counts.failed <= LINES {
                    let (key, revision) = (&target.key, target.revision);
                    self.clear_progress();
                    error!("cannot remove {key} (revision {revision}): {why}");
                }
                if self.style.json {
                    self.failed.push(&JsonWhy { key: &target.key, why: &why });
                }
            }
        }
    }

    /// Takes an entry that is left alone because its own TTL is still running.
    pub fn beating(&mut self, key: &str) {
        self.spared(key, "beating");
    }

    fn spared(&mut self, key: &str, why: &str) {
        self.counts.spared += 1;
        if self.style.json {
            self.spared.push(&JsonWhy { key, why });
        }
    }

    fn removed(&mut self, target: &Target) {
        self.counts.remove(target);
        let first = self.counts.removed == 1;
        if self.style.json {
            let json = serde_json::to_string(&JsonRemoved {
                key: &target.key,
                revision: target.revision,
                service_name: &target.service_name,
                instance_id: &target.instance_id,
                reasons: target.words(),
            });
            let comma = if first { "" } else { "," };
            // Text and numbers always serialise.
            self.write(format_args!("{comma}{}", printable_json(&json.unwrap_or_default())));
        } else if self.style.dry_run || self.counts.removed <= LINES {
            let done = if self.style.dry_run { "would remove" } else { "removed" };
            let mut words = target.words().join(" ");
            if let Some(skew) = target.skew {
                words.push_str(&format!(" {}", signed_words(skew)));
            }
            self.clear_progress();
            self.write(format_args!(
                "{done} {} (revision {}): {words}\n",
                clipped(&target.key, WIDEST),
                target.revision
            ));
        }
    }

    /// Takes an entry that cannot be read. `stuck`: it was to go and cannot. No
    /// command takes it: a bucket does not permit to delete single messages
    /// (10057), and a purge of its key takes other keys with it.
    pub fn unreadable(&mut self, entry: &Unreadable, stuck: bool) {
        self.counts.unreadable += 1;
        self.counts.stuck += u64::from(stuck);
        if self.style.json {
            self.unreadable.push(entry);
        } else if self.counts.unreadable <= LINES {
            let (key, why) = (clipped(&entry.key, WIDEST), printable(&entry.why));
            let revision = entry.revision;
            let stays = if stuck { "; not removed: its key cannot be named safely" } else { "" };
            self.clear_progress();
            self.write(format_args!("unreadable: {key} (revision {revision}): {why}{stays}\n"));
        }
    }

    /// Shows how far it is, if that is due.
    pub fn tick(&mut self, now: Instant) {
        if self.progress_due.is_none_or(|due| now < due) {
            return;
        }
        self.progress_due = Some(now + PROGRESS_EVERY);
        let Counts { scanned, removed, .. } = self.counts;
        let done = if self.style.dry_run { "to be removed" } else { "removed" };
        if let Some(terminal) = &mut self.console.progress {
            write!(terminal, "\r{scanned} scanned, {removed} {done}\x1b[K").ok();
        }
    }

    /// Takes the progress off the terminal, before something else is written.
    pub fn clear_progress(&mut self) {
        if let (Some(_), Some(terminal)) = (self.progress_due, &mut self.console.progress) {
            write!(terminal, "\r\x1b[K").ok();
        }
    }

    /// Completes the answer.
    pub fn end(&mut self, now: Instant) -> Result<(), Failure> {
        self.clear_progress();
        if self.style.json {
            self.end_json();
        } else {
            self.end_text(now);
        }
        if self.broken.is_none() {
            self.broken = self.console.out.flush().err();
        }
        match self.broken.take() {
            Some(error) => written(Err(error)),
            None => Ok(()),
        }
    }

    fn end_json(&mut self) {
        self.write(format_args!("],\"spared\":["));
        for (list, between) in [
            (std::mem::take(&mut self.spared), "],\"failed\":["),
            (std::mem::take(&mut self.failed), "],\"unreadable\":["),
            (std::mem::take(&mut self.unreadable), "]}\n"),
        ] {
            self.write(format_args!("{}{between}", list.0));
        }
    }

    fn end_text(&mut self, now: Instant) {
        let Counts { scanned, removed, spared, failed, unreadable, .. } = self.counts;
        if removed > LINES && !self.style.dry_run {
            self.write(format_args!("removed {} more\n", removed - LINES));
        }
        if unreadable > LINES {
            self.write(format_args!("unreadable: {} more\n", unreadable - LINES));
        }
        if failed > LINES {
            error!("cannot remove {} more", failed - LINES);
        }
        let is_asked = self.console.loud || self.style.dry_run;
        if removed + failed + unreadable == 0 && !is_asked {
            return;
        }
        let done = if self.style.dry_run { "would remove" } else { "removed" };
        let mut why = self.counts.reasons();
        if !why.is_empty() {
            why = format!(" ({why})");
        }
        let took = words(now.saturating_duration_since(self.began));
        self.write(format_args!(
            "scanned {scanned}, {done} {removed}{why}, spared {spared}, failed {failed}, \
             unreadable {unreadable}, in {took}\n"
        ));
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        if self.broken.is_none() {
            self.broken = self.console.out.write_fmt(text).err();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::staleness::Reason;

    fn target(n: u64) -> Target {
        Target {
            key: format!("service-instances__web__{n}"),
            revision: n,
            service_name: "web".into(),
            instance_id: n.to_string(),
            reasons: vec![Reason::HeartbeatTooOld, Reason::NoTtl],
            skew: (n == 1).then(|| time::SignedDuration::milliseconds(-60_040)),
            has_ttl: false,
        }
    }

    #[allow(clippy::disallowed_methods)]
    fn report(style: Style, loud: bool, fill: impl Fn(&mut Report<'_>)) -> String {
        let mut out = Vec::new();
        let now = Instant::now();
        let mut report = Report::new(Console { out: &mut out, loud, progress: None }, style, now);
        report.begin_removals(&Bucket::service_registry());
        fill(&mut report);
        report.end(now).unwrap();
        String::from_utf8(out).unwrap()
    }

    const TEXT: Style = Style { json: false, dry_run: false };

    #[test]
    fn nothing_done_and_nothing_wrong_is_nothing_said() {
        assert_eq!(report(TEXT, false, |_| ()), "");
        assert_eq!(report(TEXT, false, |r| r.take(&target(1), Fate::Spared)), "");
        assert_eq!(
            report(TEXT, true, |_| ()),
            "scanned 0, removed 0, spared 0, failed 0, unreadable 0, in 0s\n"
        );
        assert_eq!(
            report(Style { dry_run: true, ..TEXT }, false, |_| ()),
            "scanned 0, would remove 0, spared 0, failed 0, unreadable 0, in 0s\n"
        );
    }

    #[test]
    fn no_json_of_it_steers_a_terminal() {
        let odd = "a\u{9b}31m\u{202e}\u{7f}";
        let odd_target = Target { service_name: odd.into(), ..target(1) };
        let entry = Unreadable { key: odd.into(), revision: 3, why: odd.into() };
        let json = report(Style { json: true, ..TEXT }, false, |r| {
            r.take(&odd_target, Fate::Removed);
            r.take(&odd_target, Fate::Failed(odd.into()));
            r.beating(odd);
            r.unreadable(&entry, false);
        });
        assert!(json.trim_end().chars().all(|c| (' '..'\u{7f}').contains(&c)), "{json:?}");
        let read: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(read["removed"][0]["serviceName"], odd);
        assert_eq!(read["failed"][0]["why"], odd);
        assert_eq!(read["spared"][0]["key"], odd);
        assert_eq!(read["unreadable"][0]["why"], odd);
    }

    #[test]
    fn a_removal_is_a_line_and_many_are_counted() {
        assert_eq!(
            report(TEXT, false, |r| r.take(&target(1), Fate::Removed)),
            "removed service-instances__web__1 (revision 1): heartbeat-too-old no-ttl clock-skew -1m00s\n\
             scanned 0, removed 1 (heartbeat-too-old 1, no-ttl 1), spared 0, failed 0, unreadable 0, in 0s\n"
        );
        let many = |r: &mut Report<'_>| (1..=25).for_each(|n| r.take(&target(n), Fate::Removed));
        let text = report(TEXT, false, many);
        assert_eq!(text.lines().count(), 22, "{text}");
        assert!(text.contains("\nremoved 5 more\nscanned 0, removed 25 ("), "{text}");
        let dry = report(Style { dry_run: true, ..TEXT }, false, many);
        assert_eq!(dry.lines().filter(|l| l.starts_with("would remove ")).count(), 25, "{dry}");
    }

    #[test]
    fn what_is_unreadable_is_named_safely() {
        let entry = Unreadable { key: "\u{1b}[2J".into(), revision: 3, why: "not JSON".into() };
        let text = report(TEXT, false, |r| r.unreadable(&entry, true));
        assert!(text.starts_with(
            "unreadable: \\u{1b}[2J (revision 3): not JSON; not removed: its key cannot be named \
             safely\n"
        ));
        assert!(text.ends_with("unreadable 1, in 0s\n"), "{text}");
        let text = report(TEXT, false, |r| r.unreadable(&entry, false));
        assert!(text.starts_with("unreadable: \\u{1b}[2J (revision 3): not JSON\n"), "{text}");
    }
}
