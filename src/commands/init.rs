//! `init`: creates the bucket, or mends one in place.
//!
//! A bucket that exists is changed in one field only, by sending its own
//! configuration back: what this program does not know of survives. Whether
//! the server then does what it said is tried, where there is doubt.

use std::io::Write;
use std::rc::Rc;
use std::time::Duration;

use serde_json::Value;

use crate::cli::options::InitOptions;
use crate::error::{Failure, Kind, written};
use crate::jetstream::bucket::{Bucket, Storage};
use crate::jetstream::fitness::{self, ServerVersion, Unfit};
use crate::jetstream::replies::{self, ApiError, ReplyError, StreamInfo};
use crate::jetstream::requests;
use crate::jetstream::server_bugs::{BugKind, known_bugs};
use crate::nats::{Connector, RequestError, Settings};
use crate::registry::Registry;
use crate::registry::expiry_test::{ProbeError, Probed, probe};
use crate::registry::failure::RegistryError;
use crate::system::signals::Signals;
use crate::text::duration::{as_setting, words};
use crate::text::printable::printable;

const CREATING: &str = "creating the bucket";
const SWITCHING: &str = "switching per-message TTL on";

/// Makes the bucket fit for a registry and says on `out` what it changed.
pub fn run(
    options: &InitOptions,
    settings: Settings,
    bucket: Bucket,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let signals = Rc::new(Signals::take()?);
    let connector = Connector::new(settings).with_waiter(signals.clone());
    let mut registry = Registry::connected(connector, bucket)?;
    let connected = registry.server().map_or(String::new(), |server| server.version.clone());
    let found = match registry.info()? {
        Some(info) => Some(info),
        None => create(&mut registry, options, &connected, out)?,
    };
    match found {
        Some(info) => mend(&mut registry, &signals, options, &info, &connected, out),
        None => Ok(()),
    }
}

/// Creates the bucket; or returns what is there, because somebody else was
/// quicker and wants it otherwise.
fn create(
    registry: &mut Registry,
    options: &InitOptions,
    connected: &str,
    out: &mut dyn Write,
) -> Result<Option<StreamInfo>, Failure> {
    fitness::judge_server(connected)?;
    judge_cluster(registry)?;
    let bucket = registry.bucket().clone();
    let request =
        requests::create_bucket(&bucket, options.replicas, options.storage, options.marker_ttl);
    let made = registry.request(CREATING, &request).and_then(|reply| {
        let info = registry.read_info(CREATING, &reply)?;
        Ok((info, replies::did_create(reply.data())))
    });
    let (info, ours) = match made {
        Ok(made) => made,
        Err(error) if error.api_code() == Some(ApiError::NAME_TAKEN) => {
            return Ok(Some(registry.info()?.ok_or(error)?));
        }
        Err(error) => return Err(refused(error)),
    };
    if let Err(unfit) = fitness::judge_bucket(&bucket, &info, connected) {
        // The stream went to a member of the cluster that does not know the
        // flag: there is no error, only the echo tells.
        return Err(undo(registry, &info, ours, unfit));
    }
    let replicas = options.replicas;
    let storage = match options.storage {
        Storage::File => "file",
        Storage::Memory => "memory",
    };
    let markers = options
        .marker_ttl
        .map_or(String::new(), |ttl| format!(", delete markers for {}", as_setting(ttl)));
    let verb = if ours { "created bucket" } else { "nothing needed changing in bucket" };
    say(
        out,
        &format!(
            "{verb} {bucket}: per-message TTL, history 1, {replicas} replica{}, {storage} \
             storage{markers}",
            if replicas == 1 { "" } else { "s" }
        ),
    )?;
    Ok(None)
}

/// Whether who leads JetStream in a cluster knows TTLs. Without the permission
/// to ask, the echo of what is made must do.
fn judge_cluster(registry: &mut Registry) -> Result<(), Failure> {
    const DOING: &str = "asking what the account may use";
    let reply = match registry.request(DOING, &requests::account_info(registry.bucket())) {
        Err(RegistryError::Request(_, RequestError::Denied(_))) => return Ok(()),
        reply => reply?,
    };
    let account = replies::read_account_info(reply.data())
        .map_err(|error| RegistryError::Reply(DOING, error))?;
    if account.level == 0 {
        let version = "that leads JetStream in the cluster (API level 0)".to_owned();
        return Err(Unfit::TooOld { version }.into());
    }
    Ok(())
}

