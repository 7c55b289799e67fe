//! The axes that a grid may have: the flags of `memvirt run`, what each accepts, and what it sets.

use std::ffi::OsStr;
use std::num::NonZeroU32;
use std::path::Path;

use memvirt_addr::PageSize;
use memvirt_machine::{MachineSpec, RegimeKind};
use memvirt_workload::{Measured, Workload};

use super::point::Point;
use super::value::Value;
use crate::several::Vcpus;
use crate::switches::MEMORY_BYTES;

/// One kind of axis.
pub(super) struct Axis {
    pub(super) name: &'static str,
    accepts: &'static str,
    set: fn(&mut Point, &Value) -> Option<()>,
    /// Says more than `accepts` where a value is refused.
    why: Option<fn(&Value) -> Option<String>>,
}

impl Axis {
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|axis| axis.name == name)
    }

    /// Sets a point to a value of the axis.
    pub(super) fn set(&self, point: &mut Point, value: &Value) -> Result<(), String> {
        (self.set)(point, value).ok_or_else(|| match self.why.and_then(|why| why(value)) {
            Some(why) => why,
            None => format!("`{value}`: expected {}", self.accepts),
        })
    }
}

const fn axis(name: &'static str, accepts: &'static str, set: fn(&mut Point, &Value) -> Option<()>) -> Axis {
    Axis { name, accepts, set, why: None }
}

/// A path that means the same on another machine.
fn portable(value: &Value) -> Option<String> {
    let text = value.text()?;
    (!text.is_empty() && !Path::new(text).is_absolute() && !text.contains(['\n', '\r'])).then(|| text.to_owned())
}

fn page(value: &Value) -> Option<PageSize> {
    value.text()?.parse().ok()
}

/// Whether the workload's file says that it is measured in its steady state. Workloads are the slowest axis: it is known by now.
fn declared_steady(point: &Point) -> bool {
    let workload = point.workload.as_ref().and_then(|name| Workload::resolve(OsStr::new(name)).ok());
    workload.is_some_and(|workload| workload.measured() == Measured::Steady)
}

const ON: &str = "true or false (or \"on\" or \"off\")";
const RELATIVE: &str = "a name, or a path relative to where the plan is run";

