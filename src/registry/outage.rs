//! Which causes of an outage were said, so that each is said once. *Pure*.

use std::collections::HashSet;
use std::time::Instant;

/// So many causes of one outage are logged. A server that never says the same
/// twice has more: they go to the debug log.
const CAUSES_SAID: usize = 8;

/// An outage, and what was said of it.
pub struct Outage {
    /// When it began.
    pub since: Instant,
    /// The causes that were said, without their numbers.
    said: HashSet<String>,
}

impl Outage {
    /// Begins now; nothing was said yet.
    pub fn new(now: Instant) -> Outage {
        Outage { since: now, said: HashSet::new() }
    }

    /// Whether to say this cause.
    pub fn is_news(&mut self, cause: &str) -> bool {
        // Sequences and the like change each time.
        let known = cause.chars().filter(|c| !c.is_ascii_digit()).collect();
        self.said.len() < CAUSES_SAID && self.said.insert(known)
    }
}
