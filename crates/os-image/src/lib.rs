//! OS image metadata, store, verity, building and reference values.
