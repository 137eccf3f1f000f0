//! How `flotilla up break` and `heal` reach the regions that run in a directory: a socket there.
//!
//! A request is one line, the answer another: `break region-1 hang` or `heal region-1`, then `ok`
//! or `error MESSAGE`.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flotilla_common::name::RegionName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::breakable_storage::Outage;
use crate::command::CommandError;
use crate::regions::Regions;

const SOCKET: &str = "control.sock";
/// Maximum length of a request or an answer in bytes.
const MAX_LEN: u64 = 4096;
/// How long the other side may take to send a line.
const LINE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a region's storage shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Break(RegionName, Outage),
    Heal(RegionName),
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Break(region, outage) => write!(f, "break {region} {outage}"),
            Self::Heal(region) => write!(f, "heal {region}"),
        }
    }
}

impl Request {
    fn parse(line: &str) -> Result<Self, String> {
        let region = |name: &str| {
            name.parse::<RegionName>()
                .map_err(|error| format!("'{name}' is not a valid region: {error}"))
        };
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["break", name, outage] => Ok(Self::Break(region(name)?, outage.parse()?)),
            ["heal", name] => Ok(Self::Heal(region(name)?)),
            _ => Err(format!(
                "unknown request '{line}'; is it the same version of flotilla?"
            )),
        }
    }

    fn apply(&self, regions: &Regions) -> Result<String, String> {
        let (Self::Break(name, _) | Self::Heal(name)) = self;
        let Some(storage) = regions.storage_of(name) else {
            let all = regions.all().iter();
            let all: Vec<_> = all.map(|region| region.region.name().as_str()).collect();
            return Err(format!(
                "no region {name} runs here; the regions are {}",
                all.join(", ")
            ));
        };
        Ok(match self {
            Self::Break(name, outage) => {
                storage.break_storage(*outage);
                tracing::warn!(region = %name, %outage, "storage broken by request");
                format!("storage of {name} broken: {outage}")
            }
            Self::Heal(name) => {
                storage.heal();
                tracing::info!(region = %name, "storage healed by request");
                format!("storage of {name} healed")
            }
        })
    }
}

/// The socket of regions that run. Removed when it is dropped.
#[derive(Debug)]
pub(super) struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Listens in a directory.
    ///
    /// # Errors
    /// If regions run there already, or the socket cannot be created.
    pub(super) async fn listen(dir: &Path) -> Result<Self, CommandError> {
        let path = dir.join(SOCKET);
        let failed = |error: io::Error| {
            CommandError::failed(
                format!("listen on {}", path.display()),
                format!(
                    "{error}; choose another directory with --dir (a short one: the path of a socket has at most 107 bytes)"
                ),
            )
        };
        std::fs::create_dir_all(dir).map_err(failed)?;
        if UnixStream::connect(&path).await.is_ok() {
            return Err(CommandError::failed(
                format!("start regions in {}", dir.display()),
                "others run there; stop them, or choose another --dir",
            ));
        }
        // Left behind by a process that was killed.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        Ok(Self { listener, path })
    }

    /// Serves requests, one after the other, for ever.
    pub(super) async fn serve(&self, regions: &Regions) {
        loop {
            let accepted = self.listener.accept().await;
            let served = match accepted {
                Ok((stream, _)) => serve_one(stream, regions).await,
                Err(error) => {
                    // Out of file descriptors, for example: not at full speed.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    Err(error)
                }
            };
            if let Err(error) = served {
                tracing::warn!(%error, "a request to break or heal a storage failed");
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Gone already, or left for the next start, which removes it.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn serve_one(mut stream: UnixStream, regions: &Regions) -> io::Result<()> {
    let line = match read_line(&mut stream).await {
        // Another start only looked whether regions run here.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        line => line?,
    };
    let answer = Request::parse(&line).and_then(|request| request.apply(regions));
    let answer = match answer {
        Ok(message) => format!("ok {message}\n"),
        Err(message) => format!("error {message}\n"),
    };
    stream.write_all(answer.as_bytes()).await
}

/// Sends a request to the regions that run in a directory, and returns their answer.
///
/// # Errors
/// If none run there, or they refuse the request.
pub(super) async fn send(dir: &Path, request: &Request) -> Result<String, CommandError> {
    let failed = |cause: String| CommandError::failed(request.to_string(), cause);
    let path = dir.join(SOCKET);
    let mut stream = UnixStream::connect(&path).await.map_err(|error| {
        failed(format!(
            "no regions run in {} ({}: {error}); start `flotilla up --regions 2 --dir {0}`, or name their directory with --dir",
            dir.display(),
            path.display()
        ))
    })?;
    let sent = async {
        stream.write_all(format!("{request}\n").as_bytes()).await?;
        read_line(&mut stream).await
    };
    let answer = sent.await.map_err(|error| failed(error.to_string()))?;
    match answer.split_once(' ') {
        Some(("ok", message)) => Ok(message.to_owned()),
        Some(("error", message)) => Err(failed(message.to_owned())),
        _ => Err(failed(format!("unexpected answer '{answer}'"))),
    }
}

/// Reads a line, without its end.
async fn read_line(stream: &mut UnixStream) -> io::Result<String> {
    let read = async {
        let mut line = Vec::new();
        let mut bounded = stream.take(MAX_LEN);
        loop {
            match bounded.read_u8().await? {
                b'\n' => return Ok(line),
                byte => line.push(byte),
            }
        }
    };
    let line: io::Result<Vec<u8>> = timeout(LINE_TIMEOUT, read).await?;
    String::from_utf8(line?).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use crate::region::RegionPlan;
    use crate::regions::create_fleets;

    #[test]
    fn requests_survive_a_round_trip() {
        for text in ["break region-1 slow", "heal region-2"] {
            assert_eq!(Request::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "break region-1", "break region-1 burn", "heal Region"] {
            assert!(Request::parse(text).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn storages_are_broken_and_healed_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let send = async |line: &str| {
            let request = Request::parse(line).unwrap();
            send(dir.path(), &request)
                .await
                .map_err(|error| error.to_string())
        };
        let message = send("heal region-1").await.unwrap_err();
        assert!(message.contains("no regions run in"), "{message}");
        let fleets = create_fleets(2).unwrap();
        let regions = Regions::start(dir.path(), fleets, |_| RegionPlan::default())
            .await
            .unwrap();
        let control = Control::listen(dir.path()).await.unwrap();
        let second = Control::listen(dir.path()).await.unwrap_err().to_string();
        assert!(second.contains("others run there"), "{second}");
        let requests = async {
            let broken = send("break region-2 refuse").await;
            assert_eq!(broken.unwrap(), "storage of region-2 broken: refuse");
            assert!(
                regions.all()[1]
                    .region
                    .policy()
                    .unwrap()
                    .read_now()
                    .await
                    .is_err()
            );
            send("heal region-2").await.unwrap();
            assert!(
                regions.all()[1]
                    .region
                    .policy()
                    .unwrap()
                    .read_now()
                    .await
                    .is_ok()
            );
            let unknown = send("heal region-3").await.unwrap_err();
            assert!(
                unknown.contains("the regions are region-1, region-2"),
                "{unknown}"
            );
        };
        tokio::select! {
            () = requests => {}
            () = control.serve(&regions) => unreachable!("it serves for ever"),
        }
        drop(control);
        assert!(!dir.path().join(SOCKET).exists());
        regions.shut_down().await;
    }
}
