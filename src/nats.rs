//! The NATS client: one connection, one thread, one `poll`.
//!
//! The protocol as bytes is `wire`; `handshake` and `race` decide, `connector`
//! and `session` do. Why it is our own stands in docs/internals.md.
//!
//! A connection is a disposable *session*: given up by its owner at the first
//! unanswered heartbeat, never reconnected. The promise is an entry back within
//! 3 s of a server being reachable again, so nothing waits for TCP: a heartbeat
//! is waited for 2.5 s, lost packets for as long, and a server that hangs is
//! not waited for while another one may serve. Nothing arrives late: there is
//! no buffer that outlives its session, and what lies in somebody else's fails
//! by its revision.

pub mod address;
mod attempt;
pub mod certificate;
mod connector;
pub mod failure;
pub mod handshake;
pub mod login;
pub mod lookup;
mod nkey;
pub mod race;
mod session;
mod stream;
pub mod tcp;
mod tls;
pub mod waiter;
pub mod wire;

pub use address::ServerAddress;
pub use connector::{Connector, Settings};
pub use failure::{Cause, ConnectError, RequestError};
pub use handshake::ServerInfo;
pub use session::{Arrival, Session, Token, answered};
pub use waiter::{Interest, Waiter};
pub use wire::{Headers, Incoming, Request};
