//! HTTP/1.1 load generator: persistent connections that repeat one request.
//!
//! It is our own and not a tool such as `wrk` because `flotilla bench registry` is a command that
//! operators run where no other tool is installed.
//!
//! It shares the machine with the server that it measures, so it does little per response: the
//! request is a prepared byte string, only the head of a response is parsed, and bodies are counted
//! and discarded. Each thread has its own connections and one read buffer for all of them.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Poll, ready};
use std::thread::available_parallelism;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, Sleep, sleep};

/// Size of the read buffer.
const BUFFER_LEN: usize = 256 << 10;
/// Limit for the head of a response.
const MAX_HEAD_LEN: usize = 64 << 10;
const MAX_HEADERS: usize = 64;
/// How long a response may take, to its last byte.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// After this many consecutive failures a client stops, so that a dead server does not produce
/// millions of errors.
const MAX_CONSECUTIVE_FAILURES: u32 = 10;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER_LEN]);
}

/// The request, its concurrency and its duration.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) address: SocketAddr,
    /// A complete request, as sent.
    pub(super) request: Bytes,
    pub(super) connections: u32,
    /// Load before the measurement: connections open and the server's caches fill.
    pub(super) warm_up: Duration,
    pub(super) duration: Duration,
}

/// The responses to a load.
#[derive(Debug, Default)]
pub(super) struct LoadResult {
    /// From the first byte of a request to the last byte of its response, in seconds, ascending.
    pub(super) latencies_s: Vec<f64>,
    /// Bytes of response bodies, or of uploads.
    pub(super) bytes: u64,
    pub(super) errors: u64,
    pub(super) first_error: Option<String>,
    pub(super) duration: Duration,
}

impl LoadResult {
    /// Counts a successful request.
    pub(super) fn record_response(&mut self, latency: Duration, bytes: u64) {
        self.latencies_s.push(latency.as_secs_f64());
        self.bytes += bytes;
    }

    /// Counts a failed request.
    pub(super) fn record_error(&mut self, error: impl ToString) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| error.to_string());
    }

    /// Adds up the results of concurrent clients that ran since `started`.
    pub(super) async fn gather(clients: JoinSet<Self>, started: Instant) -> Self {
        let mut sum = Self::sum(clients).await;
        sum.duration = started.elapsed();
        sum.latencies_s.sort_unstable_by(f64::total_cmp);
        sum
    }

    async fn sum(mut clients: JoinSet<Self>) -> Self {
        let mut sum = Self::default();
        while let Some(joined) = clients.join_next().await {
            match joined {
                Ok(result) => sum.add(result),
                Err(error) => sum.record_error(error),
            }
        }
        sum
    }

    fn add(&mut self, other: Self) {
        self.latencies_s.extend(other.latencies_s);
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
    }
}

impl Load {
    /// Runs the load to its end.
    pub(super) async fn run(self) -> LoadResult {
        let counts_from = Instant::now() + self.warm_up;
        let thread_count = available_parallelism()
            .map_or(1, |cores| cores.get() as u32)
            .min(self.connections);
        let mut threads = JoinSet::new();
        for thread in 0..thread_count {
            let share = (self.connections + thread) / thread_count;
            let load = Self {
                connections: share,
                ..self.clone()
            };
            threads.spawn_blocking(move || load.run_on_this_thread(counts_from));
        }
        LoadResult::gather(threads, counts_from).await
    }

    fn run_on_this_thread(self, counts_from: Instant) -> LoadResult {
        let mut result = LoadResult::default();
        match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(LocalSet::new().run_until(async {
                // One result per thread, not per connection: it stays in the CPU's cache.
                let shared = Rc::new(RefCell::new(LoadResult::default()));
                let mut clients = JoinSet::new();
                for _ in 0..self.connections {
                    clients.spawn_local(self.clone().client(counts_from, Rc::clone(&shared)));
                }
                while let Some(ended) = clients.join_next().await {
                    if let Err(error) = ended {
                        shared.borrow_mut().record_error(error);
                    }
                }
                result = shared.take();
            })),
            Err(error) => result.record_error(error),
        }
        result
    }

    async fn client(self, counts_from: Instant, result: Rc<RefCell<LoadResult>>) {
        let mut connection = None;
        let mut consecutive_failures = 0;
        let deadline = counts_from + self.duration;
        let mut timer = pin!(sleep(RESPONSE_TIMEOUT));
        while Instant::now() < deadline && consecutive_failures < MAX_CONSECUTIVE_FAILURES {
            let response = with_timeout(timer.as_mut(), self.request(&mut connection)).await;
            let timed_out = || {
                Err(io::Error::other(format!(
                    "no response within {RESPONSE_TIMEOUT:?}"
                )))
            };
            match response.unwrap_or_else(timed_out) {
                Ok((sent_at, latency, bytes)) => {
                    if sent_at >= counts_from {
                        result.borrow_mut().record_response(latency, bytes);
                    }
                    consecutive_failures = 0;
                }
                Err(error) => {
                    result.borrow_mut().record_error(error);
                    connection = None;
                    consecutive_failures += 1;
                }
            }
        }
    }

    /// Sends the request once: when it was sent, its latency, and the bytes of the body.
    async fn request(
        &self,
        connection: &mut Option<Connection>,
    ) -> io::Result<(Instant, Duration, u64)> {
        let mut open = match connection.take() {
            Some(open) => open,
            None => Connection::open(self.address).await?,
        };
        let started = Instant::now();
        open.stream.write_all(&self.request).await?;
        let response = open.read_response().await?;
        let latency = started.elapsed();
        if response.keeps_connection {
            *connection = Some(open);
        }
        Ok((started, latency, response.body_len))
    }
}

