//! Values with where they came from, so that what is wrong with one names its
//! option, its variable or its file, and exits 64 or 78. What a value has to
//! be, the caller says.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use super::host_file::HostFile;
use crate::error::{Failure, Kind};
use crate::nats::address::shown;
use crate::text::duration::{self, ParseError, as_setting};

pub(super) const PROGRAM: &str = "aegis-agent";

pub(super) const LONGEST_TIMEOUT: Duration = Duration::from_secs(3_600);

/// A value, and where it came from.
pub(super) struct Given {
    pub(super) name: Cow<'static, str>,
    pub(super) text: String,
    pub(super) kind: Kind,
}

impl Given {
    pub(super) fn bad(&self, rule: impl Display) -> Failure {
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
    let (name, kind) = (Cow::Borrowed(name), Kind::Usage);
    value.clone().map(|text| Given { name, text, kind })
}

pub(super) fn from_context(value: &Option<String>, name: &'static str) -> Option<Given> {
    let (name, kind) = (Cow::Borrowed(name), Kind::Config);
    value.clone().map(|text| Given { name, text, kind })
}

/// Where values come from beside the command line.
pub(super) struct Source<'a> {
    pub(super) env: &'a dyn Fn(&str) -> Option<OsString>,
    pub(super) host: &'a HostFile,
    taken: RefCell<Vec<String>>,
    /// Of each option that is given somewhere, where.
    origins: RefCell<BTreeMap<String, String>>,
}

impl<'a> Source<'a> {
    pub(super) fn new(env: &'a dyn Fn(&str) -> Option<OsString>, host: &'a HostFile) -> Source<'a> {
        Source { env, host, taken: RefCell::default(), origins: RefCell::default() }
    }

    /// Remembers that this value counts, by its name.
    pub(super) fn take(&self, given: Option<Given>) -> Option<Given> {
        let mut taken = self.taken.borrow_mut();
        if let Some(given) = given.as_ref().filter(|given| given.kind != Kind::Usage)
            && !taken.iter().any(|name| *name == given.name)
        {
            taken.push(given.name.clone().into_owned());
        }
        given
    }

    /// Where the values that count came from, beside the command line.
    pub(super) fn origins(&self) -> Vec<String> {
        self.taken.borrow().clone()
    }

    /// Remembers where an option is given.
    pub(super) fn note(&self, option: &str, given: Option<&Given>) {
        if let Some(given) = given {
            self.origins.borrow_mut().insert(option.to_owned(), given.name.clone().into_owned());
        }
    }

    /// Remembers where the login is given.
    pub(super) fn note_login(&self, name: &str) {
        let of_host = self.host.get(name).is_some() && (self.env)(name).is_none();
        let file =
            if of_host { format!(" in {}", self.host.path().display()) } else { String::new() };
        self.origins.borrow_mut().insert("login".to_owned(), format!("{name}{file}"));
    }

    /// Where an option is given: itself, a variable with its file, a field of the
    /// context. `None` for nowhere.
    pub(super) fn origin(&self, option: &str) -> Option<String> {
        self.origins.borrow().get(option).cloned()
    }

    /// A variable of the environment; one that is empty counts as not set.
    pub(super) fn env(&self, name: &'static str) -> Result<Option<Given>, Failure> {
        let Some(value) = (self.env)(name).filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        let kind = Kind::Config;
        match value.into_string() {
            Ok(text) => Ok(Some(Given { name: Cow::Borrowed(name), text, kind })),
            Err(_) => Err(Failure::new(kind, format!("{name} is not UTF-8"))),
        }
    }

    /// A variable in the host's file.
    pub(super) fn host(&self, name: &'static str) -> Option<Given> {
        let text = self.host.get(name)?.to_owned();
        let name = Cow::Owned(format!("{name} in {}", self.host.path().display()));
        Some(Given { name, text, kind: Kind::Config })
    }

    /// The environment, and then the host's file.
    pub(super) fn variable(&self, name: &'static str) -> Result<Option<Given>, Failure> {
        let given = self.env(name)?.or_else(|| self.host(name));
        Ok(self.take(given))
    }

    /// The option, and then its variable.
    pub(super) fn given(
        &self,
        value: &Option<String>,
        name: &'static str,
        variable: &'static str,
    ) -> Result<Option<Given>, Failure> {
        let given = match option(value, name) {
            Some(given) => Some(given),
            None => self.variable(variable)?,
        };
        self.note(name, given.as_ref());
        Ok(given)
    }

    /// A switch: given, or its variable says yes.
    pub(super) fn switch(&self, given: bool, variable: &'static str) -> Result<bool, Failure> {
        let name = variable.trim_start_matches("AEGIS_").to_lowercase().replace('_', "-");
        let name = format!("--{name}");
        let value = self.variable(variable)?;
        if given {
            self.origins.borrow_mut().insert(name.clone(), name);
            return Ok(true);
        }
        self.note(&name, value.as_ref());
        match value {
            Some(value) => value.read(|text| match text.to_lowercase().as_str() {
                "true" | "yes" | "1" => Ok(true),
                "false" | "no" | "0" => Ok(false),
                _ => Err("must be true, yes or 1, or else false, no or 0"),
            }),
            None => Ok(false),
        }
    }

    /// An option that may be given more than once; its variable holds several
    /// values as a shell's command line would.
    pub(super) fn all(
        &self,
        values: &[String],
        name: &'static str,
        variable: &'static str,
    ) -> Result<Vec<Given>, Failure> {
        if !values.is_empty() {
            let given = values.iter().filter_map(|text| option(&Some(text.clone()), name));
            let given: Vec<Given> = given.collect();
            self.note(name, given.first());
            return Ok(given);
        }
        let Some(given) = self.variable(variable)? else {
            return Ok(Vec::new());
        };
        self.note(name, Some(&given));
        let (name, kind) = (given.name.clone(), given.kind);
        let words = given.read(|text| shlex::split(text).ok_or("has a quote without its end"))?;
        let given = |text| Given { name: name.clone(), text, kind };
        Ok(words.into_iter().map(given).collect())
    }
}

/// A call that the command line itself makes wrong.
pub(super) fn usage(message: impl Into<String>) -> Failure {
    Failure::new(Kind::Usage, message).with_hint(format!("{PROGRAM} --help"))
}
