//! One field wrong at a time, everything else signed and right: each check must catch its own.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_attestation::{
    Check, CheckOutcome, Endorsements, Evidence, Fault, ImageRule, Link, Platform, Policy, QuoteCollateral, Reason, TcbStatus,
    TdAttributeFault, TdxVerifier, TrustAnchors, VerifiedEvidence, Verifier, VerifyError,
};
use dstack_event_log::{Digest384, Event, EventLog, EventVersion, RuntimeEvent};
use dstack_manifest::{ComposeHash, KeyProviderKind, mr_config_id_v1, mr_config_id_v2, mr_config_id_v3};
use dstack_tee_simulator::{CollateralSet, QuoteBody, QuotingEnclave, Vendor};

const NOW: i64 = 1_790_000_000;
const REPORT_DATA: [u8; 64] = [0x77; 64];
const COMPOSE_HASH: [u8; 32] = [0xc0; 32];

struct Bench {
    vendor: Vendor,
    events: Vec<Event>,
    policy: Policy,
    tcb_status: &'static str,
    revoked: Vec<Vec<u8>>,
}

fn event(name: &str, payload: &[u8]) -> Event {
    RuntimeEvent::new(name, payload, EventVersion::V1).to_event()
}

fn boot(imr: u32, byte: u8) -> Event {
    Event::boot(imr, 4, &[byte; 48], "")
}

fn key_provider() -> Vec<u8> {
    br#"{"name":"kms","id":"aabb"}"#.to_vec()
}

impl Bench {
    fn new() -> Self {
        let events = vec![
            boot(0, 1),
            boot(1, 2),
            boot(2, 3),
            event("app-id", &COMPOSE_HASH[..20]),
            event("compose-hash", &COMPOSE_HASH),
            event("instance-id", &[9; 20]),
            event("boot-mr-done", b""),
            event("key-provider", &key_provider()),
            event("system-ready", b""),
        ];
        Self { vendor: Vendor::generate(NOW).unwrap(), events, policy: Policy::report_only(), tcb_status: "UpToDate", revoked: vec![] }
    }

    fn endorsements(&self) -> Endorsements {
        let set = CollateralSet::sign_revoking(&self.vendor, NOW, self.tcb_status, &self.revoked).unwrap();
        QuoteCollateral {
            pck_crl_issuer_chain: self.vendor.pck_ca_chain_pem(),
            root_ca_crl: set.root_crl,
            pck_crl: set.pck_crl,
            tcb_info_issuer_chain: self.vendor.tcb_chain_pem(),
            tcb_info: set.tcb_info.text,
            tcb_info_signature: set.tcb_info.signature.to_vec(),
            qe_identity_issuer_chain: self.vendor.tcb_chain_pem(),
            qe_identity: set.qe_identity.text,
            qe_identity_signature: set.qe_identity.signature.to_vec(),
            pck_certificate_chain: None,
        }
        .into()
    }

    /// Verifies a quote whose registers are those of the log, after `change`.
    fn verify_quoted(
        &self,
        change: impl FnOnce(&mut QuoteBody),
        shown: impl FnOnce(&mut Evidence),
    ) -> Result<VerifiedEvidence, VerifyError> {
        let registers = EventLog::new(self.events.clone()).unwrap().registers().0;
        let mut body = QuoteBody::new([0xd7; 48], registers, [0; 48], REPORT_DATA);
        change(&mut body);
        let quote = QuotingEnclave::new(&self.vendor).quote(&body);
        let mut evidence =
            Evidence { quote, event_log: self.events.clone(), vm_config: String::new(), report_data: None, app_compose: None };
        shown(&mut evidence);
        let anchors = TrustAnchors::hardware().danger_simulated_root(self.vendor.root_der().to_vec()).unwrap();
        Verifier::new(anchors, self.policy.clone()).verify(&evidence, &self.endorsements(), NOW.cast_unsigned(), Some(&REPORT_DATA))
    }

    fn verify(&self, change: impl FnOnce(&mut QuoteBody)) -> Result<VerifiedEvidence, VerifyError> {
        self.verify_quoted(change, |_| ())
    }
}

fn refused(result: Result<VerifiedEvidence, VerifyError>) -> (Check, Reason) {
    let error = result.map(|_| ()).unwrap_err();
    (error.check, *error.reason)
}

