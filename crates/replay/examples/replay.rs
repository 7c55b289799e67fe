//! Replays a recording: `replay FILE PLATFORM [6.1|6.12]`; without arguments, the first rows of one on every platform.

use std::path::Path;

use memvirt_replay::{Recording, RecordingError, Tolerance, Under, Watch, replay};
use memvirt_shadow::kvm::Kernel;

const ROWS: &str = "\
## FUZZ seed=1 n=3
0,INVLPG,800020c000,0,1,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0,0,0,0
1,PTE,ffff888000112030,41a061,1,1,1,0,0,0,0,0,0,0,0,0,3,0,8,0,0,0,0,0
2,RD,800000c000,0,1,1,1,0,0,0,0,0,0,0,0,0,3,0,8,0,0,0,0,40c000
";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [file, under, kernel @ ..] = &args[..] {
        let kernel: Kernel = kernel.first().map_or(Ok(Kernel::V6_1), |kernel| kernel.parse())?;
        let under = under.parse::<Under>()?.with_kernel(kernel);
        let open = || -> Result<_, RecordingError> { Recording::open(Path::new(file)) };
        print!("{}", replay(open()?, under, under.tolerance(), Watch::On));
        let (start, fast) = (std::time::Instant::now(), replay(open()?, under, under.tolerance(), Watch::Off));
        println!("without the oracle: {:.0} rows a second", fast.rows as f64 / start.elapsed().as_secs_f64());
        return Ok(());
    }
    for under in Under::all(Kernel::V6_1) {
        let report = replay(Recording::new("three rows", ROWS.as_bytes()), under, Tolerance::Strict, Watch::On);
        println!("{under}: {} exits, {} rows differ, {} broken", report.exits, report.mismatching_rows, report.broken);
    }
    Ok(())
}
