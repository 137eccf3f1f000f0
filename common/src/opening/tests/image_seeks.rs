//! Which neighbours are asked for an image, and for how long.

use super::support::{digest, ms};
use crate::name::PeerId;
use crate::opening::{ImageSeeks, NamedPeer, PeerConnection, SeekConfig, SeekInput, SeekOutput};
use crate::time::Time;

fn peer(number: u32) -> PeerId {
    format!("vm-{number}").parse().unwrap()
}

fn named(number: u32, connection: PeerConnection) -> NamedPeer {
    NamedPeer {
        peer: peer(number),
        connection,
    }
}

fn outputs(seeks: &mut ImageSeeks) -> Vec<SeekOutput> {
    core::iter::from_fn(|| seeks.poll_output()).collect()
}

fn after(seeks: &mut ImageSeeks, now: Time, input: SeekInput) -> Vec<SeekOutput> {
    seeks.handle(now, input);
    outputs(seeks)
}

fn ask(number: u32, manifest: u8) -> SeekOutput {
    SeekOutput::Ask {
        peer: peer(number),
        manifest: digest(manifest),
    }
}

fn seeking(manifest: u8) -> ImageSeeks {
    let mut seeks = ImageSeeks::default();
    let manifest = digest(manifest);
    let started = after(&mut seeks, ms(0), SeekInput::Seek { manifest });
    assert_eq!(started, [SeekOutput::Started { manifest }]);
    seeks
}

#[test]
fn connected_neighbours_are_asked_at_once_and_named_ones_once_connected() {
    let mut seeks = seeking(1);
    let manifest = digest(1);
    let neighbour = |number| SeekInput::Neighbour { peer: peer(number) };
    assert_eq!(after(&mut seeks, ms(0), neighbour(1)), [ask(1, 1)]);
    let peers = vec![
        named(1, PeerConnection::ServesImages),
        named(2, PeerConnection::ServesImages),
        named(3, PeerConnection::None),
        named(4, PeerConnection::LacksImages),
    ];
    let connect = SeekOutput::Connect { peer: peer(3) };
    assert_eq!(
        after(&mut seeks, ms(5), SeekInput::Handout { manifest, peers }),
        [ask(2, 1), connect],
        "no neighbour is asked twice"
    );
    assert_eq!(after(&mut seeks, ms(8), neighbour(3)), [ask(3, 1)]);
    assert_eq!(
        after(&mut seeks, ms(9), SeekInput::Delivered { manifest }),
        [SeekOutput::Found { manifest }]
    );
    assert_eq!(after(&mut seeks, ms(9), neighbour(5)), []);
    assert_eq!(seeks.poll_timeout(), None);
}

#[test]
fn seek_ends_after_its_timeout() {
    let mut seeks = seeking(1);
    let manifest = digest(1);
    assert_eq!(after(&mut seeks, ms(100), SeekInput::Seek { manifest }), []);
    assert_eq!(seeks.poll_timeout(), Some(ms(750)));
    seeks.handle_timeout(ms(749));
    assert_eq!(outputs(&mut seeks), []);
    seeks.handle_timeout(ms(750));
    assert_eq!(outputs(&mut seeks), [SeekOutput::GaveUp { manifest }]);
    assert_eq!(seeks.manifests().count(), 0);
    let delivered = SeekInput::Delivered { manifest };
    assert_eq!(after(&mut seeks, ms(751), delivered), [], "too late");
}

#[test]
fn numbers_of_seeks_and_of_neighbours_are_bounded() {
    let config = SeekConfig::default();
    let mut seeks = ImageSeeks::new(config);
    for name in 0..config.max_seeks as u8 {
        let manifest = digest(name);
        seeks.handle(ms(0), SeekInput::Seek { manifest });
    }
    outputs(&mut seeks);
    let manifest = digest(99);
    assert_eq!(
        after(&mut seeks, ms(0), SeekInput::Seek { manifest }),
        [SeekOutput::GaveUp { manifest }]
    );
    let abandoned = digest(0);
    seeks.handle(
        ms(0),
        SeekInput::Abandon {
            manifest: abandoned,
        },
    );
    assert_eq!(
        after(&mut seeks, ms(0), SeekInput::Seek { manifest }),
        [SeekOutput::Started { manifest }]
    );

    let mut seeks = seeking(1);
    let neighbours = (0..20).map(peer);
    let asked: usize = neighbours
        .map(|peer| after(&mut seeks, ms(1), SeekInput::Neighbour { peer }).len())
        .sum();
    assert_eq!(asked, config.max_asked);
    let manifest = digest(1);
    let peers = (30..50)
        .map(|number| named(number, PeerConnection::None))
        .collect();
    let dialled = after(&mut seeks, ms(2), SeekInput::Handout { manifest, peers });
    assert_eq!(dialled.len(), config.max_asked);
}

#[test]
fn handout_of_another_digest_is_ignored() {
    let mut seeks = seeking(1);
    let peers = vec![named(2, PeerConnection::ServesImages)];
    let manifest = digest(2);
    assert_eq!(
        after(&mut seeks, ms(1), SeekInput::Handout { manifest, peers }),
        []
    );
}
