use base64::engine::general_purpose::STANDARD;

use super::super::errors::Code;
use super::*;

fn frame(flags: u8, json: &str) -> Vec<u8> {
    let mut bytes = encode(json.as_bytes()).to_vec();
    bytes[0] = flags;
    bytes
}

fn all(decoder: &mut FrameDecoder) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next().unwrap() {
        frames.push(frame);
    }
    frames
}

fn session() -> Vec<u8> {
    [
        frame(0, r#"{"event":{"start":{"pid":12775}}}"#),
        frame(0, r#"{"event":{"data":{"stdout":"4oKs/w=="}}}"#),
        frame(0, r#"{"event":{"keepalive":{}}}"#),
        frame(0, ""),
        frame(
            0,
            r#"{"event":{"end":{"exited":true,"status":"exit status 0"}}}"#,
        ),
        frame(2, "{}"),
    ]
    .concat()
}

#[test]
fn a_request_is_framed_as_the_official_client_does() {
    let json = br#"{"process":{"cmd":"/bin/bash","args":["-l","-c","echo hi"]},"stdin":false}"#;
    let framed = encode(json);
    assert_eq!(&framed[..5], [0, 0, 0, 0, 0x4a]);
    assert_eq!(&framed[5..], json);
}

#[test]
fn frames_are_the_same_however_the_bytes_are_cut() {
    let bytes = session();
    let mut whole = FrameDecoder::default();
    whole.push(&bytes);
    let expected = all(&mut whole);
    assert_eq!(expected.len(), 6);
    assert!(!whole.is_inside_frame());
    for cut in 0..=bytes.len() {
        let mut decoder = FrameDecoder::default();
        decoder.push(&bytes[..cut]);
        let mut frames = all(&mut decoder);
        decoder.push(&bytes[cut..]);
        frames.extend(all(&mut decoder));
        assert_eq!(frames, expected, "cut at {cut}");
    }
    let mut decoder = FrameDecoder::default();
    let mut frames = Vec::new();
    for byte in bytes {
        decoder.push(&[byte]);
        frames.extend(all(&mut decoder));
    }
    assert_eq!(frames, expected);
}

#[test]
fn a_cut_inside_a_frame_shows() {
    let bytes = frame(0, "{}");
    for cut in 1..bytes.len() {
        let mut decoder = FrameDecoder::default();
        decoder.push(&bytes[..cut]);
        assert_eq!(decoder.next(), Ok(None));
        assert!(decoder.is_inside_frame(), "cut at {cut}");
    }
}

#[test]
fn a_frame_over_the_limit_is_refused_before_its_bytes_come() {
    let mut decoder = FrameDecoder::default();
    decoder.push(&[0, 0, 0x10, 0, 1]);
    assert_eq!(decoder.next(), Err(FrameError::TooLong(MAX_FRAME + 1)));
    let mut decoder = FrameDecoder::default();
    decoder.push(&[0, 0, 0x10, 0, 0]);
    assert_eq!(decoder.next(), Ok(None));
}

#[test]
fn a_compressed_frame_is_refused() {
    let mut decoder = FrameDecoder::default();
    decoder.push(&frame(1, "{}"));
    assert_eq!(decoder.next(), Err(FrameError::Compressed));
}

#[test]
fn events_are_read_with_their_zero_values_left_out() {
    for (json, expected) in [
        (r#"{"event":{"start":{"pid":7}}}"#, Event::Started(7)),
        (
            r#"{"event":{"data":{"stdout":"aGkK"}}}"#,
            Event::Stdout("hi\n".into()),
        ),
        (
            r#"{"event":{"data":{"stderr":"aGkK"}}}"#,
            Event::Stderr("hi\n".into()),
        ),
        (
            r#"{"event":{"data":{"pty":"aGkK"}}}"#,
            Event::Stdout("hi\n".into()),
        ),
        // The other alphabet, without padding, and escaped as JSON allows.
        (
            r#"{"event":{"data":{"stdout":"-_8"}}}"#,
            Event::Stdout(Bytes::from_static(&[0xfb, 0xff])),
        ),
        (
            r#"{"event":{"data":{"stdout":"\u0061GkK"}}}"#,
            Event::Stdout("hi\n".into()),
        ),
        (r#"{"event":{"keepalive":{}}}"#, Event::Other),
        (r#"{"event":{"data":{}}}"#, Event::Other),
        (r#"{"event":{"telemetry":{"cpu":1}}}"#, Event::Other),
        (r#"{"later":true}"#, Event::Other),
        (
            r#"{"event":{"end":{"exited":true,"status":"exit status 0"}}}"#,
            Event::Exited(0),
        ),
        (
            r#"{"event":{"end":{"exitCode":3,"exited":true,"status":"exit status 3","error":"exit status 3"}}}"#,
            Event::Exited(3),
        ),
        (
            r#"{"event":{"end":{"exitCode":-1,"status":"signal: killed","error":"signal: killed"}}}"#,
            Event::Exited(137),
        ),
        (
            r#"{"event":{"end":{"exitCode":-1,"status":"signal: terminated"}}}"#,
            Event::Exited(143),
        ),
        (
            r#"{"event":{"end":{"exitCode":-1,"status":"signal: segmentation fault (core dumped)"}}}"#,
            Event::Exited(139),
        ),
        (
            r#"{"event":{"end":{"exitCode":-1,"status":"signal: signal 34"}}}"#,
            Event::Exited(162),
        ),
        (
            r#"{"event":{"end":{"exitCode":-1,"status":"signal: unheard of"}}}"#,
            Event::Exited(128),
        ),
        (r#"{"event":{"end":{}}}"#, Event::Exited(0)),
    ] {
        assert_eq!(event(json.as_bytes()), Ok(expected), "{json}");
    }
}

#[test]
fn unreadable_events_are_errors() {
    for json in [
        "",
        "7",
        "nonsense",
        r#"{"event":{"data":{"stdout":"!no base64!"}}}"#,
        r#"{"event":{"start":{"pid":"seven"}}}"#,
        r#"{"event":"#,
    ] {
        assert!(event(json.as_bytes()).is_err(), "{json}");
    }
}

#[test]
fn a_trailer_tells_whether_the_stream_failed() {
    assert_eq!(trailer(b"{}"), Ok(None));
    assert_eq!(trailer(br#"{"metadata":{"x":["y"]}}"#), Ok(None));
    let error = trailer(br#"{"error":{"code":"not_found","message":"no 9"}}"#);
    let error = error.unwrap().unwrap();
    assert_eq!(
        (error.code, error.message.as_str()),
        (Code::NotFound, "no 9")
    );
    let error = trailer(br#"{"error":{"code":"new_in_2027"}}"#).unwrap();
    assert_eq!(error.unwrap().code, Code::Unknown);
    assert!(trailer(b"x").is_err());
}

proptest::proptest! {
    #[test]
    fn output_survives_any_chunking(
        pieces in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 0..40), 0..12),
        sizes in proptest::collection::vec(1_usize..30, 1..20),
    ) {
        let mut bytes = Vec::new();
        for piece in &pieces {
            let text = STANDARD.encode(piece);
            bytes.extend(frame(0, &format!(r#"{{"event":{{"data":{{"stdout":"{text}"}}}}}}"#)));
        }
        bytes.extend(frame(2, "{}"));
        let mut decoder = FrameDecoder::default();
        let mut rest = bytes.as_slice();
        let mut out = Vec::new();
        let mut ended = false;
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (chunk, tail) = rest.split_at((*size).min(rest.len()));
            decoder.push(chunk);
            rest = tail;
            for frame in all(&mut decoder) {
                match frame {
                    Frame::Message(json) => match event(&json).unwrap() {
                        Event::Stdout(bytes) => out.extend_from_slice(&bytes),
                        other => panic!("{other:?}"),
                    },
                    Frame::End(_) => ended = true,
                }
            }
        }
        proptest::prop_assert_eq!(out, pieces.concat());
        proptest::prop_assert!(ended);
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let mut decoder = FrameDecoder::default();
        decoder.push(&bytes);
        while let Ok(Some(frame)) = decoder.next() {
            match frame {
                Frame::Message(json) => drop(event(&json)),
                Frame::End(json) => drop(trailer(&json)),
            }
        }
    }
}

/// `cargo test --release --lib decoder_speed -- --ignored --nocapture`
#[test]
#[ignore = "a figure, not a check: wants a release build"]
#[expect(clippy::print_stdout, reason = "it is there to print a figure")]
#[expect(
    clippy::cast_precision_loss,
    reason = "a figure of three digits is enough"
)]
fn decoder_speed() {
    const ROUNDS: usize = 2000;
    let output = STANDARD.encode(vec![b'x'; 32 * 1024]);
    let json = format!(r#"{{"event":{{"data":{{"stdout":"{output}"}}}}}}"#);
    let framed = frame(0, &json);
    let begun = tokio::time::Instant::now();
    let (mut decoder, mut wire, mut decoded) = (FrameDecoder::default(), 0, 0);
    for _ in 0..ROUNDS {
        // As it comes from a socket.
        for chunk in framed.chunks(16 * 1024) {
            decoder.push(chunk);
            wire += chunk.len();
        }
        while let Some(Frame::Message(json)) = decoder.next().unwrap() {
            if let Event::Stdout(bytes) = event(&json).unwrap() {
                decoded += bytes.len();
            }
        }
    }
    let secs = begun.elapsed().as_secs_f64();
    let rate = |bytes: usize| bytes as f64 / secs / 1e6;
    println!(
        "decoder: {:.0} MB/s of output, {:.0} MB/s on the wire",
        rate(decoded),
        rate(wire)
    );
    assert_eq!(decoded, ROUNDS * 32 * 1024);
}
