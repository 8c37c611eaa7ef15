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
fn a_byte_that_is_no_text_is_replaced_and_the_stream_goes_on() {
    let got = decode(&[b"data: caf\xe9 ok\n\ndata: 2\n\n"], SseLimits::default());
    assert_eq!(got, [Ok(event("", "caf\u{fffd} ok")), Ok(event("", "2"))]);
    // A character that never ends takes no line end with it.
    let got = decode(
        &[b"data: \xf0\x9f", b"\n\n", b"data: \xe2\x82", b"\xac\n\n"],
        SseLimits::default(),
    );
    assert_eq!(got, [Ok(event("", "\u{fffd}")), Ok(event("", "\u{20ac}"))]);
}

#[test]
fn replacements_count_as_the_bytes_that_they_take() {
    let got = decode(
        &[&[b"data: ", &[0xff; 10][..], b"\n\n"].concat()],
        small(20, 1000),
    );
    assert_eq!(got, [Err(SseError::EventTooLong(20))]);
}

#[test]
fn a_mark_at_the_beginning_is_skipped_however_it_is_cut() {
    let text = "\u{feff}data: \u{feff}1\n\n".as_bytes();
    for cut in 0..text.len() {
        let (head, tail) = text.split_at(cut);
        let got = decode(&[head, tail], SseLimits::default());
        assert_eq!(got, [Ok(event("", "\u{feff}1"))], "{cut}");
    }
}

#[test]
fn comments_and_blocks_without_data_are_no_events() {
    let text = b": hello\n\nevent: ping\n\nid: 7\n\nretry: 5\n\nevent: a\ndata:\n\n";
    assert_eq!(decode(&[text], SseLimits::default()), [Ok(event("a", ""))]);
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
    fn pieces_decode_as_the_whole_does_lossily(
        pieces in prop::collection::vec(prop::collection::vec(
            prop_oneof![any::<u8>(), prop::sample::select("aé\u{20ac}\u{1f600}".as_bytes())], 0..6), 0..12)
    ) {
        let mut text = Utf8::default();
        let decoded: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| text.decode(Bytes::copy_from_slice(piece)))
            .collect();
        prop_assert!(text.begun.len() < 4);
        let whole = pieces.concat();
        let expected = String::from_utf8_lossy(whole.get(..whole.len() - text.begun.len()).unwrap());
        prop_assert_eq!(String::from_utf8(decoded).unwrap(), expected);
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
