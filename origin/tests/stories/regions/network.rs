//! What the regions of a test share: the authority of their certificates, their addresses, and the
//! policies that list them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flotilla_common::seal::SealKey;
use flotilla_origin::storage::Storage;
use flotilla_origin::{Config, Origin, policy};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::{CertificateAuthority, Identity, Issued, client_trusting};

use crate::servers::{Gate, GateState};
use crate::support::config;

/// The names of the regions, in the order of their numbers in tests.
pub(crate) const NAMES: [&str; 3] = ["eu-1", "us-1", "ap-1"];
const DAY: Duration = Duration::from_hours(24);

/// The network between regions.
pub(crate) struct Network {
    fleet: CertificateAuthority,
    /// `gates[from][to]`: through which region `from` reaches region `to`.
    gates: Vec<Vec<Gate>>,
    authority: tempfile::TempDir,
}

impl Network {
    pub(crate) async fn start(regions: usize) -> Self {
        let fleet = CertificateAuthority::create(Clock::system()).unwrap();
        let authority = tempfile::tempdir().unwrap();
        std::fs::write(authority.path().join("ca.pem"), fleet.certificate_pem()).unwrap();
        Self {
            fleet,
            gates: gates(regions).await,
            authority,
        }
    }

    /// Sets the region of an origin. Without a certificate it has no other regions.
    pub(crate) fn configure(region: usize, config: &mut Config) {
        config.region = NAMES[region].parse().unwrap();
        config.seal_key = SealKey::from_secret(config.region.clone(), &[7 + region as u8; 32]);
    }

    /// Stores the policy of a region, unless its storage has one. `adjust` is the configuration of
    /// its origins.
    pub(crate) async fn store_policy(
        &self,
        region: usize,
        storage: &Arc<dyn Storage>,
        rules: &str,
        adjust: impl Fn(&mut Config),
    ) {
        if policy::read(&**storage).await.unwrap().is_some() {
            return;
        }
        // The first start writes the format, without which no policy can be stored.
        let mut first = config();
        Self::configure(region, &mut first);
        adjust(&mut first);
        drop(Origin::start_on(first, Arc::clone(storage)).await.unwrap());
        let text = self.policy(region, rules);
        policy::set(&**storage, &text, None).await.unwrap();
    }

    /// Replaces the policy of a region.
    pub(crate) async fn replace_policy(
        &self,
        region: usize,
        storage: &Arc<dyn Storage>,
        rules: &str,
    ) {
        let before = policy::read(&**storage).await.unwrap();
        let text = self.policy(region, rules);
        policy::set(&**storage, &text, before.as_ref())
            .await
            .unwrap();
    }

    /// The policy of a region. It reaches each other region through a gate of its own.
    pub(crate) fn policy(&self, from: usize, rules: &str) -> String {
        let entry = |to: usize| {
            let address = self.gate(from, to).address;
            format!(
                "[[region]]\nname = \"{}\"\nurl = \"https://{address}\"\n",
                NAMES[to]
            )
        };
        let regions: String = (0..self.gates.len()).map(entry).collect();
        regions + rules
    }

    /// The gate through which one region reaches another one.
    pub(crate) fn gate(&self, from: usize, to: usize) -> &Gate {
        // A region never calls itself, but its policy has an entry of it. Between two regions both
        // policies are equal.
        let from = if from == to {
            (to + 1) % self.gates.len()
        } else {
            from
        };
        &self.gates[from][to]
    }

    /// Opens all gates, or cuts all regions off from each other.
    pub(crate) fn set_all_gates(&self, state: GateState) {
        for gate in self.gates.iter().flatten() {
            gate.set(state);
        }
    }

    /// Sets the addresses of a region's origins.
    pub(crate) fn set_targets(&self, region: usize, addresses: &[SocketAddr]) {
        for gates in &self.gates {
            gates[region].set_targets(addresses.iter().copied());
        }
    }

    /// The file with the certificate of the authority that clients must trust.
    pub(crate) fn authority_file(&self) -> PathBuf {
        self.authority.path().join("ca.pem")
    }

    /// The TLS configuration of anonymous clients.
    pub(crate) fn anonymous_tls(&self) -> rustls::ClientConfig {
        client_trusting(&self.authority_file()).unwrap()
    }

    /// A certificate of an origin of a region, whether the policy lists it or not.
    pub(crate) fn identity_of(&self, region: &str) -> Identity {
        let region = region.parse().unwrap();
        self.identity(
            &self
                .fleet
                .issue_server(&local(), Some(&region), DAY)
                .unwrap(),
        )
    }

    /// A server certificate without a region.
    pub(crate) fn identity_without_region(&self) -> Identity {
        self.identity(&self.fleet.issue_server(&local(), None, DAY).unwrap())
    }

    /// A certificate of a peer.
    pub(crate) fn identity_of_peer(&self, peer: &str) -> Identity {
        let issued = self.fleet.issue_peer(&peer.parse().unwrap(), DAY);
        self.identity(&issued.unwrap())
    }

    fn identity(&self, issued: &Issued) -> Identity {
        let (certificate, key) = (&issued.certificate_pem, &issued.key_pem);
        let authority = self.fleet.certificate_pem();
        Identity::from_pem(certificate, key, authority, Clock::system()).unwrap()
    }
}

fn local() -> [String; 1] {
    ["127.0.0.1".to_owned()]
}

async fn gates(regions: usize) -> Vec<Vec<Gate>> {
    let mut gates = Vec::new();
    for _ in 0..regions {
        let mut row = Vec::new();
        for _ in 0..regions {
            row.push(Gate::start().await);
        }
        gates.push(row);
    }
    gates
}
