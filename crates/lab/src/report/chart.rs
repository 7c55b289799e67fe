//! One kind of chart for every figure: horizontal bars, stacked or not, in panels. Drawn in whole pixels, so
//! the same data gives the same bytes.
//!
//! Curves and points over two axes are next door, in [`xy`](super::xy).

use plotters::style::FontStyle;
use plotters::style::text_anchor::HPos;

use super::paint::{Area, Drawing, Drawn, FONT, Ink, Shape, counted, legend_places, line, pixels, rectangle, text};

/// How the axis is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    Decimal,
    Binary,
}

/// One bar: parts from left to right, and the text at its end.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) parts: Vec<(Ink, f64)>,
    pub(crate) value: String,
}

/// Bars under one heading.
#[derive(Clone, Debug)]
pub(crate) struct Panel {
    pub(crate) heading: Option<String>,
    pub(crate) bars: Vec<Bar>,
}

/// A chart.
#[derive(Clone, Debug)]
pub(crate) struct Chart {
    pub(crate) axis: &'static str,
    pub(crate) scale: Scale,
    pub(crate) tick: fn(f64) -> String,
    pub(crate) legend: Vec<(Ink, &'static str)>,
    pub(crate) panels: Vec<Panel>,
    /// Vertical lines with a word.
    pub(crate) marks: Vec<(f64, &'static str)>,
}

const LEGEND_LINE: i32 = 22;
const HEADING: i32 = 26;
const AXIS: i32 = 46;
const MARK: i32 = 18;

/// Where things stand, in pixels.
struct Layout {
    shape: Shape,
    width: i32,
    left: i32,
    right: i32,
    row: i32,
    legend_lines: i32,
    top: i32,
    height: i32,
    maximum: f64,
    step: f64,
}

impl Layout {
    fn of(chart: &Chart, shape: Shape) -> Self {
        let longest = |text: fn(&Bar) -> &str| {
            let bars = chart.panels.iter().flat_map(|panel| &panel.bars);
            pixels(bars.map(|bar| text(bar).chars().count()).max().unwrap_or(0))
        };
        let (width, left, right, row) = match shape {
            Shape::Wide => (900, longest(|bar| &bar.label) + 12, 900 - longest(|bar| &bar.value) - 16, 26),
            Shape::Narrow => (340, 2, 332, 40),
        };
        let bars: usize = chart.panels.iter().map(|panel| panel.bars.len()).sum();
        let headings = chart.panels.iter().filter(|panel| panel.heading.is_some()).count();
        let legend_lines = legend_places(chart.legend.iter().map(|(_, name)| *name), width)
            .iter()
            .map(|(_, _, line)| line + 1)
            .max()
            .unwrap_or(0);
        let marks = if chart.marks.is_empty() { 0 } else { MARK };
        let top = legend_lines * LEGEND_LINE + marks + 6;
        let height = top + counted(bars) * row + counted(headings) * HEADING + AXIS;
        let (maximum, step) = extent(chart);
        Self { shape, width, left, right, row, legend_lines, top, height, maximum, step }
    }

    /// From where to where, downwards, bars stand without words between them.
    fn zones(&self, chart: &Chart) -> Vec<(i32, i32)> {
        let mut zones = Vec::new();
        let mut y = self.top;
        for panel in &chart.panels {
            y += if panel.heading.is_some() { HEADING } else { 0 };
            for _ in &panel.bars {
                zones.push(match self.shape {
                    Shape::Wide => (y, y + self.row),
                    Shape::Narrow => (y + 18, y + 34),
                });
                y += self.row;
            }
        }
        zones
    }

    #[expect(clippy::cast_possible_truncation, reason = "pixels of a small drawing")]
    fn x(&self, value: f64) -> i32 {
        self.left + (f64::from(self.right - self.left) * value / self.maximum).round() as i32
    }
}

/// The end of the axis and the distance of its ticks: at most six of them, at round values.
fn extent(chart: &Chart) -> (f64, f64) {
    let bars = chart.panels.iter().flat_map(|panel| &panel.bars);
    let longest = bars.map(|bar| bar.parts.iter().map(|(_, value)| value).sum::<f64>());
    let maximum = longest.chain(chart.marks.iter().map(|(at, _)| *at)).fold(0.0, f64::max).max(1.0);
    let rough = maximum / 4.0;
    let step = match chart.scale {
        Scale::Binary => rough.log2().ceil().max(0.0).exp2(),
        Scale::Decimal => {
            let magnitude = 10f64.powf(rough.log10().floor());
            let factors = [1.0, 2.0, 5.0, 10.0];
            magnitude * factors.into_iter().find(|factor| factor * magnitude >= rough).unwrap_or(10.0)
        }
    };
    (maximum * 1.02, step)
}

impl Drawing for Chart {
    fn size(&self, shape: Shape) -> (u32, u32) {
        let layout = Layout::of(self, shape);
        (layout.width.unsigned_abs(), layout.height.unsigned_abs())
    }

    fn paint(&self, area: &Area<'_>, shape: Shape) -> Drawn {
        paint(area, self, &Layout::of(self, shape))
    }
}

fn paint(area: &Area<'_>, chart: &Chart, layout: &Layout) -> Drawn {
    for (i, x, line) in legend_places(chart.legend.iter().map(|(_, name)| *name), layout.width) {
        let (ink, name) = chart.legend[i];
        let y = line * LEGEND_LINE + 4;
        rectangle(area, ink, (x, y), (x + 12, y + 12))?;
        text(area, name, (x + 18, y + 6), Ink::Text, HPos::Left, FONT, FontStyle::Normal)?;
    }
    let bottom = layout.height - AXIS;
    axis(area, chart, layout, bottom)?;
    grid(area, chart, layout)?;
    let mut y = layout.top;
    for panel in &chart.panels {
        if let Some(heading) = &panel.heading {
            text(area, heading, (2, y + HEADING / 2 + 2), Ink::Text, HPos::Left, FONT, FontStyle::Bold)?;
            y += HEADING;
        }
        for bar in &panel.bars {
            paint_bar(area, bar, layout, y)?;
            y += layout.row;
        }
    }
    marks(area, chart, layout)
}

fn axis(area: &Area<'_>, chart: &Chart, layout: &Layout, bottom: i32) -> Drawn {
    let mut value = 0.0;
    while value <= layout.maximum {
        let x = layout.x(value);
        // The first and the last stay within the drawing.
        let anchor = if x < 20 {
            HPos::Left
        } else if x > layout.width - 30 {
            HPos::Right
        } else {
            HPos::Center
        };
        text(area, &(chart.tick)(value), (x, bottom + 12), Ink::Muted, anchor, FONT - 1.0, FontStyle::Normal)?;
        value += layout.step;
    }
    let middle = i32::midpoint(layout.left, layout.right);
    line(area, Ink::Grid, (layout.left, bottom + 2), (layout.right, bottom + 2))?;
    text(area, chart.axis, (middle, bottom + 32), Ink::Muted, HPos::Center, FONT - 1.0, FontStyle::Normal)
}

/// Lines behind the bars at the ticks; headings and, on a narrow page, labels stay free of them.
fn grid(area: &Area<'_>, chart: &Chart, layout: &Layout) -> Drawn {
    for (from, to) in layout.zones(chart) {
        let mut value = 0.0;
        while value <= layout.maximum {
            let x = layout.x(value);
            line(area, Ink::Grid, (x, from), (x, to))?;
            value += layout.step;
        }
    }
    Ok(())
}

fn paint_bar(area: &Area<'_>, bar: &Bar, layout: &Layout, y: i32) -> Drawn {
    let (from, to) = match layout.shape {
        Shape::Wide => (y + 5, y + layout.row - 5),
        Shape::Narrow => (y + 20, y + 32),
    };
    let mut sum = 0.0;
    for (ink, value) in bar.parts.iter().filter(|(_, value)| *value > 0.0) {
        let (x, end) = (layout.x(sum), layout.x(sum + value));
        // A sliver stays visible; between parts a pixel of background shows.
        rectangle(area, *ink, (x, from), (if end > x + 2 { end - 1 } else { x + 1 }, to))?;
        sum += value;
    }
    match layout.shape {
        Shape::Wide => {
            let middle = i32::midpoint(from, to);
            text(area, &bar.label, (layout.left - 10, middle), Ink::Text, HPos::Right, FONT, FontStyle::Normal)?;
            text(area, &bar.value, (layout.x(sum) + 6, middle), Ink::Text, HPos::Left, FONT, FontStyle::Normal)
        }
        Shape::Narrow => {
            text(area, &bar.label, (layout.left, y + 11), Ink::Text, HPos::Left, FONT, FontStyle::Normal)?;
            text(area, &bar.value, (layout.right, y + 11), Ink::Text, HPos::Right, FONT, FontStyle::Normal)
        }
    }
}

fn marks(area: &Area<'_>, chart: &Chart, layout: &Layout) -> Drawn {
    let y = layout.legend_lines * LEGEND_LINE + MARK / 2;
    for (at, name) in &chart.marks {
        let x = layout.x(*at);
        for (from, to) in layout.zones(chart) {
            for dash in (from..to).step_by(6) {
                line(area, Ink::Text, (x, dash), (x, (dash + 3).min(to)))?;
            }
        }
        let room = layout.width - x > pixels(name.chars().count()) / 2;
        let anchor = if room && x > 60 {
            HPos::Center
        } else if room {
            HPos::Left
        } else {
            HPos::Right
        };
        let x = if room { x } else { layout.width - 2 };
        text(area, name, (x, y), Ink::Text, anchor, FONT - 1.0, FontStyle::Normal)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::paint::svg;

    fn chart(values: &[f64]) -> Chart {
        let bar = |value: &f64| Bar { label: "a".into(), parts: vec![(Ink::Blue, *value)], value: value.to_string() };
        Chart {
            axis: "things",
            scale: Scale::Decimal,
            tick: |x| x.to_string(),
            legend: vec![(Ink::Blue, "blue")],
            panels: vec![Panel { heading: Some("<h>".into()), bars: values.iter().map(bar).collect() }],
            marks: Vec::new(),
        }
    }

    #[test]
    fn bars_are_as_long_as_their_values_and_text_is_escaped() {
        let svg = svg(&chart(&[100.0, 50.0, 0.0]), Shape::Wide).unwrap();
        let widths: Vec<i32> = svg
            .lines()
            .filter(|line| line.starts_with("<rect") && line.contains("#0072B2"))
            .filter_map(|line| line.split("width=\"").nth(1)?.split('"').next()?.parse().ok())
            .skip(1) // the legend's swatch
            .collect();
        let [long, half] = widths[..] else { panic!("{widths:?}") };
        assert!((long - 2 * half).abs() <= 3 && half > 100, "{widths:?}");
        assert!(svg.contains("&lt;h&gt;") && !svg.contains("<h>"));
    }

    #[test]
    fn axes_have_few_round_ticks() {
        for (maximum, step) in [(1.0, 0.5), (24.0, 10.0), (999.0, 500.0), (1_000.0, 500.0)] {
            assert!((extent(&chart(&[maximum])).1 - step).abs() < 1e-9, "{maximum}: {:?}", extent(&chart(&[maximum])));
        }
        let bytes = Chart { scale: Scale::Binary, ..chart(&[5000.0]) };
        assert!((extent(&bytes).1 - 2048.0).abs() < 1e-9);
    }

    #[test]
    fn no_data_still_makes_a_drawing() {
        for shape in [Shape::Wide, Shape::Narrow] {
            assert!(svg(&chart(&[]), shape).unwrap().ends_with("</svg>\n"));
        }
    }
}
