//! Calls with an environment, taken or refused.

mod sources;

use std::collections::BTreeMap;
use std::time::Duration;

use super::options::{Format, ListOptions, RunOptions};
use super::*;
use crate::health::verdict::HealthCheck;

fn call(args: &str, env: &[(&str, &str)]) -> Result<Parsed, UsageError> {
    let args: Vec<OsString> =
        args.split(' ').filter(|a| !a.is_empty()).map(OsString::from).collect();
    let env: BTreeMap<String, OsString> =
        env.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
    let host_name = || Some("host-1.example.org".into());
    parse_with(&args, &|name| env.get(name).cloned(), &host_name, Path::new("/nowhere/agent.env"))
}

fn ok(args: &str, env: &[(&str, &str)]) -> Invocation {
    match call(args, env) {
        Ok(Parsed::Run(invocation)) => *invocation,
        other => panic!("{args}: {other:?}"),
    }
}

fn run_options(args: &str, env: &[(&str, &str)]) -> RunOptions {
    match ok(args, env).verb {
        Verb::Run(options) => *options,
        other => panic!("{other:?}"),
    }
}

fn failure(args: &str, env: &[(&str, &str)]) -> (u8, String) {
    match call(args, env) {
        Err(error) => (error.failure.exit_code(), error.failure.chain()),
        Ok(parsed) => panic!("{args} was taken: {parsed:?}"),
    }
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let options = run_options("run --service orders-api", &[]);
    assert_eq!(options.instance.as_str(), "host-1");
    assert_eq!(options.version.as_str(), "0.0.0");
    assert_eq!((options.ttl.as_secs(), options.interval.as_secs()), (30, 10));
    let call = ok("list", &[]);
    assert_eq!(call.bucket.as_str(), "service_registry");
    assert_eq!(call.settings.inbox_prefix, "_INBOX");
    assert_eq!(call.settings.timeout.as_secs(), 5);
    let server = &call.settings.servers[0];
    assert_eq!((server.host.as_str(), server.port, server.tls), ("127.0.0.1", 4222, false));
}

#[test]
fn options_stand_before_or_after_the_verb_and_take_their_value_in_both_ways() {
    for args in [
        "--bucket b -s nats://a:1 list --json",
        "list --bucket b --json -s nats://a:1",
        "list --json --bucket=b --nats-url=nats://a:1",
        "--nats-url=nats://a:1 list --bucket=b --json",
        "-s=nats://a:1 --bucket=b list --json",
        "--server nats://a:1 --bucket b list --json",
        "list --json --bucket b --server=nats://a:1",
    ] {
        let call = ok(args, &[]);
        assert_eq!(call.bucket.as_str(), "b", "{args}");
        assert_eq!(call.settings.servers[0].host, "a", "{args}");
        assert!(matches!(call.verb, Verb::List(ListOptions { json: true, .. })), "{args}");
    }
}

#[test]
fn a_value_may_look_like_an_option_or_hold_an_equals_sign() {
    let options = run_options("run --service=abc --meta=a=-b=c --meta d=--ttl", &[]);
    assert_eq!(options.metadata["a"], "-b=c");
    assert_eq!(options.metadata["d"], "--ttl");
    // The value of an option is no verb.
    assert!(matches!(ok("--bucket run list", &[]).verb, Verb::List(_)));
}

#[test]
fn an_option_beats_the_environment_and_an_empty_variable_is_none() {
    let env = [("AEGIS_SERVICE", "from-env"), ("AEGIS_TTL", "60s"), ("AEGIS_INSTANCE", "")];
    let options = run_options("run", &env);
    assert_eq!(options.service.as_str(), "from-env");
    assert_eq!((options.ttl.as_secs(), options.interval.as_secs()), (60, 10));
    assert_eq!(options.instance.as_str(), "host-1");
    let options = run_options("run --service given --ttl 9", &env);
    assert_eq!((options.service.as_str(), options.ttl.as_secs()), ("given", 9));
}

