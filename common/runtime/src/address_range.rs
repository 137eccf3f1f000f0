//! Ranges of IP addresses, as configurations write them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A range of IP addresses. As text: `10.0.0.0/8`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressRange(IpNet);

impl AddressRange {
    /// Whether the range has an address. An IPv4 address may be written as an IPv6 one.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.contains(&ip.to_canonical())
    }
}

impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let net = text
            .parse()
            .or_else(|_| text.parse().map(|ip: IpAddr| ip.into()));
        net.map(Self).map_err(|_| {
            format!(
                "'{text}' is not a valid range of addresses; write ADDRESS/LENGTH, such as \
                 10.0.0.0/8 or fd00::/8"
            )
        })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<String> for AddressRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<AddressRange> for String {
    fn from(range: AddressRange) -> Self {
        range.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_range_is_an_error_with_an_example() {
        for text in ["10.0.0.0/33", "peers", "", "10.0.0.0/8 "] {
            let error = text.parse::<AddressRange>().expect_err("invalid");
            assert!(error.contains("10.0.0.0/8"), "{error}");
        }
        let one: AddressRange = "10.0.0.1".parse().expect("one address");
        assert_eq!(one.to_string(), "10.0.0.1/32");
    }

    #[test]
    fn mapped_address_is_the_one_that_it_maps() {
        let range: AddressRange = "10.1.0.0/16".parse().expect("a range");
        for (address, is_inside) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("10.2.0.1", false),
            ("fd00::1", false),
        ] {
            let address = address.parse().expect("an address");
            assert_eq!(range.contains(address), is_inside, "{address}");
        }
    }
}
