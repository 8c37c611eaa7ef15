//! An accepted connection's socket, with the time limits that must sit below HTTP.
//!
//! A body whose socket is full is not polled any more, so no timer inside of it can fire: a peer that
//! stops reading is found here (CL-3). The head's time is counted from its first byte, while an idle
//! connection may wait longer. A connection that is closed while the peer still sends a request is drained for
//! a moment, or the reset would destroy the response that says why.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::limits::Limits;
use super::refusal::Refusal;

/// What HTTP and the socket must know of each other: how many requests have begun and ended on the connection, how
/// far the last one is, whether one was answered before it was read, whether a write waits for the peer, and how much
/// was written.
#[derive(Debug, Default)]
pub(super) struct Activity {
    begun: AtomicU64,
    ended: AtomicU64,
    unread: AtomicBool,
    stage: Mutex<Stage>,
    writing: AtomicBool,
    /// Bytes since the last look.
    written: AtomicU64,
}

/// How far the connection's last request is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// It has not arrived whole.
    #[default]
    Arriving,
    /// It is being worked on.
    Handled,
    /// The log of a run is its answer.
    Log,
    /// Something else is.
    Answered,
}

impl Activity {
    /// A head is complete.
    pub(super) fn begin(self: &Arc<Self>) -> InFlight {
        self.begun.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    /// The last request has come this far.
    pub(super) fn at(&self, stage: Stage) {
        *self.stage.lock() = stage;
    }

    /// Whether a server that stops should wait for the connection: for its own work and for what a reader of a log
    /// has still to get, and while a peer has taken at least `least` bytes of an answer since the last look; not for
    /// one that neither sends nor takes what it should.
    pub(super) fn worth_waiting(&self, least: usize) -> bool {
        let written = self.written.swap(0, Ordering::Relaxed);
        let stage = *self.stage.lock();
        match stage {
            Stage::Arriving => false,
            Stage::Handled => true,
            Stage::Answered => written >= least as u64,
            Stage::Log => !self.idle() || self.writing.load(Ordering::Relaxed),
        }
    }

    /// The rest of a request's body will not be read.
    pub(super) fn leave_unread(&self) {
        self.unread.store(true, Ordering::Relaxed);
    }

    fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    fn idle(&self) -> bool {
        self.begun() == self.ended.load(Ordering::Relaxed)
    }
}

/// A request and its response, until the response's body is done or dropped.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Activity>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// A socket with its watchdogs.
pub(super) struct Socket<S> {
    inner: S,
    limits: Limits,
    activity: Arc<Activity>,
    /// A head that is waited for.
    head: Option<Head>,
    /// Runs from a write that has to wait until so many bytes more, or all that there is, were taken.
    stall: Option<(usize, Timer)>,
    /// Runs while the peer's last bytes are thrown away.
    linger: Option<(usize, Timer)>,
    ended: bool,
    /// The next byte written begins a response.
    at_head: bool,
    /// An answer in place of one of hyper's own, and how much of it is written.
    instead: Option<(Vec<u8>, usize)>,
}

/// Valid until the request with this number has begun.
struct Head {
    request: u64,
    timer: Timer,
    /// Some of it has arrived.
    began: bool,
}

type Timer = Pin<Box<Sleep>>;

/// Bytes thrown away at most after the last response.
const LINGER_BYTES: usize = 64 << 20;

impl<S> Socket<S> {
    pub(super) fn new(inner: S, limits: Limits, activity: Arc<Activity>) -> Self {
        let head = Some(Head {
            request: 0,
            timer: timer(limits.head_timeout),
            began: false,
        });
        Self {
            inner,
            limits,
            activity,
            head,
            stall: None,
            linger: None,
            ended: false,
            at_head: true,
            instead: None,
        }
    }

    /// Fails once a head takes too long.
    fn watch_head(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let begun = self.activity.begun();
        match &mut self.head {
            Some(head) if head.request == begun => match head.timer.as_mut().poll(cx) {
                Poll::Ready(()) => Err(too_slow("the request's head did not arrive in time")),
                Poll::Pending => Ok(()),
            },
            _ => {
                self.head = None;
                Ok(())
            }
        }
    }

    /// Whether bytes of a request may still be on their way that nobody will read.
    fn unread(&self) -> bool {
        let in_head = |head: &Head| head.began && head.request == self.activity.begun();
        self.activity.unread.load(Ordering::Relaxed) || self.head.as_ref().is_some_and(in_head)
    }

