//! Servers: the URLs in which operators name them, `nats://host:port` and
//! `tls://host:port`, and the members that a cluster announces. *Pure*.
//!
//! A login in a URL is taken out here, so that no other place can show it.

use std::cell::RefCell;
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;

/// Members of a cluster that are remembered, at most.
const MEMBERS_LIMIT: usize = 64;

/// The members of a cluster that its servers announced: a session notes them, and
/// the next attempts try them.
pub(super) type Members = Rc<RefCell<Vec<ServerAddress>>>;

/// One server, without its login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAddress {
    /// `tls://` was asked for.
    pub tls: bool,
    /// Host name or address; IPv6 without brackets.
    pub host: String,
    /// Port, 4222 by default.
    pub port: u16,
    /// The name that its certificate may be for, too: a member that was
    /// announced by address is verified under the name in the list.
    pub alias: Option<String>,
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl ServerAddress {
    /// The names that its certificate may be for, the first one first.
    pub fn names(&self) -> Vec<&str> {
        self.alias.as_deref().into_iter().chain([self.host.as_str()]).collect()
    }

    /// Whether both are the same place.
    pub fn is_at(&self, other: &ServerAddress) -> bool {
        self.host == other.host && self.port == other.port
    }

    /// The members that the server at this address announced, as `host:port`
    /// each. What cannot be read is passed over.
    pub fn members(&self, urls: &[String]) -> Vec<ServerAddress> {
        let is_address = |host: &str| host.parse::<IpAddr>().is_ok();
        let name = match &self.alias {
            Some(alias) => Some(alias.as_str()),
            None => Some(self.host.as_str()).filter(|host| !is_address(host)),
        };
        let member = |url: &String| {
            let (host, port) = parse_host(url.split("://").last()?).ok()?;
            let alias = name.filter(|name| is_address(&host) && *name != host);
            Some(ServerAddress { tls: self.tls, alias: alias.map(str::to_owned), host, port })
        };
        urls.iter().filter_map(member).take(MEMBERS_LIMIT).collect()
    }
}

/// Port of a URL without one.
const DEFAULT_PORT: u16 = 4222;

/// A login that stood in a URL, percent-decoded.
#[derive(Clone, PartialEq, Eq)]
pub enum UrlLogin {
    /// `user:password@`
    User(String, String),
    /// `token@`
    Token(String),
}

/// Reads a comma-separated list of URLs, whose logins must agree. The error is
/// the rule that was broken, and never shows a password.
pub fn parse_list(text: &str) -> Result<(Vec<ServerAddress>, Option<UrlLogin>), String> {
    let mut servers = Vec::new();
    let mut login: Option<UrlLogin> = None;
    for url in text.split(',').map(str::trim).filter(|url| !url.is_empty()) {
        let (server, found) = parse(url).map_err(|rule| format!("{}: {rule}", redact(url)))?;
        if login.is_some() && found.is_some() && login != found {
            let list: Vec<_> = text.split(',').map(redact).collect();
            let list = list.join(",");
            return Err(format!("{list}: the servers of one list need the same login"));
        }
        login = login.or(found);
        servers.push(server);
    }
    if servers.is_empty() {
        return Err(format!("{text:?}: names no server"));
    }
    Ok((servers, login))
}

/// What somebody gave as an argument or a value, as it may be shown: what
/// could be a URL with a login, put in the wrong place, without that.
pub fn shown(text: &str) -> String {
    if text.contains('@') || text.contains("://") { redact(text) } else { text.to_owned() }
}

/// The same for the name of a file or of a context, in which an `@` is nothing
/// special.
pub fn shown_name(text: &str) -> String {
    let login = text.split_once('@').is_some_and(|(login, _)| login.contains(':'));
    if login || text.contains("://") { redact(text) } else { text.to_owned() }
}

