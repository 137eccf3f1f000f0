//! The counters of an exchange against its chunk maps, after random steps.

use proptest::prelude::*;

use super::*;
use crate::swarm::io::HaveBatch;

const CHUNKS: u32 = 70;

fn blob() -> BlobExchange {
    BlobExchange::new(
        Geometry::for_size(u64::from(CHUNKS) << 18),
        ChunkMap::empty(CHUNKS),
        Duration::ZERO,
    )
}

#[derive(Clone, Debug)]
enum Step {
    Hold(u32),
    Lose(u32),
    Join(u32),
    Leave(u32),
    HaveChunk(u32, u32),
    HaveMap(u32, Vec<u32>),
    HaveComplete(u32),
    Lacks(u32, u32),
    SetAside(u32),
    Restore(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let (chunk, peer) = (0..CHUNKS, 0_u32..12);
    prop_oneof![
        chunk.clone().prop_map(Step::Hold),
        chunk.clone().prop_map(Step::Lose),
        peer.clone().prop_map(Step::Join),
        peer.clone().prop_map(Step::Leave),
        (peer.clone(), 0..CHUNKS + 5).prop_map(|(peer, chunk)| Step::HaveChunk(peer, chunk)),
        (peer.clone(), prop::collection::vec(chunk.clone(), 0..70))
            .prop_map(|(p, map)| Step::HaveMap(p, map)),
        peer.clone().prop_map(Step::HaveComplete),
        (peer.clone(), chunk).prop_map(|(peer, chunk)| Step::Lacks(peer, chunk)),
        peer.clone().prop_map(Step::SetAside),
        peer.prop_map(Step::Restore),
    ]
}

fn apply(blob: &mut BlobExchange, step: Step) {
    let announce = |blob: &mut BlobExchange, peer, have: HeldChunks| {
        if let Some(index) = blob.index_of(PeerSlot(peer)) {
            blob.apply_have(index, &have);
        }
    };
    match step {
        Step::Hold(chunk) => _ = blob.hold(chunk),
        Step::Lose(chunk) => _ = blob.lose(chunk),
        Step::Join(peer) if blob.index_of(PeerSlot(peer)).is_none() => {
            _ = blob.add_neighbour(PeerSlot(peer))
        }
        Step::Join(_) => {}
        Step::Leave(peer) => blob.remove_neighbour(PeerSlot(peer)),
        Step::HaveChunk(peer, chunk) => {
            let mut batch = HaveBatch::default();
            batch.push(chunk);
            announce(blob, peer, HeldChunks::Chunks(batch));
        }
        Step::HaveMap(peer, chunks) => {
            let mut map = ChunkMap::empty(CHUNKS);
            for chunk in chunks {
                map.insert(chunk);
            }
            announce(blob, peer, HeldChunks::Map(map));
        }
        Step::HaveComplete(peer) => announce(blob, peer, HeldChunks::Complete),
        Step::Lacks(peer, chunk) => blob.mark_lacking(PeerSlot(peer), chunk),
        Step::SetAside(peer) => blob.set_aside(PeerSlot(peer)),
        Step::Restore(peer) => blob.restore(PeerSlot(peer)),
    }
}

proptest! {
    #[test]
    fn counters_match_the_chunk_maps(steps in prop::collection::vec(step(), 0..60)) {
        let mut blob = blob();
        for step in steps {
            apply(&mut blob, step);
            prop_assert_eq!(blob.held_count, blob.held.count());
            for chunk in 0..CHUNKS {
                let holders = blob.holders_of(chunk);
                prop_assert_eq!(u32::from(blob.availability(chunk)), holders.count_ones());
            }
            prop_assert_eq!(blob.unavailable, blob.unavailable_map().count());
            let missing = (0..blob.word_count()).flat_map(|word| chunks_of(word, blob.missing_in(word)));
            let expected = (0..CHUNKS).filter(|chunk| !blob.held.contains(*chunk));
            prop_assert_eq!(missing.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
            for (index, count) in blob.held_counts.iter().enumerate() {
                let is_holder = |chunk: &u32| blob.holders_of(*chunk) >> index & 1 != 0;
                let held: Vec<u32> = (0..CHUNKS).filter(is_holder).collect();
                prop_assert_eq!(*count as usize, held.len());
                prop_assert_eq!(blob.seeders >> index & 1 != 0, held.len() == CHUNKS as usize);
                let in_words = (0..blob.word_count())
                    .flat_map(|word| chunks_of(word, blob.held_by_any(word, u64::MAX, 1 << index)));
                prop_assert_eq!(in_words.collect::<Vec<_>>(), held);
            }
            prop_assert!(blob.seeders >> blob.neighbours.len() == 0);
        }
    }
}
