//! How an agent stands with the registry, in words and in numbers. *Pure*.
//!
//! The loop notes here what happened to it; from this come the `STATUS=` line
//! that systemd shows and the Prometheus text of `--metrics-file`. Nothing is
//! decided by it. Times of day are UTC.

use std::fmt::Write;
use std::time::Duration;

use time::OffsetDateTime;

use crate::text::duration::words;
use crate::text::printable::printable;
use crate::text::prometheus::{MetricType, family};

/// systemd takes a datagram of 4096 bytes; nobody reads a longer line anyway.
const LONGEST_LINE: usize = 1_000;

/// What an agent knows of itself.
#[derive(Debug, Clone)]
pub struct Standing {
    /// `orders-api/host-1`.
    name: String,
    /// The servers to try, as a person lists them.
    servers: String,
    /// There is an acknowledged entry, and no doubt about it.
    registered: bool,
    ack: Option<Ack>,
    outage: Option<OutOfReach>,
    /// The service's own health; `None` where nothing checks it.
    health: Option<bool>,
    /// Why it drains, while it does; the outer `None` where nothing asks it to.
    draining: Option<Option<String>>,
    /// Who else writes the entry, while somebody does.
    duplicate: Option<String>,
    /// How far this host's clock is ahead of the registry's.
    clock_offset: Option<f64>,
    sent: u64,
    failed: u64,
    outages: u64,
    conflicts: u64,
}

/// The last acknowledgement.
#[derive(Debug, Clone, Copy)]
struct Ack {
    revision: u64,
    at: OffsetDateTime,
    since_start: Duration,
    took: Duration,
}

#[derive(Debug, Clone)]
struct OutOfReach {
    since: OffsetDateTime,
    why: String,
}

impl Standing {
    /// An agent that has done nothing yet. `name` is service and instance,
    /// `servers` the list that it tries.
    pub fn new(name: impl Into<String>, servers: impl Into<String>) -> Standing {
        Standing {
            name: name.into(),
            servers: servers.into(),
            registered: false,
            ack: None,
            outage: None,
            health: None,
            draining: None,
            duplicate: None,
            clock_offset: None,
            sent: 0,
            failed: 0,
            outages: 0,
            conflicts: 0,
        }
    }

    /// Whether the entry is in the registry, as far as anybody can tell.
    pub fn is_registered(&self) -> bool {
        self.registered
    }

    /// Whether there is more to say than that it has begun.
    pub fn is_settled(&self) -> bool {
        self.ack.is_some() || self.outage.is_some()
    }

    /// The service's own health; `None` where nothing checks it.
    pub fn health(&self) -> Option<bool> {
        self.health
    }

    /// Other servers are tried from now on.
    pub fn set_servers(&mut self, servers: impl Into<String>) {
        self.servers = servers.into();
    }

    /// A heartbeat goes out.
    pub fn sent(&mut self) {
        self.sent += 1;
    }

    /// It was acknowledged after `took`, at the monotonic time `since_start`.
    pub fn acknowledged(
        &mut self,
        revision: u64,
        at: OffsetDateTime,
        since_start: Duration,
        took: Duration,
    ) {
        self.registered = true;
        self.outage = None;
        self.ack = Some(Ack { revision, at, since_start, took });
    }

    /// It was refused, or nothing was heard of it.
    pub fn failed(&mut self) {
        self.failed += 1;
    }

    /// It was refused because something else stands there.
    pub fn conflict(&mut self) {
        self.conflicts += 1;
    }

    /// The registry is out of reach or refuses, for the reason `why`.
    pub fn lost(&mut self, why: &str, now: OffsetDateTime) {
        self.registered = false;
        let why = printable(why);
        match &mut self.outage {
            Some(outage) => outage.why = why,
            None => {
                self.outages += 1;
                self.outage = Some(OutOfReach { since: now, why });
            }
        }
    }

    /// The entry was taken out, or is left to expire.
    pub fn stopped(&mut self) {
        self.registered = false;
    }

