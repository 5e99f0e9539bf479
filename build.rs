//! Tells the program which commit it is built from (`AEGIS_COMMIT`, or what git
//! says, or nothing), and the linker how to lay it out.

// Cargo reads what it prints.
#![allow(clippy::print_stdout)]

use std::env;
use std::process::Command;

/// Linkers that know no `SECTIONS`: they are left alone, since `link.ld` changes
/// nothing but places.
const OTHER_LINKERS: [&str; 3] = ["mold", "gold", "wild"];

fn main() {
    println!("cargo::rerun-if-env-changed=AEGIS_COMMIT");
    let commit = env::var("AEGIS_COMMIT").ok().or_else(of_git);
    println!("cargo::rustc-env=AEGIS_COMMIT={}", commit.unwrap_or_default());
    lay_out();
}

/// Puts the code that a running agent does not need behind the code that it does,
/// in a release.
fn lay_out() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=packaging/link.ld");
    let of = |name: &str| env::var(name).unwrap_or_default();
    // Only what names a linker: other flags have paths in them, of any name.
    let (linker, flags) = (of("RUSTC_LINKER"), of("CARGO_ENCODED_RUSTFLAGS"));
    let in_flags = flags.split('\x1f').filter_map(|flag| {
        flag.split_once("fuse-ld=").or_else(|| flag.split_once("linker=")).map(|(_, name)| name)
    });
    let file = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let mut named = in_flags.chain([linker.as_str()]).map(file);
    let is_other = named.any(|name| OTHER_LINKERS.iter().any(|other| name.contains(other)));
    if of("CARGO_CFG_TARGET_OS") == "linux" && of("OPT_LEVEL") == "s" && !is_other {
        let script = format!("{}/packaging/link.ld", of("CARGO_MANIFEST_DIR"));
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{script}");
    }
}

fn of_git() -> Option<String> {
    // In a package's sources git would name the repository around them.
    if !std::path::Path::new(".git").exists() {
        return None;
    }
    for file in ["HEAD", "logs/HEAD"] {
        println!("cargo::rerun-if-changed={}", git(&["rev-parse", "--git-path", file])?);
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(words: &[&str]) -> Option<String> {
    let output = Command::new("git").args(words).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
