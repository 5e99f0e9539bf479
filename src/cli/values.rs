//! Values with where they came from, so that what is wrong with one names its
//! option or its variable, and exits 64 or 78. What a value has to be, the
//! caller says.

use std::ffi::OsString;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Failure, Kind};
use crate::nats::address::shown;
use crate::text::duration::{self, ParseError, as_setting};

pub(super) const PROGRAM: &str = "aegis-agent";

pub(super) const LONGEST_TIMEOUT: Duration = Duration::from_secs(3_600);

/// A value, and where it came from.
pub(super) struct Given {
    pub(super) name: &'static str,
    pub(super) text: String,
    pub(super) kind: Kind,
}

impl Given {
    fn bad(&self, rule: impl Display) -> Failure {
        Failure::new(self.kind, format!("{} {:?}: {rule}", self.name, shown(&self.text)))
    }

    pub(super) fn read<T, E: Display>(
        self,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Result<T, Failure> {
        read(&self.text).map_err(|rule| self.bad(rule))
    }

    pub(super) fn read_from_str<T: FromStr<Err: Display>>(self) -> Result<T, Failure> {
        self.read(str::parse)
    }

    pub(super) fn duration(self, from: Duration, to: Duration) -> Result<Duration, Failure> {
        self.read(|text| {
            let range = || format!("must be from {} to {}", as_setting(from), as_setting(to));
            match duration::parse(text) {
                Ok(parsed) if (from..=to).contains(&parsed) => Ok(parsed),
                Ok(_) | Err(ParseError::TooLong) => Err(range()),
                Err(error) => Err(error.to_string()),
            }
        })
    }
}

/// What the command line gives.
pub(super) fn option(value: &Option<String>, name: &'static str) -> Option<Given> {
    let kind = Kind::Usage;
    value.clone().map(|text| Given { name, text, kind })
}

pub(super) fn from_context(value: &Option<String>, name: &'static str) -> Option<Given> {
    let kind = Kind::Config;
    value.clone().map(|text| Given { name, text, kind })
}

/// Where values come from beside the command line.
pub(super) struct Source<'a> {
    pub(super) env: &'a dyn Fn(&str) -> Option<OsString>,
}

impl Source<'_> {
    /// A variable; one that is empty counts as not set.
    pub(super) fn env(&self, name: &'static str) -> Result<Option<Given>, Failure> {
        let Some(value) = (self.env)(name).filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        let kind = Kind::Config;
        match value.into_string() {
            Ok(text) => Ok(Some(Given { name, text, kind })),
            Err(_) => Err(Failure::new(kind, format!("{name} is not UTF-8"))),
        }
    }

    pub(super) fn given(
        &self,
        value: &Option<String>,
        name: &'static str,
        variable: &'static str,
    ) -> Result<Option<Given>, Failure> {
        match option(value, name) {
            Some(given) => Ok(Some(given)),
            None => self.env(variable),
        }
    }
}

/// A call that the command line itself makes wrong.
pub(super) fn usage(message: impl Into<String>) -> Failure {
    Failure::new(Kind::Usage, message).with_hint(format!("{PROGRAM} --help"))
}
