//! `flotilla pki`: a fleet's certificate authority, origins' seal keys, and certificates, as files
//! in one directory.
//!
//! | file                            | who needs it |
//! |---------------------------------|--------------|
//! | `ca.pem`                        | everybody |
//! | `ca.key`                        | nobody but `flotilla pki issue`: keep it offline |
//! | `trusted-keys`                  | every peer: the public keys of the origins |
//! | `<region>.seal.key`             | the origin of that region |
//! | `<id>.pem`, `<id>.key`          | that peer |
//! | `<name>.pem`, `<name>.key`      | the origin or tracker that answers under that name |
//!
//! It never overwrites a file unasked, and a secret is readable for its owner only. `--renew` is
//! the asking: a certificate is replaced by a new one under the same name, and an origin gets a
//! second key beside the first. How a fleet is led through each rotation is in `docs/security.md`.

use std::fmt;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use flotilla_common::name::{DEFAULT_REGION, PeerId, RegionName};
use flotilla_runtime::identity::{
    Authority, CertificateFiles, FileKind, IdentityError, Issued, SealSecret, load_seal_key,
    load_trusted_keys, replace, trusted_key_line, write_new,
};

use crate::fleet::Fleet;

/// Arguments of `flotilla pki`.
#[derive(Clone, Debug, Args)]
pub struct PkiArgs {
    #[command(subcommand)]
    command: PkiCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum PkiCommand {
    /// Make a fleet: its certificate authority, its first origin's seal key, the keys that peers
    /// trust
    Init(InitArgs),
    /// Issue a certificate to a peer or a server, or a seal key to an origin
    Issue(IssueArgs),
}

#[derive(Clone, Debug, Args)]
struct InitArgs {
    /// Where the fleet's files go; made if it is missing
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The region of the first origin
    #[arg(long, value_name = "NAME", default_value = DEFAULT_REGION)]
    region: RegionName,
}

#[derive(Clone, Debug, Args)]
struct IssueArgs {
    /// Where `flotilla pki init` put the fleet's files
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    subject: Subject,
    /// Days for which the certificate is good
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Replace the certificate that was issued under this name; for an origin, add a second key
    /// beside the first
    #[arg(long)]
    renew: bool,
}

#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
struct Subject {
    /// A peer's id: 1 to 63 of a-z, 0-9 and '-'
    #[arg(long, value_name = "ID")]
    peer: Option<PeerId>,
    /// DNS names and IP addresses of an origin or a tracker
    #[arg(long, value_name = "NAME", num_args = 1..)]
    server: Vec<String>,
    /// A region: its origin gets a seal key, and the peers' list of trusted keys grows by one
    #[arg(long, value_name = "REGION")]
    origin: Option<RegionName>,
}

/// Why `flotilla pki` could not do it.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A key, a certificate or its file.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// `--renew` of what was never issued.
    #[error("there is no {kind} '{}' to renew: is the name right? Without --renew it is issued anew", path.display())]
    NothingToRenew {
        /// What should be renewed.
        kind: FileKind,
        /// Where it would be.
        path: PathBuf,
    },
    /// The directory, or the list of trusted keys in it.
    #[error("write '{}': {source}", path.display())]
    Write {
        /// What could not be written.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
}

/// What was made, and what to do with it: print it.
#[derive(Debug)]
pub struct Made {
    files: Vec<(PathBuf, &'static str)>,
    next: String,
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths: Vec<_> = self
            .files
            .iter()
            .map(|(path, _)| path.display().to_string())
            .collect();
        let width = paths.iter().map(String::len).max().unwrap_or(0);
        for (path, (_, purpose)) in paths.iter().zip(&self.files) {
            writeln!(f, "{path:width$}  {purpose}")?;
        }
        writeln!(f, "\n{}", self.next)
    }
}

/// Runs `flotilla pki init` or `flotilla pki issue`.
///
/// # Errors
/// Nothing is overwritten unasked: a file that is there already is an error, before anything is
/// written.
pub fn run(args: &PkiArgs) -> Result<Made, PkiError> {
    match &args.command {
        PkiCommand::Init(args) => init(args),
        PkiCommand::Issue(args) => {
            let IssueArgs {
                dir,
                subject,
                days,
                renew,
            } = args;
            let validity = Duration::from_secs(u64::from(*days) * 24 * 60 * 60);
            let existing = if *renew {
                Existing::Replaced
            } else {
                Existing::Kept
            };
            match subject {
                Subject {
                    peer: Some(peer), ..
                } => issue_peer(dir, peer, validity, existing),
                Subject {
                    origin: Some(region),
                    ..
                } => issue_seal_key(dir, region, existing),
                Subject { server, .. } => issue_server(dir, server, validity, existing),
            }
        }
    }
}

fn init(args: &InitArgs) -> Result<Made, PkiError> {
    let InitArgs { dir, region } = args;
    let seal_file = seal_file(region);
    let file = |kind, name: &str| New {
        kind,
        path: dir.join(name),
    };
    let authority_file = file(FileKind::Authority, CA);
    let authority_key_file = file(FileKind::AuthorityKey, CA_KEY);
    let trusted_file = file(FileKind::TrustedKeys, TRUSTED_KEYS);
    let seal_file = file(FileKind::SealKey, &seal_file);
    for new in [
        &authority_file,
        &authority_key_file,
        &trusted_file,
        &seal_file,
    ] {
        new.check()?;
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| PkiError::Write {
            path: dir.clone(),
            source,
        })?;
    let authority = Authority::create()?;
    let seal = SealSecret::generate(region.clone())?;
    let files = vec![
        authority_key_file.write(
            &authority.key_pem(),
            "signs certificates: secret, keep it offline",
        )?,
        authority_file.write(
            authority.certificate_pem(),
            "the fleet's authority: for everybody",
        )?,
        seal_file.write(&seal.to_text(), "signs seals: secret, for the origin")?,
        trusted_file.write(
            &trusted_key_line(&seal.key()),
            "the origins that peers trust: for every peer",
        )?,
    ];
    let dir = dir.display();
    let next = format!(
        "Next: a certificate for the origin and one for each peer:\n\n    \
         flotilla pki issue --dir {dir} --server origin.example 10.0.0.1\n    \
         flotilla pki issue --dir {dir} --peer vm-1"
    );
    Ok(Made { files, next })
}

/// What becomes of a file that is there already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Existing {
    /// It stays, and nothing is issued.
    Kept,
    Replaced,
}

