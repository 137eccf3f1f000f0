//! The entries of one region's journal, as far as this replica knows them: which are due, which are
//! being merged, and which wait. A pure state machine; the follower lists and merges.
//!
//! A list covers a range of the journal, and replaces what was known of that range. Entries of the
//! last minute are due first, then the oldest. An entry that cannot be merged yet is due again
//! after a pause that grows.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use flotilla_common::time::Time;
use flotilla_common::wire::region::{EntryId, JournalPage, MAX_ENTRIES, OwedEntry};

/// Entries that are known at one time; with more, no further pages are listed.
pub(super) const MAX_KNOWN: usize = 10 * MAX_ENTRIES;
/// Entries younger than this are merged before older ones.
pub(super) const YOUNG: Duration = Duration::from_mins(1);
/// The first and the longest pause before an entry is looked at again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(10);
/// The longest pause after a call failed.
const LONGEST_PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(30);
/// Blocked entries older than this count neither as lag nor hold anything up.
const BLOCKED_LIMIT: Duration = Duration::from_hours(24);

/// Why an entry could not be merged yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// It is not written yet, or never will be.
    Unreached,
    /// Its stamp is ahead of this replica's clock.
    Ahead,
    /// A region that does not answer may have what it names.
    Blocked,
    /// A storage failed, or has a record that cannot be read.
    Failed,
}

/// An entry that could not be merged yet.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    until: Time,
    pause: Duration,
    cause: Cause,
}

/// Figures of a backlog, for operators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    pub(super) owed: usize,
    /// When the oldest entry was written that counts as lag, in nanoseconds since 1970.
    pub(super) oldest: Option<u64>,
    pub(super) blocked: usize,
    pub(super) ahead: usize,
}

/// The known entries of a journal.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    owed: BTreeSet<EntryId>,
    waiting: BTreeMap<EntryId, Waiting>,
    running: HashSet<EntryId>,
    due: VecDeque<OwedEntry>,
    /// Where the next page begins, if all entries before wait.
    cursor: Option<EntryId>,
}

impl Backlog {
    /// Whether entries are due that are not being merged.
    pub(super) fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Entries that are known and not merged.
    pub(super) fn len(&self) -> usize {
        self.owed.len()
    }

    /// Forgets which entries are due, before a list says it anew.
    pub(super) fn begin_list(&mut self) {
        self.due.clear();
    }

    /// Takes over a page that was listed after `after`. Returns how many of its entries are due.
    pub(super) fn add(
        &mut self,
        after: Option<EntryId>,
        page: JournalPage,
        now: Time,
        unix_now: u64,
    ) -> usize {
        let listed: HashSet<EntryId> = page.entries.iter().map(|entry| entry.id).collect();
        let last = page.entries.last().map(|entry| entry.id);
        let is_covered = |id: &EntryId| {
            after.is_none_or(|after| *id > after)
                && (!page.more || last.is_some_and(|it| *id <= it))
        };
        self.owed
            .retain(|id| !is_covered(id) || listed.contains(id));
        self.owed.extend(&listed);
        self.waiting
            .retain(|id, _| !is_covered(id) || listed.contains(id));
        let entries = page.entries.into_iter();
        let is_due = |entry: &OwedEntry| {
            let waiting = self.waiting.get(&entry.id);
            waiting.is_none_or(|waiting| waiting.until <= now) && !self.running.contains(&entry.id)
        };
        let due: Vec<OwedEntry> = entries.filter(is_due).collect();
        let added = due.len();
        self.due.extend(due);
        let due = self.due.make_contiguous();
        due.sort_by_key(|entry| (!is_young(entry.id, unix_now), entry.id));
        added
    }

    /// Where the next page begins after the first one, which ended with `first_end`; `None` if too
    /// many entries are known.
    pub(super) fn next_page(&self, first_end: EntryId) -> Option<EntryId> {
        let after = self.cursor.filter(|cursor| *cursor > first_end);
        (self.owed.len() < MAX_KNOWN).then(|| after.unwrap_or(first_end))
    }

    /// Takes note of where a page after the first ended; `None` if it was the last one.
    pub(super) fn set_page_end(&mut self, end: Option<EntryId>) {
        self.cursor = end;
    }

    /// The next entry to merge. Old entries leave room: none is begun while `old_at_once` of them
    /// are being merged.
    pub(super) fn begin(&mut self, unix_now: u64, old_at_once: usize) -> Option<OwedEntry> {
        let first = self.due.front()?;
        let is_old = |id: &&EntryId| !is_young(**id, unix_now);
        if is_old(&&first.id) && self.running.iter().filter(is_old).count() >= old_at_once {
            return None;
        }
        let entry = self.due.pop_front()?;
        self.running.insert(entry.id);
        Some(entry)
    }

    /// An entry is merged.
    pub(super) fn finish(&mut self, id: EntryId) {
        self.running.remove(&id);
        self.waiting.remove(&id);
        self.owed.remove(&id);
    }

    /// An entry cannot be merged yet.
    pub(super) fn wait(&mut self, id: EntryId, now: Time, cause: Cause) {
        self.running.remove(&id);
        if !self.owed.contains(&id) {
            return;
        }
        let longest = match cause {
            Cause::Failed => LONGEST_PAUSE_AFTER_FAILURE,
            Cause::Unreached | Cause::Ahead | Cause::Blocked => LONGEST_PAUSE,
        };
        let before = self.waiting.get(&id);
        let pause = before.map_or(FIRST_PAUSE, |waiting| (waiting.pause * 2).min(longest));
        let until = now + pause;
        self.waiting.insert(
            id,
            Waiting {
                until,
                pause,
                cause,
            },
        );
    }

