//! The fuzz checks of `fuzz/` with mutated inputs, on a stable compiler and within seconds.
//!
//! A fixed seed makes failures reproducible. Use `cargo fuzz` for longer runs.

#[path = "../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "the fuzz targets use them")]
mod checks;

use std::{fs, path::Path};

/// Number of mutated inputs for each decoder.
const ROUNDS: usize = 20_000;
const LEN_MAX: usize = 4_096;
/// Tokens with a meaning for some decoder.
const WORDS: [&str; 24] = [
    "\"",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\\",
    "\\u0000",
    "\\ud800",
    "null",
    "-1",
    "1e999",
    "18446744073709551616",
    "sequenceId",
    "topicName",
    "eventBody",
    "type",
    "metadata",
    "v2.system.",
    "\u{feff}",
    "é",
    "\n",
    "\u{1b}[31m",
];

type DecoderCheck = fn(&[u8]);

const DECODERS: [(&str, DecoderCheck); 16] = [
    ("sequenced", checks::sequenced),
    ("notifications", checks::notifications),
    ("batch", checks::batch),
    ("cursor", checks::cursor),
    ("config", checks::config),
    ("retry_after", checks::retry_after),
    ("token", checks::token),
    ("settings", checks::settings),
    ("vault", checks::vault),
    ("redis", checks::redis),
    ("rest", checks::rest),
    ("handshake", checks::handshake),
    ("frames", checks::frames),
    ("proxies", checks::proxies),
    ("forwarded", checks::forwarded),
    ("host", checks::host),
];

fn inputs(decoder: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(decoder);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| fs::read(file).unwrap()).collect()
}

fn run(decoder: &str, rounds: usize) {
    let (_, check) = DECODERS.into_iter().find(|(name, _)| *name == decoder).unwrap();
    let seeds = inputs(decoder);
    seeds.iter().for_each(|seed| check(seed));
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..rounds {
        let mut input = seeds[rng.usize(..seeds.len())].clone();
        for _ in 0..rng.usize(1..6) {
            mutate(&mut input, &seeds, &mut rng);
        }
        input.truncate(LEN_MAX);
        let outcome = std::panic::catch_unwind(|| check(&input));
        assert!(outcome.is_ok(), "{decoder}: {:?}", String::from_utf8_lossy(&input));
    }
}

fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut fastrand::Rng) {
    let at = rng.usize(..=input.len());
    let end = (at + rng.usize(..16)).min(input.len());
    match rng.u8(..6) {
        0 => drop(input.drain(at..end)),
        1 => drop(input.splice(at..at, WORDS[rng.usize(..WORDS.len())].bytes())),
        2 => drop(input.splice(at..end, input[at..end].repeat(2))),
        3 => input.iter_mut().skip(at).take(1).for_each(|byte| *byte = rng.u8(..)),
        4 => input.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << rng.u8(..8)),
        _ => {
            let other = &seeds[rng.usize(..seeds.len())];
            drop(input.splice(at..end, other[rng.usize(..=other.len())..].iter().copied()));
        }
    }
}

#[test]
fn every_frame_of_a_platform_is_accounted_for() {
    run("sequenced", ROUNDS);
    run("notifications", ROUNDS);
}

#[test]
fn any_rest_reply_is_decoded_or_rejected_with_a_reason() {
    run("rest", ROUNDS);
}

#[test]
fn any_upgrade_reply_is_decoded_the_same_however_it_is_split() {
    run("handshake", ROUNDS / 20);
}

#[test]
fn frames_and_closes_are_decoded_the_same_however_they_are_split() {
    run("frames", ROUNDS);
}

#[test]
fn client_headers_never_override_proxy_headers() {
    run("forwarded", ROUNDS);
    run("host", ROUNDS);
}

#[test]
fn any_bytes_from_disk_are_rejected_or_decoded_completely() {
    run("batch", ROUNDS);
}

#[test]
fn any_content_of_the_token_keys_is_decoded_within_bounds_or_rejected() {
    run("vault", ROUNDS);
}

#[test]
fn any_content_of_the_other_redis_keys_is_decoded_within_bounds_or_ignored() {
    run("redis", ROUNDS);
}

#[test]
fn any_input_of_a_client_or_an_endpoint_is_decoded_within_bounds() {
    for decoder in ["cursor", "retry_after", "token", "settings", "proxies"] {
        run(decoder, ROUNDS);
    }
}

#[test]
fn any_configuration_is_accepted_or_rejected_with_its_line() {
    run("config", ROUNDS / 20);
}
