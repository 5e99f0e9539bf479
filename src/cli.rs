//! Command line and environment into validated options.
//!
//! An option beats the environment, which beats the context, which beats the
//! host's file, which beats the default. Each message names the option, the
//! variable or the file, the value and the rule; what a file or the environment
//! says wrong exits 78, what the command line says wrong 64. Nothing is read
//! here but the context file and the host's.

mod arguments;
pub mod call;
#[cfg(test)]
mod completions;
pub mod context;
mod effective;
pub mod env_file;
mod host_file;
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
use std::path::Path;

use argh::FromArgs;

use self::arguments::{TopArgs, VerbArgs};
use self::host_file::{ENV_FILE, HostFile};
use self::options::{CheckOptions, Invocation, Verb};
use self::settings::Connection;
use self::sorting::{Sorted, add_missing, find_verb, is_global, sort};
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
    parse_with(args, env, host_name, Path::new(ENV_FILE))
}

/// The same with another place for the host's file, where `--env-file` names
/// none.
fn parse_with(
    args: &[OsString],
    env: &dyn Fn(&str) -> Option<OsString>,
    host_name: &dyn Fn() -> Option<String>,
    env_file: &Path,
) -> Result<Parsed, UsageError> {
    let lossy: Vec<String> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let verb = find_verb(&lossy);
    let verb_is_check = verb == Some("check");
    let mut reading = Reading { env, host_name, env_file, check: None };
    reading.parse(args, lossy).map_err(|failure| UsageError {
        check: reading.check.filter(|_| failure.kind() == Kind::Config).map(Box::new),
        failure: with_page(failure, verb),
        verb_is_check,
    })
}

/// Has a hint at the help name the page that has the option: the verb's own,
/// unless the message is about an option of the program.
fn with_page(failure: Failure, verb: Option<&str>) -> Failure {
    let message = failure.chain();
    let mut words = message.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let Some(verb) = verb.filter(|_| !words.any(is_global)) else { return failure };
    let all = usage("").hint().map(str::to_owned);
    failure.map_hint(|hint| match Some(hint) == all.as_deref() {
        true => format!("{PROGRAM} {verb} --help"),
        false => hint.to_owned(),
    })
}

/// What a call is read with.
struct Reading<'a> {
    env: &'a dyn Fn(&str) -> Option<OsString>,
    host_name: &'a dyn Fn() -> Option<String>,
    env_file: &'a Path,
    /// What was asked of `check`, as soon as it is known.
    check: Option<(CheckOptions, Bucket)>,
}

