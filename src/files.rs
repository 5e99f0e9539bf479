//! Small files of the configuration, read without ever waiting for long.
//!
//! A file may be a pipe: process substitution, `/dev/stdin`, a FIFO. A pipe can
//! be read once only, so what came out of it is kept until the program ends,
//! and each later reading gets the same. What else there is (devices, sockets)
//! is refused in words. A file system that hangs is the one thing that can
//! still hold this up.

// A door: it waits for pipes.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

/// No file of the configuration is larger: credentials, keys, a bundle of CAs.
pub const LARGEST: u64 = 1 << 20;
/// A pipe has to be written and closed within this time.
const PATIENCE: Duration = Duration::from_secs(1);

/// What came out of pipes, by the name that was read.
static PIPES: Mutex<BTreeMap<PathBuf, Vec<u8>>> = Mutex::new(BTreeMap::new());

/// The bytes of a file of at most `largest` bytes. The error has words for what
/// is wrong with it, without the path.
pub fn read(path: &Path, largest: u64) -> io::Result<Vec<u8>> {
    read_within(path, largest, PATIENCE)
}

/// The same as text, of at most `LARGEST` bytes.
pub fn read_text(path: &Path) -> io::Result<String> {
    let bytes = read(path, LARGEST)?;
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is no text in UTF-8"))
}

fn read_within(path: &Path, largest: u64, patience: Duration) -> io::Result<Vec<u8>> {
    // Without O_NONBLOCK to open a FIFO waits for a writer, for ever.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_fifo() {
        let mut kept = PIPES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = kept.get(path) {
            return Ok(bytes.clone());
        }
        let bytes = drain(&file, largest, Instant::now() + patience)?;
        kept.insert(path.to_owned(), bytes.clone());
        return Ok(bytes);
    }
    if kind.is_char_device() || kind.is_block_device() {
        return Err(io::Error::other("it is a device: a file or a pipe is wanted"));
    }
    let mut bytes = Vec::new();
    (&file).take(largest + 1).read_to_end(&mut bytes)?;
    bounded(bytes, largest)
}

/// Everything that comes out of a pipe up to its end.
fn drain(pipe: &File, largest: u64, until: Instant) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        // A read before anybody has opened it for writing would find its end.
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or_default();
        match poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(0) => return Err(io::Error::other(silent(&bytes))),
            _ => {}
        }
        match (&*pipe).read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        bytes = bounded(bytes, largest)?;
        if Instant::now() >= until {
            return Err(io::Error::other(silent(&bytes)));
        }
    }
}

fn silent(bytes: &[u8]) -> String {
    let what = match bytes {
        [] => "nothing came out of this pipe",
        _ => "this pipe did not come to its end",
    };
    format!("{what} within {}s", PATIENCE.as_secs())
}

fn bounded(bytes: Vec<u8>, largest: u64) -> io::Result<Vec<u8>> {
    if bytes.len() as u64 <= largest {
        return Ok(bytes);
    }
    Err(io::Error::other(match largest {
        LARGEST => "it is larger than 1 MiB".to_owned(),
        _ => format!("it is larger than {largest} bytes"),
    }))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::thread;

    use super::*;

    const SOON: Duration = Duration::from_millis(200);

    /// A FIFO of this test's own.
    fn fifo(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("aegis-files-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join(name);
        fs::remove_file(&path).ok();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        path
    }

    fn words(path: &Path) -> String {
        read_within(path, LARGEST, SOON).unwrap_err().to_string()
    }

    #[test]
    fn a_fifo_that_nobody_writes_to_is_given_up_in_time() {
        let path = fifo("silent");
        let began = Instant::now();
        assert_eq!(words(&path), "nothing came out of this pipe within 1s");
        assert!((SOON..SOON * 5).contains(&began.elapsed()), "{:?}", began.elapsed());
    }

    #[test]
    fn a_pipe_that_nobody_closes_is_given_up_in_time() {
        let path = fifo("open");
        let mut writer = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        writer.write_all(b"secret").unwrap();
        assert_eq!(words(&path), "this pipe did not come to its end within 1s");
        // Nor does one that trickles for ever push the end out.
        let writing = thread::spawn(move || {
            for _ in 0..200 {
                writer.write_all(b"x").unwrap();
                thread::sleep(Duration::from_millis(5));
            }
        });
        let began = Instant::now();
        words(&path);
        assert!(began.elapsed() < SOON * 4, "{:?}", began.elapsed());
        writing.join().unwrap();
    }

    #[test]
    fn what_came_out_of_a_pipe_is_kept() {
        let path = fifo("slow");
        let writer = path.clone();
        let writing = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            let mut file = OpenOptions::new().write(true).open(writer).unwrap();
            file.write_all(b"first ").unwrap();
            thread::sleep(Duration::from_millis(50));
            file.write_all(&[b'x'; 9_000]).unwrap();
        });
        let text = read_text(&path).unwrap();
        writing.join().unwrap();
        assert_eq!((text.len(), &text[..7]), (9_006, "first x"));
        assert_eq!(read_text(&path).unwrap(), text);
    }

    #[test]
    fn what_is_neither_file_nor_pipe_or_too_large_is_refused_in_words() {
        let device = "it is a device: a file or a pipe is wanted";
        assert_eq!(words(Path::new("/dev/zero")), device);
        assert_eq!(words(Path::new("/dev/null")), device);
        let path = fifo("limits");
        fs::remove_file(&path).unwrap();
        fs::write(&path, [b'x'; 11]).unwrap();
        assert_eq!(read(&path, 11).unwrap().len(), 11);
        assert_eq!(read(&path, 10).unwrap_err().to_string(), "it is larger than 10 bytes");
        fs::write(&path, b"\xff\xfe").unwrap();
        assert!(read_text(&path).unwrap_err().to_string().contains("UTF-8"));
    }
}
