//! The context files of the `nats` CLI: how one reaches NATS, under a name.
//!
//! Format as in nats-io/jsm.go, `natscontext`: one JSON object in
//! `$XDG_CONFIG_HOME/nats/context/NAME.json`. Fields that would change how one
//! logs in and that this program does not know are refused by name.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use data_encoding::BASE64_MIME_PERMISSIVE;
use serde_json::{Map, Value};

use crate::error::{Failure, Kind, plain};
use crate::files;
use crate::nats::address::shown_name;
use crate::nats::login::Secret;

/// A longer name is none that was selected.
const SELECTED_LIMIT: u64 = 256;
/// Fields that this program cannot honour and must not ignore.
const UNSUPPORTED: [&str; 6] =
    ["nsc", "user_jwt", "user_seed", "windows_cert_store", "socks_proxy", "jetstream_api_prefix"];
/// Schemes by which the CLI fetches a secret from elsewhere (its credential
/// resolvers, `natscontext/credentials.go`). `data:` holds it: see `inline`.
const RESOLVERS: [&str; 5] = ["op", "nsc", "env", "data", "file"];

/// The fields of a context that this program takes; paths with `~` expanded,
/// `data:` decoded.
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
    /// A `.creds` file, or what one holds.
    pub creds: Option<Secret>,
    /// A file with an nkey seed, or what one holds.
    pub nkey: Option<Secret>,
    /// Path of our own certificate.
    pub cert: Option<String>,
    /// Path of its key.
    pub key: Option<String>,
    /// Path of the roots to trust.
    pub ca: Option<String>,
    /// Where replies arrive.
    pub inbox_prefix: Option<String>,
    /// JetStream domain.
    pub jetstream_domain: Option<String>,
    /// TLS comes before the server's first word.
    pub tls_first: bool,
}

/// Reads the context of that name.
pub fn load(name: &str, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Context, Failure> {
    let shown = shown_name(name);
    if !is_plain(name) {
        return Err(Failure::new(
            Kind::Config,
            format!("context {shown:?}: must be the plain name of a context file"),
        ));
    }
    let home = home(env);
    let Some(config) = config(env) else {
        return Err(Failure::new(
            Kind::Config,
            format!("context {shown}: neither XDG_CONFIG_HOME nor HOME is set"),
        ));
    };
    let directory = config.join("context");
    let path = directory.join(format!("{name}.json"));
    let bad = |why: &str| {
        let what = format!(
            "context {shown} ({}): {why}",
            directory.join(format!("{shown}.json")).display()
        );
        Failure::new(Kind::Config, what)
    };
    let text = files::read_text(&path).map_err(|error| {
        let failure = bad(&plain(&error));
        match error.kind() {
            std::io::ErrorKind::NotFound => failure.with_hint(known(&directory)),
            _ => failure,
        }
    })?;
    read(&text, home.as_deref(), env).map_err(|why| bad(&why))
}

/// The context that `nats context select` chose: the CLI's `context.txt`.
pub fn selected(env: &dyn Fn(&str) -> Option<OsString>) -> Option<String> {
    let name = files::read(&config(env)?.join("context.txt"), SELECTED_LIMIT).ok()?;
    let name = String::from_utf8(name).ok()?;
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let name = name.trim();
    (is_plain(name) && name.bytes().all(fits)).then(|| name.to_owned())
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && !name.starts_with('.')
}

fn home(env: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    env("HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
}

/// Where the CLI keeps its files.
fn config(env: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let config = env("XDG_CONFIG_HOME").filter(|config| !config.is_empty()).map(PathBuf::from);
    Some(config.or_else(|| Some(home(env)?.join(".config")))?.join("nats"))
}

/// Reads the text of a context file. The error never shows a value.
pub fn read(
    text: &str,
    home: Option<&Path>,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Context, String> {
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
    let plain = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(format!("{name} must be a string")),
    };
    // A literal may hold a colon; only what the CLI would resolve is not one.
    let text = |name: &str| {
        let Some(found) = plain(name)? else {
            return Ok(None);
        };
        match found.split_once(':') {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("data") => {
                let text = inline(name, rest)?;
                Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
            }
            Some((scheme, _)) if RESOLVERS.contains(&scheme.to_lowercase().as_str()) => {
                Err(unresolved(name, scheme))
            }
            _ => Ok(Some(found)),
        }
    };
    let path = |name: &str| {
        let Some(path) = plain(name)? else {
            return Ok(None);
        };
        match path.split_once(':') {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("file") => {
                let rest = rest.strip_prefix("//").unwrap_or(rest);
                Ok(Some(expand(rest, home, env)))
            }
            Some((scheme, rest))
                if rest.starts_with("//")
                    || RESOLVERS.contains(&scheme.to_lowercase().as_str()) =>
            {
                Err(unresolved(name, scheme))
            }
            _ => Ok(Some(expand(&path, home, env))),
        }
    };
    let file_or_inline = |name: &str| match plain(name)?.as_deref().and_then(|p| p.split_once(':'))
    {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("data") => {
            Ok(Some(Secret::Text(inline(name, rest)?)))
        }
        _ => Ok::<_, String>(path(name)?.map(|path| Secret::File(path.into()))),
    };
    Ok(Context {
        url: plain("url")?,
        // The CLI resolves nothing in it.
        user: plain("user")?,
        password: text("password")?,
        token: text("token")?,
        creds: file_or_inline("creds")?,
        nkey: file_or_inline("nkey")?,
        cert: path("cert")?,
        key: path("key")?,
        ca: path("ca")?,
        inbox_prefix: plain("inbox_prefix")?,
        jetstream_domain: plain("jetstream_domain")?,
        tls_first: match fields.get("tls_first") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(first)) => *first,
            Some(_) => return Err("tls_first must be true or false".into()),
        },
    })
}

