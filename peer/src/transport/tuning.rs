//! Parameters of the QUIC transport. quinn's defaults suit small flows on the open internet; peers
//! move megabytes between neighbours in one data centre.

use core::time::Duration;
use std::io;
use std::net::{SocketAddr, UdpSocket};

use flotilla_common::congestion::CONNECTION_WINDOW_BYTES;
use flotilla_common::units::BitRate;
use quinn::{
    ConfigError, Connection, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig,
    VarInt,
};

use super::QuicSettings;

/// Flow-control window of a stream: one chunk of the largest size, so that a transfer never waits
/// for it.
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// With a download limit, a stream's window is what the limit admits in this time. Otherwise
/// neighbours would send whole chunks into our buffers and count them as delivered.
const LIMITED_WINDOW_MS: u64 = 20;
const MIN_STREAM_WINDOW_BYTES: u32 = 128 * 1024;
/// The send buffer of a connection is this many congestion windows, within the bounds below. Bytes
/// in the buffer count as sent, so a larger one would report an upload as nearly done that has
/// hardly begun.
const SEND_BUFFER_WINDOWS: u64 = 2;
const MIN_SEND_BUFFER_BYTES: u64 = 32 * 1024;
const MAX_SEND_BUFFER_BYTES: u64 = 8 * 1024 * 1024;
/// Requests that a neighbour may have open, including those about to be refused.
const MAX_STREAMS: u32 = 32;
/// A connection without a packet for this time is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(6);
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Upper bound for MTU discovery: loopback and jumbo frames carry more than an Ethernet packet.
/// quinn hands ten packets at once to the kernel, which rejects more than 65,507 bytes.
const MTU_UPPER_BOUND: u16 = 6_500;
/// Size of each kernel buffer of the UDP socket that all connections share.
const SOCKET_BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// The transport parameters of a connection, the same for the dialling and the accepting side.
pub(crate) fn transport_config(settings: QuicSettings) -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_UPPER_BOUND);
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(VarInt::from_u32(stream_window(settings.download_limit)))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(MAX_SEND_BUFFER_BYTES)
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .mtu_discovery_config(Some(mtu))
        .congestion_controller_factory(settings.congestion.factory());
    config
}

/// Adapts the send buffer of a connection to its current congestion window.
pub(super) fn limit_send_buffer(connection: &Connection) {
    let congestion_window = connection.stats().path.cwnd;
    let bytes = congestion_window.saturating_mul(SEND_BUFFER_WINDOWS);
    connection.set_send_window(bytes.clamp(MIN_SEND_BUFFER_BYTES, MAX_SEND_BUFFER_BYTES));
}

/// The endpoint configuration: the largest packet that neighbours may send.
pub(crate) fn endpoint_config() -> Result<EndpointConfig, ConfigError> {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(MTU_UPPER_BOUND)?;
    Ok(config)
}

fn stream_window(download_limit: Option<BitRate>) -> u32 {
    let limited = download_limit.map(|rate| rate.0 / 8 * LIMITED_WINDOW_MS / 1000);
    limited
        .and_then(|bytes| u32::try_from(bytes).ok())
        .unwrap_or(STREAM_WINDOW_BYTES)
        .clamp(MIN_STREAM_WINDOW_BYTES, STREAM_WINDOW_BYTES)
}

/// Binds the UDP socket, with large kernel buffers if the system allows them.
pub(crate) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    // The system may limit the buffers. The peer starts anyway, since it only is slower.
    if let Err(error) =
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES).and_then(
            |()| rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES),
        )
    {
        tracing::warn!(
            %error,
            bytes = SOCKET_BUFFER_BYTES,
            "enlarging the UDP socket buffers failed; transfers may be slow (see net.core.rmem_max and wmem_max)"
        );
    }
    Ok(socket)
}
