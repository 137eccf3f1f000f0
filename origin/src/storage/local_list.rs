//! Listing a directory in the order of its keys' bytes, which is not the order of its entries'
//! names.
//!
//! `app-1` comes before `app/x` since `-` is below `/`: so an entry that is a directory is compared
//! as if its name ended with a slash, and a walk in that order visits the keys in order.
//!
//! A file system tells a directory's names in no order, so all must be read for the first of them.
//! So that not each page of a long listing does that, the names of a directory are remembered until
//! its time of change is another. That is relied on only if the change was long enough before the
//! reading: a later one has another time then.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::local_files::FILE_MARK;
use super::{Entry, Key, Page, Prefix};

/// Age from which a time of change tells two changes apart, on file systems of any resolution.
const SETTLED: Duration = Duration::from_secs(3);
/// Memory for names.
const MAX_LEN: u64 = 16 << 20;
/// Bytes of a name's bookkeeping, roughly.
const NAME_LEN: usize = 40;
/// Fewer names are read again each time: that costs less than to keep them.
const FEW: usize = 100;

/// The names in directories that were read lately.
#[derive(Clone, Debug)]
pub(super) struct Listings(moka::sync::Cache<PathBuf, Arc<Names>>);

/// What is in a directory, as its keys have it, in order: a directory with a slash at its end.
#[derive(Debug)]
struct Names {
    changed: Changed,
    names: Vec<String>,
}

/// Which directory it was, and when it was changed last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Changed {
    inode: u64,
    modified: SystemTime,
}

impl Listings {
    pub(super) fn new() -> Self {
        let weight = |path: &PathBuf, names: &Arc<Names>| {
            let len = names
                .names
                .iter()
                .map(|name| NAME_LEN + name.len())
                .sum::<usize>();
            u32::try_from(path.as_os_str().len() + len).unwrap_or(u32::MAX)
        };
        Self(
            moka::sync::Cache::builder()
                .max_capacity(MAX_LEN)
                .weigher(weight)
                .build(),
        )
    }

    /// At most `limit` keys under `prefix` after `after`.
    pub(super) fn page(
        &self,
        root: &Path,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> io::Result<Page> {
        let after = after.map_or("", Key::as_str);
        let mut walk = Walk {
            listings: self,
            after,
            wanted: limit + 1,
            entries: Vec::new(),
        };
        walk.directory(&root.join(prefix.without_slash()), prefix.as_str())?;
        let more = walk.entries.len() > limit;
        walk.entries.truncate(limit);
        Ok(Page {
            entries: walk.entries,
            more,
        })
    }

    /// What is in a directory; nothing if it is not there.
    fn names(&self, directory: &Path) -> io::Result<Arc<Names>> {
        let changed = Changed::of(&fs::metadata(directory)?)?;
        if let Some(known) = self
            .0
            .get(directory)
            .filter(|known| known.changed == changed)
        {
            return Ok(known);
        }
        let is_settled = changed.modified.elapsed().is_ok_and(|age| age >= SETTLED);
        let names = Arc::new(Names {
            changed,
            names: sorted_names(directory)?,
        });
        if is_settled && names.names.len() > FEW {
            self.0.insert(directory.to_owned(), Arc::clone(&names));
        }
        Ok(names)
    }
}

impl Changed {
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
        names.push(match name.strip_suffix(FILE_MARK) {
            Some(name) => name.to_owned(),
            None => format!("{name}/"),
        });
    }
    names.sort_unstable();
    Ok(names)
}

impl Names {
    /// Those whose keys come after `after`, or can lead past it.
    fn past(&self, after: &str, prefix: &str) -> &[String] {
        let Some(after) = after.strip_prefix(prefix) else {
            // All keys here begin with the prefix, so all are on the same side.
            return if after < prefix { &self.names } else { &[] };
        };
        let is_before = |name: &String| {
            name.as_str() <= after && !(name.ends_with('/') && after.starts_with(name.as_str()))
        };
        &self.names[self.names.partition_point(is_before)..]
    }
}

struct Walk<'a> {
    listings: &'a Listings,
    after: &'a str,
    wanted: usize,
    entries: Vec<Entry>,
}

impl Walk<'_> {
    fn directory(&mut self, directory: &Path, prefix: &str) -> io::Result<()> {
        let names = match self.listings.names(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            names => names?,
        };
        for name in names.past(self.after, prefix) {
            if self.entries.len() >= self.wanted {
                break;
            }
            let key = format!("{prefix}{name}");
            match name.strip_suffix('/') {
                Some(name) => self.directory(&directory.join(name), &key)?,
                None => self.file(&directory.join(format!("{name}{FILE_MARK}")), key)?,
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, key: String) -> io::Result<()> {
        match fs::metadata(path) {
            // Deleted since its directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(metadata) => {
                // A file that is no key's was not put there by us.
                if let Ok(key) = Key::new(key) {
                    self.entries.push(Entry {
                        key,
                        size: metadata.len(),
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
        fs::write(dir.join(format!("tag/{name}{FILE_MARK}")), name).unwrap();
    }

    /// As if nothing had changed since long ago.
    fn settle(dir: &Path, at: u64) {
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(at);
        File::open(dir.join("tag"))
            .unwrap()
            .set_times(FileTimes::new().set_modified(then))
            .unwrap();
    }

    #[test]
    fn names_are_remembered_until_the_directory_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tag")).unwrap();
        (0..=FEW).for_each(|number| write(dir.path(), &format!("v{number:03}")));
        let (listings, prefix) = (Listings::new(), Prefix::new("tag/").unwrap());
        let after = Key::new("tag/v099".to_owned()).unwrap();
        let last = || {
            let page = listings
                .page(dir.path(), &prefix, Some(&after), 10)
                .unwrap();
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
            "changed just before: not relied on"
        );
        settle(dir.path(), 1);
        assert_eq!(last(), ["v100", "v101"]);
        write(dir.path(), "v102");
        settle(dir.path(), 1);
        assert_eq!(
            last(),
            ["v100", "v101"],
            "as far as times tell, nothing was changed: it is not read again"
        );
        settle(dir.path(), 0);
        assert_eq!(last(), ["v100", "v101", "v102"]);
    }
}
