//! The facts on which `check` judges, and how it gets them.
//!
//! As many as possible come in one exchange. Where one cannot be had the others
//! are still asked for, and why it is missing is a fact, too. Nothing is
//! written without a test of expiry; an ephemeral consumer reads the bucket.

// The doors read the clock.
#![allow(clippy::disallowed_methods)]

use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::{OffsetDateTime, SignedDuration};

use super::census::{Census, Roll};
use crate::error::{Failure, Kind};
use crate::jetstream::bucket::Bucket;
use crate::jetstream::fitness;
use crate::jetstream::replies::{self, AccountInfo, ApiError, ReplyError, StreamInfo};
use crate::jetstream::requests;
use crate::nats::address::shown_name;
use crate::nats::certificate::not_after;
use crate::nats::login::{IN_CONTEXT, Login, Secret, read_login};
use crate::nats::{ConnectError, RequestError, Settings};
use crate::registry::asking::Ask;
use crate::registry::expiry_test::{ProbeError, Probed, probe};
use crate::registry::failure::RegistryError;
use crate::registry::scan::{SCANNING, Scan};
use crate::registry::{LOOKING, Registry};
use crate::system::signals::Signals;

const ACCOUNT: &str = "asking what the account may use";

/// Why a fact is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// What kind of reason.
    pub kind: GapKind,
    /// In words.
    pub message: String,
    /// The next step, if there is one to name.
    pub hint: Option<String>,
}

/// Why a fact is missing, as far as it changes the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapKind {
    /// A login, a permission or a file of ours is missing.
    Denied,
    /// JetStream does not answer, or says that it is off.
    NoJetStream,
    /// Nobody is there, or the server refuses.
    Failed,
    /// The server went silent, the connection was lost, or the answer makes no
    /// sense.
    OutOfTime,
    /// Not tried.
    NotMade,
}

/// The server that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// Address and name. Printable.
    pub place: String,
    /// Its cluster.
    pub cluster: Option<String>,
    /// Its version.
    pub version: String,
    /// It has JetStream itself.
    pub jetstream: bool,
    /// Network and server, there and back.
    pub round_trip: Duration,
}

/// All that was found out.
#[derive(Debug)]
pub struct Facts {
    /// The bucket's name.
    pub bucket: Bucket,
    /// Who answered.
    pub connection: Result<Connected, Gap>,
    /// What the account may use.
    pub account: Result<AccountInfo, Gap>,
    /// What is stored under the bucket's name; `None` where nothing is.
    pub stream: Result<Option<StreamInfo>, Gap>,
    /// What lies in the bucket.
    pub census: Result<Census, Gap>,
    /// How far this host's clock is ahead of the registry's.
    pub clock: Option<SignedDuration>,
    /// What of our login ends.
    pub logins: Vec<Ending>,
    /// When all this was found out, by this host's clock.
    pub now: OffsetDateTime,
    /// The live test; `None` where it was not asked for.
    pub probe: Option<Result<Probed, Gap>>,
}

/// A part of our login, and when it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Which, with its file.
    pub what: String,
    /// Whose it is.
    pub whose: Whose,
    /// `None` where it never does.
    pub at: Option<OffsetDateTime>,
}

/// Who has to put something new in the place of what ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Whoever runs this program, in a file.
    Ours,
    /// The same, in the context of the nats CLI.
    OursInContext,
    /// Whoever runs the server.
    Servers,
}

/// The parts of a login that can end. What cannot be read is for the connection
/// to say.
pub(super) fn logins(settings: &Settings) -> Vec<Ending> {
    let mut logins = Vec::new();
    if let (Login::Creds(creds), Ok(read)) = (&settings.login, read_login(&settings.login)) {
        let (what, whose) = match creds {
            Secret::File(path) => {
                let path = shown_name(&path.display().to_string());
                (format!("the user JWT in {path}"), Whose::Ours)
            }
            Secret::Text(_) => (format!("the user JWT {IN_CONTEXT}"), Whose::OursInContext),
        };
        logins.push(Ending { what, whose, at: read.expires() });
    }
    if let Some((path, _)) = &settings.tls.client
        && let Ok(der) = CertificateDer::from_pem_file(path)
    {
        let what = format!("the certificate {}", shown_name(&path.display().to_string()));
        logins.push(Ending { what, whose: Whose::Ours, at: not_after(&der) });
    }
    logins
}

