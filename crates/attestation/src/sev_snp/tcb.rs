//! Security versions of a platform's firmware.

use std::fmt;

use super::Product;

/// Eight bytes that name the versions of everything a chip's keys depend on. What each byte means depends on the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TcbVersion(pub [u8; 8]);

/// The parts of a [`TcbVersion`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TcbComponents {
    /// First firmware of the chip; from Turin on.
    pub fmc: Option<u8>,
    /// Boot loader of the security processor.
    pub bootloader: u8,
    /// Operating system of the security processor.
    pub tee: u8,
    /// SNP firmware.
    pub snp: u8,
    /// Lowest microcode version of all cores.
    pub microcode: u8,
}

impl TcbVersion {
    /// The parts as `product` lays them out. Bytes without a meaning are left out.
    #[must_use]
    pub const fn components(self, product: Product) -> TcbComponents {
        match (product, self.0) {
            (Product::Milan | Product::Genoa, [bootloader, tee, _, _, _, _, snp, microcode]) => {
                TcbComponents { fmc: None, bootloader, tee, snp, microcode }
            }
            (Product::Turin, [fmc, bootloader, tee, snp, _, _, _, microcode]) => {
                TcbComponents { fmc: Some(fmc), bootloader, tee, snp, microcode }
            }
        }
    }
}

impl TcbComponents {
    /// The bytes as `product` lays them out, with zeros where no part stands.
    #[must_use]
    pub const fn version(self, product: Product) -> TcbVersion {
        let Self { fmc, bootloader, tee, snp, microcode } = self;
        TcbVersion(match (product, fmc) {
            (Product::Milan | Product::Genoa, _) => [bootloader, tee, 0, 0, 0, 0, snp, microcode],
            (Product::Turin, Some(fmc)) => [fmc, bootloader, tee, snp, 0, 0, 0, microcode],
            (Product::Turin, None) => [0, bootloader, tee, snp, 0, 0, 0, microcode],
        })
    }
}

impl fmt::Display for TcbVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Display for TcbComponents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(fmc) = self.fmc {
            write!(f, "FMC {fmc}, ")?;
        }
        let Self { bootloader, tee, snp, microcode, .. } = self;
        write!(f, "boot loader {bootloader}, TEE {tee}, SNP {snp}, microcode {microcode}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stand_where_the_product_puts_them() {
        let version = TcbVersion([1, 2, 0, 0, 0, 0, 7, 8]);
        let milan = TcbComponents { fmc: None, bootloader: 1, tee: 2, snp: 7, microcode: 8 };
        assert_eq!(version.components(Product::Milan), milan);
        assert_eq!(version.components(Product::Genoa), milan);
        assert_eq!(milan.version(Product::Genoa), version);
        assert_eq!(milan.to_string(), "boot loader 1, TEE 2, SNP 7, microcode 8");

        let version = TcbVersion([1, 2, 3, 4, 0, 0, 0, 8]);
        let turin = TcbComponents { fmc: Some(1), bootloader: 2, tee: 3, snp: 4, microcode: 8 };
        assert_eq!(version.components(Product::Turin), turin);
        assert_eq!(turin.version(Product::Turin), version);
        assert_eq!(turin.to_string(), "FMC 1, boot loader 2, TEE 3, SNP 4, microcode 8");
    }
}
