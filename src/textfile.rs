//! A small file, written whole or not at all, for node_exporter's textfile
//! collector and whoever else reads it while it is replaced.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Replaces the file at `path`, which is then readable by everybody (0644),
/// whatever the umask. The directory has to be writable for us.
///
/// A reader sees the old text or the new one. Nothing waits for the disk:
/// what is lost in a crash of the host is out of date anyway.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::other("not the name of a file"))?;
    // A name that the collector does not read: it takes `*.prom`.
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.new", std::process::id()));
    let fresh = path.with_file_name(hidden);
    // Left behind by a process that had our number.
    fs::remove_file(&fresh).ok();
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        fs::rename(&fresh, path)
    })();
    if written.is_err() {
        fs::remove_file(&fresh).ok();
    }
    written
}
