//! Why an operation on a tree was refused. None of them changes anything when it fails.
//!
//! Addresses are kept as plain numbers, so that one error type serves every format.

use memvirt_addr::{Level, PageSize};

use crate::Attrs;

/// Why [`Mapper::map`](crate::Mapper::map) was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The tables do not reach this address: not canonical for the number of levels, or too wide.
    #[error("{at:#x} lies outside what these tables translate: give an address canonical for their number of levels")]
    NonCanonical {
        /// The address.
        at: u64,
    },
    /// The format has no leaves of this size.
    #[error("the format has no {size} pages: map smaller ones")]
    UnsupportedSize {
        /// The size asked for.
        size: PageSize,
    },
    /// Address or frame is no multiple of the size.
    #[error("address {at:#x} or frame {frame:#x} is not aligned to {size}: align both or map smaller pages")]
    Misaligned {
        /// The address.
        at: u64,
        /// The frame's number.
        frame: u64,
        /// The size asked for.
        size: PageSize,
    },
    /// A page of this size is mapped there.
    #[error("{at:#x} is already mapped by a leaf at level {}: unmap or replace it first", level.number())]
    AlreadyMapped {
        /// The address.
        at: u64,
        /// The level of the leaf.
        level: Level,
    },
    /// A larger page covers the address.
    #[error("{at:#x} lies in a {size} page: split or unmap that first")]
    HugeInTheWay {
        /// The address.
        at: u64,
        /// The size of the page that covers it.
        size: PageSize,
    },
    /// A table, empty or not, stands where the leaf would go.
    #[error("a table for smaller pages stands at level {} for {at:#x}: prune or collapse it first", level.number())]
    TableInTheWay {
        /// The address.
        at: u64,
        /// The level of the entry that points to the table.
        level: Level,
    },
    /// There is no table that a leaf could take the place of.
    #[error("no table to collapse at {at:#x}: the entry of level {} is absent", level.number())]
    NothingToCollapse {
        /// The address.
        at: u64,
        /// The level of the absent entry.
        level: Level,
    },
    /// An entry on the way has reserved bits set.
    #[error("the entry of level {} for {at:#x} has reserved bits set", level.number())]
    Reserved {
        /// The address.
        at: u64,
        /// The level of the entry.
        level: Level,
    },
    /// The format would read an entry with these attributes as absent or reserved.
    #[error("an entry with {attrs:?} would be absent or reserved in this format")]
    BadAttrs {
        /// The attributes, of the leaf or of the tables.
        attrs: Attrs,
    },
    /// The allocator has no frame for a table.
    #[error("no frame is left for a table ({needed} needed)")]
    OutOfFrames {
        /// How many tables the operation had to make.
        needed: u8,
    },
}

/// Why an operation on an existing mapping was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LookupError {
    /// The tables do not reach this address: not canonical for the number of levels, or too wide.
    #[error("{at:#x} lies outside what these tables translate: give an address canonical for their number of levels")]
    NonCanonical {
        /// The address.
        at: u64,
    },
    /// Nothing is mapped there.
    #[error("nothing is mapped at {at:#x}: the entry of level {} is absent", level.number())]
    NotMapped {
        /// The address.
        at: u64,
        /// The level of the absent entry.
        level: Level,
    },
    /// An entry on the way has reserved bits set.
    #[error("the entry of level {} for {at:#x} has reserved bits set", level.number())]
    Reserved {
        /// The address.
        at: u64,
        /// The level of the entry.
        level: Level,
    },
    /// The format would read a leaf with these attributes as absent or reserved.
    #[error("a leaf with {attrs:?} would be absent or reserved in this format: unmap it instead")]
    BadAttrs {
        /// The attributes.
        attrs: Attrs,
    },
    /// The frame is no multiple of the page's size.
    #[error("frame {frame:#x} is not aligned to the {size} page it is to hold")]
    Misaligned {
        /// The frame's number.
        frame: u64,
        /// The size of the page.
        size: PageSize,
    },
}

/// Why [`Mapper::split`](crate::Mapper::split) was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// There is no leaf to split.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The table attributes of this mapper would read as absent or reserved.
    #[error("a table with {attrs:?} would be absent or reserved in this format")]
    BadAttrs {
        /// The attributes of the tables.
        attrs: Attrs,
    },
    /// The allocator has no frame for a table.
    #[error("no frame is left for a table ({needed} needed)")]
    OutOfFrames {
        /// How many tables the operation had to make.
        needed: u8,
    },
}
