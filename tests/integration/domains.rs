//! JetStream domains: agents and tools on a leaf node, the bucket in the hub.
//! The hub has a domain; a leaf has JetStream and a domain of its own, or none.

use serde_json::{Value, json};

use crate::harness::agent::{Agent, Invocation};
use crate::harness::leaf::Hub;
use crate::harness::registry::{Client, Registry};
use crate::harness::scene::{KEY, REGISTERED, fill, run, verb};
use crate::harness::server::Server;
use crate::harness::{eventually, scratch, secs};

/// Leaves without JetStream, and with a domain of their own.
const LEAVES: [&str; 2] = ["", "edge-7"];

fn in_hub(invocation: Invocation) -> Invocation {
    invocation.arg("--js-domain=hub")
}

fn registered(agent: &mut Agent) {
    agent.wait_for_line(REGISTERED, secs(8));
}

/// A hub with a bucket, and each kind of leaf.
fn on_leaves(prove: impl Fn(&mut Hub, &Server)) {
    for domain in LEAVES {
        let mut hub = Hub::start();
        let leaf = hub.leaf(domain);
        prove(&mut hub, &leaf);
    }
}

/// The bucket of the leaf's own JetStream, with one instance in it.
fn own_bucket(leaf: &Server) -> Registry {
    let mut own = Registry::at(&leaf.url());
    own.create(&json!({}));
    fill(&mut own, "of-the-leaf", 1, 0);
    own
}

#[test]
fn an_agent_on_a_leaf_lives_in_the_hubs_bucket() {
    on_leaves(|hub, leaf| {
        let watch = hub.registry.watch(KEY);
        let mut agent = in_hub(run(&leaf.url())).spawn();
        registered(&mut agent);
        let seen = watch.wait_for(4, secs(5));
        assert!(seen.iter().all(|entry| entry.header("Nats-TTL").as_deref() == Some("6s")));
        agent.signal("TERM");
        assert_eq!(agent.wait_exit(secs(3)), 0);
        assert_eq!(agent.lines_with("deregistered").len(), 1, "{}", agent.stderr());
        let last = hub.registry.last(KEY).expect("a marker");
        assert_eq!(last.header("KV-Operation").as_deref(), Some("PURGE"));
        assert!(agent.lines_with("warning").is_empty(), "{}", agent.stderr());
    });
}

#[test]
fn duplicate_agents_on_a_leaf_and_on_the_hub_are_found() {
    on_leaves(|hub, leaf| {
        let mut first = in_hub(run(&leaf.url())).spawn();
        registered(&mut first);
        let mut second = run(&hub.server.url()).spawn();
        registered(&mut second);
        for agent in [&mut first, &mut second] {
            agent.wait_for_line("writes this entry too", secs(6));
        }
    });
}

#[test]
fn an_agent_on_a_leaf_is_back_after_its_leaf_and_after_its_hub() {
    let mut hub = Hub::start();
    let mut leaf = hub.leaf("edge-7");
    let mut agent = in_hub(run(&leaf.url())).spawn();
    registered(&mut agent);
    leaf.restart();
    agent.wait_for_line("restored ", secs(10));
    hub.server.restart();
    // A leaf waits a second or more before it connects again.
    agent.wait_for_line("lost ", secs(8));
    agent.wait_for_lines("restored ", 2, secs(15));
    hub.registry.reconnect();
    assert!(hub.registry.last(KEY).is_some_and(|entry| !entry.is_marker()));
}

#[test]
fn the_tools_on_a_leaf_work_on_the_hubs_bucket() {
    on_leaves(|hub, leaf| {
        fill(&mut hub.registry, "alive", 30, 0);
        fill(&mut hub.registry, "stale", 20, 100);
        let tool = |name: &str| in_hub(verb(name, &leaf.url())).arg("--json");
        let answer = tool("list").run().exits(0).json();
        assert_eq!(answer["instances"].as_array().map(Vec::len), Some(30));
        assert_eq!(answer["hidden"]["stale"], 20);

        let answer = tool("check").arg("--probe").run();
        assert!(answer.code < 2, "{answer:#?}");
        let answer = answer.json();
        let probe = answer["checks"].as_array().and_then(|all| all.last().cloned());
        assert_eq!(probe.expect("a check")["name"], "ttl-probe");
        let is_bad = |check: &&Value| check["status"] != "ok" && check["status"] != "warning";
        let bad: Vec<&Value> =
            answer["checks"].as_array().into_iter().flatten().filter(is_bad).collect();
        assert!(bad.is_empty(), "{bad:?}");

        let answer = tool("cleanup").run().exits(0).json();
        assert_eq!(answer["removed"].as_array().map(Vec::len), Some(20), "{answer}");
        assert_eq!(hub.registry.everything().len(), 30);
    });
}

