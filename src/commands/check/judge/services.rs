//! The verdict on `--service`: whether enough instances are alive. *Pure*.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::super::census::Census;
use super::super::facts::Gap;
use super::super::row::{Grade, Metric, Row, Unit};
use crate::cli::options::Wanted;
use crate::text::printable::printable;

pub(super) fn services(census: &Result<Census, Gap>, wanted: &[Wanted]) -> Row {
    const NAME: &str = "services";
    let census = match census {
        Ok(census) => census,
        Err(gap) => return Row::of_gap(NAME, Grade::Unknown, gap),
    };
    let nobody = BTreeMap::new();
    let found = wanted.iter().map(|wanted| {
        let alive = census.alive.get(wanted.service.as_str()).unwrap_or(&nobody);
        One { wanted, alive, count: alive.values().sum() }
    });
    let mut found: Vec<One<'_>> = found.collect();
    // The worst is read first, and its hint is the one that is shown.
    let of = |grade: Grade| {
        [Grade::Critical, Grade::Warning].iter().position(|one| *one == grade).unwrap_or(2)
    };
    found.sort_by_key(|one| of(one.grade()));
    let grade = Grade::worst(found.iter().map(One::grade));
    let words: Vec<String> = found.iter().map(One::words).collect();
    let mut row = Row::new(NAME, grade, words.join("; "));
    if let Some(first) = found.first().filter(|first| first.grade() != Grade::Ok) {
        row = row.hint(format!("aegis-agent list --all {}", first.wanted.service.as_str()));
    }
    if let [only] = &found[..] {
        row = row.value(only.count);
    }
    found.iter().fold(row, |row, one| row.metric(one.metric()))
}

/// One service: what is wanted, and what was found.
struct One<'a> {
    wanted: &'a Wanted,
    alive: &'a BTreeMap<String, u64>,
    count: u64,
}

impl One<'_> {
    fn grade(&self) -> Grade {
        match self.count {
            count if count < self.wanted.min => Grade::Critical,
            count if count < self.wanted.warn => Grade::Warning,
            _ => Grade::Ok,
        }
    }

    /// `orders-api: 2 alive (1 ACTIVE, 1 UNHEALTHY), wanted 3`
    fn words(&self) -> String {
        let mut words = format!("{}: {} alive", self.wanted.service.as_str(), self.count);
        let statuses: Vec<String> =
            self.alive.iter().map(|(status, count)| format!("{count} {status}")).collect();
        if !statuses.is_empty() {
            words.push_str(&printable(&format!(" ({})", statuses.join(", "))));
        }
        match self.grade() {
            Grade::Critical => words.push_str(&format!(", wanted at least {}", self.wanted.min)),
            Grade::Warning => words.push_str(&format!(", wanted {}", self.wanted.warn)),
            _ => {}
        }
        words
    }

    fn metric(&self) -> Metric {
        let at_least = |count| if count == 0 { String::new() } else { format!("{count}:") };
        Metric {
            name: Cow::Owned(format!("instances-{}", self.wanted.service.as_str())),
            help: "Instances that are alive",
            unit: Unit::Count,
            value: self.count as f64,
            warn: at_least(self.wanted.warn),
            critical: at_least(self.wanted.min),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(service: &str, min: u64, warn: u64) -> Wanted {
        Wanted { service: service.parse().unwrap(), min, warn }
    }

    fn census() -> Census {
        let of = |counts: &[(&str, u64)]| {
            counts.iter().map(|(status, count)| ((*status).to_owned(), *count)).collect()
        };
        let alive = [
            ("api".to_owned(), of(&[("ACTIVE", 2), ("UNHEALTHY", 1)])),
            ("web".to_owned(), of(&[])),
        ];
        Census { alive: alive.into(), ..Census::default() }
    }

    #[test]
    fn fewer_than_wanted_are_a_warning_or_critical() {
        use Grade::{Critical, Ok as Well, Warning};
        let all = "api: 3 alive (2 ACTIVE, 1 UNHEALTHY)";
        for (wanted, grade, words) in [
            (&[wanted("api", 1, 1)][..], Well, all.to_owned()),
            (&[wanted("api", 3, 3)], Well, all.to_owned()),
            (&[wanted("api", 2, 4)], Warning, format!("{all}, wanted 4")),
            (&[wanted("api", 4, 9)], Critical, format!("{all}, wanted at least 4")),
            (&[wanted("web", 0, 0)], Well, "web: 0 alive".to_owned()),
            (&[wanted("web", 0, 1)], Warning, "web: 0 alive, wanted 1".to_owned()),
            (&[wanted("gone", 1, 1)], Critical, "gone: 0 alive, wanted at least 1".to_owned()),
            (
                &[wanted("api", 1, 1), wanted("web", 1, 1)],
                Critical,
                format!("web: 0 alive, wanted at least 1; {all}"),
            ),
        ] {
            let row = services(&Ok(census()), wanted);
            assert_eq!((row.status, row.message.as_str()), (grade, words.as_str()));
            assert_eq!(row.hint.is_some(), grade != Well);
            assert_eq!(row.metrics.len(), wanted.len());
        }
    }
}
