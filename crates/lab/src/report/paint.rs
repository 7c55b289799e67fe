//! What all drawings share: colours by meaning, the two shapes of page, and a few marks in whole pixels, so that the same data
//! gives the same bytes.
//!
//! Each figure is drawn twice, for a wide and a narrow page: scaling one drawing down would leave its text unreadable. Colours
//! are those of a light page; a style sheet maps them for a dark one ([`Ink`]).

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::canvas::Canvas;

/// A colour by meaning. The data colours are Okabe and Ito's with a grey apart from them all, distinguishable with all common colour
/// vision on a light page and on a dark one; a test simulates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ink {
    Text,
    Muted,
    Grid,
    Blue,
    Green,
    Vermillion,
    Purple,
    Orange,
    Grey,
}

impl Ink {
    pub(crate) const ALL: [Self; 9] = [
        Self::Text,
        Self::Muted,
        Self::Grid,
        Self::Blue,
        Self::Green,
        Self::Vermillion,
        Self::Purple,
        Self::Orange,
        Self::Grey,
    ];

    /// On a light page and on a dark one.
    const fn colours(self) -> (u32, u32) {
        match self {
            Self::Text => (0x001c_2530, 0x00e6_edf3),
            Self::Muted => (0x0056_6473, 0x009f_acb9),
            Self::Grid => (0x00d8_dfe6, 0x0033_3c46),
            Self::Blue => (0x0000_72b2, 0x004a_9fd8),
            Self::Green => (0x0000_9e73, 0x0034_cfa2),
            Self::Vermillion => (0x00d5_5e00, 0x00e8_702a),
            Self::Purple => (0x00cc_79a7, 0x00cc_79a7),
            Self::Orange => (0x00e6_9f00, 0x00f2_c14e),
            Self::Grey => (0x0059_5959, 0x006e_6e6e),
        }
    }

    /// As plotters writes it.
    pub(crate) fn light(self) -> String {
        format!("#{:06X}", self.colours().0)
    }

    pub(crate) fn dark(self) -> String {
        format!("#{:06X}", self.colours().1)
    }

    fn rgb(self) -> RGBColor {
        let [_, red, green, blue] = self.colours().0.to_be_bytes();
        RGBColor(red, green, blue)
    }
}

/// For which page a chart is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Wide,
    Narrow,
}

pub(crate) type Area<'a> = DrawingArea<Canvas<'a>, plotters::coord::Shift>;
pub(crate) type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Something that can be drawn in either shape on any surface.
pub(crate) trait Drawing: Send + Sync {
    /// Its width and height in this shape, in pixels.
    fn size(&self, shape: Shape) -> (u32, u32);

    /// Draws it on a surface of that size.
    fn paint(&self, area: &Area<'_>, shape: Shape) -> Drawn;
}

/// A drawing as SVG.
pub(crate) fn svg(drawing: &dyn Drawing, shape: Shape) -> Result<String, String> {
    let mut text = String::new();
    let canvas = Canvas::Vector(SVGBackend::with_string(&mut text, drawing.size(shape)));
    paint_on(canvas, drawing, shape)?;
    Ok(text)
}

/// A drawing as PNG, on white.
#[cfg(feature = "png")]
pub(crate) fn png(drawing: &dyn Drawing, shape: Shape) -> Result<Vec<u8>, String> {
    let mut raster = super::raster::Raster::new(drawing.size(shape));
    paint_on(Canvas::Pixels(&mut raster), drawing, shape)?;
    raster.png()
}

fn paint_on(canvas: Canvas<'_>, drawing: &dyn Drawing, shape: Shape) -> Result<(), String> {
    let area = canvas.into_drawing_area();
    drawing.paint(&area, shape).map_err(|error| error.to_string())?;
    area.present().map_err(|error| error.to_string())
}

pub(crate) const FONT: f64 = 13.0;
/// An estimate of a character's width in tenths of pixels; the backend knows no fonts.
const CHARACTER: usize = 84;
pub(crate) fn counted(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX / 1000)
}

pub(crate) fn pixels(characters: usize) -> i32 {
    counted(characters * CHARACTER / 10)
}

/// Where each entry of a legend stands: its index, x and line.
pub(crate) fn legend_places<'a>(names: impl Iterator<Item = &'a str>, width: i32) -> Vec<(usize, i32, i32)> {
    let (mut x, mut line) = (2, 0);
    let mut places = Vec::new();
    for (i, name) in names.enumerate() {
        let wide = pixels(name.chars().count()) + 34;
        if x + wide > width && x > 2 {
            (x, line) = (2, line + 1);
        }
        places.push((i, x, line));
        x += wide;
    }
    places
}

