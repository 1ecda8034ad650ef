//! A node for tests: real supervisor and VMM processes, a program standing for QEMU, a small intact OS image.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "tests; each file uses a part")]

use std::{
    fs::{self, File},
    io::Write as _,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use dstack_api::{
    RpcError,
    vmm::{Id, PortMapping, StatusRequest, VmConfiguration, VmInfo, VmmClient},
};
use dstack_measurement::checksum::binding_line;
use dstack_rpc::{Client, Endpoint, SupervisorClient};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";
pub const IMAGE: &str = "dstack-dev-1.0.0";
const SUPERVISOR_VARIABLE: &str = "DSTACK_TEST_SUPERVISOR";

/// Answers `--version`, prints its arguments to the serial log, and lives until it is told to end.
const QEMU: &str = r#"#!/bin/sh
if [ "$1" = --version ]; then echo "QEMU emulator version 10.0.2 (test)"; exit 0; fi
for argument in "$@"; do
  case "$argument" in file,id=com0,path=*) log="${argument#file,id=com0,path=}"; log="${log%,append=on}";; esac
done
echo "guest console line" >> "$log"
echo "$@" >> "$log"
exec sleep 100000
"#;

/// Opens its socket path as a plain file, which is what the VMM waits for.
const VSOCK: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
  if [ "$1" = --socket ]; then : > "$2"; fi
  shift
done
exec sleep 100000
"#;

pub struct Node {
    pub home: TempDir,
    pub address: String,
    supervisor: Option<Child>,
    vmm: Option<Child>,
}

impl Node {
    /// A node whose configuration is `extra` beside the necessary.
    pub async fn start(extra: &str) -> Self {
        let home = tempfile::Builder::new().prefix("n").tempdir().unwrap();
        let root = home.path();
        program(&root.join("qemu"), QEMU);
        program(&root.join("vsock"), VSOCK);
        write_image(&root.join("images").join(IMAGE), true);
        fs::write(root.join("token"), format!("{TOKEN}\n")).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let path = root.display();
        let supervisor = format!("socket = \"{path}/s.sock\"\nstate_dir = \"{path}/processes\"\n");
        fs::write(root.join("supervisor.toml"), supervisor).unwrap();
        let mut config = format!(
            "address = \"127.0.0.1:{port}\"\nrun_path = \"{path}/vm\"\ndatabase = \"{path}/vmm.db\"\npid_file = \"{path}/vmm.pid\"\n\
             [image]\npath = \"{path}/images\"\n[auth]\ntoken_file = \"{path}/token\"\n[supervisor]\nsock = \"{path}/s.sock\"\n\
             [tee_simulator]\ncontrol = \"unix:{path}/tee.sock\"\n"
        );
        if !extra.contains("[cvm]") {
            config.push_str("[cvm]\n");
        }
        config.push_str(&extra.replace("HOME", &path.to_string()));
        let defaults = [
            ("qemu_path", format!("\"{path}/qemu\"")),
            ("vhost_device_vsock", format!("\"{path}/vsock\"")),
            ("accelerator", "\"tcg\"".to_owned()),
            ("vsock", "\"vhost-user\"".to_owned()),
            ("stop_grace_seconds", "1".to_owned()),
            ("shutdown_guest_seconds", "5".to_owned()),
            ("shutdown_acpi_seconds", "1".to_owned()),
            ("max_allocable_memory_in_mb", "4096".to_owned()),
            ("kms_urls", "[\"https://10.0.2.2:9443\"]".to_owned()),
        ];
        let mut defaults_text = String::new();
        for (key, value) in defaults {
            if !extra.contains(key) {
                defaults_text.push_str(&format!("{key} = {value}\n"));
            }
        }
        let config = config.replace("[cvm]\n", &format!("[cvm]\n{defaults_text}"));
        fs::write(root.join("vmm.toml"), config).unwrap();
        let mut node = Self { address: format!("http://127.0.0.1:{port}"), home, supervisor: None, vmm: None };
        node.start_supervisor().await;
        node.start_vmm().await;
        node
    }

