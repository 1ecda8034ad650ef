//! A TD that booted a known image: one thing about image, configuration or log wrong at a time.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use dstack_attestation::{
    Check, CheckOutcome, Endorsements, Evidence, ImageBindingError, ImageRule, Policy, QuoteCollateral, Reason, TrustAnchors,
    VerifiedEvidence, Verifier, VerifyError,
};
use dstack_event_log::{Event, names};
use dstack_manifest::{AppId, ComposeHash, InstanceId, MeasurementDocument, OsImageHash, VmConfig};
use dstack_measurement::checksum::os_image_hash;
use dstack_tee_simulator::{CollateralSet, QuoteBody, QuotingEnclave, Vendor};
use dstack_testkit::software_td;
use sha2::{Digest as _, Sha256};

const NOW: i64 = 1_790_000_000;
const REPORT_DATA: [u8; 64] = [0x77; 64];

struct Bench {
    vendor: Vendor,
    policy: Policy,
    /// What the guest measured as its image, if it did.
    measured: Option<OsImageHash>,
}

impl Bench {
    fn new(image: ImageRule) -> Self {
        Self { vendor: Vendor::generate(NOW).unwrap(), policy: Policy { image, ..Policy::default() }, measured: None }
    }

    fn verify(&self, configured: impl FnOnce(&mut VmConfig), quoted: impl FnOnce(&mut QuoteBody)) -> Result<VerifiedEvidence, VerifyError> {
        let mut config = software_td::vm_config();
        configured(&mut config);
        self.verify_with(&serde_json::to_string(&config).unwrap(), quoted)
    }

    fn verify_with(&self, vm_config: &str, quoted: impl FnOnce(&mut QuoteBody)) -> Result<VerifiedEvidence, VerifyError> {
        let compose_hash = ComposeHash::new([0xc0; 32]);
        let mut events = software_td::identity_events(&AppId::new([0xc0; 20]), &compose_hash, &InstanceId::NONE);
        events.extend(self.measured.map(|hash| software_td::event(names::OS_IMAGE_HASH, hash.as_bytes())));
        let event_log: Vec<Event> = events.iter().map(dstack_event_log::RuntimeEvent::to_event).collect();
        let mut body = software_td::quote_body(&compose_hash, &event_log, REPORT_DATA);
        quoted(&mut body);
        let quote = QuotingEnclave::new(&self.vendor).quote(&body);
        let evidence = Evidence { quote, event_log, vm_config: vm_config.to_owned(), report_data: None, app_compose: None };
        let anchors = TrustAnchors::hardware().danger_simulated_root(self.vendor.root_der().to_vec()).unwrap();
        Verifier::new(anchors, self.policy.clone()).verify(&evidence, &self.endorsements(), NOW.cast_unsigned(), Some(&REPORT_DATA))
    }

