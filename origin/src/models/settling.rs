//! `settle`: two replicas swap one key. An acknowledged write took effect, exactly once; a write
//! that was given up as lost never comes afterwards.

use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::explorer::{Explored, Scenario, explore};
use super::model::{Faults, Model};
use crate::conditional_write::{ConditionalWriter, WriteOutcome};
use crate::storage::{Key, Storage};

const KEY: &str = "tag/app/_/v1";

/// What an actor was told, and how long the key's history was then.
#[derive(Clone, Debug)]
struct Told {
    body: &'static str,
    written: bool,
    history: usize,
}

/// How an actor writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// As shipped.
    Settling,
    /// Breaks "never write a second time": what was lost is written over what won.
    WritingTwice,
    /// Breaks "every body carries a nonce": two bodies may be the same.
    WithoutNonce,
}

fn scenario(model: Model, bodies: &'static [&'static str], manner: Manner) -> Scenario {
    let told = Arc::new(Mutex::new(Vec::new()));
    let actors = bodies.iter().map(|body| {
        let (model, told) = (model.clone(), Arc::clone(&told));
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
            if let (Ok(WriteOutcome::Lost(Some(winner))), Manner::WritingTwice) = (&settled, manner)
            {
                let seen = winner.version.clone();
                settled = settler.write(&key, Some(&seen), body_bytes).await;
            }
            let history = model.history(KEY).len();
            let Ok(settled) = settled else { return };
            let written = matches!(settled, WriteOutcome::Written);
            told.lock().expect("no panic").push(Told {
                body,
                written,
                history,
            });
        };
        Box::pin(actor) as _
    });
    let actors = actors.collect();
    let check = move |model: &Model| {
        let history = model.history(KEY);
        // Without a nonce nobody knows whose body it is that is there.
        let told = match manner {
            Manner::WithoutNonce => Vec::new(),
            Manner::Settling | Manner::WritingTwice => told.lock().expect("no panic").clone(),
        };
        for told in told {
            let places: Vec<_> = (0..history.len())
                .filter(|at| history[*at] == told.body)
                .collect();
            let sound = if told.written {
                places.len() == 1 && places[0] < told.history
            } else {
                places.iter().all(|place| *place < told.history)
            };
            if !sound {
                return Err(format!("{told:?}, and the history is {history:?}"));
            }
        }
        for body in &history {
            if history.iter().filter(|other| *other == body).count() > 1 {
                return Err(format!("{body:?} took effect twice: {history:?}"));
            }
        }
        Ok(())
    };
    Scenario {
        actors,
        check: Box::new(check),
    }
}

async fn explored(bodies: &'static [&'static str], manner: Manner, writes: u32) -> Explored {
    let base = async |model: Model| {
        let key: Key = KEY.parse().expect("a key");
        model.create(&key, "base".into()).await.expect("the base");
        scenario(model, bodies, manner)
    };
    explore(Faults::of(writes, ""), base).await
}

#[tokio::test]
async fn an_acknowledged_write_took_effect_once_and_a_lost_one_never_comes() {
    explored(&["one", "two"], Manner::Settling, 2)
        .await
        .assert_holds(1000);
}

#[tokio::test]
async fn three_replicas_settle_with_one_fault() {
    explored(&["one", "two", "three"], Manner::Settling, 1)
        .await
        .assert_holds(1000);
}

/// A version is a hash of the body: without a nonce the old body is back, and a duplicated swap
/// succeeds later.
#[tokio::test]
async fn without_a_nonce_a_duplicated_swap_succeeds_later() {
    explored(&["one", "base"], Manner::WithoutNonce, 1)
        .await
        .assert_broken("took effect twice");
}

#[tokio::test]
async fn written_a_second_time_it_takes_effect_twice() {
    explored(&["one", "two"], Manner::WritingTwice, 1)
        .await
        .assert_broken("and the history is");
}

/// The first of several that create a key.
#[tokio::test]
async fn of_creates_one_wins() {
    let nothing = async |model: Model| scenario(model, &["one", "two"], Manner::Settling);
    explore(Faults::of(2, ""), nothing).await.assert_holds(1000);
}