/// The result of `work`, or `None` after [`RESPONSE_TIMEOUT`]. The timer is reset only when it
/// fires, not for every request: resetting costs more than the rest of this function.
async fn with_timeout<T>(mut timer: Pin<&mut Sleep>, work: impl Future<Output = T>) -> Option<T> {
    let deadline = Instant::now() + RESPONSE_TIMEOUT;
    let mut work = pin!(work);
    loop {
        tokio::select! {
            biased;
            done = work.as_mut() => return Some(done),
            () = timer.as_mut() => {
                if Instant::now() >= deadline {
                    return None;
                }
                timer.as_mut().reset(deadline);
            }
        }
    }
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
}

/// The parts of a response's head that the load generator needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ResponseHead {
    head_len: usize,
    body_len: u64,
    keeps_connection: bool,
}

impl Connection {
    async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    /// Reads a response to its end.
    async fn read_response(&mut self) -> io::Result<ResponseHead> {
        // Used only if the head arrives in several reads.
        let mut partial_head = Vec::new();
        let (head, mut received) = loop {
            let parsed = self.read(|bytes| parse(&mut partial_head, bytes)).await??;
            if let Some(parsed) = parsed {
                break parsed;
            }
        };
        while received < head.body_len {
            received += self.read(|bytes| bytes.len() as u64).await?;
        }
        if received == head.body_len {
            Ok(head)
        } else {
            Err(invalid("the body is longer than Content-Length"))
        }
    }

    /// Passes the next received bytes to `visit`.
    async fn read<T>(&mut self, mut visit: impl FnMut(&[u8]) -> T) -> io::Result<T> {
        poll_fn(|context| {
            BUFFER.with_borrow_mut(|buffer| {
                let mut buffer = ReadBuf::new(buffer);
                ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
                Poll::Ready(match buffer.filled() {
                    [] => Err(io::ErrorKind::UnexpectedEof.into()),
                    bytes => Ok(visit(bytes)),
                })
            })
        })
        .await
    }
}

/// The head of a response whose first bytes are in `before`, and the number of body bytes that
/// followed it in `bytes`; `None` until the head is complete.
fn parse(before: &mut Vec<u8>, bytes: &[u8]) -> io::Result<Option<(ResponseHead, u64)>> {
    if before.is_empty()
        && let Some(head) = ResponseHead::parse(bytes)?
    {
        return Ok(Some((head, (bytes.len() - head.head_len) as u64)));
    }
    before.extend_from_slice(bytes);
    match ResponseHead::parse(before)? {
        Some(head) => Ok(Some((head, (before.len() - head.head_len) as u64))),
        None if before.len() > MAX_HEAD_LEN => Err(invalid("the head of the response is too long")),
        None => Ok(None),
    }
}

impl ResponseHead {
    /// `None` if the head is incomplete.
    fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(head_len) = response.parse(bytes).map_err(invalid)? else {
            return Ok(None);
        };
        if response.code != Some(200) {
            return Err(invalid(format!(
                "status {}",
                response.code.unwrap_or_default()
            )));
        }
        let value = |name: &str| {
            let header = response
                .headers
                .iter()
                .find(|header| header.name.eq_ignore_ascii_case(name));
            header.and_then(|header| std::str::from_utf8(header.value).ok())
        };
        let body_len = value("content-length").and_then(|value| value.parse().ok());
        let body_len = body_len.ok_or_else(|| invalid("the response has no Content-Length"))?;
        let keeps_connection =
            value("connection").is_none_or(|value| !value.eq_ignore_ascii_case("close"));
        Ok(Some(Self {
            head_len,
            body_len,
            keeps_connection,
        }))
    }
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    /// The result of a short load on a server that sends these responses on each connection, then
    /// closes it.
    async fn measure(responses: &'static [&'static str]) -> LoadResult {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                for response in responses {
                    let mut request = [0; 4];
                    if stream.read_exact(&mut request).await.is_err() {
                        break;
                    }
                    stream.write_all(response.as_bytes()).await.unwrap();
                }
            }
        });
        let request = Bytes::from_static(b"GET\n");
        let load = Load {
            address,
            request,
            connections: 1,
            warm_up: Duration::ZERO,
            duration: Duration::from_millis(20),
        };
        let result = load.run().await;
        server.abort();
        result
    }

    #[tokio::test]
    async fn responses_and_their_bytes_are_counted() {
        let result =
            measure(&["HTTP/1.1 200 OK\r\ncontent-length: 3\r\nConnection: close\r\n\r\nabc"])
                .await;
        assert_eq!((result.errors, result.first_error), (0, None));
        assert!(!result.latencies_s.is_empty());
        assert_eq!(result.bytes, 3 * result.latencies_s.len() as u64);
    }

    #[tokio::test]
    async fn invalid_responses_are_errors_and_stop_the_client() {
        for (response, why) in [
            (
                "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
                "status 404",
            ),
            (
                "HTTP/1.1 200 OK\r\n\r\n",
                "the response has no Content-Length",
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc",
                "the body is longer than Content-Length",
            ),
            ("nonsense\r\n\r\n", "invalid HTTP version"),
        ] {
            let responses: &'static [&'static str] = Box::leak(Box::new([response]));
            let result = measure(responses).await;
            assert_eq!(result.first_error.as_deref(), Some(why));
            assert!((1..=u64::from(MAX_CONSECUTIVE_FAILURES)).contains(&result.errors));
            assert!(result.latencies_s.is_empty());
        }
    }
}
