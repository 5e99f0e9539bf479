//! JetStream key-value as bytes, and which servers and buckets are fit for it.
//! *Pure*.

pub mod bucket;
pub mod fitness;
pub mod pulls;
pub mod replies;
pub mod requests;
pub mod server_bugs;
pub mod stored;
