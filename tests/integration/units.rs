//! The units and packages under systemd/ and packaging/: verified, scored, and
//! whole. What they do on a live systemd is tests/live_systemd.py's subject.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::cleanup::{fresh, key, stored};
use crate::harness::scene::any_bucket;
use crate::harness::scratch;

const SERVICES: [&str; 4] = [
    "aegis-agent@orders-api.service",
    "aegis-agent.service",
    "aegis-agent-cleanup.service",
    "aegis-agent-check.service",
];
const TIMERS: [&str; 2] = ["aegis-agent-cleanup.timer", "aegis-agent-check.timer"];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A root with the units, their partner and their program in it; `None`, said
/// aloud, where there is no systemd-analyze.
fn root() -> Option<PathBuf> {
    // The units are written for 252 and later; `security --offline` is as old.
    let version = Command::new("systemd-analyze").arg("--version").output();
    let version = version.map(|output| said(&output)).unwrap_or_default();
    let number = version.split_whitespace().nth(1).and_then(|word| word.parse::<u32>().ok());
    if number.is_none_or(|number| number < 252) {
        eprintln!("SKIPPED: no systemd-analyze of 252 or later (Debian: systemd): {version:?}");
        return None;
    }
    let root = scratch("units");
    let units = root.join("usr/lib/systemd/system");
    std::fs::create_dir_all(&units).expect("a directory");
    std::fs::create_dir_all(root.join("usr/bin")).expect("a directory");
    for (link, target) in [("bin", "usr/bin"), ("lib", "usr/lib")] {
        std::os::unix::fs::symlink(target, root.join(link)).expect("a link");
    }
    for program in ["aegis-agent", "sh"] {
        std::fs::copy("/bin/sh", root.join("usr/bin").join(program)).expect("a program");
    }
    for entry in std::fs::read_dir(repository().join("systemd")).expect("systemd/").flatten() {
        let name = entry.file_name().into_string().expect("UTF-8");
        if name.ends_with(".service") || name.ends_with(".timer") {
            std::fs::copy(entry.path(), units.join(&name)).expect("copies a unit");
        }
    }
    let template = units.join("aegis-agent@.service");
    std::fs::copy(template, units.join(SERVICES[0])).expect("an instance");
    let partner = "[Service]\nExecStart=/bin/sh\n";
    std::fs::write(units.join("orders-api.service"), partner).expect("the partner");
    for target in ["sysinit", "basic", "shutdown", "network", "timers", "time-sync", "time-set"] {
        std::fs::write(units.join(format!("{target}.target")), "[Unit]\n").expect("a target");
    }
    Some(root)
}

fn analyze(root: &Path, arguments: &[&str]) -> Output {
    Command::new("systemd-analyze")
        .args(["--no-pager", &format!("--root={}", root.display())])
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .output()
        .expect("systemd-analyze runs")
}

fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn systemd_analyze_verify_has_nothing_to_say() {
    let Some(root) = root() else { return };
    let units: Vec<&str> = SERVICES.into_iter().chain(TIMERS).collect();
    // The man pages are not in this root.
    let output = analyze(&root, &[&["verify", "--man=no"][..], &units].concat());
    assert!(output.status.success() && said(&output).trim().is_empty(), "{}", said(&output));

    // It would: a name that this systemd does not know.
    let path = root.join("usr/lib/systemd/system/aegis-agent.service");
    let unit = std::fs::read_to_string(&path).expect("there");
    std::fs::write(&path, unit.replace("[Service]\n", "[Service]\nBogus=yes\n")).expect("written");
    let output = analyze(&root, &["verify", "--man=no", "aegis-agent.service"]);
    assert!(said(&output).contains("Bogus"), "{}", said(&output));
}

#[test]
fn no_service_is_more_exposed_than_it_has_to_be() {
    let Some(root) = root() else { return };
    for service in SERVICES {
        // Succeeds where the exposure is at most a tenth of the threshold.
        let output = analyze(&root, &["security", "--offline=yes", "--threshold=12", service]);
        assert!(output.status.success(), "{}", said(&output));
        let text = said(&output);
        let last = text.trim().lines().next_back().unwrap_or_default();
        assert!(last.contains("exposure level"), "{last}");
    }
}