fn issue_peer(
    dir: &Path,
    peer: &PeerId,
    validity: Duration,
    existing: Existing,
) -> Result<Made, PkiError> {
    let files = New::certificate(dir, peer.as_str(), existing)?;
    let issued = load_authority(dir)?.issue_peer(peer, validity)?;
    let next = format!(
        "Next: bring both files with {CA} and {TRUSTED_KEYS} to the VM of peer {peer}; the key stays its own. \
         A running peer takes them up within seconds."
    );
    write_certificate(files, &issued, existing, next)
}

fn issue_server(
    dir: &Path,
    names: &[String],
    validity: Duration,
    existing: Existing,
) -> Result<Made, PkiError> {
    let authority = load_authority(dir)?;
    // The names are judged first: one becomes part of a path.
    let issued = authority.issue_server(names, validity)?;
    let files = New::certificate(
        dir,
        names.first().map_or("server", String::as_str),
        existing,
    )?;
    let [certificate, key] = files.each_ref().map(|new| new.path.display().to_string());
    let authority = dir.join(CA);
    let next = format!(
        "Next: start the server with --tls-cert {certificate} --tls-key {key} --tls-ca {}",
        authority.display()
    );
    write_certificate(files, &issued, existing, next)
}

fn issue_seal_key(dir: &Path, region: &RegionName, existing: Existing) -> Result<Made, PkiError> {
    let seal = SealSecret::generate(region.clone())?;
    let file = match existing {
        Existing::Kept => seal_file(region),
        // The key in use is needed until every peer trusts the new one.
        Existing::Replaced => {
            if !has_seal_key(dir, region) {
                return Err(PkiError::NothingToRenew {
                    kind: FileKind::SealKey,
                    path: dir.join(seal_file(region)),
                });
            }
            format!("{region}.{}.seal.key", seal.key().key_id())
        }
    };
    let new = New {
        kind: FileKind::SealKey,
        path: dir.join(file),
    };
    let trusted = dir.join(TRUSTED_KEYS);
    new.check()?;
    load_trusted_keys(&trusted)?;
    // Peers first: a key that nobody uses yet does no harm, a seal that nobody trusts does.
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
        new.write(&seal.to_text(), "signs seals: secret, for the origin")?,
        (trusted, "grew by its public key: for every peer"),
    ];
    let next = format!(
        "Next: bring {TRUSTED_KEYS} to every peer first, then the seal key to the origin of region {region} (--seal-key).\n\
         When no replica signs with an older key of {region} any more, take its line out of {TRUSTED_KEYS} everywhere."
    );
    Ok(Made { files, next })
}

