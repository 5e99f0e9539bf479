//! `check`: does TTL really work here, and if not, why?
//!
//! Collects the facts, as many of them in one exchange as can be, and asks on
//! where one cannot be had; `judge` judges them, `report` renders. Nothing is
//! written without `--probe`: an ephemeral consumer reads the bucket.

// The doors read the clock.
#![allow(clippy::disallowed_methods)]

pub mod census;
pub mod judge;
pub mod report;

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use time::OffsetDateTime;

use self::census::Census;
use self::judge::{Check, Connected, Facts, Gap, GapKind};
use crate::cli::{CheckOptions, Format};
use crate::connection::{ConnectError, Connector, Incoming, RequestError, Settings};
use crate::error::{Failure, Kind, written};
use crate::jetstream::bucket::Bucket;
use crate::jetstream::fitness;
use crate::jetstream::replies::{self, ApiError, ReplyError};
use crate::jetstream::requests::{self, Request};
use crate::registry::expiry_test::{ProbeError, probe};
use crate::registry::scan::{SCANNING, Scan};
use crate::registry::{Registry, RegistryError};
use crate::system::signals::Signals;
use crate::system::textfile;
use crate::url::shown_name;

const ACCOUNT: &str = "asking what the account may use";
const BUCKET: &str = "looking at the bucket";

/// Writes the report to `out`, or to the file that was asked for, and returns
/// the exit code.
pub fn run(
    options: &CheckOptions,
    settings: Settings,
    bucket: Bucket,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let signals = if options.probe { Some(take_signals()?) } else { None };
    let mut connector = Connector::new(settings);
    if let Some(signals) = &signals {
        connector = connector.with_signals(signals.stop_check(), signals.waker());
    }
    let facts = collect(Registry::new(connector, bucket), signals);
    answer(options, &facts, out)
}

/// The same for a call whose settings are bad: nothing was tried, and why is a
/// whole report, too.
pub fn run_without(
    options: &CheckOptions,
    failure: &Failure,
    bucket: Bucket,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let hint = failure.hint().unwrap_or("mend the setting, or give another one");
    let mut facts = nothing_known(bucket, options.probe);
    facts.connection =
        Err(Gap { kind: GapKind::Denied, message: failure.chain(), hint: Some(hint.to_owned()) });
    answer(options, &facts, out)
}

fn answer(options: &CheckOptions, facts: &Facts, out: &mut dyn Write) -> Result<u8, Failure> {
    let checks = judge::judge(facts);
    let text = render(options.format, &facts.bucket, &checks);
    match &options.output {
        Some(path) => textfile::replace_on_disk(path, &text).map_err(|error| {
            Failure::new(
                Kind::Config,
                format!("cannot write {}", shown_name(&path.display().to_string())),
            )
            .with_hint("is its directory there, and may this user write to it?")
            .with_source(error)
        })?,
        None => match written(out.write_all(text.as_bytes()).and_then(|()| out.flush())) {
            // A reader that went away does not make a failed check a success.
            Err(failure) if failure.is_broken_pipe() => {}
            result => result?,
        },
    }
    Ok(report::worst(&checks).code())
}

/// SIGTERM and SIGINT must not leave a probe behind.
pub(super) fn take_signals() -> Result<Signals, Failure> {
    Signals::take(false).map_err(|error| {
        Failure::new(Kind::Unavailable, "cannot take over signals").with_source(error)
    })
}

fn render(format: Format, bucket: &Bucket, checks: &[Check]) -> String {
    match format {
        Format::Text => report::text(bucket, checks, wants_colour()),
        Format::Json => report::json(checks),
        Format::Nagios => report::nagios(bucket, checks),
        Format::Prometheus => report::prometheus(bucket, checks),
    }
}

/// On a terminal that knows colours, unless <https://no-color.org> is set.
fn wants_colour() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    io::stdout().is_terminal() && !set("NO_COLOR") && !dumb
}

fn missing(why: &str) -> Gap {
    Gap { kind: GapKind::NotMade, message: why.to_owned(), hint: None }
}