/// Takes back an empty bucket that we have just made in vain.
fn undo(registry: &mut Registry, info: &StreamInfo, ours: bool, unfit: Unfit) -> Failure {
    const DOING: &str = "removing the bucket again";
    let bucket = registry.bucket().clone();
    let removed = ours
        && info.state.messages == 0
        && registry
            .request(DOING, &requests::delete_bucket(&bucket))
            .is_ok_and(|reply| replies::deleted(reply.data()));
    let outcome = if removed {
        "it was removed again"
    } else {
        "it is still there, and entries in it would live for ever"
    };
    let message = format!("bucket {bucket} was made by a server that is not fit; {outcome}");
    Failure::new(Kind::Unavailable, message)
        .with_hint("upgrade every nats-server of the cluster to 2.11 or later, then run init again")
        .with_source(unfit)
}

/// Switches the flag on where it is off, and touches nothing else.
fn mend(
    registry: &mut Registry,
    signals: &Signals,
    options: &InitOptions,
    info: &StreamInfo,
    connected: &str,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let bucket = registry.bucket().clone();
    fitness::judge_leader(info, connected)?;
    fitness::judge_kind(&bucket, info)?;
    let switched_on = !info.allows_ttl();
    if switched_on {
        judge_cluster(registry)?;
        let request = requests::update_stream(&bucket, &with_flag(&info.config));
        let changed = registry.configure(SWITCHING, &request).map_err(refused)?;
        fitness::judge_bucket(&bucket, &changed, connected).map_err(|unfit| {
            Failure::new(Kind::Unavailable, "the server took the change and did not make it")
                .with_hint("upgrade every nats-server of the cluster to 2.11 or later")
                .with_source(unfit)
        })?;
        say(
            out,
            &format!(
                "switched per-message TTL on in bucket {bucket} (allow_msg_ttl); nothing else was \
                 changed"
            ),
        )?;
    } else {
        say(out, &format!("nothing needed changing: bucket {bucket} has per-message TTL"))?;
    }
    for remark in remarks(options, info, &bucket) {
        say(out, &remark)?;
    }
    if switched_on || may_wait_for_restart(info) {
        prove(registry, signals, info, out)?;
    }
    Ok(())
}

/// The server's own configuration with that one field changed. Its metadata
/// goes back as it came: servers work out the keys under `_nats.` themselves.
fn with_flag(config: &Value) -> Value {
    let mut config = config.clone();
    if let Some(fields) = config.as_object_mut() {
        fields.insert("allow_msg_ttl".into(), Value::Bool(true));
    }
    config
}

/// Whether a flag that is on may have no effect yet.
fn may_wait_for_restart(info: &StreamInfo) -> bool {
    let version = info.leader_version().and_then(ServerVersion::parse);
    let bugs = version.map(|version| known_bugs(version, info.history())).unwrap_or_default();
    bugs.iter().any(|bug| bug.kind == BugKind::FlagWithoutEffect)
}

/// What is not as it should be, or not as it was asked for, and is left alone.
fn remarks(options: &InitOptions, info: &StreamInfo, bucket: &Bucket) -> Vec<String> {
    let mut remarks = Vec::new();
    if info.history() != 1 {
        remarks.push(format!(
            "history is {} and is left alone: when an entry expires, the one under it is current \
             again; to lower it: nats stream edit {} --max-msgs-per-subject=1 (drops the old \
             revisions)",
            info.history(),
            bucket.stream()
        ));
    }
    let replicas = info.number("num_replicas").max(1);
    if options.replicas > 1 && replicas != i64::from(options.replicas) {
        remarks.push(format!(
            "replicas are {replicas} and are left alone; to change them: nats stream edit {} \
             --replicas={}",
            bucket.stream(),
            options.replicas
        ));
    }
    if options.storage == Storage::Memory && info.word("storage") != "memory" {
        remarks.push(format!(
            "storage is {} and cannot be changed in a bucket that exists",
            info.word("storage")
        ));
    }
    if let Some(ttl) = options.marker_ttl {
        let nanos = u64::try_from(info.number("subject_delete_marker_ttl")).unwrap_or(0);
        let present = Duration::from_nanos(nanos);
        if present != ttl {
            let present = match present {
                Duration::ZERO => "there are no delete markers of the server's own".to_owned(),
                present => format!("delete markers stay {}", as_setting(present)),
            };
            remarks.push(format!(
                "{present}, which is left alone; to change it: nats stream edit {} \
                 --subject-del-markers-ttl={}",
                bucket.stream(),
                as_setting(ttl)
            ));
        }
    }
    remarks
}

