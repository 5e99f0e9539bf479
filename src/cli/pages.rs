//! The man pages and completions under packaging/, made from the same
//! structures as `--help`, so that they cannot drift from it.
//!
//! The tests compare; `AEGIS_WRITE_PAGES=1 cargo test --lib cli::pages` writes
//! them. What a page says beyond the options stands in here.

use std::path::{Path, PathBuf};

use argh::ArgsInfo;
use argh_shared::{CommandInfoWithArgs, FlagInfo, FlagInfoKind};

use super::arguments::TopArgs;
use super::completions;
use super::help;
use super::sorting::{GLOBAL, GLOBAL_SWITCHES, VERBS, options_of};

/// Text as roff takes it.
fn roff(text: &str) -> String {
    let safe = text.replace('\\', "\\e").replace('-', "\\-");
    if safe.starts_with(['.', '\'']) { format!("\\&{safe}") } else { safe }
}

fn options(flags: &[FlagInfo<'_>]) -> String {
    let mut text = String::new();
    // `-h`, `--help` stand in the page once.
    for flag in flags.iter().filter(|flag| flag.long != "--help") {
        let mut names = String::new();
        if let Some(short) = flag.short {
            names.push_str(&format!("\\fB\\-{short}\\fR, "));
        }
        names.push_str(&format!("\\fB{}\\fR", roff(flag.long)));
        if let FlagInfoKind::Option { arg_name } = flag.kind {
            names.push_str(&format!(" \\fI{}\\fR", roff(&arg_name.to_uppercase())));
        }
        text.push_str(&format!(".TP\n{names}\n{}\n", roff(flag.description)));
    }
    text
}

fn verb(name: &str) -> String {
    let top = TopArgs::get_args_info();
    let verb = top.commands.iter().find(|verb| verb.name == name).expect("one of the verbs");
    let mut text = format!(".SS {name}\n{}\n", roff(verb.command.description));
    for note in verb.command.notes {
        let note = note.split("The options for connection").next().unwrap_or_default();
        text.push_str(&format!(
            ".PP\n{}\n",
            note.trim().lines().map(roff).collect::<Vec<_>>().join("\n")
        ));
    }
    let text = text.trim_end_matches(".PP\n\n").to_owned();
    text + &options(verb.command.flags)
}

fn page(section: u8, title: &str, body: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let body = body.trim_start();
    format!(
        ".\\\" Made by src/cli/pages.rs from what --help says; do not edit.\n\
         .TH AEGIS\\-AGENT {section} \"\" \"aegis\\-agent {version}\" \"{title}\"\n{body}"
    )
}

/// There is one page; this is where those look who expect a user's command.
const SECTION_1: &str = ".so man8/aegis-agent.8\n";

/// The blocks of docs/permissions.md, which tests put into a server's
/// configuration: the same subjects, verb by verb.
fn permissions() -> String {
    let document = include_str!("../../docs/permissions.md");
    let mut text = String::new();
    for verb in VERBS {
        let marker = format!("<!-- permissions: {verb} -->\n");
        let Some((_, block)) = document.split_once(&marker) else { continue };
        let block = block.split("\n}").next().unwrap_or_default();
        let subjects = block.lines().map(str::trim).filter(|line| line.starts_with('"'));
        // What can be left out stands in parentheses; the inbox is said once.
        let subjects = subjects.filter(|line| !line.contains("_INBOX")).map(|line| {
            let subject = roff(line.split('"').nth(1).unwrap_or_default());
            if line.contains("# optional:") { format!("({subject})") } else { subject }
        });
        let subjects = subjects.collect::<Vec<_>>().join("\n.br\n");
        text.push_str(&format!(".TP\n.B {verb}\n{subjects}\n"));
    }
    assert!(text.matches(".TP").count() > 4, "{text}");
    text
}

fn section_8() -> String {
    let top = TopArgs::get_args_info();
    let body = format!(
        r"
.SH NAME
aegis\-agent \- keep a service registry in NATS up to date
.SH SYNOPSIS
.B aegis\-agent run \-\-service
.I NAME
.RI [ options ]
.br
{synopsis}.SH DESCRIPTION
A service registry is a bucket of the key\-value store of NATS JetStream, in
which each running instance of a service has an entry that expires unless it is
refreshed.
.B run
registers one instance, refreshes its entry and takes it out when told to stop.
The other verbs prepare, check, list, watch and clean the bucket.
.PP
Options of the connection and the bucket stand before or after the verb. An
option beats its environment variable (in parentheses), which beats the named
context of the nats CLI, which beats the same variable in the file of
.BR \-\-env\-file ,
which beats the default.
.B \-\-server
is another word for
.BR \-\-nats\-url .
A duration is written 10s, 500ms, 1m or as a number of seconds. The answer goes
to standard output, everything else to standard error.
.SH VERBS
{verbs}.SH OPTIONS
{global}.TP
\fB\-h\fR, \fB\-\-help\fR
show what a verb takes
.SH SYSTEMD
.B aegis\-agent@orders\-api.service
speaks for
.BR orders\-api.service :
it starts with it and stops before it. Enable it once:
.PP
.nf
systemctl enable \-\-now aegis\-agent@orders\-api.service
.fi
.PP
.B aegis\-agent.service
speaks for a service that is no unit of this host.
.B aegis\-agent\-cleanup.timer
cleans every five minutes, and leaves every entry alone that beats.
.B aegis\-agent\-check.timer
writes /run/aegis\-agent\-check/aegis\-agent.prom every minute. Nothing is enabled
by the package.
.PP
.B systemctl status
shows in words what an agent is doing; times of day in it are UTC. It is ready
with its first acknowledgement, or after 10s without one.
.B systemctl reload
reads environment files and the files that they name anew, without the entry
disappearing; service, instance and bucket need a restart, and so does what
came by LoadCredential=.
.SH HEALTH
The checks of
.B \-\-health\-exec
and
.B \-\-health\-tcp
run before each heartbeat and delay none. Where both are given, both have to
pass. A command is split into words as a shell would, but no shell runs it. It
passes if it exits 0 in time; if it is late it is killed with its process group.
Its output is thrown away. Its environment is PATH, HOME, USER, LOGNAME, SHELL,
LANG, LC_ALL and TZ, and HEALTH_CHECK_OF with the process number of the agent.
What it leaves running is killed.
Under systemd it runs in the sandbox of the agent.
.SH METRICS
The file of
.B \-\-metrics\-file
is Prometheus text, replaced whole when the state changes, and otherwise once an
interval. Labels: service, instance_id, bucket.
{metrics}.PP
.B check \-\-format prometheus
writes what it found, for the textfile collector of node_exporter; the label
bucket is on each line. What a line means stands before it as HELP.
{check_metrics}.SH SIGNALS
.TP
\fBSIGTERM\fR, \fBSIGINT\fR
run: take the entry out and exit 0; watch: exit 0; cleanup: finish what is under
way and exit 75
.TP
.B SIGHUP
run: read settings and files anew, and beat at once
.SH ENVIRONMENT
.B NATS_PASSWORD
and
.B NATS_TOKEN
hold secrets themselves; no secret is ever an argument. The other variables
stand beside their option. One that is empty counts as not set. Those of switches
are true, yes or 1; false, no or 0.
.BR AEGIS_OPTIONS ,
.B AEGIS_CLEANUP_OPTIONS
and
.B AEGIS_CHECK_OPTIONS
hold options as such, for the units.
.SH FILES
.TP
.I /etc/aegis\-agent/agent.env
settings of the host: of every agent, of cleanup, of check, and of every call by
hand
.TP
.I /etc/aegis\-agent/nats/context/NAME.json
the context that NATS_CONTEXT=NAME in it names
.TP
.I /etc/aegis\-agent/SERVICE.env
settings of one agent, which win over those
.TP
.I /etc/aegis\-agent/SERVICE.drain
while it is there, that agent's instance is STANDBY; its first line is the reason
.TP
.I /run/aegis\-agent/SERVICE/metrics.prom
its metrics
.TP
.I /run/aegis\-agent\-check/aegis\-agent.prom
what check found
.TP
.I ~/.config/nats/context/NAME.json
a context of the nats CLI
.TP
.I /usr/share/doc/aegis\-agent
README, documents and examples
.SH PERMISSIONS
What each verb has to publish to; what stands in parentheses can be left out
(docs/permissions.md says what is missing then). Each subscribes to its inbox,
_INBOX.> or that of
.BR \-\-inbox\-prefix .
.nh
{permissions}.hy
.SH EXIT STATUS
0 done, 64 wrong call, 69 NATS or bucket not available, 75 done in part (run it
again), 77 refused, 78 bad file or environment.
.B run
exits 64 or 78 for what a restart cannot cure, never because NATS is away, and 0
after SIGTERM or SIGINT.
.B watch
never ends because NATS is away; 0 after SIGTERM, SIGINT or when its reader is
gone, 75 when nobody reads its standard output and it is full.
.PP
.BR check :
0 ok, 1 warning, 2 critical, 3 unknown.
.SH EXAMPLES
.nf
aegis\-agent init
aegis\-agent run \-\-service orders\-api \-\-service\-version 1.4.2
aegis\-agent list \-\-all
aegis\-agent watch orders\-api \-\-exec /usr/local/sbin/update\-upstream
aegis\-agent check \-\-format nagios \-s nats://n1.example.org,nats://n2.example.org
aegis\-agent cleanup \-\-dry\-run
.fi
.SH SEE ALSO
.BR systemd.service (5)
",
        synopsis = synopsis(&top),
        verbs = VERBS.map(verb).concat(),
        global = options(top.flags),
        metrics = metrics(),
        check_metrics = check_metrics(),
        permissions = permissions(),
    );
    page(8, "System Administration", &body)
}

/// The metrics of `check`: those of the golden file, which a test compares with
/// what it says, and those that are there under some conditions.
fn check_metrics() -> String {
    let golden = include_str!("../../tests/golden/check.prom");
    let types = golden.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let names = types.filter_map(|line| line.split(' ').next());
    let more = ["aegis_instances", "aegis_login_left_seconds"];
    let mut names: Vec<&str> = names.chain(more).collect();
    names.sort_unstable();
    names.dedup();
    format!("The names are\n{}.\n", names.join(",\n"))
}

/// A line for each verb but `run`, which stands first.
fn synopsis(top: &CommandInfoWithArgs<'_>) -> String {
    let verbs = top.commands.iter().map(|verb| verb.name).filter(|name| *name != "run");
    let lines = verbs.map(|name| format!(".B aegis\\-agent {name}\n.RI [ options ]\n.br\n"));
    lines.collect::<String>().trim_end_matches(".br\n").to_owned()
}

/// The metrics of an agent; a test of the documents compares their names with
/// those of a real file.
const METRICS: [(&str, &str); 12] = [
    ("registered", "whether the entry is in the registry"),
    ("heartbeats_sent_total", "heartbeats sent, registrations included"),
    ("heartbeats_failed_total", "those that were not acknowledged"),
    ("outages_total", "times that the registry was out of reach or refused"),
    ("conflicts_total", "heartbeats refused because somebody else had written the entry"),
    ("last_ack_age_seconds", "time since the last acknowledgement, when this was written"),
    ("last_ack_timestamp_seconds", "when it came, in seconds since 1970 by this host's clock"),
    ("ack_seconds", "time that the last acknowledgement took"),
    ("healthy", "whether the service passes its health check, where it has one"),
    ("draining", "whether the drain file is there, where one is named"),
    ("clock_offset_seconds", "how far this host's clock is ahead of the registry's"),
    ("build_info", "1; the agent's version is in the label version"),
];

fn metrics() -> String {
    METRICS.map(|(name, what)| format!(".TP\n.B aegis_agent_{name}\n{what}\n")).concat()
}

/// Each shipped file with what it has to hold.
fn shipped() -> [(&'static str, String); 5] {
    let top = TopArgs::get_args_info();
    [
        ("man/aegis-agent.1", SECTION_1.to_owned()),
        ("man/aegis-agent.8", section_8()),
        ("completions/aegis-agent.bash", completions::bash(&top)),
        ("completions/_aegis-agent", completions::zsh(&top)),
        ("completions/aegis-agent.fish", completions::fish(&top)),
    ]
}

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging")
}

#[test]
fn man_pages_and_completions_are_those_of_this_command_line() {
    let write = std::env::var_os("AEGIS_WRITE_PAGES").is_some();
    for (name, text) in shipped() {
        let path = packaging().join(name);
        if write {
            std::fs::write(&path, &text).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == text,
            "packaging/{name} is out of date: AEGIS_WRITE_PAGES=1 cargo test --lib cli::pages"
        );
    }
}

/// The words of `--help` that are options.
fn options_in(help: &str) -> Vec<String> {
    let words = help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    words.filter(|word| word.starts_with("--") && word.len() > 2).map(str::to_owned).collect()
}

#[test]
fn every_option_that_help_names_is_in_the_man_pages_and_the_completions() {
    let read = |name: &str| std::fs::read_to_string(packaging().join(name)).unwrap();
    let pages = (read("man/aegis-agent.1") + &read("man/aegis-agent.8")).replace("\\-", "-");
    let shells = ["aegis-agent.bash", "_aegis-agent", "aegis-agent.fish"]
        .map(|s| read(&format!("completions/{s}")));
    let helps = std::iter::once(help(None)).chain(VERBS.into_iter().map(|verb| help(Some(verb))));
    let mut seen = 0;
    for option in helps.flat_map(|help| options_in(&help)) {
        seen += 1;
        assert!(pages.contains(&option), "{option} is in no man page");
        if option == "--help" {
            continue;
        }
        for shell in &shells {
            // fish writes `-l option`.
            let long = format!("-l {}", &option[2..]);
            let known = shell.contains(&option) || shell.contains(&long);
            assert!(known, "{option} is missing in {}", &shell[..40]);
        }
    }
    assert!(seen > 40, "{seen}");
}

#[test]
fn what_the_sorter_takes_is_what_argh_knows() {
    let top = TopArgs::get_args_info();
    let names = |flags: &[FlagInfo<'_>], values: bool| -> Vec<String> {
        let wanted =
            flags.iter().filter(|f| matches!(f.kind, FlagInfoKind::Option { .. }) == values);
        let names =
            wanted.flat_map(|f| [f.short.map(|s| format!("-{s}")), Some(f.long.to_owned())]);
        let mut names: Vec<String> = names
            .flatten()
            .filter(|n| !matches!(n.as_str(), "-V" | "--version" | "--help"))
            .collect();
        names.sort();
        names
    };
    let sorted = |list: &[&str]| {
        let mut list: Vec<String> = list.iter().map(|&name| name.to_owned()).collect();
        list.sort();
        list
    };
    assert_eq!(names(top.flags, true), sorted(&GLOBAL));
    assert_eq!(names(top.flags, false), sorted(&GLOBAL_SWITCHES));
    for verb in &top.commands {
        let (values, switches) = options_of(verb.name);
        assert_eq!(names(verb.command.flags, true), sorted(values), "{}", verb.name);
        assert_eq!(names(verb.command.flags, false), sorted(switches), "{}", verb.name);
    }
}
