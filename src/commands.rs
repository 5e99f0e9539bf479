//! The verbs, one file each: from validated options to an answer on the writer
//! that is given, or a failure with its exit code.

pub mod check;
pub mod cleanup;
pub mod init;
pub mod list;
pub mod run;
pub mod watch;
