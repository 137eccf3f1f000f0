//! Everything that is parsed from text: digests, names, references, sizes, rates, hexadecimal. What
//! is accepted prints as something that is accepted again, as the same.
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
    prints_as_itself::<Digest>(text);
    prints_as_itself::<RepositoryName>(text);
    prints_as_itself::<Tag>(text);
    prints_as_itself::<PeerId>(text);
    prints_as_itself::<RegionName>(text);
    prints_as_itself::<ZoneName>(text);
    prints_as_itself::<Reference>(text);
    let _ = text.parse::<Algorithm>();
    // These are printed in round numbers.
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

fn prints_as_itself<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string().parse::<T>().ok(), Some(value));
    }
}
