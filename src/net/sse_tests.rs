use futures::FutureExt as _;
use proptest::prelude::*;

use super::*;

/// Everything here is ready at once.
fn block_on<F: Future>(future: F) -> F::Output {
    future.now_or_never().unwrap()
}

fn decode(pieces: &[&[u8]], limits: SseLimits) -> Vec<Result<SseEvent, SseError>> {
    let chunks: Vec<Result<Bytes, SseError>> = pieces
        .iter()
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    block_on(events(stream::iter(chunks), limits).collect())
}

fn event(name: &str, data: &str) -> SseEvent {
    SseEvent {
        event: (!name.is_empty()).then(|| name.to_owned()),
        data: data.to_owned(),
    }
}

fn small(event_bytes: u64, response_bytes: u64) -> SseLimits {
    SseLimits {
        event_bytes,
        response_bytes,
    }
}

#[test]
fn lines_may_end_in_any_of_the_three_ways() {
    for text in [
        "event: a\ndata: 1\ndata: 2\n\n",
        "event: a\r\ndata: 1\r\ndata: 2\r\n\r\n",
        "event: a\rdata: 1\rdata: 2\r\r",
        "\u{feff}event:a\ndata:1\nunknown: x\n: comment\ndata: 2\n\n",
    ] {
        let got = decode(&[text.as_bytes()], SseLimits::default());
        assert_eq!(got, [Ok(event("a", "1\n2"))], "{text:?}");
    }
}

#[test]
fn an_event_without_its_empty_line_is_dropped() {
    let got = decode(&[b"data: 1\n\ndata: 2\n"], SseLimits::default());
    assert_eq!(got, [Ok(event("", "1"))]);
}

#[test]
fn a_long_line_ends_the_stream_before_it_is_kept() {
    let got = decode(
        &[b"data: 1\n\n", b"data: 0123456789", b"0123456789\n\n"],
        small(20, 1000),
    );
    assert_eq!(got, [Ok(event("", "1")), Err(SseError::EventTooLong(20))]);
}

#[test]
fn many_short_lines_of_one_event_count_together() {
    let got = decode(&[b"data: 1\ndata: 2\ndata: 3\n\n"], small(15, 1000));
    assert_eq!(got, [Err(SseError::EventTooLong(15))]);
    for text in ["data: 1\n\ndata: 2\n\n", "data: 1\r\n\r\ndata: 2\r\n\r\n"] {
        let got = decode(&[text.as_bytes()], small(8, 1000));
        assert_eq!(got, [Ok(event("", "1")), Ok(event("", "2"))]);
    }
}

#[test]
fn the_whole_response_has_a_limit_too() {
    let got = decode(&[b"data: 1\n\n", b"data: 2\n\n"], small(100, 12));
    assert_eq!(
        got,
        [Ok(event("", "1")), Err(SseError::ResponseTooLong(12))]
    );
}

#[test]
fn bytes_that_are_no_text_are_an_error_and_the_end() {
    let got = decode(&[b"data: \xff\xfe\n\ndata: 2\n\n"], SseLimits::default());
    assert_eq!(got, [Err(SseError::NotText)]);
}

#[test]
fn a_broken_connection_comes_through() {
    let chunks = vec![
        Ok(Bytes::from_static(b"data: 1\n\n")),
        Err(SseError::Silent(Duration::from_secs(90))),
    ];
    let got: Vec<_> = block_on(events(stream::iter(chunks), SseLimits::default()).collect());
    assert_eq!(
        got,
        [
            Ok(event("", "1")),
            Err(SseError::Silent(Duration::from_secs(90)))
        ]
    );
}

proptest! {
    #[test]
    fn any_bytes_are_survived_within_the_limits(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..12)
    ) {
        let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        for got in decode(&pieces, small(64, 256)).into_iter().flatten() {
            prop_assert!(got.data.len() <= 64);
        }
    }

    #[test]
    fn chunking_changes_nothing(
        lines in prop::collection::vec("(data: ?|event: ?|: |x: |)[a-zé \u{1f600}]{0,9}(\n|\r|\r\n|\n\n)", 0..20),
        cuts in prop::collection::vec(0_usize..200, 0..10)
    ) {
        let text = lines.concat() + "\n\n";
        let whole = decode(&[text.as_bytes()], SseLimits::default());
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &text.as_bytes()[w[0]..w[1]]).collect();
        prop_assert_eq!(decode(&pieces, SseLimits::default()), whole.clone());
        let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        prop_assert_eq!(decode(&bytes, SseLimits::default()), whole);
    }
}
