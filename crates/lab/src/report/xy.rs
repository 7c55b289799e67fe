//! Curves and points over two axes, linear or logarithmic: scaling, footprints, fits, planes of two rates.
//!
//! Points come with a colour by meaning ([`Ink`]); a series is drawn as a line, a dashed line, dots, or dots with words. What lies
//! outside an axis' range is not drawn; a logarithmic axis shows positive values only.

use plotters::style::FontStyle;
use plotters::style::text_anchor::HPos;

use super::paint::{
    Area, Drawing, Drawn, FONT, Ink, Shape, counted, disc, legend_places, line, pixels, polygon, rectangle, ring, text,
};

/// How an axis is divided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Spacing {
    /// Evenly, from 0 where no value is negative.
    Linear,
    /// By powers of two: numbers of CPUs, of processes, bytes.
    Powers2,
    /// By powers of ten.
    Powers10,
    /// By powers of ten on both sides of 0, which lies in the middle; evenly from it to this value. Errors of either sign, of which
    /// many are exactly 0.
    Symmetric(f64),
}

impl Spacing {
    /// Whether it can show values that are not positive.
    fn has_zero(self) -> bool {
        matches!(self, Self::Linear | Self::Symmetric(_))
    }

    /// Where on an even line a value lies.
    fn even(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Powers2 | Self::Powers10 => value.ln(),
            Self::Symmetric(unit) => {
                let times = value.abs() / unit;
                value.signum() * if times <= 1.0 { times } else { 1.0 + times.log10() }
            }
        }
    }
}

/// One axis: what stands on it and in which unit.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    pub(crate) name: String,
    pub(crate) spacing: Spacing,
    pub(crate) tick: fn(f64) -> String,
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Dots joined by a line: something measured.
    DottedLine,
    /// A line: something computed.
    Line,
    /// A dashed line.
    Dashed,
    /// Dots alone.
    Dots,
    /// Small squares alone: the cells of a plane.
    Squares,
    /// Rings alone, wider than dots, so that a dot at the same place is seen within.
    Rings,
    /// Triangles alone.
    Triangles,
    /// Crosses alone: two slanting strokes.
    Crosses,
    /// Pluses alone: an upright stroke and a level one.
    Pluses,
    /// Diamonds alone.
    Diamonds,
}

impl Mark {
    /// Marks that are told apart by their shape where colours are not.
    pub(crate) const SHAPES: [Self; 7] =
        [Self::Dots, Self::Rings, Self::Triangles, Self::Crosses, Self::Squares, Self::Pluses, Self::Diamonds];

    /// Whether its points stand alone, without a line between them.
    const fn is_alone(self) -> bool {
        !matches!(self, Self::DottedLine | Self::Line | Self::Dashed)
    }

    /// One point of it.
    fn point(self, area: &Area<'_>, ink: Ink, (x, y): (i32, i32)) -> Drawn {
        match self {
            Self::Line | Self::Dashed => Ok(()),
            Self::Dots | Self::DottedLine => disc(area, ink, (x, y), 4),
            Self::Rings => ring(area, ink, (x, y), 6),
            Self::Squares => rectangle(area, ink, (x - 5, y - 5), (x + 5, y + 5)),
            Self::Triangles => polygon(area, ink, &[(x - 6, y + 5), (x + 6, y + 5), (x, y - 6)]),
            Self::Diamonds => polygon(area, ink, &[(x - 6, y), (x, y - 6), (x + 6, y), (x, y + 6)]),
            Self::Crosses => {
                stroke(area, ink, (x - 5, y - 5), (x + 5, y + 5))?;
                stroke(area, ink, (x - 5, y + 5), (x + 5, y - 5))
            }
            Self::Pluses => {
                rectangle(area, ink, (x - 6, y - 1), (x + 6, y + 1))?;
                rectangle(area, ink, (x - 1, y - 6), (x + 1, y + 6))
            }
        }
    }
}

/// Values that belong together.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) ink: Ink,
    /// The name in the legend; nothing where it has no entry.
    pub(crate) name: String,
    pub(crate) mark: Mark,
    pub(crate) points: Vec<(f64, f64)>,
    /// Words beside the points, in their order; may be shorter.
    pub(crate) labels: Vec<String>,
}

impl Series {
    /// A series without words at its points.
    pub(crate) fn new(ink: Ink, name: impl Into<String>, mark: Mark, points: Vec<(f64, f64)>) -> Self {
        Self { ink, name: name.into(), mark, points, labels: Vec::new() }
    }
}

