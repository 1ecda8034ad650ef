//! From a plan to the argument list.

use std::path::Path;

use dstack_manifest::disk_serial;

use super::{Accelerator, LaunchPlan, Nic, NicBackend, Tee, VsockDevice};

/// What SNP guests are allowed: SMT and debug off, migration off.
const SNP_POLICY: &str = "0x30000";

impl LaunchPlan {
    /// QEMU's arguments, without the program. Every value that could hold a comma is escaped.
    #[must_use]
    pub fn render(&self) -> Vec<String> {
        let mut argv = Argv { list: Vec::new(), device_suffix: self.device_suffix() };
        self.head(&mut argv);
        self.disks(&mut argv);
        for (index, nic) in self.nics.iter().enumerate() {
            render_nic(&mut argv, index, nic);
        }
        argv.option("-smbios", "type=1,manufacturer=dstack,product=dstack");
        match &self.vsock {
            VsockDevice::Kernel { cid } => argv.device(&format!("vhost-vsock-pci,guest-cid={cid}")),
            VsockDevice::VhostUser { socket } => {
                argv.option("-chardev", format!("socket,id=vsock0,path={}", path(socket)));
                argv.device("vhost-user-vsock-pci,chardev=vsock0");
            }
        }
        if let Some(share) = &self.share {
            argv.disk("hd2", share, ",readonly=on", disk_serial::SHARE);
        }
        self.machine(&mut argv);
        self.passthrough(&mut argv);
        argv.option("-smp", self.vcpus.to_string());
        argv.option("-m", format!("{}M", self.memory_mib));
        if !self.cmdline.is_empty() {
            argv.option("-append", self.cmdline.clone());
        }
        argv.list
    }

    fn device_suffix(&self) -> &'static str {
        if matches!(self.tee, Tee::SevSnp { .. }) { ",disable-legacy=on,iommu_platform=true" } else { "" }
    }

    fn head(&self, argv: &mut Argv) {
        match (&self.accelerator, &self.tee) {
            (Accelerator::Kvm, tee) => {
                argv.option("-accel", "kvm");
                argv.option("-cpu", if matches!(tee, Tee::SevSnp { .. }) { "EPYC-v4" } else { "host" });
            }
            (Accelerator::Tcg { cpu }, _) => {
                argv.option("-accel", "tcg,thread=multi");
                argv.option("-cpu", cpu.clone());
            }
        }
        argv.flag("-nographic");
        argv.flag("-nodefaults");
        // A reset inside QEMU would run the guest again without a new launch measurement.
        argv.flag("-no-reboot");
        // The bridge helper is a program that QEMU starts.
        let needs_helper = self.nics.iter().any(|nic| matches!(nic.backend, NicBackend::Bridge { .. }));
        let spawn = if needs_helper { "allow" } else { "deny" };
        argv.option("-sandbox", format!("on,obsolete=deny,elevateprivileges={spawn},spawn={spawn},resourcecontrol=deny"));
        argv.option("-chardev", format!("file,id=com0,path={},append=on", path(&self.serial_log)));
        argv.option("-serial", "chardev:com0");
        argv.option("-qmp", format!("unix:{},server=on,wait=off", path(&self.qmp_socket)));
        argv.option("-bios", self.firmware.display().to_string());
        argv.option("-kernel", self.kernel.display().to_string());
        if let Some(initrd) = &self.initrd {
            // QEMU splits this option at commas.
            argv.option("-initrd", path(initrd));
        }
    }

    fn disks(&self, argv: &mut Argv) {
        if let Some(rootfs) = &self.rootfs {
            argv.disk("hd0", rootfs, ",readonly=on", disk_serial::ROOT);
        }
        if let Some(data) = &self.data_disk {
            argv.disk("hd1", data, ",cache=writeback,discard=unmap,detect-zeroes=unmap", disk_serial::DATA);
        }
        for (index, volume) in self.volumes.iter().enumerate() {
            argv.disk(&format!("vol{index}"), volume, ",readonly=on", &format!("{}{index}", disk_serial::VOLUME_PREFIX));
        }
    }

    fn machine(&self, argv: &mut Argv) {
        let mut machine = "q35".to_owned();
        if self.accelerator == Accelerator::Kvm {
            machine.push_str(",kernel-irqchip=split");
        }
        let memory = self.memory_mib;
        match &self.tee {
            Tee::None => {
                if matches!(self.vsock, VsockDevice::VhostUser { .. }) {
                    argv.option("-object", format!("memory-backend-memfd,id=mem0,size={memory}M,share=on"));
                    machine.push_str(",memory-backend=mem0");
                }
            }
            Tee::Tdx { mr_config_id, qgs_port } => {
                let object = serde_json::json!({
                    "qom-type": "tdx-guest", "id": "tdx", "mrconfigid": base64(mr_config_id),
                    "quote-generation-socket": {"type": "vsock", "cid": "2", "port": qgs_port.to_string()},
                });
                argv.option("-object", object.to_string());
                machine.push_str(",confidential-guest-support=tdx");
            }
            Tee::SevSnp { host_data, cbitpos, reduced_phys_bits } => {
                argv.option("-object", format!("memory-backend-memfd,id=ram1,size={memory}M,share=true,prealloc=false"));
                let host_data = base64(host_data);
                argv.option(
                    "-object",
                    format!(
                        "sev-snp-guest,id=sev0,policy={SNP_POLICY},sev-device=/dev/sev,kernel-hashes=on,host-data={host_data},\
                         cbitpos={cbitpos},reduced-phys-bits={reduced_phys_bits}"
                    ),
                );
                machine.push_str(",confidential-guest-support=sev0,memory-backend=ram1");
            }
        }
        machine.push_str(",hpet=off");
        argv.option("-machine", machine);
    }

    fn passthrough(&self, argv: &mut Argv) {
        if self.gpus.is_empty() {
            return;
        }
        argv.option("-object", "iommufd,id=iommufd0");
        for (index, gpu) in self.gpus.iter().enumerate() {
            let chassis = index + 1;
            argv.option("-device", format!("pcie-root-port,id=pci.{chassis},bus=pcie.0,chassis={chassis}"));
            argv.option("-device", format!("vfio-pci,host={},bus=pci.{chassis},iommufd=iommufd0", escape(&gpu.slot)));
        }
    }
}

