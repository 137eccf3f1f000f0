//! Pushing manifests: by tag and digest, with tags as parameters, with a subject.

use super::table::{Row, check, may, must, should};
use crate::support::{INDEX, MANIFEST};

fn rows() -> Vec<Row> {
    vec![
        must("push manifests", "by tag: created, with a Location that can be pulled and the digest")
            .given_blob("config")
            .given_blob("layer")
            .put_manifest("v1", "image")
            .gives(201)
            .header("docker-content-digest", "{image}")
            .keep("location", "manifest")
            .get("{manifest}")
            .gives(200)
            .is("image"),
        must("push manifests", "by digest")
            .given_blob("config")
            .given_blob("layer")
            .put_manifest("{image}", "image")
            .gives(201)
            .header("docker-content-digest", "{image}")
            .has("location")
            .get("/v2/{repo}/manifests/{image}")
            .gives(200)
            .is("image"),
        must("push manifests", "by a digest of sha512")
            .given_blob("config")
            .given_blob("layer")
            .put_manifest("{image.sha512}", "image")
            .gives(201)
            .header("docker-content-digest", "{image.sha512}")
            .get("/v2/{repo}/manifests/{image.sha512}")
            .gives(200)
            .is("image")
            .header("docker-content-digest", "{image.sha512}"),
        must("push manifests", "the bytes come back as they were sent")
            .given_blob("config")
            .given_blob("layer")
            .put_manifest("v1", "odd-spacing")
            .gives(201)
            .get("/v2/{repo}/manifests/v1")
            .is("odd-spacing"),
        must("push manifests", "fields of one's own are nobody's business")
            .given_blob("config")
            .put_manifest("v1", "custom-fields")
            .gives(201)
            .get("/v2/{repo}/manifests/v1")
            .is("custom-fields"),
        must("push manifests", "there may be no layers")
            .given_blob("config")
            .put_manifest("v1", "no-layers")
            .gives(201),
        must("push manifests", "a layer that may not be distributed is not asked for")
            .given_blob("config")
            .put_manifest("v1", "foreign-layer")
            .gives(201),
        must("push manifests", "a tag moves to what was pushed last; what it named stays")
            .given_image("v1")
            .put_manifest("v1", "image-2")
            .gives(201)
            .get("/v2/{repo}/manifests/v1")
            .is("image-2")
            .get("/v2/{repo}/manifests/{image}")
            .is("image"),
        must("push manifests", "an index of manifests, and an index of indexes")
            .given_image("v1")
            .put_manifest("v2", "no-layers")
            .gives(201)
            .put_manifest("multi", "index")
            .gives(201)
            .put_manifest("nested", "nested-index")
            .gives(201)
            .get("/v2/{repo}/manifests/multi")
            .header("content-type", INDEX)
            .is("index")
            .get("/v2/{repo}/manifests/nested")
            .is("nested-index"),
        should("push manifests", "parameters of the media type are ignored")
            .given_blob("config")
            .put("/v2/{repo}/manifests/v1")
            .with("content-type", format!("{MANIFEST}; charset=utf-8"))
            .sends("no-layers")
            .gives(201)
            .get("/v2/{repo}/manifests/v1")
            .header("content-type", MANIFEST),
        should("push manifests", "a manifest may leave its media type to the request")
            .given_blob("config")
            .put_manifest("v1", "untyped")
            .gives(201)
            .get("/v2/{repo}/manifests/v1")
            .header("content-type", MANIFEST),
        must("push manifests", "the request's media type is the manifest's own")
            .given_blob("config")
            .put("/v2/{repo}/manifests/v1")
            .with("content-type", INDEX)
            .sends("no-layers")
            .gives(400)
            .code("MANIFEST_INVALID"),
        must("push manifests", "a digest that is not the manifest's is refused")
            .given_image("v1")
            .put_manifest("{no-layers}", "image")
            .gives(400)
            .code("DIGEST_INVALID"),
        must("push manifests", "what is no manifest is refused")
            .put("/v2/{repo}/manifests/v1")
            .with("content-type", MANIFEST)
            .sends("not-json")
            .gives(400)
            .code("MANIFEST_INVALID"),
        must("push manifests", "what is no tag is refused")
            .given_image("v1")
            .put_manifest(".v1", "image")
            .gives(400)
            .put_manifest("sha256:zz", "image")
            .gives(400),
        may("push manifests", "a blob that the repository does not have is refused by name")
            .given_blob("config")
            .put_manifest("v1", "sparse")
            .gives(404)
            .code("MANIFEST_BLOB_UNKNOWN")
            .get("/v2/{repo}/manifests/v1")
            .gives(404),
        may("push manifests", "so is a manifest of an index")
            .put_manifest("v1", "sparse-index")
            .gives(404)
            .code("MANIFEST_BLOB_UNKNOWN"),
        should("push manifests", "4 MiB are taken")
            .put_manifest("v1", "largest")
            .gives(201)
            .get("/v2/{repo}/manifests/v1")
            .is("largest"),
        should("push manifests", "a byte more is 413")
            .put_manifest("v1", "too-large")
            .gives(413)
            .get("/v2/{repo}/manifests/v1")
            .gives(404),
        must("push manifests: tags as parameters", "each accepted tag is told, and names the manifest")
            .given_blob("config")
            .given_blob("layer")
            .put_manifest("{image}?tag=1.2.3&tag=1.2&tag=latest", "image")
            .gives(201)
            .header("oci-tag", "1.2.3, 1.2, latest")
            .get("/v2/{repo}/manifests/1.2.3")
            .is("image")
            .get("/v2/{repo}/manifests/1.2")
            .is("image")
            .get("/v2/{repo}/manifests/latest")
            .header("docker-content-digest", "{image}"),
        should("push manifests: tags as parameters", "at least ten at once")
            .given_blob("config")
            .put_manifest(
                "{no-layers}?tag=0&tag=1&tag=2&tag=3&tag=4&tag=5&tag=6&tag=7&tag=8&tag=9&tag=10&tag=11",
                "no-layers",
            )
            .gives(201)
            .header("oci-tag", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11"),
        must("push manifests: tags as parameters", "for sha512, too")
            .given_blob("config")
            .put_manifest("{no-layers.sha512}?tag=v1", "no-layers")
            .gives(201)
            .header("oci-tag", "v1")
            .head("/v2/{repo}/manifests/v1")
            .header("docker-content-digest", "{no-layers.sha512}"),
        must("push manifests: tags as parameters", "what is no tag is refused, and nothing is written")
            .given_blob("config")
            .put_manifest("{no-layers}?tag=v1&tag=.v2", "no-layers")
            .gives(400)
            .get("/v2/{repo}/manifests/v1")
            .gives(404),
        must("push manifests: subject", "the subject is told")
            .given_image("v1")
            .put_manifest("{sbom}", "sbom")
            .gives(201)
            .header("oci-subject", "{image}"),
        must("push manifests: subject", "a manifest without one has none")
            .given_blob("config")
            .put_manifest("v1", "no-layers")
            .gives(201)
            .lacks("oci-subject"),
        must("push manifests: subject", "a subject that is not there, or comes later, is accepted")
            .given_blob("config")
            .put_manifest("{orphan}", "orphan")
            .gives(201)
            .has("oci-subject"),
        must("push manifests: subject", "an index has one as well")
            .put_manifest("{referring-index}", "referring-index")
            .gives(201)
            .header("oci-subject", "{image}"),
    ]
}

#[tokio::test]
async fn pushing_manifests_is_as_specified() {
    check("pushing_manifests_is_as_specified", rows).await;
}
