//! Times as records and servers write them: RFC 3339 and its common
//! variations. *Pure*.
//!
//! Strict in what is written, lenient in what is read: other writers of the
//! registry use other libraries.

use time::{Date, Month, OffsetDateTime, SignedDuration, Time, UtcOffset};

use super::digits;

/// A time for people: UTC, to the second, with its zone: `2026-11-23T09:37:31Z`.
pub fn format_time_to_second(t: OffsetDateTime) -> String {
    let text = format_time(t);
    format!("{}Z", text.split('.').next().unwrap_or(&text))
}

/// A time as records carry it: UTC, six fraction digits (the rest is cut
/// off), `+00:00`.
pub fn format_time(t: OffsetDateTime) -> String {
    // The one case without an answer is a local time at the very end of the
    // calendar whose UTC is beyond it.
    let t = t.checked_to_offset(UtcOffset::UTC).unwrap_or_else(|| t.replace_offset(UtcOffset::UTC));
    let mut text = String::with_capacity(32);
    if t.year() < 0 {
        text.push('-');
    }
    digits::push(&mut text, t.year().unsigned_abs().into(), if t.year() < 0 { 3 } else { 4 });
    for (before, number) in [
        ('-', u8::from(t.month())),
        ('-', t.day()),
        ('T', t.hour()),
        (':', t.minute()),
        (':', t.second()),
    ] {
        text.push(before);
        digits::push(&mut text, number.into(), 2);
    }
    text.push('.');
    digits::push(&mut text, t.microsecond().into(), 6);
    text + "+00:00"
}

/// Reads `2026-11-23T09:37:31`, `T` or a space in the middle, any number of
/// fraction digits or none (those past nanoseconds are cut off), then `Z`,
/// `+05:30`, `+0530`, `+05` or nothing, which means UTC. The result is in UTC.
pub fn parse_time(text: &str) -> Option<OffsetDateTime> {
    let mut rest = text.as_bytes();
    let (century, year) = (take_two_digits(&mut rest)?, take_two_digits(&mut rest)?);
    let year = i32::from(century) * 100 + i32::from(year);
    take_byte(&mut rest, b"-")?;
    let month = take_two_digits(&mut rest)?;
    take_byte(&mut rest, b"-")?;
    let day = take_two_digits(&mut rest)?;
    take_byte(&mut rest, b"Tt ")?;
    let hour = take_two_digits(&mut rest)?;
    take_byte(&mut rest, b":")?;
    let minute = take_two_digits(&mut rest)?;
    take_byte(&mut rest, b":")?;
    let second = take_two_digits(&mut rest)?;
    let nanosecond = match take_byte(&mut rest, b".") {
        Some(_) => take_fraction(&mut rest)?,
        None => 0,
    };
    let offset_secs = take_offset(&mut rest)?;
    if !rest.is_empty() {
        return None;
    }
    let date = Date::from_calendar_date(year, Month::try_from(month).ok()?, day).ok()?;
    let time = Time::from_hms_nano(hour, minute, second, nanosecond).ok()?;
    let at = OffsetDateTime::new_utc(date, time);
    if offset_secs == 0 {
        return Some(at);
    }
    at.checked_sub(SignedDuration::seconds(offset_secs))
}

fn take_byte(rest: &mut &[u8], one_of: &[u8]) -> Option<u8> {
    let (first, after) = rest.split_first()?;
    if !one_of.contains(first) {
        return None;
    }
    *rest = after;
    Some(*first)
}

fn take_digit(rest: &mut &[u8]) -> Option<u8> {
    let (first, after) = rest.split_first()?;
    let digit = first.wrapping_sub(b'0');
    if digit > 9 {
        return None;
    }
    *rest = after;
    Some(digit)
}

fn take_two_digits(rest: &mut &[u8]) -> Option<u8> {
    Some(take_digit(rest)? * 10 + take_digit(rest)?)
}

/// At least one digit, as nanoseconds.
fn take_fraction(rest: &mut &[u8]) -> Option<u32> {
    let mut weight = 100_000_000;
    let mut nanosecond = weight * u32::from(take_digit(rest)?);
    while let Some(digit) = take_digit(rest) {
        weight /= 10;
        nanosecond += weight * u32::from(digit);
    }
    Some(nanosecond)
}

