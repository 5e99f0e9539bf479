//! Records with any bytes: whatever a writer can store is read, past it is read
//! on, and each is reported once.

use serde_json::{Value, json};

use crate::harness::registry::{Registry, header};
use crate::harness::scene::{record, verb};
use crate::harness::server::{Server, Setup};

/// How poison lies among good records.
#[derive(Clone, Copy)]
struct Spread {
    poison: usize,
    /// Good records before each.
    between: usize,
}

impl Spread {
    fn good(self) -> usize {
        self.poison * self.between
    }
}

/// Forty, six apart: no reader can afford to begin anew after each.
const DENSE: Spread = Spread { poison: 40, between: 5 };
/// Six, further apart than what a reader asks for at once when it is careful.
const APART: Spread = Spread { poison: 6, between: 250 };

/// What is stored under which key.
struct Kind {
    name: &'static str,
    key: fn(usize) -> Vec<u8>,
    header: &'static [u8],
    /// Whether its key may stand in a subject, so that it can be purged.
    can_be_named: bool,
}

fn plain(n: usize) -> Vec<u8> {
    format!("service-instances__bad__b{n}").into_bytes()
}

/// As long as a server takes it: 4,096 bytes is its limit for a line of the
/// protocol, with the tests' reply subject and the sizes in it.
fn long(n: usize) -> Vec<u8> {
    let mut key = plain(n);
    key.resize(3_990, b'x');
    key
}

fn not_text(n: usize) -> Vec<u8> {
    [plain(n), b"\xff\xfe".to_vec()].concat()
}

const KINDS: &[Kind] = &[
    Kind {
        name: "a bare line feed in a header",
        key: plain,
        header: b"NATS/1.0\r\nNats-TTL: 10m\r\nX-Note: one\ntwo\r\n\r\n",
        can_be_named: true,
    },
    Kind {
        name: "a line feed ends the header lines",
        key: plain,
        header: b"NATS/1.0\nNats-TTL: 10m\n\n",
        can_be_named: true,
    },
    Kind {
        name: "another version",
        key: plain,
        header: b"NATS/1.1\r\nNats-TTL: 10m\r\n\r\n",
        can_be_named: true,
    },
    Kind {
        name: "a header line without a colon",
        key: plain,
        header: b"NATS/1.0\r\nNats-TTL: 10m\r\nno colon here\r\n\r\n",
        can_be_named: true,
    },
    Kind {
        name: "a header that is not UTF-8",
        key: plain,
        header: b"NATS/1.0\r\nNats-TTL: 10m\r\nX\xff: \xfe\xfd\r\n\r\n",
        can_be_named: true,
    },
    Kind {
        name: "a null and a carriage return in a header",
        key: plain,
        header: b"NATS/1.0\r\nNats-TTL: 10m\r\nX: a\0b\rc\r\n\r\n",
        can_be_named: true,
    },
    Kind {
        name: "a key of 3,990 characters",
        key: long,
        header: b"NATS/1.0\r\nNats-TTL: 10m\r\n\r\n",
        can_be_named: true,
    },
    Kind {
        name: "a subject that is not UTF-8",
        key: not_text,
        header: b"NATS/1.0\r\nNats-TTL: 10m\r\n\r\n",
        can_be_named: false,
    },
];

/// A bucket of good records that beat `age` seconds ago, with the poison of
/// this kind among them, which is as old.
fn poisoned(
    server: &Server,
    bucket: &str,
    spread: Spread,
    kind: impl Fn(usize) -> &'static Kind,
    age: i64,
) -> Registry {
    let mut registry = Registry::named(&server.url(), bucket);
    registry.create(&json!({}));
    let ttl = header(&[("Nats-TTL", "10m")]);
    for n in 0..spread.poison {
        registry.fill(spread.between, |i| {
            let instance = format!("g{n}-{i}");
            let key = format!("service-instances__orders-api__{instance}");
            (key, ttl.clone(), record(&instance, age))
        });
        let (kind, bad) = (kind(n), record(&format!("b{n}"), age).replace("orders-api", "bad"));
        registry.store(&(kind.key)(n), kind.header, bad.as_bytes());
    }
    registry
}

fn run(server: &Server, name: &str, bucket: &str, options: &[&str]) -> Value {
    let invocation = verb(name, &server.url()).arg("--bucket").arg(bucket).arg("--json");
    let output = options.iter().fold(invocation, |all, option| all.arg(option)).run();
    // What was to go and cannot be named is seen by the exit code, too.
    let may_be = match name {
        "check" => 1,
        "cleanup" if options.contains(&"--unreadable") => 75,
        _ => 0,
    };
    assert!(output.code == 0 || output.code == may_be, "{output:#?}");
    output.json()
}

