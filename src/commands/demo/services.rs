//! The services of a demonstration: one region, or several that replicate to each other.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use flotilla_common::digest::Digest;
use flotilla_common::units::BitRate;
use tokio::time::{Instant, sleep};

use crate::breakable_storage::Outage;
use crate::client::{ClientError, RegistryClient};
use crate::command::CommandError;
use crate::fleet::Fleet;
use crate::image::Layout;
use crate::region::{Region, RegionPlan};
use crate::regions::{Regions, create_fleets};

const REGION: &str = "local";
/// Pause between two looks at whether a region has the image.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long an image without bytes may take to be copied to another region.
const COPY_TIMEOUT: Duration = Duration::from_secs(30);
/// The slowest copying of bytes that is waited for, in bytes per second.
const SLOWEST_COPY: u64 = 1_000_000;

/// Running services. All peers belong to the first region.
#[derive(Debug)]
pub(super) enum Services {
    One(Box<Region>),
    Several(Regions),
}

impl Services {
    /// Starts `regions` regions without peers.
    ///
    /// # Errors
    /// If a service does not start.
    pub(super) async fn start(
        dir: &Path,
        regions: u32,
        rate: BitRate,
    ) -> Result<Self, CommandError> {
        let plan = || RegionPlan {
            rate: Some(rate),
            ..RegionPlan::default()
        };
        let keys = |error| CommandError::failed("create the fleet's keys", error);
        if regions == 1 {
            let name = REGION.parse();
            let name = name.map_err(|error: flotilla_common::name::NameError| {
                CommandError::failed("name the region", error)
            })?;
            let fleet = Fleet::create(name).map_err(keys)?;
            let region = Region::start(dir, fleet, plan()).await?;
            return Ok(Self::One(Box::new(region)));
        }
        let fleets = create_fleets(regions).map_err(keys)?;
        let regions = Regions::start(dir, fleets, |_| plan()).await?;
        Ok(Self::Several(regions))
    }

    /// The region of the peers.
    pub(super) fn home(&self) -> &Region {
        match self {
            Self::One(region) => region,
            Self::Several(regions) => &regions.all()[0].region,
        }
    }

    /// The region of the peers, for adding them.
    pub(super) fn home_mut(&mut self) -> &mut Region {
        match self {
            Self::One(region) => region,
            Self::Several(regions) => &mut regions.all_mut()[0].region,
        }
    }

    /// Blob bytes that each region's origin has sent, to peers and to other regions.
    pub(super) fn sent_bytes(&self) -> BTreeMap<String, u64> {
        let of = |region: &Region| (region.name().to_string(), region.origin_blob_bytes());
        match self {
            Self::One(region) => BTreeMap::from([of(region)]),
            Self::Several(regions) => regions
                .all()
                .iter()
                .map(|region| of(&region.region))
                .collect(),
        }
    }

    /// Breaks the storage of the peers' region, if there is another one.
    pub(super) fn break_home(&self, outage: Outage) {
        if let Self::Several(regions) = self {
            regions.all()[0].storage.break_storage(outage);
        }
    }

    /// Waits until every other region has an image in its own storage.
    ///
    /// # Errors
    /// If a region does not copy it in time.
    pub(super) async fn wait_until_copied(
        &self,
        image: &Layout,
        repository: &str,
        tag: &str,
        bytes: u64,
    ) -> Result<(), CommandError> {
        let Self::Several(regions) = self else {
            return Ok(());
        };
        let deadline = Instant::now() + COPY_TIMEOUT + Duration::from_secs(bytes / SLOWEST_COPY);
        for other in &regions.all()[1..] {
            let action = || format!("wait until {} has the image", other.region.name());
            let failed = |error: ClientError| CommandError::failed(action(), error);
            let client = other.region.client_from_region(self.home(), repository);
            let client = client.map_err(failed)?;
            while let Err(missing) = has_image(&client, image, tag).await.map_err(failed)? {
                if Instant::now() > deadline {
                    return Err(CommandError::failed(
                        action(),
                        format!("it still lacks {missing}"),
                    ));
                }
                sleep(POLL_INTERVAL).await;
            }
        }
        Ok(())
    }

    /// Stops all services.
    pub(super) async fn shut_down(self) {
        match self {
            Self::One(region) => region.shut_down().await,
            Self::Several(regions) => regions.shut_down().await,
        }
    }
}

/// Whether a registry has the tag, all manifests and all blobs of an image. The inner error names
/// what it lacks.
async fn has_image(
    client: &RegistryClient,
    image: &Layout,
    tag: &str,
) -> Result<Result<(), String>, ClientError> {
    let digest = image.image().digest;
    // The tag is written last.
    if !matches!(client.resolve(tag).await, Ok(found) if found == digest) {
        return Ok(Err(format!("the tag {tag}")));
    }
    let mut manifests: Vec<Digest> = vec![digest];
    while let Some(digest) = manifests.pop() {
        if client.manifest(&digest).await.is_err() {
            return Ok(Err(format!("the manifest {digest}")));
        }
        let (_, manifest) = image.manifest(&digest)?;
        for blob in manifest.blobs() {
            if !client.has_blob(&blob.digest).await? {
                return Ok(Err(format!("the blob {}", blob.digest)));
            }
        }
        manifests.extend(manifest.manifests.iter().map(|child| child.digest));
    }
    Ok(Ok(()))
}
