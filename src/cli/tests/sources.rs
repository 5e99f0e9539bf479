//! What beats what: option, environment, named context, host's file, default.

use std::path::PathBuf;

use super::*;

/// A directory with a host's file and one context, gone with its owner.
struct Host(PathBuf);

impl Host {
    fn new(file: &str, context: &str) -> Host {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("aegis-sources-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let contexts = directory.join("config/nats/context");
        std::fs::create_dir_all(&contexts).unwrap();
        std::fs::write(contexts.join("prod.json"), context).unwrap();
        std::fs::write(directory.join("agent.env"), file).unwrap();
        Host(directory)
    }

    fn file(&self) -> PathBuf {
        self.0.join("agent.env")
    }

    fn call(&self, args: &str, env: &[(&str, &str)]) -> Result<Parsed, UsageError> {
        let args: Vec<OsString> = args.split(' ').map(OsString::from).collect();
        let config = self.0.join("config").into_os_string();
        let lookup = |name: &str| match name {
            "XDG_CONFIG_HOME" => Some(config.clone()),
            _ => env.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into()),
        };
        parse_with(&args, &lookup, &|| Some("host-1".into()), &self.file())
    }

    fn ok(&self, args: &str, env: &[(&str, &str)]) -> Invocation {
        match self.call(args, env) {
            Ok(Parsed::Run(invocation)) => *invocation,
            other => panic!("{args} {env:?}: {other:?}"),
        }
    }

