//! The log on stderr: one line a record, nothing of other crates.
//!
//! Under systemd (`JOURNAL_STREAM` is set) each line begins with the priority
//! that the journal takes, `<6>` for information (sd-daemon(3)). Elsewhere it
//! begins with the program's name, and with the time for a verb that stays.

use std::io::{self, Write};

use log::{Level, LevelFilter, Log, Metadata, Record};
use time::OffsetDateTime;

use crate::text::printable::clipped;
use crate::text::time::format_time;

/// Characters of one line.
const LONGEST_LINE: usize = 4_000;

struct Stderr {
    journal: bool,
    times: bool,
}

/// Begins to log. `times` puts the time before each line, unless the journal
/// does that.
pub fn start(verbose: bool, journal: bool, times: bool) {
    let logger = Box::new(Stderr { journal, times });
    if log::set_boxed_logger(logger).is_ok() {
        log::set_max_level(if verbose { LevelFilter::Debug } else { LevelFilter::Info });
    }
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("aegis_agent")
    }

    #[allow(clippy::disallowed_methods)]
    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // Words of a server, or of whoever wrote into the bucket, must neither
        // steer a terminal nor fill a journal.
        let text = clipped(&record.args().to_string().replace('\n', " "), LONGEST_LINE);
        let line = if self.journal {
            let priority = match record.level() {
                Level::Error => 3,
                Level::Warn => 4,
                Level::Info => 6,
                Level::Debug | Level::Trace => 7,
            };
            format!("<{priority}>{text}\n")
        } else {
            let word = match record.level() {
                Level::Error => "error: ",
                Level::Warn => "warning: ",
                Level::Info => "",
                Level::Debug | Level::Trace => "debug: ",
            };
            let time = if self.times {
                format!("{}Z ", &format_time(OffsetDateTime::now_utc())[..19])
            } else {
                String::new()
            };
            format!("{time}aegis-agent: {word}{text}\n")
        };
        // One write a line, so that lines of several processes do not mix; a
        // closed stderr is nobody's loss.
        io::stderr().write_all(line.as_bytes()).ok();
    }

    fn flush(&self) {}
}
