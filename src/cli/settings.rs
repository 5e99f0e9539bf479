//! How to reach NATS and as whom, and the bucket: what each verb needs.
//!
//! Each setting comes from the first source that has it: the command line, the
//! environment, the named context, the host's file. A context that the host's
//! file itself names comes after the other settings of that file, so that the
//! same file means the same under the units, where all of it is environment.
//! Of several logins that of the first source counts, and one in the URL with
//! the URL's. What is in the files of a login is for `login` to read, at each
//! connection.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::arguments::TopArgs;
use super::values::{Given, LONGEST_TIMEOUT, PROGRAM, Source, from_context, option, usage};
use crate::cli::context::{self, Context};
use crate::error::{Failure, Kind};
use crate::jetstream::bucket::Bucket;
use crate::nats::address::{self, UrlLogin};
use crate::nats::login::{Login, Secret, Tls};
use crate::nats::{ServerAddress, Settings};

const DEFAULT_URL: &str = "nats://127.0.0.1:4222";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// How to reach NATS, the bucket, and what may be the reason where no
/// connection comes about.
pub(super) struct Connection {
    pub(super) settings: Settings,
    pub(super) bucket: Bucket,
    pub(super) unconnected: Option<String>,
}

/// Out of all sources, and the context read if there is one.
pub(super) fn connection(source: &Source<'_>, top: &TopArgs) -> Result<Connection, Failure> {
    let layers = Layers::new(source, top)?;
    let field = layers.field(|context| &context.url, "url of the context");
    let url = layers.given(&top.nats_url, "--nats-url", "NATS_URL", field)?;
    let unconnected = unconnected(source, url.is_none());
    let url_is_the_hosts = url.as_ref().is_some_and(|url| layers.is_the_hosts(url));
    let (servers, url_login) = read_urls(url)?;
    let field = layers.field(|context| &context.inbox_prefix, "inbox_prefix of the context");
    let inbox_prefix =
        layers.given(&top.inbox_prefix, "--inbox-prefix", "AEGIS_INBOX_PREFIX", field)?;
    let bucket = bucket(source, top)?.in_domain(js_domain(&layers, top)?);
    let timeout = match source.given(&top.timeout, "--timeout", "NATS_TIMEOUT")? {
        Some(given) => given.duration(Duration::from_millis(1), LONGEST_TIMEOUT)?,
        None => DEFAULT_TIMEOUT,
    };
    let settings = Settings {
        servers,
        login: login(&layers, top, url_login, url_is_the_hosts)?,
        tls: tls(&layers, top)?,
        inbox_prefix: match inbox_prefix {
            Some(given) => given.read(read_inbox_prefix)?,
            None => "_INBOX".into(),
        },
        timeout,
        name: String::new(),
        tls_first: layers.context.tls_first,
        context: layers.named,
    };
    Ok(Connection { settings, bucket, unconnected })
}

/// The sources below the command line and the environment, and their order.
struct Layers<'a> {
    source: &'a Source<'a>,
    context: Context,
    /// Its name.
    named: Option<String>,
    /// The host's file names the context, and so goes before it.
    host_first: bool,
}

impl Layers<'_> {
    fn new<'a>(source: &'a Source<'a>, top: &TopArgs) -> Result<Layers<'a>, Failure> {
        let named = option(&top.context, "--context")
            .map_or_else(|| source.env("NATS_CONTEXT"), |given| Ok(Some(given)))?;
        source.note("--context", named.as_ref());
        if let Some(given) = source.take(named) {
            let context = context::load(&given.text, source.env)?;
            return Ok(Layers { source, context, named: Some(given.text), host_first: false });
        }
        let named = source.take(source.host("NATS_CONTEXT"));
        source.note("--context", named.as_ref());
        let named = named.map(|given| given.text);
        let context = match &named {
            Some(name) => context_of_host(source, name)?,
            None => Context::default(),
        };
        Ok(Layers { source, context, named, host_first: true })
    }

    fn field(&self, of: impl Fn(&Context) -> &Option<String>, name: &'static str) -> Option<Given> {
        from_context(of(&self.context), name)
    }

    /// The value of the first source that has one; `field` is the context's.
    fn given(
        &self,
        value: &Option<String>,
        name: &'static str,
        variable: &'static str,
        field: Option<Given>,
    ) -> Result<Option<Given>, Failure> {
        let first = match option(value, name) {
            Some(given) => Some(given),
            None => self.source.env(variable)?,
        };
        let host = self.source.host(variable);
        let (second, third) = if self.host_first { (host, field) } else { (field, host) };
        let given = first.or(second).or(third);
        self.source.note(name, given.as_ref());
        Ok(self.source.take(given))
    }

    /// Whether the value comes from the host's file, or from a context that it
    /// names.
    fn is_the_hosts(&self, given: &Given) -> bool {
        let from_file = self.source.host("NATS_URL").is_some_and(|host| host.name == given.name);
        from_file || (self.host_first && given.name == "url of the context")
    }
}

