//! Lists of entries: who maps a guest frame, who points to a shadow page.
//!
//! A head holds nothing, one entry, or a chain of descriptors with room for 14 entries each. The layout is KVM's, because a
//! high-water mark (`max_mmu_rmap_size`) and the footprint show it. Linux 6.1 fills the first descriptor with room and so
//! can have holes; since about 6.3 only the first descriptor of a chain is not full, and additions are made there. Source:
//! spec A12; `pte_list_add`, `pte_list_remove` in `arch/x86/kvm/mmu/mmu.c`.

use super::config::Kernel;

/// The place of an entry: a shadow page and an index in its table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub(crate) struct SpteRef(u32);

impl SpteRef {
    pub(crate) const fn new(page: u32, index: usize) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "masked to 9 bits")]
        Self(page << 9 | (index & 511) as u32)
    }

    pub(crate) const fn page(self) -> u32 {
        self.0 >> 9
    }

    pub(crate) const fn index(self) -> usize {
        (self.0 & 511) as usize
    }
}

/// The head of one list.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Head(u64);

impl Head {
    pub(crate) const EMPTY: Self = Self(0);

    const fn single(entry: SpteRef) -> Self {
        Self((entry.0 as u64 + 1) << 1)
    }

    const fn chain(descriptor: u32) -> Self {
        Self((descriptor as u64) << 1 | 1)
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[expect(clippy::cast_possible_truncation, reason = "heads are made from 32-bit numbers")]
    const fn kind(self) -> Kind {
        match (self.0, self.0 & 1) {
            (0, _) => Kind::Empty,
            (_, 0) => Kind::Single(SpteRef((self.0 >> 1) as u32 - 1)),
            _ => Kind::Chain((self.0 >> 1) as u32),
        }
    }
}

enum Kind {
    Empty,
    Single(SpteRef),
    Chain(u32),
}

const ROOM: usize = 14;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Descriptor {
    entries: [SpteRef; ROOM],
    len: usize,
    more: u32,
    /// Linux 6.12: entries in the descriptors behind this one.
    behind: usize,
}

const EMPTY: Descriptor = Descriptor { entries: [SpteRef(0); ROOM], len: 0, more: NONE, behind: 0 };

/// The descriptors of all lists.
#[derive(Debug)]
pub(crate) struct Lists {
    kernel: Kernel,
    store: Vec<Descriptor>,
    free: Vec<u32>,
}

impl Lists {
    pub(crate) const fn new(kernel: Kernel) -> Self {
        Self { kernel, store: Vec::new(), free: Vec::new() }
    }

    /// How many descriptors are in use.
    pub(crate) const fn descriptors(&self) -> usize {
        self.store.len() - self.free.len()
    }

    fn allocate(&mut self, new: Descriptor) -> u32 {
        if let Some(number) = self.free.pop() {
            self.store[number as usize] = new;
            return number;
        }
        self.store.push(new);
        u32::try_from(self.store.len() - 1).unwrap_or(NONE)
    }

    /// Adds an entry; returns how many KVM counts as having been there, which is fewer than there are where a chain of 6.1
    /// has holes.
    pub(crate) fn add(&mut self, head: &mut Head, entry: SpteRef) -> usize {
        match head.kind() {
            Kind::Empty => {
                *head = Head::single(entry);
                0
            }
            Kind::Single(first) => {
                let mut new = Descriptor { len: 2, ..EMPTY };
                new.entries[..2].copy_from_slice(&[first, entry]);
                *head = Head::chain(self.allocate(new));
                1
            }
            Kind::Chain(first) => match self.kernel {
                Kernel::V6_1 => self.add_where_room(first, entry),
                Kernel::V6_12 => self.add_in_front(head, first, entry),
            },
        }
    }

    fn add_where_room(&mut self, first: u32, entry: SpteRef) -> usize {
        let (mut at, mut count) = (first, 0);
        while self.store[at as usize].len == ROOM {
            count += ROOM;
            let more = self.store[at as usize].more;
            if more == NONE {
                let new = self.allocate(EMPTY);
                self.store[at as usize].more = new;
                at = new;
                break;
            }
            at = more;
        }
        let descriptor = &mut self.store[at as usize];
        count += descriptor.len;
        descriptor.entries[descriptor.len] = entry;
        descriptor.len += 1;
        count
    }

    fn add_in_front(&mut self, head: &mut Head, first: u32, entry: SpteRef) -> usize {
        let count = self.store[first as usize].behind + self.store[first as usize].len;
        let mut at = first;
        if self.store[first as usize].len == ROOM {
            at = self.allocate(Descriptor { more: first, behind: count, ..EMPTY });
            *head = Head::chain(at);
        }
        let descriptor = &mut self.store[at as usize];
        descriptor.entries[descriptor.len] = entry;
        descriptor.len += 1;
        count
    }

