//! The host around an agent: systemd, the service's health, the metrics file.
//!
//! The loop of `run` calls in here at each turn, and is told when to come
//! back; nothing in here waits. What the three of them are is in files of
//! their own.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use log::{debug, info, warn};

use super::attention::Attention;
use super::status::{Labels, Standing};
use crate::error::plain;
use crate::health::runner::{CheckResult, Runner};
use crate::health::verdict::{HealthCheck, HealthOptions, Verdict};
use crate::system::ourselves::Helpers;
use crate::system::signals::Signals;
use crate::system::textwriter::TextWriter;

/// The last state of the metrics has to be written within this time.
const LAST_WRITE: Duration = Duration::from_secs(1);
/// A file system that takes longer for a write does not answer; the same where an
/// interval is longer. On a busy host a process takes long to start.
const WRITE_PATIENCE: Duration = Duration::from_secs(2);

/// What stands around one agent.
pub struct Host {
    /// Shared with the waits for NATS.
    attention: Rc<Attention>,
    health: Option<Health>,
    metrics: Option<Metrics>,
}

struct Health {
    options: HealthOptions,
    verdict: Verdict,
    /// Checks begin at least so far apart.
    apart: Duration,
    began: Option<Duration>,
}

struct Metrics {
    writer: TextWriter,
    every: Duration,
    written: Option<(Duration, bool, Option<bool>)>,
    /// Writing failed, or does not come to its end, which is said once.
    failing: bool,
}

impl Host {
    /// Nothing but systemd yet.
    pub fn new(attention: Rc<Attention>) -> Host {
        Host { attention, health: None, metrics: None }
    }

    /// Sets, or sets anew, what is checked and where the metrics go. A verdict
    /// stays as long as the checks do.
    pub fn configure(
        &mut self,
        health: Option<&HealthOptions>,
        metrics: Option<&PathBuf>,
        interval: Duration,
    ) {
        let programs = health.iter().flat_map(|health| &health.checks);
        if programs.into_iter().any(|check| matches!(check, HealthCheck::Exec(_))) {
            self.attention.watch_over_programs();
        }
        if self.health.as_ref().map(|health| &health.options) != health {
            *self.attention.runner() = health.cloned().map(Runner::new);
            self.health = health.map(|options| Health {
                options: options.clone(),
                verdict: Verdict::new(options.failures),
                apart: Duration::ZERO,
                began: None,
            });
        }
        if let Some(health) = &mut self.health {
            // Heartbeats come up to a tenth early; attempts at a registry that
            // is away come far more often, and prove nothing of the service.
            // A check that hangs has had its time before the next begins.
            let timeout = health.options.timeout;
            health.apart = interval.mul_f64(0.8).max(timeout + Duration::from_millis(50));
        }
        self.metrics = metrics.map(|path| Metrics {
            writer: TextWriter::new(path.clone(), self.attention.helpers()),
            every: interval,
            written: None,
            failing: false,
        });
    }

    /// The processes that write and look at files for the agent.
    pub fn helpers(&self) -> Helpers {
        self.attention.helpers()
    }

    /// Whether the service passes its checks; `None` where it has none.
    pub fn is_healthy(&self) -> Option<bool> {
        self.health.as_ref().map(|health| health.verdict.is_healthy())
    }

    /// One turn of the loop at `now`, with the next heartbeat at `due`: feeds
    /// the watchdog, says what is news, begins and ends checks. Whether the
    /// service's health has turned, which is to be published at once.
    pub fn turn(
        &mut self,
        now: Duration,
        due: Duration,
        standing: &mut Standing,
        labels: &Labels<'_>,
    ) -> bool {
        let attention = Rc::clone(&self.attention);
        attention.manager.turn();
        let turned = match (&mut self.health, attention.runner().as_mut()) {
            (Some(health), Some(runner)) => health.turn(runner, now, due, labels),
            _ => false,
        };
        standing.set_health(self.is_healthy());
        if attention.manager.hears() {
            attention.manager.tell(standing.is_registered(), &standing.line());
        }
        if let Some(metrics) = &mut self.metrics {
            metrics.turn(now, standing, labels);
        }
        turned
    }

    /// How long the loop may sleep from `now`, if it has to beat at `due`.
    pub fn sleep(&self, now: Duration, due: Duration) -> Duration {
        let mut wake = due;
        if let Some(health) = &self.health {
            wake = wake.min(health.begins(due));
        }
        wake = self.metrics.as_ref().and_then(Metrics::wake_at).map_or(wake, |at| wake.min(at));
        // At least a moment: nothing in here may make the loop spin.
        wake.saturating_sub(now).max(Duration::from_millis(1))
    }

    /// Each exchange with NATS is bounded by `timeout` from now on.
    pub fn set_timeout(&self, timeout: Duration) {
        self.attention.manager.set_timeout(timeout);
    }

