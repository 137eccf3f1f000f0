//! A stream whose writes fail when the client has read nothing for too long.
//!
//! A client that keeps a connection open and never reads would otherwise hold the connection and
//! the memory of its response indefinitely.

use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_io_timeout::TimeoutStream;

/// Adds a timeout to the writes of `stream`, each of which may wait `limit` for the client.
pub(super) fn with_write_timeout<S: AsyncRead + AsyncWrite>(
    stream: S,
    limit: Duration,
) -> Pin<Box<TimeoutStream<S>>> {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limit));
    Box::pin(stream)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::io;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::{Instant, sleep};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn client_that_reads_nothing_times_out() {
        let (near, _far) = duplex(10);
        let mut stream = with_write_timeout(near, LIMIT);
        let started = Instant::now();
        let error = stream.write_all(&[0; 11]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed(), LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_client_receives_everything() {
        let (near, mut far) = duplex(1);
        let mut stream = with_write_timeout(near, LIMIT);
        let reader = async {
            for _ in 0..5 {
                sleep(LIMIT - Duration::from_secs(1)).await;
                far.read_exact(&mut [0]).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(stream.write_all(&[0; 5]), reader);
        written.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn pause_between_writes_does_not_time_out() {
        let (near, mut far) = duplex(1);
        let mut stream = with_write_timeout(near, LIMIT);
        for _ in 0..3 {
            let taken = async {
                sleep(LIMIT / 2).await;
                far.read_exact(&mut [0; 2]).await.unwrap();
            };
            let (written, ()) = tokio::join!(stream.write_all(&[0; 2]), taken);
            written.unwrap();
            sleep(LIMIT * 2).await;
        }
    }

    #[tokio::test]
    async fn writes_stay_vectored() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        assert!(with_write_timeout(stream, LIMIT).is_write_vectored());
    }
}
