//! The listener for operators.

use std::net::{Ipv4Addr, SocketAddr};

use flotilla_common::wire::tracker::{ANNOUNCE_PATH, LEASE_PATH};
use flotilla_runtime::admin::AdminSettings;
use flotilla_runtime::clock::Clock;
use flotilla_runtime::shutdown::Shutdown;
use flotilla_tracker::{Config, Tracker};
use reqwest::StatusCode;
use tokio::net::TcpStream;

use crate::harness::{Peer, Region, config};

#[tokio::test]
async fn public_port_serves_peers_and_health_only() {
    let region = Region::start(config()).await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(region.get_public(path).await.0, StatusCode::OK, "{path}");
        assert_eq!(region.get(path).await, region.get_public(path).await);
    }
    for path in ["/metrics", "/admin/swarms"] {
        assert_eq!(region.get(path).await.0, StatusCode::OK, "{path}");
        let public = region.get_public(path).await.0;
        assert_eq!(public, StatusCode::NOT_FOUND, "{path}");
    }
    let operator = Peer::new("peer", "a", region.tracker.admin_addr());
    for path in [ANNOUNCE_PATH, LEASE_PATH] {
        let (status, _) = operator.post(path, Vec::new()).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
    }
    let admin = region.tracker.admin_addr();
    assert!(admin.ip().is_loopback(), "{admin}");
    region.stop().await;
    assert!(TcpStream::connect(admin).await.is_err());
}

#[tokio::test]
async fn exposed_listener_for_operators_is_a_start_error() {
    let exposed = AdminSettings {
        listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        ..AdminSettings::default()
    };
    let start = async |admin: AdminSettings| {
        let config = Config { admin, ..config() };
        let shutdown = Shutdown::new();
        let started = Tracker::start(config, None, Clock::system(), &shutdown).await;
        started.map(|_| shutdown).map_err(|error| error.to_string())
    };
    let error = start(exposed.clone()).await.unwrap_err();
    assert!(error.contains("admin-listen 0.0.0.0:0"), "{error}");
    assert!(error.contains("set admin-open"), "{error}");
    let open = AdminSettings {
        open: true,
        ..exposed
    };
    start(open).await.unwrap().trigger();
}
