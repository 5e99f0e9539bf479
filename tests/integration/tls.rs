//! TLS on real servers: whose certificates are taken, what is said of those
//! that are not, and that nothing talks a client out of it.
//!
//! The certificates are those of tests/certificates, made by its script.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use serde_json::json;

use crate::harness::agent::{Invocation, Output, aegis};
use crate::harness::document::{quoted, table};
use crate::harness::server::{Server, Setup};
use crate::harness::{millis, nothing_happens_for, scratch, secs};

const REGISTERED: &str = "registered orders-api/host-1";

/// The path of one of the test certificates or keys.
fn pem(name: &str) -> String {
    format!("{}/tests/certificates/{name}.pem", env!("CARGO_MANIFEST_DIR"))
}

/// A server with this certificate; `more` goes into its tls block.
fn server_with(certificate: &str, more: &str, extra: &str) -> Server {
    let (cert, key) = (pem(certificate), pem(&format!("{certificate}-key")));
    let extra = format!("tls {{ cert_file: \"{cert}\", key_file: \"{key}\", {more} }}\n{extra}\n");
    Server::with(Setup { extra, ..Setup::default() })
}

fn server(certificate: &str) -> Server {
    server_with(certificate, "", "")
}

/// A server that wants a client's certificate.
fn mutual() -> Server {
    server_with("server-ec", &format!("ca_file: \"{}\", verify: true", pem("ca")), "")
}

fn verb(verb: &str, url: &str) -> Invocation {
    let run = ["run", "--service=orders-api", "--instance=host-1", "--ttl=2s", "--interval=500ms"];
    let words = if verb == "run" { run.as_slice() } else { &[verb] };
    aegis(words).arg("-s").arg(url)
}

fn with_ca(invocation: Invocation) -> Invocation {
    invocation.arg("--tlsca").arg(&pem("ca"))
}

fn with_client(invocation: Invocation, certificate: &str, key: &str) -> Invocation {
    with_ca(invocation).arg("--tlscert").arg(&pem(certificate)).arg("--tlskey").arg(&pem(key))
}

fn tls_url(server: &Server) -> String {
    format!("tls://localhost:{}", server.port())
}

/// Registers, beats, deregisters, and lists, all over TLS.
fn works(invocation: &dyn Fn(&str) -> Invocation) {
    let mut agent = invocation("run").arg("--verbose").spawn();
    agent.wait_for_line(REGISTERED, secs(8));
    agent.wait_for_lines("heartbeat of", 2, secs(5));
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(6)), 0);
    assert_eq!(agent.lines_with("deregistered").len(), 1, "{}", agent.stderr());
    invocation("list").arg("--json").run().exits(0);
}

fn refused(output: Output, code: i32, words: &[&str]) {
    let output = output.exits(code);
    for word in words {
        assert!(output.stderr.contains(word), "{word:?} in {output:#?}");
    }
}

// Whose certificates are taken.

#[test]
fn rsa_ec_and_ed25519_servers_are_taken_with_a_private_ca() {
    for certificate in ["server-rsa", "server-ec", "server-ec384", "server-ed25519"] {
        let server = server(certificate);
        works(&|v| with_ca(verb(v, &tls_url(&server))));
    }
}

#[test]
fn a_server_may_be_named_by_its_address() {
    let server = server("server-ec");
    works(&|v| with_ca(verb(v, &format!("tls://127.0.0.1:{}", server.port()))));
}

/// The URL says nothing of TLS; the server requires it.
#[test]
fn a_server_that_requires_tls_gets_it() {
    let server = server("server-ec");
    works(&|v| with_ca(verb(v, &server.url())));
    works(&|v| verb(v, &server.url()).env("NATS_CA", &pem("ca")));
}

/// The test certificates end on 1 January 2125.
#[test]
fn check_names_the_end_of_the_servers_certificate() {
    let server = server("server-ec");
    let output = with_ca(verb("check", &tls_url(&server))).arg("--json").run();
    let answer = output.json();
    let checks = answer["checks"].as_array().expect("an array");
    let login = checks.iter().find(|check| check["name"] == "login").expect("it is there");
    let message = login["message"].as_str().unwrap_or_default();
    assert!(message.contains("the certificate of the server at localhost"), "{login:#}");
    assert!(message.contains("ends at 2125-01-01T00:00:00Z"), "{login:#}");
    assert_eq!(login["status"], "ok", "{login:#}");
}

#[test]
fn rsa_ec_and_ed25519_clients_are_taken_by_a_server_that_wants_one() {
    let server = mutual();
    for (certificate, key) in [
        ("client-rsa", "client-rsa-key"),
        ("client-rsa", "client-rsa-key-pkcs1"),
        ("client-ec", "client-ec-key"),
        ("client-ec", "client-ec-key-sec1"),
        ("client-ec384", "client-ec384-key"),
        ("client-ed25519", "client-ed25519-key"),
    ] {
        with_client(verb("list", &tls_url(&server)), certificate, key).run().exits(69);
    }
    works(&|v| with_client(verb(v, &tls_url(&server)), "client-ed25519", "client-ed25519-key"));
    works(&|v| {
        verb(v, &server.url())
            .env("NATS_CA", &pem("ca"))
            .env("NATS_CERT", &pem("client-ec"))
            .env("NATS_KEY", &pem("client-ec-key"))
    });
}

