//! The TLB equals the naive one on random shapes, streams, fills and flushes: same hits in the same order, same
//! counts, same contents after each operation.

use memvirt_addr::{Acc, AccessKind, Gva, Hfn, PageSize, Privilege};
use memvirt_tlb::{
    ArrayGeometry, CacheLevel, Entry, FracturedInvlpg, Geometry, GigabytePages, Inclusion, KeepGlobal, Perms, Ready,
    Replacement, Sizes, THROUGH, Tag, Tlb,
};
use proptest::prelude::*;

use crate::naive::NaiveTlb;

#[derive(Clone, Debug)]
enum Op {
    Run(Tag, Vec<Acc>),
    Lookup(Tag, Acc),
    Fill(Tag, Entry),
    FillAt(Tag, Gva, Entry),
    FlushPage(Tag, Gva),
    FlushTag(Tag, KeepGlobal),
    FlushVpid(u16, KeepGlobal),
    FlushAll,
}

fn tag() -> impl Strategy<Value = Tag> {
    // Neighbours and extremes, so that a bit leaking between the fields shows.
    (prop::sample::select(vec![0u16, 1, u16::MAX]), prop::sample::select(vec![0u16, 1, 0xfff]))
        .prop_map(|(vpid, pcid)| Tag::new(vpid, pcid))
}

/// Few enough addresses that operations meet: some in each of several 2M and 1G pages, in both halves of the space.
fn gva() -> impl Strategy<Value = Gva> {
    (prop::sample::select(vec![0u64, 1, 4, 1024, (1 << 27) - 1]), 0u64..4, 0u64..24, 0u64..4096)
        .prop_map(|(gib, mib2, page, offset)| Gva::new_truncate(gib << 30 | mib2 << 21 | page << 12 | offset))
}

fn acc() -> impl Strategy<Value = Acc> {
    let kind = prop::sample::select(vec![AccessKind::Read, AccessKind::Write, AccessKind::Fetch]);
    let privilege = prop::sample::select(vec![Privilege::User, Privilege::Supervisor]);
    (gva(), kind, privilege).prop_map(|(gva, kind, privilege)| Acc::new(gva, kind, privilege))
}

/// A run of accesses: scattered, or going back and forth between few, long enough to reach the hot path's blocks.
fn run() -> impl Strategy<Value = Vec<Acc>> {
    let few = (prop::collection::vec(acc(), 1..5), prop::collection::vec(any::<prop::sample::Index>(), 1..120));
    prop_oneof![
        prop::collection::vec(acc(), 1..40),
        few.prop_map(|(accs, order)| order.iter().map(|index| *index.get(&accs)).collect()),
    ]
}

fn size() -> impl Strategy<Value = PageSize> {
    prop_oneof![6 => Just(PageSize::Size4K), 3 => Just(PageSize::Size2M), 1 => Just(PageSize::Size1G)]
}

fn entry() -> impl Strategy<Value = Entry> {
    (gva(), 0u64..1 << 40, size(), size(), 0u8..8, prop::bool::weighted(0.2)).prop_map(
        |(gva, frame, size, guest, perms, global)| {
            let frame = Hfn::new(frame).align_down(size);
            let entry = Entry::new(gva.frame().align_down(size), frame, size, Perms::from_bits(perms));
            let entry = entry.with_guest_size(guest);
            if global { entry.with_global() } else { entry }
        },
    )
}

fn keep() -> impl Strategy<Value = KeepGlobal> {
    prop::sample::select(vec![KeepGlobal::Yes, KeepGlobal::No])
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => (tag(), run()).prop_map(|(t, run)| Op::Run(t, run)),
        5 => (tag(), acc()).prop_map(|(t, a)| Op::Lookup(t, a)),
        15 => (tag(), entry()).prop_map(|(t, e)| Op::Fill(t, e)),
        5 => (tag(), gva(), entry()).prop_map(|(t, g, e)| {
            Op::FillAt(t, g, Entry { page: g.frame().align_down(e.size), ..e })
        }),
        3 => (tag(), gva()).prop_map(|(t, g)| Op::FlushPage(t, g)),
        1 => (tag(), keep()).prop_map(|(t, k)| Op::FlushTag(t, k)),
        1 => (tag(), keep()).prop_map(|(t, k)| Op::FlushVpid(t.vpid(), k)),
        1 => Just(Op::FlushAll),
    ]
}

