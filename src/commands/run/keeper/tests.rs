use super::conflict::UNREAD;
use super::limits::LEAST_CONNECT;
use super::*;

const TTL: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(5);

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn stamp(secs: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(secs)
}

/// An agent that registered at `now` with this revision.
fn registered(now: Duration, revision: u64) -> Keeper {
    let mut keeper = Keeper::new(TTL, INTERVAL, 1);
    register(&mut keeper, now, revision);
    keeper
}

fn register(keeper: &mut Keeper, now: Duration, revision: u64) {
    keeper.sent(stamp(0));
    keeper.acknowledged(now, now, revision);
    keeper.registered(now, now);
}

fn beat(keeper: &mut Keeper, now: Duration, revision: u64) -> Option<News> {
    keeper.sent(stamp(0));
    keeper.acknowledged(now, now, revision);
    keeper.beaten(now, now)
}

fn others(revision: u64, who: &str) -> Found {
    Found::Others { revision, who: who.to_owned(), ttl: TTL }
}

#[test]
fn each_state_has_its_step() {
    use SessionState::{Gone, Leaving, Serves};
    let now = secs(100);
    let fresh = Keeper::new(TTL, INTERVAL, 1);
    let agent = registered(now, 7);
    let due = agent.due();
    let mut alone = registered(now, 7);
    alone.cannot_move(now);
    for (what, keeper, at, session, expected) in [
        ("it begins", &fresh, Duration::ZERO, Gone, Step::Register),
        ("nothing is due", &agent, now, Serves, Step::Wait(due)),
        ("a heartbeat is due", &agent, due, Serves, Step::Beat(7)),
        ("it is long overdue", &agent, due + secs(999), Serves, Step::Beat(7)),
        ("the session ended at once", &agent, now, Gone, Step::Wait(now + SHORT_SESSION)),
        ("the session ended", &agent, now + SHORT_SESSION, Gone, Step::SayLost),
        ("the server is going", &agent, now, Leaving, Step::Move),
        ("there is no other", &alone, now, Leaving, Step::Wait(now + MOVE_AGAIN)),
        ("there is no other yet", &alone, now + MOVE_AGAIN, Leaving, Step::Move),
    ] {
        assert_eq!(keeper.step(at, session), expected, "{what}");
    }
    assert!(alone.due() > now + MOVE_AGAIN, "or the table says nothing");
    let mut late = registered(now, 7);
    late.cannot_move(late.due());
    assert_eq!(late.step(late.due(), Leaving), Step::Beat(7), "it still has to be kept alive");
}

#[test]
fn each_refusal_has_its_consequence() {
    let busy = Refusal::Busy;
    for (what, refusal, round, next, news) in [
        ("nothing was heard", Refusal::Unanswered, 1, Next::GiveUp, None),
        ("anything else", Refusal::Other, 1, Next::GiveUp, None),
        ("busy", busy, 1, Next::Put(Some(20)), None),
        ("busy for too long", busy, CONFLICT_ROUNDS, Next::GiveUp, None),
        ("gone", Refusal::Conflict(Some(0)), 1, Next::Put(Some(0)), Some(News::EntryGone)),
        (
            "an older copy of the bucket",
            Refusal::Conflict(Some(12)),
            1,
            Next::Put(Some(12)),
            Some(News::BucketRestored),
        ),
        ("somebody wrote", Refusal::Conflict(Some(21)), 1, Next::PutAndAsk(21), None),
        ("somebody wrote, in a cluster", Refusal::Conflict(None), 1, Next::Look, None),
        ("without end", Refusal::Conflict(Some(21)), CONFLICT_ROUNDS, Next::GiveUp, None),
    ] {
        let mut keeper = registered(secs(1), 20);
        assert_eq!(keeper.refused(refusal, Some(20), round), (next, news), "{what}");
        assert_eq!(keeper.duplicate(), None, "{what}");
    }
    // Before it is registered nothing is worth a look.
    let mut fresh = Keeper::new(TTL, INTERVAL, 1);
    for last in [0, 12, 21] {
        let refusal = Refusal::Conflict(Some(last));
        assert_eq!(fresh.refused(refusal, None, 1), (Next::Put(Some(last)), None));
    }
    assert_eq!(fresh.refused(Refusal::Conflict(None), None, 1), (Next::Look, None));
}

