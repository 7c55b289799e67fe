//! What every page is: a head, a list of sections, a foot. Each section has a heading that the table of contents leads to, and parts:
//! words, tables, figures, plain HTML. The comparison's page and the whole report differ in their sections and in nothing else.

use std::path::Path;

use super::figure::Figure;
use super::html::{document, escape, figure_block, prose, table};
use super::{write, write_figures};
use crate::error::LabError;

/// A part of a section.
enum Part {
    Html(String),
    Figure(Box<Figure>),
}

/// A section: what is put into it stands in that order.
pub(crate) struct Section {
    id: String,
    title: String,
    class: &'static str,
    parts: Vec<Part>,
}

impl Section {
    /// An empty section; `id` is its anchor.
    pub(crate) fn new(id: &str, title: &str) -> Self {
        Self { id: id.to_owned(), title: title.to_owned(), class: "", parts: Vec::new() }
    }

    /// The same with a class for the style sheet.
    pub(crate) fn class(self, class: &'static str) -> Self {
        Self { class, ..self }
    }

    /// A paragraph.
    pub(crate) fn words(self, words: &str) -> Self {
        self.html(format!("<p>{}</p>\n", prose(words)))
    }

    /// The command that makes what stands above.
    pub(crate) fn command(self, command: &str) -> Self {
        self.html(format!("<p class=\"made\">Made by <code>{}</code></p>\n", escape(command)))
    }

    /// A table.
    pub(crate) fn table(self, header: &[&str], rows: &[Vec<String>]) -> Self {
        let header: Vec<_> = header.iter().map(|&cell| cell.to_owned()).collect();
        self.html(table(&header, rows.iter().map(|row| (row.as_slice(), ""))))
    }

    /// A table to be opened.
    pub(crate) fn details(self, summary: &str, header: &[&str], rows: &[Vec<String>]) -> Self {
        let header: Vec<_> = header.iter().map(|&cell| cell.to_owned()).collect();
        let table = table(&header, rows.iter().map(|row| (row.as_slice(), "")));
        self.html(format!("<details><summary>{}</summary>{table}</details>\n", escape(summary)))
    }

    /// A figure.
    pub(crate) fn figure(mut self, figure: Figure) -> Self {
        self.parts.push(Part::Figure(Box::new(figure)));
        self
    }

    /// Figures.
    pub(crate) fn figures(self, figures: impl IntoIterator<Item = Figure>) -> Self {
        figures.into_iter().fold(self, Self::figure)
    }

    /// HTML as it is.
    pub(crate) fn html(mut self, html: String) -> Self {
        self.parts.push(Part::Html(html));
        self
    }

    fn drawn(&self) -> impl Iterator<Item = &Figure> {
        self.parts.iter().filter_map(|part| match part {
            Part::Figure(figure) => Some(figure.as_ref()),
            Part::Html(_) => None,
        })
    }

    fn to_html(&self, command: &str) -> String {
        let class = if self.class.is_empty() { String::new() } else { format!(" class=\"{}\"", self.class) };
        let mut text = format!("<section id=\"{}\"{class}>\n<h2>{}</h2>\n", self.id, escape(&self.title));
        for part in &self.parts {
            text += &match part {
                Part::Html(html) => html.clone(),
                Part::Figure(figure) => figure_block(figure, command),
            };
        }
        text + "</section>\n"
    }
}

/// A page and the files beside it.
pub(crate) struct Page {
    pub(crate) title: String,
    /// HTML above the table of contents.
    pub(crate) head: String,
    /// The command that makes figures without one of their own.
    pub(crate) command: String,
    pub(crate) sections: Vec<Section>,
    /// HTML at the end.
    pub(crate) foot: String,
    /// Names and texts.
    pub(crate) data: Vec<(&'static str, String)>,
}

impl Page {
    /// Writes `index.html`, the data, and `figures/NAME` with each figure as SVG, PNG and CSV into a folder, which is made where it
    /// does not exist. Other files there are left alone.
    ///
    /// # Errors
    ///
    /// [`LabError`] where a file cannot be written or a figure cannot be drawn.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), LabError> {
        let figures: Vec<&Figure> = self.sections.iter().flat_map(Section::drawn).collect();
        write_figures(dir, &figures)?;
        for (name, text) in &self.data {
            write(&dir.join(name), text)?;
        }
        write(&dir.join("index.html"), &self.to_html())
    }

    fn to_html(&self) -> String {
        let sections: String = self.sections.iter().map(|section| section.to_html(&self.command)).collect();
        let foot = format!("<footer>\n{}</footer>\n", self.foot);
        document(&self.title, &format!("{}{}{sections}{foot}", self.head, self.contents()))
    }

    fn contents(&self) -> String {
        let entry = |section: &Section| {
            let figures: String = section
                .drawn()
                .map(|figure| format!("<li><a href=\"#{}\">{}</a></li>", figure.id, escape(&figure.title)))
                .collect();
            let figures = if figures.is_empty() { figures } else { format!("\n<ul>{figures}</ul>") };
            format!("<li><a href=\"#{}\">{}</a>{figures}</li>\n", section.id, escape(&section.title))
        };
        let entries: String = self.sections.iter().map(entry).collect();
        format!("<nav id=\"contents\" aria-label=\"Contents\">\n<h2>Contents</h2>\n<ol>\n{entries}</ol>\n</nav>\n")
    }
}
