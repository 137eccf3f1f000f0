//! Which chunks each neighbour holds, as a table of bits.
//!
//! The table has a block for each word of 64 chunks, and a block has one word for each neighbour.
//! The picker looks at the same chunks of all neighbours, and so reads consecutive cache lines.

use crate::chunk_map::bits;

/// Neighbours whose words share a cache line.
const PER_LINE: usize = 8;

/// The same 64 chunks of [`PER_LINE`] neighbours.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Line([u64; PER_LINE]);

/// The chunks that each neighbour holds. Neighbours have indices without gaps.
#[derive(Debug)]
pub(super) struct HolderTable {
    /// Words of each neighbour.
    words: usize,
    neighbours: usize,
    /// Lines of each block.
    block_lines: usize,
    lines: Vec<Line>,
}

impl HolderTable {
    /// A table without neighbours for `words` words of chunks.
    pub(super) fn new(words: usize) -> Self {
        Self {
            words,
            neighbours: 0,
            block_lines: 0,
            lines: Vec::new(),
        }
    }

    /// The chunks of a word that a neighbour holds.
    pub(super) fn word(&self, neighbour: usize, word: usize) -> u64 {
        self.block(word)[neighbour / PER_LINE].0[neighbour % PER_LINE]
    }

    pub(super) fn word_mut(&mut self, neighbour: usize, word: usize) -> &mut u64 {
        let line = word * self.block_lines + neighbour / PER_LINE;
        &mut self.lines[line].0[neighbour % PER_LINE]
    }

    /// Those of these chunks of a word that any of these neighbours, one bit each, holds.
    pub(super) fn held_by_any(&self, word: usize, chunks: u64, neighbours: u64) -> u64 {
        let block = self.block(word);
        let mut not_found = chunks;
        for index in bits(neighbours).map(|index| index as usize) {
            not_found &= !block[index / PER_LINE].0[index % PER_LINE];
            if not_found == 0 {
                break;
            }
        }
        chunks & !not_found
    }

    /// The neighbours that hold the chunk at `bit` of a word, one bit each.
    pub(super) fn holders(&self, word: usize, bit: u32) -> u64 {
        let lines = self.block(word).iter().zip(0_u32..);
        lines.fold(0, |holders, (line, at)| {
            let words = line.0.iter().zip(0_u32..);
            let of_line = words.fold(0, |of_line, (word, at)| of_line | (word >> bit & 1) << at);
            holders | of_line << (at * PER_LINE as u32)
        })
    }

    /// Adds a neighbour that holds nothing, with the next index.
    pub(super) fn push(&mut self) {
        if self.neighbours == self.block_lines * PER_LINE {
            self.resize_blocks((2 * self.block_lines).max(1));
        }
        self.neighbours += 1;
    }

    /// Removes a neighbour. Those after it move down by one.
    pub(super) fn remove(&mut self, neighbour: usize) {
        for word in 0..self.words {
            for at in neighbour..self.neighbours - 1 {
                *self.word_mut(at, word) = self.word(at + 1, word);
            }
            *self.word_mut(self.neighbours - 1, word) = 0;
        }
        self.neighbours -= 1;
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new(self.words);
    }

    fn block(&self, word: usize) -> &[Line] {
        let first = word * self.block_lines;
        &self.lines[first..first + self.block_lines]
    }

    fn resize_blocks(&mut self, block_lines: usize) {
        let mut lines = vec![Line::default(); self.words * block_lines];
        for word in 0..self.words {
            let first = word * block_lines;
            lines[first..first + self.block_lines].copy_from_slice(self.block(word));
        }
        self.block_lines = block_lines;
        self.lines = lines;
    }
}
