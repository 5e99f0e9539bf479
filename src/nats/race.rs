//! Whom to try next, of all servers of a list at once. *Pure*: events and times
//! come in, attempts to begin or to give up go out. Times are counted from the
//! start of the race.
//!
//! One after the other would not do: whoever waits for a server that drops
//! packets, or is frozen, does not notice that the next one is back. So the
//! attempts begin in the order of the list, a moment apart, and go on side by
//! side; the first that is let in wins. What failed or hangs is tried again
//! beside the old attempt as long as anybody is waited for, since a lost SYN is
//! repeated by the kernel after 1, 3 and 7 s and a lost question to a name
//! server after 5 s.
//!
//! A server that stays silent gets a second attempt that begins with TLS
//! (`handshake_first`); what worked is for the caller to remember.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use super::failure::Cause;

/// Attempts at one time, at most.
const ATTEMPTS_LIMIT: usize = 64;
/// Addresses that wait for their turn, at most.
const QUEUE_LIMIT: usize = 4_096;
/// From one start to the next, unless an attempt fails before.
const STAGGER: Duration = Duration::from_millis(150);
/// An attempt at a server that did not connect by then gets another beside it.
const AGAIN_UNCONNECTED: Duration = Duration::from_millis(1_200);
/// The same where it connected and is silent: more would fill the backlog of
/// one that is frozen. Less than the shortest race of an agent whose entry is
/// about to expire (2.5 s): a greeting that was lost on its way never comes.
const AGAIN_SILENT: Duration = Duration::from_millis(1_500);
/// A server that is silent for so long, or for half of the time that there is,
/// may wait for a TLS handshake.
const TLS_FIRST_AFTER: Duration = Duration::from_secs(1);
/// Where there are more addresses than attempts at one time, each has so long.
const LEAST_CHANCE: Duration = Duration::from_millis(500);

/// Which attempt it is.
pub type AttemptId = u64;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Begin this attempt.
    Begin(Begin),
    /// Nobody waits for this attempt any more.
    GiveUp(AttemptId),
}

/// An attempt to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begin {
    /// Its number.
    pub id: AttemptId,
    /// The place of its server in the list.
    pub server: usize,
    /// Where to; without an address the name is looked up.
    pub address: Option<SocketAddr>,
    /// TLS comes before the server's first word.
    pub tls_first: bool,
}

/// How far an attempt has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The name is being looked up.
    Resolving,
    /// TCP is coming about.
    Connecting,
    /// TCP stands, and nothing was heard.
    Silent,
    /// TLS is being agreed on.
    Securing,
    /// The server has greeted, and we log in.
    LoggingIn,
}

struct Attempt {
    id: AttemptId,
    server: usize,
    address: Option<SocketAddr>,
    began: Duration,
    /// When the server's kernel has answered.
    connected: Option<Duration>,
    stage: Stage,
    /// When this stage began.
    since: Duration,
    tls_first: bool,
    /// How long the server took to greet.
    greeting: Duration,
}

impl Attempt {
    /// When to try beside it.
    fn patience(&self) -> Duration {
        match self.stage {
            Stage::Resolving | Stage::Connecting => AGAIN_UNCONNECTED,
            Stage::Silent => AGAIN_SILENT,
            Stage::Securing | Stage::LoggingIn => AGAIN_UNCONNECTED.max(self.greeting * 4),
        }
    }

    fn cause(&self) -> Cause {
        match self.stage {
            Stage::Resolving => Cause::Resolve("the name server does not answer".into()),
            Stage::Connecting => Cause::Unanswered,
            // A guess that was not answered proves nothing.
            Stage::Securing if self.tls_first => Cause::Silent,
            Stage::Securing => Cause::Tls("the handshake was not finished in time".into()),
            Stage::Silent | Stage::LoggingIn => Cause::Silent,
        }
    }
}

struct Server {
    address: Option<SocketAddr>,
    /// The last attempt began.
    began: Duration,
    cause: Option<Cause>,
    /// This server is known to want TLS first.
    known_tls_first: bool,
    /// TLS first was tried in this race.
    tried_tls_first: bool,
}

/// One server of the list.
pub struct Entrant {
    /// Its address, where it was given as one.
    pub address: Option<SocketAddr>,
    /// It is known to want TLS first.
    pub tls_first: bool,
}

