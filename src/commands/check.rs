//! `check`: does TTL really work here, and if not, why?
//!
//! `facts` collects, `judge` judges, `report` renders: here they are put
//! together, and written where the answer was asked for. Nothing is written to
//! the registry without `--probe`.

pub mod census;
pub mod facts;
pub mod judge;
pub mod report;
pub mod row;

use std::io::{self, IsTerminal, Write};
use std::rc::Rc;

use self::census::Roll;
use self::facts::{Facts, Gap, GapKind, collect, nothing_known};
use self::row::Row;
use crate::cli::call::Call;
use crate::cli::options::{CheckOptions, Format};
use crate::error::{Failure, Kind, noted, written};
use crate::jetstream::bucket::Bucket;
use crate::nats::address::shown_name;
use crate::nats::{Connector, Settings};
use crate::registry::Registry;
use crate::system::signals::Signals;
use crate::system::textfile;
use crate::text::printable::printable;

/// Writes the report to `out`, or to the file that was asked for, and returns
/// the exit code. `unconnected` is what may be the reason where no connection
/// comes about.
pub fn run(
    options: &CheckOptions,
    settings: Settings,
    bucket: Bucket,
    unconnected: Option<String>,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    // SIGTERM and SIGINT must not leave the probe's entry in the bucket.
    let signals = if options.probe { Some(Rc::new(Signals::take()?)) } else { None };
    let call = Call::of(&settings, &bucket);
    let logins = facts::logins(&settings);
    let mut connector = Connector::new(settings);
    if let Some(signals) = &signals {
        connector = connector.with_waiter(signals.clone());
    }
    let needs_roll = options.format == Format::Prometheus || !options.services.is_empty();
    let roll = Roll { stale_after: options.stale_after, wanted: &options.services };
    let registry = Registry::new(connector, bucket);
    let mut facts = collect(registry, needs_roll.then_some(roll), signals.as_deref());
    if let (Err(gap), Some(note)) = (&mut facts.connection, unconnected) {
        gap.hint = Some(noted(gap.hint.take(), note));
    }
    facts.logins.splice(..0, logins);
    answer(options, &facts, &call, out)
}

/// The same for a call whose settings are bad: nothing was tried, and why is a
/// whole report, too.
pub fn run_without(
    options: &CheckOptions,
    failure: &Failure,
    bucket: Bucket,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let hint = failure.hint().unwrap_or("correct the setting, or give another one");
    let mut facts = nothing_known(bucket, options.probe);
    facts.connection =
        Err(Gap { kind: GapKind::Denied, message: failure.chain(), hint: Some(hint.to_owned()) });
    answer(options, &facts, &Call::default(), out)
}

fn answer(
    options: &CheckOptions,
    facts: &Facts,
    call: &Call,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let mut checks = judge::judge(facts, &options.services);
    // A command that goes to another place must not get the options of this
    // call.
    let hinted = checks.iter_mut().filter(|check| check.name != "connection");
    for hint in hinted.filter_map(|check| check.hint.as_mut()) {
        *hint = printable(&call.complete(hint));
    }
    if let (Some(connection), false) = (checks.first_mut(), options.origins.is_empty()) {
        let origins = printable(&options.origins.join(", "));
        connection.message.push_str(&format!("; settings from {origins}"));
    }
    let text = render(options.format, facts, &checks);
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

fn render(format: Format, facts: &Facts, checks: &[Row]) -> String {
    let bucket = &facts.bucket;
    match format {
        Format::Text => report::text(bucket, checks, wants_colour()),
        Format::Json => report::json(checks),
        Format::Nagios => report::nagios(bucket, checks),
        Format::Prometheus => report::prometheus(bucket, checks, facts.census.as_ref().ok()),
    }
}

/// On a terminal that knows colours, unless <https://no-color.org> is set.
fn wants_colour() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    io::stdout().is_terminal() && !set("NO_COLOR") && !dumb
}
