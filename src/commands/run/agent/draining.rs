//! Whether the instance drains, and why: looked at before each heartbeat.

use std::path::Path;

use log::{info, warn};

use super::Agent;
use crate::commands::run::drain::{DrainFile, Unknown};
use crate::nats::address::shown_name;

impl Agent {
    pub(super) fn look_for_drain(&mut self) {
        let path = self.options.drain_file.as_deref();
        if self.drain_file.as_ref().map(DrainFile::path) != path {
            let new = |path: &Path| DrainFile::new(path.to_owned(), self.helpers.clone());
            self.drain_file = path.map(new);
        }
        let stopped = || self.registry.stop_requested();
        let found = self.drain_file.as_mut().map_or(Ok(None), |file| file.look(stopped));
        let name = self.name();
        let found = match found {
            Ok(found) => found,
            Err(Unknown::Late) => return,
            Err(Unknown::Because(why)) => {
                // Nothing changes: neither a healthy instance is taken out by
                // it nor a drained one put back.
                if !std::mem::replace(&mut self.drain_unknown, true) {
                    let path = self.options.drain_file.as_deref().unwrap_or(Path::new(""));
                    let path = shown_name(&path.display().to_string());
                    warn!("{name}: cannot tell whether {path} is there: {why}");
                }
                return;
            }
        };
        self.drain_unknown = false;
        match (&self.draining, &found) {
            (before, Some(why)) if before.as_ref() != Some(why) => {
                let why = if why.is_empty() { String::new() } else { format!(": {why}") };
                info!("{name} is draining{why}");
            }
            (Some(_), None) => info!("{name} is draining no more"),
            _ => {}
        }
        let is_asked = self.options.drain_file.is_some();
        self.standing.set_draining(is_asked.then(|| found.clone()));
        self.draining = found;
    }
}
