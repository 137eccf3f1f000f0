//! Manifests, indexes, tags and referrers.

use bytes::Bytes;
use flotilla_common::digest::{Algorithm, Digest};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{INDEX, MANIFEST, Region, code, descriptor, header, manifest, sample};

#[tokio::test]
async fn pull_by_tag_and_by_digest() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let pushed = client
        .push_image("library/app", "v1", &[sample(1000, 1), sample(70_000, 2)])
        .await;
    let digest = Digest::sha256(&pushed);
    for reference in ["v1".to_owned(), digest.to_string()] {
        let path = format!("/v2/library/app/manifests/{reference}");
        let answer = client.get(&path).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(header(&answer, "content-type"), MANIFEST);
        assert_eq!(header(&answer, "docker-content-digest"), digest.to_string());
        let etag = header(&answer, "etag").to_owned();
        assert_eq!(answer.bytes().await.unwrap(), pushed);
        let answer = client.head(&path).await;
        assert_eq!(header(&answer, "content-length"), pushed.len().to_string());
        let answer = client
            .request(Method::GET, &path)
            .header("if-none-match", etag)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::NOT_MODIFIED);
    }
}

#[tokio::test]
async fn tag_moves_and_index_lists_platforms() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let first = client.push_image("app", "v1", &[sample(10, 1)]).await;
    let second = client.push_image("app", "v1", &[sample(10, 2)]).await;
    assert_eq!(
        client
            .get("/v2/app/manifests/v1")
            .await
            .bytes()
            .await
            .unwrap(),
        second
    );
    let children = [&first, &second].map(|child| descriptor(MANIFEST, child));
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": children}).to_string();
    let answer = client
        .put_manifest("/v2/app/manifests/multi", INDEX, index.clone())
        .await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(
        header(&answer, "location"),
        format!("/v2/app/manifests/{}", Digest::sha256(index.as_bytes()))
    );
    let answer = client.get("/v2/app/manifests/multi").await;
    assert_eq!(header(&answer, "content-type"), INDEX);
    assert_eq!(answer.text().await.unwrap(), index);
    // In another repository its children are unknown.
    let answer = client
        .put_manifest("/v2/other/manifests/multi", INDEX, index)
        .await;
    assert_eq!(code(answer).await, "MANIFEST_BLOB_UNKNOWN");
}

#[tokio::test]
async fn put_by_digest_moves_several_tags() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let pushed = client.push_image("app", "v1", &[]).await;
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let digest = Digest::of(algorithm, &pushed);
        let path = format!("/v2/app/manifests/{digest}?tag=1.2&tag=1&tag=1.2");
        let answer = client.put_manifest(&path, MANIFEST, pushed.clone()).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        assert_eq!(header(&answer, "oci-tag"), "1.2, 1");
        for tag in ["1", "1.2"] {
            let answer = client.head(&format!("/v2/app/manifests/{tag}")).await;
            assert_eq!(header(&answer, "docker-content-digest"), digest.to_string());
        }
    }
    let digest = Digest::sha256(&pushed);
    let path = format!("/v2/app/manifests/{digest}?tag=.bad");
    assert_eq!(
        code(client.put_manifest(&path, MANIFEST, pushed.clone()).await).await,
        "MANIFEST_INVALID"
    );
    let many: String = (0..40).map(|index| format!("&tag=t{index}")).collect();
    let path = format!("/v2/app/manifests/{digest}?{many}");
    assert_eq!(
        code(client.put_manifest(&path, MANIFEST, pushed).await).await,
        "UNSUPPORTED"
    );
}

#[tokio::test]
async fn invalid_manifests_are_rejected() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let (config, layer) = (Bytes::from_static(b"{}"), sample(10, 0));
    let whole = manifest(&config, std::slice::from_ref(&layer));
    let put = |path: &'static str, media_type: &'static str, body: Bytes| {
        client.put_manifest(path, media_type, body)
    };
    let answer = put("/v2/app/manifests/v1", MANIFEST, whole.clone()).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert_eq!(code(answer).await, "MANIFEST_BLOB_UNKNOWN");
    assert!(region.keys("rm/").await.is_empty());
    client.push_blob("app", config).await;
    client.push_blob("app", layer).await;
    assert_eq!(
        code(put("/v2/app/manifests/v1", INDEX, whole.clone()).await).await,
        "MANIFEST_INVALID"
    );
    assert_eq!(
        code(put("/v2/app/manifests/v1", MANIFEST, "no".into()).await).await,
        "MANIFEST_INVALID"
    );
    assert_eq!(
        code(put("/v2/app/manifests/.v1", MANIFEST, whole.clone()).await).await,
        "MANIFEST_INVALID"
    );
    let path = format!("/v2/app/manifests/{}", Digest::sha256(b"other"));
    assert_eq!(
        code(client.put_manifest(&path, MANIFEST, whole.clone()).await).await,
        "DIGEST_INVALID"
    );
    let path = format!(
        "/v2/app/manifests/{}",
        Digest::of(Algorithm::Sha512, &whole)
    );
    assert_eq!(
        client
            .put_manifest(&path, MANIFEST, whole.clone())
            .await
            .status(),
        StatusCode::CREATED
    );
    assert_eq!(client.get(&path).await.bytes().await.unwrap(), whole);
}

