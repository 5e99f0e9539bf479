//! Puts the arguments in order before argh sees them. *Pure*.
//!
//! Of an option or a verb that nobody knows it says which one was perhaps meant.
//! That costs 25 lines, and is worth them: there are dozens of options, and who
//! calls by hand is often in trouble.

use super::values::usage;
use crate::error::Failure;
use crate::nats::address::shown;

pub(super) const VERBS: [&str; 6] = ["run", "init", "check", "cleanup", "list", "watch"];

/// Verbs that take names beside options.
pub(super) const TAKE_NAMES: [&str; 2] = ["list", "watch"];

/// Options of the connection and the bucket that take a value.
pub(super) const GLOBAL: [&str; 16] = [
    "-s",
    "--nats-url",
    "--creds",
    "--nkey",
    "--user",
    "--password-file",
    "--token-file",
    "--tlsca",
    "--tlscert",
    "--tlskey",
    "--context",
    "--inbox-prefix",
    "--timeout",
    "--bucket",
    "--js-domain",
    "--env-file",
];
/// Another word for `--nats-url`: the one of the `nats` CLI.
pub(super) const SERVER: &str = "--server";

/// Options with a value that may be given more than once, of any verb or of one.
const REPEATABLE: [(Option<&str>, &str); 3] =
    [(None, "--meta"), (None, "--only"), (Some("check"), "--service")];
/// Words in the place of a verb that ask for something to be printed.
const HELP: &str = "help";
const VERSION: &str = "version";
pub(super) const GLOBAL_SWITCHES: [&str; 2] = ["-v", "--verbose"];

/// Whether this is an option of the program, and not of one verb.
pub(super) fn is_global(name: &str) -> bool {
    GLOBAL.contains(&name) || GLOBAL_SWITCHES.contains(&name) || name == SERVER
}

/// What each verb takes: options with a value, and switches.
pub(super) fn options_of(verb: &str) -> (&'static [&'static str], &'static [&'static str]) {
    match verb {
        "run" => (
            &[
                "--service",
                "--instance",
                "--service-version",
                "--ttl",
                "--interval",
                "--group",
                "--meta",
                "--health-exec",
                "--health-tcp",
                "--health-timeout",
                "--health-failures",
                "--metrics-file",
                "--drain-file",
            ],
            &["--standby", "--check-config"],
        ),
        "init" => (&["--replicas", "--marker-ttl", "--history", "--max-age", "--storage"], &[]),
        "check" => (&["--service", "--format", "--output"], &["--probe", "--json"]),
        "cleanup" => (
            &["--stale-after", "--only", "--service", "--max-removals"],
            &["--dry-run", "--unreadable", "--spare-beating", "--json"],
        ),
        "list" => (
            &["--service", "--status", "--meta", "--stale-after"],
            &["--all", "--wide", "--names", "--json"],
        ),
        _ => (&["--exec", "--settle", "--stale-after"], &["--json"]),
    }
}

/// Arguments sorted out: argh knows neither `--name=value` nor options of the
/// program after the verb.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sorted {
    /// With the commit, where `long`.
    Version {
        long: bool,
    },
    Help(Option<&'static str>),
    Call {
        verb: &'static str,
        global: Vec<String>,
        own: Vec<String>,
    },
}

/// The first thing that is wrong is the error; help and version go before.
pub(super) fn sort(args: &[String]) -> Result<Sorted, Failure> {
    if let Some(asked) = asked_for(args) {
        return asked;
    }
    let verb = find_verb(args);
    let (own_values, own_switches) = verb.map_or((&[][..], &[][..]), options_of);
    let (mut global, mut own, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    let (mut help, mut version, mut verb_seen) = (false, false, false);
    let mut given = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let (name, inline) = match arg.split_once('=') {
            Some((name, value)) if name.starts_with('-') => (name, Some(value.to_owned())),
            _ => (arg.as_str(), None),
        };
        let name = if name == SERVER { "--nats-url" } else { name };
        let is_global = GLOBAL.contains(&name);
        if is_global || own_values.contains(&name) {
            let Some(value) = inline.or_else(|| rest.next().cloned()) else {
                errors.push(format!("{name} needs a value"));
                continue;
            };
            // argh would say so with the value, which may be a secret.
            let long = if name == "-s" { "--nats-url" } else { name };
            let is_repeatable = REPEATABLE
                .iter()
                .any(|(of, option)| *option == long && of.is_none_or(|of| verb == Some(of)));
            if given.contains(&long) && !is_repeatable {
                errors.push(format!("{long} is given twice"));
            }
            given.push(long);
            let list = if is_global { &mut global } else { &mut own };
            list.extend([name.to_owned(), value]);
        } else if matches!(name, "-h" | "--help") {
            help = true;
        } else if matches!(name, "-V" | "--version") {
            version = true;
        } else if GLOBAL_SWITCHES.contains(&name) || own_switches.contains(&name) {
            if inline.is_some() {
                errors.push(format!("{name} takes no value"));
            }
            let is_global = GLOBAL_SWITCHES.contains(&name);
            if is_global { &mut global } else { &mut own }.push(name.to_owned());
        } else if name.starts_with('-') && name.len() > 1 {
            errors.push(unknown_option(name, verb));
        } else if !verb_seen && verb == Some(name) {
            verb_seen = true;
        } else if verb.is_none() {
            errors.push(unknown_verb(arg));
        } else if verb.is_some_and(|verb| TAKE_NAMES.contains(&verb)) {
            own.push(arg.clone());
        } else {
            errors.push(format!("{:?}: an argument that belongs to no option", shown(arg)));
        }
    }
    if version {
        return Ok(Sorted::Version { long: false });
    }
    if help {
        return Ok(Sorted::Help(verb));
    }
    if let Some(error) = errors.into_iter().next() {
        return Err(usage(error));
    }
    match verb {
        Some(verb) => Ok(Sorted::Call { verb, global, own }),
        None => Err(usage(format!("no verb: give one of {}", VERBS.join(", ")))),
    }
}

