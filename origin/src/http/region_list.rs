//! `GET /flotilla/v1/regions`: what this replica knows of the regions, for operators and pipelines.

use std::sync::Arc;

use flotilla_common::failover::{SourceId, Standing};
use flotilla_common::name::RepositoryName;
use flotilla_common::wire::region_list::{ListedLag, ListedRegion, ListedStanding, RegionList};

use super::error::{ApiError, Code};
use super::route::parameter;
use super::{Api, HandlerResult, json};
use crate::regions::regional::Regional;
use crate::regions::routes::OWN;

/// Lists the regions; with `repository=NAME` also says which of them keep it.
pub(super) fn respond(api: &Arc<Api>, query: Option<&str>) -> HandlerResult {
    let repository = parameter(query, "repository")
        .map(|name| name.parse())
        .transpose()
        .map_err(|error| ApiError::new(Code::NameInvalid, error))?;
    let list = match &api.regional {
        Some(regional) => list(regional, repository.as_ref()),
        None => RegionList {
            region: api.registry.region().clone(),
            policy: None,
            storage: ListedStanding::Usable,
            whole: true,
            regions: Vec::new(),
        },
    };
    let body = serde_json::to_vec(&list);
    let body = body.map_err(|error| ApiError::new(Code::Unavailable, error))?;
    Ok(json(body))
}

fn list(regional: &Regional, repository: Option<&RepositoryName>) -> RegionList {
    let policy = regional.members().policy();
    let policy = policy.policy();
    let routes = regional.routes();
    let counts = regional.replicator().counts().by_region();
    let unix_now = regional.unix_nanos();
    let own = regional.own();
    let storage = listed(routes.own_standing());
    let standing_of = |name| {
        let others = (OWN.0 + 1..).zip(&routes.others);
        let id = others.filter(|(_, source)| source.region() == name);
        // One that the policy has just gained was never asked.
        id.map(|(id, _)| listed(routes.failover.standing(SourceId(id))))
            .next()
            .unwrap_or(ListedStanding::Usable)
    };
    let regions = policy.regions().iter().map(|region| {
        let followed = counts.get(&region.name).filter(|counts| counts.has_lease);
        ListedRegion {
            name: region.name.clone(),
            url: region.url.as_str().to_owned(),
            keeps: repository.map(|name| policy.rule_for(name).includes(&region.name)),
            standing: if region.name == *own {
                storage
            } else {
                standing_of(&region.name)
            },
            lag: followed.map(|counts| ListedLag {
                seconds: counts.lag_nanos(unix_now) / 1_000_000_000,
                entries: counts.owed,
                blocked: counts.blocked,
            }),
        }
    });
    RegionList {
        region: own.clone(),
        policy: policy.exists().then(|| policy.digest()),
        storage,
        whole: regional.is_whole() || !policy.exists(),
        regions: regions.collect(),
    }
}

const fn listed(standing: Standing) -> ListedStanding {
    match standing {
        Standing::Fine | Standing::Suspect => ListedStanding::Usable,
        Standing::Returning { .. } => ListedStanding::Returning,
        Standing::Out => ListedStanding::Out,
    }
}
