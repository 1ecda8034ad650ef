//! Certificates that carry evidence: issue, parse, and the rustls verifiers.
