//! Clocks that jump under an agent: a suspend of the host, steps of the wall
//! clock. A library of a few lines, compiled here and loaded before the C
//! library, shifts what the agent reads.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use super::agent::Invocation;
use super::scratch;

/// The clocks of the host that one agent, or several, believe to be on.
pub struct HostClocks {
    library: PathBuf,
    shift: PathBuf,
    wakes: PathBuf,
}

impl HostClocks {
    /// Clocks that are right.
    pub fn new() -> HostClocks {
        let directory = scratch("clocks");
        let source =
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/integration/harness/shift_clocks.c");
        let library = directory.join("shift.so");
        let compiler = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .arg(source)
            .output()
            .expect("cc runs: the tests need a C compiler");
        assert!(compiler.status.success(), "{}", String::from_utf8_lossy(&compiler.stderr));
        let wakes = directory.join("wakes");
        let made = Command::new("mkfifo").arg(&wakes).status().expect("mkfifo runs");
        assert!(made.success(), "{made}");
        let clocks = HostClocks { library, shift: directory.join("shift"), wakes };
        clocks.shift(0, 0);
        clocks
    }

    /// By how many milliseconds the clocks are ahead from now on.
    pub fn shift(&self, wall: i64, boot: i64) {
        let fresh = self.shift.with_extension("new");
        std::fs::write(&fresh, format!("{wall} {boot}")).expect("writes the shift");
        std::fs::rename(fresh, &self.shift).expect("puts it in place");
    }

    /// The host wakes up: what the kernel tells whoever has asked.
    pub fn wake(&self) {
        let mut pipe = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.wakes)
            .expect("opens the pipe, whoever else has");
        pipe.write_all(&[1; 8]).expect("writes into the pipe");
    }

    /// Runs a program with these clocks.
    pub fn of(&self, invocation: Invocation) -> Invocation {
        invocation
            .env("LD_PRELOAD", &self.library.display().to_string())
            .env("SHIFT", &self.shift.display().to_string())
            .env("WAKES", &self.wakes.display().to_string())
    }
}
