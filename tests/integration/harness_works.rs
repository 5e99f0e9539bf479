//! What the other tests take for granted about the harness itself.

use serde_json::json;

use crate::harness::cluster::Cluster;
use crate::harness::proxy::{Flow, Proxy};
use crate::harness::registry::{Client, Registry, header};
use crate::harness::server::Server;
use crate::harness::{eventually, millis, secs};

#[test]
fn a_value_with_a_ttl_is_read_watched_and_gone_after_it() {
    let server = Server::any();
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({}));
    let watch = registry.watch(">");
    let revision = registry.put("a.b", &[("Nats-TTL", "1s")], "{\"x\":1}");

    let entry = registry.last("a.b").expect("it is stored");
    assert_eq!((entry.revision, entry.text().as_str()), (revision, "{\"x\":1}"));
    assert_eq!(entry.header("Nats-TTL").as_deref(), Some("1s"));
    let seen = watch.wait_for(1, secs(2));
    assert_eq!((seen[0].key(), seen[0].stored), ("a.b".to_owned(), entry.stored));
    eventually(secs(3), "it expires", || match registry.last("a.b") {
        None => Ok(()),
        Some(entry) => Err(format!("{entry:?}")),
    });
}

#[test]
fn a_server_keeps_its_store_over_a_kill_and_loses_it_when_asked() {
    let mut server = Server::start("2.12.8");
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({}));
    registry.put("a", &[], "1");
    let watch = registry.watch(">");
    server.restart();
    registry.reconnect();
    assert_eq!(registry.last("a").map(|e| e.text()).as_deref(), Some("1"));
    registry.put("a", &[], "2");
    assert_eq!(watch.wait_for(1, secs(5))[0].text(), "2");
    server.restart_empty();
    registry.reconnect();
    assert!(registry.info().is_err());
}

#[test]
fn poison_reaches_the_store_byte_by_byte() {
    let server = Server::any();
    let mut registry = Registry::at(&server.url());
    registry.create(&json!({}));
    registry.store(b"k\xff", b"NATS/1.0\r\nno colon\r\nx: \xff\r\n\r\n", b"p");
    let entry = registry.everything().remove(0);
    assert_eq!(entry.header, b"NATS/1.0\r\nno colon\r\nx: \xff\r\n\r\n");
    assert_eq!(entry.payload, b"p");
}

#[test]
fn the_proxy_holds_and_lets_go() {
    let server = Server::any();
    let proxy = Proxy::to(server.port());
    let mut client = Client::connect(&proxy.url());
    client.subscribe("x", 7).expect("subscribes");
    proxy.set(Flow::Hold);
    client.publish(b"x", "", &header(&[("A", "b")]), b"payload");
    assert!(client.next(millis(200)).expect("still connected").is_none());
    proxy.set(Flow::Forward);
    let message = client.next(secs(2)).expect("connected").expect("it arrives");
    assert_eq!(
        (message.header, message.payload),
        (b"NATS/1.0\r\nA: b\r\n\r\n".to_vec(), b"payload".to_vec())
    );
    proxy.cut();
    assert!(client.next(secs(2)).is_err());
    assert_eq!(proxy.accepted(), 1);
}

#[test]
fn a_cluster_has_another_leader_when_its_leader_is_killed() {
    let mut cluster = Cluster::start(&["2.12.8"]);
    Registry::at(&cluster.servers[0].url()).create(&json!({ "num_replicas": 3 }));
    let leader = cluster.leader("service_registry", 0);
    let other = (leader + 1) % 3;
    Registry::at(&cluster.servers[other].url()).put("a", &[], "1");
    cluster.servers[leader].kill();
    let next = eventually(secs(20), "another leader", || {
        match cluster.leader("service_registry", other) {
            same if same == leader => Err("the same".to_owned()),
            next => Ok(next),
        }
    });
    let mut registry = Registry::at(&cluster.servers[next].url());
    assert_eq!(registry.last("a").map(|e| e.text()).as_deref(), Some("1"));
}
