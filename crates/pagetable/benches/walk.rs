//! Walks over a million random 4 KiB pages, over a few hot ones, and mapping them: what a simulated TLB miss costs at most.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use memvirt_addr::{Addr, Frame, PageSize, Space};
use memvirt_pagetable::{
    Attrs, Ept4, Format, FramePool, Guest4, Mapper, PhysMem, TableAttrs, TableMem, Tree, Walked, walk,
};
use std::hint::black_box;

const PAGES: u64 = 1 << 20;
const LEAF: Attrs = Attrs::RWX.union(Attrs::USER).union(Attrs::WRITE_BACK).union(Attrs::ACCESSED);

/// A bijection on page numbers below [`PAGES`]: odd multiplier, then a xor shift, both modulo a power of two.
const fn scatter(page: u64) -> u64 {
    let mixed = page.wrapping_mul(0x9e37_79b9_7f4a_7c15) & (PAGES - 1);
    (mixed ^ (mixed >> 10)).wrapping_mul(0x2545_f491_4f6c_dd1d) & (PAGES - 1)
}

fn addresses<S: Space>(count: u64, of: u64) -> Vec<Addr<S>> {
    (0..count).map(|page| Addr::new_truncate(((scatter(page) % of) << 12) | (8 * (page & 511)))).collect()
}

fn build<F: Format>(mem: &mut PhysMem<F::Out>) -> Frame<F::Out> {
    let mut pool = FramePool::new(Frame::new(1), 4096);
    let mut mapper = Mapper::<F, _>::create(mem, &mut pool, TableAttrs::USER).expect("the pool is large enough");
    for page in 0..PAGES {
        let at = Addr::new_truncate(page << 12);
        mapper
            .map(at, Frame::new(PAGES + scatter(page)), PageSize::Size4K, LEAF, &mut pool)
            .expect("nothing is mapped");
    }
    mapper.root()
}

fn translate_all<F: Format, M: TableMem<F::Out>>(tree: Tree<'_, F, M>, at: &[Addr<F::In>]) -> u64 {
    at.iter().filter_map(|at| tree.translate(*at)).fold(0, |sum, (at, ..)| sum ^ at.as_u64())
}

fn walk_all<F: Format, M: TableMem<F::Out>>(mem: &M, root: Frame<F::Out>, at: &[Addr<F::In>]) -> u64 {
    at.iter().fold(0, |sum, at| {
        let path = walk::<F, M>(mem, root, *at);
        let Walked::Mapped { frame, .. } = path.end else { return sum };
        sum ^ frame.number() ^ u64::from(path.perms.bits()) ^ path.missing_accessed().count() as u64
    })
}

fn format<F: Format>(c: &mut Criterion, name: &str) {
    let mut mem = PhysMem::new(2 * PAGES);
    let root = build::<F>(&mut mem);
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(PAGES)).sample_size(10);
    for (what, of) in [("1M random pages", PAGES), ("64 hot pages", 64)] {
        let at = addresses::<F::In>(PAGES, of);
        group.bench_function(format!("translate, {what}"), |b| {
            b.iter(|| translate_all(Tree::<F, _>::new(&mem, root), black_box(&at)));
        });
        group.bench_function(format!("walk, {what}"), |b| b.iter(|| walk_all::<F, _>(&mem, root, black_box(&at))));
    }
    group.bench_function("map 1M pages", |b| b.iter(|| build::<F>(&mut PhysMem::new(2 * PAGES))));
    group.bench_function("count 1M pages", |b| b.iter(|| Tree::<F, _>::new(&mem, root).count()));
    group.finish();
}

fn benches(c: &mut Criterion) {
    format::<Guest4>(c, "x86-64");
    format::<Ept4>(c, "EPT");
}

criterion_group!(walks, benches);
criterion_main!(walks);
