//! Is the service that we speak for well? *Pure*: what to check, and what a
//! row of results means.
//!
//! One failure says little: the verdict turns after a number of failures in a
//! row, and turns back after as many successes. Running a check is the
//! business of `runner`.

use std::fmt;
use std::time::Duration;

use crate::text::printable::printable;

/// What `run` checks before each heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthOptions {
    /// What has to succeed, one after the other; never empty.
    pub checks: Vec<HealthCheck>,
    /// Limit of all of them together; never longer than the interval.
    pub timeout: Duration,
    /// So many results in a row turn the verdict.
    pub failures: u32,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthCheck {
    /// This program, with these arguments, exits 0. Never empty.
    Exec(Vec<String>),
    /// Something accepts a connection there.
    Tcp {
        /// Host name or address; IPv6 without brackets.
        host: String,
        /// The port.
        port: u16,
    },
}

impl HealthCheck {
    /// Splits a command into words as a shell would, without being one:
    /// quotes and backslashes count, nothing is expanded.
    pub fn exec(command: &str) -> Result<HealthCheck, &'static str> {
        match shlex::split(command) {
            None => Err("has a quote without its end, or a lone backslash"),
            Some(words) if words.is_empty() => Err("names no program"),
            Some(words) if words.iter().any(|word| word.contains('\0')) => {
                Err("has a NUL character in it")
            }
            Some(words) if words[0].is_empty() => Err("names no program"),
            Some(words) => Ok(HealthCheck::Exec(words)),
        }
    }

    /// `HOST:PORT`, an IPv6 address in brackets.
    pub fn tcp(text: &str) -> Result<HealthCheck, &'static str> {
        const RULE: &str = "must be HOST:PORT, such as localhost:8080 or [::1]:8080";
        let (host, port) = text.rsplit_once(':').ok_or(RULE)?;
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = inner.unwrap_or(host);
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let fits_v6 = |c: char| c.is_ascii_hexdigit() || matches!(c, ':' | '.' | '%');
        let good = match inner {
            Some(address) => address.contains(':') && address.chars().all(fits_v6),
            None => host.chars().all(fits),
        };
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        match port.parse() {
            Ok(port @ 1..) if good && digits && !host.is_empty() => {
                Ok(HealthCheck::Tcp { host: host.to_owned(), port })
            }
            _ => Err(RULE),
        }
    }
}

impl fmt::Display for HealthCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HealthCheck::Exec(words) => f.write_str(&printable(&words[0])),
            HealthCheck::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            HealthCheck::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// The verdict over a row of results; healthy until proven otherwise.
#[derive(Debug, Clone)]
pub struct Verdict {
    needed: u32,
    healthy: bool,
    /// Results in a row that speak against the verdict.
    against: u32,
}

impl Verdict {
    /// A verdict that `needed` results in a row turn.
    pub fn new(needed: u32) -> Verdict {
        Verdict { needed: needed.max(1), healthy: true, against: 0 }
    }

    /// As it stands.
    pub fn is_healthy(&self) -> bool {
        self.healthy
    }

    /// Adds a result; whether the verdict has turned.
    pub fn add(&mut self, success: bool) -> bool {
        if success == self.healthy {
            self.against = 0;
            return false;
        }
        self.against += 1;
        if self.against < self.needed {
            return false;
        }
        self.healthy = success;
        self.against = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is published after each of these results.
    fn verdicts(needed: u32, results: &str) -> String {
        let mut verdict = Verdict::new(needed);
        let after = results.chars().map(|result| {
            verdict.add(result == '+');
            if verdict.is_healthy() { 'A' } else { 'U' }
        });
        after.collect()
    }

    #[test]
    fn the_verdict_turns_after_three_in_a_row_and_back_after_three() {
        assert_eq!(verdicts(3, "+--+--+"), "AAAAAAA");
        assert_eq!(verdicts(3, "---"), "AAU");
        assert_eq!(verdicts(3, "----++-+++"), "AAUUUUUUUA");
        assert_eq!(verdicts(1, "-+-+"), "UAUA");
        assert_eq!(verdicts(3, "-+-+-+-+-+"), "AAAAAAAAAA");
    }

    #[test]
    fn it_says_when_it_turns_and_only_then() {
        let mut verdict = Verdict::new(2);
        let turns: Vec<bool> =
            [false, false, false, true, true, true].map(|r| verdict.add(r)).into();
        assert_eq!(turns, [false, true, false, false, true, false]);
    }

    #[test]
    fn a_command_is_split_as_a_shell_would() {
        let words = |text| match HealthCheck::exec(text) {
            Ok(HealthCheck::Exec(words)) => words,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(words("curl -fs 'http://a/b c'"), ["curl", "-fs", "http://a/b c"]);
        assert_eq!(words(r#"a "b \" c" d\ e $HOME *"#), ["a", "b \" c", "d e", "$HOME", "*"]);
        for bad in ["", "  ", "a 'b", "a \"b", "''"] {
            assert!(HealthCheck::exec(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for (text, host, port) in [
            ("localhost:80", "localhost", 80),
            ("[::1]:8080", "::1", 8080),
            ("10.0.0.1:1", "10.0.0.1", 1),
        ] {
            assert_eq!(
                HealthCheck::tcp(text),
                Ok(HealthCheck::Tcp { host: host.to_owned(), port })
            );
            assert_eq!(HealthCheck::tcp(text).unwrap().to_string(), text);
        }
        for bad in
            ["", "a", "a:", ":80", "a:0", "a:65536", "a:+1", "::1:80", "[a]:1", "a b:1", "[]:1"]
        {
            assert!(HealthCheck::tcp(bad).is_err(), "{bad:?}");
        }
    }
}
