//! `dstack verify FILE --json` over platforms beside TDX: clouds' envelopes, GPUs, Arm realms. What is not checked says why.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests panic on purpose")]

mod command;

use command::{Answer, EVIDENCE, TDX, evidence, judge, path_of, scratch};
use dstack_attestation::{Envelope, PlatformEvidence, tpm::TpmQuote};

/// Collateral of the two machines of Google's cloud, and a time at which it is valid.
const GCP_COLLATERAL: &str = "collateral/00806f050000-tdx-platform-20260630-e19.json";
const GCP_TIME: &str = "2026-07-15T00:00:00Z";

fn gcp(bytes: &[u8], more: &[&str]) -> Answer {
    let collateral = path_of(&format!("{TDX}{GCP_COLLATERAL}"));
    judge(&scratch("gcp", bytes), &[&["--collateral", &collateral, "--at", GCP_TIME], more].concat())
}

fn gcp_envelope() -> Envelope {
    Envelope::decode(&evidence(&format!("{EVIDENCE}tpm/gcp-attestation-1.bin"))).unwrap()
}

/// Judges the envelope with its TPM quote changed.
fn with_tpm(change: impl FnOnce(&mut Vec<u8>)) -> Answer {
    let mut envelope = gcp_envelope();
    let PlatformEvidence::GcpTdx { tpm_quote, .. } = &mut envelope.evidence else { panic!("not of Google's cloud") };
    change(tpm_quote);
    gcp(&envelope.encode(), &[])
}

fn outcomes(answer: &Answer, names: &[&str]) -> Vec<String> {
    names.iter().map(|name| answer.check(name)["outcome"].as_str().unwrap().to_owned()).collect()
}

/// Every check that was not made says why.
fn assert_skipped(answer: &Answer, names: &[&str]) {
    for name in names {
        let check = answer.check(name);
        assert!(check["outcome"] == "skipped" && !check["detail"].as_str().unwrap().is_empty(), "{check}");
    }
}

#[test]
fn an_envelope_of_googles_cloud_is_judged_on_both_sides() {
    for bytes in [evidence(&format!("{EVIDENCE}tpm/gcp-attestation-1.bin")), gcp_envelope().encode()] {
        let answer = gcp(&bytes, &[]);

        assert_eq!((answer.code, &answer.json()["platform"]), (0, &"gcp-tdx".into()), "{}{}", answer.out, answer.err);
        let made = [
            "quote-signature",
            "runtime-log",
            "tpm-format",
            "tpm-certificate-chain",
            "tpm-signature",
            "tpm-event-log",
            "tpm-binding",
            "tpm-firmware",
            "tpm-runtime-log",
        ];
        assert_eq!(outcomes(&answer, &made), ["pass"; 9]);
        assert_skipped(&answer, &["tpm-revocation"]);
        assert_eq!(answer.check("os-image")["outcome"], "unknown", "the envelope has no measurement document");
        let claims = &answer.json()["claims"];
        assert_eq!(claims["mr_aggregated"], "45945647b298002fab5255ac6d0fc84be25122a385fb05d51be6d1bd6483fc38");
        assert_eq!((claims["pcr14"].as_str().unwrap().len(), claims["rtmr3"].as_str().unwrap().len()), (64, 96));
        assert!(claims["app_id"].as_str().unwrap().starts_with("e631a04a"));
        assert_eq!(answer.json()["trust_anchors"][1]["anchor"], "Google EK/AK CA Root");
    }
}

#[test]
fn each_part_of_googles_evidence_is_refused_by_its_own_check() {
    let changed = |change: &dyn Fn(&mut Envelope)| {
        let mut envelope = gcp_envelope();
        change(&mut envelope);
        gcp(&envelope.encode(), &[])
    };
    let quote_of = |envelope: &mut Envelope, change: &dyn Fn(&mut Vec<u8>)| {
        let PlatformEvidence::GcpTdx { quote, .. } = &mut envelope.evidence else { panic!("not of Google's cloud") };
        change(quote);
    };
    let failed = |answer: Answer| {
        assert_eq!(answer.code, 1, "{}", answer.out);
        answer.failed().unwrap()["name"].as_str().unwrap().to_owned()
    };

    assert_eq!(
        failed(changed(&|envelope| quote_of(envelope, &|quote| quote.truncate(quote.len() - 1)))),
        "tpm-binding",
        "one zero of the padding less"
    );
    assert_eq!(failed(changed(&|envelope| quote_of(envelope, &|quote| quote[200] ^= 1))), "quote-signature");
    assert_eq!(failed(changed(&|envelope| drop(envelope.runtime_events.pop()))), "tpm-runtime-log");
    assert_eq!(failed(changed(&|envelope| envelope.report_data[0] ^= 1)), "report-data");
    assert_eq!(failed(with_tpm(|quote| quote.truncate(quote.len() / 2))), "tpm-format");
    let signed = TpmQuote::decode_scale(&mut tpm_quote().as_slice()).unwrap();
    let message = position(&tpm_quote(), &signed.message) + signed.message.len() - 1;
    assert_eq!(failed(with_tpm(|quote| quote[message] ^= 1)), "tpm-signature");
    let value = position(&tpm_quote(), &signed.pcrs[0].value);
    assert_eq!(failed(with_tpm(|quote| quote[value] ^= 1)), "tpm-event-log");
    let certificate = position(&tpm_quote(), &signed.certificate) + 600;
    assert!(failed(with_tpm(|quote| quote[certificate] ^= 1)).starts_with("tpm-"));
    let early = judge(
        &path_of(&format!("{EVIDENCE}tpm/gcp-attestation-2.bin")),
        &["--collateral", &path_of(&format!("{TDX}{GCP_COLLATERAL}")), "--at", GCP_TIME],
    );
    assert_eq!(early.failed().unwrap()["name"], "tpm-certificate-chain", "the issuer of that key is not at hand");
    assert!(early.json()["fix"].as_str().unwrap().contains("--chain"));
}