#[test]
fn init_and_run_on_a_leaf_make_the_bucket_in_the_hub() {
    for domain in LEAVES {
        let mut hub = Hub::without_a_bucket();
        let leaf = hub.leaf(domain);
        in_hub(verb("init", &leaf.url())).run().exits(0);
        assert_eq!(hub.registry.info().expect("it is there")["config"]["allow_msg_ttl"], true);
        hub.registry.delete();
        let mut agent = in_hub(run(&leaf.url())).spawn();
        registered(&mut agent);
        hub.registry.info().expect("it is there again");
        assert!(hub.registry.last(KEY).is_some());
        if !domain.is_empty() {
            assert!(Registry::at(&leaf.url()).info().is_err(), "none in the leaf");
        }
    }
}

/// What the tests above stand on, tried on the wire: `$JS.hub.API.` stands in
/// the place of `$JS.API.`, and in front of the key's subject, since a link
/// between domains lets no `$KV.>` pass.
#[test]
fn a_leaf_reaches_the_hubs_bucket_under_the_hubs_domain() {
    for domain in LEAVES {
        let mut hub = Hub::start();
        let leaf = hub.leaf(domain);
        let mut client = Client::connect(&leaf.url());
        client.patience = secs(1);
        let mut ask = |subject: &str, payload: &[u8]| {
            let reply = client.try_request(subject.as_bytes(), b"", payload);
            reply.map(|reply| String::from_utf8_lossy(&reply.payload).into_owned())
        };
        let info = ask("$JS.hub.API.STREAM.INFO.KV_service_registry", b"").expect("an answer");
        assert!(info.contains("\"allow_msg_ttl\":true"), "{info}");
        let stored = ask("$JS.hub.API.$KV.service_registry.a", b"1").expect("an answer");
        assert!(stored.contains("\"seq\":1"), "{stored}");
        assert_eq!(hub.registry.last("a").map(|entry| entry.text()).as_deref(), Some("1"));
        let direct = "$JS.hub.API.DIRECT.GET.KV_service_registry.$KV.service_registry.a";
        assert_eq!(ask(direct, b"").as_deref(), Ok("1"));
        let stored = ask("$KV.service_registry.b", b"2");
        assert_eq!(stored, Err("no responders".to_owned()));
        assert!(hub.registry.last("b").is_none());
    }
}

/// Both have a bucket of this name: only one of them is meant.
#[test]
fn a_bucket_of_the_same_name_in_the_leaf_is_left_alone() {
    let mut hub = Hub::start();
    let leaf = hub.leaf("edge-7");
    let mut own = own_bucket(&leaf);
    fill(&mut hub.registry, "of-the-hub", 1, 100);
    let mut agent = in_hub(run(&leaf.url())).spawn();
    registered(&mut agent);
    let answer = in_hub(verb("list", &leaf.url())).arg("--json").run().exits(0).json();
    assert_eq!(answer["instances"].as_array().map(Vec::len), Some(1), "{answer}");
    assert_eq!(answer["instances"][0]["instanceId"], "host-1");
    in_hub(verb("cleanup", &leaf.url())).run().exits(0);
    agent.signal("TERM");
    assert_eq!(agent.wait_exit(secs(3)), 0);
    let left: Vec<String> = own.everything().iter().map(|entry| entry.key()).collect();
    assert_eq!(left, ["service-instances__orders-api__of-the-leaf0"]);
    let left: Vec<String> = hub.registry.everything().iter().map(|entry| entry.key()).collect();
    assert_eq!(left, [KEY], "the marker of the agent");
}

#[test]
fn the_domain_comes_from_the_environment_and_from_a_context_too() {
    let mut hub = Hub::start();
    let leaf = hub.leaf("");
    fill(&mut hub.registry, "alive", 3, 0);
    let three = |invocation: Invocation| {
        let answer = invocation.arg("--json").run().exits(0).json();
        assert_eq!(answer["instances"].as_array().map(Vec::len), Some(3), "{answer}");
    };
    three(verb("list", &leaf.url()).env("AEGIS_JS_DOMAIN", "hub"));
    let home = scratch("contexts");
    std::fs::create_dir_all(home.join("nats/context")).expect("makes the directory");
    let context = json!({ "url": leaf.url(), "jetstream_domain": "hub" });
    std::fs::write(home.join("nats/context/leaf.json"), context.to_string()).expect("writes it");
    let home = home.display().to_string();
    let list = crate::harness::agent::aegis(&["list", "--context=leaf"]);
    three(list.env("XDG_CONFIG_HOME", &home));
    // An option beats the environment, which beats the context.
    let list = crate::harness::agent::aegis(&["list", "--context=leaf", "--js-domain=hub"]);
    three(list.env("XDG_CONFIG_HOME", &home).env("AEGIS_JS_DOMAIN", "nowhere"));
}

