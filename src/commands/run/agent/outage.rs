//! What an agent says when the registry is out of reach or refuses: each cause
//! once, with what to do about it.

use log::{debug, warn};

use super::Agent;
use crate::cli::call::Call;
use crate::error::Failure;
use crate::nats::failure::NO_CONNECTION;
use crate::registry::failure::RegistryError;
use crate::registry::outage::Outage;

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
            debug!("{name}: {cause}");
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
}