#[test]
fn every_service_is_locked_down_in_the_same_way() {
    let lock = |name: &str| {
        let unit = read(&format!("systemd/{name}"));
        let from = unit.find("DynamicUser=yes").expect("a dynamic user");
        let lock = &unit[from..];
        lock.split("\n\n[Install]").next().expect("one part").trim().to_owned()
    };
    let first = lock("aegis-agent@.service");
    for wanted in [
        "CapabilityBoundingSet=\n",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "SystemCallFilter=@system-service\nSystemCallFilter=~@privileged @resources",
    ] {
        assert!(first.contains(wanted), "{wanted}");
    }
    for other in ["aegis-agent.service", "aegis-agent-cleanup.service", "aegis-agent-check.service"]
    {
        assert_eq!(lock(other), first, "{other}");
    }
}

#[test]
fn agents_are_restarted_for_ever_but_not_for_what_a_restart_cannot_cure() {
    for name in ["aegis-agent@.service", "aegis-agent.service"] {
        let unit = read(&format!("systemd/{name}"));
        for line in [
            "Type=notify",
            "StartLimitIntervalSec=0",
            "Restart=on-failure",
            "RestartPreventExitStatus=64 78",
            "WatchdogSec=30s",
        ] {
            assert!(unit.lines().any(|l| l == line), "{name}: {line}");
        }
    }
    let template = read("systemd/aegis-agent@.service");
    for line in ["BindsTo=%i.service", "After=%i.service network.target", "WantedBy=%i.service"] {
        assert!(template.lines().any(|l| l == line), "{line}");
    }
}

#[test]
fn hosts_take_turns_at_cleaning() {
    let timer = read("systemd/aegis-agent-cleanup.timer");
    for line in ["OnCalendar=*:0/5", "RandomizedDelaySec=5min", "FixedRandomDelay=yes"] {
        assert!(timer.lines().any(|l| l == line), "{line}");
    }
}

#[test]
fn the_cron_line_is_one_that_cron_and_sh_take() {
    let cron = read("systemd/aegis-agent.cron");
    let line = cron.lines().find(|line| line.starts_with("*/5 ")).expect("a line");
    // What follows an unescaped per cent sign would be the command's input.
    assert_eq!(line.matches('%').count(), line.matches("\\%").count());
    let mut fields = line.splitn(7, ' ');
    assert_eq!(fields.nth(5), Some("nobody"));
    let command = fields.next().expect("a command").replace("\\%", "%");
    assert!(command.starts_with("[ -d /run/systemd/system ] || "), "not where timers are");
    let check = Command::new("sh").args(["-n", "-c", &command]).output().expect("sh runs");
    assert!(check.status.success(), "{}", said(&check));
    // The moment is within the five minutes, and always the same.
    let from = command.find("$((").expect("a sum");
    let to = command.find("))\"").expect("its end");
    let sum = format!("echo \"{}))\"", &command[from..to]);
    let delay = || {
        let output = Command::new("sh").args(["-c", &sum]).output().expect("sh runs");
        said(&output).trim().parse::<u32>().unwrap_or_else(|_| panic!("{}", said(&output)))
    };
    assert!(delay() < 240 && delay() == delay());
}

/// The command of the cron line, as cron hands it to sh, with the settings of
/// this file and without its wait.
fn cron_command(settings: &Path) -> Command {
    let cron = read("systemd/aegis-agent.cron");
    let line = cron.lines().find(|line| line.starts_with("*/5 ")).expect("a line");
    let command = line.splitn(7, ' ').nth(6).expect("a command").replace("\\%", "%");
    let command = command
        .replace("/run/systemd/system", "/nowhere")
        .replace("% 240", "% 1")
        .replace("/etc/aegis-agent/agent.env", &settings.display().to_string());
    let program = Path::new(env!("CARGO_BIN_EXE_aegis-agent"));
    let place = program.parent().expect("a directory").display();
    let mut sh = Command::new("sh");
    sh.args(["-c", &command]).env_clear().env("PATH", format!("{place}:/usr/bin:/bin"));
    sh
}

