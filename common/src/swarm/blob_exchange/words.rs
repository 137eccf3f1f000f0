//! Counters of 64 chunks: how many neighbours hold each chunk, and which chunks are missing.
//!
//! The counters are bit-sliced: word `d` has the binary digit `d` of all 64 counters. So a few
//! instructions count a neighbour's chunks in or out, or find the rarest ones, and everything that
//! the picker reads about 64 chunks is in one cache line.

/// Digits of a counter, which counts neighbours, at most [`super::MAX_NEIGHBOURS`].
const DIGITS: usize = 7;
const _: () = assert!(super::MAX_NEIGHBOURS < 1 << DIGITS);

/// Counters and marks of 64 chunks; the lowest chunk is the lowest bit of each word.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct ChunkWords {
    digits: [u64; DIGITS],
    /// Neither held nor being fetched.
    pub(super) missing: u64,
}

impl ChunkWords {
    /// Chunks without holders, of which these are missing.
    pub(super) const fn new(missing: u64) -> Self {
        Self {
            digits: [0; DIGITS],
            missing,
        }
    }

    /// Counts one more holder of these chunks. Returns those that had none.
    pub(super) fn add_holder(&mut self, chunks: u64) -> u64 {
        let had_none = chunks & self.unavailable();
        let mut carry = chunks;
        for digit in &mut self.digits {
            if carry == 0 {
                break;
            }
            let sum = *digit ^ carry;
            carry &= *digit;
            *digit = sum;
        }
        had_none
    }

    /// Counts one holder of these chunks less; each must have one. Returns those that have none
    /// now.
    pub(super) fn remove_holder(&mut self, chunks: u64) -> u64 {
        let mut borrow = chunks;
        for digit in &mut self.digits {
            if borrow == 0 {
                break;
            }
            let difference = *digit ^ borrow;
            borrow &= difference;
            *digit = difference;
        }
        chunks & self.unavailable()
    }

    /// The chunks without a holder.
    pub(super) fn unavailable(&self) -> u64 {
        !self.digits.iter().fold(0, |any, digit| any | digit)
    }

    /// Number of holders of the chunk at `bit`.
    pub(super) fn availability(&self, bit: u32) -> u8 {
        let digits = self.digits.iter().zip(0_u32..);
        digits.fold(0, |count, (digit, at)| {
            count | ((digit >> bit & 1) as u8) << at
        })
    }

    /// The rarest of these chunks, at least one, and the number of holders of each.
    pub(super) fn rarest(&self, chunks: u64) -> (u64, u8) {
        let mut rarest = chunks;
        let mut availability = 0;
        for digit in self.digits.iter().rev() {
            let rarer = rarest & !digit;
            availability = 2 * availability + u8::from(rarer == 0);
            if rarer != 0 {
                rarest = rarer;
            }
        }
        (rarest, availability)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chunk_map::bits;

    proptest! {
        #[test]
        fn counters_count_holders(
            holders in prop::collection::vec(any::<u64>(), 0..=64),
            left in any::<u64>(),
            chunks in 1_u64..,
        ) {
            let mut words = ChunkWords::new(u64::MAX);
            let mut counts = [0_u8; 64];
            let mut add = |counts: &mut [u8; 64], held: u64, step: i8| {
                let changed = if step > 0 {
                    words.add_holder(held)
                } else {
                    words.remove_holder(held)
                };
                let mut expected = 0;
                for bit in bits(held) {
                    let count = &mut counts[bit as usize];
                    let was_zero = *count == 0;
                    *count = count.wrapping_add_signed(step);
                    expected |= u64::from(was_zero || *count == 0) << bit;
                }
                (changed, expected)
            };
            for held in &holders {
                let (changed, expected) = add(&mut counts, *held, 1);
                prop_assert_eq!(changed, expected);
            }
            for held in holders.iter().filter(|held| *held & left != 0) {
                let (changed, expected) = add(&mut counts, *held, -1);
                prop_assert_eq!(changed, expected);
            }
            for bit in 0..64 {
                prop_assert_eq!(words.availability(bit), counts[bit as usize]);
            }
            let (rarest, availability) = words.rarest(chunks);
            let least = bits(chunks).map(|bit| counts[bit as usize]).min();
            prop_assert_eq!(Some(availability), least);
            let expected: Vec<u32> = bits(chunks).filter(|bit| Some(counts[*bit as usize]) == least).collect();
            prop_assert_eq!(bits(rarest).collect::<Vec<_>>(), expected);
        }
    }
}
