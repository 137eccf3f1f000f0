//! An HTTP/1.1 and HTTP/2 server over TCP or TLS, with a drain that finishes requests in flight.
//!
//! This module adds to hyper:
//! - the client's identity: [`ClientIdentity`] and `ConnectInfo<SocketAddr>` are in the extensions
//!   of each request;
//! - limits: on connections, also on those of clients without a certificate alone, and timeouts for
//!   the request head, the client's reads, the TLS handshake and the drain;
//! - file bodies that the kernel sends without a copy through this process: [`FileSender`];
//! - responses from memory that bypass the router ([`Responder`]), on one thread per core
//!   ([`Workers`]);
//! - **an HTTP/1.1 connection always ends with FIN**, and never with a reset while the client
//!   behaves. containerd resumes a body that FIN cut short, but fails the whole pull on a reset,
//!   and the kernel resets a socket that is closed with unread bytes. A connection therefore ends
//!   like this: send everything that the handler yielded, close the sending side, then read and
//!   discard until the client closes its side or the linger timeout expires.
//!
//! ```text
//! body ends in an error:   ... bytes | FIN ->      <- FIN | closed    (HTTP/2: the stream is reset)
//! shutdown triggered:      listener closed; idle connections get FIN at once, busy ones after
//!                          their response                             (HTTP/2: GOAWAY)
//! ```
//!
//! This module must never buffer a body.

mod accept;
mod client_identity;
mod flush_before_abort;
mod h2_stall;
mod http2;
pub mod range;
mod responder;
mod sendfile;
mod unread_body;
mod workers;
mod write_timeout;

use std::convert::Infallible;
use std::future::{pending, ready};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::http::{Request, Response, Version};
use axum::body::Body;
use axum::extract::ConnectInfo;
use futures_util::future::Either;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower_service::Service;

pub use client_identity::ClientIdentity;
pub use responder::Responder;
pub use sendfile::FileSender;
pub use workers::Workers;

use crate::shutdown::Shutdown;
use accept::Acceptor;
use flush_before_abort::FlushBeforeAbort;
use h2_stall::PacedBody;
use sendfile::SendfileStream;
use unread_body::UnreadBody;
use write_timeout::with_write_timeout;

/// Bytes of a connection's buffer in each direction. A request head must fit.
const BUFFER_LEN: usize = 64 << 10;
/// Encrypted bytes that may wait for the client to read them: two TLS records.
const ENCRYPTED_LEN: usize = 32 << 10;

/// Length of the kernel's queue of connections that are not accepted yet; `net.core.somaxconn`
/// limits it further. The standard library requests 128, which overflows when a fleet starts at
/// once: the other clients retry after a second, or wait on connections that never get a response.
const BACKLOG: i32 = 4096;

/// In the extensions of requests whose connection exceeds [`ListenerLimits::connections`]. Handlers
/// refuse deferrable requests that carry it, and close the connection with the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverLimit;

/// Limits and timeouts of a listener.
#[derive(Clone, Debug)]
pub struct ListenerLimits {
    /// Connections at once. Default 8192.
    pub connections: usize,
    /// Connections beyond `connections`, whose requests carry [`OverLimit`]. Further connections
    /// wait in the kernel's queue. Default 0.
    pub reserve: usize,
    /// With TLS, connections at once of clients that show no certificate of the fleet, as a part of
    /// `connections`. Further ones are closed after the handshake. Default: as many as
    /// `connections`.
    pub anonymous: usize,
    /// Timeout for a whole request head, and for the next request of an idle connection. Default
    /// 120 s, longer than common clients keep idle connections, so that the client closes first.
    pub head_timeout: Duration,
    /// Timeout for a TLS handshake. Default 10 s.
    pub handshake_timeout: Duration,
    /// How long a write may wait for the client to read. Default 300 s, because containerd pauses
    /// responses while it reads others.
    pub write_timeout: Duration,
    /// Timeout for requests in flight when the shutdown starts. Default 20 s.
    pub drain_timeout: Duration,
    /// How long the client may take to close its side after the server closed its own. Default 1 s.
    pub linger_timeout: Duration,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        Self {
            connections: 8192,
            reserve: 0,
            anonymous: usize::MAX,
            head_timeout: Duration::from_secs(120),
            handshake_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(300),
            drain_timeout: Duration::from_secs(20),
            linger_timeout: Duration::from_secs(1),
        }
    }
}

/// Counts the open connections of a listener. Clones share the count.
#[derive(Clone, Debug)]
pub struct Connections {
    permits: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    bound: usize,
    accepted: Arc<AtomicU64>,
}

impl Connections {
    /// Connections that are open, or being accepted.
    pub fn open(&self) -> u64 {
        let free = self.permits.available_permits() + self.reserve.available_permits();
        self.bound.saturating_sub(free) as u64
    }

