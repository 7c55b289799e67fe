//! `memvirt walk`: every memory reference of one page walk.

use memvirt_addr::PageSize;
use memvirt_lab::walk::{
    CacheState, GuestPaging, HostLevels, NestedFormat, RecordedWalk, Segments, Tables, WalkSpec, record_walk, svg,
};
use memvirt_machine::MachineSpec;

use crate::args::{Caches, Guest, HostDepth, Nested, WalkArgs, WalkFormat, WalkRegime};
use crate::failure::Status;
use crate::output::{print, render, table};

pub(crate) fn walk(args: &WalkArgs) -> anyhow::Result<Status> {
    let machine = MachineSpec::load(&args.machine)?;
    let spec = WalkSpec {
        tables: tables(args)?,
        guest_page: args.guest_page.unwrap_or(PageSize::Size4K),
        host_page: args.host_page.unwrap_or(PageSize::Size4K),
        address: args.address,
        caches: caches(args, &machine)?,
    };
    let mut walk = record_walk(&spec)?;
    walk.machine = (args.caches != Caches::Off).then_some(machine.name);
    print(&match args.format {
        WalkFormat::Json => serde_json::to_string_pretty(&walk)? + "\n",
        WalkFormat::Table => people(&walk),
        WalkFormat::Svg => svg::draw(&walk),
    })?;
    Ok(Status::Fine)
}

/// What the flags say together.
fn tables(args: &WalkArgs) -> anyhow::Result<Tables> {
    let regime = args.regime.unwrap_or(match args.host {
        Some(HostDepth::None) => WalkRegime::Native,
        _ => WalkRegime::Nested,
    });
    check_pages(args, regime)?;
    if args.nested_format.is_some() && regime != WalkRegime::Nested {
        anyhow::bail!("--nested-format is of the tables of --regime nested; leave it out");
    }
    let guest = match args.guest {
        Guest::Four => Some(GuestPaging::Four),
        Guest::Five => Some(GuestPaging::Five),
        Guest::Pae => Some(GuestPaging::Pae),
        Guest::None => None,
    };
    let Some(guest) = guest else {
        if regime == WalkRegime::Nested {
            return nested(args, None);
        }
        anyhow::bail!("--guest none leaves nothing to walk without nested tables; add --regime nested --host 4");
    };
    // What is modelled for the usual tables only.
    let usual = guest == GuestPaging::Four && matches!(args.host, None | Some(HostDepth::Four));
    match (regime, args.host) {
        (WalkRegime::Agile(nested), _) if usual => Ok(Tables::Agile(nested)),
        (WalkRegime::Agile(_), _) => {
            anyhow::bail!("agile paging is modelled for 4 guest levels on 4 nested ones; leave --guest and --host out")
        }
        (WalkRegime::DirectSegment(_), Some(_)) => {
            anyhow::bail!("a direct segment decides itself what is walked of the host's tables; leave --host out")
        }
        (WalkRegime::DirectSegment(segments), None) if usual => Ok(Tables::DirectSegment(segments)),
        (WalkRegime::DirectSegment(_), None) => {
            anyhow::bail!("direct segments are modelled for 4 guest levels; leave --guest out")
        }
        (WalkRegime::Register, _) if usual => Ok(Tables::Register),
        (WalkRegime::Register, _) => anyhow::bail!(
            "registers that name leaf tables are modelled for 4 guest levels on 4 nested ones; leave --guest and --host out"
        ),
        (WalkRegime::Native, None | Some(HostDepth::None)) => Ok(Tables::Native(guest)),
        (WalkRegime::Shadow, None | Some(HostDepth::None)) => Ok(Tables::Shadow(guest)),
        (WalkRegime::Flat, None) => Ok(Tables::Flat(guest)),
        (WalkRegime::Flat, Some(_)) => anyhow::bail!("a flat nested table has no levels; leave --host out"),
        (WalkRegime::Native | WalkRegime::Shadow, Some(_)) => {
            anyhow::bail!("--regime native and shadow have one dimension; leave --host out, or --host none")
        }
        (WalkRegime::Nested, _) => nested(args, Some(guest)),
    }
}