    /// What the service's own check says; `None` where there is none (any more).
    pub fn set_health(&mut self, healthy: Option<bool>) {
        self.health = healthy;
    }

    /// Why it drains, if it does; the outer `None` where no file is named that
    /// asks it to.
    pub fn set_draining(&mut self, why: Option<Option<String>>) {
        self.draining = why;
    }

    /// `draining: kernel upgrade`, while it does.
    fn drain_words(&self) -> Option<String> {
        let why = self.draining.as_ref()?.as_ref()?;
        Some(if why.is_empty() { "draining".to_owned() } else { format!("draining: {why}") })
    }

    /// Who else writes the entry: `another agent (host h, pid 1)`.
    pub fn set_duplicate(&mut self, duplicate: Option<String>) {
        self.duplicate = duplicate;
    }

    /// How far this host's clock is ahead of the registry's, in seconds.
    pub fn set_clock_offset(&mut self, seconds: f64) {
        self.clock_offset = Some(seconds);
    }

    /// One line for people: what stands, or what it waits for.
    pub fn line(&self) -> String {
        let mut line = match (&self.outage, &self.ack) {
            (Some(outage), _) => format!(
                "no registry since {}: {}; trying {}",
                time_of_day(outage.since),
                outage.why,
                self.servers
            ),
            (None, Some(ack)) => format!(
                "registered {}{}, revision {}, last ack {}, {}",
                self.name,
                match (self.drain_words(), self.health) {
                    (Some(words), _) => format!(" as STANDBY ({words})"),
                    (None, Some(false)) => " as UNHEALTHY".to_owned(),
                    (None, _) => String::new(),
                },
                ack.revision,
                time_of_day(ack.at),
                words(ack.took)
            ),
            (None, None) => format!("registering {}; trying {}", self.name, self.servers),
        };
        if let Some(duplicate) = &self.duplicate {
            let _ = write!(line, "; {duplicate} writes this entry too (duplicate agent)");
        }
        cut(line, LONGEST_LINE)
    }

    /// The line once a stop was asked for.
    pub fn stopping_line(&self) -> String {
        cut(format!("deregistering {}", self.name), LONGEST_LINE)
    }

    /// The text of `--metrics-file`, at the monotonic time `now` since the
    /// start: Prometheus' text format, version 0.0.4.
    pub fn metrics(&self, now: Duration, labels: &Labels<'_>) -> String {
        let labels = labels.to_string();
        let mut text = String::new();
        let mut sample = |name: &str, kind: MetricType, help: &str, value: String| {
            family(&mut text, &format!("aegis_agent_{name}"), kind, help, [(&labels, value)]);
        };
        let flag = |yes: bool| u8::from(yes).to_string();
        sample(
            "registered",
            MetricType::Gauge,
            "Whether the entry is in the registry.",
            flag(self.registered),
        );
        sample(
            "heartbeats_sent_total",
            MetricType::Counter,
            "Heartbeats sent, registrations included.",
            self.sent.to_string(),
        );
        sample(
            "heartbeats_failed_total",
            MetricType::Counter,
            "Heartbeats and registrations that were not acknowledged.",
            self.failed.to_string(),
        );
        sample(
            "outages_total",
            MetricType::Counter,
            "Times that the registry was out of reach or refused.",
            self.outages.to_string(),
        );
        sample(
            "conflicts_total",
            MetricType::Counter,
            "Heartbeats refused because somebody else had written the entry.",
            self.conflicts.to_string(),
        );
        if let Some(ack) = self.ack {
            let ago = now.saturating_sub(ack.since_start);
            sample(
                "last_ack_age_seconds",
                MetricType::Gauge,
                "Time since the last acknowledgement, when this was written.",
                format!("{:.3}", ago.as_secs_f64()),
            );
            sample(
                "last_ack_timestamp_seconds",
                MetricType::Gauge,
                "When the last acknowledgement came, in seconds since 1970 by this host's clock.",
                format!("{:.3}", ack.at.unix_timestamp_nanos() as f64 / 1e9),
            );
            sample(
                "ack_seconds",
                MetricType::Gauge,
                "Time that the last acknowledgement took.",
                format!("{:.6}", ack.took.as_secs_f64()),
            );
        }
        if let Some(healthy) = self.health {
            sample(
                "healthy",
                MetricType::Gauge,
                "Whether the service passes its health check.",
                flag(healthy),
            );
        }
        if let Some(draining) = &self.draining {
            sample(
                "draining",
                MetricType::Gauge,
                "Whether the drain file is there.",
                flag(draining.is_some()),
            );
        }
        if let Some(offset) = self.clock_offset {
            sample(
                "clock_offset_seconds",
                MetricType::Gauge,
                "How far this host's clock is ahead of the registry's.",
                format!("{offset:.3}"),
            );
        }
        let version = env!("CARGO_PKG_VERSION");
        family(
            &mut text,
            "aegis_agent_build_info",
            MetricType::Gauge,
            "The agent's version.",
            [(format!("{labels},version=\"{version}\""), 1)],
        );
        text
    }
}