fn tpm_quote() -> Vec<u8> {
    let PlatformEvidence::GcpTdx { tpm_quote, .. } = gcp_envelope().evidence else { panic!("not of Google's cloud") };
    tpm_quote
}

fn position(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).position(|window| window == part).unwrap()
}

#[test]
fn a_policy_that_demands_an_image_refuses_googles_evidence_without_its_document() {
    let policy = scratch("policy", b"version = 1\n[image]\nrequired = true\n");

    let answer = gcp(&gcp_envelope().encode(), &["--policy", &policy]);

    assert_eq!((answer.code, &answer.failed().unwrap()["name"]), (1, &"os-image".into()), "{}{}", answer.out, answer.err);
}

#[test]
fn a_bundle_of_an_envelope_keeps_all_of_it() {
    let bundle = scratch("bundle", b"");

    let saved = gcp(&gcp_envelope().encode(), &["--save", &bundle]);
    let again = judge(&bundle, &["--at", GCP_TIME]);

    assert_eq!((saved.code, again.code), (0, 0), "{}{}", again.out, again.err);
    assert_eq!(again.json()["claims"], saved.json()["claims"]);
}

/// The envelope around a published document, whose cut-out carries the rest of it.
fn nitro_envelope(debug: bool) -> (Envelope, &'static str) {
    let (name, time) = if debug { ("f2ffe330c2b5a7aa", "2025-12-25T08:20:46Z") } else { ("ef18ccdc05f3ab27", "2025-12-25T16:04:19Z") };
    let bytes = evidence(&format!("{EVIDENCE}nitro/{name}.cose"));
    let document = dstack_attestation::nitro::UnverifiedDocument::parse(&bytes).unwrap();
    let report_data = document.document().user_data.as_deref().unwrap().try_into().unwrap();
    let evidence = PlatformEvidence::NitroEnclave { document: bytes };
    (Envelope { evidence, runtime_events: Vec::new(), report_data, config: String::new(), report_data_payload: None }, time)
}

#[test]
fn an_enclave_in_an_envelope_is_known_by_its_image() {
    let (envelope, time) = nitro_envelope(false);

    let answer = judge(&scratch("nitro", &envelope.encode()), &["--at", time]);

    assert_eq!((answer.code, &answer.json()["platform"]), (0, &"nitro-enclave".into()), "{}{}", answer.out, answer.err);
    assert_eq!(outcomes(&answer, &["signature", "claimed-report-data", "os-image"]), ["pass"; 3]);
    assert_skipped(&answer, &["identity"]);
    let claims = &answer.json()["claims"];
    assert_eq!((&claims["os_image_hash"], &claims["mr_system"]), (&claims["mr_aggregated"], &claims["mr_aggregated"]));
}

#[test]
fn an_enclave_with_other_data_or_another_image_is_refused() {
    let (mut envelope, time) = nitro_envelope(false);
    envelope.config =
        r#"{"vm_config":"{\"os_image_hash\":\"1111111111111111111111111111111111111111111111111111111111111111\"}"}"#.to_owned();
    let image = judge(&scratch("nitro", &envelope.encode()), &["--at", time]);
    assert_eq!((image.code, &image.failed().unwrap()["name"]), (1, &"os-image".into()), "{}", image.out);

    let (mut envelope, time) = nitro_envelope(false);
    envelope.report_data[0] ^= 1;
    let data = judge(&scratch("nitro", &envelope.encode()), &["--at", time]);
    assert_eq!((data.code, &data.failed().unwrap()["name"]), (1, &"claimed-report-data".into()), "{}", data.out);

    let (envelope, time) = nitro_envelope(true);
    let debug = judge(&scratch("nitro", &envelope.encode()), &["--at", time]);
    assert_eq!(debug.check("os-image")["outcome"], "unknown", "{}", debug.out);
}

