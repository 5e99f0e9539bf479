//! README.md and docs/: what they show is what the program says today.
//!
//! A block of output is fenced as `console`, and the line before it names its
//! scene: `<!-- scene: NAME -->`. The scene starts real servers and fills
//! buckets; then the commands of the block are run, and what they print is
//! compared with the block. Times, ages, ports and process ids may differ,
//! nothing else may.
//!
//! `AEGIS_WRITE_DOCUMENTS=1 cargo test --test integration documents::` writes
//! the blocks that have changed.

mod map;
mod scenes;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::agent::aegis;

/// README.md and all of docs/, by their paths from the root of the repository.
fn documents() -> Vec<String> {
    let mut names = vec!["README.md".to_owned()];
    let folder = repository().join("docs");
    for entry in fs::read_dir(folder).expect("docs/ is there").flatten() {
        names.push(format!("docs/{}", entry.file_name().to_string_lossy()));
    }
    names.sort();
    assert!(names.len() > 9 && names.iter().all(|name| name.ends_with(".md")), "{names:?}");
    names
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(repository().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// One fenced block: its language, the scene that the line before it names, and
/// the lines between the fences.
struct Block {
    language: String,
    scene: Option<String>,
    first_line: usize,
    text: String,
}

/// The blocks of a document, and its other lines with their numbers.
fn split(text: &str) -> (Vec<Block>, Vec<(usize, String)>) {
    let (mut blocks, mut prose): (Vec<Block>, Vec<(usize, String)>) = Default::default();
    let mut open: Option<Block> = None;
    for (at, line) in text.lines().enumerate() {
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (Some(_), Some("")) => blocks.extend(open.take()),
            (Some(block), _) => block.text += &format!("{line}\n"),
            (None, Some(language)) => {
                let before = prose.last().map(|(_, line)| line.as_str()).unwrap_or_default();
                let scene = before.strip_prefix("<!-- scene: ").map(|rest| {
                    rest.strip_suffix(" -->").expect("the comment ends on its line").to_owned()
                });
                let (language, text) = (language.to_owned(), String::new());
                open = Some(Block { language, scene, first_line: at + 2, text });
            }
            (None, None) => prose.push((at + 1, line.to_owned())),
        }
    }
    assert!(open.is_none(), "a block without an end");
    (blocks, prose)
}

/// The text without what differs from run to run.
fn normal(text: &str) -> String {
    // The offset of two clocks of one machine has either sign.
    let text = text.replace(" behind the registry", " ahead of the registry");
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut words: Vec<String> = Vec::new();
        for word in line.split_whitespace() {
            // Of Prometheus' text and of JSON.
            let sample = ["}", "econds\":", "\"value\":"];
            let sample = words.last().is_some_and(|w| sample.iter().any(|end| w.ends_with(end)));
            if is_measured(word) || sample && word.contains('.') && is_number(word) {
                words.push("N".to_owned());
            } else {
                words.push(without_moments(word));
            }
        }
        lines.push(words.join(" "));
    }
    lines.join("\n")
}

fn is_number(word: &str) -> bool {
    word.trim_start_matches(['+', '-', '(']).trim_end_matches(',').parse::<f64>().is_ok()
}

/// Whether this is a duration as a machine happens to measure it: `205ms`, `29.9s`,
/// `1m02s`. `30s` is a setting.
fn is_measured(word: &str) -> bool {
    let word = word.trim_end_matches([',', ';', ')']);
    let number = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    match &word[number.len()..] {
        "us" | "ms" => is_number(number),
        "s" => match number.split_once('m') {
            Some((m, s)) => is_number(m) && s.len() == 2 && is_number(s),
            None => (number == "0" || number.contains('.')) && is_number(number),
        },
        _ => false,
    }
}

/// A word without its times of day and dates.
fn without_moments(word: &str) -> String {
    let is_time = |text: &str| {
        text.len() == 8
            && text.bytes().enumerate().all(|(i, b)| match i {
                2 | 5 => b == b':',
                _ => b.is_ascii_digit(),
            })
    };
    let chars: Vec<char> = word.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    while at < chars.len() {
        let ahead: String = chars[at..chars.len().min(at + 8)].iter().collect();
        if is_time(&ahead) {
            out.push('T');
            at += 8;
            // A fraction belongs to it.
            if chars.get(at) == Some(&'.') {
                at += 1;
                while chars.get(at).is_some_and(char::is_ascii_digit) {
                    at += 1;
                }
            }
            continue;
        }
        out.push(chars[at]);
        at += 1;
    }
    // 2026-11-25TT: the day before the time.
    while let Some(place) = out.find("TT").filter(|&place| place >= 10) {
        out.replace_range(place - 10..place + 2, "D");
    }
    out
}

