//! What QEMU and the host can do, found out by doing it.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, Command},
};

use super::Accelerator;
use crate::{VmmError, config::AcceleratorChoice};

const VERSION_DEADLINE: Duration = Duration::from_secs(10);
/// A guest of a few thousand instructions takes milliseconds where KVM works.
const KVM_DEADLINE: Duration = Duration::from_secs(3);
const MAX_STDERR_BYTES: u64 = 64 << 10;
const ROM_SIZE: usize = 64 << 10;
/// The guest writes 0x2a to the exit device; QEMU ends with `(0x2a << 1) | 1`.
const EXIT_CODE: i32 = 0x55;

/// The accelerator and how it came to be chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// What VMs run with.
    pub accelerator: Accelerator,
    /// Why, for a person.
    pub reason: String,
}

/// Finds a program: a path as it is, a bare name in the usual directories.
pub(crate) fn find_program(name: &Path) -> PathBuf {
    if name.components().count() > 1 {
        return name.to_owned();
    }
    let directories = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&directories).map(|directory| directory.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| name.to_owned())
}

/// `major.minor.patch` of a QEMU.
///
/// Errors: it cannot be run, or says something else.
pub async fn probe_version(qemu: &Path) -> Result<String, VmmError> {
    let failed = |reason: String| VmmError::Qemu { path: qemu.to_owned(), reason };
    let output = Command::new(qemu).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(VERSION_DEADLINE, output).await.map_err(|_| failed("no answer to --version".to_owned()))?;
    let output = output.map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_version(&text).ok_or_else(|| failed("its --version is not understood".to_owned()))
}

fn parse_version(text: &str) -> Option<String> {
    let word = text.strip_prefix("QEMU emulator version ")?.split_ascii_whitespace().next()?;
    let numbers = word.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    (numbers && word.split('.').count() == 3).then(|| word.to_owned())
}

/// Chooses the accelerator; with `Auto` a tiny guest is really run under KVM.
pub async fn probe_accelerator(qemu: &Path, choice: AcceleratorChoice, tcg_cpu: &str) -> Probed {
    let tcg = Accelerator::Tcg { cpu: tcg_cpu.to_owned() };
    match choice {
        AcceleratorChoice::Kvm => Probed { accelerator: Accelerator::Kvm, reason: "configured".to_owned() },
        AcceleratorChoice::Tcg => Probed { accelerator: tcg, reason: "configured".to_owned() },
        AcceleratorChoice::Auto => match try_kvm(qemu).await {
            Ok(()) => Probed { accelerator: Accelerator::Kvm, reason: "a test guest ran under KVM".to_owned() },
            Err(reason) => Probed { accelerator: tcg, reason: format!("KVM is not usable: {reason}") },
        },
    }
}

async fn try_kvm(qemu: &Path) -> Result<(), String> {
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        return Err(format!("/dev/kvm: {error}"));
    }
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let rom = directory.path().join("probe.rom");
    std::fs::write(&rom, probe_rom()).map_err(|error| error.to_string())?;
    let guest = Command::new(qemu)
        .args(["-accel", "kvm", "-cpu", "host", "-machine", "q35,kernel-irqchip=split", "-smp", "1", "-m", "64M"])
        .args(["-nodefaults", "-display", "none", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04", "-bios"])
        .arg(&rom)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{}: {error}", qemu.display()))?;
    match tokio::time::timeout(KVM_DEADLINE, outcome(guest)).await {
        Err(_) => Err(format!("a test guest did not end in {} s", KVM_DEADLINE.as_secs())),
        Ok(outcome) => outcome,
    }
}

/// Waits until the test guest ended, or stands still: after an internal error of KVM, QEMU says so and waits for ever.
async fn outcome(mut guest: Child) -> Result<(), String> {
    let mut said = None;
    if let Some(stderr) = guest.stderr.take() {
        let mut lines = BufReader::new(stderr.take(MAX_STDERR_BYTES)).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let line = dstack_service::text::clean(line.trim_start_matches("qemu-system-x86_64: "), 160);
            if line.starts_with("KVM internal error") {
                return Err("a test guest met an instruction that this machine's KVM cannot run".to_owned());
            }
            if said.is_none() && !line.trim().is_empty() {
                said = Some(line);
            }
        }
    }
    match guest.wait().await {
        Ok(status) if status.code() == Some(EXIT_CODE) => Ok(()),
        Ok(status) => Err(format!("a test guest failed ({status}): {}", said.as_deref().unwrap_or("QEMU said nothing"))),
        Err(error) => Err(error.to_string()),
    }
}

