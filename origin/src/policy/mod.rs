//! The policy: the regions, and what each repository needs of them.
//!
//! It is one object in the bucket of every region, at the key `policy`: a TOML text that `flotilla
//! origin policy set` writes (`docs/regions.md`, "Policy file"). A bucket without one belongs to a
//! single region.
//!
//! ```text
//! storage                      replica
//!    | <-- read, each minute ---- |  LivePolicy: requests use the copy in memory
//!    | <-- read before a write -- |  ... if that copy is older than 2 min
//!    | <-- compare-and-swap ----- flotilla origin policy set
//! ```
//!
//! So all replicas write by a new policy within 2 minutes. A policy that a replica cannot use is
//! never taken up: the last good one stays in use.

mod changes;
mod keys;
mod live;
mod matcher;
mod parse;
mod region_url;
mod stored;

use std::collections::HashMap;

use flotilla_common::name::{RegionName, RepositoryName};
use flotilla_common::units::{ByteSize, Period};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use changes::{changes, check_replacement};
pub use live::{LivePolicy, PolicyStartError};
pub use matcher::{PatternError, RepositoryPattern, TagPattern};
pub use parse::PolicyError;
pub use region_url::{RegionUrl, RegionUrlError};
pub use stored::{PolicyStoreError, StoredPolicy, read, set};

/// The maximum length of a policy in bytes.
pub const MAX_POLICY_LEN: usize = 1 << 20;
/// The maximum number of regions.
pub const MAX_REGIONS: usize = 32;
/// The maximum number of rules.
pub const MAX_RULES: usize = 10_000;
/// The maximum number of items of a list within a rule.
pub const MAX_ITEMS: usize = 64;

/// The regions, and the rules of repositories. Made by [`Policy::parse`] or [`Policy::none`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Policy {
    #[serde(rename = "region")]
    regions: Vec<Region>,
    #[serde(rename = "repository")]
    rules: Vec<RepositoryRule>,
    /// The rule of repositories that no other rule matches.
    #[serde(skip)]
    default_rule: RepositoryRule,
    #[serde(skip)]
    index: RuleIndex,
}

/// A region: a group of zones with its own origin and storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Region {
    /// Its name.
    pub name: RegionName,
    /// Where the origins of other regions reach its origin.
    pub url: RegionUrl,
}

/// What the repositories that match a pattern need of the regions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RepositoryRule {
    /// The repositories.
    #[serde(rename = "match")]
    pub pattern: RepositoryPattern,
    /// The regions that keep them, in the order of the policy.
    pub regions: Vec<RegionName>,
    /// The number of regions that have a change before it is acknowledged, the own included.
    pub ack_regions: usize,
    /// Which regions answer for a tag.
    pub tag_reads: TagReads,
    /// The region in which all changes are written; `None`: the one that receives them.
    pub home: Option<RegionName>,
    /// Tags that keep the digest that they were first given.
    pub immutable: Vec<TagPattern>,
    /// The maximum number of bytes of a repository. Parsed and stored; has no effect yet.
    pub quota: Option<ByteSize>,
    /// What happens to manifests without a tag. Parsed and stored; has no effect yet.
    pub untagged: Untagged,
    /// The time between two evaluations that must both choose a tag before it is deleted. Default
    /// 24 h. Parsed and stored; has no effect yet.
    pub delay: Period,
    /// A tag stays if any of these rules keeps it; without rules, all tags stay. Parsed and stored;
    /// has no effect yet.
    pub keep: Vec<KeepRule>,
}

/// Which regions answer for a tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TagReads {
    /// The region that is asked, from its own storage.
    #[default]
    Local,
    /// The region with the latest change of the tag.
    Freshest,
}

/// What happens to manifests that no tag leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Untagged {
    /// They stay.
    #[default]
    Keep,
    /// They are evicted this long after nothing leads to them any more.
    After(Period),
}

/// Tags that stay. Every part that is given must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeepRule {
    /// Patterns of the tags; empty: all tags.
    #[serde(default)]
    pub tags: Vec<TagPattern>,
    /// The most recently pushed ones, this many.
    pub last: Option<u64>,
    /// Those pushed within this period.
    pub pushed_within: Option<Period>,
    /// Those that the fleet of any region holds or pulled within this period.
    pub in_use_within: Option<Period>,
}

impl Policy {
    /// The policy of a bucket without one: a single region, which keeps everything.
    pub fn none() -> Self {
        Self::new(Vec::new(), Vec::new())
    }

    fn new(regions: Vec<Region>, rules: Vec<RepositoryRule>) -> Self {
        let all = regions.iter().map(|region| region.name.clone()).collect();
        Self {
            default_rule: RepositoryRule::default_for(RepositoryPattern::all(), all),
            index: RuleIndex::new(&rules),
            regions,
            rules,
        }
    }

    /// Whether it lists regions; false only for [`Policy::none`].
    pub const fn exists(&self) -> bool {
        !self.regions.is_empty()
    }

    /// The regions, in the order of the text.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The rules, in the order of the text.
    pub fn rules(&self) -> &[RepositoryRule] {
        &self.rules
    }

