//! Headers of all responses, and of HEAD requests.

use flotilla_common::digest::Digest;
use flotilla_common::manifest::OCI_MANIFEST;
use flotilla_common::units::ByteSize;
use flotilla_peer::Config;

use super::client::{get, request};
use super::{image, path_of};
use crate::harness::Fleet;

#[tokio::test(flavor = "multi_thread")]
async fn head_has_the_headers_of_get() {
    let fleet = Fleet::without_tracker().await;
    let image = image();
    let digest = fleet.origin.push(&image);
    let peer = fleet.peer("vm-1").await;
    let by_tag = "/v2/app/manifests/v1".to_owned();
    let by_digest = format!("/v2/app/manifests/{digest}");
    for path in [by_tag, by_digest, path_of(&image[0]), path_of(&image[2])] {
        let head = request(&peer, "HEAD", &path, None).await;
        let got = get(&peer, &path, None).await;
        assert_eq!((head.status, got.status), (200, 200), "{path}");
        for name in ["content-type", "content-length", "docker-content-digest"] {
            assert!(head.header(name).is_some(), "{path}: {name}");
            assert_eq!(head.header(name), got.header(name), "{path}: {name}");
        }
        if path.contains("/manifests/") {
            assert_eq!(head.header("content-type"), Some(OCI_MANIFEST));
        }
        let digest: Digest = got
            .header("docker-content-digest")
            .unwrap()
            .parse()
            .unwrap();
        assert!(digest.matches(&got.read_all().await.unwrap()), "{path}");
    }
}

/// Every kind of response, from a peer that stores blobs and from one that only passes them
/// through.
#[tokio::test(flavor = "multi_thread")]
async fn every_response_has_a_length_and_no_encoding() {
    let fleet = Fleet::without_tracker().await;
    let image = image();
    fleet.origin.push(&image);
    let storing = fleet.peer("vm-1").await;
    let passing = fleet
        .start(Config {
            quota: ByteSize(0),
            ..fleet.config("vm-2")
        })
        .await;
    let (config, layer) = (path_of(&image[0]), path_of(&image[2]));
    let unknown = format!("/v2/app/blobs/{}", Digest::sha256(b"unknown"));
    for peer in [&storing, &passing] {
        for (method, path, range, status) in [
            ("GET", "/v2/", None, 200),
            ("HEAD", "/v2/app/manifests/v1", None, 200),
            ("GET", "/v2/app/manifests/v1", None, 200),
            ("GET", "/v2/app/manifests/v1", Some("bytes=0-"), 206),
            ("GET", "/v2/app/manifests/v2", None, 404),
            ("HEAD", &config, None, 200),
            ("GET", &config, Some("bytes=0-"), 206),
            ("GET", &layer, None, 200),
            ("GET", &layer, Some("bytes=0-"), 206),
            ("GET", &layer, Some("bytes=5-99"), 206),
            ("GET", &layer, Some("bytes=-99"), 206),
            ("GET", &layer, Some("bytes=99999999-"), 416),
            ("GET", &layer, Some("bytes=0-1,5-6"), 200),
            ("GET", &unknown, None, 404),
            ("GET", &unknown, Some("bytes=5-"), 404),
            ("POST", "/v2/app/blobs/uploads/", None, 405),
        ] {
            let response = request(peer, method, path, range).await;
            assert_eq!(response.status, status, "{method} {path} {range:?}");
            assert!(response.is_plain(), "{method} {path} {range:?}");
        }
    }
    assert_eq!(
        passing.stats().blobs,
        Vec::new(),
        "a peer without quota stores nothing"
    );
    assert!(fleet.origin.bytes_sent() > 0);
}
