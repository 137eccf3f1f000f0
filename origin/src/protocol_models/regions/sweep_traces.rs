//! Trimmed journals and sweeps: a region never takes itself for whole while it lacks something
//! (traces R17, R18, F13).

use std::sync::{Arc, Mutex};

use super::super::explorer::{Explored, Scenario, explore};
use super::super::storage_model::{Faults, ModelStorage};
use super::follower::{Follower, Follows, settle};
use super::properties::{differences_are_owed, regions_are_equal};
use super::world::{Region, index, owed_to, put, tag};
use crate::registry::{ChangeRules, Registry};

/// How a source drops entries that were never fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trims {
    /// As shipped: marks the region as owed a sweep, then deletes.
    Shipped,
    /// Violates that: deletes, then marks.
    DeletesFirst,
}

/// How a follower learns whether anything is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    /// As shipped: the mark that is read after the listing.
    Shipped,
    /// Violates that: reads the mark before the listing.
    MarkFirst,
    /// Ignores the mark.
    EntriesOnly,
}

async fn trim(registry: &Registry, trims: Trims) {
    let region = Region::B.name();
    let page = registry.journal_page(&region, None, 99).await;
    let entries: Vec<_> = page.expect("no faults").entries;
    let entries: Vec<_> = entries.into_iter().map(|entry| entry.id).collect();
    if trims == Trims::DeletesFirst {
        let dropped = registry.drop_entries(&region, entries.clone(), None).await;
        dropped.expect("no faults");
    }
    let trimmed = registry.trim_journal(&region, entries).await;
    trimmed.expect("no faults");
}

/// Whether a region is told that it is owed nothing.
async fn is_told_nothing_is_owed(registry: &Registry, reads: Reads) -> bool {
    let region = Region::B.name();
    let before = match reads {
        Reads::MarkFirst => registry.owed_to(&region).await.expect("no faults").sweep,
        Reads::Shipped | Reads::EntriesOnly => None,
    };
    let page = registry.journal_page(&region, None, 99).await;
    let page = page.expect("no faults");
    let sweep = match reads {
        Reads::Shipped => page.sweep,
        Reads::MarkFirst => before,
        Reads::EntriesOnly => None,
    };
    page.entries.is_empty() && sweep.is_none()
}

/// R17, F13: A trims what B was away for, while B returns and asks what it is owed. The trimmer may
/// crash.
async fn explore_trim(trims: Trims, reads: Reads) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let registry = Region::A.replica(&model).await;
        let pushed = put(&registry, &index(1), &[tag()], &owed_to(&[Region::B])).await;
        pushed.expect("a push");
        let asked = Region::A.replica(&model).await;
        let trim = async move { trim(&registry, trims).await };
        let crashing = model.clone();
        let is_caught_up = Arc::new(Mutex::new(false));
        let answer = Arc::clone(&is_caught_up);
        let ask = async move {
            let told = is_told_nothing_is_owed(&asked, reads).await;
            *answer.lock().expect("no panic") = told;
        };
        Scenario::new(
            vec![
                Box::pin(async move { crashing.until_crash(trim).await }),
                Box::pin(ask),
            ],
            Box::new(move |_| match *is_caught_up.lock().expect("no panic") {
                true => Err("B takes itself for caught up and lacks a push".to_owned()),
                false => Ok(()),
            }),
        )
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn trimmed_entries_leave_a_mark_that_no_reader_misses() {
    explore_trim(Trims::Shipped, Reads::Shipped)
        .await
        .assert_holds(20);
}

#[tokio::test(start_paused = true)]
async fn trims_without_an_earlier_mark_leave_a_hole() {
    let broken = [
        (Trims::DeletesFirst, Reads::Shipped),
        (Trims::Shipped, Reads::MarkFirst),
        (Trims::Shipped, Reads::EntriesOnly),
    ];
    for (trims, reads) in broken {
        explore_trim(trims, reads)
            .await
            .assert_violated("takes itself for caught up");
    }
}

/// When a region counts as whole after it has joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Joins {
    /// After a second sweep, H after the first: no push by an old list of regions is in flight.
    AfterSecondSweep,
    /// Violates that.
    AfterFirstSweep,
}

/// R18: B joins and sweeps, while a replica of A that does not know B yet acknowledges a push.
async fn explore_join(joins: Joins) -> Explored {
    let scenario = async move |model: ModelStorage| {
        let registry = Region::A.replica(&model).await;
        let sources = &[Region::A];
        let follower = Follower::new(&model, Region::B, sources, Follows::Shipped).await;
        model.keep_private(&["b/"]);
        let client = async move {
            let pushed = put(&registry, &index(1), &[tag()], &ChangeRules::default()).await;
            pushed.expect("a push");
        };
        let sweep = async move { follower.sweep().await };
        let settling = model.clone();
        Scenario {
            actors: vec![Box::pin(client), Box::pin(sweep)],
            settle: Some(Box::pin(async move {
                if joins == Joins::AfterSecondSweep {
                    let sources = &[Region::A];
                    let again = Follower::new(&settling, Region::B, sources, Follows::Shipped);
                    again.await.sweep().await;
                }
                settle(&settling, &[Region::A, Region::B], Follows::Shipped).await;
                differences_are_owed(&settling, Region::A, Region::B)
            })),
            check: Box::new(|model| regions_are_equal(model, &[Region::A, Region::B])),
        }
    };
    explore(Faults::NONE, scenario).await
}

#[tokio::test(start_paused = true)]
async fn regions_are_whole_after_their_second_sweep() {
    explore_join(Joins::AfterSecondSweep).await.assert_holds(10);
    explore_join(Joins::AfterFirstSweep)
        .await
        .assert_violated("neither merged nor owed");
}