fn missing(why: &str) -> Gap {
    Gap { kind: GapKind::NotMade, message: why.to_owned(), hint: None }
}

/// What is known before anything was tried.
pub(super) fn nothing_known(bucket: Bucket, probe: bool) -> Facts {
    Facts {
        bucket,
        connection: Err(missing("no connection to NATS")),
        account: Err(missing("no connection to NATS")),
        stream: Err(missing("no connection to NATS")),
        census: Err(missing("there is no usable bucket")),
        clock: None,
        logins: Vec::new(),
        now: OffsetDateTime::now_utc(),
        probe: probe.then(|| Err(missing("no connection to NATS"))),
    }
}

/// All that can be found out, in as few exchanges as possible.
/// Who is alive is counted where there is a `roll`.
pub(super) fn collect(
    mut registry: Registry,
    roll: Option<Roll<'_>>,
    signals: Option<&Signals>,
) -> Facts {
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
    if let Some(at) = session.certificate_ends() {
        let what = format!("the certificate of the server at {}", session.place());
        facts.logins.push(Ending { what, whose: Whose::Servers, at: Some(at) });
    }
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
    let [account, stream, scan] = registry.ask_anywhere(&[
        (ACCOUNT, Ask::Same(requests::account_info(&facts.bucket))),
        (LOOKING, Ask::Same(requests::stream_info(&facts.bucket))),
        (SCANNING, scan),
    ]);
    facts.account = account.map_err(gap).and_then(|answer| {
        replies::read_account_info(answer.message.data())
            .map_err(|error| gap(RegistryError::Reply(ACCOUNT, error)))
    });
    facts.stream = registry.take_info(LOOKING, stream).map_err(gap);
    let clock = registry.time();
    facts.clock = clock.map(|clock| OffsetDateTime::now_utc() - clock);

    if let Ok(Some(info)) = &facts.stream {
        let scan = scan.and_then(|answer| Scan::begun(&mut registry, consumer, &answer, info));
        facts.census = match (fitness::judge_kind(&facts.bucket, info), scan) {
            (Ok(()), scan) => scan.and_then(|scan| census(&mut registry, scan, roll)).map_err(gap),
            (Err(_), Ok(scan)) => {
                scan.end(&mut registry);
                facts.census
            }
            (Err(_), Err(_)) => facts.census,
        };
    }
    if let Some(signals) = signals {
        facts.probe = Some(match probe_is_possible(&facts, &server.version) {
            Err(why) => Err(missing(&why)),
            Ok(()) => probe(&mut registry, signals).map_err(|error| match error {
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

/// Counts the entries of the bucket.
fn census(
    registry: &mut Registry,
    mut scan: Scan,
    roll: Option<Roll<'_>>,
) -> Result<Census, RegistryError> {
    let clock = registry.clock().ok_or(RegistryError::NoClock)?;
    let mut census = Census::default();
    for wanted in roll.map_or(&[][..], |roll| roll.wanted) {
        census.alive.entry(wanted.service.as_str().to_owned()).or_default();
    }
    loop {
        match scan.next(registry) {
            Ok(Some(entry)) => {
                let now = clock.time(registry.boot_clock());
                census.count(&entry, now);
                if let Some(roll) = roll {
                    census.call(&entry, now, roll);
                }
            }
            Ok(None) => {
                scan.end(registry);
                return Ok(census);
            }
            Err(error) => {
                // If the server still answers, the consumer is removed now and
                // not by its own end.
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
        RegistryError::Request(
            _,
            RequestError::NoResponders | RequestError::NoDomain(_) | RequestError::NoJetStream,
        ) => GapKind::NoJetStream,
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
