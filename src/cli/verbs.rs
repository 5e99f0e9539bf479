//! The options of each verb: the rules for their values, and the defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::arguments::{CheckArgs, CleanupArgs, InitArgs, ListArgs, RunArgs, WatchArgs};
use super::options::{
    CheckOptions, CleanupOptions, Format, InitOptions, ListOptions, RunOptions, Wanted,
    WatchOptions,
};
use super::values::{Given, LONGEST_TIMEOUT, Source, option, usage};
use crate::error::{Failure, Kind};
use crate::health::verdict::{HealthCheck, HealthOptions};
use crate::instance::filter::{Filter, Name};
use crate::instance::record::{InstanceId, ServiceName, Status};
use crate::instance::staleness::{
    DEFAULT_INTERVAL, DEFAULT_STALE_AFTER, DEFAULT_TTL, INTERVAL_MARGIN,
};
use crate::jetstream::bucket::Storage;
use crate::nats::address::shown;
use crate::text::duration::{self, as_setting};

/// Above about 7.4e9 s a server's arithmetic overflows and entries expire at
/// once (docs/nats.md); a day is more than a heartbeat needs.
const LONGEST_TTL: Duration = Duration::from_secs(86_400);
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
const LONGEST_STALE_AFTER: Duration = Duration::from_secs(10 * 365 * 86_400);
const DEFAULT_SETTLE: Duration = Duration::from_millis(200);
const LONGEST_SETTLE: Duration = Duration::from_secs(60);
const LONGEST_META: usize = 1_024;
const DEFAULT_HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
const DEFAULT_HEALTH_FAILURES: u32 = 3;

pub(super) fn run(
    source: &Source<'_>,
    args: &RunArgs,
    host_name: &dyn Fn() -> Option<String>,
) -> Result<RunOptions, Failure> {
    let service = source
        .given(&args.service, "--service", "AEGIS_SERVICE")?
        .ok_or_else(|| usage("--service (or AEGIS_SERVICE) is required: the service to speak for"))?
        .read_from_str()?;
    let instance = match source.given(&args.instance, "--instance", "AEGIS_INSTANCE")? {
        Some(given) => given.read_from_str()?,
        None => default_instance(host_name)?,
    };
    let version = source
        .given(&args.service_version, "--service-version", "AEGIS_SERVICE_VERSION")?
        .unwrap_or(Given {
            name: "--service-version".into(),
            text: "0.0.0".into(),
            kind: Kind::Usage,
        })
        .read_from_str()?;
    let ttl = match source.given(&args.ttl, "--ttl", "AEGIS_TTL")? {
        Some(given) => given.read(read_ttl)?,
        None => DEFAULT_TTL,
    };
    let interval = interval(source, args, ttl)?;
    let mut warnings = Vec::new();
    if interval > ttl / 3 {
        warnings.push(format!(
            "interval {} is more than a third of the TTL {}: one or two lost heartbeats, \
             and a live instance vanishes",
            as_setting(interval),
            as_setting(ttl)
        ));
    }
    let group = source.given(&args.group, "--group", "AEGIS_GROUP")?;
    let health = health(source, args, interval, &mut warnings)?;
    let drain_file = source.given(&args.drain_file, "--drain-file", "AEGIS_DRAIN_FILE")?;
    let metrics_file = source.given(&args.metrics_file, "--metrics-file", "AEGIS_METRICS_FILE")?;
    Ok(RunOptions {
        service,
        instance,
        version,
        ttl,
        interval,
        standby: source.switch(args.standby, "AEGIS_STANDBY")?,
        group: group.map(|given| given.read(read_group)).transpose()?,
        metadata: read_metadata(source.all(&args.meta, "--meta", "AEGIS_META")?)?,
        health,
        metrics_file: metrics_file.map(|given| given.read(read_file_name)).transpose()?,
        stale_after: stale_after(source, &None)?,
        check_config: args.check_config.then(Vec::new),
        drain_file: drain_file.map(|given| given.read(read_file_name)).transpose()?,
        warnings,
        unconnected: None,
    })
}

