//! The peers: the `nats` crate and async-nats in a program of their own
//! (`benches/peers`), built where it is asked for, so that neither is in the
//! product's lock file.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use super::agent::{Invocation, program};
use super::{millis, secs};

/// The words by which the program knows them.
pub const CRATES: [&str; 2] = ["nats", "async-nats"];

/// Built from nothing it takes about a minute on two cores, optimised two.
const LIMIT: std::time::Duration = secs(900);

/// What the program is to be good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// Soon there: for tests.
    Quick,
    /// To be measured.
    Optimised,
}

/// The program with these arguments; builds it first where that is needed.
pub fn peers(build: Build, arguments: &[&str]) -> Invocation {
    program(&binary(build), arguments)
}

/// The path of the program.
pub fn binary(build: Build) -> String {
    static BUILT: [OnceLock<Result<String, String>>; 2] = [OnceLock::new(), OnceLock::new()];
    let built = BUILT[build as usize].get_or_init(|| build_it(build));
    built.clone().unwrap_or_else(|why| panic!("benches/peers cannot be built: {why}"))
}

fn build_it(build: Build) -> Result<String, String> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers");
    std::fs::create_dir_all(&target).map_err(|error| error.to_string())?;
    let log = target.join(format!("build-{}.log", std::process::id()));
    let output = std::fs::File::create(&log).map_err(|error| error.to_string())?;
    let errors = output.try_clone().map_err(|error| error.to_string())?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    // The other tests, which look at the time, go before.
    let mut command = Command::new("nice");
    // async-nats asks for Rust 1.89 because of websockets, which are off here.
    command
        .args(["-n", "10", &cargo, "build", "--locked", "--ignore-rust-version", "--target-dir"])
        .arg(&target)
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/Cargo.toml")])
        .args((build == Build::Optimised).then_some("--release"))
        .env_remove("CARGO_BUILD_TARGET")
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors);
    let mut child = command.spawn().map_err(|error| format!("{command:?}: {error}"))?;
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            break status;
        }
        if begun.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("not done within {LIMIT:?}\n{}", said(&log)));
        }
        std::thread::sleep(millis(50));
    };
    if !status.success() {
        return Err(format!("{command:?} ended with {status}\n{}", said(&log)));
    }
    let _ = std::fs::remove_file(&log);
    let profile = if build == Build::Optimised { "release/peers" } else { "debug/peers" };
    Ok(target.join(profile).display().to_string())
}

fn said(log: &Path) -> String {
    std::fs::read_to_string(log).unwrap_or_default()
}
