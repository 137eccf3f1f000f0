//! Serving HTTP/1.1 and HTTP/2 over TCP or TLS, with a drain that finishes what is in flight.
//!
//! What this adds to hyper:
//! - a handler sees who asks: [`ClientIdentity`] and `ConnectInfo<SocketAddr>` are in the request's
//!   extensions;
//! - everything is bounded: connections, the waits for a request's head, for the client to take its
//!   response and for the TLS handshake, the drain;
//! - a body of files can leave without passing through this process: [`FileSender`];
//! - what is in memory can be answered before the router ([`Responder`]), on threads that share
//!   nothing ([`Workers`]);
//! - **a connection of HTTP/1.1 always ends with FIN**, never with a reset as long as the client
//!   behaves. A client such as containerd resumes a body that was cut short by FIN and fails the
//!   whole pull on a reset, and the kernel resets a socket that is closed while it holds unread
//!   bytes. So the end of a connection is: send what the handler yielded, close the sending side,
//!   read and discard until the client closes its own, for a bounded time.
//!
//! ```text
//! body ends in an error:   ... bytes | FIN ->            <- FIN | closed        (HTTP/2: its stream is reset)
//! shutdown triggered:      listener closed, idle connections FIN, the others after their response (HTTP/2: GOAWAY)
//! ```
//!
//! It must never buffer a body.

mod flush_before_abort;
mod h2_stall;
mod header_timer;
mod http2;
pub mod range;
mod responder;
mod sendfile;
mod workers;
mod write_timeout;

use std::convert::Infallible;
use std::future::{pending, ready};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ::http::{Request, Response, Version};
use axum::body::Body;
use axum::extract::ConnectInfo;
use flotilla_common::name::PeerId;
use futures_util::future::Either;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower_service::Service;

pub use responder::Responder;
pub use sendfile::FileSender;
pub use workers::Workers;

use crate::identity;
use crate::shutdown::Shutdown;
use crate::wake_filter::WakeFilter;
use flush_before_abort::FlushBeforeAbort;
use h2_stall::PacedBody;
use header_timer::HeaderTimer;
use sendfile::SendfileStream;
use write_timeout::WriteTimeout;

/// Who the client is, by its verified certificate: in the extensions of every request.
///
/// `None` without TLS, without a client certificate, and for a certificate that names no peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientIdentity(pub Option<PeerId>);

/// Bytes of a connection's buffer each way; a request's head has to fit.
const BUFFER_LEN: usize = 64 << 10;
/// Encrypted bytes that wait for a client to take them: two records.
const ENCRYPTED_LEN: usize = 32 << 10;

/// Connections that the kernel keeps until they are accepted, as far as it lets us
/// (`net.core.somaxconn`). The standard library asks for 128: when a fleet starts all at once, the
/// rest would try again after a second, or think that they are connected and wait for an answer.
const BACKLOG: i32 = 4096;

/// The request came on a connection beyond [`ListenerLimits::connections`]: in its extensions. Whoever sees
/// it refuses what can wait, and ends the connection with its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverLimit;

/// The bounds of a listener.
#[derive(Clone, Debug)]
pub struct ListenerLimits {
    /// Connections at once. Default 8192.
    pub connections: usize,
    /// Connections beyond, whose requests are [`OverLimit`]; more wait in the kernel's backlog.
    /// Default none.
    pub reserve: usize,
    /// For a whole request head, and for the next request of an idle connection. Default 120 s,
    /// more than common clients keep an idle connection, so that the client is the one to close it.
    pub head_timeout: Duration,
    /// For a TLS handshake. Default 10 s.
    pub handshake_timeout: Duration,
    /// For the client to take any byte of its response. Default 300 s: containerd parks responses
    /// while it reads others.
    pub write_timeout: Duration,
    /// For what is in flight when the shutdown starts. Default 20 s.
    pub drain_timeout: Duration,
    /// For the client to close its side after we closed ours. Default 1 s.
    pub linger_timeout: Duration,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        Self {
            connections: 8192,
            reserve: 0,
            head_timeout: Duration::from_secs(120),
            handshake_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(300),
            drain_timeout: Duration::from_secs(20),
            linger_timeout: Duration::from_secs(1),
        }
    }
}

/// How many connections a listener has open. Clones count the same ones.
#[derive(Clone, Debug)]
pub struct Connections {
    permits: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    bound: usize,
}

