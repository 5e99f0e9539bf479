//! The completions under packaging/ for bash, zsh and fish, made from the same
//! structures as `--help`. *Pure*.
//!
//! What stands after an option follows from the name of its argument (`file`,
//! `command`: files), and from the table `WORDS` where it is one of a few words.
//! The scripts leave files to their shell, and expand nothing that was typed.

use argh_shared::{CommandInfoWithArgs, FlagInfo, FlagInfoKind, Optionality};

use super::sorting::{SERVER, TAKE_NAMES, VERBS};

/// Options with few good values: verb, option, words. A test holds the words
/// against what the verbs take.
pub(super) const WORDS: [(&str, &str, &[&str]); 8] = [
    ("init", "--replicas", &["1", "2", "3", "4", "5"]),
    ("init", "--marker-ttl", &["none"]),
    ("init", "--history", &["1"]),
    ("init", "--max-age", &["none"]),
    ("init", "--storage", &["file", "memory"]),
    ("check", "--format", &["text", "json", "nagios", "prometheus"]),
    (
        "cleanup",
        "--only",
        &["heartbeat-too-old", "status-unhealthy", "status-shutdown", "no-ttl", "expired"],
    ),
    ("list", "--status", &["ACTIVE", "STANDBY", "UNHEALTHY", "SHUTDOWN"]),
];
/// What stands in the place of a verb beside verbs.
const ASKING: [(&str, &str); 2] =
    [("help", "Shows what a verb takes."), ("version", "Prints the version with its commit.")];

/// What can stand after an option.
#[derive(Clone, Copy)]
enum Values {
    /// It is a switch.
    None,
    /// Whatever it is, there is nothing to propose.
    Any,
    Files,
    /// Contexts of the `nats` CLI.
    Contexts,
    Words(&'static [&'static str]),
}

struct Flag<'a> {
    short: Option<char>,
    long: &'a str,
    argument: &'a str,
    values: Values,
    repeats: bool,
    about: &'a str,
}

/// Of the program (`verb` is empty), or of a verb.
fn flags<'a>(verb: &str, infos: &[FlagInfo<'a>]) -> Vec<Flag<'a>> {
    let flag = |info: &FlagInfo<'a>| {
        let words = || WORDS.iter().find(|(of, name, _)| (*of, *name) == (verb, info.long));
        let (argument, values) = match info.kind {
            FlagInfoKind::Switch => ("", Values::None),
            FlagInfoKind::Option { arg_name } => (
                arg_name,
                match arg_name {
                    _ if info.long == "--context" => Values::Contexts,
                    "file" | "command" => Values::Files,
                    _ => words().map_or(Values::Any, |(_, _, words)| Values::Words(words)),
                },
            ),
        };
        Flag {
            short: info.short.or((info.long == "--help").then_some('h')),
            long: info.long,
            argument,
            values,
            repeats: matches!(info.optionality, Optionality::Repeating),
            // Variable and default are for --help.
            about: info.description.split(" (").next().unwrap_or_default(),
        }
    };
    infos.iter().map(flag).collect()
}

/// The program's own flags, and each verb with what it does and its flags.
type All<'a> = (Vec<Flag<'a>>, Vec<(&'a str, &'a str, Vec<Flag<'a>>)>);

fn all<'a>(top: &CommandInfoWithArgs<'a>) -> All<'a> {
    let verbs = top.commands.iter().map(|verb| {
        let infos = &verb.command.flags;
        let mut flags = flags(verb.name, infos);
        flags.retain(|flag| flag.long != "--help");
        (verb.name, verb.command.description, flags)
    });
    (flags("", top.flags), verbs.collect())
}

fn names<'a>(flag: &Flag<'a>) -> Vec<String> {
    let short = flag.short.map(|short| format!("-{short}"));
    short.into_iter().chain([flag.long.to_owned()]).collect()
}

/// Every option that takes a value, of whatever verb.
fn with_value(all: &All<'_>) -> Vec<String> {
    let (global, verbs) = all;
    let flags = global.iter().chain(verbs.iter().flat_map(|(_, _, flags)| flags));
    let mut list: Vec<String> =
        flags.filter(|flag| !matches!(flag.values, Values::None)).flat_map(names).collect();
    list.push(SERVER.to_owned());
    list.sort();
    list.dedup();
    list
}

const MADE: &str = "# Made by src/cli/completions.rs from what --help says; do not edit.\n";

