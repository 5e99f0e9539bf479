//! How long an agent's exchanges may take: never so long that its entry expires
//! meanwhile. *Pure*.

use std::time::Duration;

use super::Keeper;

/// Whatever the entry's life: a busy host alone can take this long.
const LEAST_WAIT: Duration = Duration::from_secs(1);
/// A fresh session takes so long on a slow link.
pub(super) const LEAST_CONNECT: Duration = Duration::from_millis(2_500);
/// Questions before a registration wait no longer than this, once there was
/// one: the put may be taken where nobody answers questions.
const QUESTIONS: Duration = Duration::from_secs(5);
/// The same for a member of a cluster, before the next one is asked: one that is
/// cut off from the others lets clients in and answers nothing. Twice as long
/// each time that all of them were silent.
const MEMBER_WAIT: Duration = Duration::from_secs(1);
/// A put without an answer to the questions: whoever takes it is quick, and who
/// takes it when all is well again would not be heard for longer.
const UNSEEN_PUT: Duration = Duration::from_millis(2_500);
/// So long a look at what stands there instead of our entry may take.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

impl Keeper {
    /// How long our entry lives on without another heartbeat.
    fn life(&self, now: Duration) -> Duration {
        let Some((sent, ttl)) = self.stored else { return Duration::ZERO };
        ttl.saturating_sub(now.saturating_sub(sent))
    }

    /// How long an acknowledgement is waited for.
    pub fn put_limit(&self, now: Duration, timeout: Duration) -> Duration {
        let limit = self.patience.limit(timeout, self.life(now));
        match self.is_unseen && !self.is_registered() {
            true => limit.min(UNSEEN_PUT.max(self.slowest())),
            false => limit,
        }
    }

    /// What an answer takes at most, as far as the server has shown.
    fn slowest(&self) -> Duration {
        (self.patience.last() * 3).max(self.greeting * 4)
    }

    /// How long a fresh session may take.
    pub fn connect_limit(&self, now: Duration, timeout: Duration) -> Duration {
        self.part(now, timeout, 2, LEAST_CONNECT)
    }

    /// How long the questions before a registration may take.
    pub fn question_limit(&self, now: Duration, timeout: Duration) -> Duration {
        let most = if self.was_registered() { QUESTIONS } else { timeout };
        let usual = match self.rounds() {
            None => most,
            Some(rounds) => most.min(MEMBER_WAIT.saturating_mul(1 << rounds.min(5))),
        };
        self.part(now, timeout.min(usual.max(self.slowest())), 3, LEAST_WAIT)
    }

    /// How often all servers were silent in a row, where there are several.
    fn rounds(&self) -> Option<u32> {
        (self.choices > 1).then(|| self.silences / self.choices)
    }

    /// How long a look at what stands there may take, in the middle of a
    /// heartbeat.
    pub fn look_limit(&self, now: Duration, timeout: Duration) -> Duration {
        let slow = self.patience.last() * 3;
        self.part(now, timeout.min(LONGEST_LOOK.max(slow)), 4, LEAST_WAIT / 2)
    }

    /// How long a move may take while the session there is still serves.
    pub fn move_limit(&self, now: Duration, timeout: Duration) -> Duration {
        timeout.min(self.life(now) / 2)
    }

    /// A part of what is left of the entry's life, `least` at least; `limit` at
    /// most, and where there is no life to lose.
    fn part(&self, now: Duration, limit: Duration, of: u32, least: Duration) -> Duration {
        let life = self.life(now);
        if life.is_zero() { limit } else { limit.min((life / of).max(least)) }
    }

    /// Whether to put without knowing the bucket, which nobody answers for in
    /// time: it was fit when it was seen last, and our entry shall not end
    /// because nobody answers questions. Other members are asked before.
    pub fn may_put_unseen(&self) -> bool {
        self.was_registered() && self.rounds() != Some(0)
    }
}
