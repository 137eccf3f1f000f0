//! The endpoints for peers: proofs of all blobs of a manifest.

use std::time::Duration;

use flotilla_common::codec;
use flotilla_common::digest::Digest;
use flotilla_common::grant::LIFETIME_S;
use flotilla_common::hex;
use flotilla_common::proof::Proof;
use flotilla_common::seal::TrustedKeys;
use flotilla_common::wire::origin::{CLOSURE_PATH, ClosureAnswer, ClosureRequest, KEYS_PATH};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::{CertificateAuthority, Identity, Issued, client_trusting};
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::support::{Region, Registry, code, sample, seal_key};

async fn closure(client: &Registry, repository: &str, manifest: Digest) -> reqwest::Response {
    let request = ClosureRequest {
        repository: repository.parse().unwrap(),
        manifest,
    };
    let body = codec::encode(&request).unwrap();
    client
        .request(Method::POST, CLOSURE_PATH)
        .body(body)
        .send()
        .await
        .unwrap()
}

#[tokio::test]
async fn closure_proves_all_blobs_of_a_manifest() {
    let region = Region::start(2).await;
    let layers = [sample(100, 1), sample(5 << 20, 2)];
    let pushed = region.client(0).push_image("app", "v1", &layers).await;
    let mut trusted = TrustedKeys::none();
    trusted
        .add(seal_key().issuer(), &seal_key().public())
        .unwrap();
    // At another replica: the record has everything that is needed.
    for _ in 0..2 {
        let answer = closure(&region.client(1), "app", Digest::sha256(&pushed)).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let answer: ClosureAnswer = codec::decode(&answer.bytes().await.unwrap()).unwrap();
        assert_eq!(answer.proofs.len(), 3);
        assert_eq!(answer.grant, None);
        for (proof, layer) in answer.proofs[1..].iter().zip(&layers) {
            assert_eq!(*proof.digest(), Digest::sha256(layer));
            let geometry = proof.check(&trusted).unwrap();
            assert_eq!(geometry.size(), layer.len() as u64);
            let Proof::Sealed { table, .. } = proof else {
                panic!("the blob is sealed")
            };
            assert_eq!(table.is_some(), layer.len() > 256 << 10);
            if let Some(table) = table {
                let range = geometry.chunk_range(3);
                assert!(table.verifies_chunk(
                    &geometry,
                    3,
                    &layer[range.start as usize..range.end as usize]
                ));
            }
        }
    }
    // The second response came from memory.
    let before = region.operations(1).total();
    closure(&region.client(1), "app", Digest::sha256(&pushed)).await;
    assert_eq!(region.operations(1).total(), before);
}

#[tokio::test]
async fn peer_certificate_gets_closure_grant() {
    let fleet = CertificateAuthority::create(Clock::system()).unwrap();
    let identity = |issued: Issued| {
        Identity::from_pem(
            &issued.certificate_pem,
            &issued.key_pem,
            fleet.certificate_pem(),
            Clock::system(),
        )
        .unwrap()
    };
    let day = Duration::from_secs(86_400);
    let vm = "vm-1".parse().unwrap();
    let server = identity(
        fleet
            .issue_server(&["127.0.0.1".to_owned()], None, day)
            .unwrap(),
    );
    let region = Region::start_with(1, |config| config.tls = Some(server.clone())).await;
    let address = region.origins[0].addr();
    let peer = identity(fleet.issue_peer(&vm, day).unwrap());
    let client = Registry::over_tls(address, peer.https_client().unwrap());
    let layers = [sample(100, 1), sample(600 << 10, 2)];
    let manifest = Digest::sha256(&client.push_image("app", "v1", &layers).await);
    let mut trusted = TrustedKeys::none();
    trusted
        .add(seal_key().issuer(), &seal_key().public())
        .unwrap();
    // The second response uses what the first one cached.
    for _ in 0..2 {
        let answer = closure(&client, "app", manifest)
            .await
            .bytes()
            .await
            .unwrap();
        let ClosureAnswer { proofs, grant } = codec::decode(&answer).unwrap();
        let grant = grant.unwrap();
        let now = grant.expires_unix_s - LIFETIME_S;
        assert_eq!(grant.manifest(), Some(&manifest));
        for digest in proofs.iter().map(Proof::digest).chain([&manifest]) {
            assert_eq!(grant.check(&trusted, &vm, digest, now), Ok(()));
        }
        assert!(
            grant
                .check(&trusted, &vm, &Digest::sha256(b"another"), now)
                .is_err()
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let authority = dir.path().join("ca.pem");
    std::fs::write(&authority, fleet.certificate_pem()).unwrap();
    let anonymous = Registry::over_tls(address, client_trusting(&authority).unwrap());
    let answer = closure(&anonymous, "app", manifest)
        .await
        .bytes()
        .await
        .unwrap();
    assert_eq!(codec::decode::<ClosureAnswer>(&answer).unwrap().grant, None);
}

#[tokio::test]
async fn closures_are_scoped_to_their_repository() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let pushed = client.push_image("app", "v1", &[sample(100, 1)]).await;
    let answer = closure(&client, "other", Digest::sha256(&pushed)).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert_eq!(code(answer).await, "MANIFEST_UNKNOWN");
    let answer = client
        .request(Method::POST, CLOSURE_PATH)
        .body(vec![0; 5000])
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn public_keys_are_published() {
    let region = Region::start(1).await;
    let answer = region.client(0).get(KEYS_PATH).await.text().await.unwrap();
    let keys: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(
        keys["keys"][0]["public_key"],
        hex::encode(&seal_key().public())
    );
    assert_eq!(keys["keys"][0]["issuer"], "eu-1");
}