    /// The region with a name.
    pub fn region(&self, name: &RegionName) -> Option<&Region> {
        self.regions.iter().find(|region| region.name == *name)
    }

    /// All regions except `own`.
    pub fn others<'a>(&'a self, own: &'a RegionName) -> impl Iterator<Item = &'a Region> {
        self.regions
            .iter()
            .filter(move |region| region.name != *own)
    }

    /// The rule of a repository: the first that matches, else the default: all regions,
    /// `ack_regions = 1`, `tag_reads = "local"`.
    pub fn rule_for(&self, repository: &RepositoryName) -> &RepositoryRule {
        let found = self.index.first_match(&self.rules, repository);
        found.unwrap_or(&self.default_rule)
    }

    /// Whether the region `own` keeps a repository.
    pub fn is_replicated_here(&self, own: &RegionName, repository: &RepositoryName) -> bool {
        !self.exists() || self.rule_for(repository).includes(own)
    }

    /// Identifies the content, so that the policies of regions can be compared. Comments and layout of
    /// the text do not count. Versions of this program may differ in it.
    pub fn digest(&self) -> flotilla_common::digest::Digest {
        let content = serde_json::to_vec(self).expect("names, numbers and texts");
        flotilla_common::digest::Digest::sha256(&content)
    }

    /// A hash of the choice of repositories that the region `own` keeps. It is the same in every
    /// process and version, so it can be stored. Another hash means that the choice may have
    /// changed, and that the region may lack what it now keeps.
    pub fn selection_hash(&self, own: &RegionName) -> u64 {
        let selects = |rule: &RepositoryRule| !self.exists() || rule.includes(own);
        let by_default = selects(&self.default_rule);
        // Rules at the end that choose as the default rule does change nothing.
        let differing = self
            .rules
            .iter()
            .rposition(|rule| selects(rule) != by_default);
        let counted = differing.map_or(0, |last| last + 1);
        let mut hash = Sha256::new();
        hash.update(b"flotilla policy selection 1\0");
        for rule in &self.rules[..counted] {
            // No pattern has a NUL.
            hash.update(rule.pattern.as_str());
            hash.update([0, u8::from(selects(rule))]);
        }
        hash.update([u8::from(by_default)]);
        let mut first = [0; 8];
        first.copy_from_slice(&hash.finalize()[..8]);
        u64::from_be_bytes(first)
    }
}

impl RepositoryRule {
    /// The rule with all defaults.
    fn default_for(pattern: RepositoryPattern, regions: Vec<RegionName>) -> Self {
        Self {
            pattern,
            regions,
            ack_regions: 1,
            tag_reads: TagReads::default(),
            home: None,
            immutable: Vec::new(),
            quota: None,
            untagged: Untagged::default(),
            delay: Period(core::time::Duration::from_hours(24)),
            keep: Vec::new(),
        }
    }

    /// Whether a region keeps the repositories.
    pub fn includes(&self, region: &RegionName) -> bool {
        self.regions.contains(region)
    }

    /// The regions that keep the repositories, except `own`.
    pub fn others<'a>(&'a self, own: &'a RegionName) -> impl Iterator<Item = &'a RegionName> {
        self.regions.iter().filter(move |region| *region != own)
    }

    /// Whether a tag keeps the digest that it was first given.
    pub fn is_immutable(&self, tag: &flotilla_common::name::Tag) -> bool {
        self.immutable
            .iter()
            .any(|pattern| pattern.matches(tag.as_str()))
    }
}

impl Serialize for Untagged {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Keep => serializer.serialize_str("keep"),
            Self::After(period) => period.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Untagged {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "keep" {
            return Ok(Self::Keep);
        }
        let period = text
            .parse()
            .map_err(|error| serde::de::Error::custom(format_args!("{error}; or \"keep\"")))?;
        Ok(Self::After(period))
    }
}

/// Finds rules by the first component of a name, so that a request does not try 10,000 patterns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct RuleIndex {
    /// Rules whose first component has no wildcard, by that component.
    literal: HashMap<Box<str>, Vec<usize>>,
    /// The other rules.
    wildcard: Vec<usize>,
}

impl RuleIndex {
    fn new(rules: &[RepositoryRule]) -> Self {
        let mut index = Self::default();
        for (number, rule) in rules.iter().enumerate() {
            match rule.pattern.first_literal() {
                Some(first) => index.literal.entry(first.into()).or_default().push(number),
                None => index.wildcard.push(number),
            }
        }
        index
    }

    fn first_match<'r>(
        &self,
        rules: &'r [RepositoryRule],
        repository: &RepositoryName,
    ) -> Option<&'r RepositoryRule> {
        let first = repository.as_str().split('/').next().unwrap_or_default();
        let literal = self.literal.get(first).map_or(&[][..], Vec::as_slice);
        let first_of = |numbers: &[usize]| {
            let mut numbers = numbers.iter().copied();
            numbers.find(|number| rules[*number].pattern.matches(repository))
        };
        let found = [first_of(literal), first_of(&self.wildcard)];
        found
            .into_iter()
            .flatten()
            .min()
            .map(|number| &rules[number])
    }
}

#[cfg(test)]
mod tests;