/// A URL as it may be shown: what is or could be its login replaced by `***`,
/// also where it stands in the wrong place.
pub fn redact(url: &str) -> String {
    let Some((login, host)) = url.rsplit_once('@') else {
        // `nats://user:password`, with the host forgotten: this is no port.
        return match url.rsplit_once(':') {
            Some((rest, port))
                if !port.starts_with("//") && !port.bytes().all(|b| b.is_ascii_digit()) =>
            {
                format!("{rest}:***")
            }
            _ => url.to_owned(),
        };
    };
    let starts_with = |scheme: &str| {
        login.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    let scheme = ["nats://", "tls://", "ws://", "wss://"].into_iter().find(|s| starts_with(s));
    // As it was written.
    let scheme = scheme.map_or("", |scheme| &login[..scheme.len()]);
    format!("{scheme}***@{}", redact(host))
}

fn parse(url: &str) -> Result<(ServerAddress, Option<UrlLogin>), String> {
    let (tls, rest) = match url.split_once("://") {
        None => (false, url),
        // Schemes have no case (RFC 3986).
        Some((scheme, rest)) => match scheme.to_ascii_lowercase().as_str() {
            "nats" => (false, rest),
            "tls" => (true, rest),
            "ws" | "wss" => {
                return Err("WebSocket is not supported: use nats:// or tls://".into());
            }
            _ => return Err("the scheme must be nats or tls".into()),
        },
    };
    let (login, host) = match rest.rsplit_once('@') {
        None => (None, rest),
        Some((login, host)) => {
            if login.contains(['@', '/', '?', '#']) {
                return Err(
                    "in a user name or password write @ as %40, : as %3A, / as %2F, ? as %3F and # as %23"
                        .into(),
                );
            }
            (Some(parse_login(login)?), host)
        }
    };
    let host = host.strip_suffix('/').unwrap_or(host);
    if host.contains(['/', '?', '#']) {
        return Err("a path or a query after the port is not supported".into());
    }
    let (host, port) = parse_host(host)?;
    Ok((ServerAddress { tls, host, port, alias: None }, login))
}

fn parse_login(text: &str) -> Result<UrlLogin, String> {
    Ok(match text.split_once(':') {
        Some((user, password)) => UrlLogin::User(decode(user)?, decode(password)?),
        None => UrlLogin::Token(decode(text)?),
    })
}

/// Percent-decodes; the error never shows the text.
fn decode(text: &str) -> Result<String, String> {
    let broken = || "a % in a user name or password must be written as %25".to_owned();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        match (digit(), digit()) {
            (Some(high), Some(low)) => bytes.push((high << 4 | low) as u8),
            _ => return Err(broken()),
        }
    }
    let text = String::from_utf8(bytes).map_err(|_| broken())?;
    if text.chars().any(char::is_control) {
        return Err("a user name or password holds a control character".into());
    }
    Ok(text)
}

