//! What a request may cost: at most four times its body in memory, the body included, and time in its size.
//!
//! A program of its own with one test, since all that is allocated meanwhile is counted.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::print_stderr,
    reason = "a test fails by panicking, and this one measures time"
)]

use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use sandcaster::config::QueryRequest;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const SHAPES: usize = 64;
/// The largest body.
const LARGEST: usize = 14_000_000;
/// Ten times what the slowest shape was measured at in a debug build on two shared cores.
const PATIENCE: Duration = Duration::from_secs(15);
/// What is spent whatever the body's size: the values that are kept, the answer with its twenty faults.
const FLOOR: usize = 2_000_000;

/// One way to be costly, of about `size` bytes.
type Shape = fn(size: usize, part: usize) -> String;

fn filled(size: usize, item: &str) -> String {
    item.repeat(size / item.len() + 1)
}

/// Fields with as many names.
fn numbered(count: usize, name: &str) -> String {
    let fields: Vec<_> = (0..count)
        .map(|at| format!(r#""{name}{at:05}":1,"#))
        .collect();
    fields.concat()
}

fn list(size: usize, item: &str) -> String {
    format!("[{}{item}]", filled(size, &format!("{item},")))
}

static WAYS: &[Shape] = &[
    // One long name around many short ones, which are repeated, or not.
    |size, part| {
        let name = "k".repeat(size * part / 10);
        let inner = filled(size - name.len(), r#""a":1,"#);
        format!(r#"{{"prompt":"x","{name}":{{{inner}"b":1}}}}"#)
    },
    |size, part| {
        let name = "k".repeat(size * part / 10);
        let inner = numbered((size - name.len()) / 11, "n");
        format!(r#"{{"prompt":"x","{name}":{{{inner}"b":1}}}}"#)
    },
    // Many names, short and long.
    |size, part| {
        let name = "n".repeat(1 + part * part * part * 10);
        let fields = numbered(size / (name.len() + 10), &name);
        format!(r#"{{{fields}"prompt":"x"}}"#)
    },
    // Deep, with a long name at each level, and the names given twice.
    |size, part| {
        let depth = 10 * (part + 1);
        let name = "d".repeat(size / (2 * depth));
        let (open, close) = (format!(r#"{{"{name}":"#), format!(r#","{name}":2}}"#));
        format!(
            r#"{{"prompt":"x","files":{}1{}}}"#,
            open.repeat(depth),
            close.repeat(depth)
        )
    },
    // Long lists of wrong values where some are wanted.
    |size, part| {
        let field = ["files", "allowedTools", "maxTurns", "model", "prompt"][part % 5];
        let item = ["1", "\"\"", "[]", "{}", "null"][part / 2];
        format!(r#"{{"prompt":"x","{field}":{}}}"#, list(size, item))
    },
    |size, part| {
        let item = ["1", "1e-9", "[[]]", r#"{"a":[]}"#, r#""\u0041""#][part / 2];
        format!(r#"{{"composite":{},"prompt":"x"}}"#, list(size, item))
    },
    // Long texts, with escapes and without, as each kind of value.
    |size, part| {
        let text = filled(size, [r"\n", "x", r"\u00e9x", "é", "a/", "a.b "][part % 6]);
        match part {
            0..3 => format!(r#"{{"prompt":"{text}"}}"#),
            3..5 => format!(r#"{{"prompt":"x","{text}":1}}"#),
            5..7 => format!(r#"{{"prompt":"x","model":"{text}"}}"#),
            7 => format!(r#"{{"prompt":"x","files":{{"{text}":""}}}}"#),
            _ => format!(r#"{{"prompt":"x","files":[{{"name":"a","content":"{text}"}}]}}"#),
        }
    },
    // Base64 of files, with its line ends escaped.
    |size, part| {
        let line = format!(r"{}\r\n", "QUJD".repeat(1 + part * 4));
        let files = 1 + part * 3;
        let content = filled(size / files, &line);
        let files: Vec<String> = (0..files)
            .map(|at| format!(r#"{{"name":"f{at}","content":"{content}"}}"#))
            .collect();
        format!(r#"{{"prompt":"x","files":[{}]}}"#, files.join(","))
    },
    // Fields given again and again.
    |size, part| {
        let inner = list(20 * part, "\"bash\"");
        let field = format!(r#""allowedTools":{inner},"files":{inner},"#);
        format!(r#"{{{}"prompt":"x"}}"#, filled(size, &field))
    },
];

#[test]
fn no_request_costs_more_than_four_times_its_size_or_more_than_time_in_its_size() {
    let seed = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), seed);
    let sizes = prop_oneof![100_000..LARGEST, LARGEST - 1_000_000..LARGEST];
    for at in 0..SHAPES {
        let way = at % WAYS.len();
        let size = sizes.new_tree(&mut runner).unwrap().current();
        let part = (0..10_usize).new_tree(&mut runner).unwrap().current();
        let body = WAYS[way](size, part);
        let before = ALLOCATOR.current_usage();
        ALLOCATOR.reset_peak_usage();
        let started = Instant::now();
        let outcome = QueryRequest::parse(body.as_bytes());
        let took = started.elapsed();
        let more = ALLOCATOR.peak_usage() - before;
        let shape = format!(
            "shape {at} (way {way}, part {part}) of {} bytes",
            body.len()
        );
        let answer = outcome.err().map(|problem| format!("{problem:?}").len());
        assert!(
            answer < Some(100_000),
            "{shape} is answered with {answer:?} bytes"
        );
        assert!(
            body.len() + more <= 4 * body.len() + FLOOR,
            "{shape} costs {more} bytes more"
        );
        assert!(took < PATIENCE, "{shape} takes {took:?}");
        if std::env::var_os("SANDCASTER_LONG").is_some() {
            eprintln!(
                "{took:?} {:.2} {shape}",
                (body.len() + more) as f64 / body.len() as f64
            );
        }
    }
}
