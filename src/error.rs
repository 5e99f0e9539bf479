//! What can go wrong, sorted by what an operator does next.
//!
//! Each variant carries the exit code that README.md lists. `Display` says
//! this level only, `source()` carries the cause, and `hint()` the next step;
//! `main` puts the three on stderr.

use std::error::Error as StdError;
use std::fmt;

/// The outcome of a verb that did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    kind: Kind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// What the operator has to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The command line (exit 64).
    Usage,
    /// NATS cannot be reached, or what answers is not fit: too old, without
    /// JetStream, without the bucket (exit 69).
    Unavailable,
    /// Some of the work was done, or none because a limit was met: run it
    /// again (exit 75).
    Incomplete,
    /// Credentials or permissions (exit 77).
    Refused,
    /// A file, an environment variable or a value in one of them (exit 78).
    Config,
}

impl Failure {
    /// A failure of `kind`; `message` is lower-case, names the thing and has
    /// no full stop.
    pub fn new(kind: Kind, message: impl Into<String>) -> Failure {
        Failure { kind, message: message.into(), hint: None, source: None }
    }

    /// Adds the next step: a command or a setting.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a note to the hint of a failure whose message begins with `of`, as
    /// [`noted`] does.
    pub fn with_note(mut self, of: &str, note: Option<String>) -> Failure {
        if let Some(note) = note.filter(|_| self.message.starts_with(of)) {
            self.hint = Some(noted(self.hint.take(), note));
        }
        self
    }

    /// Adds the cause, shown after the message.
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Failure {
        self.source = Some(source.into());
        self
    }

    /// The same failure with its hint made into another text.
    pub fn map_hint(mut self, make: impl FnOnce(&str) -> String) -> Failure {
        self.hint = self.hint.as_deref().map(make);
        self
    }

    /// What the operator has to look at.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The next step, if there is one to name.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The exit code for every verb but `check`.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Usage => 64,
            Kind::Unavailable => 69,
            Kind::Incomplete => 75,
            Kind::Refused => 77,
            Kind::Config => 78,
        }
    }

    /// Whether the cause is that nobody reads our output any more.
    pub fn is_broken_pipe(&self) -> bool {
        let source =
            self.source.as_ref().and_then(|source| source.downcast_ref::<std::io::Error>());
        source.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    }

    /// This message and its causes on one line, joined by `: `.
    pub fn chain(&self) -> String {
        let mut line = self.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            line.push_str(": ");
            line.push_str(&error.to_string());
            cause = error.source();
        }
        line
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Failure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as _)
    }
}

/// A hint with a note at its end; a note that is a command takes its place.
pub fn noted(hint: Option<String>, note: String) -> String {
    match hint.filter(|_| !note.starts_with("aegis-agent ")) {
        Some(hint) => format!("{hint}; {note}"),
        None => note,
    }
}

/// A clean result, or standard output cannot be written to.
pub fn written(result: std::io::Result<()>) -> Result<(), Failure> {
    result.map_err(|error| {
        Failure::new(Kind::Incomplete, "cannot write to standard output").with_source(error)
    })
}

/// An I/O error in words, without the `(os error 111)` after them.
pub fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error ") {
        Some((words, _)) => words.to_lowercase(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_one_line_with_every_cause() {
        let cause = Failure::new(Kind::Config, "cannot read it")
            .with_source(std::io::Error::other("permission denied"));
        let failure = Failure::new(Kind::Refused, "login refused").with_source(cause);
        assert_eq!(failure.chain(), "login refused: cannot read it: permission denied");
        assert_eq!(failure.exit_code(), 77);
    }
}
