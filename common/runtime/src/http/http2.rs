//! HTTP/2: over TLS where both ends negotiate it (ALPN), without TLS for clients that start with
//! its preface.
//!
//! One connection carries many requests, so the limits of an HTTP/1.1 connection apply to each
//! stream: their number, their memory, how long a connection may have none, and how long a client
//! may read nothing from one (`h2_stall`). The `h2` crate sends GOAWAY to clients that open streams
//! only to reset them (CVE-2023-44487): after 20 resets that are not yet processed, or 1,024
//! protocol errors. These are the defaults of `h2` and hyper.

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
use super::h2_stall::run_until_stalled;
use crate::shutdown::Shutdown;

/// Its ALPN protocol name.
pub(super) const ALPN: &[u8] = b"h2";
/// The start of the preface of a client with prior knowledge (RFC 9113, section 3.4). No HTTP/1.1
/// method starts like this.
const PREFACE_START: &[u8; 4] = b"PRI ";

/// Time between two looks at an incomplete preface.
const PREFACE_POLL: Duration = Duration::from_millis(5);
/// Looks at an incomplete preface, about a second in all.
const MAX_PREFACE_POLLS: u32 = 200;

/// Streams at once on one connection.
const MAX_STREAMS: u32 = 128;
/// Bytes of a request's header fields, counted as for SETTINGS_MAX_HEADER_LIST_SIZE.
const MAX_HEADERS_LEN: u32 = 16 << 10;
/// Bytes of a stream's response that fit its window and may wait for the socket.
const SEND_BUFFER_LEN: usize = 64 << 10;
/// Bytes of request bodies that may wait for their handlers, per stream and per connection.
const WINDOW_LEN: u32 = 1 << 20;
/// How long a client may take to answer a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Spawns the streams of a connection as tasks that a drain waits for.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    shutdown: Shutdown,
    /// How long a client may read nothing.
    stall_timeout: Duration,
    counts: Arc<StreamCounts>,
}

#[derive(Debug, Default)]
struct StreamCounts {
    begun: AtomicU64,
    open: AtomicUsize,
}

impl Streams {
    pub(super) fn new(shutdown: Shutdown, stall_timeout: Duration) -> Self {
        Self {
            shutdown,
            stall_timeout,
            counts: Arc::default(),
        }
    }

    /// Builds a connection with these streams and the limits of this module.
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

    /// Waits until no stream was open for a time between `bound` and twice `bound`.
    pub(super) async fn wait_until_idle(&self, bound: Duration) {
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
        let open = OpenStream(Arc::clone(&self.counts));
        let stall_timeout = self.stall_timeout;
        self.shutdown.spawn(async move {
            run_until_stalled(stream, stall_timeout).await;
            drop(open);
        });
    }
}

/// Counts an open stream until it is dropped.
struct OpenStream(Arc<StreamCounts>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits for the first bytes of an unencrypted connection and detects HTTP/2 by its preface, which
/// may arrive in several packets. A client that sends part of it and no more is served as HTTP/1.1,
/// whose reader has a timeout and notices the end of the connection.
///
/// # Errors
/// The connection failed.
pub(super) async fn detect_preface(stream: &TcpStream) -> io::Result<bool> {
    let mut start = [0; PREFACE_START.len()];
    for _ in 0..MAX_PREFACE_POLLS {
        let len = stream.peek(&mut start).await?;
        if len == start.len() || len == 0 || !PREFACE_START.starts_with(&start[..len]) {
            return Ok(start[..len] == *PREFACE_START);
        }
        // A peek returns at once while bytes are unread, so it cannot wait for the rest.
        sleep(PREFACE_POLL).await;
    }
    Ok(false)
}
