//! Durations as people, environment files and `Nats-TTL` headers write them.
//!
//! Decides what `10s`, `1m30s`, `500ms` and a bare number of seconds mean, and
//! how a duration is shown, in every output: without a space, as one types it. A
//! setting is exact ([`as_setting`]), a measure as fine as people want it
//! ([`words`]). Which durations make sense for a setting (whole seconds, 1 s to
//! 1 day) is for the setting to say. *Pure*.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use super::digits;

/// Go counts nanoseconds in an `i64`, and so does the server with a TTL:
/// 292 years. Nothing longer is read here, so sums of a few cannot overflow.
const LONGEST_NANOS: u128 = i64::MAX as u128;

const NANOS_PER_SEC: u64 = 1_000_000_000;

/// The text is no duration to work with; `Display` says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParseError {
    /// It is not written like one.
    NotADuration,
    /// More than 292 years.
    TooLong,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ParseError::NotADuration => {
                "not a duration (write 10s, 500ms, 1m30s or a number of seconds)"
            }
            ParseError::TooLong => "too long (at most 292 years)",
        })
    }
}

impl Error for ParseError {}

/// Reads a Go duration (`1h2m3.5s`, `100ms`) or a bare decimal number of
/// seconds (`10`, `0.5`); no sign, no white space, at most 292 years.
pub fn parse(text: &str) -> Result<Duration, ParseError> {
    match Number::split_from(text) {
        Some((number, "")) => from_nanos(number.times(NANOS_PER_SEC)),
        _ => parse_go(text),
    }
}

/// Reads a Go duration without a sign: numbers, each with a unit of `h`, `m`,
/// `s`, `ms`, `us`, `µs` or `ns`, as Go's `time.ParseDuration` does.
pub fn parse_go(text: &str) -> Result<Duration, ParseError> {
    let mut rest = text;
    let mut nanos: u128 = 0;
    loop {
        let (number, after) = Number::split_from(rest).ok_or(ParseError::NotADuration)?;
        let unit_end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let unit_nanos = match unit {
            "h" => 3600 * NANOS_PER_SEC,
            "m" => 60 * NANOS_PER_SEC,
            "s" => NANOS_PER_SEC,
            "ms" => 1_000_000,
            // Go takes both the micro sign and the Greek letter.
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ns" => 1,
            _ => return Err(ParseError::NotADuration),
        };
        nanos = nanos.saturating_add(number.times(unit_nanos));
        if next.is_empty() {
            return from_nanos(nanos);
        }
        rest = next;
    }
}

/// A measured duration for people, never longer than it is: `310us`, `4.2ms`,
/// `850ms`, `9.7s`, `30s`, `2m05s`, `3h12m`, `41d`.
pub fn words(d: Duration) -> String {
    let (secs, micros) = (d.as_secs(), u64::from(d.subsec_micros()));
    match secs {
        0 if d.is_zero() => "0s".to_owned(),
        0 if micros < 1_000 => spelled(&[(micros, "us")], 1),
        0 if micros < 10_000 => spelled(&[(micros / 1_000, "."), (micros / 100 % 10, "ms")], 1),
        0 => spelled(&[(micros / 1_000, "ms")], 1),
        1..60 if d.subsec_nanos() == 0 => spelled(&[(secs, "s")], 1),
        1..60 => spelled(&[(secs, "."), (micros / 100_000, "s")], 1),
        60..3600 => spelled(&[(secs / 60, "m"), (secs % 60, "s")], 2),
        3600..172_800 => spelled(&[(secs / 3600, "h"), (secs / 60 % 60, "m")], 2),
        _ => spelled(&[(secs / 86_400, "d")], 1),
    }
}

/// Numbers with what stands after each, the ones after the first with `width`
/// digits at least.
fn spelled(parts: &[(u64, &str)], width: usize) -> String {
    let mut text = String::with_capacity(8);
    for (place, (number, after)) in parts.iter().enumerate() {
        digits::push(&mut text, *number, if place == 0 { 1 } else { width });
        text.push_str(after);
    }
    text
}