/// A plot.
#[derive(Clone, Debug)]
pub(crate) struct Plot {
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) series: Vec<Series>,
}

const LEGEND_LINE: i32 = 22;
const BELOW: i32 = 46;

/// One axis laid out over pixels.
struct Ruler {
    spacing: Spacing,
    from: f64,
    to: f64,
    pixels: (i32, i32),
    ticks: Vec<f64>,
}

impl Ruler {
    fn of(values: impl Iterator<Item = f64>, spacing: Spacing, pixels: (i32, i32), most: usize) -> Self {
        let shown = |value: &f64| value.is_finite() && (spacing.has_zero() || *value > 0.0);
        let (low, high) = values.filter(shown).fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        let (low, high) = if low > high { (1.0, 2.0) } else { (low, high) };
        let (from, to, ticks) = match spacing {
            Spacing::Linear => linear(low, high, most),
            Spacing::Powers2 => powers(low, high, 2.0, most),
            Spacing::Powers10 => powers(low, high, 10.0, most),
            Spacing::Symmetric(unit) => symmetric(low.abs().max(high.abs()), unit, most),
        };
        Self { spacing, from, to, pixels, ticks }
    }

    #[expect(clippy::cast_possible_truncation, reason = "pixels of a small drawing")]
    fn at(&self, value: f64) -> Option<i32> {
        let map = |v: f64| self.spacing.even(v);
        let share = (map(value) - map(self.from)) / (map(self.to) - map(self.from));
        let inside = (-1e-9..=1.0 + 1e-9).contains(&share);
        inside.then(|| self.pixels.0 + (f64::from(self.pixels.1 - self.pixels.0) * share).round() as i32)
    }
}

/// At most about `most` ticks at round values, and the range that they cover.
fn linear(low: f64, high: f64, most: usize) -> (f64, f64, Vec<f64>) {
    let (low, high) = (low.min(0.0), if high > low { high } else { low + 1.0 }.max(0.0));
    let rough = (high - low) / f64::from(counted(most));
    let magnitude = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|f| f * magnitude).into_iter().find(|s| *s >= rough).unwrap_or(rough);
    let (first, last) = ((low / step).floor(), (high / step).ceil());
    let mut ticks = Vec::new();
    let mut i = first;
    while i <= last {
        ticks.push(i * step);
        i += 1.0;
    }
    (first * step, last * step, ticks)
}

/// Ticks at 0 and at powers of ten times `unit` on both sides, as many on each, as far as the value farthest from 0.
fn symmetric(farthest: f64, unit: f64, most: usize) -> (f64, f64, Vec<f64>) {
    let last = (farthest / unit).log10().ceil().max(0.0);
    let every = (2.0 * (last + 1.0) / f64::from(counted(most))).ceil().max(1.0);
    let mut side = Vec::new();
    let mut i = last;
    while i >= 0.0 {
        side.push(unit * 10f64.powf(i));
        i -= every;
    }
    let end = unit * 10f64.powf(last);
    let below = side.iter().map(|tick| -tick);
    let ticks = below.chain([0.0]).chain(side.iter().rev().copied()).collect();
    (-end, end, ticks)
}

fn powers(low: f64, high: f64, base: f64, most: usize) -> (f64, f64, Vec<f64>) {
    let first = (low.ln() / base.ln() + 1e-9).floor();
    let last = (high.ln() / base.ln() - 1e-9).ceil().max(first + 1.0);
    let every = ((last - first) / f64::from(counted(most))).ceil().max(1.0);
    let mut ticks = Vec::new();
    let mut i = first;
    while i <= last {
        ticks.push(base.powf(i));
        i += every;
    }
    (base.powf(first), base.powf(last), ticks)
}

struct Layout {
    width: i32,
    height: i32,
    x: Ruler,
    y: Ruler,
}

/// Lines that the legend of a plot takes.
fn legend_lines(plot: &Plot, width: i32) -> i32 {
    let named = plot.series.iter().filter(|series| !series.name.is_empty()).map(|series| series.name.as_str());
    legend_places(named, width).iter().map(|(_, _, line)| line + 1).max().unwrap_or(0)
}

impl Layout {
    fn of(plot: &Plot, shape: Shape) -> Self {
        let (width, field, most) = match shape {
            // Words at many points need room.
            Shape::Wide if plot.series.iter().map(|series| series.labels.len()).sum::<usize>() > 8 => (900, 560, 10),
            Shape::Wide => (900, 380, 10),
            Shape::Narrow => (340, 260, 5),
        };
        let top = legend_lines(plot, width) * LEGEND_LINE + 24;
        Self::within(&[plot], plot, (width, field), top, most)
    }

