//! Tables for people. *Pure*.
//!
//! Anyone with write access to the bucket chooses what stands in a cell, so
//! each is made safe to print, and no cell can make every other row a megabyte
//! wide. What goes into the columns is for the verbs to say.

use std::io::{self, Write};
use std::ops::Range;

use memchr::memchr;

use super::printable::clip;

/// Longer cells are cut, with `…` at the end. The longest key of ours has 185
/// characters.
const WIDEST_CELL: usize = 200;

/// Rows under a header, one line each: columns as wide as their widest cell
/// (counted in characters), two spaces apart, no trailing white space. Cells are
/// made [`printable`](super::printable::printable) and cut when they are too long.
///
/// All cells stand in one text, so that a table of 100,000 rows takes little
/// more memory than it has characters.
pub struct Table {
    right_aligned: Vec<bool>,
    /// Cells, each with [`END`] after it.
    cells: String,
    /// Where the rows stand in it.
    rows: Vec<Range<usize>>,
    widths: Vec<usize>,
    /// Not written while there is nothing in it.
    optional: Option<usize>,
    is_optional_used: bool,
}

/// Ends a cell; sorts before everything that can stand in one.
const END: char = '\0';

impl Table {
    /// A table with a header; each column is aligned to the right or not.
    pub fn new(columns: &[(&str, bool)]) -> Table {
        let mut table = Table {
            right_aligned: columns.iter().map(|(_, right)| *right).collect(),
            cells: String::new(),
            rows: Vec::new(),
            widths: Vec::new(),
            optional: None,
            is_optional_used: false,
        };
        table.push(columns.iter().map(|(name, _)| *name));
        table
    }

    /// The same table, without this column while all of its cells are empty.
    pub fn with_optional(mut self, column: usize) -> Table {
        self.optional = Some(column);
        self
    }

    /// Adds a row; it may be shorter or longer than the header.
    pub fn push<C: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = C>) {
        let start = self.cells.len();
        for (column, cell) in cells.into_iter().enumerate() {
            let cell = cell.as_ref();
            let cell = clip(cell, WIDEST_CELL);
            let width = width(&cell);
            self.is_optional_used |= self.optional == Some(column) && width > 0;
            match self.widths.get_mut(column) {
                Some(widest) => *widest = width.max(*widest),
                None => self.widths.push(width),
            }
            self.cells.push_str(&cell);
            self.cells.push(END);
        }
        self.rows.push(start..self.cells.len());
    }

    /// How many rows there are, without the header.
    pub fn len(&self) -> usize {
        self.rows.len() - 1
    }

    /// Whether there is nothing under the header.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sorts the rows by their cells, the first column first.
    pub fn sort(&mut self) {
        // Bytes sort as characters do.
        let cells = self.cells.as_bytes();
        self.rows[1..].sort_unstable_by(|a, b| cells[a.clone()].cmp(&cells[b.clone()]));
    }

    /// Writes it, line by line.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut line = String::new();
        for row in self.rows.iter().filter(|row| !row.is_empty()) {
            line.clear();
            for (column, cell) in cells(&self.cells[row.clone()]).enumerate() {
                if self.optional == Some(column) && !self.is_optional_used {
                    continue;
                }
                if column > 0 {
                    line.push_str("  ");
                }
                let is_right = self.right_aligned.get(column).copied().unwrap_or(false);
                let padding = self.widths[column].saturating_sub(width(cell));
                let (before, after) = if is_right { (padding, 0) } else { (0, padding) };
                pad(&mut line, before);
                line.push_str(cell);
                pad(&mut line, after);
            }
            line.truncate(line.trim_end().len());
            line.push('\n');
            out.write_all(line.as_bytes())?;
        }
        Ok(())
    }
}

/// The cells of a row.
fn cells(row: &str) -> impl Iterator<Item = &str> {
    let mut rest = row;
    std::iter::from_fn(move || {
        let (cell, after) = rest.split_at(memchr(END as u8, rest.as_bytes())?);
        rest = &after[END.len_utf8()..];
        Some(cell)
    })
}

/// In characters.
fn width(cell: &str) -> usize {
    if cell.is_ascii() { cell.len() } else { cell.chars().count() }
}

