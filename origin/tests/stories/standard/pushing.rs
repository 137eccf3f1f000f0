//! Pushing blobs: in one request, in two, mounted; and uploads that are given up.

use super::table::{Row, check, may, must, should};

fn whole() -> Vec<Row> {
    vec![
        must(
            "push: POST, then PUT",
            "a push begins with a Location, and ends with the blob's",
        )
        .post("/v2/{repo}/blobs/uploads/")
        .gives(202)
        .keep("location", "upload")
        .put("{upload+}digest={layer}")
        .sends("layer")
        .with("content-type", "application/octet-stream")
        .gives(201)
        .keep("location", "blob")
        .get("{blob}")
        .gives(200)
        .is("layer"),
        must(
            "push: POST, then PUT",
            "each upload has a Location of its own",
        )
        .given_upload()
        .post("/v2/{repo}/blobs/uploads/")
        .gives(202)
        .keep("location", "second")
        .put("{upload+}digest={layer}")
        .sends("layer")
        .gives(201)
        .put("{second+}digest={config}")
        .sends("config")
        .gives(201)
        .head("/v2/{repo}/blobs/{layer}")
        .gives(200)
        .head("/v2/{repo}/blobs/{config}")
        .gives(200),
        should(
            "push",
            "bytes that are not the digest's are 400, and no blob",
        )
        .given_upload()
        .put("{upload+}digest={layer}")
        .sends("config")
        .gives(400)
        .code("DIGEST_INVALID")
        .head("/v2/{repo}/blobs/{layer}")
        .gives(404),
        should("push", "a malformed digest is 400")
            .given_upload()
            .put("{upload+}digest=sha256:zz")
            .sends("layer")
            .gives(400),
        should("push", "an algorithm that is not supported is 400")
            .given_upload()
            .put("{upload+}digest=md5:d41d8cd98f00b204e9800998ecf8427e")
            .gives(400)
            .code("DIGEST_INVALID"),
        should("push", "a malformed digest in a single POST is 400")
            .post("/v2/{repo}/blobs/uploads/?digest=sha256:zz")
            .sends("layer")
            .gives(400)
            .code("DIGEST_INVALID"),
        must("push", "an upload is not finished without a digest")
            .given_upload()
            .put("{upload}")
            .sends("layer")
            .gives(400),
        may("push: a single POST", "one request is enough")
            .post("/v2/{repo}/blobs/uploads/?digest={layer}")
            .sends("layer")
            .with("content-type", "application/octet-stream")
            .gives(201)
            .keep("location", "blob")
            .get("{blob}")
            .gives(200)
            .is("layer"),
        must("push: a single POST", "the bytes are the digest's")
            .post("/v2/{repo}/blobs/uploads/?digest={layer}")
            .sends("config")
            .gives(400)
            .code("DIGEST_INVALID")
            .head("/v2/{repo}/blobs/{layer}")
            .gives(404),
        may(
            "push: a single POST",
            "a blob that is there already is taken again",
        )
        .given_blob("layer")
        .given_blob("layer")
        .get("/v2/{repo}/blobs/{layer}")
        .gives(200)
        .is("layer"),
        must("push: sha512", "in one POST")
            .post("/v2/{repo}/blobs/uploads/?digest={layer.sha512}")
            .sends("layer")
            .gives(201)
            .get("/v2/{repo}/blobs/{layer.sha512}")
            .gives(200)
            .is("layer")
            .header("docker-content-digest", "{layer.sha512}"),
        should("push: sha512", "announced, then in chunks")
            .post("/v2/{repo}/blobs/uploads/?digest-algorithm=sha512")
            .with("content-length", "0")
            .gives(202)
            .keep("location", "upload")
            .patch("{upload}")
            .sends("layer")
            .gives(202)
            .keep("location", "upload")
            .put("{upload+}digest={layer.sha512}")
            .gives(201)
            .get("/v2/{repo}/blobs/{layer.sha512}")
            .gives(200)
            .is("layer"),
        should(
            "push: sha512",
            "not announced: the digest that finishes the upload counts",
        )
        .given_upload()
        .patch("{upload}")
        .sends("layer")
        .gives(202)
        .keep("location", "upload")
        .put("{upload+}digest={layer.sha512}")
        .gives(201)
        .head("/v2/{repo}/blobs/{layer.sha512}")
        .gives(200),
        should(
            "push: sha512",
            "an algorithm that is not supported is 400 when it is announced",
        )
        .post("/v2/{repo}/blobs/uploads/?digest-algorithm=md5")
        .gives(400)
        .code("DIGEST_INVALID"),
        should("cancel", "an upload that is given up is gone")
            .given_upload()
            .patch("{upload}")
            .sends("layer")
            .gives(202)
            .keep("location", "upload")
            .delete("{upload}")
            .gives(204)
            .get("{upload}")
            .gives(404)
            .code("BLOB_UPLOAD_UNKNOWN")
            .put("{upload+}digest={layer}")
            .gives(404)
            .head("/v2/{repo}/blobs/{layer}")
            .gives(404),
        should("cancel", "an upload without bytes can be given up, once")
            .given_upload()
            .delete("{upload}")
            .gives(204)
            .delete("{upload}")
            .gives(404),
        must("cancel", "an upload that never was is 404")
            .delete("/v2/{repo}/blobs/uploads/nonsense")
            .gives(404)
            .code("BLOB_UPLOAD_UNKNOWN"),
        must("mount", "from a repository that has the blob")
            .given_blob("layer")
            .post("/v2/{other}/blobs/uploads/?mount={layer}&from={repo}")
            .gives(201)
            .header("docker-content-digest", "{layer}")
            .keep("location", "blob")
            .get("{blob}")
            .gives(200)
            .is("layer"),
        should(
            "mount",
            "what the other repository does not have is an upload that begins",
        )
        .post("/v2/{repo}/blobs/uploads/?mount={never-pushed}&from={other}")
        .gives(202)
        .keep("location", "upload")
        .put("{upload+}digest={layer}")
        .sends("layer")
        .gives(201),
        may("mount", "from wherever it is")
            .given_blob("layer")
            .post("/v2/{other}/blobs/uploads/?mount={layer}")
            .gives(201)
            .get("/v2/{other}/blobs/{layer}")
            .gives(200)
            .is("layer"),
        should("mount", "what is nowhere is an upload that begins")
            .post("/v2/{repo}/blobs/uploads/?mount={never-pushed}")
            .gives(202)
            .has("location"),
        must(
            "mount",
            "a mounted blob stays when the other repository deletes its own",
        )
        .given_blob("layer")
        .post("/v2/{other}/blobs/uploads/?mount={layer}&from={repo}")
        .gives(201)
        .delete("/v2/{repo}/blobs/{layer}")
        .gives(202)
        .get("/v2/{other}/blobs/{layer}")
        .gives(200)
        .is("layer"),
    ]
}

