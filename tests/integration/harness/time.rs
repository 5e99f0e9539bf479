//! RFC 3339 times, read and written without the program's own code.

use time::{Date, Duration, Month, OffsetDateTime, Time};

pub fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

/// Reads `2026-11-23T09:37:31.979155+00:00`, with any fraction, `Z` or an offset.
pub fn parse(text: &str) -> OffsetDateTime {
    try_parse(text).unwrap_or_else(|| panic!("not an RFC 3339 time: {text:?}"))
}

fn try_parse(text: &str) -> Option<OffsetDateTime> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<u16>().ok();
    let month = Month::try_from(number(5..7)? as u8).ok()?;
    let date = Date::from_calendar_date(number(0..4)?.into(), month, number(8..10)? as u8).ok()?;
    let zone = text.rfind(['Z', '+', '-']).filter(|&at| at >= 19)?;
    let fraction = format!("{:0<9}", text.get(19..zone)?.trim_start_matches('.'));
    let time = Time::from_hms_nano(
        number(11..13)? as u8,
        number(14..16)? as u8,
        number(17..19)? as u8,
        fraction.parse().ok()?,
    )
    .ok()?;
    let offset = match text.get(zone..)? {
        "Z" => 0,
        offset => {
            let minutes = offset.get(1..3)?.parse::<i64>().ok()? * 60
                + offset.get(4..6)?.parse::<i64>().ok()?;
            if offset.starts_with('-') { -minutes } else { minutes }
        }
    };
    Some(date.with_time(time).assume_utc() - Duration::minutes(offset))
}

/// Writes it as the program does: UTC, six fraction digits, `+00:00`.
pub fn rfc3339(at: OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
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