/// All axes, the slowest first: of two rows beside each other, the regimes differ.
pub(super) static ALL: &[Axis] = &[
    Axis {
        name: "workload",
        accepts: RELATIVE,
        set: |point, value| {
            let name = portable(value)?;
            Workload::resolve(OsStr::new(&name)).ok()?;
            point.workload = Some(name);
            Some(())
        },
        why: Some(|value| Workload::resolve(OsStr::new(&portable(value)?)).err().map(|error| error.to_string())),
    },
    axis("trace", "a path relative to where the plan is run", |point, value| {
        point.trace = Some(portable(value)?);
        Some(())
    }),
    axis("memory_calls", ON, |point, value| value.switch().map(|on| point.memory_calls = Some(on))),
    axis("quantum", "a number of instructions from 1000", |point, value| {
        value.count().filter(|n| *n >= 1000).map(|n| point.quantum = Some(n))
    }),
    axis("scale", "a number above 0 that is finite, as in 0.1", |point, value| {
        value.fraction().filter(|x| *x > 0.0 && x.is_finite()).map(|x| point.scale = Some(x))
    }),
    axis("footprint", "a size, as in \"512MiB\"", |point, value| value.bytes().map(|n| point.footprint = Some(n))),
    Axis {
        name: "machine",
        accepts: RELATIVE,
        set: |point, value| {
            let name = portable(value)?;
            MachineSpec::load(&name).ok()?;
            point.machine = name;
            Some(())
        },
        why: Some(|value| MachineSpec::load(portable(value)?).err().map(|error| error.to_string())),
    },
    axis("vcpus", "a number of vCPUs from 1 to 256", |point, value| {
        let accepted = value.count().and_then(|n| u16::try_from(n).ok()).filter(|n| (1..=Vcpus::MOST).contains(n));
        accepted.map(|count| point.vcpus.count = count)
    }),
    axis(
        "sharing",
        "\"tenants\" (each vCPU runs processes of its own) or \"threads\" (of one process)",
        |point, value| value.text()?.parse().ok().map(|sharing| point.vcpus.sharing = sharing),
    ),
    axis("guest_page", "\"4K\" or \"2M\"", |point, value| {
        page(value).filter(|size| *size != PageSize::Size1G).map(|size| point.overrides.guest_page = Some(size))
    }),
    axis("host_page", "\"4K\", \"2M\" or \"1G\"", |point, value| {
        page(value).map(|size| point.overrides.host_page = Some(size))
    }),
    axis("direct_map_page", "\"4K\", \"2M\" or \"1G\"", |point, value| {
        page(value).map(|size| point.overrides.direct_map_page = Some(size))
    }),
    axis("kpti", ON, |point, value| value.switch().map(|on| point.overrides.kpti = Some(on))),
    axis("pcid", ON, |point, value| value.switch().map(|on| point.overrides.pcid = Some(on))),
    axis("tags", ON, |point, value| value.switch().map(|on| point.overrides.tags = Some(on))),
    axis("ept_ad", ON, |point, value| value.switch().map(|on| point.overrides.ept_ad = Some(on))),
    axis("walk_caches", ON, |point, value| value.switch().map(|on| point.overrides.walk_caches = Some(on))),
    axis("host_frames", "\"contiguous\" or \"scattered\"", |point, value| {
        value.text()?.parse().ok().map(|order| point.overrides.host_frames = Some(order))
    }),
    axis("table_frames", "\"mixed\" or \"grouped\"", |point, value| {
        value.text()?.parse().ok().map(|tables| point.overrides.table_frames = Some(tables))
    }),
    axis("tick", "0 (no ticks) or a number of instructions from 1000", |point, value| {
        let accepted = value.count().filter(|n| *n == 0 || *n >= 1000);
        accepted.map(|n| point.overrides.tick_instructions = Some(n))
    }),
    axis("flush_ceiling", "a whole number of pages from 0", |point, value| {
        value.count().map(|n| point.overrides.flush_ceiling = Some(n))
    }),
    axis("memory", "64MiB to 2TiB in whole 2 MiB, as in \"8GiB\"", |point, value| {
        let accepted = value.bytes().filter(|n| MEMORY_BYTES.contains(n) && n.is_multiple_of(2 << 20));
        accepted.map(|n| point.overrides.memory_bytes = Some(n))
    }),
    axis("mode", "\"counts\" or \"cycles\"", |point, value| {
        value.text()?.parse().ok().map(|mode| point.measure.mode = mode)
    }),
    axis("walkers", "a number of page walks from 1 to 64", |point, value| {
        let walkers = value.count().filter(|n| *n <= 64).and_then(|n| u32::try_from(n).ok()).and_then(NonZeroU32::new);
        walkers.map(|walkers| point.measure.walkers = walkers)
    }),
    axis("prefault", ON, |point, value| value.switch().map(|on| point.measure.prefault = on)),
    axis("warm_up", "a whole number of accesses from 0", |point, value| {
        value.count().map(|n| point.measure.warm_up_accesses = n)
    }),
    axis(
        "steady",
        "true, false, or \"declared\": where the workload's file says `measure = \"steady\"`",
        |point, value| {
            point.steady = match value.text() {
                Some("declared") => declared_steady(point),
                _ => value.switch()?,
            };
            Some(())
        },
    ),
    axis("check", ON, |point, value| value.switch().map(|on| point.check = on)),
    axis("seed", "a whole number from 0", |point, value| value.count().map(|n| point.seed = n)),
    Axis {
        name: "regime",
        accepts: "a name of `memvirt regimes`",
        set: |point, value| {
            point.regime = value.text()?.parse().ok()?;
            Some(())
        },
        why: Some(|value| value.text()?.parse::<RegimeKind>().err()),
    },
];

/// The names, for an error.
pub(super) fn names() -> String {
    ALL.iter().map(|axis| axis.name).chain(["set"]).collect::<Vec<_>>().join(", ")
}
