//! HTTP/2: over TLS where both ends name it (ALPN), without TLS for clients that begin with its
//! preface.
//!
//! One connection carries many requests, so what bounds a connection of HTTP/1.1 has to bound each
//! of its streams: how many there are, what each may have in memory, how long none may be open, how
//! long a client may take nothing of one (`pace`). A client that opens streams only to reset them
//! (CVE-2023-44487) is told to go away by the `h2` crate: after 20 of them that were not yet looked
//! at, or 1024 that broke the protocol; those are its defaults, and hyper's.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::TokioTimer;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::ListenerLimits;
use super::h2_stall::until_stalled;
use crate::shutdown::Shutdown;

/// What ALPN calls it.
pub(super) const ALPN: &[u8] = b"h2";
/// What a client that does not ask first begins with (RFC 9113, section 3.4). No method of HTTP/1.1
/// does.
const PREFACE_START: &[u8; 4] = b"PRI ";

/// Streams at once on one connection.
const MAX_STREAMS: u32 = 128;
/// Bytes of a request's header fields as they are counted for SETTINGS_MAX_HEADER_LIST_SIZE.
const MAX_HEADERS_LEN: u32 = 16 << 10;
/// Bytes of a stream's response that its window has room for and that wait for the socket.
const SEND_BUFFER_LEN: usize = 64 << 10;
/// Bytes of a request's body, and of all on a connection, that wait for their handlers.
const WINDOW_LEN: u32 = 1 << 20;
/// How long a client may leave a ping unanswered.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The streams of a connection: tasks that a drain waits for.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    shutdown: Shutdown,
    /// With a client that takes nothing.
    patience: Duration,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    begun: AtomicU64,
    open: AtomicUsize,
}

impl Streams {
    pub(super) fn new(shutdown: Shutdown, patience: Duration) -> Self {
        Self {
            shutdown,
            patience,
            counts: Arc::default(),
        }
    }

    /// The settings of a connection with these streams.
    pub(super) fn builder(&self, limits: &ListenerLimits) -> http2::Builder<Self> {
        let mut http = http2::Builder::new(self.clone());
        http.timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADERS_LEN)
            .max_send_buf_size(SEND_BUFFER_LEN)
            .initial_stream_window_size(WINDOW_LEN)
            .initial_connection_window_size(WINDOW_LEN)
            .keep_alive_interval(limits.head_timeout)
            .keep_alive_timeout(PING_TIMEOUT);
        http
    }

    /// Waits until no stream was open for `bound`, or for less than twice as long.
    pub(super) async fn idle(&self, bound: Duration) {
        let mut begun_before = None;
        loop {
            let begun = self.counts.begun.load(Ordering::Relaxed);
            let open = self.counts.open.load(Ordering::Relaxed);
            if open == 0 && begun_before == Some(begun) {
                return;
            }
            begun_before = Some(begun);
            sleep(bound).await;
        }
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        self.counts.begun.fetch_add(1, Ordering::Relaxed);
        self.counts.open.fetch_add(1, Ordering::Relaxed);
        let open = Open(Arc::clone(&self.counts));
        let patience = self.patience;
        self.shutdown.spawn(async move {
            until_stalled(stream, patience).await;
            drop(open);
        });
    }
}

/// An open stream, until it is dropped.
struct Open(Arc<Counts>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether an unencrypted connection begins as HTTP/2 does. One that shows less than four bytes at
/// first is taken for one of HTTP/1.1.
///
/// # Errors
/// The connection has failed.
pub(super) async fn begins_with_preface(stream: &TcpStream) -> io::Result<bool> {
    let mut start = [0; PREFACE_START.len()];
    Ok(stream.peek(&mut start).await? == start.len() && start == *PREFACE_START)
}