/// Refuses the size of a page that there is not: it would seem to have been looked at.
fn check_pages(args: &WalkArgs, regime: WalkRegime) -> anyhow::Result<()> {
    if args.guest_page.is_some() && args.guest == Guest::None {
        anyhow::bail!("a guest that does not page has no pages; leave --guest-page out");
    }
    if args.host_page.is_some() {
        match regime {
            WalkRegime::Native => {
                anyhow::bail!("a machine without a hypervisor has no host pages; leave --host-page out")
            }
            WalkRegime::DirectSegment(Segments::Vmm | Segments::Dual) => {
                anyhow::bail!("a direct segment of the host has no pages; leave --host-page out")
            }
            _ => {}
        }
    }
    Ok(())
}

fn nested(args: &WalkArgs, guest: Option<GuestPaging>) -> anyhow::Result<Tables> {
    let host = match args.host {
        None | Some(HostDepth::Four) => HostLevels::Four,
        Some(HostDepth::Five) => HostLevels::Five,
        Some(HostDepth::None) if guest.is_none() => {
            anyhow::bail!("--guest none and --host none leave nothing to walk; give --host 4 or --host 5")
        }
        Some(HostDepth::None) => anyhow::bail!("--regime nested needs nested tables; give --host 4 or --host 5"),
    };
    let format = match args.nested_format {
        None | Some(Nested::Ept) => NestedFormat::Ept,
        Some(Nested::Npt) => NestedFormat::Npt,
    };
    Ok(Tables::Nested { guest, host, format })
}

fn caches(args: &WalkArgs, machine: &MachineSpec) -> anyhow::Result<CacheState> {
    let geometry = machine.mmu_geometry()?;
    Ok(match args.caches {
        Caches::Off => CacheState::Off,
        Caches::Cold => CacheState::Cold(geometry),
        Caches::Warm => CacheState::Warm(geometry),
    })
}

fn people(walk: &RecordedWalk) -> String {
    let mut grid = table([">step", "tables", "for", ">level", "table", ">index", ">address", "entry", "which says"]);
    let mut hits = walk.cache_hits.iter().peekable();
    for step in 1..=walk.total + 1 {
        while let Some(hit) = hits.next_if(|hit| hit.before_step == step) {
            let known = format!("known to the cache: {}", hit.cache);
            grid.add_row(["", "cache", &hit.serves, "", "", "", "", "", &known]);
        }
        let Some(reference) = walk.references.get(step - 1) else { continue };
        grid.add_row([
            reference.step.to_string(),
            reference.dimension.to_owned(),
            reference.serves.clone(),
            reference.level.to_string(),
            reference.table.to_owned(),
            reference.index.to_string(),
            reference.address.clone(),
            reference.entry.clone(),
            reference.says.clone(),
        ]);
    }
    head(walk) + &render(&grid) + &foot(walk)
}

fn head(walk: &RecordedWalk) -> String {
    let levels = |n: u8, whose: &str| match n {
        0 => String::new(),
        1 => format!(", 1 {whose} level"),
        _ => format!(", {n} {whose} levels"),
    };
    format!(
        "{} walk for {}{}{}, caches {}{}\n",
        walk.regime,
        walk.guest_virtual,
        levels(walk.guest_levels, if walk.regime == "shadow" { "shadow" } else { "guest" }),
        levels(walk.host_levels, "nested"),
        walk.caches,
        walk.machine.as_ref().map_or_else(String::new, |machine| format!(", those of {machine}"))
    )
}

fn foot(walk: &RecordedWalk) -> String {
    let mut text = format!("{} lies at host-physical {}\n", walk.guest_virtual, walk.host_physical);
    if walk.at_cr3_load > 0 {
        let loaded =
            format!("the load of CR3 had read the four PDPTEs, {} references, not counted here", walk.at_cr3_load);
        text += &format!("{loaded}\n");
    }
    text + &format!("total: {} references\n", walk.total)
}