/// "`AEGIS_CLEANUP_OPTIONS=--max-removals 2`, unquoted as systemd allows, runs
/// as a shell command in the cron line, and everything is removed"
#[test]
fn the_cron_line_keeps_to_the_limits_of_the_hosts_file_and_runs_nothing_in_it() {
    let (server, mut registry) = any_bucket();
    for n in 0..5 {
        registry.put(&key(&format!("legacy{n}")), &[], &fresh(&format!("legacy{n}")));
    }
    let directory = scratch("cron");
    let (settings, touched) = (directory.join("agent.env"), directory.join("touched"));
    let run = |line: &str| {
        let text = format!("NATS_URL={}\n{line}\n", server.url());
        std::fs::write(&settings, text).expect("writes");
        cron_command(&settings).output().expect("sh runs")
    };
    for line in [
        "AEGIS_CLEANUP_OPTIONS=--max-removals 2",
        "AEGIS_CLEANUP_OPTIONS='--max-removals 2'",
        "AEGIS_MAX_REMOVALS=2",
        "AEGIS_MAX_REMOVALS = 2\nAEGIS_MAX_REMOVALS=\"2\"",
        &format!("AEGIS_MAX_REMOVALS=2\nTEXT=x touch {0}\nB=$(touch {0})", touched.display()),
    ] {
        let output = run(line);
        assert_eq!(output.status.code(), Some(75), "{line}: {}", said(&output));
        assert!(said(&output).contains("5 of 5 entries would go"), "{}", said(&output));
        assert_eq!(stored(&mut registry).len(), 5, "{line}");
    }
    assert!(!touched.exists(), "a word of the file was run");
    for line in ["AEGIS_CLEANUP_OPTIONS=--nonsense *", "AEGIS_MAX_REMOVALS=few"] {
        assert_eq!(run(line).status.code(), Some(78), "{line}");
    }
    // A file that is not there could have held a limit.
    let output = cron_command(&directory.join("absent.env")).output().expect("sh runs");
    assert_eq!(output.status.code(), Some(78), "{}", said(&output));
    assert_eq!(stored(&mut registry).len(), 5);

    // What was removed is on stdout, for cron to mail.
    let output = run("AEGIS_MAX_REMOVALS=5");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(lines.matches("removed service-instances__").count(), 5, "{lines}");
    assert!(stored(&mut registry).is_empty());
    let output = run("");
    assert!(output.status.success() && said(&output).is_empty(), "{}", said(&output));
    std::fs::remove_dir_all(directory).expect("removes its own directory");
}

/// Where systemd's own reader of this syntax can be asked: the generator of
/// user environments, which expands `$` and is the same reader otherwise.
#[test]
fn an_environment_file_means_what_systemd_makes_of_it() {
    let generator =
        "/usr/lib/systemd/user-environment-generators/30-systemd-environment-d-generator";
    if !Path::new(generator).exists() {
        eprintln!("SKIPPED: no {generator}");
        return;
    }
    let text = "AX1=b c\td  \nAX2='b c' d\nAX3=\"x\\\"y\\\\z\\q\"\nAX4=a\\\nb\nAX5=\"a\\\nb\"\n\
        AX6='multi\nline'\n# comment\n; other\nAX7=it's \"so\"\nAX8='a''b'   'c'  \nAX9=a\\ \n\
        AXA =x\n  AXB=y\nexport AXC=z\nAXD\n=AXE\nAXF=#x # y\nAXG=a\\\\b\\\"\nAXH=\nAXI=''\n\
        AXJ=\"x \" y \nAXK=--max-removals 2\r\nAXL=1\nAXL=2\nAXM=a=b\nAXN='x'#y\nAXO=\\\n\nAXP=\"open\nAXQ=z\n";
    let directory = scratch("environment");
    std::fs::create_dir_all(directory.join("environment.d")).expect("a directory");
    std::fs::write(directory.join("environment.d/x.conf"), text).expect("writes");
    let output = Command::new(generator)
        .env_clear()
        .env("XDG_CONFIG_HOME", &directory)
        .output()
        .expect("the generator runs");
    // It writes what needs it in double quotes, with the escapes of C.
    let value = |text: &str| match text.strip_prefix('"') {
        None => text.to_owned(),
        Some(quoted) => {
            let quoted = quoted.strip_suffix('"').expect("an end");
            let (mut value, mut rest) = (String::new(), quoted.chars());
            while let Some(c) = rest.next() {
                value.push(match c {
                    '\\' => match rest.next().expect("an escape") {
                        'n' => '\n',
                        't' => '\t',
                        'r' => '\r',
                        other => other,
                    },
                    c => c,
                });
            }
            value
        }
    };
    let printed = String::from_utf8_lossy(&output.stdout);
    let theirs: BTreeMap<String, String> = printed
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| name.starts_with("AX"))
        .map(|(name, text)| (name.to_owned(), value(text)))
        .collect();
    assert!(theirs.len() > 15, "{}", said(&output));
    // It leaves out what is empty.
    let mut ours = aegis_agent::cli::env_file::parse(text);
    ours.retain(|_, value| !value.is_empty());
    assert_eq!(ours, theirs);
    std::fs::remove_dir_all(directory).expect("removes its own directory");
}

#[test]
fn the_timer_and_the_cron_line_spare_what_beats() {
    assert!(
        read("systemd/aegis-agent-cleanup.service").contains(" cleanup --spare-beating $AEGIS")
    );
    assert!(read("systemd/aegis-agent.cron").contains(" cleanup --spare-beating --env-file"));
}