/// Plays the blocks of one document; complains about all that differ, or, if
/// asked to, puts in what the program says.
fn play(name: &str) {
    let write = std::env::var_os("AEGIS_WRITE_DOCUMENTS").is_some();
    let text = read(name);
    let mut lines: Vec<&str> = text.lines().collect();
    let mut fresh = Vec::new();
    let mut wrong = String::new();
    // From the last to the first, so that the numbers of lines stay right.
    for block in split(&text).0.into_iter().rev().filter(|block| block.language == "console") {
        let scene = block.scene.unwrap_or_default();
        let said = scenes::play(&scene, &block.text);
        let (shown, now) = (normal(&block.text), normal(&said));
        if shown != now {
            let differs = shown.lines().zip(now.lines()).find(|(shown, now)| shown != now);
            wrong += &format!(
                "--- {name}:{}, scene {scene}: the program says\n{said}--- first difference: {differs:#?}\n",
                block.first_line
            );
            fresh.push((block.first_line - 1, block.text.lines().count(), said));
        }
    }
    for (first, count, said) in &fresh {
        lines.splice(first..&(first + count), said.lines());
    }
    if write && !fresh.is_empty() {
        let path = repository().join(name);
        fs::write(path, lines.join("\n") + "\n").expect("writes the document");
    }
    assert!(
        write || wrong.is_empty(),
        "AEGIS_WRITE_DOCUMENTS=1 cargo test --test integration documents:: puts it right, if the \
         program is right:\n{wrong}"
    );
}

#[test]
fn the_readme_shows_what_the_program_says() {
    play("README.md");
}

#[test]
fn troubleshooting_shows_what_the_program_says() {
    play("docs/troubleshooting.md");
}

#[test]
fn the_other_documents_show_what_the_program_says() {
    for name in documents() {
        if !["README.md", "docs/troubleshooting.md"].contains(&name.as_str()) {
            play(&name);
        }
    }
}

#[test]
fn every_block_with_output_has_a_scene_and_every_scene_a_block() {
    let mut seen = BTreeSet::new();
    for name in documents() {
        for block in split(&read(&name)).0 {
            let place = format!("{name}:{}", block.first_line);
            let shows_output = block.text.lines().any(|line| line.starts_with("$ "))
                || block.text.contains("aegis-agent: ");
            assert_eq!(block.language == "console", shows_output, "{place}");
            assert_eq!(block.scene.is_some(), shows_output, "{place}");
            let known = ["console", "sh", "ini", "json", "toml", "yaml", "text", ""];
            assert!(known.contains(&block.language.as_str()), "{place}: {}", block.language);
            seen.extend(block.scene);
        }
    }
    let scenes: BTreeSet<String> = scenes::NAMES.into_iter().map(str::to_owned).collect();
    assert_eq!(seen, scenes);
}

/// Words after `aegis-agent` that begin with two dashes, in blocks and in
/// `code`, with the verb before them.
fn calls(text: &str) -> Vec<(Option<&str>, &str)> {
    let mut found = Vec::new();
    let ends = |c: char| "`|;)\"'".contains(c);
    for line in text.lines() {
        for call in line.split("aegis-agent ").skip(1) {
            let call = call.split(ends).next().unwrap_or_default();
            let words: Vec<&str> = call.split_whitespace().collect();
            if !words.first().is_some_and(|word| VERBS.contains(word) || word.starts_with("--")) {
                continue;
            }
            let verb = words.iter().copied().find(|word| VERBS.contains(word));
            let options = words.iter().filter(|word| word.starts_with("--") && word.len() > 2);
            found.extend(
                options
                    .map(|option| (verb, option.split(['=', ',', '.']).next().unwrap_or(option))),
            );
        }
    }
    found
}

const VERBS: [&str; 6] = ["run", "init", "check", "cleanup", "list", "watch"];

#[test]
fn every_option_in_a_call_is_one_that_the_verb_takes() {
    let help = |verb: Option<&str>| {
        let words: Vec<&str> = verb.into_iter().chain(["--help"]).collect();
        aegis(&words).run().exits(0).stdout
    };
    let global = help(None);
    let mut count = 0;
    for name in documents() {
        for (verb, option) in calls(&read(&name)) {
            let takes = format!("{global}{}", help(verb));
            let known = takes.split([' ', '\n', ',']).any(|word| word == option);
            assert!(known, "{name}: {option} is no option of {verb:?}");
            count += 1;
        }
    }
    assert!(count > 10, "{count}");
}

