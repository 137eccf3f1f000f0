//! Listing a directory in the order of its keys' bytes, which is not the order of its entries' names.
//!
//! `app-1` comes before `app/x` since `-` is below `/`: so an entry that is a directory is compared as if its name
//! ended with a slash, and a walk in that order visits the keys in order.

use std::fs;
use std::io;
use std::path::Path;

use super::local_files::FILE_MARK;
use super::{Entry, Key, Page, Prefix};

/// At most `limit` keys under `prefix` after `after`.
pub(super) fn page(root: &Path, prefix: &Prefix, after: Option<&Key>, limit: usize) -> io::Result<Page> {
    let mut walk = Walk { after: after.map_or("", Key::as_str), wanted: limit + 1, entries: Vec::new() };
    walk.directory(&root.join(prefix.without_slash()), prefix.as_str())?;
    let more = walk.entries.len() > limit;
    walk.entries.truncate(limit);
    Ok(Page { entries: walk.entries, more })
}

struct Walk<'a> {
    after: &'a str,
    wanted: usize,
    entries: Vec<Entry>,
}

impl Walk<'_> {
    fn directory(&mut self, directory: &Path, prefix: &str) -> io::Result<()> {
        for key in self.sorted_keys(directory, prefix)? {
            if self.entries.len() >= self.wanted {
                break;
            }
            let name = &key[prefix.len()..];
            match name.strip_suffix('/') {
                Some(name) => self.directory(&directory.join(name), &key)?,
                None => self.file(&directory.join(format!("{name}{FILE_MARK}")), key)?,
            }
        }
        Ok(())
    }

    /// The keys of this directory's files, and those of its directories with a slash, that can lead past `after`.
    fn sorted_keys(&self, directory: &Path, prefix: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut keys = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
            let key = match name.strip_suffix(FILE_MARK) {
                Some(name) => format!("{prefix}{name}"),
                None => format!("{prefix}{name}/"),
            };
            let within = key.ends_with('/') && self.after.starts_with(&key);
            if within || key.as_str() > self.after {
                keys.push(key);
            }
        }
        keys.sort_unstable();
        Ok(keys)
    }

    fn file(&mut self, path: &Path, key: String) -> io::Result<()> {
        match fs::metadata(path) {
            // Deleted since its directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(metadata) => {
                // A file that is no key's was not put there by us.
                if let Ok(key) = Key::new(key) {
                    self.entries.push(Entry { key, size: metadata.len() });
                }
                Ok(())
            }
        }
    }
}
