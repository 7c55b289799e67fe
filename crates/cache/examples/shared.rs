//! Page-table lines and data compete: a table that fits the second level stays there until data streams through.
//!
//! `cargo run -p memvirt-cache --example shared`

use memvirt_addr::{Hpa, Level};
use memvirt_cache::{CacheHierarchy, CoreCaches, Purpose, Served, SharedCache};

fn main() {
    let spec = CacheHierarchy::example();
    let (mut core, mut shared) = (CoreCaches::new(&spec), SharedCache::new(&spec));
    let table = |core: &mut CoreCaches, shared: &mut SharedCache| {
        for entry in (0..512 << 10).step_by(8) {
            core.access(shared, Hpa::new(entry), Purpose::guest(Level::L2));
        }
    };
    let report = |what: &str, core: &mut CoreCaches| {
        let served = Served::ALL.map(|level| core.traffic().of(Purpose::guest(Level::L2), level));
        println!("{what:24} L1 {:6}  L2 {:6}  LLC {:6}  DRAM {:6}", served[0], served[1], served[2], served[3]);
        core.reset_traffic();
    };

    table(&mut core, &mut shared);
    report("cold", &mut core);
    table(&mut core, &mut shared);
    report("again", &mut core);
    for line in (1 << 30..(1 << 30) + (4 << 20)).step_by(64) {
        core.access(&mut shared, Hpa::new(line), Purpose::Data);
    }
    table(&mut core, &mut shared);
    report("after 4 MiB of data", &mut core);
}
