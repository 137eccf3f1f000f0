//! A tracker with TLS as a child process, so that its resource usage is separate from its clients'.

use std::path::Path;
use std::process::Command;

use flotilla_common::name::RegionName;
use flotilla_runtime::identity::CertificateAuthority;
use tempfile::TempDir;

use super::process::Process;
use super::service_process::{BoxError, ListeningEvent, ServiceProcess};
use crate::client::http_client;
use crate::command::CommandError;
use crate::fleet::Fleet;
use crate::pki::{self, IfExists};
use crate::region::ANY_PORT;

const REGION: &str = "local";

/// A running `flotilla tracker`; dropping it ends the process and deletes its files.
#[derive(Debug)]
pub struct TrackerProcess {
    service: ServiceProcess,
    fleet: Fleet,
    _dir: TempDir,
}

impl TrackerProcess {
    /// Starts a tracker of a new fleet and waits until it listens.
    ///
    /// # Errors
    /// If it does not start, with its log.
    pub async fn start(program: &Path) -> Result<Self, CommandError> {
        let failed = |error: BoxError| CommandError::failed("start a tracker", error);
        let dir = tempfile::tempdir().map_err(|error| failed(error.into()))?;
        let (fleet, mut command) = fleet_and_command(program, dir.path()).map_err(failed)?;
        let service = ServiceProcess::start(&mut command, ListeningEvent::TRACKER).await;
        Ok(Self {
            service: service.map_err(|error| failed(error.into()))?,
            fleet,
            _dir: dir,
        })
    }

    /// Its process.
    pub fn process(&self) -> Process {
        self.service.process()
    }

    /// The last lines of its log.
    pub fn log(&self) -> String {
        self.service.log()
    }

    /// The fleet whose authority signed its certificate.
    pub const fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// The value of one of its metrics, without the prefix of all of them.
    ///
    /// # Errors
    /// If the tracker does not answer, or has no such metric.
    pub async fn metric(&self, name: &str) -> Result<f64, CommandError> {
        let failed = |error: BoxError| CommandError::failed("read the tracker's metrics", error);
        let read = async || -> Result<f64, BoxError> {
            let url = format!("http://{}/metrics", self.service.admin_address());
            let answer = http_client()?.get(url).send().await?;
            let text = answer.error_for_status()?.text().await?;
            let name = format!("flotilla_tracker_{name} ");
            let value = text.lines().find_map(|line| line.strip_prefix(&name));
            let value = value.ok_or_else(|| format!("no metric {name}"))?;
            Ok(value.parse()?)
        };
        read().await.map_err(failed)
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("https://{}", self.service.address())
    }
}

fn fleet_and_command(program: &Path, dir: &Path) -> Result<(Fleet, Command), BoxError> {
    let region: RegionName = REGION.parse()?;
    let pki = dir.join("pki");
    let fleet = pki::open_or_init(&pki, &region)?;
    let server = ANY_PORT.ip().to_string();
    let validity = CertificateAuthority::DEFAULT_VALIDITY;
    pki::issue_server(
        &pki,
        std::slice::from_ref(&server),
        None,
        validity,
        IfExists::Fail,
    )?;
    let mut command = Command::new(program);
    command
        .arg("tracker")
        .args(["--listen", &ANY_PORT.to_string()])
        .arg("--tls-cert")
        .arg(pki.join(format!("{server}.pem")))
        .arg("--tls-key")
        .arg(pki.join(format!("{server}.key")))
        .arg("--tls-ca")
        .arg(pki.join(pki::CA));
    Ok((fleet, command))
}
