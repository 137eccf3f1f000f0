//! Openings of images.

use core::time::Duration;

use super::support::{Answer, TestMirror, blob, digest, ms, proof, proved, stored};
use crate::grant::Grant;
use crate::opening::{
    ClosureResult, FallbackReason, ImageBlob, Opening, OpeningConfig, OpeningInput, OpeningOutput,
    ProofSource, ProvedBlob, Stored,
};
use crate::seal::SealKey;
use crate::time::Time;
use crate::wire::origin::ClosureAnswer;

const NAMES: [u8; 3] = [1, 2, 3];
const NOT_STORED: Answer = Answer::PassedThrough(FallbackReason::NotStored);

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
        assert_eq!(mirror.get(name), Answer::FromStore);
        assert_eq!(mirror.wanted[&digest(name)], Some(ProofSource::Origin));
    }
}

#[test]
fn failed_closure_is_asked_for_again_and_requests_for_blobs_wait() {
    let mut mirror = TestMirror::new(image());
    mirror.closure(ms(20), ClosureResult::Unavailable);
    assert_eq!(mirror.asked, [(ms(0), "origins"), (ms(20), "neighbours")]);
    let again_at = mirror.next_request();
    assert!((ms(220)..=ms(420)).contains(&again_at), "{again_at:?}");
    for name in NAMES {
        assert_eq!(mirror.get(name), Answer::Later);
    }
    mirror.closure(again_at, proved(&NAMES));
    assert!(mirror.opening.is_finished());
    for name in NAMES {
        assert_eq!(mirror.get(name), Answer::FromStore);
    }
}

#[test]
fn closure_is_asked_for_less_and_less_often_and_not_for_ever() {
    let mut mirror = TestMirror::new(image());
    let mut now = ms(0);
    while !mirror.opening.is_finished() {
        mirror.closure(now, ClosureResult::Unavailable);
        mirror.neighbours(now, None);
        while let Some(at) = mirror.opening.poll_timeout()
            && mirror.asked.last().unwrap().1 == "neighbours"
        {
            now = at;
            mirror.advance(now);
        }
    }
    assert!((ms(10_000)..=ms(15_000)).contains(&now), "{now:?}");
    let asked = mirror.count("origins");
    assert!((6..=10).contains(&asked), "{asked}");
    assert_eq!(mirror.count("neighbours"), asked, "after each failure");
    assert_eq!(mirror.get(1), NOT_STORED);
}

#[test]
fn peers_that_started_together_do_not_ask_again_together() {
    let again_at = |rng_seed| {
        let config = OpeningConfig::default();
        let mut opening = Opening::new(Time::ZERO, &config, image(), rng_seed);
        let failed = OpeningInput::Closure(ClosureResult::Unavailable);
        opening.handle(ms(20), failed);
        opening.poll_timeout().unwrap()
    };
    let mut times: Vec<Time> = (0..100).map(again_at).collect();
    times.sort_unstable();
    let spread = times[99].saturating_since(times[0]);
    assert!(spread > Duration::from_millis(180), "{spread:?}");
}

#[test]
fn requests_for_blobs_wait_for_a_late_closure() {
    let mut mirror = TestMirror::new(image());
    assert_eq!(mirror.opening.poll_timeout(), Some(ms(2000)));
    assert!(!mirror.advance(ms(1999)));
    assert!(mirror.advance(ms(2000)), "the manifest is sent");
    assert!(!mirror.opening.is_finished());
    for name in NAMES {
        assert_eq!(mirror.get(name), Answer::Later);
    }
    mirror.closure(ms(20_000), proved(&NAMES));
    for name in NAMES {
        assert_eq!(mirror.get(name), Answer::FromStore);
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
            assert_eq!(
                mirror.get(name),
                Answer::FromStore,
                "exchanged as a whole blob"
            );
        }
        assert_eq!(mirror.get(4), NOT_STORED);
    }
}

