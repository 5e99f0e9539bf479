//! What a process has used so far, from /proc: all its threads that are alive.
//! The benches look at every program with it, and the peers at themselves.

/// Times and context switches; for one heartbeat, once divided.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    pub cpu_us: f64,
    pub voluntary: f64,
    pub involuntary: f64,
}

impl Cost {
    pub fn of(pid: u32) -> Cost {
        let mut cost = Cost { cpu_us: 0.0, voluntary: 0.0, involuntary: 0.0 };
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let read = |file: &str| std::fs::read_to_string(task.path().join(file));
            let first = |text: String| text.split_whitespace().next()?.parse::<f64>().ok();
            // To the nanosecond, where `stat` counts hundredths of a second.
            cost.cpu_us += read("schedstat").ok().and_then(first).unwrap_or(0.0) / 1e3;
            let status = read("status").unwrap_or_default();
            let switches = |name| field(&status, name).unwrap_or(0) as f64;
            cost.voluntary += switches("voluntary_ctxt_switches");
            cost.involuntary += switches("nonvoluntary_ctxt_switches");
        }
        cost
    }

    /// What was used since `before`, for each of `beats`.
    pub fn since(&self, before: &Cost, beats: u64) -> Cost {
        let each = |now: f64, then: f64| (now - then) / beats as f64;
        Cost {
            cpu_us: each(self.cpu_us, before.cpu_us),
            voluntary: each(self.voluntary, before.voluntary),
            involuntary: each(self.involuntary, before.involuntary),
        }
    }
}

/// What it holds; sizes in KiB.
#[derive(Debug, Clone, Copy)]
pub struct Holding {
    pub resident: u64,
    pub anonymous: u64,
    /// The most it ever had resident.
    pub peak: u64,
    pub threads: u64,
}

impl Holding {
    pub fn of(pid: u32) -> Holding {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let number = |name| field(&status, name).unwrap_or(0);
        Holding {
            resident: number("VmRSS"),
            anonymous: number("RssAnon"),
            peak: number("VmHWM"),
            threads: number("Threads"),
        }
    }
}

/// The number in the line `name:` of a file such as /proc/PID/status.
fn field(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?.strip_prefix(':')?;
        rest.split_whitespace().next()?.parse().ok()
    })
}
