//! `run --check-config`: what a start would use, and whether it would start.

use std::io::Write;

use log::warn;

use crate::cli::options::Effective;
use crate::error::{Failure, written};
use crate::nats::Settings;
use crate::text::table::Table;

/// Writes the settings, says what a start would warn of, and fails as it would.
pub(super) fn check(
    effective: &[Effective],
    warnings: &[String],
    settings: &Settings,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut table = Table::new(&[("SETTING", false), ("VALUE", false), ("FROM", false)]);
    for Effective { name, value, origin } in effective {
        table.push([name, value.as_str(), origin.as_str()]);
    }
    written(table.write(out).and_then(|()| out.flush()))?;
    for warning in warnings {
        warn!("{warning}");
    }
    settings.check_files()
}
