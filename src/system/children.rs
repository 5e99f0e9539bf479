//! Processes that health checks leave behind: they come to us, and are ended.
//!
//! No signal to the group of a check reaches those that called `setsid`. As their
//! subreaper (prctl(2)) we get each of them as a child once its parent is gone:
//! then it is ended, and reaped. As process 1 of a container we get whatever is
//! orphaned there, and reap that; but we end only what a check has left behind.
//! What checks may see of us is decided here, too.

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitId, WaitIdOptions, getpid, kill_process,
    set_child_subreaper, set_dumpable_behavior, waitid,
};

/// Our children that nobody waits for.
#[derive(Debug, Clone)]
pub struct Children {
    /// Stands in the environment of a check and of all that descends from it.
    mark: String,
    /// Not all children that we get can be a check's.
    with_strangers: bool,
}

impl Children {
    /// Looks whether there are children already: of the shell that became us,
    /// such as the service itself. Call it before the first child of our own.
    pub fn look(mark: String) -> Children {
        let with_strangers = getpid().is_init() || has_any();
        Children { mark, with_strangers }
    }

    /// From now on orphans among our descendants come to us.
    pub fn adopt(&self) -> io::Result<()> {
        Ok(set_child_subreaper(Some(getpid()))?)
    }

    /// Reaps all that have ended, but not `own`, for which somebody else waits.
    /// With `end`, ends what checks have left behind; the children of those
    /// come to us, and are ended by the next call. Gives back how many were
    /// alive.
    pub fn sweep(&self, own: &[Pid], end: bool) -> usize {
        if !has_any() {
            return 0;
        }
        let mut alive = 0;
        for pid in children().into_iter().filter(|pid| !own.contains(pid)) {
            let ended = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
            // It is a child of ours and not reaped, so no other process has its
            // number.
            if matches!(ended, Ok(None)) && end && self.is_left_by_a_check(pid) {
                kill_process(pid, Signal::KILL).ok();
                alive += 1;
            }
        }
        alive
    }

    fn is_left_by_a_check(&self, pid: Pid) -> bool {
        if !self.with_strangers {
            return true;
        }
        let path = format!("/proc/{}/environ", pid.as_raw_nonzero());
        let environment = fs::read(path).unwrap_or_default();
        environment.split(|b| *b == 0).any(|variable| variable == self.mark.as_bytes())
    }
}

/// Keeps other processes of our user, health checks above all, from reading
/// our environment and our memory (`/proc/PID/environ`, ptrace). It costs core
/// dumps, and the same user's look into `/proc/PID`; root sees everything.
pub fn hide_memory() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Whether we have any child at all.
fn has_any() -> bool {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(waitid(WaitId::All, look), Err(Errno::CHILD))
}

/// All our children, those included that have ended.
fn children() -> Vec<Pid> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists: Vec<_> =
        threads.map(|thread| fs::read_to_string(thread.path().join("children"))).collect();
    // The main thread has one wherever the kernel makes them.
    if lists.iter().any(Result::is_ok) {
        let text = lists.into_iter().flatten().collect::<Vec<_>>().join(" ");
        return text.split_whitespace().filter_map(number).collect();
    }
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|process| number(process.file_name().to_str()?));
    numbers.filter(|pid| parent(*pid) == Some(getpid())).collect()
}

fn number(text: &str) -> Option<Pid> {
    Pid::from_raw(text.parse().ok()?)
}

fn parent(pid: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // After the name in parentheses: the state, and the parent.
    number(stat.rsplit(')').next()?.split_whitespace().nth(1)?)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn sleeping(mark: &str) -> Child {
        Command::new("sleep").arg("60").env("MARK", mark).stdin(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn a_child_of_ours_is_among_our_children_until_it_is_reaped() {
        let mut child = sleeping("x");
        let pid = Pid::from_child(&child);
        assert!(has_any() && children().contains(&pid));
        assert_eq!(parent(pid), Some(getpid()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!children().contains(&pid));
    }

    #[test]
    fn among_strangers_the_mark_in_the_environment_tells_what_a_check_left() {
        let (mut ours, mut theirs) = (sleeping("7"), sleeping("77"));
        let children = Children { mark: "MARK=7".into(), with_strangers: true };
        // Until it has become its program it has the environment of the tests.
        for _ in 0..500 {
            if children.is_left_by_a_check(Pid::from_child(&ours)) {
                break;
            }
            let _ = rustix::thread::nanosleep(&rustix::time::Timespec {
                tv_sec: 0,
                tv_nsec: 10_000_000,
            });
        }
        assert!(children.is_left_by_a_check(Pid::from_child(&ours)));
        assert!(!children.is_left_by_a_check(Pid::from_child(&theirs)));
        for child in [&mut ours, &mut theirs] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
