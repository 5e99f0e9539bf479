//! Every command that the program hints at works when it is pasted into a
//! shell: ours by the built binary, those of the `nats` CLI by the real one
//! where `NATS_CLI` names it, else against a list of its commands.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::agent::{aegis, binary};
use crate::harness::fault::say;
use crate::harness::registry::Registry;
use crate::harness::server::{Server, Setup};
use crate::harness::{scratch, secs};

/// The options of the `nats` CLI 0.5.1 that hints use, by command.
const NATS: [(&str, &[&str]); 2] =
    [("kv edit", &["--max-bucket-size"]), ("stream find", &["--subject"])];
/// Options of the connection, which stand before the command.
const NATS_GLOBAL: [&str; 9] = [
    "-s",
    "--creds",
    "--nkey",
    "--user",
    "--tlsca",
    "--tlscert",
    "--tlskey",
    "--context",
    "--inbox-prefix",
];

/// The command that a hint ends with, if it has one.
fn command(hint: &str) -> Option<&str> {
    let begins = |text: &str| text.starts_with("aegis-agent ") || text.starts_with("nats ");
    if begins(hint) {
        return Some(hint);
    }
    hint.match_indices(": ").map(|(at, _)| &hint[at + 2..]).find(|rest| begins(rest))
}

/// Pastes a command into a shell that finds our binary, and the real CLI or
/// something that takes what it takes; the exit code and all that was said.
fn paste(command: &str) -> (i32, String) {
    assert!(!command.contains('('), "no words in parentheses: {command}");
    let directory = scratch("hints");
    let link = |name: &str, to: &str| {
        std::os::unix::fs::symlink(to, directory.join(name)).expect("links");
    };
    link("aegis-agent", &binary());
    match std::env::var("NATS_CLI") {
        Ok(path) => link("nats", &path),
        Err(_) if command.starts_with("nats ") => {
            nats_takes(command);
            return (0, String::new());
        }
        Err(_) => {}
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("sh")
        .args(["-c", command])
        .env("PATH", format!("{}:{path}", directory.display()))
        .env("HOME", &directory)
        .output()
        .expect("sh runs");
    let _ = std::fs::remove_dir_all(&directory);
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
}

/// Whether the CLI has this command with these options.
fn nats_takes(command: &str) {
    let mut words = command.split_whitespace().skip(1).peekable();
    while let Some(option) = words.next_if(|word| word.starts_with('-')) {
        assert!(NATS_GLOBAL.contains(&option), "{option} in {command}");
        words.next();
    }
    let verb = [words.next(), words.next()].map(Option::unwrap_or_default).join(" ");
    let known = NATS.iter().find(|(name, _)| *name == verb);
    let options = known.unwrap_or_else(|| panic!("{verb:?} in {command}")).1;
    for option in words.filter(|word| word.starts_with('-')) {
        let name = option.split('=').next().unwrap_or_default();
        assert!(options.contains(&name), "{option} in {command}");
    }
}

fn hint(answer: &Value, name: &str) -> String {
    let checks = answer["checks"].as_array().cloned().unwrap_or_default();
    let check = checks.into_iter().find(|check| check["name"] == name).expect("it is there");
    check["hint"].as_str().unwrap_or_else(|| panic!("no hint: {check:#}")).to_owned()
}

/// Nothing says where NATS is but the context that `nats context select` chose:
/// it is not taken, and the hint that names it leads there from every verb.
#[test]
fn the_selected_context_is_one_command_away() {
    let server = Server::start("2.12.8");
    Registry::named(&server.url(), "service_registry").create(&json!({}));
    let home = scratch("selected");
    let directory = home.join("nats/context");
    std::fs::create_dir_all(&directory).expect("makes the directory");
    let context = json!({ "url": server.url() }).to_string();
    std::fs::write(directory.join("prod.json"), context).expect("writes the context");
    std::fs::write(home.join("nats/context.txt"), "prod\n").expect("selects it");
    let home = home.display().to_string();
    let verbs: [&[&str]; 5] = [
        &["list"],
        &["cleanup", "--only=no-ttl"],
        &["init"],
        &["check"],
        &["run", "--service=web"],
    ];
    for words in verbs {
        // A registry on this machine's own port would be found.
        let Some(call) = nowhere(words, &home) else { return };
        let hint = call.lines().find_map(|line| line.split_once("hint: ")).expect("a hint").1;
        assert_eq!(hint, "aegis-agent check --context prod", "{words:?}: {call}");
        let (code, said) = paste(&format!("XDG_CONFIG_HOME={home} {hint}"));
        assert!(code < 2, "{hint}: {code} {said}");
    }
}

/// What a call says while nothing listens on the default port; `None` where
/// something does.
fn nowhere(words: &[&str], config: &str) -> Option<String> {
    if std::net::TcpStream::connect("127.0.0.1:4222").is_ok() {
        say("something listens on port 4222: SKIPPED");
        return None;
    }
    let call = aegis(words).env("XDG_CONFIG_HOME", config);
    if words[0] == "run" {
        let mut agent = call.spawn();
        return Some(agent.wait_for_line("hint: ", secs(5)).text);
    }
    let output = call.run();
    Some(output.stdout + &output.stderr)
}

/// A bucket that is not well, and what mends it: pasted, `check` is content.
#[test]
fn what_check_hints_at_mends_it_when_pasted() {
    for (row, changes) in [
        ("ttl-flag", json!({ "allow_msg_ttl": false })),
        ("history", json!({ "max_msgs_per_subject": 10 })),
        ("server-version", json!({ "max_msgs_per_subject": 10 })),
        (
            "max-age",
            json!({ "max_age": 10_000_000_000_u64, "duplicate_window": 10_000_000_000_u64 }),
        ),
        ("markers", json!({})),
        ("legacy-entries", json!({})),
        ("bucket", json!({ "max_bytes": 10_240 })),
    ] {
        let server = Server::start("2.12.8");
        let mut registry = Registry::named(&server.url(), "odd-1");
        registry.create(&changes);
        if row == "legacy-entries" {
            registry.put("service-instances__web__a", &[], "{}");
        }
        if row == "bucket" {
            registry.put("echo-service", &[], &"x".repeat(9_000));
        }
        let check =
            || aegis(&["check", "--json", "--bucket=odd-1", "-s", &server.url()]).run().json();
        let mut is_real = true;
        // More room takes a bucket that the CLI can edit.
        for _ in 0..if row == "bucket" { 2 } else { 1 } {
            let hint = hint(&check(), row);
            let command = command(&hint).unwrap_or_else(|| panic!("{row}: {hint}"));
            let (code, said) = paste(command);
            assert_eq!(code, 0, "{row}: {command}: {said}");
            is_real = command.starts_with("aegis-agent ") || std::env::var("NATS_CLI").is_ok();
        }
        let after = check();
        let checks = after["checks"].as_array().cloned().unwrap_or_default();
        let after = checks.iter().find(|check| check["name"] == row).expect("it is there");
        // What cannot be read is not removed without being asked for.
        if is_real && row != "legacy-entries" {
            assert_eq!((&after["status"], &after["hint"]), (&json!("ok"), &Value::Null), "{row}");
        }
    }
}

/// With a login, a context or another bucket the command goes to the same place.
#[test]
fn a_pasted_command_has_this_calls_connection() {
    let server = Server::with(Setup {
        extra: "authorization { users: [ { user: it, password: p } ] }\n".to_owned(),
        ..Setup::default()
    });
    let directory = scratch("hint-login");
    let password = directory.join("it's secret");
    std::fs::write(&password, "p\n").expect("writes");
    let output = aegis(&["list", "--bucket=other", "--user=it", "--password-file"])
        .arg(password.to_str().expect("UTF-8"))
        .arg("-s")
        .arg(&server.url().replace("nats://", "nats://who:ever@"))
        .run()
        .exits(69);
    let hint = output.stderr.lines().find_map(|line| line.split("hint: ").nth(1)).expect("a hint");
    assert!(!hint.contains("ever"), "no secret: {hint}");
    let (code, said) = paste(command(hint).expect("a command"));
    assert_eq!(code, 0, "{hint}: {said}");
    let login = json!({ "user": "it", "pass": "p" });
    assert!(Registry::login(&server.url(), "other", &login).info().is_ok());
    let _ = std::fs::remove_dir_all(&directory);
}

/// `nats stream find` without a subject asks for one.
#[test]
fn the_stream_that_has_the_subjects_is_found_by_the_hint() {
    let server = Server::start("2.12.8");
    let mut other = Registry::named(&server.url(), "other");
    other.create(&json!({ "subjects": ["$KV.service_registry.>"] }));
    let output = aegis(&["init", "-s", &server.url()]).run().exits(69);
    let hint = output.stderr.lines().find_map(|line| line.split("hint: ").nth(1)).expect("a hint");
    let (code, said) = paste(command(hint).expect("a command"));
    assert_eq!(code, 0, "{hint}: {said}");
    if std::env::var("NATS_CLI").is_ok() {
        assert!(said.contains("KV_other"), "{said}");
    }
}

/// All commands in the program's own text, wherever they stand: no words in
/// parentheses follow, and the binary or the CLI knows them.
#[test]
fn every_command_in_the_source_is_one_that_exists() {
    let mut found = BTreeSet::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    collect(&root, &mut found);
    assert!(found.len() >= 8, "{found:?}");
    for command in &found {
        assert!(!command.contains('('), "no words in parentheses: {command}");
        let words: Vec<&str> = command.split_whitespace().collect();
        if words[0] == "nats" {
            nats_takes(command);
            continue;
        }
        let help = |words: &[&str]| aegis(words).run().exits(0).stdout;
        let help = help(&[words[1], "--help"]) + &help(&["--help"]);
        for option in words[2..].iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(option), "{option} of {command}: {help}");
        }
    }
}

fn collect(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).expect("reads").flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, found);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        // Tests of a room stand in a file of their own.
        if path.ends_with("tests.rs") || path.ends_with("pages.rs") || path.ends_with("call.rs") {
            continue;
        }
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in lines {
            for begin in [
                "aegis-agent init",
                "aegis-agent check",
                "aegis-agent cleanup",
                "nats stream ",
                "nats kv ",
            ] {
                for (at, _) in line.match_indices(begin) {
                    let rest = line[at..].split(['"', ';']).next().unwrap_or_default();
                    found.insert(rest.trim_end_matches('\\').trim().to_owned());
                }
            }
        }
    }
}
