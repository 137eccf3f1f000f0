//! The settings of a peer.

use core::str::FromStr;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use flotilla_common::failover::FailoverConfig;
use flotilla_common::name::{PeerId, RegionName, ZoneName};
use flotilla_common::opening::FallbackTimeouts;
use flotilla_common::seal::TrustedKeys;
use flotilla_common::swarm::SwarmConfig;
use flotilla_common::tracker::TrackerUrl;
use flotilla_common::units::{BitRate, ByteSize};
use flotilla_runtime::address_range::AddressRange;
use flotilla_runtime::admin::AdminSettings;
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::{Identity, LiveKeys};

use crate::transport::{ChunkInterceptor, CongestionControl, Unaltered};

/// The default address of the mirror.
const MIRROR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5001);
/// The default address for QUIC.
const QUIC: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 5002);
/// The default quota of the store.
const QUOTA: ByteSize = ByteSize(50 << 30);

/// The settings of a peer. [`Config::new`] gives the defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// The peer's name, which its certificate must name too.
    pub id: PeerId,
    /// The peer's certificate and the authority it trusts: for neighbours, and for origins and
    /// trackers over HTTPS. Reloaded when the files change.
    pub identity: Identity,
    /// The origin keys whose seals are trusted. Reloaded when the file changes.
    pub trusted_keys: LiveKeys,
    /// The address of the mirror. Use loopback: every client that reaches the mirror can pull what
    /// this machine can pull. Default 127.0.0.1:5001.
    pub mirror: SocketAddr,
    /// The listener for operators. Default a free port on loopback.
    pub admin: AdminSettings,
    /// The UDP address for neighbours. Default 0.0.0.0:5002.
    pub quic: SocketAddr,
    /// The address that neighbours dial, if it differs from the bound one. The tracker replaces an
    /// unspecified IP address with the source address it sees. Default none.
    pub advertised: Option<SocketAddr>,
    /// The origins. Those of the peer's own region are preferred, then those of the region that is
    /// named first. Several origins of one region are replicas; the first one is preferred.
    pub origins: Vec<OriginUrl>,
    /// The registries whose images the origins have, written as in image names. If the list is not
    /// empty, the mirror refuses requests for other registries (`?ns=`). Default empty.
    pub registries: Vec<String>,
    /// The trackers: for each region, the same for every peer, in any order. Those of the peer's own
    /// region are used; those of other regions only while none of the own ones answers, the region
    /// that is named first before the others. Without a tracker, blobs come from origins only.
    pub trackers: Vec<TrackerUrl>,
    /// The addresses at which other peers are dialled when a tracker names them. A peer that dials
    /// this one may have any address; its certificate decides. Empty: any address that a peer can
    /// have. Loopback addresses are dialled only if `quic` is one or a range has them. Default
    /// empty.
    pub peers_from: Vec<AddressRange>,
    /// The store's directory, which no other peer may use.
    pub store: PathBuf,
    /// The maximum total size of the blobs in the store. Default 50 GiB.
    pub quota: ByteSize,
    /// The region of this peer.
    pub region: RegionName,
    /// The zone of this peer.
    pub zone: ZoneName,
    /// Rate limit for payload sent to neighbours. Default none.
    pub up: Option<BitRate>,
    /// Rate limit for payload received from neighbours and origins. Default none.
    pub down: Option<BitRate>,
    /// The congestion controller of connections to neighbours. Default delay-based.
    pub congestion: CongestionControl,
    /// Whether neighbours must present a grant that an origin signed. The origins must then be
    /// asked over HTTPS, because they issue grants by client certificate. Default false.
    pub requires_grants: bool,
    /// When a blob's reader falls back from the swarm to an origin.
    pub fallback_timeouts: FallbackTimeouts,
    /// The settings of the swarm's state machine. Rates and key are filled in from the other
    /// fields.
    pub swarm: SwarmConfig,
    /// When origins are suspected, left out and used again.
    pub failover: FailoverConfig,
    /// Seed for the random choices of the state machine; `None` takes one from the operating
    /// system.
    pub rng_seed: Option<u64>,
    /// The folder for recordings of the state machines' inputs and outputs, a diagnostic
    /// ([`flotilla_common::recording`]). Default none.
    pub record: Option<PathBuf>,
    /// Where the peer reads the time: the system's clock, or a test's.
    pub clock: Clock,
    /// Sends chunks to neighbours. Tests replace it to corrupt chunks.
    pub interceptor: Arc<dyn ChunkInterceptor>,
}

