//! A hostile server: one of the tests' own that speaks NATS and means no good.
//! Whatever it sends, a verb ends within its bounds, an agent lives on and
//! finds the next server that behaves, and memory stays bounded.

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::harness::agent::{Output, aegis};
use crate::harness::hostile::{Asked, Hostile, consumer_info, greeting, info, msg, stream_info};
use crate::harness::registry::Registry;
use crate::harness::scene::{KEY, record};
use crate::harness::server::{Server, Setup};
use crate::harness::{eventually, millis, secs};

/// What a verb may take of memory, whatever it is sent: as much as a bucket
/// of 100,000 and some.
const MEMORY_KIB: u64 = 64 * 1024;
const TIMEOUT: &str = "2s";
/// Three steps of a verb, each within the timeout and 1 s, and a busy machine.
const BOUND: Duration = secs(15);

/// Runs `list` against it: it must come to an end, within time and memory, and
/// not by a panic or a signal.
fn list(server: &Hostile) -> Output {
    list_within(server, MEMORY_KIB)
}

fn list_within(server: &Hostile, memory: u64) -> Output {
    let output = aegis(&["list", "-s", &server.url(), "--timeout", TIMEOUT]).within(secs(30)).run();
    assert!((0..=78).contains(&output.code), "{output:#?}");
    assert!(!output.stderr.contains("panicked"), "{output:#?}");
    assert!(output.took < BOUND, "{output:#?}");
    assert!(output.peak_kib < memory, "{} KiB: {}", output.peak_kib, output.stderr);
    output
}

/// Runs an agent against it for a few sessions, and then lets the server
/// behave: the agent must be alive, small, and register.
fn agent_survives(server: &Hostile) {
    let mut agent = aegis(&["run", "--service=orders-api", "--instance=host-1", "--timeout=500ms"])
        .arg("--ttl=2s")
        .arg("--interval=100ms")
        .arg("-s")
        .arg(&server.url())
        .spawn();
    eventually(secs(20), "a few sessions", || match server.connections() {
        8.. => Ok(()),
        count => Err(format!("{count} connections\n{}", agent.stderr())),
    });
    let usage = agent.usage();
    assert!(agent.is_running(), "{}", agent.stderr());
    server.behave();
    agent.wait_for_line("revision", secs(8));
    // Nothing is left of the sessions that were.
    assert_eq!(agent.usage().threads, 1, "{}\n{}", agent.holds(), agent.stderr());
    assert!(usage.peak_kib < MEMORY_KIB, "{usage:?}");
    agent.signal("TERM");
    agent.wait_exit(secs(3));
    assert!(!agent.stderr().contains("panicked"), "{}", agent.stderr());
}

#[test]
fn a_fake_server_that_behaves_is_believed() {
    let server = Hostile::start(|_, _| None);
    let output = list(&server);
    assert_eq!(output.code, 0, "{output:#?}");
    assert!(output.stdout.contains("host-1"), "{output:#?}");
}

// At the door.