#[test]
fn help_and_version_work_everywhere() {
    for args in ["-V", "--version", "run -V", "--bogus --version", "list --json -V", "-V nonsense"]
    {
        let text = match call(args, &[]) {
            Ok(Parsed::Print(text)) => text,
            other => panic!("{args}: {other:?}"),
        };
        assert_eq!(text, format!("aegis-agent {}\n", env!("CARGO_PKG_VERSION")));
    }
    for (args, word) in [
        ("-h", "cleanup"),
        ("--help", "NATS_URL"),
        ("run --help", "AEGIS_TTL"),
        ("--help run", "AEGIS_TTL"),
        ("run --ttl bogus -h", "AEGIS_TTL"),
        ("cleanup -h", "--max-removals"),
        ("check --help", "--probe"),
        ("init --help", "--marker-ttl"),
        ("list --help", "--stale-after"),
    ] {
        match call(args, &[]) {
            Ok(Parsed::Print(text)) => assert!(text.contains(word), "{args}: {text}"),
            other => panic!("{args}: {other:?}"),
        }
    }
}

#[test]
fn each_wrong_option_is_named_with_its_value_and_its_rule() {
    let run = "run --service orders-api";
    for (args, words) in [
        ("", "no verb: give one of run, init, check, cleanup, list, watch"),
        ("lst", "did you mean list?"),
        ("check extra", "\"extra\": an argument that belongs to no option"),
        ("list --servce x", "did you mean --service?"),
        ("list --ttl 3", "--ttl is no option of list"),
        ("list --json=yes", "--json takes no value"),
        ("list --bucket", "--bucket needs a value"),
        ("list --bucket a --bucket b", "--bucket is given twice"),
        ("list -s a --nats-url=b", "--nats-url is given twice"),
        ("list -s a --server b", "--nats-url is given twice"),
        ("-s nats://u:secret@a list -s nats://u:secret@b", "--nats-url is given twice"),
        ("check nats://u:secret@h", "\"nats://***@h\": an argument that belongs to no option"),
        ("list nats://u:secret@h", "\"nats://***@h\": must be SERVICE or SERVICE/INSTANCE"),
        ("watch orders-api/a.b", "\"orders-api/a.b\": must be SERVICE or SERVICE/INSTANCE"),
        ("list --service a-b c-d", "--service and a name say different things"),
        ("list --names --json", "--json, --names and --wide say different things"),
        ("list --status broken", "--status \"broken\": must be ACTIVE"),
        ("list --meta =x", "--meta \"=x\": must be KEY or KEY=VALUE"),
        ("watch --exec '", "--exec"),
        ("watch --settle 2m", "--settle \"2m\": must be from"),
        ("watch --all", "--all is no option of watch"),
        ("nats://u:secret@h", "\"nats://***@h\" is no verb"),
        ("list -snats://u:secret@h", "***@h is no option of list"),
        ("list --bucket nats://u:secret@h", "--bucket \"nats://***@h\": must be"),
        ("list --service nats://u:secret@h", "--service \"nats://***@h\": "),
        ("list --timeout secret@h", "--timeout \"***@h\": not a duration"),
        ("run --service abc --meta nats://u:secret@h", "--meta \"nats://***@h\": must be"),
        (
            "list -s nats://u:secret@a,nats://v:secret@b",
            "--nats-url nats://***@a,nats://***@b: the",
        ),
        ("list -s nats://h:1/path", ": a path or a query after the port is not supported"),
        ("list -s ,", "--nats-url \",\": names no server"),
        ("run", "--service (or AEGIS_SERVICE) is required"),
        ("run --service Orders", "--service \"Orders\": "),
        (&format!("{run} --instance a.b"), "--instance \"a.b\": "),
        (&format!("{run} --service-version 1.2"), "--service-version \"1.2\": "),
        (&format!("{run} --ttl 500ms"), "--ttl \"500ms\": must be a whole number of seconds"),
        (&format!("{run} --ttl 0"), "--ttl \"0\": must be a whole"),
        (&format!("{run} --ttl 25h"), "--ttl \"25h\": must be a whole"),
        (&format!("{run} --ttl 1.5s"), "--ttl \"1.5s\": must be a whole"),
        (&format!("{run} --ttl soon"), "--ttl \"soon\": not a duration"),
        (
            &format!("{run} --ttl 9s --interval 9s"),
            "--interval \"9s\": must be shorter than the TTL 9s",
        ),
        (&format!("{run} --interval 0"), "--interval \"0\": must be at least 10ms"),
        (&format!("{run} --interval x"), "--interval \"x\": not a duration"),
        (&format!("{run} --meta x"), "--meta \"x\": must be KEY=VALUE"),
        (&format!("{run} --meta pid=1"), "host and pid are set by the agent itself"),
        (&format!("{run} --meta a=1 --meta a=2"), "the key is given twice"),
        (&format!("{run} --meta =1"), "the key must be"),
        (&format!("{run} --health-exec '"), "--health-exec \"'\": has a quote without its end"),
        (&format!("{run} --health-tcp 80"), "--health-tcp \"80\": must be HOST:PORT"),
        (&format!("{run} --health-timeout 0"), "--health-timeout \"0\": must be from 1ms"),
        (&format!("{run} --health-failures 0"), "--health-failures \"0\": must be a whole"),
        (&format!("{run} --metrics-file /a/.."), "--metrics-file \"/a/..\": must be the name"),
        ("list --timeout 0", "--timeout \"0\": must be from 1ms to 1h"),
        ("list --timeout 2h", "--timeout \"2h\": must be from 1ms to 1h"),
        ("list --stale-after 100000000000", "\"100000000000\": must be from 1ms to 87600h"),
        ("run --service abc --interval 100000000000", "\"100000000000\": too long"),
        ("list --stale-after -1", "--stale-after \"-1\": not a duration"),
        ("list --bucket a.b", "--bucket \"a.b\": must be 1 to 200 of"),
        ("list --inbox-prefix a.>", "--inbox-prefix \"a.>\": must be words"),
        ("list --service UP", "--service \"UP\": "),
        ("list -s http://a", "--nats-url http://a: the scheme must be nats or tls"),
        ("list --user u", "--user needs --password-file"),
        ("list --password-file f", "--password-file needs --user"),
        ("list --creds a --nkey b", "--creds and --nkey: only one kind of login"),
        ("list --tlscert a", "--tlscert needs --tlskey"),
        ("list --tlskey a", "--tlskey needs --tlscert"),
        ("init --replicas 6", "--replicas \"6\": must be a number from 1 to 5"),
        ("init --storage disk", "--storage \"disk\": must be file or memory"),
        ("init --marker-ttl 1ms", "--marker-ttl \"1ms\": must be a whole"),
        ("check --format xml", "--format \"xml\": must be text, json"),
        ("check --json --format nagios", "--json and --format say different things"),
        ("check --output f", "--output is for --format prometheus"),
        ("cleanup --only old", "--only \"old\": "),
        ("cleanup --max-removals -1", "--max-removals \"-1\": must be a whole number"),
    ] {
        let (code, message) = failure(args, &[]);
        assert!(message.contains(words), "{args}: {message}");
        assert!(!message.contains("secret"), "{args}: {message}");
        assert_eq!(code, 64, "{args}: {message}");
    }
}

