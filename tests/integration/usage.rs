//! The command line and the environment: what is refused, with which message
//! and exit code, and what beats what.

use serde_json::json;

use crate::harness::agent::{Output, aegis};
use crate::harness::registry::Registry;
use crate::harness::server::{Server, Setup};
use crate::harness::{scratch, secs};

/// What is wrong with a refusal that should have this code, an empty stdout
/// and all of `says` on stderr.
fn complaint(output: &Output, code: i32, says: &[&str]) -> Option<String> {
    let missing: Vec<_> = says.iter().filter(|text| !output.stderr.contains(**text)).collect();
    let fine = output.code == code
        && output.stdout.is_empty()
        && missing.is_empty()
        && !output.stderr.contains("panicked");
    (!fine).then(|| format!("expected exit code {code} and {missing:?} in {output:#?}"))
}

fn assert_refused(output: Output, code: i32, says: &[&str]) {
    if let Some(complaint) = complaint(&output, code, says) {
        panic!("{complaint}");
    }
}

/// What is written after `aegis-agent`, and what the message must hold.
type Wrong = (&'static [&'static str], &'static [&'static str]);

const WRONG: &[Wrong] = &[
    (&[], &["run", "init", "check", "cleanup", "list"]),
    (&["frobnicate"], &["frobnicate"]),
    (&["init", "extra"], &["extra"]),
    (&["list", "--frobnicate"], &["--frobnicate"]),
    (&["list", "--password", "x"], &["--password"]),
    (&["list", "--bucket"], &["--bucket"]),
    (&["run"], &["--service", "AEGIS_SERVICE"]),
    (&["run", "--service", "Orders"], &["--service", "Orders", "3 to 64 of a-z, 0-9 and -"]),
    (&["run", "--service", "ab"], &["--service", "ab"]),
    (&["run", "--service", "orders-"], &["--service", "orders-"]),
    (&["run", "--service", "1orders"], &["--service", "1orders"]),
    (&["run", "--service", "orders_api"], &["--service", "orders_api"]),
    (&["run", "--service", ""], &["--service"]),
    (&["run", "--service", "abc\r\nPUB x"], &["--service"]),
    (&["run", "--service", "abc", "--instance", "a.b"], &["--instance", "a.b"]),
    (&["run", "--service", "abc", "--instance", "a b"], &["--instance", "a b"]),
    (&["run", "--service", "abc", "--instance", ""], &["--instance"]),
    (&["run", "--service", "abc", "--instance", "*"], &["--instance", "*"]),
    (&["run", "--service", "abc", "--instance", "ü"], &["--instance", "ü"]),
    (&["run", "--service", "abc", "--service-version", "1.2"], &["--service-version", "1.2"]),
    (&["run", "--service", "abc", "--service-version", "v1.2.3"], &["--service-version", "v1.2.3"]),
    (&["run", "--service", "abc", "--ttl", "0"], &["--ttl", "0"]),
    (&["run", "--service", "abc", "--ttl", "500ms"], &["--ttl", "500ms"]),
    (&["run", "--service", "abc", "--ttl", "1.5s"], &["--ttl", "1.5s"]),
    (&["run", "--service", "abc", "--ttl", "86401"], &["--ttl", "86401"]),
    (&["run", "--service", "abc", "--ttl", "soon"], &["--ttl", "soon"]),
    (&["run", "--service", "abc", "--ttl=-1s"], &["--ttl", "-1s"]),
    (&["run", "--service", "abc", "--interval", "0s"], &["--interval", "0s"]),
    (&["run", "--service", "abc", "--interval", "often"], &["--interval", "often"]),
    (&["run", "--service", "abc", "--interval", "30s"], &["--interval", "TTL", "30s"]),
    (&["run", "--service", "abc", "--ttl", "5s", "--interval", "6s"], &["--interval", "TTL", "6s"]),
    (
        &["run", "--service", "abc", "--ttl", "90s", "--interval", "30s"],
        &["--interval", "30s", "stale limit 35s"],
    ),
    (&["run", "--service", "abc", "--meta", "novalue"], &["--meta", "novalue"]),
    (&["run", "--service", "abc", "--meta", "=value"], &["--meta", "=value"]),
    (&["list", "--timeout", "0"], &["--timeout", "0"]),
    (&["list", "--timeout", "x"], &["--timeout", "x"]),
    (&["list", "--bucket", "a.b"], &["--bucket", "a.b"]),
    (&["list", "--bucket", "a b"], &["--bucket", "a b"]),
    (&["list", "--bucket", ">"], &["--bucket", ">"]),
    (&["list", "-s", "http://localhost"], &["--nats-url", "http"]),
    (&["list", "-s", "nats://localhost:99999"], &["--nats-url", "99999"]),
    (&["list", "-s", "nats://"], &["--nats-url"]),
    (&["list", "--nats-url", ","], &["--nats-url"]),
    (&["list", "--inbox-prefix", "a.*"], &["--inbox-prefix", "a.*"]),
    (&["list", "--inbox-prefix", "a b"], &["--inbox-prefix", "a b"]),
    (&["list", "--stale-after", "x"], &["--stale-after", "x"]),
    (&["list", "--service", "Orders"], &["--service", "Orders"]),
    (&["run", "--service", "abc", "--json"], &["--json"]),
    (&["list", "--ttl", "3s"], &["--ttl"]),
];

