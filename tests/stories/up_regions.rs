//! `flotilla up --regions 2`: the storage of a region is broken by hand and healed again, with the
//! commands that it prints.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flotilla::image;
use flotilla_common::units::ByteSize;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::service::TestService;
use crate::harness::tools::{self, run};

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");
const SIZE: ByteSize = ByteSize(1 << 20);
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// The registries of the regions, and the mirrors of the first one.
const REGISTRIES: [&str; 2] = ["127.0.0.1:5000", "127.0.0.1:5100"];
const MIRRORS: [&str; 2] = ["127.0.0.1:5001", "127.0.0.1:5002"];

/// `flotilla up` in a network of its own: its ports are fixed.
struct Up {
    service: TestService,
    skopeo: PathBuf,
    dir: TempDir,
}

impl Up {
    fn start(skopeo: PathBuf) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("unshare");
        let in_network = r#"ip link set lo up && exec "$0" "$@""#;
        command
            .args(["--net", "sh", "-c", in_network, FLOTILLA])
            .args(["up", "--regions", "2", "--dir"])
            .arg(dir.path())
            .stdout(Stdio::null());
        let up = Self {
            service: TestService::start(&mut command),
            skopeo,
            dir,
        };
        let deadline = Instant::now() + START_TIMEOUT;
        while let Err(error) = up.control(&["heal", "region-1"]) {
            assert!(Instant::now() < deadline, "{error}");
            std::thread::sleep(Duration::from_millis(50));
        }
        up
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Runs `flotilla up break` or `heal`.
    fn control(&self, arguments: &[&str]) -> Result<String, String> {
        let dir = self.path("");
        run(
            Path::new(FLOTILLA),
            [&["up"], arguments, &["--dir", &dir]].concat(),
        )
    }

    /// Runs a program in the network of the regions.
    fn run_inside(&self, program: &Path, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.service.process_id(), "--net", "--"])
            .arg(program)
            .args(arguments);
        tools::output(&mut command)
    }

    fn flotilla(&self, arguments: &[&str]) -> String {
        self.run_inside(Path::new(FLOTILLA), arguments).unwrap()
    }

    /// Pushes a generated image to the first region.
    fn push(&self, tag: &str, rng_seed: u64) {
        let layout = self.path(tag);
        image::generate(Path::new(&layout), SIZE, rng_seed).unwrap();
        let trust = self.path("pki/clients");
        let copy = ["--insecure-policy", "copy", "--retry-times", "3"];
        let trusting = ["--dest-cert-dir", &trust];
        let target = format!("docker://{}/app:{tag}", REGISTRIES[0]);
        let source = format!("oci:{layout}");
        let images = [&source, &target].map(String::as_str);
        self.run_inside(&self.skopeo, &[&copy[..], &trusting, &images].concat())
            .unwrap();
    }

    /// Pulls an image through a mirror of the first region.
    fn pull(&self, mirror: &str, tag: &str) {
        let image = format!("app:{tag}");
        let through = ["--ns", REGISTRIES[0], "--mirror", mirror, "--json"];
        let printed = self.flotilla(&[&["peer", "pull", &image], &through[..]].concat());
        let pulled: Value = serde_json::from_str(&printed).unwrap();
        assert!(pulled["bytes"].as_u64().unwrap() > SIZE.0 / 2, "{printed}");
        eprintln!("pulled {tag}: {} s", pulled["total_s"]);
    }

    /// Waits until a region has an image that was pushed to the other one.
    fn wait(&self, registry: &str, tag: &str, region: &str) {
        let image = format!("{registry}/app:{tag}");
        let ca = self.path("pki/ca.pem");
        let limit = ["--timeout", "30s", "--tls-ca", &ca];
        self.flotilla(&[&["origin", "wait", &image, "--region", region], &limit[..]].concat());
    }

    /// Compares the regions, and returns the report.
    fn check(&self) -> Value {
        let pki = self.path("pki");
        let issue = ["pki", "issue", "--dir", &pki, "--server", "127.0.0.1"];
        self.flotilla(&[&issue[..], &["--region", "region-1"]].concat());
        let storage = format!("file://{}", self.path("region-1/storage"));
        let [certificate, key, ca] =
            ["127.0.0.1.pem", "127.0.0.1.key", "ca.pem"].map(|file| format!("{pki}/{file}"));
        let tls = [
            ["--tls-cert", &certificate],
            ["--tls-key", &key],
            ["--tls-ca", &ca],
        ]
        .concat();
        let check = ["origin", "check", "--storage", &storage, "--regions"];
        let printed = self.flotilla(&[&check[..], &["--deep", "--json"], &tls].concat());
        serde_json::from_str(&printed).unwrap()
    }
}

#[test]
fn mirror_serves_while_the_storage_is_broken_by_hand() {
    let test = "breaking a storage of `flotilla up`";
    let Some(tools) = tools::find_or_skip(test, &["skopeo", "ip", "unshare", "nsenter"], true)
    else {
        return;
    };
    let up = Up::start(tools[0].clone());
    up.push("before", 1);
    up.push("late", 2);
    up.pull(MIRRORS[0], "before");
    for tag in ["before", "late"] {
        up.wait(REGISTRIES[0], tag, "region-2");
    }

    let broken = up.control(&["break", "region-1"]).unwrap();
    assert_eq!(broken, "storage of region-1 broken: hang\n");
    // What a peer has, what only the origins have, and what is pushed now.
    up.pull(MIRRORS[1], "before");
    up.pull(MIRRORS[0], "late");
    up.push("during", 3);
    up.pull(MIRRORS[1], "during");

    up.control(&["heal", "region-1"]).unwrap();
    up.wait(REGISTRIES[1], "during", "region-1");
    let report = up.check();
    assert_eq!(report["damage"]["count"], 0, "{report}");
    assert_eq!(report["pending"]["count"], 0, "{report}");
    assert_eq!(report["regions"][0]["problems"], Value::Array(Vec::new()));
}
