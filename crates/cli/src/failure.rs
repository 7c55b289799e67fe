//! How things end: exit statuses, and errors as one line each.

use std::process::ExitCode;

use clap::error::ErrorKind;

use crate::output::visible;

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
    eprintln!("memvirt: error: {}", visible(&line(error)));
    Status::BadInput.into()
}

/// Prints what is wrong with a command line, or the help that it asks for, and gives the exit status.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    if error.kind() == ErrorKind::ValueValidation {
        eprint!("{}", visible(&plain_bounds(&error.render().to_string())));
    } else {
        // Where the terminal has gone, nobody reads it.
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// What the parser of the command line says of numbers, in the words of everybody else.
fn plain_bounds(text: &str) -> String {
    // The range is the last word of its line.
    let lines = text.split('\n').map(|line| match line.rsplit_once(" is not in ") {
        Some((said, range)) => format!("{said} is not {}", in_words(range)),
        None => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n").replace("number too large to fit in target type", "the number is too large")
}

/// `0..=65535` as words.
fn in_words(word: &str) -> String {
    let parts = word.split_once("..=").or_else(|| word.split_once("..")).map(|(from, to)| (from, to.parse::<u64>()));
    match parts {
        Some((from, Ok(to))) if to < u64::MAX => format!("a whole number from {from} to {to}"),
        Some((from, _)) => format!("a whole number from {from} on"),
        None => format!("in {word}"),
    }
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
    eprintln!("memvirt: {}", visible(text));
}

#[cfg(test)]
mod tests {
    use super::{line, plain_bounds};
    use anyhow::anyhow;

    #[test]
    fn bounds_are_said_in_words() {
        let said = plain_bounds("error: invalid value '0' for '--vcpus <N>': 0 is not in 1..=256\n\nFor more");
        assert_eq!(
            said,
            "error: invalid value '0' for '--vcpus <N>': 0 is not a whole number from 1 to 256\n\nFor more"
        );
        let said = plain_bounds("'9' for '--seed <N>': number too large to fit in target type\n");
        assert_eq!(said, "'9' for '--seed <N>': the number is too large\n");
    }

    #[test]
    fn causes_stand_once_and_on_one_line() {
        let error = anyhow!("no such file").context("cannot open x: no such file").context("outer\n  words");
        assert_eq!(line(&error), "outer words: cannot open x: no such file");
    }
}