    /// A reload begins.
    pub fn reloading(&self) {
        self.attention.manager.reloading();
    }

    /// It has ended, well or not.
    pub fn reloaded(&self) {
        self.attention.manager.reloaded();
    }

    /// The agent is about to take its entry out.
    pub fn stopping(&mut self, standing: &Standing) {
        self.attention.manager.stopping(&standing.stopping_line());
        self.health = None;
        *self.attention.runner() = None;
    }

    /// It has.
    pub fn stopped(&mut self, now: Duration, standing: &mut Standing, labels: &Labels<'_>) {
        standing.stopped();
        if let Some(metrics) = &mut self.metrics {
            metrics.write_last(&self.attention.signals, now, standing, labels);
        }
    }
}

impl Health {
    /// When the check for the heartbeat at `due` begins: early enough to be
    /// done by then.
    fn begins(&self, due: Duration) -> Duration {
        let early = due.saturating_sub(self.options.timeout);
        self.began.map_or(early, |began| early.max(began + self.apart))
    }

    fn turn(
        &mut self,
        runner: &mut Runner,
        now: Duration,
        due: Duration,
        labels: &Labels<'_>,
    ) -> bool {
        let turned = match runner.finished() {
            Some(result) => self.note(&result, labels),
            None => false,
        };
        if now >= self.begins(due) {
            self.began = Some(now);
            runner.start(clock());
        }
        turned
    }

    fn note(&mut self, result: &CheckResult, labels: &Labels<'_>) -> bool {
        if let Err(why) = result {
            debug!("health check failed: {why}");
        }
        if !self.verdict.add(result.is_ok()) {
            return false;
        }
        let (service, instance) = (labels.service, labels.instance);
        let times = match self.options.failures {
            1 => "a health check".to_owned(),
            times => format!("{times} health checks in a row"),
        };
        match result {
            Err(why) => warn!("{service}/{instance} is UNHEALTHY: {times} failed, the last: {why}"),
            Ok(()) => info!("{service}/{instance} is healthy again: {times} passed"),
        }
        true
    }
}

// A check that is started has its time from now on, and so has the last write.
#[allow(clippy::disallowed_methods)]
fn clock() -> Instant {
    Instant::now()
}

impl Metrics {
    /// A change of state is written at once; numbers once an interval.
    fn turn(&mut self, now: Duration, standing: &Standing, labels: &Labels<'_>) {
        if let Some(result) = self.writer.finished() {
            self.note(result);
        }
        if self.writer.is_writing() {
            if self.wake_at().is_some_and(|at| now >= at) {
                self.failed(&"its file system does not answer");
            }
            return;
        }
        let news = match self.written {
            // The first state worth writing is that of the first attempt.
            None => standing.is_settled() || now >= self.every,
            Some((at, registered, health)) => {
                now >= at + self.every
                    || registered != standing.is_registered()
                    || health != standing.health()
            }
        };
        if news {
            self.write(now, standing, labels);
        }
    }

    fn write(&mut self, now: Duration, standing: &Standing, labels: &Labels<'_>) {
        self.written = Some((now, standing.is_registered(), standing.health()));
        match self.writer.begin(&standing.metrics(now, labels)) {
            Ok(true) => {}
            Ok(false) => self.failing = false,
            Err(error) => self.failed(&plain(&error)),
        }
    }

    /// The result of what was begun.
    fn note(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) => self.failing = false,
            Err(error) => self.failed(&plain(&error)),
        }
    }

    fn failed(&mut self, why: &dyn Display) {
        let path = self.writer.path().display();
        match self.failing {
            true => debug!("metrics file {path}: {why}"),
            false => warn!("cannot write the metrics file {path}: {why}"),
        }
        self.failing = true;
    }

    /// When there is something to do by the clock alone. The end of a write
    /// that hangs comes by itself.
    fn wake_at(&self) -> Option<Duration> {
        let (written, ..) = self.written?;
        match (self.writer.is_writing(), self.failing) {
            (true, true) => None,
            (true, false) => Some(written + self.every.max(WRITE_PATIENCE)),
            (false, _) => Some(written + self.every),
        }
    }

    /// The last state, if it can be written in time.
    fn write_last(
        &mut self,
        signals: &Signals,
        now: Duration,
        standing: &Standing,
        labels: &Labels<'_>,
    ) {
        let until = clock() + LAST_WRITE;
        // A stop of the whole unit ended this process, too.
        self.wait(signals, until);
        if !self.writer.is_writing() {
            self.write(now, standing, labels);
            if let Some(result) = self.wait(signals, until) {
                self.note(result);
            }
        }
    }

    /// The result of what was begun, if it comes in time.
    fn wait(&mut self, signals: &Signals, until: Instant) -> Option<io::Result<()>> {
        loop {
            let result = self.writer.finished();
            if result.is_some() || !self.writer.is_writing() || clock() >= until {
                return result;
            }
            signals.wait_until(until);
        }
    }
}
