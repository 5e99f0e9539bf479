//! An instance of a service: its record, the entry in the bucket that carries
//! the record, and when it counts as stale. *Pure*.

pub mod entry;
pub mod filter;
pub mod record;
pub mod staleness;
