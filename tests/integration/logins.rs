//! Logins of every kind on real servers: who gets in, what is said to whom
//! who does not, and that no secret is shown.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::agent::{Agent, Invocation, Output, aegis};
use crate::harness::nkey::{KeyPair, KeyPairType};
use crate::harness::proxy::Proxy;
use crate::harness::registry::Registry;
use crate::harness::server::{Server, Setup};
use crate::harness::{eventually, millis, nothing_happens_for, scratch, secs};

const USER: &str = "ag@nt:/1";
const PASSWORD: &str = "s3cr3t@:/%\"\\ü #?";
const TOKEN: &str = "t0k3n@:/%\"ü";
/// As they stand in a URL.
const USER_IN_URL: &str = "ag%40nt%3A%2F1";
const PASSWORD_IN_URL: &str = "s3cr3t%40%3A%2F%25%22%5C%C3%BC%20%23%3F";
const TOKEN_IN_URL: &str = "t0k3n%40%3A%2F%25%22%C3%BC";
/// The hint for a login that has ended.
const REPLACE_IT: &str = "hint: put fresh credentials into that file: it is read again, and no \
                          restart is needed";
const REGISTERED: &str = "registered orders-api/host-1";

fn server(authorization: &str) -> Server {
    let extra = format!("authorization {{ {authorization} }}\n");
    Server::with(Setup { extra, ..Setup::default() })
}

fn password_server() -> Server {
    server(&format!("users: [{{ user: {}, password: {} }}]", json!(USER), json!(PASSWORD)))
}

fn token_server() -> Server {
    server(&format!("token: {}", json!(TOKEN)))
}

fn run(url: &str) -> Invocation {
    aegis(&["run", "--service=orders-api", "--instance=host-1", "--ttl=2s", "--interval=500ms"])
        .arg("-s")
        .arg(url)
}

/// A file of the test's own.
fn file(name: &str, text: impl AsRef<[u8]>) -> String {
    let path = scratch("login").join(name);
    std::fs::write(&path, text).expect("writes the file");
    path.display().to_string()
}

fn url_with(login: &str, server: &Server) -> String {
    format!("nats://{login}@127.0.0.1:{}", server.port())
}

/// Registers and comes to its end by SIGTERM; `list` then works with the same
/// login.
fn gets_in(invocation: &dyn Fn(&str) -> Invocation) {
    let mut agent = invocation("run").arg("--service=orders-api").arg("--instance=host-1").spawn();
    agent.wait_for_line(REGISTERED, secs(5));
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
    let answer = invocation("list").arg("--json").run().exits(0).json();
    assert_eq!(answer["instances"], json!([]));
    assert_no_secret(&agent.stderr());
}

const SECRETS: [&str; 6] = ["s3cr3t", "t0k3n", "S3CR3T", PASSWORD_IN_URL, TOKEN_IN_URL, "SUA"];

