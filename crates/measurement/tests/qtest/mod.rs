//! A QEMU that does not run, driven over its qtest socket: ports, memory and `fw_cfg` as a firmware sees them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dstack_measurement::QemuVersion;
use dstack_measurement::acpi::AcpiTables;

/// The installed QEMU.
pub(crate) const INSTALLED: &str = "qemu-system-x86_64";
const FW_CFG_DIRECTORY: u16 = 0x19;
/// Guest memory used for transfers.
const SCRATCH: u64 = 0x10_0000;
const DATA: u64 = SCRATCH + 0x1000;

/// `tcg`, unless `DSTACK_ORACLE_ACCEL` says `kvm`: for what an emulated machine cannot have.
pub(crate) fn accelerator() -> String {
    std::env::var("DSTACK_ORACLE_ACCEL").unwrap_or_else(|_| "tcg".to_owned())
}

/// Version of the QEMU at `program`, if there is one.
pub(crate) fn version_of(program: &str) -> Option<QemuVersion> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.split_whitespace().skip_while(|word| *word != "version").nth(1)?.parse().ok()
}

pub(crate) struct Qemu {
    child: Child,
    socket: BufReader<TcpStream>,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Qemu {
    /// Starts QEMU with the CPUs stopped.
    pub(crate) fn start(program: &str, arguments: &[String]) -> Self {
        // Not a Unix socket: a QEMU for Windows has none.
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut child = Command::new(program)
            .args(["-accel", &accelerator(), "-S", "-display", "none", "-qtest-log", "none", "-qtest", &format!("tcp:{address}")])
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let socket = loop {
            match listener.accept() {
                Ok((socket, _)) => break socket,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("qtest socket: {error}"),
            }
            if let Some(status) = child.try_wait().unwrap() {
                panic!("QEMU ended with {status}: {arguments:?}");
            }
            assert!(Instant::now() < deadline, "QEMU does not connect");
            std::thread::sleep(Duration::from_millis(5));
        };
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket.set_nodelay(true).unwrap();
        Self { child, socket: BufReader::new(socket) }
    }

    fn command(&mut self, command: &str) -> String {
        writeln!(self.socket.get_mut(), "{command}").unwrap();
        loop {
            let mut line = String::new();
            self.socket.read_line(&mut line).unwrap();
            if line.starts_with("IRQ ") {
                continue;
            }
            let answer = line.trim_end().strip_prefix("OK").unwrap_or_else(|| panic!("{command}: {line}"));
            return answer.trim_start().to_owned();
        }
    }

    fn write_port(&mut self, port: u16, value: u32) {
        self.command(&format!("outl {port:#x} {value:#x}"));
    }

    fn write_config(&mut self, device: u32, register: u32, value: u32) {
        self.write_port(0xcf8, 1 << 31 | device << 11 | register);
        self.write_port(0xcfc, value);
    }

    /// Sets the two bases that the tables show, as OVMF does before it reads them.
    pub(crate) fn program_like_ovmf(&mut self) {
        self.write_config(31, 0x40, 0x600 | 1);
        self.write_config(31, 0x44, 0x80);
        self.write_config(0, 0x64, 0);
        self.write_config(0, 0x60, 0xe000_0000 | 1);
    }

    /// Content of the `fw_cfg` item `key`.
    pub(crate) fn item(&mut self, key: u16, len: usize) -> Vec<u8> {
        const SELECT_AND_READ: u32 = 8 | 2;
        let mut access = (u32::from(key) << 16 | SELECT_AND_READ).to_be_bytes().to_vec();
        access.extend((len as u32).to_be_bytes());
        access.extend(DATA.to_be_bytes());
        self.command(&format!("write {SCRATCH:#x} {:#x} 0x{}", access.len(), hex::encode(access)));
        self.write_port(0x514, 0);
        self.write_port(0x518, (SCRATCH as u32).swap_bytes());
        assert_eq!(self.command(&format!("read {SCRATCH:#x} 4")), "0x00000000", "fw_cfg transfer");
        let answer = self.command(&format!("read {DATA:#x} {len:#x}"));
        hex::decode(answer.strip_prefix("0x").unwrap()).unwrap()
    }

    /// Content of the `fw_cfg` file `name`.
    pub(crate) fn file(&mut self, name: &str) -> Vec<u8> {
        const ENTRY_LEN: usize = 64;
        let be32 = |bytes: &[u8]| u32::from_be_bytes(bytes[..4].try_into().unwrap());
        let count = be32(&self.item(FW_CFG_DIRECTORY, 4)) as usize;
        let directory = self.item(FW_CFG_DIRECTORY, 4 + count * ENTRY_LEN);
        let entry =
            directory[4..].chunks(ENTRY_LEN).find(|entry| entry[8..].starts_with(name.as_bytes()) && entry[8 + name.len()] == 0).unwrap();
        self.item(u16::from_be_bytes([entry[4], entry[5]]), be32(entry) as usize)
    }

    pub(crate) fn acpi_files(&mut self) -> AcpiTables {
        AcpiTables { tables: self.file("etc/acpi/tables"), rsdp: self.file("etc/acpi/rsdp"), loader: self.file("etc/table-loader") }
    }
}
