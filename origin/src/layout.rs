//! The key of each object in the bucket. A key starts with its kind; `/_/` separates the name of a
//! repository from the rest, since no name contains it.
//!
//! | key | object |
//! |---|---|
//! | `format` | version and times on which all replicas agree |
//! | `blob/<digest>/<generation>` | the record of a blob |
//! | `seg/<upload id>/<nonce>` | data: a segment, or a chunk table that is too long for its record |
//! | `upload/<id>/<offset>` | an entry of an upload log |
//! | `rb/<name>/_/<digest>` | a membership: the repository has the blob |
//! | `rm/<name>/_/<digest>` | the bytes of a manifest of the repository |
//! | `tag/<name>/_/<tag>` | a tag |
//! | `ref/<name>/_/<subject>/<digest>` | the manifest `digest` refers to `subject` |

use flotilla_common::digest::Digest;
use flotilla_common::name::{RepositoryName, Tag};

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
    fn longest_name_fits() {
        let repository: RepositoryName = "a".repeat(255).parse().expect("a name");
        let wide = Digest::of(flotilla_common::digest::Algorithm::Sha512, b"x");
        assert!(referrer(&repository, &wide, &wide).as_str().len() < 600);
    }
}
