//! Figures of speed and memory.

fn main() {}
