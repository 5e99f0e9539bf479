//! A nats-server of the test's own: a free port, a store of its own, ended in
//! `Drop`.

use std::collections::HashMap;
use std::io::Read;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use super::{eventually, free_port, scratch_for_store, secs, send_signal};

/// How long a server may take to be ready.
/// A disk that is busy was seen to hold up the start of JetStream for 20 s.
const READY: Duration = secs(60);

/// A running (or killed, or frozen) server on a port that stays the same.
pub struct Server {
    version: String,
    port: u16,
    directory: PathBuf,
    child: Option<Child>,
    frozen: bool,
    /// It waits for the client's TLS handshake before it says anything.
    silent: bool,
    wrapper: Vec<String>,
}

/// What a server is to be, beyond the defaults.
pub struct Setup<'a> {
    /// A pinned version; empty for what the finder finds.
    pub version: &'a str,
    pub jetstream: bool,
    /// The JetStream domain; empty for none.
    pub domain: &'a str,
    /// Configuration text, appended: users, accounts, TLS, a cluster.
    pub extra: String,
    /// Where it listens: all of 127.0.0.1 unless a test has a network of its own.
    pub host: &'a str,
    /// A program that becomes the server in the end, and its arguments.
    pub wrapper: Vec<String>,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        let (extra, wrapper) = (String::new(), Vec::new());
        Setup { version: "", jetstream: true, domain: "", extra, host: "127.0.0.1", wrapper }
    }
}

impl Server {
    /// A server of the pinned `version`, with JetStream.
    pub fn start(version: &str) -> Server {
        Server::with(Setup { version, ..Setup::default() })
    }

    /// The server that the finder prefers, with JetStream.
    pub fn any() -> Server {
        Server::with(Setup::default())
    }

    pub fn with(setup: Setup) -> Server {
        let mut server = Server::absent(setup);
        server.start_again();
        server
    }

    /// A server that has its port and is not started yet.
    pub fn absent(setup: Setup) -> Server {
        // Found (and fetched) here, so that starting it later takes no time.
        binary(setup.version);
        let directory = scratch_for_store();
        let port = free_port();
        let mut config = format!("listen: \"{}:{port}\"\n", setup.host);
        if setup.jetstream {
            let store = directory.join("store");
            let domain = match setup.domain {
                "" => String::new(),
                domain => format!("domain: {domain}, "),
            };
            config += &format!(
                "jetstream {{ {domain}store_dir: \"{}\", max_memory_store: 256MB, max_file_store: 1GB }}\n",
                store.display()
            );
        }
        config += &setup.extra;
        std::fs::write(directory.join("server.conf"), config).expect("writes the configuration");
        let silent = setup.extra.contains("handshake_first: true");
        let version = setup.version.to_owned();
        let wrapper = setup.wrapper;
        Server { version, port, directory, child: None, frozen: false, silent, wrapper }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the server runs").id()
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Where it keeps what it stores, its log and its configuration.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Starts it on its port and its store; it must not be running.
    pub fn start_again(&mut self) {
        self.launch();
        self.wait_until_ready();
    }

    /// As `start_again`, without waiting for it to be ready: in a cluster none
    /// is before the others are.
    pub fn launch(&mut self) {
        assert!(self.child.is_none(), "the server is running already");
        let open = || {
            let path = self.directory.join("log");
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            file.expect("opens the log")
        };
        let program = binary(&self.version);
        let program = program.to_str().expect("a path in UTF-8").to_owned();
        let mut words = self.wrapper.iter().chain([&program]);
        let child = Command::new(words.next().expect("the server at least"))
            .args(words)
            .arg("-c")
            .arg(self.directory.join("server.conf"))
            .stdin(Stdio::null())
            .stdout(open())
            .stderr(open())
            .spawn()
            .expect("nats-server starts");
        self.child = Some(child);
        self.frozen = false;
    }

    pub fn wait_until_ready(&mut self) {
        eventually(READY, "the server is ready", || {
            let child = self.child.as_mut().expect("launched");
            if let Some(status) = child.try_wait().expect("can wait for a child") {
                panic!("nats-server ended with {status}:\n{}", self.log());
            }
            if !self.says("Server is ready") {
                return Err("no line \"Server is ready\" yet".to_owned());
            }
            if self.silent { Ok(()) } else { info_line(self.port) }
        });
    }

    /// Whether this run says so in its log, which goes on from run to run.
    pub fn says(&self, words: &str) -> bool {
        let pid = format!("[{}]", self.pid());
        self.log().lines().any(|line| line.contains(&pid) && line.contains(words))
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kills its own child");
            child.wait().expect("waits for its own child");
        }
    }