#[test]
fn the_unchanged_evidence_is_accepted_and_says_what_was_not_checked() {
    let verified = Bench::new().verify(|_| ()).unwrap();

    assert!(verified.is_simulated());
    assert_eq!(verified.os_image_hash(), None);
    assert!(matches!(verified.report().outcome(Check::OsImage), Some(CheckOutcome::NotChecked(_))));
    assert!(matches!(verified.report().outcome(Check::MrConfigId), Some(CheckOutcome::NotChecked(_))));
    assert_eq!(verified.claims().key_provider.as_ref().unwrap().id, [0xaa, 0xbb]);
}

#[test]
fn attributes_of_the_td() {
    let attribute = |bit: usize, value: bool| {
        refused(Bench::new().verify(|body| {
            let byte = &mut body.td_attributes[bit / 8];
            *byte = if value { *byte | 1 << (bit % 8) } else { *byte & !(1 << (bit % 8)) };
        }))
    };
    assert_eq!(attribute(0, true), (Check::TdAttributes, TdAttributeFault::Debug.into()));
    assert_eq!(attribute(4, true), (Check::TdAttributes, TdAttributeFault::Debug.into()));
    assert_eq!(attribute(28, false), (Check::TdAttributes, TdAttributeFault::SeptVeEnabled.into()));
    assert_eq!(attribute(29, true), (Check::TdAttributes, TdAttributeFault::Migratable.into()));
    assert_eq!(attribute(17, true), (Check::TdAttributes, TdAttributeFault::ServiceTd.into()));
    assert_eq!(attribute(40, true), (Check::TdAttributes, TdAttributeFault::ReservedBits.into()));
}

#[test]
fn module_and_its_version() {
    let (check, reason) = refused(Bench::new().verify(|body| body.mr_signer_seam[0] = 1));
    assert_eq!(check, Check::QuoteSignature, "{reason}");

    let (check, reason) = refused(Bench::new().verify(|body| body.tee_tcb_svn[2] = 0));
    assert_eq!(check, Check::QuoteSignature, "{reason}");
}

#[test]
fn revoked_certificates_by_issuer() {
    let vendor = Vendor::generate(NOW).unwrap();
    let serials: Vec<Vec<u8>> = [vendor.pck_chain_pem(), vendor.tcb_chain_pem()].iter().flat_map(|chain| serials(chain)).collect();
    let mut bench = Bench { vendor, ..Bench::new() };
    for serial in serials {
        bench.revoked = vec![serial];

        let (check, reason) = refused(bench.verify(|_| ()));

        assert_eq!(check, Check::QuoteSignature);
        assert!(matches!(reason, Reason::Signature { link: Link::Revocation, fault: Fault::Revoked, .. }), "{reason}");
    }
    bench.revoked = vec![vec![0x12, 0x34]];
    assert!(bench.verify(|_| ()).is_ok());
}

/// Serial numbers of the certificates of a chain.
fn serials(pem: &str) -> Vec<Vec<u8>> {
    x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes())
        .map(|pem| pem.unwrap().parse_x509().unwrap().tbs_certificate.raw_serial().to_vec())
        .collect()
}

#[test]
fn policy_on_machine_platform_and_papers() {
    let mut bench = Bench::new();
    let device = bench.verify(|_| ()).unwrap().device_id();
    let mut with = |policy: Policy| {
        bench.policy = policy;
        bench.verify(|_| ())
    };
    let open = Policy::report_only;

    let (check, reason) = refused(with(Policy { platforms: Some(vec![Platform::SevSnp]), ..open() }));
    assert_eq!((check, reason), (Check::Platform, Reason::Platform { platform: Platform::Tdx }));
    let (check, reason) = refused(with(Policy { machines: Some(vec![vec![1; 32]]), ..open() }));
    assert_eq!((check, reason), (Check::Platform, Reason::Machine { id: Some(hex::encode(device)) }));
    assert!(with(Policy { machines: Some(vec![device.to_vec()]), platforms: Some(vec![Platform::Tdx]), ..open() }).is_ok());
    let (check, reason) = refused(with(Policy { minimum_tcb_evaluation_number: Some(u32::MAX), ..open() }));
    assert!(check == Check::TcbPolicy && matches!(reason, Reason::TcbEvaluationNumber { minimum: u32::MAX, .. }), "{reason}");
    let (check, reason) = refused(with(Policy { max_collateral_age: Some(0), ..open() }));
    assert!(check == Check::Freshness && matches!(reason, Reason::CollateralAge { maximum: 0, age: 1.. }), "{reason}");
    assert!(with(Policy { max_collateral_age: Some(40 * 86_400), max_evidence_age: Some(1), ..open() }).is_ok());
}

