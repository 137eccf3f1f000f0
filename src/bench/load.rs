//! Load on an HTTP/1.1 server: connections that stay open, each of which asks again as soon as it
//! was answered.
//!
//! It is light, because it shares the machine with what it measures: requests are written
//! ready-made, and of an answer only the head is looked at. Bodies are counted and dropped. Each of
//! its threads has its own connections, which take turns, and one buffer for all of them: a
//! connection that is answered is not kept waiting for the others' reading.

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

/// Bytes of an answer that are read at once.
const BUFFER_LEN: usize = 256 << 10;
/// Of the head of an answer.
const MAX_HEAD_LEN: usize = 64 << 10;
const MAX_HEADERS: usize = 64;
/// How long an answer may take; a server that does not give one has failed.
const ANSWER_BOUND: Duration = Duration::from_secs(10);
thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER_LEN]);
}

/// A connection that fails this often in a row is given up: errors are not to be had by the
/// million.
const FAILURES_IN_A_ROW: u32 = 10;

/// What is asked, how often at once, for how long.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) address: SocketAddr,
    /// A whole request.
    pub(super) request: Bytes,
    pub(super) connections: u32,
    /// Until then nothing counts: connections are opened, and what is asked for gets into memory.
    pub(super) warm_up: Duration,
    pub(super) duration: Duration,
}

/// What was answered.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// From a request's first byte to its answer's last, seconds, ascending.
    pub(super) latencies_s: Vec<f64>,
    /// Bytes of bodies.
    pub(super) bytes: u64,
    pub(super) errors: u64,
    /// What the first error was.
    pub(super) first_error: Option<String>,
    pub(super) took: Duration,
}

impl Measured {
    pub(super) fn answered(&mut self, latency: Duration, bytes: u64) {
        self.latencies_s.push(latency.as_secs_f64());
        self.bytes += bytes;
    }

    pub(super) fn failed(&mut self, error: impl ToString) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| error.to_string());
    }

    /// What several connections measured side by side since `started`, of which none ends before
    /// it.
    pub(super) async fn gather(clients: JoinSet<Self>, started: Instant) -> Self {
        let mut sum = Self::sum(clients).await;
        sum.took = started.elapsed();
        sum.latencies_s.sort_unstable_by(f64::total_cmp);
        sum
    }

    async fn sum(mut clients: JoinSet<Self>) -> Self {
        let mut sum = Self::default();
        while let Some(measured) = clients.join_next().await {
            match measured {
                Ok(measured) => sum.add(measured),
                Err(error) => sum.failed(error),
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
    /// Puts the load on the server.
    pub(super) async fn run(self) -> Measured {
        let counts_from = Instant::now() + self.warm_up;
        let number = available_parallelism()
            .map_or(1, |cores| cores.get() as u32)
            .min(self.connections);
        let mut threads = JoinSet::new();
        for thread in 0..number {
            let share = (self.connections + thread) / number;
            let load = Self {
                connections: share,
                ..self.clone()
            };
            threads.spawn_blocking(move || load.run_on_this_thread(counts_from));
        }
        Measured::gather(threads, counts_from).await
    }

    fn run_on_this_thread(self, counts_from: Instant) -> Measured {
        let mut measured = Measured::default();
        match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(LocalSet::new().run_until(async {
                // One for all that this thread measures: memory of each connection's own would have
                // to be fetched for each of its answers.
                let shared = Rc::new(RefCell::new(Measured::default()));
                let mut clients = JoinSet::new();
                for _ in 0..self.connections {
                    clients.spawn_local(self.clone().client(counts_from, Rc::clone(&shared)));
                }
                while let Some(ended) = clients.join_next().await {
                    if let Err(error) = ended {
                        shared.borrow_mut().failed(error);
                    }
                }
                measured = shared.take();
            })),
            Err(error) => measured.failed(error),
        }
        measured
    }

    async fn client(self, counts_from: Instant, measured: Rc<RefCell<Measured>>) {
        let (mut connection, mut in_a_row) = (None, 0);
        let deadline = counts_from + self.duration;
        let mut alarm = pin!(sleep(ANSWER_BOUND));
        while Instant::now() < deadline && in_a_row < FAILURES_IN_A_ROW {
            // The bound holds for the last request, too.
            match in_time(alarm.as_mut(), self.ask(&mut connection)).await {
                Some(Ok((asked_at, latency, bytes))) => {
                    if asked_at >= counts_from {
                        measured.borrow_mut().answered(latency, bytes);
                    }
                    in_a_row = 0;
                }
                Some(Err(error)) => (connection, in_a_row) = fail(&measured, error, in_a_row),
                None => {
                    let error = format!("no answer within {ANSWER_BOUND:?}");
                    (connection, in_a_row) = fail(&measured, error, in_a_row);
                }
            }
        }
    }

    async fn ask(
        &self,
        connection: &mut Option<Connection>,
    ) -> io::Result<(Instant, Duration, u64)> {
        let mut open = match connection.take() {
            Some(open) => open,
            None => Connection::open(self.address).await?,
        };
        let started = Instant::now();
        open.stream.write_all(&self.request).await?;
        let answer = open.answer().await?;
        let latency = started.elapsed();
        if answer.stays_open {
            *connection = Some(open);
        }
        Ok((started, latency, answer.len))
    }
}

/// What `work` gives, unless it takes too long. The alarm is set only when it goes off, not for
/// each request.
async fn in_time<T>(mut alarm: Pin<&mut Sleep>, work: impl Future<Output = T>) -> Option<T> {
    let deadline = Instant::now() + ANSWER_BOUND;
    let mut work = pin!(work);
    loop {
        tokio::select! {
            biased;
            done = work.as_mut() => return Some(done),
            () = alarm.as_mut() => {
                if Instant::now() >= deadline {
                    return None;
                }
                alarm.as_mut().reset(deadline);
            }
        }
    }
}

fn fail(
    measured: &RefCell<Measured>,
    error: impl ToString,
    in_a_row: u32,
) -> (Option<Connection>, u32) {
    measured.borrow_mut().failed(error);
    (None, in_a_row + 1)
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
}

/// The head of an answer, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    head_len: usize,
    /// Bytes of the body.
    len: u64,
    stays_open: bool,
}

