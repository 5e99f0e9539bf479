//! The map of the house in docs/internals.md: every room, and every file with
//! the first sentence of its own description.
//!
//! `AEGIS_WRITE_DOCUMENTS=1 cargo test --test integration documents::map` writes
//! the table of files anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::{read, repository};

const MAP: &str = "docs/internals.md";
const HEAD: &str = "| file | |\n|---|---|\n";

#[test]
fn every_room_is_on_the_map() {
    let map = read(MAP);
    let rooms = read("src/lib.rs");
    let rooms: Vec<&str> = rooms.lines().filter_map(|line| line.strip_prefix("pub mod ")).collect();
    assert!(rooms.len() > 9, "{rooms:?}");
    for room in rooms.iter().map(|room| room.trim_end_matches(';')) {
        let row = map.lines().any(|line| {
            line.starts_with(&format!("| `{room}` ")) || line.starts_with(&format!("| `{room}/` "))
        });
        assert!(row, "{room} is not on the map in {MAP}");
    }
}

#[test]
fn every_file_is_on_the_map_in_its_own_words() {
    let mut files = BTreeMap::new();
    collect(&repository().join("src"), &mut files);
    assert!(files.len() > 99, "{} files", files.len());
    let rows: String = files
        .iter()
        .map(|(path, (words, pure))| format!("| `{path}`{pure} | {words} |\n"))
        .collect();
    let map = read(MAP);
    let (before, rest) = map.split_once(HEAD).expect("the table of files");
    let end = rest.find("\n\n").map_or(rest.len(), |end| end + 1);
    if rest[..end] == rows {
        return;
    }
    if std::env::var_os("AEGIS_WRITE_DOCUMENTS").is_some() {
        let text = format!("{before}{HEAD}{rows}{}", &rest[end..]);
        fs::write(repository().join(MAP), text).expect("writes the document");
        return;
    }
    let shown: Vec<&str> = rest[..end].lines().collect();
    let wrong: Vec<&str> = rows.lines().filter(|row| !shown.contains(row)).collect();
    panic!("AEGIS_WRITE_DOCUMENTS=1 puts the table of files in {MAP} right: {wrong:#?}");
}

/// Each file with the first sentence of its description, and a star where it is
/// pure; unit tests are not on the map.
fn collect(folder: &Path, files: &mut BTreeMap<String, (String, &'static str)>) {
    for entry in fs::read_dir(folder).expect("src can be listed").flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "tests" || name == "tests.rs" {
            continue;
        }
        if path.is_dir() {
            collect(&path, files);
            continue;
        }
        let place = path.strip_prefix(repository().join("src")).expect("it is in src");
        let text = fs::read_to_string(&path).expect("a source can be read");
        let lines = text.lines().map_while(|line| line.strip_prefix("//!"));
        let description: Vec<&str> = lines.map(str::trim).collect();
        let pure = if description.join(" ").contains("*Pure*") { "\\*" } else { "" };
        let first: Vec<&str> =
            description.into_iter().take_while(|line| !line.is_empty()).collect();
        let words = sentence(&first.join(" "));
        assert!(words.len() > 9, "{} does not say what it is", place.display());
        files.insert(place.display().to_string(), (words, pure));
    }
}

/// The first sentence.
fn sentence(text: &str) -> String {
    let ends = [". ", "? ", ": *Pure*"].iter().filter_map(|end| text.find(end));
    let end = ends.min().unwrap_or(text.len());
    let question = if text[end..].starts_with('?') { "?" } else { "" };
    format!("{}{question}", text[..end].trim_end_matches('.'))
}
