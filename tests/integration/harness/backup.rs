//! A backup of a bucket and its return, by the server's own snapshots (the API
//! that `nats stream backup` and `restore` use).

use serde_json::{Value, json};

use super::registry::{Message, Registry};
use super::{eventually, secs};

/// A snapshot of a bucket.
pub struct Backup {
    config: Value,
    state: Value,
    chunks: Vec<Vec<u8>>,
}

impl Backup {
    /// Takes one, while whoever writes goes on.
    pub fn of(registry: &mut Registry) -> Backup {
        const INBOX: &str = "tests.snapshot";
        registry.client.subscribe(INBOX, 70).expect("subscribes");
        let request = json!({ "deliver_subject": INBOX, "no_consumers": true });
        let what = format!("STREAM.SNAPSHOT.KV_{}", registry.bucket);
        let begun = registry.client.api(&what, &request).expect("a snapshot begins");
        let mut chunks = Vec::new();
        loop {
            let message = registry.client.next(secs(5)).expect("reads").expect("a chunk");
            if message.subject != INBOX.as_bytes() {
                continue;
            }
            let Message { reply, payload, .. } = message;
            if payload.is_empty() {
                break;
            }
            chunks.push(payload);
            // The server waits for this before it sends much more.
            if let Some(reply) = reply {
                registry.client.publish(reply.as_bytes(), "", b"", b"");
            }
        }
        assert!(!chunks.is_empty(), "an empty snapshot: {begun:#}");
        Backup { config: begun["config"].clone(), state: begun["state"].clone(), chunks }
    }

    /// Puts it in the place of the bucket that there is.
    pub fn restore(&self, registry: &mut Registry) {
        registry.delete();
        let request = json!({ "config": self.config, "state": self.state });
        let what = format!("STREAM.RESTORE.KV_{}", registry.bucket);
        let begun = registry.client.api(&what, &request).expect("a restore begins");
        let to = begun["deliver_subject"].as_str().expect("where to send it").to_owned();
        for chunk in self.chunks.iter().map(Vec::as_slice).chain([&b""[..]]) {
            let reply = registry.client.try_request(to.as_bytes(), b"", chunk).expect("an answer");
            let text = String::from_utf8_lossy(&reply.payload);
            assert!(!text.contains("\"error\""), "{text}");
        }
        eventually(secs(5), "the bucket is back", || registry.info());
    }
}
