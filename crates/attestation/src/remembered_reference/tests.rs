#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::sync::atomic::{AtomicUsize, Ordering};

use dstack_measurement::{acpi::AcpiDigests, td_hob::TdHobWitness, tdx::OvmfVariant};

use super::*;

/// Registers that name the number of the computation.
struct Counted(AtomicUsize);

impl ImageReference for Counted {
    fn expected(&self, _: &ImageMeasurement, config: &VmConfig, _: AcpiSource) -> Result<LaunchRegisters, String> {
        let computation = self.0.fetch_add(1, Ordering::Relaxed);
        if config.hugepages {
            return Err("no reference".to_owned());
        }
        let mut mrtd = [0; 48];
        mrtd[..8].copy_from_slice(&computation.to_be_bytes());
        Ok(LaunchRegisters { mrtd, rtmr: [[0; 48]; 3] })
    }

    fn expected_by_hash(&self, hash: &OsImageHash, _: &VmConfig, _: AcpiSource) -> Option<Result<LaunchRegisters, String>> {
        (*hash == OsImageHash::new([5; 32])).then(|| Err("by hash".to_owned()))
    }
}

fn image(kernel: u8) -> ImageMeasurement {
    let digest = [1; 48];
    ImageMeasurement {
        cmdline_sha384: digest,
        kernel_authenticode: [kernel; 48],
        initrd_sha384: digest,
        ovmf: OvmfVariant::Pre202505,
        mrtd_single_pass: digest,
        mrtd_two_pass: digest,
        td_hob: TdHobWitness::decode(&[0, 0, 1, 0, 1]).unwrap(),
        unpatched_kernel: None,
    }
}

fn config(cpu_count: u32) -> VmConfig {
    VmConfig {
        cpu_count,
        memory_size: 2 << 30,
        num_nics: 1,
        qemu_version: Some("10.0.2".to_owned()),
        host_share_mode: "vhd".to_owned(),
        ..VmConfig::default()
    }
}

fn remembered() -> RememberedReference<Counted> {
    RememberedReference::new(Counted(AtomicUsize::new(0)))
}

#[test]
fn computes_a_machine_once() {
    let remembered = remembered();
    let first = remembered.expected(&image(1), &config(2), AcpiSource::SoftwareTee).unwrap();
    assert!(remembered.expected(&image(1), &config(2), AcpiSource::SoftwareTee).unwrap() == first);
    assert_eq!(remembered.reference.0.load(Ordering::Relaxed), 1);
}

#[test]
fn another_image_shape_or_table_is_another_machine() {
    let remembered = remembered();
    let tables = AcpiDigests { loader: [2; 48], rsdp: [3; 48], tables: [4; 48] };
    let machines = [
        (image(1), config(2), AcpiSource::SoftwareTee),
        (image(2), config(2), AcpiSource::SoftwareTee),
        (image(1), config(3), AcpiSource::SoftwareTee),
        (image(1), config(2), AcpiSource::Log(tables)),
        (image(1), config(2), AcpiSource::Log(AcpiDigests { rsdp: [5; 48], ..tables })),
    ];
    for (number, (image, config, acpi)) in machines.iter().enumerate() {
        let registers = remembered.expected(image, config, *acpi).unwrap();
        assert_eq!(registers.mrtd[..8], number.to_be_bytes());
    }
}

#[test]
fn does_not_remember_a_failure() {
    let remembered = remembered();
    let config = VmConfig { hugepages: true, ..config(2) };
    for _ in 0..2 {
        assert!(remembered.expected(&image(1), &config, AcpiSource::SoftwareTee).is_err());
    }
    assert_eq!(remembered.reference.0.load(Ordering::Relaxed), 2);
}

#[test]
fn holds_a_bounded_number() {
    let remembered = remembered();
    for cpus in 1..=u32::try_from(CAPACITY).unwrap() + 5 {
        remembered.expected(&image(1), &config(cpus), AcpiSource::SoftwareTee).unwrap();
    }
    assert_eq!(remembered.known().len(), CAPACITY);
}

#[test]
fn images_without_document_are_left_to_the_reference() {
    let by_hash = |byte| remembered().expected_by_hash(&OsImageHash::new([byte; 32]), &config(2), AcpiSource::SoftwareTee);

    assert_eq!(by_hash(5).map(Result::err), Some(Some("by hash".to_owned())));
    assert!(by_hash(6).is_none());
}