#[test]
fn unsure_origins_are_asked_again() {
    let mut blobs = image();
    blobs[0] = stored(1, Stored::Incomplete);
    let mut mirror = TestMirror::new(blobs);
    mirror.closure(ms(20), ClosureResult::Unsure);
    assert_eq!(mirror.get(1), Answer::FromStore);
    assert_eq!(mirror.get(2), Answer::Later);
    let again_at = mirror.next_request();
    mirror.closure(again_at, ClosureResult::Missing);
    assert_eq!(mirror.get(2), Answer::FromStore, "as a whole blob");
}

#[test]
fn neighbour_proves_blobs_of_the_image_only() {
    let mut mirror = TestMirror::new(image());
    mirror.closure(ms(20), ClosureResult::Unavailable);
    mirror.neighbours(ms(60), Some(vec![proof(1), proof(9), proof(3)]));
    let wanted: Vec<_> = mirror.wanted.iter().collect();
    let neighbour = Some(ProofSource::Neighbour);
    assert_eq!(wanted.len(), 2, "{wanted:?}");
    assert_eq!(mirror.wanted[&digest(1)], neighbour);
    assert_eq!(mirror.wanted[&digest(3)], neighbour);
    assert_eq!(
        mirror.get(2),
        Answer::Later,
        "the origins are asked for the rest"
    );
    let again_at = mirror.next_request();
    mirror.closure(again_at, proved(&NAMES));
    assert_eq!(mirror.get(2), Answer::FromStore);
}

#[test]
fn neighbour_that_proves_all_blobs_ends_the_opening() {
    let mut mirror = TestMirror::new(image());
    mirror.closure(ms(20), ClosureResult::Unavailable);
    mirror.neighbours(ms(60), Some(NAMES.map(proof).to_vec()));
    assert!(mirror.opening.is_finished());
    assert_eq!(mirror.opening.poll_timeout(), None);
    assert_eq!(mirror.count("origins"), 1);
}

#[test]
fn blob_whose_proof_is_not_valid_is_asked_for_again() {
    let config = OpeningConfig::default();
    let mut opening = Opening::new(Time::ZERO, &config, vec![blob(1)], 1);
    opening.handle(ms(20), OpeningInput::Closure(ClosureResult::Unavailable));
    opening.handle(ms(60), OpeningInput::Neighbours(Some(vec![proof(1)])));
    // The driver adds nothing to the store.
    assert!(!opening.is_finished());
    opening.handle_timeout(opening.poll_timeout().unwrap());
    let outputs = core::iter::from_fn(|| opening.poll_output());
    assert_eq!(outputs.last(), Some(OpeningOutput::AskOrigins));
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
    let mut opening = Opening::new(Time::ZERO, &OpeningConfig::default(), image(), 1);
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

#[test]
fn neighbours_are_asked_even_if_the_first_failure_comes_late() {
    let mut mirror = TestMirror::new(image());
    mirror.closure(ms(20_000), ClosureResult::Unavailable);
    assert_eq!(mirror.count("neighbours"), 1);
    assert!(!mirror.opening.is_finished());
    mirror.neighbours(ms(20_500), Some(vec![proof(1)]));
    assert!(mirror.opening.is_finished());
    assert_eq!(mirror.count("origins"), 1);
    assert_eq!(mirror.get(1), Answer::FromStore);
    assert_eq!(mirror.get(2), NOT_STORED);
}

#[test]
fn blob_that_the_store_cannot_take_is_not_waited_for() {
    let config = OpeningConfig::default();
    let mut opening = Opening::new(Time::ZERO, &config, vec![blob(1)], 1);
    opening.handle(ms(20), OpeningInput::Closure(ClosureResult::Unavailable));
    opening.handle(ms(60), OpeningInput::Neighbours(Some(vec![proof(1)])));
    let digest = digest(1);
    opening.handle(ms(61), OpeningInput::NotStorable { digest });
    assert!(opening.is_finished());
}
