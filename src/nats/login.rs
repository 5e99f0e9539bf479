//! Who we are, towards NATS: logins and certificates, and the files they are in.
//!
//! A file that cannot be used is named, with what is wrong with it. No secret
//! ever appears in `Debug`, in an error or in a log line. Whether a login is
//! still valid is for the server to say, not for this host's clock.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use data_encoding::{BASE64_MIME_PERMISSIVE, BASE64URL_NOPAD};
use serde::Deserialize;
use time::OffsetDateTime;

use super::address::shown_name;
use super::nkey::UserKey;
use crate::error::{Failure, Kind, plain};
use crate::files;

/// What keys the TLS library can use (ring).
pub const KEYS_SUPPORTED: &str = "RSA, EC P-256, EC P-384 and Ed25519 are";
/// How a key or certificate of the curve P-521 names it (OID 1.3.132.0.35).
const P521: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23];

/// Where credentials and nkeys are that are in no file: `data:` of a context.
pub const IN_CONTEXT: &str = "in the context";
/// What to do where credentials have ended.
pub(super) const FRESH_IN_FILE: &str =
    "put fresh credentials into that file: it is read again, and no restart is needed";
/// The same where they are in the context.
pub const FRESH_IN_CONTEXT: &str =
    "put fresh credentials into the context; a running agent reads it at a reload (SIGHUP)";

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
    /// What a `.creds` file holds: a user JWT with its seed.
    Creds(Secret),
    /// What an nkey file holds: a line with a seed (`SU...`).
    Nkey(Secret),
}

/// A secret, or where to find it.
#[derive(Clone)]
pub enum Secret {
    /// Its text, from the environment, a URL or a context.
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
    /// Out of a `.creds` file, each valid in form.
    Creds {
        /// The user JWT.
        jwt: String,
        /// The user seed that belongs to it.
        seed: String,
    },
    /// A user seed.
    Nkey(String),
}

/// Why a server's nonce cannot be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignError(pub &'static str);

impl ReadLogin {
    /// The key that signs a server's nonce.
    pub(super) fn key(&self) -> Result<UserKey, SignError> {
        match self {
            ReadLogin::Creds { seed, .. } | ReadLogin::Nkey(seed) => {
                UserKey::from_seed(seed).map_err(SignError)
            }
            _ => Err(SignError("it has no key")),
        }
    }

    /// When its JWT says that it ends, if it does.
    pub fn expires(&self) -> Option<OffsetDateTime> {
        match self {
            ReadLogin::Creds { jwt, .. } => {
                let seconds = read_claims(jwt)?.exp.filter(|seconds| *seconds > 0)?;
                OffsetDateTime::from_unix_timestamp(seconds).ok()
            }
            _ => None,
        }
    }
}

/// Who logs in, in words: what an operator has to look at when the server
/// refuses.
impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Login::None => f.write_str("no login was given"),
            Login::User { name, password: Secret::File(path) } => {
                write!(f, "user {name:?} with the password in {}", path.display())
            }
            Login::User { name, .. } => write!(f, "user {name:?} with a password"),
            Login::Token(Secret::File(path)) => write!(f, "the token in {}", path.display()),
            Login::Token(_) => f.write_str("a token"),
            Login::Creds(Secret::File(path)) => write!(f, "credentials file {}", path.display()),
            Login::Creds(_) => write!(f, "the credentials {IN_CONTEXT}"),
            Login::Nkey(Secret::File(path)) => write!(f, "nkey file {}", path.display()),
            Login::Nkey(_) => write!(f, "the nkey {IN_CONTEXT}"),
        }
    }
}

/// Reads whatever files a login names.
pub fn read_login(login: &Login) -> Result<ReadLogin, Failure> {
    Ok(match login {
        Login::None => ReadLogin::None,
        Login::User { name, password } => {
            ReadLogin::User(name.clone(), read_secret(password, "password file")?)
        }
        Login::Token(token) => ReadLogin::Token(read_secret(token, "token file")?),
        Login::Creds(secret) => read_with(secret, "credentials", &read_creds)?,
        Login::Nkey(secret) => read_with(secret, "nkey", &read_nkey)?,
    })
}

/// Reads credentials or an nkey out of a file or out of the context.
fn read_with(
    secret: &Secret,
    what: &str,
    read: &dyn Fn(&str) -> Result<ReadLogin, &'static str>,
) -> Result<ReadLogin, Failure> {
    match secret {
        Secret::Text(text) => read(text)
            .map_err(|why| Failure::new(Kind::Config, format!("the {what} {IN_CONTEXT}: {why}"))),
        Secret::File(path) => {
            let what = format!("{what} file");
            read(&read_text(path, &what)?).map_err(|why| bad_file(path, &what, why))
        }
    }
}

