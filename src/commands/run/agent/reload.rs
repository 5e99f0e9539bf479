//! A reload: other settings, and a fresh session with them. The new session
//! registers before the old one goes; where it cannot, everything stays as it
//! was.

use std::time::Duration;

use log::{info, warn};

use super::super::{Anew, list};
use super::{Agent, record};
use crate::cli::options::{Invocation, RunOptions, Verb};
use crate::error::{Failure, Kind};
use crate::instance::record::Record;
use crate::jetstream::bucket::Bucket;
use crate::nats::{ConnectError, Connector, Settings};
use crate::registry::failure::RegistryError;

impl Agent {
    /// Takes over what the command line's files and the environment say now,
    /// and returns how long an exchange may take from now on. What is wrong
    /// leaves everything as it was.
    pub(in crate::commands::run) fn reload(
        &mut self,
        anew: &Anew<'_>,
        host: &str,
        connect: impl Fn(Settings) -> Connector,
    ) -> Option<Duration> {
        let (settings, bucket, options) = match read(anew) {
            Ok(fresh) => fresh,
            Err(failure) => {
                stays(&failure.chain());
                return None;
            }
        };
        for warning in &options.warnings {
            warn!("{warning}");
        }
        let options = self.same_instance(options, &bucket);
        let (timeout, servers) = (settings.timeout, list(&settings));
        let connector = connect(settings);
        if self.keeper.is_registered() && self.registry.session().is_some() {
            if let Err(error) = self.change_over(options, host, connector) {
                // A stop was asked for: the loop ends everything in good order.
                if !matches!(error, RegistryError::Connect(ConnectError::Stopped)) {
                    stays(&Failure::from(error).chain());
                }
                return None;
            }
        } else {
            // Without a session nothing can break, and the new settings may end
            // the outage.
            self.registry.replace_connector(connector);
            drop(self.take(options, host));
            self.keeper.try_now(self.now());
        }
        self.standing.set_servers(servers);
        info!("reloaded the settings of {}", self.name());
        Some(timeout)
    }

    /// Registers with other settings on a session of its own, and gives the old
    /// one up after that.
    fn change_over(
        &mut self,
        options: RunOptions,
        host: &str,
        connector: Connector,
    ) -> Result<(), RegistryError> {
        let began = self.now();
        let limit = self.keeper.move_limit(began, connector.timeout());
        let former = self.registry.change_connector(connector, limit)?;
        let before = self.take(options, host);
        let current = self.keeper.begin_change();
        match self.register_here() {
            Ok(revision) => {
                self.keeper.registered(began, self.now());
                self.say_registered(revision, false);
                Ok(())
            }
            Err(error) => {
                self.registry.take_back(former);
                (self.options, self.record) = before;
                self.keeper.set_times(self.options.ttl, self.options.interval);
                self.keeper.take_back(current, self.now());
                Err(error)
            }
        }
    }

    /// Returns what was there before.
    fn take(&mut self, options: RunOptions, host: &str) -> (RunOptions, Record) {
        self.keeper.set_times(options.ttl, options.interval);
        let record = std::mem::replace(&mut self.record, record(&options, host));
        (std::mem::replace(&mut self.options, options), record)
    }

    /// Whom the agent speaks for changes with a restart only.
    fn same_instance(&self, mut options: RunOptions, bucket: &Bucket) -> RunOptions {
        let same = options.service == self.options.service
            && options.instance == self.options.instance
            && bucket == self.registry.bucket();
        if !same {
            warn!("reload: service, instance and bucket change with a restart only");
            options.service = self.options.service.clone();
            options.instance = self.options.instance.clone();
        }
        options
    }
}

fn read(anew: &Anew<'_>) -> Result<(Settings, Bucket, RunOptions), Failure> {
    match anew()? {
        Invocation { settings, bucket, verb: Verb::Run(options), .. } => {
            settings.check_files()?;
            Ok((settings, bucket, *options))
        }
        _ => Err(Failure::new(Kind::Usage, "not a call of run")),
    }
}

fn stays(why: &str) {
    warn!("reload: {why}; everything stays as it was");
}
