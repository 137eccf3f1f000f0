//! Listing a directory in the byte order of its keys, which differs from the order of its file
//! names.
//!
//! `app-1` comes before `app/x` because `-` sorts below `/`. So a directory compares as if its name
//! ended with a slash, and a walk in that order visits the keys in order.
//!
//! File systems return names unordered, so even one page requires reading a whole directory. To
//! avoid that for every page of a long listing, the names of large directories are cached until
//! the modification time of the directory changes. A directory is cached only if its last change
//! was long enough before it was read that a later change gets another modification time.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::files::FILE_SUFFIX;
use crate::storage::{Entry, Key, Page, Prefix, StorageTime};

/// Age of a modification time from which a later change is certain to have another one, whatever
/// the resolution of the file system.
const MIN_CACHEABLE_AGE: Duration = Duration::from_secs(3);
/// Capacity of the cache in bytes.
const CACHE_BYTES: u64 = 16 << 20;
/// Approximate memory overhead of a cached name, in bytes.
const NAME_OVERHEAD: usize = 40;
/// Directories with at most this many names are not cached: reading them again is cheap.
const MAX_UNCACHED_NAMES: usize = 100;

/// A cache of the names in large directories.
#[derive(Clone, Debug)]
pub(super) struct DirectoryCache(moka::sync::Cache<PathBuf, Arc<Directory>>);

/// The contents of a directory.
#[derive(Debug)]
struct Directory {
    revision: Revision,
    /// Key segments in byte order; those of subdirectories end with a slash.
    names: Vec<String>,
}

/// Identifies one state of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Revision {
    inode: u64,
    modified: SystemTime,
}

impl DirectoryCache {
    pub(super) fn new() -> Self {
        let weight = |path: &PathBuf, directory: &Arc<Directory>| {
            let len = directory
                .names
                .iter()
                .map(|name| NAME_OVERHEAD + name.len())
                .sum::<usize>();
            u32::try_from(path.as_os_str().len() + len).unwrap_or(u32::MAX)
        };
        Self(
            moka::sync::Cache::builder()
                .max_capacity(CACHE_BYTES)
                .weigher(weight)
                .build(),
        )
    }

    /// Lists at most `limit` keys under `prefix` after `after`.
    pub(super) fn page(
        &self,
        root: &Path,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> io::Result<Page> {
        let after = after.map_or("", Key::as_str);
        let mut walk = Walk {
            cache: self,
            after,
            max_entries: limit + 1,
            entries: Vec::new(),
        };
        walk.visit_directory(&root.join(prefix.without_slash()), prefix.as_str())?;
        let more = walk.entries.len() > limit;
        walk.entries.truncate(limit);
        Ok(Page {
            entries: walk.entries,
            more,
        })
    }

    /// The contents of a directory, from the cache if they are current.
    fn get(&self, path: &Path) -> io::Result<Arc<Directory>> {
        let revision = Revision::of(&fs::metadata(path)?)?;
        let cached = self.0.get(path);
        if let Some(cached) = cached.filter(|cached| cached.revision == revision) {
            return Ok(cached);
        }
        // The age is taken before the names are read.
        let age = revision.modified.elapsed();
        let is_cacheable = age.is_ok_and(|age| age >= MIN_CACHEABLE_AGE);
        let directory = Arc::new(Directory {
            revision,
            names: sorted_names(path)?,
        });
        if is_cacheable && directory.names.len() > MAX_UNCACHED_NAMES {
            self.0.insert(path.to_owned(), Arc::clone(&directory));
        }
        Ok(directory)
    }
}

impl Revision {
    fn of(metadata: &fs::Metadata) -> io::Result<Self> {
        Ok(Self {
            inode: metadata.ino(),
            modified: metadata.modified()?,
        })
    }
}

fn sorted_names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else {
            continue;
        };
        names.push(match name.strip_suffix(FILE_SUFFIX) {
            Some(name) => name.to_owned(),
            None => format!("{name}/"),
        });
    }
    names.sort_unstable();
    Ok(names)
}

impl Directory {
    /// The names whose keys come after `after`, or which are directories that may hold such keys.
    fn names_after(&self, after: &str, prefix: &str) -> &[String] {
        let Some(after) = after.strip_prefix(prefix) else {
            // All keys in this directory begin with the prefix, so all are on the same side of
            // `after`.
            return if after < prefix { &self.names } else { &[] };
        };
        let is_before = |name: &String| {
            name.as_str() <= after && !(name.ends_with('/') && after.starts_with(name.as_str()))
        };
        &self.names[self.names.partition_point(is_before)..]
    }
}

struct Walk<'a> {
    cache: &'a DirectoryCache,
    after: &'a str,
    max_entries: usize,
    entries: Vec<Entry>,
}

impl Walk<'_> {
    fn visit_directory(&mut self, path: &Path, prefix: &str) -> io::Result<()> {
        let directory = match self.cache.get(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            directory => directory?,
        };
        for name in directory.names_after(self.after, prefix) {
            if self.entries.len() >= self.max_entries {
                break;
            }
            let key = format!("{prefix}{name}");
            match name.strip_suffix('/') {
                Some(name) => self.visit_directory(&path.join(name), &key)?,
                None => self.visit_file(&path.join(format!("{name}{FILE_SUFFIX}")), key)?,
            }
        }
        Ok(())
    }

    fn visit_file(&mut self, path: &Path, key: String) -> io::Result<()> {
        match fs::metadata(path) {
            // The file was deleted after its directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(metadata) => {
                // Foreign files are skipped.
                if let Ok(key) = Key::new(key) {
                    self.entries.push(Entry {
                        key,
                        size: metadata.len(),
                        // The version is a hash of the body, which a listing does not read.
                        version: None,
                        modified: metadata.modified().ok().map(StorageTime::of_file),
                    });
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::fs::{File, FileTimes};

    use super::*;

    fn write(dir: &Path, name: &str) {
        fs::write(dir.join(format!("tag/{name}{FILE_SUFFIX}")), name).unwrap();
    }

    /// Sets the modification time of the directory.
    fn set_modified(dir: &Path, unix_s: u64) {
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(unix_s);
        File::open(dir.join("tag"))
            .unwrap()
            .set_times(FileTimes::new().set_modified(modified))
            .unwrap();
    }

    #[test]
    fn names_are_cached_until_the_modification_time_changes() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tag")).unwrap();
        (0..=MAX_UNCACHED_NAMES).for_each(|number| write(dir.path(), &format!("v{number:03}")));
        let cache = DirectoryCache::new();
        let prefix = Prefix::new("tag/").unwrap();
        let after = Key::new("tag/v099".to_owned()).unwrap();
        let last = || {
            let page = cache.page(dir.path(), &prefix, Some(&after), 10).unwrap();
            page.entries
                .iter()
                .map(|entry| entry.key.last_segment().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(last(), ["v100"]);
        write(dir.path(), "v101");
        assert_eq!(
            last(),
            ["v100", "v101"],
            "a recent modification time must not be cached"
        );
        set_modified(dir.path(), 1);
        assert_eq!(last(), ["v100", "v101"]);
        write(dir.path(), "v102");
        set_modified(dir.path(), 1);
        assert_eq!(
            last(),
            ["v100", "v101"],
            "the modification time is the same, so the cached names must be used"
        );
        set_modified(dir.path(), 0);
        assert_eq!(last(), ["v100", "v101", "v102"]);
    }
}
