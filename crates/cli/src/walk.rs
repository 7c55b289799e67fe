//! `memvirt walk`: every memory reference of one page walk.

use memvirt_lab::walk::{ColdWalk, Levels, NestedFormat, Tables, WalkSpec, cold_walk};

use crate::args::{Depth, Nested, TreeFormat, WalkArgs, WalkRegime};
use crate::failure::Status;
use crate::output::{print, render, table};

pub(crate) fn walk(args: &WalkArgs) -> anyhow::Result<Status> {
    let spec = WalkSpec {
        tables: tables(args)?,
        guest_page: args.guest_page,
        host_page: args.host_page,
        address: args.address,
    };
    let walk = cold_walk(&spec)?;
    print(&match args.format {
        TreeFormat::Json => serde_json::to_string_pretty(&walk)? + "\n",
        TreeFormat::Table => people(&walk),
    })?;
    Ok(Status::Fine)
}

/// What the flags say together.
fn tables(args: &WalkArgs) -> anyhow::Result<Tables> {
    let host = args.host.map(levels);
    let regime = args.regime.unwrap_or(if host == Some(None) { WalkRegime::Native } else { WalkRegime::Nested });
    match (regime, levels(args.guest), host.flatten()) {
        (WalkRegime::Nested, guest, _) => {
            let Some(host) = host.unwrap_or(Some(Levels::Four)) else {
                anyhow::bail!("--regime nested needs nested tables; give --host 4 or --host 5");
            };
            let format = match args.nested_format {
                Nested::Ept => NestedFormat::Ept,
                Nested::Npt => NestedFormat::Npt,
            };
            Ok(Tables::Nested { guest, host, format })
        }
        (_, _, Some(_)) => {
            anyhow::bail!("--regime native and shadow have one dimension; leave --host out, or --host none")
        }
        (_, None, _) => anyhow::bail!("--guest none leaves nothing to walk without nested tables; add --host 4"),
        (WalkRegime::Native, Some(guest), None) => Ok(Tables::Native(guest)),
        (WalkRegime::Shadow, Some(guest), None) => Ok(Tables::Shadow(guest)),
    }
}

fn levels(depth: Depth) -> Option<Levels> {
    match depth {
        Depth::None => None,
        Depth::Four => Some(Levels::Four),
        Depth::Five => Some(Levels::Five),
    }
}

fn people(walk: &ColdWalk) -> String {
    let mut grid = table([">step", "tables", "for", ">level", "table", ">index", ">address", "entry", "which says"]);
    for reference in &walk.references {
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
    let levels = |n: u8, whose: &str| if n == 0 { String::new() } else { format!(", {n} {whose} levels") };
    format!(
        "{} walk for {}{}{}, caches off\n{}{} lies at host-physical {}\ntotal: {} references\n",
        walk.regime,
        walk.guest_virtual,
        levels(walk.guest_levels, if walk.regime == "shadow" { "shadow" } else { "guest" }),
        levels(walk.host_levels, "nested"),
        render(&grid),
        walk.guest_virtual,
        walk.host_physical,
        walk.total
    )
}
