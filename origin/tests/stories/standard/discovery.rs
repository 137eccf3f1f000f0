//! Listing tags and referrers.

use serde_json::json;

use super::table::{Row, check, may, must, should};
use crate::support::{INDEX, MANIFEST};

/// An image under five tags.
fn tagged(row: Row) -> Row {
    row.given_blob("config")
        .put_manifest("{no-layers}?tag=b&tag=a&tag=B&tag=1.0&tag=a-1", "no-layers")
        .gives(201)
}

fn tags() -> Vec<Row> {
    vec![
        tagged(must(
            "list tags",
            "all, in the order of their bytes, with the repository's name",
        ))
        .get("/v2/{repo}/tags/list")
        .gives(200)
        .json("/name", "{repo}")
        .json("/tags", json!(["1.0", "B", "a", "a-1", "b"]))
        .lacks("link"),
        tagged(must("list tags", "n of them, and where the rest is"))
            .get("/v2/{repo}/tags/list?n=2")
            .gives(200)
            .json("/tags", json!(["1.0", "B"]))
            .header("link", "</v2/{repo}/tags/list?n=2&last=B>; rel=\"next\""),
        tagged(must("list tags", "exactly n are all"))
            .get("/v2/{repo}/tags/list?n=5")
            .gives(200)
            .json("/tags", json!(["1.0", "B", "a", "a-1", "b"]))
            .lacks("link"),
        tagged(must("list tags", "those after the last one, without it"))
            .get("/v2/{repo}/tags/list?n=2&last=B")
            .gives(200)
            .json("/tags", json!(["a", "a-1"]))
            .get("/v2/{repo}/tags/list?last=a")
            .gives(200)
            .json("/tags", json!(["a-1", "b"]))
            .get("/v2/{repo}/tags/list?n=2&last=zzz")
            .gives(200)
            .json("/tags", json!([]))
            .lacks("link"),
        tagged(must("list tags", "the last one need not be there"))
            .get("/v2/{repo}/tags/list?last=a-0")
            .gives(200)
            .json("/tags", json!(["a-1", "b"])),
        tagged(must("list tags", "none of them, and no Link"))
            .get("/v2/{repo}/tags/list?n=0")
            .gives(200)
            .json("/tags", json!([]))
            .lacks("link"),
        must("list tags", "a repository without tags has an empty list")
            .given_blob("config")
            .put_manifest("{no-layers}", "no-layers")
            .gives(201)
            .get("/v2/{repo}/tags/list")
            .gives(200)
            .json("/tags", json!([])),
        must("list tags", "a repository that is not there is 404")
            .get("/v2/{repo}/tags/list")
            .gives(404)
            .code("NAME_UNKNOWN"),
        tagged(must("list tags", "a deleted tag is not listed"))
            .delete("/v2/{repo}/manifests/a")
            .gives(202)
            .get("/v2/{repo}/tags/list")
            .json("/tags", json!(["1.0", "B", "a-1", "b"])),
        tagged(must("list tags", "what is no number or no tag is 400"))
            .get("/v2/{repo}/tags/list?n=few")
            .gives(400)
            .get("/v2/{repo}/tags/list?n=-1")
            .gives(400)
            .get("/v2/{repo}/tags/list?last=.b")
            .gives(400),
    ]
}

/// An image that is referred to.
fn referred(row: Row) -> Row {
    let image = row.given_image("v1");
    let pushed = image
        .put_manifest("{sbom}", "sbom")
        .gives(201)
        .put_manifest("{signature}", "signature");
    pushed
        .gives(201)
        .put_manifest("{signature-2}", "signature-2")
        .gives(201)
}

