//! Announces and lease requests, and their answers. The first byte selects the message type.
#![no_main]

use flotilla_common::wire::tracker::{
    AnnounceAnswer, AnnounceRequest, LeaseAnswer, LeaseRequest, v1,
};
use flotilla_fuzz::round_trip;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((selector, bytes)) = bytes.split_first() else {
        return;
    };
    match selector % 8 {
        0 => drop(round_trip::<AnnounceRequest>(bytes)),
        1 => drop(round_trip::<AnnounceAnswer>(bytes)),
        2 => drop(round_trip::<LeaseRequest>(bytes)),
        3 => drop(round_trip::<LeaseAnswer>(bytes)),
        4 => drop(round_trip::<v1::AnnounceRequest>(bytes)),
        5 => drop(round_trip::<v1::AnnounceAnswer>(bytes)),
        6 => drop(round_trip::<v1::LeaseRequest>(bytes)),
        _ => drop(round_trip::<v1::LeaseAnswer>(bytes)),
    }
});
