//! Openings as they are today, with their known limits.

use super::support::{TestMirror, blob, digest, ms, proof, proved, stored};
use crate::grant::Grant;
use crate::opening::{
    ClosureResult, FallbackReason, ImageBlob, Opening, OpeningConfig, OpeningInput, OpeningOutput,
    ProofSource, ProvedBlob, Stored,
};
use crate::seal::SealKey;
use crate::time::Time;
use crate::wire::origin::ClosureAnswer;

const NAMES: [u8; 3] = [1, 2, 3];

fn image() -> Vec<ImageBlob> {
    NAMES.map(blob).to_vec()
}

#[test]
fn manifest_waits_for_the_proofs() {
    let mut mirror = TestMirror::new(image());
    assert_eq!(mirror.asked, [(ms(0), "origins")]);
    assert!(!mirror.advance(ms(19)));
    mirror.closure(ms(20), proved(&NAMES));
    assert!(mirror.advance(ms(20)));
    assert!(mirror.opening.is_finished());
    assert_eq!(mirror.opening.poll_timeout(), None);
    assert_eq!(mirror.asked.len(), 1, "nothing else is asked");
    for name in NAMES {
        assert_eq!(mirror.get(name), Ok(()));
        assert_eq!(mirror.wanted[&digest(name)], Some(ProofSource::Origin));
    }
}

#[test]
fn first_closure_fails_and_the_whole_image_is_passed_through() {
    let mut mirror = TestMirror::new(image());
    mirror.closure(ms(20), ClosureResult::Unavailable);
    assert_eq!(mirror.asked, [(ms(0), "origins"), (ms(20), "neighbours")]);
    assert!(!mirror.advance(ms(769)), "held back for the neighbours");
    mirror.neighbours(ms(770), None);
    assert!(mirror.advance(ms(770)));
    assert!(
        mirror.opening.is_finished(),
        "the origins are not asked again"
    );
    assert_eq!(mirror.asked.len(), 2);
    for name in NAMES {
        assert_eq!(mirror.get(name), Err(FallbackReason::NotStored));
    }
}

#[test]
fn closure_after_the_timeout_is_too_late_for_requests_for_blobs() {
    let mut mirror = TestMirror::new(image());
    assert_eq!(mirror.opening.poll_timeout(), Some(ms(2000)));
    assert!(!mirror.advance(ms(1999)));
    assert!(mirror.advance(ms(2000)), "the manifest is sent");
    assert!(!mirror.opening.is_finished());
    for name in NAMES {
        assert_eq!(mirror.get(name), Err(FallbackReason::NotStored));
    }
    mirror.closure(ms(2100), proved(&NAMES));
    for name in NAMES {
        let got = mirror.get(name);
        assert_eq!(got, Ok(()), "a later request is answered from the store");
    }
}

#[test]
fn registry_without_seals_refuses_or_does_not_know_the_request() {
    for result in [ClosureResult::Refused, ClosureResult::Missing] {
        let foreign = ImageBlob {
            has_urls: true,
            ..blob(4)
        };
        let mut blobs = image();
        blobs.push(foreign);
        let mut mirror = TestMirror::new(blobs);
        mirror.closure(ms(20), result);
        assert!(mirror.advance(ms(20)));
        assert_eq!(mirror.asked.len(), 1);
        for name in NAMES {
            assert_eq!(mirror.get(name), Ok(()), "exchanged as a whole blob");
        }
        assert_eq!(mirror.get(4), Err(FallbackReason::NotStored));
    }
}

#[test]
fn unsure_origins_end_the_opening_without_neighbours() {
    let mut blobs = image();
    blobs[0] = stored(1, Stored::Incomplete);
    let mut mirror = TestMirror::new(blobs);
    mirror.closure(ms(20), ClosureResult::Unsure);
    assert!(mirror.advance(ms(20)));
    assert_eq!(mirror.asked.len(), 1);
    assert_eq!(mirror.get(1), Ok(()));
    assert_eq!(mirror.get(2), Err(FallbackReason::NotStored));
}

#[test]
fn neighbour_proves_blobs_of_the_image_only() {
    let mut mirror = TestMirror::new(image());
    mirror.closure(ms(20), ClosureResult::Unavailable);
    mirror.neighbours(ms(60), Some(vec![proof(1), proof(9), proof(3)]));
    assert!(mirror.advance(ms(60)));
    let wanted: Vec<_> = mirror.wanted.iter().collect();
    let neighbour = Some(ProofSource::Neighbour);
    assert_eq!(wanted.len(), 2, "{wanted:?}");
    assert_eq!(mirror.wanted[&digest(1)], neighbour);
    assert_eq!(mirror.wanted[&digest(3)], neighbour);
    assert_eq!(
        mirror.get(2),
        Err(FallbackReason::NotStored),
        "a partial answer ends the opening"
    );
}

#[test]
fn blobs_in_the_store_are_wanted_without_proofs() {
    let complete = NAMES.map(|name| stored(name, Stored::Complete)).to_vec();
    let mut mirror = TestMirror::new(complete);
    assert!(mirror.advance(ms(0)));
    assert_eq!(mirror.asked, []);
    assert_eq!(mirror.wanted.len(), NAMES.len());

    let known = NAMES.map(|name| stored(name, Stored::Incomplete)).to_vec();
    let mut mirror = TestMirror::new(known);
    assert_eq!(mirror.asked, [(ms(0), "origins")]);
    mirror.closure(ms(20), ClosureResult::Unavailable);
    assert!(mirror.advance(ms(20)));
    assert_eq!(mirror.asked.len(), 1, "all proofs are known");
    assert_eq!(mirror.wanted.len(), NAMES.len());
}

#[test]
fn index_needs_no_proofs() {
    let mut mirror = TestMirror::new(Vec::new());
    assert!(mirror.advance(ms(0)));
    assert_eq!(mirror.asked, []);
}

#[test]
fn grant_is_for_all_blobs_of_the_closure() {
    let key = SealKey::from_secret("eu-1".parse().unwrap(), &[1; 32]);
    let digests = NAMES.map(digest).to_vec();
    let grant = Some(Grant::sign(&key, "vm-1".parse().unwrap(), digests, 100));
    let mut opening = Opening::new(Time::ZERO, &OpeningConfig::default(), image());
    assert_eq!(opening.poll_output(), Some(OpeningOutput::AskOrigins));
    let answer = ClosureAnswer {
        proofs: NAMES.map(proof).to_vec(),
        grant: grant.clone(),
    };
    let result = ClosureResult::Proved(answer);
    opening.handle(ms(5), OpeningInput::Closure(result));
    for name in NAMES {
        let blob = ProvedBlob {
            proof: proof(name),
            grant: grant.clone(),
            source: ProofSource::Origin,
        };
        let add = OpeningOutput::Add(Box::new(blob));
        assert_eq!(opening.poll_output(), Some(add));
    }
    assert_eq!(opening.poll_output(), None);
}

#[test]
fn late_and_unexpected_answers_are_ignored() {
    let mut mirror = TestMirror::new(image());
    mirror.neighbours(ms(10), Some(vec![proof(1)]));
    assert!(mirror.wanted.is_empty());
    mirror.closure(ms(20), proved(&[1]));
    mirror.closure(ms(30), proved(&[2]));
    assert_eq!(mirror.wanted.len(), 1);
}
