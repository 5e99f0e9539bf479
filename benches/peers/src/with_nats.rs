//! The `nats` crate 0.26: blocking, with two threads of its own.

// Every item of it is deprecated by its makers.
#![allow(deprecated)]

use std::time::Duration;

use nats::header::HeaderMap;
use nats::jetstream::JetStream;
use nats::kv::{self, Store};
use nats::{Connection, Message, Subscription};
use serde_json::{Value, json};

use crate::{EXCHANGE, Found, MARKER_SECS, Operation, Peer, Result, TTL, WINDOW};

/// Messages of one pull; two of them are under way. Pushed to, and by the
/// crate's own watch, the same is no faster and takes up to five times the memory.
const BATCH: usize = 2_000;

pub struct Blocking {
    connection: Connection,
    jetstream: JetStream,
    bucket: String,
    /// Opened where it is used: opening it is an exchange with the server.
    store: Option<Store>,
    inbox: String,
    replies: Subscription,
    ttl: HeaderMap,
}

impl Blocking {
    fn store(&mut self) -> Result<&Store> {
        if self.store.is_none() {
            self.store = Some(self.jetstream.key_value(&self.bucket)?);
        }
        Ok(self.store.as_ref().ok_or("no bucket")?)
    }

    fn stream(&self) -> String {
        format!("KV_{}", self.bucket)
    }

    fn subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.bucket)
    }

    /// One exchange over the one inbox: the crate's own `request` subscribes
    /// and unsubscribes for each.
    fn exchange(&self, subject: &str, headers: Option<&HeaderMap>, body: &[u8]) -> Result<Message> {
        self.connection.publish_with_reply_or_headers(subject, Some(&self.inbox), headers, body)?;
        Ok(self.replies.next_timeout(EXCHANGE)?)
    }
}

/// The JSON of a reply, or the error that it tells.
fn answer(message: &Message) -> Result<Value> {
    if message.data.is_empty() {
        return Err("nobody answers: no such bucket, or no JetStream".into());
    }
    let value: Value = serde_json::from_slice(&message.data)?;
    match value.get("error") {
        Some(error) => Err(error.to_string().into()),
        None => Ok(value),
    }
}

fn number(value: &Value, name: &str) -> Result<u64> {
    Ok(value[name].as_u64().ok_or_else(|| format!("no {name} in {value}"))?)
}

impl Peer for Blocking {
    fn connect(url: &str, bucket: &str) -> Result<Blocking> {
        // Left alone it waits a random while, up to a second, before its very
        // first attempt.
        let options = nats::Options::new().reconnect_delay_callback(|_| Duration::ZERO);
        let connection = options.connect(url)?;
        let inbox = connection.new_inbox();
        let replies = connection.subscribe(&inbox)?;
        let mut ttl = HeaderMap::new();
        ttl.insert("Nats-TTL", TTL);
        let jetstream = nats::jetstream::new(connection.clone());
        let bucket = bucket.to_owned();
        Ok(Blocking { connection, jetstream, bucket, store: None, inbox, replies, ttl })
    }

    fn beat(&mut self, key: &str, value: Vec<u8>) -> Result<u64> {
        let reply = self.exchange(&self.subject(key), Some(&self.ttl), &value)?;
        number(&answer(&reply)?, "seq")
    }

    fn pause(&mut self, time: Duration) {
        std::thread::sleep(time);
    }