    /// Connections accepted since the start.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
}

/// A running listener.
#[derive(Debug)]
pub struct HttpServer {
    address: SocketAddr,
    connections: Connections,
    accepting: JoinHandle<Option<()>>,
}

impl HttpServer {
    /// The bound address, with the port that the kernel chose if port 0 was requested.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The counter of its connections.
    pub fn connections(&self) -> Connections {
        self.connections.clone()
    }

    /// Waits until the shutdown was triggered and every connection has ended.
    pub async fn finished(self) {
        if let Err(error) = self.accepting.await {
            tracing::error!(%error, "accepting HTTP connections failed; this listener is closed until a restart");
        }
    }
}

/// Serves `responder` on `listener` until `shutdown`, with the default [`ListenerLimits`]. With
/// `tls`, HTTPS only.
///
/// Tasks are spawned through `shutdown`, whose `drain` waits for them.
///
/// # Errors
/// The listener has no address.
pub fn serve(
    listener: TcpListener,
    responder: impl Into<Responder>,
    tls: Option<Arc<ServerConfig>>,
    shutdown: &Shutdown,
) -> io::Result<HttpServer> {
    serve_with(
        listener,
        responder,
        tls,
        shutdown,
        ListenerLimits::default(),
    )
}

/// [`serve`] with other limits.
///
/// # Errors
/// The listener has no address.
pub fn serve_with(
    listener: TcpListener,
    responder: impl Into<Responder>,
    tls: Option<Arc<ServerConfig>>,
    shutdown: &Shutdown,
    limits: ListenerLimits,
) -> io::Result<HttpServer> {
    let address = listener.local_addr()?;
    rustix::net::listen(&listener, BACKLOG)?;
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new());
    http.header_read_timeout(limits.head_timeout);
    // Half-close stays off, so that a disconnect is noticed while the response waits for bytes.
    http.half_close(false);
    // Body pieces must reach the stream uncopied: `sendfile` recognizes its placeholders by their
    // address.
    http.writev(true);
    // An upload that waits for a permit holds this much memory.
    http.max_buf_size(BUFFER_LEN);
    let connections = Connections {
        permits: Arc::new(Semaphore::new(limits.connections)),
        reserve: Arc::new(Semaphore::new(limits.reserve)),
        bound: limits.connections + limits.reserve,
        accepted: Arc::default(),
    };
    let service = Arc::new(HttpService {
        anonymous: Semaphore::new(limits.anonymous.min(Semaphore::MAX_PERMITS)),
        http,
        responder: responder.into(),
        tls: tls.map(TlsAcceptor::from),
        connections: connections.clone(),
        limits,
        shutdown: shutdown.clone(),
    });
    let accepting = shutdown.spawn(service.accept_all(listener));
    Ok(HttpServer {
        address,
        connections,
        accepting,
    })
}

/// A permit for one connection.
struct ConnectionPermit {
    _permit: OwnedSemaphorePermit,
    is_over_limit: bool,
}

struct HttpService {
    http: http1::Builder,
    responder: Responder,
    tls: Option<TlsAcceptor>,
    connections: Connections,
    /// One permit per TLS connection without an identity.
    anonymous: Semaphore,
    limits: ListenerLimits,
    shutdown: Shutdown,
}

/// The properties of a connection that its handlers see.
struct ConnectionInfo {
    client: SocketAddr,
    identity: ClientIdentity,
    files: Option<FileSender>,
    is_over_limit: bool,
}

impl HttpService {
    async fn accept_all(self: Arc<Self>, listener: TcpListener) {
        let mut acceptor = Acceptor::new(listener, self.tls.is_some());
        while let Some((stream, client, permit)) = self.accept(&mut acceptor).await {
            Arc::clone(&self).start(stream, client, permit);
        }
        drop(acceptor);
        // The drain timeout ends every connection.
        let Connections {
            permits, reserve, ..
        } = &self.connections;
        for (permits, all) in [
            (permits, self.limits.connections),
            (reserve, self.limits.reserve),
        ] {
            let _all_ended = permits
                .acquire_many(u32::try_from(all).unwrap_or(u32::MAX))
                .await;
        }
    }

    /// Waits for a permit; for one of the reserve only while all others are taken.
    async fn acquire_permit(&self) -> Option<ConnectionPermit> {
        let taken = |permit, is_over_limit| {
            Some(ConnectionPermit {
                _permit: permit,
                is_over_limit,
            })
        };
        tokio::select! {
            biased;
            permit = Arc::clone(&self.connections.permits).acquire_owned() => taken(permit.ok()?, false),
            permit = Arc::clone(&self.connections.reserve).acquire_owned() => taken(permit.ok()?, true),
        }
    }

