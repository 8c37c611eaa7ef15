//! A run's log as `text/event-stream`: the only place that makes frames (EV-2 to EV-5).
//!
//! A stream that could not be read to its terminal event must look cut, never ended: it yields an
//! error, and the connection breaks without the body's end.
//!
//! Frames are written here and not by the framework's own type, because that closes each comment with a
//! blank line. Once a stream has had an `id`, Python's `httpx-sse` takes such a line for another event,
//! with empty data, and programs that parse every event's data fail on it. Comments and `retry` stand as
//! lines in front of the next event instead, which is the same to every parser.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use futures::{Stream, StreamExt as _, stream};
use tokio::time::timeout;
use tracing::Span;

use super::view;
use crate::events::StoredEvent;
use crate::ids::RunId;
use crate::runs::RunReader;
use crate::store::StoreError;

/// What a client waits before it connects again, in milliseconds.
const RETRY_MILLIS: u64 = 2000;

/// Fills silence. It has no id, so it moves no cursor.
const HEARTBEAT: &[u8] = b": hb\n";

const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Why a stream was cut before its terminal event.
#[derive(Debug, thiserror::Error)]
enum Cut {
    #[error("the run's log could not be read: {0}")]
    Store(#[from] StoreError),
    #[error("the run's log ended without a terminal event")]
    NoEnd,
}

/// The events of `reader`, until the terminal one or the first failure.
pub(super) fn tail(
    reader: RunReader,
) -> impl Stream<Item = Result<Arc<StoredEvent>, StoreError>> + Send {
    stream::unfold(Some(reader), |reader| async {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Some(event)) => Some((Ok(event), Some(reader))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
}

/// Streams `events` of `run`. The head and one comment go out at once; after `heartbeat` of silence
/// another comment does. Ends after the terminal event; a failure before it cuts the connection.
pub fn response<S>(run: &RunId, events: S, heartbeat: Duration) -> Response
where
    S: Stream<Item = Result<Arc<StoredEvent>, StoreError>> + Send + 'static,
{
    let opening = format!(": {run}\nretry: {RETRY_MILLIS}\n");
    let opening = stream::once(async { Ok::<_, Cut>(Bytes::from(opening)) });
    let frames = opening.chain(filled(frames(run.clone(), events), heartbeat));
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-store, no-transform"),
    );
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    view::about(&mut response, run);
    response
}

/// `frames`, with a heartbeat after each `pause` without one.
fn filled<S>(frames: S, pause: Duration) -> impl Stream<Item = Result<Bytes, Cut>> + Send
where
    S: Stream<Item = Result<Bytes, Cut>> + Send + 'static,
{
    stream::unfold(Box::pin(frames), move |mut frames| async move {
        // A pause that is over drops the wait, not the stream: no frame is lost.
        let item = timeout(pause, frames.next())
            .await
            .unwrap_or(Some(Ok(Bytes::from_static(HEARTBEAT))))?;
        Some((item, frames))
    })
}

enum Source<S> {
    Open(Pin<Box<S>>),
    Done,
}

fn frames<S>(run: RunId, events: S) -> impl Stream<Item = Result<Bytes, Cut>> + Send
where
    S: Stream<Item = Result<Arc<StoredEvent>, StoreError>> + Send + 'static,
{
    // A body is polled outside the request's span.
    let about = (run, Span::current());
    let start = (about, Source::Open(Box::pin(events)));
    stream::unfold(start, |(about, source)| async {
        let Source::Open(mut events) = source else {
            return None;
        };
        match events.next().await {
            Some(Ok(event)) => {
                // The reader is let go with the terminal event: nothing comes after it.
                let rest = if event.kind.terminal() {
                    Source::Done
                } else {
                    Source::Open(events)
                };
                Some((Ok(frame(&event)), (about, rest)))
            }
            Some(Err(error)) => Some((Err(cut(&about, error.into()).await), (about, Source::Done))),
            None => Some((Err(cut(&about, Cut::NoEnd).await), (about, Source::Done))),
        }
    })
}

async fn cut((run, request): &(RunId, Span), why: Cut) -> Cut {
    tracing::error!(parent: request, run.id = %run, error = %why, "cut an event stream");
    // Frames are flushed when the body has to wait, and thrown away when it fails: so wait once.
    tokio::task::yield_now().await;
    why
}

/// `id` is the sequence number, `event` the type, `data` one line of JSON. The type comes from a
/// closed enum and JSON has no raw line break, so no text of a model can forge a frame.
fn frame(event: &StoredEvent) -> Bytes {
    let StoredEvent {
        seq, kind, json, ..
    } = event;
    Bytes::from(format!("id: {seq}\nevent: {kind}\ndata: {json}\n\n"))
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_stream_that_is_cut_is_told_with_its_request() {
        let lines = Lines::default();
        let written = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || written.clone())
            .finish();
        let _logged = tracing::subscriber::set_default(subscriber);
        let events = stream::once(async { Err(StoreError::Closed) });
        let response = tracing::error_span!("request", id = "r1")
            .in_scope(|| response(&RunId::new(), events, Duration::from_mins(1)));
        let mut body = response.into_body().into_data_stream();
        while let Some(Ok(_)) = body.next().await {}
        let told = String::from_utf8(lines.0.lock().clone()).unwrap();
        let line = told
            .lines()
            .find(|line| line.contains("cut an event stream"));
        assert!(line.unwrap().contains("r1"), "{told}");
    }
}
