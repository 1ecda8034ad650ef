//! Derivation tree, signature chains and the sealed environment.
