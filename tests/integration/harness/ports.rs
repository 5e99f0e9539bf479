//! Ports of 127.0.0.1 for servers and proxies. Each process of tests has blocks
//! of its own, by a lock on a file that ends with the process: two that run at
//! the same time, in whatever checkouts, take none from each other.

use std::fs::{self, File, OpenOptions};
use std::net::TcpListener;
use std::ops::Range;
use std::sync::Mutex;

use rustix::fs::{FlockOperation, flock};

/// They lie below the range from which outgoing connections draw theirs, so that
/// a server that is away for a while finds its port free when it comes back.
const FIRST: u16 = 10_000;
const BLOCK: u16 = 500;
const BLOCKS: u16 = 40;

static OWN: Mutex<Own> = Mutex::new(Own { blocks: Vec::new(), ports: 0..0 });

struct Own {
    /// The locks that are held, and whose block each is.
    blocks: Vec<(u16, File)>,
    /// What is left of the last one.
    ports: Range<u16>,
}

/// A port that is free now, and that nobody else takes.
pub fn free_port() -> u16 {
    let mut own = OWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    loop {
        let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
        if let Some(port) = own.ports.find(is_free) {
            return port;
        }
        own.take_block();
    }
}

impl Own {
    fn take_block(&mut self) {
        let user = rustix::process::geteuid().as_raw();
        let directory = std::env::temp_dir().join(format!("aegis-agent-test-ports-{user}"));
        fs::create_dir_all(&directory).expect("a directory for locks");
        for block in 0..BLOCKS {
            if self.blocks.iter().any(|(own, _)| *own == block) {
                continue;
            }
            let path = directory.join(block.to_string());
            let file = OpenOptions::new().create(true).append(true).open(path).expect("a lock");
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                self.blocks.push((block, file));
                self.ports = ports(block);
                return;
            }
        }
        // All are taken: what this process had first is long unused.
        assert!(!self.blocks.is_empty(), "no block of ports is free: {}", directory.display());
        self.blocks.rotate_left(1);
        self.ports = ports(self.blocks[self.blocks.len() - 1].0);
    }
}

fn ports(block: u16) -> Range<u16> {
    let first = FIRST + block * BLOCK;
    first..first + BLOCK
}