#[test]
fn what_is_found_decides() {
    let marker = |revision, expired| Found::Marker { revision, expired };
    let duplicate = |who: &str| Some(News::Duplicate(who.to_owned()));
    let unread = "somebody else (who: the entry cannot be read)";
    for (what, last, found, next, news) in [
        ("removed since", Some(25), Found::Nothing, Next::Put(Some(0)), Some(News::EntryGone)),
        ("expired", Some(25), marker(25, true), Next::Put(Some(25)), Some(News::EntryGone)),
        ("deleted", Some(25), marker(25, false), Next::Put(Some(25)), Some(News::EntryDeleted)),
        ("our own", Some(25), Found::Own { revision: 25 }, Next::Put(Some(25)), None),
        ("another agent", Some(25), others(25, "b"), Next::Put(Some(25)), duplicate("b")),
        ("it wrote again", Some(25), others(26, "b"), Next::Put(Some(26)), duplicate("b")),
        ("a replica that lags", Some(25), others(24, "b"), Next::Put(Some(25)), None),
        ("no number, an old copy", None, others(12, "b"), Next::Put(Some(12)), None),
        ("no number", None, others(25, "b"), Next::Put(Some(25)), duplicate("b")),
        ("not to be read", Some(25), Found::Unknown, Next::Put(Some(25)), duplicate(unread)),
        ("nothing is known", None, Found::Unknown, Next::GiveUp, None),
    ] {
        let mut keeper = registered(secs(1), 20);
        assert_eq!(keeper.found(secs(2), last, found), (next, news), "{what}");
    }
    let mut fresh = Keeper::new(TTL, INTERVAL, 1);
    assert_eq!(fresh.found(secs(2), None, others(9, "b")), (Next::Put(Some(9)), None));
    assert_eq!(fresh.duplicate(), None, "whom it takes over from is no duplicate");
}

/// The answer comes with the acknowledgement, or after it.
#[test]
fn what_stood_there_is_told_after_the_put() {
    let marker = |expired| Found::Marker { revision: 21, expired };
    let duplicate = |who: &str| Some(News::Duplicate(who.to_owned()));
    for (what, found, news) in [
        ("gone in between", Found::Nothing, Some(News::EntryGone)),
        ("expired", marker(true), Some(News::EntryGone)),
        ("deleted", marker(false), Some(News::EntryDeleted)),
        ("our own put already", Found::Own { revision: 22 }, None),
        ("another agent", others(21, "b"), duplicate("b")),
        ("not to be read", Found::Unknown, duplicate(UNREAD)),
    ] {
        let mut keeper = registered(secs(1), 20);
        beat(&mut keeper, secs(2), 22);
        assert_eq!(keeper.stood(secs(2), found), news, "{what}");
    }
}

#[test]
fn a_duplicate_is_news_once_and_gone_when_what_it_wrote_has_expired() {
    let mut keeper = registered(secs(0), 1);
    let (mut now, mut revision) = (secs(0), 1);
    for turn in 0..5 {
        now += INTERVAL;
        revision += 2;
        let (_, news) = keeper.found(now, Some(revision - 1), others(revision - 1, "b"));
        assert_eq!(news.is_some(), turn == 0, "turn {turn}");
        assert_eq!(beat(&mut keeper, now, revision), None);
        assert_eq!(keeper.ending(true), Ending::LeaveTo("b".into()));
    }
    let mut quiet = 0;
    while keeper.duplicate().is_some() {
        now += INTERVAL;
        revision += 1;
        quiet += 1;
        let news = beat(&mut keeper, now, revision);
        assert_eq!(news.is_some(), keeper.duplicate().is_none());
        assert!(quiet < 10);
    }
    assert_eq!(quiet, 4, "after its TTL of 30 s, and not at it");
    assert_eq!(keeper.ending(true), Ending::TakeOut(Some(revision)));
}

