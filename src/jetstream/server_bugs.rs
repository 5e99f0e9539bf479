//! Server versions with known TTL bugs: the symptom, what helps, and the first
//! version without it. Each was tried on real servers (docs/nats.md). *Pure*.
//!
//! Left out on purpose: nats-server #8505 (a crash brings replaced values
//! back) is open in every version. A warning that no upgrade can end would
//! only teach operators to ignore warnings; `run` and `cleanup` are built
//! around it instead.

use crate::jetstream::fitness::ServerVersion;

/// One bug of some versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bug {
    /// Which one it is.
    pub kind: BugKind,
    /// What an operator sees of it.
    pub symptom: &'static str,
    /// The first version without it, on the same line of releases.
    pub fixed_in: &'static str,
    /// Issue or pull request of nats-io/nats-server.
    pub source: &'static str,
}

/// The bugs that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BugKind {
    /// Expiry waits for a pause between messages.
    Starved,
    /// After a crash nothing expires any more.
    ForgottenByCrash,
    /// The flag, switched on in a bucket that exists, waits for a restart.
    FlagWithoutEffect,
    /// A batched direct get hangs the stream.
    BatchHangs,
    /// The timer wheel leaks in buckets with history.
    WheelLeaks,
}

type Numbers = (u32, u32, u32);

/// From the first affected version to the last, both included.
const RANGES: [(BugKind, Numbers, Numbers, &str, &str); 8] = [
    (BugKind::Starved, (2, 11, 0), (2, 11, 9), "2.11.10", "#7344"),
    (BugKind::Starved, (2, 12, 0), (2, 12, 0), "2.12.1", "#7344"),
    (BugKind::ForgottenByCrash, (2, 11, 0), (2, 11, 1), "2.11.2", "#6758, #6685"),
    (BugKind::FlagWithoutEffect, (2, 11, 2), (2, 11, 4), "2.11.5", "#6920"),
    (BugKind::BatchHangs, (2, 12, 0), (2, 12, 1), "2.12.2", "#7458"),
    (BugKind::WheelLeaks, (2, 11, 10), (2, 11, u32::MAX), "2.15.1", "#8594"),
    (BugKind::WheelLeaks, (2, 12, 0), (2, 14, u32::MAX), "2.15.1", "#8594"),
    (BugKind::WheelLeaks, (2, 15, 0), (2, 15, 0), "2.15.1", "#8594"),
];

impl BugKind {
    fn symptom(self) -> &'static str {
        match self {
            BugKind::Starved => {
                "nothing expires while entries with a TTL arrive less than 250ms apart \
                 (about 41 instances at 10s)"
            }
            BugKind::ForgottenByCrash => {
                "after a crash TTLs never fire again and purges are undone, and per-message TTL \
                 cannot be switched on in a bucket that exists"
            }
            BugKind::FlagWithoutEffect => {
                "per-message TTL that was switched on in a bucket that exists has no effect until \
                 the server is restarted"
            }
            BugKind::BatchHangs => "a direct get of several keys during a write hangs the bucket",
            BugKind::WheelLeaks => {
                "with history above 1 each roll-up or purge of an entry with a TTL leaks memory"
            }
        }
    }
}

/// The bugs of a version that a bucket with this history can meet. A
/// pre-release has the bugs of the release that it comes before.
pub fn known_bugs(version: ServerVersion, history: i64) -> Vec<Bug> {
    // 2.11.10-RC.1 may lack what 2.11.10 mends: it counts as the one before,
    // and 2.12.0-RC.1 as the first of its line.
    let mut numbers = version.numbers;
    if !version.released && numbers.2 > 0 {
        numbers.2 -= 1;
    }
    let mut bugs = Vec::new();
    for (kind, first, last, fixed_in, source) in RANGES {
        let met = kind != BugKind::WheelLeaks || history != 1;
        if met && (first..=last).contains(&numbers) {
            bugs.push(Bug { kind, symptom: kind.symptom(), fixed_in, source });
        }
    }
    bugs
}

/// The first version without any of these bugs.
pub fn fix(bugs: &[Bug]) -> Option<&'static str> {
    bugs.iter().map(|bug| bug.fixed_in).max_by_key(|fixed| ServerVersion::parse(fixed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jetstream::fitness;

    fn kinds(version: &str, history: i64) -> Vec<BugKind> {
        let version = ServerVersion::parse(version).unwrap();
        known_bugs(version, history).iter().map(|bug| bug.kind).collect()
    }

    #[test]
    fn the_version_that_hints_name_has_none() {
        let named = fitness::WITHOUT_BUGS.split(' ').next().unwrap();
        assert_eq!(kinds(named, 10), []);
    }

    #[test]
    fn each_version_has_the_bugs_that_are_known_of_it() {
        use BugKind::{BatchHangs, FlagWithoutEffect, ForgottenByCrash, Starved};
        for (version, expected) in [
            ("2.11.0", &[Starved, ForgottenByCrash][..]),
            ("2.11.1", &[Starved, ForgottenByCrash]),
            ("2.11.2", &[Starved, FlagWithoutEffect]),
            ("2.11.4", &[Starved, FlagWithoutEffect]),
            ("2.11.5", &[Starved]),
            ("2.11.9", &[Starved]),
            ("2.11.10", &[]),
            ("2.11.11", &[]),
            ("2.12.0", &[Starved, BatchHangs]),
            ("2.12.1", &[BatchHangs]),
            ("2.12.2", &[]),
            ("2.12.8", &[]),
            ("2.14.6", &[]),
            ("2.15.1", &[]),
        ] {
            assert_eq!(kinds(version, 1), expected, "{version}");
        }
    }

    #[test]
    fn the_leaking_wheel_is_met_only_with_history() {
        for version in ["2.11.10", "2.12.8", "2.13.0", "2.14.6", "2.15.0"] {
            assert!(kinds(version, 10).contains(&BugKind::WheelLeaks), "{version}");
            assert!(kinds(version, -1).contains(&BugKind::WheelLeaks), "{version}");
            assert!(!kinds(version, 1).contains(&BugKind::WheelLeaks), "{version}");
        }
        assert_eq!(kinds("2.15.1", 10), []);
        assert_eq!(kinds("2.11.9", 10), [BugKind::Starved]);
    }

    #[test]
    fn a_release_candidate_still_has_the_bug_that_its_release_mends() {
        assert_eq!(kinds("2.11.10-RC.2", 1), [BugKind::Starved]);
        assert_eq!(kinds("2.12.0-RC.1", 1), [BugKind::Starved, BugKind::BatchHangs]);
        assert_eq!(kinds("2.12.2-RC.1", 1), [BugKind::BatchHangs]);
    }

    #[test]
    fn a_fix_comes_after_the_versions_that_it_fixes() {
        for (_, _, last, fixed_in, _) in RANGES {
            let fixed = ServerVersion::parse(fixed_in).unwrap();
            assert!(fixed.numbers > last, "{fixed_in}");
        }
    }
}
