//! Prints the first line of a text file, or why it is none: `cargo run --example head -- FILE`.

use std::path::PathBuf;

fn main() {
    let path = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("Cargo.toml"), PathBuf::from);
    match memvirt_textfile::read(&path) {
        Ok(text) => println!("{}", text.lines().next().unwrap_or_default()),
        Err(error) => println!("{}: {error}", path.display()),
    }
}
