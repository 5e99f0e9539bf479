//! This program once more, for what may hang: a file system that does not answer (a
//! network share, a frozen disk) holds up whoever touches it, in the kernel, for
//! as long as it likes, and nothing ends that.
//!
//! Not a thread: the process could not end while one hangs. Not a process that
//! stays: it would cost more memory, all the time, than starting one costs when it
//! is needed.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// The running program, also after its file was replaced.
const OURSELVES: &str = "/proc/self/exe";

/// A call of it with these words, which no person uses; its standard output is
/// piped, and nothing is in its environment.
pub(super) fn command(words: &[&OsStr]) -> Command {
    let mut command = Command::new(OURSELVES);
    command
        .arg0("aegis-agent")
        .args(words)
        .env_clear()
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}