fn array(sizes: Sizes) -> impl Strategy<Value = ArrayGeometry> {
    (0u32..4, prop::sample::select(vec![1u32, 2, 3, 4, 5, 8, 12]))
        .prop_map(move |(sets, ways)| ArrayGeometry::new(sizes, ways << sets, ways))
}

/// The arrays of a level: one per size, or shared in any way, or absent.
fn level() -> impl Strategy<Value = Vec<ArrayGeometry>> {
    let sizes = |of: &[usize; 3], index: usize| {
        let mine = PageSize::ALL.iter().zip(of).filter(|(_, array)| **array == index);
        mine.fold(Sizes::NONE, |sizes, (size, _)| sizes.with(*size))
    };
    prop::array::uniform3(0usize..4).prop_flat_map(move |of| {
        let arrays: Vec<_> = (0..3).map(|i| sizes(&of, i)).filter(|s| *s != Sizes::NONE).map(array).collect();
        arrays
    })
}

/// A policy that every array of the level can have.
fn replacement(arrays: &[ArrayGeometry]) -> impl Strategy<Value = Replacement> + use<> {
    let trees = arrays.iter().all(|array| array.ways.is_power_of_two());
    prop_oneof![
        3 => Just(Replacement::Lru),
        1 => Just(Replacement::Fifo),
        1 => any::<u64>().prop_map(|seed| Replacement::Random { seed }),
        2 => Just(if trees { Replacement::TreePlru } else { Replacement::Lru }),
    ]
}

fn geometry() -> impl Strategy<Value = Geometry> {
    let levels = (level(), level()).prop_flat_map(|(l1, l2)| {
        let replacements = (replacement(&l1), replacement(&l2));
        (Just(l1), Just(l2), replacements)
    });
    levels.prop_map(|(l1, l2, (first, second))| {
        Geometry::new(&l1, &l2)
            .and_then(|geometry| geometry.with_replacement(CacheLevel::L1, first))
            .and_then(|geometry| geometry.with_replacement(CacheLevel::L2, second))
            .expect("each level is valid by construction")
    })
}

fn machine() -> impl Strategy<Value = (Geometry, [bool; 3])> {
    (geometry(), any::<[bool; 3]>())
}

fn both(geometry: &Geometry, [inclusive, drops_vpid, split]: [bool; 3]) -> (Tlb, NaiveTlb) {
    let inclusion = if inclusive { Inclusion::Inclusive } else { Inclusion::NonInclusive };
    let fractured = if drops_vpid { FracturedInvlpg::DropsVpid } else { FracturedInvlpg::DropsPage };
    let gigabyte = if split { GigabytePages::Split } else { GigabytePages::Whole };
    let mut naive = NaiveTlb::new(geometry).with_inclusion(inclusion);
    naive.fractured_drops_vpid = drops_vpid;
    naive.gigabyte = gigabyte;
    let geometry = geometry.clone().with_inclusion(inclusion).with_fractured_invlpg(fractured);
    (Tlb::new(&geometry.with_gigabyte_pages(gigabyte)), naive)
}

/// What a walk would cache for an access: a function of the address, so that both sides fill alike.
fn walked(acc: Acc) -> Entry {
    let page = acc.gva().frame();
    let size = PageSize::ALL[(page.number() as usize / 512) % 3];
    let perms = Perms::needed_by(acc).with(Perms::from_bits(page.number() as u8 & 7));
    let entry = Entry::new(page.align_down(size), Hfn::new(page.number() ^ 0x5a000).align_down(size), size, perms);
    if page.number().is_multiple_of(5) { entry.with_global() } else { entry }
}

