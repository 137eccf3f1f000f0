//! Types parsed from text: digests, names, references, sizes, rates, hexadecimal. An accepted value
//! prints as a text that parses to the same value.
#![no_main]

use core::fmt::{Debug, Display};
use core::str::FromStr;

use flotilla_common::digest::{Algorithm, Digest};
use flotilla_common::hex;
use flotilla_common::name::{PeerId, Reference, RegionName, RepositoryName, Tag, ZoneName};
use flotilla_common::units::{BitRate, ByteSize};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = core::str::from_utf8(bytes) else {
        return;
    };
    check_round_trip::<Digest>(text);
    check_round_trip::<RepositoryName>(text);
    check_round_trip::<Tag>(text);
    check_round_trip::<PeerId>(text);
    check_round_trip::<RegionName>(text);
    check_round_trip::<ZoneName>(text);
    check_round_trip::<Reference>(text);
    let _ = text.parse::<Algorithm>();
    // Sizes and rates are rounded when printed, so only the parsing is checked.
    if let Ok(ByteSize(size)) = text.parse() {
        assert!(ByteSize(size).to_string().parse::<ByteSize>().is_ok());
    }
    if let Ok(rate @ BitRate(bits)) = text.parse() {
        assert!(bits > 0 && rate.to_string().parse::<BitRate>().is_ok());
        let _ = rate.time_for(u64::MAX);
    }
    if let Some(bytes) = hex::decode_exact::<8>(text) {
        assert_eq!(hex::encode(&bytes), text);
    }
});

fn check_round_trip<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string().parse::<T>().ok(), Some(value));
    }
}
