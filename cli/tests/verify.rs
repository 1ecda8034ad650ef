//! `dstack verify` from the outside: words, exit codes, and that every lie is caught.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests panic on purpose")]

mod software_app;

use software_app::{KMS_SPKI, Lie, World, app, redacted, reference_values, run};

#[tokio::test]
async fn simulated_evidence_needs_two_permissions() {
    let world = World::start().await;
    let url = world.app(Lie::None).await;
    let policy = world.simulated_policy(&reference_values());

    let unknown_root = world.verify(&[&url]).await;
    let simulated = world.verify(&[&url, "--config", policy.to_str().unwrap()]).await;
    let allowed = world.verify(&[&url, "--config", policy.to_str().unwrap(), "--allow-simulated"]).await;

    assert_eq!((unknown_root.code, simulated.code, allowed.code), (1, 1, 0), "{}{}", simulated.out, allowed.err);
    assert!(unknown_root.out.starts_with("NOT VERIFIED"), "{}", unknown_root.out);
    assert!(simulated.out.starts_with("SIMULATED"), "{}", simulated.out);
    insta::assert_snapshot!("unknown_root", redacted(&unknown_root.out));
    insta::assert_snapshot!("simulated", redacted(&allowed.out));
}

#[tokio::test]
async fn allow_simulated_alone_changes_nothing() {
    let world = World::start().await;
    let url = world.app(Lie::None).await;

    let run = world.verify(&[&url, "--allow-simulated"]).await;

    assert_eq!(run.code, 1);
    assert!(run.out.contains("UNKNOWN root `dstack simulated SGX Root CA`"), "{}", run.out);
}

#[tokio::test]
async fn every_lie_is_caught_by_its_check() {
    let world = World::start().await;
    let policy = world.simulated_policy(&reference_values());
    let lies = [
        (Lie::OldNonce, "report-data"),
        (Lie::ClaimedNonce, "report-data"),
        (Lie::OtherDocument, "identity"),
        (Lie::OtherKernel, "boot-log os-image"),
        (Lie::OtherEvent, "runtime-log"),
        (Lie::ForgedQuote, "quote-signature"),
        (Lie::Debug, "td-attributes"),
    ];
    for (lie, checks) in lies {
        let url = world.app(lie).await;

        let run = world.verify(&[&url, "--config", policy.to_str().unwrap(), "--allow-simulated", "--json"]).await;

        let verdict: serde_json::Value = serde_json::from_str(&run.out).unwrap();
        let failed = verdict["checks"].as_array().unwrap().iter().find(|check| check["outcome"] == "fail").unwrap();
        assert_eq!((run.code, &verdict["verdict"]), (1, &"NOT VERIFIED".into()), "{lie:?}");
        assert!(checks.split(' ').any(|check| failed["name"] == check), "{lie:?} was caught by {}", failed["name"]);
        assert!(!verdict["reason"].as_str().unwrap().is_empty() && !verdict["fix"].as_str().unwrap().is_empty(), "{lie:?}");
    }
}

#[tokio::test]
async fn refusal_is_readable() {
    let world = World::start().await;
    let policy = world.simulated_policy(&reference_values());
    let url = world.app(Lie::OtherKernel).await;

    let run = world.verify(&[&url, "--config", policy.to_str().unwrap()]).await;

    insta::assert_snapshot!("refusal", redacted(&run.out));
}

#[tokio::test]
async fn what_is_not_known_is_a_caveat() {
    let world = World::start().await;
    let policy = world.simulated_policy("");
    let url = world.app(Lie::HiddenDocument).await;

    let run = world.verify(&[&url, "--config", policy.to_str().unwrap(), "--json", "--allow-simulated"]).await;

    let verdict: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    let caveats: Vec<&str> = verdict["caveats"].as_array().unwrap().iter().map(|caveat| caveat.as_str().unwrap()).collect();
    assert_eq!(caveats.len(), 4, "{caveats:?}");
    insta::assert_snapshot!("caveats", redacted(&caveats.join("\n")));
}

#[tokio::test]
async fn expectations_that_do_not_hold_refuse() {
    let world = World::start().await;
    let url = world.app(Lie::None).await;
    let other = "ab".repeat(32);
    let wrong = [
        ("os-image-known", format!("os_images = [{{ hash = \"{other}\", name = \"x\" }}]")),
        ("app-expected", format!("app_id = \"{}\"", "ab".repeat(20))),
        ("compose-expected", format!("compose_hashes = [\"{other}\"]")),
        ("tcb-policy", "accepted_tcb = []".to_owned()),
    ];
    for (check, text) in wrong {
        let policy = world.simulated_policy(&text);

        let run = world.verify(&[&url, "--config", policy.to_str().unwrap(), "--allow-simulated", "--json"]).await;

        let verdict: serde_json::Value = serde_json::from_str(&run.out).unwrap();
        let failed: Vec<_> = verdict["checks"].as_array().unwrap().iter().filter(|line| line["outcome"] == "fail").collect();
        assert_eq!((run.code, failed.len()), (1, 1), "{text}: {}", run.out);
        assert_eq!(failed[0]["name"], check);
    }
    let right = format!("app_id = \"{}\"\ncompose_hashes = [\"{}\"]", app().compose_hash().default_app_id(), app().compose_hash());
    let policy = world.simulated_policy(&right);
    assert_eq!(world.verify(&[&url, "--config", policy.to_str().unwrap(), "--allow-simulated"]).await.code, 0);
}

