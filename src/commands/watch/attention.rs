//! What `watch` attends to while it waits for something else: signals, standard
//! output, and the command of `--exec`. All of it in the one `poll`.

// A door: it reads the clock.
#![allow(clippy::disallowed_methods)]

use std::cell::RefCell;
use std::time::Instant;

use super::hook::Hook;
use super::output::Output;
use crate::nats::{Interest, Waiter};
use crate::system::signals::{Signals, wait_beside};

/// Everything that can end or interrupt a wait.
pub(super) struct Attention {
    /// SIGTERM, SIGINT and SIGCHLD.
    pub(super) signals: Signals,
    /// Standard output.
    pub(super) output: RefCell<Output>,
    /// The command, where there is one.
    pub(super) hook: RefCell<Option<Hook>>,
}

impl Attention {
    /// Whether to come to an end.
    pub(super) fn is_over(&self) -> bool {
        self.signals.stopped() || self.output.borrow().is_closed()
    }
}

impl Waiter for Attention {
    fn wait(&self, interests: &mut [Interest<'_>], until: Option<Instant>) {
        self.output.borrow_mut().write();
        let woken = {
            let (output, hook) = (self.output.borrow(), self.hook.borrow());
            let mut own = vec![self.signals.interest()];
            let output = output.interest();
            let is_watched = output.is_some();
            own.extend(output);
            own.extend(hook.as_ref().and_then(Hook::interest));
            let wake_at = hook.as_ref().and_then(Hook::wake_at);
            let until = wake_at.into_iter().chain(until).min();
            let woken = wait_beside(interests, own, until);
            (woken[0], is_watched && woken[1])
        };
        if woken.0 {
            self.signals.take_wake_up();
        }
        if woken.1 {
            self.output.borrow_mut().ready();
        }
        if let Some(hook) = self.hook.borrow_mut().as_mut() {
            hook.attend(Instant::now());
        }
    }

    fn stop_requested(&self) -> bool {
        self.is_over()
    }
}
