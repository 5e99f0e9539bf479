//! INFO lines: what a server greets with, and longer ones, by a proxy in front
//! of a real server that puts as many addresses of cluster members into its
//! greeting as a large host has. The rest of what the server says stays as it
//! is.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::sync::Mutex;

use serde_json::{Value, json};

use super::proxy::Proxy;
use super::secs;

/// What the server on this port greets a client with, TLS or not.
pub fn greeting(port: u16) -> Result<Value, String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(secs(2))).map_err(|e| e.to_string())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).map_err(|e| e.to_string())?;
    let info = line.strip_prefix("INFO ").ok_or_else(|| format!("greets with {line:?}"))?;
    serde_json::from_str(info).map_err(|e| e.to_string())
}

/// A proxy to this server, whose greeting has about `length` bytes.
pub fn with_greeting_of(length: usize, target: u16) -> Proxy {
    let proxy = Proxy::to(target);
    // Made once and before anybody waits: without optimisation 4 MiB of JSON
    // take a second, and on a busy machine more than a client waits.
    let own = greeting(target).expect("the server greets");
    let longer = longer(format!("INFO {own}").as_bytes(), length).expect("an INFO line");
    proxy.rewrite(move |bytes| match bytes.starts_with(b"INFO ") {
        true => longer.clone(),
        false => bytes.to_vec(),
    });
    proxy
}

/// A proxy to this server, which greets as it always does, and sends an INFO
/// line of about `length` bytes before each piece of what it says later: as if
/// members of its cluster came and went.
pub fn with_later_lines_of(length: usize, target: u16) -> Proxy {
    let proxy = Proxy::to(target);
    let line = Mutex::new(Vec::new());
    proxy.rewrite(move |bytes| {
        let mut line = line.lock().expect("no panic while it was held");
        match longer(bytes, length) {
            Some(longer) => {
                *line = longer;
                bytes.to_vec()
            }
            None if starts_a_message(bytes) => [line.as_slice(), bytes].concat(),
            None => bytes.to_vec(),
        }
    });
    proxy
}

fn starts_a_message(bytes: &[u8]) -> bool {
    [&b"PONG"[..], b"MSG ", b"HMSG "].iter().any(|word| bytes.starts_with(word))
}

/// An INFO line with more addresses; `None` where this is none.
fn longer(bytes: &[u8], length: usize) -> Option<Vec<u8>> {
    let line = bytes.strip_prefix(b"INFO ")?;
    let mut info: Value = serde_json::from_slice(line).expect("the server's INFO is JSON");
    // All of them refuse at once, should anybody try them.
    let mut addresses = Vec::new();
    let mut size = bytes.len() + "\"connect_urls\":[],".len();
    for n in 0.. {
        let address = format!("127.{}.{}.{}:9", 100 + n / 62_500, n / 250 % 250, 1 + n % 250);
        size += address.len() + "\"\",".len();
        if size > length {
            break;
        }
        addresses.push(address);
    }
    info["connect_urls"] = json!(addresses);
    Some(format!("INFO {info} \r\n").into_bytes())
}
