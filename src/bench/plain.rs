//! What QUIC alone carries: one stream between two endpoints in memory, with the peers' own socket
//! and transport settings and certificates. Nothing is hashed, read from disk or written to it.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_common::name::PeerId;
use flotilla_peer::{QuicSettings, quic_endpoint};
use flotilla_runtime::identity::{Identity, peer_name};
use tokio::runtime::Builder;

use crate::cli::CommandError;
use crate::fleet::Fleet;
use crate::region::ANY_PORT;

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Carries `bytes` from one end to the other, each with a runtime of its own as a process has, and
/// says how long that took: from dialling to the last byte.
pub(super) fn carry(bytes: Vec<Bytes>) -> Result<Duration, CommandError> {
    try_carry(bytes).map_err(|error| CommandError::failed("carry a plain stream", error))
}

fn try_carry(bytes: Vec<Bytes>) -> Result<Duration, Failed> {
    let fleet = Fleet::create("plain".parse()?)?;
    let id: PeerId = "sender".parse()?;
    let (sender, receiver) = (fleet.peer(&id)?, fleet.peer(&"receiver".parse()?)?);
    let total: u64 = bytes.iter().map(|piece| piece.len() as u64).sum();
    let (listening, address) = mpsc::channel();
    std::thread::scope(|scope| {
        let sending = scope.spawn(move || runtime()?.block_on(send(sender, bytes, listening)));
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
    listening: mpsc::Sender<SocketAddr>,
) -> Result<(), Failed> {
    let endpoint = quic_endpoint(ANY_PORT, &identity, QuicSettings::default())?;
    listening.send(endpoint.local_addr()?)?;
    let connection = endpoint
        .accept()
        .await
        .ok_or("the endpoint is closed")?
        .await?;
    let (mut send, _receive) = connection.accept_bi().await?;
    for piece in bytes {
        send.write_chunk(piece).await?;
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
) -> Result<Duration, Failed> {
    let endpoint = quic_endpoint(ANY_PORT, &identity, QuicSettings::default())?;
    let started = Instant::now();
    let connection = endpoint.connect(address, &peer_name(sender))?.await?;
    let (mut send, mut receive) = connection.open_bi().await?;
    send.finish()?;
    let mut received = 0;
    while let Some(chunk) = receive.read_chunk(usize::MAX, true).await? {
        received += chunk.bytes.len() as u64;
    }
    let took = started.elapsed();
    connection.close(0_u32.into(), b"done");
    endpoint.wait_idle().await;
    if received == total {
        Ok(took)
    } else {
        Err(format!("{received} bytes came of {total}").into())
    }
}
