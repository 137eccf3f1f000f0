//! The request bodies of the tables, by name.

use bytes::Bytes;
use flotilla_common::digest::Digest;
use serde_json::{Value, json};

use crate::support::{INDEX, MANIFEST, descriptor, manifest, sample};

const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";

/// The body of a name.
///
/// # Panics
/// If the name is unknown.
pub(super) fn body(name: &str) -> Bytes {
    match name {
        "empty" => Bytes::new(),
        "config" => "{}".into(),
        "layer" => sample(100_000, 1),
        "layer-start" => sample(100_000, 1).slice(..60_000),
        "layer-middle" => sample(100_000, 1).slice(60_000..90_000),
        "layer-end" => sample(100_000, 1).slice(90_000..),
        "never-pushed" => "never pushed".into(),
        "image" => manifest(&body("config"), &[body("layer")]),
        "image-2" => text(annotated(&body("image"), "second")),
        "no-layers" => manifest(&body("config"), &[]),
        "custom-fields" => text(
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "org.example.own": {"a": [1]},
            "config": descriptor(CONFIG_TYPE, &body("config")), "layers": []}),
        ),
        // Unusual whitespace, which a registry must preserve.
        "odd-spacing" => String::from_utf8_lossy(&body("image"))
            .replace(",\"", " ,\n\t\"")
            .into(),
        "untyped" => text(
            json!({"schemaVersion": 2, "layers": [], "config": descriptor("x/y", &body("config"))}),
        ),
        "sparse" => manifest(&body("config"), &[body("never-pushed")]),
        "foreign-layer" => text(json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor(CONFIG_TYPE, &body("config")), "layers": [{
                "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar",
                "digest": Digest::sha256(b"elsewhere"), "size": 9, "urls": ["https://example.com/layer"]}]})),
        "index" => text(
            json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
            descriptor(MANIFEST, &body("image")), descriptor(MANIFEST, &body("no-layers"))]}),
        ),
        "nested-index" => text(
            json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(INDEX, &body("index"))]}),
        ),
        "sparse-index" => text(json!({"schemaVersion": 2, "mediaType": INDEX,
            "manifests": [descriptor(MANIFEST, b"never pushed")]})),
        "sbom" => artifact("application/vnd.example.sbom", "one"),
        "signature" => artifact("application/vnd.example.signature", "two"),
        "signature-2" => artifact("application/vnd.example.signature", "three"),
        "untyped-artifact" => text(
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
            "config": descriptor("application/vnd.example.config", &body("config")),
            "subject": descriptor(MANIFEST, &body("image"))}),
        ),
        "referring-index" => text(
            json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [],
            "artifactType": "application/vnd.example.list", "annotations": {"kind": "list"},
            "subject": descriptor(MANIFEST, &body("image"))}),
        ),
        "untyped-index" => text(
            json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [],
            "subject": descriptor(MANIFEST, &body("image"))}),
        ),
        "orphan" => text(
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
            "config": descriptor(CONFIG_TYPE, &body("config")), "subject": descriptor(MANIFEST, b"not there")}),
        ),
        "largest" => padded(4 << 20),
        "too-large" => padded((4 << 20) + 1),
        "not-json" => "{\"schemaVersion\":".into(),
        other => panic!("unknown body {other}"),
    }
}

fn text(value: Value) -> Bytes {
    value.to_string().into()
}

fn annotated(manifest: &[u8], note: &str) -> Value {
    let mut manifest: Value = serde_json::from_slice(manifest).unwrap();
    manifest["annotations"] = json!({"note": note});
    manifest
}

fn artifact(artifact_type: &str, kind: &str) -> Bytes {
    text(
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": artifact_type,
        "config": descriptor("application/vnd.oci.empty.v1+json", &body("config")),
        "layers": [descriptor(LAYER_TYPE, &body("layer"))],
        "subject": descriptor(MANIFEST, &body("image")), "annotations": {"kind": kind}}),
    )
}

/// A manifest of exactly this many bytes.
fn padded(len: usize) -> Bytes {
    let text =
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "annotations": {"pad": ""}}).to_string();
    text.replace("\"\"", &format!("\"{}\"", "x".repeat(len - text.len())))
        .into()
}
