//! `check`: the four formats, where they go, and what an outage looks like in
//! each of them.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::json;

use crate::harness::agent::{Output, aegis};
use crate::harness::proxy::{Flow, Proxy};
use crate::harness::registry::Registry;
use crate::harness::server::{Server, Setup};
use crate::harness::{eventually, scratch, secs};

const FORMATS: [&str; 4] = ["text", "json", "nagios", "prometheus"];

fn check(url: &str, options: &[&str]) -> Output {
    aegis(&[&["check", "-s", url], options].concat()).run()
}

/// A bucket with something to say in every format.
fn troubled() -> (Server, Registry) {
    let server = Server::start("2.12.8");
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({ "max_msgs_per_subject": 10, "max_bytes": 102_400 }));
    registry.put("echo-service", &[], "{}");
    registry.put("service-instances__orders-api__a", &[], "{}");
    registry.put("service-instances__web__b", &[("Nats-TTL", "1h")], "{}");
    (server, registry)
}

/// The number after each occurrence of `before` replaced by `N`, and its unit by
/// `T`: small times are told in microseconds.
fn masked(text: &str, before: &str) -> String {
    let mut parts = text.split(before);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |done, part| {
        let number = |c: char| c.is_ascii_digit() || c == '.' || c == '-';
        let rest = part.trim_start_matches(number);
        // After a sign it is a program's number, whose unit is always the same.
        let units: &[&str] = if before.ends_with(' ') { &["us", "ms", "s"] } else { &[] };
        let unit = units.iter().find_map(|unit| rest.strip_prefix(*unit));
        match unit {
            Some(rest) => format!("{done}{before}NT{rest}"),
            None => format!("{done}{before}N{rest}"),
        }
    })
}

