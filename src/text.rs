//! Text: how durations, times and tables are written and read. *Pure*.
//!
//! Knows nothing of NATS or of the registry; every other room may use it.

pub mod digits;
pub mod duration;
pub mod printable;
pub mod prometheus;
pub mod table;
pub mod time;
