//! This program once more, for what may hang: a file system that does not answer (a
//! network share, a frozen disk) holds up whoever touches it, in the kernel, for
//! as long as it likes, and nothing ends that.
//!
//! Not a thread: the process could not end while one hangs. Not a process that
//! stays: it would cost more memory, all the time, than starting one costs when it
//! is needed.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;

use rustix::process::Pid;

/// The running program, also after its file was replaced.
const OURSELVES: &str = "/proc/self/exe";

/// All helpers of this process, for whoever reaps children: they are not for it to
/// reap.
#[derive(Debug, Clone, Default)]
pub struct Helpers(Rc<RefCell<Vec<Pid>>>);

impl Helpers {
    /// Those that run, or have ended and were not waited for.
    pub fn pids(&self) -> Vec<Pid> {
        self.0.borrow().clone()
    }

    /// Starts one: a call of this program with these words, which no person uses. Its
    /// standard output is piped, and nothing is in its environment.
    pub(super) fn start(&self, words: &[&OsStr], input: Stdio) -> io::Result<Helper> {
        let child = command(words).stdin(input).spawn()?;
        self.0.borrow_mut().push(Pid::from_child(&child));
        Ok(Helper { child, among: self.clone() })
    }
}

/// One of them. Whoever drops it has waited for it, or does not want it any more.
#[derive(Debug)]
pub(super) struct Helper {
    pub(super) child: Child,
    among: Helpers,
}

impl Drop for Helper {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.child.kill().ok();
            // Later than that the reaper has it.
            self.child.try_wait().ok();
        }
        let pid = Pid::from_child(&self.child);
        self.among.0.borrow_mut().retain(|other| *other != pid);
    }
}

fn command(words: &[&OsStr]) -> Command {
    let mut command = Command::new(OURSELVES);
    command
        .arg0("aegis-agent")
        .args(words)
        .env_clear()
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_is_listed_until_it_was_waited_for_or_is_not_wanted_any_more() {
        let helpers = Helpers::default();
        // To the tests' program this is the name of a test that it does not have.
        let words = [OsStr::new("no-such-test")];
        let start = || helpers.start(&words, Stdio::null()).unwrap();
        let (mut helper, other) = (start(), start());
        let pids = [&helper, &other].map(|helper| Pid::from_child(&helper.child));
        assert_eq!(helpers.pids(), pids);
        assert!(helper.child.wait().unwrap().success());
        assert_eq!(helpers.pids(), pids, "it may be looked at once more");
        drop(helper);
        assert_eq!(helpers.pids(), pids[1..]);
        drop(other);
        assert_eq!(helpers.pids(), []);
    }
}