/// The fleet of a development region, with its files in `dir`; made there if they are missing.
///
/// # Errors
/// They cannot be made, or are not all there.
pub fn open_or_init(dir: &Path, region: &RegionName) -> Result<Fleet, PkiError> {
    if !dir.join(CA).exists() {
        init(&InitArgs {
            dir: dir.to_owned(),
            region: region.clone(),
        })?;
    }
    let seal_key = load_seal_key(&dir.join(seal_file(region)))?;
    Ok(Fleet::of(load_authority(dir)?, seal_key))
}

/// Issues a certificate to a peer, beside the fleet's files in `dir`, and says where all its files
/// are.
///
/// # Errors
/// It has one already, or it cannot be made.
pub fn issue_peer_files(dir: &Path, peer: &PeerId) -> Result<CertificateFiles, PkiError> {
    issue_peer(dir, peer, Authority::DEFAULT_VALIDITY, Existing::Kept)?;
    let [certificate, key] =
        ["pem", "key"].map(|extension| dir.join(format!("{peer}.{extension}")));
    Ok(CertificateFiles {
        certificate,
        key,
        authority: dir.join(CA),
    })
}

const CA: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
/// The file of the origin keys that peers trust.
pub(crate) const TRUSTED_KEYS: &str = "trusted-keys";

fn seal_file(region: &RegionName) -> String {
    format!("{region}.seal.key")
}

/// Whether a region has a seal key, its first or a later one.
fn has_seal_key(dir: &Path, region: &RegionName) -> bool {
    let is_one =
        |name: &str| name.starts_with(&format!("{region}.")) && name.ends_with(".seal.key");
    let names = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name());
    names
        .into_iter()
        .any(|name| name.to_str().is_some_and(is_one))
}

fn load_authority(dir: &Path) -> Result<Authority, IdentityError> {
    Authority::load(&dir.join(CA), &dir.join(CA_KEY))
}

fn write_certificate(
    [certificate, key]: [New; 2],
    issued: &Issued,
    existing: Existing,
    next: String,
) -> Result<Made, PkiError> {
    let write = |new: New, text: &str, purpose| match existing {
        Existing::Kept => new.write(text, purpose),
        Existing::Replaced => new.replace(text, purpose),
    };
    let files = vec![
        write(key, &issued.key_pem, "its private key: secret")?,
        write(certificate, &issued.certificate_pem, "its certificate")?,
    ];
    Ok(Made { files, next })
}

/// A file that is to be written.
struct New {
    kind: FileKind,
    path: PathBuf,
}

impl New {
    /// The files of a certificate and its key: to be replaced, the certificate must be there;
    /// otherwise neither is.
    fn certificate(dir: &Path, name: &str, existing: Existing) -> Result<[Self; 2], PkiError> {
        let files = [
            (FileKind::Certificate, "pem"),
            (FileKind::PrivateKey, "key"),
        ]
        .map(|(kind, extension)| Self {
            kind,
            path: dir.join(format!("{name}.{extension}")),
        });
        match existing {
            Existing::Kept => files.iter().try_for_each(Self::check)?,
            Existing::Replaced => files[0].is_renewable()?,
        }
        Ok(files)
    }

