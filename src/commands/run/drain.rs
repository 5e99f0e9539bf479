//! Draining: while a file exists the instance says `STANDBY`, and why.
//!
//! The file is looked at before each heartbeat. Whoever made it need not have
//! let us read it: that it is there is enough.

use std::io::{self, ErrorKind};
use std::path::Path;

use crate::error::plain;
use crate::files;
use crate::text::printable::clipped;

/// Characters of the reason; the rest is cut.
const LONGEST_REASON: usize = 200;
/// Bytes of the file that are read.
const LONGEST_FILE: u64 = 64 << 10;

/// Whether to drain, and why, as the file says: its first line, which may be
/// empty. The error is that it cannot be told whether there is one.
pub(super) fn look(path: &Path) -> Result<Option<String>, String> {
    match path.metadata() {
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(plain(&error)),
        // What is no file has no line; a pipe might never end.
        Ok(metadata) if !metadata.is_file() => Ok(Some(String::new())),
        Ok(_) => match files::read(path, LONGEST_FILE) {
            Ok(bytes) => Ok(Some(reason(&bytes))),
            // Gone since.
            Err(error) if is_absent(&error) => Ok(None),
            Err(_) => Ok(Some(String::new())),
        },
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn reason(bytes: &[u8]) -> String {
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    clipped(String::from_utf8_lossy(line).trim(), LONGEST_REASON)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_file_is_the_switch_and_its_first_line_the_reason() {
        let directory = std::env::temp_dir().join(format!("aegis-drain-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("drain");
        fs::remove_file(&path).ok();
        assert_eq!(look(&path), Ok(None));
        assert_eq!(look(&path.join("below")), Ok(None));
        for (text, reason) in [
            ("", ""),
            ("\nsecond", ""),
            ("kernel upgrade", "kernel upgrade"),
            ("  kernel upgrade \r\nmore", "kernel upgrade"),
            ("a\u{1b}[2Jb\u{202e}c", "a\\u{1b}[2Jb\\u{202e}c"),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(look(&path), Ok(Some(reason.to_owned())), "{text:?}");
        }
        fs::write(&path, [0xff, b'x', b'\n']).unwrap();
        assert_eq!(look(&path), Ok(Some("\u{fffd}x".to_owned())));
        fs::write(&path, "é".repeat(300)).unwrap();
        let reason = look(&path).unwrap().unwrap();
        assert_eq!((reason.chars().count(), reason.ends_with("é…")), (200, true));
        // Too large to be read, or a directory: it is there all the same.
        fs::write(&path, vec![b'x'; 70_000]).unwrap();
        assert_eq!(look(&path), Ok(Some(String::new())));
        assert_eq!(look(&directory), Ok(Some(String::new())));
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(look(&path), Ok(None));
    }
}