/// What is known before anything was tried.
fn nothing_known(bucket: Bucket, probe: bool) -> Facts {
    Facts {
        bucket,
        connection: Err(missing("no connection to NATS")),
        account: Err(missing("no connection to NATS")),
        stream: Err(missing("no connection to NATS")),
        census: Err(missing("there is no usable bucket")),
        clock: None,
        probe: probe.then(|| Err(missing("no connection to NATS"))),
    }
}

/// All that can be found out, in as few exchanges as possible.
fn collect(mut registry: Registry, signals: Option<Signals>) -> Facts {
    let mut facts = nothing_known(registry.bucket().clone(), signals.is_some());
    let limit = registry.timeout();
    if let Err(error) = registry.connect(limit) {
        facts.connection = Err(gap(error));
        return facts;
    }
    let Some(session) = registry.session() else {
        let lost = RequestError::Lost(String::new());
        facts.connection = Err(gap(RegistryError::Request("connecting", lost)));
        return facts;
    };
    let server = session.server.clone();
    facts.connection = Ok(Connected {
        place: session.place(),
        cluster: server.cluster.filter(|cluster| !cluster.is_empty()),
        version: server.version.clone(),
        jetstream: server.jetstream,
        round_trip: server.round_trip,
    });

    let (consumer, scan) = match Scan::ask(&registry) {
        Ok(asked) => asked,
        Err(error) => {
            facts.connection = Err(gap(error));
            return facts;
        }
    };
    let [account, stream, scan] = ask(
        &mut registry,
        [
            (ACCOUNT, requests::account_info()),
            (BUCKET, requests::stream_info(&facts.bucket)),
            (SCANNING, scan),
        ],
        |registry, place, reply| {
            // Read as it arrives: its time is the registry's clock.
            if place == 1 && registry.read_info(BUCKET, reply).is_ok() {
                let clock = registry.clock().map(|clock| clock.now());
                facts.clock = clock.map(|clock| OffsetDateTime::now_utc() - clock);
            }
        },
    );
    facts.account = account.map_err(gap).and_then(|reply| {
        replies::read_account_info(&reply.data)
            .map_err(|error| gap(RegistryError::Reply(ACCOUNT, error)))
    });
    facts.stream = stream.map_err(gap).and_then(|reply| {
        match replies::read_stream_info(&reply.data).map_err(|e| RegistryError::Reply(BUCKET, e)) {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.api_code() == Some(ApiError::NO_STREAM) => Ok(None),
            Err(error) => Err(gap(error)),
        }
    });

    if let Ok(Some(info)) = &facts.stream {
        let scan = scan.and_then(|reply| Scan::begun(&mut registry, consumer, &reply, info));
        facts.census = match (fitness::judge_kind(&facts.bucket, info), scan) {
            (Ok(()), scan) => scan.and_then(|scan| census(&mut registry, scan)).map_err(gap),
            (Err(_), Ok(scan)) => {
                scan.end(&mut registry);
                facts.census
            }
            (Err(_), Err(_)) => facts.census,
        };
    }
    if let Some(mut signals) = signals {
        facts.probe = Some(match probe_is_possible(&facts, &server.version) {
            Err(why) => Err(missing(&why)),
            Ok(()) => probe(&mut registry, &mut signals).map_err(|error| match error {
                ProbeError::Interrupted => Gap {
                    kind: GapKind::OutOfTime,
                    message: "interrupted by a signal".into(),
                    hint: None,
                },
                ProbeError::Registry(error) => gap(error),
            }),
        });
    }
    facts
}

