//! Configuration files that make a container runtime ask this mirror first and the origin after it.
//!
//! Commands print them, so that they need not be written by hand. For example, containerd only logs
//! a mistake in its `hosts.toml`, and then ignores the mirror.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// How long containerd waits for a connection to the mirror. Its default is 30 s.
const DIAL_TIMEOUT: &str = "200ms";

/// The text for `<hosts-dir>/<registry host>:<port>/hosts.toml` (or `_default/hosts.toml`).
///
/// `mirror` is the mirror's listening address. `origin` is the URL, with scheme, that containerd
/// asks if the mirror is down or cannot serve. `ca` is the authority of the origin's certificate,
/// unless it is a public one.
///
/// The mirror gets no TLS key, because containerd would then try HTTPS first.
pub fn hosts_toml(mirror: SocketAddr, origin: Option<&str>, ca: Option<&Path>) -> String {
    let mut text = String::new();
    text.push_str("# Put this into <hosts-dir>/_default/hosts.toml, or for one registry into\n");
    text.push_str("# <hosts-dir>/<host>:<port>/hosts.toml. containerd reads it at each pull.\n");
    if let Some(origin) = origin {
        text.push_str("\n# Asked last: with the peer gone, pulls go straight to the origin.\n");
        let _ = writeln!(text, "server = {}", quoted(origin));
        // The key applies to `server` only. A relative path would be relative to the file's folder.
        if let Some(ca) = ca.filter(|_| origin.starts_with("https://")) {
            let _ = writeln!(text, "ca = {}", quoted(&absolute(ca).to_string_lossy()));
        }
    }
    let mirror = format!("http://{}", reachable(mirror));
    let _ = write!(
        text,
        "\n[host.{}]\n  capabilities = [\"pull\", \"resolve\"]\n  dial_timeout = \"{DIAL_TIMEOUT}\"\n",
        quoted(&mirror)
    );
    text
}

/// The text for Docker's `/etc/docker/daemon.json`. Docker asks its mirrors for images of Docker
/// Hub only, and falls back to Docker Hub.
pub fn docker_daemon_json(mirror: SocketAddr) -> String {
    // Docker speaks plain HTTP to loopback addresses without further settings.
    let daemon =
        serde_json::json!({ "registry-mirrors": [format!("http://{}", reachable(mirror))] });
    format!("{daemon:#}\n")
}

/// The text for a file in `/etc/containers/registries.conf.d`, which Podman, Buildah, skopeo and
/// CRI-O read. `origin` is the URL of the registry in image names.
pub fn registries_conf(mirror: SocketAddr, origin: &str) -> String {
    let (is_plain, host) = match origin.split_once("://") {
        Some((scheme, host)) => (scheme == "http", host),
        None => (false, origin),
    };
    let host = quoted(host.trim_end_matches('/'));
    let mut text = String::new();
    text.push_str("# Put this into /etc/containers/registries.conf.d/flotilla.conf.\n");
    text.push_str(
        "# CRI-O reads it again on SIGHUP; Podman, Buildah and skopeo read it each time.\n\n",
    );
    let _ = write!(
        text,
        "[[registry]]\nprefix = {host}\nlocation = {host}\ninsecure = {is_plain}\n"
    );
    text.push_str("\n# Asked first; with the peer gone, pulls go straight to the registry.\n");
    let mirror = quoted(&reachable(mirror).to_string());
    let _ = write!(
        text,
        "[[registry.mirror]]\nlocation = {mirror}\ninsecure = true\n"
    );
    text
}

/// The address at which a client on this machine reaches a listener.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Formats a TOML basic string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                out.push('\\');
                out.push(character);
            }
            control if control.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(control));
            }
            plain => out.push(plain),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerd_asks_the_mirror_first_and_the_origin_last() {
        let text = hosts_toml(
            SocketAddr::from(([0, 0, 0, 0], 5001)),
            Some("http://origin.internal:5000"),
            None,
        );
        assert!(text.contains("\nserver = \"http://origin.internal:5000\"\n"));
        assert!(text.contains("[host.\"http://127.0.0.1:5001\"]"));
        assert!(text.contains("capabilities = [\"pull\", \"resolve\"]"));
        assert!(text.contains("dial_timeout = \"200ms\""));
        // A TLS key would make containerd try HTTPS at the plain port first.
        assert!(!text.contains("skip_verify") && !text.contains("ca ="));
    }

    #[test]
    fn ca_is_set_for_the_origin_only() {
        let mirror = SocketAddr::from(([127, 0, 0, 1], 5001));
        let ca = Some(Path::new("/etc/flotilla/pki/ca.pem"));
        let text = hosts_toml(mirror, Some("https://origin.internal:5000"), ca);
        let (top, mirror_section) = text.split_once("[host.").expect("a mirror");
        assert!(top.contains(
            "server = \"https://origin.internal:5000\"\nca = \"/etc/flotilla/pki/ca.pem\"\n"
        ));
        assert!(!mirror_section.contains("ca ="));
        assert!(!hosts_toml(mirror, Some("http://origin.internal:5000"), ca).contains("ca ="));
    }

    #[test]
    fn docker_config_has_the_mirror_url() {
        let text = docker_daemon_json(SocketAddr::from(([0, 0, 0, 0], 5001)));
        let daemon: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(daemon["registry-mirrors"][0], "http://127.0.0.1:5001");
    }

    #[test]
    fn podman_asks_the_mirror_before_the_registry() {
        let text = registries_conf(
            SocketAddr::from(([127, 0, 0, 1], 5001)),
            "http://origin.internal:5000/",
        );
        assert!(text.contains(
            "prefix = \"origin.internal:5000\"\nlocation = \"origin.internal:5000\"\ninsecure = true"
        ));
        assert!(
            text.contains("[[registry.mirror]]\nlocation = \"127.0.0.1:5001\"\ninsecure = true")
        );
        let text = registries_conf(
            SocketAddr::from(([127, 0, 0, 1], 5001)),
            "https://origin.internal",
        );
        assert!(text.contains("location = \"origin.internal\"\ninsecure = false"));
    }

    #[test]
    fn special_characters_in_the_origin_are_escaped() {
        let text = hosts_toml(
            SocketAddr::from(([127, 0, 0, 1], 1)),
            Some("http://a\"\n"),
            None,
        );
        assert!(text.contains("server = \"http://a\\\"\\u000A\""));
    }
}