/// The race for one session.
pub struct Race {
    servers: Vec<Server>,
    queue: VecDeque<(usize, Option<SocketAddr>, bool)>,
    attempts: Vec<Attempt>,
    next_id: AttemptId,
    last_begin: Option<Duration>,
    /// From one start to the next.
    stagger: Duration,
    /// No attempt begins after this.
    limit: Duration,
    /// The race is over; later where a server is slow to greet.
    end: Duration,
    may_extend: bool,
}

impl Race {
    /// A race that lasts `limit`; where a server is slow to greet, and only if
    /// it `may_extend`, as much again for each answer of the login.
    pub fn new(entrants: Vec<Entrant>, limit: Duration, may_extend: bool) -> Race {
        let queue = entrants.iter().enumerate();
        let queue = queue.map(|(place, one)| (place, one.address, one.tls_first)).collect();
        let server = |one: Entrant| Server {
            address: one.address,
            began: Duration::ZERO,
            cause: None,
            known_tls_first: one.tls_first,
            tried_tls_first: one.tls_first,
        };
        let mut race = Race {
            servers: entrants.into_iter().map(server).collect(),
            queue,
            attempts: Vec::new(),
            next_id: 0,
            last_begin: None,
            stagger: STAGGER,
            limit,
            end: limit,
            may_extend,
        };
        race.set_stagger();
        race
    }

    /// What is to be done at `now`; asked until there is nothing.
    pub fn next(&mut self, now: Duration) -> Option<Action> {
        self.try_tls_first(now);
        self.try_again(now);
        let (server, address, tls_first) = *self.queue.front()?;
        if now >= self.limit || now < self.begins_at() {
            return None;
        }
        if self.attempts.len() >= ATTEMPTS_LIMIT {
            // Whoever has waited longest for an answer to a SYN makes room.
            let at = self.attempts.iter().position(|one| {
                one.stage == Stage::Connecting && now >= one.began + LEAST_CHANCE
            })?;
            let given_up = self.attempts.remove(at);
            self.note(given_up.server, given_up.cause());
            return Some(Action::GiveUp(given_up.id));
        }
        self.queue.pop_front();
        let id = self.next_id;
        self.next_id += 1;
        self.last_begin = Some(now);
        self.servers[server].began = now;
        self.servers[server].tried_tls_first |= tls_first;
        self.attempts.push(Attempt {
            id,
            server,
            address,
            began: now,
            connected: None,
            stage: if address.is_some() { Stage::Connecting } else { Stage::Resolving },
            since: now,
            tls_first,
            greeting: Duration::ZERO,
        });
        Some(Action::Begin(Begin { id, server, address, tls_first }))
    }

    /// When the next one of the queue may begin.
    fn begins_at(&self) -> Duration {
        self.last_begin.map_or(Duration::ZERO, |last| last + self.stagger)
    }

    /// Whoever stands last in the queue still gets half of the time.
    fn set_stagger(&mut self) {
        let count = u32::try_from(self.queue.len()).unwrap_or(u32::MAX).max(1);
        self.stagger = STAGGER.min(self.limit / 2 / count);
    }

    /// When to ask again at the latest.
    pub fn wake_at(&self, now: Duration) -> Duration {
        let mut wake = self.ends_at();
        // After the limit nobody of the queue has a turn any more.
        if !self.queue.is_empty() && now < self.limit {
            let full = self.attempts.len() >= ATTEMPTS_LIMIT;
            let least = if full { now + LEAST_CHANCE / 10 } else { Duration::ZERO };
            wake = wake.min(self.begins_at().max(least));
        }
        if !self.attempts.is_empty() && now < self.limit {
            for place in 0..self.servers.len() {
                wake = wake.min(self.again_at(place).max(now + Duration::from_millis(1)));
            }
            let silent = self.attempts.iter().filter(|one| self.may_want_tls_first(one));
            let asked = silent.map(|one| one.since + self.tls_first_after());
            wake = asked.fold(wake, Duration::min);
        }
        wake
    }

    fn tls_first_after(&self) -> Duration {
        TLS_FIRST_AFTER.min(self.limit / 2)
    }

    fn may_want_tls_first(&self, one: &Attempt) -> bool {
        one.stage == Stage::Silent && !self.servers[one.server].tried_tls_first
    }

    /// A server that stays silent may wait for a TLS handshake.
    fn try_tls_first(&mut self, now: Duration) {
        let after = self.tls_first_after();
        let silent = self
            .attempts
            .iter()
            .find(|one| self.may_want_tls_first(one) && now >= one.since + after);
        if let Some((server, address)) = silent.map(|one| (one.server, one.address)) {
            self.servers[server].tried_tls_first = true;
            self.queue.push_front((server, address, true));
            self.last_begin = None;
        }
    }

