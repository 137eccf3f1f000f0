//! From one region to two, with real processes: what an operator and a pipeline see.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use flotilla::client::RegistryClient;
use flotilla::image;
use flotilla_common::units::ByteSize;
use flotilla_runtime::identity::client_trusting;

use crate::harness::service::TestService;
use crate::harness::tools::run;
use crate::metrics::{assert_documented, exported};

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");
const REGIONS: [&str; 2] = ["eu-1", "us-1"];

/// Two regions on this machine: keys, certificates, storages, a policy.
struct Desk {
    dir: tempfile::TempDir,
    /// Addresses that were free.
    addresses: [String; 2],
}

impl Desk {
    /// Sets up both regions as `docs/regions.md` says.
    fn new(rules: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let free = REGIONS.map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = free.each_ref().map(|socket| {
            let address = socket.local_addr().unwrap();
            address.to_string()
        });
        drop(free);
        let desk = Self { dir, addresses };
        let pki = desk.path("pki");
        desk.must(&["pki", "init", "--dir", &pki, "--region", "eu-1"]);
        desk.must(&["pki", "issue", "--dir", &pki, "--origin", "us-1"]);
        std::fs::write(desk.path("policy.toml"), desk.policy(rules)).unwrap();
        for (number, region) in REGIONS.iter().enumerate() {
            // Each region's certificate is for the same host here, so it has a folder of its own.
            let own = desk.path(&format!("pki-{region}"));
            run(Path::new("cp"), ["-r", &pki, &own]).unwrap();
            desk.must(&[
                "pki",
                "issue",
                "--dir",
                &own,
                "--server",
                "127.0.0.1",
                "--region",
                region,
            ]);
            std::fs::create_dir(desk.path(region)).unwrap();
            drop(desk.start(number));
            let (file, storage) = (desk.path("policy.toml"), desk.storage(number));
            desk.must(&["origin", "policy", "set", &file, "--storage", &storage]);
        }
        desk
    }

    fn policy(&self, rules: &str) -> String {
        let entry = |(region, address): (&&str, &String)| {
            format!("[[region]]\nname = \"{region}\"\nurl = \"https://{address}\"\n")
        };
        let regions: String = REGIONS.iter().zip(&self.addresses).map(entry).collect();
        regions + rules
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn storage(&self, region: usize) -> String {
        format!("file://{}", self.path(REGIONS[region]))
    }

    fn tls(&self, region: usize) -> [String; 6] {
        let own = format!("pki-{}", REGIONS[region]);
        let file = |name: &str| self.path(&format!("{own}/{name}"));
        [
            "--tls-cert".to_owned(),
            file("127.0.0.1.pem"),
            "--tls-key".to_owned(),
            file("127.0.0.1.key"),
            "--tls-ca".to_owned(),
            file("ca.pem"),
        ]
    }

    fn start(&self, region: usize) -> TestService {
        let seal_key = self.path(&format!("pki/{}.seal.key", REGIONS[region]));
        let storage = self.storage(region);
        let mut command = Command::new(FLOTILLA);
        command
            .args(["origin", "--listen", &self.addresses[region]])
            .args(["--storage", &storage, "--seal-key", &seal_key])
            .args(self.tls(region));
        TestService::start(&mut command)
    }

    fn flotilla(&self, arguments: &[&str]) -> Result<String, String> {
        run(Path::new(FLOTILLA), arguments)
    }

    fn must(&self, arguments: &[&str]) -> String {
        self.flotilla(arguments).unwrap()
    }

    /// Pushes an image to the first region.
    async fn push(&self, repository: &str, tag: &str, rng_seed: u64) {
        let layout = self.dir.path().join(format!("image-{rng_seed}"));
        image::generate(&layout, ByteSize(1 << 20), rng_seed).unwrap();
        let url = format!("https://{}", self.addresses[0]);
        let client = RegistryClient::with_http(self.http(), url, repository.parse().unwrap());
        let layout = image::Layout::open(&layout).unwrap();
        client.push(&layout, tag).await.unwrap();
    }

    fn http(&self) -> reqwest::Client {
        let tls = client_trusting(Path::new(&self.path("pki/ca.pem"))).unwrap();
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls);
        http.build().unwrap()
    }

    async fn get(&self, region: usize, path: &str) -> String {
        let url = format!("https://{}{path}", self.addresses[region]);
        let answer = self.http().get(url).send().await.unwrap();
        answer.text().await.unwrap()
    }

    /// Runs `flotilla origin wait` for an image of the first region's origin.
    fn wait(&self, image: &str, flags: &[&str]) -> Result<String, String> {
        let image = format!("{}/{image}", self.addresses[0]);
        let ca = self.path("pki/ca.pem");
        let fixed = ["origin", "wait", &image, "--tls-ca", &ca];
        self.flotilla(&[&fixed[..], flags].concat())
    }

