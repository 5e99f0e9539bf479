//! The context files of the `nats` CLI: how one reaches NATS, under a name.
//!
//! Format as in nats-io/jsm.go, `natscontext`: one JSON object in
//! `$XDG_CONFIG_HOME/nats/context/NAME.json`. Fields that would change how one
//! logs in and that this program does not know are refused by name.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Failure, Kind, plain};

/// A file larger than this is no context.
const FILE_LIMIT: u64 = 1 << 20;
/// Fields that this program cannot honour and must not ignore.
const UNSUPPORTED: [&str; 6] =
    ["nsc", "user_jwt", "user_seed", "windows_cert_store", "socks_proxy", "tls_first"];

/// The fields of a context that this program takes; paths with `~` expanded.
#[derive(Default)]
pub struct Context {
    /// Comma-separated server URLs.
    pub url: Option<String>,
    /// The user's name.
    pub user: Option<String>,
    /// The password itself.
    pub password: Option<String>,
    /// The token itself.
    pub token: Option<String>,
    /// Path of a `.creds` file.
    pub creds: Option<String>,
    /// Path of an nkey seed.
    pub nkey: Option<String>,
    /// Path of our own certificate.
    pub cert: Option<String>,
    /// Path of its key.
    pub key: Option<String>,
    /// Path of the roots to trust.
    pub ca: Option<String>,
    /// Where replies arrive.
    pub inbox_prefix: Option<String>,
}

/// Reads the context of that name.
pub fn load(name: &str, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Context, Failure> {
    let plain_name = !name.is_empty() && !name.contains('/') && !name.starts_with('.');
    if !plain_name {
        return Err(Failure::new(
            Kind::Config,
            format!("context {name:?}: must be the plain name of a context file"),
        ));
    }
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    let home = set("HOME").map(PathBuf::from);
    let config = match (set("XDG_CONFIG_HOME"), &home) {
        (Some(config), _) => PathBuf::from(config),
        (None, Some(home)) => home.join(".config"),
        (None, None) => {
            return Err(Failure::new(
                Kind::Config,
                format!("context {name}: neither XDG_CONFIG_HOME nor HOME is set"),
            ));
        }
    };
    let directory = config.join("nats").join("context");
    let path = directory.join(format!("{name}.json"));
    let bad = |why: &str| {
        let what = format!("context {name} ({}): {why}", path.display());
        Failure::new(Kind::Config, what)
    };
    let size = fs::metadata(&path).map(|file| file.len());
    if size.is_ok_and(|size| size > FILE_LIMIT) {
        return Err(bad("larger than 1 MiB"));
    }
    let text = fs::read_to_string(&path).map_err(|error| {
        let failure = bad(&plain(&error));
        match error.kind() {
            std::io::ErrorKind::NotFound => failure.with_hint(known(&directory)),
            _ => failure,
        }
    })?;
    read(&text, home.as_deref()).map_err(|why| bad(&why))
}

fn read(text: &str, home: Option<&Path>) -> Result<Context, String> {
    // The words of serde_json could quote a secret; the place is enough.
    let fields: Map<String, Value> = serde_json::from_str(text).map_err(|error| {
        format!("not a JSON object (line {}, column {})", error.line(), error.column())
    })?;
    for name in UNSUPPORTED {
        match fields.get(name) {
            None | Some(Value::Null | Value::Bool(false)) => {}
            Some(Value::String(text)) if text.is_empty() => {}
            Some(_) => return Err(format!("{name} is not supported by aegis-agent")),
        }
    }
    let text = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(format!("{name} must be a string")),
    };
    let path = |name: &str| {
        let expand = |path: String| match (path.strip_prefix('~'), home) {
            (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
                format!("{}{rest}", home.display())
            }
            _ => match (path.strip_prefix("$HOME"), home) {
                (Some(rest), Some(home)) => format!("{}{rest}", home.display()),
                _ => path,
            },
        };
        text(name).map(|found| found.map(expand))
    };
    Ok(Context {
        url: text("url")?,
        user: text("user")?,
        password: text("password")?,
        token: text("token")?,
        creds: path("creds")?,
        nkey: path("nkey")?,
        cert: path("cert")?,
        key: path("key")?,
        ca: path("ca")?,
        inbox_prefix: text("inbox_prefix")?,
    })
}

/// Names the contexts that there are.
fn known(directory: &Path) -> String {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some(name.strip_suffix(".json")?.to_owned())
        })
        .collect();
    names.sort();
    names.truncate(20);
    if names.is_empty() {
        return format!("there are no contexts in {}", directory.display());
    }
    format!("contexts that exist: {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_gives_its_fields_with_paths_expanded() {
        let text = r#"{"description":"x","url":"nats://a","user":"","creds":"~/c.creds",
            "ca":"$HOME/ca.pem","nkey":"/n","inbox_prefix":"_I","nsc":"","tls_first":false}"#;
        let context = read(text, Some(Path::new("/home/op"))).unwrap();
        assert_eq!(context.url.as_deref(), Some("nats://a"));
        assert_eq!(context.user, None);
        assert_eq!(context.creds.as_deref(), Some("/home/op/c.creds"));
        assert_eq!(context.ca.as_deref(), Some("/home/op/ca.pem"));
        assert_eq!(context.nkey.as_deref(), Some("/n"));
        assert_eq!(context.inbox_prefix.as_deref(), Some("_I"));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name_and_no_secret_is_shown() {
        for (text, words) in [
            (r#"{"nsc":"nsc://o/a/u"}"#, "nsc is not supported"),
            (r#"{"tls_first":true}"#, "tls_first is not supported"),
            (r#"{"user_seed":"SUsecret"}"#, "user_seed is not supported"),
            (r#"{"password":7}"#, "password must be a string"),
            (r#"{"password":"secret""#, "not a JSON object"),
            ("[]", "not a JSON object"),
        ] {
            let error = read(text, None).err().unwrap();
            assert!(error.contains(words), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_name_is_no_path() {
        for name in ["", "../x", "a/b", ".hidden"] {
            let failure = load(name, &|_| Some("/nowhere".into())).err().unwrap();
            assert_eq!(failure.exit_code(), 78, "{name}");
        }
    }
}
