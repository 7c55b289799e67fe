//! Packs a recording: `cargo run --release -p memvirt-trace --example pack -- RECORDING OUT.mvt [pages|lines]`.

use std::fs::File;
use std::io::BufWriter;

use memvirt_mvt::Density;
use memvirt_trace::{Reading, Recording, convert};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (Some(input), Some(output)) = (arguments.first(), arguments.get(1)) else {
        return Err("usage: pack RECORDING OUT.mvt [pages|lines]".into());
    };
    let density = if arguments.get(2).is_some_and(|word| word == "lines") { Density::Lines } else { Density::Pages };
    let recording = Recording::open(input, Reading::default())?;
    let file = BufWriter::new(File::create(output)?);
    let (converted, _) = convert(recording, file, output, density, &mut |_| {})?;
    println!("{:?}", converted.written);
    if let Some(error) = converted.broken_off {
        println!("the recording breaks off: {error}");
    }
    Ok(())
}
