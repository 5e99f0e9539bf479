//! What is wrong is said in the words that an operator can act on.

use std::io::Write;
use std::net::TcpListener;

use serde_json::json;

use crate::harness::agent::{Agent, Output, aegis};
use crate::harness::hostile::greeting;
use crate::harness::registry::Registry;
use crate::harness::scene::{KEY, record};
use crate::harness::server::{Server, Setup};
use crate::harness::{eventually, secs};

/// It dies, for want of memory for instance, while it greets us.
#[test]
fn a_server_that_dies_in_the_middle_of_a_line_is_not_called_another_program() {
    let half = |port| greeting(port)[..60].to_vec();
    let output = one_greeting(half).exits(69);
    assert!(output.stderr.contains("in the middle of a line: it may have crashed"), "{output:?}");
    let output = one_greeting(|_| b"HTTP/1.1 400 Bad".to_vec()).exits(69);
    assert!(output.stderr.contains("not a NATS server: it says \"HTTP/1.1 400"), "{output:?}");
}

/// `list` at a port where everybody is sent this and no more.
fn one_greeting(words: impl Fn(u16) -> Vec<u8>) -> Output {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let bytes = words(port);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(&bytes);
        }
    });
    aegis(&["list", "-s", &format!("nats://127.0.0.1:{port}")]).run()
}

/// "record larger than `max_payload` or the bucket permits (10054): say how
/// large and which metadata"
#[test]
fn a_record_that_is_too_large_is_measured_and_its_largest_metadata_named() {
    let payload = "max_payload: 1024\n".to_owned();
    let small = Server::with(Setup { version: "2.12.8", extra: payload, ..Setup::default() });
    Registry::at(&small.url()).create(&json!({}));
    let narrow = Server::start("2.12.8");
    let mut registry = Registry::at(&narrow.url());
    registry.create(&json!({ "max_msg_size": 400 }));
    let agent = |server: &Server| {
        let labels = format!("--meta=labels={}", "x".repeat(900));
        let words = ["run", "--service=web", "--instance=a", "--meta=zone=b", &labels, "-s"];
        aegis(&words).arg(&server.url()).spawn()
    };
    let says = |agent: &mut Agent, limit: &str| {
        let line = agent.wait_for_line("cannot register web/a", secs(5)).text;
        assert!(line.contains(limit), "{line}");
        assert!(line.contains("its largest metadata is labels with 900 bytes"), "{line}");
        assert!(line.contains("hint: shorten or leave out --meta labels="), "{line}");
        let size = line.split("the record has ").nth(1).and_then(|rest| rest.split(' ').next());
        size.and_then(|size| size.parse::<u64>().ok()).expect("its size")
    };
    says(&mut agent(&small), "the server takes 1024 bytes (max_payload)");
    let size = says(&mut agent(&narrow), "the bucket takes 400 bytes (max_msg_size, 10054)");
    // It is the size that the server counts.
    registry.update(&json!({ "max_msg_size": size - 1 }));
    let mut agent = agent(&narrow);
    says(&mut agent, &format!("the bucket takes {} bytes (max_msg_size", size - 1));
    registry.update(&json!({ "max_msg_size": size }));
    agent.wait_for_line("registered web/a", secs(8));
}

/// It was called "is JetStream enabled?".
#[test]
fn a_bucket_that_is_deleted_under_an_agent_is_called_gone() {
    let server = Server::start("2.12.8");
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({}));
    let mut agent =
        aegis(&["run", "--service=web", "--instance=a", "--ttl=3s", "--interval=500ms", "-s"])
            .arg(&server.url())
            .spawn();
    agent.wait_for_line("registered web/a", secs(5));
    registry.delete();
    agent.wait_for_line("503): the bucket is gone, or no server leads it", secs(3));
    agent.wait_for_line("restored web/a", secs(8));
    assert!(!agent.stderr().contains("is JetStream enabled"), "{}", agent.stderr());
}

