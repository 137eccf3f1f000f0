//! Configurations that are not valid are rejected at start, with the keys and the fix.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::harness::service::TestService;
use crate::harness::tools::output;

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");

/// A working folder for services, with a fleet's files in `pki`.
struct FleetFolder(TempDir);

impl FleetFolder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.run("pki init --dir pki --region eu-1").unwrap();
        folder
            .run("pki issue --dir pki --server 127.0.0.1")
            .unwrap();
        folder.run("pki issue --dir pki --peer vm-1").unwrap();
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// A `flotilla` command that runs in the folder.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(FLOTILLA);
        command
            .args(line.split_whitespace())
            .current_dir(self.path());
        command
    }

    fn run(&self, line: &str) -> Result<String, String> {
        output(&mut self.command(line))
    }

    /// The error of a service that must not start with this configuration.
    fn startup_error(&self, service: &str, configuration: &str) -> String {
        std::fs::write(self.path().join("flotilla.toml"), configuration).unwrap();
        let result = self.run(&format!("{service} --config flotilla.toml"));
        result.expect_err("it must not start")
    }
}

#[test]
fn partial_tls_configuration_is_rejected() {
    let folder = FleetFolder::new();
    let origin = "listen = '127.0.0.1:0'\nstorage = 'memory:///'\nseal-key = 'pki/eu-1.seal.key'\n";
    let tracker = "listen = '127.0.0.1:0'\n";
    let peer =
        "origin = ['http://127.0.0.1:5000']\nstore = 'store'\ntrusted-keys = 'pki/trusted-keys'\n";
    let cert = "tls-cert = 'pki/127.0.0.1.pem'\n";
    let key = "tls-key = 'pki/127.0.0.1.key'\n";
    let ca = "tls-ca = 'pki/ca.pem'\n";
    for (service, rest) in [("origin", origin), ("tracker", tracker), ("peer", peer)] {
        for (given, missing) in [
            ([cert, "", ""], "tls-key and tls-ca are missing"),
            ([cert, key, ""], "tls-ca is missing"),
            ([cert, "", ca], "tls-key is missing"),
            (["", key, ca], "tls-cert is missing"),
            (["", "", ca], "tls-cert and tls-key are missing"),
        ] {
            let message = folder.startup_error(service, &format!("{rest}{}", given.concat()));
            assert!(
                message.contains(missing) && message.contains("flotilla pki issue"),
                "{service}: {message}"
            );
        }
    }
    let message = folder
        .run("tracker --listen 127.0.0.1:0 --tls-cert pki/127.0.0.1.pem")
        .unwrap_err();
    assert!(
        message.contains("tls-key and tls-ca are missing") && message.contains("plain HTTP"),
        "{message}"
    );
    let message = folder.startup_error("peer", peer);
    assert!(
        message.contains("tls-cert and tls-key and tls-ca are missing"),
        "{message}"
    );
}

