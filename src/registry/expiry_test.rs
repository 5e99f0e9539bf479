//! Does an entry with a TTL really expire here? A live test with a throw-away
//! key of its own.
//!
//! The key is no instance's, is gone when this returns, however it returns,
//! and dies by itself within a second where TTL works, should the program be
//! killed. What the outcome is worth is for the verbs to say.

// The doors read the clock.
#![allow(clippy::disallowed_methods)]

use std::time::{Duration, Instant};

use log::debug;

use crate::instance::staleness::{EXPIRY_GRACE, Ttl};
use crate::jetstream::replies::{self, ApiError, ReplyError};
use crate::jetstream::requests::{self, Put};
use crate::nats::RequestError;
use crate::registry::Registry;
use crate::registry::failure::RegistryError;
use crate::system::signals::Signals;
use crate::text::duration::as_setting;

/// The shortest that servers take.
const TTL: Duration = Duration::from_secs(1);
/// As long as a record. What the server takes of it, it takes of heartbeats; and in a
/// full bucket an entry that is shorter than its delete marker does not go
/// (docs/nats.md).
const LENGTH: usize = 200;
/// How often is looked whether it is gone.
const LOOK_EVERY: Duration = Duration::from_millis(5);

const PROBING: &str = "probing expiry";

/// How the live test came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probed {
    /// As it should.
    Expired {
        /// From the put to its acknowledgement.
        put: Duration,
        /// From the end of its TTL until it was seen to be gone.
        late: Duration,
    },
    /// The server stored another TTL than it was asked for.
    Changed {
        /// From the put to its acknowledgement.
        put: Duration,
        /// The header as it was stored; empty for none.
        stored: String,
    },
    /// It was still there.
    Lingered {
        /// From the put to its acknowledgement.
        put: Duration,
        /// How long after its TTL.
        late: Duration,
    },
    /// The server did not take it, and says why.
    Refused(String),
}

/// Why there is no outcome.
#[derive(Debug)]
pub enum ProbeError {
    /// SIGTERM or SIGINT came meanwhile.
    Interrupted,
    /// The registry could not be asked, or refused.
    Registry(RegistryError),
}

impl From<RegistryError> for ProbeError {
    fn from(error: RegistryError) -> ProbeError {
        ProbeError::Registry(error)
    }
}

/// Puts a key with a TTL of 1 s and waits for it to go, 6 s at most.
pub fn probe(registry: &mut Registry, signals: &Signals) -> Result<Probed, ProbeError> {
    let Some(session) = registry.session() else {
        let lost = RequestError::Lost("not connected".into());
        return Err(RegistryError::Request(PROBING, lost).into());
    };
    if signals.stopped() {
        return Err(ProbeError::Interrupted);
    }
    // A token of its own after a fixed one, so that a permission for it is
    // none for the entries of instances.
    let key = format!("aegis-probe.{}", session.unique());
    let began = Instant::now();
    let put = Put {
        key: &key,
        value: format!("{:.<LENGTH$}", "aegis-agent check --probe").into_bytes(),
        ttl: TTL,
        expected: None,
        rollup: false,
    };
    let request = requests::put(registry.bucket(), put);
    let stored = registry.request(PROBING, &request).and_then(|reply| {
        replies::acknowledged(reply.data()).map_err(|error| RegistryError::Reply(PROBING, error))
    });
    let revision = match stored {
        Ok(revision) => revision,
        Err(RegistryError::Reply(_, ReplyError::Api(error))) => {
            return Ok(Probed::Refused(error.to_string()));
        }
        Err(error) => {
            // Without an answer it may be stored all the same.
            if error.denied().is_none() {
                remove(registry, &key, None);
            }
            return Err(error.into());
        }
    };
    let put = began.elapsed();
    let outcome = watch(registry, signals, &key, began, put);
    match &outcome {
        Ok((_, true)) => {}
        // A server's own delete marker, or the entry itself, is still there.
        Ok((_, false)) | Err(_) => remove(registry, &key, Some(revision)),
    }
    outcome.map(|(probed, _)| probed)
}

/// The outcome, and whether the key has left nothing behind.
fn watch(
    registry: &mut Registry,
    signals: &Signals,
    key: &str,
    began: Instant,
    put: Duration,
) -> Result<(Probed, bool), ProbeError> {
    // Half of the exchange lies before the server stored it.
    let end = began + put / 2 + TTL;
    let mut seen = false;
    loop {
        if signals.stopped() {
            return Err(ProbeError::Interrupted);
        }
        let found = registry.get(key)?;
        let late = end.elapsed();
        match found {
            // The replica that answers has not heard of it yet.
            None if !seen && late.is_zero() => {}
            None => return Ok((Probed::Expired { put, late }, true)),
            Some(entry) if entry.is_deleted() => {
                return Ok((Probed::Expired { put, late }, false));
            }
            Some(entry) if entry.stored.ttl != Ttl::After(TTL) => {
                let stored = match entry.stored.ttl {
                    Ttl::After(ttl) => as_setting(ttl),
                    Ttl::Never => String::new(),
                };
                return Ok((Probed::Changed { put, stored }, false));
            }
            Some(_) if late > EXPIRY_GRACE => {
                return Ok((Probed::Lingered { put, late }, false));
            }
            Some(_) => seen = true,
        }
        let soon = Instant::now() + LOOK_EVERY;
        wait_until(if seen { soon.max(end) } else { soon }, signals);
    }
}

fn wait_until(at: Instant, signals: &Signals) {
    while !signals.stopped() && Instant::now() < at {
        signals.wait_until(at);
    }
}

/// Removes the key, whatever stands under it, as well as can be done within
/// the time limit; a fresh session where the last one is gone.
fn remove(registry: &mut Registry, key: &str, revision: Option<u64>) {
    let limit = registry.timeout();
    registry.end_within(limit);
    if registry.session().is_none()
        && let Err(error) = registry.connect(limit)
    {
        debug!("{key} is left to its TTL: {error}");
        return;
    }
    // What we wrote, where we may not look or a replica has not heard of it.
    let newest = match registry.get(key) {
        Ok(found) => found.map(|entry| entry.revision).max(revision),
        Err(error) => {
            debug!("{key}: {error}");
            revision
        }
    };
    let Some(newest) = newest else { return };
    let Some(request) = requests::purge(registry.bucket(), key, newest) else { return };
    let purged = registry.request(PROBING, &request).and_then(|reply| {
        replies::purged(reply.data()).map_err(|error| RegistryError::Reply(PROBING, error))
    });
    let Err(error) = purged else { return };
    debug!("{key} cannot be purged: {error}");
    // A delete marker that lives no longer than the probe itself.
    for rollup in [true, false] {
        let mut request = requests::deregister(registry.bucket(), key, newest, rollup);
        for (name, value) in &mut request.headers {
            if *name == requests::TTL_HEADER {
                *value = as_setting(TTL);
            }
        }
        let marked = registry.request(PROBING, &request).and_then(|reply| {
            replies::acknowledged(reply.data())
                .map_err(|error| RegistryError::Reply(PROBING, error))
        });
        match marked {
            Err(error) if rollup && error.api_code() == Some(ApiError::ROLLUP) => {}
            Err(error) => return debug!("{key} is left to its TTL: {error}"),
            Ok(_) => return,
        }
    }
}
