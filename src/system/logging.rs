//! The log on stderr: one line a record, nothing of other crates.
//!
//! Under systemd (`JOURNAL_STREAM` is set) each line begins with the priority
//! that the journal takes, `<6>` for information (sd-daemon(3)). Elsewhere it
//! begins with the program's name, and with the time for a verb that stays.
//!
//! A verb that stays never waits for whoever reads its log; one that does not
//! has some patience with a slow reader, since it has no second chance.

use std::io::{self, Stderr};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use log::{Level, LevelFilter, Log, Metadata, Record};
use time::OffsetDateTime;

use crate::system::outlet::{LONGEST, Outlet};
use crate::text::printable::clipped;
use crate::text::time::format_time;

/// Characters of one line.
const LONGEST_TEXT: usize = 4_000;
/// How long a verb that ends soon waits for a reader who takes nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// How lines look and who takes them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// Debug lines as well.
    pub verbose: bool,
    /// Under systemd: priorities instead of the program's name.
    pub journal: bool,
    /// The time before each line, unless the journal does that.
    pub times: bool,
    /// The verb stays: its log must never hold it up.
    pub stays: bool,
}

struct Logger {
    style: Style,
    outlet: Mutex<Outlet<Stderr>>,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Begins to log. Only the first call counts.
pub fn start(style: Style) {
    let outlet = Mutex::new(Outlet::new(io::stderr()));
    let logger = LOGGER.get_or_init(|| Logger { style, outlet });
    if log::set_logger(logger).is_ok() {
        let verbose = logger.style.verbose;
        log::set_max_level(if verbose { LevelFilter::Debug } else { LevelFilter::Info });
    }
}

/// Tells how many lines were dropped, if there were any and somebody reads
/// again. A verb that stays calls this at each turn.
pub fn catch_up() {
    if let Some(logger) = LOGGER.get() {
        logger.flush();
    }
}

impl Logger {
    fn outlet(&self) -> MutexGuard<'_, Outlet<Stderr>> {
        self.outlet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One line of at most `LONGEST` bytes: a pipe takes it whole or not at
    /// all, so that lines of several processes do not mix.
    #[allow(clippy::disallowed_methods)]
    fn line(&self, level: Level, text: &str) -> Vec<u8> {
        let mut line = if self.style.journal {
            let priority = match level {
                Level::Error => 3,
                Level::Warn => 4,
                Level::Info => 6,
                Level::Debug | Level::Trace => 7,
            };
            format!("<{priority}>{text}")
        } else {
            let word = match level {
                Level::Error => "error: ",
                Level::Warn => "warning: ",
                Level::Info => "",
                Level::Debug | Level::Trace => "debug: ",
            };
            let time = if self.style.times {
                format!("{}Z ", &format_time(OffsetDateTime::now_utc())[..19])
            } else {
                String::new()
            };
            format!("{time}aegis-agent: {word}{text}")
        };
        if line.len() >= LONGEST {
            let end = (0..LONGEST).rev().find(|&end| line.is_char_boundary(end));
            line.truncate(end.unwrap_or_default());
        }
        line.push('\n');
        line.into_bytes()
    }

    fn told(&self, dropped: u64) -> Vec<u8> {
        let lines = if dropped == 1 { "line was" } else { "lines were" };
        let text = format!("{dropped} {lines} dropped here: nobody read from stderr");
        self.line(Level::Warn, &text)
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("aegis_agent")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // Words of a server, or of whoever wrote into the bucket, must neither
        // steer a terminal nor fill a journal.
        let text = clipped(&record.args().to_string().replace('\n', " "), LONGEST_TEXT);
        let line = self.line(record.level(), &text);
        let patience = if self.style.stays { Duration::ZERO } else { PATIENCE };
        self.outlet().write(&line, patience, |dropped| self.told(dropped));
    }

    fn flush(&self) {
        self.outlet().catch_up(|dropped| self.told(dropped));
    }
}