    fn endorsements(&self) -> Endorsements {
        let set = CollateralSet::sign_revoking(&self.vendor, NOW, "UpToDate", &[]).unwrap();
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
}

fn refused(result: Result<VerifiedEvidence, VerifyError>) -> (Check, Reason) {
    let error = result.map(|_| ()).unwrap_err();
    (error.check, *error.reason)
}

/// Another image: the document changed at `at`, with its own checksum file and hash.
fn other_image(config: &mut VmConfig, at: usize) -> OsImageHash {
    let document = config.tdx_measurement.as_mut().unwrap();
    document.measurement[at] ^= 1;
    document.checksum_file = format!("{}  measurement.tdx.cbor\n", hex::encode(Sha256::digest(&document.measurement))).into_bytes();
    let hash = os_image_hash(&document.checksum_file);
    config.os_image_hash = Some(hash);
    hash
}

/// Where the value of `key` lies in the document.
fn offset_of(document: &MeasurementDocument, key: &str) -> usize {
    let at = document.measurement.windows(key.len()).position(|part| part == key.as_bytes()).unwrap();
    // Key, two bytes of CBOR header, value.
    at + key.len() + 2
}

#[test]
fn the_image_is_proven_by_registers_and_named_by_the_guest() {
    let image = software_td::os_image_hash();
    let bench = Bench { measured: Some(image), ..Bench::new(ImageRule::Required) };

    let verified = bench.verify(|_| (), |_| ()).unwrap();

    assert_eq!((verified.os_image_hash(), verified.acpi_tables_computed()), (Some(&image), true));
    let passed = |text: String| Some(CheckOutcome::Passed(text));
    assert_eq!(verified.report().outcome(Check::OsImage).cloned(), passed(format!("os image {image}")));
    assert_eq!(verified.report().outcome(Check::OsImageEvent).cloned(), passed("equals the proven image".to_owned()));
}

#[test]
fn the_guest_names_another_image_or_none() {
    let other = OsImageHash::new([7; 32]);
    let image = software_td::os_image_hash();
    let bench = |measured, rule| Bench { measured, ..Bench::new(rule) }.verify(|_| (), |_| ());

    assert_eq!(
        refused(bench(Some(other), ImageRule::Required)),
        (Check::OsImageEvent, Reason::MeasuredImage { measured: other, proven: image })
    );
    for (measured, rule) in [(Some(other), ImageRule::WherePossible), (None, ImageRule::Required)] {
        let verified = bench(measured, rule).unwrap();
        assert!(verified.os_image_hash().is_some() && !verified.report().passed(Check::OsImageEvent));
    }
}

#[test]
fn each_launch_register_against_the_image() {
    let bench = Bench::new(ImageRule::WherePossible);
    let register = |result| match refused(result) {
        (Check::OsImage, Reason::ImageRegisters { register, .. }) => register,
        other => panic!("{other:?}"),
    };

    assert_eq!(register(bench.verify(|_| (), |body| body.mrtd[0] ^= 1)), "MRTD");
    for (index, name) in ["RTMR0", "RTMR1", "RTMR2"].into_iter().enumerate() {
        assert_eq!(register(bench.verify(|_| (), |body| body.rtmr[index][47] ^= 1)), name);
    }
    // The same from the image's side.
    for (key, name) in [("single_pass", "MRTD"), ("kernel_authenticode", "RTMR1"), ("initrd_sha384", "RTMR2"), ("cmdline_sha384", "RTMR2")]
    {
        let change = |config: &mut VmConfig| {
            let at = offset_of(config.tdx_measurement.as_ref().unwrap(), key);
            other_image(config, at);
        };
        assert_eq!(register(bench.verify(change, |_| ())), name, "{key}");
    }
    assert_eq!(register(bench.verify(|config| config.memory_size *= 2, |_| ())), "RTMR0");
    assert_eq!(register(bench.verify(|config| config.cpu_count += 1, |_| ())), "RTMR0");
}

#[test]
fn a_document_of_another_image_is_refused_by_every_policy() {
    for rule in [ImageRule::Required, ImageRule::WherePossible] {
        let (check, reason) = refused(Bench::new(rule).verify(|config| config.os_image_hash = Some(OsImageHash::new([1; 32])), |_| ()));
        assert_eq!(check, Check::OsImage);
        assert!(matches!(reason, Reason::ImageBinding(ImageBindingError::Document { .. })), "{reason}");
    }
}

#[test]
fn an_image_that_nobody_can_check_is_refused_only_where_it_is_required() {
    type Change = fn(&mut VmConfig);
    type IsExpected = fn(&Reason) -> bool;
    let changes: [(Change, IsExpected); 3] = [
        (|config| config.os_image_hash = None, |reason| matches!(reason, Reason::ImageBinding(ImageBindingError::NoImageHash))),
        (|config| config.tdx_measurement = None, |reason| matches!(reason, Reason::ImageBinding(ImageBindingError::NoDocument { .. }))),
        (|config| config.qemu_version = Some("10.2.0".to_owned()), |reason| matches!(reason, Reason::ImageReference { .. })),
    ];
    for (change, is_expected) in changes {
        let (check, reason) = refused(Bench::new(ImageRule::Required).verify(change, |_| ()));
        assert_eq!(check, Check::OsImage);
        assert!(is_expected(&reason), "{reason}");
        let reported = Bench::new(ImageRule::WherePossible).verify(change, |_| ()).unwrap();
        assert!(reported.os_image_hash().is_none() && !reported.acpi_tables_computed());
        assert_eq!(reported.report().outcome(Check::OsImage).cloned(), Some(CheckOutcome::NotChecked(reason.to_string())));
    }
    for text in ["{", ""] {
        assert_eq!(refused(Bench::new(ImageRule::Required).verify_with(text, |_| ())).0, Check::OsImage, "{text:?}");
        assert!(Bench::new(ImageRule::WherePossible).verify_with(text, |_| ()).unwrap().os_image_hash().is_none(), "{text:?}");
    }
}

#[test]
fn only_images_of_the_list_are_accepted() {
    let image = software_td::os_image_hash();
    let with = |allowed| {
        let bench = Bench::new(ImageRule::Required);
        Bench { policy: Policy { allowed_images: Some(allowed), ..bench.policy.clone() }, ..bench }.verify(|_| (), |_| ())
    };

    assert!(with(vec![OsImageHash::new([1; 32]), image]).is_ok());
    assert_eq!(refused(with(vec![OsImageHash::new([1; 32])])), (Check::OsImage, Reason::ImageNotAllowed { os_image_hash: image }));
}