impl Config {
    /// The defaults for a peer with this identity and store.
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
            mirror: MIRROR,
            admin: AdminSettings::default(),
            quic: QUIC,
            advertised: None,
            origins: Vec::new(),
            registries: Vec::new(),
            trackers: Vec::new(),
            peers_from: Vec::new(),
            store,
            quota: QUOTA,
            region,
            zone,
            up: None,
            down: None,
            congestion: CongestionControl::default(),
            requires_grants: false,
            fallback_timeouts: FallbackTimeouts::default(),
            swarm: SwarmConfig::default(),
            failover: FailoverConfig::of_peers(),
            rng_seed: None,
            record: None,
            clock,
            interceptor: Arc::new(Unaltered),
        }
    }

    /// Checks the settings before anything is started. Errors name the configuration key and the
    /// fix.
    pub(crate) fn validate(&self) -> Result<(), String> {
        match self.identity.peer_id() {
            Some(named) if named == self.id => {}
            Some(named) => {
                return Err(format!(
                    "tls-cert: the certificate is for peer {named}, but this is peer {}; \
                     use the same id",
                    self.id
                ));
            }
            None => {
                return Err("tls-cert: the certificate names no peer; create one with \
                            `flotilla pki issue --peer ID`"
                    .to_owned());
            }
        }
        let admin = self.admin.check(true);
        admin.map_err(|error| error.to_string())?;
        let origins = self.origins.iter().map(|origin| ("origin", &origin.url));
        let trackers = self.trackers.iter().map(|it| ("tracker", &it.url));
        for (key, url) in origins.chain(trackers) {
            check_url(url).map_err(|error| format!("{key}: '{url}': {error}"))?;
        }
        self.check_repeated_trackers()?;
        let invalid = |name: &&String| name.is_empty() || name.contains('/');
        if let Some(name) = self.registries.iter().find(invalid) {
            return Err(format!(
                "registry: {name:?} is not a registry name; write it as in image names, host:port"
            ));
        }
        let mut urls = self.origins.iter().map(|origin| &origin.url);
        if self.requires_grants
            && let Some(url) = urls.find(|url| !url.starts_with("https://"))
        {
            return Err(format!(
                "require-grants: without TLS, origin {url} cannot identify this peer and issues \
                 no grants; use https://"
            ));
        }
        if self.origins.is_empty() {
            return Err("origin: missing; give at least one URL, such as \
                        https://origin.internal:5000"
                .to_owned());
        }
        Ok(())
    }

    /// Rendezvous hashing is over URLs: a tracker that is named twice is not twice as good.
    fn check_repeated_trackers(&self) -> Result<(), String> {
        for (number, tracker) in self.trackers.iter().enumerate() {
            let url = base_url(&tracker.url);
            let mut before = self.trackers[..number].iter();
            let Some(first) = before.find(|it| base_url(&it.url) == url) else {
                continue;
            };
            let region = |it: &TrackerUrl| it.region.clone().unwrap_or(self.region.clone());
            let (one, other) = (region(first), region(tracker));
            return Err(if one == other {
                format!("tracker: '{url}' is named twice; remove one of the two")
            } else {
                format!(
                    "tracker: '{url}' is named in the regions {one} and {other}; keep the one that \
                     it is in"
                )
            });
        }
        Ok(())
    }
}

/// A URL without slashes at the end.
pub(crate) fn base_url(url: &str) -> &str {
    url.trim_end_matches('/')
}