fn count(answer: &Value, array: &str) -> usize {
    answer[array].as_array().unwrap_or_else(|| panic!("{array}: {answer}")).len()
}

/// How many of an array are of this service, by name or by key.
fn of(answer: &Value, array: &str, service: &str) -> usize {
    let all = answer[array].as_array().unwrap_or_else(|| panic!("{array}: {answer}"));
    let key = format!("service-instances__{service}__");
    let is = |one: &&Value| one["key"].as_str().is_some_and(|found| found.starts_with(&key));
    all.iter().filter(is).count()
}

/// What a bucket is like.
struct Case<'a> {
    server: &'a Server,
    bucket: String,
    spread: Spread,
    kind: &'a dyn Fn(usize) -> &'static Kind,
    name: &'static str,
}

impl Case<'_> {
    fn fill(&self, age: i64) -> Registry {
        poisoned(self.server, &self.bucket, self.spread, self.kind, age)
    }

    fn run(&self, name: &str, options: &[&str]) -> Value {
        run(self.server, name, &self.bucket, options)
    }
}

/// Each kind alone, and all of them in turn.
fn each_case(prove: impl Fn(&Case)) {
    let server = &Server::with(Setup::default());
    for (place, kind) in KINDS.iter().enumerate() {
        let bucket = format!("kind{place}");
        prove(&Case { server, bucket, spread: APART, kind: &|_| kind, name: kind.name });
    }
    let kind = &|n| &KINDS[n % KINDS.len()];
    let (bucket, name) = ("all".to_owned(), "all kinds in turn");
    prove(&Case { server, bucket, spread: DENSE, kind, name });
}

#[test]
fn list_reads_past_all_of_them() {
    each_case(|case| {
        let _registry = case.fill(0);
        let answer = case.run("list", &[]);
        assert_eq!(of(&answer, "instances", "orders-api"), case.spread.good(), "{}", case.name);
        let bad = of(&answer, "instances", "bad") + count(&answer, "unreadable");
        let expected = case.spread.poison;
        assert_eq!(bad, expected, "{}: listed or reported: {}", case.name, answer["unreadable"]);
    });
}

#[test]
fn check_counts_past_all_of_them() {
    each_case(|case| {
        let _registry = case.fill(0);
        let answer = case.run("check", &[]);
        let checks = answer["checks"].as_array().expect("an array");
        let entries = checks.iter().find(|check| check["name"] == "legacy-entries");
        let message = entries.expect("it is always there")["message"].as_str().unwrap_or_default();
        // "of 240 instances", "240 instances, each with a TTL"
        let words: Vec<&str> = message.split_whitespace().collect();
        let place = words.iter().position(|word| word.starts_with("instances"));
        let seen = place.and_then(|at| words[at - 1].parse::<usize>().ok()).unwrap_or(0);
        let all = case.spread.good()..=case.spread.good() + case.spread.poison;
        assert!(all.contains(&seen), "{}: {message}", case.name);
    });
}

#[test]
fn cleanup_cleans_past_all_of_them_and_takes_the_unreadable_when_asked() {
    each_case(|case| {
        let mut registry = case.fill(100);
        let Case { spread, name, .. } = case;
        let answer = case.run("cleanup", &[]);
        assert_eq!(answer["scanned"], spread.good() + spread.poison, "{name}");
        assert_eq!(of(&answer, "removed", "orders-api"), spread.good(), "{name}");
        assert_eq!(count(&answer, "failed") + count(&answer, "spared"), 0, "{name}: {answer}");
        let unreadable = count(&answer, "unreadable");
        let bad = of(&answer, "removed", "bad") + unreadable;
        assert_eq!(bad, spread.poison, "{name}: each is removed or reported: {answer}");
        assert_eq!(registry.everything().len(), unreadable, "{name}");

        let answer = case.run("cleanup", &["--unreadable"]);
        let named = (0..spread.poison).filter(|&n| (case.kind)(n).can_be_named).count();
        assert_eq!(registry.everything().len(), spread.poison - named, "{name}: {answer}");
    });
}

/// As text, the bucket is read and cleaned in one pass.
#[test]
fn one_pass_of_cleanup_cleans_past_all_of_them() {
    let server = Server::with(Setup::default());
    for (bucket, spread) in [("dense", DENSE), ("apart", APART)] {
        let mut registry = poisoned(&server, bucket, spread, |n| &KINDS[n % KINDS.len()], 100);
        let invocation = verb("cleanup", &server.url()).arg("--bucket").arg(bucket);
        let text = invocation.run().exits(0).stdout;
        let scanned = format!("scanned {}, removed ", spread.good() + spread.poison);
        assert!(text.contains(&scanned), "{text}");
        assert!(text.contains("spared 0, failed 0, "), "{text}");
        assert!(registry.everything().len() <= spread.poison, "{text}");
    }
}