/// The longest time between heartbeats: what is asked for, else a third of the
/// TTL and at most ten seconds. Readers hide an instance by the age of its
/// heartbeat alone, so one that could look stale between two is refused.
fn interval(source: &Source<'_>, args: &RunArgs, ttl: Duration) -> Result<Duration, Failure> {
    let limit = source.variable("AEGIS_STALE_AFTER")?;
    let stale_after = stale_after(source, &None)?;
    let of = limit.as_ref().map_or(String::new(), |given| format!(" of {}", given.name));
    let fits = |interval: Duration| match interval.saturating_add(INTERVAL_MARGIN) < stale_after {
        true => Ok(interval),
        false => Err(format!(
            "with {} more it must stay below the stale limit {}{of}, or a live instance looks stale",
            as_setting(INTERVAL_MARGIN),
            as_setting(stale_after)
        )),
    };
    if let Some(given) = source.given(&args.interval, "--interval", "AEGIS_INTERVAL")? {
        return given.read(|text| read_interval(text, ttl).and_then(fits));
    }
    let default = DEFAULT_INTERVAL.min(ttl / 3);
    fits(default).map_err(|rule| {
        let what = format!("the default interval {}: {rule}", as_setting(default));
        Failure::new(Kind::Config, what).with_hint("give a shorter --interval (AEGIS_INTERVAL)")
    })
}

fn health(
    source: &Source<'_>,
    args: &RunArgs,
    interval: Duration,
    warnings: &mut Vec<String>,
) -> Result<Option<HealthOptions>, Failure> {
    let exec = source.given(&args.health_exec, "--health-exec", "AEGIS_HEALTH_EXEC")?;
    let tcp = source.given(&args.health_tcp, "--health-tcp", "AEGIS_HEALTH_TCP")?;
    let exec = exec.map(|given| given.read(HealthCheck::exec)).transpose()?;
    let tcp = tcp.map(|given| given.read(HealthCheck::tcp)).transpose()?;
    let timeout = source.given(&args.health_timeout, "--health-timeout", "AEGIS_HEALTH_TIMEOUT")?;
    let timeout = match timeout {
        Some(given) => {
            let timeout = given.duration(Duration::from_millis(1), LONGEST_TIMEOUT)?;
            if timeout > interval {
                warnings.push(format!(
                    "the limit {} of a health check is longer than the interval: {} is used",
                    as_setting(timeout),
                    as_setting(interval)
                ));
            }
            timeout.min(interval)
        }
        None => DEFAULT_HEALTH_TIMEOUT.min(interval),
    };
    let failures =
        source.given(&args.health_failures, "--health-failures", "AEGIS_HEALTH_FAILURES")?;
    let failures = failures.map(|given| {
        given.read(|text| match text.parse() {
            Ok(failures @ 1..=1_000) => Ok(failures),
            _ => Err("must be a whole number from 1 to 1000"),
        })
    });
    let failures = failures.transpose()?.unwrap_or(DEFAULT_HEALTH_FAILURES);
    let checks: Vec<HealthCheck> = exec.into_iter().chain(tcp).collect();
    Ok((!checks.is_empty()).then_some(HealthOptions { checks, timeout, failures }))
}

fn default_instance(host_name: &dyn Fn() -> Option<String>) -> Result<InstanceId, Failure> {
    let host = host_name().unwrap_or_default();
    let short = host.split('.').next().unwrap_or_default();
    short.parse().map_err(|rule| {
        usage(format!("the host name {short:?} cannot be the instance: {rule}; give --instance"))
    })
}