/// What a `data:` URI holds (RFC 2397), given what comes after `data:`. As with
/// the CLI, a media type counts for nothing and base64 is the only encoding
/// (`natscontext/resolver_data.go`).
fn inline(name: &str, rest: &str) -> Result<String, String> {
    let bad = |why: &str| format!("{name} is a data: URI {why}");
    let (header, payload) = rest.split_once(',').ok_or_else(|| bad("without a comma"))?;
    if !header.split(';').any(|part| part.trim() == "base64") {
        return Err(bad("that does not say ;base64"));
    }
    let bytes = BASE64_MIME_PERMISSIVE.decode(payload.as_bytes());
    let bytes = bytes.map_err(|_| bad("whose base64 is damaged"))?;
    let text = String::from_utf8(bytes).map_err(|_| bad("that holds no text in UTF-8"))?;
    if text.trim().is_empty() {
        return Err(bad("that holds nothing"));
    }
    Ok(text)
}

fn unresolved(name: &str, scheme: &str) -> String {
    format!("{name} refers to {scheme}:, which aegis-agent cannot look up; name a file instead")
}

/// A path as the CLI takes it: `~` in front, `$NAME` and `${NAME}` anywhere.
fn expand(path: &str, home: Option<&Path>, env: &dyn Fn(&str) -> Option<OsString>) -> String {
    let value = |name: &str| match (name, home) {
        ("HOME", Some(home)) => home.display().to_string(),
        _ => env(name).unwrap_or_default().to_string_lossy().into_owned(),
    };
    let mut rest = path;
    let mut expanded = String::new();
    if let (Some(rest_of_it), Some(home)) = (path.strip_prefix('~'), home)
        && (rest_of_it.is_empty() || rest_of_it.starts_with('/'))
    {
        expanded = home.display().to_string();
        rest = rest_of_it;
    }
    while let Some((before, rest_of_it)) = rest.split_once('$') {
        expanded.push_str(before);
        let braced = rest_of_it.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let end = rest_of_it.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let (name, after) = braced.unwrap_or(rest_of_it.split_at(end.unwrap_or(rest_of_it.len())));
        if name.is_empty() {
            expanded.push('$');
        } else {
            expanded.push_str(&value(name));
        }
        rest = after;
    }
    expanded.push_str(rest);
    expanded
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
            "ca":"$HOME/ca.pem","nkey":"/n","inbox_prefix":"_I","nsc":"","tls_first":false,
            "cert":"${CERTS}/a.pem","key":"file:///$CERTS/k","token":"a:b","password":"x:op"}"#;
        let env = |name: &str| (name == "CERTS").then(|| OsString::from("/etc/certs"));
        let context = read(text, Some(Path::new("/home/op")), &env).unwrap();
        assert_eq!(context.url.as_deref(), Some("nats://a"));
        assert_eq!(context.user, None);
        let file = |secret| match secret {
            Some(Secret::File(path)) => path,
            other => panic!("{other:?}"),
        };
        assert_eq!(file(context.creds), Path::new("/home/op/c.creds"));
        assert_eq!(context.ca.as_deref(), Some("/home/op/ca.pem"));
        assert_eq!(file(context.nkey), Path::new("/n"));
        assert_eq!(context.inbox_prefix.as_deref(), Some("_I"));
        assert_eq!(context.cert.as_deref(), Some("/etc/certs/a.pem"));
        assert_eq!(context.key.as_deref(), Some("//etc/certs/k"));
        assert_eq!(context.token.as_deref(), Some("a:b"));
        assert_eq!(context.password.as_deref(), Some("x:op"));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name_and_no_secret_is_shown() {
        for (text, words) in [
            (r#"{"nsc":"nsc://o/a/u"}"#, "nsc is not supported"),
            (r#"{"user_seed":"SUsecret"}"#, "user_seed is not supported"),
            (r#"{"password":"op://vault/secret"}"#, "password refers to op:"),
            (r#"{"token":"env://SECRET"}"#, "token refers to env:"),
            (r#"{"creds":"data:;base64,secret"}"#, "creds is a data: URI whose base64"),
            (r#"{"nkey":"data:secret"}"#, "nkey is a data: URI without a comma"),
            (r#"{"token":"data:text/plain,secret"}"#, "token is a data: URI that does not say"),
            (r#"{"password":"data:;base64,//8="}"#, "password is a data: URI that holds no text"),
            (r#"{"token":"data:;base64,Cg=="}"#, "token is a data: URI that holds nothing"),
            (r#"{"cert":"data:;base64,c2VjcmV0"}"#, "cert refers to data:"),
            (r#"{"ca":"data:;base64,c2VjcmV0"}"#, "ca refers to data:"),
            (r#"{"nkey":"vault://secret"}"#, "nkey refers to vault:"),
            (r#"{"jetstream_domain":7}"#, "jetstream_domain must be a string"),
            (r#"{"tls_first":"yes"}"#, "tls_first must be true or false"),
            (r#"{"jetstream_api_prefix":"JS"}"#, "jetstream_api_prefix is not supported"),
            (r#"{"password":7}"#, "password must be a string"),
            (r#"{"password":"secret""#, "not a JSON object"),
            ("[]", "not a JSON object"),
        ] {
            let error = read(text, None, &|_| None).err().unwrap();
            assert!(error.contains(words), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn data_uris_are_decoded_where_the_cli_decodes_them() {
        let text = r#"{"creds":"data:;base64,YQpiCg==","nkey":"data:text/x;base64,Yw==",
            "token":"DATA:; base64,dG9r\r\nZW4K","password":"data:;base64,cGFzcw==",
            "user":"data:;base64,YQ=="}"#;
        let context = read(text, None, &|_| None).unwrap();
        let inline = |secret| match secret {
            Some(Secret::Text(text)) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(inline(context.creds), "a\nb\n");
        assert_eq!(inline(context.nkey), "c");
        assert_eq!(context.token.as_deref(), Some("token"));
        assert_eq!(context.password.as_deref(), Some("pass"));
        assert_eq!(context.user.as_deref(), Some("data:;base64,YQ=="));
    }

    #[test]
    fn a_name_is_no_path() {
        for name in ["", "../x", "a/b", ".hidden"] {
            let failure = load(name, &|_| Some("/nowhere".into())).err().unwrap();
            assert_eq!(failure.exit_code(), 78, "{name}");
        }
    }
}
