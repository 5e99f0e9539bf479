//! The built binary, or another program beside it: started with a clean
//! environment, its output captured with times, ended in `Drop`.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{eventually, millis, secs, send_signal};

/// The program under test: what `AEGIS_BINARY` names, else the one that cargo
/// built for these tests.
pub fn binary() -> String {
    let built = env!("CARGO_BIN_EXE_aegis-agent").to_owned();
    std::env::var("AEGIS_BINARY").unwrap_or(built)
}

/// How a program is to be run.
#[derive(Clone)]
pub struct Invocation {
    program: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
    within: Duration,
}

/// The binary with these arguments, and nothing in its environment but PATH
/// and a HOME that does not exist.
pub fn aegis<A: AsRef<str>>(arguments: &[A]) -> Invocation {
    program(&binary(), arguments)
}

/// As `aegis`, for another program.
pub fn program<A: AsRef<str>>(path: &str, arguments: &[A]) -> Invocation {
    Invocation {
        program: path.to_owned(),
        arguments: arguments.iter().map(|a| a.as_ref().to_owned()).collect(),
        environment: Vec::new(),
        wrapper: Vec::new(),
        within: secs(20),
    }
}

/// What a finished run left.
#[derive(Debug)]
pub struct Output {
    /// The exit code; the negated signal where one ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
    /// The most memory it had resident, as seen by looking every millisecond.
    pub peak_kib: u64,
    /// The most threads that it had, seen in the same way.
    pub peak_threads: u64,
}

