//! What every page is made of: plain HTML that needs no network and no other file, figures inline, tables of their data.

use std::fmt::Write as _;

use super::figure::Figure;
use super::paint::Ink;

const STYLE: &str = include_str!("style.css");

/// Text as HTML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Words as HTML; what stands between backticks is code.
pub(crate) fn prose(text: &str) -> String {
    let escaped = escape(text);
    if escaped.matches('`').count() % 2 == 1 {
        return escaped;
    }
    let piece = |(i, part): (usize, &str)| if i % 2 == 1 { format!("<code>{part}</code>") } else { part.to_owned() };
    escaped.split('`').enumerate().map(piece).collect()
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
    let (made, runs) = made(figure, command);
    let pixels = if cfg!(feature = "png") { format!("<a href=\"figures/{id}.png\">PNG</a>, ") } else { String::new() };
    format!(
        "<figure id=\"{id}\">\n<h3>{}</h3>\n{}{}<figcaption>{} <span class=\"made\">{made}; \
         <a href=\"figures/{id}.svg\">SVG</a>, {pixels}<a href=\"figures/{id}.csv\">data</a>.</span></figcaption>\n{runs}\
         <details><summary>The numbers</summary>{}</details>\n</figure>\n",
        escape(&figure.title),
        inline(&figure.wide, "wide", &figure.title),
        inline(&figure.narrow, "narrow", &figure.title),
        prose(&figure.caption),
        table(&figure.header, figure.rows.iter().map(|row| (row.as_slice(), "")))
    )
}

/// What makes a figure, in words, and the commands of its runs to be opened.
fn made(figure: &Figure, command: &str) -> (String, String) {
    let command = format!("<code>{}</code>", escape(command));
    match figure.runs.as_slice() {
        [] => (format!("Made by {command}"), String::new()),
        [only] => (format!("Made by <code>{}</code>", escape(only)), String::new()),
        runs => {
            let items: String = runs.iter().map(|run| format!("<li><code>{}</code></li>\n", escape(run))).collect();
            let n = runs.len();
            (
                format!(
                    "Made by {n} commands, listed below, each of which makes a part of the numbers; all of them by {command}"
                ),
                format!("<details class=\"runs\"><summary>The {n} commands</summary><ol>\n{items}</ol></details>\n"),
            )
        }
    }
}

/// The longest figure with what belongs to it; a cell that begins with a digit and says more is words.
const LONGEST_FIGURE: usize = 24;

/// How the cells of a column are set: figures to the right, words to the left, many words in lines.
fn setting(rows: &[(&[String], &str)], column: usize) -> &'static str {
    let cells = || rows.iter().filter_map(|(row, _)| row.get(column)).filter(|cell| !matches!(cell.as_str(), "" | "-"));
    let figure = |cell: &&String| cell.starts_with(|c: char| c.is_ascii_digit() || "+-.<\u{2212}".contains(c));
    let (all, figures) = (cells().count(), cells().filter(figure).count());
    match cells().map(|cell| cell.chars().count()).max() {
        Some(0..=LONGEST_FIGURE) if 2 * figures > all => "",
        Some(0..=LONGEST_FIGURE) => " class=\"t\"",
        Some(0..=44) => " class=\"t m\"",
        Some(_) => " class=\"t w\"",
        None => "",
    }
}

/// A table; rows with a class.
pub(crate) fn table<'a>(header: &[String], rows: impl Iterator<Item = (&'a [String], &'a str)>) -> String {
    let rows: Vec<_> = rows.collect();
    let settings: Vec<_> = (0..header.len()).map(|column| setting(&rows, column)).collect();
    let mut text = String::from("<div class=\"scroll\"><table>\n<thead><tr>");
    for (cell, set) in header.iter().zip(&settings) {
        // Names such as `write-protect/zap` head narrow columns.
        let cell = escape(cell).replace('/', "/<wbr>");
        let _ = write!(text, "<th scope=\"col\"{set}>{cell}</th>");
    }
    text += "</tr></thead>\n<tbody>\n";
    for (row, class) in rows {
        let _ = write!(text, "<tr{}>", if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") });
        for (i, cell) in row.iter().enumerate() {
            let (cell, set) = (escape(cell), settings.get(i).copied().unwrap_or_default());
            text += &if i == 0 { format!("<th scope=\"row\">{cell}</th>") } else { format!("<td{set}>{cell}</td>") };
        }
        text += "</tr>\n";
    }
    text + "</tbody>\n</table></div>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backticks_are_code_and_everything_else_is_escaped() {
        assert_eq!(prose("`a<b` & c"), "<code>a&lt;b</code> &amp; c");
        assert_eq!(prose("one ` alone"), "one ` alone");
    }

    #[test]
    fn words_stand_to_the_left_and_figures_to_the_right() {
        let cells = |row: [&str; 4]| row.map(str::to_owned).to_vec();
        let long = "many words, so many that they do not fit into one line";
        let rows = [cells(["a", "1.5 %", "holds", long]), cells(["b", "-3", "12 of these", "2 pages"])];
        let html = table(&cells(["what", "error", "why", "more"]), rows.iter().map(|row| (row.as_slice(), "")));
        let figures = [cells(["a", "1", "2", "3 pages, each of which is touched twice"]), cells(["b", "1", "2", "4"])];
        let said = table(&cells(["what", "n", "m", "done/asked"]), figures.iter().map(|row| (row.as_slice(), "")));
        assert!(said.contains("<td>1</td><td>2</td><td class=\"t m\">3 pages"), "{said}");
        assert!(said.contains("<th scope=\"col\" class=\"t m\">done/<wbr>asked</th>"), "{said}");
        assert!(html.contains("<td>1.5 %</td><td class=\"t\">holds</td><td class=\"t w\">many"), "{html}");
        assert!(html.contains("<th scope=\"col\">error</th><th scope=\"col\" class=\"t\">why</th>"), "{html}");
    }
}
