//! A peer's settings.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use flotilla_common::name::{PeerId, RegionName, ZoneName};
use flotilla_common::seal::TrustedKeys;
use flotilla_common::swarm;
use flotilla_common::units::{BitRate, ByteSize};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::{Identity, LiveKeys};

use crate::mirror::Patience;
use crate::transport::{CongestionControl, Faithful, Outbound};

/// Transfers each way on real links, where a slot also waits for questions and answers; one more
/// than the simulator needs, whose links have no queues: `docs/decisions/transfer-slots.md`.
const SLOTS: u32 = 4;

/// A peer's settings. [`Config::new`] gives the defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// The own name; the certificate's.
    pub id: PeerId,
    /// The own certificate and whom it trusts, which follow their files: for neighbours, and for
    /// origins and trackers over HTTPS.
    pub identity: Identity,
    /// The origin keys whose seals are believed; they follow their file.
    pub trusted_keys: LiveKeys,
    /// Where the container runtime asks. Loopback: whoever reaches it may pull what this machine
    /// may pull. Default
    /// 127.0.0.1:5001.
    pub mirror: SocketAddr,
    /// Where neighbours connect (UDP). Default 0.0.0.0:5002.
    pub quic: SocketAddr,
    /// The address that neighbours are told, if it is not the one bound. An unspecified one is
    /// replaced by the tracker with the address it sees. Default none.
    pub advertised: Option<SocketAddr>,
    /// The origins' URLs, the own region's first.
    pub origins: Vec<String>,
    /// Names of the registries whose images the origins have, as clients write them. Not empty, the
    /// mirror refuses requests that name another one (`?ns=`). Default none: all are taken.
    pub registries: Vec<String>,
    /// The trackers' URLs, in any order, but the same for every peer. Without one, origins serve
    /// alone.
    pub trackers: Vec<String>,
    /// The store's folder; no other peer may use it.
    pub store: PathBuf,
    /// What the blobs in the store may have together. Default 50 GiB.
    pub quota: ByteSize,
    /// Where this peer is.
    pub region: RegionName,
    /// Where this peer is.
    pub zone: ZoneName,
    /// Cap on payload sent to neighbours. Default none.
    pub up: Option<BitRate>,
    /// Cap on payload received from neighbours and origins. Default none.
    pub down: Option<BitRate>,
    /// The congestion controller of connections to neighbours. Default delay-based.
    pub congestion: CongestionControl,
    /// Whether neighbours must show a grant of an origin. The origins then are asked over HTTPS:
    /// they give grants to whom they know by certificate. Default false.
    pub requires_grants: bool,
    /// How long the mirror lets the runtime wait for the swarm.
    pub patience: Patience,
    /// The machine's settings; what follows from the above is filled in.
    pub swarm: swarm::Config,
    /// The seed of the machine's random choices; `None` for one from the operating system.
    pub rng_seed: Option<u64>,
    /// Where the peer reads the time: the system's clock, or a test's.
    pub clock: Clock,
    /// What happens to chunks on their way out: nothing, but in tests.
    pub outbound: Arc<dyn Outbound>,
}

impl Config {
    /// Where the container runtime asks unless something else is said.
    const MIRROR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5001);

    /// The defaults for a peer with this identity, store and origins.
    pub fn new(
        id: PeerId,
        identity: Identity,
        store: PathBuf,
        region: RegionName,
        zone: ZoneName,
        clock: Clock,
    ) -> Self {
        Self {
            id,
            identity,
            trusted_keys: TrustedKeys::none().into(),
            mirror: Self::MIRROR,
            quic: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 5002)),
            advertised: None,
            origins: Vec::new(),
            registries: Vec::new(),
            trackers: Vec::new(),
            store,
            quota: ByteSize(50 << 30),
            region,
            zone,
            up: None,
            down: None,
            congestion: CongestionControl::default(),
            requires_grants: false,
            patience: Patience::default(),
            swarm: swarm::Config {
                slots: SLOTS,
                ..swarm::Config::default()
            },
            rng_seed: None,
            clock,
            outbound: Arc::new(Faithful),
        }
    }

    /// What cannot work, said before anything is started, by the keys of configuration files.
    pub(crate) fn validate(&self) -> Result<(), String> {
        match self.identity.peer_id() {
            Some(named) if named == self.id => {}
            Some(named) => {
                return Err(format!(
                    "tls-cert: it names peer {named}, and this is peer {}; use the same",
                    self.id
                ));
            }
            None => {
                return Err("tls-cert: it names no peer; `flotilla pki issue --peer ID` makes one that does"
                    .to_owned());
            }
        }
        for (key, urls) in [("origin", &self.origins), ("tracker", &self.trackers)] {
            for url in urls {
                check_url(url).map_err(|why| format!("{key}: '{url}' is {why}"))?;
            }
        }
        if let Some(name) = self
            .registries
            .iter()
            .find(|name| name.is_empty() || name.contains("/"))
        {
            return Err(format!(
                "registry: {name:?} is no registry's name; write it as images do, host:port"
            ));
        }
        let plain = self
            .origins
            .iter()
            .find(|url| self.requires_grants && !url.starts_with("https://"));
        if let Some(url) = plain {
            return Err(format!(
                "require-grants: origin {url} cannot know this peer without TLS and gives it no grant; use https://"
            ));
        }
        if self.origins.is_empty() {
            return Err("origin: none is given; give at least one URL, such as https://origin.internal:5000"
                .to_owned());
        }
        Ok(())
    }
}

/// Whether a text is the URL of a service.
///
/// # Errors
/// What such a URL looks like.
pub fn check_url(url: &str) -> Result<(), &'static str> {
    let parsed = reqwest::Url::parse(url).ok();
    match parsed.filter(|url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some())
    {
        Some(_) => Ok(()),
        None => Err(
            "no URL of a service: write scheme, host and port, such as https://origin.internal:5000",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_need_a_scheme_and_a_host() {
        assert!(check_url("http://127.0.0.1:5000").is_ok());
        assert!(check_url("https://origin.internal").is_ok());
        assert!(check_url("origin.internal:5000").is_err());
        assert!(check_url("127.0.0.1:5000").is_err());
        assert!(check_url("ftp://origin").is_err());
    }
}
