//! The walk over two regions, on two storages in memory.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use flotilla_common::digest::Digest;
use flotilla_common::name::{RegionName, RepositoryName};
use flotilla_common::stamp::Stamp;
use flotilla_common::wire::region::{
    EntryId, Fact, FactKey, FactKind, JournalPage, KeysPage, OwedEntry, RegionState,
    StorageStanding, TakeAnswer, TakeRequest,
};
use flotilla_runtime::clock::Clock;
use http::{Request, Response, StatusCode};

use super::{Owed, RegionCheck, RegionReport, RegionsReport};
use crate::check::Findings;
use crate::layout;
use crate::policy::Policy;
use crate::record::{JournalRecord, Pointer, TagValue, encode};
use crate::regions::source::{Source, SourceBlob, SourceError};
use crate::registry::{list_fact_keys, read_fact};
use crate::storage::{Storage, open};

const POLICY: &str = r#"
[[region]]
name = "eu-1"
url = "https://origin.eu.example"
[[region]]
name = "us-1"
url = "https://origin.us.example"
[[repository]]
match = "eu/**"
regions = ["eu-1"]
"#;

/// The other region: a storage, and what it owes.
#[derive(Debug)]
struct OtherRegion {
    name: RegionName,
    storage: Arc<dyn Storage>,
    owed: Vec<OwedEntry>,
}

#[async_trait]
impl Source for OtherRegion {
    fn region(&self) -> &RegionName {
        &self.name
    }

    async fn state(&self) -> Result<RegionState, SourceError> {
        panic!("the walk does not ask for it")
    }

    async fn journal(
        &self,
        _after: Option<EntryId>,
        _limit: usize,
    ) -> Result<JournalPage, SourceError> {
        Ok(JournalPage {
            entries: self.owed.clone(),
            ..JournalPage::default()
        })
    }

    async fn done(&self, _entries: Vec<EntryId>, _sweep: Option<u128>) -> Result<(), SourceError> {
        panic!("a check writes nothing")
    }

    async fn facts(&self, keys: &[FactKey]) -> Result<Vec<Fact>, SourceError> {
        // One at a time, as a region may answer fewer than it was asked for.
        Ok(vec![read_fact(&*self.storage, &keys[0]).await.unwrap()])
    }

    async fn keys(
        &self,
        kind: FactKind,
        after: Option<&FactKey>,
        _limit: usize,
    ) -> Result<KeysPage, SourceError> {
        Ok(list_fact_keys(&*self.storage, kind, after, 2)
            .await
            .unwrap())
    }

    async fn take(&self, _request: TakeRequest) -> Result<TakeAnswer, SourceError> {
        panic!("a check writes nothing")
    }

    async fn send(&self, _request: Request<Body>) -> Result<Response<Body>, SourceError> {
        let response = Response::builder().status(StatusCode::NOT_FOUND);
        Ok(response.body(Body::empty()).unwrap())
    }

    async fn blob(
        &self,
        _repository: &RepositoryName,
        _digest: &Digest,
        _offset: u64,
    ) -> Result<Option<SourceBlob>, SourceError> {
        Ok(None)
    }
}

/// Two regions, of which `eu-1` checks.
struct Desk {
    check: RegionCheck,
    other: OtherRegion,
    is_whole: bool,
}

fn tag_key(repository: &str, tag: &str) -> FactKey {
    FactKey::Tag(repository.parse().unwrap(), tag.parse().unwrap())
}

async fn write_tag(storage: &dyn Storage, key: &FactKey, clock: u64, content: Option<&str>) {
    let key = layout::fact(key);
    let pointer = Pointer {
        stamp: Stamp {
            clock,
            region: "eu-1".parse().unwrap(),
        },
        turn: 0,
        value: content.map(|content| TagValue {
            digest: Digest::sha256(content.as_bytes()),
        }),
        nonce: 1,
    };
    let body = pointer.body(&key).unwrap();
    storage.create(&key, body.into()).await.unwrap();
}

impl Desk {
    fn new() -> Self {
        let storage = || open("memory:///", 0).unwrap();
        Self {
            check: RegionCheck {
                storage: storage(),
                policy: Policy::parse(POLICY).unwrap(),
                own: "eu-1".parse().unwrap(),
                clock: Clock::tokio(),
            },
            other: OtherRegion {
                name: "us-1".parse().unwrap(),
                storage: storage(),
                owed: Vec::new(),
            },
            is_whole: true,
        }
    }

    async fn write(&self, repository: &str, tag: &str, own: Option<u64>, other: Option<u64>) {
        let key = tag_key(repository, tag);
        for (storage, clock) in [(&self.check.storage, own), (&self.other.storage, other)] {
            if let Some(clock) = clock {
                let content = format!("image {clock}");
                write_tag(&**storage, &key, clock, Some(&content)).await;
            }
        }
    }