#[test]
fn a_context_gives_the_certificates() {
    let server = mutual();
    let home = scratch("contexts");
    std::fs::create_dir_all(home.join("nats/context")).expect("makes the directory");
    let context = json!({
        "url": tls_url(&server), "ca": pem("ca"), "cert": pem("client-ec"), "key": pem("client-ec-key"),
    });
    std::fs::write(home.join("nats/context/m.json"), context.to_string()).expect("writes it");
    let home = home.display().to_string();
    works(&|v| verb(v, &tls_url(&server)).arg("--context=m").env("XDG_CONFIG_HOME", &home));
}

// What is said of those that are not.

/// Each row of the table in docs/logins.md: what is wrong, its words, the exit code.
#[test]
fn what_is_wrong_is_said_in_the_words_of_the_document() {
    let list = |server: &Server| verb("list", &tls_url(server));
    let with_key = |key: &str| {
        let file = pem(key);
        (with_client(verb("list", "tls://127.0.0.1:1"), "client-ec", key).run(), file)
    };
    let presented = |certificate: &str, ca: &str| {
        (list(&server(certificate)).arg("--tlsca").arg(&pem(ca)).run(), pem(ca))
    };
    let scenes: [(&str, Vec<(Output, String)>); 8] = [
        ("expired server certificate", vec![presented("server-expired", "ca")]),
        ("wrong name", vec![presented("server-elsewhere", "ca")]),
        ("unknown CA", vec![presented("server-ec", "other-ca")]),
        ("server key is P-521", vec![presented("server-p521", "ca")]),
        ("server wants a client certificate", {
            vec![(with_ca(list(&mutual())).run(), String::new())]
        }),
        ("ours has expired or is refused", {
            let ours = "client-expired";
            vec![(with_client(list(&mutual()), ours, "client-expired-key").run(), pem(ours))]
        }),
        ("no TLS there", vec![(with_ca(list(&Server::any())).run(), String::new())]),
        ("our key is P-521, encrypted, no PEM", {
            ["client-p521-key", "client-ec-key-encrypted", "ca"].map(with_key).into()
        }),
    ];
    let rows = table("logins.md", "wrong");
    assert_eq!(rows.len(), scenes.len());
    for ((wrong, outputs), row) in scenes.into_iter().zip(&rows) {
        assert_eq!(row[0], wrong);
        let code = row[2].parse().expect("an exit code");
        for (output, file) in outputs {
            let words = match quoted(&row[1])[..] {
                [words] => words.replace("/etc/x/ca.pem", &file).replace("/etc/x/c.pem", &file),
                _ => {
                    assert_eq!(row[1], "named with its file");
                    file
                }
            };
            let hint = if code == 69 { "hint: " } else { "" };
            refused(output, code, &[words.trim_end_matches("..."), hint]);
        }
    }
}

#[test]
fn without_a_ca_the_systems_roots_count() {
    let server = server("server-ec");
    let list = verb("list", &tls_url(&server)).run();
    refused(list, 69, &["TLS: ", "--tlsca"]);
}

