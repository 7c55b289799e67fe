//! The words of a command that makes the same results elsewhere.

use std::path::Path;

use memvirt_machine::MachineSpec;

/// A path as given where it is relative; the name of the file alone where it is absolute. A word for a shell.
#[must_use]
pub fn portable(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    let shown = if path.is_absolute() { path.file_name().map_or(path, Path::new) } else { path };
    quoted(&shown.display().to_string())
}

/// A word for a shell.
#[must_use]
pub fn quoted(text: &str) -> String {
    let plain = !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "-_./:+,@=".contains(c));
    if plain { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// What stands behind `--machine`: a built-in name, or the file that the machine was loaded from.
#[must_use]
pub fn of_machine(machine: &MachineSpec) -> String {
    machine.path().map_or_else(|| quoted(&machine.name), portable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_named_by_what_it_was_loaded_from() {
        assert_eq!(of_machine(&MachineSpec::load("zen4").unwrap()), "zen4");
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../machine/models/zen4.toml");
        assert_eq!(of_machine(&MachineSpec::load(file).unwrap()), "zen4.toml");
    }

    #[test]
    fn folders_of_this_computer_stay_out_and_names_are_one_word() {
        assert_eq!(portable("/home/me/work load.toml"), "'work load.toml'");
        assert_eq!(portable("models/zipf.toml"), "models/zipf.toml");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted(""), "''");
    }
}
