//! Collect evidence from this machine; the simulated provider sits behind a feature.
