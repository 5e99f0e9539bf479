//! `init`: creates the bucket, or mends one in place.
//!
//! In a bucket that exists it changes the flag, and what was asked for by an
//! option. It sends the bucket's own configuration back, so settings that this
//! program does not know survive. Where there is doubt whether the server then
//! does what it said, that is tried.

use std::io::Write;
use std::rc::Rc;
use std::time::Duration;

use log::debug;
use serde_json::{Value, json};

use crate::cli::call::Call;
use crate::cli::options::InitOptions;
use crate::error::{Failure, Kind, written};
use crate::instance::staleness::DEFAULT_TTL;
use crate::jetstream::bucket::{Bucket, NewBucket, Storage};
use crate::jetstream::fitness::{self, ServerVersion, Unfit, WITHOUT_BUGS};
use crate::jetstream::replies::{self, ApiError, ReplyError, StreamInfo};
use crate::jetstream::requests;
use crate::jetstream::server_bugs::{BugKind, known_bugs};
use crate::nats::{Connector, RequestError, Settings};
use crate::registry::Registry;
use crate::registry::expiry_test::{ProbeError, Probed, probe};
use crate::registry::failure::RegistryError;
use crate::registry::making::Made;
use crate::system::signals::Signals;
use crate::text::duration::{as_setting, words};
use crate::text::printable::printable;

const SWITCHING: &str = "switching per-message TTL on";
const CHANGING: &str = "changing the bucket";

/// Makes the bucket fit for a registry and says on `out` what it changed.
pub fn run(
    options: &InitOptions,
    settings: Settings,
    bucket: Bucket,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let signals = Rc::new(Signals::take()?);
    let call = Call::of(&settings, &bucket);
    let out = &mut Lines { call, out };
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
    out: &mut Lines<'_>,
) -> Result<Option<StreamInfo>, Failure> {
    fitness::judge_server(connected)?;
    judge_cluster(registry)?;
    let bucket = registry.bucket().clone();
    let cluster = registry.server().and_then(|server| server.cluster.clone());
    let standard = NewBucket::standard(&bucket, cluster.as_deref());
    let wanted = NewBucket {
        replicas: options.replicas.unwrap_or(standard.replicas),
        storage: options.storage.unwrap_or(standard.storage),
        marker_ttl: options.marker_ttl.unwrap_or(standard.marker_ttl),
    };
    // A number that was asked for is not replaced by another one.
    let gathered = registry.gathered();
    let made = registry.make_bucket(wanted, options.replicas.is_none(), gathered);
    let Made { info, ours, new } = match made {
        Ok(made) => made,
        Err(error) if error.api_code() == Some(ApiError::NAME_TAKEN) => {
            return Ok(Some(registry.info()?.ok_or(error)?));
        }
        Err(error) => return Err(refused(&bucket, error)),
    };
    if let Err(unfit) = fitness::judge_bucket(&bucket, &info, connected) {
        // The stream went to a member of the cluster that does not know the
        // flag. There is no error for that; only the configuration in the
        // answer tells.
        return Err(undo(registry, &info, ours, unfit));
    }
    let storage = match new.storage {
        Storage::File => "file",
        Storage::Memory => "memory",
    };
    let markers = match new.marker_ttl {
        Some(ttl) => format!("delete markers for {}", as_setting(ttl)),
        None => "no delete markers".to_owned(),
    };
    let fewer = match standard.replicas > new.replicas && cluster.is_some() {
        true if options.replicas.is_none() => {
            format!("; the cluster has no room for {} replicas", standard.replicas)
        }
        _ => String::new(),
    };
    let verb = if ours { "created bucket" } else { "nothing needed changing in bucket" };
    say(
        out,
        &format!(
            "{verb} {bucket}: per-message TTL, history 1, {}, {storage} storage, {markers}{fewer}",
            copies(new.replicas.into())
        ),
    )?;
    Ok(None)
}

