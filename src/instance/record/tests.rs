//! Records, names and keys that may be read, and those that may not.

use super::*;
use crate::jetstream::bucket::key_is_safe;
use crate::text::printable::printable;

const KEY: &str = "service-instances__orders-api__host-1";

fn at(text: &str) -> OffsetDateTime {
    parse_time(text).unwrap()
}

fn record() -> Record {
    let mut metadata = Map::new();
    metadata.insert("pid".to_owned(), "4711".into());
    metadata.insert("host".to_owned(), "host-1".into());
    Record {
        service_name: "orders-api".to_owned(),
        instance_id: "host-1".to_owned(),
        version: "1.4.2".to_owned(),
        status: Status::Active,
        last_heartbeat: at("2026-11-23T09:37:31.979155Z"),
        sticky_active_group: None,
        metadata,
    }
}

/// Read by the monitor and by every service of the registry; strict ones
/// reject any other field.
const GOLDEN: &str = r#"{"serviceName":"orders-api","instanceId":"host-1","version":"1.4.2","status":"ACTIVE","lastHeartbeat":"2026-11-23T09:37:31.979155+00:00","stickyActiveGroup":null,"metadata":{"host":"host-1","pid":"4711"}}"#;

fn read_text(json: &str) -> Result<Record, Unreadable> {
    read(KEY, json.as_bytes())
}

fn why(key: &str, value: &[u8]) -> String {
    let text = read(key, value).unwrap_err().to_string();
    assert!(text.chars().count() <= 200, "{text}");
    assert_eq!(text, printable(&text));
    text
}

#[test]
fn the_record_is_the_one_of_the_contract_byte_for_byte() {
    assert_eq!(String::from_utf8(record().to_json()).unwrap(), GOLDEN);
    assert_eq!(read_text(GOLDEN), Ok(record()));
}

