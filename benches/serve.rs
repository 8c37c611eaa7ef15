//! Figures of speed and memory.
#![allow(
    clippy::allow_attributes,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    unreachable_pub,
    reason = "a benchmark prints figures and stops at the first fault"
)]

mod log;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let figures = runtime.block_on(log::log_figures(500, 200));
    println!(
        "run log, 500 runs of 200 deltas: {:.0} events/s; one run alone: {} µs from emit to reader (p99 {} µs)",
        figures.events_per_sec,
        figures.idle_median.as_micros(),
        figures.idle_p99.as_micros(),
    );
}
