//! Issues certificates to peers and servers, and seal keys to origins.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use flotilla_common::name::{PeerId, RegionName};
use flotilla_runtime::identity::{
    Certificate, FileKind, Issued, SealSecret, check_server_name, load_trusted_keys,
    trusted_key_line,
};

use super::error::PkiError;
use super::layout::{CA, TRUSTED_KEYS, load_authority, seal_key_file};
use super::new_file::{IfExists, NewFile};
use super::report::PkiReport;

/// Issues a certificate to a peer.
///
/// # Errors
/// As `if_exists` says; if the authority cannot be loaded or a file cannot be written.
pub fn issue_peer(
    dir: &Path,
    peer: &PeerId,
    validity: Duration,
    if_exists: IfExists,
) -> Result<PkiReport, PkiError> {
    let files = NewFile::certificate_and_key(dir, peer.as_str(), if_exists)?;
    let issued = load_authority(dir)?.issue_peer(peer, validity)?;
    let next_step = format!(
        "Next: copy both files, {CA} and {TRUSTED_KEYS} to the VM of peer {peer}. Do not give the key to any other peer. \
         A running peer loads new files within seconds."
    );
    write_certificate(files, &issued, if_exists, next_step)
}

/// Issues a certificate to an origin or a tracker; its files are named after the first of `names`
/// (DNS names and IP addresses). With a region, the certificate also names the region's origin. A
/// renewal without a region keeps the region of the certificate that it replaces.
///
/// # Errors
/// If a name is not valid; as [`issue_peer`].
pub fn issue_server(
    dir: &Path,
    names: &[String],
    region: Option<&RegionName>,
    validity: Duration,
    if_exists: IfExists,
) -> Result<PkiReport, PkiError> {
    let authority = load_authority(dir)?;
    // Before any path is made of the first name: this rejects names such as `../escape`.
    for name in names {
        check_server_name(name)?;
    }
    let files = NewFile::certificate_and_key(
        dir,
        names.first().map_or("server", String::as_str),
        if_exists,
    )?;
    let [certificate_file, key_file] = &files;
    let previous = match if_exists {
        IfExists::Renew => Certificate::load(&certificate_file.path)?,
        IfExists::Fail => None,
    };
    let region = region.or_else(|| previous.as_ref()?.region());
    let issued = authority.issue_server(names, region, validity)?;
    let server = region.map_or_else(
        || "the server".to_owned(),
        |region| format!("the origin of region {region}"),
    );
    let next_step = format!(
        "Next: start {server} with --tls-cert {} --tls-key {} --tls-ca {}",
        certificate_file.path.display(),
        key_file.path.display(),
        dir.join(CA).display()
    );
    write_certificate(files, &issued, if_exists, next_step)
}

/// Issues a seal key to the origin of a region, and adds its public key to the trusted keys. A
/// renewal adds a second key: the first is in use until all peers trust the second.
///
/// # Errors
/// As `if_exists` says; if a file cannot be read or written.
pub fn issue_seal_key(
    dir: &Path,
    region: &RegionName,
    if_exists: IfExists,
) -> Result<PkiReport, PkiError> {
    let seal = SealSecret::generate(region.clone())?;
    let file = match if_exists {
        IfExists::Fail => seal_key_file(region),
        IfExists::Renew => {
            if !has_seal_key(dir, region) {
                return Err(PkiError::NothingToRenew {
                    kind: FileKind::SealKey,
                    path: dir.join(seal_key_file(region)),
                });
            }
            format!("{region}.{}.seal.key", seal.key().key_id())
        }
    };
    let file = NewFile {
        kind: FileKind::SealKey,
        path: dir.join(file),
    };
    let trusted = dir.join(TRUSTED_KEYS);
    file.require_absent()?;
    load_trusted_keys(&trusted)?;
    // The public key first: a trusted key without a secret is harmless; a secret whose seals are
    // not trusted breaks pulls.
    let appended = OpenOptions::new()
        .append(true)
        .open(&trusted)
        .and_then(|mut file| {
            file.write_all(trusted_key_line(&seal.key()).as_bytes())?;
            file.sync_all()
        });
    appended.map_err(|source| PkiError::Write {
        path: trusted.clone(),
        source,
    })?;
    let files = vec![
        file.write(
            &seal.to_text(),
            "signs seals: secret, only for the region's origin",
        )?,
        (trusted, "with the new public key: for every peer"),
    ];
    let older = match if_exists {
        IfExists::Fail => String::new(),
        IfExists::Renew => format!(
            "\nWhen no replica signs with an older key of {region} any more, delete the older key's line from {TRUSTED_KEYS} on every peer."
        ),
    };
    let next_step = format!(
        "Next: copy {TRUSTED_KEYS} to every peer, and only then the seal key to the origin of region {region} (--seal-key).{older}"
    );
    Ok(PkiReport { files, next_step })
}

/// Whether a region has a seal key, the first or a later one.
fn has_seal_key(dir: &Path, region: &RegionName) -> bool {
    let prefix = format!("{region}.");
    let is_seal_key = |name: &str| name.starts_with(&prefix) && name.ends_with(".seal.key");
    let mut names = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name());
    names.any(|name| name.to_str().is_some_and(is_seal_key))
}

fn write_certificate(
    [certificate, key]: [NewFile; 2],
    issued: &Issued,
    if_exists: IfExists,
    next_step: String,
) -> Result<PkiReport, PkiError> {
    let write = |file: NewFile, text: &str, purpose| match if_exists {
        IfExists::Fail => file.write(text, purpose),
        IfExists::Renew => file.replace(text, purpose),
    };
    let files = vec![
        write(key, &issued.key_pem, "private key: secret")?,
        write(certificate, &issued.certificate_pem, "certificate")?,
    ];
    Ok(PkiReport { files, next_step })
}