/// Reads the text of an nkey file. The error never shows any of it.
fn read_nkey(text: &str) -> Result<ReadLogin, &'static str> {
    let seed = text.lines().map(str::trim).find(|line| line.starts_with("SU"));
    let seed = seed.ok_or("no line in it is a user seed (SU...)")?;
    UserKey::from_seed(seed).map_err(|_| "its seed is damaged")?;
    Ok(ReadLogin::Nkey(seed.to_owned()))
}

/// Reads the text of a `.creds` file. The error never shows any of it.
pub fn read_creds(text: &str) -> Result<ReadLogin, &'static str> {
    let jwt = block(text, "BEGIN NATS USER JWT").ok_or("it holds no user JWT")?;
    let seed = block(text, "BEGIN USER NKEY SEED").ok_or("it holds no user seed")?;
    let claims = read_claims(jwt).ok_or("its user JWT is damaged")?;
    if !seed.starts_with("SU") {
        return Err("its seed is not that of a user (SU...)");
    }
    let key = UserKey::from_seed(seed).map_err(|_| "its seed is damaged")?;
    if claims.sub != key.public_key() {
        return Err("its seed does not belong to its user JWT");
    }
    Ok(ReadLogin::Creds { jwt: jwt.to_owned(), seed: seed.to_owned() })
}

/// The line after one that holds `title`.
fn block<'a>(text: &'a str, title: &str) -> Option<&'a str> {
    let mut lines = text.lines().map(str::trim).skip_while(|line| !line.contains(title)).skip(1);
    lines.find(|line| !line.is_empty()).filter(|line| !line.starts_with("---"))
}

/// What a user JWT says, as far as it matters here.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: Option<i64>,
}

/// The claims of a JWT, unverified: that is the server's business.
fn read_claims(jwt: &str) -> Option<Claims> {
    let parts: Vec<&str> = jwt.split('.').collect();
    let [header, claims, signature] = parts.as_slice() else {
        return None;
    };
    let decode = |part: &str| BASE64URL_NOPAD.decode(part.as_bytes()).ok();
    decode(header)?;
    decode(signature)?;
    serde_json::from_slice(&decode(claims)?).ok()
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
        judge_pem(&text, marker).map_err(|why| bad_file(path, what, &why))?;
    }
    Ok(())
}

/// Whether a PEM file holds what it should, and what the TLS library can use.
pub fn judge_pem(text: &str, marker: &str) -> Result<(), String> {
    let mut found = false;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if !line.starts_with("-----BEGIN ") || !line.contains(marker) {
            continue;
        }
        found = true;
        let encrypted = |line: &str| line.contains("ENCRYPTED");
        let body: Vec<&str> = lines.by_ref().take_while(|l| !l.starts_with("-----END")).collect();
        if encrypted(line) || body.iter().any(|line| encrypted(line)) {
            return Err("its key is under a passphrase, which is not supported: \
                        take it off with `openssl pkey -in FILE -out NEWFILE`"
                .into());
        }
        let bytes = BASE64_MIME_PERMISSIVE.decode(body.concat().as_bytes());
        let bytes = bytes.map_err(|_| format!("its {marker} block is damaged"))?;
        if bytes.windows(P521.len()).any(|window| window == P521) {
            return Err(format!(
                "it is of the curve P-521, which is not supported; {KEYS_SUPPORTED}"
            ));
        }
    }
    if !found {
        return Err(format!("it holds no PEM block with {marker}"));
    }
    Ok(())
}

/// The bytes of a file that `check_tls_files` has passed.
pub(super) fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    files::read(path, files::LARGEST)
}

fn read_text(path: &Path, what: &str) -> Result<String, Failure> {
    files::read_text(path).map_err(|error| bad_file(path, what, &plain(&error)))
}

fn bad_file(path: &Path, what: &str, why: &str) -> Failure {
    let hint = match what {
        "credentials file" => "--creds (NATS_CREDS, or creds of the context) names it",
        "nkey file" => "--nkey (NATS_NKEY, or nkey of the context) names it",
        "CA file" => "--tlsca (NATS_CA, or ca of the context) names it",
        "certificate file" => "--tlscert (NATS_CERT, or cert of the context) names it",
        "key file" => "--tlskey (NATS_KEY, or key of the context) names it",
        "password file" => "--password-file names it; NATS_PASSWORD is the password itself",
        _ => "--token-file names it; NATS_TOKEN is the token itself",
    };
    let path = shown_name(&path.display().to_string());
    Failure::new(Kind::Config, format!("{what} {path}: {why}")).with_hint(hint)
}