fn assert_no_secret(text: &str) {
    for secret in SECRETS {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

/// A refusal that is said with these words, and shows no secret.
fn refused(output: Output, code: i32, words: &[&str]) {
    let output = output.exits(code);
    for word in words {
        assert!(output.stderr.contains(word), "{word:?} in {output:#?}");
    }
    assert!(output.stderr.contains("hint: ") || code == 78, "a next step in {output:#?}");
    assert_no_secret(&output.stderr);
    assert_no_secret(&output.stdout);
}

// Who gets in.

#[test]
fn a_user_gets_in_with_a_password_file() {
    let (server, path) = (password_server(), file("password", format!("{PASSWORD}\r\n")));
    gets_in(&|verb| aegis(&[verb, "-s", &server.url(), "--user", USER, "--password-file", &path]));
}

#[test]
fn a_user_gets_in_by_the_environment() {
    let server = password_server();
    gets_in(&|verb| {
        aegis(&[verb])
            .env("NATS_URL", &server.url())
            .env("NATS_USER", USER)
            .env("NATS_PASSWORD", PASSWORD)
    });
}

#[test]
fn a_user_gets_in_by_a_percent_encoded_url() {
    let server = password_server();
    let url = url_with(&format!("{USER_IN_URL}:{PASSWORD_IN_URL}"), &server);
    gets_in(&|verb| aegis(&[verb]).env("NATS_URL", &url));
    gets_in(&|verb| aegis(&[verb, "-s", &url]));
}

#[test]
fn a_token_gets_in_from_a_file_the_environment_and_a_url() {
    let (server, path) = (token_server(), file("token", format!("{TOKEN}\n")));
    gets_in(&|verb| aegis(&[verb, "-s", &server.url(), "--token-file", &path]));
    gets_in(&|verb| aegis(&[verb, "-s", &server.url()]).env("NATS_TOKEN", TOKEN));
    gets_in(&|verb| aegis(&[verb, "-s", &url_with(TOKEN_IN_URL, &server)]));
}

#[test]
fn an_nkey_gets_in() {
    let pair = key(KeyPairType::User, 7);
    let server = server(&format!("users: [{{ nkey: {} }}]", pair.public_key()));
    let path = file("user.nk", format!("# an nkey\n{}\n", seed(&pair)));
    gets_in(&|verb| aegis(&[verb, "-s", &server.url(), "--nkey", &path]));
    gets_in(&|verb| aegis(&[verb, "-s", &server.url()]).env("NATS_NKEY", &path));
}

#[test]
fn a_credentials_file_gets_in() {
    let operator = Operator::new();
    let server = operator.server();
    let path = file("a.creds", operator.creds(1, None));
    gets_in(&|verb| aegis(&[verb, "-s", &server.url(), "--creds", &path]));
    // As an editor on another system leaves it.
    let crlf = file("b.creds", operator.creds(1, None).replace('\n', "\r\n"));
    gets_in(&|verb| aegis(&[verb, "-s", &server.url()]).env("NATS_CREDS", &crlf));
}

// Who does not, and what is said.

#[test]
fn a_wrong_password_names_the_user_and_the_file() {
    let (server, path) = (password_server(), file("password", "s3cr3t, but wrong"));
    let arguments = ["list", "-s", &server.url(), "--user", "joe", "--password-file", &path];
    let words = ["login refused", "Authorization Violation", "user \"joe\"", &path, "hint: "];
    refused(aegis(&arguments).run(), 77, &words);
    let env = aegis(&["list", "-s", &server.url()]).env("NATS_USER", "joe");
    refused(env.env("NATS_PASSWORD", "s3cr3t").run(), 77, &["login refused", "user \"joe\""]);
    let url = url_with("joe:s3cr3t", &server);
    refused(aegis(&["list", "-v", "-s", &url]).run(), 77, &["login refused", "user \"joe\""]);
}

#[test]
fn no_login_where_one_is_needed_is_said() {
    for server in [password_server(), token_server()] {
        let output = aegis(&["list", "-s", &server.url()]).run();
        refused(output, 77, &["login refused", "no login was given", "--creds", "--user"]);
    }
}

#[test]
fn a_wrong_token_names_its_file() {
    let (server, path) = (token_server(), file("token", "t0k3n"));
    let output = aegis(&["list", "-s", &server.url(), "--token-file", &path]).run();
    refused(output, 77, &["login refused", "the token in", &path]);
}

#[test]
fn an_unknown_nkey_names_its_file() {
    let known = key(KeyPairType::User, 7).public_key();
    let server = server(&format!("users: [{{ nkey: {known} }}]"));
    let path = file("user.nk", seed(&key(KeyPairType::User, 8)));
    let output = aegis(&["list", "-s", &server.url(), "--nkey", &path]).run();
    refused(output, 77, &["login refused", "nkey file", &path]);
}

#[test]
fn expired_and_foreign_credentials_name_their_file() {
    let operator = Operator::new();
    let server = operator.server();
    let expired = file("expired.creds", operator.creds(1, Some(1_600_000_000)));
    let output = aegis(&["list", "-s", &server.url(), "--creds", &expired]).run();
    let at = "expired at 2020-09-13T12:26:40Z";
    refused(output, 77, &["login refused", "credentials file", &expired, at, REPLACE_IT]);
    let check =
        aegis(&["check", "--json", "-s", &server.url(), "--creds", &expired]).run().exits(2);
    assert!(check.stdout.contains("the user JWT in"), "{check:#?}");
    assert!(check.stdout.matches("no restart is needed").count() == 2, "{check:#?}");
    let stranger = Operator { account: key(KeyPairType::Account, 99), ..Operator::new() };
    let foreign = file("foreign.creds", stranger.creds(1, None));
    let output = aegis(&["list", "-s", &server.url(), "--creds", &foreign]).run();
    refused(output, 77, &["login refused", "credentials file", &foreign]);
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_what_is_wrong_with_it() {
    let operator = Operator::new();
    let creds = operator.creds(1, None);
    let other = seed(&key(KeyPairType::User, 50));
    let own = seed(&key(KeyPairType::User, 1));
    let swapped = creds.replace(&own, &other);
    let broken_jwt = creds.replacen(".ey", ".xx", 1);
    let no_seed = &creds[..creds.find("-----BEGIN USER").expect("it has a seed")];
    let account_seed = creds.replace(&own, &seed(&key(KeyPairType::Account, 1)));
    let damaged = own.replacen("SUA", "SUAA", 1);
    let (huge, binary) = ("x".repeat((1 << 20) + 1), b"\xff\xfe\x00");
    let directory = scratch("login").display().to_string();
    // Never reached: the files are looked at first.
    let list = |option: &str, path: &str| aegis(&["list", "-s", "127.0.0.1:1", option, path]).run();
    for (option, path, why) in [
        ("--creds", "/nowhere/a.creds".to_owned(), "no such file"),
        ("--creds", directory.clone(), "is a directory"),
        ("--creds", file("a", ""), "it holds no user JWT"),
        ("--creds", file("a", no_seed), "it holds no user seed"),
        ("--creds", file("a", &broken_jwt), "its user JWT is damaged"),
        ("--creds", file("a", creds.replace(&own, &damaged)), "its seed is damaged"),
        ("--creds", file("a", &account_seed), "its seed is not that of a user"),
        ("--creds", file("a", &swapped), "its seed does not belong to its user JWT"),
        ("--creds", file("a", &huge), "larger than 1 MiB"),
        ("--creds", file("a", binary), "UTF-8"),
        ("--nkey", "/nowhere/user.nk".to_owned(), "no such file"),
        ("--nkey", file("a", "S3CR3T"), "no line in it is a user seed"),
        ("--nkey", file("a", &damaged), "its seed is damaged"),
        ("--nkey", file("a", key(KeyPairType::User, 1).public_key()), "no line in it"),
        ("--token-file", "/nowhere/token".to_owned(), "no such file"),
        ("--token-file", file("a", "\n"), "it is empty"),
    ] {
        refused(list(option, &path), 78, &[&path, why]);
        let run = run("127.0.0.1:1").arg(option).arg(&path).run();
        refused(run, 78, &[&path, why]);
    }
    let user = ["list", "-s", "127.0.0.1:1", "--user=a", "--password-file", &directory];
    refused(aegis(&user).run(), 78, &[&directory, "is a directory"]);
}

// A running agent.

#[test]
fn a_refused_agent_says_so_once_and_gets_in_when_the_password_is_mended() {
    let (server, path) = (password_server(), file("password", "wrong"));
    let mut agent =
        run(&server.url()).arg("--user").arg(USER).arg("--password-file").arg(&path).spawn();
    let line = agent.wait_for_line("cannot register", secs(5));
    assert!(line.text.contains("login refused") && line.text.contains(&path), "{}", line.text);
    nothing_happens_for(millis(1_500));
    assert_eq!(agent.lines().len(), 1, "{}", agent.stderr());
    std::fs::write(&path, PASSWORD).expect("writes the file");
    agent.wait_for_line(REGISTERED, secs(4));
    assert_no_secret(&agent.stderr());
}

#[test]
fn rotated_credentials_are_picked_up_when_the_old_ones_end() {
    let operator = Operator::new();
    let server = operator.server();
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let path = file("rotated.creds", operator.creds(1, Some(now + 3)));
    let mut agent = run(&server.url()).arg("--creds").arg(&path).spawn();
    agent.wait_for_line(REGISTERED, secs(5));
    std::fs::write(&path, operator.creds(2, None)).expect("writes the file");
    let line = agent.wait_for_line("lost orders-api/host-1", secs(8));
    assert!(line.text.to_lowercase().contains("authentication expired"), "{}", line.text);
    agent.wait_for_line("restored orders-api/host-1", secs(4));
    assert_no_secret(&agent.stderr());
}

#[test]
fn an_agent_whose_login_ends_says_so_once_with_the_file_and_comes_back() {
    let operator = Operator::new();
    let server = operator.server();
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let path = file("ending.creds", operator.creds(1, Some(now + 2)));
    let mut agent = run(&server.url()).arg("--creds").arg(&path).spawn();
    agent.wait_for_line(REGISTERED, secs(5));
    let line = agent.wait_for_line("login refused", secs(8));
    assert!(line.text.contains(&path) && line.text.contains("expired at"), "{}", line.text);
    assert!(line.text.contains(REPLACE_IT), "{}", line.text);
    nothing_happens_for(secs(3));
    // In the second in which it ends the server says so in other words.
    for words in ["login refused: Auth", "login refused: User"] {
        assert!(agent.lines_with(words).len() <= 1, "{}", agent.stderr());
    }
    std::fs::remove_file(&path).expect("removes the file");
    let line = agent.wait_for_line("no such file", secs(4));
    assert!(line.text.contains(&path), "{}", line.text);
    std::fs::write(&path, operator.creds(1, None)).expect("writes the file");
    agent.wait_for_line("restored orders-api/host-1", secs(4));
    assert!(agent.is_running());
}

// Nothing is shown.

#[test]
fn no_secret_is_in_any_line_any_entry_or_ps() {
    let (server, path) = (password_server(), file("password", PASSWORD));
    let proxy = Proxy::to(server.port());
    let mut agent = run(&proxy.url())
        .arg("--verbose")
        .arg("--user")
        .arg(USER)
        .arg("--password-file")
        .arg(&path)
        .spawn();
    agent.wait_for_line(REGISTERED, secs(5));
    proxy.cut();
    agent.wait_for_line("restored", secs(5));
    assert_no_secret(&command_line(&agent));
    let login = json!({ "user": USER, "pass": PASSWORD });
    let mut registry = Registry::login(&server.url(), "service_registry", &login);
    let entry = registry.last("service-instances__orders-api__host-1").expect("registered");
    assert_no_secret(&entry.text());
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
    assert_no_secret(&agent.stderr());
}

fn command_line(agent: &Agent) -> String {
    let bytes = std::fs::read(format!("/proc/{}/cmdline", agent.pid())).expect("it runs");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An argument is the operator's doing; the agent can only say so.
#[test]
fn a_login_on_the_command_line_is_a_warning() {
    let server = password_server();
    let url = url_with(&format!("{USER_IN_URL}:{PASSWORD_IN_URL}"), &server);
    let mut agent = run(&url).spawn();
    let warning = agent.wait_for_line("ps", secs(5));
    assert!(warning.text.contains("--nats-url") && warning.text.contains("NATS_URL"));
    agent.wait_for_line(REGISTERED, secs(5));
    assert_no_secret(&agent.stderr());
    let mut quiet =
        aegis(&["run", "--service=orders-api", "--instance=host-2"]).env("NATS_URL", &url).spawn();
    quiet.wait_for_line("registered", secs(5));
    assert_eq!(quiet.lines().len(), 1, "{}", quiet.stderr());
}

// Contexts of the nats CLI.

/// A directory with contexts; the value for XDG_CONFIG_HOME.
fn contexts(files: &[(&str, Value)]) -> PathBuf {
    let home = scratch("contexts");
    let directory = home.join("nats/context");
    std::fs::create_dir_all(&directory).expect("makes the directory");
    for (name, content) in files {
        let path = directory.join(format!("{name}.json"));
        std::fs::write(path, content.to_string()).expect("writes the context");
    }
    home
}

fn with_context(config: &Path, name: &str, verb: &str) -> Invocation {
    aegis(&[verb, "--context", name]).env("XDG_CONFIG_HOME", &config.display().to_string())
}

#[test]
fn a_context_gives_url_user_and_password() {
    let server = password_server();
    let context = json!({ "description": "d", "url": server.url(), "user": USER, "password": PASSWORD, "creds": "" });
    let config = contexts(&[("prod", context)]);
    gets_in(&|verb| with_context(&config, "prod", verb));
    // By the variable, and below ~/.config.
    let home = scratch("home");
    std::fs::create_dir_all(home.join(".config")).expect("makes the directory");
    std::fs::rename(config.join("nats"), home.join(".config/nats")).expect("moves it");
    gets_in(&|verb| {
        aegis(&[verb]).env("NATS_CONTEXT", "prod").env("HOME", &home.display().to_string())
    });
}

#[test]
fn a_context_gives_token_nkey_and_creds() {
    let server = token_server();
    let config = contexts(&[("t", json!({ "url": server.url(), "token": TOKEN }))]);
    gets_in(&|verb| with_context(&config, "t", verb));

    let operator = Operator::new();
    let server = operator.server();
    let config = contexts(&[("c", json!({ "url": server.url(), "creds": "~/a.creds" }))]);
    let home = scratch("home");
    std::fs::write(home.join("a.creds"), operator.creds(1, None)).expect("writes the file");
    gets_in(&|verb| with_context(&config, "c", verb).env("HOME", &home.display().to_string()));

    let pair = key(KeyPairType::User, 7);
    let server = self::server(&format!("users: [{{ nkey: {} }}]", pair.public_key()));
    let path = file("user.nk", seed(&pair));
    let config = contexts(&[("n", json!({ "url": server.url(), "nkey": path }))]);
    gets_in(&|verb| with_context(&config, "n", verb));
}

/// As the nats CLI has it (nats-io/jsm.go, `EncodeDataURI`).
fn data_uri(text: &str) -> String {
    format!("data:;base64,{}", data_encoding::BASE64.encode(text.as_bytes()))
}

#[test]
fn a_context_holds_credentials_nkey_password_and_token_themselves() {
    let operator = Operator::new();
    let server = operator.server();
    let creds = data_uri(&operator.creds(1, None));
    let config = contexts(&[("c", json!({ "url": server.url(), "creds": creds }))]);
    gets_in(&|verb| with_context(&config, "c", verb));

    let pair = key(KeyPairType::User, 7);
    let server = self::server(&format!("users: [{{ nkey: {} }}]", pair.public_key()));
    let nkey = data_uri(&format!("# an nkey\n{}\n", seed(&pair)));
    let config = contexts(&[("n", json!({ "url": server.url(), "nkey": nkey }))]);
    gets_in(&|verb| with_context(&config, "n", verb));

    let server = password_server();
    let password = data_uri(&format!("{PASSWORD}\n"));
    let context = json!({ "url": server.url(), "user": USER, "password": password });
    let config = contexts(&[("p", context)]);
    gets_in(&|verb| with_context(&config, "p", verb));

    let server = token_server();
    let config = contexts(&[("t", json!({ "url": server.url(), "token": data_uri(TOKEN) }))]);
    gets_in(&|verb| with_context(&config, "t", verb));
}

/// Neither decoded nor as it stands in the context.
#[test]
fn credentials_in_a_context_are_shown_nowhere() {
    let operator = Operator::new();
    let server = operator.server();
    let (own, other) = (seed(&key(KeyPairType::User, 1)), seed(&key(KeyPairType::User, 50)));
    let good = operator.creds(1, None);
    let texts = [
        ("good", good.clone()),
        ("expired", operator.creds(1, Some(1_600_000_000))),
        ("swapped", good.replace(&own, &other)),
        ("no-seed", good[..good.find("-----BEGIN USER").expect("it has a seed")].to_owned()),
    ];
    let mut files: Vec<(&str, Value)> = Vec::new();
    for (name, text) in &texts {
        files.push((name, json!({ "url": server.url(), "creds": data_uri(text) })));
    }
    files.push(("nkey", json!({ "url": server.url(), "nkey": data_uri("S3CR3T") })));
    let cut = data_uri(&good).replace("LS0t", "L*0t");
    files.push(("damaged", json!({ "url": server.url(), "creds": cut })));
    let config = contexts(&files);
    for (name, verb, code, words) in [
        ("expired", "list", 77, &["the credentials in the context", "into the context"][..]),
        ("swapped", "list", 78, &["the credentials in the context: its seed does not belong"]),
        ("no-seed", "list", 78, &["the credentials in the context: it holds no user seed"]),
        ("nkey", "list", 78, &["the nkey in the context: no line in it is a user seed"]),
        ("damaged", "list", 78, &["creds is a data: URI whose base64 is damaged"]),
    ] {
        let output = with_context(&config, name, verb).arg("-v").run();
        for part in data_uri(&good).as_bytes().chunks(24).skip(1) {
            let part = std::str::from_utf8(part).expect("base64");
            assert!(!format!("{output:?}").contains(part), "{part} in {output:#?}");
        }
        assert!(!format!("{output:?}").contains(good.lines().nth(1).expect("its JWT")));
        refused(output, code, words);
    }
    let check = with_context(&config, "expired", "check").run();
    assert!(check.stdout.contains("the user JWT in the context ended at"), "{check:#?}");
    assert!(check.stdout.contains("put fresh credentials into the context"), "{check:#?}");
    let shown = with_context(&config, "good", "run")
        .arg("--service=orders-api")
        .arg("--check-config")
        .run()
        .exits(0);
    let login = shown.stdout.lines().find(|line| line.starts_with("login ")).expect("a row");
    let cells: Vec<&str> = login.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect();
    assert_eq!(cells, ["login", "credentials (hidden)", "creds of the context"]);
}

#[test]
fn fresh_credentials_in_a_context_are_taken_at_a_reload() {
    let operator = Operator::new();
    let server = operator.server();
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let context = |creds: &str| json!({ "url": server.url(), "creds": data_uri(creds) });
    let config = contexts(&[("c", context(&operator.creds(1, Some(now + 4))))]);
    let mut agent = with_context(&config, "c", "run")
        .arg("--service=orders-api")
        .arg("--instance=host-1")
        .spawn();
    agent.wait_for_line(REGISTERED, secs(5));
    let fresh = context(&operator.creds(2, None)).to_string();
    std::fs::write(config.join("nats/context/c.json"), fresh).expect("writes the context");
    agent.signal("HUP");
    agent.wait_for_line("reloaded the settings of orders-api/host-1", secs(3));
    // The session of the old ones would end now.
    nothing_happens_for(secs(6));
    assert!(agent.lines_with("lost").is_empty(), "{}", agent.stderr());
    assert_no_secret(&agent.stderr());
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
}

#[test]
fn an_option_beats_the_context() {
    let (server, path) = (password_server(), file("password", PASSWORD));
    let context = json!({ "url": "nats://127.0.0.1:1", "user": "joe", "password": "s3cr3t" });
    let config = contexts(&[("p", context)]);
    gets_in(&|verb| {
        let invocation = with_context(&config, "p", verb).arg("-s").arg(&server.url());
        invocation.arg("--user").arg(USER).arg("--password-file").arg(&path)
    });
}

#[test]
fn a_context_that_cannot_be_used_is_named_with_what_is_wrong_with_it() {
    let config = contexts(&[
        ("op", json!({ "password": "op://vault/item/s3cr3t", "user": "a" })),
        ("env", json!({ "token": "env://T0K3N_t0k3n" })),
        ("nsc", json!({ "nsc": "nsc://o/a/u" })),
        ("domain", json!({ "jetstream_domain": "a.b" })),
        ("two", json!({ "user": "a", "password": "s3cr3t", "token": "t0k3n" })),
        ("url", json!({ "url": "nats://u:s3cr3t@host:port" })),
        ("gone", json!({ "creds": "/nowhere/a.creds" })),
        ("list", json!(["s3cr3t"])),
    ]);
    for (name, words) in [
        ("op", "password refers to op:"),
        ("env", "token refers to env:"),
        ("nsc", "nsc is not supported"),
        ("domain", "jetstream_domain of the context \"a.b\": must be one word"),
        ("two", "only one kind of login"),
        ("url", "url of the context"),
        ("gone", "/nowhere/a.creds: no such file"),
        ("list", "not a JSON object"),
        ("absent", "contexts that exist: domain, env, gone"),
        ("../x", "must be the plain name"),
    ] {
        refused(with_context(&config, name, "list").run(), 78, &[words]);
    }
}

// Operator mode: JWTs signed by hand (nats-io/jwt, version 2).

/// An operator with one account, whose users get in by what they sign.
pub(crate) struct Operator {
    operator: KeyPair,
    system: KeyPair,
    account: KeyPair,
}

/// The same key pair each time: no test needs surprise here.
fn key(kind: KeyPairType, number: u8) -> KeyPair {
    KeyPair::new(kind, [number; 32])
}

fn seed(pair: &KeyPair) -> String {
    pair.seed()
}

fn jwt(name: &str, subject: &str, issuer: &KeyPair, expires: Option<i64>, nats: Value) -> String {
    let mut claims = json!({
        "jti": "tests", "iat": 1_600_000_000, "iss": issuer.public_key(), "name": name,
        "sub": subject, "nats": nats,
    });
    if let Some(at) = expires {
        claims["exp"] = json!(at);
    }
    issuer.jwt(&claims)
}

impl Operator {
    pub(crate) fn new() -> Operator {
        Operator {
            operator: key(KeyPairType::Operator, 101),
            system: key(KeyPairType::Account, 102),
            account: key(KeyPairType::Account, 103),
        }
    }

    /// A server that trusts it, with the accounts in memory.
    pub(crate) fn server(&self) -> Server {
        self.server_that_takes(-1)
    }

    /// The same, with so many connections of the account at one time.
    pub(crate) fn server_that_takes(&self, connections: i64) -> Server {
        let own = self.operator.public_key();
        let operator =
            jwt("tests", &own, &self.operator, None, json!({ "type": "operator", "version": 2 }));
        let account = |name: &str, pair: &KeyPair, storage: i64, connections: i64| {
            let limits = json!({
                "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
                "wildcards": true, "conn": connections, "leaf": -1, "mem_storage": storage,
                "disk_storage": storage, "streams": storage, "consumer": storage,
            });
            let claims = json!({ "limits": limits, "type": "account", "version": 2 });
            jwt(name, &pair.public_key(), &self.operator, None, claims)
        };
        let (system, main) = (self.system.public_key(), self.account.public_key());
        let extra = format!(
            "operator: {operator}\nsystem_account: {system}\nresolver: MEMORY\n\
             resolver_preload: {{ {system}: {}, {main}: {} }}\n",
            account("SYS", &self.system, 0, -1),
            account("MAIN", &self.account, -1, connections)
        );
        Server::with(Setup { extra, ..Setup::default() })
    }

    /// The text of a credentials file for user `number`.
    pub(crate) fn creds(&self, number: u8, expires: Option<i64>) -> String {
        let user = key(KeyPairType::User, number);
        let claims = json!({
            "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1, "type": "user", "version": 2,
        });
        let jwt = jwt("agent", &user.public_key(), &self.account, expires, claims);
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             NKEY Seed printed below can be used to sign and prove identity.\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            seed(&user)
        )
    }
}

#[test]
fn a_withdrawn_user_is_said_once_and_gets_back_in() {
    let mut server = password_server();
    let path = file("password", PASSWORD);
    let mut agent =
        run(&server.url()).arg("--user").arg(USER).arg("--password-file").arg(&path).spawn();
    agent.wait_for_line(REGISTERED, secs(5));
    server.configure(&format!(
        "authorization {{ users: [{{ user: {}, password: \"x\" }}] }}\n",
        json!(USER)
    ));
    let line = agent.wait_for_line("login refused", secs(8));
    assert!(line.text.contains(&path), "{}", line.text);
    server.configure(&format!(
        "authorization {{ users: [{{ user: {}, password: {} }}] }}\n",
        json!(USER),
        json!(PASSWORD)
    ));
    agent.wait_for_line("restored", secs(5));
    eventually(secs(1), "each thing is said once", || {
        let said = agent.lines_with("login refused").len();
        if said == 1 { Ok(()) } else { Err(agent.stderr()) }
    });
}

// Files that are pipes.

#[test]
fn a_fifo_that_nobody_writes_to_hangs_nothing() {
    let path = scratch("login").join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo runs");
    assert!(made.success());
    let path = path.display().to_string();
    let words = [path.as_str(), "nothing came out of this pipe within 1s"];
    let options: [&[&str]; 7] = [
        &["--creds"],
        &["--nkey"],
        &["--token-file"],
        &["--user=a", "--password-file"],
        &["--tlsca"],
        &["--tlskey=/dev/null", "--tlscert"],
        &["--env-file"],
    ];
    for option in options {
        let call = [&["list", "-s", "127.0.0.1:1"], option, &[&path]].concat();
        refused(aegis(&call).within(secs(4)).run(), 78, &words);
    }
    refused(run("127.0.0.1:1").arg("--creds").arg(&path).within(secs(4)).run(), 78, &words);
    let config = contexts(&[]);
    let context = config.join("nats/context/pipe.json");
    let made = std::process::Command::new("mkfifo").arg(&context).status().expect("mkfifo runs");
    assert!(made.success());
    let output = with_context(&config, "pipe", "list").within(secs(4)).run();
    refused(output, 78, &["pipe.json", "nothing came out of this pipe within 1s"]);
}

#[test]
fn a_password_from_process_substitution_lasts_for_the_whole_life_of_an_agent() {
    let mut server = password_server();
    let wrapper =
        ["bash", "-c", "exec \"$@\" --password-file <(sleep 0.2; echo \"$SECRET\")", "bash"];
    let mut agent = run(&server.url())
        .arg("--user")
        .arg(USER)
        .env("SECRET", PASSWORD)
        .wrapped(&wrapper.map(str::to_owned))
        .spawn();
    agent.wait_for_line(REGISTERED, secs(5));
    server.kill();
    agent.wait_for_line("lost orders-api/host-1", secs(5));
    server.start_again();
    agent.wait_for_line("restored orders-api/host-1", secs(10));
    agent.signal("HUP");
    agent.wait_for_line("reloaded the settings of orders-api/host-1", secs(5));
    agent.wait_for_lines("registered orders-api/host-1", 2, secs(5));
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(5)), 0);
    agent.wait_for_line("deregistered orders-api/host-1", secs(1));
}
