//! Object store servers for tests: third-party programs, each with its own port and directory for
//! the duration of a test. `tests/run` installs them; without them their tests are skipped with a
//! message. Clients reach a server through a gate that can be cut, and a proxy that injects faults.
#![allow(
    dead_code,
    unused_imports,
    reason = "two test programs share this, and neither uses all of it"
)]

mod directory;
mod gate;
mod gcs;
mod outage;
mod proxy;

use std::env;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use flotilla_origin::storage::{self, Storage, Variables};
use tempfile::TempDir;

pub(crate) use directory::MountedDirectory;
pub(crate) use gate::{Gate, GateState};
pub(crate) use outage::{Outage, StorageServer};
use proxy::Proxy;
pub(crate) use proxy::{Behaviour, Fault, Faults};

/// If this variable is set, and not to `0`, a missing program fails its test instead of skipping
/// it.
const FORBID_SKIPS: &str = "FLOTILLA_FORBID_SKIPS";
const START_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

pub(crate) const BUCKET: &str = "images";

/// The kind of a server.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// S3 in a directory, a Rust program.
    S3Fs,
    /// S3 in memory, a Python program.
    Moto,
    /// GCS in memory, a Go program, without conditional writes.
    FakeGcs,
    /// The same program behind a translation of conditional writes.
    Gcs,
    /// Azure in a directory, a Node.js program.
    Azurite,
}

impl Kind {
    const fn program(self) -> &'static str {
        match self {
            Self::S3Fs => "s3s-fs",
            Self::Moto => "moto_server",
            Self::FakeGcs | Self::Gcs => "fake-gcs-server",
            Self::Azurite => "azurite-blob",
        }
    }

    /// The arguments of the program. Clients reach it at `public`.
    fn arguments(self, port: u16, public: SocketAddr, dir: &Path) -> Vec<String> {
        let (port, public, dir) = (
            port.to_string(),
            public.to_string(),
            dir.display().to_string(),
        );
        let arguments: &[&str] = match self {
            Self::S3Fs => &[
                "--host",
                "127.0.0.1",
                "--port",
                &port,
                "--access-key",
                ACCESS_KEY,
                "--secret-key",
                SECRET_KEY,
                &dir,
            ],
            Self::Moto => &["-H", "127.0.0.1", "-p", &port],
            Self::FakeGcs | Self::Gcs => &[
                "-scheme",
                "http",
                "-host",
                "127.0.0.1",
                "-port",
                &port,
                "-public-host",
                &public,
                "-backend",
                "memory",
            ],
            Self::Azurite => &[
                "--blobHost",
                "127.0.0.1",
                "--blobPort",
                &port,
                "--location",
                &dir,
                "--skipApiVersionCheck",
            ],
        };
        arguments
            .iter()
            .map(|argument| (*argument).to_owned())
            .collect()
    }
}

const ACCESS_KEY: &str = "flotilla";
const SECRET_KEY: &str = "flotilla-secret";
/// The well-known account of all Azure emulators.
const AZURE_ACCOUNT: &str = "devstoreaccount1";
const AZURE_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A placeholder service account, since the test server verifies no signatures.
const GOOGLE_ACCOUNT: &str = r#"{"private_key": "none", "private_key_id": "none", "client_email": "none",
    "disable_oauth": true}"#;

/// A running object store with one bucket.
pub(crate) struct Server {
    kind: Kind,
    /// Where the program listens.
    address: SocketAddr,
    process: Child,
    dir: TempDir,
    proxy: Proxy,
    /// Where clients reach it.
    gate: Gate,
    /// The service account of clients of GCS.
    google_account: String,
}

impl Server {
    /// Starts a server; `None`, with a message, if its program is missing.
    ///
    /// # Panics
    /// If it does not start, or if its program is missing and skips are forbidden.
    pub(crate) async fn start(test: &str, kind: Kind) -> Option<Self> {
        find(test, kind.program())?;
        let dir = tempfile::tempdir().expect("create the server's directory");
        let address = free_address();
        // The client builder requires a TLS provider even for plain HTTP. All tests install the
        // same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let proxy = Proxy::start(address, matches!(kind, Kind::Gcs)).await;
        let gate = Gate::start().await;
        gate.set_targets([proxy.address]);
        let mut server = Self {
            kind,
            address,
            process: start_program(kind, address, gate.address, dir.path()),
            dir,
            proxy,
            gate,
            google_account: match kind {
                Kind::Gcs => gcs::service_account(),
                _ => GOOGLE_ACCOUNT.to_owned(),
            },
        };
        server.wait_until_listening();
        server.create_bucket().await;
        Some(server)
    }

    /// The faults that are injected into requests.
    pub(crate) fn faults(&self) -> &Faults {
        &self.proxy.faults
    }

    /// Opens the storage in its bucket.
    pub(crate) fn storage(&self) -> Arc<dyn Storage> {
        storage::open_with(&self.url(), 64 << 20, &self.variables()).unwrap()
    }

    /// The URL of the storage, which has a prefix.
    pub(crate) fn url(&self) -> String {
        let kind = match self.kind {
            Kind::S3Fs | Kind::Moto => "s3",
            Kind::FakeGcs | Kind::Gcs => "gs",
            Kind::Azurite => "az",
        };
        format!("{kind}://{BUCKET}/fleet/eu-1")
    }

