//! Evidence formats, cryptographic verification and appraisal; one module per platform.