#[test]
fn invalid_values_name_the_key_and_the_fix() {
    let folder = FleetFolder::new();
    let tls = "tls-cert = 'pki/vm-1.pem'\ntls-key = 'pki/vm-1.key'\ntls-ca = 'pki/ca.pem'\n";
    let peer = format!("{tls}store = 'store'\ntrusted-keys = 'pki/trusted-keys'\n");
    let with = |rest: &str| format!("{peer}{rest}");
    let origin = "origin = ['http://127.0.0.1:5000']\n";
    let of_other_region = "storage = 'memory:///'\nseal-key = 'pki/eu-1.seal.key'\nregion = 'us-1'";
    let url = "write scheme, host and port, such as https://origin.internal:5000";
    for (service, text, words) in [
        (
            "peer",
            with("quota = '0'"),
            ["key 'quota'", "the minimum is 4MiB"],
        ),
        (
            "peer",
            with("quota = 10"),
            ["key 'quota'", "10B is too small"],
        ),
        (
            "peer",
            with("down = '200'"),
            ["key 'down'", "the minimum is 1Mbit"],
        ),
        (
            "peer",
            with("congestion = 'reno'"),
            ["key 'congestion'", "write delay, cubic or bbr"],
        ),
        (
            "peer",
            with("peers-from = ['10.0.0.0/8', '10.0.0.0/33']"),
            ["key 'peers-from'", "such as 10.0.0.0/8 or fd00::/8"],
        ),
        (
            "peer",
            with("mirror = 'localhost:5001'"),
            ["key 'mirror'", "write an IP address and a port"],
        ),
        (
            "origin",
            "listen = 5000".to_owned(),
            ["key 'listen'", "such as 127.0.0.1:5000"],
        ),
        (
            "peer",
            with("origin = ['127.0.0.1:5000']"),
            ["key 'origin'", url],
        ),
        (
            "peer",
            with("tracker = ['tracker.internal:7070']"),
            ["key 'tracker'", url],
        ),
        (
            "peer",
            with("tracker = ['US_1=https://tracker.us:7070']"),
            ["key 'tracker'", "write REGION=URL or URL"],
        ),
        (
            "peer",
            with(&format!(
                "{origin}region = 'eu-1'\ntracker = ['http://t1:7070', 'eu-1=http://t1:7070/']"
            )),
            ["tracker: 'http://t1:7070' is named twice", "remove one"],
        ),
        (
            "peer",
            with(&format!(
                "{origin}region = 'eu-1'\ntracker = ['http://t1:7070', 'us-1=http://t1:7070']"
            )),
            ["named in the regions eu-1 and us-1", "keep the one"],
        ),
        (
            "peer",
            peer.clone(),
            ["origin: missing", "https://origin.internal:5000"],
        ),
        (
            "peer",
            with(&format!("{origin}require-grants = true")),
            ["require-grants: without TLS, origin", "use https://"],
        ),
        (
            "tracker",
            "open-leases = 0".to_owned(),
            ["key 'open-leases'", "0 is not in 1.."],
        ),
        (
            "tracker",
            "admin-listen = '0.0.0.0:7071'".to_owned(),
            ["admin-listen 0.0.0.0:7071 is not", "set admin-open"],
        ),
        (
            "tracker",
            "admin-clients = ['monitoring']".to_owned(),
            ["key 'admin-clients'", "write peer:ID or origin:REGION"],
        ),
        (
            "peer",
            with(&format!("{origin}admin-listen = '0.0.0.0:5101'")),
            ["admin-listen 0.0.0.0:5101 is not", "set admin-open"],
        ),
        (
            "tracker",
            "own-url = 'http://t1:7070'".to_owned(),
            ["own-url must be one of trackers", "or neither"],
        ),
        (
            "origin",
            of_other_region.to_owned(),
            [
                "region is us-1, but seal-key belongs to region eu-1",
                "pki issue --origin us-1",
            ],
        ),
    ] {
        let message = folder.startup_error(service, &text);
        assert!(
            words.iter().all(|word| message.contains(word)),
            "{service} with {text}: {message}"
        );
        assert!(
            !message.contains("Usage"),
            "the usage does not help with a configuration file: {message}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_that_is_not_on_loopback_logs_a_warning() {
    let folder = FleetFolder::new();
    let line = "peer --mirror 0.0.0.0:0 --quic 127.0.0.1:0 --origin http://127.0.0.1:1 --store store \
        --trusted-keys pki/trusted-keys --tls-cert pki/vm-1.pem --tls-key pki/vm-1.key --tls-ca pki/ca.pem";
    let peer = TestService::start(&mut folder.command(line));
    peer.wait_until_logged(&[
        "WARN",
        "other machines can reach the mirror",
        "such as 127.0.0.1:5001",
    ])
    .await;
}

#[test]
fn hosts_toml_uses_the_peers_configuration() {
    let folder = FleetFolder::new();
    let print = |line: &str, variables: &[(&str, &str)]| {
        output(
            folder
                .command(&format!("peer hosts-toml {line}"))
                .envs(variables.iter().copied()),
        )
    };
    let variables = [
        ("FLOTILLA_MIRROR", "127.0.0.1:6001"),
        ("FLOTILLA_ORIGIN", "https://one:5000,https://two:5000"),
        ("FLOTILLA_TLS_CA", "/pki/ca.pem"),
    ];
    let text = print("", &variables).unwrap();
    assert!(
        text.contains("server = \"https://one:5000\"\nca = \"/pki/ca.pem\""),
        "{text}"
    );
    assert!(text.contains("[host.\"http://127.0.0.1:6001\"]"), "{text}");
    std::fs::write(
        folder.path().join("peer.toml"),
        "mirror = '127.0.0.1:7001'\norigin = ['http://three:5000']",
    )
    .unwrap();
    let text = print("", &[("FLOTILLA_CONFIG", "peer.toml")]).unwrap();
    assert!(
        text.contains("127.0.0.1:7001") && text.contains("http://three:5000"),
        "{text}"
    );
    let text = print(
        "--config peer.toml --origin http://four:5000",
        &variables[..1],
    )
    .unwrap();
    assert!(
        text.contains("127.0.0.1:6001") && text.contains("http://four:5000"),
        "{text}"
    );
    for runtime in ["containerd", "podman"] {
        let message = print(
            &format!("--for {runtime} --origin origin.internal:5000"),
            &[],
        )
        .unwrap_err();
        assert!(
            message.contains("--origin") && message.contains("write scheme, host and port"),
            "{message}"
        );
    }
}
