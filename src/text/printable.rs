//! Text of others made safe to print. *Pure*.
//!
//! Anyone with write access to the bucket, and any server, chooses what this
//! program shows: nothing of it reaches a terminal as a control sequence, and
//! none of it is longer than its place.

use std::borrow::Cow;

/// The text with control characters, line separators and marks that reorder
/// text (U+202E and its kind) written as `\u{1b}`.
pub fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) {
            safe.extend(c.escape_unicode());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// The text [`printable`] and of at most `width` characters, with `…` at the
/// end if some of it is missing.
pub fn clipped(text: &str, width: usize) -> String {
    clip(text, width).into_owned()
}

pub(super) fn clip(text: &str, width: usize) -> Cow<'_, str> {
    // Most are short and plain.
    if text.len() <= width && text.bytes().all(|b| (b' '..0x7f).contains(&b)) {
        return Cow::Borrowed(text);
    }
    // Cut before escaping too: a hostile text can be as large as a message.
    let head: String = text.chars().take(width.saturating_add(1)).collect();
    let safe = printable(&head);
    if safe.chars().count() <= width {
        return Cow::Owned(safe);
    }
    Cow::Owned(safe.chars().take(width.saturating_sub(1)).chain(std::iter::once('…')).collect())
}

/// JSON that was written, with the same characters as `\u001b`: they stand in
/// strings only, and a terminal may show the answer as it is.
pub fn printable_json(json: &str) -> String {
    // Most is plain.
    if json.bytes().all(|b| (b' '..0x7f).contains(&b)) {
        return json.to_owned();
    }
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        if is_unsafe(c) && c != '\n' {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                safe.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            safe.push(c);
        }
    }
    safe
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_that_reorder_text_are_written_out() {
        for c in [
            '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}', '\u{2066}', '\u{2067}',
            '\u{2068}', '\u{2069}', '\u{200e}', '\u{200f}', '\u{61c}', '\u{2028}', '\u{2029}',
        ] {
            let expected = format!("a\\u{{{:x}}}b", u32::from(c));
            assert_eq!(printable(&format!("a{c}b")), expected);
        }
    }

    #[test]
    fn json_says_the_same_without_them() {
        let text = "a\u{85}b\u{9b}31m\u{202e}\u{2028}\u{7f}é漢";
        let json = printable_json(&format!("{}\n", serde_json::json!({ "k": text })));
        assert!(json.contains("a\\u0085b\\u009b31m\\u202e\\u2028\\u007fé漢\"}\n"), "{json}");
        let read: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(read["k"], text);
    }

    #[test]
    fn ordinary_text_is_left_alone() {
        for text in ["", "orders-api", "naïve \u{1f980} 漢字", "back\\slash \"q\""] {
            assert_eq!(printable(text), text);
        }
    }
}
