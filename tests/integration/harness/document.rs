//! The tables of the documents, so that a test can hold them against the program.

use std::path::Path;

/// The rows of the table of `docs/NAME` whose first column has this heading, cell by
/// cell.
pub fn table(name: &str, heading: &str) -> Vec<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    let text = std::fs::read_to_string(path).expect("the document is there");
    let begins = format!("| {heading} |");
    let rows: Vec<_> = text
        .lines()
        .skip_while(|line| !line.starts_with(&begins))
        .skip(2)
        .map_while(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .map(|row| row.split(" | ").map(str::to_owned).collect())
        .collect();
    assert!(!rows.is_empty(), "no table {heading} in {name}");
    rows
}

/// What stands in back-quotes in a cell, first to last.
pub fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}