#[test]
fn a_context_of_the_host_has_one_place_for_all_units() {
    for name in SERVICES {
        let unit = read(&format!("systemd/{}", name.replace("@orders-api", "@")));
        let at = unit.find("\nEnvironment=XDG_CONFIG_HOME=/etc/aegis-agent\n").expect(name);
        assert!(unit[at..].contains("\nEnvironmentFile="), "{name}: a file may say otherwise");
    }
}

/// The list of packaging/files: source, path, and the only kind of package.
fn packed() -> Vec<(String, String, Option<String>)> {
    let list = read("packaging/files");
    let lines = list.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let words = lines.map(|line| line.split_whitespace().map(str::to_owned));
    let files = words.map(|mut words| {
        let mut next = || words.next();
        (next().expect("a source"), next().expect("a path"), next())
    });
    files.collect()
}

#[test]
fn every_file_that_the_packages_name_is_there_and_every_document_is_in_them() {
    let files = packed();
    assert!(files.len() > 30, "{files:?}");
    for (source, path, kind) in &files {
        assert!(source == "BINARY" || repository().join(source).is_file(), "{source}");
        assert!(!path.starts_with('/') && !path.ends_with('/'), "{path}");
        assert!(kind.as_deref().is_none_or(|kind| ["deb", "rpm", "tar"].contains(&kind)));
    }
    let in_all = |source: &str| {
        let own = files.iter().filter(|(from, ..)| from == source).collect::<Vec<_>>();
        own.iter().any(|(_, _, kind)| kind.is_none()) || own.len() == 3
    };
    let names = |directory: &str| -> Vec<String> {
        let entries = std::fs::read_dir(repository().join(directory)).expect("there").flatten();
        entries.map(|e| format!("{directory}/{}", e.file_name().to_string_lossy())).collect()
    };
    let roots = ["README.md", "CHANGELOG.md", "SECURITY.md", "packaging/copyright"];
    let wanted =
        [names("docs"), names("systemd"), names("packaging/man"), roots.map(String::from).into()];
    for source in wanted.concat() {
        assert!(in_all(&source), "{source} is not in every package");
    }
}

#[test]
fn no_package_enables_anything() {
    let spec = read("packaging/rpm/aegis-agent.spec");
    let debian = ["preinst", "postinst", "prerm", "postrm"].map(|name| format!("debian/{name}"));
    for name in &debian {
        let check = Command::new("sh")
            .arg("-n")
            .arg(repository().join("packaging").join(name))
            .output()
            .expect("sh runs");
        assert!(check.status.success(), "{name}: {}", said(&check));
    }
    let texts = debian.map(|name| read(&format!("packaging/{name}")));
    for line in texts.iter().chain([&spec]).flat_map(|text| text.lines()) {
        for verb in ["enable", "preset", "unmask"] {
            let says = line.split_whitespace().any(|word| word == verb);
            assert!(!says || line.trim_start().starts_with('#'), "{line}");
        }
    }
}

#[test]
fn the_packages_are_of_the_version_of_the_program() {
    let changelog = read("packaging/debian/changelog");
    let first = format!("aegis-agent ({}-", env!("CARGO_PKG_VERSION"));
    assert!(changelog.starts_with(&first), "{changelog}");
}

/// Of the .deb and the .tar.gz; what .rpm and a live systemd make of them is for
/// .ci/release and tests/live_systemd.py.
#[test]
fn packages_of_the_same_inputs_are_the_same_bytes() {
    let directory = scratch("packages");
    let made = |to: &str| -> Vec<(String, Vec<u8>)> {
        let output = Command::new("python3")
            .arg(repository().join("packaging/build.py"))
            .args(["--binary", "/bin/sh", "--architecture", "x86_64"])
            .arg("--to")
            .arg(directory.join(to))
            .args(["deb", "tar"])
            .output()
            .expect("python3 runs");
        assert!(output.status.success(), "{}", said(&output));
        let paths = String::from_utf8_lossy(&output.stdout).into_owned();
        let read = |path: &str| (path.to_owned(), std::fs::read(path).expect("a package"));
        paths.lines().map(read).collect()
    };
    let (first, second) = (made("first"), made("second"));
    assert_eq!(first.len(), 2);
    for (one, other) in first.iter().zip(&second) {
        assert!(one.1 == other.1, "{} and {} differ", one.0, other.0);
    }
    assert!(first[0].1.starts_with(b"!<arch>\ndebian-binary"));
    std::fs::remove_dir_all(directory).expect("removes its own directory");
}