    /// With axes that cover the points of all `peers`, and a field of this height below `top`.
    fn within(peers: &[&Plot], plot: &Plot, (width, field): (i32, i32), top: i32, most: usize) -> Self {
        let points = || peers.iter().flat_map(|peer| &peer.series).flat_map(|series| &series.points);
        let y = Ruler::of(points().map(|p| p.1), plot.y.spacing, (top + field, top), 6);
        let longest = y.ticks.iter().map(|tick| (plot.y.tick)(*tick).chars().count()).max().unwrap_or(0);
        let left = pixels(longest) + 14;
        let x = Ruler::of(points().map(|p| p.0), plot.x.spacing, (left, width - 22), most);
        Self { width, height: top + field + BELOW, x, y }
    }
}

impl Drawing for Plot {
    fn size(&self, shape: Shape) -> (u32, u32) {
        let layout = Layout::of(self, shape);
        (layout.width.unsigned_abs(), layout.height.unsigned_abs())
    }

    fn paint(&self, area: &Area<'_>, shape: Shape) -> Drawn {
        let layout = Layout::of(self, shape);
        legend(area, self, layout.width)?;
        paint(area, self, &layout)
    }
}

/// Several plots of the same kind over the same axes, side by side or below each other; the first one's legend is that of all.
#[derive(Clone, Debug)]
pub(crate) struct Multiples {
    /// Headings and plots.
    pub(crate) panels: Vec<(String, Plot)>,
    /// How high the field of each is, on a wide page and on a narrow one.
    pub(crate) heights: (i32, i32),
}

const PANEL_HEADING: i32 = 24;

impl Multiples {
    /// Panels in a row, the width and the height of one, and the height of the legend.
    fn frame(&self, shape: Shape) -> (usize, i32, i32, i32) {
        let (across, width, field) = match shape {
            Shape::Wide => (2, 450, self.heights.0),
            Shape::Narrow => (1, 340, self.heights.1),
        };
        let all = width * counted(across);
        let above = self.panels.first().map_or(0, |(_, plot)| legend_lines(plot, all) * LEGEND_LINE) + 6;
        (across, width, PANEL_HEADING + 24 + field + BELOW + 10, above)
    }
}

impl Drawing for Multiples {
    fn size(&self, shape: Shape) -> (u32, u32) {
        let (across, width, height, above) = self.frame(shape);
        let rows = counted(self.panels.len().div_ceil(across));
        ((width * counted(across)).unsigned_abs(), (above + rows * height).max(40).unsigned_abs())
    }

    fn paint(&self, area: &Area<'_>, shape: Shape) -> Drawn {
        let (across, width, height, above) = self.frame(shape);
        if let Some((_, first)) = self.panels.first() {
            legend(area, first, width * counted(across))?;
        }
        let peers: Vec<&Plot> = self.panels.iter().map(|(_, plot)| plot).collect();
        for (i, (heading, plot)) in self.panels.iter().enumerate() {
            let at = (counted(i % across) * width, above + counted(i / across) * height);
            let part = area.clone().shrink(at, (width, height));
            text(&part, heading, (2, PANEL_HEADING / 2), Ink::Text, HPos::Left, FONT, FontStyle::Bold)?;
            let top = PANEL_HEADING + 24;
            let layout = Layout::within(&peers, plot, (width, height - top - BELOW - 10), top, 5);
            paint(&part, plot, &layout)?;
        }
        Ok(())
    }
}

fn legend(area: &Area<'_>, plot: &Plot, width: i32) -> Drawn {
    let named: Vec<_> = plot.series.iter().filter(|series| !series.name.is_empty()).collect();
    for (i, x, row) in legend_places(named.iter().map(|series| series.name.as_str()), width) {
        let y = row * LEGEND_LINE + 10;
        swatch(area, named[i], (x, y))?;
        text(area, &named[i].name, (x + 18, y), Ink::Text, HPos::Left, FONT, FontStyle::Normal)?;
    }
    Ok(())
}

fn paint(area: &Area<'_>, plot: &Plot, layout: &Layout) -> Drawn {
    grid(area, plot, layout)?;
    for series in &plot.series {
        curve(area, series, layout)?;
    }
    // Words keep off all dots and squares.
    let half = |mark| if mark == Mark::Dots { 4 } else { 6 };
    let around = |series: &Series| {
        let half = half(series.mark);
        let places = placed(series, layout).into_iter().flatten();
        places.map(|(x, y)| (x - half, y - half, x + half, y + half)).collect::<Vec<Taken>>()
    };
    let marked = plot.series.iter().filter(|series| series.mark.is_alone());
    let mut taken: Vec<Taken> = marked.flat_map(around).collect();
    for series in &plot.series {
        words(area, series, layout, &mut taken)?;
    }
    Ok(())
}