#[test]
fn a_group_is_written_as_text() {
    let mut grouped = record();
    grouped.sticky_active_group = Some("main \"x\"".to_owned());
    let json = String::from_utf8(grouped.to_json()).unwrap();
    assert!(json.contains(r#","stickyActiveGroup":"main \"x\"","metadata":"#));
    assert_eq!(read_text(&json), Ok(grouped));
}

// "service | ^[a-z][a-z0-9-]{1,62}[a-z0-9]$"
#[test]
fn service_names_keep_their_rule() {
    let longest = format!("a{}", "-b".repeat(31)) + "c";
    assert_eq!(longest.len(), 64);
    for good in ["orders-api", "abc", "a-1", "a--b", "a11", longest.as_str()] {
        let name: ServiceName = good.parse().unwrap();
        assert_eq!(name.as_str(), good);
        assert_eq!(name.to_string(), good);
    }
    let too_long = format!("{longest}d");
    for bad in [
        "",
        "a",
        "ab",
        "1ab",
        "-ab",
        "ab-",
        "Abc",
        "a_b",
        "a.b",
        "a b",
        "abc\n",
        "äbc",
        "abü",
        "a*b",
        "a>b",
        too_long.as_str(),
    ] {
        assert!(bad.parse::<ServiceName>().is_err(), "{bad:?}");
    }
    assert_eq!(
        "X".parse::<ServiceName>().unwrap_err().to_string(),
        "a service name has 3 to 64 of a-z, 0-9 and -, begins with a letter and does not end with -"
    );
}

// "instance | 1 to 100 of A-Z a-z 0-9 - _ ="
#[test]
fn instance_ids_keep_their_rule() {
    let longest = "x".repeat(100);
    for good in ["a", "Host-1", "_", "a__b", "a=b==", "-", "0", &longest] {
        assert_eq!(good.parse::<InstanceId>().unwrap().as_str(), good);
    }
    let too_long = "x".repeat(101);
    for bad in [
        "",
        "a.b",
        "a*",
        ">",
        "a/b",
        "a\\b",
        "a:b",
        "a b",
        "a\t",
        "a\n",
        "é",
        "a\u{202e}",
        &too_long,
    ] {
        assert!(bad.parse::<InstanceId>().is_err(), "{bad:?}");
    }
}

// "version | ^\d+\.\d+\.\d+$"
#[test]
fn versions_keep_their_rule() {
    for good in ["0.0.0", "1.4.2", "10.200.3000", "01.0.0"] {
        assert_eq!(good.parse::<Version>().unwrap().as_str(), good);
    }
    for bad in [
        "",
        "1",
        "1.2",
        "1.2.3.4",
        "1.2.",
        ".1.2",
        "1..2",
        "v1.2.3",
        "1.2.3-rc1",
        "1.2.3\n",
        " 1.2.3",
        "-1.2.3",
        "+1.2.3",
        "\u{661}.2.3",
    ] {
        assert!(bad.parse::<Version>().is_err(), "{bad:?}");
    }
}

#[test]
fn the_known_statuses_are_read_as_written_and_in_upper_case_only() {
    for status in [Status::Active, Status::Standby, Status::Unhealthy, Status::Shutdown] {
        assert_eq!(Status::parse(status.as_str()), Some(status));
    }
    let longest = "A".repeat(64);
    for word in ["active", "Shutdown", "DRAINING", "WARMING_UP-2", &longest] {
        let status = Status::parse(word);
        assert!(matches!(status, Some(Status::Unknown(_))), "{word}");
        assert_eq!(status.unwrap().as_str(), word);
    }
    let too_long = "A".repeat(65);
    for bad in ["", " ", " ACTIVE", "A B", "\u{1b}[2J", "ÜBER", "{}", &too_long] {
        assert_eq!(Status::parse(bad), None, "{bad:?}");
    }
}

#[test]
fn an_instance_key_names_its_service_and_instance_again() {
    for (service, instance) in
        [("orders-api", "host-1"), ("abc", "_"), ("abc", "__"), ("abc", "a__b"), ("a--b", "-=")]
    {
        let key = instance_key(&service.parse().unwrap(), &instance.parse().unwrap());
        assert_eq!(key, format!("service-instances__{service}__{instance}"));
        assert_eq!(names_in_key(&key), Some((service, instance)));
        assert!(is_instance_key(&key));
        assert!(key_is_safe(&key));
    }
}

#[test]
fn keys_of_all_layouts_are_split() {
    for (key, names) in [
        ("service-instances__web__a", Some(("web", "a"))),
        ("service-instances__web___a", Some(("web", "_a"))),
        ("service-instances__web__a_b__c", Some(("web", "a_b__c"))),
        ("service-instances.web.a", Some(("web", "a"))),
        ("service-instances.web.a.b", Some(("web", "a.b"))),
        ("service-instances_web_a", Some(("web", "a"))),
        ("service-instances_web_a_b", Some(("web", "a_b"))),
        ("service-instances_web__a", Some(("web", "_a"))),
        ("service-instances__web_a", None),
        ("service-instances__web__", None),
        ("service-instances____a", None),
        ("service-instances__web", None),
        ("service-instances.web", None),
        ("service-instances..a", None),
        ("service-instances_web", None),
        ("service-instances", None),
        ("service-instances-web-a", None),
        ("echo-service", None),
        ("", None),
    ] {
        assert_eq!(names_in_key(key), names, "{key}");
    }
}

// "Other keys: the same bucket holds service definitions under plain
// names. They are never ours"
#[test]
fn definitions_are_not_instance_keys() {
    for key in [
        "echo-service",
        "service-instances",
        "service-instances-doc",
        "service-instances-doc__a__b",
        "service-instances_",
        "service-instances__",
        "service-instances.",
        "service-instancesx__a__b",
        "Service-instances__a__b",
        "x.service-instances__a__b",
        "",
    ] {
        assert!(!is_instance_key(key), "{key}");
    }
    for key in [
        "service-instances__web__a",
        "service-instances.web.a",
        "service-instances_web_a",
        "service-instances__nonsense",
        "service-instances__a__*",
        "service-instances.>",
        "service-instances_x",
    ] {
        assert!(is_instance_key(key), "{key}");
    }
}

#[test]
fn both_spellings_are_read_and_camel_case_wins() {
    let snake = GOLDEN
        .replace("serviceName", "service_name")
        .replace("instanceId", "instance_id")
        .replace("lastHeartbeat", "last_heartbeat")
        .replace("stickyActiveGroup", "sticky_active_group");
    assert_eq!(read_text(&snake), Ok(record()));
    for json in [
        r#"{"serviceName":"a","service_name":"b","version":"1","lastHeartbeat":"2026-11-23 09:37:31"}"#,
        r#"{"service_name":"b","serviceName":"a","version":"1","lastHeartbeat":"2026-11-23 09:37:31"}"#,
        r#"{"service_name":"a","serviceName":null,"version":"1","last_heartbeat":"2026-11-23 09:37:31"}"#,
    ] {
        assert_eq!(read_text(json).unwrap().service_name, "a", "{json}");
    }
}

#[test]
fn what_may_be_missing_may_be_null() {
    for json in [
        r#"{"version":"1.4.2","lastHeartbeat":"2026-11-23T09:37:31.979155Z"}"#,
        r#"{"serviceName":null,"instanceId":null,"version":"1.4.2","status":null,"lastHeartbeat":"2026-11-23T09:37:31.979155Z","stickyActiveGroup":null,"metadata":null}"#,
        r#"{"serviceName":"","instance_id":"","version":"1.4.2","lastHeartbeat":"2026-11-23T09:37:31.979155Z"}"#,
    ] {
        let expected = Record { metadata: Map::new(), ..record() };
        assert_eq!(read_text(json), Ok(expected), "{json}");
    }
}

#[test]
fn names_come_from_the_json_before_the_key() {
    let json = br#"{"serviceName":"other","version":"1","lastHeartbeat":"2026-11-23 09:37:31"}"#;
    let read_record = read("service-instances.web.a", json).unwrap();
    assert_eq!(read_record.service_name, "other");
    assert_eq!(read_record.instance_id, "a");
    assert_eq!(why("service-instances__nonsense", json), "instanceId missing");
}

#[test]
fn unknown_fields_and_repeated_ones_do_no_harm() {
    let json = format!(
        r#"{{"x":[{{"y":"{}"}}],"status":"UNHEALTHY","n":1e999,{}"#,
        "z".repeat(1000),
        &GOLDEN[1..]
    );
    assert_eq!(read_text(&json), Ok(record()));
    let bytes = [br#"{"x":"#.as_slice(), b"\"\xff\xfe\",", &GOLDEN.as_bytes()[1..]].concat();
    assert_eq!(read(KEY, &bytes), Ok(record()));
    assert_eq!(read_text(&format!(" \n{GOLDEN}\t\r\n ")), Ok(record()));
}

#[test]
fn keys_with_escapes_in_them_are_still_the_same_keys() {
    let json = GOLDEN.replace("\"version\"", "\"\\u0076ersion\"");
    assert_eq!(read_text(&json), Ok(record()));
}

#[test]
fn every_unreadable_value_says_why() {
    let time = r#""lastHeartbeat":"2026-11-23T09:37:31Z""#;
    for (json, expected) in [
        (String::new(), "empty value"),
        ("nonsense".into(), "not JSON: expected ident at line 1 column 2"),
        ("soon".into(), "not JSON: expected value at line 1 column 1"),
        (" ".into(), "not JSON: EOF while parsing a value at line 1 column 1"),
        ("{} x".into(), "not JSON: trailing characters at line 1 column 4"),
        (GOLDEN[..40].into(), "not JSON: EOF while parsing an object at line 1 column 40"),
        ("[]".into(), "not a JSON object"),
        ("null".into(), "not a JSON object"),
        ("\"ACTIVE\"".into(), "not a JSON object"),
        ("42".into(), "not a JSON object"),
        ("{}".into(), "version missing"),
        (r#"{"version":null}"#.into(), "version missing"),
        (r#"{"version":1.4}"#.into(), "version 1.4: not text"),
        (r#"{"version":"1.4.2"}"#.into(), "lastHeartbeat missing"),
        (r#"{"version":"1","lastHeartbeat":"soon"}"#.into(), "lastHeartbeat \"soon\": not a time"),
        (
            r#"{"version":"1","lastHeartbeat":1795426651.5}"#.into(),
            "lastHeartbeat 1795426651.5: not a time",
        ),
        (format!(r#"{{"version":"1","status":"A B",{time}}}"#), "status \"A B\": not a word"),
        (format!(r#"{{"version":"1","status":true,{time}}}"#), "status true: not text"),
        (format!(r#"{{"version":"1","metadata":["a"],{time}}}"#), "metadata […]: not an object"),
        (
            format!(r#"{{"version":"1","stickyActiveGroup":7,{time}}}"#),
            "stickyActiveGroup 7: not text",
        ),
        (
            format!(r#"{{"version":"1","serviceName":{{"a":1}},{time}}}"#),
            "serviceName {…}: not text",
        ),
    ] {
        assert_eq!(why(KEY, json.as_bytes()), expected, "{json}");
    }
}

#[test]
fn whoever_judges_is_spared_the_metadata_and_nothing_else() {
    let judged = |json: &str| read_to_judge(KEY, json.as_bytes());
    assert_eq!(judged(GOLDEN), Ok(Record { metadata: Map::new(), ..record() }));
    let standby = GOLDEN.replace("ACTIVE", "STANDBY");
    assert_eq!(judged(&standby), Ok(Record { status: Status::Standby, ..record() }));
    let levels = |open: &str, close: &str| [open.repeat(200), close.repeat(200)].concat();
    for metadata in [
        "5",
        "null",
        "[{}]",
        "{\"a\":1e999}",
        "{\"a\":\"\\ud800\"}",
        "{\"\\ud800\":1}",
        "{1:2}",
        "{\"a\":tru}",
        &levels("[", "]"),
        &levels("{\"a\":", "}"),
    ] {
        let json = GOLDEN.replace(r#"{"host":"host-1","pid":"4711"}"#, metadata);
        assert_eq!(judged(&json), read_text(&json), "{metadata}");
    }
    // A metadata with a value that is no object is an error, read or not.
    assert!(read_text(&GOLDEN.replace(r#"{"host":"host-1","pid":"4711"}"#, "5")).is_err());
}

#[test]
fn reasons_are_short_and_safe_to_print() {
    let json =
        format!(r#"{{"version":"1","lastHeartbeat":"\u001b]0;{}"}}"#, "\u{202e}".repeat(100_000));
    let text = why(KEY, json.as_bytes());
    assert!(text.starts_with(r#"lastHeartbeat "\u{1b}]0;\u{202e}"#), "{text}");
    assert!(text.ends_with("…\": not a time"), "{text}");
}

#[test]
fn brackets_without_end_are_unreadable_and_no_stack_overflow() {
    for open in ["[", "{\"a\":"] {
        let known = format!("{{\"metadata\":{}", open.repeat(200_000));
        assert!(why(KEY, known.as_bytes()).starts_with("not JSON: recursion limit"));
        let unknown = format!("{{\"x\":{}", open.repeat(200_000));
        assert!(why(KEY, unknown.as_bytes()).starts_with("not JSON: "));
    }
    assert_eq!(why(KEY, "[".repeat(200_000).as_bytes()), "not a JSON object");
}

/// Xorshift: the same numbers on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % limit
    }

    fn text(&mut self) -> String {
        let alphabet = ['a', '"', '\\', '\0', '\u{1b}', 'é', '\u{202e}', '\u{1f980}', '_', '.'];
        (0..self.below(12)).map(|_| alphabet[self.below(alphabet.len())]).collect()
    }

    fn value(&mut self, depth: usize) -> Value {
        match self.below(if depth > 3 { 5 } else { 7 }) {
            0 => Value::Null,
            1 => (self.below(2) == 0).into(),
            2 => self.below(usize::MAX).into(),
            3 => (-1.5 * f64::from(u32::try_from(self.below(1000)).unwrap())).into(),
            4 => self.text().into(),
            5 => (0..self.below(4)).map(|_| self.value(depth + 1)).collect(),
            _ => Value::Object(self.map(depth + 1)),
        }
    }

    fn map(&mut self, depth: usize) -> Map<String, Value> {
        (0..self.below(4)).map(|_| (self.text(), self.value(depth))).collect()
    }

    fn record(&mut self) -> Record {
        let seconds = i64::try_from(self.below(253_402_300_800)).unwrap();
        let micros = i64::try_from(self.below(1_000_000)).unwrap();
        let statuses = ["ACTIVE", "STANDBY", "UNHEALTHY", "SHUTDOWN", "DRAINING"];
        Record {
            service_name: self.text() + "s",
            instance_id: self.text() + "i",
            version: self.text(),
            status: Status::parse(statuses[self.below(5)]).unwrap(),
            last_heartbeat: OffsetDateTime::from_unix_timestamp(seconds).unwrap()
                + time::SignedDuration::microseconds(micros),
            sticky_active_group: (self.below(2) == 0).then(|| self.text()),
            metadata: self.map(0),
        }
    }
}

#[test]
fn every_record_reads_back_as_it_was_written() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..5_000 {
        let record = random.record();
        let json = record.to_json();
        assert_eq!(read("", &json), Ok(record));
    }
}

#[test]
fn no_damage_to_a_record_makes_the_reader_panic() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let (mut readable, mut unreadable) = (0, 0);
    for round in 0..20_000 {
        let mut bytes =
            if round % 2 == 0 { GOLDEN.as_bytes().to_vec() } else { random.record().to_json() };
        for _ in 0..=random.below(3) {
            let position = random.below(bytes.len().max(1));
            match random.below(4) {
                0 => bytes.truncate(position),
                1 => bytes.insert(position, u8::try_from(random.below(256)).unwrap()),
                2 if position < bytes.len() => {
                    bytes[position] = u8::try_from(random.below(256)).unwrap();
                }
                _ => {
                    let marks = b"{}[]\":,\\.-+0eTZ";
                    bytes.insert(position, marks[random.below(marks.len())]);
                }
            }
        }
        let found = read(KEY, &bytes);
        let to_judge = found.clone().map(|record| match record.status {
            Status::Standby => record,
            _ => Record { metadata: Map::new(), ..record },
        });
        assert_eq!(read_to_judge(KEY, &bytes), to_judge, "{}", String::from_utf8_lossy(&bytes));
        match found {
            Ok(_) => readable += 1,
            Err(_) => {
                why(KEY, &bytes);
                unreadable += 1;
            }
        }
    }
    assert!(readable > 1_000 && unreadable > 1_000, "{readable} {unreadable}");
}

#[test]
fn no_noise_makes_a_parser_panic() {
    let mut random = Random(0x1234_5678_9abc_def1);
    let alphabet = b"0123456789-+:.TZ z\xff_s";
    for _ in 0..20_000 {
        let bytes: Vec<u8> =
            (0..random.below(40)).map(|_| alphabet[random.below(alphabet.len())]).collect();
        let text = String::from_utf8_lossy(&bytes);
        parse_time(&text);
        names_in_key(&text);
        names_in_key(&format!("service-instances{text}"));
        let _unreadable = read(&text, &bytes);
    }
}
