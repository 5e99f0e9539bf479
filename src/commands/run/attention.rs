//! What a running agent attends to while it waits for something else: signals,
//! health checks, a sleep of the host, and systemd's watchdog. All of it in the one `poll`.

// A door: it reads the clock.
#![allow(clippy::disallowed_methods)]

use std::cell::{RefCell, RefMut};
use std::time::Instant;

use crate::health::runner::Runner;
use crate::nats::{Interest, Waiter};
use crate::system::clock_changes::ClockChanges;
use crate::system::signals::{Signals, wait_beside};
use crate::system::systemd::Manager;

/// Everything that can end or interrupt a wait of the agent.
pub struct Attention {
    /// SIGTERM, SIGINT, SIGHUP, SIGCHLD and SIGCONT.
    pub signals: Signals,
    /// systemd.
    pub manager: Manager,
    changes: Option<ClockChanges>,
    runner: RefCell<Option<Runner>>,
}

impl Attention {
    /// Without health checks yet.
    pub fn new(signals: Signals, manager: Manager) -> Attention {
        let changes = ClockChanges::watch();
        Attention { signals, manager, changes, runner: RefCell::new(None) }
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
        if woken[1]
            && let Some(changes) = &self.changes
        {
            changes.take();
        }
        if let Some(runner) = self.runner.borrow_mut().as_mut() {
            runner.attend(Instant::now());
        }
        self.manager.glance();
    }

    fn stop_requested(&self) -> bool {
        self.signals.stopped()
    }
}