#[test]
fn status_of_one_platform_overrides_the_common_list() {
    let up_to_date = || Some(vec![TcbStatus::UpToDate]);
    let tolerant = Policy {
        accepted_tcb: up_to_date(),
        accepted_tcb_of: [(Platform::Tdx, vec![TcbStatus::OutOfDate])].into(),
        ..Policy::report_only()
    };
    let bench = |tcb_status, policy: &Policy| Bench { tcb_status, policy: policy.clone(), ..Bench::new() }.verify(|_| ());

    assert!(bench("OutOfDate", &tolerant).is_ok());
    assert_eq!(refused(bench("UpToDate", &tolerant)).1, Reason::TcbStatus { status: TcbStatus::UpToDate });
    let other = Policy {
        accepted_tcb: up_to_date(),
        accepted_tcb_of: [(Platform::SevSnp, vec![TcbStatus::OutOfDate])].into(),
        ..Policy::report_only()
    };
    assert_eq!(refused(bench("OutOfDate", &other)).1, Reason::TcbStatus { status: TcbStatus::OutOfDate });
}

#[test]
fn revoked_platform_is_never_accepted_and_others_are_reported() {
    let with_status = |tcb_status| Bench { tcb_status, ..Bench::new() }.verify(|_| ());

    assert_eq!(refused(with_status("Revoked")).0, Check::QuoteSignature);
    assert_eq!(with_status("OutOfDate").unwrap().tcb_status(), TcbStatus::OutOfDate);
    let strict = Bench { tcb_status: "OutOfDate", policy: Policy { image: ImageRule::WherePossible, ..Policy::strict() }, ..Bench::new() };
    assert_eq!(refused(strict.verify(|_| ())).0, Check::TcbPolicy);
}

#[test]
fn report_data_of_the_quote_and_of_the_sender() {
    assert_eq!(refused(Bench::new().verify(|body| body.report_data[63] ^= 1)), (Check::ReportData, Reason::ReportData));

    let lying = Bench::new().verify_quoted(|_| (), |evidence| evidence.report_data = Some([0; 64]));
    assert_eq!(refused(lying), (Check::ReportData, Reason::ReportData));
}

#[test]
fn each_register_against_the_log() {
    for (register, check) in [(0, Check::BootLog), (1, Check::BootLog), (2, Check::BootLog), (3, Check::RuntimeLog)] {
        let (found, reason) = refused(Bench::new().verify(|body| body.rtmr[register][7] ^= 1));

        assert_eq!(found, check);
        assert!(matches!(reason, Reason::Registers(ref mismatch) if mismatch.register == register), "{reason}");
    }
}

#[test]
fn log_with_swapped_payload_kept_digest_or_missing_event() {
    let swapped = Bench::new().verify_quoted(|_| (), |evidence| evidence.event_log[4].event_payload = vec![1; 32]);
    assert!(matches!(refused(swapped), (Check::RuntimeLog, Reason::Log(_))));
    let renamed = Bench::new().verify_quoted(|_| (), |evidence| evidence.event_log[4].event = "app-id".into());
    assert!(matches!(refused(renamed), (Check::RuntimeLog, Reason::Log(_))));
    let dropped = Bench::new().verify_quoted(|_| (), |evidence| drop(evidence.event_log.pop()));
    assert!(matches!(refused(dropped), (Check::RuntimeLog, Reason::Registers(_))));
}

#[test]
fn log_without_its_boot_events_is_reported_as_such() {
    let bench = Bench::new();

    let verified = bench.verify_quoted(|_| (), |evidence| drop(evidence.event_log.drain(..3))).unwrap();

    assert!(matches!(verified.report().outcome(Check::BootLog), Some(CheckOutcome::NotChecked(_))));
    let strict = Bench { policy: Policy { image: ImageRule::Required, ..Policy::report_only() }, ..bench };
    assert_eq!(refused(strict.verify(|_| ())).0, Check::OsImage);
}

