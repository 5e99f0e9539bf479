//! One connection from TCP to the first `PONG`. *Pure*: what happened comes in,
//! the next step goes out.
//!
//! The server greets with `INFO`, TLS follows where it is wanted (or comes
//! first, where the server is configured so), then we send `CONNECT` and
//! `PING`, and its `PONG` says that we are let in. Whatever else comes instead
//! is the cause why this server does not serve.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::failure::{Cause, is_connection_limit, refused_login};
use super::login::{ReadLogin, SignError};
use super::wire::{self, Operation, Parser};

/// What a server says of itself (its `INFO` line).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServerInfo {
    /// Unique to the process of the server.
    pub server_id: String,
    /// The server's configured name, or its id.
    pub server_name: String,
    /// Version, such as `2.12.8` or `2.14.0-RC.1`.
    pub version: String,
    /// Name of the cluster, if it is in one.
    pub cluster: Option<String>,
    /// The JetStream domain of the server, if it has one.
    pub domain: Option<String>,
    /// The server has JetStream, for whichever account.
    pub jetstream: bool,
    /// Largest payload in bytes.
    pub max_payload: u64,
    /// TLS is a must.
    pub tls_required: bool,
    /// TLS can be had.
    pub tls_available: bool,
    /// Clients have to show a certificate.
    pub tls_verify: bool,
    /// In lame-duck mode: going away soon.
    pub ldm: bool,
    /// Other members of the cluster, as `host:port`.
    pub connect_urls: Vec<String>,
    /// What a client with a key signs.
    pub nonce: Option<String>,
    /// From `PING` to `PONG`: there, back, and the server's reaction.
    #[serde(skip)]
    pub round_trip: Duration,
}

impl ServerInfo {
    /// Reads the JSON of an `INFO` line.
    pub fn read(json: &[u8]) -> Result<ServerInfo, Cause> {
        serde_json::from_slice(json).map_err(|_| {
            let json = wire::excerpt(json);
            Cause::NotNats(format!("it says \"INFO{json}\""))
        })
    }
}

/// What is wanted of a connection, and who asks for it.
#[derive(Clone)]
pub struct Wish<'a> {
    /// TLS was asked for.
    pub tls: bool,
    /// TLS comes before the server's first word.
    pub tls_first: bool,
    /// We have a certificate to show.
    pub has_certificate: bool,
    /// Who logs in.
    pub login: &'a ReadLogin,
    /// The same in words.
    pub who: &'a str,
    /// The name of the connection in the server's monitoring.
    pub name: &'a str,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Wait for what comes.
    Wait,
    /// Begin the TLS handshake. What has come in clear until now and was not
    /// read is to be thrown away: anybody could have put it there.
    Secure,
    /// Send these bytes.
    Send(Vec<u8>),
    /// The server serves.
    Ready,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// TCP stands; the server has not greeted yet.
    Greeting,
    /// TLS is being agreed on, before or after the greeting.
    Securing,
    /// `CONNECT` is sent.
    LoggingIn,
}

/// How far one connection has come.
#[derive(Debug)]
pub struct Handshake {
    stage: Stage,
    is_secured: bool,
    info: Option<ServerInfo>,
}

impl Handshake {
    /// TCP stands.
    pub fn begin(wish: &Wish<'_>) -> (Handshake, Step) {
        let (stage, step) = match wish.tls_first {
            true => (Stage::Securing, Step::Secure),
            false => (Stage::Greeting, Step::Wait),
        };
        (Handshake { stage, is_secured: false, info: None }, step)
    }

    /// What the server said of itself, so far.
    pub fn info(&self) -> Option<&ServerInfo> {
        self.info.as_ref()
    }

    /// The same, at the end.
    pub fn into_info(self) -> ServerInfo {
        self.info.unwrap_or_default()
    }

    /// The TLS handshake is done.
    pub fn secured(&mut self, wish: &Wish<'_>) -> Result<Step, Cause> {
        self.is_secured = true;
        if self.info.is_some() {
            return self.log_in(wish);
        }
        self.stage = Stage::Greeting;
        Ok(Step::Wait)
    }

