//! The picture, fed with days of made-up history.

use std::collections::BTreeMap;

use time::SignedDuration;

use super::*;
use crate::text::time::format_time;

const START: i64 = 1_795_426_651;
const STALE_AFTER: Duration = Duration::from_secs(35);

/// Seconds after the start.
fn at(seconds: f64) -> OffsetDateTime {
    let micros = SignedDuration::microseconds((seconds * 1e6).round() as i64);
    OffsetDateTime::from_unix_timestamp(START).unwrap() + micros
}

fn key(instance: &str) -> String {
    format!("service-instances__orders-api__{instance}")
}

fn entry(instance: &str, revision: u64, seconds: f64, says: &str) -> Entry {
    let heartbeat = format_time(at(seconds));
    Entry {
        key: key(instance),
        revision,
        stored: Stored { at: at(seconds), ttl: Ttl::After(Duration::from_secs(30)) },
        marker: None,
        value: format!("{{\"version\":\"1.0.0\",\"lastHeartbeat\":\"{heartbeat}\"{says}}}").into(),
    }
}

fn marker(instance: &str, revision: u64, seconds: f64, of: Marker, ttl: Ttl) -> Entry {
    Entry {
        marker: Some(of),
        stored: Stored { at: at(seconds), ttl },
        value: Vec::new(),
        ..entry(instance, revision, seconds, "")
    }
}

fn words(change: &Change) -> String {
    match change {
        Change::Up(instance) => format!("up {}", instance.record.instance_id),
        Change::Changed(instance) => {
            format!("changed {} {}", instance.record.instance_id, instance.record.status)
        }
        Change::Down(instance, reason, _) => {
            format!("down {} {}", instance.record.instance_id, reason.as_str())
        }
        Change::Synced => "synced".into(),
        Change::Lost(why) => format!("lost {why}"),
    }
}

/// A picture that writes down what it tells.
struct Told {
    picture: Picture,
    told: Vec<String>,
}

impl Told {
    fn new() -> Told {
        Told { picture: Picture::new(Filter::default(), STALE_AFTER), told: Vec::new() }
    }

    fn synced() -> Told {
        let mut told = Told::new();
        told.picture.read_anew(at(0.0));
        told.complete(0.0);
        told.take();
        told
    }

    fn entry(&mut self, entry: &Entry) {
        let told = &mut self.told;
        self.picture.take(entry, &mut |change| told.push(words(&change)));
    }

    fn advance(&mut self, seconds: f64) {
        let told = &mut self.told;
        self.picture.advance(at(seconds), &mut |change| told.push(words(&change)));
    }

    fn complete(&mut self, seconds: f64) {
        let told = &mut self.told;
        self.picture.complete(at(seconds), &mut |change| told.push(words(&change)));
    }

    fn lost(&mut self, why: &str) {
        let told = &mut self.told;
        self.picture.lost(why, &mut |change| told.push(words(&change)));
    }

    fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told)
    }
}

#[test]
fn first_the_state_then_synced_then_changes_and_never_a_mere_heartbeat() {
    let mut told = Told::new();
    told.picture.read_anew(at(20.0));
    told.entry(&entry("a", 1, 10.0, ""));
    told.entry(&entry("b", 2, 15.0, ""));
    // It was refreshed while the state was read.
    told.entry(&entry("a", 3, 20.1, ""));
    told.complete(20.2);
    assert_eq!(told.take(), ["up a", "up b", "synced"]);
    told.entry(&entry("b", 4, 25.0, ""));
    told.entry(&entry("b", 5, 26.0, ",\"status\":\"STANDBY\""));
    told.entry(&entry("b", 6, 27.0, ",\"status\":\"STANDBY\""));
    told.entry(&entry("b", 7, 28.0, ",\"status\":\"STANDBY\",\"metadata\":{\"x\":1}"));
    told.entry(&entry("b", 8, 29.0, ",\"status\":\"STANDBY\",\"stickyActiveGroup\":\"g\""));
    told.entry(&entry("c", 9, 30.0, ""));
    let expected = ["changed b STANDBY", "changed b STANDBY", "changed b STANDBY", "up c"];
    assert_eq!(told.take(), expected);
}