/// Another agent of the same host and pid, as there are in containers, is not
/// ourselves; what a backup brought back is.
#[test]
fn an_older_copy_of_the_bucket_is_not_taken_for_a_duplicate() {
    let mut keeper = registered(secs(0), 20);
    keeper.sent(stamp(7));
    assert!(keeper.is_ours(21, stamp(7)), "its answer has not come");
    assert!(!keeper.is_ours(21, stamp(6)), "the same host and pid, and another stamp");
    assert!(keeper.is_ours(12, stamp(6)), "what we wrote long ago");
    let (next, _) = keeper.refused(Refusal::Conflict(Some(12)), Some(20), 1);
    assert_eq!(next, Next::Put(Some(12)));
    beat(&mut keeper, secs(1), 13);
    assert_eq!(keeper.ending(true), Ending::TakeOut(Some(13)), "and is taken out at the end");
}

#[test]
fn the_end_takes_out_what_may_be_there() {
    let mut keeper = Keeper::new(TTL, INTERVAL, 1);
    assert_eq!(keeper.ending(false), Ending::NeverRegistered);
    keeper.sent(stamp(1));
    assert_eq!(keeper.ending(false), Ending::TakeOut(None), "it may have been stored");
    register(&mut keeper, secs(1), 5);
    assert_eq!(keeper.ending(true), Ending::TakeOut(Some(5)));
    assert_eq!(keeper.ending(false), Ending::TakeOut(None), "it has to be looked up");
    keeper.session_lost(secs(2));
    assert_eq!(keeper.ending(true), Ending::TakeOut(None));
}

#[test]
fn a_lost_session_is_replaced_at_once_and_a_server_that_does_not_serve_later() {
    let mut keeper = registered(secs(0), 5);
    keeper.session_lost(secs(9));
    assert_eq!(keeper.step(secs(9), SessionState::Gone), Step::Register);
    keeper.not_served(secs(9), secs(9));
    let Step::Wait(at) = keeper.step(secs(9), SessionState::Gone) else { panic!("it waits") };
    assert!(at > secs(9) && at < secs(10), "{at:?}");
    register(&mut keeper, at, 6);
    assert_eq!(keeper.step(keeper.due(), SessionState::Serves), Step::Beat(6));
}

#[test]
fn after_a_stop_and_after_a_sleep_of_the_host_it_acts_at_once() {
    let mut keeper = registered(secs(0), 5);
    let now = millis(100);
    assert!(keeper.due() > now);
    keeper.resumed(now);
    assert_eq!(keeper.step(now, SessionState::Serves), Step::Beat(5));
    let mut keeper = registered(secs(0), 5);
    keeper.slept(now);
    assert_eq!(keeper.step(now, SessionState::Gone), Step::Register);
    // Nothing is postponed by it.
    let mut keeper = registered(secs(0), 5);
    keeper.resumed(secs(99));
    assert!(keeper.due() <= INTERVAL);
}

/// What stood there is told once our own put over it is acknowledged: it is not
/// older than what we wrote before that.
#[test]
fn a_duplicate_of_the_same_host_and_pid_is_not_ourselves() {
    let mut keeper = registered(secs(0), 20);
    keeper.sent(stamp(9));
    keeper.acknowledged(secs(9), secs(9), 22);
    assert!(!keeper.was_ours(21, stamp(8)), "written since our revision 20");
    assert!(keeper.was_ours(22, stamp(9)), "our own put");
    assert!(keeper.was_ours(12, stamp(6)), "what we wrote long ago");
    assert!(!keeper.is_ours(7, stamp(10)), "newer than all that we sent: the store is another");
    // Stored, and refused as if it were not: the second one finds it.
    keeper.sent(stamp(19));
    keeper.sent(stamp(20));
    keeper.acknowledged(secs(20), secs(20), 24);
    assert!(keeper.was_ours(23, stamp(19)), "our own put, that was in doubt");
    assert!(!keeper.was_ours(23, stamp(18)), "another one of then");
}

#[test]
fn a_reload_that_fails_leaves_everything_as_it_was() {
    let mut keeper = registered(secs(0), 5);
    let current = keeper.begin_change();
    // What stands there is our own: nobody is told of a conflict.
    let refusal = Refusal::Conflict(Some(0));
    assert_eq!(keeper.refused(refusal, Some(5), 1), (Next::Put(Some(0)), None));
    keeper.sent(stamp(3));
    keeper.take_back(current, secs(3));
    assert_eq!(keeper.step(secs(3), SessionState::Serves), Step::Beat(5));
    // What it tried may be stored: then it is ours.
    assert!(keeper.is_ours(6, stamp(3)));
}

