//! Two regions on this machine, set up as `docs/regions.md` says: keys, certificates, a storage
//! each, a policy. Their services are processes.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use flotilla::client::RegistryClient;
use flotilla::image;
use flotilla_common::digest::Digest;
use flotilla_common::units::ByteSize;
use flotilla_runtime::identity::client_trusting;
use tempfile::TempDir;

use super::daemon::free_addresses;
use super::s3::S3;
use super::service::TestService;
use super::tools;

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");
/// The names of the regions.
pub(crate) const REGIONS: [&str; 2] = ["eu-1", "us-1"];
const PEER: &str = "vm-1";

/// Keys, certificates, storages and addresses of two regions. Services are started by the test.
pub(crate) struct TwoRegions {
    dir: TempDir,
    addresses: [SocketAddr; 2],
    /// Of the origins' listeners for operators.
    admin_addresses: [SocketAddr; 2],
    /// The storages; `None` for directories.
    servers: Option<[S3; 2]>,
    http: OnceLock<reqwest::Client>,
}

impl TwoRegions {
    /// Sets up both regions on directories, with more rules of the policy.
    pub(crate) fn on_directories(rules: &str) -> Self {
        Self::new(None, rules)
    }

    /// Sets up both regions on an S3 server each.
    pub(crate) fn on_s3(moto_server: &Path) -> Self {
        let servers = REGIONS.map(|_| S3::start(moto_server));
        Self::new(Some(servers), "")
    }

    fn new(servers: Option<[S3; 2]>, rules: &str) -> Self {
        let regions = Self::without_policies(servers);
        std::fs::write(regions.path("policy.toml"), regions.policy(rules)).unwrap();
        for region in [0, 1] {
            drop(regions.start_origin(region, &[]));
            regions.set_policy(region, &regions.path("policy.toml"));
        }
        regions
    }

    /// Sets up two single regions on directories, which do not know each other.
    pub(crate) fn single_on_directories() -> Self {
        Self::without_policies(None)
    }

    fn without_policies(servers: Option<[S3; 2]>) -> Self {
        let [first, second, first_admin, second_admin] = free_addresses();
        let regions = Self {
            dir: tempfile::tempdir().unwrap(),
            addresses: [first, second],
            admin_addresses: [first_admin, second_admin],
            servers,
            http: OnceLock::new(),
        };
        let pki = regions.path("pki");
        regions.must(&["pki", "init", "--dir", &pki, "--region", "eu-1"]);
        regions.must(&["pki", "issue", "--dir", &pki, "--origin", "us-1"]);
        regions.must(&["pki", "issue", "--dir", &pki, "--peer", PEER]);
        for region in REGIONS {
            // Each region's certificate is for the same host here, so it has a folder of its own.
            let own = regions.path(&format!("pki-{region}"));
            tools::run(Path::new("cp"), ["-r", &pki, &own]).unwrap();
            let issue = ["pki", "issue", "--dir", &own, "--server", "127.0.0.1"];
            regions.must(&[&issue[..], &["--region", region]].concat());
            if regions.servers.is_none() {
                std::fs::create_dir(regions.path(region)).unwrap();
            }
        }
        regions
    }

    /// The text of a policy with both regions and these rules.
    pub(crate) fn policy(&self, rules: &str) -> String {
        let regions: String = [0, 1].map(|region| self.policy_entry(region)).concat();
        regions + rules
    }

    /// The entry of a region in a policy.
    pub(crate) fn policy_entry(&self, region: usize) -> String {
        let (name, url) = (REGIONS[region], self.url(region));
        format!("[[region]]\nname = \"{name}\"\nurl = \"{url}\"\n")
    }

    /// Sets the policy of a file in a region's storage.
    pub(crate) fn set_policy(&self, region: usize, file: &str) {
        let storage = self.storage(region);
        let set = ["origin", "policy", "set", file, "--storage", &storage];
        tools::output(self.command(region).args(set)).unwrap();
    }

    /// A file or folder.
    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// The host and port of a region's origin.
    pub(crate) fn registry(&self, region: usize) -> String {
        self.addresses[region].to_string()
    }

    /// The URL of a region's origin.
    pub(crate) fn url(&self, region: usize) -> String {
        format!("https://{}", self.addresses[region])
    }

    /// The certificate of the authority that signed all certificates.
    pub(crate) fn authority(&self) -> String {
        self.path("pki/ca.pem")
    }

    /// The URL of a region's storage.
    pub(crate) fn storage(&self, region: usize) -> String {
        match &self.servers {
            Some(servers) => servers[region].url(),
            None => format!("file://{}", self.path(REGIONS[region])),
        }
    }

    /// The server of a region's storage.
    ///
    /// # Panics
    /// If it is a directory.
    pub(crate) fn server(&self, region: usize) -> &S3 {
        &self.servers.as_ref().unwrap()[region]
    }

    /// The flags for the certificate of a region's origins.
    pub(crate) fn tls(&self, region: usize) -> [String; 6] {
        self.tls_flags(&format!("pki-{}", REGIONS[region]), "127.0.0.1")
    }

    fn tls_flags(&self, folder: &str, name: &str) -> [String; 6] {
        let file = |name: &str| self.path(&format!("{folder}/{name}"));
        [
            "--tls-cert".to_owned(),
            file(&format!("{name}.pem")),
            "--tls-key".to_owned(),
            file(&format!("{name}.key")),
            "--tls-ca".to_owned(),
            file("ca.pem"),
        ]
    }

