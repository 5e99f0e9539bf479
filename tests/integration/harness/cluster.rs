//! Three servers in a cluster, each of which can be killed, frozen and
//! restarted on its own.

use super::registry::Registry;
use super::server::{Server, Setup};
use super::{eventually, free_port, secs};

pub struct Cluster {
    pub servers: Vec<Server>,
}

impl Cluster {
    /// Three servers of these versions (one version for all, or one each).
    pub fn start(versions: &[&str]) -> Cluster {
        let routes: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let peers: Vec<String> =
            routes.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
        let mut servers: Vec<Server> = (0..3)
            .map(|i| {
                Server::absent(Setup {
                    version: versions[i % versions.len()],
                    extra: format!(
                        "server_name: n{i}\ncluster {{ name: tests, listen: \"127.0.0.1:{}\", routes: [{}] }}\n",
                        routes[i],
                        peers.join(", ")
                    ),
                    ..Setup::default()
                })
            })
            .collect();
        for server in &mut servers {
            server.launch();
        }
        for server in &mut servers {
            server.wait_until_ready();
        }
        Cluster { servers }
    }

    /// All three, as the value of `-s`.
    pub fn urls(&self) -> String {
        let urls: Vec<String> = self.servers.iter().map(Server::url).collect();
        urls.join(",")
    }

    /// The place in `servers` of the bucket's leader, once there is one,
    /// asked through a server that answers.
    pub fn leader(&self, bucket: &str, through: usize) -> usize {
        let mut registry = Registry::named(&self.servers[through].url(), bucket);
        eventually(secs(20), "the bucket has a leader", || {
            let info = registry.info()?;
            let leader = info["cluster"]["leader"].as_str().unwrap_or_default();
            match leader.strip_prefix('n').and_then(|n| n.parse().ok()) {
                Some(place) => Ok(place),
                None => Err(info["cluster"].to_string()),
            }
        })
    }
}
