//! What an agent must never wait for: readers of its log, the service manager,
//! the file system under its metrics.

use std::fs::File;
use std::io::{PipeReader, Read, Write, pipe};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use serde_json::json;

use crate::harness::agent::{Invocation, aegis};
use crate::harness::registry::{Registry, Watch};
use crate::harness::scene::KEY;
use crate::harness::server::Server;
use crate::harness::{
    eventually, free_port, millis, nothing_happens_for, scratch, secs, send_signal, time_passes,
};

/// A server, and a look at what is published there.
fn scene() -> (Server, Watch, Registry) {
    let server = Server::any();
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({}));
    (server, registry.watch(KEY), registry)
}

fn agent(server: &Server) -> Invocation {
    aegis(&["run", "--service=orders-api", "--instance=host-1", "--ttl=3s", "--interval=500ms"])
        .arg(&format!("-s={}", server.url()))
}

/// A process of ours that is killed in the end.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Guard {
    fn wait_exit(&mut self, within: Duration) -> Option<i32> {
        eventually(within, "it ends", || {
            self.0.try_wait().expect("its own child").ok_or_else(|| "it runs".to_owned())
        })
        .code()
    }
}

/// Fills a pipe to its last byte, through a handle that is not shared.
fn full_pipe() -> (PipeReader, Stdio) {
    let (reader, mut writer) = pipe().expect("a pipe");
    let flags = fcntl_getfl(&writer).expect("its flags");
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).expect("does not block");
    for size in [4_096, 1] {
        while writer.write(&vec![b'.'; size]).is_ok() {}
    }
    fcntl_setfl(&writer, flags).expect("blocks again");
    (reader, writer.into())
}

/// Reads on, without waiting, until the text holds `wanted`.
fn read_until(reader: &mut PipeReader, text: &mut String, wanted: &str, within: Duration) {
    let flags = fcntl_getfl(&*reader).expect("its flags");
    fcntl_setfl(&*reader, flags | OFlags::NONBLOCK).expect("does not block");
    let mut buffer = [0; 65_536];
    eventually(within, &format!("{wanted:?} is read"), || {
        while let Ok(count @ 1..) = reader.read(&mut buffer) {
            let part = String::from_utf8_lossy(&buffer[..count]);
            text.push_str(part.trim_start_matches('.'));
        }
        if text.contains(wanted) { Ok(()) } else { Err(text.clone()) }
    });
}

#[test]
fn a_log_that_nobody_reads_stops_no_beat_and_what_was_lost_is_told() {
    let (server, watch, mut registry) = scene();
    let (mut reader, stderr) = full_pipe();
    let invocation = agent(&server).arg("--verbose");
    let mut agent = Guard(invocation.command().stderr(stderr).spawn().expect("starts"));
    watch.wait_for(8, secs(10));
    for pair in watch.seen().windows(2) {
        let apart = pair[1].stored - pair[0].stored;
        assert!(apart < millis(1_500), "{apart} between two heartbeats");
    }
    let mut text = String::new();
    read_until(&mut reader, &mut text, " dropped here: nobody read from stderr\n", secs(5));
    let line = text.lines().next().expect("a line");
    let count = line.split("warning: ").nth(1).and_then(|rest| rest.split(' ').next());
    let count: u32 = count.and_then(|count| count.parse().ok()).expect("a number");
    // Registered, and a line for each heartbeat.
    assert!(count >= 8, "{text}");
    read_until(&mut reader, &mut text, "heartbeat of orders-api/host-1 acknowledged", secs(3));

    // Once more, and a stop meanwhile.
    let seen = watch.seen().len();
    watch.wait_for(seen + 2, secs(5));
    send_signal(agent.0.id(), "TERM");
    assert_eq!(agent.wait_exit(secs(3)), Some(0));
    assert!(registry.last(KEY).is_none_or(|entry| entry.is_marker()), "deregistered");
}

#[test]
fn a_stop_comes_through_where_nobody_reads_the_log() {
    let (server, watch, mut registry) = scene();
    let (_reader, stderr) = full_pipe();
    let mut agent = Guard(agent(&server).command().stderr(stderr).spawn().expect("starts"));
    watch.wait_for(2, secs(5));
    send_signal(agent.0.id(), "TERM");
    assert_eq!(agent.wait_exit(secs(3)), Some(0));
    assert!(registry.last(KEY).is_none_or(|entry| entry.is_marker()), "deregistered");
}

#[test]
fn a_pipe_of_another_user_that_nobody_reads_stops_no_beat() {
    let (server, watch, _) = scene();
    let (_reader, stderr) = full_pipe();
    let words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let invocation = agent(&server).wrapped(&words.map(str::to_owned));
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: root is needed to run the agent as another user");
        return;
    }
    let _agent = Guard(invocation.command().stderr(stderr).spawn().expect("starts"));
    watch.wait_for(6, secs(10));
}

#[test]
fn a_tool_has_patience_with_a_slow_reader_and_an_end_without_one() {
    let (mut reader, stderr) = full_pipe();
    let list = aegis(&["list", "-s", "127.0.0.1:1"]);
    let began = Instant::now();
    let mut child = Guard(list.command().stderr(stderr).spawn().expect("starts"));
    nothing_happens_for(millis(1_500));
    assert!(child.0.try_wait().expect("its own child").is_none(), "it waits for its reader");
    let mut text = String::new();
    read_until(&mut reader, &mut text, "no connection to NATS", secs(5));
    assert_eq!(child.wait_exit(secs(5)), Some(69));

    let (_reader, stderr) = full_pipe();
    let mut child = Guard(list.command().stderr(stderr).spawn().expect("starts"));
    assert_eq!(child.wait_exit(secs(15)), Some(69));
    assert!(began.elapsed() < secs(20));
}

