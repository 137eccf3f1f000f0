//! The listener for messages of other replicas.
//!
//! Other replicas conclude from a refused connection that this one serves no clients. So the
//! listener opens before the one for clients, and stays open until the last client was served.

use core::time::Duration;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use async_trait::async_trait;
use flotilla_runtime::http::serve;
use flotilla_runtime::shutdown::Shutdown;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::http::{Api, all_regions};
use crate::origin::StartError;
use crate::replicas::{self, Changed, Invalidator};

/// For messages in progress when the listener is closed.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the storage may take to answer another replica's question whether this one reaches it.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// A listener that serves messages of other replicas. If it is dropped, it closes at once.
#[derive(Debug)]
pub(crate) struct ReplicaPort {
    address: SocketAddr,
    shutdown: Shutdown,
    /// Keeps the port open even if the task that serves it fails: otherwise a refused connection
    /// would not prove that no client is served.
    _held: OwnedFd,
}

impl ReplicaPort {
    /// Listens at `address`.
    ///
    /// # Errors
    /// [`StartError::Listen`].
    pub(crate) async fn open(
        address: SocketAddr,
        api: &Arc<Api>,
        invalidator: &Arc<Invalidator>,
    ) -> Result<Self, StartError> {
        let listen_error = |source| StartError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen_error)?;
        let held = listener.as_fd().try_clone_to_owned();
        let held = held.map_err(listen_error)?;
        let receiver = Arc::clone(api);
        let router = replicas::router(Arc::clone(invalidator), receiver);
        let shutdown = Shutdown::new();
        let server = serve(listener, router, None, &shutdown).map_err(listen_error)?;
        Ok(Self {
            address: server.address(),
            shutdown,
            _held: held,
        })
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes it, after the last client has been served.
    pub(crate) async fn close(self) {
        self.shutdown.drain(DRAIN_TIMEOUT).await;
    }
}

impl Drop for ReplicaPort {
    fn drop(&mut self) {
        self.shutdown.abandon();
    }
}

#[async_trait]
impl replicas::Receiver for Api {
    fn invalidate(&self, changed: Changed) {
        if let Some(regional) = &self.regional {
            regional.told(&changed);
        }
        self.registry.invalidate(changed);
    }

    async fn reaches_storage(&self) -> bool {
        let probe = || self.registry.probe_storage();
        let Some(regional) = all_regions(self) else {
            return self.storage_health.check(probe).await.is_ok();
        };
        // Whether requests go to another region depends on the answer, so it comes soon, and says
        // whether this replica uses the storage fully.
        if regional.routes().is_own_out() {
            return false;
        }
        let failed = match timeout(PROBE_TIMEOUT, probe()).await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {PROBE_TIMEOUT:?}"),
        };
        regional.own_failed(failed);
        false
    }
}
