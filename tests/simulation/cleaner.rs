//! A cleanup beside the agents: the program's own selection over what the server
//! tells, and its own requests. It reads, is held up, and purges then.
//!
//! The judge knows what really stood there: nothing that still beats goes, nothing
//! that was refreshed meanwhile, and what has no TTL goes with the first cleanup.

use aegis_agent::commands::cleanup::selection::{Choice, Selection, Target};
use aegis_agent::instance::entry::Entry;
use aegis_agent::instance::staleness::DEFAULT_STALE_AFTER;
use aegis_agent::jetstream::bucket::Bucket;
use aegis_agent::jetstream::{requests, stored};
use serde_json::json;
use time::OffsetDateTime;

use crate::model::bucket::Wall;
use crate::model::session::Publish;
use crate::rng::Rng;
use crate::world::{Event, MILLI, Micros, SECOND, World};

/// One run in so many has one.
const ONE_IN: u64 = 8;
/// Those whose seed leaves this remainder: none of the named ones.
const REMAINDER: u64 = 4;

/// What a cleanup is about.
#[derive(Debug)]
pub struct Sweep {
    /// The registry's time by which it was judged.
    now: Wall,
    /// A store that was set back counts anew, and a number is another's then.
    numbering: u64,
    /// The newest of each key.
    read: Vec<u64>,
    targets: Vec<Target>,
}

/// Whether there are cleanups in this run, and tools.
pub fn is_there(seed: u64) -> bool {
    seed % ONE_IN == REMAINDER
}

/// When the first cleanup comes, if there is one in this run.
pub fn first(seed: u64) -> Option<Micros> {
    is_there(seed).then(|| Rng::new(seed, 9).below(60 * SECOND))
}

/// An instance that is none of the agents.
const SOMEBODY: &str = "somebody";

impl World {
    fn somebody_stores(&mut self, beat: u32, headers: &str) {
        let record = json!({
            "serviceName": "orders-api", "instanceId": SOMEBODY, "version": "1.0.0",
            "lastHeartbeat": format!("2026-11-23T09:00:0{beat}Z"),
        });
        let publish = Publish {
            subject: format!("$KV.service_registry.service-instances__orders-api__{SOMEBODY}"),
            headers: headers.as_bytes().to_vec(),
            payload: record.to_string().into_bytes(),
            ..Publish::default()
        };
        self.operate(&publish);
    }

    /// A cleanup reads the registry, if that can be done.
    pub fn scan(&mut self) {
        let mut rng = Rng::new(self.plan.seed, 10 + self.now);
        self.after(rng.between(5 * SECOND, 90 * SECOND), Event::Scan);
        if rng.one_in(2) {
            // Of the time before TTLs.
            self.somebody_stores(0, "");
        }
        let Some((leader, now)) = self.cluster.led(self.now) else { return };
        let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(now))
            .unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let bucket = Bucket::service_registry();
        let Some(stream) = self.cluster.jetstream.buckets.get(self.plan.stream()) else { return };
        let is_last =
            |seq: u64, subject: &str| stream.last(subject).map(|one| one.seq) == Some(seq);
        let seqs: Vec<u64> = stream
            .messages()
            .filter(|one| is_last(one.seq, &one.subject))
            .map(|one| one.seq)
            .collect();
        let selection = Selection {
            stale_after: DEFAULT_STALE_AFTER,
            only: Vec::new(),
            service: None,
            unreadable: false,
            spare_beating: true,
        };
        let mut targets = Vec::new();
        for &seq in &seqs {
            let publish = Publish {
                subject: format!("$JS.API.STREAM.MSG.GET.{}", self.plan.stream()),
                payload: json!({ "seq": seq }).to_string().into_bytes(),
                ..Publish::default()
            };
            let (answer, _) = self.cluster.take(leader, &publish, now);
            let Some(Ok(message)) = answer.map(|answer| stored::read_message(&answer.payload))
            else {
                return self.judge.violated(self.now, format!("revision {seq} cannot be read"));
            };
            let entry = Entry::of_message(&bucket, message);
            if let Choice::Remove(target) = selection.judge(entry, time) {
                targets.push(target);
            }
        }
        let numbering = self.judge.numberings;
        self.after(
            rng.between(MILLI, 3 * SECOND),
            Event::Sweep { sweep: Sweep { now, numbering, read: seqs, targets } },
        );
    }

    /// It removes what it has judged.
    pub fn sweep(&mut self, sweep: &Sweep) {
        let Some((leader, _)) = self.cluster.led(self.now) else { return };
        let bucket = Bucket::service_registry();
        let is_same = sweep.numbering == self.judge.numberings;
        for target in &sweep.targets {
            let subject = bucket.subject(&target.key);
            let standing = |world: &World| {
                let stream = world.cluster.jetstream.buckets.get(world.plan.stream())?;
                stream.last(&subject).cloned()
            };
            // It is refreshed at the last moment.
            if self.now.is_multiple_of(2) && target.key.ends_with(SOMEBODY) {
                self.somebody_stores(1, "NATS/1.0\r\nNats-TTL: 30s\r\n\r\n");
            }
            let before = standing(self);
            if let Some(last) =
                before.as_ref().filter(|last| is_same && last.seq == target.revision)
                && let Some(asked) = last.ttl.and(last.asked_ttl())
                && last.at + asked * 1_000_000_000 > sweep.now
            {
                let words = format!("revision {} beats, and is to be removed", last.seq);
                self.judge.violated(self.now, words);
            }
            let Some(purge) = requests::purge(&bucket, &target.key, target.revision) else {
                continue;
            };
            let (subject, payload) = (purge.subject, purge.payload);
            let (_, changes) = {
                let publish = Publish { subject, payload, ..Publish::default() };
                let now = self.cluster.wall(leader, self.now);
                self.cluster.take(leader, &publish, now)
            };
            self.changed(&changes, None);
            self.judge.tally.cleaned += changes.len() as u64;
            let after = standing(self);
            if let Some(last) = before.filter(|last| last.seq > target.revision)
                && after.map(|after| after.seq) != Some(last.seq)
            {
                let words = format!("revision {} was refreshed, and is removed", last.seq);
                self.judge.violated(self.now, words);
            }
        }
        let Some(stream) = self.cluster.jetstream.buckets.get(self.plan.stream()) else { return };
        let stays = stream.messages().find(|one| {
            is_same
                && sweep.read.contains(&one.seq)
                && !one.names_ttl()
                && !one.is_marker()
                && one.at <= sweep.now
                && stream.last(&one.subject).map(|last| last.seq) == Some(one.seq)
        });
        if let Some(stays) = stays {
            let words = format!("revision {} has no TTL, and a cleanup left it", stays.seq);
            self.judge.violated(self.now, words);
        }
    }
}
