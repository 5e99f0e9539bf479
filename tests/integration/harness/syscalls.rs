//! How many system calls a program makes: a small tracer in C, built by the
//! tests, that runs the program and counts (`count_syscalls.c`).

use std::path::{Path, PathBuf};
use std::process::Command;

use super::agent::{Agent, Invocation};
use super::{eventually, scratch, secs, send_signal};

/// A running program whose system calls are counted.
pub struct Traced {
    directory: PathBuf,
    /// The tracer, with the program's output.
    pub agent: Agent,
}

impl Traced {
    pub fn spawn(invocation: Invocation) -> Traced {
        let directory = scratch("traced");
        let tracer = build(&directory);
        let count = directory.join("count").display().to_string();
        let agent = invocation.wrapped(&[tracer.display().to_string(), count]).spawn();
        Traced { directory, agent }
    }

    /// System calls of all its threads since it was started.
    pub fn count(&self) -> u64 {
        let file = self.directory.join("count");
        let _ = std::fs::remove_file(&file);
        send_signal(self.agent.pid(), "USR1");
        eventually(secs(5), "the tracer answers", || {
            let text = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
            text.trim().parse().map_err(|_| text)
        })
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn build(directory: &Path) -> PathBuf {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/integration/harness/count_syscalls.c");
    let tracer = directory.join("count_syscalls");
    let output = Command::new("cc").args(["-O1", "-o"]).arg(&tracer).arg(source).output();
    let output = output.expect("cc runs: Rust needs a C compiler as well");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    tracer
}
