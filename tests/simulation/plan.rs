//! What a seed stands for: the servers, the hosts, the bucket, and which faults
//! befall them when.

use serde_json::{Value, json};

use crate::faults::{Delete, Edit, Fault, Kind};
use crate::rng::Rng;
use crate::world::{MILLI, Micros, SECOND};

/// One host with one agent on it.
#[derive(Clone, Debug, PartialEq)]
pub struct HostPlan {
    /// Containers of one image can have the same.
    pub name: String,
    pub instance: String,
    pub drift: i64,
    pub wall_off: i64,
    pub tells_wakeup: bool,
    /// When its agent starts first, if nothing else starts it.
    pub starts: Option<Micros>,
    /// So long after its end the agent starts again.
    pub restarts: Option<Micros>,
}

/// A run that can be repeated.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub seed: u64,
    pub length: Micros,
    /// The version of each.
    pub servers: Vec<String>,
    pub hosts: Vec<HostPlan>,
    pub ttl: u64,
    pub interval: u64,
    /// There and back, when all is well.
    pub latency: Micros,
    /// The bucket that is there at the beginning.
    pub bucket: Option<Value>,
    pub in_memory: bool,
    /// Members that come back lag, and what is between forgets the connections of a
    /// host that sleeps.
    pub lags_and_forgets: bool,
    pub faults: Vec<Fault>,
}

/// One run in four has what came to the simulator later. Their seeds leave one of
/// these remainders: none of the named ones does, which stay as they were.
const LATER: [u64; 2] = [1, 6];

/// The settings of every call: none.
pub const ENV_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/simulation/agent.env");

pub const VERSIONS: [&str; 3] = ["2.11.11", "2.12.8", "2.15.1"];

impl Plan {
    pub fn stream(&self) -> &'static str {
        "KV_service_registry"
    }

    /// All servers, as the value of an option.
    pub fn urls(&self) -> String {
        let urls: Vec<String> = (1..=self.servers.len()).map(|n| format!("10.0.0.{n}")).collect();
        urls.join(",")
    }

    /// The subject under which an agent's entry is stored.
    pub fn subject(&self, slot: usize) -> String {
        format!("$KV.service_registry.service-instances__orders-api__{}", self.hosts[slot].instance)
    }

    /// All of it, a line for each thing.
    pub fn words(&self) -> String {
        let mut lines = vec![
            format!("servers {:?}, there and back in {} us", self.servers, self.latency),
            format!("TTL {} s, a heartbeat every {} s", self.ttl, self.interval),
        ];
        lines.extend(self.hosts.iter().map(|host| format!("{host:?}")));
        let bucket = self.bucket.as_ref().map_or("none yet".into(), Value::to_string);
        lines.push(format!("members lag, sleepers are forgotten: {}", self.lags_and_forgets));
        lines.push(format!("bucket, in memory {}: {bucket}", self.in_memory));
        for Fault { at, lasts, kind } in &self.faults {
            let millis = |time: &Micros| *time as f64 / MILLI as f64;
            lines.push(format!("at {} ms for {} ms: {kind:?}", millis(at), millis(lasts)));
        }
        lines.push(format!("until {} s", self.length / SECOND));
        lines.join("\n")
    }

    /// The plan of a seed.
    pub fn of(seed: u64) -> Plan {
        let mut rng = Rng::new(seed, 3);
        let version = (*rng.pick(&VERSIONS)).to_owned();
        let servers = vec![version; if rng.one_in(3) { 3 } else { 1 }];
        let (ttl, interval) =
            *rng.pick(&[(30, 10), (30, 10), (30, 10), (15, 5), (60, 10), (84, 28)]);
        let latency = *rng.pick(&[200, 200, 1_000, 5_000, 40_000]);
        let length = rng.between(120, 900) * SECOND;
        let agents = if rng.one_in(5) { 2 } else { 1 };
        let twins = rng.one_in(2);
        let hosts = (0..agents).map(|number| HostPlan {
            name: format!("h{number}"),
            instance: if number == 0 || twins { "host-1".into() } else { "host-2".into() },
            drift: rng.between(0, 400) as i64 - 200,
            wall_off: match rng.below(6) {
                0 => rng.between(0, 7_200) as i64 * SECOND as i64 - 3_600 * SECOND as i64,
                1 => rng.between(0, 4_000) as i64 * MILLI as i64 - 2_000 * MILLI as i64,
                _ => rng.between(0, 100) as i64 * MILLI as i64 - 50 * MILLI as i64,
            },
            tells_wakeup: !rng.one_in(4),
            starts: Some(rng.below(20 * SECOND)),
            restarts: if rng.one_in(8) { None } else { Some(rng.between(50 * MILLI, 20 * SECOND)) },
        });
        let mut hosts: Vec<HostPlan> = hosts.collect();
        let is_later = LATER.contains(&(seed % 8));
        if is_later {
            add_container(&mut hosts, &mut Rng::new(seed, 20));
        }
        let bucket = match rng.one_in(2) {
            true => None,
            false => Some(bucket(&mut rng, servers.len())),
        };
        let mut plan = Plan {
            seed,
            length,
            servers,
            hosts,
            ttl,
            interval,
            latency,
            bucket,
            in_memory: rng.one_in(6),
            lags_and_forgets: is_later,
            faults: Vec::new(),
        };
        let pause = *rng.pick(&[10, 30, 60, 120]) * SECOND;
        let mut at = 0;
        loop {
            at += rng.below(2 * pause);
            if at >= length {
                if is_later {
                    stop_in_outages(&mut plan);
                }
                return plan;
            }
            plan.faults.push(fault(&mut rng, &plan, at));
            // Troubles seldom come alone.
            if rng.one_in(4) {
                at += rng.below(3 * SECOND);
                plan.faults.push(fault(&mut rng, &plan, at));
            }
        }
    }
}

