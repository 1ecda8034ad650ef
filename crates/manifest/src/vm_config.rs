//! The VM configuration that goes into evidence: what a verifier needs to recompute the launch measurement.

use serde::{Deserialize, Serialize};

use crate::OsImageHash;

/// How RTMR0 to RTMR2 are checked by verifiers that follow the reference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TdxAttestationVariant {
    /// Download the image and recompute.
    #[default]
    Legacy,
    /// Recompute from the measurement document inside the configuration.
    Lite,
}

impl TdxAttestationVariant {
    fn is_default(&self) -> bool {
        *self == Self::Legacy
    }
}

/// A measurement document with the checksum file that binds it to the OS image hash; both base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasurementDocument {
    /// Bytes of `sha256sum.txt`.
    #[serde(with = "base64_bytes")]
    pub checksum_file: Vec<u8>,
    /// Bytes of the `measurement.*.cbor` it names.
    #[serde(with = "base64_bytes")]
    pub measurement: Vec<u8>,
}

/// What a verifier needs to recompute the launch digest of an SEV-SNP VM; travels as JSON text. Unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnpMeasurementDocument {
    /// Bytes of `sha256sum.txt`.
    #[serde(with = "base64_bytes")]
    pub checksum_file: Vec<u8>,
    /// Bytes of the `measurement.snp.cbor` it names.
    #[serde(with = "base64_bytes")]
    pub measurement: Vec<u8>,
    /// vCPUs at launch.
    pub vcpus: u32,
    /// QEMU's name of the CPU model; absent means `EPYC`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu_type: Option<String>,
    /// `SEV_FEATURES` of each vCPU.
    pub guest_features: u64,
}

mod base64_bytes {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde::Deserialize as _;

    pub(super) fn serialize<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for references")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for references")]
fn is_one(value: &u32) -> bool {
    *value == 1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for references")]
fn is_false(value: &bool) -> bool {
    !*value
}

fn one() -> u32 {
    1
}

/// The `vm_config` document. Written by the host, untrusted until the registers agree with it. Unknown fields are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmConfig {
    /// Always 1 on the wire.
    #[serde(default = "one")]
    pub spec_version: u32,
    /// Which OS image; absent in documents of hosts without images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_image_hash: Option<OsImageHash>,
    /// vCPUs the VM really has.
    #[serde(default)]
    pub cpu_count: u32,
    /// Memory in bytes.
    #[serde(default)]
    pub memory_size: u64,
    /// On the wire `true` selects the *two-pass* page order, against its name.
    #[serde(default, rename = "qemu_single_pass_add_pages", skip_serializing_if = "Option::is_none")]
    pub two_pass_add_pages: Option<bool>,
    /// Legacy interrupt controller; absent means QEMU's default for the version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pic: Option<bool>,
    /// `major.minor.patch` of QEMU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu_version: Option<String>,
    /// Size of the 64-bit PCI hole in bytes; 0 means QEMU's default.
    #[serde(default)]
    pub pci_hole64_size: u64,
    /// Memory from huge pages.
    #[serde(default)]
    pub hugepages: bool,
    /// GPUs passed through.
    #[serde(default)]
    pub num_gpus: u32,
    /// NVSwitches passed through.
    #[serde(default)]
    pub num_nvswitches: u32,
    /// Network cards; absent means 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub num_nics: u32,
    /// Read-only data volumes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub num_verity_volumes: u32,
    /// A software TPM is attached.
    #[serde(default, skip_serializing_if = "is_false")]
    pub swtpm: bool,
    /// PCI hot-plug of the host bridge is off.
    #[serde(default)]
    pub hotplug_off: bool,
    /// The image's name, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// How the host share is attached: `9p`, `vhd` or `vvfat`.
    #[serde(default)]
    pub host_share_mode: String,
    /// Which OVMF event layout the firmware writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ovmf_variant: Option<String>,
    /// How to check the boot registers.
    #[serde(default, skip_serializing_if = "TdxAttestationVariant::is_default")]
    pub tdx_attestation_variant: TdxAttestationVariant,
    /// Material to recompute MRTD and RTMR0 to RTMR2 without the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tdx_measurement: Option<MeasurementDocument>,
    /// A [`SnpMeasurementDocument`] as JSON text: material to recompute the launch digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sev_snp_measurement: Option<String>,
    /// Present when the VM is a software TEE: which platform it stands for, such as `dstack-tdx`. Never set on hardware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub simulated_tee: Option<String>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_left_out_and_read_back() {
        let config = VmConfig { spec_version: 1, num_nics: 1, cpu_count: 2, memory_size: 1 << 31, ..VmConfig::default() };

        let text = serde_json::to_string(&config).unwrap();

        assert!(!text.contains("num_nics") && !text.contains("swtpm") && !text.contains("variant"), "{text}");
        assert_eq!(serde_json::from_str::<VmConfig>(&text).unwrap(), config);
    }

    #[test]
    fn unknown_fields_of_other_hosts_are_ignored() {
        assert!(serde_json::from_str::<VmConfig>(r#"{"cpu_count":1,"future":{}}"#).is_ok());
    }
}
