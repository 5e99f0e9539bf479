//! Who we are, towards NATS: logins and certificates, and the files they are in.
//!
//! A file that cannot be used is named, with what is wrong with it. No secret
//! ever appears in `Debug`, in an error or in a log line.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::error::{Failure, Kind, plain};

/// No credentials or certificate file is larger.
const FILE_LIMIT: u64 = 1 << 20;

/// Who we are, towards NATS. Files are read anew for each session, so that
/// rotated credentials are picked up.
#[derive(Clone, Debug)]
pub enum Login {
    /// Nothing is sent.
    None,
    /// User and password.
    User {
        /// The user's name.
        name: String,
        /// The password.
        password: Secret,
    },
    /// A token.
    Token(Secret),
    /// A `.creds` file: a user JWT with its seed.
    Creds(PathBuf),
    /// A file with an nkey seed (`SU...`).
    Nkey(PathBuf),
}

/// A secret, or where to find it.
#[derive(Clone)]
pub enum Secret {
    /// Its text, from the environment or a URL.
    Text(String),
    /// A file that holds it, a final line break not counted.
    File(PathBuf),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Secret::Text(_) => f.write_str("Text(..)"),
            Secret::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// Certificates. Without any, the system's roots serve for `tls://`.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Roots to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// Our own certificate, with its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// A login with its files read.
pub enum ReadLogin {
    /// Nothing is sent.
    None,
    /// User and password.
    User(String, String),
    /// A token.
    Token(String),
    /// What a `.creds` file holds.
    Creds {
        /// The user JWT.
        jwt: String,
        /// The user seed that goes with it.
        seed: String,
    },
    /// A user seed.
    Nkey(String),
}

/// Reads whatever files a login names.
pub fn read_login(login: &Login) -> Result<ReadLogin, Failure> {
    Ok(match login {
        Login::None => ReadLogin::None,
        Login::User { name, password } => {
            ReadLogin::User(name.clone(), read_secret(password, "password file")?)
        }
        Login::Token(token) => ReadLogin::Token(read_secret(token, "token file")?),
        Login::Creds(path) => {
            let text = read_text(path, "credentials file")?;
            let block = |marker| block(&text, marker).map(str::to_owned);
            let (Some(jwt), Some(seed)) =
                (block("BEGIN NATS USER JWT"), block("BEGIN USER NKEY SEED"))
            else {
                return Err(bad_file(path, "credentials file", "it holds no user JWT and seed"));
            };
            check_seed(&seed).map_err(|why| bad_file(path, "credentials file", &why))?;
            ReadLogin::Creds { jwt, seed }
        }
        Login::Nkey(path) => {
            let text = read_text(path, "nkey file")?;
            let seed = text.lines().map(str::trim).find(|line| line.starts_with("SU"));
            let Some(seed) = seed else {
                return Err(bad_file(path, "nkey file", "no line in it is a user seed (SU...)"));
            };
            check_seed(seed).map_err(|why| bad_file(path, "nkey file", &why))?;
            ReadLogin::Nkey(seed.to_owned())
        }
    })
}

/// The first line behind the one with `marker`.
fn block<'a>(text: &'a str, marker: &str) -> Option<&'a str> {
    let mut lines = text.lines().map(str::trim).skip_while(|line| !line.contains(marker)).skip(1);
    lines.next().filter(|line| !line.is_empty())
}

fn check_seed(seed: &str) -> Result<(), String> {
    let pair = nkeys::KeyPair::from_seed(seed);
    pair.map(drop).map_err(|error| format!("its seed is damaged: {error}"))
}

fn read_secret(secret: &Secret, what: &str) -> Result<String, Failure> {
    match secret {
        Secret::Text(text) => Ok(text.clone()),
        Secret::File(path) => {
            let text = read_text(path, what)?;
            let text = text.trim_end_matches(['\r', '\n']);
            if text.is_empty() {
                return Err(bad_file(path, what, "it is empty"));
            }
            Ok(text.to_owned())
        }
    }
}

/// Whether the certificate files that are named hold what they should.
pub fn check_tls_files(tls: &Tls) -> Result<(), Failure> {
    let mut files = Vec::new();
    if let Some(ca) = &tls.ca {
        files.push((ca, "CA file", "CERTIFICATE"));
    }
    if let Some((cert, key)) = &tls.client {
        files.push((cert, "certificate file", "CERTIFICATE"));
        files.push((key, "key file", "PRIVATE KEY"));
    }
    for (path, what, marker) in files {
        let text = read_text(path, what)?;
        if !text.lines().any(|line| line.starts_with("-----BEGIN ") && line.contains(marker)) {
            let why = format!("it holds no PEM block with {marker}");
            return Err(bad_file(path, what, &why));
        }
    }
    Ok(())
}

fn read_text(path: &Path, what: &str) -> Result<String, Failure> {
    let read = || {
        let mut text = String::new();
        let file = fs::File::open(path)?;
        file.take(FILE_LIMIT).read_to_string(&mut text)?;
        Ok::<_, io::Error>(text)
    };
    read().map_err(|error| bad_file(path, what, &plain(&error)))
}

fn bad_file(path: &Path, what: &str, why: &str) -> Failure {
    Failure::new(Kind::Config, format!("{what} {}: {why}", path.display()))
}
