//! Extents while processes die or stop: in a model before any access they make, and for real.

mod model;
mod real;