/// The URL of an origin, and its region. As text: `URL`, or `REGION=URL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginUrl {
    /// Its region; `None` for the peer's own.
    pub region: Option<RegionName>,
    /// Its URL: scheme, host and, optionally, port.
    pub url: String,
}

impl OriginUrl {
    /// An origin in the peer's own region. The URL is checked when the peer starts.
    pub const fn in_own_region(url: String) -> Self {
        Self { region: None, url }
    }
}

impl FromStr for OriginUrl {
    type Err = String;

    /// Fails if the region is not a valid name, or the URL is not one; see [`check_url`].
    fn from_str(text: &str) -> Result<Self, String> {
        let (region, url) = parse_region_and_url(text)?;
        Ok(Self { region, url })
    }
}

/// Parses a tracker: `URL`, or `REGION=URL`.
///
/// # Errors
/// The region is not a valid name, or the URL is not one; see [`check_url`].
pub fn parse_tracker(text: &str) -> Result<TrackerUrl, String> {
    let (region, url) = parse_region_and_url(text)?;
    Ok(TrackerUrl { region, url })
}

fn parse_region_and_url(text: &str) -> Result<(Option<RegionName>, String), String> {
    let scheme_end = text.find("://").unwrap_or(text.len());
    let (region, url) = match text.split_once('=') {
        Some((region, url)) if region.len() < scheme_end => (Some(region), url),
        _ => (None, text),
    };
    let region = region.map(|region| {
        region.parse().map_err(|error| {
            format!("'{region}' is not a valid region: {error}; write REGION=URL or URL")
        })
    });
    check_url(url)?;
    Ok((region.transpose()?, url.to_owned()))
}

/// Checks that a text is the URL of an HTTP service: scheme, host and, optionally, port.
///
/// # Errors
/// The mistake, and an example of a valid URL.
pub fn check_url(url: &str) -> Result<(), &'static str> {
    let parsed = reqwest::Url::parse(url).ok();
    match parsed.filter(|url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some())
    {
        Some(_) => Ok(()),
        None => {
            Err("invalid URL; write scheme, host and port, such as https://origin.internal:5000")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origin_may_name_its_region() {
        let parse = |text: &str| text.parse::<OriginUrl>();
        let own = parse("https://origin.eu:5000").expect("a URL");
        assert_eq!(
            own,
            OriginUrl::in_own_region("https://origin.eu:5000".to_owned())
        );
        let other = parse("us-1=https://origin.us:5000").expect("a region and a URL");
        assert_eq!(other.region.expect("it is named").as_str(), "us-1");
        assert_eq!(other.url, "https://origin.us:5000");
        let query = parse("https://origin.eu/?a=b").expect("a URL");
        assert_eq!(query.region, None);
        assert!(parse("US 1=https://origin.us").is_err());
        assert!(parse("us-1=origin.us:5000").is_err());
    }

    #[test]
    fn tracker_may_name_its_region() {
        let own = parse_tracker("https://tracker.eu:7070").expect("a URL");
        assert_eq!(
            own,
            TrackerUrl::in_own_region("https://tracker.eu:7070".to_owned())
        );
        let other = parse_tracker("us-1=https://tracker.us:7070").expect("a region and a URL");
        assert_eq!(other.region.expect("it is named").as_str(), "us-1");
        assert_eq!(other.url, "https://tracker.us:7070");
        let error = parse_tracker("US 1=https://tracker.us").expect_err("no region");
        assert!(error.ends_with("write REGION=URL or URL"), "{error}");
    }

    #[test]
    fn urls_need_a_scheme_and_a_host() {
        assert!(check_url("http://127.0.0.1:5000").is_ok());
        assert!(check_url("https://origin.internal").is_ok());
        assert!(check_url("origin.internal:5000").is_err());
        assert!(check_url("127.0.0.1:5000").is_err());
        assert!(check_url("ftp://origin").is_err());
    }
}
