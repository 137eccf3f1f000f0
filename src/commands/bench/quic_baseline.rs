//! The throughput of QUIC alone: one stream between two endpoints, from memory to memory, with the
//! peers' socket and transport settings and certificates, without hashing and disk access.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_common::name::PeerId;
use flotilla_peer::{QuicSettings, quic_endpoint};
use flotilla_runtime::identity::{Identity, peer_name};
use tokio::runtime::Builder;

use crate::command::CommandError;
use crate::fleet::Fleet;
use crate::region::ANY_PORT;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Sends `bytes` over one stream and returns the time from the dial to the last byte. Both ends
/// have a tokio runtime of their own, as two processes would. Blocks.
pub(super) fn measure(bytes: Vec<Bytes>) -> Result<Duration, CommandError> {
    try_measure(bytes).map_err(|error| CommandError::failed("send a bare QUIC stream", error))
}

fn try_measure(bytes: Vec<Bytes>) -> Result<Duration, BoxError> {
    let fleet = Fleet::create("bench".parse()?)?;
    let id: PeerId = "sender".parse()?;
    let sender = fleet.peer(&id)?;
    let receiver = fleet.peer(&"receiver".parse()?)?;
    let total: u64 = bytes.iter().map(|buffer| buffer.len() as u64).sum();
    let (address_sender, address) = mpsc::channel();
    std::thread::scope(|scope| {
        let sending = scope.spawn(move || runtime()?.block_on(send(sender, bytes, address_sender)));
        let receiving = scope.spawn(move || {
            let address = address.recv()?;
            runtime()?.block_on(receive(receiver, &id, address, total))
        });
        let received = receiving
            .join()
            .unwrap_or_else(|_| Err("the receiver panicked".into()));
        let sent = sending
            .join()
            .unwrap_or_else(|_| Err("the sender panicked".into()));
        sent.and(received)
    })
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    Builder::new_multi_thread().enable_all().build()
}

async fn send(
    identity: Identity,
    bytes: Vec<Bytes>,
    address: mpsc::Sender<SocketAddr>,
) -> Result<(), BoxError> {
    let endpoint = quic_endpoint(ANY_PORT, &identity, QuicSettings::default())?;
    address.send(endpoint.local_addr()?)?;
    let connection = endpoint
        .accept()
        .await
        .ok_or("the endpoint is closed")?
        .await?;
    let (mut send, _receive) = connection.accept_bi().await?;
    for buffer in bytes {
        send.write_chunk(buffer).await?;
    }
    send.finish()?;
    connection.closed().await;
    endpoint.wait_idle().await;
    Ok(())
}

async fn receive(
    identity: Identity,
    sender: &PeerId,
    address: SocketAddr,
    total: u64,
) -> Result<Duration, BoxError> {
    let endpoint = quic_endpoint(ANY_PORT, &identity, QuicSettings::default())?;
    let started = Instant::now();
    let connection = endpoint.connect(address, &peer_name(sender))?.await?;
    let (mut send, mut receive) = connection.open_bi().await?;
    send.finish()?;
    let mut received = 0;
    while let Some(chunk) = receive.read_chunk(usize::MAX, true).await? {
        received += chunk.bytes.len() as u64;
    }
    let elapsed = started.elapsed();
    connection.close(0_u32.into(), b"done");
    endpoint.wait_idle().await;
    if received == total {
        Ok(elapsed)
    } else {
        Err(format!("received {received} of {total} bytes").into())
    }
}