    /// The environment variables of a process that uses it.
    pub(crate) fn variables(&self) -> Variables {
        let endpoint = format!("http://{}", self.gate.address);
        let variables = match self.kind {
            Kind::S3Fs | Kind::Moto => vec![
                ("AWS_ENDPOINT", endpoint),
                ("AWS_ALLOW_HTTP", "true".to_owned()),
                ("AWS_REGION", "us-east-1".to_owned()),
                ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
                ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ],
            Kind::FakeGcs | Kind::Gcs => vec![
                ("GOOGLE_BASE_URL", endpoint),
                ("GOOGLE_ALLOW_HTTP", "true".to_owned()),
                ("GOOGLE_SERVICE_ACCOUNT_KEY", self.google_account.clone()),
            ],
            Kind::Azurite => vec![
                (
                    "AZURE_STORAGE_ENDPOINT",
                    format!("{endpoint}/{AZURE_ACCOUNT}"),
                ),
                ("AZURE_ALLOW_HTTP", "true".to_owned()),
                ("AZURE_STORAGE_ACCOUNT_NAME", AZURE_ACCOUNT.to_owned()),
                ("AZURE_STORAGE_ACCOUNT_KEY", AZURE_KEY.to_owned()),
            ],
        };
        variables
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    /// Multipart uploads that are neither complete nor aborted.
    pub(crate) async fn unfinished_uploads(&self) -> usize {
        let url = format!("http://{}/{BUCKET}?uploads", self.address);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        client
            .get(url)
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap()
            .matches("<UploadId>")
            .count()
    }

    fn wait_until_listening(&mut self) {
        let start = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            let ended = self.process.try_wait().expect("query the server process");
            let log = fs::read_to_string(self.dir.path().join(".log")).unwrap_or_default();
            assert!(
                ended.is_none() && start.elapsed() < START_TIMEOUT,
                "{:?} does not listen: {log}",
                self.kind
            );
            thread::sleep(POLL_INTERVAL);
        }
    }

    async fn create_bucket(&self) {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let base = format!("http://{}", self.address);
        let request = match self.kind {
            // A bucket is a directory.
            Kind::S3Fs => return fs::create_dir(self.dir.path().join(BUCKET)).unwrap(),
            Kind::Azurite => return create_azure_container(&base),
            Kind::Moto => client.put(format!("{base}/{BUCKET}")),
            Kind::FakeGcs | Kind::Gcs => client
                .post(format!("{base}/storage/v1/b"))
                .body(format!("{{\"name\":\"{BUCKET}\"}}")),
        };
        let response = request.send().await.unwrap();
        assert!(
            response.status().is_success(),
            "{:?}: {response:?}",
            self.kind
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts the program of a server, which logs into `dir`.
fn start_program(kind: Kind, address: SocketAddr, public: SocketAddr, dir: &Path) -> Child {
    let program = find_on_path(kind.program()).expect("it was found before");
    let mut options = File::options();
    let log = options
        .create(true)
        .append(true)
        .open(dir.join(".log"))
        .expect("open the server's log");
    Command::new(&program)
        .args(kind.arguments(address.port(), public, dir))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("share the log"))
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("start {}: {error}", program.display()))
}

/// Creates a container by a signed request. Node.js is available, because azurite runs on it.
fn create_azure_container(base: &str) {
    const SCRIPT: &str = r"
        const [base, account, key, container] = process.argv.slice(1);
        const date = new Date().toUTCString(), version = '2021-08-06';
        const text = ['PUT', '', '', '', '', '', '', '', '', '', '', '', `x-ms-date:${date}`,
            `x-ms-version:${version}`, `/${account}/${account}/${container}`, 'restype:container'].join('\n');
        const hmac = require('crypto').createHmac('sha256', Buffer.from(key, 'base64')).update(text);
        const headers = { 'x-ms-date': date, 'x-ms-version': version,
            authorization: `SharedKey ${account}:${hmac.digest('base64')}` };
        fetch(`${base}/${account}/${container}?restype=container`, { method: 'PUT', headers })
            .then(async answer => { if (!answer.ok) throw new Error(await answer.text()); });
    ";
    let arguments = ["-e", SCRIPT, base, AZURE_ACCOUNT, AZURE_KEY, BUCKET];
    let output = Command::new("node")
        .args(arguments)
        .output()
        .expect("run node");
    assert!(
        output.status.success(),
        "create a container: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("find a free port");
    listener.local_addr().expect("name the free port")
}

/// Finds a third-party program; `None`, with a message, if it is missing.
///
/// # Panics
/// If it is missing and skips are forbidden.
pub(crate) fn find(test: &str, program: &str) -> Option<PathBuf> {
    let found = find_on_path(program);
    if found.is_none() {
        skip(test, program);
    }
    found
}

fn find_on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

fn skip(test: &str, program: &str) {
    let forbidden =
        env::var_os(FORBID_SKIPS).is_some_and(|value| !value.is_empty() && value != "0");
    assert!(
        !forbidden,
        "{test}: {program} is not installed, and {FORBID_SKIPS} is set"
    );
    eprintln!("SKIPPED {test}: {program} is not installed");
}