/// `help`, `help VERB` and `version`: nothing else may stand beside them.
fn asked_for(args: &[String]) -> Option<Result<Sorted, Failure>> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    Some(match words[..] {
        [VERSION] => Ok(Sorted::Version { long: true }),
        [HELP] => Ok(Sorted::Help(None)),
        [HELP, word] => match VERBS.into_iter().find(|verb| *verb == word) {
            Some(verb) => Ok(Sorted::Help(Some(verb))),
            None => Err(usage(unknown_verb(word))),
        },
        [first @ (HELP | VERSION), ..] => Err(usage(format!(
            "{first} takes {}",
            if first == HELP { "one verb" } else { "nothing" }
        ))),
        _ => return None,
    })
}

/// Adds those options of `cleanup` and of the connection that are not there
/// yet, with their values. Both lists are sorted ones.
pub(super) fn add_missing(options: &mut Vec<String>, more: Vec<String>) {
    let long = |name: &str| if name == "-s" { "--nats-url".to_owned() } else { name.to_owned() };
    let takes_value =
        |name: &str| GLOBAL.contains(&name) || options_of("cleanup").0.contains(&name);
    let names = |list: &[String]| {
        let mut names = Vec::new();
        let mut rest = list.iter();
        while let Some(name) = rest.next() {
            names.push(long(name));
            if takes_value(name) {
                rest.next();
            }
        }
        names
    };
    let there = names(options);
    let mut rest = more.into_iter();
    while let Some(name) = rest.next() {
        let value = if takes_value(&name) { rest.next() } else { None };
        if !there.contains(&long(&name)) {
            options.push(name);
            options.extend(value);
        }
    }
}

/// The first argument that is neither an option nor the value of one.
pub(super) fn find_verb(args: &[String]) -> Option<&'static str> {
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if GLOBAL.contains(&arg.as_str()) || arg == SERVER {
            rest.next();
        } else if !arg.starts_with('-') {
            return VERBS.into_iter().find(|verb| verb == arg);
        }
    }
    None
}

fn unknown_verb(word: &str) -> String {
    let verbs = VERBS.join(", ");
    let near = nearest(word, VERBS.into_iter());
    let word = shown(word);
    match near {
        Some(verb) => format!("{word:?} is no verb: did you mean {verb}? ({verbs})"),
        None => format!("{word:?} is no verb: give one of {verbs}"),
    }
}

fn unknown_option(name: &str, verb: Option<&'static str>) -> String {
    let (values, switches) = verb.map_or((&[][..], &[][..]), options_of);
    let all = GLOBAL.iter().chain(&GLOBAL_SWITCHES).chain(values).chain(switches);
    let of = verb.map_or(String::new(), |verb| format!(" of {verb}"));
    let near = nearest(name, all.copied());
    let name = shown(name);
    match near {
        Some(near) => format!("{name} is no option{of}: did you mean {near}?"),
        None => format!("{name} is no option{of}"),
    }
}

/// The candidate within two typing errors, if there is one.
fn nearest(word: &str, candidates: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let alike = |c: &&str| c.len() > 2 && c.len().abs_diff(word.len()) <= 2;
    let near = candidates.filter(alike).map(|c| (distance(word, c), c));
    near.filter(|(far, _)| *far <= 2).min().map(|(_, c)| c)
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}
