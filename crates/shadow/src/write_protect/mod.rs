//! WP
