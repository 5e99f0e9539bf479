//! A nats-server as bytes: what it hears, what it answers, and the rules of
//! JetStream that matter to a registry. Time is an argument, and so is how late
//! an entry expires.
//!
//! Its rules are those of docs/nats.md; `tests/integration/honesty.rs` sends the same bytes to
//! real servers and compares what they answer.

pub mod api;
pub mod bucket;
pub mod session;

pub use api::{Answer, Jetstream};
pub use session::Session;