    fn failure(&self, args: &str, env: &[(&str, &str)]) -> (u8, String) {
        match self.call(args, env) {
            Err(error) => (error.failure.exit_code(), error.failure.chain()),
            Ok(parsed) => panic!("{args} was taken: {parsed:?}"),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Option, variable, field of the context, what shows the value that won, how
/// a value is made of a word, and the default.
type Setting = (
    &'static str,
    &'static str,
    Option<&'static str>,
    fn(&Invocation) -> String,
    fn(&str) -> String,
    &'static str,
);

const SETTINGS: &[Setting] = &[
    (
        "--nats-url",
        "NATS_URL",
        Some("url"),
        |call| call.settings.servers[0].host.clone(),
        |word| format!("nats://{word}"),
        "127.0.0.1",
    ),
    (
        "--server",
        "NATS_URL",
        Some("url"),
        |call| call.settings.servers[0].host.clone(),
        |word| format!("nats://{word}"),
        "127.0.0.1",
    ),
    (
        "--inbox-prefix",
        "AEGIS_INBOX_PREFIX",
        Some("inbox_prefix"),
        |call| call.settings.inbox_prefix.clone(),
        str::to_owned,
        "_INBOX",
    ),
    (
        "--js-domain",
        "AEGIS_JS_DOMAIN",
        Some("jetstream_domain"),
        |call| format!("{:?}", call.bucket),
        str::to_owned,
        "None",
    ),
    (
        "--tlsca",
        "NATS_CA",
        Some("ca"),
        |call| format!("{:?}", call.settings.tls.ca),
        str::to_owned,
        "None",
    ),
    (
        "--creds",
        "NATS_CREDS",
        Some("creds"),
        |call| format!("{:?}", call.settings.login),
        str::to_owned,
        "None",
    ),
    (
        "--nkey",
        "NATS_NKEY",
        Some("nkey"),
        |call| format!("{:?}", call.settings.login),
        str::to_owned,
        "None",
    ),
    (
        "--bucket",
        "AEGIS_BUCKET",
        None,
        |call| call.bucket.as_str().to_owned(),
        str::to_owned,
        "service_registry",
    ),
    (
        "--timeout",
        "NATS_TIMEOUT",
        None,
        |call| format!("{:?}", call.settings.timeout),
        |word| format!("{}s", word.len()),
        "5s",
    ),
];

/// Words of different lengths, for the four sources that say something.
const WORDS: [&str; 4] = ["o-option", "e-environment", "c-named-context", "h-file-of-this-host"];

/// "Option beats environment beats named context (`--context`, `NATS_CONTEXT`)
/// beats host file beats default"
#[test]
fn of_each_pair_of_sources_the_first_wins_for_each_setting() {
    let mut pairs = 0;
    for (option, variable, field, shown, make, default) in SETTINGS {
        let [by_option, by_env, by_context, by_host] = WORDS.map(make);
        for sources in 0..16_u8 {
            let has = |source: u8| sources & (1 << source) != 0;
            if (has(2) && field.is_none()) || sources.count_ones() > 2 {
                continue;
            }
            let file = if has(3) { format!("{variable}=\"{by_host}\"\n") } else { String::new() };
            let context = match field {
                Some(field) if has(2) => format!("{{\"{field}\":\"{by_context}\"}}"),
                _ => "{}".to_owned(),
            };
            let host = Host::new(&file, &context);
            let own = if has(0) { format!("{option} {by_option} ") } else { String::new() };
            for (named, named_by) in [("--context prod ", None), ("", Some("NATS_CONTEXT"))] {
                let mut env: Vec<(&str, &str)> =
                    named_by.map(|name| (name, "prod")).into_iter().collect();
                if has(1) {
                    env.push((variable, &by_env));
                }
                let call = host.ok(format!("list {own}{named}").trim(), &env);
                let first = (0..4).find(|source| has(*source));
                let expected = match first {
                    Some(source) if *option == "--timeout" => {
                        format!("{}s", WORDS[usize::from(source)].len())
                    }
                    Some(source) => WORDS[usize::from(source)].to_owned(),
                    None => (*default).to_owned(),
                };
                let seen = shown(&call);
                assert!(seen.contains(&expected), "{option} {sources:04b}: {seen}");
                pairs += usize::from(sources.count_ones() == 2);
            }
        }
    }
    assert_eq!(pairs, 2 * (7 * 6 + 2 * 3));
}

#[test]
fn what_a_verb_takes_comes_from_option_environment_and_host_in_this_order() {
    let host = Host::new("AEGIS_MAX_REMOVALS=3\nAEGIS_DRY_RUN=yes\n", "{}");
    let cleanup = |args: &str, env: &[(&str, &str)]| match host.ok(args, env).verb {
        Verb::Cleanup(options) => (options.max_removals, options.dry_run),
        other => panic!("{other:?}"),
    };
    assert_eq!(cleanup("cleanup", &[]), (Some(3), true));
    assert_eq!(cleanup("cleanup", &[("AEGIS_MAX_REMOVALS", "2")]), (Some(2), true));
    assert_eq!(cleanup("cleanup --max-removals 1", &[("AEGIS_MAX_REMOVALS", "2")]).0, Some(1));
    assert_eq!(cleanup("cleanup", &[("AEGIS_DRY_RUN", "no")]), (Some(3), false));
    assert_eq!(cleanup("cleanup --dry-run", &[("AEGIS_DRY_RUN", "no")]), (Some(3), true));
}

/// Under the units all of the file is environment, and a variable of the
/// environment beats the context.
#[test]
fn a_context_that_the_hosts_file_names_comes_after_its_other_settings() {
    let context = r#"{"url":"nats://of-context","creds":"/of-context","inbox_prefix":"_C"}"#;
    let host = Host::new("NATS_URL=nats://of-file\nNATS_CONTEXT=prod\n", context);
    let settings = host.ok("list", &[]).settings;
    assert_eq!(settings.servers[0].host, "of-file");
    assert_eq!(settings.inbox_prefix, "_C");
    assert_eq!(format!("{:?}", settings.login), "Creds(File(\"/of-context\"))");
    assert_eq!(host.ok("list --context prod", &[]).settings.servers[0].host, "of-context");
}

#[test]
fn a_context_that_the_hosts_file_names_is_looked_for_beside_it_first() {
    let host = Host::new("NATS_CONTEXT=prod\n", r#"{"url":"nats://of-user"}"#);
    assert_eq!(host.ok("list", &[]).settings.servers[0].host, "of-user");
    let beside = host.0.join("nats/context");
    std::fs::create_dir_all(&beside).unwrap();
    std::fs::write(beside.join("prod.json"), r#"{"url":"nats://of-host"}"#).unwrap();
    assert_eq!(host.ok("list", &[]).settings.servers[0].host, "of-host");
    assert_eq!(host.ok("list --context prod", &[]).settings.servers[0].host, "of-user");
}

#[test]
fn a_login_in_a_url_goes_with_its_url_and_beats_only_what_the_host_says() {
    let host = Host::new("NATS_URL=nats://host:secret@h\nNATS_CREDS=/host\n", "{}");
    let login =
        |args: &str, env: &[(&str, &str)]| format!("{:?}", host.ok(args, env).settings.login);
    assert_eq!(login("list", &[]), "Creds(File(\"/host\"))", "a login of its own beats its URL's");
    let given = "User { name: \"given\", password: Text(..) }";
    assert_eq!(login("list -s nats://given:secret@a", &[]), given);
    assert_eq!(login("list", &[("NATS_URL", "nats://given:secret@a")]), given);
    assert_eq!(login("list -s nats://a", &[]), "Creds(File(\"/host\"))");
    assert_eq!(
        login("list -s nats://given:x@a", &[("NATS_CREDS", "/env")]),
        "Creds(File(\"/env\"))"
    );
}

#[test]
fn a_user_of_one_place_may_have_its_password_in_one_below_it() {
    let host = Host::new("NATS_USER=h\nNATS_PASSWORD='secret word'\n", "{}");
    let login =
        |args: &str, env: &[(&str, &str)]| format!("{:?}", host.ok(args, env).settings.login);
    assert_eq!(login("list", &[]), "User { name: \"h\", password: Text(..) }");
    assert_eq!(login("list --user o", &[]), "User { name: \"o\", password: Text(..) }");
    assert_eq!(login("list", &[("NATS_USER", "e")]), "User { name: \"e\", password: Text(..) }");
    assert_eq!(
        login("list --password-file /p", &[]),
        "User { name: \"h\", password: File(\"/p\") }"
    );
}

#[test]
fn what_the_hosts_file_says_wrong_is_named_with_the_file_and_no_secret_is_shown() {
    for (text, words) in [
        ("NATS_TIMEOUT=soon", "NATS_TIMEOUT in FILE \"soon\": not a duration"),
        ("NATS_URL=ftp://u:secret@a", "NATS_URL in FILE ***@a: the scheme"),
        ("NATS_PASSWORD=p", "NATS_PASSWORD needs NATS_USER (or --user)"),
        ("NATS_CERT=/c", "NATS_CERT in FILE needs NATS_KEY"),
        ("NATS_TOKEN=secret\nNATS_CREDS=/c", "NATS_CREDS and NATS_TOKEN: only one kind"),
        ("AEGIS_STALE_AFTER=x", "AEGIS_STALE_AFTER in FILE \"x\": not a duration"),
        ("AEGIS_ALL=maybe", "AEGIS_ALL in FILE \"maybe\": must be true, yes or 1"),
        ("AEGIS_BUCKET='a\nb'", "AEGIS_BUCKET in FILE \"a\\nb\": must be"),
        ("NATS_CONTEXT=absent", "context absent"),
    ] {
        let host = Host::new(text, "{}");
        let (code, message) = host.failure("list", &[]);
        let message = message.replace(&host.file().display().to_string(), "FILE");
        assert!(message.contains(words), "{text}: {message}");
        assert!(!message.contains("secret"), "{message}");
        assert_eq!(code, 78, "{text}");
    }
    // What another verb takes is not looked at.
    Host::new("AEGIS_TTL=x\nAEGIS_REPLICAS=x\nAEGIS_FORMAT=x", "{}").ok("list", &[]);
}

#[test]
fn a_file_that_was_named_has_to_be_readable_and_the_default_one_need_not_be_there() {
    let host = Host::new("AEGIS_BUCKET=default\n", "{}");
    let other = host.0.join("other.env");
    std::fs::write(&other, "AEGIS_BUCKET=other\n").unwrap();
    let bucket = |args: &str| host.ok(args, &[]).bucket.as_str().to_owned();
    assert_eq!(bucket("list"), "default");
    assert_eq!(bucket(&format!("list --env-file {}", other.display())), "other");
    assert_eq!(bucket(&format!("--env-file={} list", other.display())), "other");
    for (name, words) in [("absent.env", "no such file"), ("config", "is a directory")] {
        let named = host.0.join(name);
        let (code, message) = host.failure(&format!("list --env-file {}", named.display()), &[]);
        let said = format!("environment file {}: {words}", named.display());
        assert!(code == 78 && message.contains(&said), "{code} {message}");
    }
    std::fs::write(host.file(), b"AEGIS_BUCKET=\xff\n").unwrap();
    let (code, message) = host.failure("list", &[]);
    assert!(code == 78 && message.contains("agent.env: not UTF-8"), "{code} {message}");
    std::fs::write(host.file(), vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(host.failure("list", &[]).1.contains("larger than 1 MiB"));
    std::fs::remove_file(host.file()).unwrap();
    assert_eq!(bucket("list"), "service_registry");
}

#[test]
fn a_host_file_that_cannot_be_read_is_told_of_where_connecting_fails() {
    let host = Host::new("", "{}");
    assert_eq!(host.ok("list", &[]).unconnected, None);
    std::fs::remove_file(host.file()).unwrap();
    std::fs::create_dir(host.file()).unwrap();
    let call = host.ok("list", &[]);
    let words = "agent.env exists and cannot be read: is a directory";
    assert!(call.unconnected.unwrap().contains(words));
    assert_eq!(call.settings.servers[0].host, "127.0.0.1");
}

#[test]
fn the_selected_context_is_never_taken_but_named_where_nothing_says_where_to_connect() {
    let host = Host::new("", r#"{"url":"nats://selected"}"#);
    std::fs::write(host.0.join("config/nats/context.txt"), "prod\n").unwrap();
    let call = host.ok("check", &[]);
    assert_eq!(call.settings.servers[0].host, "127.0.0.1");
    let command = "aegis-agent check --context prod";
    assert_eq!(call.unconnected.as_deref(), Some(command));
    assert_eq!(host.ok("cleanup", &[]).unconnected.as_deref(), Some(command), "it only looks");
    assert_eq!(host.ok("list -s a", &[]).unconnected, None);
    assert_eq!(host.ok("list", &[("NATS_URL", "a")]).unconnected, None);
    assert_eq!(host.ok("list --context prod", &[]).unconnected, None);
    for text in ["", "../prod", "a b; rm", &"x".repeat(300)] {
        std::fs::write(host.0.join("config/nats/context.txt"), text).unwrap();
        let note = host.ok("list", &[]).unconnected;
        assert_eq!(note, None, "{text}");
    }
}

/// "today `AEGIS_CLEANUP_OPTIONS=--max-removals 2`, unquoted as systemd allows,
/// runs as a shell command [...] and everything is removed"
#[test]
fn cleanup_takes_the_options_of_its_variable_where_none_are_given() {
    let cleanup = |file: &str, args: &str| match Host::new(file, "{}").ok(args, &[]).verb {
        Verb::Cleanup(options) => options,
        other => panic!("{other:?}"),
    };
    let file = "AEGIS_CLEANUP_OPTIONS=--max-removals 2 --only no-ttl --dry-run\n";
    let options = cleanup(file, "cleanup --spare-beating");
    assert_eq!((options.max_removals, options.only.len()), (Some(2), 1));
    assert!(options.dry_run && options.spare_beating);
    // The unit has them on its command line as well.
    let twice = "cleanup --max-removals 2 --only no-ttl --dry-run";
    assert_eq!(cleanup(file, twice).max_removals, Some(2));
    assert_eq!(cleanup(file, twice).only.len(), 1);
    assert_eq!(cleanup(file, "cleanup --max-removals=9").max_removals, Some(9));
    let host = Host::new("AEGIS_CLEANUP_OPTIONS=\"-s nats://a --bucket 'b'\"\n", "{}");
    let call = host.ok("cleanup --nats-url nats://given", &[]);
    assert_eq!((call.settings.servers[0].host.as_str(), call.bucket.as_str()), ("given", "b"));
    assert_eq!(host.ok("list", &[]).bucket.as_str(), "service_registry", "of cleanup only");
    for (text, words) in [
        ("--dry-run --nonsense *", "FILE: --nonsense is no option of cleanup"),
        ("--help", "FILE: must be options of cleanup"),
        ("\"'open\"", "FILE: has a quote without its end"),
        ("list", "FILE: \"list\": an argument that belongs to no option"),
    ] {
        let host = Host::new(&format!("AEGIS_CLEANUP_OPTIONS={text}\n"), "{}");
        let (code, message) = host.failure("cleanup", &[]);
        let message = message.replace(&host.file().display().to_string(), "FILE");
        assert!(code == 78 && message.contains(words), "{code} {message}");
    }
}

/// "`check` says where each setting came from"
#[test]
fn check_knows_where_each_setting_came_from() {
    let context = r#"{"creds":"/c","ca":"/ca","url":"nats://of-context"}"#;
    let host = Host::new("NATS_URL=nats://h\nNATS_CA=/h\nAEGIS_STALE_AFTER=40s\n", context);
    let origins = |args: &str, env: &[(&str, &str)]| match host.ok(args, env).verb {
        Verb::Check(options) => options.origins.join(", ").replace(host.0.to_str().unwrap(), ""),
        other => panic!("{other:?}"),
    };
    let file = "in /agent.env";
    assert_eq!(
        origins("check", &[]),
        format!("AEGIS_STALE_AFTER {file}, NATS_URL {file}, NATS_CA {file}")
    );
    assert_eq!(
        origins("check -s a --bucket b", &[("NATS_CONTEXT", "prod"), ("NATS_TOKEN", "secret")]),
        format!("AEGIS_STALE_AFTER {file}, NATS_CONTEXT, NATS_TOKEN, ca of the context")
    );
    assert_eq!(
        origins("check --context prod", &[]),
        format!(
            "AEGIS_STALE_AFTER {file}, url of the context, login of the context, ca of the context"
        )
    );
}