/// What an attester sends to NVIDIA's service, of an H100.
fn gpu(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut report = evidence(&format!("{EVIDENCE}gpu/hopper-report.bin"));
    change(&mut report);
    let chain = evidence(&format!("{EVIDENCE}gpu/hopper-chain.pem"));
    let gpu = serde_json::json!({ "certificate": command::base64(&chain), "evidence": command::base64(&report) });
    serde_json::json!({ "arch": "HOPPER", "evidence_list": [gpu] }).to_string().into_bytes()
}

#[test]
fn the_report_of_a_gpu_is_verified_and_the_rest_is_said() {
    let nonce = "931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb";
    let file = scratch("gpu", &gpu(|_| ()));

    let answer = judge(&file, &["--nonce", nonce]);

    assert_eq!((answer.code, &answer.json()["platform"]), (0, &"nvidia-gpu".into()), "{}{}", answer.out, answer.err);
    assert_eq!(answer.json()["verdict"], "VERIFIED WITH CAVEATS");
    assert_eq!(outcomes(&answer, &["format", "certificate-chain", "attestation-key", "signature", "report-data"]), ["pass"; 5]);
    assert_skipped(&answer, &["endorsements", "revocation", "debug"]);
    assert!(answer.check("endorsements")["detail"].as_str().unwrap().contains("reference values"));
    let claims = &answer.json()["claims"];
    assert_eq!((&claims["driver_version"], &claims["vbios_version"]), (&"550.90.07".into(), &"96.00.9F.00.01".into()));
    assert!(answer.json()["trust_anchors"][0]["anchor"].as_str().unwrap().contains("NVIDIA"));
}

#[test]
fn changed_reports_of_a_gpu_are_refused_by_name() {
    let failed = |bytes: Vec<u8>, more: &[&str]| {
        let answer = judge(&scratch("gpu", &bytes), more);
        assert_eq!(answer.code, 1, "{}", answer.out);
        answer.failed().unwrap()["name"].as_str().unwrap().to_owned()
    };
    let last = evidence(&format!("{EVIDENCE}gpu/hopper-report.bin")).len() - 1;

    assert_eq!(failed(gpu(|report| report[last] ^= 1), &[]), "signature");
    assert_eq!(failed(gpu(|report| report[10] ^= 1), &[]), "signature");
    assert_eq!(failed(gpu(|report| report.truncate(100)), &[]), "format");
    assert_eq!(failed(gpu(|_| ()), &["--nonce", "00"]), "report-data");
    assert_eq!(failed(gpu(|_| ()), &["--at", "2017-01-01T00:00:00Z"]), "certificate-chain");
    let foreign = path_of("crates/attestation/roots/amd-ark-milan.der");
    assert_eq!(failed(gpu(|_| ()), &["--root", &foreign]), "certificate-chain");
}

#[test]
fn what_nvidias_verifier_said_is_no_evidence() {
    let said = br#"{"claims":[{"measres":"success"}],"detached_eat":[["JWT","e30.e30."]],"result_code":0}"#;

    let answer = judge(&scratch("eat", said), &[]);

    assert_eq!((answer.code, &answer.failed().unwrap()["name"]), (1, &"format".into()));
    assert!(answer.json()["reason"].as_str().unwrap().contains("NVIDIA's verifier"), "{}", answer.out);
}

fn cca(bytes: &[u8], more: &[&str]) -> Answer {
    let chip = path_of(&format!("{EVIDENCE}cca/cpak-01.der"));
    judge(&scratch("cca", bytes), &[&["--root", &chip], more].concat())
}

#[test]
fn the_token_of_a_realm_is_verified_under_a_chip_that_is_given() {
    let token = evidence(&format!("{EVIDENCE}cca/cca-token-01.cbor"));

    let answer = cca(&token, &["--nonce", &"ab".repeat(64)]);

    assert_eq!((answer.code, &answer.json()["platform"]), (0, &"arm-cca".into()), "{}{}", answer.out, answer.err);
    assert_eq!(outcomes(&answer, &["format", "certificate-chain", "attestation-key", "signature", "report-data"]), ["pass"; 5]);
    assert_skipped(&answer, &["endorsements"]);
    assert_eq!(answer.json()["claims"]["lifecycle"], "secured");
    assert_eq!(answer.json()["claims"]["rim"].as_str().unwrap().len(), 64);
}

#[test]
fn changed_tokens_and_other_chips_are_refused_by_name() {
    let token = evidence(&format!("{EVIDENCE}cca/cca-token-01.cbor"));
    let failed = |answer: Answer| {
        assert_eq!(answer.code, 1, "{}", answer.out);
        answer.failed().unwrap()["name"].as_str().unwrap().to_owned()
    };
    let mut flipped = token.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let file = scratch("cca", &token);
    let other = path_of(&format!("{EVIDENCE}cca/cpak-02.der"));

    assert_eq!(failed(cca(&flipped, &[])), "signature");
    assert_eq!(failed(cca(&token[..token.len() - 1], &[])), "format");
    assert_eq!(failed(cca(&token, &["--nonce", "00"])), "report-data");
    assert_eq!(failed(judge(&file, &[])), "certificate-chain", "no chip is trusted by itself");
    assert_eq!(failed(judge(&file, &["--root", &other])), "signature");
}
