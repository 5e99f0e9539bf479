//! `run --check-config`: the settings, where each comes from, and what a start
//! would refuse.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use crate::harness::agent::{Invocation, Output, aegis};
use crate::harness::scratch;

fn run() -> Invocation {
    aegis(&["run", "--check-config", "--service=orders-api", "--instance=host-1"])
}

/// Each setting with its value and its origin.
fn rows(output: &Output) -> BTreeMap<String, (String, String)> {
    let lines = output.stdout.lines().skip(1);
    let rows = lines.map(|line| {
        let cells: Vec<&str> = line.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect();
        let [name, value, origin] = cells[..] else { panic!("three columns: {line:?}") };
        (name.to_owned(), (value.to_owned(), origin.to_owned()))
    });
    rows.collect()
}

#[test]
fn each_setting_is_shown_with_where_it_comes_from() {
    let directory = scratch("config");
    let (host, contexts) = (directory.join("agent.env"), directory.join("nats/context"));
    fs::create_dir_all(&contexts).expect("makes directories");
    fs::write(&host, "AEGIS_TTL=60s\nAEGIS_META='zone=a rack=7'\n").expect("writes");
    let context = r#"{"url": "nats://n1.example:4222,tls://n2.example", "token": "s3cr3t"}"#;
    fs::write(contexts.join("prod.json"), context).expect("writes");
    let output = run()
        .arg(&format!("--env-file={}", host.display()))
        .arg("--context=prod")
        .arg("--standby")
        .arg("--health-exec=curl -f 'http://localhost/health check'")
        .env("XDG_CONFIG_HOME", &directory.display().to_string())
        .env("AEGIS_GROUP", "blue")
        .env("AEGIS_INTERVAL", "5s")
        .run()
        .exits(0);
    let of = |name: &str| format!("{name} in {}", host.display());
    let rows = rows(&output);
    for (name, value, origin) in [
        ("service", "orders-api", "--service".to_owned()),
        ("service-version", "0.0.0", "default".to_owned()),
        ("ttl", "1m", of("AEGIS_TTL")),
        ("interval", "5s", "AEGIS_INTERVAL".to_owned()),
        ("stale-after", "35s", "default".to_owned()),
        ("standby", "yes", "--standby".to_owned()),
        ("group", "blue", "AEGIS_GROUP".to_owned()),
        ("meta", "rack=7 zone=a", of("AEGIS_META")),
        ("health-timeout", "2s", "default".to_owned()),
        ("context", "prod", "--context".to_owned()),
        (
            "nats-url",
            "nats://n1.example:4222,tls://n2.example:4222",
            "url of the context".to_owned(),
        ),
        ("login", "token (hidden)", "token of the context".to_owned()),
        ("bucket", "service_registry", "default".to_owned()),
    ] {
        assert_eq!(rows.get(name), Some(&(value.to_owned(), origin)), "{name}: {output:#?}");
    }
    assert!(rows["health-exec"].0.starts_with("curl -f "), "{output:#?}");
    assert!(!format!("{output:?}").contains("s3cr3t"), "{output:#?}");
}

/// No secret is shown, whatever it comes from; a file of one is.
#[test]
fn secrets_are_hidden() {
    let url = "nats://joe:s3cr3t@127.0.0.1:4222";
    let directory = scratch("secrets");
    let file = directory.join("password");
    fs::write(&file, "s3cr3t\n").expect("writes");
    let path = file.display().to_string();
    let host = directory.join("agent.env");
    fs::write(&host, "NATS_TOKEN=s3cr3t\n").expect("writes");
    let host = host.display().to_string();
    for (invocation, login, origin) in [
        (
            run().env("NATS_URL", url),
            "user joe, password (hidden)".to_owned(),
            "the URL".to_owned(),
        ),
        (run().env("NATS_TOKEN", "s3cr3t"), "token (hidden)".into(), "NATS_TOKEN".into()),
        (
            run().arg("--env-file").arg(&host),
            "token (hidden)".into(),
            format!("NATS_TOKEN in {host}"),
        ),
        (
            run().arg("--user=joe").arg("--password-file").arg(&path),
            format!("user joe, password in {path}"),
            "--user".into(),
        ),
        (
            run().env("NATS_USER", "joe").env("NATS_PASSWORD", "s3cr3t"),
            "user joe, password (hidden)".into(),
            "NATS_USER".into(),
        ),
    ] {
        let output = invocation.run().exits(0);
        assert_eq!(rows(&output)["login"], (login, origin), "{output:#?}");
        assert!(!format!("{output:?}").contains("s3cr3t"), "{output:#?}");
    }
}

#[test]
fn what_a_start_would_refuse_is_refused_and_nothing_is_started() {
    let creds = scratch("refused").join("orders.creds");
    let missing = creds.display().to_string();
    let output = run().arg("--creds").arg(&missing).run().exits(78);
    assert!(output.stderr.contains(&missing), "{output:#?}");
    assert_eq!(rows(&output)["login"].1, "--creds", "the settings are shown all the same");
    fs::write(&creds, "no credentials").expect("writes");
    fs::set_permissions(&creds, fs::Permissions::from_mode(0o600)).expect("chmod");
    run().arg("--creds").arg(&missing).run().exits(78);
    run().arg("--ttl=1ms").run().exits(64);
    run().env("AEGIS_TTL", "1ms").run().exits(78);
    // What is permitted and not wise is said.
    let output = run().arg("--ttl=10s").arg("--interval=9s").run().exits(0);
    assert!(output.stderr.contains("more than a third of the TTL"), "{output:#?}");
    // Nobody has to be there, and whoever is hears nothing of it.
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    listener.set_nonblocking(true).expect("takes it");
    let port = listener.local_addr().expect("has one").port();
    run().arg(&format!("-s=nats://127.0.0.1:{port}")).run().exits(0);
    assert!(listener.accept().is_err(), "nobody came");
}
