//! Changes as lines: JSON for programs, text for people. *Pure*.

use serde::Serialize;
use serde_json::{Map, Value};
use time::{OffsetDateTime, UtcOffset};

use crate::registry::picture::{Change, Instance};
use crate::text::printable::printable;
use crate::text::time::format_time;

/// How changes are written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Lines {
    /// One JSON object a line.
    Json,
    /// For people, with times of day at this offset.
    Text(UtcOffset),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a> {
    schema: u8,
    event: &'a str,
    time: String,
    service_name: Option<&'a str>,
    instance_id: Option<&'a str>,
    revision: Option<u64>,
    status: Option<&'a str>,
    version: Option<&'a str>,
    metadata: Option<&'a Map<String, Value>>,
    sticky_active_group: Option<&'a str>,
    last_heartbeat: Option<String>,
    reason: Option<&'a str>,
    why: Option<&'a str>,
}

/// The word, the instance, the reason and more words.
type Parts<'a> = (&'a str, Option<&'a Instance>, Option<&'a str>, Option<&'a str>);

fn parts(change: &Change) -> Parts<'_> {
    match change {
        Change::Up(instance) => ("up", Some(instance), None, None),
        Change::Changed(instance) => ("changed", Some(instance), None, None),
        Change::Down(instance, reason, why) => {
            ("down", Some(instance), Some(reason.as_str()), why.as_deref())
        }
        Change::Synced => ("synced", None, None, None),
        Change::Lost(why) => ("lost", None, None, Some(why)),
    }
}

impl Lines {
    /// The line before all others, where there is one.
    pub(super) fn first(self) -> Option<String> {
        match self {
            Lines::Json => None,
            Lines::Text(offset) => {
                let (hours, minutes, _) = offset.as_hms();
                let sign = if offset.is_negative() { '-' } else { '+' };
                let (hours, minutes) = (hours.unsigned_abs(), minutes.unsigned_abs());
                Some(format!("times of day are those of UTC{sign}{hours:02}:{minutes:02}"))
            }
        }
    }

    /// A change at `now`, without the end of its line.
    pub(super) fn line(self, change: &Change, now: OffsetDateTime) -> String {
        let (word, instance, reason, why) = parts(change);
        match self {
            Lines::Json => {
                let record = instance.map(|instance| &instance.record);
                let event = Event {
                    schema: 1,
                    event: word,
                    time: format_time(now),
                    service_name: record.map(|record| record.service_name.as_str()),
                    instance_id: record.map(|record| record.instance_id.as_str()),
                    revision: instance.map(|instance| instance.revision),
                    status: record.map(|record| record.status.as_str()),
                    version: record.map(|record| record.version.as_str()),
                    metadata: record.map(|record| &record.metadata),
                    sticky_active_group: record
                        .and_then(|record| record.sticky_active_group.as_deref()),
                    last_heartbeat: record.map(|record| format_time(record.last_heartbeat)),
                    reason,
                    why,
                };
                serde_json::to_string(&event).expect("text and JSON values always serialise")
            }
            Lines::Text(offset) => {
                let time = now.checked_to_offset(offset).unwrap_or(now);
                let (hour, minute, second) = (time.hour(), time.minute(), time.second());
                let mut line = format!("{hour:02}:{minute:02}:{second:02} {word:<5}");
                if let Some(Instance { record, .. }) = instance {
                    let (service, id) = (&record.service_name, &record.instance_id);
                    line.push_str(&printable(&format!(" {service}/{id}")));
                    match reason {
                        Some(reason) => line.push_str(&format!("  {reason}")),
                        None => {
                            let status = record.status.as_str();
                            line.push_str(&printable(&format!("  {} {status}", record.version)));
                            if let Some(why) = record.draining() {
                                line.push_str(&printable(&format!("  draining: {why}")));
                            }
                        }
                    }
                }
                if let Some(why) = why {
                    let sign = if instance.is_some() { ':' } else { ' ' };
                    let space = if instance.is_some() { " " } else { "" };
                    line.push_str(&format!("{sign}{space}{}", printable(why)));
                }
                line.truncate(line.trim_end().len());
                line
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::record;
    use crate::registry::picture::DownReason;

    fn instance() -> Box<Instance> {
        let json = r#"{"version":"1.4.2","lastHeartbeat":"2026-11-23T09:37:31Z",
            "metadata":{"port":"80"}}"#;
        let record = record::read("service-instances__orders-api__host-1", json.as_bytes());
        Box::new(Instance { revision: 7, record: record.unwrap() })
    }

    fn at_21_10_03() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_795_381_803).unwrap()
    }

    fn changes() -> [Change; 6] {
        [
            Change::Up(instance()),
            Change::Changed(instance()),
            Change::Down(instance(), DownReason::Expired, None),
            Change::Down(instance(), DownReason::Removed, Some("its key\u{1b}".into())),
            Change::Synced,
            Change::Lost("connection lost".into()),
        ]
    }

    #[test]
    fn text_is_for_people() {
        let now = at_21_10_03();
        let offset = UtcOffset::from_hms(1, 0, 0).unwrap();
        let lines = changes().map(|change| Lines::Text(offset).line(&change, now));
        assert_eq!(
            lines,
            [
                "22:10:03 up    orders-api/host-1  1.4.2 ACTIVE",
                "22:10:03 changed orders-api/host-1  1.4.2 ACTIVE",
                "22:10:03 down  orders-api/host-1  expired",
                "22:10:03 down  orders-api/host-1  removed: its key\\u{1b}",
                "22:10:03 synced",
                "22:10:03 lost  connection lost",
            ]
        );
        assert_eq!(
            Lines::Text(UtcOffset::from_hms(-3, -30, 0).unwrap()).first().unwrap(),
            "times of day are those of UTC-03:30"
        );
    }

    /// Read by scripts: a change here breaks them.
    #[test]
    fn json_is_byte_for_byte_the_golden_one() {
        let now = at_21_10_03();
        let text: String =
            changes().iter().map(|change| Lines::Json.line(change, now) + "\n").collect();
        assert_eq!(text, include_str!("../../../tests/golden/watch.json"));
    }
}
