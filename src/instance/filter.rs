//! Which instances somebody wants to see. *Pure*.

use std::str::FromStr;

use serde_json::Value;

use crate::instance::record::{InstanceId, Record, ServiceName, Status};

/// A service, or one instance of it: `orders-api`, `orders-api/host-1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    service: ServiceName,
    instance: Option<InstanceId>,
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Name, String> {
        let (service, instance) = match text.split_once('/') {
            Some((service, instance)) => (service, Some(instance)),
            None => (text, None),
        };
        Ok(Name {
            service: service.parse().map_err(|rule| format!("{rule}"))?,
            instance: instance.map(str::parse).transpose().map_err(|rule| format!("{rule}"))?,
        })
    }
}

impl Name {
    /// A service, with all its instances.
    pub fn of(service: ServiceName) -> Name {
        Name { service, instance: None }
    }

    fn fits(&self, record: &Record) -> bool {
        let instance = self.instance.as_ref();
        self.service.as_str() == record.service_name
            && instance.is_none_or(|instance| instance.as_str() == record.instance_id)
    }
}

/// A key of the metadata, and the value that it must have, if that matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    key: String,
    value: Option<String>,
}

impl FromStr for Meta {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Meta, &'static str> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (text, None),
        };
        if key.is_empty() {
            return Err("must be KEY or KEY=VALUE");
        }
        Ok(Meta { key: key.to_owned(), value })
    }
}

impl Meta {
    fn fits(&self, record: &Record) -> bool {
        let Some(found) = record.metadata.get(&self.key) else { return false };
        let Some(wanted) = &self.value else { return true };
        match found {
            Value::String(text) => wanted == text,
            other => {
                let text = other.to_string();
                *wanted == text
            }
        }
    }
}

/// What an instance has to be to be shown; everything where nothing is said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// One of these, if there are any.
    pub names: Vec<Name>,
    /// This status, if there is one.
    pub status: Option<Status>,
    /// All of these.
    pub meta: Vec<Meta>,
}

impl Filter {
    /// Whether an instance is wanted.
    pub fn wants(&self, record: &Record) -> bool {
        let named = self.names.is_empty() || self.names.iter().any(|name| name.fits(record));
        named
            && self.status.as_ref().is_none_or(|status| *status == record.status)
            && self.meta.iter().all(|meta| meta.fits(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::record;

    fn filter(names: &[&str], status: Option<&str>, meta: &[&str]) -> Filter {
        Filter {
            names: names.iter().map(|name| name.parse().unwrap()).collect(),
            status: status.map(|word| Status::parse(word).unwrap()),
            meta: meta.iter().map(|meta| meta.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn an_instance_is_shown_that_fits_everything_that_is_said() {
        let json = r#"{"version":"1.0.0","status":"STANDBY","lastHeartbeat":"2026-11-23T09:37:31Z",
            "metadata":{"zone":"a=b","port":80}}"#;
        let record = record::read("service-instances__orders-api__host-1", json.as_bytes());
        let record = record.unwrap();
        for (expected, filter) in [
            (true, filter(&[], None, &[])),
            (true, filter(&["orders-api"], None, &[])),
            (true, filter(&["other", "orders-api/host-1"], None, &[])),
            (false, filter(&["orders"], None, &[])),
            (false, filter(&["orders-api/host-2"], None, &[])),
            (true, filter(&[], Some("STANDBY"), &[])),
            (false, filter(&[], Some("ACTIVE"), &[])),
            (true, filter(&[], None, &["zone", "zone=a=b", "port=80"])),
            (false, filter(&[], None, &["zone", "zone=a"])),
            (false, filter(&[], None, &["rack"])),
            (false, filter(&["orders-api"], Some("ACTIVE"), &["zone"])),
        ] {
            assert_eq!(filter.wants(&record), expected, "{filter:?}");
        }
    }

    #[test]
    fn a_name_or_key_that_cannot_be_is_refused() {
        for name in ["", "/", "orders-api/", "/host-1", "orders-api/a/b", "O", "orders-api/a.b"] {
            assert!(name.parse::<Name>().is_err(), "{name}");
        }
        assert!("=x".parse::<Meta>().is_err() && "".parse::<Meta>().is_err());
    }
}
