//! A cluster with TLS in front of a hub that has the bucket: its members have no
//! JetStream and hold no elections, so that any of them can be killed at any
//! time, and whatever reaches one of them is stored in the hub.

use super::info::greeting;
use super::leaf::{Hub, linked};
use super::scene::tls;
use super::server::{Server, Setup};
use super::{eventually, free_port, millis, secs, time_passes};

pub struct Front {
    /// Without TLS: the tests look into it.
    pub hub: Hub,
    pub members: Vec<Server>,
    routes: Vec<u16>,
}

impl Front {
    /// A hub with a bucket, and members with these certificates.
    pub fn start(certificates: &[&str]) -> Front {
        let mut front = Front { hub: Hub::start(), members: Vec::new(), routes: Vec::new() };
        for certificate in certificates {
            front.join(certificate);
        }
        front
    }

    /// Another member, with this certificate, announced as 127.0.0.1 and its
    /// port. Comes back when all know each other and it reaches the hub.
    pub fn join(&mut self, certificate: &str) {
        let (place, route) = (self.members.len(), free_port());
        self.routes.push(route);
        let routes: Vec<String> =
            self.routes.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
        self.members.push(Server::with(Setup {
            jetstream: false,
            extra: format!(
                "server_name: m{place}\n\
                 cluster {{ name: front, listen: \"127.0.0.1:{route}\", routes: [{}] }}\n\
                 {}\
                 # Clients need not know where the bucket is.\n\
                 default_js_domain {{ \"$G\": hub }}\n{}",
                routes.join(", "),
                self.hub.remote(),
                tls(certificate, "")
            ),
            ..Setup::default()
        }));
        linked(&self.members[place]);
        self.wait_until_known(place);
        // Clients that are connected are told after those that ask.
        time_passes(millis(100));
    }

    /// Until the members that run announce this one, and it announces them.
    fn wait_until_known(&self, joined: usize) {
        let address = |member: usize| format!("127.0.0.1:{}", self.members[member].port());
        let announces = |member: usize, other: usize| match greeting(self.members[member].port()) {
            Ok(info) if info["connect_urls"].to_string().contains(&address(other)) => Ok(()),
            Ok(info) => Err(info.to_string()),
            Err(why) => Err(why),
        };
        for other in (0..joined).filter(|&other| self.members[other].is_running()) {
            for (member, of) in [(other, joined), (joined, other)] {
                eventually(secs(10), "they announce each other", || announces(member, of));
            }
        }
    }

    /// The first member by its name, as an agent's list has it.
    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://localhost:{}", self.members[0].port())
    }

    /// How the log of an agent names this member.
    pub fn place(&self, member: usize) -> String {
        format!(":{} (m{member})", self.members[member].port())
    }
}
