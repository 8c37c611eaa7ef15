//! Accepting connections: HTTP/1 only, with limits on heads, time, and connections, and an orderly end
//! (HT-7, CL-2 to CL-6, SD-4).
//!
//! `axum::serve` has neither read timeouts nor a connection cap, so the loop is our own.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{FromRequestParts, Request};
use axum::http::HeaderValue;
use axum::http::header::{CONNECTION, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::limits::Limits;
use super::refusal::Refusal;
use super::socket::{Activity, InFlight, Socket, Stage};

/// How serving ends.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Accept no more, let responses end, close idle connections.
    pub begin: CancellationToken,
    /// Cuts what is left at once.
    pub cut: CancellationToken,
}

/// The peer of a request's connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(SocketAddr);

impl Peer {
    /// The address of the peer, if the request came over a connection.
    pub(super) fn of(request: &Request) -> Option<IpAddr> {
        request.extensions().get::<Self>().map(|peer| peer.0.ip())
    }
}

/// The peer's address, for handlers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller(pub(super) Option<IpAddr>);

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<Peer>();
        Ok(Self(peer.map(|peer| peer.0.ip())))
    }
}

/// Refusals of connections that are being written at once; beyond it they are just closed.
const REFUSALS: usize = 64;
/// After `begin`, how long a connection has that isn't worth waiting for; looked at this often.
const BRIEF: Duration = Duration::from_millis(250);
/// Between lines about connections that could not be accepted.
const TELL_AGAIN: Duration = Duration::from_mins(1);

/// Serves `router` on `listener` until `shutdown` begins, and then until the last connection is closed.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, shutdown: Shutdown) {
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(limits.max_connections));
    let refusals = Arc::new(Semaphore::new(REFUSALS));
    let cut = shutdown.cut;
    let (mut failures, mut told) = (0_u64, None::<Instant>);
    loop {
        // The end first: a flood of connections must not put it off.
        let accepted = tokio::select! {
            biased;
            () = shutdown.begin.cancelled() => break,
            () = cut.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                failures += 1;
                if told.is_none_or(|told| told.elapsed() >= TELL_AGAIN) {
                    tracing::warn!(%error, failures, "could not accept connections");
                    told = Some(Instant::now());
                    failures = 0;
                }
                // Out of file descriptors, most likely: they come back when connections close.
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            configure(&stream, limits);
            let connection = Connection {
                router: router.clone(),
                limits,
                peer,
                begin: shutdown.begin.clone(),
                cut: cut.clone(),
                _place: place,
            };
            connections.spawn(connection.run(stream));
        } else if let Ok(place) = Arc::clone(&refusals).try_acquire_owned() {
            connections.spawn(refuse(stream, shutdown.begin.clone(), place));
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// One connection; it ends with the peer, with its last response after `begin`, or at `cut`. After `begin` a peer that
/// owes the rest of a request, or doesn't take an answer, has only a moment.
struct Connection {
    router: Router,
    limits: Limits,
    peer: SocketAddr,
    begin: CancellationToken,
    cut: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    async fn run(self, stream: TcpStream) {
        let Self {
            router,
            limits,
            peer,
            begin,
            cut,
            _place,
        } = self;
        let activity = Arc::new(Activity::default());
        let io = TokioIo::new(Socket::new(stream, limits, Arc::clone(&activity)));
        let waiting = Arc::clone(&activity);
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let in_flight = activity.begin();
            let activity = Arc::clone(&activity);
            let at_once = request.body().is_end_stream();
            activity.at(if at_once {
                Stage::Handled
            } else {
                Stage::Arriving
            });
            let whole = Arc::new(AtomicBool::new(at_once));
            let read_whole = Arc::clone(&whole);
            let arriving = Arc::clone(&activity);
            let mut request = request.map(|body| {
                Body::new(Counted {
                    body,
                    whole,
                    arriving,
                })
            });
            request.extensions_mut().insert(Peer(peer));
            let response = router.clone().oneshot(request);
            async move {
                let mut response: Response = response.await?;
                let log = response
                    .headers()
                    .get(CONTENT_TYPE)
                    .is_some_and(|kind| kind == "text/event-stream");
                activity.at(if log { Stage::Log } else { Stage::Answered });
                // Said, for a peer that sends its next request on a connection that is about to be closed gets
                // no answer to it.
                if !read_whole.load(Ordering::Relaxed) {
                    activity.leave_unread();
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(CONNECTION, close);
                }
                Ok::<_, Infallible>(response.map(|body| Tracked {
                    body,
                    _in_flight: in_flight,
                }))
            }
        });
        let mut served = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits.idle_timeout)
                .max_headers(limits.max_headers)
                .max_header_size(limits.max_head_bytes)
                .max_buf_size(limits.buffer)
                .serve_connection(io, service)
        );
        let mut ending = false;
        let mut in_vain = 0;
        loop {
            // Cutting first: it must not wait for a connection that is always ready.
            tokio::select! {
                biased;
                () = cut.cancelled() => return,
                () = begin.cancelled(), if !ending => {
                    ending = true;
                    // What was written before is no progress.
                    waiting.worth_waiting(limits.buffer);
                    served.as_mut().graceful_shutdown();
                }
                result = served.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "a connection broke off");
                    }
                    return;
                }
                () = sleep(BRIEF), if ending => {
                    in_vain = if waiting.worth_waiting(limits.buffer) { 0 } else { in_vain + 1 };
                    if in_vain == 2 {
                        return;
                    }
                }
            }
        }
    }
}

