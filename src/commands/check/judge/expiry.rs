//! The verdict on the live test of expiry (`--probe`). *Pure*.

use std::time::Duration;

use super::super::facts::{Gap, GapKind};
use super::super::row::{Grade, LONGEST_TEXT, Row, Unit, metric};
use super::rounded;
use crate::jetstream::fitness::WITHOUT_BUGS;
use crate::jetstream::server_bugs::{Bug, BugKind, fix};
use crate::registry::expiry_test::Probed;
use crate::text::duration::words;
use crate::text::printable::clipped;

/// Expiry comes 4 to 250 ms late on a healthy server (docs/nats.md);
/// this leaves room for a busy one.
const LATE_LIMIT: Duration = Duration::from_secs(2);

/// `known` are the bugs of the server that leads the bucket.
pub(super) fn ttl_probe(probe: &Result<Probed, Gap>, known: &[Bug]) -> Row {
    const NAME: &str = "ttl-probe";
    let put_metric = |put: &Duration| {
        let help = "From a put with a TTL to its acknowledgement";
        metric("probe_put", Unit::Seconds, put.as_secs_f64(), help)
    };
    let late_metric = |late: &Duration| {
        let help = "How long after its TTL the probe was gone";
        metric("probe_expiry_delay", Unit::Seconds, late.as_secs_f64(), help)
            .warns(LATE_LIMIT.as_secs().to_string())
    };
    let (check, put, late) = match probe {
        Err(gap) if gap.kind == GapKind::NotMade => return Row::skipped(NAME, &gap.message),
        Err(gap) => return Row::of_gap(NAME, Grade::Unknown, gap),
        Ok(Probed::Refused(why)) => {
            let message =
                format!("the server does not store a probe: {}", clipped(why, LONGEST_TEXT));
            return Row::new(NAME, Grade::Critical, message)
                .hint("heartbeats are refused in the same way: see the other checks");
        }
        Ok(Probed::Expired { put, late }) => {
            let message = format!(
                "a TTL of 1s was obeyed: put in {}, gone {} after its end",
                words(*put),
                words(*late)
            );
            let check = if *late < LATE_LIMIT {
                Row::new(NAME, Grade::Ok, message)
            } else {
                let message = format!("{message}: 4ms to 250ms are usual");
                Row::new(NAME, Grade::Warning, message)
                    .hint("look at the load of the server, and at the server-version check")
            };
            (check.value(rounded(late.as_secs_f64(), 1e5)), put, Some(late))
        }
        Ok(Probed::Changed { put, stored }) => {
            let stored = match stored.as_str() {
                "" => "without one".to_owned(),
                stored => format!("with {stored:?}"),
            };
            let message =
                format!("a TTL of 1s was not taken: the server stored the probe {stored}");
            let check = Row::new(NAME, Grade::Warning, message)
                .hint("see the max-age check: delete markers stretch TTLs where history is not 1");
            (check, put, None)
        }
        Ok(Probed::Lingered { put, late }) => {
            let message =
                format!("a TTL of 1s was not obeyed: still there {} after its end", words(*late));
            let restart = known.iter().any(|bug| bug.kind == BugKind::FlagWithoutEffect);
            let hint = match (fix(known), restart) {
                (Some(fixed), true) => {
                    format!("restart nats-server, and upgrade it to {fixed} or later")
                }
                (Some(fixed), false) => format!("upgrade nats-server to {fixed} or later"),
                (None, _) => {
                    format!("restart nats-server; if it does so again upgrade it: {WITHOUT_BUGS}")
                }
            };
            let check = Row::new(NAME, Grade::Critical, message).hint(hint);
            (check, put, Some(late))
        }
    };
    let check = check.metric(put_metric(put));
    match late {
        Some(late) => check.metric(late_metric(late)),
        None => check,
    }
}
