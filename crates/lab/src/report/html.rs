//! What every page is made of: plain HTML that needs no network and no other file, figures inline, tables of their data.

use std::fmt::Write as _;

use super::figure::Figure;
use super::paint::Ink;

const STYLE: &str = include_str!("style.css");

/// Text as HTML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Rules that give the drawings' colours their dark counterparts, for everything under `scope`.
fn inks(scope: &str) -> String {
    let rule = |ink: Ink| {
        let (light, dark) = (ink.light(), ink.dark());
        format!("{scope} [fill=\"{light}\"]{{fill:{dark}}}{scope} [stroke=\"{light}\"]{{stroke:{dark}}}")
    };
    Ink::ALL.map(rule).concat()
}

/// A figure as a file of its own.
pub(crate) fn standalone(figure: &Figure) -> String {
    let style = format!(
        "<style>svg{{background:#FFFFFF}}@media (prefers-color-scheme:dark){{svg{{background:#11161C}}{}}}</style>\n",
        inks("svg")
    );
    let label = format!("<title>{}</title>\n", escape(&figure.title));
    figure.wide.replacen(">\n", &format!(" role=\"img\">\n{label}{style}"), 1)
}

/// A drawing within the page.
fn inline(svg: &str, class: &str, title: &str) -> String {
    svg.replacen("<svg ", &format!("<svg class=\"{class}\" role=\"img\" aria-label=\"{}\" ", escape(title)), 1)
}

/// A whole page around `body`, which stands in its `main`.
pub(crate) fn document(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n\
         <style>\n{STYLE}@media screen and (prefers-color-scheme:dark){{{}}}\n</style>\n</head>\n<body>\n<main>\n{body}</main>\n\
         </body>\n</html>\n",
        escape(title),
        inks("figure svg")
    )
}

/// A figure in both shapes with its caption and the data behind it; `command` makes it where nothing else is said.
pub(crate) fn figure_block(figure: &Figure, command: &str) -> String {
    let id = &figure.id;
    let command = if figure.command.is_empty() { command } else { &figure.command };
    let pixels = if cfg!(feature = "png") { format!("<a href=\"figures/{id}.png\">PNG</a>, ") } else { String::new() };
    format!(
        "<figure id=\"{id}\">\n<h3>{}</h3>\n{}{}<figcaption>{} <span class=\"made\">Made by <code>{}</code>; \
         <a href=\"figures/{id}.svg\">SVG</a>, {pixels}<a href=\"figures/{id}.csv\">data</a>.</span></figcaption>\n\
         <details><summary>The numbers</summary>{}</details>\n</figure>\n",
        escape(&figure.title),
        inline(&figure.wide, "wide", &figure.title),
        inline(&figure.narrow, "narrow", &figure.title),
        escape(&figure.caption),
        escape(command),
        table(&figure.header, figure.rows.iter().map(|row| (row.as_slice(), "")))
    )
}

/// A table; rows with a class.
pub(crate) fn table<'a>(header: &[String], rows: impl Iterator<Item = (&'a [String], &'a str)>) -> String {
    let mut text = String::from("<div class=\"scroll\"><table>\n<thead><tr>");
    for cell in header {
        let _ = write!(text, "<th scope=\"col\">{}</th>", escape(cell));
    }
    text += "</tr></thead>\n<tbody>\n";
    for (row, class) in rows {
        let _ = write!(text, "<tr{}>", if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") });
        for (i, cell) in row.iter().enumerate() {
            let cell = escape(cell);
            text += &if i == 0 { format!("<th scope=\"row\">{cell}</th>") } else { format!("<td>{cell}</td>") };
        }
        text += "</tr>\n";
    }
    text + "</tbody>\n</table></div>\n"
}
