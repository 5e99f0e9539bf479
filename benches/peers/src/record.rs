//! The record as the agent writes it, byte for byte but for its names, time and
//! process id, and as a reader decodes it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::Result;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub service_name: String,
    pub instance_id: String,
    pub version: String,
    pub status: String,
    pub last_heartbeat: String,
    pub sticky_active_group: Option<String>,
    pub metadata: BTreeMap<String, String>,
}

impl Record {
    /// The bytes of a heartbeat for the entry under `key`.
    pub fn now(key: &str) -> Result<Vec<u8>> {
        let names = key.strip_prefix("service-instances__").and_then(|rest| rest.split_once("__"));
        let (service, instance) = names.ok_or("KEY is service-instances__SERVICE__INSTANCE")?;
        let record = Record {
            service_name: service.to_owned(),
            instance_id: instance.to_owned(),
            version: "0.0.0".to_owned(),
            status: "ACTIVE".to_owned(),
            last_heartbeat: rfc3339(OffsetDateTime::now_utc()),
            sticky_active_group: None,
            metadata: BTreeMap::from([
                ("host".to_owned(), instance.to_owned()),
                ("pid".to_owned(), std::process::id().to_string()),
            ]),
        };
        Ok(serde_json::to_vec(&record)?)
    }
}

/// UTC with six fraction digits and `+00:00`.
fn rfc3339(at: OffsetDateTime) -> String {
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}+00:00",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.microsecond()
    )
}