fn parse_host(text: &str) -> Result<(String, u16), String> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("an IPv6 address needs a closing bracket")?;
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err("not an IPv6 address in brackets".into());
        }
        let port = match rest {
            "" => None,
            rest => Some(rest.strip_prefix(':').ok_or("after ] only :port may follow")?),
        };
        (host, port)
    } else {
        match text.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err("an IPv6 address needs brackets: [::1]:4222".into());
            }
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':');
    if host.is_empty() || host.len() > 253 || !host.chars().all(fits) {
        return Err("must be nats://host:port or tls://host:port".into());
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) => match port.parse() {
            Ok(0) | Err(_) => return Err("the port must be a number from 1 to 65535".into()),
            Ok(port) => port,
        },
    };
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(url: &str) -> (ServerAddress, Option<UrlLogin>) {
        let (mut servers, login) = parse_list(url).unwrap();
        assert_eq!(servers.len(), 1);
        (servers.remove(0), login)
    }

    fn refusal(url: &str) -> String {
        match parse_list(url) {
            Ok(_) => panic!("{url} was taken"),
            Err(error) => error,
        }
    }

    #[test]
    fn a_server_is_a_host_with_a_port() {
        for (url, tls, host, port) in [
            ("localhost", false, "localhost", 4222),
            ("nats://a.example", false, "a.example", 4222),
            ("nats://a.example:4333/", false, "a.example", 4333),
            ("tls://10.0.0.1:1", true, "10.0.0.1", 1),
            ("NATS://a", false, "a", 4222),
            ("Tls://a", true, "a", 4222),
            ("nats://[::1]:65535", false, "::1", 65535),
            ("[fe80::1]", false, "fe80::1", 4222),
        ] {
            let (server, login) = one(url);
            assert_eq!((server.tls, server.host.as_str(), server.port), (tls, host, port), "{url}");
            assert!(login.is_none());
        }
    }

    #[test]
    fn a_login_in_a_url_is_taken_out_and_decoded() {
        let (server, login) = one("nats://us%40er:p%40s%3A%2F%25s@host:1");
        assert_eq!(server.host, "host");
        assert!(login == Some(UrlLogin::User("us@er".into(), "p@s:/%s".into())));
        let (_, login) = one("nats://to%20ken@host");
        assert!(login == Some(UrlLogin::Token("to ken".into())));
        // A colon after the first one belongs to the password.
        let (_, login) = one("nats://user:a:b@host");
        assert!(login == Some(UrlLogin::User("user".into(), "a:b".into())));
    }

    #[test]
    fn members_announced_by_address_are_verified_under_the_name_of_the_list() {
        let urls: Vec<String> = ["10.0.0.2:4222", "[fe80::1]:1", "b.example:4222", "ju nk", ":1"]
            .map(str::to_owned)
            .into();
        let (server, _) = one("tls://nats.example");
        let members = server.members(&urls);
        let names: Vec<Vec<&str>> = members.iter().map(ServerAddress::names).collect();
        assert_eq!(
            names,
            [vec!["nats.example", "10.0.0.2"], vec!["nats.example", "fe80::1"], vec!["b.example"]]
        );
        assert!(members.iter().all(|member| member.tls));
        // What a member announces goes by the same name.
        assert_eq!(members[0].members(&urls)[1].names(), ["nats.example", "fe80::1"]);
        let (server, _) = one("nats://10.0.0.1");
        assert_eq!(server.members(&urls)[0].names(), ["10.0.0.2"]);
    }

    #[test]
    fn a_list_needs_one_login() {
        let (servers, login) = parse_list("nats://u:p@a:1, b:2 ,nats://u:p@c").unwrap();
        assert_eq!(servers.len(), 3);
        assert!(login == Some(UrlLogin::User("u".into(), "p".into())));
        let error = refusal("nats://u:p@a,nats://u:q@b");
        let list = "nats://***@a,nats://***@b";
        assert_eq!(error, format!("{list}: the servers of one list need the same login"));
    }

    #[test]
    fn empty_items_of_a_list_are_nothing() {
        for list in ["a,b,", ",a,,b", " , a , b"] {
            assert_eq!(parse_list(list).unwrap().0.len(), 2, "{list}");
        }
        assert_eq!(refusal(","), "\",\": names no server");
    }

    #[test]
    fn a_path_or_a_query_is_refused_by_name() {
        for url in ["nats://h:42511/path", "nats://h:42511?x=1", "h/path", "h:1/?x", "h:1#x"] {
            let error = refusal(url);
            assert!(error.contains("a path or a query after the port"), "{error}");
        }
    }

    #[test]
    fn what_could_hold_a_login_is_shown_without_it() {
        for (text, expected) in [
            ("nats://u:secret@h", "nats://***@h"),
            ("NATS://u:secret@h", "NATS://***@h"),
            ("secret@h", "***@h"),
            ("-snats://u:secret@h", "***@h"),
            ("nats://u:secret", "nats://u:***"),
            ("extra", "extra"),
            ("a:b", "a:b"),
        ] {
            assert_eq!(shown(text), expected);
        }
        assert_eq!(shown_name("/run/svc@host.creds"), "/run/svc@host.creds");
        assert_eq!(shown_name("u:secret@h"), "***@h");
        assert_eq!(shown_name("tls://secret@h"), "tls://***@h");
    }

    #[test]
    fn what_is_no_url_is_refused_without_showing_the_password() {
        for url in [
            "",
            "nats://",
            "nats://:4222",
            "http://a",
            "ws://a",
            "wss://a",
            "nats://a:0",
            "nats://a:65536",
            "nats://a:x",
            "nats://a b",
            "nats://a/path",
            "nats://::1",
            "nats://[::1",
            "nats://[::1]x",
            "nats://[a]:1",
            ",",
            " , ,",
            "nats://a:1/path",
            "nats://a:1?x=1",
            "nats://u:s3cret@@a",
            "nats://u:s3/cret@a",
            "nats://u:s3%cret@a",
            "nats://u:s3cret%0a@a",
            "nats://u:s3cret@a:0",
            "nats://a\r\nPUB x",
            "nats://u:s3cret@a b",
            "u:s3cret@nats://a",
            "nats://u:s3cret",
            "nats://a@u:s3cret",
        ] {
            let error = refusal(url);
            assert!(!error.contains("cret"), "{error}");
        }
    }
}
