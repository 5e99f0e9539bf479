//! The scenes that most tests begin with: a bucket with instances in it, an
//! agent with short times, a server with TLS, many runs side by side.

use serde_json::{Value, json};

use super::agent::{Invocation, Output, aegis};
use super::registry::{Registry, header};
use super::server::{Server, Setup};
use super::time as rfc3339;

/// What `run` says once its entry is stored for the first time.
pub const REGISTERED: &str = "registered orders-api/host-1 in bucket";

/// The key of the agent of `run`.
pub const KEY: &str = "service-instances__orders-api__host-1";

pub fn key(instance: &str) -> String {
    format!("service-instances__orders-api__{instance}")
}

/// A record of `orders-api` that beat so many seconds ago.
pub fn record(instance: &str, age: i64) -> String {
    let heartbeat = rfc3339::rfc3339(rfc3339::now() - time::Duration::seconds(age));
    json!({
        "serviceName": "orders-api", "instanceId": instance, "version": "1.0.0", "status": "ACTIVE",
        "lastHeartbeat": heartbeat, "stickyActiveGroup": null, "metadata": {},
    })
    .to_string()
}

/// A server of this kind with an empty bucket.
pub fn bucket(setup: Setup) -> (Server, Registry) {
    made(setup, &json!({}))
}

/// The server that the finder prefers, with an empty bucket.
pub fn any_bucket() -> (Server, Registry) {
    bucket(Setup::default())
}

/// The same with these settings over those of a bucket fit for the program.
pub fn bucket_with(changes: &Value) -> (Server, Registry) {
    made(Setup::default(), changes)
}

/// The same on a server of the pinned `version`.
pub fn bucket_on(version: &str, changes: &Value) -> (Server, Registry) {
    made(Setup { version, ..Setup::default() }, changes)
}

fn made(setup: Setup, changes: &Value) -> (Server, Registry) {
    let server = Server::with(setup);
    let mut registry = Registry::at(&server.url());
    registry.create(changes);
    (server, registry)
}

/// Stores so many instances of `orders-api`, all of which beat `age` seconds ago.
pub fn fill(registry: &mut Registry, name: &str, count: usize, age: i64) {
    let ttl = header(&[("Nats-TTL", "10m")]);
    registry.fill(count, |i| {
        let instance = format!("{name}{i}");
        (key(&instance), ttl.clone(), record(&instance, age))
    });
}

/// An agent with a TTL of 6 s that beats twice a second.
pub fn run(url: &str) -> Invocation {
    aegis(&["run", "--service=orders-api", "--instance=host-1", "--ttl=6s", "--interval=500ms"])
        .arg("-s")
        .arg(url)
}

pub fn verb(verb: &str, url: &str) -> Invocation {
    aegis(&[verb, "-s", url])
}

/// Runs all of them at once, to their ends; the answers come in the same order.
pub fn together(invocations: &[Invocation]) -> Vec<Output> {
    std::thread::scope(|scope| {
        let runs: Vec<_> =
            invocations.iter().map(|invocation| scope.spawn(|| invocation.run())).collect();
        runs.into_iter().map(|run| run.join().expect("it comes to its end")).collect()
    })
}

/// The path of one of the certificates or keys of tests/certificates.
pub fn pem(name: &str) -> String {
    format!("{}/tests/certificates/{name}.pem", env!("CARGO_MANIFEST_DIR"))
}

/// The `tls` block of a server with this certificate; `more` goes into it.
pub fn tls(certificate: &str, more: &str) -> String {
    let (cert, key) = (pem(certificate), pem(&format!("{certificate}-key")));
    format!("tls {{ cert_file: \"{cert}\", key_file: \"{key}\", {more} }}\n")
}

pub fn with_ca(invocation: Invocation) -> Invocation {
    invocation.arg("--tlsca").arg(&pem("ca"))
}
