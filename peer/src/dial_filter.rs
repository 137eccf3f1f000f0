//! Which addresses from trackers are dialled. A tracker passes on what peers announce, so without
//! a bound one of them could make all others send packets to any address and port.

use std::net::{IpAddr, SocketAddr};

use flotilla_common::wire::tracker::PeerInfo;
use flotilla_runtime::address_range::AddressRange;
use flotilla_runtime::log_limit::LogLimit;

/// Decides which addresses from trackers are dialled.
#[derive(Debug)]
pub(crate) struct DialFilter {
    /// No ranges: all addresses that a peer can have.
    ranges: Vec<AddressRange>,
    /// Whether this peer is reachable on its own machine only, as in tests and demonstrations.
    is_local: bool,
    refused: LogLimit,
}

impl DialFilter {
    /// A filter for a peer that listens on `quic`.
    pub(crate) const fn new(ranges: Vec<AddressRange>, quic: SocketAddr) -> Self {
        Self {
            ranges,
            is_local: quic.ip().is_loopback(),
            refused: LogLimit::once_a_minute(),
        }
    }

    /// Whether a peer that a tracker named may be dialled. Logs a refusal, at most once a minute.
    pub(crate) fn admits(&self, peer: &PeerInfo) -> bool {
        let reason = match self.check(peer.addr) {
            Ok(()) => return true,
            Err(reason) => reason,
        };
        if let Some(suppressed) = self.refused.admit() {
            tracing::warn!(
                peer = %peer.id, address = %peer.addr, reason, suppressed,
                "a tracker named a peer at an address that is not dialled; ignoring that peer"
            );
        }
        false
    }

    fn check(&self, address: SocketAddr) -> Result<(), &'static str> {
        // An IPv4 address may be written as an IPv6 one.
        let ip = address.ip().to_canonical();
        if address.port() == 0 {
            return Err("port 0");
        }
        let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
        if ip.is_unspecified() || ip.is_multicast() || is_broadcast {
            return Err("not the address of one machine");
        }
        let is_in_range = self.ranges.iter().any(|range| range.contains(ip));
        if ip.is_loopback() && !self.is_local && !is_in_range {
            return Err("a loopback address, but this peer does not listen on one");
        }
        if !self.ranges.is_empty() && !is_in_range {
            return Err("outside of peers-from");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(ranges: &[&str], quic: &str) -> DialFilter {
        let ranges = ranges.iter().map(|range| range.parse().expect("a range"));
        DialFilter::new(ranges.collect(), quic.parse().expect("an address"))
    }

    fn is_dialled(filter: &DialFilter, address: &str) -> bool {
        filter.check(address.parse().expect("an address")).is_ok()
    }

    #[test]
    fn addresses_of_no_peer_are_refused() {
        for quic in ["0.0.0.0:5002", "127.0.0.1:5002"] {
            let filter = filter(&[], quic);
            for address in [
                "10.0.0.1:0",
                "0.0.0.0:5002",
                "224.0.0.1:5002",
                "255.255.255.255:5002",
                "[::]:5002",
                "[ff02::1]:5002",
                "[::ffff:224.0.0.1]:5002",
            ] {
                assert!(!is_dialled(&filter, address), "{quic}: {address}");
            }
            assert!(is_dialled(&filter, "10.0.0.1:5002"));
            assert!(is_dialled(&filter, "[fd00::1]:5002"));
        }
    }

    #[test]
    fn loopback_is_dialled_only_from_loopback_or_by_configuration() {
        for address in ["127.0.0.1:5002", "[::1]:5002", "[::ffff:127.0.0.1]:5002"] {
            assert!(!is_dialled(&filter(&[], "0.0.0.0:5002"), address));
            assert!(!is_dialled(
                &filter(&["10.0.0.0/8"], "10.0.0.1:5002"),
                address
            ));
            assert!(is_dialled(&filter(&[], "127.0.0.1:5002"), address));
            assert!(is_dialled(
                &filter(&["127.0.0.0/8", "::1"], "0.0.0.0:5002"),
                address
            ));
        }
    }

    #[test]
    fn addresses_outside_of_the_ranges_are_refused() {
        let filter = filter(&["10.1.0.0/16", "fd00::/8"], "0.0.0.0:5002");
        for (address, is_in_range) in [
            ("10.1.2.3:53", true),
            ("[::ffff:10.1.2.3]:53", true),
            ("10.2.0.1:5002", false),
            ("[fd12::1]:5002", true),
            ("[fe80::1]:5002", false),
        ] {
            assert_eq!(is_dialled(&filter, address), is_in_range, "{address}");
        }
    }
}
