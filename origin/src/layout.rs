//! The key of each object in the bucket. A key starts with its kind; `/_/` separates the name of a
//! repository from the rest, since no name contains it.
//!
//! | key | object |
//! |---|---|
//! | `format` | version and times on which all replicas agree |
//! | `policy` | the regions, and the rules of repositories |
//! | `blob/<digest>/<generation>` | the record of a blob |
//! | `seg/<upload id>/<nonce>` | data: a segment, or a chunk table that is too long for its record |
//! | `upload/<id>/<offset>` | an entry of an upload log |
//! | `rb/<name>/_/<digest>` | a membership: the repository has the blob |
//! | `rm/<name>/_/<digest>` | the bytes of a manifest of the repository |
//! | `tag/<name>/_/<tag>` | a tag |
//! | `ref/<name>/_/<subject>/<digest>` | the manifest `digest` refers to `subject` |
//! | `journal/<region>/<clock>-<nonce>` | keys of one request, owed to `region` |
//! | `trimmed/<region>` | whether entries owed to `region` were dropped unread |
//! | `region/<region>` | what this region knows of `region`: its storage, sweeps |
//! | `lease/<job>` | the replica that does a job |

use flotilla_common::digest::Digest;
use flotilla_common::name::{RegionName, RepositoryName, Tag};
use flotilla_common::wire::region::{EntryId, FactKey, FactKind};

use crate::storage::{Key, Prefix};
use crate::upload::id::Generation;

const CHECKED: &str =
    "names, tags, digests and generations are shorter than keys and use only their characters";

fn key(text: String) -> Key {
    Key::new(text).expect(CHECKED)
}

fn prefix(text: String) -> Prefix {
    Prefix::new(text).expect(CHECKED)
}

pub(crate) fn format() -> Key {
    key("format".to_owned())
}

pub(crate) fn policy() -> Key {
    key("policy".to_owned())
}

pub(crate) fn blob(digest: &Digest, generation: &Generation) -> Key {
    key(format!("blob/{digest}/{generation}"))
}

pub(crate) fn generations(digest: &Digest) -> Prefix {
    prefix(format!("blob/{digest}/"))
}

pub(crate) fn segment(generation: &Generation, nonce: u128) -> Key {
    key(format!("seg/{generation}/{nonce:032x}"))
}

pub(crate) fn segments(generation: &Generation) -> Prefix {
    prefix(format!("seg/{generation}/"))
}

pub(crate) fn log_entry(generation: &Generation, offset: u64) -> Key {
    key(format!("upload/{generation}/{offset:016x}"))
}

pub(crate) fn log_entries(generation: &Generation) -> Prefix {
    prefix(format!("upload/{generation}/"))
}

pub(crate) fn membership(repository: &RepositoryName, digest: &Digest) -> Key {
    key(format!("rb/{repository}/_/{digest}"))
}

pub(crate) fn manifest(repository: &RepositoryName, digest: &Digest) -> Key {
    key(format!("rm/{repository}/_/{digest}"))
}

pub(crate) fn manifests(repository: &RepositoryName) -> Prefix {
    prefix(format!("rm/{repository}/_/"))
}

pub(crate) fn tag(repository: &RepositoryName, tag: &Tag) -> Key {
    key(format!("tag/{repository}/_/{tag}"))
}

pub(crate) fn tags(repository: &RepositoryName) -> Prefix {
    prefix(format!("tag/{repository}/_/"))
}

pub(crate) fn referrer(repository: &RepositoryName, subject: &Digest, digest: &Digest) -> Key {
    key(format!("ref/{repository}/_/{subject}/{digest}"))
}

pub(crate) fn referrers(repository: &RepositoryName, subject: &Digest) -> Prefix {
    prefix(format!("ref/{repository}/_/{subject}/"))
}

pub(crate) fn journal(region: &RegionName) -> Prefix {
    prefix(format!("journal/{region}/"))
}

pub(crate) fn journal_entry(region: &RegionName, entry: EntryId) -> Key {
    let EntryId { created, nonce } = entry;
    key(format!("journal/{region}/{created:016x}-{nonce:032x}"))
}

/// All journals.
pub(crate) fn journals() -> Prefix {
    prefix("journal/".to_owned())
}

/// A key after all entries of a journal, and before those of the next one.
pub(crate) fn journal_end(region: &RegionName) -> Key {
    // Entries begin with a hexadecimal digit.
    key(format!("journal/{region}/g"))
}

/// The region whose journal a key is in.
pub(crate) fn journal_region(key: &Key) -> Option<RegionName> {
    let (region, _) = key.as_str().strip_prefix("journal/")?.split_once('/')?;
    region.parse().ok()
}

