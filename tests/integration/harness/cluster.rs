//! Three servers in a cluster, each of which can be killed, frozen and
//! restarted on its own.

use std::time::{Duration, Instant};

use super::proxy::{Flow, Proxy};
use super::registry::Registry;
use super::server::{Server, Setup};
use super::{eventually, free_port, millis, secs};

pub struct Cluster {
    pub servers: Vec<Server>,
    /// The routes, by who opens them and to whom; none where they are direct.
    proxies: Vec<Vec<Proxy>>,
}

impl Cluster {
    /// Three servers of these versions (one version for all, or one each).
    pub fn start(versions: &[&str]) -> Cluster {
        let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let routes = |_: usize| ports.clone();
        Cluster::with(versions, &ports, routes, "", Vec::new(), &[])
    }

    /// As `start`; each route passes a proxy, so that a server can be cut off
    /// from the others and not from its clients.
    pub fn with_proxies(version: &str) -> Cluster {
        Cluster::proxied(version, "", &[])
    }

    /// The same, each server started by `wrapper`; and no client learns of
    /// other addresses than its own.
    pub fn apart(version: &str, wrapper: &[String]) -> Cluster {
        Cluster::proxied(version, "no_advertise: true, ", wrapper)
    }

    fn proxied(version: &str, extra: &str, wrapper: &[String]) -> Cluster {
        let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let proxies: Vec<Vec<Proxy>> =
            (0..3).map(|_| ports.iter().map(|&port| Proxy::to(port)).collect()).collect();
        let routes: Vec<Vec<u16>> = (0..3)
            .map(|from| {
                (0..3).filter(|&to| to != from).map(|to| proxies[from][to].port()).collect()
            })
            .collect();
        // What they tell each other of their addresses leads nowhere, or they
        // would go around the proxies.
        let extra = format!("advertise: \"127.0.0.1:9\", {extra}");
        Cluster::with(&[version], &ports, |from| routes[from].clone(), &extra, proxies, wrapper)
    }

    fn with(
        versions: &[&str],
        ports: &[u16],
        routes: impl Fn(usize) -> Vec<u16>,
        extra: &str,
        proxies: Vec<Vec<Proxy>>,
        wrapper: &[String],
    ) -> Cluster {
        let mut servers: Vec<Server> = (0..3)
            .map(|i| {
                let peers: Vec<String> = routes(i)
                    .iter()
                    .map(|port| format!("\"nats://127.0.0.1:{port}\""))
                    .collect();
                Server::absent(Setup {
                    version: versions[i % versions.len()],
                    extra: format!(
                        "server_name: n{i}\ncluster {{ name: tests, {extra}listen: \"127.0.0.1:{}\", routes: [{}] }}\n",
                        ports[i],
                        peers.join(", ")
                    ),
                    wrapper: wrapper.to_vec(),
                    ..Setup::default()
                })
            })
            .collect();
        // Now and then no member of a new cluster is ever elected: 2.10.25 beside
        // 2.12.8 said nothing else for a minute.
        let elected = (0..3).any(|_| {
            for server in &mut servers {
                server.kill_and_forget();
                server.launch();
            }
            for server in &mut servers {
                server.wait_until_ready();
            }
            has_leader(&servers, secs(25))
        });
        assert!(elected, "three clusters in a row had no leader");
        until_routes_rest(&servers);
        Cluster { servers, proxies }
    }

    /// Cuts one server off from the others; its clients reach it.
    pub fn partition(&self, alone: usize, flow: Flow) {
        for (from, proxies) in self.proxies.iter().enumerate() {
            for (to, proxy) in proxies.iter().enumerate() {
                if from == alone || to == alone {
                    proxy.set(flow);
                }
            }
        }
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
        eventually(secs(60), "the bucket has a leader", || {
            let info = registry.info()?;
            let leader = info["cluster"]["leader"].as_str().unwrap_or_default();
            match leader.strip_prefix('n').and_then(|n| n.parse().ok()) {
                Some(place) => Ok(place),
                None => Err(info["cluster"].to_string()),
            }
        })
    }
}

/// Whether one of them is elected by then, as their logs say.
fn has_leader(servers: &[Server], within: Duration) -> bool {
    let until = Instant::now() + within;
    while Instant::now() < until {
        if servers.iter().any(|server| server.says("Self is new JetStream cluster metadata leader"))
        {
            return true;
        }
        std::thread::sleep(millis(20));
    }
    false
}

/// Members connect to each other from both sides and close what is too much, for
/// up to a second after the election: what passes meanwhile may be lost, or
/// reach nobody.
fn until_routes_rest(servers: &[Server]) {
    let changes = || -> usize {
        let about_routes = |line: &&str| {
            line.ends_with("Route connection created") || line.contains("Router connection closed")
        };
        servers.iter().map(|server| server.log().lines().filter(about_routes).count()).sum()
    };
    let limit = Instant::now() + secs(10);
    let mut seen = (changes(), Instant::now());
    while seen.1.elapsed() < millis(1200) && Instant::now() < limit {
        std::thread::sleep(millis(50));
        let now = changes();
        if now != seen.0 {
            seen = (now, Instant::now());
        }
    }
}