/// Monitoring reads the first line of stdout.
#[test]
fn a_plug_in_call_with_a_bad_option_answers_on_stdout() {
    for call in [
        &["check", "--format", "nagios", "--nosuch"][..],
        &["check", "--format=nagios", "--bucket=a.b"],
        &["--timeout", "never|ever", "check", "--format", "nagios"],
    ] {
        let output = aegis(call).run().exits(3);
        assert!(output.stdout.starts_with("AEGIS UNKNOWN: "), "{output:?}");
        assert_eq!(output.stdout.lines().count(), 1, "{output:?}");
        assert!(!output.stdout.contains('|'), "{output:?}");
    }
}

/// As the `nats` CLI has it.
#[test]
fn nats_user_alone_is_a_token_and_nats_password_alone_is_refused() {
    let server = Server::with(Setup {
        extra: "authorization { token: \"t0ken\" }\n".to_owned(),
        ..Setup::default()
    });
    let url = server.url();
    let output = aegis(&["list", "-s", &url]).env("NATS_USER", "t0ken").run().exits(69);
    assert!(output.stderr.contains("does not exist"), "{output:?}");
    let output = aegis(&["list", "-s", &url]).env("NATS_PASSWORD", "p").run().exits(78);
    assert!(output.stderr.contains("NATS_PASSWORD needs NATS_USER"), "{output:?}");
}

/// Everything that is registered there is stored somewhere else, or nowhere: an
/// empty list would be a lie.
#[test]
fn a_stream_that_stores_under_other_subjects_is_no_bucket() {
    for (changes, why) in [
        (
            json!({ "subject_transform": { "src": "$KV.service_registry.>", "dest": "moved.>" } }),
            "(subject_transform)",
        ),
        (json!({ "subjects": ["other.>"] }), "is no key-value bucket"),
        (json!({ "subjects": ["$KV.service_registry.orders"] }), "is no key-value bucket"),
    ] {
        let server = Server::start("2.12.8");
        Registry::at(&server.url()).create(&changes);
        let call = |words: &[&str]| aegis(words).arg("-s").arg(&server.url());
        let output = call(&["check", "--json"]).run().exits(2);
        assert!(output.stdout.contains(why), "{output:?}");
        for verb in ["list", "cleanup", "init"] {
            let output = call(&[verb]).run().exits(69);
            assert!(output.stderr.contains(why) && output.stdout.is_empty(), "{output:?}");
        }
        let mut watch = call(&["watch"]).spawn();
        watch.wait_for_line(why, secs(5));
        let mut agent = call(&["run", "--service=web", "--instance=a"]).spawn();
        agent.wait_for_line(why, secs(5));
        assert!(!agent.stderr().contains("registered web/a"), "{}", agent.stderr());
    }
}

/// A copy by sources has no subjects of its own.
#[test]
fn a_bucket_that_takes_no_writes_is_read_all_the_same() {
    let server = Server::start("2.12.8");
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({}));
    registry.put(KEY, &[("Nats-TTL", "1h")], &record("host-1", 0));
    let moved = json!({ "src": "$KV.service_registry.>", "dest": "$KV.copy.>" });
    Registry::named(&server.url(), "copy").create(&json!({
        "subjects": null,
        "sources": [ { "name": "KV_service_registry", "subject_transforms": [ moved ] } ],
    }));
    registry.update(&json!({ "sealed": true }));
    for bucket in ["service_registry", "copy"] {
        let list = aegis(&["list", "--names", "--bucket", bucket, "-s"]).arg(&server.url());
        eventually(secs(5), "it is read", || {
            let output = list.run().exits(0);
            if output.stdout == "orders-api/host-1\n" { Ok(()) } else { Err(output.stdout) }
        });
    }
}

