//! `init`: creates the bucket, or mends one in place.

use std::io::Write;

use crate::cli::InitOptions;
use crate::connection::Settings;
use crate::error::{Failure, Kind};
use crate::kv::Bucket;

/// Not built yet.
pub fn run(
    _options: &InitOptions,
    _settings: Settings,
    _bucket: Bucket,
    _out: &mut dyn Write,
) -> Result<(), Failure> {
    Err(Failure::new(Kind::Usage, "not built yet"))
}
