//! Debian's `docker-registry` (the distribution project): a third-party upstream.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use super::daemon::{Daemon, free_addresses};

/// A running registry, initially empty.
#[derive(Debug)]
pub(crate) struct DockerRegistry {
    _daemon: Daemon,
    address: SocketAddr,
}

impl DockerRegistry {
    /// Starts it on a free port and waits until it listens.
    ///
    /// # Panics
    /// If it does not start, with its log.
    pub(crate) fn start(docker_registry: &Path) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let [address] = free_addresses();
        let config = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            dir.path().join("data").display(),
        );
        let file = dir.path().join("config.yml");
        fs::write(&file, config).expect("write the registry's configuration");
        let daemon = Daemon::start(docker_registry, &["serve".into(), file], dir);
        daemon.wait_until("the registry listens", || {
            TcpStream::connect(address)
                .map(drop)
                .map_err(|error| error.to_string())
        });
        Self {
            _daemon: daemon,
            address,
        }
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}
