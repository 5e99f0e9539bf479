//! The rooms of aegis-agent, which keeps a service registry in a NATS JetStream
//! key-value bucket up to date. Arrows point from the verbs downwards;
//! docs/internals.md has the map.

/// Command line and environment into validated options.
pub mod cli;
/// One file per verb.
pub mod commands;
/// What can go wrong, with exit codes and hints.
pub mod error;
/// Small files, read without waiting for long.
pub mod files;
/// Is the service that we speak for well?
pub mod health;
/// An instance: its record, its entry in the bucket, and when it is stale.
pub mod instance;
/// JetStream key-value as bytes, and which servers and buckets are fit for it.
pub mod jetstream;
/// The NATS client: one connection, one thread, one `poll`.
pub mod nats;
/// The registry, spoken on a connection: register, read, deregister.
pub mod registry;
/// The host: signals, systemd, the log, files.
pub mod system;
/// Text for people and for headers: durations, times, tables.
pub mod text;
