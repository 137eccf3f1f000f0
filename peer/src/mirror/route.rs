//! The paths of the registry API that the mirror serves.

use core::fmt::Display;
use core::str::FromStr;

use flotilla_common::digest::Digest;
use flotilla_common::name::{Reference, RepositoryName};

use super::error::{ContentKind, MirrorError};

/// The target of a request path.
#[derive(Debug)]
pub(super) enum MirrorRoute {
    Ping,
    Manifest(RepositoryName, Reference),
    Blob(RepositoryName, Digest),
}

/// Parses a path. The name of the repository may contain slashes.
pub(super) fn route(path: &str) -> Result<MirrorRoute, (ContentKind, MirrorError)> {
    let unknown = || {
        let message = format!("no such path: {path}");
        (ContentKind::Blob, MirrorError::Unknown(message))
    };
    let rest = path.strip_prefix("/v2").ok_or_else(unknown)?;
    if rest.is_empty() || rest == "/" {
        return Ok(MirrorRoute::Ping);
    }
    let rest = rest.strip_prefix('/').ok_or_else(unknown)?;
    if let Some((name, reference)) = rest.rsplit_once("/manifests/") {
        let kind = ContentKind::Manifest;
        let repository = parse(kind, name)?;
        return Ok(MirrorRoute::Manifest(repository, parse(kind, reference)?));
    }
    if let Some((name, digest)) = rest.rsplit_once("/blobs/") {
        let kind = ContentKind::Blob;
        let repository = parse(kind, name)?;
        return Ok(MirrorRoute::Blob(repository, parse(kind, digest)?));
    }
    Err(unknown())
}

fn parse<T: FromStr<Err: Display>>(
    kind: ContentKind,
    text: &str,
) -> Result<T, (ContentKind, MirrorError)> {
    text.parse()
        .map_err(|error| (kind, MirrorError::Invalid(format!("{text}: {error}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_of_paths() {
        let digest = Digest::sha256(b"x");
        assert!(matches!(route("/v2/"), Ok(MirrorRoute::Ping)));
        assert!(matches!(route("/v2"), Ok(MirrorRoute::Ping)));
        assert!(matches!(
            route("/v2/a/b/manifests/v1"),
            Ok(MirrorRoute::Manifest(name, Reference::Tag(_))) if name.as_str() == "a/b"
        ));
        assert!(matches!(
            route(&format!("/v2/manifests/blobs/{digest}")),
            Ok(MirrorRoute::Blob(name, found)) if name.as_str() == "manifests" && found == digest
        ));
        assert!(matches!(
            route("/v2/a/blobs/sha256:zz"),
            Err((ContentKind::Blob, MirrorError::Invalid(_)))
        ));
        assert!(matches!(
            route("/v2/A/manifests/v1"),
            Err((ContentKind::Manifest, MirrorError::Invalid(_)))
        ));
        assert!(matches!(route("/v3/"), Err((_, MirrorError::Unknown(_)))));
        assert!(matches!(
            route("/v2/_catalog"),
            Err((_, MirrorError::Unknown(_)))
        ));
    }
}
