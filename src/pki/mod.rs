//! A fleet's public key infrastructure: its certificate authority, the origins' seal keys, and
//! certificates, as files in one directory. `flotilla pki` is the command for it.
//!
//! | file                            | for |
//! |---------------------------------|-----|
//! | `ca.pem`                        | all peers, origins and trackers |
//! | `ca.key`                        | only `flotilla pki issue`: keep it offline |
//! | `trusted-keys`                  | every peer: the public keys of the origins |
//! | `<region>.seal.key`             | the origin of that region |
//! | `<id>.pem`, `<id>.key`          | that peer |
//! | `<name>.pem`, `<name>.key`      | the origin or tracker with that name |
//!
//! Only a renewal replaces a file: it replaces a certificate by a new one for the same name; for an
//! origin it adds a second seal key beside the first. Secrets are readable only by their owner.
//! `docs/security.md` describes how to rotate each key in a running fleet.

mod error;
mod issue;
mod layout;
mod new_file;
mod report;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use flotilla_common::name::{PeerId, RegionName};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::{
    CertificateAuthority, CertificateFiles, FileKind, SealSecret, load_seal_key, trusted_key_line,
};

pub use error::PkiError;
pub use issue::{issue_peer, issue_seal_key, issue_server};
pub use layout::{CA, CA_KEY, TRUSTED_KEYS};
pub use new_file::IfExists;
pub use report::PkiReport;

use crate::fleet::Fleet;
use layout::{load_authority, seal_key_file};
use new_file::NewFile;

/// Creates a fleet in `dir`: its authority, the seal key of the origin of `region`, and the list of
/// trusted keys.
///
/// # Errors
/// If one of the files exists: nothing is written then. If a file cannot be written.
pub fn init(dir: &Path, region: &RegionName) -> Result<PkiReport, PkiError> {
    let file = |kind, name: &str| NewFile {
        kind,
        path: dir.join(name),
    };
    let authority_file = file(FileKind::Authority, CA);
    let authority_key_file = file(FileKind::AuthorityKey, CA_KEY);
    let trusted_file = file(FileKind::TrustedKeys, TRUSTED_KEYS);
    let seal_file = file(FileKind::SealKey, &seal_key_file(region));
    for file in [
        &authority_file,
        &authority_key_file,
        &trusted_file,
        &seal_file,
    ] {
        file.require_absent()?;
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| PkiError::Write {
            path: dir.to_owned(),
            source,
        })?;
    let authority = CertificateAuthority::create(Clock::system())?;
    let seal = SealSecret::generate(region.clone())?;
    let files = vec![
        authority_key_file.write(
            &authority.key_pem(),
            "private key of the authority, signs certificates: secret, keep it offline",
        )?,
        authority_file.write(
            authority.certificate_pem(),
            "certificate of the authority: for all peers, origins and trackers",
        )?,
        seal_file.write(
            &seal.to_text(),
            "signs seals: secret, only for the region's origin",
        )?,
        trusted_file.write(
            &trusted_key_line(&seal.key()),
            "public keys of the origins: for every peer",
        )?,
    ];
    let dir = dir.display();
    let next_step = format!(
        "Next: issue a certificate to the origin and to each peer:\n\n    \
         flotilla pki issue --dir {dir} --server origin.example 10.0.0.1\n    \
         flotilla pki issue --dir {dir} --peer vm-1"
    );
    Ok(PkiReport { files, next_step })
}

/// Loads the fleet in `dir` with the seal key of `region`; creates it if `dir` has none.
///
/// # Errors
/// If the files cannot be created, or some of them are missing.
pub fn open_or_init(dir: &Path, region: &RegionName) -> Result<Fleet, PkiError> {
    if !dir.join(CA).exists() {
        init(dir, region)?;
    }
    let seal_key = load_seal_key(&dir.join(seal_key_file(region)))?;
    Ok(Fleet::from_keys(load_authority(dir)?, seal_key))
}

/// Loads the fleet in `dir` for each of `regions`; creates it, and the seal keys that are missing.
///
/// # Errors
/// As [`open_or_init`].
pub fn open_or_init_regions(dir: &Path, regions: &[RegionName]) -> Result<Vec<Fleet>, PkiError> {
    let mut seal_keys = Vec::new();
    for region in regions {
        if !dir.join(CA).exists() {
            init(dir, region)?;
        }
        let file = dir.join(seal_key_file(region));
        if !file.exists() {
            issue_seal_key(dir, region, IfExists::Fail)?;
        }
        seal_keys.push(load_seal_key(&file)?);
    }
    Ok(Fleet::of_regions(load_authority(dir)?, &seal_keys))
}

/// Issues a certificate to a peer of the fleet in `dir`, and returns the paths of the peer's files.
///
/// # Errors
/// If the peer has a certificate, or it cannot be created.
pub fn issue_peer_files(dir: &Path, peer: &PeerId) -> Result<CertificateFiles, PkiError> {
    issue_peer(
        dir,
        peer,
        CertificateAuthority::DEFAULT_VALIDITY,
        IfExists::Fail,
    )?;
    let [certificate, key] =
        ["pem", "key"].map(|extension| dir.join(format!("{peer}.{extension}")));
    Ok(CertificateFiles {
        certificate,
        key,
        authority: dir.join(CA),
    })
}