#[test]
fn each_wrong_option_is_named_with_its_value_and_exits_64() {
    let complaints: Vec<String> = WRONG
        .iter()
        .filter_map(|(arguments, says)| {
            let output = aegis(arguments).within(secs(5)).run();
            Some(format!("{arguments:?}: {}", complaint(&output, 64, says)?))
        })
        .collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn long_names_are_refused_by_their_length() {
    let long = |n: usize| "a".repeat(n);
    for (option, value) in [("--service", long(65)), ("--instance", long(101))] {
        let arguments = ["run", "--service", "abc", option, &value];
        let arguments = if option == "--service" {
            &[arguments[0], option, &value][..]
        } else {
            &arguments[..]
        };
        assert_refused(aegis(arguments).within(secs(5)).run(), 64, &[option, &value[..20]]);
    }
}

/// "3: unknown (bad usage, denied, out of time)"
#[test]
fn check_exits_3_for_bad_usage() {
    assert_refused(aegis(&["check", "--frobnicate"]).run(), 3, &["--frobnicate"]);
    assert_refused(aegis(&["check", "--timeout=x"]).run(), 3, &["--timeout", "x"]);
}

#[test]
fn each_bad_value_of_the_environment_is_named_and_exits_78() {
    let run = &["run", "--service=abc"][..];
    let cases: &[(&[&str], &str, &str)] = &[
        (&["run"], "AEGIS_SERVICE", "Orders"),
        (run, "AEGIS_INSTANCE", "a.b"),
        (run, "AEGIS_SERVICE_VERSION", "1.2"),
        (run, "AEGIS_TTL", "soon"),
        (run, "AEGIS_INTERVAL", "31s"),
        (&["list"], "AEGIS_BUCKET", "a.b"),
        (&["list"], "AEGIS_INBOX_PREFIX", "a.>"),
        (&["list"], "NATS_URL", "http://localhost"),
        (&["list"], "NATS_TIMEOUT", "soon"),
        (&["list"], "NATS_CREDS", "/nowhere/a.creds"),
        (&["list"], "NATS_NKEY", "/nowhere/a.nk"),
        (&["list"], "NATS_CA", "/nowhere/ca.pem"),
        (&["list"], "NATS_CONTEXT", "absent"),
    ];
    for (arguments, name, value) in cases {
        let output = aegis(arguments).env(name, value).within(secs(5)).run();
        // A file is named by its path, whoever named it.
        let says = if value.starts_with('/') || *name == "NATS_CONTEXT" {
            vec![*value]
        } else {
            vec![*name, *value]
        };
        assert_refused(output, 78, &says);
    }
}

#[test]
fn each_file_that_cannot_be_used_is_named_and_exits_78() {
    let directory = scratch("usage");
    let junk = directory.join("junk");
    std::fs::write(&junk, "junk\n").expect("writes");
    let junk = junk.display().to_string();
    for option in ["--creds", "--nkey", "--tlsca", "--token-file", "--password-file"] {
        let absent = format!("{option}=/nowhere/file");
        let mut arguments = vec!["list", &absent];
        if option == "--password-file" {
            arguments.push("--user=u");
        }
        assert_refused(aegis(&arguments).within(secs(5)).run(), 78, &["/nowhere/file"]);
        if option.ends_with("-file") {
            continue;
        }
        let output = aegis(&["list", &format!("{option}={junk}")]).within(secs(5)).run();
        assert_refused(output, 78, &[&junk]);
    }
    std::fs::remove_dir_all(directory).expect("removes its own directory");
}

#[test]
fn an_option_beats_the_environment_and_stands_on_either_side_of_the_verb() {
    let server = Server::any();
    let url = server.url();
    let nowhere = Server::absent(Setup::default()).url();
    for bucket in ["one", "two"] {
        Registry::named(&url, bucket).create(&json!({}));
    }
    let bucket = |output: Output| output.exits(0).json()["bucket"].as_str().map(str::to_owned);
    let by_environment =
        aegis(&["list", "--json"]).env("NATS_URL", &url).env("AEGIS_BUCKET", "one");
    assert_eq!(bucket(by_environment.run()).as_deref(), Some("one"));
    for arguments in [
        &["-s", &url, "--bucket", "two", "list", "--json"][..],
        &["list", "--json", "-s", &url, "--bucket", "two"],
        &["--bucket=two", "list", "--nats-url", &url, "--json"],
        &["list", "--bucket=two", &format!("--nats-url={url}"), "--json"],
    ] {
        let both = aegis(arguments).env("NATS_URL", &nowhere).env("AEGIS_BUCKET", "one");
        assert_eq!(bucket(both.run()).as_deref(), Some("two"), "{arguments:?}");
    }
}

#[test]
fn help_and_version_work_everywhere() {
    for verb in ["", "run", "init", "check", "cleanup", "list"] {
        for option in ["-h", "--help", "-V", "--version"] {
            let arguments: Vec<&str> =
                [verb, option].into_iter().filter(|word| !word.is_empty()).collect();
            let output = aegis(&arguments).run().exits(0);
            assert_eq!(output.stderr, "", "{output:?}");
            let expected = match option {
                "-V" | "--version" => env!("CARGO_PKG_VERSION"),
                _ => "aegis-agent",
            };
            assert!(output.stdout.contains(expected), "{output:?}");
        }
    }
}

#[test]
fn an_interval_over_a_third_of_the_ttl_is_a_warning() {
    let server = Server::any();
    let arguments =
        ["run", "--service=abc", "--instance=i", "--ttl=3s", "--interval=2s", "-s", &server.url()];
    let mut agent = aegis(&arguments).spawn();
    let warning = agent.wait_for_line("a third of the TTL", secs(5));
    assert!(warning.text.contains("warning") && warning.text.contains("2s"), "{}", warning.text);
    agent.wait_for_line("registered abc/i", secs(5));
}

/// "`run --ttl 5m` beats every 10 s; today it beats every 100 s, is hidden by
/// every reader and deleted alive."
#[test]
fn a_long_ttl_does_not_make_heartbeats_rare() {
    let server = Server::any();
    let words = ["run", "--service=abc", "--instance=i", "--ttl=5m", "-s", &server.url()];
    let mut agent = aegis(&words).spawn();
    let line = agent.wait_for_line("registered abc/i", secs(5));
    assert!(line.text.ends_with("TTL 5m, heartbeat every 10s"), "{}", line.text);
}

/// A call on a host whose /etc holds this host file and nothing else, without a
/// network; `None`, said aloud, where that cannot be made.
fn on_a_host(settings: &str, arguments: &[&str]) -> Option<Output> {
    let script = "mount -t tmpfs none /etc && mkdir /etc/aegis-agent && cd /etc/aegis-agent && \
                  eval \"$0\" && exec \"$@\"";
    let words = ["unshare", "--mount", "--net", "sh", "-c", script, settings];
    let wrapper: Vec<String> = words.map(str::to_owned).to_vec();
    let tried = std::process::Command::new(&wrapper[0])
        .args(&wrapper[1..])
        .arg("true")
        .output()
        .is_ok_and(|output| output.status.success());
    if !tried {
        eprintln!("SKIPPED: a host of its own takes root and unshare");
        return None;
    }
    Some(aegis(arguments).env("XDG_CONFIG_HOME", "/etc/user").wrapped(&wrapper).run())
}

/// "by default `/etc/aegis-agent/agent.env` where it can be read"
#[test]
fn every_verb_asks_where_the_hosts_file_says() {
    let settings = "printf 'NATS_URL=nats://127.0.0.1:4567\\nNATS_TIMEOUT=\"1s\"\\n' >agent.env";
    for verb in ["list", "check", "cleanup", "init"] {
        let Some(output) = on_a_host(settings, &[verb]) else { return };
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(said.contains("127.0.0.1:4567: "), "{verb}: {output:?}");
        let output = on_a_host(settings, &[verb, "--server", "127.0.0.1:4568"]).expect("as before");
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(said.contains("127.0.0.1:4568: "), "{verb}: {output:?}");
    }
}

/// "Where the file exists and cannot be read, say so when connecting fails"; "the
/// hint on a failed default connection names the context that `nats context
/// select` chose"
#[test]
fn a_failed_default_connection_tells_what_could_have_said_where_to_connect() {
    let settings = "mkdir -p agent.env /etc/user/nats/context && \
                    printf '{\"url\":\"nats://127.0.0.1:4569\"}' >/etc/user/nats/context/prod.json && \
                    echo prod >/etc/user/nats/context.txt";
    for verb in ["list", "check", "cleanup"] {
        let Some(output) = on_a_host(settings, &[verb]) else { return };
        let said = format!("{}{}", output.stdout, output.stderr);
        for words in [
            "127.0.0.1:4222: ",
            "/etc/aegis-agent/agent.env exists and cannot be read: is a directory",
            ": aegis-agent check --context prod\n",
        ] {
            assert!(said.contains(words), "{verb}: {words}: {said}");
        }
        let output = on_a_host(settings, &[verb, "--context", "prod"]).expect("as before");
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(said.contains("127.0.0.1:4569: "), "{verb}: {said}");
        assert!(!said.contains("context select"), "{verb}: {said}");
    }
}

#[test]
fn the_instance_is_the_host_name_up_to_its_first_dot() {
    let server = Server::any();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("the host has a name");
    let short = host.trim().split('.').next().expect("a first part");
    let mut agent = aegis(&["run", "--service=abc", "-s", &server.url()]).spawn();
    agent.wait_for_line(&format!("registered abc/{short} "), secs(5));
}

#[test]
fn no_secret_of_a_url_is_ever_shown() {
    let server = Server::absent(Setup::default());
    let url = format!("nats://user:hunter2@127.0.0.1:{}", server.port());
    for output in
        [aegis(&["list", "-s", &url]).run(), aegis(&["list", "-s", &url, "--verbose"]).run()]
    {
        assert_eq!(output.code, 69, "{output:?}");
        assert!(!output.stderr.contains("hunter2"), "{output:?}");
    }
    let broken = aegis(&["list", "-s", "nats://user:hunter2@host:port"]).run();
    assert_refused(broken.exits(64), 64, &["--nats-url"]);
}

#[test]
fn no_secret_is_shown_where_a_url_stands_in_the_wrong_place() {
    let url = "nats://user:hunter2@a";
    let attached = format!("-s{url}");
    for arguments in [
        &["list", "-s", url, "-s", url][..],
        &["list", url],
        &[url],
        &["list", &attached],
        &["list", "--bucket", url],
        &["list", "--service", url],
        &["list", "--context", url],
        &["list", "--creds", url],
        &["list", "--timeout", url],
        &["run", "--service=abc", "--meta", url],
    ] {
        let output = aegis(arguments).within(secs(5)).run();
        assert!(matches!(output.code, 64 | 78), "{output:?}");
        assert!(output.stderr.contains("error: "), "{output:?}");
        assert!(!output.stderr.contains("hunter2"), "{output:?}");
    }
}

/// `--help >/dev/full`, with a full pipe for a full disk.
#[test]
fn help_that_cannot_be_written_exits_75_and_says_why() {
    use std::io::Write;
    for option in ["--help", "--version"] {
        let (_reader, mut writer) = std::os::unix::net::UnixStream::pair().expect("a pair");
        writer.set_nonblocking(true).expect("sets");
        while writer.write(&[0; 4096]).is_ok() {}
        let mut command = aegis(&[option]).command();
        let child = command.stdout(std::os::fd::OwnedFd::from(writer));
        let child = child.stderr(std::process::Stdio::piped()).spawn().expect("starts");
        let output = child.wait_with_output().expect("ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(75), "{said}");
        assert!(said.contains("error: cannot write to standard output"), "{said}");
    }
}