fn check_run(tlb: &mut Tlb, naive: &mut NaiveTlb, tag: Tag, mut run: &[Acc]) -> Result<(), TestCaseError> {
    while !run.is_empty() {
        let done = tlb.hits(tag, run);
        for acc in &run[..done] {
            prop_assert!(naive.lookup(tag, *acc).is_some(), "{acc:?} hit, and misses in the naive TLB");
        }
        if let Some(missed) = run.get(done) {
            prop_assert_eq!(naive.lookup(tag, *missed), None);
            tlb.fill(tag, walked(*missed));
            naive.fill(tag, walked(*missed));
        }
        run = run.get(done + 1..).unwrap_or(&[]);
    }
    Ok(())
}

/// Runs of user accesses to small pages, more than any level holds, some often and some seldom.
fn few_pages() -> impl Strategy<Value = Vec<Acc>> {
    let page = prop_oneof![0u64..8, 0u64..128];
    let kind = prop::sample::select(vec![AccessKind::Read, AccessKind::Read, AccessKind::Write]);
    let acc = (page, kind).prop_map(|(page, kind)| Acc::user(Gva::new(page << 12), kind));
    prop::collection::vec(acc, 1..150)
}

/// What a walk would cache, for the pages of [`few_pages`]: now and then read-only, or global.
fn small_walked(acc: Acc) -> Entry {
    let page = acc.gva().frame();
    let perms = if page.number() % 16 == 3 { Perms::needed_by(acc) } else { Perms::ALL };
    let entry = Entry::new(page, Hfn::new(page.number() ^ 0x5a000), PageSize::Size4K, perms);
    if page.number() == 77 { entry.with_global() } else { entry }
}

fn check_through(tlb: &mut Tlb, naive: &mut NaiveTlb, tag: Tag, run: &[Acc]) -> Result<(), TestCaseError> {
    let known = |acc: &Acc| acc.gva().frame().number() % 32 != 9;
    let ready = |acc: &Acc| if known(acc) { Ready::new(tag, &small_walked(*acc)) } else { Ready::NONE };
    let mut run = run;
    while !run.is_empty() {
        let through = tlb.through(tag, run, &run.iter().map(ready).collect::<Vec<_>>());
        let (over, rest) = run.split_at(through.done);
        for (i, acc) in over.iter().enumerate() {
            let missed = naive.lookup(tag, *acc).is_none();
            prop_assert_eq!(through.filled >> i & 1 != 0, missed, "{:?}", acc);
            if missed {
                naive.fill(tag, small_walked(*acc));
            }
        }
        prop_assert!(through.done < 64 || through.done == THROUGH);
        // The first of the rest is left to the ordinary path.
        let first = &rest[..rest.len().min(1)];
        if tlb.hits(tag, first) == 0 && !first.is_empty() {
            prop_assert_eq!(naive.lookup(tag, first[0]), None);
            tlb.fill(tag, small_walked(first[0]));
            naive.fill(tag, small_walked(first[0]));
        } else if let [acc] = first {
            prop_assert!(naive.lookup(tag, *acc).is_some());
        }
        run = rest.get(1..).unwrap_or(&[]);
    }
    Ok(())
}

fn apply(tlb: &mut Tlb, naive: &mut NaiveTlb, op: &Op) -> Result<(), TestCaseError> {
    match *op {
        Op::Run(tag, ref run) => check_run(tlb, naive, tag, run)?,
        Op::Lookup(tag, acc) => prop_assert_eq!(tlb.lookup(tag, acc), naive.lookup(tag, acc)),
        Op::Fill(tag, entry) => {
            tlb.fill(tag, entry);
            naive.fill(tag, entry);
            // Where any level holds the size, the new entry is what is cached now.
            let probed = tlb.probe(tag, entry.page.base());
            prop_assert!(probed.is_none() || probed == Some(entry));
        }
        Op::FillAt(tag, gva, entry) => {
            tlb.fill_at(tag, gva, entry);
            naive.fill_at(tag, gva, entry);
            let frame = tlb.probe(tag, gva).map(|cached| cached.frame_of(gva));
            prop_assert!(frame.is_none() || frame == Some(entry.frame_of(gva)));
        }
        Op::FlushPage(tag, gva) => {
            tlb.flush_page(tag, gva);
            naive.flush_page(tag, gva);
            prop_assert_eq!(tlb.probe(tag, gva), None);
        }
        Op::FlushTag(tag, keep) => {
            tlb.flush_tag(tag, keep);
            naive.flush_tag(tag, keep);
        }
        Op::FlushVpid(vpid, keep) => {
            tlb.flush_vpid(vpid, keep);
            naive.flush_vpid(vpid, keep);
        }
        Op::FlushAll => {
            tlb.flush_all();
            naive.flush_all();
        }
    }
    Ok(())
}