    /// When a server may be tried once more.
    fn again_at(&self, place: usize) -> Duration {
        let of_it = || self.attempts.iter().filter(|one| one.server == place);
        if self.queue.iter().any(|(queued, ..)| *queued == place) {
            return Duration::MAX;
        }
        let patience = of_it().map(Attempt::patience).max().unwrap_or(AGAIN_UNCONNECTED);
        self.servers[place].began + patience
    }

    /// Another attempt at each server whose last one failed or hangs: for as
    /// long as somebody is waited for anyway.
    fn try_again(&mut self, now: Duration) {
        if self.attempts.is_empty() || now >= self.limit {
            return;
        }
        for place in 0..self.servers.len() {
            if now >= self.again_at(place) {
                let server = &self.servers[place];
                self.queue.push_back((place, server.address, server.known_tls_first));
            }
        }
    }

    /// A name was looked up.
    pub fn resolved(&mut self, id: AttemptId, addresses: Vec<SocketAddr>) {
        let Some(attempt) = self.take(id) else { return };
        if addresses.is_empty() {
            self.note(attempt.server, Cause::Resolve("it has no address".into()));
        }
        let room = QUEUE_LIMIT.saturating_sub(self.queue.len());
        for address in addresses.into_iter().take(room).rev() {
            self.queue.push_front((attempt.server, Some(address), attempt.tls_first));
        }
        self.set_stagger();
        self.last_begin = None;
    }

    /// An attempt has come so far.
    pub fn reached(&mut self, id: AttemptId, stage: Stage, now: Duration) {
        let Some(attempt) = self.attempts.iter_mut().find(|one| one.id == id) else {
            return;
        };
        if attempt.stage == stage {
            return;
        }
        (attempt.stage, attempt.since) = (stage, now);
        if !matches!(stage, Stage::Resolving | Stage::Connecting) {
            attempt.connected.get_or_insert(now);
        }
        if stage == Stage::LoggingIn {
            let took = now.saturating_sub(attempt.began);
            attempt.greeting = took;
            if self.may_extend {
                // A login takes three answers where the greeting takes one.
                let login = self.limit.max((took * 4).min(self.limit * 2));
                self.end = self.end.max(now + login);
                self.may_extend = false;
            }
        }
    }

    /// An attempt came to nothing.
    pub fn failed(&mut self, id: AttemptId, cause: Cause) {
        let Some(attempt) = self.take(id) else { return };
        // Whoever stands after it need not wait.
        self.last_begin = None;
        let server = &mut self.servers[attempt.server];
        let proves_nothing =
            matches!(cause, Cause::NotTls | Cause::Closed | Cause::NotNats(_) | Cause::Tcp(_));
        if attempt.tls_first && proves_nothing {
            if std::mem::take(&mut server.known_tls_first) {
                // It was so, and is not any more.
                self.queue.push_front((attempt.server, attempt.address, false));
            }
            // Otherwise it was a guess.
            return;
        }
        self.note(attempt.server, cause);
    }

    /// How long a server has taken since its kernel has answered: a SYN that was lost,
    /// or sent before a way was open, tells nothing of the server.
    pub fn took(&self, id: AttemptId, now: Duration) -> Duration {
        let attempt = self.attempts.iter().find(|one| one.id == id);
        let since = attempt.map(|one| one.connected.unwrap_or(one.began));
        since.map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }

    fn take(&mut self, id: AttemptId) -> Option<Attempt> {
        let at = self.attempts.iter().position(|one| one.id == id)?;
        Some(self.attempts.remove(at))
    }

    fn note(&mut self, server: usize, cause: Cause) {
        let known = &mut self.servers[server].cause;
        if known.as_ref().is_none_or(|known| known.rank() <= cause.rank()) {
            *known = Some(cause);
        }
    }

    /// Nobody is left, or the time is up.
    pub fn is_over(&self, now: Duration) -> bool {
        let idle = self.attempts.is_empty() && (self.queue.is_empty() || now >= self.limit);
        idle || now >= self.ends_at()
    }

    /// When the time is up: what was granted to a login is over with it.
    fn ends_at(&self) -> Duration {
        let logs_in = self.attempts.iter().any(|one| one.stage == Stage::LoggingIn);
        if logs_in { self.end } else { self.limit }
    }

