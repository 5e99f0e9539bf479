//! The syntax of systemd's `EnvironmentFile=`. *Pure*.
//!
//! So a file that the units read means the same to a verb that reads it itself.
//! Rules as in systemd.exec(5), `EnvironmentFile=`: `NAME=value` lines, `#` and
//! `;` comments, single and double quotes over several lines, backslashes, and
//! no expansion of anything. What systemd leaves out is left out here: lines
//! without `=` and names that no variable can have, such as `export A`. Nothing
//! runs, whatever the file says.

use std::collections::BTreeMap;

/// The variables of a file; of a name that is given twice the last value
/// counts.
pub fn parse(text: &str) -> BTreeMap<String, String> {
    let mut reader = Reader::default();
    for c in text.chars() {
        reader.take(c);
    }
    // systemd takes what an end of the file cuts off, an open quote included.
    reader.end_line();
    reader.variables
}

#[derive(Default)]
struct Reader {
    place: Place,
    name: String,
    value: String,
    /// So much of the value stays when the line ends: blanks after it do not,
    /// unless they were quoted or escaped.
    kept: usize,
    variables: BTreeMap<String, String>,
}

/// Where the next character stands.
#[derive(Default, Clone, Copy, PartialEq)]
enum Place {
    /// Before a name, at the start of a line.
    #[default]
    Start,
    Comment,
    Name,
    /// After the `=`, or after a quote was closed: quotes count here.
    BeforeValue,
    /// In plain text: quotes are characters like any other.
    Value,
    ValueEscape,
    SingleQuoted,
    DoubleQuoted,
    DoubleQuotedEscape,
}