#[test]
fn a_greeting_of_any_kind_is_survived() {
    let long = |size: usize| {
        move |_: u16| format!("INFO {{\"server_id\":\"{}\"}}\r\n", "x".repeat(size)).into_bytes()
    };
    let deep = |_: u16| format!("INFO {}\r\n", "[".repeat(4_000)).into_bytes();
    let urls = |port: u16| {
        let mut info = info(port);
        let odd =
            ["", ":", "::::", "a:99999", "\u{0}:1", "[::1]:4222", "nats://x:1", "u:p@h:1", "%zz:1"];
        info["connect_urls"] = json!(odd.iter().cycle().take(200).collect::<Vec<_>>());
        format!("INFO {info}\r\n").into_bytes()
    };
    let numbers = |port: u16| {
        let info = info(port).to_string();
        let info =
            info.replace("1048576", "-99999999999999999999999999").replace("\"2.12.8\"", "7");
        format!("INFO {info}\r\n").into_bytes()
    };
    let greetings: Vec<Box<dyn Fn(u16) -> Vec<u8> + Send + Sync>> = vec![
        Box::new(long(1 << 20)),
        Box::new(long(4_000)),
        Box::new(deep),
        Box::new(urls),
        Box::new(numbers),
        Box::new(|_| b"\r\n".repeat(10_000)),
        Box::new(|_| vec![0; 1 << 20]),
        Box::new(|_| b"INFO {}\r\n".to_vec()),
        Box::new(|_| b"INFO \xff\xfe\r\n".to_vec()),
        Box::new(|_| b"-ERR '\x1b[2J'\r\n".to_vec()),
        Box::new(|_| b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
        Box::new(|port| [greeting(port), b"MSG a 1 4294967295\r\n".to_vec()].concat()),
        Box::new(|port| [greeting(port), b"PONG\r\n".repeat(100_000)].concat()),
    ];
    for greeting in greetings {
        let server = Hostile::greeting(greeting, |_, _| None);
        let output = list(&server);
        assert!(!output.stderr.contains('\u{1b}'), "nothing steers the terminal: {output:?}");
    }
}

// Frames.

/// Bytes that are no frame, or one that lies about its sizes, in the place of
/// a reply.
const FRAMES: &[&[u8]] = &[
    b"HMSG R 1 10 5\r\nNATS/1.0\r\n\r\n",
    b"HMSG R 1 -1 5\r\nhello\r\n",
    b"HMSG R 1 0 0\r\n\r\n",
    b"HMSG R 1 12 99999999999999999999\r\nNATS/1.0\r\n\r\n\r\n",
    b"HMSG R 1 3 3\r\nabc\r\n",
    b"HMSG R 1 12 12\r\nNATS/1.0 \xff\r\n\r\n",
    b"HMSG R\r\n",
    b"MSG R 1 4294967295\r\n",
    b"HMSG R 1 4294967295 4294967295\r\n",
    b"MSG R 1 -1\r\n",
    b"MSG R 1 x\r\n",
    b"MSG R -1 0\r\n\r\n",
    b"MSG R 18446744073709551615 0\r\n\r\n",
    b"MSG R 1 a b c d 0\r\n\r\n",
    b"MSG\r\n",
    b"MSG R 1 5\r\nhello and more than was said\r\n",
    b"\xff\xfe\xfd\r\n",
    b"\0\0\0\0\r\n",
    b"-ERR\r\n",
    b"-ERR 'Permissions Violation for '\r\n",
    b"-ERR 'Permissions Violation for Publish to \"\x1b[2J\"'\r\n",
    b"INFO {\"connect_urls\":[\"\\u0000\"]}\r\n",
    b"INFO {\r\n",
    b"PONG\r\nPONG\r\nPONG\r\n",
    b"+OK\r\nNOSUCH thing\r\n",
];

fn frame(place: usize, reply: &str) -> Vec<u8> {
    match FRAMES.get(place) {
        Some(frame) => {
            let at = frame.iter().position(|&b| b == b'R');
            let is_message = frame.starts_with(b"MSG R") || frame.starts_with(b"HMSG R");
            match at.filter(|_| is_message).map(|_| if frame[0] == b'H' { 5 } else { 4 }) {
                Some(at) => [&frame[..at], reply.as_bytes(), &frame[at + 1..]].concat(),
                None => frame.to_vec(),
            }
        }
        // Longer than any line of the protocol but INFO.
        None => vec![b'x'; 9_000],
    }
}

#[test]
fn frames_that_lie_end_a_list_with_words() {
    for place in 0..=FRAMES.len() {
        let server = Hostile::start(move |asked, out| {
            asked
                .is("$JS.API.CONSUMER.MSG")
                .then(|| out.write_all(&frame(place, &asked.reply)).ok())?
        });
        let output = list(&server);
        assert!(!output.stderr.contains('\u{1b}'), "nothing steers the terminal: {output:?}");
        if output.code != 0 {
            assert!(output.stderr.contains("error: "), "{place}: {output:#?}");
        }
    }
}

#[test]
fn frames_that_lie_do_not_end_an_agent() {
    for place in [0, 1, 4, 9, 16, FRAMES.len()] {
        agent_survives(&Hostile::start(move |asked, out| {
            asked.is("$KV.").then(|| out.write_all(&frame(place, &asked.reply)).ok())?
        }));
    }
}

/// Room is made for what came, never for what a frame says: 4 GiB here, four
/// times.
#[test]
fn an_agent_survives_a_message_of_four_gibibytes() {
    let lies = AtomicUsize::new(0);
    let server = Hostile::start(move |asked, out| {
        (asked.is("$KV.") && lies.fetch_add(1, Ordering::SeqCst) < 4).then_some(())?;
        write!(out, "MSG {} 1 4294967295\r\n", asked.reply).ok()
    });
    let mut agent = aegis(&["run", "--service=orders-api", "--instance=host-1", "--ttl=2s"])
        .arg("--interval=100ms")
        .arg("-s")
        .arg(&server.url())
        .spawn();
    agent.wait_for_line("revision", secs(10));
    let usage = agent.usage();
    assert!(usage.peak_kib < MEMORY_KIB, "{usage:?}");
    assert_eq!(usage.threads, 1, "{}", agent.holds());
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
}

/// One header line of 64 MB, the most that a server takes, and as many lines as
/// fit into the 1 MiB that it takes unless told otherwise: any writer may store
/// such a thing.
#[test]
fn huge_headers_are_survived() {
    let server = Hostile::start(|asked, out| {
        asked.is("$JS.API.CONSUMER.MSG").then_some(())?;
        let size = 64 << 20;
        write!(out, "HMSG {} 1 {size} {size}\r\nNATS/1.0\r\nA: ", asked.reply).ok()?;
        out.write_all(&vec![b'x'; size - 17]).ok()?;
        out.write_all(b"\r\n\r\n\r\n").ok()
    });
    // Twice and some: a buffer that grew while it was filled.
    let output = list_within(&server, 3 * 64 * 1024);
    assert!([0, 69].contains(&output.code), "{output:#?}");
    let server = Hostile::start(|asked, out| {
        asked.is("$JS.API.CONSUMER.MSG").then_some(())?;
        let lines: String = (0..95_000).map(|n| format!("k{n:06}:v\r\n")).collect();
        let header = format!("NATS/1.0\r\n{lines}\r\n");
        let size = header.len();
        write!(out, "HMSG {} 1 {size} {size}\r\n{header}\r\n", asked.reply).ok()
    });
    let output = list_within(&server, 2 * MEMORY_KIB);
    assert!([0, 69].contains(&output.code), "{output:#?}");
}

// Replies.

#[test]
fn replies_to_nobody_are_dropped() {
    let server = Hostile::start(|asked, out| {
        asked.is("$JS.API.STREAM.INFO").then_some(())?;
        let other = format!("{}9", asked.reply);
        for _ in 0..3_000 {
            msg(out, &other, "", b"{\"error\":{\"code\":1}}")?;
            write!(out, "MSG nobody 77 0\r\n\r\n").ok()?;
        }
        None
    });
    let output = list(&server);
    assert_eq!(output.code, 0, "{output:#?}");
}

fn nested(brackets: usize) -> Vec<u8> {
    [b"{\"error\":".to_vec(), vec![b'['; brackets]].concat()
}

#[test]
fn a_million_brackets_are_an_error_with_words() {
    for what in ["$JS.API.STREAM.INFO", "$JS.API.CONSUMER.CREATE"] {
        let server = Hostile::start(move |asked, out| {
            asked.is(what).then(|| msg(out, &asked.reply, "", &nested(1_000_000)))?
        });
        let output = list(&server);
        assert_eq!(output.code, 69, "{output:#?}");
        assert!(output.stderr.contains("cannot be read"), "{output:#?}");
        assert!(output.stderr.len() < 1_000, "{output:#?}");
    }
    let server = Hostile::start(|asked, out| {
        asked.is("$JS.API.CONSUMER.MSG").then_some(())?;
        let subject = format!("$KV.service_registry.{KEY}");
        msg(out, &subject, &asked.ack(1, 0), &vec![b'['; 1_000_000])
    });
    let output = list(&server);
    assert_eq!(output.code, 0, "{output:#?}");
    assert!(output.stderr.contains("1 unreadable"), "{output:#?}");
    agent_survives(&Hostile::start(|asked, out| {
        asked.is("$KV.").then(|| msg(out, &asked.reply, "", &nested(1_000_000)))?
    }));
}

#[test]
fn replies_with_absurd_values_are_survived() {
    let configs = [
        json!({ "config": [] }),
        json!({ "config": null }),
        json!({ "config": {} }),
        json!({ "config": { "max_msgs_per_subject": i64::MIN, "max_age": i64::MAX } }),
        json!({ "ts": "9999-12-31T23:59:59.999999999Z" }),
        json!({ "ts": "0001-01-01T00:00:00Z" }),
        json!({ "ts": "-9999-01-01T00:00:00+23:59" }),
        json!({ "ts": 7 }),
        json!({ "ts": null }),
        json!({ "state": { "messages": u64::MAX, "last_seq": u64::MAX } }),
        json!({ "state": { "messages": -1 } }),
        json!({ "error": "x" }),
        json!({ "error": { "code": 70_000 } }),
        json!({ "error": { "err_code": 10_059, "description": "x".repeat(100_000) } }),
    ];
    for change in configs {
        let told = change.clone();
        let server = Hostile::start(move |asked, out| {
            asked.is("$JS.API.STREAM.INFO").then_some(())?;
            let mut reply = stream_info();
            for (name, value) in change.as_object()? {
                reply[name] = value.clone();
            }
            msg(out, &asked.reply, "", reply.to_string().as_bytes())
        });
        let output = list(&server);
        let is_read = output.code == 0 && output.stdout.contains("host-1");
        // Without its subjects in the configuration it is no bucket.
        let refusals = ["error: looking at the bucket: ", "is no key-value bucket"];
        let is_refused =
            output.code == 69 && refusals.iter().any(|words| output.stderr.contains(words));
        assert!(
            is_read || is_refused || told["error"]["err_code"] == 10_059,
            "{told:.60}: {output:#?}"
        );
        assert!(output.stderr.len() < 1_000, "{told:.60}: {output:#?}");
    }
}

#[test]
fn acknowledgements_with_absurd_sequences_do_not_end_an_agent() {
    for seq in ["0", "18446744073709551615", "-1", "1e400", "\"7\"", "null", "1.5"] {
        let server = Hostile::start(move |asked, out| {
            asked.is("$KV.").then_some(())?;
            let reply = format!("{{\"stream\":\"KV_service_registry\",\"seq\":{seq}}}");
            msg(out, &asked.reply, "", reply.as_bytes())
        });
        let mut agent = aegis(&["run", "--service=orders-api", "--instance=host-1", "--ttl=2s"])
            .arg("--interval=100ms")
            .arg("-s")
            .arg(&server.url())
            .spawn();
        agent.wait_for_line("orders-api/host-1", secs(5));
        crate::harness::nothing_happens_for(millis(300));
        assert!(agent.is_running(), "{seq}: {}", agent.stderr());
        assert!(agent.lines().len() < 4, "{seq}: {}", agent.stderr());
        agent.signal("TERM");
        assert_eq!(agent.wait_exit(secs(8)), 0, "{seq}: {}", agent.stderr());
    }
}

// Deliveries.

/// `deliver` is called for each pull, with a count of pulls. The server is in a
/// cluster: a consumer may be on another member.
fn deliveries(
    pending: u64,
    deliver: impl Fn(&Asked, &mut dyn Write) -> Option<()> + Send + Sync + 'static,
) -> Hostile {
    let greeting = |port: u16| {
        let mut info = info(port);
        info["cluster"] = "hostile".into();
        format!("INFO {info} \r\n").into_bytes()
    };
    Hostile::greeting(greeting, move |asked, out| {
        if asked.is("$JS.API.CONSUMER.MSG") {
            deliver(asked, out)
        } else if asked.is("$JS.API.CONSUMER.") {
            msg(out, &asked.reply, "", consumer_info(pending).to_string().as_bytes())
        } else {
            None
        }
    })
}

fn deliver(
    asked: &Asked,
    out: &mut dyn Write,
    sequence: impl std::fmt::Display,
    pending: impl std::fmt::Display,
) -> Option<()> {
    let subject = format!("$KV.service_registry.{KEY}");
    msg(out, &subject, &asked.ack(sequence, pending), record("host-1", 0).as_bytes())
}

/// A loaded server does this: the consumer that was given up for its silence
/// delivers after all, beside the one that took its place.
#[test]
fn what_a_consumer_delivers_that_was_given_up_is_passed_over() {
    for verb in [&["list", "--names"][..], &["cleanup", "--dry-run"], &["check"]] {
        let silent = Mutex::new(None);
        let server = deliveries(3, move |asked, out| {
            let asks = || Asked { subject: asked.subject.clone(), reply: asked.reply.clone() };
            let late = silent.lock().ok()?.replace(asks());
            if let Some(late) = late.filter(|late| late.subject != asked.subject) {
                deliver(&late, out, 1, 2)?;
                deliver(asked, out, 1, 2)?;
                deliver(&late, out, 2, 1)?;
                deliver(asked, out, 2, 1)?;
                deliver(&late, out, 3, 0)?;
                deliver(asked, out, 3, 0)?;
            }
            Some(())
        });
        let output = aegis(verb).arg("-s").arg(&server.url()).arg("--timeout=3s").run();
        assert!(output.code < 2, "{verb:?}: {output:#?}");
        assert!(!output.stderr.contains("contradicts"), "{verb:?}: {output:#?}");
    }
}

/// An honest server does this: from a replicated bucket the end of a pull can
/// overtake the last of its messages.
#[test]
fn the_end_of_a_pull_may_come_before_its_last_message() {
    let server = deliveries(3, |asked, out| {
        let deliver = |out: &mut dyn Write, sequence, pending| {
            let subject = format!("$KV.service_registry.service-instances__orders-api__{sequence}");
            msg(out, &subject, &asked.ack(sequence, pending), record("host-1", 0).as_bytes())
        };
        deliver(out, 1, 2)?;
        let status = "NATS/1.0 409 Batch Completed\r\nNats-Pending-Messages: 0\r\n\r\n";
        write!(out, "HMSG {} 1 {n} {n}\r\n{status}\r\n", asked.reply, n = status.len()).ok()?;
        deliver(out, 2, 1)?;
        deliver(out, 3, 0)
    });
    let output = list(&server).exits(0);
    assert!(output.stderr.contains("3 instances"), "{output:#?}");
}

#[test]
fn deliveries_with_absurd_numbers_end_a_list() {
    for (sequence, pending) in [
        ("0", "0"),
        ("18446744073709551615", "0"),
        ("-1", "0"),
        ("1", "-1"),
        ("1", "18446744073709551616"),
        ("x", "y"),
        ("", ""),
    ] {
        let output = list(&deliveries(1, move |asked, out| deliver(asked, out, sequence, pending)));
        let is_believed = output.code == 0 && output.stderr.contains("1 instance");
        let is_refused = output.code == 69 && output.stderr.contains("error: reading the bucket: ");
        assert!(is_believed || is_refused, "{sequence:?} {pending:?}: {output:#?}");
    }
}

#[test]
fn a_consumer_that_promises_and_does_not_deliver_ends_a_list_in_time() {
    let output = list(&deliveries(u64::MAX, |_, _| Some(())));
    assert_eq!(output.code, 69, "{output:#?}");
}

#[test]
fn a_sequence_that_does_not_rise_ends_a_list_with_words() {
    let output = list(&deliveries(1_000_000, |asked, out| {
        (0..2_000).try_for_each(|_| deliver(asked, out, 5, 1_000_000))
    }));
    assert_eq!(output.code, 69, "{output:#?}");
    assert!(output.stderr.contains("sequence"), "{output:#?}");
}

/// More than the bucket can hold, for ever, as fast as it is taken.
#[test]
fn endless_batches_end_a_list_with_words() {
    let output = list(&deliveries(10, |asked, out| {
        (1..u64::MAX).try_for_each(|sequence| deliver(asked, out, sequence, 10))
    }));
    assert_eq!(output.code, 69, "{output:#?}");
}

#[test]
fn endless_statuses_end_a_list_in_time() {
    for status in ["404 No Messages", "408 Request Timeout", "100 Idle Heartbeat", "409 x", "999 y"]
    {
        let server = deliveries(10, move |asked, out| {
            let header = format!("NATS/1.0 {status}\r\n\r\n");
            let size = header.len();
            (0..3).try_for_each(|_| {
                write!(out, "HMSG {} 1 {size} {size}\r\n{header}\r\n", asked.reply).ok()
            })
        });
        let output = list(&server);
        // Nothing more in the bucket is an honest end.
        let ends =
            if status.starts_with("404") { (0, "no instances") } else { (69, "cannot be read") };
        assert_eq!(output.code, ends.0, "{status}: {output:#?}");
        assert!(output.stderr.contains(ends.1), "{status}: {output:#?}");
    }
}

/// Any writer may store as much as the server takes: what is asked for at once
/// is bounded in bytes, too.
#[test]
fn a_bucket_of_large_entries_is_listed_in_little_memory() {
    let extra = "max_payload: 8MB\n".to_owned();
    let server = Server::with(Setup { extra, ..Setup::default() });
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({}));
    // Two that do not fit into one pull, among many that do.
    for n in 0..130 {
        let size = if n == 40 || n == 41 { 6_000_000 } else { 900_000 };
        let padding = format!("\"metadata\":{{\"p\":\"{}\"}}", "x".repeat(size));
        let key = format!("service-instances__orders-api__i{n}");
        let record = record(&format!("i{n}"), 0).replace("\"metadata\":{}", &padding);
        registry.put(&key, &[("Nats-TTL", "60s")], &record);
    }
    let output = aegis(&["list", "-s", &server.url()]).run().exits(0);
    assert!(output.stderr.contains("130 instances"), "{}", output.stderr);
    assert!(output.peak_kib < MEMORY_KIB, "{} KiB", output.peak_kib);
}