    /// The figures at a time, in nanoseconds since 1970.
    pub(super) fn figures(&self, unix_now: u64) -> Figures {
        let limit = u64::try_from(BLOCKED_LIMIT.as_nanos()).unwrap_or(u64::MAX);
        let counts_as_lag = |id: &&EntryId| match self.waiting.get(id).map(|it| it.cause) {
            Some(Cause::Unreached) => false,
            Some(Cause::Blocked | Cause::Failed) => unix_now.saturating_sub(id.created) < limit,
            Some(Cause::Ahead) | None => true,
        };
        let number = |of: &[Cause]| {
            let waiting = self.waiting.values();
            waiting
                .filter(|waiting| of.contains(&waiting.cause))
                .count()
        };
        Figures {
            owed: self.owed.len(),
            oldest: self.owed.iter().find(counts_as_lag).map(|id| id.created),
            blocked: number(&[Cause::Blocked, Cause::Failed]),
            ahead: number(&[Cause::Ahead]),
        }
    }
}

fn is_young(id: EntryId, unix_now: u64) -> bool {
    Duration::from_nanos(unix_now.saturating_sub(id.created)) <= YOUNG
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    /// Now, in nanoseconds since 1970: all entries with a lower number of minutes are old.
    const NOW: u64 = 1_000 * SECOND;
    const AT: Time = Time::from_nanos(7 * SECOND);

    fn id(created_s: u64) -> EntryId {
        EntryId {
            created: created_s * SECOND,
            nonce: 1,
        }
    }

    fn page(created_s: &[u64], more: bool) -> JournalPage {
        let entries = created_s.iter().map(|created_s| OwedEntry {
            id: id(*created_s),
            keys: Vec::new(),
        });
        JournalPage {
            entries: entries.collect(),
            more,
            ..JournalPage::default()
        }
    }

    fn begin_all(backlog: &mut Backlog) -> Vec<u64> {
        let begun = core::iter::from_fn(|| backlog.begin(NOW, usize::MAX));
        begun.map(|entry| entry.id.created / SECOND).collect()
    }

    #[test]
    fn young_entries_are_due_first_then_the_oldest() {
        let mut backlog = Backlog::default();
        backlog.add(None, page(&[1, 2, 990, 995], false), AT, NOW);
        assert_eq!(begin_all(&mut backlog), [990, 995, 1, 2]);
        // Entries that are being merged are not begun again.
        backlog.begin_list();
        backlog.add(None, page(&[1, 2, 990, 995], false), AT, NOW);
        assert!(!backlog.has_due());
    }

    #[test]
    fn old_entries_leave_room_for_young_ones() {
        let mut backlog = Backlog::default();
        backlog.add(None, page(&[1, 2], false), AT, NOW);
        assert!(backlog.begin(NOW, 1).is_some());
        assert!(backlog.begin(NOW, 1).is_none());
        backlog.begin_list();
        backlog.add(None, page(&[1, 2, 999], false), AT, NOW);
        assert_eq!(backlog.begin(NOW, 1).map(|entry| entry.id), Some(id(999)));
    }

    #[test]
    fn waiting_entries_are_due_again_after_a_growing_pause() {
        let mut backlog = Backlog::default();
        let mut at = AT;
        for pause_s in [1, 2, 4] {
            backlog.begin_list();
            assert_eq!(backlog.add(None, page(&[1], false), at, NOW), 1);
            begin_all(&mut backlog);
            backlog.wait(id(1), at, Cause::Blocked);
            let almost = at + Duration::from_millis(pause_s * 1000 - 1);
            assert_eq!(backlog.add(None, page(&[1], false), almost, NOW), 0);
            at += Duration::from_secs(pause_s);
        }
    }

    #[test]
    fn lists_replace_what_is_known_of_their_range() {
        let mut backlog = Backlog::default();
        backlog.add(None, page(&[1, 2], true), AT, NOW);
        backlog.add(Some(id(500)), page(&[600, 700], false), AT, NOW);
        assert_eq!(backlog.len(), 4);
        // Another replica has merged 1 and 2, or the source has trimmed them.
        backlog.begin_list();
        backlog.add(None, page(&[3], true), AT, NOW);
        assert_eq!(backlog.figures(NOW).oldest, Some(3 * SECOND));
        assert_eq!(backlog.len(), 3);
        backlog.add(Some(id(500)), page(&[], false), AT, NOW);
        assert_eq!(backlog.len(), 1);
    }

    #[test]
    fn further_pages_follow_the_first_and_wrap() {
        let mut backlog = Backlog::default();
        assert_eq!(backlog.next_page(id(5)), Some(id(5)));
        backlog.set_page_end(Some(id(9)));
        assert_eq!(backlog.next_page(id(5)), Some(id(9)));
        backlog.set_page_end(None);
        assert_eq!(backlog.next_page(id(5)), Some(id(5)));
        backlog.owed.extend((0..MAX_KNOWN as u64).map(id));
        assert_eq!(backlog.next_page(id(5)), None);
    }

    #[test]
    fn figures_leave_out_what_is_unreached_or_blocked_for_long() {
        let day = BLOCKED_LIMIT.as_secs();
        let mut backlog = Backlog::default();
        let now = (day + 1_000) * SECOND;
        backlog.add(None, page(&[1, 2, 5_000, 6_000], false), AT, now);
        backlog.wait(id(1), AT, Cause::Blocked);
        backlog.wait(id(2), AT, Cause::Unreached);
        backlog.wait(id(6_000), AT, Cause::Ahead);
        let figures = Figures {
            owed: 4,
            oldest: Some(5_000 * SECOND),
            blocked: 1,
            ahead: 1,
        };
        assert_eq!(backlog.figures(now), figures);
        backlog.finish(id(5_000));
        assert_eq!(backlog.figures(now).oldest, Some(6_000 * SECOND));
    }
}
