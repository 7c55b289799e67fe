//! Fits, and how good they are.
//!
//! [`Linear`] least squares by singular values, [`nonlinear`] least squares within bounds by Levenberg and Marquardt, [`Lasso`]
//! by coordinate descent; [`Quality`] of predictions, [`bootstrap`] intervals, [`folds`] for cross-validation and
//! [`held_out`] regions. [`tied`] names parameters that the data cannot tell apart. [`assess`] puts a model's mechanism and its fit side by side.
//!
//! Nothing here depends on time, threads or the order of a hash table; chance comes from ChaCha8 and a seed.

mod assess;
mod bootstrap;
mod data;
mod error;
mod lasso;
mod linear;
mod nonlinear;
mod quality;
mod tied;
mod validate;

pub use assess::{Assessment, FittedParam, Options, assess, fit_model};
pub use bootstrap::{Interval, bootstrap};
pub use data::{Data, Weighting};
pub use error::FitError;
pub use lasso::{Lasso, LassoPath};
pub use linear::Linear;
pub use nonlinear::{Bound, Nonlinear, nonlinear};
pub use quality::{GEOMETRIC_FLOOR, Quality, relative_error};
pub use tied::tied;
pub use validate::{Fold, cross_validate, folds, group_folds, held_out};