#[test]
fn a_clock_that_was_set_is_answered_by_a_heartbeat_at_once() {
    for (off, at_once) in [
        (time::Duration::ZERO, false),
        (time::Duration::milliseconds(-900), false),
        (time::Duration::seconds(3_600), true),
        (time::Duration::seconds(-3_600), true),
    ] {
        let mut keeper = registered(secs(0), 5);
        assert_eq!(keeper.clock_told(millis(10), off), at_once, "{off}");
        let step = keeper.step(millis(10), SessionState::Serves);
        assert_eq!(step == Step::Beat(5), at_once, "{off}");
    }
    let mut fresh = Keeper::new(TTL, INTERVAL, 1);
    assert!(!fresh.clock_told(secs(1), time::Duration::HOUR), "there is nothing to hide");
}

#[test]
fn the_time_is_asked_with_every_heartbeat_and_the_bucket_now_and_then() {
    let count = |is_clustered, tells_time, hours: u64| {
        let mut keeper = registered(secs(0), 1);
        let (mut looks, mut times) = (0, 0);
        for beats in 1..=hours * 360 {
            let now = INTERVAL * u32::try_from(beats).unwrap();
            let asides = keeper.asides(now, is_clustered, tells_time);
            looks += u32::from(asides.contains(&Aside::Bucket));
            times += u32::from(asides.contains(&Aside::Time));
            beat(&mut keeper, now, beats + 1);
        }
        (looks, times)
    };
    // "Longer than", so each look is one heartbeat after its time.
    assert_eq!(count(false, true, 1), (5, 360));
    assert_eq!(count(true, true, 1), (51, 360));
    assert_eq!(count(true, false, 1), (180, 0));
    let mut shared = registered(secs(0), 1);
    shared.found(secs(1), Some(2), others(2, "b"));
    beat(&mut shared, secs(1), 3);
    assert_eq!(shared.asides(secs(2), false, true), [Aside::Bucket]);
}

/// "Every exchange of a running agent is bounded by what is left of its entry's
/// life", however long the time limit is.
#[test]
fn no_wait_is_longer_than_the_entry_has_to_live() {
    let timeout = secs(60);
    let keeper = registered(secs(0), 1);
    for age in 0..30 {
        let (now, life) = (secs(age), TTL - secs(age));
        let waits = [
            ("put", keeper.put_limit(now, timeout)),
            ("connect", keeper.connect_limit(now, timeout)),
            ("questions", keeper.question_limit(now, timeout)),
            ("look", keeper.look_limit(now, timeout)),
            ("move", keeper.move_limit(now, timeout)),
        ];
        for (what, limit) in waits {
            // Nothing comes about in less than that.
            assert!(limit <= life.max(LEAST_CONNECT), "{what} at {age} s: {limit:?}");
            assert!(limit > Duration::ZERO, "{what} at {age} s");
        }
    }
    // From a heartbeat that nobody answers, over a fresh session and questions
    // that nobody answers, to a put: with time to spare.
    let mut now = INTERVAL;
    for limit in [Keeper::put_limit, Keeper::connect_limit, Keeper::question_limit] {
        now += limit(&keeper, now, timeout);
    }
    assert!(now + secs(2) < TTL, "{now:?}");
    // Where there is nothing to lose the time limit counts.
    let fresh = Keeper::new(TTL, INTERVAL, 1);
    assert_eq!(fresh.connect_limit(secs(9), timeout), timeout);
    assert_eq!(fresh.question_limit(secs(9), timeout), timeout);
}