    /// Why each server that was tried did not serve, by its place.
    pub fn causes(mut self) -> Vec<(usize, Cause)> {
        for attempt in std::mem::take(&mut self.attempts) {
            self.note(attempt.server, attempt.cause());
        }
        let causes = self.servers.into_iter().map(|server| server.cause);
        causes.enumerate().filter_map(|(place, cause)| Some((place, cause?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn race(count: u16) -> Race {
        let one = |port| Entrant { address: Some(address(port)), tls_first: false };
        Race::new((1..=count).map(one).collect(), LIMIT, true)
    }

    fn begins(race: &mut Race, now: u64) -> Vec<Begin> {
        let mut begun = Vec::new();
        while let Some(action) = race.next(ms(now)) {
            if let Action::Begin(begin) = action {
                begun.push(begin);
            }
        }
        begun
    }

    fn servers(begun: &[Begin]) -> Vec<usize> {
        begun.iter().map(|begin| begin.server).collect()
    }

    #[test]
    fn servers_are_tried_in_their_order_a_moment_apart() {
        let mut race = race(3);
        assert_eq!(servers(&begins(&mut race, 0)), [0]);
        assert_eq!(race.wake_at(ms(0)), ms(150));
        assert_eq!(servers(&begins(&mut race, 149)), [0_usize; 0]);
        assert_eq!(servers(&begins(&mut race, 150)), [1]);
        assert_eq!(servers(&begins(&mut race, 300)), [2]);
    }

    #[test]
    fn after_a_refusal_the_next_one_is_tried_at_once() {
        let mut race = race(2);
        let first = begins(&mut race, 0).remove(0);
        race.failed(first.id, Cause::Tcp("connection refused".into()));
        assert_eq!(servers(&begins(&mut race, 1)), [1]);
    }

    #[test]
    fn a_list_of_refusals_is_over_at_once() {
        let mut race = race(3);
        while !race.is_over(ms(1)) {
            for begin in begins(&mut race, 1) {
                race.failed(begin.id, Cause::Tcp("connection refused".into()));
            }
        }
        let causes = race.causes();
        assert_eq!(causes.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn a_lost_syn_gets_another_within_a_second_and_a_bit() {
        let mut race = race(1);
        begins(&mut race, 0);
        assert_eq!(begins(&mut race, 1_199).len(), 0);
        assert_eq!(begins(&mut race, 1_200).len(), 1);
        assert_eq!(begins(&mut race, 2_399).len(), 0);
        assert_eq!(begins(&mut race, 2_400).len(), 1);
        assert!(!race.is_over(ms(4_999)));
        assert!(race.is_over(ms(5_000)));
        assert_eq!(race.causes(), [(0, Cause::Unanswered)]);
    }

    #[test]
    fn a_silent_server_is_tried_with_tls_first_and_seldom_again() {
        let mut race = race(1);
        let first = begins(&mut race, 0).remove(0);
        race.reached(first.id, Stage::Silent, ms(1));
        assert_eq!(race.wake_at(ms(1)), ms(1_001));
        let second = begins(&mut race, 1_001).remove(0);
        assert!(second.tls_first && second.address == first.address);
        race.failed(second.id, Cause::NotTls);
        assert_eq!(begins(&mut race, 2_400).len(), 0);
        assert_eq!(begins(&mut race, 2_501).len(), 1);
        assert_eq!(race.causes(), [(0, Cause::Silent)]);
    }

    #[test]
    fn a_certificate_that_tls_first_brought_to_light_is_the_cause() {
        let mut race = race(1);
        let first = begins(&mut race, 0).remove(0);
        race.reached(first.id, Stage::Silent, ms(1));
        let second = begins(&mut race, 1_001).remove(0);
        let cause = Cause::Tls("the server's certificate has expired".into());
        race.failed(second.id, cause.clone());
        race.failed(first.id, Cause::Closed);
        assert_eq!(race.causes(), [(0, cause)]);
    }

    #[test]
    fn a_server_that_wants_tls_first_no_more_is_tried_without_at_once() {
        let entrant = Entrant { address: Some(address(1)), tls_first: true };
        let mut race = Race::new(vec![entrant], LIMIT, true);
        let first = begins(&mut race, 0).remove(0);
        assert!(first.tls_first);
        race.failed(first.id, Cause::NotTls);
        assert!(!race.is_over(ms(1)));
        assert!(!begins(&mut race, 1).remove(0).tls_first);
    }

    #[test]
    fn a_slow_server_has_as_much_time_again_for_its_login() {
        let mut race = race(1);
        let first = begins(&mut race, 0).remove(0);
        race.reached(first.id, Stage::LoggingIn, ms(2_000));
        assert!(!race.is_over(ms(9_999)));
        assert!(race.is_over(ms(10_000)));
        // A chatty one does not stretch it again.
        race.reached(first.id, Stage::Securing, ms(4_000));
        race.reached(first.id, Stage::LoggingIn, ms(5_000));
        assert!(race.is_over(ms(10_000)));
    }

    #[test]
    fn every_address_of_a_name_has_its_turn() {
        for count in [1_u16, 20, 100, 300] {
            let mut race =
                Race::new(vec![Entrant { address: None, tls_first: false }], LIMIT, true);
            let lookup = begins(&mut race, 0).remove(0);
            assert_eq!(lookup.address, None);
            race.resolved(lookup.id, (1..=count).map(address).collect());
            let mut tried = Vec::new();
            for now in 0..5_000 {
                tried.extend(begins(&mut race, now).into_iter().filter_map(|one| one.address));
                assert!(race.attempts.len() <= ATTEMPTS_LIMIT);
            }
            let missing = (1..=count).filter(|port| !tried.contains(&address(*port))).count();
            assert_eq!(missing, 0, "of {count}");
        }
    }

    #[test]
    fn a_name_that_hangs_is_looked_up_again_beside_the_old_attempt() {
        let mut race = Race::new(vec![Entrant { address: None, tls_first: false }], LIMIT, true);
        let lookups: usize = (0..5_000).map(|now| begins(&mut race, now).len()).sum();
        assert_eq!(lookups, 5);
        let why = Cause::Resolve("the name server does not answer".into());
        assert_eq!(race.causes(), [(0, why)]);
    }

    #[test]
    fn what_came_furthest_is_the_cause() {
        let mut race = race(1);
        let first = begins(&mut race, 0).remove(0);
        let second = begins(&mut race, 1_200).remove(0);
        race.failed(first.id, Cause::Login("no".into()));
        race.failed(second.id, Cause::Tcp("connection refused".into()));
        assert_eq!(race.causes(), [(0, Cause::Login("no".into()))]);
    }

    #[test]
    fn what_was_granted_to_a_login_ends_with_it() {
        let mut race = race(2);
        let first = begins(&mut race, 0).remove(0);
        let second = begins(&mut race, 150).remove(0);
        race.reached(first.id, Stage::Silent, ms(200));
        race.reached(second.id, Stage::LoggingIn, ms(4_000));
        assert!(!race.is_over(LIMIT) && race.wake_at(LIMIT) > LIMIT);
        race.failed(second.id, Cause::Login("no".into()));
        assert!(race.is_over(LIMIT), "the other one is only silent");
    }

    #[test]
    fn a_syn_that_was_lost_does_not_make_a_server_slow() {
        let mut race = race(1);
        let one = begins(&mut race, 0).remove(0);
        race.reached(one.id, Stage::Silent, ms(3_000));
        race.reached(one.id, Stage::LoggingIn, ms(3_040));
        assert_eq!(race.took(one.id, ms(3_050)), ms(50));
    }

    /// Where a login is under way the race goes on after its limit, and whoever
    /// still stands in the queue has no turn any more.
    #[test]
    fn the_wake_up_time_never_makes_a_loop_spin_after_the_limit() {
        for silent_since in [3_900, 4_500, 4_950] {
            let mut race = race(2);
            let first = begins(&mut race, 0).remove(0);
            let second = begins(&mut race, 150).remove(0);
            race.reached(first.id, Stage::LoggingIn, ms(3_800));
            race.reached(second.id, Stage::Silent, ms(silent_since));
            let (mut now, mut rounds) = (ms(silent_since), 0);
            while !race.is_over(now) {
                while race.next(now).is_some() {}
                now = race.wake_at(now).max(now);
                rounds += 1;
                assert!(rounds < 100, "at {now:?}");
            }
            assert!(now > LIMIT * 2, "over at {now:?}");
        }
    }

    #[test]
    fn the_wake_up_time_never_makes_a_loop_spin() {
        let mut race = race(3);
        let (mut now, mut rounds) = (Duration::ZERO, 0);
        while !race.is_over(now) {
            while race.next(now).is_some() {}
            now = race.wake_at(now).max(now);
            rounds += 1;
            assert!(rounds < 100, "at {now:?}");
        }
    }
}
