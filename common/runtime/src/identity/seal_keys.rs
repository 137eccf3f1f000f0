//! The keys with which origins sign seals: secrets in a file of the origin, public keys in a file
//! of every peer.
//!
//! Both files consist of lines of text; `#` starts a comment.
//!
//! ```text
//! seal-key:      <region> ed25519-secret <64 hex digits>
//! trusted-keys:  <region> ed25519 <64 hex digits>        one line per key: several are rotation or several regions
//! ```
//!
//! A trusted key is trusted for seals of the region on its line only.

use std::path::Path;

use flotilla_common::hex;
use flotilla_common::name::RegionName;
use flotilla_common::seal::{SealKey, TrustedKeys};

use super::crypto;
use super::files::{self, ContentSource, FileKind, IdentityError};

const SECRET: &str = "ed25519-secret";
const PUBLIC: &str = "ed25519";

/// The seal key of an origin, with the secret that its file holds.
pub struct SealSecret {
    issuer: RegionName,
    secret: [u8; 32],
}

impl std::fmt::Debug for SealSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.key().fmt(f)
    }
}

impl SealSecret {
    /// Generates a key for the origin of a region.
    ///
    /// # Errors
    /// [`IdentityError::Random`].
    pub fn generate(issuer: RegionName) -> Result<Self, IdentityError> {
        let mut secret = [0; 32];
        crypto::provider()
            .secure_random
            .fill(&mut secret)
            .map_err(|_| IdentityError::Random)?;
        Ok(Self { issuer, secret })
    }

    /// The signing key.
    pub fn key(&self) -> SealKey {
        SealKey::from_secret(self.issuer.clone(), &self.secret)
    }

    /// The text of the seal key file; secret.
    pub fn to_text(&self) -> String {
        let Self { issuer, secret } = self;
        format!(
            "# The origin of region {issuer} signs seals with this key (id {}). Keep it secret.\n{issuer} {SECRET} {}\n",
            self.key().key_id(),
            hex::encode(secret),
        )
    }
}

/// The line of a trusted-keys file for an origin's key; public.
pub fn trusted_key_line(key: &SealKey) -> String {
    format!(
        "{} {PUBLIC} {} # key id {}\n",
        key.issuer(),
        hex::encode(&key.public()),
        key.key_id()
    )
}

/// Loads the seal key from a file.
///
/// # Errors
/// The file cannot be read, or does not contain exactly one secret.
pub fn load_seal_key(path: &Path) -> Result<SealKey, IdentityError> {
    let text = files::read(FileKind::SealKey, path)?;
    let source = ContentSource::File(path.to_owned());
    match keys(&source, FileKind::SealKey, SECRET, &text)?.as_slice() {
        [(issuer, secret)] => Ok(SealKey::from_secret(issuer.clone(), secret)),
        several => {
            let fault = format!("contains {} keys instead of one", several.len());
            Err(source.fault(FileKind::SealKey, fault))
        }
    }
}

/// Loads the public keys from a file.
///
/// # Errors
/// The file cannot be read, contains no key, or has a line that is not valid.
pub fn load_trusted_keys(path: &Path) -> Result<TrustedKeys, IdentityError> {
    let text = files::read(FileKind::TrustedKeys, path)?;
    trusted_keys(&ContentSource::File(path.to_owned()), &text)
}

/// Parses public keys from the text of such a file.
///
/// # Errors
/// The text contains no key, or has a line that is not valid.
pub fn parse_trusted_keys(text: &str) -> Result<TrustedKeys, IdentityError> {
    trusted_keys(&ContentSource::Memory, text)
}

fn trusted_keys(source: &ContentSource, text: &str) -> Result<TrustedKeys, IdentityError> {
    let found = keys(source, FileKind::TrustedKeys, PUBLIC, text)?;
    if found.is_empty() {
        return Err(source.fault(FileKind::TrustedKeys, "contains no key"));
    }
    let mut trusted = TrustedKeys::none();
    for (issuer, public) in found {
        trusted.add(&issuer, &public).map_err(|_| {
            source.fault(
                FileKind::TrustedKeys,
                format!("the key of {issuer} is not a valid Ed25519 public key"),
            )
        })?;
    }
    Ok(trusted)
}

fn keys(
    source: &ContentSource,
    kind: FileKind,
    algorithm: &str,
    text: &str,
) -> Result<Vec<(RegionName, [u8; 32])>, IdentityError> {
    let mut keys = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line
            .split_once('#')
            .map_or(line, |(line, _comment)| line)
            .trim();
        if line.is_empty() {
            continue;
        }
        let key = key(line, algorithm).ok_or_else(|| {
            // The line may be a secret, so the error does not repeat it.
            source.fault(
                kind,
                format!("line {number} is not '<region> {algorithm} <64 hex digits>'"),
            )
        })?;
        keys.push(key);
    }
    Ok(keys)
}

fn key(line: &str, algorithm: &str) -> Option<(RegionName, [u8; 32])> {
    let mut words = line.split_whitespace();
    let region = words.next()?.parse().ok()?;
    if words.next()? != algorithm {
        return None;
    }
    let bytes = hex::decode_exact(words.next()?)?;
    words.next().is_none().then_some((region, bytes))
}
