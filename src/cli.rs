//! Command line and environment into validated options.
//!
//! An option beats the environment, which beats the context, which beats the
//! default. Each message names the option or the variable, the value and the
//! rule; what a file or the environment says wrong exits 78, what the command
//! line says wrong 64. Nothing is read here but the context file.

mod arguments;
pub mod context;
pub mod options;
#[cfg(test)]
mod pages;
mod settings;
mod sorting;
#[cfg(test)]
mod tests;
mod values;
mod verbs;

use std::ffi::OsString;

use argh::FromArgs;

use self::arguments::{TopArgs, VerbArgs};
use self::options::{CheckOptions, Invocation, Verb};
use self::sorting::{Sorted, find_verb, sort};
use self::values::{PROGRAM, Source, usage};
use crate::error::{Failure, Kind};
use crate::jetstream::bucket::Bucket;
use crate::nats::address;

/// What to do.
#[derive(Debug)]
pub enum Parsed {
    /// Run a verb.
    Run(Box<Invocation>),
    /// Print this on standard output: help or version.
    Print(String),
}

/// A call that cannot be carried out.
#[derive(Debug)]
pub struct UsageError {
    /// What is wrong with it.
    pub failure: Failure,
    /// `check` has an exit code of its own for that.
    pub verb_is_check: bool,
    /// What was asked of `check`, where its own options are right: it answers
    /// in the format that was asked for whatever the settings are.
    pub check: Option<Box<(CheckOptions, Bucket)>>,
}

/// Parses a call. `args` are without the program's name; `env` looks a variable
/// up; `host_name` is the default instance.
pub fn parse(
    args: &[OsString],
    env: &dyn Fn(&str) -> Option<OsString>,
    host_name: &dyn Fn() -> Option<String>,
) -> Result<Parsed, UsageError> {
    let lossy: Vec<String> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let verb_is_check = find_verb(&lossy) == Some("check");
    let mut check = None;
    parse_call(args, lossy, env, host_name, &mut check).map_err(|failure| UsageError {
        check: check.filter(|_| failure.kind() == Kind::Config).map(Box::new),
        failure,
        verb_is_check,
    })
}

fn parse_call(
    args: &[OsString],
    lossy: Vec<String>,
    env: &dyn Fn(&str) -> Option<OsString>,
    host_name: &dyn Fn() -> Option<String>,
    check: &mut Option<(CheckOptions, Bucket)>,
) -> Result<Parsed, Failure> {
    if let Some(broken) = args.iter().position(|arg| arg.to_str().is_none()) {
        return Err(usage(format!("{:?}: is not UTF-8", address::shown(&lossy[broken]))));
    }
    let (verb_name, global, own) = match sort(&lossy)? {
        Sorted::Version => {
            return Ok(Parsed::Print(format!("{PROGRAM} {}\n", env!("CARGO_PKG_VERSION"))));
        }
        Sorted::Help(verb) => return Ok(Parsed::Print(help(verb))),
        Sorted::Call { verb, global, own } => (verb, global, own),
    };
    let words: Vec<&str> = global.iter().map(String::as_str).chain([verb_name]).collect();
    let words: Vec<&str> = words.into_iter().chain(own.iter().map(String::as_str)).collect();
    let top = TopArgs::from_args(&[PROGRAM], &words)
        .map_err(|exit| usage(address::shown(&exit.output.trim().replace('\n', " "))))?;
    let source = Source { env };
    let mut verb = match &top.verb {
        VerbArgs::Run(args) => Verb::Run(verbs::run(&source, args, host_name)?),
        VerbArgs::Init(args) => Verb::Init(verbs::init(args)?),
        VerbArgs::Check(args) => Verb::Check(verbs::check(args)?),
        VerbArgs::Cleanup(args) => Verb::Cleanup(verbs::cleanup(args)?),
        VerbArgs::List(args) => Verb::List(verbs::list(args)?),
        VerbArgs::Watch(args) => Verb::Watch(verbs::watch(&source, args)?),
    };
    let (mut settings, bucket) = match settings::connection(&source, &top) {
        Ok(both) => both,
        Err(failure) => {
            if let Verb::Check(options) = verb {
                let bucket = settings::bucket(&source, &top);
                *check = Some((options, bucket.unwrap_or_else(|_| Bucket::service_registry())));
            }
            return Err(failure);
        }
    };
    settings.name = match &verb {
        Verb::Run(options) => format!("{PROGRAM} {}/{}", options.service, options.instance),
        _ => format!("{PROGRAM} {verb_name}"),
    };
    if let Verb::Run(options) = &mut verb
        && top
            .nats_url
            .as_deref()
            .is_some_and(|url| url.split(',').any(|one| address::redact(one) != one))
    {
        options.warnings.push(
            "the login in --nats-url can be read by every user of this host (ps): put the URL into \
             NATS_URL, or use --creds, --user with --password-file, or --token-file"
                .into(),
        );
    }
    Ok(Parsed::Run(Box::new(Invocation { settings, bucket, verbose: top.verbose, verb })))
}

fn help(verb: Option<&'static str>) -> String {
    let words: Vec<&str> = verb.into_iter().chain(["--help"]).collect();
    match TopArgs::from_args(&[PROGRAM], &words) {
        Err(exit) => exit.output,
        Ok(_) => String::new(),
    }
}
