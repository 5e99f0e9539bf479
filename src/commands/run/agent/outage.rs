//! The registry is out of reach, or refuses: each cause is said once.

use std::collections::HashSet;
use std::time::Instant;

use log::{debug, warn};

use super::Agent;
use crate::cli::call::Call;
use crate::error::Failure;
use crate::nats::failure::NO_CONNECTION;
use crate::registry::failure::RegistryError;

/// So many causes of one outage are logged. A server that never says the same
/// twice has more: they go to the debug log.
const CAUSES_SAID: usize = 8;

/// The registry is out of reach, or refuses.
pub(super) struct Outage {
    pub(super) since: Instant,
    /// The causes that were said, without their numbers.
    said: HashSet<String>,
}

impl Agent {
    /// Says each cause of an outage once.
    pub(super) fn lost(&mut self, error: RegistryError) {
        self.standing.lost(&error.why(), self.registry.wall_clock());
        let now = self.registry.now();
        let note = self.options.unconnected.clone();
        let failure = Failure::from(error).with_note(NO_CONNECTION, note);
        let cause = failure.chain();
        let name = self.name();
        let (first, outage) = match &mut self.outage {
            Some(outage) => (false, outage),
            none => (true, none.insert(Outage { since: now, said: HashSet::new() })),
        };
        if outage.said.len() >= CAUSES_SAID || !outage.said.insert(without_numbers(&cause)) {
            debug!("{name}: {cause}");
            return;
        }
        let call = Call::of(self.registry.settings(), self.registry.bucket());
        let hint = failure.hint().map(|hint| format!("; hint: {}", call.complete(hint)));
        let hint = hint.unwrap_or_default();
        match (first, self.keeper.was_registered()) {
            (true, true) => warn!("lost {name}: {cause}; trying again until it is back{hint}"),
            (true, false) => {
                warn!("cannot register {name}: {cause}; trying again until it works{hint}");
            }
            (false, _) => warn!("still without registry, {name}: {cause}{hint}"),
        }
    }
}

/// A cause by which it is known again: sequences and the like change each time.
fn without_numbers(cause: &str) -> String {
    cause.chars().filter(|c| !c.is_ascii_digit()).collect()
}
