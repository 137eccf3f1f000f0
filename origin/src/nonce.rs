//! Nonces: they make two writes of the same content differ.

use rand::TryRng;
use rand::rngs::SysRng;

/// 128 bits from the operating system. Nothing is buffered in the process: two VMs restored from
/// one snapshot must not draw the same nonces.
pub(crate) fn nonce() -> u128 {
    u128::from_le_bytes(random_bytes())
}

/// Bytes from the operating system's generator.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    const { assert!(N <= 256) }
    let mut bytes = [0; N];
    SysRng
        .try_fill_bytes(&mut bytes)
        .expect("getrandom(2) does not fail for up to 256 bytes once the system has booted");
    bytes
}