impl Invocation {
    pub fn env(mut self, name: &str, value: &str) -> Invocation {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn arg(mut self, argument: &str) -> Invocation {
        self.arguments.push(argument.to_owned());
        self
    }

    /// The time that `run` gives it; 20 s where nothing is said.
    pub fn within(mut self, time: Duration) -> Invocation {
        self.within = time;
        self
    }

    /// Runs it by a program that becomes it in the end, such as `nsenter`.
    pub fn wrapped(mut self, wrapper: &[String]) -> Invocation {
        self.wrapper = wrapper.to_vec();
        self
    }

    pub fn command(&self) -> Command {
        let mut words = self.wrapper.iter().chain([&self.program]);
        let mut command = Command::new(words.next().expect("the program at least"));
        command
            .args(words)
            .args(&self.arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", concat!(env!("CARGO_TARGET_TMPDIR"), "/home"))
            .envs(self.environment.iter().map(|(n, v)| (n, v)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn spawn(&self) -> Agent {
        let started = Instant::now();
        let mut child = self.command().spawn().expect("the program starts");
        let errors: Arc<Mutex<Vec<Line>>> = Arc::default();
        let stderr = {
            let (errors, pipe) = (errors.clone(), child.stderr.take().expect("piped"));
            std::thread::spawn(move || {
                let mut reader = BufReader::new(pipe);
                let mut line = Vec::new();
                while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                    let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                    let at = Instant::now();
                    errors.lock().expect("no panic while it was held").push(Line { at, text });
                    line.clear();
                }
            })
        };
        let said: Arc<Mutex<Vec<u8>>> = Arc::default();
        let stdout = {
            let (said, mut pipe) = (said.clone(), child.stdout.take().expect("piped"));
            std::thread::spawn(move || {
                let mut bytes = [0; 1 << 16];
                while let Ok(length @ 1..) = pipe.read(&mut bytes) {
                    let mut said = said.lock().expect("no panic while it was held");
                    said.extend_from_slice(&bytes[..length]);
                }
                Instant::now()
            })
        };
        let name = self.program.rsplit('/').next().unwrap_or_default();
        Agent {
            name: name.to_owned(),
            arguments: self.arguments.join(" "),
            started,
            child,
            errors,
            stderr: Some(stderr),
            said,
            stdout: Some(stdout),
        }
    }

    /// Runs it to its end.
    pub fn run(&self) -> Output {
        self.spawn().wait_output(self.within)
    }
}

impl Output {
    /// Fails with everything it printed unless it ended with `code`.
    pub fn exits(self, code: i32) -> Output {
        assert_eq!(self.code, code, "exit code of {self:#?}");
        self
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("not JSON ({e}): {self:#?}"))
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| -status.signal().unwrap_or(0))
}

/// One line of stderr, and when it was read.
#[derive(Debug, Clone)]
pub struct Line {
    pub at: Instant,
    pub text: String,
}

/// The binary, running.
pub struct Agent {
    name: String,
    arguments: String,
    pub started: Instant,
    child: Child,
    errors: Arc<Mutex<Vec<Line>>>,
    stderr: Option<JoinHandle<()>>,
    said: Arc<Mutex<Vec<u8>>>,
    /// When it ended.
    stdout: Option<JoinHandle<Instant>>,
}

/// What a process uses, from /proc.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub resident_kib: u64,
    pub anonymous_kib: u64,
    pub peak_kib: u64,
    pub threads: u64,
    pub descriptors: usize,
    pub cpu: Duration,
    /// Context switches of the main thread.
    pub voluntary: u64,
    pub involuntary: u64,
}

impl Agent {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn lines(&self) -> Vec<Line> {
        self.errors.lock().expect("no panic while it was held").clone()
    }

    pub fn stderr(&self) -> String {
        self.lines().iter().map(|line| format!("{}\n", line.text)).collect()
    }

    /// The lines of stderr that hold `text`.
    pub fn lines_with(&self, text: &str) -> Vec<Line> {
        self.lines().into_iter().filter(|line| line.text.contains(text)).collect()
    }

    /// Waits for a line of stderr that holds `text`.
    pub fn wait_for_line(&mut self, text: &str, within: Duration) -> Line {
        self.wait_for_lines(text, 1, within).remove(0)
    }

    /// Waits until `count` lines hold `text`, and returns them.
    pub fn wait_for_lines(&mut self, text: &str, count: usize, within: Duration) -> Vec<Line> {
        eventually(within, &format!("{count} lines with {text:?}"), || {
            let found = self.lines_with(text);
            if found.len() >= count {
                return Ok(found);
            }
            if let Some(status) = self.child.try_wait().expect("waits for its own child") {
                // Its last words may still be on their way through the pipe.
                self.finish_errors();
                if self.lines_with(text).len() < count {
                    panic!("it ended with {status} before it said {text:?}");
                }
            }
            Err(format!("{} such lines", found.len()))
        })
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("waits for its own child").is_none()
    }

    pub fn signal(&self, signal: &str) {
        send_signal(self.pid(), signal);
    }

    /// Waits for its end and returns the exit code.
    pub fn wait_exit(&mut self, within: Duration) -> i32 {
        let status = eventually(within, "the agent ends", || {
            self.child
                .try_wait()
                .expect("waits for its own child")
                .ok_or_else(|| "it runs".to_owned())
        });
        self.finish_errors();
        code(status)
    }

    /// Waits for its end and takes what it printed.
    pub fn wait_output(&mut self, within: Duration) -> Output {
        let (mut peak_kib, mut peak_threads) = (0, 0);
        let status = loop {
            peak_kib = peak_kib.max(self.own_status("VmHWM").unwrap_or(0));
            peak_threads = peak_threads.max(self.own_status("Threads").unwrap_or(0));
            if let Some(status) = self.child.try_wait().expect("waits for its own child") {
                break status;
            }
            if self.started.elapsed() > within {
                panic!("`{} {}` does not end within {within:?}", self.name, self.arguments);
            }
            std::thread::sleep(millis(1));
        };
        // To the millisecond it is known to have ended; its stdout ended with it.
        let reaped = Instant::now();
        let (stdout, ended) = self.finish_output();
        let took = ended.min(reaped) - self.started;
        Output { code: code(status), stdout, stderr: self.stderr(), took, peak_kib, peak_threads }
    }

    /// What it has written to stdout so far.
    pub fn said(&self) -> String {
        let said = self.said.lock().expect("no panic while it was held");
        String::from_utf8_lossy(&said).into_owned()
    }

    /// All that it wrote to stdout; it must have ended.
    pub fn stdout(&mut self) -> String {
        self.finish_output().0
    }

    pub fn usage(&self) -> Usage {
        let read = |file: &str| {
            std::fs::read_to_string(format!("/proc/{}/{file}", self.pid())).unwrap_or_default()
        };
        let status = read("status");
        let field = |name: &str| field(&status, name).unwrap_or(0);
        let stat = read("stat");
        // After the name in parentheses: state is field 3, utime 14, stime 15.
        let words: Vec<&str> =
            stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| words.get(at - 3).and_then(|w| w.parse::<u64>().ok()).unwrap_or(0);
        Usage {
            resident_kib: field("VmRSS"),
            anonymous_kib: field("RssAnon"),
            peak_kib: field("VmHWM"),
            threads: field("Threads"),
            descriptors: std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
                .map_or(0, Iterator::count),
            // Linux counts in hundredths of a second towards user space.
            cpu: millis(10 * (ticks(14) + ticks(15))),
            voluntary: field("voluntary_ctxt_switches"),
            involuntary: field("nonvoluntary_ctxt_switches"),
        }
    }

    /// The names of its threads and what its descriptors are, in words.
    pub fn holds(&self) -> String {
        let entries = |what: &str| {
            let path = format!("/proc/{}/{what}", self.pid());
            std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path())
        };
        let names: Vec<String> = entries("task")
            .map(|task| {
                let read = |file| std::fs::read_to_string(task.join(file)).unwrap_or_default();
                let (name, call) = (read("comm"), read("syscall"));
                format!("{} in call {}", name.trim(), call.split(' ').next().unwrap_or_default())
            })
            .collect();
        let links: Vec<String> = entries("fd")
            .filter_map(|fd| Some(std::fs::read_link(fd).ok()?.display().to_string()))
            .collect();
        format!("threads {names:?}, descriptors {links:?}")
    }

    /// The most threads that it has while `time` passes, looked at every
    /// millisecond.
    pub fn most_threads_for(&self, time: Duration) -> u64 {
        let end = Instant::now() + time;
        let mut most = 0;
        while Instant::now() < end {
            most = most.max(self.own_status("Threads").unwrap_or(0));
            std::thread::sleep(millis(1));
        }
        most
    }

    /// A number of its status. Nothing before it has become our program: until
    /// then it shares the memory of the tests.
    fn own_status(&self, name: &str) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        // Linux keeps 15 bytes of a program's name.
        let own = &self.name[..self.name.len().min(15)];
        if !status.starts_with(&format!("Name:\t{own}\n")) {
            return None;
        }
        field(&status, name)
    }

    fn finish_errors(&mut self) {
        if let Some(thread) = self.stderr.take() {
            let _ = thread.join();
        }
    }

    fn finish_output(&mut self) -> (String, Instant) {
        self.finish_errors();
        let ended = self.stdout.take().and_then(|thread| thread.join().ok());
        (self.said(), ended.unwrap_or_else(Instant::now))
    }
}

fn field(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?.strip_prefix(':')?;
        rest.split_whitespace().next()?.parse().ok()
    })
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let (stdout, _) = self.finish_output();
            eprintln!("--- {} {}\n", self.name, self.arguments);
            for line in self.lines() {
                eprintln!("{:>8.3} s {}", (line.at - self.started).as_secs_f64(), line.text);
            }
            if !stdout.is_empty() {
                eprintln!("--- its stdout:\n{stdout}");
            }
            eprintln!("---");
        }
    }
}
