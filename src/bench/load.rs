//! Load on an HTTP/1.1 server: connections that stay open, each of which asks again as soon as it was answered.
//!
//! It is light, because it shares the machine with what it measures: requests are written ready-made, and of an answer
//! only the head is looked at. Bodies are counted and dropped.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Bytes of an answer that are read at once; a head has to fit.
const BUFFER_LEN: usize = 256 << 10;
const MAX_HEADERS: usize = 64;
/// How long an answer may take; a server that does not give one has failed.
const ANSWER_BOUND: Duration = Duration::from_secs(10);
/// A connection that fails this often in a row is given up: errors are not to be had by the million.
const FAILURES_IN_A_ROW: u32 = 10;

/// What is asked, how often at once, for how long.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) address: SocketAddr,
    /// A whole request.
    pub(super) request: Bytes,
    pub(super) connections: u32,
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

    /// What several connections measured side by side since `started`.
    pub(super) async fn gather(mut clients: JoinSet<Self>, started: Instant) -> Self {
        let mut sum = Self::default();
        while let Some(measured) = clients.join_next().await {
            match measured {
                Ok(measured) => sum.add(measured),
                Err(error) => sum.failed(error),
            }
        }
        sum.took = started.elapsed();
        sum.latencies_s.sort_unstable_by(f64::total_cmp);
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
        let started = Instant::now();
        let mut clients = JoinSet::new();
        for _ in 0..self.connections {
            clients.spawn(self.clone().client(started + self.duration));
        }
        Measured::gather(clients, started).await
    }

    async fn client(self, deadline: Instant) -> Measured {
        let (mut measured, mut connection, mut in_a_row) = (Measured::default(), None, 0);
        while Instant::now() < deadline && in_a_row < FAILURES_IN_A_ROW {
            // The bound holds for the last request, too: a few timers are cheap where nobody waits for long.
            match timeout(ANSWER_BOUND, self.ask(&mut connection)).await {
                Ok(Ok((latency, bytes))) => {
                    measured.answered(latency, bytes);
                    in_a_row = 0;
                }
                Ok(Err(error)) => (connection, in_a_row) = fail(&mut measured, error, in_a_row),
                Err(_) => {
                    let error = format!("no answer within {ANSWER_BOUND:?}");
                    (connection, in_a_row) = fail(&mut measured, error, in_a_row);
                }
            }
        }
        measured
    }

    async fn ask(&self, connection: &mut Option<Connection>) -> io::Result<(Duration, u64)> {
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
        Ok((latency, answer.len))
    }
}

fn fail(measured: &mut Measured, error: impl ToString, in_a_row: u32) -> (Option<Connection>, u32) {
    measured.failed(error);
    (None, in_a_row + 1)
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
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
        Ok(Self { stream, buffer: vec![0; BUFFER_LEN] })
    }

    /// Reads an answer to its end.
    async fn answer(&mut self) -> io::Result<Answer> {
        let mut filled = 0;
        let answer = loop {
            filled += self.read(filled).await?;
            if let Some(answer) = Answer::parse(&self.buffer[..filled])? {
                break answer;
            }
        };
        let mut got = (filled - answer.head_len) as u64;
        while got < answer.len {
            got += self.read(0).await? as u64;
        }
        if got == answer.len { Ok(answer) } else { Err(invalid("more came than Content-Length says")) }
    }

    async fn read(&mut self, filled: usize) -> io::Result<usize> {
        let room = &mut self.buffer[filled..];
        if room.is_empty() {
            return Err(invalid("the head is too long"));
        }
        match self.stream.read(room).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            len => Ok(len),
        }
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
            return Err(invalid(format!("answered {}", response.code.unwrap_or_default())));
        }
        let value = |name: &str| {
            let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
            header.and_then(|header| std::str::from_utf8(header.value).ok())
        };
        let len = value("content-length").and_then(|value| value.parse().ok());
        let len = len.ok_or_else(|| invalid("the answer has no Content-Length"))?;
        let stays_open = value("connection").is_none_or(|value| !value.eq_ignore_ascii_case("close"));
        Ok(Some(Self { head_len, len, stays_open }))
    }
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// The load of two connections on a server that gives each connection these answers in turn, then hangs up.
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
        let load = Load { address, request, connections: 1, duration: Duration::from_millis(20) };
        let measured = load.run().await;
        server.abort();
        measured
    }

    #[tokio::test]
    async fn answers_are_counted_with_their_bytes() {
        let measured =
            measure(&["HTTP/1.1 200 OK\r\ncontent-length: 3\r\nConnection: close\r\n\r\nabc"]).await;
        assert_eq!((measured.errors, measured.first_error), (0, None));
        assert!(!measured.latencies_s.is_empty());
        assert_eq!(measured.bytes, 3 * measured.latencies_s.len() as u64);
    }

    #[tokio::test]
    async fn what_is_no_good_answer_is_an_error_and_ends_soon() {
        for (answer, why) in [
            ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answered 404"),
            ("HTTP/1.1 200 OK\r\n\r\n", "the answer has no Content-Length"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc", "more came than Content-Length says"),
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
