//! What `flotilla up` prints: addresses, and commands to try.

use std::fmt::Write as _;
use std::path::Path;

use crate::command::CommandError;
use crate::pki::CA;
use crate::region::Region;
use crate::regions::Regions;

/// The directory of the authority's certificate for clients, in that of the keys. Clients read
/// every `*.crt` there.
const CLIENT_TRUST: &str = "clients";

/// Copies the authority's certificate to where skopeo and podman can read it.
///
/// # Errors
/// If the copy cannot be written.
pub(super) fn write_client_trust(pki: &Path) -> Result<(), CommandError> {
    let dir = pki.join(CLIENT_TRUST);
    std::fs::create_dir_all(&dir)
        .and_then(|()| std::fs::copy(pki.join(CA), dir.join("ca.crt")))
        .map_err(|error| {
            let action = format!("copy the authority's certificate to {}", dir.display());
            CommandError::failed(action, error)
        })?;
    Ok(())
}

/// The instructions for one region.
pub(super) fn of_one(region: &Region) -> String {
    let mut text = addresses(region, "");
    let push = "--dest-tls-verify=false".to_owned();
    let _ = write!(text, "{}", push_and_pull(region, &push, None));
    text.push_str("\nStop with Ctrl-C.\n");
    text
}

/// The instructions for several regions, whose files are in `dir`.
pub(super) fn of_several(regions: &Regions, dir: &Path) -> String {
    let mut text = String::new();
    for region in regions.all() {
        let _ = writeln!(text, "{}", region.region.name());
        text.push_str(&addresses(&region.region, "  "));
    }
    let pki = dir.join("pki");
    let trust = format!("--dest-cert-dir {}", pki.join(CLIENT_TRUST).display());
    let ca = pki.join(CA);
    let [first, .., last] = regions.all() else {
        return text;
    };
    text.push_str(&push_and_pull(&first.region, &trust, Some(&ca)));
    let dir = dir.display();
    let (home, other) = (first.region.name(), last.region.origin_url());
    let other = other.trim_start_matches("https://");
    let _ = write!(
        text,
        "\nEach region has the image a moment later:\n\n    \
         skopeo inspect --cert-dir {trust} docker://{other}/app:v1\n\n\
         Break the storage of {home}, pull again, heal it:\n\n    \
         flotilla up break {home} --dir {dir}\n    \
         flotilla up heal {home} --dir {dir}\n\n\
         Forms of outage: --how hang, refuse, errors or slow. Stop with Ctrl-C.\n",
        trust = pki.join(CLIENT_TRUST).display(),
    );
    text
}

fn addresses(region: &Region, indent: &str) -> String {
    let mut text = format!(
        "{indent}origin   {}\n{indent}tracker  {}\n",
        region.origin_url(),
        region.tracker_url()
    );
    for peer in region.peers() {
        let _ = writeln!(
            text,
            "{indent}{}   mirror http://{}",
            peer.id(),
            peer.mirror_addr()
        );
    }
    text
}

fn push_and_pull(region: &Region, skopeo_tls: &str, ca: Option<&Path>) -> String {
    let (registry, origin) = (region.registry(), region.origin_url());
    let mirror = region.peers().first().map(|peer| peer.mirror_addr());
    let mirror = mirror.map(|mirror| mirror.to_string()).unwrap_or_default();
    let ca = ca.map(|ca| format!(" --ca {}", ca.display()));
    format!(
        "\nPush an image:\n\n    \
         skopeo copy {skopeo_tls} oci:DIR docker://{registry}/app:v1\n\n\
         Pull it with containerd through the first mirror:\n\n    \
         mkdir -p hosts/{registry}\n    \
         flotilla peer hosts-toml --mirror {mirror} \\\n        \
         --origin {origin}{ca} \\\n        > hosts/{registry}/hosts.toml\n    \
         ctr images pull --hosts-dir hosts {registry}/app:v1\n",
        ca = ca.unwrap_or_default(),
    )
}
