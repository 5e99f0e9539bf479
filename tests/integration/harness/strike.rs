//! The catalogue of faults that one server and its network can have: how each
//! comes and how it goes. `faults.rs` and `network_faults.rs` put agents under
//! them, `watch_faults.rs` puts `watch` under them; what may be said of each is
//! said there.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::json;

use super::agent::Invocation;
use super::free_port;
use super::network::{Names, Network, SERVER, Says};
use super::proxy::{Direction, Flow, Greeting, Proxy};
use super::registry::Registry;
use super::server::{Server, Setup};

/// Where a fault happens.
pub struct World {
    pub server: Server,
    /// Between the programs and the server.
    pub proxy: Proxy,
    /// Straight to the server.
    pub registry: Registry,
}

impl World {
    /// This server with a bucket, and a proxy.
    pub fn of(server: Server) -> World {
        let mut registry = Registry::at(&server.url());
        registry.create(&json!({}));
        World { proxy: Proxy::to(server.port()), server, registry }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Begins,
    Ends,
}
use Phase::{Begins, Ends};

type Act = Box<dyn FnMut(&mut World, Phase)>;

/// A fault, and the world that it comes over.
pub struct Strike {
    pub name: String,
    pub world: World,
    /// Whether what was stored outlives it.
    pub keeps: bool,
    /// The programs' servers.
    pub url: String,
    environment: Vec<(&'static str, &'static str)>,
    wrapper: Vec<String>,
    act: Act,
}

impl Strike {
    /// On any server, on the programs' way to which the proxy stands.
    pub fn new(name: &str, act: impl FnMut(&mut World, Phase) + 'static) -> Strike {
        Strike::over(World::of(Server::any()), name, act)
    }

    fn over(world: World, name: &str, act: impl FnMut(&mut World, Phase) + 'static) -> Strike {
        Strike {
            name: name.to_owned(),
            url: world.proxy.url(),
            world,
            keeps: true,
            environment: Vec::new(),
            wrapper: Vec::new(),
            act: Box::new(act),
        }
    }

    /// Nothing stands on the programs' way.
    fn direct(self) -> Strike {
        Strike { url: self.world.server.url(), ..self }
    }

    pub fn begin(&mut self) {
        (self.act)(&mut self.world, Begins);
    }

    pub fn end(&mut self) {
        (self.act)(&mut self.world, Ends);
    }

    /// The same program where the fault will meet it.
    pub fn meets(&self, program: Invocation) -> Invocation {
        let mut program = program.arg("-s").arg(&self.url).wrapped(&self.wrapper);
        for (name, value) in &self.environment {
            program = program.env(name, value);
        }
        program
    }

    pub fn refused() -> Strike {
        Strike::new("refused", |world, phase| match phase {
            Begins => {
                world.proxy.refuse(true);
                world.proxy.cut();
            }
            Ends => world.proxy.refuse(false),
        })
    }

    /// Whoever connects meets `bytes` in place of a server.
    fn greeted_with(name: &str, bytes: &[u8], close: bool) -> Strike {
        let bytes = bytes.to_vec();
        Strike::new(name, move |world, phase| match phase {
            Begins => {
                world.proxy.greet(Some(Greeting { bytes: bytes.clone(), close }));
                world.proxy.cut();
            }
            // In this order: whoever is let through must not be cut.
            Ends => {
                world.proxy.cut();
                world.proxy.greet(None);
            }
        })
    }

    pub fn silent() -> Strike {
        Strike::greeted_with("silent", b"", false)
    }

    pub fn garbage_instead_of_info() -> Strike {
        let garbage = b"HTTP/1.1 400 Bad Request\r\n\r\n\0\xff";
        Strike::greeted_with("garbage instead of INFO", garbage, false)
    }

    pub fn an_info_of_a_megabyte() -> Strike {
        let info = [b"INFO {\"server_name\":\"".to_vec(), vec![b'x'; 1 << 20]].concat();
        Strike::greeted_with("a 1 MB INFO", &info, false)
    }

    pub fn closed_in_the_middle_of_a_line() -> Strike {
        Strike::greeted_with("closed mid-line", b"INFO {\"server_id\":\"NA", true)
    }

    pub fn a_tls_handshake_that_stalls() -> Strike {
        let info =
            b"INFO {\"server_id\":\"N\",\"version\":\"2.12.8\",\"proto\":1,\"headers\":true,\
            \"max_payload\":1048576,\"tls_required\":true} \r\n";
        Strike::greeted_with("TLS handshake stalled", info, false)
    }

