//! aegis-agent keeps a service registry in a NATS JetStream key-value bucket
//! true. The table of contents; arrows point from the verbs downwards.

/// Command line and environment into validated options.
pub mod cli;
/// One file per verb.
pub mod commands;
/// The NATS connection: the only door that knows the `nats` crate.
pub mod connection;
/// What a failed login or handshake is about, in words.
pub mod diagnosis;
/// What can go wrong, with exit codes and hints.
pub mod error;
/// Is the service that we speak for well?
pub mod health;
/// An instance: its record, its entry in the bucket, and when it is stale.
pub mod instance;
/// JetStream key-value as bytes, and which servers and buckets are fit for it.
pub mod jetstream;
/// Who we are, towards NATS, and the files that say so.
pub mod login;
/// What a server says before the nats crate dials it.
pub mod look;
/// Several looks at once: which server of a list answers first.
mod looks;
/// No allocation on behalf of a stranger larger than NATS has messages.
pub mod memory;
/// The registry, spoken on a connection: register, read, deregister.
pub mod registry;
/// The sockets of this process, told apart.
mod sockets;
/// The host: signals, systemd, the log, files.
pub mod system;
/// Text for people and for headers: durations, times, tables.
pub mod text;
/// Server URLs, and the logins in them.
pub mod url;
