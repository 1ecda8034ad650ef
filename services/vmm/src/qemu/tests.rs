//! Golden command lines. A changed order changes what hardware measures.

use std::path::PathBuf;

use super::*;

fn plan() -> LaunchPlan {
    LaunchPlan {
        accelerator: Accelerator::Tcg { cpu: "max".to_owned() },
        tee: Tee::None,
        vcpus: 2,
        memory_mib: 2048,
        firmware: "/img/ovmf.fd".into(),
        kernel: "/img/bzImage".into(),
        initrd: Some("/img/initramfs.cpio.zst".into()),
        cmdline: "console=ttyS0 dstack.rootfs_hash=00".to_owned(),
        rootfs: Some("/img/rootfs.img".into()),
        data_disk: Some("/vm/hda.img".into()),
        volumes: vec!["/volumes/aa.img".into(), "/volumes/bb.img".into()],
        nics: vec![Nic { backend: NicBackend::User { forwards: vec![forward()] }, mac: [2, 0, 0, 0, 0, 1] }],
        vsock: VsockDevice::VhostUser { socket: "/vm/vhost.sock".into() },
        share: Some("/vm/shared.img".into()),
        serial_log: "/vm/serial.log".into(),
        qmp_socket: "/vm/qmp.sock".into(),
        gpus: Vec::new(),
    }
}

fn forward() -> PortForward {
    PortForward { protocol: "tcp".to_owned(), address: "127.0.0.1".to_owned(), host_port: 8080, vm_port: 80 }
}

fn hardware(tee: Tee) -> LaunchPlan {
    LaunchPlan { accelerator: Accelerator::Kvm, tee, vsock: VsockDevice::Kernel { cid: 1000 }, volumes: Vec::new(), ..plan() }
}

/// One option per line.
fn rendered(plan: &LaunchPlan) -> String {
    let mut text = String::new();
    for argument in plan.render() {
        let is_value = !argument.starts_with('-');
        text.push_str(if is_value { " " } else { "\n" });
        text.push_str(&argument);
    }
    text.trim_start().to_owned()
}

#[test]
fn software_tee_under_tcg_with_vhost_user_vsock() {
    insta::assert_snapshot!(rendered(&plan()));
}

#[test]
fn plain_kvm() {
    insta::assert_snapshot!(rendered(&hardware(Tee::None)));
}

#[test]
fn tdx() {
    insta::assert_snapshot!(rendered(&hardware(Tee::Tdx { mr_config_id: [1; 48], qgs_port: 4050 })));
}

#[test]
fn sev_snp() {
    insta::assert_snapshot!(rendered(&hardware(Tee::SevSnp { host_data: [2; 32], cbitpos: 51, reduced_phys_bits: 1 })));
}

#[test]
fn gpus() {
    let gpus = ["0000:18:00.0", "0000:2a:00.0"].map(|slot| Gpu { slot: slot.to_owned() }).to_vec();
    insta::assert_snapshot!(rendered(&LaunchPlan { gpus, ..hardware(Tee::Tdx { mr_config_id: [1; 48], qgs_port: 4050 }) }));
}

#[test]
fn several_network_cards() {
    let backends = [
        NicBackend::User { forwards: vec![forward(), PortForward { protocol: "udp".to_owned(), ..forward() }] },
        NicBackend::Bridge { bridge: "br0".to_owned() },
        NicBackend::Tap { ifname: "dt0".to_owned() },
    ];
    let nics = backends.into_iter().map(|backend| Nic { backend, mac: [2, 0, 0, 0, 0, 1] }).collect();
    insta::assert_snapshot!(rendered(&LaunchPlan { nics, ..hardware(Tee::None) }));
}

#[test]
fn a_comma_cannot_end_an_option() {
    let hostile = LaunchPlan {
        data_disk: Some(PathBuf::from("/vm/a,readonly=on,b.img")),
        share: Some(PathBuf::from("/vm/x,y.img")),
        nics: vec![Nic { backend: NicBackend::Bridge { bridge: "br0,script=/bin/sh".to_owned() }, mac: [2; 6] }],
        ..plan()
    };

    let text = rendered(&hostile);

    assert!(text.contains("file=/vm/a,,readonly=on,,b.img,if=none"), "{text}");
    assert!(text.contains("file=/vm/x,,y.img,"), "{text}");
    assert!(text.contains("br=br0,,script=/bin/sh"), "{text}");
}

#[test]
fn the_same_plan_gives_the_same_arguments() {
    assert_eq!(plan().render(), plan().render());
}