/// "JSON sorted like the text, with control and direction characters escaped"
#[test]
fn the_json_is_sorted_like_the_text_and_safe_on_a_terminal() {
    let server = Server::start("2.12.8");
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({}));
    let odd = "a\u{85}b\u{9b}31m\u{202e}c\u{2028}d\u{7f}";
    for (service, instance) in [("web", "b"), ("api", "z"), ("web", "a")] {
        let record = json!({
            "serviceName": service, "instanceId": instance, "version": "1.0.0",
            "status": "ACTIVE", "lastHeartbeat": "2099-01-01T00:00:00Z",
            "stickyActiveGroup": null, "metadata": { "odd": odd },
        });
        let key = format!("service-instances__{service}__{instance}");
        registry.put(&key, &[("Nats-TTL", "1h")], &record.to_string());
    }
    let output = aegis(&["list", "--json", "-s", &server.url()]).run().exits(0);
    let bad = |c: char| c != '\n' && (c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c));
    assert_eq!(output.stdout.chars().filter(|c| bad(*c)).count(), 0, "{output:?}");
    let answer = output.json();
    let instances = answer["instances"].as_array().expect("an array");
    assert!(instances.iter().all(|one| one["metadata"]["odd"] == odd), "{answer:#}");
    let names = instances.iter().map(|one| format!("{}{}", one["serviceName"], one["instanceId"]));
    let names: Vec<String> = names.collect();
    assert_eq!(names, ["\"api\"\"z\"", "\"web\"\"a\"", "\"web\"\"b\""]);
    // Of `cleanup` both are in the order of revisions.
    let stale = ["cleanup", "--dry-run", "--only", "heartbeat-too-old", "-s"];
    let cleanup = |more: &[&str]| aegis(&[&stale[..], &[&server.url()], more].concat()).run();
    for (place, instance) in ["b", "a"].into_iter().enumerate() {
        let record = json!({
            "serviceName": "old", "instanceId": format!("{instance}{odd}"), "version": "1.0.0",
            "lastHeartbeat": "2001-01-01T00:00:00Z",
        });
        let key = format!("service-instances__old__{}", ["z", "y"][place]);
        registry.put(&key, &[("Nats-TTL", "1h")], &record.to_string());
    }
    let output = cleanup(&["--json"]).exits(0);
    assert_eq!(output.stdout.chars().filter(|c| bad(*c)).count(), 0, "{output:?}");
    let removed = output.json()["removed"].as_array().expect("an array").clone();
    assert_eq!(removed[1]["instanceId"], format!("a{odd}"), "{removed:?}");
    let text = cleanup(&[]).exits(0).stdout;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(removed.len() + 1, lines.len(), "{text}");
    for (one, line) in removed.iter().zip(lines) {
        assert!(line.contains(one["key"].as_str().expect("a key")), "{text}");
    }
}

/// The end of our certificate is seen before every agent is shut out at once.
#[test]
fn check_tells_when_our_certificate_has_ended() {
    let certificates = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/certificates");
    let file = |name: &str| format!("{certificates}/{name}");
    let (cert, key) = (file("client-expired.pem"), file("client-expired-key.pem"));
    let absent = Server::absent(Setup::default());
    let output = aegis(&["check", "--json", "--tlscert", &cert, "--tlskey", &key, "-s"])
        .arg(&absent.url())
        .run()
        .exits(2);
    let answer = output.json();
    let checks = answer["checks"].as_array().expect("an array");
    let login = checks.iter().find(|check| check["name"] == "login").expect("it is there");
    assert_eq!(login["status"], "critical", "{login:#}");
    let message = login["message"].as_str().expect("a message");
    assert!(message.contains("ended at 2021-01-01T00:00:00Z"), "{message}");
}

#[test]
fn a_dry_run_with_nothing_to_do_says_so() {
    let server = Server::start("2.12.8");
    Registry::at(&server.url()).create(&json!({}));
    let call = |words: &[&str]| aegis(words).arg("-s").arg(&server.url()).run().exits(0).stdout;
    let text = call(&["cleanup", "--dry-run"]);
    assert!(text.starts_with("scanned 0, would remove 0, "), "{text}");
    // Without it silence is what cron wants.
    assert_eq!(call(&["cleanup"]), "");
}