/// The hub itself takes its own domain, too: one file for all hosts.
#[test]
fn the_hub_knows_its_own_domain() {
    let mut hub = Hub::start();
    fill(&mut hub.registry, "alive", 3, 0);
    let list = in_hub(verb("list", &hub.server.url())).arg("--json").run().exits(0).json();
    assert_eq!(list["instances"].as_array().map(Vec::len), Some(3), "{list}");
    let mut agent = in_hub(run(&hub.server.url())).spawn();
    registered(&mut agent);
}

#[test]
fn a_domain_that_is_not_there_is_said_by_its_name() {
    let hub = Hub::start();
    let leaf = hub.leaf("edge-7");
    for tool in ["list", "cleanup"] {
        let output = verb(tool, &leaf.url()).arg("--js-domain=nowhere").run().exits(69);
        assert!(output.stderr.contains("nowhere"), "{output:#?}");
    }
    let mut agent = run(&leaf.url()).arg("--js-domain=nowhere").spawn();
    agent.wait_for_line("nowhere", secs(8));
}

#[test]
fn a_leaf_without_jetstream_is_told_of_domains() {
    let hub = Hub::start();
    let leaf = hub.leaf("");
    for (tool, code) in [("list", 69), ("cleanup", 69), ("check", 2)] {
        let output = verb(tool, &leaf.url()).run().exits(code);
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(said.contains("hint: enable JetStream there; if it is a leaf"), "{output:#?}");
    }
    let mut agent = run(&leaf.url()).spawn();
    agent.wait_for_line("--js-domain (AEGIS_JS_DOMAIN)", secs(8));
}

#[test]
fn what_is_no_domain_is_refused() {
    for domain in ["a.b", "*", ">", "a b", "a\tb"] {
        for tool in ["list", "run"] {
            let invocation =
                if tool == "run" { run("nats://127.0.0.1:9") } else { verb(tool, "x") };
            let output = invocation.arg("--js-domain").arg(domain).run().exits(64);
            assert!(output.stderr.contains("js-domain"), "{domain:?}: {output:#?}");
        }
    }
}

/// "Where a leaf has a domain of its own and none was asked for, `run` says
/// that the registry it uses (or makes) is the leaf's."
#[test]
fn an_agent_that_uses_the_registry_of_a_leaf_says_so() {
    for has_bucket in [true, false] {
        let mut hub = Hub::start();
        let leaf = hub.leaf("edge-7");
        let mut own = Registry::at(&leaf.url());
        if has_bucket {
            own.create(&json!({}));
        }
        let mut agent = run(&leaf.url()).spawn();
        registered(&mut agent);
        let line = eventually(secs(2), "it says so", || {
            let lines = agent.lines_with("--js-domain");
            lines.first().cloned().ok_or_else(|| agent.stderr())
        });
        assert!(line.text.contains("edge-7"), "{}", line.text);
        assert!(own.last(KEY).is_some());
        assert!(hub.registry.last(KEY).is_none());
        assert_eq!(agent.lines_with("--js-domain").len(), 1, "once: {}", agent.stderr());
    }
}

/// It is no news to those who asked for it, nor where there are no domains.
#[test]
fn an_agent_that_uses_the_registry_it_was_told_to_does_not_mention_domains() {
    let hub = Hub::start();
    let leaf = hub.leaf("edge-7");
    own_bucket(&leaf);
    let plain = Server::any();
    for (url, domain) in [(leaf.url(), "edge-7"), (leaf.url(), "hub"), (plain.url(), "")] {
        let mut agent = run(&url);
        if !domain.is_empty() {
            agent = agent.arg("--js-domain").arg(domain);
        }
        let mut agent = agent.spawn();
        registered(&mut agent);
        assert!(agent.lines_with("--js-domain").is_empty(), "{domain}: {}", agent.stderr());
        agent.signal("TERM");
        assert_eq!(agent.wait_exit(secs(3)), 0);
    }
}