/// A difference with its sign, in [`words`], to the nearest tenth of a second
/// where it has any: `-1m00s`, `+5.2s`.
pub fn signed_words(difference: time::Duration) -> String {
    const TENTH: u128 = 100;
    let sign = if difference.is_negative() { '-' } else { '+' };
    let exact = difference.unsigned_abs();
    let tenths = (exact.as_millis() + TENTH / 2) / TENTH;
    let rounded = u64::try_from(tenths * TENTH).map_or(exact, Duration::from_millis);
    format!("{sign}{}", words(if rounded < Duration::from_secs(1) { exact } else { rounded }))
}

/// A duration as one would type it, exact to the nanosecond: `30s`, `500ms`,
/// `1m30s`; [`parse`] and the server read it back.
pub fn as_setting(d: Duration) -> String {
    let nanos = d.subsec_nanos();
    let (hours, minutes, seconds) = (d.as_secs() / 3600, d.as_secs() / 60 % 60, d.as_secs() % 60);
    if d.as_secs() == 0 {
        return match nanos {
            0 => "0s".to_owned(),
            _ if nanos.is_multiple_of(1_000_000) => format!("{}ms", nanos / 1_000_000),
            _ if nanos.is_multiple_of(1_000) => format!("{}us", nanos / 1_000),
            _ => format!("{nanos}ns"),
        };
    }
    let mut text = String::new();
    if hours > 0 {
        text.push_str(&format!("{hours}h"));
    }
    if minutes > 0 {
        text.push_str(&format!("{minutes}m"));
    }
    if nanos > 0 {
        let fraction = format!("{nanos:09}");
        text.push_str(&format!("{seconds}.{}s", fraction.trim_end_matches('0')));
    } else if seconds > 0 {
        text.push_str(&format!("{seconds}s"));
    }
    text
}

fn from_nanos(nanos: u128) -> Result<Duration, ParseError> {
    if nanos > LONGEST_NANOS {
        return Err(ParseError::TooLong);
    }
    u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| ParseError::TooLong)
}

/// A decimal number without a sign: `whole + fraction / scale`.
struct Number {
    whole: u64,
    fraction: u64,
    scale: u64,
}

