//! What bad input must not break, with the functions that are fuzzed: on each
//! seed, and on noise made of the seeds, the same in every run.

#![allow(clippy::disallowed_methods, clippy::panic, clippy::expect_used)]

#[path = "../fuzz/targets.rs"]
mod targets;

use std::path::Path;
use std::time::{Duration, Instant};

/// Mutants of each seed.
const MUTANTS: usize = 150;
/// No input of half a megabyte may take so long, on a busy machine either: the
/// slowest takes 0.7 s there, and one that is quadratic takes hours.
const SLOW: Duration = Duration::from_secs(10);

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let files = std::fs::read_dir(&directory).unwrap_or_else(|e| panic!("{directory:?}: {e}"));
    let mut paths: Vec<_> = files.flatten().map(|file| file.path()).collect();
    paths.sort();
    let seeds: Vec<_> = paths.iter().map(|path| std::fs::read(path).expect("reads it")).collect();
    assert!(!seeds.is_empty(), "{target} has no seeds");
    seeds
}

/// Bytes that mean something somewhere.
const MEANING: &[&[u8]] = &[
    b"\"",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"\\",
    b"\0",
    b"\n",
    b"\r\n",
    b"\xff",
    b"%",
    b"@",
    b"/",
    b".",
    b"*",
    b">",
    b"-",
    b"+",
    b" ",
    b"null",
    b"-1",
    b"18446744073709551616",
    b"9223372036854775807",
    b"1e999",
    b"0",
    b"\xe2\x80\xae",
    b"service-instances__",
    b"Nats-TTL: ",
    b"-----BEGIN ",
    b"~",
    b"$HOME",
];

fn mutant(seed: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(8)).min(bytes.len());
        match random.below(7) {
            0 => drop(bytes.drain(at..end)),
            1 => drop(bytes.splice(at..at, MEANING[random.below(MEANING.len())].iter().copied())),
            2 => drop(bytes.splice(at..end, MEANING[random.below(MEANING.len())].iter().copied())),
            3 => bytes.truncate(at),
            4 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.below(8)),
            5 => {
                let piece = bytes[at..end].repeat(random.below(300));
                drop(bytes.splice(at..at, piece));
            }
            _ => {
                let from = random.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
        }
    }
    bytes
}

#[test]
fn no_seed_and_no_noise_breaks_a_promise() {
    for (name, target) in targets::ALL {
        let seeds = seeds(name);
        let mut random = Random(name.bytes().fold(7, |hash, b| hash * 31 + u64::from(b)));
        for seed in &seeds {
            tried(name, *target, seed);
            for _ in 0..MUTANTS {
                let other = &seeds[random.below(seeds.len())];
                tried(name, *target, &mutant(seed, other, &mut random));
            }
        }
        // Depth and length beyond what anybody means.
        for byte in
            [b"[".as_slice(), b"{\"a\":", b"\"", b"-", b".", b"9", b"\xff", b"\n", b"a:b\r\n"]
        {
            tried(name, *target, &byte.repeat(100_000));
        }
    }
}

fn tried(name: &str, target: fn(&[u8]), input: &[u8]) {
    let start = Instant::now();
    let outcome = std::panic::catch_unwind(|| target(input));
    let excerpt = String::from_utf8_lossy(&input[..input.len().min(2_000)]).into_owned();
    assert!(outcome.is_ok(), "{name} breaks on {excerpt:?}");
    assert!(start.elapsed() < SLOW, "{name} takes {:?} for {excerpt:?}", start.elapsed());
}
