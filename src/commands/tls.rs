//! The three files of a TLS identity that every service takes: all of them, or none.

use std::path::PathBuf;

use clap::Args;
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::{CertificateFiles, Identity};

use crate::command::CommandError;

/// The files of a TLS identity.
#[derive(Debug, Args)]
pub(super) struct TlsArgs {
    /// This service's certificate, PEM, from `flotilla pki issue`
    #[arg(long, value_name = "FILE", help_heading = "Trust")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key, PEM
    #[arg(long, value_name = "FILE", help_heading = "Trust")]
    tls_key: Option<PathBuf>,
    /// The certificate of the fleet's authority, PEM
    #[arg(long, value_name = "FILE", help_heading = "Trust")]
    tls_ca: Option<PathBuf>,
}

/// What a service does without a TLS identity.
#[derive(Clone, Copy, Debug)]
pub(super) enum WithoutTls {
    /// It serves plain HTTP.
    PlainHttp,
    /// A peer does not start.
    RefusePeer,
    /// A command that asks other regions does not run.
    RefuseRegion,
}

impl TlsArgs {
    /// The certificate file of the fleet's authority, if it is set.
    pub(super) fn authority(&self) -> Option<PathBuf> {
        self.tls_ca.clone()
    }

    /// Loads the identity; `None` if no file is set and `without` allows it. A partial set of files
    /// is always an error: it means TLS, and must not result in plain HTTP.
    pub(super) fn identity(&self, without: WithoutTls) -> Result<Option<Identity>, CommandError> {
        let files = match (&self.tls_cert, &self.tls_key, &self.tls_ca) {
            (Some(certificate), Some(key), Some(authority)) => CertificateFiles {
                certificate: certificate.clone(),
                key: key.clone(),
                authority: authority.clone(),
            },
            (None, None, None) if matches!(without, WithoutTls::PlainHttp) => return Ok(None),
            _ => {
                return Err(CommandError::failed(
                    "configure TLS",
                    self.missing_files(without),
                ));
            }
        };
        Identity::load(&files, Clock::system())
            .map(Some)
            .map_err(|error| CommandError::failed("load the TLS identity", error))
    }

    /// The error text for a partial set of files.
    fn missing_files(&self, without: WithoutTls) -> String {
        let keys = [
            ("tls-cert", &self.tls_cert),
            ("tls-key", &self.tls_key),
            ("tls-ca", &self.tls_ca),
        ];
        let missing = keys
            .iter()
            .filter(|(_, file)| file.is_none())
            .map(|(key, _)| *key)
            .collect::<Vec<_>>();
        let verb = if missing.len() == 1 { "is" } else { "are" };
        let (subject, alternative) = match without {
            WithoutTls::PlainHttp => ("--server NAME", "; for plain HTTP, omit all three"),
            WithoutTls::RefusePeer => ("--peer ID", ""),
            WithoutTls::RefuseRegion => ("--server NAMES --region REGION", ""),
        };
        format!(
            "{} {verb} missing; `flotilla pki issue {subject}` creates tls-cert and tls-key, \
             and tls-ca is the ca.pem beside them{alternative}",
            missing.join(" and ")
        )
    }
}
