//! The policy of a bucket: who takes it up when, and what keeps an origin from starting with it.

use core::time::Duration;
use std::sync::Arc;

use flotilla_origin::policy::{self, LivePolicy, PolicyStoreError, StoredPolicy};
use flotilla_origin::storage::{self, Storage};
use flotilla_origin::{Config, Origin};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::{CertificateAuthority, Identity};
use flotilla_runtime::shutdown::Shutdown;

use crate::faulty_storage::FaultyStorage;
use crate::support::config;

/// `eu-1`, the region of [`config`], and these others.
fn text(others: &[&str]) -> String {
    let entry =
        |name: &&str| format!("[[region]]\nname = \"{name}\"\nurl = \"https://{name}.example\"\n");
    ["eu-1"].iter().chain(others).map(entry).collect()
}

async fn bucket() -> Arc<dyn Storage> {
    let storage = storage::open("memory:///", 64 << 20).unwrap();
    // The first origin writes the bucket's format.
    drop(
        Origin::start_on(config(), Arc::clone(&storage))
            .await
            .unwrap(),
    );
    storage
}

async fn stored(storage: &Arc<dyn Storage>) -> Option<StoredPolicy> {
    policy::read(&**storage).await.unwrap()
}

/// Stores a policy in place of the present one.
async fn set(storage: &Arc<dyn Storage>, text: &str) {
    let seen = stored(storage).await;
    policy::set(&**storage, text, seen.as_ref()).await.unwrap();
}

/// Stores a body without any check.
async fn overwrite(storage: &Arc<dyn Storage>, body: &'static str) {
    let key = "policy".parse().unwrap();
    let seen = stored(storage).await.unwrap();
    storage
        .swap(&key, seen.version(), body.into())
        .await
        .unwrap();
}

async fn live(storage: &Arc<dyn Storage>) -> LivePolicy {
    let own = "eu-1".parse().unwrap();
    LivePolicy::start(Arc::clone(storage), own, Clock::tokio())
        .await
        .unwrap()
}

fn regions(live: &LivePolicy) -> usize {
    live.current().regions().len()
}

#[tokio::test(start_paused = true)]
async fn usable_policies_are_taken_up_within_a_minute() {
    let storage = bucket().await;
    let live = live(&storage).await;
    let shutdown = Shutdown::new();
    live.keep_fresh(&shutdown);
    let minute = || tokio::time::sleep(Duration::from_secs(61));
    assert!(!live.current().exists());

    set(&storage, &text(&["us-1"])).await;
    minute().await;
    assert_eq!(regions(&live), 2);

    // Neither a text that is not a policy, nor one without the own region, nor a deletion.
    overwrite(&storage, "[[regoin]]").await;
    minute().await;
    assert_eq!(regions(&live), 2);
    overwrite(
        &storage,
        "[[region]]\nname = \"us-1\"\nurl = \"https://us-1.example\"\n",
    )
    .await;
    minute().await;
    assert_eq!(regions(&live), 2);
    storage.delete(&"policy".parse().unwrap()).await.unwrap();
    minute().await;
    assert_eq!(regions(&live), 2);

    let mut changes = live.subscribe();
    changes.mark_unchanged();
    set(&storage, &text(&["us-1", "ap-1"])).await;
    changes.changed().await.unwrap();
    assert_eq!(regions(&live), 3);
}

#[tokio::test(start_paused = true)]
async fn changes_are_written_by_a_policy_of_the_last_two_minutes() {
    let faulty = FaultyStorage::new(bucket().await);
    let faults = faulty.faults();
    let storage: Arc<dyn Storage> = Arc::new(faulty);
    let live = live(&storage).await;
    set(&storage, &text(&["us-1"])).await;
    let for_write = async || {
        let policy = live.for_write().await;
        policy.map(|policy| policy.regions().len())
    };
    assert_eq!(for_write().await.unwrap(), 0, "its copy is young enough");
    tokio::time::sleep(Duration::from_secs(121)).await;
    assert_eq!(for_write().await.unwrap(), 2);

    faults.set_down(true);
    tokio::time::sleep(Duration::from_secs(121)).await;
    assert!(for_write().await.is_err());
    assert_eq!(regions(&live), 2, "reads go on");
    faults.set_down(false);
    assert_eq!(for_write().await.unwrap(), 2);
}