    /// Exchanges a permit of the reserve for a regular one that became free meanwhile.
    fn upgrade(&self, permit: ConnectionPermit) -> ConnectionPermit {
        if !permit.is_over_limit {
            return permit;
        }
        let regular = Arc::clone(&self.connections.permits).try_acquire_owned();
        regular.map_or(permit, |regular| ConnectionPermit {
            _permit: regular,
            is_over_limit: false,
        })
    }

    /// Accepts the next connection; `None` when the shutdown starts.
    async fn accept(
        &self,
        acceptor: &mut Acceptor,
    ) -> Option<(TcpStream, SocketAddr, ConnectionPermit)> {
        let next = async {
            let permit = self.acquire_permit().await?;
            let (stream, client) = acceptor.accept().await;
            self.connections.accepted.fetch_add(1, Ordering::Relaxed);
            Some((stream, client, self.upgrade(permit)))
        };
        tokio::select! {
            biased;
            () = self.shutdown.wait() => None,
            accepted = next => accepted,
        }
    }

    /// Spawns the task that serves a connection, on this runtime or on a worker.
    fn start(self: Arc<Self>, stream: TcpStream, client: SocketAddr, permit: ConnectionPermit) {
        let shutdown = self.shutdown.clone();
        let Some(workers) = self.responder.workers.clone() else {
            shutdown.spawn(async move {
                self.connection(stream, client, permit.is_over_limit).await;
                drop(permit);
            });
            return;
        };
        let (runtime, slot) = workers.least_loaded();
        let stream = stream.into_std();
        shutdown.spawn_on(runtime, async move {
            // The socket must be registered with the runtime that polls it.
            match stream.and_then(TcpStream::from_std) {
                Ok(stream) => self.connection(stream, client, permit.is_over_limit).await,
                Err(error) => tracing::warn!(%client, %error, "moving a connection to its worker thread failed; connection closed"),
            }
            drop((slot, permit));
        });
    }

