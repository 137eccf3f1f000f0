//! Reads an OCI image layout (image specification 1.1, "Image Layout"): a folder with `oci-layout`,
//! `index.json` and `blobs/ALGORITHM/HEX`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use flotilla_common::digest::Digest;
use flotilla_common::manifest::{Descriptor, Manifest, ManifestError};

/// An image layout that was opened.
#[derive(Debug)]
pub struct Layout {
    dir: PathBuf,
    image: Descriptor,
}

/// Why a folder cannot be used as an image.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A file is missing or unreadable.
    #[error("read {}: {source}; is '{}' an OCI layout, as `skopeo copy ... oci:DIR` writes it?", path.display(), dir.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The layout.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A manifest or the index is not one.
    #[error("read {}: {source}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ManifestError,
    },
    /// No manifest, or more than one.
    #[error("'{}' names {found} images, one is needed", dir.display())]
    NotOneImage {
        /// The layout.
        dir: PathBuf,
        /// How many there are.
        found: usize,
    },
}

impl Layout {
    /// Opens a layout that names one image or one index.
    ///
    /// # Errors
    /// What is missing, and where.
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

    /// Where the bytes of a digest are.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir
            .join("blobs")
            .join(digest.algorithm().as_str())
            .join(digest.hex())
    }

    /// Opens the bytes of a digest, with their number.
    ///
    /// # Errors
    /// If they are not there.
    pub fn open_blob(&self, digest: &Digest) -> Result<(File, u64), LayoutError> {
        let path = self.blob_path(digest);
        File::open(&path)
            .and_then(|file| Ok((file.metadata()?.len(), file)))
            .map(|(len, file)| (file, len))
            .map_err(|source| LayoutError::Read {
                path,
                dir: self.dir.clone(),
                source,
            })
    }

    /// The bytes of a manifest, and what they say.
    ///
    /// # Errors
    /// If they are not there, or no manifest.
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
    fn a_folder_that_is_no_layout_says_what_one_is() {
        let dir = tempfile::tempdir().expect("a folder");
        let message = Layout::open(dir.path())
            .expect_err("nothing there")
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
        assert!(message.contains("names 0 images"), "{message}");
    }
}
