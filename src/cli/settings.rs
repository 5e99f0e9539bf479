//! How to reach NATS and as whom, and the bucket: what each verb needs.
//!
//! Of several logins that of the first source counts: the command line, the
//! environment, the context, the URL. What is in the files of a login is for
//! `login` to read, at each connection.

use std::path::PathBuf;
use std::time::Duration;

use super::arguments::TopArgs;
use super::values::{Given, LONGEST_TIMEOUT, Source, from_context, usage};
use crate::cli::context::{self, Context};
use crate::error::{Failure, Kind};
use crate::jetstream::bucket::Bucket;
use crate::nats::address::{self, UrlLogin};
use crate::nats::login::{Login, Secret, Tls};
use crate::nats::{ServerAddress, Settings};

const DEFAULT_URL: &str = "nats://127.0.0.1:4222";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// Out of all sources, and the context read if there is one.
pub(super) fn connection(
    source: &Source<'_>,
    top: &TopArgs,
) -> Result<(Settings, Bucket), Failure> {
    let named = source.given(&top.context, "--context", "NATS_CONTEXT")?;
    let context = match &named {
        Some(given) => context::load(&given.text, source.env)?,
        None => Context::default(),
    };
    let url = source
        .given(&top.nats_url, "--nats-url", "NATS_URL")?
        .or(from_context(&context.url, "url of the context"));
    let (servers, url_login) = read_urls(url)?;
    let inbox_prefix = source
        .given(&top.inbox_prefix, "--inbox-prefix", "AEGIS_INBOX_PREFIX")?
        .or(from_context(&context.inbox_prefix, "inbox_prefix of the context"));
    let bucket = bucket(source, top)?.in_domain(js_domain(source, top, &context)?);
    let timeout = match source.given(&top.timeout, "--timeout", "NATS_TIMEOUT")? {
        Some(given) => given.duration(Duration::from_millis(1), LONGEST_TIMEOUT)?,
        None => DEFAULT_TIMEOUT,
    };
    let settings = Settings {
        servers,
        login: login(source, top, &context, url_login)?,
        tls: tls(source, top, &context)?,
        inbox_prefix: match inbox_prefix {
            Some(given) => given.read(read_inbox_prefix)?,
            None => "_INBOX".into(),
        },
        timeout,
        name: String::new(),
        tls_first: context.tls_first,
        context: named.map(|given| given.text),
    };
    Ok((settings, bucket))
}

pub(super) fn bucket(source: &Source<'_>, top: &TopArgs) -> Result<Bucket, Failure> {
    match source.given(&top.bucket, "--bucket", "AEGIS_BUCKET")? {
        Some(given) => {
            given.read(|text| Bucket::new(text).ok_or("must be 1 to 200 of A-Z a-z 0-9 - _"))
        }
        None => Ok(Bucket::service_registry()),
    }
}

fn read_urls(given: Option<Given>) -> Result<(Vec<ServerAddress>, Option<UrlLogin>), Failure> {
    let (name, kind, text) = match given {
        Some(given) => (given.name, given.kind, given.text),
        None => ("", Kind::Usage, DEFAULT_URL.to_owned()),
    };
    // Not through `Given`, which shows the value: it may hold a password.
    address::parse_list(&text).map_err(|rule| Failure::new(kind, format!("{name} {rule}")))
}

fn js_domain(
    source: &Source<'_>,
    top: &TopArgs,
    context: &Context,
) -> Result<Option<String>, Failure> {
    let given = source
        .given(&top.js_domain, "--js-domain", "AEGIS_JS_DOMAIN")?
        .or(from_context(&context.jetstream_domain, "jetstream_domain of the context"));
    let read = |text: &str| match Bucket::is_domain(text) {
        true => Ok(text.to_owned()),
        false => Err("must be one word of A-Z a-z 0-9 - _"),
    };
    given.map(|given| given.read(read)).transpose()
}

fn read_inbox_prefix(text: &str) -> Result<String, &'static str> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    let token = |token: &str| !token.is_empty() && token.bytes().all(fits);
    if text.len() > 200 || !text.split('.').all(token) {
        return Err("must be words of A-Z a-z 0-9 - _ joined by dots, without wildcards");
    }
    Ok(text.to_owned())
}

fn tls(source: &Source<'_>, top: &TopArgs, context: &Context) -> Result<Tls, Failure> {
    let file = |value, name, variable, from: (&Option<String>, &'static str)| {
        let given = source.given(value, name, variable)?;
        Ok::<_, Failure>(given.or(from_context(from.0, from.1)))
    };
    let from = (&context.ca, "ca of the context");
    let ca = file(&top.tlsca, "--tlsca", "NATS_CA", from)?.map(|given| given.text.into());
    let from = (&context.cert, "cert of the context");
    let cert = file(&top.tlscert, "--tlscert", "NATS_CERT", from)?;
    let from = (&context.key, "key of the context");
    let key = file(&top.tlskey, "--tlskey", "NATS_KEY", from)?;
    let client = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert.text.into(), key.text.into())),
        (None, None) => None,
        (Some(cert), None) => return Err(alone(&cert, "--tlskey", "NATS_KEY")),
        (None, Some(key)) => return Err(alone(&key, "--tlscert", "NATS_CERT")),
    };
    Ok(Tls { ca, client })
}