#[tokio::test]
async fn manifest_size_limit_is_4_mib() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let padded = |len: usize| {
        let text = json!({"schemaVersion": 2, "mediaType": MANIFEST, "annotations": {"pad": ""}})
            .to_string();
        text.replace("\"\"", &format!("\"{}\"", "x".repeat(len - text.len())))
    };
    let answer = client
        .put_manifest("/v2/app/manifests/big", MANIFEST, padded(4 << 20))
        .await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    let answer = client.get("/v2/app/manifests/big").await;
    assert_eq!(answer.bytes().await.unwrap().len(), 4 << 20);
    let answer = client
        .put_manifest("/v2/app/manifests/big", MANIFEST, padded((4 << 20) + 1))
        .await;
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn tag_pages_are_in_byte_order() {
    let region = Region::start(1).await;
    let client = region.client(0);
    assert_eq!(
        code(client.get("/v2/app/tags/list").await).await,
        "NAME_UNKNOWN"
    );
    let image = client.push_image("app", "b", &[]).await;
    for tag in ["a", "a-1", "B", "a.2", "c"] {
        let path = format!("/v2/app/manifests/{tag}");
        assert_eq!(
            client
                .put_manifest(&path, MANIFEST, image.clone())
                .await
                .status(),
            StatusCode::CREATED
        );
    }
    // A repository whose name has the same beginning is distinct.
    client.push_image("app/sub", "z", &[]).await;
    let listed = async |path: &str| {
        let answer = client.get(path).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let link = header(&answer, "link").to_owned();
        let body: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert_eq!(body["name"], "app");
        let tags: Vec<_> = body["tags"]
            .as_array()
            .unwrap()
            .iter()
            .map(|tag| tag.as_str().unwrap().to_owned())
            .collect();
        (tags.join(" "), link)
    };
    assert_eq!(
        listed("/v2/app/tags/list").await,
        ("B a a-1 a.2 b c".to_owned(), String::new())
    );
    let (tags, link) = listed("/v2/app/tags/list?n=4").await;
    assert_eq!(tags, "B a a-1 a.2");
    assert_eq!(link, "</v2/app/tags/list?n=4&last=a.2>; rel=\"next\"");
    assert_eq!(
        listed("/v2/app/tags/list?n=4&last=a.2").await,
        ("b c".to_owned(), String::new())
    );
    assert_eq!(listed("/v2/app/tags/list?n=0").await.0, "");
    assert_eq!(listed("/v2/app/tags/list?last=zzz").await.0, "");
    assert_eq!(
        client.delete("/v2/app/manifests/a-1").await,
        StatusCode::ACCEPTED
    );
    assert_eq!(listed("/v2/app/tags/list").await.0, "B a a.2 b c");
    assert_eq!(
        code(client.get("/v2/app/tags/list?n=x").await).await,
        "UNSUPPORTED"
    );
    assert_eq!(
        client.get("/v2/app/tags/list?last=%2f").await.status(),
        StatusCode::BAD_REQUEST
    );
}

#[tokio::test]
async fn deleting_manifest_removes_its_tags() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let pushed = client.push_image("app", "v1", &[sample(10, 1)]).await;
    let by_digest = format!("/v2/app/manifests/{}", Digest::sha256(&pushed));
    assert_eq!(
        client.delete("/v2/app/manifests/v1").await,
        StatusCode::ACCEPTED
    );
    assert_eq!(
        client.get("/v2/app/manifests/v1").await.status(),
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        client.delete("/v2/app/manifests/v1").await,
        StatusCode::NOT_FOUND
    );
    assert_eq!(client.get(&by_digest).await.status(), StatusCode::OK);
    client.push_image("app", "v1", &[sample(10, 1)]).await;
    assert_eq!(client.delete(&by_digest).await, StatusCode::ACCEPTED);
    for path in [&by_digest, "/v2/app/manifests/v1"] {
        assert_eq!(code(client.get(path).await).await, "MANIFEST_UNKNOWN");
    }
    assert_eq!(client.delete(&by_digest).await, StatusCode::NOT_FOUND);
    client.push_image("app", "v1", &[sample(10, 1)]).await;
    assert_eq!(
        client
            .get("/v2/app/manifests/v1")
            .await
            .bytes()
            .await
            .unwrap(),
        pushed
    );
}

#[tokio::test]
async fn referrers_by_subject_and_type() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let subject = client.push_image("app", "v1", &[sample(10, 1)]).await;
    let digest = Digest::sha256(&subject);
    let path = format!("/v2/app/referrers/{digest}");
    let listed = async |query: &str| {
        let answer = client.get(&format!("{path}{query}")).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(header(&answer, "content-type"), INDEX);
        let body: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        body["manifests"].as_array().unwrap().clone()
    };
    assert!(listed("").await.is_empty());
    let mut artifacts = Vec::new();
    for kind in ["application/sbom", "application/signature"] {
        let body = json!({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind,
            "subject": descriptor(MANIFEST, &subject), "annotations": {"kind": kind}});
        let body = body.to_string();
        let path = format!("/v2/app/manifests/{}", Digest::sha256(body.as_bytes()));
        let answer = client.put_manifest(&path, MANIFEST, body).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        assert_eq!(header(&answer, "oci-subject"), digest.to_string());
        artifacts.push(path);
    }
    assert_eq!(listed("").await.len(), 2);
    let found = listed("?artifactType=application/sbom").await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["annotations"]["kind"], "application/sbom");
    assert_eq!(client.delete(&artifacts[0]).await, StatusCode::ACCEPTED);
    assert_eq!(listed("").await.len(), 1);
}