fn swatch(area: &Area<'_>, series: &Series, (x, y): (i32, i32)) -> Drawn {
    match series.mark {
        Mark::Line => stroke(area, series.ink, (x, y), (x + 12, y)),
        Mark::Dashed => dashes(area, series.ink, (x, y), (x + 12, y)),
        Mark::Squares => rectangle(area, series.ink, (x, y - 6), (x + 12, y + 6)),
        mark if mark.is_alone() => mark.point(area, series.ink, (x + 6, y)),
        mark => {
            stroke(area, series.ink, (x, y), (x + 12, y))?;
            mark.point(area, series.ink, (x + 6, y))
        }
    }
}

fn grid(area: &Area<'_>, plot: &Plot, layout: &Layout) -> Drawn {
    let ((left, right), (bottom, top)) = (layout.x.pixels, layout.y.pixels);
    let small = FONT - 1.0;
    for tick in &layout.x.ticks {
        let Some(x) = layout.x.at(*tick) else { continue };
        line(area, Ink::Grid, (x, top), (x, bottom))?;
        text(area, &(plot.x.tick)(*tick), (x, bottom + 12), Ink::Muted, HPos::Center, small, FontStyle::Normal)?;
    }
    for tick in &layout.y.ticks {
        let Some(y) = layout.y.at(*tick) else { continue };
        line(area, Ink::Grid, (left, y), (right, y))?;
        text(area, &(plot.y.tick)(*tick), (left - 6, y), Ink::Muted, HPos::Right, small, FontStyle::Normal)?;
    }
    let middle = i32::midpoint(left, right);
    text(area, &plot.x.name, (middle, bottom + 32), Ink::Muted, HPos::Center, small, FontStyle::Normal)?;
    text(area, &plot.y.name, (2, top - 14), Ink::Muted, HPos::Left, small, FontStyle::Normal)
}

fn placed(series: &Series, layout: &Layout) -> Vec<Option<(i32, i32)>> {
    series.points.iter().map(|(x, y)| layout.x.at(*x).zip(layout.y.at(*y))).collect()
}

fn curve(area: &Area<'_>, series: &Series, layout: &Layout) -> Drawn {
    let places = placed(series, layout);
    for pair in places.windows(2) {
        if let [Some(from), Some(to)] = *pair {
            match series.mark {
                Mark::Line | Mark::DottedLine => stroke(area, series.ink, from, to)?,
                Mark::Dashed => dashes(area, series.ink, from, to)?,
                _ => {}
            }
        }
    }
    for (x, y) in places.into_iter().flatten() {
        series.mark.point(area, series.ink, (x, y))?;
    }
    Ok(())
}

/// A place taken by words: left, top, right, bottom.
type Taken = (i32, i32, i32, i32);

/// Words beside points, where no other words or points stand: above or below, right or left, farther away where they must, and then
/// with a line to the point.
fn words(area: &Area<'_>, series: &Series, layout: &Layout, taken: &mut Vec<Taken>) -> Drawn {
    const HALF: i32 = 6;
    const AWAY: [i32; 14] = [-7, 8, -19, 20, -31, 32, -43, 44, -55, 56, -67, 68, -79, 80];
    const NEAR: i32 = 12;
    for (at, word) in placed(series, layout).into_iter().zip(&series.labels) {
        let Some((x, y)) = at else { continue };
        let wide = pixels(word.chars().count()) * 10 / 12;
        let right = |from: i32| (x + from, HPos::Left, x + from, x + from + wide);
        let left = |from: i32| (x - from, HPos::Right, x - from - wide, x - from);
        let sides = [right(8), left(8), right(26), left(26)];
        let fits = |left: i32, right: i32| left > layout.x.pixels.0 && right < layout.width;
        let inside = |y: i32| y - HALF > layout.y.pixels.1 && y + HALF < layout.y.pixels.0;
        let free = |box_: Taken, taken: &[Taken]| {
            taken.iter().all(|t| box_.2 < t.0 || t.2 < box_.0 || box_.3 < t.1 || t.3 < box_.1)
        };
        let places = AWAY.into_iter().flat_map(|dy| sides.iter().map(move |side| (dy, side)));
        let mut places = places
            .filter(|(dy, side)| fits(side.2, side.3) && inside(y + dy))
            .map(|(dy, side)| (side.0, side.1, y + dy, (side.2, y + dy - HALF, side.3, y + dy + HALF)));
        let Some((at_x, anchor, at_y, place)) = places.find(|(.., place)| free(*place, taken)) else { continue };
        if (at_y - y).abs() > NEAR || (at_x - x).abs() > NEAR {
            line(area, Ink::Muted, (x, y), (at_x, at_y))?;
        }
        let (x, y) = (at_x, at_y);
        taken.push(place);
        text(area, word, (x, y), Ink::Text, anchor, FONT - 2.0, FontStyle::Normal)?;
    }
    Ok(())
}

