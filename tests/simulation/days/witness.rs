//! Who was alive in truth, and what the watcher told of it.
//!
//! An account of its own: what stands under each key by the store, and until when a
//! reader takes it for alive. Nothing here is from `Picture`.

use aegis_agent::registry::picture::{Change, DownReason};

use super::bucket::{KEYS, says};
use super::store::{Revision, SERVER, Store};
use crate::world::{MILLI, Micros, SECOND};

/// A heartbeat that is older is not one.
const STALE: Micros = 35 * SECOND;
/// What happens is told within this time, by a watcher that is in touch.
const TOLD: Micros = SECOND;
/// A purge, which makes no event. Two questions and a new reading take 5 s, and a
/// while longer where it was the last message of a replicated bucket that went.
const PURGE_TOLD: Micros = 8 * SECOND;
/// After a suspicion that came to nothing there is none for so long, at most.
const UNSUSPECTING: Micros = 600 * SECOND;
/// It is in touch again within this time of a server that serves; so much later
/// where something was asked and is waited for.
const BACK: Micros = 5 * SECOND;
const WAITS: Micros = 6 * SECOND;
/// What is told was so within this time, unless it came late.
const RECENT: Micros = SECOND;
/// Whoever is out of touch says so within this time.
const SAID: Micros = 9 * SECOND;
/// Who is missing after an outage has this time to come back.
const GRACE: Micros = 1_500 * MILLI;
const STEPS_LIMIT: u32 = 2_000;

type Version = (u64, u64);

#[derive(Default)]
struct Key {
    /// The newest revision, and since when there is this one or none.
    number: Option<u64>,
    changed: Micros,
    /// The version of whoever is alive.
    alive: Option<Version>,
    /// Since when that is so; since when it is alive or not at all.
    since: Micros,
    turned: Micros,
    /// When its TTL ends, and when its heartbeat is too old.
    end: Micros,
    lapse: Micros,
    /// An older revision came back: a watcher does not hear of it.
    is_muddy: bool,
    told: Option<Version>,
    /// When the truth has to have been told.
    due: Micros,
}

pub struct Witness {
    keys: [Key; KEYS],
    /// Since when nothing is in the way, or something is.
    good: Option<Micros>,
    bad: Option<Micros>,
    /// Since when something is in the way, and it could say so.
    cut_off: Option<Micros>,
    /// The time to get in touch.
    back: Micros,
    /// From when to when something was in the way, the last time.
    trouble: (Micros, Micros),
    disturbed: Option<Micros>,
    /// A delivery is lost, and nothing has shown it.
    has_gap: bool,
    /// When that was so for the last time.
    gap: Option<Micros>,
    /// The next delivery may have an earlier number than the last.
    may_fall: bool,
    suspected: Option<Micros>,
    unsuspecting: Micros,
    /// When it began to read, by its time and by that of the state.
    began: Option<(Micros, Micros)>,
    is_lost: bool,
    is_synced: bool,
    steps: (Micros, u32),
    pub found: Option<String>,
}

impl Witness {
    pub fn new() -> Witness {
        Witness {
            keys: Default::default(),
            good: Some(0),
            bad: None,
            cut_off: None,
            back: BACK,
            trouble: (0, 0),
            disturbed: None,
            has_gap: false,
            gap: None,
            may_fall: false,
            suspected: None,
            unsuspecting: 0,
            began: None,
            is_lost: false,
            is_synced: false,
            steps: (0, 0),
            found: None,
        }
    }

    fn violated(&mut self, words: String) {
        self.found.get_or_insert(words);
    }

    pub fn step(&mut self, now: Micros) {
        if now / SECOND != self.steps.0 {
            self.steps = (now / SECOND, 0);
        }
        self.steps.1 += 1;
        if self.steps.1 > STEPS_LIMIT {
            self.violated("the watcher spins".to_owned());
        }
    }

    /// A new watcher, which has told nothing.
    pub fn restarted(&mut self, now: Micros) {
        self.disturbed(now);
        for key in &mut self.keys {
            (key.told, key.due) = (None, now);
        }
        (self.began, self.is_lost, self.is_synced) = (None, false, false);
    }

    /// Something came in between, and is over.
    pub fn disturbed(&mut self, now: Micros) {
        self.check(now);
        self.disturbed = Some(now);
        (self.good, self.back) = (self.good.map(|_| now), BACK + WAITS);
    }

    /// It reads the state anew because there are fewer keys than it has seen.
    pub fn suspects(&mut self, now: Micros) {
        self.check(now);
        self.suspected = Some(now);
        self.unsuspecting = now + UNSUSPECTING;
        self.good = self.good.map(|good| good.max(now + 3 * SECOND - self.back.min(now)));
    }