/// Whether the member that leads JetStream in a cluster knows TTLs. Without the
/// permission to ask, the server's answer to what is made must do.
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
        .with_hint(
            "upgrade every nats-server of the cluster to 2.11.2 or later; then: aegis-agent init",
        )
        .with_source(unfit)
}

/// Switches the flag on where it is off, changes what was asked for, and
/// touches nothing else.
fn mend(
    registry: &mut Registry,
    signals: &Signals,
    options: &InitOptions,
    info: &StreamInfo,
    connected: &str,
    out: &mut Lines<'_>,
) -> Result<(), Failure> {
    let bucket = registry.bucket().clone();
    fitness::judge_leader(info, connected)?;
    fitness::judge_kind(&bucket, info)?;
    let switched_on = !info.allows_ttl();
    let Mended { config, changes } = mended(options, info);
    let mut after = info.clone();
    if !changes.is_empty() {
        if switched_on {
            judge_cluster(registry)?;
        }
        let doing = if switched_on { SWITCHING } else { CHANGING };
        let request = requests::update_stream(&bucket, &config);
        let gathered = registry.gathered();
        after = registry
            .configure(doing, &request, gathered)
            .map_err(|error| refused(&bucket, error))?;
        fitness::judge_bucket(&bucket, &after, connected).map_err(|unfit| {
            Failure::new(Kind::Unavailable, "the server took the change and did not make it")
                .with_hint("upgrade every nats-server of the cluster to 2.11.2 or later")
                .with_source(unfit)
        })?;
    }
    let remarks = remarks(options, &after, &bucket);
    say(
        out,
        &match (changes.len(), switched_on) {
            (0, _) if remarks.is_empty() => {
                format!("nothing needed changing: bucket {bucket} has per-message TTL")
            }
            (0, _) => format!("bucket {bucket} has per-message TTL; nothing was changed"),
            (1, true) => format!(
                "switched per-message TTL on in bucket {bucket} (allow_msg_ttl); nothing else was \
                 changed"
            ),
            _ => format!("changed bucket {bucket}: {}", changes.join(", ")),
        },
    )?;
    for remark in remarks {
        say(out, &remark)?;
    }
    if switched_on || may_wait_for_restart(&after) {
        prove(registry, signals, &after, out)?;
    }
    Ok(())
}

/// What a bucket that exists is to become.
struct Mended {
    /// The server's own configuration, with what changes. Its metadata goes back
    /// as it came: servers work out the keys under `_nats.` themselves.
    config: Value,
    /// What changes, in words.
    changes: Vec<String>,
}

/// The flag, and what was asked for. *Pure*.
fn mended(options: &InitOptions, info: &StreamInfo) -> Mended {
    let mut config = info.config.clone();
    let mut changes = Vec::new();
    let mut set = |name: &str, value: Value, what: String| {
        if let Some(fields) = config.as_object_mut() {
            fields.insert(name.to_owned(), value);
        }
        changes.push(what);
    };
    if !info.allows_ttl() {
        set("allow_msg_ttl", json!(true), "per-message TTL on (allow_msg_ttl)".to_owned());
    }
    if options.lower_history && info.history() != 1 {
        let was = match info.history() {
            history if history < 1 => "all".to_owned(),
            history => history.to_string(),
        };
        let what = format!("history 1 (was {was}; older revisions are gone)");
        set("max_msgs_per_subject", json!(1), what);
    }
    let age = nanos(info, "max_age");
    if options.drop_max_age && !age.is_zero() {
        set("max_age", json!(0), format!("max_age none (was {})", as_setting(age)));
    }
    let replicas = info.number("num_replicas").max(1);
    if let Some(wanted) = options.replicas.map(i64::from).filter(|wanted| *wanted != replicas) {
        set("num_replicas", json!(wanted), format!("{} (was {replicas})", copies(wanted)));
    }
    let markers = nanos(info, MARKERS);
    match options.marker_ttl {
        Some(wanted)
            if wanted.unwrap_or_default() != markers && may_have(options, info, wanted) =>
        {
            let ttl = wanted.unwrap_or_default();
            let nanos = u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX);
            let what = match wanted {
                Some(ttl) => format!("delete markers for {}", as_setting(ttl)),
                None => "no delete markers".to_owned(),
            };
            set(MARKERS, json!(nanos), what);
        }
        _ => {}
    }
    Mended { config, changes }
}