#[tokio::test]
async fn policy_is_replaced_only_if_it_was_seen() {
    let storage = bucket().await;
    set(&storage, &text(&["us-1"])).await;
    let seen = stored(&storage).await;
    set(&storage, &text(&["us-1", "ap-1"])).await;
    for seen in [None, seen.as_ref()] {
        let refused = policy::set(&*storage, &text(&[]), seen).await;
        assert!(
            matches!(refused, Err(PolicyStoreError::Conflict)),
            "{refused:?}"
        );
    }
    let now = stored(&storage).await.unwrap();
    assert_eq!(now.text().unwrap(), text(&["us-1", "ap-1"]));
    // The same text again is another object.
    set(&storage, &text(&["us-1", "ap-1"])).await;
    assert_ne!(stored(&storage).await.unwrap().version(), now.version());

    let unused = storage::open("memory:///", 0).unwrap();
    let refused = policy::set(&*unused, &text(&[]), None)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("no origin has started on this storage"),
        "{refused}"
    );
}

#[tokio::test]
async fn origin_does_not_start_with_an_unusable_policy() {
    let storage = bucket().await;
    let start = async |tls: Option<Identity>| {
        let config = Config { tls, ..config() };
        let started = Origin::start_on(config, Arc::clone(&storage)).await;
        started.map(drop).map_err(|error| error.to_string())
    };
    set(&storage, &text(&[])).await;
    assert_eq!(
        start(None).await,
        Ok(()),
        "a single region needs no certificate"
    );

    let fleet = CertificateAuthority::create(Clock::system()).unwrap();
    let certificate = |region: Option<&str>| {
        let region = region.map(|region| region.parse().unwrap());
        let names = ["localhost".to_owned()];
        let day = Duration::from_hours(24);
        let issued = fleet.issue_server(&names, region.as_ref(), day).unwrap();
        let (certificate, key) = (&issued.certificate_pem, &issued.key_pem);
        Some(
            Identity::from_pem(certificate, key, fleet.certificate_pem(), Clock::system()).unwrap(),
        )
    };
    set(&storage, &text(&["us-1"])).await;
    for tls in [None, certificate(None)] {
        let error = start(tls).await.unwrap_err();
        assert!(
            error.contains("must name its region eu-1")
                && error.contains("flotilla pki issue --server NAMES --region eu-1"),
            "{error}"
        );
    }
    let error = start(certificate(Some("us-1"))).await.unwrap_err();
    assert!(
        error.contains("names region us-1, but this origin is in region eu-1"),
        "{error}"
    );
    assert_eq!(start(certificate(Some("eu-1"))).await, Ok(()));
    // Issued by another authority than the one that this origin trusts.
    let other = CertificateAuthority::create(Clock::system()).unwrap();
    let (region, day) = ("eu-1".parse().unwrap(), Duration::from_hours(24));
    let names = ["localhost".to_owned()];
    let issued = other.issue_server(&names, Some(&region), day).unwrap();
    let (certificate_pem, key) = (&issued.certificate_pem, &issued.key_pem);
    let foreign = Identity::from_pem(
        certificate_pem,
        key,
        fleet.certificate_pem(),
        Clock::system(),
    );
    let error = start(Some(foreign.unwrap())).await.unwrap_err();
    assert!(
        error.contains("does not verify against the authority") && error.contains("pki issue"),
        "{error}"
    );

    let us_only = "[[region]]\nname = \"us-1\"\nurl = \"https://us-1.example\"\n";
    for (body, parts) in [
        ("[[regoin]]", ["line 1", "did you mean 'region'?"]),
        (us_only, ["no [[region]] for eu-1", "it lists us-1"]),
    ] {
        overwrite(&storage, body).await;
        let error = start(certificate(Some("eu-1"))).await.unwrap_err();
        for part in parts {
            assert!(error.contains(part), "{error}");
        }
        assert!(error.contains("flotilla origin policy set FILE"), "{error}");
    }
}
