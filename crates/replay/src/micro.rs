//! The named scenarios of the micro recordings, as data.
