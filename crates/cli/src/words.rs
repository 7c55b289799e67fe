//! The words of a command that makes the same results elsewhere.

use std::path::Path;

/// A path as given where it is relative; the name of the file alone where it is absolute. A word for a shell.
pub(crate) fn portable(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    let shown = if path.is_absolute() { path.file_name().map_or(path, Path::new) } else { path };
    quoted(&shown.display().to_string())
}

/// A word for a shell.
pub(crate) fn quoted(text: &str) -> String {
    let plain = !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "-_./:+,@=".contains(c));
    if plain { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_this_computer_stay_out_and_names_are_one_word() {
        assert_eq!(portable("/home/me/work load.toml"), "'work load.toml'");
        assert_eq!(portable("models/zipf.toml"), "models/zipf.toml");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted(""), "''");
    }
}
