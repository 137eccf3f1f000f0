//! Settings of the QUIC transport. quinn's defaults are made for the open internet with small flows; peers
//! move megabytes between neighbours in one data centre.

use core::time::Duration;
use std::io;
use std::net::{SocketAddr, UdpSocket};

use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

/// The protocol's name in the TLS handshake.
pub(crate) const ALPN: &[u8] = b"flotilla/1";

/// Bytes in flight on one stream: one chunk of the largest size, so that a transfer never waits for its
/// own window.
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Bytes in flight on one connection: one chunk each way is the rule, a hedge and control come on top.
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// What a connection buffers for sending.
const SEND_WINDOW_BYTES: u64 = 8 * 1024 * 1024;
/// Chunk requests that a neighbour may have open at once, with those that are refused at once.
const STREAMS: u32 = 32;
/// A silent neighbour is gone after this time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(6);
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Loopback and jumbo frames carry more than an Ethernet packet; the probe finds out what fits.
const MTU_UPPER_BOUND: u16 = 8_900;
/// Kernel buffers of the one UDP socket that all connections share.
const SOCKET_BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// The transport settings of both directions.
pub(crate) fn transport_config() -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_UPPER_BOUND);
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .mtu_discovery_config(Some(mtu));
    config
}

/// Binds the UDP socket with large kernel buffers, as far as the system allows.
pub(crate) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    // The system may cap or refuse these; slower is no reason not to start.
    if let Err(refused) =
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES)
            .and_then(|()| {
                rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES)
            })
    {
        tracing::warn!(error = %refused, "socket buffers stay small");
    }
    Ok(socket)
}
