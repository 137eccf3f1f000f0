//! A stream of frames from a neighbour, as the transport reads it: header, length check, body.
//! Unknown message kinds are skipped.
#![no_main]

use flotilla_common::wire::frame::{HEADER_LEN, Header, Message};
use flotilla_common::wire::peer::{Chunk, Control};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|stream: &[u8]| {
    read_all::<Control>(stream);
    read_all::<Chunk>(stream);
});

fn read_all<M: Message + PartialEq + core::fmt::Debug>(mut stream: &[u8]) {
    while let Some((header, rest)) = stream.split_first_chunk::<HEADER_LEN>() {
        let Ok(header) = Header::parse(*header) else {
            return;
        };
        let Some((body, rest)) = rest.split_at_checked(header.len) else {
            return;
        };
        if let Ok(Some(message)) = M::decode(header.kind, body) {
            let (kind, body) = message.encode().expect("a decoded message can be encoded");
            assert_eq!(
                M::decode(kind, &body).expect("an encoded message can be decoded"),
                Some(message)
            );
        }
        stream = rest;
    }
}
