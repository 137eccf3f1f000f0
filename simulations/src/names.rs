//! The names of peers and trackers in messages between them.

use core::fmt::Debug;
use core::net::{Ipv4Addr, SocketAddr};
use core::str::FromStr;

use flotilla_common::name::RegionName;
use flotilla_common::tracker::TrackerUrl;
use flotilla_common::wire::tracker::PeerInfo;

use crate::peer::Location;

/// A peer's name and address. The address is the peer's number.
pub(crate) fn peer_info(peer: u32, location: Location) -> PeerInfo {
    PeerInfo {
        id: label(format!("peer-{peer}")),
        addr: SocketAddr::from((Ipv4Addr::from_bits(peer), 0)),
        region: region_name(location.region),
        zone: label(format!("zone-{}", location.zone)),
    }
}

/// A tracker's name and region. Messages are simulated, so nothing looks at its address.
pub(crate) fn tracker_url(number: u32, region: Option<u32>) -> TrackerUrl {
    TrackerUrl {
        region: region.map(region_name),
        url: format!("http://tracker-{number}"),
    }
}

fn region_name(region: u32) -> RegionName {
    label(format!("region-{region}"))
}

/// The number of the peer with this address.
pub(crate) fn peer_number(info: &PeerInfo) -> Option<u32> {
    match info.addr {
        SocketAddr::V4(addr) => Some(addr.ip().to_bits()),
        SocketAddr::V6(_) => None,
    }
}

fn label<T: FromStr<Err: Debug>>(text: String) -> T {
    text.parse().expect("a word and a number are a valid label")
}