/// What follows the seconds, as seconds east of UTC.
fn take_offset(rest: &mut &[u8]) -> Option<i64> {
    if rest.is_empty() || take_byte(rest, b"Zz").is_some() {
        return Some(0);
    }
    let sign = if take_byte(rest, b"+-")? == b'-' { -1 } else { 1 };
    let hours = take_two_digits(rest)?;
    let minutes = if rest.is_empty() {
        0
    } else {
        let _colon = take_byte(rest, b":");
        take_two_digits(rest)?
    };
    let is_real = hours < 24 && minutes < 60;
    is_real.then(|| sign * (i64::from(hours) * 3600 + i64::from(minutes) * 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> OffsetDateTime {
        parse_time(text).unwrap()
    }

    #[test]
    fn times_are_read_in_every_common_spelling() {
        let expected = at("2026-11-23T09:37:31+00:00");
        for text in [
            "2026-11-23T09:37:31",
            "2026-11-23T09:37:31Z",
            "2026-11-23t09:37:31z",
            "2026-11-23 09:37:31",
            "2026-11-23 09:37:31Z",
            "2026-11-23T09:37:31.0Z",
            "2026-11-23T09:37:31.00000000000000000000Z",
            "2026-11-23T15:07:31+05:30",
            "2026-11-23T15:07:31+0530",
            "2026-11-23T14:37:31+05",
            "2026-11-23T01:37:31-08:00",
            "2026-11-24T09:36:31.0+23:59",
            "2026-11-22T23:37:31-10",
            "2026-11-23T09:37:31-00:00",
        ] {
            assert_eq!(parse_time(text), Some(expected), "{text}");
        }
        assert_eq!(expected.unix_timestamp(), 1_795_426_651);
        for (text, nanosecond) in [
            ("2026-11-23T09:37:31.5Z", 500_000_000),
            ("2026-11-23T09:37:31.979155+00:00", 979_155_000),
            ("2026-11-23 09:37:31.979155123", 979_155_123),
            ("2026-11-23T09:37:31.9791551239999999Z", 979_155_123),
            ("2026-11-23T09:37:31.000000001+02:00", 1),
        ] {
            assert_eq!(at(text).nanosecond(), nanosecond, "{text}");
        }
        assert_eq!(at("2024-02-29T00:00:00Z").day(), 29);
        assert_eq!(at("0001-01-01T00:00:00Z").year(), 1);
        assert_eq!(at("9999-12-31T23:59:59.999999999Z").year(), 9999);
    }

    #[test]
    fn what_is_no_time_is_not_read() {
        for text in [
            "",
            "soon",
            "1795426651",
            "2026-11-23",
            "2026-11-23T",
            "2026-11-23T09:37",
            "2026-11-23T09:37:31.",
            "2026-11-23T09:37:31.Z",
            "2026-11-23T09:37:31,5Z",
            "2026-11-23T09:37:31 Z",
            "2026-11-23T09:37:31ZZ",
            "2026-11-23T09:37:31+",
            "2026-11-23T09:37:31+5",
            "2026-11-23T09:37:31+05:",
            "2026-11-23T09:37:31+05:3",
            "2026-11-23T09:37:31+05:30:00",
            "2026-11-23T09:37:31+24:00",
            "2026-11-23T09:37:31+05:60",
            "2026-11-23T09:37:31+00:00 ",
            " 2026-11-23T09:37:31Z",
            "2026-11-23_09:37:31Z",
            "2026-13-23T09:37:31Z",
            "2026-00-23T09:37:31Z",
            "2026-02-29T09:37:31Z",
            "2026-11-31T09:37:31Z",
            "2026-11-23T24:00:00Z",
            "2026-11-23T09:60:00Z",
            "2026-11-23T09:37:60Z",
            "26-11-23T09:37:31Z",
            "+2026-11-23T09:37:31Z",
            "-2026-11-23T09:37:31Z",
            "12026-11-23T09:37:31Z",
            "9999-12-31T23:59:59-01:00",
            "\u{661}026-11-23T09:37:31Z",
            "2026-11-23T09:37:3\u{e9}",
        ] {
            assert_eq!(parse_time(text), None, "{text:?}");
        }
    }

    #[test]
    fn times_are_written_in_utc_with_six_digits() {
        for (text, expected) in [
            ("2026-11-23T09:37:31Z", "2026-11-23T09:37:31.000000+00:00"),
            ("2026-11-23T09:37:31.9999999Z", "2026-11-23T09:37:31.999999+00:00"),
            ("2026-01-01T00:00:00+05:30", "2025-12-31T18:30:00.000000+00:00"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000+00:00"),
        ] {
            assert_eq!(format_time(at(text)), expected);
        }
        let east = UtcOffset::from_hms(5, 30, 0).unwrap();
        assert_eq!(
            format_time(at("2026-11-23T09:37:31Z").to_offset(east)),
            "2026-11-23T09:37:31.000000+00:00"
        );
    }

    #[test]
    fn the_ends_of_the_calendar_are_written_without_panic() {
        for date_time in [time::PlainDateTime::MIN, time::PlainDateTime::MAX] {
            for hours in [-25, 0, 25] {
                let offset = UtcOffset::from_hms(hours, 0, 0).unwrap();
                assert!(format_time(date_time.assume_offset(offset)).ends_with("+00:00"));
            }
        }
    }
}