    /// The awaited futures are boxed: a task is as large as the largest future that it may await,
    /// several times over where futures are passed on, and most connections need the smallest.
    async fn connection(&self, stream: TcpStream, client: SocketAddr, is_over_limit: bool) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%client, %error, "setting TCP_NODELAY failed");
        }
        let mut info = ConnectionInfo {
            client,
            identity: ClientIdentity::default(),
            files: None,
            is_over_limit,
        };
        let Some(tls) = &self.tls else {
            return Box::pin(self.serve_plain(stream, info)).await;
        };
        match timeout(self.limits.handshake_timeout, Box::pin(tls.accept(stream))).await {
            Ok(Ok(stream)) => {
                let mut stream = Box::new(stream);
                stream.get_mut().1.set_buffer_limit(Some(ENCRYPTED_LEN));
                let session = stream.get_ref().1;
                info.identity = ClientIdentity::of(session);
                // Clients without a certificate must not take the connections of members.
                let anonymous = info
                    .identity
                    .0
                    .is_none()
                    .then(|| self.anonymous.try_acquire());
                let Ok(_anonymous) = anonymous.transpose() else {
                    tracing::debug!(%client, "too many connections without a certificate; connection closed");
                    return Box::pin(close(stream, self.limits.linger_timeout)).await;
                };
                let is_http2 = session.alpn_protocol() == Some(http2::ALPN);
                let version = if is_http2 {
                    Version::HTTP_2
                } else {
                    Version::HTTP_11
                };
                Box::pin(self.serve_requests(stream, version, info)).await;
            }
            Ok(Err(error)) => tracing::debug!(%client, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(%client, "TLS handshake timed out"),
        }
    }

    async fn serve_plain(&self, stream: TcpStream, mut info: ConnectionInfo) {
        let is_http2 = tokio::select! {
            detected = timeout(self.limits.head_timeout, http2::detect_preface(&stream)) => detected,
            () = self.shutdown.wait() => return Box::pin(close(stream, self.limits.linger_timeout)).await,
        };
        match is_http2 {
            // hyper copies HTTP/2 bodies into frames, so `sendfile` cannot recognize them.
            Ok(Ok(true)) => self.serve_requests(stream, Version::HTTP_2, info).await,
            Ok(Ok(false)) => {
                let files = FileSender::default();
                info.files = self.responder.has_sendfile.then(|| files.clone());
                self.serve_requests(SendfileStream::new(stream, files), Version::HTTP_11, info)
                    .await;
            }
            Ok(Err(error)) => {
                tracing::debug!(client = %info.client, %error, "connection failed before its first request")
            }
            Err(_) => Box::pin(close(stream, self.limits.linger_timeout)).await,
        }
    }

    /// Serves the requests of a connection until either side ends it.
    async fn serve_requests<S>(&self, mut stream: S, version: Version, info: ConnectionInfo)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let write_timeout = self.limits.write_timeout;
        let certificate_left = self.certificate_left(&info);
        let ended = if version == Version::HTTP_2 {
            let respond = service_fn(|request: Request<Incoming>| {
                let response = self.respond(request, &info);
                async move { response.await.map(|response| response.map(PacedBody::new)) }
            });
            let streams = http2::Streams::new(self.shutdown.clone(), write_timeout);
            let io = TokioIo::new(with_write_timeout(stream, write_timeout));
            let connection = Box::pin(streams.builder(&self.limits).serve_connection(io, respond));
            let idle = streams.wait_until_idle(self.limits.head_timeout);
            Box::pin(self.until_drained(
                connection,
                |connection| connection.graceful_shutdown(),
                idle,
                certificate_left,
            ))
            .await
        } else {
            let respond = service_fn(|request: Request<Incoming>| self.respond(request, &info));
            let io = TokioIo::new(with_write_timeout(&mut stream, write_timeout));
            let connection = Box::pin(self.http.serve_connection(io, respond));
            let ended = Box::pin(self.until_drained(
                connection,
                |connection| connection.graceful_shutdown(),
                pending(),
                certificate_left,
            ))
            .await;
            Box::pin(close(stream, self.limits.linger_timeout)).await;
            ended
        };
        if let Err(error) = ended {
            tracing::debug!(client = %info.client, %error, "connection ended with an error");
        }
    }

    /// How long the client's certificate is still valid; `None` without an identity.
    fn certificate_left(&self, info: &ConnectionInfo) -> Option<Duration> {
        info.identity.valid_for(self.tls.as_ref()?.config())
    }

    /// Runs a connection to its end. Once the shutdown starts, the connection is idle or the
    /// client's certificate has expired, it takes no new requests.
    async fn until_drained<C: Future<Output = hyper::Result<()>>>(
        &self,
        mut connection: Pin<Box<C>>,
        stop_accepting: impl Fn(Pin<&mut C>),
        idle: impl Future<Output = ()>,
        certificate_left: Option<Duration>,
    ) -> hyper::Result<()> {
        let expired = async {
            match certificate_left {
                Some(left) => tokio::time::sleep(left).await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            () = self.shutdown.wait() => {}
            () = idle => {}
            () = expired => {
                stop_accepting(connection.as_mut());
                // A transfer that began in time may take longer than a drain.
                tokio::select! {
                    ended = connection.as_mut() => return ended,
                    () = self.shutdown.wait() => {}
                }
            }
        }
        stop_accepting(connection.as_mut());
        timeout(self.limits.drain_timeout, connection)
            .await
            .unwrap_or(Ok(()))
    }

    /// Responds from the shortcut, or else from the router.
    fn respond(
        &self,
        request: Request<Incoming>,
        info: &ConnectionInfo,
    ) -> impl Future<Output = Result<Response<FlushBeforeAbort>, Infallible>> + use<> {
        let (parts, body) = request.into_parts();
        let shortcut = self
            .responder
            .shortcut
            .as_ref()
            .filter(|_| !info.is_over_limit);
        if let Some(response) = shortcut.and_then(|shortcut| shortcut(&parts)) {
            return Either::Left(ready(Ok(response.map(FlushBeforeAbort::new))));
        }
        // HTTP/2 ends the stream of a request and not its connection.
        let unread = (parts.version < Version::HTTP_2).then(UnreadBody::default);
        let body = match &unread {
            Some(unread) => unread.watch(body),
            None => Body::new(body),
        };
        let mut request = Request::from_parts(parts, body);
        request.extensions_mut().insert(ConnectInfo(info.client));
        let identity = match self.certificate_left(info) {
            Some(left) if !left.is_zero() => info.identity.clone(),
            _ => ClientIdentity::default(),
        };
        request.extensions_mut().insert(identity);
        if info.is_over_limit {
            request.extensions_mut().insert(OverLimit);
        }
        if let Some(files) = &info.files {
            request.extensions_mut().insert(files.clone());
        }
        let response = self.responder.router.clone().call(request);
        Either::Right(async move {
            let mut response = response.await?;
            if let Some(unread) = unread {
                response = unread.finish(response).await;
            }
            Ok(response.map(FlushBeforeAbort::new))
        })
    }
}

/// Closes a connection with FIN. Unread bytes at close would make the kernel send a reset.
async fn close<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, linger: Duration) {
    let closing = async {
        stream.shutdown().await?;
        let mut discarded = [0; 8192];
        while stream.read(&mut discarded).await? > 0 {}
        io::Result::Ok(())
    };
    // A client that is gone, or does not close in time, got everything it will get.
    let _client_closed = timeout(linger, closing).await;
}

#[cfg(test)]
mod tests;
