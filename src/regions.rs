//! Several regions in this process that replicate to each other, each with a storage that can be
//! broken: for `flotilla demo --regions`, `flotilla up --regions` and the tests.

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use flotilla_common::name::RegionName;
use flotilla_origin::Limits;
use flotilla_origin::policy;
use flotilla_origin::storage::{self, Storage, TimeoutStorage};
use flotilla_peer::OriginUrl;
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::{CertificateAuthority, IdentityError, SealSecret};

use crate::breakable_storage::{BreakableStorage, OutageSwitch};
use crate::command::CommandError;
use crate::fleet::Fleet;
use crate::region::{Region, RegionPlan, storage_url};

/// Most regions that are started in one process.
pub const MAX_REGIONS: u32 = 8;

/// The name of the region with this number, from 1.
///
/// # Panics
/// Never: such names are valid.
pub fn region_name(number: u32) -> RegionName {
    format!("region-{number}")
        .parse()
        .expect("the name is valid")
}

/// Generates the keys of a fleet with `regions` regions, for each of them.
///
/// # Errors
/// If a key cannot be generated.
pub fn create_fleets(regions: u32) -> Result<Vec<Fleet>, IdentityError> {
    let mut seal_keys = Vec::new();
    for number in 1..=regions {
        seal_keys.push(SealSecret::generate(region_name(number))?.key());
    }
    let authority = CertificateAuthority::create(Clock::system())?;
    Ok(Fleet::of_regions(authority, &seal_keys))
}

/// A running region, and the switch that breaks its storage.
#[derive(Debug)]
pub struct BreakableRegion {
    /// The region.
    pub region: Region,
    /// Breaks and heals the storage of its origin.
    pub storage: OutageSwitch,
}

/// Running regions. Peers of each prefer its own origin, then the others in their order.
#[derive(Debug)]
pub struct Regions {
    regions: Vec<BreakableRegion>,
}

impl Regions {
    /// Starts an origin and a tracker for each of the fleets, which name the regions. Their files
    /// are in `dir`, in a directory for each region. `plan` gets the place of a region, from 0;
    /// storage and HTTPS of the plan are set here. Peers are added later.
    ///
    /// The policy in each storage lists all regions.
    ///
    /// # Errors
    /// If a service does not start, or a policy cannot be set.
    pub async fn start(
        dir: &Path,
        fleets: Vec<Fleet>,
        plan: impl Fn(u16) -> RegionPlan,
    ) -> Result<Self, CommandError> {
        let mut regions = Vec::new();
        let mut storages = Vec::new();
        for (at, fleet) in (0..).zip(fleets) {
            let dir = dir.join(fleet.seal_key().issuer().as_str());
            let opened = storage::open(&storage_url(&dir)?, Limits::default().part_buffers.0)
                .map_err(|error| CommandError::failed("open the storage", error))?;
            let breakable = BreakableStorage::new(opened);
            let switch = breakable.switch();
            let storage: Arc<dyn Storage> = Arc::new(breakable);
            let plan = RegionPlan {
                storage: Some(Arc::clone(&storage)),
                https: true,
                ..plan(at)
            };
            let region = Region::start(&dir, fleet, plan).await?;
            storages.push(storage);
            regions.push(BreakableRegion {
                region,
                storage: switch,
            });
        }
        let mut started = Self { regions };
        started.introduce_origins();
        started.set_policies(storages).await?;
        Ok(started)
    }

    /// Tells each region the origins of the others.
    fn introduce_origins(&mut self) {
        let origin = |region: &BreakableRegion| OriginUrl {
            region: Some(region.region.name().clone()),
            url: region.region.origin_url(),
        };
        let all: Vec<_> = self.regions.iter().map(origin).collect();
        for (own, region) in self.regions.iter_mut().enumerate() {
            let others = all.iter().enumerate().filter(|(at, _)| *at != own);
            let others = others.map(|(_, origin)| origin.clone()).collect();
            region.region.set_other_origins(others);
        }
    }

    /// Sets the same policy in each storage. The origins must be running: their URLs are in it, and
    /// they have set up the storages.
    async fn set_policies(&self, storages: Vec<Arc<dyn Storage>>) -> Result<(), CommandError> {
        let text = self.policy();
        for (region, storage) in self.regions.iter().zip(storages) {
            let failed = |error: Box<dyn Error + Send + Sync>| {
                CommandError::failed(format!("set the policy of {}", region.region.name()), error)
            };
            let storage = TimeoutStorage::new(storage, Limits::default().storage_timeout);
            let stored = policy::read(&storage).await;
            let stored = stored.map_err(|error| failed(error.into()))?;
            let is_set = stored
                .as_ref()
                .is_some_and(|stored| stored.text() == Ok(text.as_str()));
            if !is_set {
                let set = policy::set(&storage, &text, stored.as_ref()).await;
                set.map_err(|error| failed(error.into()))?;
            }
            if let Some(live) = region.region.policy() {
                let read = live.read_now().await;
                read.map_err(|error| failed(error.into()))?;
            }
        }
        Ok(())
    }

    /// The policy that lists all regions.
    fn policy(&self) -> String {
        let mut text = String::new();
        for region in &self.regions {
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "[[region]]\nname = \"{}\"\nurl = \"{}\"\n",
                region.region.name(),
                region.region.origin_url()
            );
        }
        text
    }

    /// The regions, in the order of their start.
    pub fn all(&self) -> &[BreakableRegion] {
        &self.regions
    }

    /// The regions, in the order of their start, for adding peers.
    pub fn all_mut(&mut self) -> &mut [BreakableRegion] {
        &mut self.regions
    }

    /// The switch of a region's storage.
    pub fn storage_of(&self, name: &RegionName) -> Option<&OutageSwitch> {
        let region = self
            .regions
            .iter()
            .find(|region| region.region.name() == name)?;
        Some(&region.storage)
    }

    /// Heals all storages, then drains and stops all services.
    pub async fn shut_down(self) {
        for region in &self.regions {
            region.storage.heal();
        }
        for region in self.regions {
            region.region.shut_down().await;
        }
    }
}