impl Connection {
    async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    /// Reads an answer to its end.
    async fn answer(&mut self) -> io::Result<Answer> {
        // Only what comes in pieces is put together here.
        let mut head = Vec::new();
        let (answer, mut got) = loop {
            let parsed = self.read(|bytes| parse(&mut head, bytes)).await??;
            if let Some(parsed) = parsed {
                break parsed;
            }
        };
        while got < answer.len {
            got += self.read(|bytes| bytes.len() as u64).await?;
        }
        if got == answer.len {
            Ok(answer)
        } else {
            Err(invalid("more came than Content-Length says"))
        }
    }

    /// Shows what comes next.
    async fn read<T>(&mut self, mut look: impl FnMut(&[u8]) -> T) -> io::Result<T> {
        poll_fn(|context| {
            BUFFER.with_borrow_mut(|buffer| {
                let mut buffer = ReadBuf::new(buffer);
                ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
                Poll::Ready(match buffer.filled() {
                    [] => Err(io::ErrorKind::UnexpectedEof.into()),
                    bytes => Ok(look(bytes)),
                })
            })
        })
        .await
    }
}

/// The head of an answer that begins with `before`, and how much of the body came with it.
fn parse(before: &mut Vec<u8>, bytes: &[u8]) -> io::Result<Option<(Answer, u64)>> {
    if before.is_empty()
        && let Some(answer) = Answer::parse(bytes)?
    {
        return Ok(Some((answer, (bytes.len() - answer.head_len) as u64)));
    }
    before.extend_from_slice(bytes);
    match Answer::parse(before)? {
        Some(answer) => Ok(Some((answer, (before.len() - answer.head_len) as u64))),
        None if before.len() > MAX_HEAD_LEN => Err(invalid("the head is too long")),
        None => Ok(None),
    }
}

impl Answer {
    /// `None` if the head has not ended yet.
    fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(head_len) = response.parse(bytes).map_err(invalid)? else {
            return Ok(None);
        };
        if response.code != Some(200) {
            return Err(invalid(format!(
                "answered {}",
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
        let len = value("content-length").and_then(|value| value.parse().ok());
        let len = len.ok_or_else(|| invalid("the answer has no Content-Length"))?;
        let stays_open =
            value("connection").is_none_or(|value| !value.eq_ignore_ascii_case("close"));
        Ok(Some(Self {
            head_len,
            len,
            stays_open,
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

    /// The load of two connections on a server that gives each connection these answers in turn,
    /// then hangs up.
    async fn measure(answers: &'static [&'static str]) -> Measured {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                for answer in answers {
                    let mut request = [0; 4];
                    if stream.read_exact(&mut request).await.is_err() {
                        break;
                    }
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        });
        let request = Bytes::from_static(b"GET\n");
        let (warm_up, duration) = (Duration::ZERO, Duration::from_millis(20));
        let load = Load {
            address,
            request,
            connections: 1,
            warm_up,
            duration,
        };
        let measured = load.run().await;
        server.abort();
        measured
    }

    #[tokio::test]
    async fn answers_are_counted_with_their_bytes() {
        let measured =
            measure(&["HTTP/1.1 200 OK\r\ncontent-length: 3\r\nConnection: close\r\n\r\nabc"])
                .await;
        assert_eq!((measured.errors, measured.first_error), (0, None));
        assert!(!measured.latencies_s.is_empty());
        assert_eq!(measured.bytes, 3 * measured.latencies_s.len() as u64);
    }

    #[tokio::test]
    async fn what_is_no_good_answer_is_an_error_and_ends_soon() {
        for (answer, why) in [
            (
                "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
                "answered 404",
            ),
            (
                "HTTP/1.1 200 OK\r\n\r\n",
                "the answer has no Content-Length",
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc",
                "more came than Content-Length says",
            ),
            ("nonsense\r\n\r\n", "invalid HTTP version"),
        ] {
            let answers: &'static [&'static str] = Box::leak(Box::new([answer]));
            let measured = measure(answers).await;
            assert_eq!(measured.first_error.as_deref(), Some(why));
            assert!((1..=u64::from(FAILURES_IN_A_ROW)).contains(&measured.errors));
            assert!(measured.latencies_s.is_empty());
        }
    }
}
