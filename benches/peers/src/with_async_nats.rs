//! async-nats, on a runtime of one thread: the leanest that it runs on.

use std::time::Duration;

use async_nats::client::Request;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::kv::{self, Store};
use async_nats::jetstream::{self, stream::Stream};
use async_nats::{Client, HeaderMap};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::{EXCHANGE, Error, Found, MARKER_SECS, Operation, Peer, Result, TTL, WINDOW};

/// Messages of one pull; the crate asks for more when half of them are taken.
/// Larger ones, its ordered push consumer and its watch are no faster at 100,000
/// entries and take three to six times the memory.
const BATCH: usize = 2_000;

pub struct Async {
    runtime: Runtime,
    client: Client,
    bucket: String,
    ttl: HeaderMap,
}

/// What acknowledges a publish.
#[derive(Deserialize)]
struct Acknowledgement {
    seq: Option<u64>,
    error: Option<jetstream::Error>,
}

impl Async {
    /// Opened where it is used: opening it is an exchange with the server.
    async fn store(&self) -> Result<Store> {
        Ok(jetstream::new(self.client.clone()).get_key_value(&self.bucket).await?)
    }

    async fn stream(&self) -> Result<Stream<()>> {
        let jetstream = jetstream::new(self.client.clone());
        Ok(jetstream.get_stream_no_info(format!("KV_{}", self.bucket)).await?)
    }

    fn subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.bucket)
    }
}

impl Peer for Async {
    fn connect(url: &str, bucket: &str) -> Result<Async> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(async_nats::connect(url))?;
        let mut ttl = HeaderMap::new();
        ttl.insert("Nats-TTL", TTL);
        Ok(Async { runtime, client, bucket: bucket.to_owned(), ttl })
    }

    fn beat(&mut self, key: &str, value: Vec<u8>) -> Result<u64> {
        let request = Request::new().headers(self.ttl.clone()).payload(value.into());
        let reply = self.runtime.block_on(self.client.send_request(self.subject(key), request))?;
        let reply: Acknowledgement = serde_json::from_slice(&reply.payload)?;
        match reply.error {
            Some(error) => Err(error.into()),
            None => Ok(reply.seq.ok_or("an acknowledgement without a sequence")?),
        }
    }

    fn pause(&mut self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }

    fn newest(&mut self, mut take: impl FnMut(&str, u64, &[u8]) -> Result<()>) -> Result<()> {
        let prefix = self.subject("");
        self.runtime.block_on(async {
            let stream = self.stream().await?;
            let config = pull::Config {
                deliver_policy: DeliverPolicy::LastPerSubject,
                ack_policy: AckPolicy::None,
                memory_storage: true,
                num_replicas: 1,
                filter_subject: format!("{prefix}>"),
                inactive_threshold: Duration::from_secs(5),
                ..Default::default()
            };
            let consumer = stream.create_consumer(config).await?;
            if consumer.cached_info().num_pending == 0 {
                return Ok(());
            }
            let mut messages = consumer.stream().max_messages_per_batch(BATCH).messages().await?;
            while let Some(message) = timeout(EXCHANGE, messages.next()).await? {
                let message = message?;
                let info = message.info()?;
                let key = message.subject.strip_prefix(&prefix).unwrap_or_default();
                take(key, info.stream_sequence, &message.payload)?;
                if info.pending == 0 {
                    return Ok(());
                }
            }
            Err(Error::from("the stream of messages ended"))
        })
    }

    fn purge_all(&mut self, entries: Vec<(String, u64)>) -> Result<u64> {
        self.runtime.block_on(async {
            let stream = self.stream().await?;
            let purges = stream::iter(entries).map(|(key, revision)| {
                let purge = stream.purge().filter(self.subject(&key)).sequence(revision + 1);
                async move { Ok::<u64, Error>(purge.await?.purged) }
            });
            let purges = purges.buffer_unordered(WINDOW);
            purges.try_fold(0, |sum, purged| async move { Ok(sum + purged) }).await
        })
    }

    fn deregister(&mut self, key: &str, revision: u64) -> Result<()> {
        let time = Duration::from_secs(MARKER_SECS);
        self.runtime.block_on(async {
            Ok(self.store().await?.purge_expect_revision_with_ttl(key, revision, time).await?)
        })
    }

    fn entry(&mut self, key: &str) -> Result<Option<Found>> {
        self.runtime.block_on(async { Ok(self.store().await?.entry(key).await?.map(found)) })
    }

    fn header(&mut self, revision: u64) -> Result<Vec<(String, String)>> {
        let message = self.runtime.block_on(async {
            self.store().await?.stream.get_raw_message(revision).await.map_err(Error::from)
        })?;
        let lines = message.headers.iter().flat_map(|(name, values)| {
            values.iter().map(move |value| (name.to_string(), value.to_string()))
        });
        Ok(lines.collect())
    }

    fn watch(&mut self, key: &str, after: u64) -> Result<Found> {
        self.runtime.block_on(async {
            let mut watch = self.store().await?.watch_from_revision(key, after + 1).await?;
            eprintln!("watching");
            let entry = timeout(EXCHANGE, watch.next()).await.map_err(|_| "no revision comes")?;
            Ok(found(entry.ok_or("the watch ended")??))
        })
    }

    fn keys(&mut self) -> Result<Vec<String>> {
        self.runtime.block_on(async { Ok(self.store().await?.keys().await?.try_collect().await?) })
    }

    fn put(&mut self, key: &str, value: Vec<u8>) -> Result<u64> {
        self.runtime.block_on(async { Ok(self.store().await?.put(key, value.into()).await?) })
    }

    fn create(&mut self, key: &str, value: Vec<u8>) -> Result<u64> {
        self.runtime.block_on(async { Ok(self.store().await?.create(key, value.into()).await?) })
    }

    fn delete(&mut self, key: &str) -> Result<()> {
        self.runtime.block_on(async { Ok(self.store().await?.delete(key).await?) })
    }

    fn purge(&mut self, key: &str) -> Result<()> {
        self.runtime.block_on(async { Ok(self.store().await?.purge(key).await?) })
    }
}

fn found(entry: kv::Entry) -> Found {
    let operation = match entry.operation {
        kv::Operation::Put => Operation::Put,
        kv::Operation::Delete => Operation::Delete,
        kv::Operation::Purge => Operation::Purge,
    };
    Found { revision: entry.revision, operation, value: entry.value.to_vec() }
}
