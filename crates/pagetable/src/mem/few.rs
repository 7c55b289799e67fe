//! Frames of which only a few words hold a value, kept as a list of those words.
//!
//! Tables that map scattered pages have one to five entries in use; where there are hundreds of thousands of them, whole frames
//! would take gigabytes. [`FewWords`] is one such frame, `FewFrames` all of a memory. A frame that outgrows its list is moved to
//! where whole frames are kept (`mem`).

/// Words that a list has room for: with their places 128 bytes.
const ROOM: usize = 12;

/// 512 words of which few are not zero.
#[derive(Clone, Copy, Debug)]
pub struct FewWords {
    values: [u64; ROOM],
    places: [u16; ROOM],
    len: u8,
}

impl Default for FewWords {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl FewWords {
    /// All zero.
    pub const EMPTY: Self = Self { values: [0; ROOM], places: [0; ROOM], len: 0 };

    fn used(&self) -> &[u16] {
        &self.places[..usize::from(self.len)]
    }

    /// Where in the list the word of `place` is.
    #[inline]
    fn find(&self, place: usize) -> Option<usize> {
        self.used().iter().position(|used| usize::from(*used) == place)
    }

    /// The word of `place`, below 512.
    #[must_use]
    #[inline]
    pub fn get(&self, place: usize) -> u64 {
        self.find(place).map_or(0, |at| self.values[at])
    }

    /// Stores the word of `place`, below 512; returns false, having stored nothing, where the list has no room for it.
    #[must_use = "a word for which there is no room is not stored"]
    pub fn set(&mut self, place: usize, value: u64) -> bool {
        match (self.find(place), value) {
            (Some(at), 0) => {
                let last = usize::from(self.len) - 1;
                (self.values[at], self.places[at]) = (self.values[last], self.places[last]);
                self.len -= 1;
            }
            (Some(at), value) => self.values[at] = value,
            (None, 0) => {}
            (None, value) => {
                let Some(room) = self.values.get_mut(usize::from(self.len)) else { return false };
                *room = value;
                #[expect(clippy::cast_possible_truncation, reason = "below 512")]
                let place = place as u16;
                self.places[usize::from(self.len)] = place;
                self.len += 1;
            }
        }
        true
    }

    /// All 512 words.
    #[must_use]
    pub fn all(&self) -> [u64; 512] {
        let mut words = [0; 512];
        for (place, value) in self.used().iter().zip(&self.values) {
            words[usize::from(*place)] = *value;
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(memvirt_properties::cases(256))]

        #[test]
        fn few_words_read_as_they_were_stored(steps in prop::collection::vec((0usize..20, 0u64..3), 0..200)) {
            let (mut few, mut model) = (FewWords::EMPTY, [0; 512]);
            for (place, value) in steps {
                let place = place * 26;
                let used = model.iter().filter(|word| **word != 0).count();
                let fits = few.set(place, value);
                prop_assert_eq!(fits, value == 0 || model[place] != 0 || used < ROOM);
                if fits {
                    model[place] = value;
                }
                prop_assert_eq!(few.all(), model);
                prop_assert_eq!(few.get(place), model[place]);
            }
        }
    }

    #[test]
    fn a_list_takes_two_cache_lines() {
        assert_eq!(size_of::<FewWords>(), 128);
    }
}
