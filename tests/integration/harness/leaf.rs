//! A hub that has the bucket, in a JetStream domain of its own, and leaf nodes
//! of it: the usual way to connect many hosts.

use serde_json::json;

use super::registry::Registry;
use super::server::{Server, Setup};
use super::{eventually, free_port, secs};

pub struct Hub {
    pub server: Server,
    /// The hub's bucket, seen at the hub.
    pub registry: Registry,
    leaf_port: u16,
}

impl Hub {
    /// A hub with the domain `hub` and an empty bucket.
    pub fn start() -> Hub {
        let mut hub = Hub::without_a_bucket();
        hub.registry.create(&json!({}));
        hub
    }

    pub fn without_a_bucket() -> Hub {
        let leaf_port = free_port();
        let server = Server::with(Setup {
            domain: "hub",
            extra: format!("server_name: hub\nleafnodes {{ listen: \"127.0.0.1:{leaf_port}\" }}\n"),
            ..Setup::default()
        });
        let registry = Registry::at(&server.url());
        Hub { server, registry, leaf_port }
    }

    /// What makes a server a leaf of this hub, for its `Setup::extra`.
    pub fn remote(&self) -> String {
        let port = self.leaf_port;
        format!("leafnodes {{ remotes [ {{ url: \"nats-leaf://127.0.0.1:{port}\" }} ] }}\n")
    }

    /// A leaf; with JetStream of its own where it has a domain of its own.
    pub fn leaf(&self, domain: &str) -> Server {
        let leaf = Server::with(Setup {
            jetstream: !domain.is_empty(),
            domain,
            extra: format!("server_name: leaf\n{}", self.remote()),
            ..Setup::default()
        });
        linked(&leaf);
        leaf
    }
}

/// Waits until a leaf knows its hub and the hub's domain.
pub fn linked(leaf: &Server) {
    eventually(secs(10), "the leaf is linked to its hub", || {
        let log = leaf.log();
        if log.contains("remote \"hub\"") { Ok(()) } else { Err(log) }
    });
}
