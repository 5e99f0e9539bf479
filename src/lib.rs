//! aegis-agent keeps a service registry in a NATS JetStream key-value bucket
//! true. The table of contents; arrows point from the verbs downwards.

/// Server versions with known TTL bugs.
pub mod bugs;
/// How many entries live, linger, or would live for ever.
pub mod census;
/// The verdicts of `check`.
pub mod checks;
/// Runs a service's health checks, without anybody waiting for them.
pub mod checkup;
/// What a cleanup takes, and what became of it.
pub mod cleaning;
/// Command line and environment into validated options.
pub mod cli;
/// One file per verb.
pub mod commands;
/// The NATS connection: the only door that knows the `nats` crate.
pub mod connection;
/// The `nats` CLI's context files.
pub mod context;
/// What a failed login or handshake is about, in words.
pub mod diagnosis;
/// Durations as people, environment files and `Nats-TTL` headers write them.
pub mod duration;
/// One entry of the bucket, and the instance in it.
pub mod entry;
/// What can go wrong, with exit codes and hints.
pub mod error;
/// Is this server, and is this bucket, fit for a registry?
pub mod fitness;
/// Is the service that we speak for well?
pub mod health;
/// The host around an agent: systemd, health, metrics.
pub mod host;
/// The instance record: its names, its key and its JSON.
pub mod instance;
/// JetStream key-value as bytes: requests out, replies in, error codes.
pub mod kv;
/// The log on stderr, and in the journal.
pub mod logging;
/// Who we are, towards NATS, and the files that say so.
pub mod login;
/// What a server says before the nats crate dials it.
pub mod look;
/// Several looks at once: which server of a list answers first.
mod looks;
/// No allocation on behalf of a stranger larger than NATS has messages.
pub mod memory;
/// Does an entry with a TTL really expire here?
pub mod probe;
/// The registry, spoken on a connection: register, read, deregister.
pub mod registry;
/// Removes entries, many at a time.
pub mod removal;
/// The answer of `check` in four formats.
pub mod report;
/// Many revisions in little memory.
pub mod revisions;
/// The newest revision of every key, within bounds.
pub mod scan;
/// When to act next: the heartbeat schedule.
pub mod schedule;
/// Signals as a wait with a deadline.
pub mod signals;
/// The sockets of this process, told apart.
mod sockets;
/// When is an entry stale, and why.
pub mod staleness;
/// How an agent stands with the registry, in words and in numbers.
pub mod standing;
/// What systemd is told, and its watchdog.
pub mod systemd;
/// Tables for people.
pub mod table;
/// What a cleanup did, for people, for cron and for programs.
pub mod tally;
/// A small file, written whole or not at all.
pub mod textfile;
/// Server URLs, and the logins in them.
pub mod url;
