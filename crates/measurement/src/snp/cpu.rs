//! CPUID signatures of the CPU models a VM can be given. The signature is in RDX of each vCPU at start, hence in the launch digest.

use std::str::FromStr;

/// A CPU model that is not one of EPYC.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("CPU model {name:?} is not a known EPYC model")]
pub struct UnknownCpuModel {
    /// What was asked for, shortened.
    pub name: String,
}

/// Family, model and stepping as `CPUID Fn0000_0001_EAX` gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuSignature(u32);

impl CpuSignature {
    /// QEMU's `EPYC` of any version.
    pub const EPYC: Self = Self::new(23, 1, 2);
    /// QEMU's `EPYC-Rome` of any version.
    pub const ROME: Self = Self::new(23, 49, 0);
    /// QEMU's `EPYC-Milan` of any version.
    pub const MILAN: Self = Self::new(25, 1, 1);
    /// QEMU's `EPYC-Genoa` of any version.
    pub const GENOA: Self = Self::new(25, 17, 0);
    /// QEMU's `EPYC-Turin` of any version.
    pub const TURIN: Self = Self::new(26, 0, 0);
    /// Every model with a name.
    pub const ALL: [Self; 5] = [Self::EPYC, Self::ROME, Self::MILAN, Self::GENOA, Self::TURIN];

    /// The signature of a family (up to 270), a model and a stepping (up to 15). Source: AMD CPUID specification 25481.
    #[must_use]
    pub const fn new(family: u32, model: u32, stepping: u32) -> Self {
        let (base, extended) = if family > 15 { (15, family - 15) } else { (family, 0) };
        Self((extended & 0xff) << 20 | (model >> 4 & 15) << 16 | base << 8 | (model & 15) << 4 | stepping & 15)
    }

    /// A signature as a number.
    #[must_use]
    pub const fn from_value(value: u32) -> Self {
        Self(value)
    }

    /// The number.
    #[must_use]
    pub const fn value(self) -> u32 {
        self.0
    }

    /// QEMU's name without version, if the model has one.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        let names = ["EPYC", "EPYC-Rome", "EPYC-Milan", "EPYC-Genoa", "EPYC-Turin"];
        Self::ALL.iter().zip(names).find(|(model, _)| **model == self).map(|(_, name)| name)
    }
}

impl FromStr for CpuSignature {
    type Err = UnknownCpuModel;

    /// Reads QEMU's name of the model, such as `EPYC-v4` or `EPYC-Milan`. All versions of a model have its signature.
    fn from_str(name: &str) -> Result<Self, UnknownCpuModel> {
        let unversioned = match name.rsplit_once("-v") {
            Some((model, version)) if matches!(version.as_bytes(), [b'1'..=b'9']) => model,
            _ => name,
        };
        match unversioned {
            "EPYC" => Ok(Self::EPYC),
            "EPYC-IBPB" if unversioned == name => Ok(Self::EPYC),
            "EPYC-Rome" => Ok(Self::ROME),
            "EPYC-Milan" => Ok(Self::MILAN),
            "EPYC-Genoa" => Ok(Self::GENOA),
            "EPYC-Turin" => Ok(Self::TURIN),
            _ => Err(UnknownCpuModel { name: name.chars().take(64).collect() }),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_of_the_cpuid_leaf() {
        let values = CpuSignature::ALL.map(CpuSignature::value);

        assert_eq!(values, [0x0080_0f12, 0x0083_0f10, 0x00a0_0f11, 0x00a1_0f10, 0x00b0_0f00]);
        assert_eq!(CpuSignature::new(6, 0x8f, 8).value(), 0x0008_06f8);
    }

    #[test]
    fn versions_of_a_model_share_its_signature_and_unknown_names_are_refused() {
        for (name, model) in [
            ("EPYC", "EPYC"),
            ("EPYC-v4", "EPYC"),
            ("EPYC-IBPB", "EPYC"),
            ("EPYC-Rome-v3", "EPYC-Rome"),
            ("EPYC-Milan-v2", "EPYC-Milan"),
            ("EPYC-Genoa", "EPYC-Genoa"),
            ("EPYC-Turin-v1", "EPYC-Turin"),
        ] {
            assert_eq!(name.parse::<CpuSignature>().unwrap().name(), Some(model), "{name}");
        }
        for name in ["", "epyc", "EPYC-", "EPYC-v", "EPYC-v0", "EPYC-v10", "EPYC-v44", "EPYC-IBPB-v1", "EPYC-Naples", "host"] {
            assert_eq!(name.parse::<CpuSignature>(), Err(UnknownCpuModel { name: name.into() }));
        }
        assert_eq!(CpuSignature::from_value(7).name(), None);
    }
}