/// Tries whether the flag has effect: 2.11.2 to .4 take it and expire nothing
/// until they are restarted (nats-server #6920).
fn prove(
    registry: &mut Registry,
    signals: &Signals,
    info: &StreamInfo,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let version = info.leader_version().unwrap_or("of unknown version");
    match probe(registry, signals) {
        Ok(Probed::Expired { .. }) => say(out, "tried it: a 1 s TTL was obeyed"),
        Ok(Probed::Changed { stored, .. }) => {
            let stored = if stored.is_empty() { "no TTL" } else { &stored };
            say(out, &format!("tried it: a 1 s TTL was stored as {stored} (see aegis-agent check)"))
        }
        Ok(Probed::Lingered { late, .. }) => {
            let bucket = registry.bucket();
            Err(Failure::new(
                Kind::Incomplete,
                format!(
                    "bucket {bucket} has per-message TTL switched on, and nats-server {version} \
                     does not act on it: a 1 s TTL was not obeyed for {}",
                    words(late)
                ),
            )
            .with_hint(
                "restart nats-server (2.11.2 to 2.11.4 act on it only then) or upgrade it to \
                 2.11.5 or later; then: aegis-agent check --probe",
            ))
        }
        Ok(Probed::Refused(why)) => Err(Failure::new(
            Kind::Incomplete,
            format!("whether it has effect could not be tried: {why}"),
        )
        .with_hint("aegis-agent check")),
        Err(ProbeError::Interrupted) => Err(Failure::new(
            Kind::Incomplete,
            "interrupted before it was known whether per-message TTL has effect",
        )
        .with_hint("aegis-agent check --probe")),
        // Done is what was asked for; trying takes permissions of its own.
        Err(ProbeError::Registry(error)) if error.denied().is_some() => say(
            out,
            &format!("whether it has effect could not be tried: {}", Failure::from(error).chain()),
        ),
        Err(ProbeError::Registry(error)) => Err(error.into()),
    }
}

/// A refusal with what helps against it.
fn refused(error: RegistryError) -> Failure {
    let RegistryError::Reply(doing, ReplyError::Api(api)) = &error else {
        return error.into();
    };
    let hint = match (api.err_code, *doing) {
        (ApiError::BAD_CONFIG, SWITCHING) => {
            "upgrade nats-server: 2.11.0 and 2.11.1 cannot switch it on in a bucket that exists, \
             2.11.2 and later can (2.12.8 has no known TTL bugs)"
        }
        (10074, _) => "give --replicas 1, or run init against a cluster",
        (10005, _) => "give fewer --replicas: the cluster has not that many servers with room",
        (10065, _) => "nats stream find (which stream takes the subjects?)",
        (10002 | 10023 | 10028 | 10047, _) => "raise the limits of JetStream, or free some room",
        _ => return error.into(),
    };
    Failure::new(Kind::Unavailable, error.to_string()).with_hint(hint)
}

fn say(out: &mut dyn Write, line: &str) -> Result<(), Failure> {
    written(writeln!(out, "{}", printable(line)).and_then(|()| out.flush()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_flag_is_all_that_changes_in_a_configuration() {
        let config = json!({
            "name": "KV_x", "allow_msg_ttl": false, "a_field_of_the_future": {"n": [1.5, null]},
            "max_bytes": u64::MAX, "metadata": {"_nats.ver": "2.12.8", "owner": "us"},
        });
        let mut expected = config.clone();
        expected["allow_msg_ttl"] = json!(true);
        assert_eq!(with_flag(&config), expected);
    }

    #[test]
    fn a_configuration_that_lacks_the_flag_gets_it() {
        assert_eq!(with_flag(&json!({})), json!({ "allow_msg_ttl": true }));
    }
}
