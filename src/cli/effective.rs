//! The settings that a start of `run` would have, each with where it comes from:
//! for `--check-config`. Secrets are never in it. *Pure*.

use std::path::Path;

use super::options::{Effective, RunOptions};
use super::values::Source;
use crate::health::verdict::HealthCheck;
use crate::jetstream::bucket::Bucket;
use crate::nats::Settings;
use crate::nats::login::{Login, Secret};
use crate::text::duration::as_setting;

/// What stands where nothing is set.
const NOTHING: &str = "-";

/// Of a call of `run`.
pub(super) fn of_run(
    source: &Source<'_>,
    options: &RunOptions,
    (settings, bucket): (&Settings, &Bucket),
) -> Vec<Effective> {
    let mut all = Vec::new();
    let mut add = |option: &'static str, value: String| {
        let origin = source.origin(option).unwrap_or_else(|| "default".to_owned());
        all.push(Effective { name: option.trim_start_matches('-'), value, origin });
    };
    add("--service", options.service.as_str().to_owned());
    add("--instance", options.instance.as_str().to_owned());
    add("--service-version", options.version.to_string());
    add("--ttl", as_setting(options.ttl));
    add("--interval", as_setting(options.interval));
    add("--stale-after", as_setting(options.stale_after));
    add("--standby", yes_or_no(options.standby));
    add("--group", options.group.clone().unwrap_or_else(nothing));
    let metadata: Vec<String> =
        options.metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
    add("--meta", some_or_nothing(metadata.join(" ")));
    let health = options.health.as_ref();
    for check in health.iter().flat_map(|health| &health.checks) {
        match check {
            HealthCheck::Exec(words) => add("--health-exec", words.join(" ")),
            HealthCheck::Tcp { host, port } => add("--health-tcp", format!("{host}:{port}")),
        }
    }
    if let Some(health) = health {
        add("--health-timeout", as_setting(health.timeout));
        add("--health-failures", health.failures.to_string());
    }
    let path = |path: Option<&Path>| path.map_or_else(nothing, |path| path.display().to_string());
    add("--metrics-file", path(options.metrics_file.as_deref()));
    add("--drain-file", path(options.drain_file.as_deref()));
    add("--context", settings.context.clone().unwrap_or_else(nothing));
    add("--nats-url", settings.servers.iter().map(url).collect::<Vec<_>>().join(","));
    add("login", login(&settings.login));
    add("--tlsca", path(settings.tls.ca.as_deref()));
    let client = settings.tls.client.as_ref();
    add("--tlscert", path(client.map(|(cert, _)| cert.as_path())));
    add("--tlskey", path(client.map(|(_, key)| key.as_path())));
    add("--inbox-prefix", settings.inbox_prefix.clone());
    add("--timeout", as_setting(settings.timeout));
    add("--bucket", bucket.as_str().to_owned());
    add("--js-domain", bucket.domain().map_or_else(nothing, str::to_owned));
    all
}

fn nothing() -> String {
    NOTHING.to_owned()
}

fn some_or_nothing(text: String) -> String {
    if text.is_empty() { nothing() } else { text }
}

fn yes_or_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

fn url(server: &crate::nats::ServerAddress) -> String {
    format!("{}://{server}", if server.tls { "tls" } else { "nats" })
}

/// Who we are there; of a secret only that there is one, or its file.
fn login(login: &Login) -> String {
    let secret = |secret: &Secret| match secret {
        Secret::Text(_) => "(hidden)".to_owned(),
        Secret::File(path) => format!("in {}", path.display()),
    };
    match login {
        Login::None => nothing(),
        Login::User { name, password } => format!("user {name}, password {}", secret(password)),
        Login::Token(token) => format!("token {}", secret(token)),
        Login::Creds(creds) => format!("credentials {}", secret(creds)),
        Login::Nkey(nkey) => format!("nkey {}", secret(nkey)),
    }
}
