//! Runs `trunkline_fuzz::sequenced` on the input of libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trunkline_fuzz::sequenced(data));