fn read_ttl(text: &str) -> Result<Duration, String> {
    let rule = "must be a whole number of seconds from 1s to 1 day (24h)";
    match duration::parse(text) {
        Ok(ttl)
            if ttl.subsec_nanos() == 0 && (1..=LONGEST_TTL.as_secs()).contains(&ttl.as_secs()) =>
        {
            Ok(ttl)
        }
        Ok(_) => Err(rule.into()),
        Err(error) => Err(format!("{error}; {rule}")),
    }
}

fn read_interval(text: &str, ttl: Duration) -> Result<Duration, String> {
    let interval = duration::parse(text).map_err(|error| error.to_string())?;
    if interval < SHORTEST_INTERVAL {
        return Err(format!("must be at least {}", as_setting(SHORTEST_INTERVAL)));
    }
    if interval >= ttl {
        return Err(format!(
            "must be shorter than the TTL {} (a third of it is best), or every entry expires between heartbeats",
            as_setting(ttl)
        ));
    }
    Ok(interval)
}

fn read_group(text: &str) -> Result<String, &'static str> {
    let fits =
        !text.is_empty() && text.chars().count() <= 100 && !text.chars().any(char::is_control);
    if !fits {
        return Err("must be 1 to 100 printable characters");
    }
    Ok(text.to_owned())
}

fn read_metadata(all: Vec<Given>) -> Result<BTreeMap<String, String>, Failure> {
    let mut metadata = BTreeMap::new();
    for given in all {
        let bad = |rule: &str| given.bad(rule);
        let (key, value) = given.text.split_once('=').ok_or_else(|| bad("must be KEY=VALUE"))?;
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if key.is_empty() || key.len() > 64 || !key.bytes().all(fits) {
            return Err(bad("the key must be 1 to 64 of A-Z a-z 0-9 . _ -"));
        }
        if matches!(key, "host" | "pid") {
            return Err(bad("host and pid are set by the agent itself"));
        }
        if value.len() > LONGEST_META || value.chars().any(char::is_control) {
            return Err(bad("the value must have no control characters and at most 1024 bytes"));
        }
        if metadata.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(bad("the key is given twice"));
        }
    }
    Ok(metadata)
}

fn read_file_name(text: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(text);
    if path.file_name().is_none() || text.ends_with('/') || text.contains('\0') {
        return Err("must be the name of a file");
    }
    Ok(path)
}

pub(super) fn init(source: &Source<'_>, args: &InitArgs) -> Result<InitOptions, Failure> {
    let replicas = source.given(&args.replicas, "--replicas", "AEGIS_REPLICAS")?.map(|given| {
        given.read(|text| match text.parse() {
            Ok(count @ 1..=5) => Ok(count),
            _ => Err("must be a number from 1 to 5"),
        })
    });
    let marker_ttl = source.given(&args.marker_ttl, "--marker-ttl", "AEGIS_MARKER_TTL")?;
    let storage = source.given(&args.storage, "--storage", "AEGIS_STORAGE")?.map(|given| {
        given.read(|text| match text {
            "file" => Ok(Storage::File),
            "memory" => Ok(Storage::Memory),
            _ => Err("must be file or memory"),
        })
    });
    let marker_ttl = marker_ttl.map(|given| {
        given.read(|text| match text {
            "none" => Ok(None),
            text => read_ttl(text).map(Some).map_err(|rule| format!("{rule}, or none")),
        })
    });
    let history = source.given(&args.history, "--history", "AEGIS_HISTORY")?;
    let max_age = source.given(&args.max_age, "--max-age", "AEGIS_MAX_AGE")?;
    Ok(InitOptions {
        replicas: replicas.transpose()?,
        marker_ttl: marker_ttl.transpose()?,
        storage: storage.transpose()?,
        lower_history: only_value(history, "1")?,
        drop_max_age: only_value(max_age, "none")?,
    })
}

/// A setting that has one good value: others are made with the nats CLI.
fn only_value(given: Option<Given>, good: &str) -> Result<bool, Failure> {
    let given = given.map(|given| {
        given.read(|text| match text == good {
            true => Ok(()),
            false => Err(format!("must be {good}: nothing else is good for a registry")),
        })
    });
    given.transpose().map(|given| given.is_some())
}

