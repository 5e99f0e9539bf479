//! One file per verb: each turns validated options and a registry into an
//! answer on the writer it is given, or a failure with its exit code.

pub mod check;
pub mod cleanup;
pub mod init;
pub mod list;
pub mod run;
pub mod watch;