/// Whose numbers they are. No allowed name contains a character that needs
/// escaping.
#[derive(Debug, Clone, Copy)]
pub struct Labels<'a> {
    /// The service.
    pub service: &'a str,
    /// The instance.
    pub instance: &'a str,
    /// The bucket.
    pub bucket: &'a str,
}

impl std::fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Labels { service, instance, bucket } = self;
        write!(f, "service=\"{service}\",instance_id=\"{instance}\",bucket=\"{bucket}\"")
    }
}

fn time_of_day(at: OffsetDateTime) -> String {
    let (hour, minute, second) = at.to_hms();
    format!("{hour:02}:{minute:02}:{second:02}Z")
}

/// The text, or as much of it as fits.
fn cut(mut text: String, longest: usize) -> String {
    if text.len() > longest {
        let end = (0..=longest).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVERS: &str = "a.example:4222, b.example:4222";
    const LABELS: Labels<'_> = Labels { service: "orders-api", instance: "host-1", bucket: "b" };

    fn at(hour: u8, minute: u8, second: u8) -> OffsetDateTime {
        let time = time::Time::from_hms(hour, minute, second).unwrap();
        OffsetDateTime::UNIX_EPOCH.replace_time(time)
    }

    fn standing() -> Standing {
        Standing::new("orders-api/host-1", SERVERS)
    }

    #[test]
    fn draining_is_said_with_its_reason() {
        let mut standing = standing();
        standing.acknowledged(7, at(14, 2, 11), Duration::ZERO, Duration::from_millis(2));
        standing.set_health(Some(false));
        let labels = LABELS;
        assert!(!standing.metrics(Duration::ZERO, &labels).contains("draining"));
        for (why, words, value) in [
            (Some("kernel upgrade"), " as STANDBY (draining: kernel upgrade), revision 7", "1"),
            (Some(""), " as STANDBY (draining), revision 7", "1"),
            (None, " as UNHEALTHY, revision 7", "0"),
        ] {
            standing.set_draining(Some(why.map(str::to_owned)));
            assert!(standing.line().contains(words), "{}", standing.line());
            let metric = format!("aegis_agent_draining{{{labels}}} {value}\n");
            assert!(standing.metrics(Duration::ZERO, &labels).contains(&metric));
        }
        // A reload may name no file any more.
        standing.set_draining(None);
        assert!(!standing.metrics(Duration::ZERO, &labels).contains("draining"));
        let stamp = format!("aegis_agent_last_ack_timestamp_seconds{{{labels}}} 50531.000\n");
        let text = standing.metrics(Duration::ZERO, &labels);
        assert!(text.contains(&stamp), "{text}");
    }

    #[test]
    fn each_state_has_its_line() {
        let mut standing = standing();
        assert_eq!(
            standing.line(),
            "registering orders-api/host-1; trying a.example:4222, b.example:4222"
        );
        standing.lost("connection refused", at(14, 2, 11));
        standing.lost("connection refused", at(14, 2, 12));
        let lost = "no registry since 14:02:11Z: connection refused; trying a.example:4222, b.example:4222";
        assert_eq!(standing.line(), lost);
        assert!(!standing.is_registered());
        let took = Duration::from_micros(400);
        standing.acknowledged(812, at(14, 2, 13), Duration::from_secs(2), took);
        assert!(standing.is_registered());
        assert_eq!(
            standing.line(),
            "registered orders-api/host-1, revision 812, last ack 14:02:13Z, 400us"
        );
        standing.set_health(Some(false));
        assert!(standing.line().starts_with("registered orders-api/host-1 as UNHEALTHY, rev"));
        standing.set_health(None);
        assert!(standing.line().starts_with("registered orders-api/host-1, rev"));
    }

    #[test]
    fn a_duplicate_stands_in_every_line_while_there_is_one() {
        let mut standing = standing();
        let too = "; another agent (host h, pid 1) writes this entry too (duplicate agent)";
        standing.acknowledged(8, at(1, 0, 0), Duration::ZERO, Duration::ZERO);
        standing.set_duplicate(Some("another agent (host h, pid 1)".into()));
        assert!(standing.line().ends_with(&format!(", 0s{too}")), "{}", standing.line());
        standing.lost("connection refused", at(1, 0, 1));
        assert!(standing.line().ends_with(too), "{}", standing.line());
        standing.set_duplicate(None);
        assert!(!standing.line().contains("another"), "{}", standing.line());
    }

    #[test]
    fn a_line_stays_one_short_line() {
        let mut standing = standing();
        standing.lost(&format!("a\nREADY=1\n{}", "ü".repeat(4_000)), at(0, 0, 0));
        let line = standing.line();
        assert!(line.len() <= LONGEST_LINE + 3 && line.ends_with("..."));
        assert!(!line.contains('\n'));
    }

    #[test]
    fn an_outage_is_counted_once_and_a_second_one_again() {
        let mut standing = standing();
        for _ in 0..2 {
            standing.lost("x", at(1, 0, 0));
            standing.lost("y", at(1, 0, 1));
            standing.acknowledged(1, at(1, 0, 2), Duration::ZERO, Duration::ZERO);
        }
        let text = standing.metrics(Duration::ZERO, &LABELS);
        assert!(text.contains("\naegis_agent_outages_total{"), "{text}");
        assert!(
            text.lines().any(|l| l.starts_with("aegis_agent_outages_total") && l.ends_with(" 2"))
        );
    }

    #[test]
    fn the_metrics_are_these() {
        let mut standing = standing();
        standing.sent();
        standing.acknowledged(7, at(1, 0, 0), Duration::from_secs(3), Duration::from_micros(1_500));
        standing.set_health(Some(true));
        standing.set_clock_offset(-0.25);
        let text = standing.metrics(Duration::from_secs(8), &LABELS);
        let samples: Vec<String> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| {
                line.replace("service=\"orders-api\",instance_id=\"host-1\",bucket=\"b\"", "-")
            })
            .collect();
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            samples,
            [
                "aegis_agent_registered{-} 1",
                "aegis_agent_heartbeats_sent_total{-} 1",
                "aegis_agent_heartbeats_failed_total{-} 0",
                "aegis_agent_outages_total{-} 0",
                "aegis_agent_conflicts_total{-} 0",
                "aegis_agent_last_ack_age_seconds{-} 5.000",
                "aegis_agent_last_ack_timestamp_seconds{-} 3600.000",
                "aegis_agent_ack_seconds{-} 0.001500",
                "aegis_agent_healthy{-} 1",
                "aegis_agent_clock_offset_seconds{-} -0.250",
                &format!("aegis_agent_build_info{{-,version=\"{version}\"}} 1"),
            ]
        );
        // Each sample with its two lines of description.
        assert_eq!(text.lines().count(), 3 * samples.len());
    }
}
