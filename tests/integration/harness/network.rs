//! A network that can lose packets, and a name server that can be silent.
//! Both need root; where it is missing they say so, and the test is skipped.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::fault::say;
use super::{millis, scratch};

/// Two hosts with a network between them: `tests/network.py` or `tests/lossy.py`.
pub struct Network {
    router: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    client: u32,
}

/// The server's address in it.
pub const SERVER: &str = "10.77.2.2";

impl Network {
    /// Moves this thread, and what it starts from now on, to the server's
    /// side. `None`, said aloud, where that is not permitted.
    pub fn enter() -> Option<Network> {
        Network::of("network.py", &[])
    }

    /// As `enter`; each packet is lost with a chance of so many percent, and takes
    /// so many milliseconds, in either direction.
    pub fn lossy(percent: u32, millis: u32) -> Option<Network> {
        Network::of("lossy.py", &[percent.to_string(), millis.to_string()])
    }

    fn of(script: &str, arguments: &[String]) -> Option<Network> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(script);
        let mut router = Command::new("python3")
            .arg(script)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let commands = router.stdin.take().expect("piped");
        let mut answers = BufReader::new(router.stdout.take().expect("piped"));
        let mut line = String::new();
        answers.read_line(&mut line).expect("it answers");
        let pids: Vec<u32> = line.split_whitespace().filter_map(|w| w.parse().ok()).collect();
        let [client, server] = pids[..] else {
            let output = router.wait_with_output().expect("it ends");
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            say(&format!("SKIPPED: lost packets cannot be tested here: {}", why.trim()));
            return None;
        };
        let space = std::fs::File::open(format!("/proc/{server}/ns/net")).expect("it has one");
        move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("root may enter");
        Some(Network { router, commands, answers, client })
    }

    /// Starts a program on the client's side.
    pub fn client(&self) -> Vec<String> {
        let space = format!("--net=/proc/{}/ns/net", self.client);
        ["nsenter", &space, "--"].map(str::to_owned).to_vec()
    }

    /// Loses what comes from the `client` or the `server`.
    pub fn lose(&mut self, from: &str) {
        self.command(&format!("lose {from}\n"));
    }

    pub fn pass(&mut self, from: &str) {
        self.command(&format!("pass {from}\n"));
    }

    /// How many packets passed, and how many were lost.
    pub fn count(&mut self) -> String {
        self.say("count\n").trim().to_owned()
    }

    fn command(&mut self, command: &str) {
        assert_eq!(self.say(command), "done\n");
    }

    fn say(&mut self, command: &str) -> String {
        self.commands.write_all(command.as_bytes()).expect("the router runs");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the router answers");
        line
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.router.kill();
        let _ = self.router.wait();
    }
}

/// What the name server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says {
    Nothing,
    /// SERVFAIL.
    Failure,
    Address(Ipv4Addr),
    /// So many of them in a row, from this one on.
    Addresses(Ipv4Addr, u8),
    /// Of IPv6, and none of IPv4.
    Address6(Ipv6Addr),
}

/// What it says of each name: of those that are listed, and of all others.
type Words = Arc<Mutex<(Vec<(String, Says)>, Says)>>;

