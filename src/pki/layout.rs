//! The names of a fleet's files.

use std::path::Path;

use flotilla_common::name::RegionName;
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::{CertificateAuthority, IdentityError};

/// The certificate of the fleet's authority.
pub const CA: &str = "ca.pem";
/// The private key of the fleet's authority.
pub const CA_KEY: &str = "ca.key";
/// The public keys of the origins that peers trust.
pub const TRUSTED_KEYS: &str = "trusted-keys";

pub(super) fn seal_key_file(region: &RegionName) -> String {
    format!("{region}.seal.key")
}

pub(super) fn load_authority(dir: &Path) -> Result<CertificateAuthority, IdentityError> {
    CertificateAuthority::load(&dir.join(CA), &dir.join(CA_KEY), Clock::system())
}
