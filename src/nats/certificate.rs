//! When a certificate ends: as much of X.509 as that takes (RFC 5280, section
//! 4.1). *Pure*. Whether it is good is for the TLS library to say.

use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time};

const SEQUENCE: u8 = 0x30;
const EXPLICIT_VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// `notAfter` of a certificate in DER; `None` for what is none.
pub fn not_after(der: &[u8]) -> Option<OffsetDateTime> {
    let (certificate, _) = expect(SEQUENCE, der)?;
    let (mut body, _) = expect(SEQUENCE, certificate)?;
    if body.first() == Some(&EXPLICIT_VERSION) {
        body = element(body)?.2;
    }
    // Serial number, signature algorithm, issuer.
    for _ in 0..3 {
        body = element(body)?.2;
    }
    let (validity, _) = expect(SEQUENCE, body)?;
    let (_, _, end) = element(validity)?;
    let (tag, text, _) = element(end)?;
    read_time(tag, std::str::from_utf8(text).ok()?)
}

fn expect(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = element(der)?;
    (found == tag).then_some((content, rest))
}

/// Tag, content and what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first & 0x7f);
    if first & 0x80 != 0 {
        let count = length;
        if !(1..=4).contains(&count) {
            return None;
        }
        let (bytes, after) = rest.split_at_checked(count)?;
        length = bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        rest = after;
    }
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDHHMMSSZ`, or the same with four digits of the year.
fn read_time(tag: u8, text: &str) -> Option<OffsetDateTime> {
    let digits = text.strip_suffix('Z')?;
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = digits.split_at_checked(2)?;
            let year: i32 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = digits.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    if rest.len() != 10 || !rest.is_ascii() {
        return None;
    }
    let two = |at: usize| rest[at..at + 2].parse::<u8>().ok();
    let date = Date::from_calendar_date(year, Month::try_from(two(0)?).ok()?, two(2)?).ok()?;
    let time = Time::from_hms(two(4)?, two(6)?, two(8)?).ok()?;
    Some(PrimitiveDateTime::new(date, time).assume_utc())
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    use super::*;

    fn read(tag: u8, text: &str) -> Option<i64> {
        read_time(tag, text).map(OffsetDateTime::unix_timestamp)
    }

    #[test]
    fn both_kinds_of_times_are_read() {
        assert_eq!(read(UTC_TIME, "260203040506Z"), Some(1_770_091_506));
        assert_eq!(read(UTC_TIME, "500101000000Z"), Some(-631_152_000));
        assert_eq!(read(GENERALIZED_TIME, "20991231235959Z"), Some(4_102_444_799));
        for bad in ["", "Z", "2602030405Z", "261303040506Z", "26020304050éZ", "260203040506"] {
            assert_eq!(read(UTC_TIME, bad), None, "{bad}");
        }
    }

    #[test]
    fn a_certificate_says_when_it_ends_and_junk_does_not() {
        let pem = include_bytes!("../../tests/certificates/client-expired.pem");
        let der = CertificateDer::from_pem_slice(pem).expect("a certificate");
        // 2021-01-01, as openssl reads it.
        assert_eq!(not_after(&der).map(OffsetDateTime::unix_timestamp), Some(1_609_459_200));
        for cut in 0..der.len() {
            let _ = not_after(&der[..cut]);
        }
        assert_eq!(not_after(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
