//! The built binary against real nats-server processes.

// The walls are for src/: tests read clocks, wait, print and panic, and not
// every piece of the harness is in use at every time.
#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::print_stderr,
    dead_code,
    unreachable_pub
)]

mod architecture;
mod budget;
mod check;
mod check_answers;
mod check_probe;
mod cleanup;
mod cleanup_lasts;
mod clocks;
mod cluster_faults;
mod faults;
mod harness;
mod harness_works;
mod health;
mod hostile;
mod init;
mod list;
mod logins;
mod metrics;
mod network_faults;
mod outages;
mod permissions;
mod run;
mod soak;
mod systemd;
mod tls;
mod twins;
mod units;
mod usage;
mod watch;
