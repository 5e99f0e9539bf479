//! The connection of this call, as options for the commands in hints. *Pure*.
//!
//! Without them a command that is pasted would go to another server or another
//! bucket. A hint that ends with a command has it after a colon, or is nothing
//! else. No secret is ever an option: a password out of the environment has to
//! be there when the command is pasted, too.

use std::path::Path;

use crate::error::Failure;
use crate::jetstream::bucket::Bucket;
use crate::nats::Settings;
use crate::nats::login::{Login, Secret};

/// The options that lead to where this call went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Call {
    ours: String,
    nats: String,
}

impl Call {
    /// The options of a call with these settings.
    pub fn of(settings: &Settings, bucket: &Bucket) -> Call {
        let mut shared = Vec::new();
        if let Some(context) = &settings.context {
            shared.extend(["--context".to_owned(), quoted(context)]);
        }
        let servers: Vec<String> = settings
            .servers
            .iter()
            .map(|server| format!("{}://{server}", if server.tls { "tls" } else { "nats" }))
            .collect();
        shared.extend(["-s".to_owned(), quoted(&servers.join(","))]);
        let mut file = |name: &str, path: &Path| {
            shared.extend([name.to_owned(), quoted(&path.display().to_string())]);
        };
        match &settings.login {
            Login::Creds(Secret::File(path)) => file("--creds", path),
            Login::Nkey(Secret::File(path)) => file("--nkey", path),
            _ => {}
        }
        if let Some(ca) = &settings.tls.ca {
            file("--tlsca", ca);
        }
        if let Some((cert, key)) = &settings.tls.client {
            file("--tlscert", cert);
            file("--tlskey", key);
        }
        if settings.inbox_prefix != "_INBOX" {
            shared.extend(["--inbox-prefix".to_owned(), quoted(&settings.inbox_prefix)]);
        }
        if let Some(domain) = bucket.domain() {
            shared.extend(["--js-domain".to_owned(), quoted(domain)]);
        }
        let is_from_context = settings.context.is_some();
        if let Login::User { name, password } = &settings.login
            && (!is_from_context || matches!(password, Secret::File(_)))
        {
            shared.extend(["--user".to_owned(), quoted(name)]);
        }
        let mut ours = shared.clone();
        let secret = match &settings.login {
            Login::User { password: Secret::File(path), .. } => Some(("--password-file", path)),
            Login::Token(Secret::File(path)) => Some(("--token-file", path)),
            _ => None,
        };
        if let Some((name, path)) = secret {
            ours.extend([name.to_owned(), quoted(&path.display().to_string())]);
        }
        if *bucket.as_str() != *Bucket::service_registry().as_str() {
            ours.extend(["--bucket".to_owned(), quoted(bucket.as_str())]);
        }
        Call { ours: ours.join(" "), nats: shared.join(" ") }
    }

    /// `; hint: ...` with these options, for the end of a line of the log; empty
    /// where there is no hint.
    pub fn hint_of(&self, failure: &Failure) -> String {
        let hint = failure.hint().map(|hint| format!("; hint: {}", self.complete(hint)));
        hint.unwrap_or_default()
    }

    /// The hint with these options in the command that it ends with or is.
    pub fn complete(&self, hint: &str) -> String {
        let at = command_at(hint);
        let (before, command) = hint.split_at(at);
        for (program, options) in [("aegis-agent ", &self.ours), ("nats ", &self.nats)] {
            if let Some(rest) = command.strip_prefix(program)
                && !options.is_empty()
                // It says itself where it goes.
                && !rest.contains(" --context ")
                && !rest.ends_with("--help")
            {
                return format!("{before}{program}{options} {rest}");
            }
        }
        hint.to_owned()
    }
}

/// Where the command of a hint begins; its length where there is none.
pub fn command_at(hint: &str) -> usize {
    let is_command = |text: &str| {
        ["aegis-agent ", "nats stream ", "nats kv "].iter().any(|name| text.starts_with(name))
    };
    if is_command(hint) {
        return 0;
    }
    let after = |(at, _): (usize, &str)| Some(at + 2).filter(|at| is_command(&hint[*at..]));
    hint.match_indices(": ").find_map(after).unwrap_or(hint.len())
}

/// One word for a shell.
fn quoted(word: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(&b);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::nats::ServerAddress;
    use crate::nats::login::Tls;

    fn settings() -> Settings {
        let server =
            |host: &str, tls| ServerAddress { tls, host: host.to_owned(), port: 4222, alias: None };
        Settings {
            servers: vec![server("a", false), server("b", true)],
            login: Login::Creds(Secret::File("/etc/it's me.creds".into())),
            tls: Tls { ca: Some("/ca.pem".into()), client: None },
            inbox_prefix: "_INBOX".into(),
            timeout: Duration::from_secs(5),
            name: String::new(),
            tls_first: false,
            context: None,
        }
    }

    #[test]
    fn a_command_goes_where_this_call_went() {
        let bucket = Bucket::new("b").expect("a name").in_domain(Some("hub".into()));
        let call = Call::of(&settings(), &bucket);
        let reach = "-s nats://a:4222,tls://b:4222 --creds '/etc/it'\\''s me.creds' \
                     --tlsca /ca.pem --js-domain hub";
        assert_eq!(
            call.complete("restart it; then: aegis-agent init --history 1"),
            format!("restart it; then: aegis-agent {reach} --bucket b init --history 1")
        );
        assert_eq!(
            call.complete("nats kv edit b --max-bucket-size=2"),
            format!("nats {reach} kv edit b --max-bucket-size=2")
        );
        assert_eq!(call.complete("check --tlsca: it is wrong"), "check --tlsca: it is wrong");
        for whole in ["aegis-agent --help", "aegis-agent check --context prod"] {
            assert_eq!(call.complete(whole), whole);
        }
    }

    #[test]
    fn no_secret_is_an_option() {
        let login = Login::User { name: "u".into(), password: Secret::Text("s3cret".into()) };
        let call = Call::of(&Settings { login, ..settings() }, &Bucket::service_registry());
        let hint = call.complete("aegis-agent init");
        assert!(hint.contains("--user u") && !hint.contains("s3cret"), "{hint}");
        let password = Secret::File("/run/pw".into());
        let login = Login::User { name: "u".into(), password };
        let call = Call::of(&Settings { login, ..settings() }, &Bucket::service_registry());
        assert!(call.complete("aegis-agent init").contains("--user u --password-file /run/pw"));
        assert!(!call.complete("nats stream find").contains("--password-file"));
    }

    #[test]
    fn a_context_is_named() {
        let context = Some("prod".to_owned());
        let call = Call::of(&Settings { context, ..settings() }, &Bucket::service_registry());
        assert!(call.complete("aegis-agent init").starts_with("aegis-agent --context prod -s "));
    }
}
