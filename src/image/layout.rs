//! Reads OCI image layouts (image specification 1.1, "Image Layout"): folders with `oci-layout`,
//! `index.json` and `blobs/ALGORITHM/HEX`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use flotilla_common::digest::Digest;
use flotilla_common::manifest::{Descriptor, Manifest, ManifestError};

/// An open image layout.
#[derive(Debug)]
pub struct Layout {
    dir: PathBuf,
    image: Descriptor,
}

/// Why a folder cannot be used as an image.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A file is missing or cannot be read.
    #[error("read {}: {source}; is '{}' an OCI layout, as `skopeo copy ... oci:DIR` writes it?", path.display(), dir.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The layout.
        dir: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The index or a manifest is not valid.
    #[error("read {}: {source}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// The layout has no image, or more than one.
    #[error("'{}' has {found} images; a layout with exactly one is required", dir.display())]
    NotOneImage {
        /// The layout.
        dir: PathBuf,
        /// The number of images.
        found: usize,
    },
}

impl Layout {
    /// Opens a layout with one image or one index.
    ///
    /// # Errors
    /// If a file is missing, or the layout has not exactly one image.
    pub fn open(dir: &Path) -> Result<Self, LayoutError> {
        let path = dir.join("index.json");
        let index = read_manifest(dir, &path)?;
        match <[Descriptor; 1]>::try_from(index.manifests) {
            Ok([image]) => Ok(Self {
                dir: dir.to_owned(),
                image,
            }),
            Err(manifests) => Err(LayoutError::NotOneImage {
                dir: dir.to_owned(),
                found: manifests.len(),
            }),
        }
    }

    /// The image, or the index of several platforms.
    pub const fn image(&self) -> &Descriptor {
        &self.image
    }

    /// The path of a blob.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir
            .join("blobs")
            .join(digest.algorithm().as_str())
            .join(digest.hex())
    }

    /// Opens a blob, and returns its size.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn open_blob(&self, digest: &Digest) -> Result<(File, u64), LayoutError> {
        let path = self.blob_path(digest);
        File::open(&path)
            .and_then(|file| {
                let len = file.metadata()?.len();
                Ok((file, len))
            })
            .map_err(|source| LayoutError::Read {
                path,
                dir: self.dir.clone(),
                source,
            })
    }

    /// Reads a manifest: its bytes, and parsed.
    ///
    /// # Errors
    /// If the file cannot be read or is not a valid manifest.
    pub fn manifest(&self, digest: &Digest) -> Result<(Vec<u8>, Manifest), LayoutError> {
        let path = self.blob_path(digest);
        let bytes = read(&self.dir, &path)?;
        let manifest =
            Manifest::parse(&bytes).map_err(|source| LayoutError::Manifest { path, source })?;
        Ok((bytes, manifest))
    }
}

fn read_manifest(dir: &Path, path: &Path) -> Result<Manifest, LayoutError> {
    Manifest::parse(&read(dir, path)?).map_err(|source| LayoutError::Manifest {
        path: path.to_owned(),
        source,
    })
}

fn read(dir: &Path, path: &Path) -> Result<Vec<u8>, LayoutError> {
    fs::read(path).map_err(|source| LayoutError::Read {
        path: path.to_owned(),
        dir: dir.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_an_invalid_layout_names_the_fix() {
        let dir = tempfile::tempdir().expect("a folder");
        let message = Layout::open(dir.path())
            .expect_err("the folder is empty")
            .to_string();
        assert!(
            message.contains("index.json") && message.contains("skopeo"),
            "{message}"
        );
        fs::write(
            dir.path().join("index.json"),
            r#"{"schemaVersion":2,"manifests":[]}"#,
        )
        .expect("written");
        let message = Layout::open(dir.path()).expect_err("no image").to_string();
        assert!(message.contains("has 0 images"), "{message}");
    }
}
