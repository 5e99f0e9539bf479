//! The host that the program runs on: signals, systemd, the log, small files.
//!
//! Knows nothing of NATS or of the registry.

pub mod clock_changes;
pub mod logging;
pub mod signals;
pub mod systemd;
pub mod textfile;