    async fn report(&self) -> RegionsReport {
        let about = RegionReport {
            region: self.other.name.clone(),
            url: String::new(),
            storage_id: None,
            storage_usable: None,
            whole: None,
            whole_from_it: self.is_whole,
            clock_ahead_s: None,
            same_policy: None,
            owes: None,
            owed: Owed::default(),
            problems: Vec::new(),
        };
        let state = RegionState {
            region: self.other.name.clone(),
            storage_id: flotilla_common::storage_id::StorageId::from_bytes([1; 16]),
            replaced: Vec::new(),
            clock: 10_000_000_000,
            standing: StorageStanding::Usable,
            is_whole: self.is_whole,
            owed: Vec::new(),
        };
        let mut report = RegionsReport {
            region: self.check.own.clone(),
            storage_id: None,
            regions: Vec::new(),
            compared: Some(0),
            pending: Findings::default(),
            damage: Findings::default(),
        };
        let walked = self
            .check
            .compare_keys(&self.other, &state, &about, &mut report);
        walked.await.unwrap().unwrap();
        report
    }
}

fn problems(findings: &Findings) -> Vec<(&str, &str)> {
    let shown = findings.shown.iter();
    shown
        .map(|finding| (finding.key.as_str(), finding.problem.as_str()))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn keys_that_nothing_will_bring_are_damage() {
    let desk = Desk::new();
    for tag in ["a", "b", "c", "d", "e"] {
        desk.write("app", tag, Some(5), Some(5)).await;
    }
    desk.write("app", "lost", Some(5), None).await;
    desk.write("app", "never-here", None, Some(5)).await;
    desk.write("app", "old", Some(5), Some(6)).await;
    // The policy keeps it in one region.
    desk.write("eu/app", "v1", Some(5), None).await;
    let report = desk.report().await;
    assert_eq!(report.compared, Some(8));
    assert_eq!(problems(&report.pending), []);
    assert_eq!(
        problems(&report.damage),
        [
            ("tag/app/_/lost", "is missing in region us-1, and not owed"),
            (
                "tag/app/_/never-here",
                "is missing in region eu-1, and not owed"
            ),
            (
                "tag/app/_/old",
                "has an older value in region eu-1, and not owed"
            ),
        ]
    );
    assert!(!report.is_complete());
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_owed_are_pending() {
    let mut desk = Desk::new();
    desk.write("app", "to-us", Some(5), None).await;
    desk.write("app", "to-eu", None, Some(5)).await;
    let id = EntryId {
        created: 3_000_000_000,
        nonce: 7,
    };
    desk.other.owed = vec![OwedEntry {
        id,
        keys: vec![(tag_key("app", "to-eu"), None)],
    }];
    let key = layout::journal_entry(&desk.other.name, id);
    let record = JournalRecord {
        keys: vec![(tag_key("app", "to-us"), None)],
        nonce: 7,
    };
    let body = encode(&key, &record).unwrap();
    desk.check.storage.create(&key, body.into()).await.unwrap();
    let report = desk.report().await;
    assert_eq!(problems(&report.damage), []);
    let [(eu, to_eu), (us, to_us)] = problems(&report.pending)[..] else {
        panic!("{report:?}");
    };
    assert_eq!((eu, us), ("tag/app/_/to-eu", "tag/app/_/to-us"));
    assert_eq!(
        to_eu,
        "is missing in region eu-1, not yet replicated: owed since 7 s"
    );
    assert!(to_us.starts_with("is missing in region us-1, not yet replicated: owed since"));
    assert!(report.is_complete());
}

#[tokio::test(start_paused = true)]
async fn region_in_backfill_lacks_nothing_for_good() {
    let mut desk = Desk::new();
    desk.is_whole = false;
    desk.write("app", "v1", Some(5), None).await;
    let report = desk.report().await;
    assert_eq!(
        problems(&report.pending),
        [(
            "tag/app/_/v1",
            "is missing in region us-1, not yet replicated: the region is not whole yet"
        )]
    );
    assert!(report.is_complete());
}

#[tokio::test(start_paused = true)]
async fn one_stamp_with_two_values_is_damage_even_in_backfill() {
    let mut desk = Desk::new();
    desk.is_whole = false;
    let key = tag_key("app", "v1");
    write_tag(&*desk.check.storage, &key, 5, Some("one")).await;
    write_tag(&*desk.other.storage, &key, 5, Some("other")).await;
    let report = desk.report().await;
    assert_eq!(report.damage.count, 1, "{report:?}");
}