fn contents(tlb: &Tlb) -> Vec<String> {
    sorted(tlb.entries().collect())
}

fn sorted(entries: Vec<(CacheLevel, Tag, Entry)>) -> Vec<String> {
    let mut lines: Vec<_> = entries
        .into_iter()
        // A global entry belongs to no PCID; under which it was filled is nobody's business.
        .map(|(level, tag, e)| if e.global { (level, Tag::new(tag.vpid(), 0), e) } else { (level, tag, e) })
        .map(|line| format!("{line:?}"))
        .collect();
    lines.sort();
    lines
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..memvirt_properties::cases(1500) })]

    #[test]
    fn equals_the_naive_tlb(
        (geometry, switches) in machine(),
        ops in prop::collection::vec(op(), 1..120),
        probes in prop::collection::vec((tag(), gva()), 8),
    ) {
        let (mut tlb, mut naive) = both(&geometry, switches);
        for op in &ops {
            apply(&mut tlb, &mut naive, op)?;
            prop_assert_eq!(tlb.stats(), naive.stats, "after {:?}", op);
            prop_assert_eq!(contents(&tlb), sorted(naive.entries()), "after {:?}", op);
            for (tag, gva) in &probes {
                prop_assert_eq!(tlb.probe(*tag, *gva), naive.probe(*tag, *gva));
            }
        }
    }

    /// The path of misses, on shapes and streams that it is made for, with some cases that it is not made for among them.
    #[test]
    fn going_through_equals_the_naive_tlb(
        (sets, ways, inclusive) in (0u32..3, prop_oneof![Just(8u32), 5..17u32], prop::bool::weighted(0.1)),
        runs in prop::collection::vec((any::<bool>(), few_pages(), prop::option::weighted(0.1, op())), 1..20),
    ) {
        let only = Sizes::only(PageSize::Size4K);
        let l1 = [ArrayGeometry::new(only, 4 << sets, 4), ArrayGeometry::new(Sizes::only(PageSize::Size2M), 8, 4)];
        let l2 = [ArrayGeometry::new(only.with(PageSize::Size2M), ways << sets, ways)];
        let geometry = Geometry::new(&l1, &l2).expect("valid by construction");
        let (mut tlb, mut naive) = both(&geometry, [inclusive, false, false]);
        for (second, run, then) in runs {
            let tag = Tag::new(1, u16::from(second));
            check_through(&mut tlb, &mut naive, tag, &run)?;
            if let Some(op) = then {
                apply(&mut tlb, &mut naive, &op)?;
            }
            prop_assert_eq!(tlb.stats(), naive.stats);
            prop_assert_eq!(contents(&tlb), sorted(naive.entries()));
        }
    }

    /// The hot path and the single lookup are the same thing.
    #[test]
    fn hits_equals_one_lookup_each(
        geometry in geometry(),
        fills in prop::collection::vec(entry(), 1..40),
        run in run(),
        tag in tag(),
    ) {
        let (mut fast, mut slow) = (Tlb::new(&geometry), Tlb::new(&geometry));
        for entry in &fills {
            fast.fill(tag, *entry);
            slow.fill(tag, *entry);
        }
        let done = fast.hits(tag, &run);
        let expected = run.iter().take_while(|acc| slow.lookup(tag, **acc).is_some()).count();
        prop_assert_eq!(done, expected);
        prop_assert_eq!(fast.stats(), slow.stats());
        prop_assert_eq!(contents(&fast), contents(&slow));
    }
}
