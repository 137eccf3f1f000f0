//! Files of identities: read with errors that name the file, the fault and the fix; written
//! durably, secrets readable by their owner only.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flotilla_common::name::RegionName;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The purpose of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A certificate, followed by its intermediates (PEM).
    Certificate,
    /// The private key of a certificate (PEM).
    PrivateKey,
    /// The trusted certificates (PEM).
    Authority,
    /// The private key of the fleet's certificate authority (PEM).
    AuthorityKey,
    /// The secret with which an origin signs seals.
    SealKey,
    /// The public keys of the trusted origins.
    TrustedKeys,
}

impl FileKind {
    const fn is_secret(self) -> bool {
        matches!(self, Self::PrivateKey | Self::AuthorityKey | Self::SealKey)
    }

    const fn hint(self) -> &'static str {
        match self {
            Self::Certificate | Self::PrivateKey => {
                "create certificates and keys with 'flotilla pki issue'"
            }
            _ => "create the files of a fleet with 'flotilla pki init'",
        }
    }

    /// The fix for a file that exists and must not be overwritten.
    const fn hint_if_exists(self) -> &'static str {
        match self {
            Self::Certificate | Self::PrivateKey => {
                "choose another name, or renew it ('flotilla pki issue' with --renew)"
            }
            Self::SealKey => {
                "the region's origin uses it; 'flotilla pki issue --origin REGION --renew' adds a second key"
            }
            Self::Authority | Self::AuthorityKey | Self::TrustedKeys => {
                "this directory holds a fleet. Add peers, servers and origins to it with 'flotilla pki \
                 issue', or use another directory for another fleet; an authority cannot be renewed in place"
            }
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "certificate",
            Self::PrivateKey => "private key",
            Self::Authority => "authority's certificate",
            Self::AuthorityKey => "authority's private key",
            Self::SealKey => "seal key",
            Self::TrustedKeys => "trusted keys",
        })
    }
}

/// Why an identity cannot be created, loaded or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read.
    #[error("read {kind} '{}': {source} ({})", path.display(), kind.hint())]
    Read {
        /// The purpose of the file.
        kind: FileKind,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The content is not valid.
    #[error("{kind} in {location}: {fault} ({})", kind.hint())]
    Content {
        /// The purpose of the file.
        kind: FileKind,
        /// Where the content comes from.
        location: ContentSource,
        /// The fault.
        fault: String,
    },
    /// The certificate was not issued by the authority beside it, or must not be used so.
    #[error(
        "certificate in {certificate} does not verify against the authority in {authority}: {fault}; \
         use the certificate and the authority of one fleet, or issue the certificate with that \
         authority's key ('flotilla pki issue --server NAMES --region {region} --renew')"
    )]
    Untrusted {
        /// Where the certificate comes from.
        certificate: ContentSource,
        /// Where the authority comes from.
        authority: ContentSource,
        /// The region that the certificate names.
        region: RegionName,
        /// The fault.
        fault: String,
    },
    /// A file cannot be written.
    #[error("write {kind} '{}': {source}", path.display())]
    Write {
        /// The purpose of the file.
        kind: FileKind,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The file exists, and is not overwritten.
    #[error("{kind} '{}' already exists: {hint}", .0.display(), kind = .1, hint = .1.hint_if_exists())]
    Exists(PathBuf, FileKind),
    /// A name that a certificate must not be issued for.
    #[error(
        "'{0}' is not a valid server name: use an IP address, or a DNS name outside {peers}, {origins} and \
         {clients} ('flotilla pki issue' adds those names itself: --peer ID, --region NAME)",
        peers = super::PEER_DOMAIN, origins = super::ORIGIN_DOMAIN, clients = super::CLIENT_DOMAIN
    )]
    ServerName(String),
    /// A certificate cannot be issued.
    #[error("issue certificate: {0}")]
    Issue(#[from] rcgen::Error),
    /// TLS cannot be configured.
    #[error("configure TLS: {0}")]
    Tls(String),
    /// The operating system provides no random bytes.
    #[error("generate key: the operating system provides no random bytes")]
    Random,
}

/// The source of a PEM or key text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContentSource {
    /// A file.
    File(PathBuf),
    /// A text in memory.
    Memory,
}

impl fmt::Display for ContentSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "'{}'", path.display()),
            Self::Memory => f.write_str("memory"),
        }
    }
}

impl ContentSource {
    pub(super) fn fault(&self, kind: FileKind, fault: impl fmt::Display) -> IdentityError {
        IdentityError::Content {
            kind,
            location: self.clone(),
            fault: fault.to_string(),
        }
    }

    /// Parses all certificates of a PEM text; at least one.
    pub(super) fn certificates(
        &self,
        kind: FileKind,
        text: &str,
    ) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let certificates: Result<Vec<_>, pem::Error> =
            CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        let certificates = certificates.map_err(|error| self.fault(kind, error))?;
        if certificates.is_empty() {
            return Err(self.fault(kind, "contains no '-----BEGIN CERTIFICATE-----'"));
        }
        Ok(certificates)
    }

    /// Parses the private key of a PEM text.
    pub(super) fn private_key(&self, text: &str) -> Result<PrivateKeyDer<'static>, IdentityError> {
        PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| match error {
            pem::Error::NoItemsFound => self.fault(
                FileKind::PrivateKey,
                "contains no '-----BEGIN PRIVATE KEY-----'",
            ),
            error => self.fault(FileKind::PrivateKey, error),
        })
    }
}

/// Reads a file.
pub(super) fn read(kind: FileKind, path: &Path) -> Result<String, IdentityError> {
    std::fs::read_to_string(path).map_err(|source| IdentityError::Read {
        kind,
        path: path.to_owned(),
        source,
    })
}

/// Replaces a file atomically; the old one stays until the new one is durable.
///
/// # Errors
/// The file cannot be written.
pub fn replace(kind: FileKind, path: &Path, text: &str) -> Result<(), IdentityError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let write = |source| IdentityError::Write {
        kind,
        path: path.to_owned(),
        source,
    };
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(write(error)),
        _ => write_new(kind, &new, text)?,
    }
    std::fs::rename(&new, path).map_err(write)
}

/// Creates a file and makes it durable; a secret gets mode 0600. Never overwrites.
///
/// # Errors
/// [`IdentityError::Exists`], or the file cannot be written.
pub fn write_new(kind: FileKind, path: &Path, text: &str) -> Result<(), IdentityError> {
    let mode = if kind.is_secret() { 0o600 } else { 0o644 };
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
    written.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => IdentityError::Exists(path.to_owned(), kind),
        _ => IdentityError::Write {
            kind,
            path: path.to_owned(),
            source,
        },
    })
}