#[test]
fn how_an_instance_goes() {
    let ttl = Ttl::After(Duration::from_secs(60));
    for (what, entry, expected) in [
        ("its own marker", Some(marker("a", 2, 5.0, Marker::Client, ttl)), "down a deregistered"),
        (
            "somebody's marker",
            Some(marker("a", 2, 5.0, Marker::Client, Ttl::Never)),
            "down a removed",
        ),
        (
            "the server's at the end",
            Some(marker("a", 2, 5.0, Marker::Expired, ttl)),
            "down a expired",
        ),
        (
            "the server's of a purge",
            Some(marker("a", 2, 5.0, Marker::Server, ttl)),
            "down a removed",
        ),
        (
            "not readable",
            Some(Entry { value: b"x".to_vec(), ..entry("a", 2, 5.0, "") }),
            "down a removed",
        ),
        (
            "another instance",
            Some(entry("a", 2, 5.0, ",\"instanceId\":\"z\"")),
            "down a removed up z",
        ),
        ("nothing", None, "down a expired"),
    ] {
        let mut told = Told::synced();
        told.entry(&entry_of_a());
        assert_eq!(told.take(), ["up a"]);
        match &entry {
            Some(entry) => told.entry(entry),
            None => told.advance(30.3),
        }
        assert_eq!(told.take().join(" "), expected, "{what}");
        told.advance(1_000.0);
        let left = if what == "another instance" { vec!["down z expired"] } else { vec![] };
        assert_eq!(told.take(), left, "{what}");
    }
}

fn entry_of_a() -> Entry {
    entry("a", 1, 0.0, "")
}

#[test]
fn an_instance_expires_a_little_after_its_ttl_and_not_before() {
    let mut told = Told::synced();
    told.entry(&entry_of_a());
    assert_eq!(told.picture.next_deadline(), Some(at(30.3)));
    told.entry(&entry("a", 2, 10.0, ""));
    assert_eq!(told.picture.next_deadline(), Some(at(40.3)));
    told.take();
    told.advance(40.299);
    assert_eq!(told.take(), [""; 0]);
    told.advance(40.3);
    assert_eq!(told.take(), ["down a expired"]);
    assert_eq!((told.picture.next_deadline(), told.picture.keys(at(41.0))), (None, 0));
    // "a late refresh is an `up`"
    told.entry(&entry("a", 3, 40.5, ""));
    assert_eq!(told.take(), ["up a"]);
}

#[test]
fn a_heartbeat_that_is_too_old_is_stale_and_a_fresh_one_an_up() {
    let mut told = Told::synced();
    let long = Ttl::After(Duration::from_secs(300));
    let with = |revision, stored: f64, heartbeat: f64| Entry {
        stored: Stored { at: at(stored), ttl: long },
        ..entry("a", revision, heartbeat, "")
    };
    told.entry(&with(1, 0.0, 0.0));
    assert_eq!(told.picture.next_deadline(), Some(at(35.000_001)));
    told.advance(35.0);
    assert_eq!(told.take(), ["up a"]);
    told.advance(35.1);
    assert_eq!(told.take(), ["down a stale"]);
    // A writer whose clock is a minute behind.
    told.entry(&with(2, 40.0, -20.0));
    assert_eq!(told.take(), [""; 0]);
    told.entry(&with(3, 50.0, 50.0));
    told.entry(&with(4, 60.0, 0.0));
    assert_eq!(told.take(), ["up a", "down a stale"]);
    // The key is forgotten when its TTL ends.
    assert_eq!(told.picture.next_deadline(), Some(at(360.3)));
    told.advance(360.3);
    assert_eq!((told.take(), told.picture.keys(at(361.0))), (vec![], 0));
}

