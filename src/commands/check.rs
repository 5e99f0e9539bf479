//! `check`: does TTL really work here, and if not, why?

use std::io::Write;

use crate::cli::CheckOptions;
use crate::connection::Settings;
use crate::error::{Failure, Kind};
use crate::kv::Bucket;

/// Not built yet.
pub fn run(
    _options: &CheckOptions,
    _settings: Settings,
    _bucket: Bucket,
    _out: &mut dyn Write,
) -> Result<u8, Failure> {
    Err(Failure::new(Kind::Usage, "not built yet"))
}