    fn check(&self, flags: &[&str]) -> Result<String, String> {
        let (storage, tls) = (self.storage(0), self.tls(0));
        let mut arguments = vec!["origin", "check", "--storage", &storage, "--regions"];
        arguments.extend(tls.iter().map(String::as_str));
        self.flotilla(&[&arguments[..], flags].concat())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pipeline_waits_until_the_other_region_has_the_image() {
    let desk = Desk::new("[[repository]]\nmatch = \"eu/**\"\nregions = [\"eu-1\"]\n");
    let eu = desk.start(0);
    desk.push("app", "v1", 1).await;
    let us = ["--region", "us-1"];
    let error = desk.wait("app:v1", &[&us[..], &["--timeout", "0s"]].concat());
    let error = error.unwrap_err();
    assert!(
        error.contains("timeout after 0s: ask the region for the tag"),
        "{error}"
    );
    let error = desk.wait("app:typo", &us).unwrap_err();
    assert!(error.contains("is it pushed there?"), "{error}");
    let error = desk.wait("app:v1", &["--region", "us-2"]).unwrap_err();
    assert!(error.contains("it has eu-1, us-1"), "{error}");
    let error = desk.wait("eu/app:v1", &us).unwrap_err();
    assert!(
        error.contains("does not keep eu/app in region us-1"),
        "{error}"
    );

    // The other region starts after the push, and its first contact finds what it is owed.
    let second = desk.start(1);
    let printed = desk.wait("app:v1", &us).unwrap();
    assert!(printed.contains("region us-1 has "), "{printed}");
    // The image is there even if the first region is lost: this origin cannot ask it.
    drop(eu);
    let image = format!("{}/app:v1", desk.addresses[1]);
    let ca = desk.path("pki/ca.pem");
    let arguments = ["origin", "wait", &image, "--tls-ca", &ca, "--json"];
    let printed = desk.flotilla(&[&arguments[..], &us].concat()).unwrap();
    let outcome: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(outcome["ok"], true, "{printed}");
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_compares_the_regions() {
    let desk = Desk::new("");
    let _eu = desk.start(0);
    let mut us = desk.start(1);
    desk.push("app", "v1", 2).await;
    desk.wait("app:v1", &["--region", "us-1"]).unwrap();
    let report = loop {
        let printed = desk.check(&["--deep", "--json"]).unwrap();
        let report: serde_json::Value = serde_json::from_str(&printed).unwrap();
        // The entry is dropped after the image has arrived.
        if report["regions"][0]["owed"]["entries"] == 0 {
            break report;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(report["compared"], 2, "{report}");
    assert_eq!(report["damage"]["count"], 0, "{report}");
    assert_eq!(report["pending"]["count"], 0, "{report}");
    assert_eq!(report["regions"][0]["same_policy"], true, "{report}");
    assert_eq!(report["regions"][0]["whole"], false, "{report}");

    // All metrics have samples once something was copied, and read by a client.
    desk.get(1, "/v2/app/manifests/other").await;
    let text = desk.get(1, "/metrics").await;
    let mut exported = exported(&text);
    exported.retain(|name, _| {
        let is_other = name.starts_with("flotilla_origin_region_takes");
        name.starts_with("flotilla_origin_region_") && !is_other
    });
    assert_documented(exported, "flotilla_origin_region_");
    let list: serde_json::Value =
        serde_json::from_str(&desk.get(1, "/flotilla/v1/regions?repository=app").await).unwrap();
    assert_eq!(list["region"], "us-1");
    assert_eq!(list["regions"][0]["name"], "eu-1");
    assert_eq!(list["regions"][0]["keeps"], true, "{list}");
    assert_eq!(list["regions"][0]["standing"], "usable", "{list}");
    assert_eq!(list["regions"][0]["lag"]["entries"], 0, "{list}");

    let (file, storage) = (desk.path("other.toml"), desk.storage(0));
    std::fs::write(&file, desk.policy("[[repository]]\nmatch = \"x\"\n")).unwrap();
    desk.must(&["origin", "policy", "set", &file, "--storage", &storage]);
    let error = desk.check(&[]).unwrap_err();
    assert!(error.contains("us-1 uses another policy"), "{error}");
    desk.must(&[
        "origin",
        "policy",
        "set",
        &desk.path("policy.toml"),
        "--storage",
        &storage,
    ]);

    // A blob that is lost in one region is named.
    let blobs = walk(Path::new(&desk.path("us-1/rb")));
    std::fs::remove_file(&blobs[0]).unwrap();
    // It remembers the blob for a while, so it is restarted.
    drop(us);
    us = desk.start(1);
    let error = desk.check(&["--deep"]).unwrap_err();
    assert!(
        error.contains("lost or deleted in region us-1") && error.contains("damaged: push"),
        "{error}"
    );

    drop(us);
    let error = desk.check(&[]).unwrap_err();
    assert!(error.contains("problem: ask region us-1"), "{error}");
    let error = desk.flotilla(&["origin", "check", "--storage", &storage, "--regions"]);
    let error = error.unwrap_err();
    assert!(error.contains("--server NAMES --region REGION"), "{error}");
}

/// All files below a folder.
fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else {
            files.push(path);
        }
    }
    files
}