fn is_newline(c: char) -> bool {
    matches!(c, '\n' | '\r')
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

impl Reader {
    fn take(&mut self, c: char) {
        self.place = match (self.place, c) {
            (Place::Start, '#' | ';') => Place::Comment,
            (Place::Start, c) if is_blank(c) => Place::Start,
            // A backslash does not continue a comment (systemd 254 and later).
            (Place::Comment, c) if !is_newline(c) => Place::Comment,
            (Place::Name, '=') => Place::BeforeValue,
            (Place::Start | Place::Name, c) if !is_newline(c) => {
                self.name.push(c);
                Place::Name
            }
            (Place::BeforeValue, '\'') => Place::SingleQuoted,
            (Place::BeforeValue, '"') => Place::DoubleQuoted,
            (Place::BeforeValue | Place::Value, '\\') => Place::ValueEscape,
            (Place::BeforeValue, c) if is_blank(c) && !is_newline(c) => Place::BeforeValue,
            (Place::BeforeValue | Place::Value, c) if !is_newline(c) => {
                self.value.push(c);
                if !is_blank(c) {
                    self.kept = self.value.len();
                }
                Place::Value
            }
            // The end of a line, out of whatever stands on it.
            (Place::Start | Place::Comment | Place::Name, _)
            | (Place::BeforeValue | Place::Value, _) => {
                self.end_line();
                Place::Start
            }
            (Place::ValueEscape, c) => {
                self.keep_unless(is_newline(c), c);
                Place::Value
            }
            (Place::SingleQuoted, '\'') | (Place::DoubleQuoted, '"') => Place::BeforeValue,
            (Place::DoubleQuoted, '\\') => Place::DoubleQuotedEscape,
            (place @ (Place::SingleQuoted | Place::DoubleQuoted), c) => {
                self.keep_unless(false, c);
                place
            }
            (Place::DoubleQuotedEscape, c) => {
                if !matches!(c, '"' | '\\' | '`' | '$' | '\n') {
                    self.keep_unless(false, '\\');
                }
                self.keep_unless(c == '\n', c);
                Place::DoubleQuoted
            }
        };
    }

    /// A character that was quoted or escaped, or the newline of a line that
    /// goes on.
    fn keep_unless(&mut self, continues: bool, c: char) {
        if !continues {
            self.value.push(c);
        }
        self.kept = self.value.len();
    }

    fn end_line(&mut self) {
        let name = std::mem::take(&mut self.name);
        let mut value = std::mem::take(&mut self.value);
        value.truncate(self.kept);
        self.kept = 0;
        let complete = !matches!(self.place, Place::Start | Place::Comment | Place::Name);
        let name = name.trim_end_matches(is_blank);
        if complete && is_name(name) {
            self.variables.insert(name.to_owned(), value);
        }
    }
}

/// What a variable can be called (`env_name_is_valid` in systemd).
fn is_name(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        parse(text).into_iter().collect()
    }

    fn value(text: &str) -> String {
        let all = read(&format!("A={text}"));
        assert_eq!(all.len(), 1, "{text:?}: {all:?}");
        assert_eq!(all[0].0, "A", "{text:?}");
        all[0].1.clone()
    }

    #[test]
    fn plain_values_are_taken_verbatim_without_the_blanks_around_them() {
        for (text, expected) in [
            ("", ""),
            ("b", "b"),
            ("  b  \t", "b"),
            ("b c\td", "b c\td"),
            ("--max-removals 2", "--max-removals 2"),
            ("b=c=d", "b=c=d"),
            ("b # no comment", "b # no comment"),
            ("b;c", "b;c"),
            ("$HOME ${B} $(date) `id`", "$HOME ${B} $(date) `id`"),
            ("it's \"so\"", "it's \"so\""),
            ("~/x *", "~/x *"),
            ("grün \u{1f600}", "grün \u{1f600}"),
            ("b\r", "b"),
            ("\u{a0}b", "\u{a0}b"),
        ] {
            assert_eq!(value(text), expected, "{text:?}");
            assert_eq!(value(&format!("{text}\n")), expected, "{text:?}");
        }
    }

    #[test]
    fn a_backslash_keeps_the_next_character_and_joins_lines() {
        for (text, expected) in [
            (r"a\b", "ab"),
            (r"a\\b", r"a\b"),
            (r#"\"a\""#, "\"a\""),
            (r"a\ ", "a "),
            (r"\ a", " a"),
            ("a\\\nb", "ab"),
            ("a \\\n  b", "a   b"),
            ("\\\nb", "b"),
            (r"a\", "a"),
            (r"\#a", "#a"),
        ] {
            assert_eq!(value(text), expected, "{text:?}");
        }
    }

    #[test]
    fn quotes_count_where_a_value_begins_and_may_span_lines() {
        for (text, expected) in [
            ("'b c'", "b c"),
            ("\"b c\"", "b c"),
            ("''", ""),
            ("\"\"", ""),
            ("' b '", " b "),
            ("  'b'  ", "b"),
            ("'b\nc'", "b\nc"),
            ("\"b\nc\"", "b\nc"),
            (r#"'b\n"c"'"#, r#"b\n"c""#),
            (r#""b\"c\\d\$e\`f""#, "b\"c\\d$e`f"),
            (r#""b\nc""#, r"b\nc"),
            ("\"b\\\nc\"", "bc"),
            (r#""a 'b'""#, "a 'b'"),
            (r#"'a "b"'"#, "a \"b\""),
            ("'a''b'", "ab"),
            ("'a' 'b'", "ab"),
            ("'a'b", "ab"),
            ("'a' b ", "ab"),
            ("a'b'", "a'b'"),
            ("'#a'", "#a"),
            ("'--dry-run --nonsense *'", "--dry-run --nonsense *"),
            ("'open", "open"),
            ("\"open\n B=c", "open\n B=c"),
        ] {
            assert_eq!(value(text), expected, "{text:?}");
        }
    }

    #[test]
    fn comments_and_what_is_no_assignment_are_left_out() {
        let text = "# A=1\n; A=2\n  # A=3\n\nA\nexport B=4\n1C=5\n D =6\nE-F=7\n=8\n# x \\\nG=9\n";
        let expected = [("D", "6"), ("G", "9")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(read(text), expected);
        assert_eq!(read(""), []);
        assert_eq!(read("A"), []);
        assert_eq!(read("#A=1"), []);
    }

    #[test]
    fn the_last_of_several_counts_and_line_ends_may_be_those_of_windows() {
        let text = "\u{a}A=1\r\nB='2'\r\nA=3\r\nC=\r\n";
        let expected =
            [("A", "3"), ("B", "2"), ("C", "")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(read(text), expected);
    }

    #[test]
    fn no_text_makes_it_panic_and_no_name_is_one_that_a_variable_cannot_have() {
        let alphabet = ['A', '=', '\'', '"', '\\', '\n', '\r', ' ', '#', '$', 'ü'];
        let mut text = String::new();
        let mut seed: u64 = 1;
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            text.push(alphabet[(seed >> 33) as usize % alphabet.len()]);
            if text.chars().count() > 12 {
                assert!(parse(&text).keys().all(|name| is_name(name)), "{text:?}");
                text.clear();
            }
        }
    }
}
