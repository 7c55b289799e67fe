//! What figures are drawn on: SVG, or pixels at twice the size for PNG. One backend for both, so that a drawing is written once.
//!
//! Pixels are laid by plotters' own rasterizer, and text by an outline font that is built in (DejaVu Sans Condensed): the computer's
//! fonts are never asked, and the same figure gives the same bytes.

use std::fmt;

use plotters::prelude::SVGBackend;
use plotters_backend::{BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind};

#[cfg(feature = "png")]
use super::raster::Raster;

/// Why nothing could be drawn.
#[derive(Debug)]
pub(crate) struct Failed(String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

pub(super) type Done = Result<(), DrawingErrorKind<Failed>>;

fn told<E: std::error::Error + Send + Sync>(done: Result<(), DrawingErrorKind<E>>) -> Done {
    done.map_err(|error| DrawingErrorKind::DrawingError(Failed(error.to_string())))
}

/// A surface.
pub(crate) enum Canvas<'a> {
    Vector(SVGBackend<'a>),
    #[cfg(feature = "png")]
    Pixels(&'a mut Raster),
}

/// Does the same on either surface.
macro_rules! either {
    ($canvas:expr, $surface:ident => $act:expr) => {
        match $canvas {
            Canvas::Vector($surface) => told($act),
            #[cfg(feature = "png")]
            Canvas::Pixels($surface) => told($act),
        }
    };
}

impl DrawingBackend for Canvas<'_> {
    type ErrorType = Failed;

    fn get_size(&self) -> (u32, u32) {
        match self {
            Self::Vector(svg) => svg.get_size(),
            #[cfg(feature = "png")]
            Self::Pixels(raster) => raster.get_size(),
        }
    }

    fn ensure_prepared(&mut self) -> Done {
        either!(self, surface => surface.ensure_prepared())
    }

    fn present(&mut self) -> Done {
        either!(self, surface => surface.present())
    }

    fn draw_pixel(&mut self, point: BackendCoord, color: BackendColor) -> Done {
        either!(self, surface => surface.draw_pixel(point, color))
    }

    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Done {
        either!(self, surface => surface.draw_line(from, to, style))
    }

    fn draw_rect<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S, fill: bool) -> Done {
        either!(self, surface => surface.draw_rect(from, to, style, fill))
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(&mut self, path: I, style: &S) -> Done {
        either!(self, surface => surface.draw_path(path, style))
    }

    fn draw_circle<S: BackendStyle>(&mut self, center: BackendCoord, radius: u32, style: &S, fill: bool) -> Done {
        either!(self, surface => surface.draw_circle(center, radius, style, fill))
    }

    fn fill_polygon<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(&mut self, corners: I, style: &S) -> Done {
        either!(self, surface => surface.fill_polygon(corners, style))
    }

    fn draw_text<T: BackendTextStyle>(&mut self, text: &str, style: &T, at: BackendCoord) -> Done {
        either!(self, surface => surface.draw_text(text, style, at))
    }
}