/// The entry that a key of a journal names.
pub(crate) fn entry_id(key: &Key) -> Option<EntryId> {
    let (created, nonce) = key.last_segment().split_once('-')?;
    Some(EntryId {
        created: u64::from_str_radix(created, 16).ok()?,
        nonce: u128::from_str_radix(nonce, 16).ok()?,
    })
}

pub(crate) fn trim_mark(region: &RegionName) -> Key {
    key(format!("trimmed/{region}"))
}

pub(crate) fn region(region: &RegionName) -> Key {
    key(format!("region/{region}"))
}

/// What this region knows of all others.
pub(crate) fn regions() -> Prefix {
    prefix("region/".to_owned())
}

/// All leases.
pub(crate) fn leases() -> Prefix {
    prefix("lease/".to_owned())
}

/// The referrers of all repositories.
pub(crate) fn all_referrers() -> Prefix {
    prefix("ref/".to_owned())
}

/// The manifest whose referrer entry a key holds; `None` if it is a key of another kind.
pub(crate) fn referring_manifest(key: &Key) -> Option<(RepositoryName, Digest)> {
    let (repository, name) = key.as_str().strip_prefix("ref/")?.split_once("/_/")?;
    let (_, digest) = name.split_once('/')?;
    Some((repository.parse().ok()?, digest.parse().ok()?))
}

pub(crate) fn lease(job: &str) -> Key {
    key(format!("lease/{job}"))
}

/// An object that is written to read the storage's clock.
pub(crate) fn clock_probe(nonce: u128) -> Key {
    key(format!("probe/clock-{nonce:032x}"))
}

/// The key of a replicated fact.
pub(crate) fn fact(fact: &FactKey) -> Key {
    match fact {
        FactKey::Manifest(repository, digest) => manifest(repository, digest),
        FactKey::Tag(repository, name) => tag(repository, name),
    }
}

/// All facts of a kind, in all repositories.
pub(crate) fn facts(kind: FactKind) -> Prefix {
    prefix(
        match kind {
            FactKind::Manifests => "rm/",
            FactKind::Tags => "tag/",
        }
        .to_owned(),
    )
}

/// The fact that a key holds; `None` if it is a key of another kind.
pub(crate) fn fact_key(key: &Key) -> Option<FactKey> {
    let (kind, rest) = key.as_str().split_once('/')?;
    let (repository, name) = rest.split_once("/_/")?;
    let repository = repository.parse().ok()?;
    match kind {
        "rm" => Some(FactKey::Manifest(repository, name.parse().ok()?)),
        "tag" => Some(FactKey::Tag(repository, name.parse().ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Every valid name gives valid keys, and no repository's prefix contains another's keys.
        #[test]
        fn listings_of_repositories_do_not_overlap(
            name in "[a-z0-9]{1,20}((__|[._/]|-{1,2})[a-z0-9]{1,20}){0,10}",
            tag in "[A-Za-z0-9_][A-Za-z0-9._-]{0,127}",
        ) {
            let repository: RepositoryName = name.parse().expect("a name");
            let wide = Digest::of(flotilla_common::digest::Algorithm::Sha512, b"x");
            let tag = super::tag(&repository, &tag.parse().expect("a tag"));
            prop_assert!(tag.as_str().starts_with(tags(&repository).as_str()));
            let referrer = referrer(&repository, &wide, &wide);
            prop_assert!(referrer.as_str().starts_with(referrers(&repository, &wide).as_str()));
            manifest(&repository, &wide);
            let below: RepositoryName = format!("{}/x", &name[..name.len().min(250)]).parse().expect("a name");
            prop_assert!(!tags(&below).as_str().starts_with(tags(&repository).as_str()));
        }
    }

    #[test]
    fn facts_and_entries_are_read_back_from_their_keys() {
        let repository: RepositoryName = "team/app".parse().expect("a name");
        for key in [
            FactKey::Manifest(repository.clone(), Digest::sha256(b"x")),
            FactKey::Tag(repository, "v1".parse().expect("a tag")),
        ] {
            assert_eq!(fact_key(&fact(&key)), Some(key));
        }
        let region: RegionName = "eu-1".parse().expect("a name");
        for created in [0, 1, u64::MAX] {
            let entry = EntryId { created, nonce: 7 };
            assert_eq!(entry_id(&journal_entry(&region, entry)), Some(entry));
        }
        assert_eq!(fact_key(&format()), None);
        let (repository, digest): (RepositoryName, _) =
            ("team/app".parse().expect("a name"), Digest::sha256(b"x"));
        let key = referrer(&repository, &Digest::sha256(b"subject"), &digest);
        assert_eq!(referring_manifest(&key), Some((repository, digest)));
    }

    #[test]
    fn longest_name_fits() {
        let repository: RepositoryName = "a".repeat(255).parse().expect("a name");
        let wide = Digest::of(flotilla_common::digest::Algorithm::Sha512, b"x");
        assert!(referrer(&repository, &wide, &wide).as_str().len() < 600);
    }
}
