//! Releases keys only to measured, allowed code.
