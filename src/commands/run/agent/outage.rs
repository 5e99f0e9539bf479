//! What an agent says when the registry is out of reach or refuses: each cause
//! once, with what to do about it.

use log::{Level, debug, log, warn};

use super::Agent;
use crate::cli::call::Call;
use crate::error::Failure;
use crate::nats::failure::NO_CONNECTION;
use crate::registry::failure::RegistryError;
use crate::registry::outage::{Outage, REPEATS_SAID};
use crate::text::duration::words;

impl Agent {
    /// Says each cause of an outage once.
    pub(super) fn lost(&mut self, error: RegistryError) {
        self.standing.lost(&error.why(), self.registry.wall_clock());
        let now = self.registry.now();
        let note = self.options.unconnected.clone();
        let failure = Failure::from(error).with_note(NO_CONNECTION, note);
        let cause = failure.chain();
        let name = self.name();
        let (mut first, outage) = match &mut self.outage {
            Some(outage) => (false, outage),
            none => (true, none.insert(Outage::after(&self.repeats, &cause, now))),
        };
        let is_news = outage.is_news(&cause);
        // What goes on is told after all, as if it had just begun.
        let was_quiet = outage.is_to_be_told(now);
        first |= was_quiet;
        if outage.is_quiet || !(is_news || was_quiet) {
            match first {
                true => debug!("lost {name}: {cause}"),
                false => debug!("{name}: {cause}"),
            }
            return;
        }
        let call = Call::of(self.registry.settings(), self.registry.bucket());
        let hint = call.hint_of(&failure);
        match (first, self.keeper.was_registered()) {
            (true, true) => warn!("lost {name}: {cause}; trying again until it is back{hint}"),
            (true, false) => {
                warn!("cannot register {name}: {cause}; trying again until it works{hint}");
            }
            (false, _) => warn!("still without registry, {name}: {cause}{hint}"),
        }
    }

    /// It is over, which is said as loudly as it was begun.
    pub(super) fn restored(&mut self, outage: &Outage, at: &str, revision: u64) {
        let (now, name) = (self.registry.now(), self.name());
        let took = words(now.saturating_duration_since(outage.since));
        let is_known = outage.is_quiet && self.repeats.know(at);
        let level = if is_known { Level::Debug } else { Level::Info };
        log!(level, "restored {name} at {at} after {took}, revision {revision}");
        if self.repeats.over(outage, at, now) {
            let hint = match outage.cause.contains("connection lost") {
                true => ": does something on the way close idle connections?",
                false => "",
            };
            warn!(
                "{name}: lost and restored {REPEATS_SAID} times in a row, each time within a \
                 second{hint}; further ones like it are told with --verbose only"
            );
        }
    }
}