    /// Removes an entry; returns whether it was there.
    pub(crate) fn remove(&mut self, head: &mut Head, entry: SpteRef) -> bool {
        let first = match head.kind() {
            Kind::Empty => return false,
            Kind::Single(only) => {
                if only == entry {
                    *head = Head::EMPTY;
                }
                return only == entry;
            }
            Kind::Chain(first) => first,
        };
        let (mut at, mut before) = (first, NONE);
        while at != NONE {
            let descriptor = &self.store[at as usize];
            if let Some(i) = descriptor.entries[..descriptor.len].iter().position(|e| *e == entry) {
                match self.kernel {
                    Kernel::V6_1 => self.take_from(head, at, i, before, at),
                    Kernel::V6_12 => self.take_from(head, at, i, NONE, first),
                }
                return true;
            }
            (before, at) = (at, descriptor.more);
        }
        false
    }

    /// Fills place `i` of `at` with the last entry of `donor` and drops the donor when that empties it.
    fn take_from(&mut self, head: &mut Head, at: u32, i: usize, before_donor: u32, donor: u32) {
        let from = &mut self.store[donor as usize];
        from.len -= 1;
        let (moved, left, more) = (from.entries[from.len], from.len, from.more);
        self.store[at as usize].entries[i] = moved;
        if left > 0 {
            return;
        }
        if before_donor != NONE {
            self.store[before_donor as usize].more = more;
        } else {
            *head = if more == NONE { Head::EMPTY } else { Head::chain(more) };
        }
        self.free.push(donor);
    }

    /// Empties a list.
    pub(crate) fn clear(&mut self, head: &mut Head) {
        if let Kind::Chain(mut at) = head.kind() {
            while at != NONE {
                self.free.push(at);
                at = self.store[at as usize].more;
            }
        }
        *head = Head::EMPTY;
    }

    /// Any entry of a list: the one that KVM would look at first.
    pub(crate) fn first(&self, head: Head) -> Option<SpteRef> {
        Cursor::new(head).next(self)
    }

    /// The entries of a list, for inspection.
    pub(crate) fn iter(&self, head: Head) -> impl Iterator<Item = SpteRef> {
        let mut cursor = Cursor::new(head);
        core::iter::from_fn(move || cursor.next(self))
    }
}

/// A place in a list. It borrows nothing, so entries can be changed (not added or removed) between two steps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    single: Option<SpteRef>,
    descriptor: u32,
    at: usize,
}

impl Cursor {
    pub(crate) const fn new(head: Head) -> Self {
        match head.kind() {
            Kind::Empty => Self { single: None, descriptor: NONE, at: 0 },
            Kind::Single(only) => Self { single: Some(only), descriptor: NONE, at: 0 },
            Kind::Chain(first) => Self { single: None, descriptor: first, at: 0 },
        }
    }

    pub(crate) fn next(&mut self, lists: &Lists) -> Option<SpteRef> {
        if let Some(only) = self.single.take() {
            return Some(only);
        }
        while self.descriptor != NONE {
            let descriptor = &lists.store[self.descriptor as usize];
            if self.at < descriptor.len {
                self.at += 1;
                return Some(descriptor.entries[self.at - 1]);
            }
            (self.descriptor, self.at) = (descriptor.more, 0);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn entry(number: usize) -> SpteRef {
        SpteRef::new(u32::try_from(number / 512).unwrap(), number)
    }

    proptest! {
        #![proptest_config(memvirt_properties::cases(256))]

        #[test]
        fn a_list_is_a_set(kernel: bool, steps in prop::collection::vec((any::<bool>(), 0usize..60), 0..400)) {
            let kernel = if kernel { Kernel::V6_1 } else { Kernel::V6_12 };
            let (mut lists, mut head, mut set) = (Lists::new(kernel), Head::default(), BTreeSet::new());
            for (add, number) in steps {
                if add && set.insert(entry(number)) {
                    let counted = lists.add(&mut head, entry(number));
                    prop_assert!(counted < set.len());
                    prop_assert!(kernel == Kernel::V6_1 || counted == set.len() - 1);
                } else if !add {
                    prop_assert_eq!(lists.remove(&mut head, entry(number)), set.remove(&entry(number)));
                }
                prop_assert_eq!(lists.iter(head).collect::<BTreeSet<_>>(), set.clone());
                prop_assert_eq!(head.is_empty(), set.is_empty());
            }
            lists.clear(&mut head);
            prop_assert_eq!((lists.descriptors(), head.is_empty()), (0, true));
        }
    }

    #[test]
    fn fifteen_entries_take_two_descriptors_and_a_hole_is_filled_first_on_6_1() {
        for (kernel, counted) in [(Kernel::V6_1, 13), (Kernel::V6_12, 14)] {
            let (mut lists, mut head) = (Lists::new(kernel), Head::default());
            for number in 0..15 {
                assert_eq!(lists.add(&mut head, entry(number)), number);
            }
            assert_eq!(lists.descriptors(), 2);
            lists.remove(&mut head, entry(3));
            assert_eq!(lists.add(&mut head, entry(99)), counted);
        }
    }
}