pub(super) fn check(source: &Source<'_>, args: &CheckArgs) -> Result<CheckOptions, Failure> {
    // One of the two on the command line beats both variables.
    let (format, json) = if args.json || args.format.is_some() {
        (option(&args.format, "--format"), args.json)
    } else {
        (source.variable("AEGIS_FORMAT")?, source.switch(false, "AEGIS_JSON")?)
    };
    let format = format.map(|given| {
        given.read(|text| match text {
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            "nagios" => Ok(Format::Nagios),
            "prometheus" => Ok(Format::Prometheus),
            _ => Err("must be text, json, nagios or prometheus"),
        })
    });
    let format = match (format.transpose()?, json) {
        (None | Some(Format::Json), true) => Format::Json,
        (Some(_), true) => return Err(usage("--json and --format say different things: give one")),
        (format, false) => format.unwrap_or(Format::Text),
    };
    let output = match format {
        Format::Prometheus => source.given(&args.output, "--output", "AEGIS_OUTPUT")?,
        _ if args.output.is_some() => return Err(usage("--output is for --format prometheus")),
        _ => None,
    };
    let mut services: Vec<Wanted> = Vec::new();
    for given in source.all(&args.service, "--service", "AEGIS_SERVICE")? {
        let known = |wanted: &Wanted| services.iter().any(|one| one.service == wanted.service);
        services.push(given.read(|text| match read_wanted(text)? {
            wanted if known(&wanted) => Err("names a service twice".to_owned()),
            wanted => Ok(wanted),
        })?);
    }
    Ok(CheckOptions {
        services,
        probe: source.switch(args.probe, "AEGIS_PROBE")?,
        format,
        output: output.map(|given| PathBuf::from(given.text)),
        stale_after: stale_after(source, &None)?,
        origins: Vec::new(),
    })
}

/// `NAME[=MIN[:WARN]]`
fn read_wanted(text: &str) -> Result<Wanted, String> {
    let (name, numbers) = text.split_once('=').unwrap_or((text, "1"));
    let (min, warn) = numbers.split_once(':').unwrap_or((numbers, numbers));
    let number = |text: &str| {
        text.parse::<u32>()
            .map(u64::from)
            .map_err(|_| "must be NAME[=MIN[:WARN]], with whole numbers")
    };
    let service = name.parse().map_err(|rule| format!("{rule}"))?;
    let (min, warn) = (number(min)?, number(warn)?);
    if warn < min {
        return Err("WARN must not be below MIN".to_owned());
    }
    Ok(Wanted { service, min, warn })
}

pub(super) fn cleanup(source: &Source<'_>, args: &CleanupArgs) -> Result<CleanupOptions, Failure> {
    let only = source.all(&args.only, "--only", "AEGIS_ONLY")?;
    let max_removals =
        source.given(&args.max_removals, "--max-removals", "AEGIS_MAX_REMOVALS")?.map(|given| {
            given.read(|text| text.parse().map_err(|_| "must be a whole number, 0 or more"))
        });
    Ok(CleanupOptions {
        dry_run: source.switch(args.dry_run, "AEGIS_DRY_RUN")?,
        stale_after: stale_after(source, &args.stale_after)?,
        only: only.into_iter().map(Given::read_from_str).collect::<Result<_, _>>()?,
        service: service(source, &args.service)?,
        max_removals: max_removals.transpose()?,
        unreadable: source.switch(args.unreadable, "AEGIS_UNREADABLE")?,
        spare_beating: source.switch(args.spare_beating, "AEGIS_SPARE_BEATING")?,
        json: source.switch(args.json, "AEGIS_JSON")?,
    })
}