impl Number {
    /// The number at the start of `text`, and what follows it. As in Go one of
    /// the two sides of the point may be empty.
    fn split_from(text: &str) -> Option<(Number, &str)> {
        let (whole, rest) = split_digits(text);
        let (fraction, rest) = match rest.strip_prefix('.') {
            Some(after_point) => split_digits(after_point),
            None => ("", rest),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        // 18 digits fit a u64 and are finer than a nanosecond of an hour.
        let fraction = fraction.get(..18).unwrap_or(fraction);
        let mut number = Number { whole: 0, fraction: 0, scale: 1 };
        if !whole.is_empty() {
            // Only digits: what does not fit is too long, whatever its unit.
            number.whole = whole.parse().unwrap_or(u64::MAX);
        }
        for digit in fraction.bytes() {
            number.fraction = number.fraction * 10 + u64::from(digit - b'0');
            number.scale *= 10;
        }
        Some((number, rest))
    }

    fn times(&self, unit: u64) -> u128 {
        let unit = u128::from(unit);
        u128::from(self.whole) * unit + u128::from(self.fraction) * unit / u128::from(self.scale)
    }
}

fn split_digits(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_and_bare_seconds_are_read() {
        for (text, nanos) in [
            ("10s", 10_000_000_000),
            ("10", 10_000_000_000),
            ("0", 0),
            ("0s", 0),
            ("0.5", 500_000_000),
            (".5", 500_000_000),
            ("5.", 5_000_000_000),
            ("007", 7_000_000_000),
            ("500ms", 500_000_000),
            ("1m", 60_000_000_000),
            ("1m30s", 90_000_000_000),
            ("1h2m3.5s", 3_723_500_000_000),
            ("1s1s", 2_000_000_000),
            ("30s1m", 90_000_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("1us", 1_000),
            ("1\u{b5}s", 1_000),
            ("1\u{3bc}s", 1_000),
            ("10ns", 10),
            ("0.3ns", 0),
            ("1.5h", 5_400_000_000_000),
            ("0.0000000000000000000000001h", 0),
            ("0.10000000000000000000000001h", 360_000_000_000),
            ("9223372036.854775807s", 9_223_372_036_854_775_807),
            ("9223372036.854775807", 9_223_372_036_854_775_807),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused_with_the_rule() {
        for text in [
            "", ".", ".s", "s", "-1", "-1s", "+1s", "+1", " 1s", "1s ", "1 s", "1\ns", "1m30",
            "1d", "10S", "1e3", "1e3s", "inf", "NaN", "infinity", "0x10", "1_000", "1,5s", "1..5s",
            "1.5.5", "never", "\u{661}s",
        ] {
            assert_eq!(parse(text), Err(ParseError::NotADuration), "{text:?}");
        }
        assert_eq!(
            ParseError::NotADuration.to_string(),
            "not a duration (write 10s, 500ms, 1m30s or a number of seconds)"
        );
    }

    #[test]
    fn what_is_too_long_is_told_from_what_is_no_duration() {
        for text in [
            "9223372036.854775808",
            "100000000000",
            "2562048h",
            "2562047h3000m",
            "18446744073709551615",
            "18446744073709551616",
            "18446744073709551616ns",
            "18446744073709551615h18446744073709551615h",
            "99999999999999999999999999999999999999999999h",
        ] {
            assert_eq!(parse(text), Err(ParseError::TooLong), "{text:?}");
        }
        assert_eq!(parse("99999999999999999999x"), Err(ParseError::NotADuration));
        assert_eq!(ParseError::TooLong.to_string(), "too long (at most 292 years)");
    }

    #[test]
    fn a_million_terms_neither_overflow_nor_panic() {
        assert_eq!(parse(&"2562047h".repeat(1_000_000)), Err(ParseError::TooLong));
    }

    #[test]
    fn a_go_duration_needs_its_unit() {
        assert_eq!(parse_go("10"), Err(ParseError::NotADuration));
        assert_eq!(parse_go("1.5"), Err(ParseError::NotADuration));
        assert_eq!(parse_go("10s"), Ok(Duration::from_secs(10)));
    }

    #[test]
    fn words_fit_the_size_of_the_duration() {
        for (duration, expected) in [
            (Duration::ZERO, "0s"),
            (Duration::from_nanos(1), "0us"),
            (Duration::from_micros(999), "999us"),
            (Duration::from_micros(4_290), "4.2ms"),
            (Duration::from_micros(10_900), "10ms"),
            (Duration::from_millis(850), "850ms"),
            (Duration::from_micros(999_999), "999ms"),
            (Duration::from_secs(1), "1s"),
            (Duration::from_millis(9_700), "9.7s"),
            (Duration::from_millis(9_799), "9.7s"),
            (Duration::from_millis(30_001), "30.0s"),
            (Duration::from_secs(30), "30s"),
            (Duration::from_millis(59_999), "59.9s"),
            (Duration::from_secs(60), "1m00s"),
            (Duration::from_secs(125), "2m05s"),
            (Duration::from_secs(3_599), "59m59s"),
            (Duration::from_secs(3_600), "1h00m"),
            (Duration::from_secs(11_520), "3h12m"),
            (Duration::from_secs(172_799), "47h59m"),
            (Duration::from_secs(172_800), "2d"),
            (Duration::from_secs(41 * 86_400 + 86_399), "41d"),
            (Duration::MAX, "213503982334601d"),
        ] {
            assert_eq!(words(duration), expected, "{duration:?}");
        }
    }

    #[test]
    fn a_difference_has_its_sign() {
        for (millis, expected) in
            [(-59_997, "-1m00s"), (5_240, "+5.2s"), (999, "+1s"), (-42, "-42ms")]
        {
            assert_eq!(signed_words(time::Duration::milliseconds(millis)), expected);
        }
    }

    #[test]
    fn a_setting_reads_back_as_the_same_duration() {
        for (nanos, expected) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1500ns"),
            (2_000, "2us"),
            (1_500_000, "1500us"),
            (500_000_000, "500ms"),
            (1_500_000_000, "1.5s"),
            (30_000_000_000, "30s"),
            (60_000_000_000, "1m"),
            (60_000_000_001, "1m0.000000001s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h"),
            (3_605_000_000_000, "1h5s"),
            (86_400_000_000_000, "24h"),
            (i64::MAX as u64, "2562047h47m16.854775807s"),
        ] {
            let duration = Duration::from_nanos(nanos);
            let text = as_setting(duration);
            assert_eq!(text, expected);
            assert_eq!(parse(&text), Ok(duration), "{text}");
        }
        assert!(!as_setting(Duration::MAX).is_empty());
    }
}