    /// The server said something.
    pub fn heard(&mut self, operation: Operation, wish: &Wish<'_>) -> Result<Step, Cause> {
        match (operation, self.stage) {
            (Operation::Info(json), stage) => {
                let info = ServerInfo::read(&json)?;
                if info.ldm {
                    return Err(Cause::LameDuck);
                }
                if stage == Stage::LoggingIn {
                    // Again, with what a client that has logged in may know.
                    self.info = Some(info);
                    return Ok(Step::Wait);
                }
                self.greeted(info, wish)
            }
            (Operation::Error(words), _) => {
                let words = words.chars().take(200).collect::<String>();
                Err(refused_login(&words, wish.who))
            }
            (Operation::Pong, Stage::LoggingIn) => Ok(Step::Ready),
            (Operation::Ping, Stage::LoggingIn) => Ok(Step::Send(wire::PONG.to_vec())),
            (Operation::Ok, Stage::LoggingIn) => Ok(Step::Wait),
            (other, _) => Err(Cause::NotNats(format!("it begins with {}", word(&other)))),
        }
    }

    fn greeted(&mut self, info: ServerInfo, wish: &Wish<'_>) -> Result<Step, Cause> {
        let secure = wish.tls || info.tls_required;
        let lacks_certificate = info.tls_verify && !wish.has_certificate;
        self.info = Some(info);
        if secure && lacks_certificate {
            let why = "the server wants a certificate of ours: give --tlscert and --tlskey";
            return Err(Cause::Tls(why.into()));
        }
        if !secure || self.is_secured {
            return self.log_in(wish);
        }
        self.stage = Stage::Securing;
        Ok(Step::Secure)
    }

    fn log_in(&mut self, wish: &Wish<'_>) -> Result<Step, Cause> {
        self.stage = Stage::LoggingIn;
        let nonce = self.info.as_ref().and_then(|info| info.nonce.as_deref());
        let mut bytes = connect(wish, self.is_secured, nonce)
            .map_err(|SignError(why)| Cause::Login(format!("{}: {why}", wish.who)))?;
        bytes.extend_from_slice(wire::PING);
        Ok(Step::Send(bytes))
    }
}

/// Why the connection ended in the middle of this line: a server that dies, for
/// want of memory for instance, is still a server.
pub fn cut_off(line: &[u8]) -> Cause {
    let words: [&[u8]; 5] = [b"INFO ", b"-ERR ", b"+OK\r\n", b"PING\r\n", b"PONG\r\n"];
    if words.iter().any(|word| line.starts_with(word) || word.starts_with(line)) {
        let why = "the server closed the connection in the middle of a line: it may have crashed";
        return Cause::Other(why.into());
    }
    Cause::NotNats(format!("it says {:?} and closes", wire::excerpt(line)))
}

/// What a server says in clear where TLS is due, if it takes no more
/// connections: that limit counts before TLS. Whoever is on the way may say so,
/// too: it is shown, and nothing else follows from it. Other words may be the
/// answer to our handshake of a server that speaks no TLS.
pub fn refused_in_clear(said: &[u8]) -> Option<Cause> {
    let mut parser = Parser::default();
    parser.buffer().extend_from_slice(said);
    match parser.parse() {
        Ok(Some(Operation::Error(words))) if is_connection_limit(&words) => {
            Some(Cause::Other(format!("the server says: {words}")))
        }
        _ => None,
    }
}

fn word(operation: &Operation) -> &'static str {
    match operation {
        Operation::Info(_) => "INFO",
        Operation::Message(_) => "MSG",
        Operation::Ping => "PING",
        Operation::Pong => "PONG",
        Operation::Ok => "+OK",
        Operation::Error(_) => "-ERR",
    }
}

/// The `CONNECT` line, with the login in it.
fn connect(wish: &Wish<'_>, tls: bool, nonce: Option<&str>) -> Result<Vec<u8>, SignError> {
    #[derive(Serialize)]
    struct Connect<'a> {
        verbose: bool,
        pedantic: bool,
        tls_required: bool,
        name: &'a str,
        lang: &'a str,
        version: &'a str,
        /// Tells us when members of the cluster join or go.
        protocol: u8,
        headers: bool,
        /// A request that nobody listens to is answered with 503.
        no_responders: bool,
        #[serde(flatten)]
        login: LoginFields<'a>,
    }
    let login = login_fields(wish.login, nonce)?;
    let connect = Connect {
        verbose: false,
        pedantic: false,
        tls_required: tls,
        name: wish.name,
        lang: "rust",
        version: env!("CARGO_PKG_VERSION"),
        protocol: 1,
        headers: true,
        no_responders: true,
        login,
    };
    let mut line = b"CONNECT ".to_vec();
    let json =
        serde_json::to_vec(&connect).map_err(|_| SignError("it cannot be written as JSON"))?;
    line.extend_from_slice(&json);
    line.extend_from_slice(b"\r\n");
    Ok(line)
}

