//! The host that the program runs on: signals, children, systemd, the log,
//! small files.
//!
//! Knows nothing of NATS or of the registry.

pub mod children;
pub mod clock_changes;
pub mod logging;
pub mod looker;
pub mod ourselves;
pub mod outlet;
pub mod signals;
pub mod systemd;
pub mod textfile;
pub mod textwriter;
