//! What a running agent attends to while it waits for something else: signals,
//! health checks, a sleep of the host, and systemd's watchdog. All of it is in
//! the one `poll`.

// A door: it reads the clock.
#![allow(clippy::disallowed_methods)]

use std::cell::{RefCell, RefMut};
use std::time::{Duration, Instant};

use log::warn;

use crate::health::runner::{self, Runner};
use crate::nats::{Interest, Waiter};
use crate::system::children::{Children, hide_memory};
use crate::system::clock_changes::ClockChanges;
use crate::system::logging;
use crate::system::ourselves::Helpers;
use crate::system::signals::{Signals, wait_beside};
use crate::system::systemd::Manager;

/// At the end, processes that checks left behind have so long to be gone.
const LAST_SWEEP: Duration = Duration::from_millis(500);

/// Everything that can end or interrupt a wait of the agent.
pub struct Attention {
    /// SIGTERM, SIGINT, SIGHUP, SIGCHLD and SIGCONT.
    pub signals: Signals,
    /// systemd.
    pub manager: Manager,
    changes: Option<ClockChanges>,
    runner: RefCell<Option<Runner>>,
    children: Children,
    helpers: Helpers,
}

impl Attention {
    /// Without health checks yet.
    pub fn new(signals: Signals, manager: Manager) -> Attention {
        let children = Children::look(runner::mark());
        // What had ended before SIGCHLD was ours.
        children.sweep(&[], false);
        let changes = ClockChanges::watch();
        let (runner, helpers) = (RefCell::new(None), Helpers::default());
        Attention { signals, manager, changes, runner, children, helpers }
    }

    /// Checks are about to run programs: what they leave behind comes to us,
    /// and they must not read the secrets that we hold.
    pub fn watch_over_programs(&self) {
        for (what, result) in [
            ("end all that health checks leave behind", self.children.adopt()),
            ("hide its secrets from health checks", hide_memory()),
        ] {
            if let Err(error) = result {
                warn!("this agent cannot {what}: {error}");
            }
        }
    }

    /// The processes that write and look at files for this agent.
    pub fn helpers(&self) -> Helpers {
        self.helpers.clone()
    }

    /// Ends and reaps what checks have left behind. How many were alive.
    fn sweep(&self) -> usize {
        let runner = self.runner.borrow();
        let runner = runner.as_ref();
        let mut own = runner.map(Runner::processes).unwrap_or_default();
        own.extend(self.helpers.pids());
        self.children.sweep(&own, !runner.is_some_and(Runner::runs_a_program))
    }

    /// The same for the last time, with a little patience.
    pub fn sweep_all(&self) {
        let until = Instant::now() + LAST_SWEEP;
        while self.sweep() > 0 && Instant::now() < until {
            self.signals.wait_until(until.min(Instant::now() + Duration::from_millis(10)));
        }
    }

    /// Runs the service's health checks, where it has any.
    pub fn runner(&self) -> RefMut<'_, Option<Runner>> {
        self.runner.borrow_mut()
    }
}

impl Waiter for Attention {
    fn wait(&self, interests: &mut [Interest<'_>], until: Option<Instant>) {
        let woken = {
            let runner = self.runner.borrow();
            let checks = runner.as_ref();
            let mut own = vec![self.signals.interest()];
            own.extend(self.changes.as_ref().map(ClockChanges::interest));
            own.extend(checks.and_then(Runner::interest));
            let others = [checks.and_then(Runner::wake_at), self.manager.wake_at()];
            let until = others.into_iter().flatten().chain(until).min();
            wait_beside(interests, own, until)
        };
        if woken[0] {
            self.signals.take_wake_up();
        }
        if let Some(changes) = &self.changes
            && woken[1]
        {
            changes.take();
        }
        if let Some(runner) = self.runner.borrow_mut().as_mut() {
            runner.attend(Instant::now());
        }
        if self.signals.take_child_ended() {
            self.sweep();
        }
        self.manager.glance();
        logging::catch_up();
    }

    fn stop_requested(&self) -> bool {
        self.signals.stopped()
    }

    fn take_reload(&self) -> bool {
        self.signals.take_hangup()
    }

    fn take_resumed(&self) -> bool {
        self.signals.take_resumed()
    }
}
