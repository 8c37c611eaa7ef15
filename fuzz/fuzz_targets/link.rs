#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sandcaster::fuzz::feed("link", bytes));
