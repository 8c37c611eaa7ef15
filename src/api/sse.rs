//! A run's log as `text/event-stream`: the only place that makes frames (EV-2 to EV-5).
//!
//! A stream that could not be read to its terminal event must look cut, never ended: it yields an
//! error, and the connection breaks without the body's end.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive};
use axum::response::{IntoResponse as _, Response, Sse};
use futures::{Stream, StreamExt as _, stream};

use super::view;
use crate::events::StoredEvent;
use crate::ids::RunId;
use crate::runs::RunReader;
use crate::store::StoreError;

/// What a client waits before it connects again, in the `retry:` field.
const RETRY: Duration = Duration::from_secs(2);

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
    let opening = Event::default().retry(RETRY).comment(run.as_str());
    let opening = stream::once(async { Ok::<_, Cut>(opening) });
    let frames = opening.chain(frames(run.clone(), events));
    let keep_alive = KeepAlive::new().interval(heartbeat).text("hb");
    let mut response = Sse::new(frames).keep_alive(keep_alive).into_response();
    let headers = response.headers_mut();
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-store, no-transform"),
    );
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    view::about(&mut response, run);
    response
}

enum Source<S> {
    Open(Pin<Box<S>>),
    Done,
}

fn frames<S>(run: RunId, events: S) -> impl Stream<Item = Result<Event, Cut>> + Send
where
    S: Stream<Item = Result<Arc<StoredEvent>, StoreError>> + Send + 'static,
{
    let start = (run, Source::Open(Box::pin(events)));
    stream::unfold(start, |(run, source)| async {
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
                Some((Ok(frame(&event)), (run, rest)))
            }
            Some(Err(error)) => Some((Err(cut(&run, error.into()).await), (run, Source::Done))),
            None => Some((Err(cut(&run, Cut::NoEnd).await), (run, Source::Done))),
        }
    })
}

async fn cut(run: &RunId, why: Cut) -> Cut {
    tracing::error!(run.id = %run, error = %why, "cut an event stream");
    // Frames are flushed when the body has to wait, and thrown away when it fails: so wait once.
    tokio::task::yield_now().await;
    why
}

/// `id` is the sequence number, `event` the type, `data` one line of JSON. The type comes from a
/// closed enum and JSON has no raw line break, so no text of a model can forge a frame.
fn frame(event: &StoredEvent) -> Event {
    Event::default()
        .id(event.seq.to_string())
        .event(event.kind.as_str())
        .data(&event.json)
}