pub(super) fn list(source: &Source<'_>, args: &ListArgs) -> Result<ListOptions, Failure> {
    if args.service.is_some() && !args.asked.is_empty() {
        return Err(usage("--service and a name say different things: give one"));
    }
    let mut names = read_names(&args.asked)?;
    let mut asked = args.asked.clone();
    if names.is_empty()
        && let Some(service) = service(source, &args.service)?
    {
        asked.push(service.as_str().to_owned());
        names.push(Name::of(service));
    }
    let meta = source.all(&args.meta, "--meta", "AEGIS_HAS_META")?;
    let status = source.given(&args.status, "--status", "AEGIS_STATUS")?;
    let json = source.switch(args.json, "AEGIS_JSON")?;
    let only_names = source.switch(args.names, "AEGIS_NAMES")?;
    let wide = source.switch(args.wide, "AEGIS_WIDE")?;
    if [json, only_names, wide].iter().filter(|given| **given).count() > 1 {
        return Err(usage("--json, --names and --wide say different things: give one"));
    }
    Ok(ListOptions {
        all: source.switch(args.all, "AEGIS_ALL")?,
        filter: Filter {
            names,
            status: status.map(|given| given.read(read_status)).transpose()?,
            meta: meta.into_iter().map(Given::read_from_str).collect::<Result<_, _>>()?,
        },
        asked,
        stale_after: stale_after(source, &args.stale_after)?,
        wide,
        names: only_names,
        json,
    })
}

pub(super) fn watch(source: &Source<'_>, args: &WatchArgs) -> Result<WatchOptions, Failure> {
    let exec = source.given(&args.exec, "--exec", "AEGIS_EXEC")?;
    let exec = exec.map(|given| {
        given.read(|text| match HealthCheck::exec(text)? {
            HealthCheck::Exec(words) => Ok(words),
            HealthCheck::Tcp { .. } => Err("names no program"),
        })
    });
    let settle = source.given(&args.settle, "--settle", "AEGIS_SETTLE")?;
    let settle = settle.map(|given| given.duration(Duration::ZERO, LONGEST_SETTLE));
    Ok(WatchOptions {
        filter: Filter { names: read_names(&args.asked)?, ..Filter::default() },
        stale_after: stale_after(source, &args.stale_after)?,
        json: source.switch(args.json, "AEGIS_JSON")?,
        exec: exec.transpose()?,
        settle: settle.transpose()?.unwrap_or(DEFAULT_SETTLE),
    })
}

fn read_names(asked: &[String]) -> Result<Vec<Name>, Failure> {
    let read = |text: &String| {
        text.parse().map_err(|rule| {
            usage(format!("{:?}: must be SERVICE or SERVICE/INSTANCE: {rule}", shown(text)))
        })
    };
    asked.iter().map(read).collect()
}

/// A word as it stands in records: those that this program knows in any case,
/// those of newer writers in capitals.
fn read_status(text: &str) -> Result<Status, &'static str> {
    let known = |status: &Status| !matches!(status, Status::Unknown(_));
    let status = Status::parse(&text.to_ascii_uppercase()).filter(known);
    let has_capitals = !text.bytes().any(|b| b.is_ascii_lowercase());
    status
        .or_else(|| Status::parse(text).filter(|_| has_capitals))
        .ok_or("must be ACTIVE, STANDBY, UNHEALTHY or SHUTDOWN, or another word in capitals")
}

fn service(source: &Source<'_>, value: &Option<String>) -> Result<Option<ServiceName>, Failure> {
    let given = source.given(value, "--service", "AEGIS_SERVICE")?;
    given.map(Given::read_from_str).transpose()
}

/// The registry's rule, for every verb: how old a heartbeat may be.
fn stale_after(source: &Source<'_>, value: &Option<String>) -> Result<Duration, Failure> {
    match source.given(value, "--stale-after", "AEGIS_STALE_AFTER")? {
        Some(given) => given.duration(Duration::from_millis(1), LONGEST_STALE_AFTER),
        None => Ok(DEFAULT_STALE_AFTER),
    }
}