impl Connections {
    /// Those that are open now, or are accepted in this moment.
    pub fn open(&self) -> u64 {
        let free = self.permits.available_permits() + self.reserve.available_permits();
        self.bound.saturating_sub(free) as u64
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
    /// The address that was bound, with the port that the kernel chose for port 0.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its connections, to be counted.
    pub fn connections(&self) -> Connections {
        self.connections.clone()
    }

    /// Waits until the shutdown has come and every connection has ended.
    pub async fn finished(self) {
        if let Err(error) = self.accepting.await {
            tracing::error!(%error, "serve HTTP");
        }
    }
}

/// Serves what `responder` answers on `listener` until `shutdown`, with the default [`ListenerLimits`].
/// With `tls`, HTTPS only.
///
/// The work is spawned through `shutdown`, whose `drain` waits for it.
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

/// [`serve`] with other bounds.
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
    // No half-close: a client that hangs up is noticed while its response still waits for bytes.
    http.header_read_timeout(limits.head_timeout);
    // Pieces of bodies reach the stream as they are: `files` knows its own among them by their
    // address.
    http.writev(true);
    // An upload that waits for its turn has as much in memory.
    http.max_buf_size(BUFFER_LEN);
    let connections = Connections {
        permits: Arc::new(Semaphore::new(limits.connections)),
        reserve: Arc::new(Semaphore::new(limits.reserve)),
        bound: limits.connections + limits.reserve,
    };
    let service = Arc::new(HttpService {
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

/// A connection's place among those that there may be.
struct Place {
    _permit: OwnedSemaphorePermit,
    is_crowded: bool,
}

struct HttpService {
    http: http1::Builder,
    responder: Responder,
    tls: Option<TlsAcceptor>,
    connections: Connections,
    limits: ListenerLimits,
    shutdown: Shutdown,
}

/// What handlers are told of a connection.
struct Told {
    client: SocketAddr,
    identity: ClientIdentity,
    files: Option<FileSender>,
    is_crowded: bool,
}

impl HttpService {
    async fn accept_all(self: Arc<Self>, listener: TcpListener) {
        while let Some((stream, client, place)) = self.accept(&listener).await {
            Arc::clone(&self).start(stream, client, place);
        }
        drop(listener);
        // Each connection ends by its own drain bound.
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

    /// A place for the next connection. In the reserve only while all others are taken.
    async fn place(&self) -> Option<Place> {
        let taken = |permit, is_crowded| {
            Some(Place {
                _permit: permit,
                is_crowded,
            })
        };
        tokio::select! {
            biased;
            permit = Arc::clone(&self.connections.permits).acquire_owned() => taken(permit.ok()?, false),
            permit = Arc::clone(&self.connections.reserve).acquire_owned() => taken(permit.ok()?, true),
        }
    }

    /// The same place, or a better one that became free meanwhile.
    fn or_better(&self, place: Place) -> Place {
        if !place.is_crowded {
            return place;
        }
        let better = Arc::clone(&self.connections.permits).try_acquire_owned();
        better.map_or(place, |permit| Place {
            _permit: permit,
            is_crowded: false,
        })
    }

    /// The next connection; `None` when the shutdown starts.
    async fn accept(&self, listener: &TcpListener) -> Option<(TcpStream, SocketAddr, Place)> {
        let next = async {
            let place = self.place().await?;
            loop {
                match listener.accept().await {
                    Ok((stream, client)) => return Some((stream, client, self.or_better(place))),
                    Err(error) => {
                        // Out of file descriptors, or a client that left at once: neither ends the
                        // service.
                        tracing::warn!(%error, "accept connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        };
        tokio::select! {
            biased;
            () = self.shutdown.wait() => None,
            accepted = next => accepted,
        }
    }

    /// Serves a connection in a task of its own, here or on a worker.
    fn start(self: Arc<Self>, stream: TcpStream, client: SocketAddr, place: Place) {
        let shutdown = self.shutdown.clone();
        let Some(workers) = self.responder.workers.clone() else {
            shutdown.spawn(async move {
                self.connection(stream, client, place.is_crowded).await;
                drop(place);
            });
            return;
        };
        let (runtime, seat) = workers.seat();
        let stream = stream.into_std();
        shutdown.spawn_on(runtime, async move {
            // A socket belongs to the runtime that polls it.
            match stream.and_then(TcpStream::from_std) {
                Ok(stream) => self.connection(stream, client, place.is_crowded).await,
                Err(error) => tracing::warn!(%client, %error, "hand a connection to its thread"),
            }
            drop((seat, place));
        });
    }

    /// What it waits for is in boxes of its own: a task is as large as the largest of all that it
    /// may wait for, several times over where that is handed on, and most connections need the
    /// smallest.
    async fn connection(&self, stream: TcpStream, client: SocketAddr, is_crowded: bool) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%client, %error, "set TCP_NODELAY");
        }
        let mut told = Told {
            client,
            identity: ClientIdentity(None),
            files: None,
            is_crowded,
        };
        let Some(tls) = &self.tls else {
            return Box::pin(self.unencrypted(stream, told)).await;
        };
        match timeout(self.limits.handshake_timeout, Box::pin(tls.accept(stream))).await {
            Ok(Ok(stream)) => {
                let mut stream = Box::new(stream);
                stream.get_mut().1.set_buffer_limit(Some(ENCRYPTED_LEN));
                let session = stream.get_ref().1;
                let certificate = session.peer_certificates().and_then(|chain| chain.first());
                told.identity =
                    ClientIdentity(certificate.and_then(|first| identity::peer_id(first)));
                let is_http2 = session.alpn_protocol() == Some(http2::ALPN);
                let version = if is_http2 {
                    Version::HTTP_2
                } else {
                    Version::HTTP_11
                };
                Box::pin(self.requests(stream, version, told)).await;
            }
            Ok(Err(error)) => tracing::debug!(%client, %error, "accept TLS handshake"),
            Err(_) => tracing::debug!(%client, "TLS handshake timed out"),
        }
    }

    async fn unencrypted(&self, stream: TcpStream, mut told: Told) {
        let is_http2 = tokio::select! {
            begins = timeout(self.limits.head_timeout, http2::begins_with_preface(&stream)) => begins,
            () = self.shutdown.wait() => return Box::pin(close(stream, self.limits.linger_timeout)).await,
        };
        match is_http2 {
            // Its frames are put together from copies: no file can stand in for them.
            Ok(Ok(true)) => self.requests(stream, Version::HTTP_2, told).await,
            Ok(Ok(false)) => {
                let files = FileSender::default();
                told.files = Some(files.clone());
                self.requests(SendfileStream::new(stream, files), Version::HTTP_11, told)
                    .await;
            }
            Ok(Err(error)) => {
                tracing::debug!(client = %told.client, %error, "wait for the first request")
            }
            Err(_) => Box::pin(close(stream, self.limits.linger_timeout)).await,
        }
    }

    /// The requests of a connection, whoever of the two ends it.
    async fn requests<S>(&self, mut stream: S, version: Version, told: Told)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let patience = self.limits.write_timeout;
        let ended = if version == Version::HTTP_2 {
            let respond = service_fn(|request: Request<Incoming>| {
                let response = self.respond(request, &told);
                async move { response.await.map(|response| response.map(PacedBody::new)) }
            });
            let streams = http2::Streams::new(self.shutdown.clone(), patience);
            let io = TokioIo::new(WriteTimeout::new(stream, patience));
            let connection = Box::pin(streams.builder(&self.limits).serve_connection(io, respond));
            let idle = streams.idle(self.limits.head_timeout);
            Box::pin(self.until_drained(
                connection,
                |connection| connection.graceful_shutdown(),
                idle,
            ))
            .await
        } else {
            let respond = service_fn(|request: Request<Incoming>| self.respond(request, &told));
            let mut http = self.http.clone();
            let io = TokioIo::new(WriteTimeout::new(&mut stream, patience));
            let connection = Box::pin(
                http.timer(HeaderTimer::default())
                    .serve_connection(io, respond),
            );
            let ended = Box::pin(self.until_drained(
                connection,
                |connection| connection.graceful_shutdown(),
                pending(),
            ))
            .await;
            Box::pin(close(stream, self.limits.linger_timeout)).await;
            ended
        };
        if let Err(error) = ended {
            tracing::debug!(client = %told.client, %error, "serve connection");
        }
    }

    /// Runs a connection to its end. From the shutdown on, or when it is idle, it takes no new
    /// requests.
    async fn until_drained<C: Future<Output = hyper::Result<()>>>(
        &self,
        mut connection: Pin<Box<C>>,
        take_no_more: impl FnOnce(Pin<&mut C>),
        idle: impl Future<Output = ()>,
    ) -> hyper::Result<()> {
        tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            () = WakeFilter::new(self.shutdown.wait()) => {}
            () = idle => {}
        }
        take_no_more(connection.as_mut());
        timeout(self.limits.drain_timeout, connection)
            .await
            .unwrap_or(Ok(()))
    }

    /// The answer of the shortcut, or else of the router.
    fn respond(
        &self,
        request: Request<Incoming>,
        told: &Told,
    ) -> impl Future<Output = Result<Response<FlushBeforeAbort>, Infallible>> + use<> {
        let (parts, body) = request.into_parts();
        let shortcut = self
            .responder
            .shortcut
            .as_ref()
            .filter(|_| !told.is_crowded);
        if let Some(response) = shortcut.and_then(|shortcut| shortcut(&parts)) {
            return Either::Left(ready(Ok(response.map(FlushBeforeAbort::new))));
        }
        let mut request = Request::from_parts(parts, Body::new(body));
        request.extensions_mut().insert(ConnectInfo(told.client));
        request.extensions_mut().insert(told.identity.clone());
        if told.is_crowded {
            request.extensions_mut().insert(OverLimit);
        }
        if let Some(files) = &told.files {
            request.extensions_mut().insert(files.clone());
        }
        let response = self.responder.router.clone().call(request);
        Either::Right(async move {
            response
                .await
                .map(|response| response.map(FlushBeforeAbort::new))
        })
    }
}

/// Ends a connection with FIN: nothing unread may be left when the socket is closed.
async fn close<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, linger: Duration) {
    let farewell = async {
        stream.shutdown().await?;
        let mut discarded = [0; 8192];
        while stream.read(&mut discarded).await? > 0 {}
        io::Result::Ok(())
    };
    // A client that is gone already, or that does not close in time, has seen all that it will see.
    let _client_closed = timeout(linger, farewell).await;
}

#[cfg(test)]
mod tests;