    /// Whether something is in the way between it and what the bucket stores, or it
    /// stands still; and whether no new session is to be had.
    pub fn contact(&mut self, now: Micros, is_cut_off: bool, is_still: bool, leaves: bool) {
        let is_bad = is_cut_off || is_still;
        let is_good = !is_bad && !leaves;
        let is_mute = is_cut_off && !is_still;
        let known = [self.bad.is_some(), self.good.is_some(), self.cut_off.is_some()];
        if [is_bad, is_good, is_mute] == known {
            return;
        }
        self.check(now);
        self.cut_off = is_mute.then(|| self.cut_off.unwrap_or(now));
        match (is_bad, self.bad) {
            (true, None) => (self.bad, self.trouble) = (Some(now), (now, Micros::MAX)),
            (false, Some(since)) => {
                self.bad = None;
                self.trouble = (since, now);
            }
            _ => {}
        }
        self.good = match (is_good, self.good) {
            (false, _) => None,
            (true, known) => {
                self.back = BACK + WAITS;
                Some(known.unwrap_or(now))
            }
        };
    }

    /// The stream was rolled back.
    pub fn rolled_back(&mut self, now: Micros) {
        self.disturbed(now);
        self.may_fall = true;
    }

    /// A delivery is lost, until there is another one.
    pub fn gap(&mut self, now: Micros, has_gap: bool) {
        if has_gap != self.has_gap {
            self.disturbed(now);
            (self.has_gap, self.gap) = (has_gap, Some(now));
        }
    }

    /// What stands under a key now.
    pub fn sees(&mut self, now: Micros, at: usize, store: &Store) {
        let newest = store.newest();
        let Some(key) = self.keys.get(at) else { return };
        let lapses = key.alive.is_some() && now > key.lapse;
        if newest.map(|newest| newest.number) == key.number && !lapses {
            return;
        }
        self.check(now);
        // An older revision that came back counts as a key, and hides one that went.
        let is_muddy = self.keys.iter().any(|key| key.is_muddy);
        let is_unsuspecting = is_muddy || now < self.unsuspecting;
        let Some(key) = self.keys.get_mut(at) else { return };
        if lapses {
            let lapse = key.lapse;
            key.turns(None, lapse, lapse + TOLD);
        }
        let number = newest.map(|newest| newest.number);
        let before = std::mem::replace(&mut key.number, number);
        if before == number {
            return;
        }
        key.changed = now;
        let was_muddy = key.is_muddy;
        key.is_muddy = number.is_some() && number < before;
        match newest {
            Some(one) if one.by != SERVER => key.stands(now, one),
            // Nothing, or the marker of what has expired.
            _ if now >= key.end => {
                // Of a revision that had come back the watcher does not know.
                let due = if was_muddy { now + PURGE_TOLD } else { key.end + TOLD };
                key.turns(None, now, due);
            }
            _ => {
                let own = key.end.min(key.lapse).saturating_add(TOLD);
                let due = if is_unsuspecting { own } else { own.min(now + PURGE_TOLD) };
                key.turns(None, now, due);
            }
        }
        if self.keys.iter().any(|key| key.is_muddy) {
            for key in self.keys.iter_mut().filter(|key| key.alive.is_none()) {
                key.due = key.due.max(key.end.min(key.lapse).saturating_add(TOLD));
            }
        }
    }

    /// When the truth was not told in time.
    fn check(&mut self, now: Micros) {
        let cut_off = self.cut_off.filter(|_| self.is_synced && !self.is_lost);
        // A consumer that is gone is not an outage by itself.
        if let Some(since) = cut_off.max(cut_off.and(self.disturbed))
            && now > since + SAID
        {
            self.violated(format!("out of touch for {} ms, and not said", (now - since) / MILLI));
        }
        let Some(in_touch) = self.good.filter(|_| !self.has_gap).map(|good| good + self.back)
        else {
            return;
        };
        if now > in_touch && (self.is_lost || !self.is_synced) {
            self.violated("not up to date, and could be".to_owned());
        }
        for at in 0..KEYS {
            let key = &self.keys[at];
            let is_due = now > key.due.max(in_touch);
            if is_due && key.told != key.alive && !key.is_muddy {
                let words = format!(
                    "i{at} is {:?} since {} ms, and told as {:?}",
                    key.alive,
                    (now - key.since.min(now)) / MILLI,
                    key.told
                );
                self.violated(words);
            }
        }
    }

    /// Since when what is told at `now` may have been so, and not be so any more.
    fn recent(&self, now: Micros) -> Micros {
        let (from, to) = self.trouble;
        let late = if to.saturating_add(3 * SECOND) > now { from } else { now };
        let began = self.began.map_or(now, |(_, at)| at);
        late.min(now).max(began.min(now)).min(now.saturating_sub(RECENT))
    }

