//! Generates an image of tar layers with incompressible bytes, as an OCI layout.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use flotilla_common::digest::{Algorithm, Digest, DigestHasher};
use flotilla_common::manifest::{Descriptor, Manifest, OCI_INDEX, OCI_MANIFEST};
use flotilla_common::units::ByteSize;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use serde_json::json;

/// Sizes of the layers in percent of the image: a base, a runtime, libraries, an application.
const LAYER_PERCENTAGES: [u64; 4] = [50, 25, 15, 10];
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Upper bound of the bytes that a tar archive adds to one file.
const TAR_OVERHEAD: u64 = 4096;

/// Writes an image of about `size` bytes into `dir`, as a layout. Images of the same size and
/// `rng_seed` are equal.
///
/// # Errors
/// If a file cannot be written.
pub fn generate(dir: &Path, size: ByteSize, rng_seed: u64) -> io::Result<()> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let mut generator = Pcg64Mcg::seed_from_u64(rng_seed);
    let mut layers = Vec::with_capacity(LAYER_PERCENTAGES.len());
    for (number, percentage) in LAYER_PERCENTAGES.iter().enumerate() {
        let content = (size.0 * percentage / 100)
            .saturating_sub(TAR_OVERHEAD)
            .max(1);
        layers.push(write_layer(
            &blobs,
            &format!("layer-{number}.bin"),
            content,
            &mut generator,
        )?);
    }
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.digest).collect();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = write_blob(&blobs, CONFIG, config.to_string().as_bytes())?;
    let manifest = write_json(
        &blobs,
        &manifest(OCI_MANIFEST, Some(config), layers, Vec::new()),
    )?;
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = manifest_text(&self::manifest(OCI_INDEX, None, Vec::new(), vec![manifest]))?;
    fs::write(dir.join("index.json"), index)
}

fn manifest(
    media_type: &str,
    config: Option<Descriptor>,
    layers: Vec<Descriptor>,
    manifests: Vec<Descriptor>,
) -> Manifest {
    Manifest {
        schema_version: 2,
        media_type: Some(media_type.to_owned()),
        artifact_type: None,
        config,
        layers,
        manifests,
        subject: None,
        annotations: Default::default(),
    }
}

fn manifest_text(manifest: &Manifest) -> io::Result<Vec<u8>> {
    serde_json::to_vec(manifest).map_err(io::Error::other)
}

fn write_json(blobs: &Path, manifest: &Manifest) -> io::Result<Descriptor> {
    write_blob(blobs, OCI_MANIFEST, &manifest_text(manifest)?)
}

fn write_blob(blobs: &Path, media_type: &str, bytes: &[u8]) -> io::Result<Descriptor> {
    let digest = Digest::sha256(bytes);
    fs::write(blobs.join(digest.hex()), bytes)?;
    Ok(descriptor(media_type, digest, bytes.len() as u64))
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        platform: None,
        artifact_type: None,
        annotations: Default::default(),
        urls: Vec::new(),
    }
}

/// Writes a tar archive of one file of random bytes, hashing it on the way.
fn write_layer(
    blobs: &Path,
    name: &str,
    content: u64,
    generator: &mut Pcg64Mcg,
) -> io::Result<Descriptor> {
    let temporary = blobs.join(name);
    let mut archive = tar::Builder::new(HashingFile::new(File::create(&temporary)?));
    let mut header = tar::Header::new_ustar();
    header.set_size(content);
    header.set_mode(0o644);
    archive.append_data(
        &mut header,
        name,
        RandomBytes {
            generator,
            left: content,
        },
    )?;
    let HashingFile { file, hasher, len } = archive.into_inner()?;
    file.sync_data()?;
    let digest = hasher.finish();
    fs::rename(temporary, blobs.join(digest.hex()))?;
    Ok(descriptor(LAYER, digest, len))
}

/// A reader of `left` random bytes.
struct RandomBytes<'a> {
    generator: &'a mut Pcg64Mcg,
    left: u64,
}

impl Read for RandomBytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        self.generator.fill(&mut buffer[..len]);
        self.left -= len as u64;
        Ok(len)
    }
}

/// A file that hashes the bytes written to it.
struct HashingFile {
    file: File,
    hasher: DigestHasher,
    len: u64,
}

impl HashingFile {
    fn new(file: File) -> Self {
        Self {
            file,
            hasher: DigestHasher::new(Algorithm::Sha256),
            len: 0,
        }
    }
}

impl Write for HashingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Layout;

    #[test]
    fn generated_images_are_valid_layouts() {
        let dir = tempfile::tempdir().expect("a folder");
        generate(dir.path(), ByteSize(1 << 20), 7).expect("generated");
        let layout = Layout::open(dir.path()).expect("a layout");
        let (_, manifest) = layout.manifest(&layout.image().digest).expect("a manifest");
        assert_eq!(manifest.layers.len(), 4);
        let mut total = 0;
        for blob in manifest.blobs() {
            let bytes = fs::read(layout.blob_path(&blob.digest)).expect("a blob");
            assert_eq!(bytes.len() as u64, blob.size);
            assert!(blob.digest.matches(&bytes));
            total += blob.size;
        }
        let wanted = 1_u64 << 20;
        assert!(total.abs_diff(wanted) < wanted / 50, "{total} bytes");
    }
}