#[test]
fn a_client_certificate_with_the_key_of_another_is_named() {
    let server = mutual();
    let mixed = with_client(verb("list", &tls_url(&server)), "client-ec", "client-ec384-key");
    refused(mixed.run(), 69, &["TLS: ", &pem("client-ec")]);
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_what_is_wrong_with_it() {
    let (ca, cert, key) = (pem("ca"), pem("client-ec"), pem("client-ec-key"));
    let (p521, p521_key) = (pem("client-p521"), pem("client-p521-key"));
    let encrypted = pem("client-ec-key-encrypted");
    let gone = "/nowhere/x.pem".to_owned();
    for (ca, cert, key, bad, why) in [
        (&gone, &cert, &key, &gone, "no such file"),
        (&ca, &gone, &key, &gone, "no such file"),
        (&ca, &cert, &gone, &gone, "no such file"),
        (&key, &cert, &key, &key, "it holds no PEM block with CERTIFICATE"),
        (&ca, &cert, &ca, &ca, "it holds no PEM block with PRIVATE KEY"),
        (&ca, &cert, &encrypted, &encrypted, "passphrase"),
        (&ca, &p521, &key, &p521, "P-521"),
        (&ca, &cert, &p521_key, &p521_key, "P-521"),
    ] {
        for v in ["list", "run"] {
            let files = ["--tlsca", ca, "--tlscert", cert, "--tlskey", key];
            let invocation = verb(v, "tls://127.0.0.1:1");
            let output = files.iter().fold(invocation, |i, word| i.arg(word)).run();
            refused(output, 78, &[bad, why]);
        }
    }
}

#[test]
fn a_delayed_handshake_first_works() {
    let server = server_with("server-ec", "handshake_first: \"300ms\"", "");
    works(&|v| with_ca(verb(v, &tls_url(&server))));
}

// A running agent.

#[test]
fn an_agent_says_once_what_is_wrong_and_takes_a_renewed_ca() {
    let server = server("server-ec");
    let ca = scratch("tls").join("ca.pem");
    std::fs::copy(pem("other-ca"), &ca).expect("copies the file");
    let mut agent =
        verb("run", &tls_url(&server)).arg("--tlsca").arg(&ca.display().to_string()).spawn();
    agent.wait_for_line("is not signed by any CA in", secs(8));
    nothing_happens_for(millis(1_500));
    assert_eq!(agent.lines().len(), 1, "{}", agent.stderr());
    std::fs::copy(pem("ca"), &ca).expect("copies the file");
    agent.wait_for_line(REGISTERED, secs(5));
}

#[test]
fn an_agent_is_back_after_the_server_over_tls() {
    let mut server = server("server-ec");
    let mut agent = with_ca(verb("run", &tls_url(&server))).spawn();
    agent.wait_for_line(REGISTERED, secs(8));
    server.freeze();
    agent.wait_for_line("lost", secs(10));
    server.thaw();
    agent.wait_for_line("restored", secs(5));
    server.restart();
    agent.wait_for_lines("restored", 2, secs(8));
}

// Nothing talks a client out of it.

/// A server that says it has no TLS, and keeps what clients send.
fn talks_down() -> (u16, std::sync::mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let (sender, received) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let mut stream = stream;
                let info = json!({
                    "server_id": "X", "version": "2.12.8", "headers": true, "max_payload": 1 << 20,
                    "proto": 1, "go": "go1.25", "client_id": 1, "host": "127.0.0.1", "port": port,
                });
                let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
                let _ = stream.write_all(format!("INFO {info} \r\nPONG\r\n").as_bytes());
                let mut bytes = vec![0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    let _ = sender.send(bytes[..count].to_vec());
                }
            });
        }
    });
    (port, received)
}

#[test]
fn a_server_that_talks_tls_down_does_not_get_the_password() {
    let password = scratch("tls").join("password");
    std::fs::write(&password, "s3cr3t").expect("writes the file");
    let password = password.display().to_string();
    let login = |i: Invocation| i.arg("--user=joe").arg("--password-file").arg(&password);
    let by_ca = |url: &str| with_ca(verb("list", url));
    let by_scheme = |url: &str| verb("list", &url.replace("nats://", "tls://"));
    let by_client = |url: &str| {
        let list = verb("list", url).arg("--tlscert").arg(&pem("client-ec"));
        list.arg("--tlskey").arg(&pem("client-ec-key"))
    };
    let by: [&dyn Fn(&str) -> Invocation; 3] = [&by_ca, &by_scheme, &by_client];
    for invocation in by {
        let (port, received) = talks_down();
        let output =
            login(invocation(&format!("nats://127.0.0.1:{port}"))).arg("--timeout=2s").run();
        assert_ne!(output.code, 0, "{output:?}");
        assert!(output.stderr.contains("TLS: "), "{output:?}");
        // The fake server reads in a thread of its own, and may be behind.
        let first = received.recv_timeout(secs(5)).unwrap_or_default();
        let sent: Vec<u8> = first.into_iter().chain(received.try_iter().flatten()).collect();
        assert_eq!(sent.first(), Some(&0x16), "a TLS handshake: {sent:?}");
        for word in ["CONNECT", "joe", "s3cr3t"] {
            let found = sent.windows(word.len()).any(|window| window == word.as_bytes());
            assert!(!found, "{word} in {}", String::from_utf8_lossy(&sent));
        }
    }
}

/// Without any sign of TLS the operator has asked for none: it goes in clear.
/// This shows that the test above would see it.
#[test]
fn without_tls_the_login_is_seen_on_the_wire() {
    let (port, received) = talks_down();
    let list = verb("list", &format!("nats://joe:s3cr3t@127.0.0.1:{port}"));
    list.arg("--timeout=1s").run();
    let sent: Vec<u8> = received.try_iter().flatten().collect();
    assert!(String::from_utf8_lossy(&sent).contains("s3cr3t"));
}

#[test]
fn logins_go_over_tls_too() {
    let authorization = "authorization { users: [{ user: joe, password: \"p@:/%\" }] }";
    let server = server_with("server-rsa", "", authorization);
    let url = format!("tls://joe:p%40%3A%2F%25@localhost:{}", server.port());
    works(&|v| with_ca(verb(v, &url)));
    let wrong = format!("tls://joe:x@localhost:{}", server.port());
    refused(with_ca(verb("list", &wrong)).run(), 77, &["login refused", "user \"joe\""]);
}
