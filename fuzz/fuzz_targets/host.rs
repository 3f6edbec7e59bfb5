//! Runs `trunkline_fuzz::host` on the input of libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trunkline_fuzz::host(data));