    /// SIGTERM: what is stored is on disk; waits until it is gone.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            send_signal(child.id(), "TERM");
            eventually(secs(15), "the server stops", || {
                match child.try_wait().expect("waits for its own child") {
                    Some(_) => Ok(()),
                    None => Err(self.log()),
                }
            });
        }
    }

    /// Kills it if it runs, and starts it on the same port and store.
    pub fn restart(&mut self) {
        self.kill();
        self.start_again();
    }

    /// As `restart`, with nothing in the store.
    pub fn restart_empty(&mut self) {
        self.kill_and_forget();
        self.start_again();
    }

    /// SIGKILL; what it stored is gone, too.
    pub fn kill_and_forget(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(self.directory.join("store"));
    }

    /// Stops it politely and starts another version on the same port and store.
    pub fn restart_as(&mut self, version: &str) {
        self.stop();
        self.version = version.to_owned();
        self.start_again();
    }

    /// Writes the configuration anew, with `from` replaced by `to`, and has it
    /// read (SIGHUP).
    pub fn reconfigure(&mut self, from: &str, to: &str) {
        let path = self.directory.join("server.conf");
        let config = std::fs::read_to_string(&path).expect("reads the configuration");
        assert!(config.contains(from), "no {from:?} in {config}");
        std::fs::write(path, config.replace(from, to)).expect("writes the configuration");
        let reloads = |log: String| log.matches("Reloaded server configuration").count();
        let before = reloads(self.log());
        send_signal(self.pid(), "HUP");
        eventually(secs(5), "the server reloads", || match reloads(self.log()) > before {
            true => Ok(()),
            false => Err(self.log()),
        });
    }

    /// Lame-duck mode: it says good-bye to its clients and ends by itself.
    pub fn lame_duck(&mut self) {
        send_signal(self.pid(), "USR2");
    }

    /// Waits for an end of its own accord.
    pub fn wait_gone(&mut self, within: Duration) {
        if let Some(mut child) = self.child.take() {
            eventually(within, "the server ends", || {
                match child.try_wait().expect("waits for its own child") {
                    Some(_) => Ok(()),
                    None => Err("it runs".to_owned()),
                }
            });
        }
    }

    /// Puts `extra` in the place of what `Setup` gave, and has the running
    /// server take it (SIGHUP).
    pub fn configure(&mut self, extra: &str) {
        let path = self.directory.join("server.conf");
        let config = std::fs::read_to_string(&path).expect("reads the configuration");
        // What `Setup` does not give is on the first lines.
        let lines: Vec<&str> = config.lines().collect();
        let own =
            lines.iter().take_while(|l| l.starts_with("listen") || l.starts_with("jetstream"));
        let config = own.map(|line| format!("{line}\n")).collect::<String>() + extra;
        std::fs::write(&path, config).expect("writes the configuration");
        let reloads = self.log().matches("Reloaded server configuration").count();
        send_signal(self.pid(), "HUP");
        eventually(secs(5), "the server takes its configuration", || {
            let log = self.log();
            let done = log.matches("Reloaded server configuration").count() > reloads;
            if done { Ok(()) } else { Err(log) }
        });
    }

    /// SIGSTOP: connections stay open and nothing answers.
    pub fn freeze(&mut self) {
        send_signal(self.pid(), "STOP");
        self.frozen = true;
    }

    /// SIGCONT.
    pub fn thaw(&mut self) {
        send_signal(self.pid(), "CONT");
        self.frozen = false;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let state = match (&self.child, self.frozen) {
                (None, _) => "not running",
                (_, true) => "frozen",
                _ => "running",
            };
            eprintln!(
                "--- log of nats-server {} on port {}, {state}:\n{}---",
                self.version,
                self.port,
                self.log()
            );
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// The greeting of whatever listens on `port`.
fn info_line(port: u16) -> Result<(), String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(secs(2))).map_err(|e| e.to_string())?;
    let mut greeting = [0; 5];
    stream.read_exact(&mut greeting).map_err(|e| format!("no greeting: {e}"))?;
    (&greeting == b"INFO ").then_some(()).ok_or_else(|| format!("greets with {greeting:?}"))
}

/// The path of a binary of this version; a missing one fails the test with
/// the finder's instructions.
fn binary(version: &str) -> PathBuf {
    static FOUND: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);
    let mut found = FOUND.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let found = found.get_or_insert_default();
    if let Some(path) = found.get(version) {
        return path.clone();
    }
    let finder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nats_server.py");
    let mut command = Command::new("python3");
    command.arg(finder);
    if !version.is_empty() {
        command.arg(version);
    }
    let output = command.output().expect("python3 runs: the tests need it to find a nats-server");
    assert!(
        output.status.success(),
        "no nats-server for the tests:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    found.insert(version.to_owned(), path.clone());
    path
}