const MARKERS: &str = "subject_delete_marker_ttl";

/// Whether the bucket may have such markers: with more than one revision a key
/// shorter TTLs are raised to theirs.
fn may_have(options: &InitOptions, info: &StreamInfo, markers: Option<Duration>) -> bool {
    markers.is_none() || info.history() == 1 || options.lower_history
}

fn nanos(info: &StreamInfo, name: &str) -> Duration {
    Duration::from_nanos(u64::try_from(info.number(name)).unwrap_or(0))
}

/// `1 replica`, `3 replicas`
fn copies(count: i64) -> String {
    format!("{count} replica{}", if count == 1 { "" } else { "s" })
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
             again; to lower it, which drops the older revisions: {}",
            info.history(),
            fitness::LOWER_HISTORY
        ));
    }
    let age = nanos(info, "max_age");
    if !age.is_zero() && age <= DEFAULT_TTL {
        let message = fitness::cut_short(age, DEFAULT_TTL);
        remarks.push(format!("{message}; to take it away: {}", fitness::DROP_MAX_AGE));
    }
    if info.history() == 1 && options.marker_ttl.is_none() && nanos(info, MARKERS).is_zero() {
        debug!("bucket {bucket} has no delete markers: aegis-agent init --marker-ttl 60s");
    }
    if options.storage == Some(Storage::Memory) && info.word("storage") != "memory" {
        remarks.push(format!(
            "storage is {} and cannot be changed in a bucket that exists",
            info.word("storage")
        ));
    }
    if let Some(Some(ttl)) = options.marker_ttl
        && !may_have(options, info, Some(ttl))
    {
        remarks.push(format!(
            "delete markers need history 1, or they stretch shorter TTLs: none were made; to have \
             both: {} --marker-ttl {}",
            fitness::LOWER_HISTORY,
            as_setting(ttl)
        ));
    }
    remarks
}

