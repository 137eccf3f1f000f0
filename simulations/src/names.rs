//! The names of peers and layers in messages to the tracker.

use core::fmt::Debug;
use core::net::{Ipv4Addr, SocketAddr};
use core::str::FromStr;

use flotilla_common::digest::Digest;
use flotilla_common::wire::tracker::PeerInfo;

use crate::peer::Location;
use crate::scenario::Scenario;

/// The digests of the layers, by slot.
pub(crate) fn layer_digests(scenario: &Scenario) -> Vec<Digest> {
    (0..scenario.image.layers.len())
        .map(|layer| Digest::sha256(&layer.to_be_bytes()))
        .collect()
}

/// A peer's name and address. The address is the peer's number.
pub(crate) fn peer_info(peer: u32, location: Location) -> PeerInfo {
    PeerInfo {
        id: label(format!("peer-{peer}")),
        addr: SocketAddr::from((Ipv4Addr::from_bits(peer), 0)),
        region: label(format!("region-{}", location.region)),
        zone: label(format!("zone-{}", location.zone)),
    }
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
