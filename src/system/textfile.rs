//! A small file, written whole or not at all.
//!
//! It is for node_exporter's textfile collector, and for whoever else reads it
//! while it is replaced. A link stays a link: what it points to is replaced. What
//! is no regular file (a device, a FIFO) is never replaced: it is written to. As
//! root a rename over `/dev/null` or `/dev/stdout` would take the device from
//! every other program.

use std::fs::{self, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// As many as the kernel follows.
const MOST_LINKS: usize = 40;

/// Replaces the file at `path`, which is then readable by everybody (0644),
/// whatever the umask. The directory has to be writable for us.
///
/// A reader sees the old text or the new one. Nothing waits for the disk:
/// what is lost in a crash of the host is out of date anyway.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    replace_for(path, text, std::process::id())
}

/// The same for the process `writer`, whose number tells its unfinished files
/// from those of others.
pub fn replace_for(path: &Path, text: &str, writer: u32) -> io::Result<()> {
    put(path, text, writer, false)
}

/// The same; and after a crash of the host, too, a reader sees the old text or
/// the new one.
pub fn replace_on_disk(path: &Path, text: &str) -> io::Result<()> {
    put(path, text, std::process::id(), true)
}

fn put(path: &Path, text: &str, writer: u32, on_disk: bool) -> io::Result<()> {
    // Through links, so that the kernel refuses one that a stranger put into a
    // directory like /tmp (fs.protected_symlinks).
    match fs::metadata(path) {
        Ok(there) if !there.is_file() => return write_into(path, &there, text),
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(_) | Err(_) => {}
    }
    let path = through_links(path)?;
    let name = path.file_name().ok_or_else(|| io::Error::other("not the name of a file"))?;
    // A name that the collector does not read: it takes `*.prom`.
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{writer}.new"));
    let fresh = path.with_file_name(hidden);
    // Left behind by a process that had our number.
    fs::remove_file(&fresh).ok();
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        if on_disk {
            file.sync_all()?;
        }
        fs::rename(&fresh, &path)
    })();
    if written.is_err() {
        fs::remove_file(&fresh).ok();
    }
    written
}

/// Where the links that begin at `path` end, whether or not something is there.
fn through_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::symlink_metadata(&path) {
            Ok(there) if there.is_symlink() => {
                let to = fs::read_link(&path)?;
                // Relative to where the link lies; an absolute one replaces it all.
                path = path.parent().map_or(to.clone(), |directory| directory.join(to));
            }
            _ => return Ok(path),
        }
    }
    Err(io::Error::other("too many links"))
}

/// Writes into what is no regular file, without ever waiting for a reader.
fn write_into(path: &Path, there: &Metadata, text: &str) -> io::Result<()> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let open = OpenOptions::new().write(true).custom_flags(flags.bits().cast_signed()).open(path);
    let no_reader = rustix::io::Errno::NXIO.raw_os_error();
    let mut file = open.map_err(|error| match error.raw_os_error() {
        Some(code) if code == no_reader && there.file_type().is_fifo() => {
            io::Error::other("nobody reads from this FIFO")
        }
        _ => error,
    })?;
    file.write_all(text.as_bytes()).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => io::Error::other("its reader does not keep up"),
        _ => error,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::process::Command;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let name = format!("aegis-textfile-{name}-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::remove_dir_all(&directory).ok();
        fs::create_dir_all(&directory).unwrap();
        directory
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<_> = entries.map(|e| name(e).into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_and_readable_by_everybody() {
        let directory = scratch("file");
        let path = directory.join("a.prom");
        for (text, write) in [
            ("one", replace as fn(&Path, &str) -> io::Result<()>),
            ("two", replace),
            ("three", replace_on_disk),
        ] {
            let before = fs::metadata(&path).ok().map(|file| file.ino());
            let old = fs::File::open(&path);
            write(&path, text).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            let after = fs::metadata(&path).unwrap();
            assert_eq!(after.mode() & 0o777, 0o644);
            assert_ne!(before, Some(after.ino()), "another file, the old one is whole");
            drop(old);
        }
        assert_eq!(names(&directory), ["a.prom"]);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_link_stays_and_what_it_points_to_is_replaced() {
        let directory = scratch("link");
        let target = directory.join("real");
        fs::create_dir(&target).unwrap();
        symlink("real/a.prom", directory.join("relative")).unwrap();
        symlink(directory.join("relative"), directory.join("absolute")).unwrap();
        for text in ["nothing was there", "there it is"] {
            replace(&directory.join("absolute"), text).unwrap();
            assert_eq!(fs::read_to_string(target.join("a.prom")).unwrap(), text);
        }
        assert!(directory.join("absolute").is_symlink() && directory.join("relative").is_symlink());
        assert_eq!(names(&directory), ["absolute", "real", "relative"]);
        assert_eq!(names(&target), ["a.prom"]);
        symlink("loop", directory.join("loop")).unwrap();
        assert!(replace(&directory.join("loop"), "").is_err());
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_fifo_is_written_to_and_never_waited_for() {
        let directory = scratch("fifo");
        let path = directory.join("fifo");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let error = replace(&path, "text").unwrap_err();
        assert_eq!(error.to_string(), "nobody reads from this FIFO");
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let mut reader = OpenOptions::new().read(true).custom_flags(flags).open(&path).unwrap();
        replace(&path, "text").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
        let error = replace(&path, &"x".repeat(1 << 20)).unwrap_err();
        assert_eq!(error.to_string(), "its reader does not keep up");
        assert!(fs::metadata(&path).unwrap().file_type().is_fifo());
        assert_eq!(names(&directory), ["fifo"]);
        fs::remove_dir_all(directory).unwrap();
    }

    /// `--output /dev/null`, tried on a copy of it where one can be made.
    #[test]
    fn a_device_stays_a_device() {
        let directory = scratch("device");
        let path = directory.join("null");
        let made = Command::new("mknod").arg(&path).args(["c", "1", "3"]).output().unwrap();
        // A file system or a sandbox may not let anybody write to it, either: then
        // one in whose directory nothing can be replaced, whoever we are.
        let is_there = made.status.success() && fs::write(&path, "").is_ok();
        let is_root = fs::metadata(&directory).unwrap().uid() == 0;
        let device = match (is_there, is_root) {
            (true, _) => path,
            (false, true) => PathBuf::from("/dev/pts/ptmx"),
            (false, false) => PathBuf::from("/dev/null"),
        };
        replace(&device, "text").unwrap();
        replace_on_disk(&device, "text").unwrap();
        assert!(fs::metadata(&device).unwrap().file_type().is_char_device());
        if is_there {
            assert_eq!(names(&directory), ["null"]);
        }
        fs::remove_dir_all(directory).unwrap();
    }
}
