//! How things end: exit statuses, and errors as one line each.

use std::process::ExitCode;

/// How a command ended that could be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// All is well.
    Fine,
    /// A check failed: a regime did what no hardware could.
    CheckFailed,
    /// The input is at fault; its error has been printed.
    BadInput,
}

/// Prints an error and gives the exit status for it.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("memvirt: error: {}", line(error));
    Status::BadInput.into()
}

/// An error and its causes on one line. Causes that the error itself already names are left out.
pub(crate) fn line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Prints a remark that is no result.
pub(crate) fn warn(text: &str) {
    eprintln!("memvirt: {text}");
}

#[cfg(test)]
mod tests {
    use super::line;
    use anyhow::anyhow;

    #[test]
    fn causes_stand_once_and_on_one_line() {
        let error = anyhow!("no such file").context("cannot open x: no such file").context("outer\n  words");
        assert_eq!(line(&error), "outer words: cannot open x: no such file");
    }
}
