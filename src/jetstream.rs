//! JetStream key-value: requests and replies as bytes, and what is to be
//! thought of a server and of a bucket before an entry is trusted to them.
//! *Pure*.

pub mod bucket;
pub mod fitness;
pub mod pulls;
pub mod replies;
pub mod requests;
pub mod server_bugs;
pub mod stored;
