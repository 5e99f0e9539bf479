//! What a server tells of itself over its monitoring port.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use super::{free_port, secs};

/// The monitoring port of one server; `config` goes into its `Setup::extra`.
pub struct Monitor {
    port: u16,
}

impl Monitor {
    pub fn new() -> Monitor {
        Monitor { port: free_port() }
    }

    pub fn config(&self) -> String {
        format!("http: \"127.0.0.1:{}\"\n", self.port)
    }

    /// How many clients have connected since the server was started.
    pub fn connections(&self) -> Result<u64, String> {
        let all = self.get("/varz")?;
        all["total_connections"].as_u64().ok_or_else(|| format!("no total in {all}"))
    }

    /// The names of the clients; `state` is `open` or `closed`.
    pub fn names(&self, state: &str) -> Result<Vec<String>, String> {
        let all = self.get(&format!("/connz?state={state}&limit=1000"))?;
        let clients = all["connections"].as_array().ok_or_else(|| all.to_string())?;
        let name = |one: &Value| one["name"].as_str().unwrap_or_default().to_owned();
        Ok(clients.iter().map(name).collect())
    }

    fn get(&self, path: &str) -> Result<Value, String> {
        let text = self.request(path).map_err(|error| error.to_string())?;
        let (_, body) = text.split_once("\r\n\r\n").ok_or_else(|| text.clone())?;
        serde_json::from_str(body).map_err(|error| format!("{error}: {text}"))
    }

    fn request(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(secs(5)))?;
        // HTTP 1.0: the body ends with the connection, in one piece.
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }
}