fn pad(line: &mut String, width: usize) {
    const SPACES: &str = "                                ";
    for part in (0..width).step_by(SPACES.len()) {
        line.push_str(&SPACES[..SPACES.len().min(width - part)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|cell| (*cell).to_owned()).collect()
    }

    fn render(header: &[&str], rows: &[Vec<String>], right_aligned: &[bool]) -> String {
        let right = |column| right_aligned.get(column).copied().unwrap_or(false);
        let columns = header.iter().enumerate().map(|(column, name)| (*name, right(column)));
        let mut table = Table::new(&columns.collect::<Vec<_>>());
        for row in rows {
            table.push(row);
        }
        assert_eq!((table.len(), table.is_empty()), (rows.len(), rows.is_empty()));
        let mut text = Vec::new();
        table.write(&mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn rows_are_sorted_cell_by_cell_under_the_header() {
        let mut table = Table::new(&[("Z", false), ("A", false)]);
        for cells in [["a-b", "1"], ["a", "2"], ["a", "1"]] {
            table.push(cells);
        }
        table.sort();
        let mut text = Vec::new();
        table.write(&mut text).unwrap();
        assert_eq!(text, b"Z    A\na    1\na    2\na-b  1\n");
    }

    #[test]
    fn an_optional_column_is_there_only_where_something_stands_in_it() {
        for (cell, expected) in [("", "A  C\n1  3\n"), ("2", "A  B  C\n1  2  3\n")] {
            let mut table =
                Table::new(&[("A", false), ("B", false), ("C", false)]).with_optional(1);
            table.push(["1", cell, "3"]);
            let mut text = Vec::new();
            table.write(&mut text).unwrap();
            assert_eq!(String::from_utf8(text).unwrap(), expected);
        }
    }

    #[test]
    fn columns_fit_their_widest_cell() {
        let rows = [row(&["orders-api", "host-1", "9.7s"]), row(&["web", "a", "850ms"])];
        assert_eq!(
            render(&["SERVICE", "INSTANCE", "AGE"], &rows, &[false, false, true]),
            "SERVICE     INSTANCE    AGE\n\
             orders-api  host-1     9.7s\n\
             web         a         850ms\n"
        );
    }

    #[test]
    fn width_is_counted_in_characters() {
        let rows = [row(&["zürich", "x"]), row(&["rome", "y"])];
        assert_eq!(render(&["CITY", "Z"], &rows, &[]), "CITY    Z\nzürich  x\nrome    y\n");
    }

    #[test]
    fn no_line_ends_in_white_space() {
        let rows = [row(&["a", "long"]), row(&["b", ""]), row(&["", ""])];
        let text = render(&["X", "Y"], &rows, &[]);
        assert_eq!(text, "X  Y\na  long\nb\n\n");
    }

    #[test]
    fn a_header_alone_is_a_line_and_nothing_is_nothing() {
        assert_eq!(render(&["A", "B"], &[], &[]), "A  B\n");
        assert_eq!(render(&[], &[], &[]), "");
    }

    #[test]
    fn rows_may_be_shorter_or_longer_than_the_header() {
        let rows = [row(&["1"]), row(&["1", "2", "3"])];
        assert_eq!(render(&["A", "B"], &rows, &[]), "A  B\n1\n1  2  3\n");
    }

    #[test]
    fn no_escape_sequence_of_a_cell_reaches_the_terminal() {
        let rows = [row(&["\u{1b}[2J\r\n\u{7f}\u{9b}", "ok"])];
        assert_eq!(render(&[], &rows, &[]), "\\u{1b}[2J\\u{d}\\u{a}\\u{7f}\\u{9b}  ok\n");
    }

    #[test]
    fn one_huge_cell_does_not_widen_the_table_beyond_bounds() {
        let rows = [
            row(&[&"x".repeat(1_000_000), "1"]),
            row(&[&"\u{1b}".repeat(1_000_000), "2"]),
            row(&[&"y".repeat(WIDEST_CELL), "3"]),
        ];
        let text = render(&[], &rows, &[]);
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines {
            assert_eq!(line.chars().count(), WIDEST_CELL + 3);
        }
        assert!(lines[0].contains("x…  1"));
        assert!(lines[1].contains("…  2"));
        assert!(lines[2].contains("y  3"));
    }
}