    /// The connections stand, and nothing passes in either direction.
    pub fn a_black_hole() -> Strike {
        Strike::new("black hole (proxy)", |world, phase| {
            world.proxy.set(if phase == Begins { Flow::Hold } else { Flow::Forward });
        })
    }

    /// Nothing passes in this one.
    pub fn one_way_loss(direction: Direction) -> Strike {
        let to = if direction == Direction::ToClient { "client" } else { "server" };
        Strike::new(&format!("one-way loss, to the {to} (proxy)"), move |world, phase| {
            let flow = if phase == Begins { Flow::Discard } else { Flow::Forward };
            world.proxy.set_one(direction, flow);
        })
    }

    /// Cuts once, after so many bytes in this direction.
    pub fn cut_after(name: &str, direction: Direction, bytes: usize) -> Strike {
        Strike::new(name, move |world, phase| {
            if phase == Begins {
                world.proxy.cut_after(direction, bytes);
            }
        })
    }

    pub fn frozen() -> Strike {
        Strike::new("frozen", |world, phase| match phase {
            Begins => world.server.freeze(),
            Ends => world.server.thaw(),
        })
        .direct()
    }

    pub fn killed() -> Strike {
        Strike::new("killed", |world, phase| match phase {
            Begins => world.server.kill(),
            Ends => {
                world.server.start_again();
                world.registry.reconnect();
            }
        })
        .direct()
    }

    pub fn restarted_with_an_empty_store() -> Strike {
        let strike = Strike::new("restarted with an empty store", |world, phase| match phase {
            Begins => world.server.kill(),
            Ends => world.server.restart_empty(),
        });
        Strike { keeps: false, ..strike.direct() }
    }

    /// Nobody else makes it again.
    pub fn the_bucket_deleted() -> Strike {
        let strike = Strike::new("bucket deleted", |world, phase| {
            if phase == Begins {
                world.registry.delete();
            }
        });
        Strike { keeps: false, ..strike }
    }

    /// And given back.
    pub fn the_login_is_withdrawn() -> Strike {
        let users = "no_auth_user: tests\nauthorization { users: [\
            { user: agent, password: \"right\" }, { user: tests, password: tests } ] }\n";
        let server = Server::with(Setup { extra: users.to_owned(), ..Setup::default() });
        let strike =
            Strike::over(World::of(server), "login withdrawn", |world, phase| match phase {
                Begins => world.server.reconfigure("\"right\"", "\"other\""),
                Ends => world.server.reconfigure("\"other\"", "\"right\""),
            });
        let environment = vec![("NATS_USER", "agent"), ("NATS_PASSWORD", "right")];
        Strike { environment, ..strike }
    }

    /// A network that loses what comes from `sides`. Needs root; `None`, said
    /// aloud, without.
    pub fn packets_lost(sides: &'static [&'static str]) -> Option<Strike> {
        let mut network = Network::enter()?;
        let wrapper = network.client();
        let world = World::of(Server::with(Setup { host: "0.0.0.0", ..Setup::default() }));
        let url = format!("nats://{SERVER}:{}", world.server.port());
        let name = format!("packets from {} lost (network)", sides.join(" and "));
        let strike = Strike::over(world, &name, move |_, phase| {
            for side in sides {
                match phase {
                    Begins => network.lose(side),
                    Ends => network.pass(side),
                }
            }
        });
        Some(Strike { url, wrapper, ..strike })
    }

    /// The server is away, and its name cannot be looked up: the name server, at
    /// this address of the loopback, says what `says` is. It comes back at another
    /// address, which `prove` must have the programs find. Needs root; skipped
    /// aloud without.
    pub fn another_address(address: Ipv4Addr, says: Says, prove: impl FnOnce(Strike)) {
        let at = |last: u8| Ipv4Addr::new(127, address.octets()[1], 1, last);
        let Some(names) = Names::served_at(address, Says::Address(at(1))) else { return };
        let (wrapper, world, port) = (names.client(), World::of(Server::any()), free_port());
        let old = Proxy::listening(SocketAddr::from((at(1), port)), world.server.port());
        let new = Proxy::listening(SocketAddr::from((at(2), port)), world.server.port());
        let name = format!("another address, and of its name is said {says:?}");
        let back = Says::Address(at(2));
        let strike = Strike::over(world, &name, move |_, phase| match phase {
            Begins => {
                names.say(says);
                old.refuse(true);
                old.cut();
            }
            Ends => names.say(back),
        });
        prove(Strike { url: format!("nats://nats.test:{port}"), wrapper, ..strike });
        assert!(new.accepted() > 0);
    }
}