    fn is_renewable(&self) -> Result<(), PkiError> {
        if self.path.exists() {
            return Ok(());
        }
        Err(PkiError::NothingToRenew {
            kind: self.kind,
            path: self.path.clone(),
        })
    }

    fn check(&self) -> Result<(), IdentityError> {
        if self.path.exists() {
            Err(IdentityError::Exists(self.path.clone(), self.kind))
        } else {
            Ok(())
        }
    }

    fn write(
        self,
        text: &str,
        purpose: &'static str,
    ) -> Result<(PathBuf, &'static str), IdentityError> {
        write_new(self.kind, &self.path, text)?;
        Ok((self.path, purpose))
    }

    fn replace(
        self,
        text: &str,
        purpose: &'static str,
    ) -> Result<(PathBuf, &'static str), IdentityError> {
        replace(self.kind, &self.path, text)?;
        Ok((self.path, purpose))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;
    use flotilla_runtime::identity::{CertificateFiles, Identity};

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        pki: PkiArgs,
    }

    /// `flotilla pki WORDS --dir DIR`.
    fn pki(dir: &Path, words: &[&str]) -> Result<String, String> {
        let typed = ["pki"]
            .iter()
            .chain(words)
            .copied()
            .chain(["--dir", dir.to_str().unwrap()]);
        let args = Cli::try_parse_from(typed).map_err(|error| error.to_string())?;
        run(&args.pki)
            .map(|made| made.to_string())
            .map_err(|error| error.to_string())
    }

    fn identity(dir: &Path, name: &str) -> Identity {
        Identity::load(&CertificateFiles {
            certificate: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
            authority: dir.join(CA),
        })
        .unwrap()
    }

