//! Deleting, and errors.

use super::table::{Row, check, must};

fn deletes() -> Vec<Row> {
    vec![
        must(
            "delete tags",
            "accepted, then gone; the manifest and its other tags stay",
        )
        .given_image("v1")
        .put_manifest("v2", "image")
        .gives(201)
        .delete("/v2/{repo}/manifests/v1")
        .gives(202)
        .get("/v2/{repo}/manifests/v1")
        .gives(404)
        .head("/v2/{repo}/manifests/v1")
        .gives(404)
        .get("/v2/{repo}/manifests/v2")
        .gives(200)
        .get("/v2/{repo}/manifests/{image}")
        .gives(200),
        must(
            "delete tags",
            "a tag that is not there is 404, also the second time",
        )
        .given_image("v1")
        .delete("/v2/{repo}/manifests/v2")
        .gives(404)
        .delete("/v2/{repo}/manifests/v1")
        .gives(202)
        .delete("/v2/{repo}/manifests/v1")
        .gives(404),
        must("delete tags", "a deleted tag can be pushed again")
            .given_image("v1")
            .delete("/v2/{repo}/manifests/v1")
            .gives(202)
            .put_manifest("v1", "image-2")
            .gives(201)
            .get("/v2/{repo}/manifests/v1")
            .is("image-2"),
        must(
            "delete manifests",
            "accepted, then gone, with every tag that names it",
        )
        .given_image("v1")
        .put_manifest("v2", "image")
        .gives(201)
        .delete("/v2/{repo}/manifests/{image}")
        .gives(202)
        .get("/v2/{repo}/manifests/{image}")
        .gives(404)
        .get("/v2/{repo}/manifests/v1")
        .gives(404)
        .head("/v2/{repo}/manifests/v2")
        .gives(404),
        must(
            "delete manifests",
            "what is not there is 404, and so is a repository that is not there",
        )
        .given_image("v1")
        .delete("/v2/{repo}/manifests/{no-layers}")
        .gives(404)
        .delete("/v2/{other}/manifests/{image}")
        .gives(404),
        must("delete manifests", "another repository keeps its own")
            .given_image("v1")
            .post("/v2/{other}/blobs/uploads/?mount={config}&from={repo}")
            .gives(201)
            .post("/v2/{other}/blobs/uploads/?mount={layer}&from={repo}")
            .gives(201)
            .put("/v2/{other}/manifests/v1")
            .with("content-type", crate::support::MANIFEST)
            .sends("image")
            .gives(201)
            .delete("/v2/{repo}/manifests/{image}")
            .gives(202)
            .get("/v2/{other}/manifests/v1")
            .gives(200)
            .is("image"),
        must("delete blobs", "accepted, then gone")
            .given_blob("layer")
            .delete("/v2/{repo}/blobs/{layer}")
            .gives(202)
            .get("/v2/{repo}/blobs/{layer}")
            .gives(404)
            .head("/v2/{repo}/blobs/{layer}")
            .gives(404),
        must(
            "delete blobs",
            "what is not there is 404, also the second time",
        )
        .delete("/v2/{repo}/blobs/{layer}")
        .gives(404)
        .code("BLOB_UNKNOWN")
        .given_blob("layer")
        .delete("/v2/{repo}/blobs/{layer}")
        .gives(202)
        .delete("/v2/{repo}/blobs/{layer}")
        .gives(404),
        must("delete blobs", "a deleted blob can be pushed again")
            .given_blob("layer")
            .delete("/v2/{repo}/blobs/{layer}")
            .gives(202)
            .given_blob("layer")
            .get("/v2/{repo}/blobs/{layer}")
            .gives(200)
            .is("layer"),
    ]
}

/// Every 4xx names one of the specification's codes, and nothing is a 500.
fn errors() -> Vec<Row> {
    vec![
        must("errors", "a malformed name")
            .get("/v2/UPPER/manifests/v1")
            .gives(400)
            .code("NAME_INVALID")
            .get("/v2/a..b/tags/list")
            .gives(400)
            .code("NAME_INVALID")
            .get("/v2/-a/tags/list")
            .gives(400)
            .post("/v2/a__b___c/blobs/uploads/")
            .gives(400)
            .code("NAME_INVALID"),
        must("errors", "a name that is too long")
            .get(format!("/v2/{}/tags/list", "n".repeat(300)))
            .gives(400)
            .code("NAME_INVALID"),
        must("errors", "a malformed digest")
            .get("/v2/{repo}/blobs/sha256:00")
            .gives(400)
            .code("DIGEST_INVALID")
            .head("/v2/{repo}/blobs/nonsense")
            .gives(400)
            .delete("/v2/{repo}/blobs/sha256:zz")
            .gives(400)
            .get("/v2/{repo}/manifests/sha256:short")
            .gives(400)
            .delete("/v2/{repo}/manifests/sha256:short")
            .gives(400)
            .get("/v2/{repo}/manifests/md5:d41d8cd98f00b204e9800998ecf8427e")
            .gives(400),
        must("errors", "a malformed tag is one that is not there")
            .get("/v2/{repo}/manifests/.INVALID")
            .gives(404)
            .code("MANIFEST_UNKNOWN")
            .head("/v2/{repo}/manifests/%20")
            .gives(404),
        must("errors", "paths that are none")
            .get("/v2/{repo}")
            .gives(404)
            .get("/v2/%zz/manifests/v1")
            .gives(404)
            .get("/")
            .gives(404),
        must("errors", "methods that are none")
            .post("/v2/{repo}/tags/list")
            .gives(405)
            .code("UNSUPPORTED")
            .has("allow")
            .patch("/v2/{repo}/manifests/v1")
            .gives(405)
            .put("/v2/{repo}/blobs/{layer}")
            .gives(405),
        must("errors", "a 416 has a code of the specification")
            .given_blob("layer")
            .get("/v2/{repo}/blobs/{layer}")
            .with("range", "bytes=200000-")
            .gives(416)
            .code("SIZE_INVALID"),
    ]
}

#[tokio::test]
async fn deleting_is_as_specified() {
    check("deleting_is_as_specified", deletes).await;
}

#[tokio::test]
async fn errors_are_as_specified() {
    check("errors_are_as_specified", errors).await;
}
