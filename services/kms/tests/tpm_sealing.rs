//! A KMS whose keys at rest are sealed under a real TPM's key, in software.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

mod testbed;

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use dstack_api::{
    UserFacing as _,
    kms::{Empty, KmsClient},
};
use dstack_kms::{
    Server,
    config::{ConfigFile, Sealing, SealingProvider, Settings},
};
use dstack_testkit::swtpm::Swtpm;
use testbed::{Kms, Stack};

/// Each takes two starts of the program; that a file is whole or not there is shown in `dstack_service::fs`.
const KILLS: u32 = 8;

fn must_boot(tpm: &mut Swtpm) {
    tpm.reboot();
    for pcr in [0, 4, 14] {
        tpm.extend(pcr, &[1; 32]);
    }
}

fn settings(stack: &Stack, tpm: &Swtpm) -> ConfigFile {
    let sealing =
        Sealing { provider: Some(SealingProvider::Tpm), tpm_device: tpm.socket(), tpm_pcrs: vec![0, 4, 14], ..Sealing::default() };
    ConfigFile { sealing, ..stack.settings() }
}

async fn root_of(kms: &Kms) -> String {
    KmsClient(kms.anonymous()).get_meta(&Empty {}).await.unwrap().ca_cert
}

/// Why a KMS does not start.
async fn refusal(file: ConfigFile) -> &'static str {
    Server::open(Settings::check(file, Path::new("kms.toml")).unwrap()).await.err().unwrap().code()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_open_for_the_same_system_on_the_same_machine_only() {
    let (stack, mut tpm) = (Stack::start().await, Swtpm::start());
    must_boot(&mut tpm);
    let kms = stack.kms_with(settings(&stack, &tpm)).await;
    let root = root_of(&kms).await;
    kms.stop().await;
    let sealed = std::fs::read(stack.path("kms/root-k256.key")).unwrap();
    assert!(sealed.starts_with(b"DSTKSEAL\x01\x03"));

    must_boot(&mut tpm);
    let kms = stack.kms_with(settings(&stack, &tpm)).await;
    assert_eq!(root_of(&kms).await, root);
    kms.stop().await;

    tpm.extend(4, &[2; 32]);
    assert_eq!(refusal(settings(&stack, &tpm)).await, "kms/sealing-tpm-changed");
    let mut other = Swtpm::start();
    must_boot(&mut other);
    assert_eq!(refusal(settings(&stack, &other)).await, "kms/sealing-tpm-other");
    std::fs::remove_file(stack.path("kms-tpm-key")).unwrap();
    assert_eq!(refusal(settings(&stack, &other)).await, "kms/sealing-tpm-file");
    assert_eq!(std::fs::read(stack.path("kms/root-k256.key")).unwrap(), sealed);
    assert!(!stack.path("kms-tpm-key").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_during_its_first_start_it_starts_again() {
    let mut tpm = Swtpm::start();
    must_boot(&mut tpm);
    let (mut before, mut after) = (0, 0);
    let mut whole_start = Duration::from_millis(300);
    for kill in 0..KILLS {
        let stack = Stack::start().await;
        let mut file = settings(&stack, &tpm);
        file.ready_file = Some(stack.path("ready"));
        std::fs::write(stack.path("kms.toml"), toml::to_string(&file).unwrap()).unwrap();
        let mut program = Command::new(env!("CARGO_BIN_EXE_dstack-kms"))
            .arg("--config")
            .arg(stack.path("kms.toml"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while !stack.path("ready").exists() && (kill == 0 || started.elapsed() < whole_start * kill / KILLS) {
            assert!(program.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(60), "it does not become ready");
            std::thread::sleep(Duration::from_micros(200));
        }
        if kill == 0 {
            whole_start = started.elapsed();
        }
        program.kill().unwrap();
        program.wait().unwrap();
        let survived = std::fs::read(stack.path("kms/root-k256.key")).ok();
        *(if survived.is_some() { &mut after } else { &mut before }) += 1;

        stack.kms_with(settings(&stack, &tpm)).await.stop().await;

        let now = std::fs::read(stack.path("kms/root-k256.key")).unwrap();
        assert!(survived.is_none_or(|then| then == now));
    }
    assert!(before > 0 && after > 0, "the points do not straddle the start: {before} before, {after} after");
}