/// A name server of one's own, for every name.
pub struct Names {
    /// The process that keeps the mounts by which a program finds it. Without it the
    /// last one to end would wait until the kernel has put them away: for seconds
    /// where the processors are busy.
    mounts: Child,
    says: Words,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Names {
    /// On port 53 of this address of the loopback. `None`, said aloud, where
    /// that or a mount namespace is not permitted.
    pub fn served_at(address: Ipv4Addr, says: Says) -> Option<Names> {
        let (Some(mounts), Ok(socket)) = (mounts(address), UdpSocket::bind((address, 53))) else {
            say("SKIPPED: names cannot be tested here: root is needed for port 53 and mounts");
            return None;
        };
        socket.set_read_timeout(Some(millis(50))).expect("reads with a limit");
        let says: Words = Arc::new(Mutex::new((Vec::new(), says)));
        let end = Arc::new(AtomicBool::new(false));
        let thread = {
            let (says, end) = (says.clone(), end.clone());
            std::thread::spawn(move || {
                let mut question = [0; 512];
                while !end.load(Ordering::Relaxed) {
                    let Ok((length, from)) = socket.recv_from(&mut question) else { continue };
                    let question = &question[..length];
                    let says = said_of(question, &says);
                    if let Some(answer) = answer(question, says) {
                        let _ = socket.send_to(&answer, from);
                    }
                }
            })
        };
        Some(Names { mounts, says, end, thread: Some(thread) })
    }

    pub fn say(&self, says: Says) {
        self.says.lock().expect("no panic while it was held").1 = says;
    }

    /// Of this name alone.
    pub fn say_of(&self, name: &str, says: Says) {
        self.says.lock().expect("no panic while it was held").0.push((name.to_owned(), says));
    }

    /// Starts a program that asks this server alone.
    pub fn client(&self) -> Vec<String> {
        let space = format!("--mount=/proc/{}/ns/mnt", self.mounts.id());
        ["nsenter", &space, "--"].map(str::to_owned).to_vec()
    }
}

/// A process in a mount namespace of its own, where this address is the only name
/// server; it ends with its standard input.
fn mounts(address: Ipv4Addr) -> Option<Child> {
    let directory = scratch("names");
    let file = |name: &str, text: String| {
        let path = directory.join(name);
        std::fs::write(&path, text).expect("writes a file");
        path.display().to_string()
    };
    let resolv = file("resolv.conf", format!("nameserver {address}\n"));
    let switch = file("nsswitch.conf", "hosts: dns\n".to_owned());
    let script = format!(
        "mount --bind {resolv} /etc/resolv.conf && \
         if [ -e /etc/nsswitch.conf ]; then mount --bind {switch} /etc/nsswitch.conf; fi && \
         echo mounted && exec cat"
    );
    let mut child = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut said = String::new();
    if let Some(out) = child.stdout.as_mut() {
        BufReader::new(out).read_line(&mut said).ok();
    }
    if said == "mounted\n" {
        return Some(child);
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

impl Drop for Names {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let _ = self.mounts.kill();
        let _ = self.mounts.wait();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn said_of(question: &[u8], says: &Words) -> Says {
    let says = says.lock().expect("no panic while it was held");
    let is = |name: &str| {
        let labels = name.split('.').map(|l| [&[l.len() as u8], l.as_bytes()].concat());
        question
            .get(12..)
            .is_some_and(|asked| asked.starts_with(&labels.flatten().collect::<Vec<_>>()))
    };
    says.0.iter().find(|(name, _)| is(name)).map_or(says.1, |(_, says)| *says)
}

/// The answer to a question for an address; the empty one for other types.
fn answer(question: &[u8], says: Says) -> Option<Vec<u8>> {
    // The name: labels with their lengths, a zero; then type and class.
    let end = 12 + question.get(12..)?.iter().position(|&b| b == 0)? + 5;
    let kind = question.get(end - 4..end)?;
    let v4 = |first: Ipv4Addr, count: u8| -> Vec<Vec<u8>> {
        let first = u32::from(first);
        (0..u32::from(count)).map(|n| (first + n).to_be_bytes().to_vec()).collect()
    };
    let (code, addresses) = match (says, kind) {
        (Says::Nothing, _) => return None,
        (Says::Failure, _) => (2, Vec::new()),
        (Says::Address(address), [0, 1, 0, 1]) => (0, v4(address, 1)),
        (Says::Addresses(first, count), [0, 1, 0, 1]) => (0, v4(first, count)),
        (Says::Address6(address), [0, 28, 0, 1]) => (0, vec![address.octets().to_vec()]),
        _ => (0, Vec::new()),
    };
    let mut answer = question.get(..2)?.to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0]);
    answer.extend(&question[12..end]);
    for address in addresses {
        answer.extend([0xc0, 12]);
        answer.extend(kind);
        answer.extend([0, 0, 0, 0, 0, address.len() as u8]);
        answer.extend(address);
    }
    Some(answer)
}