    /// It reads the state, as of `at`.
    pub fn begins(&mut self, now: Micros, at: Micros) {
        self.began = Some((now, at));
        self.may_fall = false;
    }

    pub fn told(&mut self, now: Micros, change: &Change) {
        self.check(now);
        let is_blind = self.began.is_none();
        match change {
            Change::Synced => {
                if is_blind || (self.is_synced && !self.is_lost) {
                    self.violated("synced, and was not lost".to_owned());
                }
                (self.is_synced, self.is_lost) = (true, false);
                self.synced();
            }
            Change::Lost(_) => {
                let since = self.disturbed.max(self.bad.map(|_| now)).max(Some(self.trouble.1));
                let may_fall = std::mem::take(&mut self.may_fall);
                if may_fall {
                    self.disturbed(now);
                } else if self.is_lost
                    || since.is_none_or(|since| since.saturating_add(15 * SECOND) < now)
                {
                    self.violated("lost, and nothing was in the way".to_owned());
                }
                (self.is_lost, self.began) = (true, None);
            }
            _ if is_blind => self.violated(format!("it knows nothing, and tells {change:?}")),
            Change::Up(one) | Change::Changed(one) => {
                let is_up = matches!(change, Change::Up(_));
                let recent = self.recent(now);
                let Some((at, key)) = self.key(&one.record.instance_id) else { return };
                let was_told = key.told.is_some();
                key.told = read(&one.record.version);
                let was_alive = key.alive.is_some() || key.turned >= recent || key.is_muddy;
                if was_told == is_up {
                    self.violated(format!("i{at} is up twice, or changed and not up"));
                } else if is_up && !was_alive {
                    self.violated(format!("i{at} is up, and was not alive"));
                }
            }
            Change::Down(one, reason, _) => self.down(now, &one.record.instance_id, *reason),
        }
    }

    fn down(&mut self, now: Micros, name: &str, reason: DownReason) {
        let recent = self.recent(now);
        let began = self.began;
        let is_returning = self.is_lost;
        // What shows the gap may be under way.
        let has_gap = self.has_gap || self.gap.is_some_and(|at| now < at + 2 * SECOND);
        if self.suspected.is_some_and(|at| now < at + 3 * SECOND) {
            self.unsuspecting = 0;
        }
        let Some((at, key)) = self.key(name) else { return };
        let was_told = key.told.take().is_some();
        let was_dead = has_gap || key.alive.is_none() || key.turned >= recent || key.is_muddy;
        let is_away = key.number.is_none();
        let hurries = is_returning
            && is_away
            && began.is_some_and(|(began, state)| key.changed < state && now < began + GRACE);
        if !was_told {
            self.violated(format!("i{at} is down ({reason:?}) twice"));
        } else if !was_dead {
            self.violated(format!("i{at} is down ({reason:?}), and is alive"));
        } else if hurries {
            self.violated(format!("i{at} is down ({reason:?}) before it could be back"));
        }
    }

    /// Whatever was so when it began to read has been told.
    fn synced(&mut self) {
        let Some((_, began)) = self.began.filter(|_| !self.has_gap) else { return };
        for at in 0..KEYS {
            let key = &self.keys[at];
            if key.since < began && key.told != key.alive && !key.is_muddy {
                let words = format!("synced, i{at} is {:?}, told as {:?}", key.alive, key.told);
                self.violated(words);
            }
        }
    }

    fn key(&mut self, name: &str) -> Option<(usize, &mut Key)> {
        let at: usize = name.strip_prefix('i')?.parse().ok()?;
        Some((at, self.keys.get_mut(at)?))
    }

    /// The end of the day.
    pub fn ends(&mut self, now: Micros) {
        self.check(now);
    }
}

impl Key {
    /// A revision that somebody has stored.
    fn stands(&mut self, now: Micros, one: &Revision) {
        let stamp = (one.stamp - time::OffsetDateTime::UNIX_EPOCH).whole_microseconds();
        self.end = one.ttl.map_or(Micros::MAX, |ttl| one.stored + ttl);
        self.lapse = Micros::try_from(stamp).unwrap_or(0) + STALE;
        let alive = says(one).filter(|_| !one.marker && now <= self.lapse);
        self.turns(alive, now, now + TOLD);
    }

    fn turns(&mut self, alive: Option<Version>, at: Micros, due: Micros) {
        if alive == self.alive {
            return;
        }
        self.since = at;
        if alive.is_some() != self.alive.is_some() {
            self.turned = at;
        }
        (self.alive, self.due) = (alive, due);
    }
}

/// The first two numbers of a version.
fn read(version: &str) -> Option<Version> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}
