//! An image directory, a daemon, and its clients.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use dstack_api::tee_simulator::{LaunchTd, TdState};
use dstack_manifest::{MeasurementDocument, VmConfig};
use dstack_measurement::{
    checksum,
    tdx::{ImageFiles, ImageMeasurement},
};
use dstack_rpc::{Client, Endpoint};
use dstack_tee_simulator::{Config, Daemon, DaemonAddresses};
use dstack_testkit::boot_files::{self, BootHeader};
use http::{HeaderMap, HeaderValue, Method, header};

const VARIABLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testdata/firmware/OVMF_VARS_4M.fd.gz");
const CMDLINE: &str = "console=ttyS0 dstack.rootfs_hash=00";

fn must_unpack(path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

/// A TDX firmware: the stock variable store, a page of code, and the metadata that a TDVF ends with.
fn must_make_firmware() -> Vec<u8> {
    const TABLE_FOOTER: [u8; 16] = [0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d];
    const METADATA_OFFSET: [u8; 16] = [0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2];
    let mut firmware = must_unpack(VARIABLES);
    let store = firmware.len() as u32;
    let section = |offset: u32, raw: u32, gpa: u64, size: u64, kind: u32, attributes: u32| {
        [
            &offset.to_le_bytes()[..],
            &raw.to_le_bytes(),
            &gpa.to_le_bytes(),
            &size.to_le_bytes(),
            &kind.to_le_bytes(),
            &attributes.to_le_bytes(),
        ]
        .concat()
    };
    let sections = [
        section(store, 0x1000, 0xffc8_4000, 0x1000, 0, 1),
        section(0, store, 0xffc0_0000, u64::from(store), 1, 0),
        section(0, 0, 0x81_0000, 0x1_0000, 3, 0),
        section(0, 0, 0x80_b000, 0x2000, 3, 0),
        section(0, 0, 0x80_9000, 0x2000, 2, 0),
        section(0, 0, 0x80_0000, 0x6000, 3, 0),
    ];
    let descriptor =
        [&b"TDVF"[..], &(16 + 32 * 6_u32).to_le_bytes(), &1_u32.to_le_bytes(), &6_u32.to_le_bytes(), &sections.concat()].concat();
    let descriptor_from_end = 0x800_u32;
    let tail = [
        &descriptor_from_end.to_le_bytes()[..],
        &22_u16.to_le_bytes(),
        &METADATA_OFFSET,
        &40_u16.to_le_bytes(),
        &TABLE_FOOTER,
        &[0x90; 32],
    ]
    .concat();
    let mut code = vec![0xcc; 0x1000];
    code[0x800..0x800 + descriptor.len()].copy_from_slice(&descriptor);
    let tail_at = code.len() - tail.len();
    code[tail_at..].copy_from_slice(&tail);
    firmware.extend(code);
    firmware
}

/// Writes an image directory and returns the configuration of a VM that boots it.
pub(crate) fn must_write_image(directory: &Path) -> VmConfig {
    std::fs::create_dir_all(directory).unwrap();
    let firmware = must_make_firmware();
    let (kernel, initrd) = (boot_files::kernel(BootHeader::MODERN), vec![7_u8; 4000]);
    std::fs::write(directory.join("ovmf.fd"), &firmware).unwrap();
    std::fs::write(directory.join("bzImage"), &kernel).unwrap();
    std::fs::write(directory.join("initramfs.cpio.gz"), &initrd).unwrap();
    let metadata = serde_json::json!({
        "bios": "ovmf.fd", "kernel": "bzImage", "initrd": "initramfs.cpio.gz", "rootfs": "rootfs.img",
        "cmdline": CMDLINE, "version": "0.7.0", "is_dev": true,
    });
    std::fs::write(directory.join("metadata.json"), metadata.to_string()).unwrap();
    let files = ImageFiles { firmware: &firmware, kernel: &kernel, initrd: &initrd, cmdline: CMDLINE };
    let measurement = ImageMeasurement::from_files(&files).unwrap().encode();
    let checksum_file = checksum::binding_line("measurement.tdx.cbor", &measurement).into_bytes();
    VmConfig {
        spec_version: 1,
        os_image_hash: Some(checksum::os_image_hash(&checksum_file)),
        cpu_count: 2,
        memory_size: 2 << 30,
        qemu_version: Some("10.0.2".to_owned()),
        num_nics: 1,
        host_share_mode: "vhd".to_owned(),
        tdx_measurement: Some(MeasurementDocument { checksum_file, measurement }),
        ..VmConfig::default()
    }
}

pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) vm_config: VmConfig,
}

impl World {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let vm_config = must_write_image(&directory.path().join("image"));
        Self { directory, vm_config }
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            state_dir: self.directory.path().join("tee"),
            control_socket: self.directory.path().join("control.sock"),
            collateral_listen: "127.0.0.1:0".parse().unwrap(),
            kernel_vsock: false,
            pid_file: PathBuf::new(),
        }
    }

    pub(crate) fn device_socket(&self) -> PathBuf {
        self.directory.path().join("vsock.sock_4050")
    }

    pub(crate) fn launch(&self, mr_config_id: [u8; 48]) -> LaunchTd {
        LaunchTd {
            image_dir: self.directory.path().join("image").display().to_string(),
            vm_config: serde_json::to_string(&self.vm_config).unwrap(),
            mr_config_id: mr_config_id.to_vec(),
            listen: self.device_socket().display().to_string(),
            cid: 3,
        }
    }

    /// Starts a daemon in this process; dropping the task is a crash.
    pub(crate) async fn must_start(&self) -> (DaemonAddresses, tokio::task::JoinHandle<()>) {
        let daemon = Daemon::open(&self.config()).await.unwrap();
        let addresses = daemon.addresses().clone();
        (addresses, tokio::spawn(daemon.serve(std::future::pending())))
    }
}

pub(crate) async fn call(socket: &Path, method: Method, path: &str, body: String) -> (u16, String) {
    let client = Client::new(Endpoint::parse(&format!("unix:{}", socket.display())).unwrap()).with_timeout(Duration::from_secs(60));
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    let answer = client.request(method, path, headers, body.into_bytes()).await.unwrap();
    (answer.status.as_u16(), String::from_utf8(answer.body).unwrap())
}

pub(crate) async fn must_launch(socket: &Path, vm_id: &str, request: &LaunchTd) -> TdState {
    let (status, body) = call(socket, Method::PUT, &format!("/td/{vm_id}"), serde_json::to_string(request).unwrap()).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}