fn referrers() -> Vec<Row> {
    vec![
        must("list referrers", "nobody: an empty index, and never 404")
            .get("/v2/{repo}/referrers/{image}")
            .gives(200)
            .header("content-type", INDEX)
            .json("/schemaVersion", 2)
            .json("/mediaType", INDEX)
            .json("/manifests", json!([])),
        must("list referrers", "a malformed digest is 400")
            .get("/v2/{repo}/referrers/sha256:zz")
            .gives(400)
            .code("DIGEST_INVALID"),
        must(
            "list referrers",
            "a referrer's descriptor has its type and annotations",
        )
        .given_image("v1")
        .put_manifest("{sbom}", "sbom")
        .gives(201)
        .get("/v2/{repo}/referrers/{image}")
        .gives(200)
        .json("/manifests/0/mediaType", MANIFEST)
        .json("/manifests/0/digest", "{sbom}")
        .json("/manifests/0/artifactType", "application/vnd.example.sbom")
        .json("/manifests/0/annotations", json!({"kind": "one"}))
        .json("/manifests/1", serde_json::Value::Null),
        must("list referrers", "the size is the manifest's")
            .given_image("v1")
            .put_manifest("{sbom}", "sbom")
            .get("/v2/{repo}/referrers/{image}")
            .json(
                "/manifests/0/size",
                crate::standard::bodies::body("sbom").len(),
            ),
        must(
            "list referrers",
            "without a type of its own, a manifest has its configuration's",
        )
        .given_image("v1")
        .put_manifest("{untyped-artifact}", "untyped-artifact")
        .gives(201)
        .get("/v2/{repo}/referrers/{image}")
        .json(
            "/manifests/0/artifactType",
            "application/vnd.example.config",
        ),
        must(
            "list referrers",
            "an index with a type, and with annotations",
        )
        .put_manifest("{referring-index}", "referring-index")
        .gives(201)
        .get("/v2/{repo}/referrers/{image}")
        .json("/manifests/0/mediaType", INDEX)
        .json("/manifests/0/artifactType", "application/vnd.example.list")
        .json("/manifests/0/annotations", json!({"kind": "list"})),
        must("list referrers", "an index without a type has none")
            .put_manifest("{untyped-index}", "untyped-index")
            .gives(201)
            .get("/v2/{repo}/referrers/{image}")
            .json("/manifests/0/digest", "{untyped-index}")
            .json("/manifests/0/artifactType", serde_json::Value::Null),
        must("list referrers", "of the same repository only")
            .given_image("v1")
            .put_manifest("{sbom}", "sbom")
            .get("/v2/{other}/referrers/{image}")
            .gives(200)
            .json("/manifests", json!([])),
        must(
            "list referrers",
            "a subject that is not there has referrers as well",
        )
        .given_blob("config")
        .put_manifest("{orphan}", "orphan")
        .gives(201)
        .keep("oci-subject", "subject")
        .get("/v2/{repo}/referrers/{subject}")
        .gives(200)
        .json("/manifests/0/digest", "{orphan}"),
        referred(should("list referrers: filter", "by type, which is told"))
            .get("/v2/{repo}/referrers/{image}?artifactType=application/vnd.example.sbom")
            .gives(200)
            .header("oci-filters-applied", "artifactType")
            .json("/manifests/0/digest", "{sbom}")
            .json("/manifests/1", serde_json::Value::Null),
        referred(should(
            "list referrers: filter",
            "by a type that nobody has",
        ))
        .get("/v2/{repo}/referrers/{image}?artifactType=application%2Fvnd.example.nothing")
        .gives(200)
        .header("oci-filters-applied", "artifactType")
        .json("/manifests", json!([])),
        referred(should(
            "list referrers: filter",
            "none asked for, none told",
        ))
        .get("/v2/{repo}/referrers/{image}")
        .gives(200)
        .lacks("oci-filters-applied"),
        referred(must(
            "list referrers: pages",
            "what one answer does not hold is linked",
        ))
        .get("/v2/{repo}/referrers/{image}?n=2")
        .gives(200)
        .json("/manifests/2", serde_json::Value::Null)
        .has("link"),
        referred(may(
            "list referrers: pages",
            "all in one answer, and no Link",
        ))
        .get("/v2/{repo}/referrers/{image}?n=3")
        .gives(200)
        .lacks("link"),
        referred(must("list referrers", "a deleted referrer is not listed"))
            .delete("/v2/{repo}/manifests/{signature}")
            .gives(202)
            .get("/v2/{repo}/referrers/{image}?artifactType=application/vnd.example.signature")
            .json("/manifests/0/digest", "{signature-2}")
            .json("/manifests/1", serde_json::Value::Null),
        referred(must(
            "list referrers",
            "the subject may go; its referrers stay",
        ))
        .delete("/v2/{repo}/manifests/{image}")
        .gives(202)
        .get("/v2/{repo}/referrers/{image}?artifactType=application/vnd.example.sbom")
        .gives(200)
        .json("/manifests/0/digest", "{sbom}"),
    ]
}

#[tokio::test]
async fn listing_tags_is_as_specified() {
    check("listing_tags_is_as_specified", tags).await;
}

#[tokio::test]
async fn listing_referrers_is_as_specified() {
    check("listing_referrers_is_as_specified", referrers).await;
}

/// The pages of a listing, followed by their Links, are the listing.
#[tokio::test]
async fn the_pages_of_referrers_are_all_of_them() {
    use flotilla_common::digest::Digest;
    use serde_json::Value;

    use crate::support::{header, manifest};

    let set_up = super::SetUp::one_replica().await;
    let client = set_up.client();
    let subject = client.push_image("app", "v1", &[]).await;
    for index in 0..7 {
        let mut artifact: Value =
            serde_json::from_slice(&manifest(b"{\"tag\":\"v1\"}", &[])).unwrap();
        artifact["subject"] = crate::support::descriptor(MANIFEST, &subject);
        artifact["artifactType"] = json!(format!("type/{} +", index % 2));
        artifact["annotations"] = json!({"index": index.to_string(), "long": "x".repeat(700_000)});
        let artifact = artifact.to_string();
        let path = format!("/v2/app/manifests/{}", Digest::sha256(artifact.as_bytes()));
        assert_eq!(
            client
                .put_manifest(&path, MANIFEST, artifact)
                .await
                .status(),
            reqwest::StatusCode::CREATED
        );
    }
    for (filter, expected) in [("", 7), ("?artifactType=type/1%20%2B", 3)] {
        let mut next = format!("/v2/app/referrers/{}{filter}", Digest::sha256(&subject));
        let (mut found, mut pages) = (Vec::new(), 0);
        while !next.is_empty() {
            let answer = client.get(&next).await;
            let link = header(&answer, "link").to_owned();
            next = link
                .strip_prefix('<')
                .and_then(|link| link.split('>').next())
                .unwrap_or("")
                .to_owned();
            let body: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
            found.extend(
                body["manifests"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|one| one["annotations"]["index"].clone()),
            );
            pages += 1;
        }
        assert!(pages > 1, "3 MiB of annotations are more than one answer");
        let all: std::collections::BTreeSet<_> = found.iter().map(Value::to_string).collect();
        assert_eq!((found.len(), all.len()), (expected, expected), "{filter}");
    }
}
