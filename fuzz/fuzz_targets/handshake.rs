//! Runs `trunkline_fuzz::handshake` on the input of libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trunkline_fuzz::handshake(data));