    fn newest(&mut self, mut take: impl FnMut(&str, u64, &[u8]) -> Result<()>) -> Result<()> {
        let (stream, prefix) = (self.stream(), self.subject(""));
        let create = json!({ "stream_name": stream, "config": {
            "deliver_policy": "last_per_subject", "ack_policy": "none", "mem_storage": true,
            "num_replicas": 1, "inactive_threshold": 5_000_000_000_u64,
            "filter_subject": format!("{prefix}>"),
        }});
        let what = format!("$JS.API.CONSUMER.CREATE.{stream}");
        let made = answer(&self.exchange(&what, None, create.to_string().as_bytes())?)?;
        if number(&made, "num_pending")? == 0 {
            return Ok(());
        }
        let name = made["name"].as_str().ok_or("the consumer has no name")?;
        let next = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}");
        let pull = json!({ "batch": BATCH, "expires": 20_000_000_000_u64 }).to_string();
        let pull = || self.connection.publish_request(&next, &self.inbox, &pull);
        pull()?;
        pull()?;
        let mut taken = 0;
        loop {
            let message = self.replies.next_timeout(EXCHANGE)?;
            // A status, which ends a pull.
            let Some(info) = message.jetstream_message_info() else { continue };
            let key = message.subject.strip_prefix(&prefix).unwrap_or_default();
            take(key, info.stream_seq, &message.data)?;
            if info.pending == 0 {
                return Ok(());
            }
            taken += 1;
            if taken % BATCH == 0 {
                pull()?;
            }
        }
    }

    fn purge_all(&mut self, entries: Vec<(String, u64)>) -> Result<u64> {
        // Statuses of earlier pulls go to another inbox.
        let inbox = self.connection.new_inbox();
        let replies = self.connection.subscribe(&inbox)?;
        let what = format!("$JS.API.STREAM.PURGE.{}", self.stream());
        let (mut answered, mut purged) = (0, 0);
        let take = |purged: &mut u64| -> Result<()> {
            *purged += number(&answer(&replies.next_timeout(EXCHANGE)?)?, "purged")?;
            Ok(())
        };
        for (sent, (key, revision)) in entries.iter().enumerate() {
            if sent - answered >= WINDOW {
                take(&mut purged)?;
                answered += 1;
            }
            let body = format!("{{\"filter\":\"{}\",\"seq\":{}}}", self.subject(key), revision + 1);
            self.connection.publish_request(&what, &inbox, body)?;
        }
        while answered < entries.len() {
            take(&mut purged)?;
            answered += 1;
        }
        Ok(purged)
    }

    fn deregister(&mut self, key: &str, revision: u64) -> Result<()> {
        let mut headers = HeaderMap::new();
        headers.insert("KV-Operation", "PURGE");
        headers.insert("Nats-Rollup", "sub");
        headers.insert("Nats-TTL", format!("{MARKER_SECS}s"));
        headers.insert("Nats-Expected-Last-Subject-Sequence", revision.to_string());
        answer(&self.exchange(&self.subject(key), Some(&headers), b"")?)?;
        Ok(())
    }

    fn entry(&mut self, key: &str) -> Result<Option<Found>> {
        Ok(self.store()?.entry(key)?.map(found))
    }

    fn header(&mut self, revision: u64) -> Result<Vec<(String, String)>> {
        let message = self.jetstream.get_message(self.stream(), revision)?;
        let headers = message.headers.as_ref().into_iter().flat_map(|headers| headers.iter());
        let lines = headers.flat_map(|(name, values)| {
            values.iter().map(|value| (name.to_owned(), value.to_owned()))
        });
        Ok(lines.collect())
    }

    fn watch(&mut self, key: &str, after: u64) -> Result<Found> {
        let watch = self.store()?.watch(key)?;
        eprintln!("watching");
        // The crate's iterator knows no time limit.
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut watch = watch;
            let _ = send.send(watch.find(|entry| entry.revision > after));
        });
        let entry = receive.recv_timeout(EXCHANGE).map_err(|_| "no revision comes")?;
        Ok(found(entry.ok_or("the watch ended")?))
    }

    fn keys(&mut self) -> Result<Vec<String>> {
        Ok(self.store()?.keys()?.collect())
    }

    fn put(&mut self, key: &str, value: Vec<u8>) -> Result<u64> {
        Ok(self.store()?.put(key, value)?)
    }

    fn create(&mut self, key: &str, value: Vec<u8>) -> Result<u64> {
        Ok(self.store()?.create(key, value)?)
    }

    fn delete(&mut self, key: &str) -> Result<()> {
        Ok(self.store()?.delete(key)?)
    }

    fn purge(&mut self, key: &str) -> Result<()> {
        Ok(self.store()?.purge(key)?)
    }
}

fn found(entry: kv::Entry) -> Found {
    let operation = match entry.operation {
        kv::Operation::Put => Operation::Put,
        kv::Operation::Delete => Operation::Delete,
        kv::Operation::Purge => Operation::Purge,
    };
    Found { revision: entry.revision, operation, value: entry.value }
}
