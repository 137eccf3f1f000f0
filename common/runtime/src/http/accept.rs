//! Accepting connections, also while the process has no file descriptor left.
//!
//! A connection that cannot be accepted would wait in the kernel's queue, and its client for a
//! response that never comes. Therefore a descriptor is kept in reserve: it is given up to accept
//! one connection at a time, which is answered 503 and closed.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::close;
use crate::log_limit::LogLimit;
use crate::open_files::is_exhausted;

/// The pause after a failed attempt.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// How long a client that is refused may take to send its request, and then to close. Other clients
/// wait meanwhile.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(500);
/// The start of a request that is read before it is refused. The rest is discarded.
const REQUEST_LEN: usize = 8 << 10;

/// The answer to a request that cannot be served for lack of file descriptors, with an error body
/// as the OCI distribution specification has it.
const REFUSAL: &str = concat!(
    "HTTP/1.1 503 Service Unavailable\r\n",
    "content-type: application/json\r\n",
    "content-length: 95\r\n",
    "retry-after: 1\r\n",
    "connection: close\r\n\r\n",
    r#"{"errors":[{"code":"UNAVAILABLE","message":"the server has too many open files; try later"}]}"#,
    "\r\n",
);

/// A listener that refuses connections while no file descriptor is left.
#[derive(Debug)]
pub(super) struct Acceptor {
    listener: TcpListener,
    /// Closed to make room for a connection.
    spare: Option<File>,
    /// Whether the clients speak TLS. A handshake is too long for a refusal, so the connection of
    /// such a client is only closed.
    has_tls: bool,
    exhausted: LogLimit,
    failed: LogLimit,
}

impl Acceptor {
    pub(super) fn new(listener: TcpListener, has_tls: bool) -> Self {
        Self {
            listener,
            spare: open_spare(),
            has_tls,
            exhausted: LogLimit::once_a_minute(),
            failed: LogLimit::once_a_minute(),
        }
    }

    /// Waits for the next connection. Neither a lack of file descriptors nor an early disconnect
    /// ends the service.
    pub(super) async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            let error = match self.listener.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => error,
            };
            if is_exhausted(&error) {
                self.refuse_next(&error).await;
                continue;
            }
            if let Some(suppressed) = self.failed.admit() {
                tracing::warn!(%error, suppressed, "accepting a connection failed; retrying");
            }
            sleep(RETRY_AFTER).await;
        }
    }

    /// Accepts a connection in place of the spare file and refuses it.
    async fn refuse_next(&mut self, error: &io::Error) {
        if let Some(suppressed) = self.exhausted.admit() {
            tracing::error!(
                %error, suppressed,
                "no file descriptor left; refusing connections; raise the limit on open files \
                 (ulimit -n, LimitNOFILE=)"
            );
        }
        drop(self.spare.take());
        // Another thread may have taken the descriptor meanwhile.
        match timeout(RETRY_AFTER, self.listener.accept()).await {
            Ok(Ok((stream, _))) => self.refuse(stream).await,
            Ok(Err(_)) | Err(_) => sleep(RETRY_AFTER).await,
        }
        self.spare = open_spare();
    }

    async fn refuse(&self, mut stream: TcpStream) {
        if self.has_tls {
            return;
        }
        let mut request = vec![0; REQUEST_LEN];
        // A response before the request would be a protocol error to some clients.
        let answer = async {
            let _ = stream.read(&mut request).await?;
            stream.write_all(REFUSAL.as_bytes()).await
        };
        if let Ok(Ok(())) = timeout(REFUSAL_TIMEOUT, answer).await {
            close(stream, REFUSAL_TIMEOUT).await;
        }
    }
}

fn open_spare() -> Option<File> {
    File::open("/dev/null").ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_of_the_refusal_is_right() {
        let (head, body) = REFUSAL.split_once("\r\n\r\n").expect("head and body");
        let length = format!("content-length: {}", body.len());
        assert!(head.lines().any(|line| line == length), "{length}");
    }
}
