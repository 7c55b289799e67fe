//! Walk caches for tests: those of a machine that exists, and any at all.

use memvirt_addr::Level;
use memvirt_platform::MmuGeometry;
use memvirt_tlb::{Replacement, Shape, WalkGeometry};
use proptest::prelude::*;

/// The walk caches of Skylake server as the artifacts of the literature have them (DMT, ASPLOS 2024): 2, 4 and 32 entries for
/// the three upper levels, one set for each dimension; and a nested TLB of 16 entries (estimate).
///
/// # Panics
///
/// Never: these shapes can be.
#[must_use]
pub fn skylake() -> MmuGeometry {
    let shape = |entries, ways| Shape::new(entries, ways).unwrap_or_else(|error| unreachable!("{error}"));
    let dimension =
        WalkGeometry::NONE.with(Level::L4, shape(2, 2)).with(Level::L3, shape(4, 4)).with(Level::L2, shape(32, 4));
    MmuGeometry { guest: dimension, host: dimension, nested_tlb: Some(shape(16, 4)) }
}

/// A cache of any shape and replacement, small enough to be full in a test, or none.
fn shape() -> impl Strategy<Value = Option<Shape>> {
    let shape = (0..3u32, 1..5u32, 0..4u8, any::<u64>()).prop_map(|(sets, ways, policy, seed)| {
        let replacement = match policy {
            0 => Replacement::Fifo,
            1 => Replacement::Random { seed },
            2 if ways.is_power_of_two() => Replacement::TreePlru,
            _ => Replacement::Lru,
        };
        Shape::new(ways << sets, ways).and_then(|shape| shape.with_replacement(replacement)).ok()
    });
    prop_oneof![1 => Just(None), 4 => shape]
}

fn dimension() -> impl Strategy<Value = WalkGeometry> {
    prop::array::uniform4(shape()).prop_map(|shapes| {
        let levels = [Level::L2, Level::L3, Level::L4, Level::L5].into_iter().zip(shapes);
        levels.fold(WalkGeometry::NONE, |geometry, (level, shape)| match shape {
            Some(shape) => geometry.with(level, shape),
            None => geometry,
        })
    })
}

/// Walk caches of any shape.
pub fn any_caches() -> impl Strategy<Value = MmuGeometry> {
    (dimension(), dimension(), shape()).prop_map(|(guest, host, nested_tlb)| MmuGeometry { guest, host, nested_tlb })
}