/// Words are taken as they stand, never through `compgen -W` or unquoted: those
/// expand. For files it leaves the word to readline, which knows about quotes.
pub(super) fn bash(top: &CommandInfoWithArgs<'_>) -> String {
    let all = all(top);
    let (global, verbs) = &all;
    let mut cases = String::new();
    let mut case = |verb: &str, flag: &Flag<'_>| {
        let patterns: Vec<String> =
            names(flag).iter().map(|name| format!("{verb}\" {name}\"")).collect();
        let what = match flag.values {
            Values::None | Values::Any => return,
            Values::Files => "compopt -o default".to_owned(),
            Values::Contexts => "_aegis_agent_contexts".to_owned(),
            Values::Words(words) => format!("words=({})", words.join(" ")),
        };
        cases.push_str(&format!("        {}) {what} ;;\n", patterns.join(" | ")));
    };
    global.iter().for_each(|flag| case("*", flag));
    for (verb, _, flags) in verbs {
        flags.iter().for_each(|flag| case(verb, flag));
    }
    let list = |flags: &[Flag<'_>]| flags.iter().flat_map(names).collect::<Vec<_>>().join(" ");
    let verb_options = verbs.iter().map(|(verb, _, flags)| {
        format!("            {verb}) words=({} \"${{global[@]}}\") ;;\n", list(flags))
    });
    format!(
        r#"{MADE}
_aegis_agent() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} verb='' option='' joined='' word
    local -a words=() global=({global})
    COMPREPLY=()
    # bash takes words apart at = and :, and both stand in values, too.
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $word in
            [=:]*) [[ $option ]] || joined=yes; continue ;;
        esac
        if [[ $option || $joined ]]; then
            option='' joined=''
            continue
        fi
        case $word in
            {values}) option=$word ;;
            -*) ;;
            *) verb=${{verb:-$word}} ;;
        esac
    done
    if [[ $option && $cur == = ]]; then
        cur=''
    elif [[ $joined || $cur == [=:]* ]]; then
        return
    fi
    case "$verb $option" in
{cases}        *" -"*) ;;
        "help ") words=({verbs}) ;;
        " ") [[ $cur == -* ]] && words=("${{global[@]}}") || words=({verbs} {asking}) ;;
        *) case $verb in
{verb_options}        esac ;;
    esac
    for word in "${{words[@]}}"; do
        [[ $word == "$cur"* ]] && COMPREPLY+=("$word")
    done
}}

# Those of the nats CLI.
_aegis_agent_contexts() {{
    local file name
    for file in "${{XDG_CONFIG_HOME:-$HOME/.config}}"/nats/context/*.json; do
        name=${{file##*/}} name=${{name%.json}}
        [[ -e $file && $name == "$cur"* ]] && COMPREPLY+=("$(printf %q "$name")")
    done
}}

complete -F _aegis_agent aegis-agent
"#,
        global = list(global),
        values = with_value(&all).join(" | "),
        verbs = VERBS.join(" "),
        asking = ASKING.map(|(word, _)| word).join(" "),
        verb_options = verb_options.collect::<String>(),
    )
}

/// In single quotes, which bash and zsh share.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

