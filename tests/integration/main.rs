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

mod alerts;
mod architecture;
mod budget;
mod chatter;
mod check;
mod check_answers;
mod check_config;
mod check_probe;
mod check_services;
mod cleanup;
mod cleanup_lasts;
mod clocks;
mod cluster_faults;
mod connection_limits;
mod documents;
mod domains;
mod draining;
mod duplicates;
mod faults;
mod fleets;
mod full_disk;
mod handshake_first;
mod harness;
mod harness_works;
mod health;
mod hints;
mod histories;
mod honesty;
mod hostile;
mod info_lines;
mod init;
mod interop;
mod keeping;
mod limits;
mod list;
mod logins;
mod lossy;
mod metrics;
mod names;
mod network_faults;
mod outages;
mod permissions;
mod poison;
mod run;
mod seen_by_server;
mod slow_links;
mod soak;
mod stuck;
mod systemd;
mod threads;
mod tls;
mod tls_cluster;
mod units;
mod usage;
mod watch;
mod watch_faults;
mod words;
mod wounded;