struct Argv {
    list: Vec<String>,
    device_suffix: &'static str,
}

impl Argv {
    fn flag(&mut self, flag: &str) {
        self.list.push(flag.to_owned());
    }

    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.list.extend([name.to_owned(), value.into()]);
    }

    fn device(&mut self, device: &str) {
        self.option("-device", format!("{device}{}", self.device_suffix));
    }

    fn disk(&mut self, id: &str, file: &Path, options: &str, serial: &str) {
        self.option("-drive", format!("file={},if=none,id={id},format=raw{options}", path(file)));
        self.device(&format!("virtio-blk-pci,drive={id},serial={serial}"));
    }
}

fn render_nic(argv: &mut Argv, index: usize, nic: &Nic) {
    let netdev = match &nic.backend {
        NicBackend::User { forwards } => {
            let mut netdev = format!("user,id=net{index},net=10.0.2.0/24,dhcpstart=10.0.2.10,restrict=off");
            for forward in forwards {
                let (protocol, address) = (escape(&forward.protocol), escape(&forward.address));
                netdev.push_str(&format!(",hostfwd={protocol}:{address}:{}-:{}", forward.host_port, forward.vm_port));
            }
            netdev
        }
        NicBackend::Bridge { bridge } => format!("bridge,id=net{index},br={}", escape(bridge)),
        NicBackend::Tap { ifname } => format!("tap,id=net{index},ifname={},script=no,downscript=no,vhost=off", escape(ifname)),
    };
    argv.option("-netdev", netdev);
    let mac = nic.mac.map(|byte| format!("{byte:02x}")).join(":");
    argv.device(&format!("virtio-net-pci,netdev=net{index},mac={mac}"));
}

/// QEMU's option parser reads `,,` as a comma inside a value.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

fn path(path: &Path) -> String {
    escape(&path.display().to_string())
}

fn base64(bytes: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.encode(bytes)
}