/// Firmware that counts a while, asks CPUID, sets up the FPU and SSE as real firmware does, and leaves through the exit device. 16-bit
/// code at the reset vector's page.
fn probe_rom() -> Vec<u8> {
    // `cpuid` destroys cx, so the counter lives in di.
    const CODE: &[u8] = &[
        0xbf, 0x40, 0x00, // mov di, 64
        0x66, 0x31, 0xc0, // again: xor eax, eax
        0x0f, 0xa2, // cpuid
        0x0f, 0x31, // rdtsc
        0x4f, // dec di
        0x75, 0xf6, // jnz again
        // Hosts that emulate what a guest's kernel mode does get as far as here, and not through these.
        0x9b, 0xdb, 0xe3, // finit
        0x0f, 0x20, 0xe0, // mov eax, cr4
        0x66, 0x0d, 0x00, 0x06, 0x00, 0x00, // or eax, OSFXSR | OSXMMEXCPT
        0x0f, 0x22, 0xe0, // mov cr4, eax
        0x66, 0x0f, 0xef, 0xc0, // pxor xmm0, xmm0
        0xb0, 0x2a, // mov al, 0x2a
        0xe6, 0xf4, // out 0xf4, al
        0xf4, // hlt
        0xeb, 0xfd, // jmp hlt
    ];
    let mut rom = vec![0xf4; ROM_SIZE];
    rom.splice(..CODE.len(), CODE.iter().copied());
    // Reset vector, 16 bytes below the end: jmp near to the start of the ROM (ip 0xfff3 + 0x000d wraps to 0).
    rom.splice(ROM_SIZE - 16..ROM_SIZE - 13, [0xe9, 0x0d, 0x00]);
    rom
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn reads_versions_of_distributions() {
        assert_eq!(parse_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright").as_deref(), Some("10.0.2"));
        assert_eq!(parse_version("QEMU emulator version 9.1"), None);
        assert_eq!(parse_version("something else"), None);
    }

    /// The payload itself, under emulation, so that a refusal by KVM is KVM's.
    #[tokio::test]
    async fn the_test_guest_works_under_emulation() {
        let directory = tempfile::tempdir().unwrap();
        let rom = directory.path().join("probe.rom");
        std::fs::write(&rom, probe_rom()).unwrap();
        let status = Command::new(find_program(Path::new("qemu-system-x86_64")))
            .args(["-accel", "tcg", "-cpu", "max", "-machine", "q35", "-m", "64M", "-nodefaults", "-display", "none", "-no-reboot"])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04", "-bios"])
            .arg(&rom)
            .kill_on_drop(true)
            .status();

        let status = tokio::time::timeout(Duration::from_secs(60), status).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(EXIT_CODE));
    }

    #[tokio::test]
    async fn auto_gives_an_accelerator_and_a_reason() {
        let probed = probe_accelerator(&find_program(Path::new("qemu-system-x86_64")), AcceleratorChoice::Auto, "max").await;

        assert!(!probed.reason.is_empty());
        if probed.accelerator != Accelerator::Kvm {
            assert!(probed.reason.starts_with("KVM is not usable: "), "{}", probed.reason);
        }
    }

    #[tokio::test]
    async fn a_missing_qemu_is_an_error_and_falls_back() {
        let missing = Path::new("/nonexistent/qemu");

        assert!(probe_version(missing).await.is_err());
        let probed = probe_accelerator(missing, AcceleratorChoice::Auto, "max").await;
        assert_eq!(probed.accelerator, Accelerator::Tcg { cpu: "max".to_owned() });
    }
}
