//! The launch measurement that an OS image and a VM configuration must produce.
//!
//! Everything here is a pure function of bytes: firmware, kernel, initrd, command line and the
//! shape of the VM come in as arguments, registers and the boot event log go out. Inputs are
//! untrusted; parsers are bounded and return an error for whatever they do not understand. A shape
//! that is not modelled is answered with a typed `Unsupported` error, never with a guess.
//!
//! - [`tdvf`]: the metadata of a TDX capable firmware; [`mrtd`]: the register built while its
//!   pages are added.
//! - [`td_hob`]: the memory map that QEMU hands to the firmware (first event of RTMR0).
//! - [`kernel`], [`kernel_blob`], [`authenticode`]: the kernel image as the firmware sees it (RTMR1).
//! - [`acpi`]: the ACPI tables QEMU builds for our command line (three events of RTMR0).
//! - [`tdx`]: the image document `measurement.tdx.cbor`, and [`tdx::expected`], which joins all.
//! - [`snp`]: the same for AMD SEV-SNP, whose one register covers firmware, kernel hashes and vCPUs.
//! - [`checksum`]: `sha256sum.txt`, `os_image_hash`, and the line that binds the document.
//!
//! `SPEC.md` beside this crate holds the byte layouts and the order of events.

pub mod acpi;
pub mod authenticode;
pub mod boot_event;
pub mod checksum;
mod document_format;
mod guid_table;
mod hash;
pub mod kernel;
pub mod kernel_blob;
pub mod mrtd;
mod reader;
mod shape;
pub mod snp;
pub mod td_hob;
pub mod tdvf;
pub mod tdx;

pub use boot_event::{BootEvent, replay};
pub use document_format::DocumentFormatError;
pub use hash::{Sha384, sha384};
pub use shape::{HostShareMode, PageAddOrder, QemuVersion, RootDisk, ShapeError, VmShape};

/// A SHA-384 digest or the value of a measurement register.
pub type Digest384 = [u8; 48];
