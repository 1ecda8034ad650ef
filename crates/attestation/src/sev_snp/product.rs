//! AMD's product lines. Each has its own root, its own layout of TCB versions, and its CPU models.

use std::fmt;

/// A line of processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Product {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004 and 8004 (Genoa, Bergamo, Siena).
    Genoa,
    /// EPYC 9005.
    Turin,
}

impl Product {
    const ALL: [Self; 3] = [Self::Milan, Self::Genoa, Self::Turin];

    /// Name in AMD's certificates.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Milan => "Milan",
            Self::Genoa => "Genoa",
            Self::Turin => "Turin",
        }
    }

    /// The line of a name in a certificate, with or without its stepping: `Milan`, `Milan-B0`.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        let line = name.split_once('-').map_or(name, |(line, _)| line);
        Self::ALL.into_iter().find(|product| product.name() == line)
    }

    /// The line of a CPU, by the family and model that reports of version 3 and later name.
    pub(super) fn from_cpuid(family: u8, model: u8) -> Option<Self> {
        match (family, model) {
            (0x19, 0x00..=0x0f) => Some(Self::Milan),
            (0x19, 0x10..=0x1f | 0xa0..=0xaf) => Some(Self::Genoa),
            (0x1a, 0x00..=0x11) => Some(Self::Turin),
            _ => None,
        }
    }

    /// Bytes of a chip id that identify the chip; the rest is zero.
    pub(super) const fn chip_id_len(self) -> usize {
        match self {
            Self::Milan | Self::Genoa => 64,
            Self::Turin => 8,
        }
    }

    /// ASK: issuer of VCEKs.
    pub(super) const fn vcek_issuer(self) -> &'static [u8] {
        match self {
            Self::Milan => include_bytes!("../../intermediates/amd-sev-milan.der"),
            Self::Genoa => include_bytes!("../../intermediates/amd-sev-genoa.der"),
            Self::Turin => include_bytes!("../../intermediates/amd-sev-turin.der"),
        }
    }

    /// ASVK: issuer of VLEKs.
    pub(super) const fn vlek_issuer(self) -> &'static [u8] {
        match self {
            Self::Milan => include_bytes!("../../intermediates/amd-sev-vlek-milan.der"),
            Self::Genoa => include_bytes!("../../intermediates/amd-sev-vlek-genoa.der"),
            Self::Turin => include_bytes!("../../intermediates/amd-sev-vlek-turin.der"),
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_certificates_may_carry_a_stepping() {
        for (name, product) in [
            ("Milan", Some(Product::Milan)),
            ("Milan-B0", Some(Product::Milan)),
            ("Genoa-B1", Some(Product::Genoa)),
            ("Turin", Some(Product::Turin)),
            ("Venice", None),
            ("milan", None),
            ("", None),
            ("-Milan", None),
        ] {
            assert_eq!(Product::from_name(name), product, "{name}");
        }
    }

    #[test]
    fn cpu_models_belong_to_their_line() {
        for (family, model, product) in [
            (0x19, 0x00, Some(Product::Milan)),
            (0x19, 0x01, Some(Product::Milan)),
            (0x19, 0x0f, Some(Product::Milan)),
            (0x19, 0x10, Some(Product::Genoa)),
            (0x19, 0x11, Some(Product::Genoa)),
            (0x19, 0x1f, Some(Product::Genoa)),
            (0x19, 0x20, None),
            (0x19, 0x9f, None),
            (0x19, 0xa0, Some(Product::Genoa)),
            (0x19, 0xaf, Some(Product::Genoa)),
            (0x19, 0xb0, None),
            (0x1a, 0x00, Some(Product::Turin)),
            (0x1a, 0x11, Some(Product::Turin)),
            (0x1a, 0x12, None),
            (0x17, 0x31, None),
        ] {
            assert_eq!(Product::from_cpuid(family, model), product, "{family:#x} {model:#x}");
        }
    }
}
