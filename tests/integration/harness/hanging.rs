//! A file system that hangs when it is told to: `tests/hanging_fs.py`.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::fault::say;
use super::scratch;

pub struct HangingFiles {
    program: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    directory: PathBuf,
}

impl HangingFiles {
    /// `None`, said aloud, where none can be mounted.
    pub fn mounted() -> Option<HangingFiles> {
        let directory = scratch("hanging");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hanging_fs.py");
        let mut program = Command::new("python3")
            .arg(script)
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let commands = program.stdin.take();
        let mut answers = BufReader::new(program.stdout.take().expect("piped"));
        let mut line = String::new();
        answers.read_line(&mut line).expect("it answers");
        if line != "mounted\n" {
            let output = program.wait_with_output().expect("it ends");
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            say(&format!("SKIPPED: no file system can hang here: {}", why.trim()));
            return None;
        }
        Some(HangingFiles { program, commands, answers, directory })
    }

    /// Its only file, which is not there at first.
    pub fn file(&self) -> PathBuf {
        self.directory.join("drain")
    }

    /// `write TEXT`, `remove`, `hang`, `go`.
    pub fn tell(&mut self, command: &str) {
        let commands = self.commands.as_mut().expect("until the end");
        writeln!(commands, "{command}").expect("it runs");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("it answers");
        assert_eq!(line, "done\n", "{command}");
    }
}

impl Drop for HangingFiles {
    fn drop(&mut self) {
        // It takes the mount away; its end lets go whoever hangs.
        drop(self.commands.take());
        let _ = Command::new("umount").arg("--lazy").arg(&self.directory).output();
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}
