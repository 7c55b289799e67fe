//! Standard output, and tables on it.

use std::borrow::Cow;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use anyhow::Context;
use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};

/// Makes the folder that results will be written to, so that one that cannot be made is found before the work.
pub(crate) fn make_folder(out: Option<&Path>) -> anyhow::Result<()> {
    let Some(dir) = out else { return Ok(()) };
    anyhow::ensure!(dir.is_dir() || !dir.exists(), "cannot make the folder {}: it is a file", dir.display());
    fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))
}

/// `text` without what a terminal would obey: control characters but for newlines and tabs, and marks that turn the direction of
/// writing. They come from files that others wrote; each stands as `\u001b`, which JSON reads back as what it was.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| {
        (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| if obeyed(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    Cow::Owned(text.chars().map(shown).collect())
}

/// Prints `text`, made [`visible`]. A reader that has gone away (as in `memvirt ... | head`) is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(visible(text).as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// A table without lines but for those below the header and at the end. Columns whose header begins with `>` hold numbers
/// and are aligned to the right.
pub(crate) fn table<S: AsRef<str>>(header: impl IntoIterator<Item = S>) -> Table {
    let rule = LineStyle::none().fill('─').junction('─');
    let header: Vec<S> = header.into_iter().collect();
    let mut table = Table::new();
    table
        .load_style(TableStyle::new().header_separator(rule).bottom_border(rule))
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.iter().map(|text| text.as_ref().trim_start_matches('>')));
    for (column, _) in header.iter().enumerate().filter(|(_, text)| text.as_ref().starts_with('>')) {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The table's text, without blanks at the ends of lines, with a newline at the end.
pub(crate) fn render(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        assert_eq!(visible("a\u{1b}[31m\u{9b}2J\r\u{202e}\u{7f}b"), "a\\u001b[31m\\u009b2J\\u000d\\u202e\\u007fb");
        let json = serde_json::to_string("\u{7f}\u{9b}").unwrap();
        assert_eq!(serde_json::from_str::<String>(&visible(&json)).unwrap(), "\u{7f}\u{9b}");
        for plain in ["", "a\tb\n", "─ µs ≤ 1"] {
            assert!(matches!(visible(plain), Cow::Borrowed(text) if text == plain));
        }
    }
}
