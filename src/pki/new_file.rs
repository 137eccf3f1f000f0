//! Files that are about to be written.

use std::path::{Path, PathBuf};

use flotilla_runtime::identity::{FileKind, IdentityError, replace, write_new};

use super::error::PkiError;

/// What to do about a certificate or key that was issued before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfExists {
    /// Fail without writing anything.
    Fail,
    /// Replace a certificate and its key, or add a seal key; fail if there is nothing to renew.
    Renew,
}

/// A path and its purpose, for the report.
pub(super) type WrittenFile = (PathBuf, &'static str);

/// A file that is about to be written.
pub(super) struct NewFile {
    pub(super) kind: FileKind,
    pub(super) path: PathBuf,
}

impl NewFile {
    /// The files of the certificate and the key for `name`. To be replaced, the certificate must
    /// exist; otherwise neither file may.
    pub(super) fn certificate_and_key(
        dir: &Path,
        name: &str,
        if_exists: IfExists,
    ) -> Result<[Self; 2], PkiError> {
        let files = [
            (FileKind::Certificate, "pem"),
            (FileKind::PrivateKey, "key"),
        ]
        .map(|(kind, extension)| Self {
            kind,
            path: dir.join(format!("{name}.{extension}")),
        });
        match if_exists {
            IfExists::Fail => files.iter().try_for_each(Self::require_absent)?,
            IfExists::Renew => files[0].require_present()?,
        }
        Ok(files)
    }

    /// # Errors
    /// If the file does not exist.
    fn require_present(&self) -> Result<(), PkiError> {
        if self.path.exists() {
            return Ok(());
        }
        Err(PkiError::NothingToRenew {
            kind: self.kind,
            path: self.path.clone(),
        })
    }

    /// # Errors
    /// If the file exists.
    pub(super) fn require_absent(&self) -> Result<(), IdentityError> {
        if self.path.exists() {
            Err(IdentityError::Exists(self.path.clone(), self.kind))
        } else {
            Ok(())
        }
    }

    /// Writes the file, which must not exist.
    pub(super) fn write(
        self,
        text: &str,
        purpose: &'static str,
    ) -> Result<WrittenFile, IdentityError> {
        write_new(self.kind, &self.path, text)?;
        Ok((self.path, purpose))
    }

    /// Writes the file, replacing one that exists.
    pub(super) fn replace(
        self,
        text: &str,
        purpose: &'static str,
    ) -> Result<WrittenFile, IdentityError> {
        replace(self.kind, &self.path, text)?;
        Ok((self.path, purpose))
    }
}
