//! Which certificate a report calls for, by the report's own word.

use std::fmt;

use super::{Product, SigningKey, TcbComponents, TcbVersion, UnverifiedReport};

/// Why nobody can be asked for the certificate of the key that signed a report. The certificate must come with the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChipKeyFault {
    /// The host hides the chip.
    #[error("the report does not name its chip, so AMD cannot be asked for the key's certificate")]
    Masked,
    /// Signed with a VLEK, whose certificate only the cloud provider has.
    #[error("the report is signed with a VLEK, whose certificate AMD gives to the cloud provider alone")]
    Loaded,
    /// A CPU of no product line known here.
    #[error("the report is of CPU family {family:#x} model {model:#x}, which is no known product")]
    Product {
        /// CPU family.
        family: u8,
        /// CPU model.
        model: u8,
    },
}

/// The VCEK that a report names: of which chip, at which TCB. Nothing of it is verified: it says what to ask AMD for, no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChipKeyName {
    product: Option<Product>,
    chip_id: [u8; 64],
    tcb: TcbVersion,
}

impl ChipKeyName {
    /// The VCEK that signed `report`, by its own word.
    ///
    /// # Errors
    /// [`ChipKeyFault`].
    pub fn of_report(report: &UnverifiedReport) -> Result<Self, ChipKeyFault> {
        let fields = report.fields();
        if fields.signing_key == SigningKey::Vlek {
            return Err(ChipKeyFault::Loaded);
        }
        if fields.is_chip_masked() {
            return Err(ChipKeyFault::Masked);
        }
        let product = match fields.cpuid {
            Some([family, model, _]) => Some(Product::from_cpuid(family, model).ok_or(ChipKeyFault::Product { family, model })?),
            None => None,
        };
        Ok(Self { product, chip_id: fields.chip_id, tcb: fields.reported_tcb })
    }

    /// Product lines that the chip may be of, the likeliest first. Reports before version 3 do not name their CPU.
    pub fn products(&self) -> impl Iterator<Item = Product> + use<> {
        let candidates = match self.product {
            Some(product) => [Some(product), None],
            None if self.chip_id.iter().skip(Product::Turin.chip_id_len()).all(|byte| *byte == 0) => [Some(Product::Turin), None],
            None => [Some(Product::Milan), Some(Product::Genoa)],
        };
        candidates.into_iter().flatten()
    }

    /// Bytes that name the chip among those of `product`.
    #[must_use]
    pub fn hardware_id(&self, product: Product) -> &[u8] {
        self.chip_id.split_at(product.chip_id_len()).0
    }

    /// TCB that the key is of, as `product` counts it.
    #[must_use]
    pub const fn tcb(&self, product: Product) -> TcbComponents {
        self.tcb.components(product)
    }
}

impl fmt::Display for ChipKeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, _) = self.chip_id.split_at(8);
        write!(f, "SEV-SNP chip {}…, TCB {}", hex::encode(start), self.tcb)
    }
}