fn chunks() -> Vec<Row> {
    vec![
        must(
            "push: chunks",
            "in order, each with the range so far; the last one closes with the digest",
        )
        .post("/v2/{repo}/blobs/uploads/")
        .with("content-length", "0")
        .gives(202)
        .keep("location", "upload")
        .patch("{upload}")
        .with("content-range", "0-59999")
        .sends("layer-start")
        .gives(202)
        .header("range", "0-59999")
        .keep("location", "upload")
        .patch("{upload}")
        .with("content-range", "60000-89999")
        .sends("layer-middle")
        .gives(202)
        .header("range", "0-89999")
        .keep("location", "upload")
        .put("{upload+}digest={layer}")
        .with("content-range", "90000-99999")
        .sends("layer-end")
        .gives(201)
        .keep("location", "blob")
        .get("{blob}")
        .gives(200)
        .is("layer"),
        must("push: chunks", "closed by a PUT without bytes")
            .given_upload()
            .patch("{upload}")
            .with("content-range", "0-99999")
            .sends("layer")
            .gives(202)
            .keep("location", "upload")
            .put("{upload+}digest={layer}")
            .gives(201)
            .get("/v2/{repo}/blobs/{layer}")
            .is("layer"),
        should(
            "push: chunks",
            "the least length of a chunk is told at the beginning",
        )
        .post("/v2/{repo}/blobs/uploads/")
        .gives(202)
        .header("oci-chunk-min-length", "1048576"),
        must(
            "push: chunks",
            "a first chunk that does not begin at 0 is 416",
        )
        .given_upload()
        .patch("{upload}")
        .with("content-range", "60000-89999")
        .sends("layer-middle")
        .gives(416),
        must(
            "push: chunks",
            "a gap is 416, and the upload goes on where it was",
        )
        .given_upload()
        .patch("{upload}")
        .with("content-range", "0-59999")
        .sends("layer-start")
        .gives(202)
        .keep("location", "upload")
        .patch("{upload}")
        .with("content-range", "90000-99999")
        .sends("layer-end")
        .gives(416)
        .header("range", "0-59999")
        .get("{upload}")
        .gives(204)
        .header("range", "0-59999")
        .keep("location", "upload")
        .patch("{upload}")
        .with("content-range", "60000-89999")
        .sends("layer-middle")
        .gives(202),
        must(
            "push: chunks",
            "a chunk that was there already is 416, though its bytes are the same",
        )
        .given_upload()
        .patch("{upload}")
        .with("content-range", "0-59999")
        .sends("layer-start")
        .gives(202)
        .patch("{upload}")
        .with("content-range", "0-59999")
        .sends("layer-start")
        .gives(416),
        must("push: chunks", "a last chunk out of order is 416")
            .given_upload()
            .patch("{upload}")
            .with("content-range", "0-59999")
            .sends("layer-start")
            .gives(202)
            .keep("location", "upload")
            .put("{upload+}digest={layer}")
            .with("content-range", "90000-99999")
            .sends("layer-end")
            .gives(416)
            .head("/v2/{repo}/blobs/{layer}")
            .gives(404),
        must(
            "push: chunks",
            "how far an upload is, before its first byte and after",
        )
        .given_upload()
        .get("{upload}")
        .gives(204)
        .has("location")
        .has("range")
        .patch("{upload}")
        .sends("layer-start")
        .gives(202)
        .keep("location", "upload")
        .get("{upload}")
        .gives(204)
        .header("range", "0-59999")
        .keep("location", "upload")
        .patch("{upload}")
        .sends("layer-middle")
        .gives(202)
        .header("range", "0-89999"),
        must(
            "push: chunks",
            "a client that has only the first Location asks how far its upload is, and goes on",
        )
        .given_upload()
        .patch("{upload}")
        .with("content-range", "0-59999")
        .sends("layer-start")
        .gives(202)
        .get("{upload}")
        .gives(204)
        .header("range", "0-59999")
        .keep("location", "upload")
        .patch("{upload}")
        .with("content-range", "60000-89999")
        .sends("layer-middle")
        .gives(202)
        .keep("location", "upload")
        .put("{upload+}digest={layer}")
        .sends("layer-end")
        .gives(201)
        .get("/v2/{repo}/blobs/{layer}")
        .is("layer"),
        must("push: chunks", "streamed: one PATCH without a range")
            .given_upload()
            .patch("{upload}")
            .sends("layer")
            .gives(202)
            .header("range", "0-99999")
            .keep("location", "upload")
            .put("{upload+}digest={layer}")
            .gives(201)
            .get("/v2/{repo}/blobs/{layer}")
            .is("layer"),
        must("push: chunks", "an upload that is finished is no more")
            .given_upload()
            .put("{upload+}digest={layer}")
            .sends("layer")
            .gives(201)
            .get("{upload}")
            .gives(404),
        may("push: chunks", "closing twice gives the same answer")
            .given_upload()
            .put("{upload+}digest={layer}")
            .sends("layer")
            .gives(201)
            .put("{upload+}digest={layer}")
            .sends("layer")
            .gives(201)
            .has("location"),
        must(
            "push: chunks",
            "a digest that is not the whole blob's is 400",
        )
        .given_upload()
        .patch("{upload}")
        .sends("layer-start")
        .gives(202)
        .keep("location", "upload")
        .put("{upload+}digest={layer-end}")
        .sends("layer-end")
        .gives(400)
        .code("DIGEST_INVALID"),
        must(
            "push: chunks",
            "a range that is none, or not of these bytes, is 400",
        )
        .given_upload()
        .patch("{upload}")
        .with("content-range", "from the start")
        .sends("layer-start")
        .gives(400)
        .patch("{upload}")
        .with("content-range", "0-10")
        .sends("layer-start")
        .gives(400),
        must("push: chunks", "an upload that never was is 404")
            .patch("/v2/{repo}/blobs/uploads/nonsense")
            .sends("layer")
            .gives(404)
            .code("BLOB_UPLOAD_UNKNOWN")
            .get("/v2/{repo}/blobs/uploads/nonsense")
            .gives(404)
            .put("/v2/{repo}/blobs/uploads/nonsense?digest={layer}")
            .gives(404),
    ]
}

#[tokio::test]
async fn pushing_whole_blobs_is_as_specified() {
    check("pushing_whole_blobs_is_as_specified", whole).await;
}

#[tokio::test]
async fn pushing_chunks_is_as_specified() {
    check("pushing_chunks_is_as_specified", chunks).await;
}
