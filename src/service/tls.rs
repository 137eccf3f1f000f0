//! The three files of TLS that every service takes: all of them, or none.

use std::path::PathBuf;

use clap::Args;
use flotilla_runtime::identity::{CertificateFiles, Identity};

use crate::cli::CommandError;

/// The files of a TLS identity.
#[derive(Debug, Args)]
pub(super) struct TlsArgs {
    /// Certificate of this service, PEM, as `flotilla pki issue` makes it
    #[arg(long, value_name = "FILE", help_heading = "Trust")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM
    #[arg(long, value_name = "FILE", help_heading = "Trust")]
    tls_key: Option<PathBuf>,
    /// Certificate of the fleet's authority, PEM
    #[arg(long, value_name = "FILE", help_heading = "Trust")]
    tls_ca: Option<PathBuf>,
}

/// What a service does that is given none of the three.
#[derive(Clone, Copy, Debug)]
pub(super) enum WithoutTls {
    /// It speaks plain HTTP.
    Plain,
    /// It does not start.
    Refused,
}

impl TlsArgs {
    /// The file of the fleet's authority, if it is given.
    pub(super) fn authority(&self) -> Option<PathBuf> {
        self.tls_ca.clone()
    }

    /// The identity in the files; `None` if none are given and that is allowed. Some of them are
    /// never taken for none: who means TLS must not get plain HTTP.
    pub(super) fn identity(&self, without: WithoutTls) -> Result<Option<Identity>, CommandError> {
        let files = match (&self.tls_cert, &self.tls_key, &self.tls_ca) {
            (Some(certificate), Some(key), Some(authority)) => CertificateFiles {
                certificate: certificate.clone(),
                key: key.clone(),
                authority: authority.clone(),
            },
            (None, None, None) if matches!(without, WithoutTls::Plain) => return Ok(None),
            _ => {
                return Err(CommandError::failed(
                    "configure TLS",
                    self.what_is_missing(without),
                ));
            }
        };
        Identity::load(&files)
            .map(Some)
            .map_err(|error| CommandError::failed("load the TLS identity", error))
    }

    fn what_is_missing(&self, without: WithoutTls) -> String {
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
        let (issued_to, or_none) = match without {
            WithoutTls::Plain => ("--server NAME", "; leave out all three for plain HTTP"),
            WithoutTls::Refused => ("--peer ID", ""),
        };
        format!(
            "{} {verb} missing; `flotilla pki issue {issued_to}` makes tls-cert and tls-key, tls-ca is the ca.pem beside them\
             {or_none}",
            missing.join(" and ")
        )
    }
}