/// Sends all requests, then waits for their replies, within one time limit.
/// Each reply is shown to `seen` the moment it arrives.
fn ask<const N: usize>(
    registry: &mut Registry,
    requests: [(&'static str, Request); N],
    mut seen: impl FnMut(&mut Registry, usize, &Incoming),
) -> [Result<Incoming, RegistryError>; N] {
    let deadline = Instant::now() + registry.timeout();
    let mut answers: [Option<Result<Incoming, RequestError>>; N] = std::array::from_fn(|_| None);
    let mut inboxes: [String; N] = std::array::from_fn(|_| String::new());
    for (place, (doing, request)) in requests.iter().enumerate() {
        match registry.send(doing, request) {
            Ok(inbox) => inboxes[place] = inbox,
            Err(error) => answers[place] = Some(Err(request_error(error))),
        }
    }
    while answers.iter().any(Option::is_none) {
        match registry.receive(BUCKET, deadline) {
            Ok(reply) => {
                if let Some(place) = inboxes.iter().position(|inbox| *inbox == reply.subject) {
                    seen(registry, place, &reply);
                    answers[place] = Some(match reply.status() {
                        Some(503) => Err(RequestError::NoResponders),
                        _ => Ok(reply),
                    });
                }
            }
            Err(error) => {
                let error = request_error(error);
                // A refusal names the subject; all else concerns all of them.
                let refused = match &error {
                    RequestError::Denied(what) => requests.iter().position(|(_, request)| {
                        what.contains(&format!("\"{}\"", request.subject))
                    }),
                    _ => None,
                };
                for (place, answer) in answers.iter_mut().enumerate() {
                    if answer.is_none() && refused.is_none_or(|refused| refused == place) {
                        *answer = Some(Err(error.clone()));
                    }
                }
            }
        }
    }
    let mut doing = requests.iter().map(|(doing, _)| *doing);
    answers.map(|answer| {
        let doing = doing.next().unwrap_or(BUCKET);
        let answer = answer.unwrap_or(Err(RequestError::TimedOut));
        answer.map_err(|error| RegistryError::Request(doing, error))
    })
}

fn request_error(error: RegistryError) -> RequestError {
    match error {
        RegistryError::Request(_, error) => error,
        other => RequestError::Lost(other.to_string()),
    }
}

/// Counts the entries of the bucket.
fn census(registry: &mut Registry, mut scan: Scan) -> Result<Census, RegistryError> {
    let clock = registry.clock().ok_or(RegistryError::NoClock)?;
    let mut census = Census::default();
    loop {
        match scan.next(registry) {
            Ok(Some(entry)) => census.count(&entry, clock.now()),
            Ok(None) => {
                scan.end(registry);
                return Ok(census);
            }
            Err(error) => {
                // Where the server still answers it need not keep the consumer.
                if error.denied().is_some() {
                    scan.end(registry);
                }
                return Err(error);
            }
        }
    }
}

/// Whether a probe can be made, and would say anything that the other checks
/// do not.
fn probe_is_possible(facts: &Facts, connected: &str) -> Result<(), String> {
    let info = match &facts.stream {
        Ok(Some(info)) => info,
        Ok(None) => return Err("the bucket does not exist".into()),
        Err(_) => return Err("the bucket could not be looked at".into()),
    };
    if facts.census.as_ref().is_err_and(|gap| gap.kind == GapKind::OutOfTime) {
        return Err("the server did not answer in time".into());
    }
    fitness::judge_bucket(&facts.bucket, info, connected).map_err(|unfit| unfit.to_string())
}

/// Why a fact is missing, in the words that the other verbs use.
fn gap(error: RegistryError) -> Gap {
    let kind = match &error {
        RegistryError::Connect(ConnectError::Stopped) => GapKind::NotMade,
        RegistryError::Connect(ConnectError::Config(_)) => GapKind::Denied,
        RegistryError::Request(_, RequestError::Denied(_)) => GapKind::Denied,
        RegistryError::Request(_, RequestError::NoResponders) => GapKind::NoJetStream,
        RegistryError::Request(..) => GapKind::OutOfTime,
        RegistryError::Reply(_, ReplyError::Unreadable(_)) => GapKind::OutOfTime,
        error => match error.api_code() {
            Some(ApiError::NO_JETSTREAM | ApiError::NO_JETSTREAM_ACCOUNT) => GapKind::NoJetStream,
            _ => GapKind::Failed,
        },
    };
    let failure = Failure::from(error);
    // Login and permissions.
    let kind = if failure.kind() == Kind::Refused { GapKind::Denied } else { kind };
    Gap { kind, message: failure.chain(), hint: failure.hint().map(str::to_owned) }
}
