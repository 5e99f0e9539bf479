//! The health of the service that an agent speaks for: what its checks mean,
//! and how they are run.

pub mod runner;
pub mod verdict;