#[derive(Serialize, Default)]
struct LoginFields<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pass: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwt: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nkey: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sig: Option<String>,
}

fn login_fields<'a>(
    login: &'a ReadLogin,
    nonce: Option<&str>,
) -> Result<LoginFields<'a>, SignError> {
    // A server without logins gives no nonce, and takes whoever comes.
    let nonce = nonce.unwrap_or_default();
    Ok(match login {
        ReadLogin::None => LoginFields::default(),
        ReadLogin::User(name, password) => {
            LoginFields { user: Some(name), pass: Some(password), ..LoginFields::default() }
        }
        ReadLogin::Token(token) => {
            LoginFields { auth_token: Some(token), ..LoginFields::default() }
        }
        ReadLogin::Creds { jwt, .. } => {
            let sig = Some(login.key()?.sign(nonce));
            LoginFields { jwt: Some(jwt), sig, ..LoginFields::default() }
        }
        ReadLogin::Nkey(_) => {
            let key = login.key()?;
            LoginFields {
                nkey: Some(key.public_key()),
                sig: Some(key.sign(nonce)),
                ..LoginFields::default()
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: ReadLogin = ReadLogin::None;

    fn wish() -> Wish<'static> {
        Wish {
            tls: false,
            tls_first: false,
            has_certificate: false,
            login: &NOBODY,
            who: "no login was given",
            name: "aegis-agent list",
        }
    }

    /// All that follows from these bytes, until the server serves or does not.
    fn talk(wish: &Wish<'_>, bytes: &[u8], chunk: usize) -> Result<Vec<Step>, Cause> {
        let (mut handshake, step) = Handshake::begin(wish);
        let mut steps = vec![step];
        let mut parser = Parser::default();
        for piece in bytes.chunks(chunk) {
            parser.buffer().extend_from_slice(piece);
            while let Some(operation) = parser.parse().map_err(|bad| Cause::NotNats(bad.0))? {
                steps.push(handshake.heard(operation, wish)?);
                if steps.last() == Some(&Step::Secure) {
                    parser.clear();
                    steps.push(handshake.secured(wish)?);
                }
            }
        }
        Ok(steps.into_iter().filter(|step| *step != Step::Wait).collect())
    }

    const GREETING: &str =
        "INFO {\"server_id\":\"A\",\"version\":\"2.12.8\",\"max_payload\":1048576}";

    #[test]
    fn a_server_is_greeted_logged_in_to_and_ready_however_its_bytes_are_cut() {
        let bytes = format!("{GREETING}\r\nPING\r\n+OK\r\nPONG\r\n");
        for chunk in 1..=bytes.len() {
            let steps = talk(&wish(), bytes.as_bytes(), chunk).unwrap();
            let [Step::Send(connect), Step::Send(pong), Step::Ready] = steps.as_slice() else {
                panic!("{steps:?}");
            };
            let connect = String::from_utf8_lossy(connect);
            assert!(connect.starts_with("CONNECT {") && connect.ends_with("}\r\nPING\r\n"));
            assert!(connect.contains("\"name\":\"aegis-agent list\""), "{connect}");
            assert!(connect.contains("\"no_responders\":true"), "{connect}");
            assert_eq!(pong, wire::PONG);
        }
    }

    #[test]
    fn tls_comes_after_the_greeting_where_either_side_wants_it() {
        let required = "INFO {\"tls_required\":true}\r\n";
        let optional = "INFO {\"tls_available\":true}\r\n";
        for (tls, greeting, secured) in
            [(false, required, true), (true, optional, true), (false, optional, false)]
        {
            let steps = talk(&Wish { tls, ..wish() }, greeting.as_bytes(), 9).unwrap();
            assert_eq!(steps[0] == Step::Secure, secured, "{steps:?}");
            assert!(matches!(steps.last(), Some(Step::Send(_))));
        }
    }

    #[test]
    fn tls_comes_first_where_it_is_wished_for_and_only_once() {
        let wish = Wish { tls_first: true, ..wish() };
        let (mut handshake, step) = Handshake::begin(&wish);
        assert_eq!(step, Step::Secure);
        assert_eq!(handshake.secured(&wish), Ok(Step::Wait));
        let info = Operation::Info(b" {\"tls_required\":true}".to_vec());
        assert!(matches!(handshake.heard(info, &wish), Ok(Step::Send(_))));
    }

    #[test]
    fn nothing_is_taken_that_came_in_clear_before_the_handshake() {
        let bytes = "INFO {\"tls_required\":true}\r\nPONG\r\n";
        let steps = talk(&wish(), bytes.as_bytes(), bytes.len()).unwrap();
        assert!(matches!(steps.as_slice(), [Step::Secure, Step::Send(_)]), "{steps:?}");
    }

    #[test]
    fn a_limit_of_connections_is_told_in_clear_and_nothing_else() {
        for (said, why) in [
            ("-ERR 'maximum connections exceeded'\r\n", Some("maximum connections exceeded")),
            ("-ERR 'Authorization Violation'\r\n", None),
            ("-ERR 'Unknown Protocol Operation'\r\n", None),
            ("-ERR 'maximum conn", None),
            ("\x16\x03\x03\0\x7a", None),
            ("PONG\r\n", None),
            ("", None),
        ] {
            let why = why.map(|why| Cause::Other(format!("the server says: {why}")));
            assert_eq!(refused_in_clear(said.as_bytes()), why, "{said:?}");
        }
    }

    #[test]
    fn what_does_not_serve_is_said_why() {
        for (bytes, why) in [
            (
                "-ERR 'Authorization Violation'\r\n",
                "login refused: Authorization Violation: no login was given",
            ),
            (
                "INFO {}\r\n-ERR 'Authorization Violation'\r\n",
                "login refused: Authorization Violation: no login was given",
            ),
            (
                "INFO {}\r\n-ERR 'maximum connections exceeded'\r\n",
                "the server says: maximum connections exceeded",
            ),
            ("INFO {\"ldm\":true}\r\n", "the server is shutting down (lame-duck mode)"),
            ("INFO {}\r\nINFO {\"ldm\":true}\r\n", "the server is shutting down (lame-duck mode)"),
            (
                "INFO {\"tls_required\":true,\"tls_verify\":true}\r\n",
                "TLS: the server wants a certificate of ours: give --tlscert and --tlskey",
            ),
            (
                "HTTP/1.1 400 Bad Request\r\n",
                "not a NATS server: it says \"HTTP/1.1 400 Bad Request\"",
            ),
            ("INFO [1]\r\n", "not a NATS server: it says \"INFO [1]\""),
            ("PONG\r\n", "not a NATS server: it begins with PONG"),
            ("MSG a 1 0\r\n\r\n", "not a NATS server: it begins with MSG"),
        ] {
            for chunk in [1, 7, bytes.len()] {
                let cause = talk(&wish(), bytes.as_bytes(), chunk).unwrap_err();
                assert_eq!(cause.to_string(), why, "{bytes:?}");
            }
        }
    }

    #[test]
    fn a_server_that_dies_in_a_line_is_a_server() {
        for (line, why) in [
            ("INFO {\"serv", "the server closed the connection in the middle of a line"),
            ("I", "the server closed the connection in the middle of a line"),
            ("-ERR 'maximum", "the server closed the connection in the middle of a line"),
            ("HTTP/1.1 400", "not a NATS server: it says \"HTTP/1.1 400\" and closes"),
        ] {
            let cause = cut_off(line.as_bytes()).to_string();
            assert!(cause.starts_with(why), "{line}: {cause}");
        }
    }

    #[test]
    fn no_login_is_sent_before_tls() {
        let login = ReadLogin::User("a".into(), "s3cret".into());
        let wish = Wish { login: &login, ..wish() };
        let (mut handshake, _) = Handshake::begin(&wish);
        let info = Operation::Info(b" {\"tls_required\":true}".to_vec());
        assert_eq!(handshake.heard(info, &wish), Ok(Step::Secure));
        let Ok(Step::Send(bytes)) = handshake.secured(&wish) else { panic!("logs in") };
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("\"user\":\"a\",\"pass\":\"s3cret\""), "{text}");
        assert!(text.contains("\"tls_required\":true"), "{text}");
    }
}
