//! `cleanup`: removes what is stale, and nothing that came back meanwhile.

use std::io::Write;

use crate::cli::CleanupOptions;
use crate::connection::Settings;
use crate::error::{Failure, Kind};
use crate::kv::Bucket;

/// Not built yet.
pub fn run(
    _options: &CleanupOptions,
    _settings: Settings,
    _bucket: Bucket,
    _out: &mut dyn Write,
) -> Result<(), Failure> {
    Err(Failure::new(Kind::Usage, "not built yet"))
}