    fn wrote(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        self.activity
            .writing
            .store(result.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(written) = result {
            let written = written?;
            self.activity
                .written
                .fetch_add(written as u64, Ordering::Relaxed);
            // A few bytes now and then are no progress: a response could be held for hours.
            self.stall.take_if(|(left, _)| {
                *left = left.saturating_sub(written);
                *left == 0
            });
            return Poll::Ready(Ok(written));
        }
        let (limit, least) = (self.limits.write_stall, self.limits.buffer);
        let (_, stall) = self.stall.get_or_insert_with(|| (least, timer(limit)));
        ready!(stall.as_mut().poll(cx));
        tracing::info!("cut a connection whose peer does not read");
        Poll::Ready(Err(too_slow("the peer does not read")))
    }
}

fn timer(after: Duration) -> Timer {
    Box::pin(sleep_until(Instant::now() + after))
}

fn too_slow(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, why)
}

impl<S: AsyncWrite + Unpin> Socket<S> {
    /// Writes our answer where `head` begins one of hyper's own: as if that were written.
    fn write_instead(
        &mut self,
        cx: &mut Context<'_>,
        head: &[u8],
    ) -> Option<Poll<io::Result<usize>>> {
        if std::mem::take(&mut self.at_head) {
            let refusal = Refusal::in_place_of(head, &self.limits);
            self.instead = refusal.map(|refusal| (refusal.into_bytes(), 0));
        }
        let (answer, done) = self.instead.as_mut()?;
        while let Some(rest) = answer.get(*done..).filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut self.inner).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => {
                    return Some(Poll::Ready(Err(io::ErrorKind::WriteZero.into())));
                }
                Poll::Ready(Ok(written)) => *done += written,
                other => return Some(other),
            }
        }
        self.instead = None;
        Some(Poll::Ready(Ok(head.len())))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.watch_head(cx)?;
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        if buf.filled().len() == before {
            self.ended = true;
        } else if self.activity.idle() {
            let (request, limit) = (self.activity.begun(), self.limits.head_timeout);
            let head = self.head.get_or_insert_with(|| Head {
                request,
                timer: timer(limit),
                began: true,
            });
            head.began = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let result = this.write_instead(cx, buf);
        let result = result.unwrap_or_else(|| Pin::new(&mut this.inner).poll_write(cx, buf));
        this.wrote(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let result = this.write_instead(cx, bufs.first().map_or(&[], |first| &**first));
        let result =
            result.unwrap_or_else(|| Pin::new(&mut this.inner).poll_write_vectored(cx, bufs));
        this.wrote(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stall = None;
        // All was written before, and no body goes on.
        self.at_head |= self.activity.idle();
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
        }
        let limit = if this.unread() {
            this.limits.linger
        } else {
            Duration::ZERO
        };
        let (left, timer) = this
            .linger
            .get_or_insert_with(|| (LINGER_BYTES, timer(limit)));
        let mut scratch = [0; 4096];
        while !this.ended && *left > 0 {
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut this.inner).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    *left = left.saturating_sub(buf.filled().len());
                }
                Poll::Ready(_) => this.ended = true,
                Poll::Pending => {
                    if !limit.is_zero() {
                        ready!(timer.as_mut().poll(cx));
                    }
                    return Poll::Ready(Ok(()));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_a_few_bytes_now_and_then_is_cut() {
        let (mut peer, inner) = duplex(64);
        let mut socket = Socket::new(inner, Limits::default(), Arc::default());
        let response = vec![0; 1 << 20];
        let reading = async {
            let mut few = [0; 8];
            loop {
                sleep(Duration::from_secs(10)).await;
                peer.read_exact(&mut few).await.unwrap();
            }
        };
        let result = tokio::select! {
            result = timeout(Duration::from_mins(2), socket.write_all(&response)) => result,
            () = reading => return,
        };
        let error = result.expect("it is cut").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_over_does_not_count_for_the_next() {
        let (mut peer, inner) = duplex(64);
        let mut socket = Socket::new(inner, Limits::default(), Arc::default());
        for _ in 0..3 {
            let mut taken = [0; 65];
            let (written, read) =
                tokio::join!(socket.write_all(&[0; 65]), peer.read_exact(&mut taken));
            written.unwrap();
            read.unwrap();
            socket.flush().await.unwrap();
            sleep(Duration::from_mins(2)).await;
        }
    }
}
