//! Conditional writes: replicas swap one key. An acknowledged write took effect exactly once, and a
//! write that was reported as lost never takes effect afterwards.

use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::explorer::{Explored, Scenario, explore};
use super::storage_model::{Faults, ModelStorage};
use crate::conditional_write::{ConditionalWriter, WriteOutcome};
use crate::storage::{Key, Storage};

const KEY: &str = "tag/app/_/v1";

/// The outcome of an actor's write, and the length of the key's history at that time.
#[derive(Clone, Debug)]
struct Outcome {
    body: &'static str,
    written: bool,
    history_len: usize,
}

/// The behaviour of an actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    /// As shipped.
    Shipped,
    /// Violates "never write a second time": overwrites the winner with the lost write.
    WritingTwice,
    /// Violates "every body carries a nonce": two bodies may be equal.
    WithoutNonce,
}

fn scenario(model: ModelStorage, bodies: &'static [&'static str], variant: Variant) -> Scenario {
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let actors = bodies.iter().map(|body| {
        let model = model.clone();
        let outcomes = Arc::clone(&outcomes);
        let actor = async move {
            let key: Key = KEY.parse().expect("a key");
            let settler = ConditionalWriter { storage: &model };
            let seen = model
                .read(&key)
                .await
                .expect("reads have no faults")
                .map(|object| object.version);
            let body_bytes = Bytes::from_static(body.as_bytes());
            let mut settled = settler.write(&key, seen.as_ref(), body_bytes.clone()).await;
            if let (
                Ok(WriteOutcome::Lost {
                    present: Some(winner),
                    ..
                }),
                Variant::WritingTwice,
            ) = (&settled, variant)
            {
                let seen = winner.version.clone();
                settled = settler.write(&key, Some(&seen), body_bytes).await;
            }
            let history_len = model.history(KEY).len();
            let Ok(settled) = settled else { return };
            let written = matches!(settled, WriteOutcome::Written);
            outcomes.lock().expect("no panic").push(Outcome {
                body,
                written,
                history_len,
            });
        };
        Box::pin(actor) as _
    });
    let actors = actors.collect();
    let check = move |model: &ModelStorage| {
        let history = model.history(KEY);
        // Without a nonce, the writer of a body cannot be identified.
        let outcomes = match variant {
            Variant::WithoutNonce => Vec::new(),
            Variant::Shipped | Variant::WritingTwice => outcomes.lock().expect("no panic").clone(),
        };
        for outcome in outcomes {
            let positions: Vec<_> = (0..history.len())
                .filter(|position| history[*position] == outcome.body)
                .collect();
            let holds = if outcome.written {
                positions.len() == 1 && positions[0] < outcome.history_len
            } else {
                positions
                    .iter()
                    .all(|position| *position < outcome.history_len)
            };
            if !holds {
                return Err(format!("{outcome:?} contradicts the history {history:?}"));
            }
        }
        for body in &history {
            if history.iter().filter(|other| *other == body).count() > 1 {
                return Err(format!("{body:?} took effect twice: {history:?}"));
            }
        }
        Ok(())
    };
    Scenario::new(actors, Box::new(check))
}

async fn explore_swaps(bodies: &'static [&'static str], variant: Variant, writes: u32) -> Explored {
    let base = async |model: ModelStorage| {
        let key: Key = KEY.parse().expect("a key");
        model.create(&key, "base".into()).await.expect("the base");
        scenario(model, bodies, variant)
    };
    explore(Faults::of(writes, ""), base).await
}

#[tokio::test]
async fn acknowledged_writes_apply_once_and_lost_writes_never() {
    explore_swaps(&["one", "two"], Variant::Shipped, 2)
        .await
        .assert_holds(1000);
}

#[tokio::test]
async fn three_replicas_with_one_fault() {
    explore_swaps(&["one", "two", "three"], Variant::Shipped, 1)
        .await
        .assert_holds(1000);
}

/// A version is a hash of the body. Without a nonce an old body, and with it its version, may
/// return, and a duplicated swap then succeeds.
#[tokio::test]
async fn duplicated_swap_applies_twice_without_nonce() {
    explore_swaps(&["one", "base"], Variant::WithoutNonce, 1)
        .await
        .assert_violated("took effect twice");
}

#[tokio::test]
async fn retry_over_winner_applies_twice() {
    explore_swaps(&["one", "two"], Variant::WritingTwice, 1)
        .await
        .assert_violated("contradicts the history");
}

#[tokio::test]
async fn one_of_concurrent_creates_wins() {
    let nothing = async |model: ModelStorage| scenario(model, &["one", "two"], Variant::Shipped);
    explore(Faults::of(2, ""), nothing).await.assert_holds(1000);
}