/// A request's body that tells whether it was read to its end.
struct Counted {
    body: Incoming,
    whole: Arc<AtomicBool>,
    arriving: Arc<Activity>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() || self.body.is_end_stream() {
            self.whole.store(true, Ordering::Relaxed);
            self.arriving.at(Stage::Handled);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body that tells when it is done.
struct Tracked {
    body: Body,
    _in_flight: InFlight,
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Answers that there are too many connections, and waits a moment for the peer to read it, but not after `begin`.
async fn refuse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    begin: CancellationToken,
    _place: OwnedSemaphorePermit,
) {
    let answer = Refusal::too_many().into_bytes();
    let polite = async {
        stream.write_all(&answer).await?;
        stream.shutdown().await?;
        // Closing with unread bytes would reset the connection before the peer has read the answer.
        let mut scratch = [0; 1024];
        while stream.read(&mut scratch).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Answering first: it takes no time when the peer takes it.
    let answered = tokio::select! {
        biased;
        refused = timeout(Duration::from_secs(1), polite) => refused.is_ok(),
        () = begin.cancelled() => false,
    };
    tracing::debug!(answered, "refused a connection: there are too many");
}

/// Keepalives and a user timeout close what has vanished; a small send buffer bounds what the kernel
/// keeps for a peer that does not read.
///
/// Linux counts a full window of a live peer against the user timeout too, so a shorter one than the
/// time for stalled writes would cut slow readers before the watchdog does.
fn configure(stream: &TcpStream, limits: Limits) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "could not set a socket option");
    }
    #[cfg(target_os = "linux")]
    {
        use nix::sys::socket::{setsockopt, sockopt};
        let user_timeout = u32::try_from(limits.write_stall.as_millis()).unwrap_or(u32::MAX);
        let set = setsockopt(stream, sockopt::KeepAlive, &true)
            .and_then(|()| setsockopt(stream, sockopt::TcpKeepIdle, &30))
            .and_then(|()| setsockopt(stream, sockopt::TcpKeepInterval, &10))
            .and_then(|()| setsockopt(stream, sockopt::TcpKeepCount, &3))
            .and_then(|()| setsockopt(stream, sockopt::TcpUserTimeout, &user_timeout))
            .and_then(|()| setsockopt(stream, sockopt::SndBuf, &limits.send_buffer));
        if let Err(error) = set {
            tracing::debug!(%error, "could not set a socket option");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_refused_peer_that_does_not_close_holds_no_stop_up() {
        for (stops, took) in [(true, Duration::ZERO), (false, Duration::from_secs(1))] {
            let (mut peer, stream) = tokio::io::duplex(1 << 10);
            let begin = CancellationToken::new();
            if stops {
                begin.cancel();
            }
            let place = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
            let begun = Instant::now();
            refuse(stream, begin, place).await;
            assert_eq!(begun.elapsed(), took);
            let mut answer = String::new();
            peer.read_to_string(&mut answer).await.unwrap();
            assert!(answer.contains(r#""code":"SERVER_BUSY""#), "{answer}");
        }
    }
}