    pub fn root(&self) -> &Path {
        self.home.path()
    }

    pub async fn start_supervisor(&mut self) {
        // The same test program again, see `supervisor_main`.
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "supervisor_main", "--nocapture"])
            .env(SUPERVISOR_VARIABLE, self.root().join("supervisor.toml"))
            .spawn()
            .unwrap();
        self.supervisor = Some(child);
        let client = self.supervisor_client();
        until(async || client.ping().await.is_ok()).await;
    }

    pub async fn start_vmm(&mut self) {
        let pid_file = self.root().join("vmm.pid");
        let _absent = fs::remove_file(&pid_file);
        let child = Command::new(env!("CARGO_BIN_EXE_dstack-vmm")).arg("--config").arg(self.root().join("vmm.toml")).spawn().unwrap();
        self.vmm = Some(child);
        let client = self.client();
        until(async || client.version(&dstack_api::vmm::Empty {}).await.is_ok()).await;
    }

    pub fn kill_vmm(&mut self) {
        kill(self.vmm.take());
    }

    pub fn kill_supervisor(&mut self) {
        kill(self.supervisor.take());
    }

    pub fn vmm_pid(&self) -> u32 {
        self.vmm.as_ref().unwrap().id()
    }

    pub fn http(&self) -> Client {
        Client::new(Endpoint::parse(&format!("{}/prpc", self.address)).unwrap()).with_timeout(Duration::from_secs(60))
    }

    pub fn client(&self) -> VmmClient<Client> {
        VmmClient(self.http().with_bearer(TOKEN))
    }

    pub fn supervisor_client(&self) -> SupervisorClient {
        SupervisorClient::new(&self.root().join("s.sock")).unwrap()
    }

    pub async fn create(&self, configuration: &VmConfiguration) -> Result<String, RpcError> {
        self.client().create_vm(configuration).await.map(|id| id.id)
    }

    pub async fn info(&self, id: &str) -> VmInfo {
        self.client().get_info(&Id { id: id.to_owned() }).await.unwrap().info.unwrap()
    }

    pub async fn pid(&self, id: &str) -> Option<u32> {
        self.supervisor_client().info(id).await.unwrap().and_then(|info| info.state.pid)
    }

    pub fn vm_dir(&self, id: &str) -> PathBuf {
        self.root().join("vm").join(id)
    }

    /// No VM, file, process is left.
    pub async fn assert_empty(&self) {
        let status = self.client().status(&StatusRequest::default()).await.unwrap();
        assert!(status.vms.is_empty(), "{:?}", status.vms);
        assert!(self.supervisor_client().list().await.unwrap().is_empty());
        let directories: Vec<_> = fs::read_dir(self.root().join("vm")).into_iter().flatten().collect();
        assert!(directories.is_empty(), "{directories:?}");
    }

    /// A client of the host API, as the vsock daemon would connect for the guest.
    pub fn host_api(&self, id: &str) -> dstack_api::host_api::HostApiClient<Client> {
        let socket = self.vm_dir(id).join("vsock.sock_10000");
        dstack_api::host_api::HostApiClient(Client::new(Endpoint::parse(&format!("unix:{}:/api", socket.display())).unwrap()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill_vmm();
        kill(self.supervisor.take());
        // What a failed test left running.
        for entry in fs::read_dir(self.root().join("processes")).into_iter().flatten().flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let pid = text.split("\"pid\": ").nth(1).and_then(|rest| rest.split(',').next()).and_then(|pid| pid.trim().parse().ok());
            if let Some(pid) = pid {
                let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
    }
}

fn kill(child: Option<Child>) {
    if let Some(mut child) = child {
        let _gone = child.kill();
        let _gone = child.wait();
    }
}

/// Called by the test `supervisor_main` of each file: runs a supervisor when asked to, for ever.
pub async fn run_supervisor_if_asked() {
    let Some(path) = std::env::var_os(SUPERVISOR_VARIABLE) else { return };
    let config: dstack_supervisor::Config = dstack_service::config::load(Path::new(&path)).unwrap();
    let supervisor = dstack_supervisor::Supervisor::open(&config).unwrap();
    let listener = dstack_rpc::Listener::unix(&config.socket, 0o600).await.unwrap();
    let (quit, _) = tokio::sync::watch::channel(false);
    dstack_rpc::serve(listener, dstack_supervisor::router(supervisor, quit), std::future::pending()).await;
}

pub async fn until(condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition().await {
        assert!(Instant::now() < deadline, "condition not met in 30 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// An app that needs no TEE.
pub fn configuration() -> VmConfiguration {
    VmConfiguration {
        name: "hello".to_owned(),
        image: IMAGE.to_owned(),
        compose_file: compose("services:\n  web:\n    image: nginx\n"),
        vcpu: 1,
        memory: 512,
        disk_size: 1,
        no_tee: true,
        ..VmConfiguration::default()
    }
}

pub fn compose(docker_compose_file: &str) -> String {
    let document =
        serde_json::json!({"manifest_version": 2, "name": "hello", "runner": "docker-compose", "docker_compose_file": docker_compose_file});
    // Not the form that our own serializer would choose: the bytes must be kept.
    format!(" {document}\n\n")
}

pub fn port(host_port: u16) -> PortMapping {
    PortMapping { protocol: "tcp".to_owned(), host_port: host_port.into(), vm_port: 80, host_address: String::new() }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// 64 KiB that halt at the reset vector.
pub fn halting_firmware() -> Vec<u8> {
    let mut rom = vec![0xf4; 64 << 10];
    let vector = rom.len() - 16;
    rom.splice(vector..vector + 4, [0xfa, 0xf4, 0xeb, 0xfd]);
    rom
}

pub fn write_image(dir: &Path, is_dev: bool) {
    fs::create_dir_all(dir).unwrap();
    let data_bytes = 8 * 4096;
    let rootfs = dir.join("rootfs.img");
    let mut file = File::options().create(true).truncate(true).read(true).write(true).open(&rootfs).unwrap();
    file.write_all(&vec![7; data_bytes]).unwrap();
    let root = dstack_os_image::verity::append(&mut file, data_bytes as u64).unwrap();
    let mut kernel = vec![0xf4; 32 << 10];
    // As much of a Linux boot header as QEMU looks at: one setup sector, boot protocol 2.0, loaded high.
    kernel.splice(0x1f1..0x1f2, [1]);
    kernel.splice(0x202..0x208, *b"HdrS\x00\x02");
    kernel.splice(0x211..0x212, [1]);
    let metadata = serde_json::json!({
        "bios": "ovmf.fd", "kernel": "bzImage", "initrd": "initramfs.cpio.gz", "rootfs": "rootfs.img", "version": "1.0.0", "is_dev": is_dev,
        "cmdline": format!("console=ttyS0 dstack.rootfs_hash={root} dstack.rootfs_size={data_bytes}"),
    });
    let files: [(&str, Vec<u8>); 4] = [
        ("ovmf.fd", halting_firmware()),
        ("bzImage", kernel),
        ("initramfs.cpio.gz", b"initrd".to_vec()),
        ("metadata.json", metadata.to_string().into_bytes()),
    ];
    let mut checksums = String::new();
    for (name, bytes) in files {
        fs::write(dir.join(name), &bytes).unwrap();
        checksums.push_str(binding_line(name, &bytes).trim_end());
        checksums.push('\n');
    }
    fs::write(dir.join("sha256sum.txt"), &checksums).unwrap();
    fs::write(dir.join("digest.txt"), hex::encode(Sha256::digest(&checksums))).unwrap();
}