#[test]
fn a_manager_that_reads_nothing_stops_no_beat() {
    let (server, watch, _) = scene();
    let name = format!("aegis-agent-stuck-{}-{}", std::process::id(), free_port());
    let address = SocketAddr::from_abstract_name(&name).expect("an abstract name");
    let manager = UnixDatagram::bind_addr(&address).expect("binds it");
    // Its queue (net.unix.max_dgram_qlen) is full before the agent comes.
    let filler = UnixDatagram::unbound().expect("a socket");
    filler.connect_addr(&address).expect("connects");
    filler.set_nonblocking(true).expect("does not block");
    while filler.send(b"STATUS=filler").is_ok() {}
    let mut agent = agent(&server)
        .env("NOTIFY_SOCKET", &format!("@{name}"))
        .env("WATCHDOG_USEC", "400000")
        .spawn();
    watch.wait_for(6, secs(10));
    // When it reads again it hears that the agent is ready, and alive.
    manager.set_read_timeout(Some(secs(2))).expect("a limit");
    let mut buffer = [0; 4_096];
    let mut heard = String::new();
    eventually(secs(5), "it hears of the agent", || {
        let length = manager.recv(&mut buffer).map_err(|error| format!("{error}: {heard}"))?;
        heard.push_str(&String::from_utf8_lossy(&buffer[..length]));
        heard.push('\n');
        let all = heard.contains("READY=1") && heard.contains("WATCHDOG=1");
        if all { Ok(()) } else { Err(heard.clone()) }
    });
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
}

/// As by ^S.
#[test]
fn a_stopped_terminal_stops_no_beat() {
    let (server, watch, _) = scene();
    let (main, side) = terminal();
    rustix::termios::tcflow(&side, rustix::termios::Action::OOff).expect("stops it");
    let invocation = agent(&server).arg("--verbose");
    let command = &mut invocation.command();
    let mut agent = Guard(command.stderr(side).spawn().expect("starts"));
    watch.wait_for(6, secs(10));
    send_signal(agent.0.id(), "TERM");
    assert_eq!(agent.wait_exit(secs(3)), Some(0));
    drop(main);
}

/// Both ends of a terminal of our own.
fn terminal() -> (File, File) {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let main = openpt(flags).expect("a terminal");
    grantpt(&main).expect("granted");
    unlockpt(&main).expect("unlocked");
    let side = ioctl_tiocgptpeer(&main, flags).expect("its other end");
    (main.into(), side.into())
}

/// A file system of our own that can be frozen: whoever writes to it then hangs
/// in the kernel, and no signal ends that.
struct Disk(PathBuf);

/// A frozen disk. It has to go before whoever waits for the end of a process
/// that hangs there.
struct Frozen<'a>(&'a Disk);

impl Disk {
    /// `None`, said aloud, where that is not permitted.
    fn mounted() -> Option<Disk> {
        let place = scratch("disk");
        let (image, directory) = (place.join("image"), place.join("mounted"));
        std::fs::create_dir(&directory).expect("a directory");
        let script = "truncate -s 8M \"$1\" && mkfs.ext4 -q \"$1\" && mount -o loop \"$1\" \"$2\"";
        let output = Command::new("sh")
            .args(["-c", script, "sh"])
            .args([&image, &directory])
            .output()
            .expect("sh runs");
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            eprintln!("SKIPPED: no file system can be frozen here: {}", why.trim());
            return None;
        }
        Some(Disk(directory))
    }

    fn freeze(&self) -> Frozen<'_> {
        let status = Command::new("fsfreeze").arg("--freeze").arg(&self.0).status();
        assert!(status.expect("fsfreeze runs").success(), "fsfreeze --freeze");
        Frozen(self)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(&self.0.0).status();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_frozen_file_system_under_the_metrics_stops_no_beat() {
    let (server, watch, mut registry) = scene();
    let Some(disk) = Disk::mounted() else { return };
    let file = disk.0.join("a.prom");
    let mut agent = agent(&server).arg(&format!("--metrics-file={}", file.display())).spawn();
    let sent = |within: Duration, least: u64| {
        eventually(within, "the metrics go on", || {
            let text = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
            let line = text.lines().find(|l| l.starts_with("aegis_agent_heartbeats_sent_total"));
            let count = line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
            if count >= Some(least) { Ok(count.unwrap_or(0)) } else { Err(text) }
        })
    };
    let before = sent(secs(5), 2);
    let frozen = disk.freeze();
    let seen = watch.seen().len();
    watch.wait_for(seen + 8, secs(10));
    let line = agent.wait_for_line("cannot write the metrics file", secs(5));
    assert!(line.text.ends_with("its file system does not answer"), "{}", line.text);
    drop(frozen);
    sent(secs(5), before + 8);
    for pair in watch.seen().windows(2) {
        let apart = pair[1].stored - pair[0].stored;
        assert!(apart < millis(1_500), "{apart} between two heartbeats");
    }
    assert_eq!(agent.lines_with("metrics file").len(), 1, "{}", agent.stderr());

    // A stop while it hangs.
    let _frozen = disk.freeze();
    time_passes(secs(1));
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
    assert!(registry.last(KEY).is_none_or(|entry| entry.is_marker()), "deregistered");
}
