//! Settings of the QUIC transport. quinn's defaults are made for the open internet with small
//! flows; peers move megabytes between neighbours in one data centre.

use core::time::Duration;
use std::io;
use std::net::{SocketAddr, UdpSocket};

use flotilla_common::units::BitRate;
use quinn::{
    ConfigError, Connection, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig,
    VarInt,
};

use super::QuicSettings;

/// Bytes in flight on one stream: one chunk of the largest size, so that a transfer never waits for
/// its own window.
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Under a cap on downloads, a stream's window is what the cap lets through in this time: otherwise
/// neighbours would pour whole chunks into our buffers and think them delivered.
const CAPPED_WINDOW_MS: u64 = 20;
const MIN_STREAM_WINDOW_BYTES: u32 = 128 * 1024;
/// Bytes in flight on one connection: one chunk each way is the rule, a hedge and control come on
/// top.
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// What a connection buffers for sending: so many times what it may have in flight, within bounds.
/// What waits there seems sent to us, so more of it makes an upload seem nearly done that has
/// hardly begun.
const SEND_WINDOWS: u64 = 2;
const MIN_SEND_WINDOW_BYTES: u64 = 32 * 1024;
const MAX_SEND_WINDOW_BYTES: u64 = 8 * 1024 * 1024;
/// Chunk requests that a neighbour may have open at once, with those that are refused at once.
const STREAMS: u32 = 32;
/// A silent neighbour is gone after this time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(6);
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Loopback and jumbo frames carry more than an Ethernet packet; the probe finds out what fits. Not
/// more than this: quinn hands ten packets at once to the kernel, which takes 65,507 bytes and
/// refuses all of them if it is more.
const MTU_UPPER_BOUND: u16 = 6_500;
/// Kernel buffers of the one UDP socket that all connections share.
const SOCKET_BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// The transport parameters of a connection, the same for the dialling and the accepting side.
pub(crate) fn transport_config(settings: QuicSettings) -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_UPPER_BOUND);
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(VarInt::from_u32(stream_window(settings.download_limit)))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(MAX_SEND_WINDOW_BYTES)
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .mtu_discovery_config(Some(mtu))
        .congestion_controller_factory(settings.congestion.factory());
    config
}

/// Brings what a connection buffers for sending in line with what it may have in flight now.
pub(super) fn bound_sending(connection: &Connection) {
    let in_flight = connection.stats().path.cwnd;
    let window = in_flight.saturating_mul(SEND_WINDOWS);
    connection.set_send_window(window.clamp(MIN_SEND_WINDOW_BYTES, MAX_SEND_WINDOW_BYTES));
}

/// The settings of the endpoint: the largest packet that others may send here.
pub(crate) fn endpoint_config() -> Result<EndpointConfig, ConfigError> {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(MTU_UPPER_BOUND)?;
    Ok(config)
}

fn stream_window(down: Option<BitRate>) -> u32 {
    let capped = down.map(|rate| rate.0 / 8 * CAPPED_WINDOW_MS / 1000);
    capped
        .and_then(|bytes| u32::try_from(bytes).ok())
        .unwrap_or(STREAM_WINDOW_BYTES)
        .clamp(MIN_STREAM_WINDOW_BYTES, STREAM_WINDOW_BYTES)
}

/// Binds the UDP socket with large kernel buffers, as far as the system allows.
pub(crate) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    // The system may cap or refuse these; slower is no reason not to start.
    if let Err(refused) =
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES).and_then(
            |()| rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES),
        )
    {
        tracing::warn!(error = %refused, "socket buffers stay small");
    }
    Ok(socket)
}