    #[test]
    fn a_fleet_is_made_and_joined() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("fleet");
        let said = pki(&dir, &["init", "--region", "eu-1"]).unwrap();
        for file in [CA, CA_KEY, TRUSTED_KEYS, "eu-1.seal.key", "pki issue"] {
            assert!(said.contains(file), "{said}");
        }
        pki(&dir, &["issue", "--peer", "vm-1"]).unwrap();
        assert_eq!(
            identity(&dir, "vm-1").peer_id(),
            Some("vm-1".parse().unwrap())
        );
        let said = pki(
            &dir,
            &[
                "issue",
                "--days",
                "7",
                "--server",
                "origin.example",
                "10.0.0.1",
            ],
        )
        .unwrap();
        assert!(
            said.contains("--tls-cert") && said.contains("origin.example.key"),
            "{said}"
        );
        assert_eq!(identity(&dir, "origin.example").peer_id(), None);

        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir), 0o700);
        for secret in [CA_KEY, "eu-1.seal.key", "vm-1.key", "origin.example.key"] {
            assert_eq!(mode(&dir.join(secret)), 0o600, "{secret}");
        }
    }

    #[test]
    fn nothing_is_overwritten() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        pki(dir, &["init"]).unwrap();
        pki(dir, &["issue", "--peer", "vm-1"]).unwrap();
        let contents = || {
            ["ca.key", "vm-1.key", TRUSTED_KEYS].map(|name| std::fs::read(dir.join(name)).unwrap())
        };
        let before = contents();
        for words in [
            &["init"][..],
            &["init", "--region", "other"],
            &["issue", "--peer", "vm-1"],
            &["issue", "--origin", "local"],
        ] {
            let error = pki(dir, words).unwrap_err();
            assert!(error.contains("is there already"), "{error}");
        }
        assert_eq!(contents(), before);
    }

    #[test]
    fn a_peer_renewed_keeps_its_name_and_an_origin_gets_a_second_key() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        pki(dir, &["init", "--region", "eu-1"]).unwrap();
        pki(dir, &["issue", "--peer", "vm-1", "--days", "1"]).unwrap();
        let running = identity(dir, "vm-1");
        let first = running.ends_unix_s();
        pki(dir, &["issue", "--peer", "vm-1", "--days", "9", "--renew"]).unwrap();
        running.reload().unwrap();
        assert_eq!(running.peer_id(), Some("vm-1".parse().unwrap()));
        assert!(running.ends_unix_s() > first);
        assert_eq!(
            dir.join("vm-1.key")
                .metadata()
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o600
        );
        pki(dir, &["issue", "--server", "origin.example"]).unwrap();
        pki(dir, &["issue", "--server", "origin.example", "--renew"]).unwrap();

        let first = load_seal_key(&dir.join("eu-1.seal.key")).unwrap();
        let said = pki(dir, &["issue", "--origin", "eu-1", "--renew"]).unwrap();
        assert!(
            said.contains("bring trusted-keys to every peer first"),
            "{said}"
        );
        let trusted = load_trusted_keys(&dir.join(TRUSTED_KEYS))
            .unwrap()
            .to_string();
        assert!(
            trusted.starts_with(&first.key_id().to_string()) && trusted.contains(", "),
            "{trusted}"
        );
        assert_eq!(
            load_seal_key(&dir.join("eu-1.seal.key")).unwrap().key_id(),
            first.key_id()
        );
    }

    #[test]
    fn only_what_was_issued_is_renewed() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        pki(dir, &["init", "--region", "eu-1"]).unwrap();
        let files = || std::fs::read_dir(dir).unwrap().count();
        let before = (files(), std::fs::read(dir.join(TRUSTED_KEYS)).unwrap());
        for (words, file) in [
            (["issue", "--peer", "vm-l", "--renew"], "vm-l.pem"),
            (
                ["issue", "--server", "orign.example", "--renew"],
                "orign.example.pem",
            ),
            (["issue", "--origin", "eu-2", "--renew"], "eu-2.seal.key"),
        ] {
            let error = pki(dir, &words).unwrap_err();
            assert!(
                error.contains(file) && error.contains("to renew: is the name right?"),
                "{error}"
            );
        }
        assert_eq!(
            (files(), std::fs::read(dir.join(TRUSTED_KEYS)).unwrap()),
            before
        );
        let error = pki(dir, &["init", "--region", "eu-1"]).unwrap_err();
        assert!(
            error.contains("another directory") && !error.contains("--renew"),
            "{error}"
        );
        pki(dir, &["issue", "--peer", "vm-1"]).unwrap();
        let error = pki(dir, &["issue", "--peer", "vm-1"]).unwrap_err();
        assert!(error.contains("with --renew"), "{error}");
    }

    #[test]
    fn a_second_region_gets_a_key_that_peers_trust_beside_the_first() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        pki(dir, &["init", "--region", "eu-1"]).unwrap();
        pki(dir, &["issue", "--origin", "us-1"]).unwrap();
        let lines = std::fs::read_to_string(dir.join(TRUSTED_KEYS)).unwrap();
        assert_eq!(lines.lines().count(), 2, "{lines}");
        load_trusted_keys(&dir.join(TRUSTED_KEYS)).unwrap();
        assert_eq!(
            load_seal_key(&dir.join("us-1.seal.key"))
                .unwrap()
                .issuer()
                .as_str(),
            "us-1"
        );
    }

    #[test]
    fn what_cannot_be_issued_is_explained() {
        let root = tempfile::tempdir().unwrap();
        let error = pki(root.path(), &["issue", "--peer", "vm-1"]).unwrap_err();
        assert!(
            error.contains("ca.pem") && error.contains("flotilla pki init"),
            "{error}"
        );
        pki(root.path(), &["init"]).unwrap();
        for (words, cure) in [
            (&["issue", "--peer", "VM_1"][..], "1 to 63 of a-z"),
            (
                &["issue", "--server", "../escape"],
                "is no name for a server",
            ),
            (
                &["issue", "--server", "vm-1.peer.flotilla.internal"],
                "is no name for a server",
            ),
            (&["issue"], "--peer"),
            (
                &["issue", "--peer", "a", "--origin", "b"],
                "cannot be used with",
            ),
        ] {
            let error = pki(root.path(), words).unwrap_err();
            assert!(error.contains(cure), "{error}");
        }
    }
}