#[test]
fn who_is_cut_off_calls_nobody_down_and_tells_differences_when_back() {
    let mut told = Told::synced();
    for (revision, name) in ["same", "gone", "purged", "left", "new-status"].iter().enumerate() {
        told.entry(&entry(name, revision as u64 + 1, 0.0, ""));
    }
    told.take();
    told.lost("no answer");
    told.lost("refused");
    told.advance(1_000.0);
    assert_eq!(told.take(), ["lost no answer"]);
    assert_eq!(told.picture.next_deadline(), None);
    told.picture.read_anew(at(29.0));
    told.entry(&entry("same", 10, 25.0, ""));
    told.entry(&entry("new-status", 11, 26.0, ",\"status\":\"UNHEALTHY\""));
    told.entry(&marker("left", 12, 27.0, Marker::Client, Ttl::After(Duration::from_secs(60))));
    told.entry(&entry("another", 13, 28.0, ""));
    assert_eq!(
        told.take(),
        ["changed new-status UNHEALTHY", "down left deregistered", "up another"]
    );
    assert_eq!(told.picture.missing(at(29.1)), 2);
    told.complete(29.1);
    let mut rest = told.take();
    assert_eq!(rest.pop().unwrap(), "synced");
    rest.sort();
    assert_eq!(rest, ["down gone removed", "down purged removed"]);
    told.advance(55.0);
    assert_eq!(told.take(), [""; 0]);
}

#[test]
fn whoever_ran_out_meanwhile_is_expired_unless_it_is_back_before_the_end() {
    let mut told = Told::synced();
    told.entry(&entry("late", 1, 0.0, ""));
    told.entry(&entry("dead", 2, 0.0, ""));
    told.lost("x");
    told.take();
    told.picture.read_anew(at(60.0));
    // Still there, although its time is over.
    told.entry(&entry("late", 1, 0.0, ""));
    assert_eq!((told.take(), told.picture.missing(at(60.0))), (vec![], 2));
    told.entry(&entry("late", 3, 60.5, ""));
    told.complete(61.0);
    assert_eq!(told.take(), ["down dead expired", "synced"]);
}

#[test]
fn a_state_that_is_read_anew_without_an_outage_is_told_without_words() {
    let mut told = Told::synced();
    told.entry(&entry("a", 1, 0.0, ""));
    told.entry(&entry("b", 2, 0.0, ""));
    told.take();
    assert_eq!(told.picture.keys(at(1.0)), 2);
    told.picture.read_anew(at(2.0));
    told.entry(&entry("a", 1, 0.0, ""));
    told.complete(2.0);
    assert_eq!(told.take(), ["down b removed"]);
}

#[test]
fn synced_is_told_once_however_it_began() {
    let mut told = Told::new();
    told.lost("refused");
    told.picture.read_anew(at(0.0));
    told.complete(0.1);
    assert_eq!(told.take(), ["lost refused", "synced"]);
    // It was read anew without an outage.
    told.picture.read_anew(at(1.0));
    told.complete(1.1);
    assert_eq!(told.take(), [""; 0]);
}

#[test]
fn in_a_bucket_that_was_made_anew_revisions_begin_anew() {
    let mut told = Told::synced();
    told.entry(&entry("a", 1_000, 0.0, ""));
    told.lost("x");
    told.picture.read_anew(at(5.0));
    told.entry(&entry("a", 1, 5.0, ""));
    told.complete(5.0);
    told.take();
    told.advance(35.0);
    assert_eq!(told.take(), [""; 0]);
    // What came before is not taken again.
    told.entry(&marker("a", 1, 5.0, Marker::Client, Ttl::Never));
    assert_eq!(told.take(), [""; 0]);
}

#[test]
fn an_instance_that_does_not_fit_any_more_is_down() {
    let filter = Filter { names: vec!["orders-api/a".parse().unwrap()], ..Filter::default() };
    let mut told = Told { picture: Picture::new(filter, STALE_AFTER), told: Vec::new() };
    told.picture.read_anew(at(0.0));
    told.entry(&entry("a", 1, 0.0, ""));
    told.entry(&entry("b", 2, 0.0, ""));
    told.complete(0.0);
    told.entry(&entry("a", 3, 1.0, ",\"instanceId\":\"c\""));
    assert_eq!(told.take(), ["up a", "synced", "down a removed"]);
    assert_eq!((told.picture.live(), told.picture.keys(at(1.0))), (0, 2));
}