/// One that is cut off from the others lets clients in and answers nothing.
#[test]
fn a_silent_member_is_left_soon_and_a_silent_cluster_gets_longer() {
    let timeout = secs(5);
    let mut keeper = registered(Duration::ZERO, 1);
    keeper.session_lost(INTERVAL);
    let late = TTL * 2;
    keeper.registers(3, Duration::from_millis(1));
    let mut limits = Vec::new();
    for _ in 0..12 {
        limits.push((keeper.question_limit(late, timeout).as_secs(), keeper.may_put_unseen()));
        keeper.was_silent();
    }
    let expected: Vec<(u64, bool)> =
        [(1, false), (2, true), (4, true), (5, true)].iter().flat_map(|one| [*one; 3]).collect();
    assert_eq!(limits, expected);
    // Who takes a put without an answer to the questions is quick, or slow to greet.
    assert!(keeper.put_limit(late, timeout) <= Duration::from_millis(2_500));
    keeper.registers(3, secs(1));
    assert_eq!(keeper.question_limit(late, timeout), secs(5));
    assert!(keeper.put_limit(late, timeout) <= secs(4));
    // A server alone gets all of it at once.
    keeper.registers(1, Duration::from_millis(1));
    assert_eq!(keeper.question_limit(late, timeout), secs(5));
    assert!(keeper.may_put_unseen());
}

/// The registry in a few lines: one key, a TTL, and a network that fails.
struct World {
    now: Duration,
    revision: u64,
    /// Of our key, and when it was stored.
    entry: Option<(u64, Duration)>,
    serves: bool,
    missing: Duration,
}

impl World {
    fn advance(&mut self, to: Duration) {
        let to = to.max(self.now);
        let alive_until = self.entry.map_or(Duration::ZERO, |(_, at)| at + TTL);
        self.missing += to.saturating_sub(alive_until.max(self.now));
        self.now = to;
        self.entry = self.entry.filter(|(_, at)| *at + TTL > to);
    }

    /// A put, as the server takes it.
    fn put(&mut self, keeper: &mut Keeper, over: Option<u64>) -> bool {
        let (mut over, mut round) = (over, 0);
        loop {
            round += 1;
            let sent = self.now;
            keeper.sent(stamp(0));
            let last = self.entry.map_or(0, |(revision, _)| revision);
            let refusal = match self.serves {
                false => {
                    self.advance(sent + keeper.put_limit(sent, TIMEOUT));
                    Refusal::Unanswered
                }
                true if over == Some(last) => {
                    self.advance(sent + millis(1));
                    self.revision += 1;
                    self.entry = Some((self.revision, sent));
                    keeper.acknowledged(sent, self.now, self.revision);
                    return true;
                }
                true => Refusal::Conflict(Some(last)),
            };
            match keeper.refused(refusal, over, round) {
                (Next::Put(next), _) => over = next,
                _ => return false,
            }
        }
    }
}

/// A day in which the server is away for up to 16 s every few minutes: back
/// within 3 s each time, and the entry is never missing.
#[test]
fn a_day_of_faults_leaves_the_entry_where_it_was() {
    let day = secs(86_400);
    let mut keeper = Keeper::new(TTL, INTERVAL, 3);
    let mut world =
        World { now: secs(0), revision: 0, entry: None, serves: true, missing: secs(0) };
    let (mut beats, mut lost, mut registrations) = (0, 0, 0);
    while world.now < day {
        // Another length and another moment each time.
        let fault = world.now.as_secs() / 191;
        let within = world.now.as_secs() % 191;
        world.serves = !(within > 100 && within < 101 + fault % 16);
        let state = SessionState::Serves;
        match keeper.step(world.now, state) {
            Step::Wait(until) => {
                assert!(until > world.now);
                world.advance(until.min(world.now + millis(250)));
            }
            Step::Beat(over) => {
                let began = world.now;
                if world.put(&mut keeper, Some(over)) {
                    beats += 1;
                    keeper.beaten(began, world.now);
                } else {
                    lost += 1;
                    keeper.session_lost(world.now);
                }
            }
            Step::Register => {
                let began = world.now;
                let over = world.entry.map_or(0, |(revision, _)| revision);
                // Nothing connects to a server that is away.
                if world.serves && world.put(&mut keeper, Some(over)) {
                    registrations += 1;
                    keeper.registered(began, world.now);
                } else {
                    world.advance(began + millis(1));
                    keeper.not_served(began, world.now);
                }
            }
            step => panic!("{step:?}"),
        }
    }
    assert_eq!(world.missing, millis(1), "only until it was registered first");
    assert!(
        beats > 8_500 && lost > 100 && registrations == lost + 1,
        "{beats} {lost} {registrations}"
    );
}
