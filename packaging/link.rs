//! Has the linker put the code that a running agent does not need behind the code
//! that it does: `link.ld` says which. It changes nothing but places, so wherever
//! the linker is one that does not know such scripts, it is left out.

// Cargo reads what it prints.
#![allow(clippy::print_stdout)]

use std::env;

/// Linkers that know no `SECTIONS`.
const OTHERS: [&str; 3] = ["mold", "gold", "wild"];

fn main() {
    println!("cargo::rerun-if-changed=packaging/link.rs");
    println!("cargo::rerun-if-changed=packaging/link.ld");
    let of = |name: &str| env::var(name).unwrap_or_default();
    let flags = of("CARGO_ENCODED_RUSTFLAGS");
    let is_known = !OTHERS.iter().any(|other| flags.contains(other));
    if of("CARGO_CFG_TARGET_OS") == "linux" && of("OPT_LEVEL") == "s" && is_known {
        let script = format!("{}/packaging/link.ld", of("CARGO_MANIFEST_DIR"));
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{script}");
    }
}