    /// `flotilla`, with access to a region's storage.
    fn command(&self, region: usize) -> Command {
        let mut command = Command::new(FLOTILLA);
        if let Some(servers) = &self.servers {
            command.envs(servers[region].environment());
        }
        command
    }

    /// Starts a region's origin, with more flags.
    pub(crate) fn start_origin(&self, region: usize, flags: &[&str]) -> TestService {
        let seal_key = self.path(&format!("pki/{}.seal.key", REGIONS[region]));
        let (listen, storage) = (self.registry(region), self.storage(region));
        let admin = self.admin_addresses[region].to_string();
        let mut command = self.command(region);
        command
            .args(["origin", "--listen", &listen, "--admin-listen", &admin])
            .args(["--storage", &storage, "--seal-key", &seal_key])
            .args(self.tls(region))
            .args(flags);
        TestService::start(&mut command)
    }

    /// Starts a peer of the first region, which knows the origins of both.
    pub(crate) fn start_peer(&self, tracker: &TestService) -> TestService {
        let origins = format!("eu-1={},us-1={}", self.url(0), self.url(1));
        let (store, trusted_keys) = (self.path("store"), self.path("pki/trusted-keys"));
        let mut command = Command::new(FLOTILLA);
        command
            .args(["peer", "--mirror", "127.0.0.1:0", "--quic", "127.0.0.1:0"])
            .args(["--region", "eu-1", "--origin", &origins])
            .args(["--tracker", &tracker.url(), "--store", &store])
            .args(["--trusted-keys", &trusted_keys])
            .args(self.tls_flags("pki", PEER));
        TestService::start(&mut command)
    }

    /// Runs a command of `flotilla`.
    ///
    /// # Errors
    /// If it fails, with its output.
    pub(crate) fn flotilla(&self, arguments: &[&str]) -> Result<String, String> {
        tools::run(Path::new(FLOTILLA), arguments)
    }

    /// As [`TwoRegions::flotilla`], for a command that must succeed.
    pub(crate) fn must(&self, arguments: &[&str]) -> String {
        self.flotilla(arguments).unwrap()
    }

    /// Writes an image as a layout, and returns its folder.
    pub(crate) fn generate(&self, size: ByteSize, rng_seed: u64) -> String {
        let layout = self.path(&format!("image-{rng_seed}"));
        image::generate(Path::new(&layout), size, rng_seed).unwrap();
        layout
    }

    /// Pushes an image to the first region, and returns its digest.
    pub(crate) async fn push(&self, repository: &str, tag: &str, layout: &str) -> Digest {
        let client = self.client(0, repository);
        let layout = image::Layout::open(Path::new(layout)).unwrap();
        client.push(&layout, tag).await.unwrap()
    }

    /// A client of a region's origin.
    pub(crate) fn client(&self, region: usize, repository: &str) -> RegistryClient {
        let repository = repository.parse().unwrap();
        RegistryClient::with_http(self.http(), self.url(region), repository)
    }

    /// An HTTP client that trusts the origins' certificates.
    pub(crate) fn http(&self) -> reqwest::Client {
        let http = self.http.get_or_init(|| {
            let tls = client_trusting(Path::new(&self.authority())).unwrap();
            let http = reqwest::Client::builder().tls_backend_preconfigured(tls);
            http.build().unwrap()
        });
        http.clone()
    }

    /// The body of a region's answer.
    pub(crate) async fn get(&self, region: usize, path: &str) -> String {
        let url = format!("{}{path}", self.url(region));
        let answer = self.http().get(url).send().await.unwrap();
        answer.text().await.unwrap()
    }

    /// The metrics of a region's origin.
    pub(crate) async fn metrics(&self, region: usize) -> String {
        let url = format!("http://{}/metrics", self.admin_addresses[region]);
        let answer = self.http().get(url).send().await.unwrap();
        answer.text().await.unwrap()
    }

    /// A sample of a region's metrics, by its name and labels.
    ///
    /// # Panics
    /// If the region does not export it.
    pub(crate) async fn metric(&self, region: usize, sample: &str) -> u64 {
        let text = self.metrics(region).await;
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(sample)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no sample {sample} in\n{text}"))
    }

    /// Runs `flotilla origin wait` for an image of the first region's origin.
    ///
    /// # Errors
    /// If it fails, with its output.
    pub(crate) fn wait(&self, image: &str, flags: &[&str]) -> Result<String, String> {
        let image = format!("{}/{image}", self.registry(0));
        let ca = self.authority();
        let fixed = ["origin", "wait", &image, "--tls-ca", &ca];
        self.flotilla(&[&fixed[..], flags].concat())
    }

    /// Runs `flotilla origin check --regions` as the first region.
    ///
    /// # Errors
    /// If it fails, with its output.
    pub(crate) fn check(&self, flags: &[&str]) -> Result<String, String> {
        self.check_as(0, flags)
    }

    /// Runs `flotilla origin check --regions` as a region.
    ///
    /// # Errors
    /// If it fails, with its output.
    pub(crate) fn check_as(&self, region: usize, flags: &[&str]) -> Result<String, String> {
        let storage = self.storage(region);
        let mut command = self.command(region);
        command
            .args(["origin", "check", "--storage", &storage, "--regions"])
            .args(self.tls(region))
            .args(flags);
        tools::output(&mut command)
    }
}
