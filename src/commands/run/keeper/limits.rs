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
/// So long a look at what stands there instead of our entry may take.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

impl Keeper {
    /// How long our entry lives on without another heartbeat.
    fn life(&self, now: Duration) -> Duration {
        let Some((sent, ttl)) = self.stored else { return Duration::ZERO };
        ttl.saturating_sub(now.saturating_sub(sent))
    }

    /// How long an acknowledgement is waited for.
    pub(in crate::commands::run) fn put_limit(&self, now: Duration, timeout: Duration) -> Duration {
        self.patience.limit(timeout, self.life(now))
    }

    /// How long a fresh session may take.
    pub(in crate::commands::run) fn connect_limit(
        &self,
        now: Duration,
        timeout: Duration,
    ) -> Duration {
        self.part(now, timeout, 2, LEAST_CONNECT)
    }

    /// How long the questions before a registration may take.
    pub(in crate::commands::run) fn question_limit(
        &self,
        now: Duration,
        timeout: Duration,
    ) -> Duration {
        if !self.was_registered() {
            return timeout;
        }
        let slow = self.patience.last() * 3;
        self.part(now, timeout.min(QUESTIONS.max(slow)), 3, LEAST_WAIT)
    }

    /// How long a look at what stands there may take, in the middle of a
    /// heartbeat.
    pub(in crate::commands::run) fn look_limit(
        &self,
        now: Duration,
        timeout: Duration,
    ) -> Duration {
        let slow = self.patience.last() * 3;
        self.part(now, timeout.min(LONGEST_LOOK.max(slow)), 4, LEAST_WAIT / 2)
    }

    /// How long a move may take while the session there is still serves.
    pub(in crate::commands::run) fn move_limit(
        &self,
        now: Duration,
        timeout: Duration,
    ) -> Duration {
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
    /// because nobody answers questions.
    pub(in crate::commands::run) fn may_put_unseen(&self) -> bool {
        self.was_registered()
    }
}
