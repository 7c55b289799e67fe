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
        Ok(Self { id, title, caption, header, rows, wide, narrow, command, drawing: Box::new(drawing) })
    }

    /// The same, made by this command.
    pub(crate) fn made_by(self, command: &str) -> Self {
        Self { command: command.to_owned(), ..self }
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
            // Digits are grouped for people only.
            crate::table::csv_line(&mut data, row.iter().map(|cell| cell.replace(',', "")));
        }
        data
    }
}
