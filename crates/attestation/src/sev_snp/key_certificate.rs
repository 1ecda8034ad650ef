//! What the certificate of a chip's key says: product, TCB version, chip or cloud provider.

use x509_parser::{
    certificate::X509Certificate,
    extensions::X509Extension,
    oid_registry::{OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384},
};

use super::{Product, SigningKey, SnpFields, TcbComponents, chain::refuse};
use crate::{Fault, Link, Refusal};

/// Content of the OID 1.3.6.1.4.1.3704.1, under which AMD's extensions stand.
const AMD: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x9c, 0x78, 0x01];

fn malformed(detail: impl std::fmt::Display) -> Refusal {
    refuse(Link::AttestationKey, Fault::Malformed, detail)
}

fn other(detail: impl std::fmt::Display) -> Refusal {
    refuse(Link::AttestationKey, Fault::OtherPlatform, detail)
}

/// AMD's extensions. An extension that stands twice is a fault.
#[derive(Default)]
struct Extensions {
    product_name: Option<String>,
    bootloader: Option<u8>,
    tee: Option<u8>,
    snp: Option<u8>,
    reserved: [Option<u8>; 4],
    microcode: Option<u8>,
    fmc: Option<u8>,
    hardware_id: Option<Vec<u8>>,
    provider: Option<String>,
}

impl Extensions {
    fn read(extensions: &[X509Extension<'_>]) -> Result<Self, Refusal> {
        let mut read = Self::default();
        for extension in extensions {
            let Some(number) = extension.oid.as_bytes().strip_prefix(AMD) else { continue };
            let value = extension.value;
            let twice = match number {
                [2] => set(&mut read.product_name, text(value)),
                [3, 1] => set(&mut read.bootloader, svn(value)),
                [3, 2] => set(&mut read.tee, svn(value)),
                [3, 3] => set(&mut read.snp, svn(value)),
                [3, index @ 4..=7] => {
                    let place = read.reserved.get_mut(usize::from(index - 4));
                    place.map_or(Some(false), |place| set(place, svn(value)))
                }
                [3, 8] => set(&mut read.microcode, svn(value)),
                [3, 9] => set(&mut read.fmc, svn(value)),
                [4] => set(&mut read.hardware_id, Some(octets(value).to_vec())),
                [5] => set(&mut read.provider, text(value)),
                _ => Some(false),
            };
            match twice {
                None => return Err(malformed(format_args!("the value of extension {} cannot be read", extension.oid))),
                Some(true) => return Err(malformed(format_args!("extension {} stands twice", extension.oid))),
                Some(false) => {}
            }
        }
        Ok(read)
    }
}

/// `None`: no value. `Some(true)`: there was one already.
fn set<T>(place: &mut Option<T>, value: Option<T>) -> Option<bool> {
    Some(place.replace(value?).is_some())
}

/// A DER INTEGER from 0 to 255 in its shortest form.
fn svn(value: &[u8]) -> Option<u8> {
    match *value {
        [2, 1, number @ 0..=0x7f] | [2, 2, 0, number @ 0x80..=0xff] => Some(number),
        _ => None,
    }
}

/// A DER IA5String or UTF8String of up to 127 bytes.
fn text(value: &[u8]) -> Option<String> {
    match value {
        [0x0c | 0x16, length @ 0..=0x7f, text @ ..] if usize::from(*length) == text.len() => String::from_utf8(text.to_vec()).ok(),
        _ => None,
    }
}

/// The chip id stands bare, or in an OCTET STRING of its own.
fn octets(value: &[u8]) -> &[u8] {
    match value {
        [4, 64, id @ ..] if id.len() == 64 => id,
        [4, 8, id @ ..] if id.len() == 8 => id,
        bare => bare,
    }
}

/// The certificate of a VCEK or VLEK, with what AMD's extensions say. Not verified by itself.
pub(super) struct KeyCertificate<'a> {
    pub(super) certificate: X509Certificate<'a>,
    pub(super) product: Product,
    pub(super) tcb: TcbComponents,
    /// Chip, of a VCEK.
    hardware_id: Option<Vec<u8>>,
    /// Cloud provider, of a VLEK.
    pub(super) provider: Option<String>,
}