#[test]
fn every_link_leads_to_a_file_and_a_heading_of_it() {
    let anchor = |heading: &str| -> String {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    let mut count = 0;
    let more = ["CONTRIBUTING.md", "SECURITY.md"].map(str::to_owned);
    for name in documents().into_iter().chain(more) {
        let text = read(&name);
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().expect("a part")) {
            count += 1;
            if link.starts_with("https://") {
                continue;
            }
            let (file, part) = link.split_once('#').unwrap_or((link, ""));
            let folder = Path::new(&name).parent().expect("a folder");
            let target = match file {
                "" => repository().join(&name),
                file => repository().join(folder).join(file),
            };
            assert!(target.exists(), "{name}: {link}");
            if !part.is_empty() {
                let text = fs::read_to_string(&target).expect("a text");
                let mut headings = split(&text).1.into_iter().filter(|(_, l)| l.starts_with('#'));
                assert!(headings.any(|(_, heading)| anchor(&heading) == part), "{name}: {link}");
            }
        }
    }
    assert!(count > 20, "{count}");
}

#[test]
fn lines_fit_a_hundred_columns_and_the_readme_an_afternoon() {
    for name in documents() {
        for (number, line) in split(&read(&name)).1 {
            let wide = line.chars().count() > 100 && !line.starts_with('|');
            assert!(!wide, "{name}:{number}: {line}");
        }
    }
    let lines = read("README.md").lines().count();
    assert!(lines < 180, "{lines} lines: what is not needed at first goes into docs/");
}

#[test]
fn what_a_comment_cites_is_in_the_repository() {
    let mut count = 0;
    let mut files = vec![repository().join("src")];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(fs::read_dir(&path).expect("reads").flatten().map(|entry| entry.path()));
            continue;
        }
        let text = fs::read_to_string(&path).expect("reads");
        assert!(!text.contains("CONTRACT"), "{}: what is that?", path.display());
        for (at, _) in text.match_indices("docs/") {
            let end = text[at..].find(".md").map(|end| at + end + 3);
            let cited = end.map(|end| &text[at..end]).filter(|cited| cited.len() < 40);
            if let Some(cited) = cited.filter(|cited| !cited.contains(char::is_whitespace)) {
                assert!(repository().join(cited).is_file(), "{}: {cited}", path.display());
                count += 1;
            }
        }
    }
    assert!(count > 5, "{count}");
}

/// The record in docs/registry.md has the fields of the golden one, in its order.
#[test]
fn the_record_that_is_shown_is_the_one_that_is_written() {
    let golden = include_str!("../golden/record.json");
    let golden_names: Vec<&str> = names(golden).into_iter().take(7).collect();
    let registry = read("docs/registry.md");
    let blocks = split(&registry).0;
    let shown = blocks.iter().find(|block| block.language == "json").expect("a record");
    assert_eq!(names(&shown.text).into_iter().take(7).collect::<Vec<_>>(), golden_names);
}

/// The names of the fields of some JSON, in its order.
fn names(json: &str) -> Vec<&str> {
    let ends = json.match_indices("\":").map(|(end, _)| end);
    ends.map(|end| &json[json[..end].rfind('"').map_or(0, |start| start + 1)..end]).collect()
}

#[test]
fn the_manual_page_names_the_metrics_that_are_written() {
    let metrics = |text: &str| -> BTreeSet<String> {
        let ends = |c: char| !(c.is_ascii_lowercase() || c == '_');
        let found = text.split("aegis_agent_").skip(1);
        found.map(|rest| rest.split(ends).next().unwrap_or_default().to_owned()).collect()
    };
    let (page, document) = (read("packaging/man/aegis-agent.8"), read("docs/systemd.md"));
    assert!(metrics(&document).len() > 8, "{:?}", metrics(&document));
    assert_eq!(metrics(&page), metrics(&document));
}

/// The limits in docs/performance.md are those of budget.rs, in its order.
#[test]
fn the_limits_that_are_shown_are_those_that_are_held() {
    let budget = include_str!("budget.rs");
    let mut held: Vec<String> = Vec::new();
    for name in [
        "THREADS",
        "DESCRIPTORS",
        "RESIDENT_KIB",
        "ANONYMOUS_KIB",
        "SYSCALLS_PER_BEAT",
        "SWITCHES_PER_BEAT",
        "BINARY_BYTES",
    ] {
        let line = budget.lines().find(|line| line.starts_with(&format!("const {name}: ")));
        let value = line.and_then(|line| line.split_once("= ")).expect("a limit of budget.rs").1;
        held.push(value.trim_end_matches(';').replace('_', ","));
    }
    let text = read("docs/performance.md");
    let table = text.split("| what | at most |\n").nth(1).expect("the table of limits");
    let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    let shown: Vec<&str> = rows.map(|row| row.trim_end_matches(" |")).collect();
    let shown: Vec<&str> = shown.iter().filter_map(|row| row.rsplit("| ").next()).collect();
    assert_eq!(shown, held);
}
