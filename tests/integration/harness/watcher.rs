//! `watch --json`, running: what it tells, and when.

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::agent::{Invocation, aegis};
use super::{eventually, secs, send_signal};

/// `watch --json`, running: its events and its log as they come.
pub struct Watcher {
    pub child: Child,
    events: Arc<Mutex<Vec<(Instant, Value)>>>,
    log: Arc<Mutex<String>>,
}

impl Watcher {
    pub fn start(url: &str, options: &[&str]) -> Watcher {
        Watcher::spawn(&aegis(&[&["watch", "--json", "-s", url], options].concat()))
    }

    pub fn spawn(invocation: &Invocation) -> Watcher {
        let mut child = invocation.command().spawn().expect("the binary starts");
        let events: Arc<Mutex<Vec<_>>> = Arc::default();
        let log: Arc<Mutex<String>> = Arc::default();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (into, text) = (events.clone(), log.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stdout.expect("piped")).lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).expect("each line is JSON");
                into.lock().expect("not poisoned").push((Instant::now(), event));
            }
        });
        std::thread::spawn(move || {
            for line in BufReader::new(stderr.expect("piped")).lines().map_while(Result::ok) {
                let mut text = text.lock().expect("not poisoned");
                text.push_str(&line);
                text.push('\n');
            }
        });
        Watcher { child, events, log }
    }

    pub fn events(&self) -> Vec<Value> {
        let events = self.events.lock().expect("not poisoned");
        events.iter().map(|(_, event)| event.clone()).collect()
    }

    /// All events, and when each was read.
    pub fn told(&self) -> Vec<(Instant, Value)> {
        self.events.lock().expect("not poisoned").clone()
    }

    pub fn log(&self) -> String {
        self.log.lock().expect("not poisoned").clone()
    }

    /// All events in words: `up a`, `down a expired`, `lost`.
    pub fn words(&self) -> Vec<String> {
        self.events().iter().map(words).collect()
    }

    /// Waits for the `count`th event with these words, and gives it back.
    pub fn wait_for_nth(&self, wanted: &str, count: usize, within: Duration) -> Value {
        eventually(within, &format!("{wanted:?} for the {count}th time"), || {
            let found = self.events().into_iter().filter(|event| words(event) == wanted);
            found.into_iter().nth(count - 1).ok_or_else(|| self.words().join(", ") + &self.log())
        })
    }

    pub fn wait_for(&self, wanted: &str, within: Duration) -> Value {
        self.wait_for_nth(wanted, 1, within)
    }

    /// SIGTERM: it ends at once, and well.
    pub fn stop(&mut self) {
        send_signal(self.child.id(), "TERM");
        let status = eventually(secs(2), "watch ends", || {
            self.child.try_wait().expect("waits").ok_or_else(|| "it runs".to_owned())
        });
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            for event in self.events() {
                eprintln!("--- {} {}", event["time"], words(&event));
            }
            eprintln!("--- its log:\n{}", self.log());
        }
    }
}

/// An event in words.
pub fn words(event: &Value) -> String {
    let text = |name: &str| event[name].as_str().map(|text| format!(" {text}"));
    let reason = text("reason").unwrap_or_default();
    let status = text("status").filter(|_| event["event"] == "changed").unwrap_or_default();
    let instance = text("instanceId").unwrap_or_default();
    format!("{}{instance}{status}{reason}", event["event"].as_str().expect("a word"))
}