fn is_golden(format: &str, mask: &[&str], golden: &str) {
    let (server, _registry) = troubled();
    let output = check(&server.url(), &["--probe", "--format", format]).exits(1);
    let mut text = output.stdout.replace(&format!(":{}", server.port()), ":PORT");
    // The offset of two clocks of one machine has either sign.
    text = text.replace(" behind the reg", " ahead of the reg");
    for before in mask {
        text = masked(&text, before);
    }
    if std::env::var_os("AEGIS_WRITE_GOLDEN").is_some() {
        let name = if format == "prometheus" { "prom" } else { format };
        let name = if name == "text" { "txt" } else { name };
        let path = format!("{}/tests/golden/check.{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, &text).expect("writes the golden file");
    }
    assert_eq!(text, golden, "{output:#?}");
}

/// Read by people; pinned so that a change is seen.
#[test]
fn the_text_is_byte_for_byte_the_golden_one() {
    let mask = ["round trip ", "clock is ", "put in ", "gone "];
    is_golden("text", &mask, include_str!("../golden/check.txt"));
}

/// Read by scripts and other tools: a change here breaks them.
#[test]
fn the_json_is_byte_for_byte_the_golden_one() {
    let mask = [
        "round trip ",
        "round trip NT\",\"hint\":null,\"value\":",
        "clock is ",
        "put in ",
        "gone ",
        "registry's\",\"hint\":null,\"value\":",
        "end\",\"hint\":null,\"value\":",
    ];
    is_golden("json", &mask, include_str!("../golden/check.json"));
}

/// Read by Nagios, Icinga and what parses their performance data.
#[test]
fn the_nagios_line_is_byte_for_byte_the_golden_one() {
    let mask = ["'round_trip'=", "'clock_offset'=", "'probe_put'=", "'probe_expiry_delay'="];
    is_golden("nagios", &mask, include_str!("../golden/check.nagios"));
}

/// Read by Prometheus through the textfile collector; rules name these metrics.
#[test]
fn the_metrics_are_byte_for_byte_the_golden_ones() {
    let of = |name: &str| format!("{name}{{bucket=\"service_registry\"}} ");
    let mask = [
        "aegis_round_trip_seconds",
        "aegis_clock_offset_seconds",
        "aegis_probe_put_seconds",
        "aegis_probe_expiry_delay_seconds",
    ]
    .map(of);
    let mask: Vec<&str> = mask.iter().map(String::as_str).collect();
    is_golden("prometheus", &mask, include_str!("../golden/check.prom"));
}

#[test]
fn the_nagios_answer_is_one_line_with_data_after_one_bar() {
    let (server, _registry) = troubled();
    let output = check(&server.url(), &["--format=nagios"]).exits(1);
    assert_eq!(output.stdout.lines().count(), 1, "{output:?}");
    assert_eq!(output.stdout.matches('|').count(), 1, "{output:?}");
    assert!(output.stdout.starts_with("AEGIS WARNING: "), "{output:?}");
    let (_, data) = output.stdout.split_once(" | ").expect("performance data");
    for one in data.split_whitespace() {
        let (label, value) = one.split_once('=').expect("label=value");
        assert!(label.starts_with('\'') && label.ends_with('\''), "{one}");
        let value = value.split(';').next().unwrap_or_default();
        let value = value.trim_end_matches(['s', 'B']);
        assert!(value.parse::<f64>().is_ok(), "{one}");
    }
}

// Outages are answers, too.

#[test]
fn an_unreachable_server_is_a_whole_report_in_every_format() {
    let server = Server::absent(Setup::default());
    let port = server.port().to_string();
    for (format, text) in [
        ("text", "critical  connection"),
        ("json", "\"name\":\"connection\",\"status\":\"critical\""),
        ("nagios", "AEGIS CRITICAL: bucket service_registry: connection: "),
        ("prometheus", "aegis_check_status{bucket=\"service_registry\",check=\"connection\"} 2"),
    ] {
        let output = check(&server.url(), &["--format", format, "--probe"]).exits(2);
        assert!(output.stdout.contains(text), "{output:?}");
        assert!(format == "prometheus" || output.stdout.contains(&port), "{output:?}");
        assert_eq!(output.stderr, "");
        assert!(output.took < secs(2), "refused at once: {output:?}");
    }
}

#[test]
fn a_frozen_server_is_critical_within_the_timeout_and_a_second() {
    let mut server = Server::any();
    server.freeze();
    for format in FORMATS {
        let output = check(&server.url(), &["--format", format, "--timeout=1s"]).exits(2);
        assert!(output.took < secs(2), "{output:?}");
        assert!(!output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn a_server_that_falls_silent_during_the_check_leaves_the_rest_unknown() {
    let (server, _registry) = troubled();
    let proxy = Proxy::to(server.port());
    let silent = std::sync::atomic::AtomicBool::new(false);
    // After the first answer of JetStream nothing passes any more.
    proxy.rewrite(move |bytes| {
        let api = bytes.windows(9).any(|part| part == b"\"type\":\"i");
        if api {
            silent.store(true, std::sync::atomic::Ordering::SeqCst);
        }
        if silent.load(std::sync::atomic::Ordering::SeqCst) { Vec::new() } else { bytes.to_vec() }
    });
    let output = check(&proxy.url(), &["--json", "--timeout=1s", "--probe"]).exits(3);
    assert!(output.took < secs(4), "{output:?}");
    let answer = output.json();
    assert_eq!(answer["checks"][0]["status"], "ok", "{answer:#}");
    assert!(output.stdout.contains("no answer in time"), "{output:?}");
    proxy.set(Flow::Discard);
}

#[test]
fn bad_usage_is_unknown() {
    for bad in
        [&["--format=xml"][..], &["--nonsense"], &["--output=x"], &["--json", "--format=text"]]
    {
        let output = check("nats://127.0.0.1:1", bad).exits(3);
        assert_eq!(output.stdout, "", "{output:?}");
        assert!(output.stderr.contains("error: "), "{output:?}");
    }
}

#[test]
fn a_file_that_cannot_be_used_is_unknown_and_named() {
    let output = check("nats://127.0.0.1:1", &["--json", "--creds=/no/such/file"]).exits(3);
    let answer = output.json();
    assert_eq!(answer["checks"][0]["status"], "unknown", "{answer:#}");
    assert!(answer["checks"][0]["message"].as_str().is_some_and(|m| m.contains("/no/such/file")));
    let hint = answer["checks"][0]["hint"].as_str().expect("a hint");
    assert!(hint.contains("--creds") && hint.contains("NATS_CREDS"), "{hint}");
}

#[test]
fn a_bad_setting_is_a_whole_report_in_every_format() {
    let directory = scratch("check-settings");
    for (format, text) in [
        ("text", "unknown   connection      NATS_TIMEOUT \"soon\": not a duration"),
        ("json", "\"name\":\"connection\",\"status\":\"unknown\",\"message\":\"NATS_TIMEOUT "),
        ("nagios", "AEGIS UNKNOWN: bucket b: connection: NATS_TIMEOUT "),
        ("prometheus", "aegis_check_status{bucket=\"b\",check=\"connection\"} 3"),
    ] {
        let call = aegis(&["check", "--format", format, "--probe"]).env("AEGIS_BUCKET", "b");
        let output = call.env("NATS_TIMEOUT", "soon").run().exits(3);
        assert!(output.stdout.contains(text), "{output:?}");
        assert_eq!(output.stderr, "");
    }
    let answer = aegis(&["check", "--json", "--context=nosuch"]).run().exits(3).json();
    assert_eq!(answer["status"], "unknown", "{answer:#}");
    assert_eq!(answer["checks"].as_array().map(Vec::len), Some(11), "{answer:#}");
    let first = answer["checks"][0].to_string();
    assert!(first.contains("context nosuch") && !first.contains("\"hint\":null"), "{first}");
    let path = directory.join("aegis.prom");
    let name = path.to_str().expect("UTF-8");
    let arguments = ["check", "--format=prometheus", "--context=nosuch", "--output", name];
    let output = aegis(&arguments).run().exits(3);
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("", ""));
    let text = std::fs::read_to_string(&path).expect("reads");
    assert!(text.contains("aegis_status{bucket=\"service_registry\"} 3\n"), "{text}");
}

/// `check | head -0`
#[test]
fn a_reader_that_went_away_does_not_make_it_a_success() {
    let (server, _registry) = troubled();
    for format in FORMATS {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let agent = aegis(&["check", "-s", &server.url(), "--format", format]);
        let status = agent.command().stdout(writer).status().expect("starts");
        assert_eq!(status.code(), Some(1), "--format {format}");
    }
}

// Colours.

/// Runs `check` on a terminal of its own and returns what it printed.
fn on_a_terminal(url: &str, environment: &str) -> String {
    let script = "import os, pty, sys\n\
                  chunks = []\n\
                  def read(fd):\n\
                  \x20   data = os.read(fd, 4096)\n\
                  \x20   chunks.append(data)\n\
                  \x20   return b''.join([data])\n\
                  pty.spawn(sys.argv[1:], read)\n";
    let agent = env!("CARGO_BIN_EXE_aegis-agent");
    let mut arguments = vec!["env", "TERM=xterm"];
    arguments.extend((!environment.is_empty()).then_some(environment));
    arguments.extend([agent, "check", "-s", url]);
    let output = Command::new("python3")
        .args(["-c", script])
        .args(arguments)
        .env_remove("NO_COLOR")
        .stdin(std::process::Stdio::null())
        .output()
        .expect("python3 runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn colour_is_for_terminals_and_never_with_no_color() {
    let (server, _registry) = troubled();
    let piped = check(&server.url(), &[]).exits(1).stdout;
    assert!(!piped.contains('\u{1b}'), "{piped:?}");
    let coloured = on_a_terminal(&server.url(), "");
    assert!(coloured.contains("\u{1b}[33mwarning"), "{coloured:?}");
    let plain = on_a_terminal(&server.url(), "NO_COLOR=1");
    assert!(plain.contains("warning") && !plain.contains('\u{1b}'), "{plain:?}");
}

// Files for the textfile collector.

#[test]
fn the_output_file_is_written_whole_readable_and_alone() {
    let (server, _registry) = troubled();
    let directory = scratch("check-output");
    let path = directory.join("aegis.prom");
    std::fs::write(&path, "old").expect("writes");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("sets");
    let name = path.to_str().expect("UTF-8");
    let output = check(&server.url(), &["--format=prometheus", "--output", name]).exits(1);
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("", ""));
    let text = std::fs::read_to_string(&path).expect("reads");
    assert!(text.starts_with("# HELP aegis_status ") && text.ends_with('\n'), "{text}");
    let mode = std::fs::metadata(&path).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o644, "{mode:o}");
    let files = std::fs::read_dir(&directory).expect("reads").count();
    assert_eq!(files, 1, "no temporary file stays");
    // A failed check must not look like success, nor like the last one.
    let absent = Server::absent(Setup::default());
    check(&absent.url(), &["--format=prometheus", "--output", name]).exits(2);
    let text = std::fs::read_to_string(&path).expect("reads");
    assert!(text.contains("aegis_status{bucket=\"service_registry\"} 2\n"), "{text}");
}

/// `--output` names a link or something that is no file: tried on a FIFO, which
/// anybody can make; a device is the same door.
#[test]
fn an_output_that_is_no_regular_file_stays_what_it_is() {
    let (server, _registry) = troubled();
    let directory = scratch("check-output");
    let fifo = directory.join("fifo");
    let made = Command::new("mkfifo").arg(&fifo).status().expect("mkfifo runs");
    assert!(made.success());
    let link = directory.join("link.prom");
    std::os::unix::fs::symlink("fifo", &link).expect("links");
    let name = link.to_str().expect("UTF-8");
    let arguments = ["--format=prometheus", "--output", name];
    let output = check(&server.url(), &arguments).exits(3);
    assert!(output.stderr.contains("nobody reads from this FIFO"), "{output:?}");
    let mut reader = Command::new("cat");
    let reader = reader.arg(&fifo).stdout(std::process::Stdio::piped()).spawn().expect("cat runs");
    // `cat` has opened it, once a writer does not find it without a reader.
    eventually(secs(10), "the FIFO has a reader", || {
        let output = check(&server.url(), &arguments);
        if output.code == 1 { Ok(()) } else { Err(output.stderr) }
    });
    let text = reader.wait_with_output().expect("ends").stdout;
    assert!(text.starts_with(b"# HELP aegis_status "), "{text:?}");
    assert_eq!(std::fs::read_dir(&directory).expect("reads").count(), 2);
    assert!(link.is_symlink());
    std::fs::remove_dir_all(directory).expect("removes its own directory");
}

#[test]
fn an_output_file_that_cannot_be_written_is_unknown_and_named() {
    let (server, _registry) = troubled();
    let directory = scratch("check-output");
    let path = directory.join("missing/aegis.prom");
    let name = path.to_str().expect("UTF-8");
    let output = check(&server.url(), &["--format=prometheus", "--output", name]).exits(3);
    assert!(output.stderr.contains(name), "{output:?}");
    // A directory of that name stays what it is.
    let path = directory.join("aegis.prom");
    std::fs::create_dir(&path).expect("makes it");
    let name = path.to_str().expect("UTF-8");
    check(&server.url(), &["--format=prometheus", "--output", name]).exits(3);
    assert_eq!(std::fs::read_dir(&directory).expect("reads").count(), 1);
}