impl Reading<'_> {
    fn parse(&mut self, args: &[OsString], lossy: Vec<String>) -> Result<Parsed, Failure> {
        if let Some(broken) = args.iter().position(|arg| arg.to_str().is_none()) {
            return Err(usage(format!("{:?}: is not UTF-8", address::shown(&lossy[broken]))));
        }
        let (verb_name, mut global, mut own) = match sort(&lossy)? {
            Sorted::Version { long } => return Ok(Parsed::Print(version(long))),
            Sorted::Help(verb) => return Ok(Parsed::Print(help(verb))),
            Sorted::Call { verb, global, own } => (verb, global, own),
        };
        let env_file = global.iter().position(|word| word == "--env-file");
        let env_file = env_file.and_then(|at| global.get(at + 1));
        let host = match HostFile::read(env_file.map(String::as_str), self.env_file) {
            Ok(host) => host,
            Err(failure) => {
                self.check = self.check_without_host(verb_name, &global, &own);
                return Err(failure);
            }
        };
        let source = Source::new(self.env, &host);
        if verb_name == "cleanup" {
            add_cleanup_options(&source, &mut global, &mut own)?;
        }
        self.read(&source, &arguments(verb_name, &global, &own)?, verb_name)
    }

    /// What was asked of `check`, where the host's file cannot be used: it
    /// answers in the format that was asked for all the same.
    fn check_without_host(
        &self,
        verb_name: &str,
        global: &[String],
        own: &[String],
    ) -> Option<(CheckOptions, Bucket)> {
        let host = HostFile::none(self.env_file);
        let source = Source::new(self.env, &host);
        let top = arguments(verb_name, global, own).ok()?;
        let VerbArgs::Check(args) = &top.verb else { return None };
        let options = verbs::check(&source, args).ok()?;
        let bucket = settings::bucket(&source, &top);
        Some((options, bucket.unwrap_or_else(|_| Bucket::service_registry())))
    }

    fn read(
        &mut self,
        source: &Source<'_>,
        top: &TopArgs,
        verb_name: &str,
    ) -> Result<Parsed, Failure> {
        let mut verb = match &top.verb {
            VerbArgs::Run(args) => Verb::Run(Box::new(verbs::run(source, args, self.host_name)?)),
            VerbArgs::Init(args) => Verb::Init(verbs::init(source, args)?),
            VerbArgs::Check(args) => Verb::Check(verbs::check(source, args)?),
            VerbArgs::Cleanup(args) => Verb::Cleanup(verbs::cleanup(source, args)?),
            VerbArgs::List(args) => Verb::List(verbs::list(source, args)?),
            VerbArgs::Watch(args) => Verb::Watch(verbs::watch(source, args)?),
        };
        let connection = settings::connection(source, top);
        let Connection { mut settings, bucket, unconnected } = match connection {
            Ok(connection) => connection,
            Err(failure) => {
                if let Verb::Check(options) = verb {
                    let bucket = settings::bucket(source, top);
                    let bucket = bucket.unwrap_or_else(|_| Bucket::service_registry());
                    self.check = Some((options, bucket));
                }
                return Err(failure);
            }
        };
        settings.name = match &verb {
            Verb::Run(options) => format!("{PROGRAM} {}/{}", options.service, options.instance),
            _ => format!("{PROGRAM} {verb_name}"),
        };
        if let Verb::Run(options) = &mut verb {
            options.unconnected = unconnected.clone();
        }
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
        if let Verb::Run(options) = &mut verb
            && options.check_config.is_some()
        {
            let of_connection = (&settings, &bucket);
            options.check_config = Some(effective::of_run(source, options, of_connection));
        }
        if let Verb::Check(options) = &mut verb {
            options.origins = source.origins();
        }
        let verbose = top.verbose;
        Ok(Parsed::Run(Box::new(Invocation { settings, bucket, verbose, unconnected, verb })))
    }
}

fn arguments(verb: &str, global: &[String], own: &[String]) -> Result<TopArgs, Failure> {
    let (global, own) = (global.iter().map(String::as_str), own.iter().map(String::as_str));
    let words: Vec<&str> = global.chain([verb]).chain(own).collect();
    TopArgs::from_args(&[PROGRAM], &words)
        .map_err(|exit| usage(address::shown(&exit.output.trim().replace('\n', " "))))
}

/// `AEGIS_CLEANUP_OPTIONS` of the environment or the host's file: options for
/// those that were not given. The unit has them on its command line already;
/// the cron line of earlier versions ran them through a shell, and hosts rely
/// on a brake that they hold.
fn add_cleanup_options(
    source: &Source<'_>,
    global: &mut Vec<String>,
    own: &mut Vec<String>,
) -> Result<(), Failure> {
    let Some(given) = source.variable("AEGIS_CLEANUP_OPTIONS")? else {
        return Ok(());
    };
    let bad = |why: &str| Failure::new(given.kind, format!("{}: {why}", given.name));
    let words = shlex::split(&given.text).ok_or_else(|| bad("has a quote without its end"))?;
    let words: Vec<String> = ["cleanup".to_owned()].into_iter().chain(words).collect();
    match sort(&words).map_err(|failure| bad(&failure.chain()))? {
        Sorted::Call { global: more, own: more_own, .. } => {
            add_missing(global, more);
            add_missing(own, more_own);
            Ok(())
        }
        _ => Err(bad("must be options of cleanup")),
    }
}

/// `aegis-agent 1.4.2`, or `aegis-agent 1.4.2 (commit 0123456789ab)` where the
/// build knew it.
fn version(long: bool) -> String {
    let commit = option_env!("AEGIS_COMMIT").filter(|commit| long && !commit.is_empty());
    let commit = commit.map_or(String::new(), |commit| format!(" (commit {commit})"));
    format!("{PROGRAM} {}{commit}\n", env!("CARGO_PKG_VERSION"))
}

fn help(verb: Option<&'static str>) -> String {
    let words: Vec<&str> = verb.into_iter().chain(["--help"]).collect();
    match TopArgs::from_args(&[PROGRAM], &words) {
        Err(exit) => exit.output,
        Ok(_) => String::new(),
    }
}
