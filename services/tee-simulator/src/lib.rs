//! The software TEE: registers and real TDX quotes under a generated vendor root.