/// A certificate without its key, or the other way round: whoever gave the one
/// gives the other there.
fn alone(given: &Given, option: &str, variable: &str) -> Failure {
    let name = given.name;
    match given.kind {
        Kind::Usage => usage(format!("{name} needs {option} (or {variable})")),
        kind => Failure::new(kind, format!("{name} needs {variable} (or {option})")),
    }
}

/// The login of the first source that has one: the command line, the
/// environment, the context, the URL.
fn login(
    source: &Source<'_>,
    top: &TopArgs,
    context: &Context,
    url: Option<UrlLogin>,
) -> Result<Login, Failure> {
    let text = |name| Ok::<_, Failure>(source.env(name)?.map(|given| given.text));
    let (env_user, env_password) = (text("NATS_USER")?, text("NATS_PASSWORD")?);
    let password_file = top.password_file.as_ref().map(|path| Secret::File(path.into()));
    if password_file.is_some() && top.user.is_none() && env_user.is_none() {
        return Err(usage("--password-file needs --user (or NATS_USER)"));
    }
    let mut given = Vec::new();
    let user = top.user.clone().or_else(|| env_user.clone().filter(|_| password_file.is_some()));
    if let Some(name) = user {
        let password = password_file.or(env_password.clone().map(Secret::Text));
        let Some(password) = password else {
            return Err(usage("--user needs --password-file (or NATS_PASSWORD)"));
        };
        given.push(("--user", Login::User { name, password }));
    }
    let file = |path: &String| PathBuf::from(path);
    given.extend(top.creds.as_ref().map(|path| ("--creds", Login::Creds(file(path)))));
    given.extend(top.nkey.as_ref().map(|path| ("--nkey", Login::Nkey(file(path)))));
    let token = |path| ("--token-file", Login::Token(Secret::File(file(path))));
    given.extend(top.token_file.as_ref().map(token));
    if let Some(login) = only(given, Kind::Usage)? {
        return Ok(login);
    }

    let mut given = Vec::new();
    if let Some(name) = env_user {
        // Alone it is a token, as the nats CLI has it.
        given.push(match env_password.clone() {
            Some(password) => ("NATS_USER", Login::User { name, password: Secret::Text(password) }),
            None => ("NATS_USER", Login::Token(Secret::Text(name))),
        });
    }
    let creds = text("NATS_CREDS")?.map(|path| ("NATS_CREDS", Login::Creds(path.into())));
    let nkey = text("NATS_NKEY")?.map(|path| ("NATS_NKEY", Login::Nkey(path.into())));
    let token = text("NATS_TOKEN")?.map(|token| ("NATS_TOKEN", Login::Token(Secret::Text(token))));
    given.extend(creds.into_iter().chain(nkey).chain(token));
    if let Some(login) = only(given, Kind::Config)? {
        return Ok(login);
    }

    let mut given = Vec::new();
    if let Some(name) = context.user.clone() {
        let password = Secret::Text(context.password.clone().unwrap_or_default());
        given.push(("user of the context", Login::User { name, password }));
    }
    let creds =
        context.creds.as_ref().map(|path| ("creds of the context", Login::Creds(file(path))));
    let nkey = context.nkey.as_ref().map(|path| ("nkey of the context", Login::Nkey(file(path))));
    let token = context.token.clone().map(Secret::Text);
    let token = token.map(|token| ("token of the context", Login::Token(token)));
    given.extend(creds.into_iter().chain(nkey).chain(token));
    if let Some(login) = only(given, Kind::Config)? {
        return Ok(login);
    }

    Ok(match url {
        None if env_password.is_some() => {
            let what = "NATS_PASSWORD needs NATS_USER (or --user)";
            return Err(Failure::new(Kind::Config, what));
        }
        None => Login::None,
        Some(UrlLogin::Token(token)) => Login::Token(Secret::Text(token)),
        Some(UrlLogin::User(name, password)) => {
            Login::User { name, password: Secret::Text(password) }
        }
    })
}

/// One login a source: two would leave open who we are.
fn only(mut given: Vec<(&'static str, Login)>, kind: Kind) -> Result<Option<Login>, Failure> {
    if let [(first, _), (second, _), ..] = given.as_slice() {
        let what = format!("{first} and {second}: only one kind of login can be given");
        return Err(Failure::new(kind, what));
    }
    Ok(given.pop().map(|(_, login)| login))
}
