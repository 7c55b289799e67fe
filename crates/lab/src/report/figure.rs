//! A figure: a drawing, what it shows, the data behind it, and the command that makes them.

use super::paint::{Drawing, Shape, svg};
use crate::error::LabError;

/// A figure, drawn.
pub(crate) struct Figure {
    /// The stem of its files and its anchor on the page.
    pub(crate) id: String,
    pub(crate) title: String,
    /// What it shows, and in which unit.
    pub(crate) caption: String,
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
    pub(crate) wide: String,
    pub(crate) narrow: String,
    /// The command that makes it; nothing where the page's own does.
    pub(crate) command: String,
    /// The commands of its runs, where no single one makes its numbers: each makes those of one run.
    pub(crate) runs: Vec<String>,
    /// For other surfaces than SVG.
    #[cfg_attr(not(feature = "png"), expect(dead_code, reason = "only pixels are drawn when the file is written"))]
    drawing: Box<dyn Drawing>,
}

impl Figure {
    /// Draws a figure in both shapes; `table` is the data behind it, header and rows.
    pub(crate) fn new(
        id: &str,
        title: &str,
        caption: String,
        (header, rows): (Vec<String>, Vec<Vec<String>>),
        drawing: impl Drawing + 'static,
    ) -> Result<Self, LabError> {
        let drawn = |shape| svg(&drawing, shape).map_err(|reason| LabError::Draw { figure: id.to_owned(), reason });
        let (wide, narrow) = (drawn(Shape::Wide)?, drawn(Shape::Narrow)?);
        let (id, title, command) = (id.to_owned(), title.to_owned(), String::new());
        let runs = Vec::new();
        Ok(Self { id, title, caption, header, rows, wide, narrow, command, runs, drawing: Box::new(drawing) })
    }

    /// The same with more words in its caption.
    pub(crate) fn with_words(self, words: &str) -> Self {
        Self { caption: format!("{} {words}", self.caption), ..self }
    }

    /// The same, made by this command.
    pub(crate) fn made_by(self, command: &str) -> Self {
        Self { command: command.to_owned(), ..self }
    }

    /// The same, made by these commands, each of which makes the numbers of one run.
    pub(crate) fn made_by_each<'a>(self, commands: impl IntoIterator<Item = &'a str>) -> Self {
        let mut runs: Vec<String> = Vec::new();
        for command in commands {
            if !runs.iter().any(|known| known == command) {
                runs.push(command.to_owned());
            }
        }
        Self { runs, ..self }
    }

    /// The same under another anchor; what it is of stands behind its title.
    pub(crate) fn titled(self, id: &str, of: &str) -> Self {
        Self { id: id.to_owned(), title: format!("{}: {of}", self.title), ..self }
    }

    /// The picture for a wide page as PNG.
    #[cfg(feature = "png")]
    pub(crate) fn png(&self) -> Result<Vec<u8>, LabError> {
        let failed = |reason| LabError::Draw { figure: self.id.clone(), reason };
        super::paint::png(self.drawing.as_ref(), Shape::Wide).map_err(failed)
    }

    /// The data as CSV.
    pub(crate) fn csv(&self) -> String {
        let mut data = String::new();
        for row in std::iter::once(&self.header).chain(&self.rows) {
            crate::table::csv_line(&mut data, row.iter().map(|cell| ungrouped(cell)));
        }
        data
    }
}

/// Digits are grouped and percent signs written for people only; the commas of a command or of a name are its own.
fn ungrouped(cell: &str) -> String {
    // The header says that it is percent.
    let bare = cell.strip_suffix(" %").unwrap_or(cell);
    let number = bare.chars().all(|c| c.is_ascii_digit() || matches!(c, ',' | '.' | '+' | '-'));
    if number { bare.replace(',', "") } else { cell.to_owned() }
}

/// A column of data with its unit: lower case, words joined by underscores.
pub(crate) fn column(name: &str, unit: &str) -> String {
    let mut text = String::new();
    for c in format!("{name} {unit}").replace('\'', "").chars() {
        if c.is_ascii_alphanumeric() {
            text.push(c.to_ascii_lowercase());
        } else if !text.is_empty() && !text.ends_with('_') {
            text.push('_');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_digits_are_joined_and_commands_keep_their_commas() {
        assert_eq!(ungrouped("1,234,567"), "1234567");
        assert_eq!((ungrouped("+12.5 %"), ungrouped("< 0.1 %")), ("+12.5".to_owned(), "< 0.1 %".to_owned()));
        assert_eq!(ungrouped("memvirt compare --regimes native,nested"), "memvirt compare --regimes native,nested");
    }

    #[test]
    fn a_column_names_its_unit() {
        assert_eq!(column("the guest's own work", "cycles"), "the_guests_own_work_cycles");
        assert_eq!(column("shadow:kvm", "references_per_walk"), "shadow_kvm_references_per_walk");
    }
}
