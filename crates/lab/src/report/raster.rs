//! Pixels at twice the size of a drawing, and what is made of them: a PNG.

use std::convert::Infallible;

use plotters::style::{FontDesc, FontFamily, FontStyle, IntoTextStyle, RGBColor, TextStyle, register_font};
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind, rasterizer,
};

/// Pixels for each pixel of a drawing.
const SCALE: u32 = 2;

/// A surface of pixels, white at first.
pub(crate) struct Raster {
    width: u32,
    height: u32,
    rgb: Vec<u8>,
}

/// Passes pixels on as they come.
struct Fine<'a>(&'a mut Raster);

type Done = Result<(), DrawingErrorKind<Infallible>>;

impl Raster {
    /// For a drawing of this size.
    pub(crate) fn new((width, height): (u32, u32)) -> Self {
        for (style, font) in
            [(FontStyle::Normal, dejavu::sans_condensed::regular()), (FontStyle::Bold, dejavu::sans_condensed::bold())]
        {
            // A font that cannot be read shows where text is laid.
            let _ = register_font("sans-serif", style, font);
        }
        let (width, height) = (width * SCALE, height * SCALE);
        Self { width, height, rgb: vec![u8::MAX; width as usize * height as usize * 3] }
    }

    /// The pixels as PNG.
    pub(crate) fn png(&self) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width, self.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::High);
        let mut writer = encoder.write_header().map_err(|error| error.to_string())?;
        writer.write_image_data(&self.rgb).map_err(|error| error.to_string())?;
        writer.finish().map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "colours between two colours")]
    fn blend(&mut self, (x, y): BackendCoord, BackendColor { alpha, rgb }: BackendColor) {
        let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else { return };
        if x >= self.width || y >= self.height {
            return;
        }
        let at = (y as usize * self.width as usize + x as usize) * 3;
        for (old, new) in self.rgb[at..at + 3].iter_mut().zip([rgb.0, rgb.1, rgb.2]) {
            *old = (f64::from(*old) * (1.0 - alpha) + f64::from(new) * alpha).round() as u8;
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a few pixels")]
fn below(size: f64) -> i32 {
    (0.16 * size).round() as i32
}

const fn large((x, y): BackendCoord) -> BackendCoord {
    (x * SCALE.cast_signed(), y * SCALE.cast_signed())
}

impl DrawingBackend for Fine<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        (self.0.width, self.0.height)
    }

    fn ensure_prepared(&mut self) -> Done {
        Ok(())
    }

    fn present(&mut self) -> Done {
        Ok(())
    }

    fn draw_pixel(&mut self, point: BackendCoord, color: BackendColor) -> Done {
        self.0.blend(point, color);
        Ok(())
    }
}

impl DrawingBackend for Raster {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        (self.width / SCALE, self.height / SCALE)
    }

    fn ensure_prepared(&mut self) -> Done {
        Ok(())
    }

    fn present(&mut self) -> Done {
        Ok(())
    }

    fn draw_pixel(&mut self, point: BackendCoord, color: BackendColor) -> Done {
        self.draw_rect(point, point, &color, true)
    }

    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Done {
        let color = style.color();
        let rgb = RGBColor(color.rgb.0, color.rgb.1, color.rgb.2);
        // A line of one pixel becomes one of two: upright and level ones exactly.
        if from.0 == to.0 || from.1 == to.1 {
            return self.draw_rect(from, to, &color, true);
        }
        let style = plotters::style::ShapeStyle { color: rgb.into(), filled: true, stroke_width: SCALE };
        rasterizer::draw_line(&mut Fine(self), large(from), large(to), &style)
    }

    fn draw_rect<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S, fill: bool) -> Done {
        let (low, high) = ((from.0.min(to.0), from.1.min(to.1)), (from.0.max(to.0), from.1.max(to.1)));
        let (low, high) = (large(low), large(high));
        // The last pixel belongs to it, both halves of it.
        let high = (high.0 + 1, high.1 + 1);
        rasterizer::draw_rect(&mut Fine(self), low, high, &style.color(), fill)
    }

    fn draw_circle<S: BackendStyle>(&mut self, center: BackendCoord, radius: u32, style: &S, fill: bool) -> Done {
        rasterizer::draw_circle(&mut Fine(self), large(center), radius * SCALE, &style.color(), fill)
    }

    fn draw_text<T: BackendTextStyle>(&mut self, text: &str, style: &T, at: BackendCoord) -> Done {
        let BackendColor { rgb, .. } = style.color();
        let family = style.family();
        let size = style.size() * f64::from(SCALE);
        // A font's size is here its height with what goes below the line.
        let font = FontDesc::new(FontFamily::from(family.as_str()), 0.95 * size, style.style());
        let words: TextStyle<'_> = font.color(&RGBColor(rgb.0, rgb.1, rgb.2)).into_text_style(&self.get_size());
        // The rasterizer centres the line's upper part; SVG centres all of it.
        let (x, y) = large(at);
        Fine(self).draw_text(text, &words.pos(style.anchor()), (x, y + below(size)))
    }
}
