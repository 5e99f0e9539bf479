//! The program: parse, run the verb, print, exit code.

use std::ffi::OsString;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::process::ExitCode;

use aegis_agent::cli::call::Call;
use aegis_agent::cli::options::{Invocation, Verb};
use aegis_agent::cli::{self, Parsed};
use aegis_agent::commands;
use aegis_agent::commands::cleanup::report::Console;
use aegis_agent::error::{Failure, Kind, written};
use aegis_agent::nats::failure::NO_CONNECTION;
use aegis_agent::system::logging::{self, Style};
use aegis_agent::system::{systemd, textwriter};

/// `check` says UNKNOWN where the other verbs say what is wrong with the call.
const CHECK_UNKNOWN: u8 = 3;
/// What a pipe holds: so much of an answer is written at a time.
const PIPE_SIZE: usize = 64 << 10;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let helps = textwriter::write_if_asked(&args);
    if let Some(code) = helps.or_else(|| commands::run::drain::look_if_asked(&args)) {
        return code;
    }
    let env = |name: &str| std::env::var_os(name);
    match cli::parse(&args, &env, &host_name) {
        Ok(Parsed::Print(text)) => {
            let mut out = io::stdout();
            match written(out.write_all(text.as_bytes()).and_then(|()| out.flush())) {
                Ok(()) => ExitCode::SUCCESS,
                Err(failure) => {
                    logging::start(Style { journal: in_journal(), ..Style::default() });
                    exit(&failure, false)
                }
            }
        }
        Ok(Parsed::Run(invocation)) => {
            let check = matches!(invocation.verb, Verb::Check(_));
            let stays = matches!(invocation.verb, Verb::Run(_));
            logging::start(Style {
                verbose: invocation.verbose,
                journal: in_journal(),
                times: stays && !is_terminal(),
                stays,
            });
            let unconnected = invocation.unconnected.clone();
            let call = Call::of(&invocation.settings, &invocation.bucket);
            match run(*invocation, &|| read_anew(&args)) {
                Ok(code) => code,
                Err(failure) => {
                    let failure = failure.map_hint(|hint| call.complete(hint));
                    exit(&failure.with_note(NO_CONNECTION, unconnected), check)
                }
            }
        }
        Err(error) => {
            logging::start(Style { journal: in_journal(), ..Style::default() });
            let Some((options, bucket)) = error.check.map(|check| *check) else {
                if error.verb_is_check && asks_for_nagios(&args) {
                    // Monitoring reads the first line of stdout and nothing else.
                    let line = commands::check::report::nagios_usage(&error.failure.chain());
                    let _ = io::stdout().write_all(line.as_bytes());
                }
                return exit(&error.failure, error.verb_is_check);
            };
            let mut out = BufWriter::new(io::stdout().lock());
            match commands::check::run_without(&options, &error.failure, bucket, &mut out) {
                Ok(code) => ExitCode::from(code),
                Err(failure) => exit(&failure, true),
            }
        }
    }
}

/// Whether the arguments, wrong as they are, ask for a plug-in's answer.
fn asks_for_nagios(args: &[OsString]) -> bool {
    let pairs = args.iter().zip(args.iter().skip(1));
    args.iter().any(|arg| arg == "--format=nagios")
        || pairs.into_iter().any(|(name, value)| name == "--format" && value == "nagios")
}

/// The same call again, with the files and the environment of now.
fn read_anew(args: &[OsString]) -> Result<Invocation, Failure> {
    let fresh = systemd::reloaded_environment();
    let env = |name: &str| match &fresh {
        Some(fresh) => fresh.get(name).cloned(),
        None => std::env::var_os(name),
    };
    match cli::parse(args, &env, &host_name) {
        Ok(Parsed::Run(invocation)) => Ok(*invocation),
        Ok(Parsed::Print(_)) => Err(Failure::new(Kind::Usage, "no verb")),
        Err(error) => Err(error.failure),
    }
}

fn run(invocation: Invocation, anew: &commands::run::Anew<'_>) -> Result<ExitCode, Failure> {
    let Invocation { settings, bucket, verb, verbose, unconnected } = invocation;
    let loud = verbose || io::stdout().is_terminal();
    // Not for `run`, which says little and stays.
    let buffered = || BufWriter::with_capacity(PIPE_SIZE, io::stdout().lock());
    match verb {
        Verb::Run(options) => {
            let (host, mut out) = (host_name().unwrap_or_default(), io::stdout().lock());
            commands::run::run(*options, settings, bucket, &host, anew, &mut out)?;
        }
        Verb::List(options) => {
            let mut stderr = io::stderr();
            // What counts is no part of what a pipe is given.
            let footer: Option<&mut dyn Write> =
                if io::stdout().is_terminal() { None } else { Some(&mut stderr) };
            commands::list::run(&options, settings, bucket, &mut buffered(), footer)?;
        }
        Verb::Watch(options) => commands::watch::run(options, settings, bucket, unconnected)?,
        Verb::Init(options) => commands::init::run(&options, settings, bucket, &mut buffered())?,
        Verb::Check(options) => {
            let out = &mut buffered();
            let code = commands::check::run(&options, settings, bucket, unconnected, out)?;
            return Ok(ExitCode::from(code));
        }
        Verb::Cleanup(options) => {
            let mut stderr = io::stderr();
            let progress: Option<&mut dyn Write> =
                if is_terminal() { Some(&mut stderr) } else { None };
            let console = Console { out: &mut buffered(), loud, progress };
            commands::cleanup::run(options, settings, bucket, console)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what went wrong and what to do next, and chooses the exit code. A
/// reader that went away (`list | head -1`) is no failure.
fn exit(failure: &Failure, check: bool) -> ExitCode {
    if failure.is_broken_pipe() {
        return ExitCode::SUCCESS;
    }
    log::error!(target: "aegis_agent", "{}", failure.chain());
    if let Some(hint) = failure.hint() {
        log::info!(target: "aegis_agent", "hint: {hint}");
    }
    ExitCode::from(if check { CHECK_UNKNOWN } else { failure.exit_code() })
}

fn host_name() -> Option<String> {
    let name = rustix::system::uname();
    let name = name.nodename().to_str().ok()?;
    (!name.is_empty()).then(|| name.to_owned())
}

fn in_journal() -> bool {
    std::env::var_os("JOURNAL_STREAM").is_some_and(|stream| !stream.is_empty())
}

fn is_terminal() -> bool {
    io::stderr().is_terminal()
}