/// Tries whether the flag has effect: 2.11.2 to .4 take it and expire nothing
/// until they are restarted (nats-server #6920).
fn prove(
    registry: &mut Registry,
    signals: &Signals,
    info: &StreamInfo,
    out: &mut Lines<'_>,
) -> Result<(), Failure> {
    let version = info.leader_version().unwrap_or("of unknown version");
    match probe(registry, signals) {
        Ok(Probed::Expired { .. }) => say(out, "tried it: a TTL of 1s was obeyed"),
        Ok(Probed::Changed { stored, .. }) => {
            let stored = if stored.is_empty() { "no TTL" } else { &stored };
            say(
                out,
                &format!("tried it: a TTL of 1s was stored as {stored}; why: aegis-agent check"),
            )
        }
        Ok(Probed::Lingered { late, .. }) => {
            let bucket = registry.bucket();
            Err(Failure::new(
                Kind::Incomplete,
                format!(
                    "bucket {bucket} has per-message TTL switched on, and nats-server {version} \
                     does not act on it: a TTL of 1s was not obeyed for {}",
                    words(late)
                ),
            )
            .with_hint(
                "restart nats-server, since 2.11.2 to 2.11.4 act on it only then, or upgrade it to \
                 2.11.10 or later; then: aegis-agent check --probe",
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
        // What was asked for is done; the test of it takes permissions of its
        // own.
        Err(ProbeError::Registry(error)) if error.denied().is_some() => say(
            out,
            &format!("whether it has effect could not be tried: {}", Failure::from(error).chain()),
        ),
        Err(ProbeError::Registry(error)) => Err(error.into()),
    }
}

/// A refusal with what helps against it.
fn refused(bucket: &Bucket, error: RegistryError) -> Failure {
    let RegistryError::Reply(doing, ReplyError::Api(api)) = &error else {
        return error.into();
    };
    let hint = match (api.err_code, *doing) {
        (ApiError::BAD_CONFIG, SWITCHING) => format!(
            "upgrade nats-server: 2.11.0 and 2.11.1 cannot switch it on in a bucket that exists, \
             2.11.2 and later can, and {WITHOUT_BUGS}"
        ),
        (ApiError::NO_CLUSTER, _) => "aegis-agent init --replicas 1".into(),
        (ApiError::TOO_FEW_MEMBERS, _) => {
            "the cluster has fewer servers with room than that: aegis-agent init --replicas 1"
                .into()
        }
        (ApiError::SUBJECTS_TAKEN, _) => {
            format!("nats stream find --subject '{}'", bucket.all())
        }
        _ => return error.into(),
    };
    Failure::new(Kind::Unavailable, error.to_string()).with_hint(hint)
}

/// Writes what this verb says. Commands in it get the connection of this call.
struct Lines<'a> {
    call: Call,
    out: &'a mut dyn Write,
}

fn say(lines: &mut Lines<'_>, line: &str) -> Result<(), Failure> {
    let line = printable(&lines.call.complete(line));
    written(writeln!(lines.out, "{line}").and_then(|()| lines.out.flush()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jetstream::replies::StreamState;

    fn info(config: Value) -> StreamInfo {
        StreamInfo {
            config,
            state: StreamState::default(),
            ts: None,
            leader: None,
            majority_heard: Duration::ZERO,
            is_mirror: false,
        }
    }

    const NOTHING: InitOptions = InitOptions {
        replicas: None,
        marker_ttl: None,
        storage: None,
        lower_history: false,
        drop_max_age: false,
    };

    #[test]
    fn the_flag_is_all_that_changes_in_a_configuration() {
        let config = json!({
            "name": "KV_x", "allow_msg_ttl": false, "a_field_of_the_future": {"n": [1.5, null]},
            "max_bytes": u64::MAX, "max_age": 5, "max_msgs_per_subject": 7, "num_replicas": 2,
            "metadata": {"_nats.ver": "2.12.8", "owner": "us"},
        });
        let mut expected = config.clone();
        expected["allow_msg_ttl"] = json!(true);
        assert_eq!(mended(&NOTHING, &info(config)).config, expected);
    }

    #[test]
    fn a_configuration_that_lacks_the_flag_gets_it() {
        let lacks = mended(&NOTHING, &info(json!({ "max_msgs_per_subject": 1 })));
        assert_eq!(lacks.config["allow_msg_ttl"], json!(true));
    }

    #[test]
    fn what_is_asked_for_changes_and_nothing_else() {
        let config = json!({
            "allow_msg_ttl": true, "max_msgs_per_subject": 10, "max_age": 10_000_000_000_u64,
            "num_replicas": 1, "max_bytes": 77,
        });
        let all = InitOptions {
            replicas: Some(3),
            marker_ttl: Some(Some(Duration::from_secs(60))),
            lower_history: true,
            drop_max_age: true,
            ..NOTHING
        };
        let Mended { config: after, changes } = mended(&all, &info(config.clone()));
        assert_eq!(changes.len(), 4, "{changes:?}");
        let expected = json!({
            "allow_msg_ttl": true, "max_msgs_per_subject": 1, "max_age": 0, "num_replicas": 3,
            "max_bytes": 77, "subject_delete_marker_ttl": 60_000_000_000_u64,
        });
        assert_eq!(after, expected);
        let again = mended(&all, &info(after));
        assert_eq!(again.changes, Vec::<String>::new());
        // With more than one revision a key markers would stretch TTLs.
        let markers = InitOptions { marker_ttl: Some(Some(Duration::from_secs(60))), ..NOTHING };
        assert_eq!(mended(&markers, &info(config)).changes, Vec::<String>::new());
    }
}
