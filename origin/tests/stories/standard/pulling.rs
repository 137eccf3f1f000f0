//! Pulling manifests and blobs, and asking whether they are there.

use super::table::{Row, check, may, must, should};
use crate::support::{INDEX, MANIFEST};

fn rows() -> Vec<Row> {
    vec![
        must("support", "the base answers that this is a registry")
            .get("/v2/")
            .gives(200),
        must(
            "pull manifests",
            "a manifest is pulled by its tag, with its digest",
        )
        .given_image("v1")
        .get("/v2/{repo}/manifests/v1")
        .gives(200)
        .is("image")
        .header("docker-content-digest", "{image}"),
        must("pull manifests", "a manifest is pulled by its digest")
            .given_image("v1")
            .get("/v2/{repo}/manifests/{image}")
            .gives(200)
            .is("image")
            .header("docker-content-digest", "{image}"),
        should(
            "pull manifests",
            "the media type is the one it was pushed with, without parameters",
        )
        .given_image("v1")
        .get("/v2/{repo}/manifests/v1")
        .with("accept", format!("{MANIFEST}, {INDEX}"))
        .gives(200)
        .header("content-type", MANIFEST),
        must("pull manifests", "what is not there is 404, by tag")
            .given_image("v1")
            .get("/v2/{repo}/manifests/v2")
            .gives(404)
            .code("MANIFEST_UNKNOWN"),
        must("pull manifests", "what is not there is 404, by digest")
            .given_image("v1")
            .get("/v2/{repo}/manifests/{no-layers}")
            .gives(404)
            .code("MANIFEST_UNKNOWN"),
        must(
            "pull manifests",
            "a repository does not have what only another one has",
        )
        .given_image("v1")
        .get("/v2/{other}/manifests/{image}")
        .gives(404),
        must("pull manifests", "a repository that is not there is 404")
            .get("/v2/{repo}/manifests/v1")
            .gives(404),
        must("pull manifests", "a tag of 128 characters is one")
            .given_image(&"t".repeat(128))
            .get(format!("/v2/{{repo}}/manifests/{}", "t".repeat(128)))
            .gives(200)
            .is("image"),
        must("pull manifests", "a tag of 129 characters is none")
            .get(format!("/v2/{{repo}}/manifests/{}", "t".repeat(129)))
            .gives(404),
        must("pull manifests", "a name has components and separators")
            .put("/v2/{repo}/a.b/c__d/e--f/manifests/v1")
            .sends("not-json")
            .gives(400)
            .code("MANIFEST_INVALID"),
        may(
            "pull manifests",
            "a manifest that the client has is not sent again",
        )
        .given_image("v1")
        .get("/v2/{repo}/manifests/v1")
        .gives(200)
        .keep("etag", "etag")
        .get("/v2/{repo}/manifests/v1")
        .with("if-none-match", "{etag}")
        .gives(304)
        .is("empty")
        .get("/v2/{repo}/manifests/v1")
        .with("if-none-match", "\"other\"")
        .gives(200),
        must(
            "pull blobs",
            "a blob is pulled by its digest, which is told",
        )
        .given_blob("layer")
        .get("/v2/{repo}/blobs/{layer}")
        .gives(200)
        .is("layer")
        .header("docker-content-digest", "{layer}")
        .header("content-length", "{layer.len}"),
        must("pull blobs", "a blob that is not there is 404")
            .get("/v2/{repo}/blobs/{never-pushed}")
            .gives(404)
            .code("BLOB_UNKNOWN"),
        must(
            "pull blobs",
            "a repository does not have what only another one has",
        )
        .given_blob("layer")
        .get("/v2/{other}/blobs/{layer}")
        .gives(404),
        must("pull blobs", "a blob of no bytes is one")
            .given_blob("empty")
            .get("/v2/{repo}/blobs/{empty}")
            .gives(200)
            .is("empty"),
        should("pull blobs", "a range of a blob is 206")
            .given_blob("layer")
            .get("/v2/{repo}/blobs/{layer}")
            .with("range", "bytes=10-1009")
            .gives(206)
            .part("layer", 10..1010)
            .header("content-range", "bytes 10-1009/100000")
            .header("content-length", "1000"),
        should(
            "pull blobs",
            "a range without an end goes to the end, which is how a pull is resumed",
        )
        .given_blob("layer")
        .get("/v2/{repo}/blobs/{layer}")
        .with("range", "bytes=99000-")
        .gives(206)
        .part("layer", 99_000..100_000),
        should("pull blobs", "a range of the last bytes")
            .given_blob("layer")
            .get("/v2/{repo}/blobs/{layer}")
            .with("range", "bytes=-5")
            .gives(206)
            .part("layer", 99_995..100_000),
        should(
            "pull blobs",
            "a range that is not there is 416, and tells the size",
        )
        .given_blob("layer")
        .get("/v2/{repo}/blobs/{layer}")
        .with("range", "bytes=100000-")
        .gives(416)
        .header("content-range", "bytes */100000"),
        should(
            "pull blobs",
            "a range that makes no sense is as good as none",
        )
        .given_blob("layer")
        .get("/v2/{repo}/blobs/{layer}")
        .with("range", "lines=1-2")
        .gives(200)
        .is("layer"),
        may("pull blobs", "a blob that the client has is not sent again")
            .given_blob("layer")
            .get("/v2/{repo}/blobs/{layer}")
            .keep("etag", "etag")
            .get("/v2/{repo}/blobs/{layer}")
            .with("if-none-match", "{etag}")
            .gives(304)
            .is("empty"),
        may(
            "pull blobs",
            "a part is only worth having of the same bytes",
        )
        .given_blob("layer")
        .get("/v2/{repo}/blobs/{layer}")
        .with("range", "bytes=0-9")
        .with("if-range", "\"other\"")
        .gives(200)
        .is("layer"),
        must(
            "existence",
            "a blob that is there: its size and digest, and no bytes",
        )
        .given_blob("layer")
        .head("/v2/{repo}/blobs/{layer}")
        .gives(200)
        .is("empty")
        .header("content-length", "{layer.len}")
        .header("docker-content-digest", "{layer}"),
        must(
            "existence",
            "a manifest that is there, by tag and by digest",
        )
        .given_image("v1")
        .head("/v2/{repo}/manifests/v1")
        .gives(200)
        .is("empty")
        .header("content-length", "{image.len}")
        .header("docker-content-digest", "{image}")
        .header("content-type", MANIFEST)
        .head("/v2/{repo}/manifests/{image}")
        .gives(200)
        .header("content-length", "{image.len}")
        .header("docker-content-digest", "{image}"),
        must("existence", "what is not there is 404, without a body")
            .head("/v2/{repo}/blobs/{never-pushed}")
            .gives(404)
            .is("empty")
            .head("/v2/{repo}/manifests/v1")
            .gives(404)
            .is("empty")
            .head("/v2/{repo}/manifests/{image}")
            .gives(404),
    ]
}

#[tokio::test]
async fn pulling_is_as_specified() {
    check("pulling_is_as_specified", rows).await;
}
