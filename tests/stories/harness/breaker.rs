//! A way to a service that can be broken: bytes pass in both directions until it is.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// The way, while it stands.
#[derive(Debug)]
pub(crate) struct Breaker {
    address: SocketAddr,
    passing: JoinHandle<()>,
}

impl Breaker {
    /// Opens a way to `to`.
    pub(crate) async fn to(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self {
            address,
            passing: tokio::spawn(pass(listener, to)),
        }
    }

    /// The way's beginning, as a base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Cuts all connections and takes no new one.
    pub(crate) async fn break_off(self) {
        self.passing.abort();
        let _ = self.passing.await;
    }
}

async fn pass(listener: TcpListener, to: SocketAddr) {
    // All of them end with this task.
    let mut connections = JoinSet::new();
    while let Ok((mut near, _)) = listener.accept().await {
        connections.spawn(async move {
            let mut far = TcpStream::connect(to).await?;
            copy_bidirectional(&mut near, &mut far).await
        });
    }
}