/// "A usage error that points to a page without the option."
#[test]
fn a_usage_error_points_to_a_page_that_has_the_option() {
    for (args, option) in [
        ("run", "--service"),
        ("run --servce x", "--service"),
        ("run --standby=yes", "--standby"),
        ("list --status", "--status"),
        ("list --names --json", "--wide"),
        ("check --json --format text", "--format"),
        ("cleanup --max-removals 1 --max-removals 2", "--max-removals"),
        ("list --bucket", "--bucket"),
        ("list --buckt x", "--bucket"),
        ("list --verbose=1", "--verbose"),
        ("list --user x", "--password-file"),
        ("list --password-file x", "--user"),
        ("--creds", "--creds"),
    ] {
        let error = call(args, &[]).expect_err(args).failure;
        let hint = error.hint().unwrap_or_else(|| panic!("{args}: no hint"));
        let page = hint.strip_prefix("aegis-agent ").expect("ours");
        let Ok(Parsed::Print(text)) = call(page, &[]) else { panic!("{args}: {page}") };
        assert!(text.contains(&format!("{option} ")), "{args}: no {option} in {page}");
    }
}

#[test]
fn options_that_may_be_repeated_are_those_that_say_so() {
    let options = run_options("run --service abc --meta a=1 --meta b=2", &[]);
    assert_eq!(options.metadata.len(), 2);
    match ok("cleanup --only no-ttl --only expired", &[]).verb {
        Verb::Cleanup(options) => assert_eq!(options.only.len(), 2),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_words_that_shells_complete_are_taken() {
    use crate::instance::staleness::Reason;
    for (verb, option, words) in completions::WORDS {
        for word in words {
            ok(&format!("{verb} {option} {word}"), &[]);
        }
        if option == "--only" {
            assert_eq!(words, Reason::ALL.map(Reason::as_str));
        } else if option != "--status" {
            // A status may be a word of a newer writer.
            failure(&format!("{verb} {option} other"), &[]);
        }
    }
}

#[test]
fn a_url_in_the_place_of_a_name_is_shown_without_its_login() {
    for context in ["nats://u:secret@h", "u:secret@h"] {
        let (code, message) = failure("list --context", &[]);
        assert_eq!((code, message.as_str()), (64, "--context needs a value"));
        let args = format!("list --context {context}");
        let (code, message) = failure(&args, &[("HOME", "/nowhere")]);
        assert_eq!(code, 78);
        assert!(message.contains("***@h") && !message.contains("secret"), "{message}");
    }
    let path = crate::nats::login::Secret::File("nats://u:secret@h".into());
    let login = crate::nats::login::Login::Creds(path);
    match crate::nats::login::read_login(&login) {
        Err(failure) => assert!(!failure.chain().contains("secret"), "{}", failure.chain()),
        Ok(_) => panic!("there is no such file"),
    }
}

#[test]
fn a_list_of_servers_may_end_in_a_comma() {
    assert_eq!(ok("list -s nats://a,NATS://b,", &[]).settings.servers.len(), 2);
}

#[test]
fn what_the_environment_says_wrong_is_named_by_its_variable() {
    for (name, value, words) in [
        ("AEGIS_TTL", "0", "AEGIS_TTL \"0\": must be"),
        ("AEGIS_SERVICE", "X", "AEGIS_SERVICE \"X\": "),
        ("NATS_URL", "ftp://a", "NATS_URL ftp://a: the scheme"),
        ("NATS_TIMEOUT", "x", "NATS_TIMEOUT \"x\": not a duration"),
        ("AEGIS_BUCKET", "a b", "AEGIS_BUCKET \"a b\": "),
        ("NATS_CONTEXT", "../x", "must be the plain name"),
        ("NATS_CERT", "/x", "NATS_CERT needs NATS_KEY (or --tlskey)"),
        ("NATS_KEY", "/x", "NATS_KEY needs NATS_CERT (or --tlscert)"),
    ] {
        let args = if name == "AEGIS_SERVICE" { "run" } else { "run --service orders-api" };
        let (code, message) = failure(args, &[(name, value)]);
        assert!(message.contains(words), "{name}: {message}");
        assert_eq!(code, 78, "{name}: {message}");
    }
}

#[test]
fn a_wrong_call_of_check_is_unknown() {
    let error = call("check --bogus", &[]).unwrap_err();
    assert!(error.verb_is_check);
    assert!(error.check.is_none());
    assert!(!call("list --bogus", &[]).unwrap_err().verb_is_check);
}

#[test]
fn a_bad_setting_leaves_check_knowing_how_to_answer() {
    let env = [("NATS_TIMEOUT", "soon"), ("AEGIS_BUCKET", "b")];
    let (options, bucket) =
        call("check --json", &env).unwrap_err().check.map(|check| *check).unwrap();
    assert_eq!((options.format, bucket.as_str()), (Format::Json, "b"));
    let (_, bucket) =
        call("check", &[("AEGIS_BUCKET", "a b")]).unwrap_err().check.map(|check| *check).unwrap();
    assert_eq!(bucket.as_str(), "service_registry");
    let error = call("check --json --env-file /nowhere/x", &env).unwrap_err();
    assert!(error.failure.chain().starts_with("environment file /nowhere/x: "));
    let (options, bucket) = error.check.map(|check| *check).unwrap();
    assert_eq!((options.format, bucket.as_str()), (Format::Json, "b"));
    assert!(call("list --json --env-file /nowhere/x", &env).unwrap_err().check.is_none());
    // Bad usage, and the other verbs.
    assert!(call("check --timeout soon", &[]).unwrap_err().check.is_none());
    assert!(call("list", &env).unwrap_err().check.is_none());
}

/// "its interval is a third of the TTL and at most 10 s unless told otherwise,
/// and one that could look stale (interval + 5 s not below the stale limit, 35 s
/// or `AEGIS_STALE_AFTER`) is refused (64) with the rule"
#[test]
fn an_interval_that_could_look_stale_is_refused() {
    let run = "run --service abc";
    let interval = |args: &str, env| run_options(&format!("{run} {args}"), env).interval;
    for (ttl, secs) in [("5m", 10.0), ("24h", 10.0), ("30s", 10.0), ("9s", 3.0), ("1s", 1.0 / 3.0)]
    {
        let seen = interval(&format!("--ttl {ttl}"), &[]).as_secs_f64();
        assert!((seen - secs).abs() < 1e-6, "{ttl}: {seen}");
    }
    assert_eq!(interval("--ttl 5m --interval 29.999s", &[]), Duration::from_millis(29_999));
    let hour = [("AEGIS_STALE_AFTER", "1h")];
    assert_eq!(interval("--ttl 24h --interval 50m", &hour), Duration::from_secs(3_000));
    let rule = "with 5s more it must stay below the stale limit";
    for (args, env, code, words) in [
        ("--ttl 90s --interval 30s", None, 64, format!("--interval \"30s\": {rule} 35s,")),
        (
            "--ttl 90s",
            Some(("AEGIS_INTERVAL", "31s")),
            78,
            format!("AEGIS_INTERVAL \"31s\": {rule}"),
        ),
        (
            "--interval 6s",
            Some(("AEGIS_STALE_AFTER", "11s")),
            64,
            format!("--interval \"6s\": {rule} 11s of AEGIS_STALE_AFTER,"),
        ),
        (
            "",
            Some(("AEGIS_STALE_AFTER", "15s")),
            78,
            format!("the default interval 10s: {rule} 15s"),
        ),
    ] {
        let env: Vec<(&str, &str)> = env.into_iter().collect();
        let (seen, message) = failure(&format!("{run} {args}"), &env);
        assert!(message.contains(&words), "{args}: {message}");
        assert_eq!(seen, code, "{args}: {message}");
    }
}

#[test]
fn the_registrys_rule_holds_for_every_verb_that_judges() {
    let env = [("AEGIS_STALE_AFTER", "2m")];
    let rule = |args: &str, env: &[(&str, &str)]| match ok(args, env).verb {
        Verb::List(options) => options.stale_after,
        Verb::Cleanup(options) => options.stale_after,
        Verb::Check(options) => options.stale_after,
        Verb::Watch(options) => options.stale_after,
        other => panic!("{other:?}"),
    };
    for verb in ["list", "cleanup", "check", "watch"] {
        assert_eq!(rule(verb, &[]), Duration::from_secs(35), "{verb}");
        assert_eq!(rule(verb, &env), Duration::from_secs(120), "{verb}");
    }
    for verb in ["list", "cleanup", "watch"] {
        assert_eq!(rule(&format!("{verb} --stale-after 9s"), &env), Duration::from_secs(9));
    }
}

/// "Every option of every verb has an environment variable, too: `AEGIS_` and
/// its name"
#[test]
fn every_option_of_a_verb_has_a_variable_that_its_help_names() {
    use argh::ArgsInfo;
    let top = TopArgs::get_args_info();
    let mut seen = 0;
    for verb in &top.commands {
        for flag in verb.command.flags.iter().filter(|flag| flag.long != "--help") {
            let name = flag.long.trim_start_matches('-').replace('-', "_").to_uppercase();
            if name == "CHECK_CONFIG" {
                // A call by hand; a variable would keep a unit from starting.
                continue;
            }
            // AEGIS_META is what the agents of a host say of themselves.
            let variable = match (verb.name, name.as_str()) {
                ("list", "META") => "AEGIS_HAS_META".to_owned(),
                _ => format!("AEGIS_{name}"),
            };
            assert!(
                flag.description.contains(&variable),
                "{} {}: read it by source.given, .switch or .all and name {variable}",
                verb.name,
                flag.long
            );
            seen += 1;
        }
    }
    assert!(seen >= 30, "{seen}");
}

/// The commit of this clone, if it is one.
fn checked_out() -> Option<String> {
    let here = env!("CARGO_MANIFEST_DIR");
    let words = ["-C", here, "rev-parse", "--short=12", "HEAD"];
    let is_clone = Path::new(here).join(".git").exists();
    let output = is_clone.then(|| std::process::Command::new("git").args(words).output())?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[test]
fn help_and_version_may_be_asked_for_as_verbs() {
    let printed = |args: &str| match call(args, &[]) {
        Ok(Parsed::Print(text)) => text,
        other => panic!("{args}: {other:?}"),
    };
    assert_eq!(printed("help"), printed("--help"));
    for verb in sorting::VERBS {
        assert_eq!(printed(&format!("help {verb}")), printed(&format!("{verb} --help")), "{verb}");
    }
    assert_eq!(printed("--version"), format!("aegis-agent {}\n", env!("CARGO_PKG_VERSION")));
    let commit = std::env::var("AEGIS_COMMIT").ok().or_else(checked_out);
    let commit = commit.map_or(String::new(), |commit| format!(" (commit {commit})"));
    let expected = format!("aegis-agent {}{commit}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(printed("version"), expected);
    for (args, words) in [
        ("help lits", "did you mean list?"),
        ("help list run", "help takes one verb"),
        ("version 2", "version takes nothing"),
    ] {
        let (code, message) = failure(args, &[]);
        assert!(code == 64 && message.contains(words), "{args}: {code} {message}");
    }
}

#[test]
fn what_no_other_test_gives_by_its_variable_is_taken_from_it() {
    let shown = |args: &str, env: &[(&str, &str)]| format!("{:?}", ok(args, env).verb);
    for (args, variable, value, words) in [
        ("run --service abc", "AEGIS_STANDBY", "true", "standby: true"),
        ("run --service abc", "AEGIS_DRAIN_FILE", "/a/b", "drain_file: Some(\"/a/b\")"),
        ("run --service abc", "AEGIS_META", "zone=a 'note=b c'", r#""note": "b c", "zone": "a""#),
        ("init", "AEGIS_REPLICAS", "5", "replicas: Some(5)"),
        ("init", "AEGIS_HISTORY", "1", "lower_history: true"),
        ("init", "AEGIS_MAX_AGE", "none", "drop_max_age: true"),
        ("init", "AEGIS_MARKER_TTL", "17s", "17s"),
        ("init", "AEGIS_STORAGE", "memory", "Memory"),
        ("check", "AEGIS_PROBE", "1", "probe: true"),
        ("check", "AEGIS_FORMAT", "nagios", "Nagios"),
        ("check", "AEGIS_JSON", "yes", "Json"),
        ("check --format prometheus", "AEGIS_OUTPUT", "/o", "output: Some(\"/o\")"),
        ("cleanup", "AEGIS_DRY_RUN", "TRUE", "dry_run: true"),
        ("cleanup", "AEGIS_ONLY", "no-ttl expired", "only: [NoTtl, Expired]"),
        ("cleanup", "AEGIS_SERVICE", "abc", "service: Some(ServiceName(\"abc\"))"),
        ("cleanup", "AEGIS_MAX_REMOVALS", "7", "max_removals: Some(7)"),
        ("cleanup", "AEGIS_UNREADABLE", "yes", "unreadable: true"),
        ("cleanup", "AEGIS_SPARE_BEATING", "yes", "spare_beating: true"),
        ("cleanup", "AEGIS_JSON", "1", "json: true"),
        ("list", "AEGIS_ALL", "yes", "all: true"),
        ("list", "AEGIS_SERVICE", "abc", "service: ServiceName(\"abc\")"),
        ("list", "AEGIS_STATUS", "standby", "status: Some(Standby)"),
        ("list", "AEGIS_HAS_META", "zone 'rack=7 b'", "value: Some(\"7 b\")"),
        ("list", "AEGIS_WIDE", "yes", "wide: true"),
        ("list", "AEGIS_NAMES", "1", "names: true"),
        ("list", "AEGIS_JSON", "true", "json: true"),
        ("watch", "AEGIS_JSON", "true", "json: true"),
        ("watch", "AEGIS_EXEC", "/bin/x 'a b'", "exec: Some([\"/bin/x\", \"a b\"])"),
        ("watch", "AEGIS_SETTLE", "3s", "settle: 3s"),
    ] {
        assert!(!shown(args, &[]).contains(words), "{args}: {words} is the default");
        let seen = shown(args, &[(variable, value)]);
        assert!(seen.contains(words), "{args} {variable}: {seen}");
    }
    for (variable, value) in [
        ("AEGIS_DRY_RUN", "maybe"),
        ("AEGIS_ONLY", "bogus"),
        ("AEGIS_ONLY", "'"),
        ("AEGIS_MAX_REMOVALS", "-1"),
        ("AEGIS_STALE_AFTER", "0"),
    ] {
        let (code, message) = failure("cleanup", &[(variable, value)]);
        assert!(code == 78 && message.starts_with(variable), "{code} {message}");
    }
    assert!(shown("check --json", &[("AEGIS_FORMAT", "nagios")]).contains("Json"));
    assert!(shown("check", &[("AEGIS_OUTPUT", "/o")]).contains("output: None"));
}

#[test]
fn a_long_interval_is_a_warning() {
    let options = run_options("run --service abc --ttl 30 --interval 11", &[]);
    assert!(options.warnings[0].contains("interval 11s is more than a third of the TTL 30s"));
    assert!(run_options("run --service abc --ttl 30 --interval 10", &[]).warnings.is_empty());
}

#[test]
fn health_comes_from_options_and_environment_and_is_never_slower_than_the_heart() {
    let health = |args: &str, env: &[(&str, &str)]| {
        run_options(&format!("run --service abc {args}"), env).health
    };
    assert_eq!(health("--health-timeout 1s", &[]), None);
    let env = [("AEGIS_HEALTH_EXEC", "/bin/check -q 'a b'"), ("AEGIS_HEALTH_FAILURES", "5")];
    let both = health("--health-tcp [::1]:80", &env).unwrap();
    let words = ["/bin/check", "-q", "a b"].map(str::to_owned).to_vec();
    let tcp = HealthCheck::Tcp { host: "::1".into(), port: 80 };
    assert_eq!(both.checks, [HealthCheck::Exec(words), tcp]);
    assert_eq!((both.timeout, both.failures), (Duration::from_secs(2), 5));
    let fast = "--health-tcp a:1 --interval 500ms";
    assert_eq!(health(fast, &[]).unwrap().timeout, Duration::from_millis(500));
    let slow = run_options(&format!("run --service abc --health-timeout 1s {fast}"), &[]);
    assert_eq!(slow.health.unwrap().timeout, Duration::from_millis(500));
    assert!(slow.warnings[0].contains("longer than the interval"), "{:?}", slow.warnings);
}

#[test]
fn the_login_comes_from_the_first_source_that_has_one_and_is_never_shown() {
    let login = |args: &str, env: &[(&str, &str)]| format!("{:?}", ok(args, env).settings.login);
    assert_eq!(login("list", &[]), "None");
    assert_eq!(login("list -s nats://u:secret@a", &[]), "User { name: \"u\", password: Text(..) }");
    assert_eq!(login("list -s nats://secret@a", &[]), "Token(Text(..))");
    let env = [("NATS_TOKEN", "secret")];
    assert_eq!(login("list -s nats://u:secret@a", &env), "Token(Text(..))");
    assert_eq!(login("list --creds /c", &env), "Creds(File(\"/c\"))");
    let env = [("NATS_USER", "u"), ("NATS_PASSWORD", "secret")];
    assert_eq!(login("list", &env), "User { name: \"u\", password: Text(..) }");
    assert_eq!(login("list --user v", &env), "User { name: \"v\", password: Text(..) }");
    assert_eq!(
        login("list --password-file /p", &env),
        "User { name: \"u\", password: File(\"/p\") }"
    );
    let (code, message) = failure("list", &[("NATS_CREDS", "/c"), ("NATS_TOKEN", "secret")]);
    assert_eq!(code, 78);
    assert_eq!(message, "NATS_CREDS and NATS_TOKEN: only one kind of login can be given");
}

#[test]
fn what_is_not_utf_8_is_refused() {
    use std::os::unix::ffi::OsStringExt;
    let broken = OsString::from_vec(vec![b'-', 0xff]);
    let error = parse(std::slice::from_ref(&broken), &|_| None, &|| None).unwrap_err();
    assert_eq!(error.failure.exit_code(), 64);
    let env = |name: &str| (name == "NATS_URL").then(|| broken.clone());
    let error = parse(&["list".into()], &env, &|| None).unwrap_err();
    assert_eq!(error.failure.exit_code(), 78);
    assert_eq!(error.failure.chain(), "NATS_URL is not UTF-8");
}

#[test]
fn a_host_name_that_cannot_be_an_instance_says_what_to_give() {
    let args = ["run".into(), "--service=orders-api".into()];
    let error = parse(&args, &|_| None, &|| Some("hôst".into())).unwrap_err();
    assert!(error.failure.chain().contains("give --instance"));
}
