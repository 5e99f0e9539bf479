//! The end of an agent: its entry is taken out, if that can be done in time.

use log::{debug, info, warn};

use super::super::keeper::{CONFLICT_ROUNDS, Ending, Keeper};
use super::Agent;
use super::own_entry::{Own, is_conflict};
use crate::error::Failure;
use crate::registry::failure::RegistryError;
use crate::text::duration::{as_setting, words};

impl Agent {
    /// Takes our entry out of the registry, if that can be done within the
    /// time limit; otherwise its TTL does it.
    pub(in crate::commands::run) fn stop(&mut self) {
        let known = match self.keeper.ending(self.registry.session().is_some()) {
            Ending::NeverRegistered => {
                info!("stopped {} before it was registered", self.name());
                return;
            }
            Ending::LeaveTo(who) => {
                // Its next heartbeat may be an interval away: until then the
                // entry is there for both, and its TTL ends it if the other is
                // gone, too.
                info!("stopped {}: the entry is left to {who}, who writes it too", self.name());
                return;
            }
            Ending::TakeOut(known) => known,
        };
        let began = self.registry.now();
        // The exchange that the stop interrupted had the first half of the time
        // limit.
        self.registry.end_within(self.registry.timeout() / 2);
        match self.deregister(known) {
            Ok(true) => {
                let took = self.registry.now().saturating_duration_since(began);
                info!("deregistered {} in {}", self.name(), words(took));
            }
            Ok(false) if !self.keeper.was_registered() => {
                info!("stopped {} before it was registered", self.name());
            }
            Ok(false) => info!("stopped {}: its entry is not ours any more", self.name()),
            Err(error) => warn!(
                "stopped {} without deregistering: {}; its entry expires within {}",
                self.name(),
                Failure::from(error).chain(),
                as_setting(self.options.ttl)
            ),
        }
    }

    fn deregister(&mut self, known: Option<u64>) -> Result<bool, RegistryError> {
        let mut known = known;
        let mut round = 0;
        loop {
            round += 1;
            if self.registry.session().is_none() {
                let limit = self.registry.timeout();
                self.registry.connect(limit)?;
            }
            let revision = match known.take() {
                Some(revision) => revision,
                None => match self.read_own()? {
                    Own::Seen(Some(entry))
                        if !entry.is_deleted() && self.wrote(&entry, Keeper::is_ours) =>
                    {
                        entry.revision
                    }
                    Own::Seen(_) | Own::Unknown => return Ok(false),
                },
            };
            match self.registry.deregister(&self.key, revision) {
                Ok(()) => return Ok(true),
                Err(error) if round < CONFLICT_ROUNDS => {
                    debug!("deregistering, round {round}: {error}");
                    if !is_conflict(&error) {
                        self.registry.disconnect();
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}
