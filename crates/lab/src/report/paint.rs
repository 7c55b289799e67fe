//! What all drawings share: colours by meaning, the two shapes of page, and a few marks in whole pixels, so that the same data
//! gives the same bytes.
//!
//! Each figure is drawn twice, for a wide and a narrow page: scaling one drawing down would leave its text unreadable. Colours
//! are those of a light page; a style sheet maps them for a dark one ([`Ink`]).

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::canvas::Canvas;

/// A colour by meaning. The data colours are Okabe and Ito's, distinguishable with all common colour vision.
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
            Self::Blue => (0x0000_72b2, 0x0056_b4e9),
            Self::Green => (0x0000_9e73, 0x0034_cfa2),
            Self::Vermillion => (0x00d5_5e00, 0x00ff_8a3d),
            Self::Purple => (0x00cc_79a7, 0x00e6_a8cb),
            Self::Orange => (0x00e6_9f00, 0x00f2_c14e),
            Self::Grey => (0x007f_7f7f, 0x00a9_a9a9),
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
const CHARACTER: usize = 76;
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
