//! The three files of TLS that every service takes.

use std::path::PathBuf;

use clap::Args;
use flotilla_runtime::identity::{CertificateFiles, Identity};

use crate::cli::CommandError;

/// The files of a TLS identity.
#[derive(Debug, Args)]
pub(super) struct TlsArgs {
    /// Certificate of this service, PEM, as `flotilla pki issue` makes it
    #[arg(long, value_name = "FILE", help_heading = "Trust", requires = "tls_key", requires = "tls_ca")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM
    #[arg(long, value_name = "FILE", help_heading = "Trust", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Certificate of the fleet's authority, PEM
    #[arg(long, value_name = "FILE", help_heading = "Trust", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,
}

impl TlsArgs {
    /// The file of the fleet's authority, if it is given.
    pub(super) fn authority(&self) -> Option<PathBuf> {
        self.tls_ca.clone()
    }

    /// The identity in the files; `None` if none are given.
    pub(super) fn identity(&self) -> Result<Option<Identity>, CommandError> {
        let (Some(certificate), Some(key), Some(authority)) = (&self.tls_cert, &self.tls_key, &self.tls_ca)
        else {
            return Ok(None);
        };
        let files = CertificateFiles {
            certificate: certificate.clone(),
            key: key.clone(),
            authority: authority.clone(),
        };
        Identity::load(&files).map(Some).map_err(|error| CommandError::failed("load the TLS identity", error))
    }
}