/// A context that the host's file names is looked for where the units look:
/// below the directory of that file; and then where the user has contexts.
fn context_of_host(source: &Source<'_>, name: &str) -> Result<Context, Failure> {
    let config = source.host.get("XDG_CONFIG_HOME").map(PathBuf::from);
    let beside =
        source.host.path().parent().filter(|directory| {
            directory.join("nats/context").join(format!("{name}.json")).exists()
        });
    let Some(config) = config.or(beside.map(PathBuf::from)) else {
        return context::load(name, source.env);
    };
    let env = |variable: &str| match variable {
        "XDG_CONFIG_HOME" => Some(OsString::from(&config)),
        _ => (source.env)(variable),
    };
    context::load(name, &env)
}

/// What may be the reason where no connection comes about. The context that
/// `nats context select` chose is never taken silently: it is the user's, and
/// not the host's.
fn unconnected(source: &Source<'_>, by_default: bool) -> Option<String> {
    let selected = if by_default { context::selected(source.env) } else { None };
    // Whatever the verb: this looks and changes nothing.
    let selected = selected.map(|name| format!("{PROGRAM} check --context {name}"));
    match (source.host.unreadable(), selected) {
        (Some(unreadable), Some(command)) => {
            Some(format!("{unreadable}; the selected context of the nats CLI: {command}"))
        }
        (unreadable, command) => unreadable.map(str::to_owned).or(command),
    }
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
        None => ("".into(), Kind::Usage, DEFAULT_URL.to_owned()),
    };
    // Not through `Given`, which shows the value: it may hold a password.
    address::parse_list(&text).map_err(|rule| Failure::new(kind, format!("{name} {rule}")))
}

fn js_domain(layers: &Layers<'_>, top: &TopArgs) -> Result<Option<String>, Failure> {
    let field =
        layers.field(|context| &context.jetstream_domain, "jetstream_domain of the context");
    let given = layers.given(&top.js_domain, "--js-domain", "AEGIS_JS_DOMAIN", field)?;
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

fn tls(layers: &Layers<'_>, top: &TopArgs) -> Result<Tls, Failure> {
    let field = layers.field(|context| &context.ca, "ca of the context");
    let ca = layers.given(&top.tlsca, "--tlsca", "NATS_CA", field)?.map(|given| given.text.into());
    let field = layers.field(|context| &context.cert, "cert of the context");
    let cert = layers.given(&top.tlscert, "--tlscert", "NATS_CERT", field)?;
    let field = layers.field(|context| &context.key, "key of the context");
    let key = layers.given(&top.tlskey, "--tlskey", "NATS_KEY", field)?;
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
    let name = &given.name;
    match given.kind {
        Kind::Usage => usage(format!("{name} needs {option} (or {variable})")),
        kind => Failure::new(kind, format!("{name} needs {variable} (or {option})")),
    }
}

/// The login of the first source that has one: the command line, the
/// environment, the context, the host's file; one in the URL stands below those
/// of its own source and above what the host's file says.
fn login(
    layers: &Layers<'_>,
    top: &TopArgs,
    url: Option<UrlLogin>,
    url_is_the_hosts: bool,
) -> Result<Login, Failure> {
    let source = layers.source;
    let in_url = |url: Option<UrlLogin>| match url? {
        UrlLogin::Token(token) => Some(Login::Token(Secret::Text(token))),
        UrlLogin::User(name, password) => {
            Some(Login::User { name, password: Secret::Text(password) })
        }
    };
    if let Some(login) = login_of_options(source, top)? {
        return Ok(login);
    }
    if let Some(login) = login_of_variables(source, &|name| source.env(name))? {
        return Ok(login);
    }
    if !layers.host_first
        && let Some(login) = login_of_context(layers)?
    {
        return Ok(login);
    }
    let in_url = in_url(url);
    if !url_is_the_hosts && let Some(login) = in_url {
        source.note_login("the URL");
        return Ok(login);
    }
    if let Some(login) = login_of_variables(source, &|name| Ok(source.host(name)))? {
        return Ok(login);
    }
    if layers.host_first
        && let Some(login) = login_of_context(layers)?
    {
        return Ok(login);
    }
    match in_url {
        None if source.variable("NATS_PASSWORD")?.is_some() => {
            Err(Failure::new(Kind::Config, "NATS_PASSWORD needs NATS_USER (or --user)"))
        }
        None => Ok(Login::None),
        Some(login) => {
            source.note_login("the URL");
            Ok(login)
        }
    }
}

fn login_of_options(source: &Source<'_>, top: &TopArgs) -> Result<Option<Login>, Failure> {
    // Whether they count depends on the options.
    let text = |name: &'static str| {
        let given = source.env(name)?.or_else(|| source.host(name));
        Ok::<_, Failure>(given.map(|given| given.text))
    };
    let (user, password) = (text("NATS_USER")?, text("NATS_PASSWORD")?);
    let password_file = top.password_file.as_ref().map(|path| Secret::File(path.into()));
    if password_file.is_some() && top.user.is_none() && user.is_none() {
        return Err(usage("--password-file needs --user (or NATS_USER)"));
    }
    let mut given = Vec::new();
    if let Some(name) = top.user.clone().or(user.filter(|_| password_file.is_some())) {
        let Some(password) = password_file.or(password.map(Secret::Text)) else {
            return Err(usage("--user needs --password-file (or NATS_PASSWORD)"));
        };
        given.push(("--user", Login::User { name, password }));
    }
    let file = |path: &String| Secret::File(path.into());
    given.extend(top.creds.as_ref().map(|path| ("--creds", Login::Creds(file(path)))));
    given.extend(top.nkey.as_ref().map(|path| ("--nkey", Login::Nkey(file(path)))));
    given.extend(top.token_file.as_ref().map(|path| ("--token-file", Login::Token(file(path)))));
    only(source, given, Kind::Usage)
}

