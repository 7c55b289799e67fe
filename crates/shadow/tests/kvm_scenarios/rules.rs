//! Rules that the random recordings do not tell apart.
