//! An image for two platforms, one with 100 layers, as an OCI layout.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use flotilla_common::digest::Digest;
use flotilla_common::manifest::{OCI_INDEX, OCI_MANIFEST};
use serde_json::{Value, json};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// The layout; its tag `v1` is the index.
#[derive(Debug)]
pub(crate) struct MultiPlatformImage {
    pub(crate) dir: PathBuf,
    pub(crate) index: Digest,
}

impl MultiPlatformImage {
    /// Writes the layout into `dir`.
    ///
    /// # Panics
    /// If a file cannot be written.
    pub(crate) fn create(dir: PathBuf) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).expect("create a layout");
        let layers: Vec<_> = (0..100)
            .map(|number| blob(&dir, LAYER, &layer(number)))
            .collect();
        let manifests = [
            image(&dir, "amd64", &layers),
            image(&dir, "arm64", &layers[..2]),
        ];
        let index =
            json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).to_string();
        let mut named = blob(&dir, OCI_INDEX, index.as_bytes());
        named["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
        let top =
            json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [named]}).to_string();
        fs::write(dir.join("index.json"), top).expect("write a layout");
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
            .expect("write a layout");
        Self {
            dir,
            index: Digest::sha256(index.as_bytes()),
        }
    }

    /// The file names of a layout's blobs.
    ///
    /// # Panics
    /// If the folder cannot be read.
    pub(crate) fn blob_names(layout: &Path) -> BTreeSet<String> {
        let blobs = fs::read_dir(layout.join("blobs/sha256")).expect("read a layout");
        blobs
            .map(|entry| {
                entry
                    .expect("read a layout")
                    .file_name()
                    .display()
                    .to_string()
            })
            .collect()
    }
}

/// A tar archive of one file.
fn layer(number: u32) -> Vec<u8> {
    let content = format!("layer {number}\n").repeat(50);
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    let mut archive = tar::Builder::new(Vec::new());
    let path = format!("file-{number}");
    archive
        .append_data(&mut header, path, content.as_bytes())
        .expect("write an archive");
    archive.into_inner().expect("write an archive")
}

/// Writes an image's config and manifest, and returns the manifest's descriptor.
fn image(dir: &Path, architecture: &str, layers: &[Value]) -> Value {
    let diff_ids: Vec<_> = layers.iter().map(|layer| &layer["digest"]).collect();
    let config = json!({"architecture": architecture, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = blob(dir, CONFIG, config.to_string().as_bytes());
    let manifest =
        json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
    let mut image = blob(dir, OCI_MANIFEST, manifest.to_string().as_bytes());
    image["platform"] = json!({"architecture": architecture, "os": "linux"});
    image
}

/// Writes a blob and returns its descriptor.
fn blob(dir: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest = Digest::sha256(bytes);
    fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).expect("write a blob");
    json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
}