/// The server's clock is set back by an hour: whoever beats is alive all the while,
/// and whoever does not is down by the new time.
#[test]
fn a_clock_that_is_set_back_calls_nobody_down() {
    let mut told = Told::new();
    told.picture.read_anew(at(4_000.0));
    told.entry(&entry("a", 1, 3_995.0, ""));
    told.entry(&entry("b", 2, 3_995.0, ""));
    told.complete(4_000.5);
    assert_eq!(told.take(), ["up a", "up b", "synced"]);
    for beat in 0..10 {
        let seconds = 405.0 + 10.0 * f64::from(beat);
        for (instance, place) in [("a", 0), ("b", 1)] {
            told.entry(&entry(instance, 3 + 2 * beat as u64 + place, seconds, ""));
            told.advance(seconds);
        }
    }
    told.entry(&entry("new", 30, 500.0, ""));
    told.advance(524.0);
    assert_eq!(told.take(), ["up new"]);
    told.entry(&entry("a", 31, 525.0, ""));
    told.advance(525.4);
    assert_eq!(told.take(), ["down b expired"]);
}

#[test]
fn what_was_said_reads_back() {
    let says = ",\"status\":\"UNHEALTHY\",\"stickyActiveGroup\":\"blue\",\"serviceName\":\"x\",\
                \"metadata\":{\"a\":{\"b\":[1,null,\"\\u0000\"]},\"z\":1.5}";
    for says in ["", says] {
        let mut picture = Picture::new(Filter::default(), STALE_AFTER);
        picture.read_anew(at(0.0));
        let entry = entry("a", 7, 1.25, says);
        picture.take(&entry, &mut |_| ());
        let record = entry.instance().unwrap().unwrap();
        let shown = picture.show_all(|key, revision, read, stored| {
            let expected = (&*entry.key, 7, &record, &entry.stored);
            if (key, revision, read, stored) == expected { Ok(()) } else { Err(()) }
        });
        assert!(matches!(shown, Ok((0, unreadable)) if unreadable.is_empty()), "{record:?}");
    }
}

/// A day of instances that beat, pause, leave, die and come back, in a moment,
/// against what really happened.
#[test]
fn a_day_is_told_as_it_was() {
    const DAY: u64 = 86_400_000;
    let mut random = 88_172_645_463_325_252_u64;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let mut told = Told::synced();
    // When somebody acts next, and when who is alive is gone without that.
    let mut steps: BTreeMap<(u64, u64), ()> =
        (0..5).map(|name| ((next(10_000), name), ())).collect();
    let mut alive: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut revision, mut truth) = (0, Vec::new());
    while let Some(((now, name), ())) = steps.pop_first()
        && now < DAY
    {
        let mut dead: Vec<(u64, u64)> = alive.iter().map(|(who, until)| (*until, *who)).collect();
        dead.sort_unstable();
        for (_, who) in dead.into_iter().filter(|(until, _)| *until <= now) {
            alive.remove(&who);
            truth.push(format!("down i{who} expired"));
        }
        let (seconds, instance) = (now as f64 / 1e3, format!("i{name}"));
        revision += 1;
        told.advance(seconds);
        if alive.contains_key(&name) && next(20) == 0 {
            let ttl = Ttl::After(Duration::from_secs(60));
            told.entry(&marker(&instance, revision, seconds, Marker::Client, ttl));
            alive.remove(&name);
            truth.push(format!("down {instance} deregistered"));
            steps.insert((now + 1_000 + next(60_000), name), ());
            continue;
        }
        told.entry(&entry(&instance, revision, seconds, ""));
        if alive.insert(name, now + 30_300).is_none() {
            truth.push(format!("up {instance}"));
        }
        // Most beat again in time, some late, some die.
        let pause = match next(20) {
            0 => 30_000 + next(60_000),
            1 => 30_000 + next(600),
            _ => 9_000 + next(2_000),
        };
        steps.insert((now + pause, name), ());
    }
    assert!(truth.len() > 2_000, "{}", truth.len());
    let pairs = truth.iter().zip(&told.told).enumerate();
    let different: Vec<_> = pairs.filter(|(_, (truth, told))| truth != told).take(1).collect();
    assert!(different.is_empty(), "{different:?}");
    assert_eq!(truth.len(), told.told.len());
}
