//! Files for the recordings of machines ([`flotilla_common::recording`]): a diagnostic.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use flotilla_common::recording::{Machine, Sink};

/// A recording cannot be created.
#[derive(Debug, thiserror::Error)]
#[error("record to {}: {source}", .folder.display())]
pub struct RecordingError {
    folder: PathBuf,
    source: io::Error,
}

/// Where a machine is recorded: the file `NAME.recording` in a folder, which is created if it does
/// not exist. A file of an earlier start is replaced. Without a folder the machine is not recorded.
///
/// # Errors
/// If the folder or the file cannot be created.
pub fn create<M: Machine>(folder: Option<&Path>) -> Result<Option<Box<dyn Sink>>, RecordingError> {
    let sink = folder.map(|folder| {
        create_file(folder, M::NAME).map_err(|source| RecordingError {
            folder: folder.to_owned(),
            source,
        })
    });
    sink.transpose()
}

fn create_file(folder: &Path, name: &str) -> io::Result<Box<dyn Sink>> {
    fs::create_dir_all(folder)?;
    let path = folder.join(format!("{name}.recording"));
    let file = BufWriter::new(File::create(&path)?);
    tracing::info!(file = %path.display(), "recording a state machine");
    Ok(Box::new(FileSink { path, file }))
}

/// The file of a recording. Its buffer is written out when the machine is dropped.
#[derive(Debug)]
struct FileSink {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Sink for FileSink {
    fn write(&mut self, bytes: &[u8]) -> bool {
        let written = self.file.write_all(bytes);
        if let Err(error) = &written {
            let file = self.path.display();
            tracing::warn!(%file, %error, "write to a recording failed; it ends here");
        }
        written.is_ok()
    }
}
