//! The rooms of `src/`, and which of them may use which: arrows run one way, so
//! that each can be read without those above it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom up: a room uses only those that stand before it. `main.rs`
/// uses what it likes.
const ROOMS: [(&str, &[&str]); 11] = [
    ("error", &["error"]),
    ("files", &["files"]),
    ("text", &["text"]),
    ("nats", &["nats"]),
    ("jetstream", &["jetstream"]),
    ("instance", &["instance"]),
    ("health", &["health"]),
    ("system", &["system"]),
    ("cli", &["cli"]),
    ("registry", &["registry"]),
    ("commands", &["commands"]),
];

/// What uses what: from, to, and the files in which it does.
type Arrows = BTreeMap<(String, String), BTreeSet<String>>;

#[test]
fn rooms_use_only_those_below_them() {
    let arrows = arrows_between(|path| room(path.first()?).map(str::to_owned));
    let height = |room: &str| ROOMS.iter().position(|(name, _)| *name == room);
    for ((from, to), files) in &arrows {
        assert!(height(to) < height(from), "{from} uses {to} above it: {files:?}");
        let back = arrows.get(&(to.clone(), from.clone()));
        assert!(back.is_none(), "{from} and {to} use each other: {files:?} and {back:?}");
    }
    // What is not found here is not guarded.
    for (from, to) in [("commands", "registry"), ("registry", "nats"), ("nats", "error")] {
        let arrow = (from.to_owned(), to.to_owned());
        assert!(arrows.contains_key(&arrow), "{from} uses {to}, which was not seen");
    }
}

#[test]
fn every_file_is_in_a_room() {
    for (path, _) in modules() {
        assert!(room(&path[0]).is_some(), "{} is in no room", path.join("::"));
    }
}

#[test]
fn no_verb_uses_another() {
    let modules = modules();
    let in_file = |path: &[String]| modules.iter().any(|(module, _)| module == path);
    let arrows = arrows_between(|path| match path {
        [room, verb, ..] if room == "commands" && in_file(&path[..2]) => Some(verb.clone()),
        _ => None,
    });
    assert!(arrows.is_empty(), "{arrows:?}");
}

#[test]
fn paths_are_found_in_every_spelling() {
    let found = |text: &str| {
        let base = ["commands", "check", "judge"].map(str::to_owned);
        let paths = paths(text, &base);
        paths.iter().map(|path| path.join("::")).collect::<Vec<_>>()
    };
    assert_eq!(found("use crate::a::b;"), ["a::b"]);
    assert_eq!(found("let x = crate::a::B::c(1);"), ["a::B::c"]);
    assert_eq!(found("use crate::{a::{b, c as d}, e};"), ["a::b", "a::c", "e"]);
    assert_eq!(found("use crate::a::{\n    self, b,\n};"), ["a::self", "a::b"]);
    assert_eq!(
        found("use super::{facts, super::init::x};"),
        ["commands::check::facts", "commands::init::x"]
    );
    assert_eq!(found("use super::super::super::registry;"), ["registry"]);
    assert_eq!(found("// crate::a\n/// [`crate::b`]\nlet mycrate::c = 1;"), [""; 0]);
}

fn room(module: &str) -> Option<&'static str> {
    ROOMS.iter().find(|(_, modules)| modules.contains(&module)).map(|(name, _)| *name)
}

/// The arrows between parts of the program; `part` tells the part of a path.
fn arrows_between(part: impl Fn(&[String]) -> Option<String>) -> Arrows {
    let mut arrows = Arrows::new();
    for (module, text) in modules() {
        let Some(from) = part(&module) else { continue };
        let to = paths(&text, &module).into_iter().filter_map(|path| part(&path));
        for to in to.filter(|to| *to != from) {
            arrows.entry((from.clone(), to)).or_default().insert(module.join("/"));
        }
    }
    arrows
}

/// All modules that have a file, as paths from the crate's root, with text.
fn modules() -> Vec<(Vec<String>, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut modules = Vec::new();
    for file in files(&root) {
        let path = file.strip_prefix(&root).expect("it is in src").with_extension("");
        let path: Vec<String> =
            path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if !matches!(path.as_slice(), [only] if only == "main" || only == "lib") {
            modules.push((path, fs::read_to_string(&file).expect("a source can be read")));
        }
    }
    assert!(modules.len() > 50, "only {} modules found", modules.len());
    modules
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("src can be listed");
    let entries = entries.map(|entry| entry.expect("src can be listed").path());
    let each = entries.map(|path| if path.is_dir() { files(&path) } else { vec![path] });
    each.flatten().collect()
}

/// The paths in a module's text that begin with `crate` or `super`, from the
/// crate's root. In an inline module (tests) `super` counts one too many, and
/// then names no file.
fn paths(text: &str, module: &[String]) -> Vec<Vec<String>> {
    let code: String =
        text.lines().flat_map(|line| [line.split("//").next(), Some("\n")]).flatten().collect();
    let mut found = Vec::new();
    let mut rest = code.as_str();
    let mut before = ' ';
    while let Some(next) = rest.chars().next() {
        let begins = !before.is_alphanumeric() && !matches!(before, '_' | ':');
        if begins && (rest.starts_with("crate::") || rest.starts_with("super::")) {
            let end = take_paths(rest, module.to_vec(), &mut found);
            before = ':';
            rest = &rest[end..];
            continue;
        }
        before = next;
        rest = &rest[next.len_utf8()..];
    }
    found
}

/// Reads one path, or a group of them, that continues `base`; returns how much
/// of the text that was.
fn take_paths(text: &str, mut base: Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    let mut at = 0;
    loop {
        at += text[at..].len() - text[at..].trim_start().len();
        if text[at..].starts_with('{') {
            at += 1;
            while !text[at..].trim_start().starts_with('}') && at < text.len() {
                at += take_paths(&text[at..], base.clone(), found);
                let rest = &text[at..];
                // An alias and the comma.
                at += rest
                    .find([',', '}'])
                    .map_or(rest.len(), |end| end + usize::from(rest[end..].starts_with(',')));
            }
            at += text[at..].find('}').map_or(0, |end| end + 1);
            return at;
        }
        let name: String =
            text[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        at += name.len();
        match name.as_str() {
            "crate" => base.clear(),
            "super" => drop(base.pop()),
            _ => base.push(name),
        }
        match text[at..].strip_prefix("::") {
            Some(_) => at += 2,
            None => {
                found.push(base);
                return at;
            }
        }
    }
}