/// A line of two pixels.
fn stroke(area: &Area<'_>, ink: Ink, from: (i32, i32), to: (i32, i32)) -> Drawn {
    line(area, ink, from, to)?;
    line(area, ink, (from.0, from.1 + 1), (to.0, to.1 + 1))
}

fn dashes(area: &Area<'_>, ink: Ink, from: (i32, i32), to: (i32, i32)) -> Drawn {
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let count = (dx.abs().max(dy.abs()) / 8).max(1);
    let at = |k: i32, tenths: i32| {
        let part = |d: i32| d * (10 * k + tenths) / (10 * count);
        (from.0 + part(dx), from.1 + part(dy))
    };
    (0..count).try_for_each(|k| stroke(area, ink, at(k, 0), at(k, 6)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::paint::svg;

    fn axis(spacing: Spacing) -> Axis {
        Axis { name: "things".into(), spacing, tick: |x| x.to_string() }
    }

    #[test]
    fn axes_have_few_round_ticks_that_cover_the_values() {
        assert_eq!(linear(0.3, 97.0, 6).2, [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(linear(-0.4, 1.7, 6).2, [-0.5, 0.0, 0.5, 1.0, 1.5, 2.0]);
        assert_eq!(powers(1.0, 64.0, 2.0, 10).2, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]);
        let (from, to, _) = powers(0.02, 40.0, 10.0, 6);
        assert!((from - 0.01).abs() < 1e-12 && (to - 100.0).abs() < 1e-9);
    }

    #[test]
    fn a_doubling_is_as_far_everywhere_on_a_logarithmic_axis() {
        let ruler = Ruler::of([1.0, 16.0].into_iter(), Spacing::Powers2, (0, 400), 10);
        assert_eq!([1.0, 2.0, 4.0, 8.0, 16.0].map(|v| ruler.at(v)), [0, 100, 200, 300, 400].map(Some));
        assert_eq!((ruler.at(0.0), ruler.at(-1.0), ruler.at(32.0)), (None, None, None));
    }

    #[test]
    fn zero_lies_in_the_middle_of_a_symmetric_axis_and_both_signs_are_as_far() {
        let ruler = Ruler::of([0.0, 0.004, -0.3].into_iter(), Spacing::Symmetric(0.001), (0, 400), 9);
        assert_eq!((ruler.from, ruler.to), (-1.0, 1.0));
        assert_eq!(
            [-1.0, -0.1, -0.001, 0.0, 0.001, 0.01, 1.0].map(|v| ruler.at(v)),
            [0, 50, 150, 200, 250, 300, 400].map(Some)
        );
        assert!(ruler.ticks.iter().any(|tick| tick.abs() < 1e-12) && ruler.ticks.len() == 9, "{:?}", ruler.ticks);
        // Nothing but zeros: they are not at an edge, where half of each dot is cut off.
        let zeros = Ruler::of([0.0, 0.0].into_iter(), Spacing::Symmetric(0.001), (0, 400), 9);
        assert_eq!(zeros.at(0.0), Some(200));
    }

    #[test]
    fn nothing_and_what_cannot_be_shown_still_make_a_drawing() {
        for points in [vec![], vec![(0.0, f64::NAN), (f64::INFINITY, -1.0)], vec![(5.0, 5.0)]] {
            for spacing in [Spacing::Linear, Spacing::Powers2, Spacing::Powers10, Spacing::Symmetric(0.01)] {
                let lines = [Mark::DottedLine, Mark::Line, Mark::Dashed].into_iter();
                let series: Vec<_> =
                    lines.chain(Mark::SHAPES).map(|mark| Series::new(Ink::Blue, "<b>", mark, points.clone())).collect();
                let plot = Plot { x: axis(spacing), y: axis(spacing), series };
                for shape in [Shape::Wide, Shape::Narrow] {
                    let svg = svg(&plot, shape).unwrap();
                    assert!(svg.ends_with("</svg>\n") && !svg.contains("<b>"));
                }
            }
        }
    }
}