pub(crate) fn rectangle(area: &Area<'_>, ink: Ink, from: (i32, i32), to: (i32, i32)) -> Drawn {
    Ok(area.draw(&Rectangle::new([from, to], ink.rgb().filled()))?)
}

pub(crate) fn line(area: &Area<'_>, ink: Ink, from: (i32, i32), to: (i32, i32)) -> Drawn {
    Ok(area.draw(&PathElement::new(vec![from, to], ink.rgb()))?)
}

pub(crate) fn text(
    area: &Area<'_>,
    words: &str,
    at: (i32, i32),
    ink: Ink,
    anchor: HPos,
    pixels: f64,
    style: FontStyle,
) -> Drawn {
    // The backend divides sizes by 1.24.
    let font = FontDesc::new(FontFamily::SansSerif, pixels * 1.24, style).color(&ink.rgb());
    Ok(area.draw(&Text::new(words.to_owned(), at, font.pos(Pos::new(anchor, VPos::Center))))?)
}

pub(crate) fn disc(area: &Area<'_>, ink: Ink, at: (i32, i32), radius: i32) -> Drawn {
    Ok(area.draw(&Circle::new(at, radius, ink.rgb().filled()))?)
}

/// A filled shape with these corners.
pub(crate) fn polygon(area: &Area<'_>, ink: Ink, corners: &[(i32, i32)]) -> Drawn {
    Ok(area.draw(&Polygon::new(corners.to_vec(), ink.rgb().filled()))?)
}

/// A circle two pixels wide.
pub(crate) fn ring(area: &Area<'_>, ink: Ink, at: (i32, i32), radius: i32) -> Drawn {
    // Pixels know no width of a circle.
    (radius - 1..=radius).try_for_each(|radius| Ok(area.draw(&Circle::new(at, radius, ink.rgb()))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is seen of linear red, green and blue: Machado, Oliveira, Fernandes, IEEE TVCG 15, 2009, at full severity.
    const VISIONS: [(&str, [[f64; 3]; 3]); 4] = [
        ("trichromat", [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
        (
            "protanope",
            [
                [0.152_286, 1.052_583, -0.204_868],
                [0.114_503, 0.786_281, 0.099_216],
                [-0.003_882, -0.048_116, 1.051_998],
            ],
        ),
        (
            "deuteranope",
            [[0.367_322, 0.860_646, -0.227_968], [0.280_085, 0.672_501, 0.047_413], [-0.011_820, 0.042_940, 0.968_881]],
        ),
        (
            "tritanope",
            [
                [1.255_528, -0.076_749, -0.178_779],
                [-0.078_411, 0.930_809, 0.147_602],
                [0.004_733, 0.691_367, 0.303_900],
            ],
        ),
    ];

    fn times(matrix: &[[f64; 3]; 3], vector: [f64; 3]) -> [f64; 3] {
        matrix.map(|row| row.iter().zip(vector).map(|(a, b)| a * b).sum())
    }

    /// CIE L*a*b* of a colour as somebody sees it.
    fn lab(colour: u32, vision: &[[f64; 3]; 3]) -> [f64; 3] {
        const XYZ: [[f64; 3]; 3] = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]];
        let linear = |byte: u8| {
            let share = f64::from(byte) / 255.0;
            if share <= 0.040_45 { share / 12.92 } else { ((share + 0.055) / 1.055).powf(2.4) }
        };
        let [_, red, green, blue] = colour.to_be_bytes();
        let [x, y, z] = times(&XYZ, times(vision, [red, green, blue].map(linear)));
        let f = |t: f64| if t > 0.008_856 { t.cbrt() } else { 7.787 * t + 16.0 / 116.0 };
        let (x, y, z) = (f(x.max(0.0) / 0.950_47), f(y.max(0.0)), f(z.max(0.0) / 1.088_83));
        [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
    }

    #[test]
    fn data_colours_differ_for_every_common_colour_vision_on_both_pages() {
        let data = [Ink::Blue, Ink::Green, Ink::Vermillion, Ink::Purple, Ink::Orange, Ink::Grey];
        for (who, vision) in &VISIONS {
            for page in [|ink: Ink| ink.colours().0, |ink: Ink| ink.colours().1] {
                for (i, one) in data.into_iter().enumerate() {
                    for other in data.into_iter().skip(i + 1) {
                        let (a, b) = (lab(page(one), vision), lab(page(other), vision));
                        let apart = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
                        // A difference of 2.3 is just noticeable side by side.
                        assert!(apart > 12.0, "{who}: {one:?} and {other:?} are {apart:.1} apart");
                    }
                }
            }
        }
    }
}
