//! The real program: how it starts, what it refuses to start with, what its log says and does not say.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests panic on purpose")]

mod testbed;

use dstack_api::kms::GetAppKeyRequest;
use dstack_manifest::ComposeHash;
use testbed::{
    Stack, connect,
    program::{Program, run},
};

#[tokio::test(flavor = "multi_thread")]
async fn every_release_and_refusal_is_logged_and_no_secret_is() {
    let stack = Stack::start().await;
    let kms = Program::start(&stack);
    let request = GetAppKeyRequest { api_version: 1, ..GetAppKeyRequest::default() };
    let allowed = stack.guest(1);
    let mut denied = stack.guest(1);
    denied.compose_hash = ComposeHash::new([9; 32]);
    let mut disbelieved = stack.guest(1);
    disbelieved.tamper_body = |body| body.td_attributes[0] |= 1;

    let keys = connect(&kms.url, &allowed).await.get_app_key(&request).await.unwrap();
    assert!(connect(&kms.url, &denied).await.get_app_key(&request).await.is_err());
    let told = connect(&kms.url, &disbelieved).await.get_app_key(&request).await.unwrap_err();
    let log = kms.log.clone();
    kms.must_end_gracefully();

    let text = std::fs::read_to_string(log).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let audit: Vec<&serde_json::Value> = lines.iter().filter(|line| line["target"] == "dstack_kms::audit").collect();
    assert_eq!(audit.len(), 3, "{text}");
    assert_eq!((&audit[0]["message"], &audit[0]["app_id"]), (&"released".into(), &allowed.app_id.to_string().into()));
    assert_eq!(audit[0]["simulated"], true);
    assert_eq!((&audit[1]["message"], &audit[1]["code"]), (&"refused".into(), &"kms/compose-hash-not-allowed".into()));
    assert_eq!(audit[1]["compose_hash"], denied.compose_hash.to_string());
    assert_eq!((&audit[2]["message"], &audit[2]["code"]), (&"refused".into(), &"attestation/td-attributes".into()));
    assert!(told.fix.contains(audit[2]["request_id"].as_str().unwrap()), "the guest's error leads the operator to the line");
    for danger in ["danger.run_without_tee", "danger.simulated_root", "danger.allow_simulated"] {
        assert!(lines.iter().any(|line| line["setting"] == danger), "{danger} is announced");
    }
    let root_key = std::fs::read(stack.path("kms/root-k256.key")).unwrap();
    for secret in [&keys.disk_crypt_key, &keys.env_crypt_key, &keys.k256_key, &root_key] {
        assert!(!text.contains(&hex::encode(secret)), "a secret is in the log");
    }
    assert!(!text.contains("PRIVATE KEY"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_tee_needs_the_danger_setting() {
    let stack = Stack::start().await;
    let mut settings = stack.settings();
    settings.danger.run_without_tee = false;

    let output = run(&stack, &settings, &[]);

    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(text.contains("[kms/no-tee]") && text.contains("fix:"), "{text}");
    assert!(!stack.path("kms").exists(), "no keys are made where they would lie open");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_config_prints_what_would_be_in_force_and_makes_nothing() {
    let stack = Stack::start().await;

    let output = run(&stack, &stack.settings(), &["--check-config"]);

    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(toml::from_str::<dstack_kms::config::ConfigFile>(&text).unwrap(), stack.settings());
    assert!(!stack.path("kms").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn starting_problems_have_code_and_fix() {
    let stack = Stack::start().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut in_use = stack.settings();
    in_use.listen = taken.local_addr().unwrap();
    let mut no_list = stack.settings();
    no_list.allow_list = Some(stack.path("none.toml"));
    let mut no_root = stack.settings();
    no_root.danger.simulated_root = Some(stack.path("none.pem"));
    for (settings, code) in
        [(in_use, "[rpc/address-in-use]"), (no_list, "[authorization/allow-list-unreadable]"), (no_root, "[config/invalid]")]
    {
        let output = run(&stack, &settings, &[]);

        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(code) && text.contains("fix:"), "{code}: {text}");
    }
}