impl<'a> KeyCertificate<'a> {
    pub(super) fn parse(certificate: X509Certificate<'a>) -> Result<Self, Refusal> {
        let algorithm = &certificate.public_key().algorithm;
        let curve = algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        if algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY || curve != Some(OID_NIST_EC_P384) {
            return Err(malformed("the chip's key is not on the curve P-384"));
        }
        let read = Extensions::read(certificate.extensions())?;
        let missing = |name: &str| malformed(format_args!("the certificate of the chip's key has no {name}"));
        let name = read.product_name.ok_or_else(|| missing("product name"))?;
        let product = Product::from_name(&name).ok_or_else(|| other(format_args!("the chip's key is of product {name:?}")))?;
        if read.reserved.iter().any(|number| number.is_some_and(|number| number != 0)) {
            return Err(malformed("a reserved part of the TCB version is not zero"));
        }
        let tcb = TcbComponents {
            fmc: match product {
                Product::Turin => Some(read.fmc.ok_or_else(|| missing("FMC version"))?),
                Product::Milan | Product::Genoa => None,
            },
            bootloader: read.bootloader.ok_or_else(|| missing("boot loader version"))?,
            tee: read.tee.ok_or_else(|| missing("TEE version"))?,
            snp: read.snp.ok_or_else(|| missing("SNP version"))?,
            microcode: read.microcode.ok_or_else(|| missing("microcode version"))?,
        };
        Ok(Self { certificate, product, tcb, hardware_id: read.hardware_id, provider: read.provider })
    }

    /// SEC1 point of the key.
    pub(super) fn public_key(&self) -> &[u8] {
        &self.certificate.public_key().subject_public_key.data
    }

    /// The key is of the product whose authority signed it.
    pub(super) fn of_product(self, product: Product) -> Result<Self, Refusal> {
        if self.product == product {
            return Ok(self);
        }
        Err(other(format_args!("a key of {} under the authority of {product}", self.product)))
    }

    /// The key is the one that a report with `fields` names: of its CPU, its reported TCB and its chip.
    pub(super) fn vouches_for(&self, fields: &SnpFields) -> Result<(), Refusal> {
        let product = self.product;
        if let Some([family, model, _]) = fields.cpuid
            && Product::from_cpuid(family, model) != Some(product)
        {
            return Err(other(format_args!("the report is of CPU family {family:#x} model {model:#x}, the key of {product}")));
        }
        if self.tcb.version(product) != fields.reported_tcb {
            let reported = fields.reported_tcb;
            return Err(other(format_args!("the report is of TCB {reported}, the key of {} ({})", self.tcb.version(product), self.tcb)));
        }
        match fields.signing_key {
            SigningKey::Vcek => self.is_of_chip(&fields.chip_id),
            SigningKey::Vlek if self.provider.is_none() => Err(malformed("the certificate of the VLEK names no cloud provider")),
            SigningKey::Vlek => Ok(()),
        }
    }

    fn is_of_chip(&self, chip_id: &[u8; 64]) -> Result<(), Refusal> {
        let (id, rest) = chip_id.split_at(self.product.chip_id_len());
        match &self.hardware_id {
            None => Err(malformed("the certificate of the VCEK names no chip")),
            Some(hardware_id) if hardware_id == id && rest.iter().all(|byte| *byte == 0) => Ok(()),
            Some(hardware_id) => {
                let named = hex::encode(hardware_id.iter().take(8).copied().collect::<Vec<u8>>());
                Err(other(format_args!("the report is of chip {}…, the key of {named}…", hex::encode(id.split_at(8).0))))
            }
        }
    }
}