/// A second agent of the same name and in a container with the same host name: both
/// have the same process id, too.
fn add_container(hosts: &mut Vec<HostPlan>, rng: &mut Rng) {
    if !rng.one_in(2) {
        return;
    }
    hosts.truncate(1);
    let second = HostPlan {
        starts: Some(rng.below(60 * SECOND)),
        restarts: Some(rng.between(50 * MILLI, 20 * SECOND)),
        ..hosts[0].clone()
    };
    hosts.push(second);
}

/// Whoever sees an outage stops agents, and starts them again.
fn stop_in_outages(plan: &mut Plan) {
    let mut rng = Rng::new(plan.seed, 21);
    let mut stops = Vec::new();
    for fault in &plan.faults {
        let is_outage = matches!(
            fault.kind,
            Kind::FreezeServer { .. }
                | Kind::PartServer { .. }
                | Kind::SilentApi { .. }
                | Kind::LostAcks { .. }
                | Kind::StalledStorage { .. }
        );
        if is_outage && rng.one_in(2) {
            let host = rng.below(plan.hosts.len() as u64) as usize;
            let at = fault.at + rng.below(fault.lasts + SECOND);
            stops.push(Fault { at, lasts: MILLI, kind: Kind::Term { host } });
        }
    }
    plan.faults.extend(stops);
    plan.faults.sort_by_key(|fault| fault.at);
}

/// A bucket as somebody else made it.
fn bucket(rng: &mut Rng, servers: usize) -> Value {
    let mut config = json!({
        "name": "KV_service_registry",
        "subjects": ["$KV.service_registry.>"],
        "retention": "limits",
        "max_msgs_per_subject": *rng.pick(&[1, 1, 1, 5, 64]),
        "storage": "file",
        "discard": "new",
        "num_replicas": servers,
        "deny_delete": true,
        "allow_rollup_hdrs": !rng.one_in(8),
        "allow_direct": !rng.one_in(5),
        "allow_msg_ttl": true,
    });
    if config["max_msgs_per_subject"] == 1 && rng.one_in(2) {
        config["subject_delete_marker_ttl"] = json!(60_000_000_000_u64);
    }
    config
}

/// Any fault.
fn fault(rng: &mut Rng, plan: &Plan, at: Micros) -> Fault {
    let host = rng.below(plan.hosts.len() as u64) as usize;
    let server = rng.below(plan.servers.len() as u64) as usize;
    let servers = if rng.one_in(2) { None } else { Some(server) };
    let step = |rng: &mut Rng| {
        let by = *rng.pick(&[1_500_i64, 4_000, 20_000, 60_000, 3_600_000]) * MILLI as i64;
        if rng.one_in(2) { by } else { -by }
    };
    // As often short as long.
    let lasts = match rng.below(4) {
        0 => rng.between(MILLI, 500 * MILLI),
        1 => rng.between(500 * MILLI, 4 * SECOND),
        2 => rng.between(4 * SECOND, 20 * SECOND),
        _ => rng.between(20 * SECOND, 90 * SECOND),
    };
    let kind = match rng.below(34) {
        0 | 1 => Kind::KillServer { server },
        2 => Kind::PowerCut { server },
        3 | 4 => Kind::FreezeServer { server },
        5 => Kind::PartServer { server },
        6 | 7 => Kind::CloseLink { host, server: servers, up: true, down: true },
        8 => Kind::CloseLink { host, server: servers, up: true, down: false },
        9 => Kind::CloseLink { host, server: servers, up: false, down: true },
        10 => Kind::SlowLink { host, server: servers, by: rng.between(20, 2_000) * MILLI },
        11 => Kind::LossyLink { host, server: servers, one_in: rng.between(2, 30) },
        12 | 13 => Kind::ResetConnections { host },
        14 => Kind::DropConnections { host },
        15 => Kind::Sleep { host },
        16 => Kind::StopProcess { host },
        17 => Kind::HostClock { host, by: step(rng) },
        18 => Kind::ServerClock { by: step(rng) },
        19 => Kind::Kill { host },
        20 => Kind::Term { host },
        21 | 22 => Kind::Reload { host },
        23 => Kind::DeleteEntry {
            host,
            how: *rng.pick(&[Delete::Marker, Delete::PurgeMarker, Delete::Purge]),
        },
        24 => Kind::DeleteBucket,
        25 => Kind::EditBucket {
            edit: *rng.pick(&[Edit::History, Edit::NoDirect, Edit::NoRollups, Edit::Markers]),
        },
        26 => Kind::LoseStore { server },
        27 => Kind::RollBack { server, last: rng.between(1, 120) * SECOND },
        28 => Kind::RefuseLogins { server },
        29 => Kind::LameDuck { server },
        30 => Kind::SilentApi { server },
        31 => Kind::LostAcks { server },
        32 => Kind::StalledStorage { server },
        _ => match rng.below(3) {
            0 => Kind::Downgrade { server },
            1 => Kind::FullBucket,
            _ => Kind::Legacy { host },
        },
    };
    Fault { at, lasts, kind }
}