pub(super) fn zsh(top: &CommandInfoWithArgs<'_>) -> String {
    let (global, verbs) = all(top);
    // A colon or a bracket ends a part of a specification.
    let escaped = |text: &str| text.replace(':', "\\:").replace('[', "\\[").replace(']', "\\]");
    let specs = |flags: &[Flag<'_>], indent: &str| -> String {
        let line = |flag: &Flag<'_>| {
            let argument = escaped(flag.argument);
            let value = match flag.values {
                Values::None => String::new(),
                Values::Any => format!(":{argument}: "),
                Values::Files => format!(":{argument}:_files"),
                Values::Contexts => ":context:_aegis-agent_contexts".to_owned(),
                Values::Words(words) => format!(":{argument}:({})", words.join(" ")),
            };
            let names = names(flag);
            // Both `--name value` and `--name=value`.
            let equals = if value.is_empty() { "" } else { "=" };
            let others = if flag.repeats { "*".into() } else { format!("({})", names.join(" ")) };
            let spec = |name: &String| {
                let text = format!("{others}{name}{equals}[{}]{value}", escaped(flag.about));
                format!("{indent}{}\n", quoted(&text))
            };
            names.iter().map(spec).collect::<String>()
        };
        flags.iter().map(line).collect()
    };
    let described = |pairs: &[(&str, &str)]| -> String {
        let line = |(name, what): &(&str, &str)| {
            format!("                {}\n", quoted(&format!("{name}:{}", escaped(what))))
        };
        pairs.iter().map(line).collect()
    };
    let pairs: Vec<(&str, &str)> = verbs.iter().map(|(name, what, _)| (*name, *what)).collect();
    // An action that shows a message and has no words would keep options out.
    let operands = |verb: &str| {
        if TAKE_NAMES.contains(&verb) { "                        '*:name:()'\n" } else { "" }
    };
    let cases = verbs.iter().map(|(name, _, flags)| {
        let own = specs(flags, "                        ") + operands(name);
        let (indent, deep) = (" ".repeat(16), " ".repeat(20));
        format!("{indent}{name})\n{deep}own=(\n{own}{deep})\n{deep};;\n")
    });
    format!(
        r#"#compdef aegis-agent
{MADE}
_aegis-agent() {{
    local curcontext=$curcontext state line ret=1
    local -A opt_args
    local -a verbs own global=(
{global}    )
    # Options after the verb are for the second call.
    _arguments -C -A '-*' $global '1: :->verb' '*:: :->rest' && ret=0
    case $state in
        verb)
            verbs=(
{pairs}{asking}            )
            _describe -t commands verb verbs && ret=0
            ;;
        rest)
            case $line[1] in
{cases}                help)
                    _arguments '1:verb:({names})' && ret=0
                    return ret
                    ;;
                *)
                    return ret
                    ;;
            esac
            curcontext=${{curcontext%:*:*}}:aegis-agent-$line[1]:
            _arguments $own $global && ret=0
            ;;
    esac
    return ret
}}

# Those of the nats CLI.
_aegis-agent_contexts() {{
    local -a contexts=(${{XDG_CONFIG_HOME:-$HOME/.config}}/nats/context/*.json(N:t:r))
    compadd "$@" -a contexts
}}

_aegis-agent "$@"
"#,
        global = specs(&global, "        "),
        pairs = described(&pairs),
        asking = described(&ASKING),
        cases = cases.collect::<String>(),
        names = VERBS.join(" "),
    )
}

/// Only what fish 3.6 (Debian 12) knows; `commandline -x` is younger.
pub(super) fn fish(top: &CommandInfoWithArgs<'_>) -> String {
    let all = all(top);
    let (global, verbs) = &all;
    let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    let mut lines = String::new();
    let mut line = |condition: Option<&str>, rest: &str| {
        let condition =
            condition.map_or(String::new(), |verb| format!(" -n '__aegis_agent_verb {verb}'"));
        lines.push_str(&format!("complete -c aegis-agent{condition} {rest}\n"));
    };
    let option = |flag: &Flag<'_>| {
        let short = flag.short.map_or(String::new(), |short| format!("-s {short} "));
        let values = match flag.values {
            Values::None => String::new(),
            Values::Any => "-x ".to_owned(),
            Values::Files => "-r -F ".to_owned(),
            Values::Contexts => "-x -a '(__aegis_agent_contexts)' ".to_owned(),
            Values::Words(words) => format!("-x -a '{}' ", words.join(" ")),
        };
        format!("{short}-l {} {values}-d {}", &flag.long[2..], quoted(flag.about))
    };
    for (name, what) in verbs.iter().map(|(name, what, _)| (*name, *what)).chain(ASKING) {
        line(Some("\"\""), &format!("-a {name} -d {}", quoted(what)));
    }
    line(Some("help"), &format!("-a '{}'", VERBS.join(" ")));
    for flag in global {
        line(None, &option(flag));
    }
    for (verb, _, flags) in verbs {
        for flag in flags {
            line(Some(verb), &option(flag));
        }
    }
    format!(
        r#"{MADE}
# Whether the verb on the line so far is this one, or none where it is empty.
function __aegis_agent_verb
    set -l verb
    set -l is_value no
    for word in (commandline -opc)[2..-1]
        if test $is_value = yes
            set is_value no
        else if contains -- $word {values}
            set is_value yes
        else if not string match -q -- '-*' $word; and test -z "$verb"
            set verb $word
        end
    end
    test "$verb" = "$argv[1]"
end

# Those of the nats CLI.
function __aegis_agent_contexts
    set -l directory $HOME/.config
    set -q XDG_CONFIG_HOME; and test -n "$XDG_CONFIG_HOME"; and set directory $XDG_CONFIG_HOME
    for file in $directory/nats/context/*.json
        string replace -r '.*/(.*)\.json$' '$1' -- $file
    end
end

complete -c aegis-agent -f
{lines}"#,
        values = with_value(&all).join(" "),
    )
}