#[tokio::test]
async fn saved_evidence_is_verified_offline_and_says_what_it_lacks() {
    let world = World::start().await;
    let policy = world.simulated_policy(&reference_values());
    let (policy, saved) = (policy.to_str().unwrap().to_owned(), world.path("evidence.json"));
    let saved = saved.to_str().unwrap();
    let url = world.app(Lie::None).await;
    let nonce = "5a".repeat(16);
    let live = world.verify(&[&url, "--config", &policy, "--nonce", &nonce, "--save", saved, "--allow-simulated"]).await;
    assert_eq!(live.code, 0, "{}{}", live.out, live.err);

    let offline = world.verify(&[saved, "--config", &policy, "--offline", "--allow-simulated", "--nonce", &nonce]).await;
    let without_nonce = world.verify(&[saved, "--config", &policy, "--offline", "--allow-simulated"]).await;
    let wrong_nonce = world.verify(&[saved, "--config", &policy, "--offline", "--allow-simulated", "--nonce", "00"]).await;

    assert_eq!((offline.code, without_nonce.code, wrong_nonce.code), (0, 0, 1), "{}", offline.err);
    assert!(without_nonce.out.contains("Nothing shows when this evidence was made"), "{}", without_nonce.out);
    assert!(!offline.out.contains("Nothing shows"), "{}", offline.out);
}

#[tokio::test]
async fn another_kms_than_the_expected_one_refuses() {
    let world = World::start().await;
    // The software TEE's root serves as a certificate with another key.
    let policy = world.simulated_policy("kms_ca = \"tee/root.pem\"");
    let url = world.app(Lie::None).await;

    let run = world.verify(&[&url, "--config", policy.to_str().unwrap(), "--allow-simulated"]).await;

    assert_eq!(run.code, 1);
    assert!(run.out.contains("the measured key provider is not the KMS of"), "{}", run.out);
    assert!(!KMS_SPKI.is_empty());
}

#[tokio::test]
async fn what_cannot_be_decided_is_neither_yes_nor_no() {
    let world = World::start().await;
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = world.app(Lie::None).await;
    let policy = world.path("down.toml");
    std::fs::write(&policy, format!("collateral_url = \"http://{nowhere}\"\n[danger]\nsimulated_root = \"tee/root.pem\"\n")).unwrap();

    let unreachable_app = world.verify(&[&format!("http://{nowhere}")]).await;
    let no_collateral = world.verify(&[&url, "--config", policy.to_str().unwrap()]).await;
    let offline = world.verify(&[&url, "--config", policy.to_str().unwrap(), "--offline"]).await;

    assert_eq!((unreachable_app.code, no_collateral.code, offline.code), (3, 3, 3));
    assert!(no_collateral.err.contains("[collateral/unreachable]"), "{}", no_collateral.err);
    assert!(offline.err.contains("[verify/no-collateral]"), "{}", offline.err);
}

#[tokio::test]
async fn wrong_usage_ends_with_2() {
    let world = World::start().await;

    let codes = [
        world.verify(&["nosuchthing"]).await.code,
        world.verify(&["http://127.0.0.1:1", "--nonce", "xyz"]).await.code,
        world.verify(&[]).await.code,
        run(world.directory.path(), &["deploy", "-c", "missing.yaml"]).await.code,
    ];

    assert_eq!(codes, [2, 2, 2, 2]);
}

#[tokio::test]
async fn malformed_evidence_is_not_verified() {
    let world = World::start().await;
    std::fs::write(world.path("short.json"), "{\"quote\":\"0400\",\"event_log\":\"[]\"}").unwrap();
    std::fs::write(world.path("none.json"), "{}").unwrap();

    let short = world.verify(&["short.json"]).await;
    let none = world.verify(&["none.json"]).await;

    assert_eq!((short.code, none.code), (1, 1), "{}{}", short.err, none.err);
    assert!(short.out.contains("no kind of evidence that is known"), "{}", short.out);
    assert!(none.out.contains("it has neither `quote` nor `attestation`"), "{}", none.out);
}