/// A login out of the variables of one place; the password may stand in a
/// place below it.
fn login_of_variables(
    source: &Source<'_>,
    place: &dyn Fn(&'static str) -> Result<Option<Given>, Failure>,
) -> Result<Option<Login>, Failure> {
    let place = |name| Ok::<_, Failure>(source.take(place(name)?));
    let text = |name| Ok::<_, Failure>(place(name)?.map(|given| given.text));
    let mut given = Vec::new();
    if let Some(user) = place("NATS_USER")? {
        // Alone it is a token, as the nats CLI has it.
        given.push(match source.variable("NATS_PASSWORD")? {
            Some(password) => {
                let password = Secret::Text(password.text);
                ("NATS_USER", Login::User { name: user.text, password })
            }
            None => ("NATS_USER", Login::Token(Secret::Text(user.text))),
        });
    }
    let file = |path: String| Secret::File(path.into());
    let creds = text("NATS_CREDS")?.map(|path| ("NATS_CREDS", Login::Creds(file(path))));
    let nkey = text("NATS_NKEY")?.map(|path| ("NATS_NKEY", Login::Nkey(file(path))));
    let token = text("NATS_TOKEN")?.map(|token| ("NATS_TOKEN", Login::Token(Secret::Text(token))));
    given.extend(creds.into_iter().chain(nkey).chain(token));
    only(source, given, Kind::Config)
}

fn login_of_context(layers: &Layers<'_>) -> Result<Option<Login>, Failure> {
    let context = &layers.context;
    let mut given = Vec::new();
    if let Some(name) = context.user.clone() {
        let password = Secret::Text(context.password.clone().unwrap_or_default());
        given.push(("user of the context", Login::User { name, password }));
    }
    let creds = context.creds.clone().map(|creds| ("creds of the context", Login::Creds(creds)));
    let nkey = context.nkey.clone().map(|nkey| ("nkey of the context", Login::Nkey(nkey)));
    let token = context.token.clone().map(Secret::Text);
    let token = token.map(|token| ("token of the context", Login::Token(token)));
    given.extend(creds.into_iter().chain(nkey).chain(token));
    let login = only(layers.source, given, Kind::Config)?;
    if login.is_some() {
        layers.source.take(from_context(&Some(String::new()), "login of the context"));
    }
    Ok(login)
}

/// One login a source: two would leave open who we are.
fn only(
    source: &Source<'_>,
    mut given: Vec<(&'static str, Login)>,
    kind: Kind,
) -> Result<Option<Login>, Failure> {
    if let [(first, _), (second, _), ..] = given.as_slice() {
        let what = format!("{first} and {second}: only one kind of login can be given");
        return Err(Failure::new(kind, what));
    }
    let only = given.pop();
    if let Some((name, _)) = &only {
        source.note_login(name);
    }
    Ok(only.map(|(_, login)| login))
}