#[test]
fn log_reduced_to_its_acpi_tables_covers_no_boot() {
    let tables = |imr| Event { event_payload: b"ACPI DATA".to_vec(), ..boot(imr, 4) };
    let mut bench = Bench::new();
    bench.events.splice(0..0, [tables(0), tables(1)]);
    let reduced_to = |kept: fn(&Event) -> bool| {
        let reduced = bench.verify_quoted(|_| (), |evidence| evidence.event_log.retain(|event| event.imr == 3 || kept(event)));
        reduced.map_or_else(|error| Err(error.check), |verified| Ok(verified.report().passed(Check::BootLog)))
    };

    assert_eq!(reduced_to(|event| event.imr == 0 && !event.event_payload.is_empty()), Ok(false), "left to the image");
    assert_eq!(reduced_to(|event| event.imr == 0 && event.event_payload.is_empty()), Err(Check::BootLog));
    assert_eq!(reduced_to(|event| event.imr == 1 && !event.event_payload.is_empty()), Err(Check::BootLog));
    assert_eq!(reduced_to(|_| true), Ok(true));
}

#[test]
fn identity_events_of_the_wrong_length() {
    for (index, name) in [(3, "app-id"), (4, "compose-hash"), (5, "instance-id"), (7, "key-provider")] {
        let mut bench = Bench::new();
        bench.events[index] = event(name, &[1; 5]);

        assert!(matches!(refused(bench.verify(|_| ())), (Check::Identity, Reason::Claim(ref claim)) if claim.event == name));
    }
}

#[test]
fn mr_config_id_of_every_version() {
    let compose_hash = ComposeHash::new(COMPOSE_HASH);
    let app_id = compose_hash.default_app_id();
    let v1 = mr_config_id_v1(&compose_hash);
    let v2 = mr_config_id_v2(&compose_hash, &app_id, KeyProviderKind::Kms, &[0xaa, 0xbb]);
    for good in [v1, v2] {
        let verified = Bench::new().verify(|body| body.mr_config_id = good).unwrap();
        assert!(verified.report().passed(Check::MrConfigId));
    }
    let other_kind = mr_config_id_v2(&compose_hash, &app_id, KeyProviderKind::Tpm, &[0xaa, 0xbb]);
    for bad in [mr_config_id_v1(&ComposeHash::new([1; 32])), other_kind, [9; 48]] {
        assert_eq!(refused(Bench::new().verify(|body| body.mr_config_id = bad)), (Check::MrConfigId, Reason::MrConfigId));
    }
    let document = r#"{"app_id":"c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0","compose_hash":"COMPOSE","key_provider":"kms","key_provider_id":"aabb","version":3}"#
        .replace("COMPOSE", &"c0".repeat(32));
    let with_document = |document: &str| {
        let vm_config = serde_json::json!({ "mr_config": document, "cpu_count": 1, "memory_size": 1 }).to_string();
        Bench::new().verify_quoted(|body| body.mr_config_id = mr_config_id_v3(document), |evidence| evidence.vm_config = vm_config)
    };
    assert!(with_document(&document).unwrap().report().passed(Check::MrConfigId));
    for (from, to) in [("c0c0c0c0\",", "c0c0c0c1\","), ("kms", "tpm"), ("aabb", "aabc"), ("\"version\"", "\"future\":1,\"version\"")] {
        let other = document.replacen(from, to, 1);
        assert_eq!(refused(with_document(&other)), (Check::MrConfigId, Reason::MrConfigId), "{other}");
    }
    for undecided in [tagged(3), v2] {
        let mut bench = Bench::new();
        bench.events.remove(7);
        let verified = bench.verify(|body| body.mr_config_id = undecided).unwrap();
        assert!(matches!(verified.report().outcome(Check::MrConfigId), Some(CheckOutcome::NotChecked(_))));
    }
}

fn tagged(version: u8) -> Digest384 {
    let mut id = [0; 48];
    id[0] = version;
    id
}

#[test]
fn shown_document_must_be_the_measured_one() {
    let shown = Bench::new().verify_quoted(|_| (), |evidence| evidence.app_compose = Some(b"{}".to_vec()));

    assert!(matches!(refused(shown), (Check::Identity, Reason::AppCompose { .. })));
}

#[test]
fn collateral_of_another_vendor() {
    let (bench, other) = (Bench::new(), Bench::new());
    let registers = EventLog::new(bench.events.clone()).unwrap().registers().0;
    let quote = QuotingEnclave::new(&bench.vendor).quote(&QuoteBody::new([0; 48], registers, [0; 48], REPORT_DATA));
    let anchors = TrustAnchors::hardware().danger_simulated_root(bench.vendor.root_der().to_vec()).unwrap();
    let verifier = Verifier::new(anchors, Policy::report_only());

    let error = verifier.verify_platform(&TdxVerifier, &quote, &other.endorsements(), NOW.cast_unsigned(), None).map(|_| ()).unwrap_err();

    assert_eq!(error.check, Check::QuoteSignature);
}
