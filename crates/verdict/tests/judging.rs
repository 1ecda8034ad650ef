//! What strangers' bytes become: recognised by content, judged without a panic, never believed when changed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests panic on purpose")]

use dstack_attestation::{ImageRule, Policy, QuoteCollateral};
use dstack_verdict::{Challenge, ChallengeField, InputError, Mark, Question, Subject, Verdict, Word, judge, refuse_before_papers};

const TDX: &str = "attestation/tests/testdata/tdx/";
const TIME: u64 = 1_742_762_172;

fn file(name: &str) -> Vec<u8> {
    let path = format!("{}/../{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A genuine quote of an up-to-date machine.
fn quote() -> Vec<u8> {
    file(&format!("{TDX}quotes/f1c8503301126c30.bin"))
}

fn question() -> Question {
    let collateral = file(&format!("{TDX}collateral/b0c06f000000-tdx-platform-20250313-e17.json"));
    let collateral = QuoteCollateral::parse_json(std::str::from_utf8(&collateral).unwrap()).unwrap();
    Question { endorsements: collateral.into(), ..Question::open(TIME) }
}

fn verdict(bytes: &[u8], question: &Question) -> Verdict {
    match Subject::recognise(bytes) {
        Ok(subject) => refuse_before_papers(&subject, question, "test").unwrap_or_else(|| judge(&subject, question, "test")),
        Err(error) => Verdict::blank("test", "", TIME).unreadable(error.to_string(), ""),
    }
}

fn samples() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("tdx", quote()),
        ("sev-snp", file("attestation/tests/testdata/snp/reports/a20e02a2e8198894.bin")),
        ("tdx", file("attestation/tests/testdata/envelopes/guest-agent-attestation.bin")),
        ("sev-snp", file("attestation/tests/testdata/envelopes/sev-snp-attestation.bin")),
        ("tdx", file("attestation/tests/testdata/envelopes/tdx-lite-getquote.json")),
        ("tdx", file("ra-tls/tests/testdata/certificates/1b53eb282ef3befc.der")),
    ]
}

#[test]
fn kinds_are_told_by_content() {
    for (platform, bytes) in samples() {
        assert_eq!(Subject::recognise(&bytes).unwrap().platform_name(), platform);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        if bytes.first() != Some(&b'{') {
            assert_eq!(Subject::recognise(hex.as_bytes()).unwrap().platform_name(), platform, "hex");
        }
    }
}

#[test]
fn what_is_no_evidence_is_said_so() {
    assert_eq!(Subject::recognise(b"").unwrap_err(), InputError::Empty);
    for bytes in [&b"hello"[..], &[0xff; 100], &[7], b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----", b"{}", b"[1,2,300]"] {
        assert!(Subject::recognise(bytes).is_err(), "{bytes:?}");
    }
}

#[test]
fn a_genuine_quote_is_verified_and_its_own_root_named() {
    let verdict = verdict(&quote(), &question());

    assert_eq!((verdict.word, verdict.tcb_status.as_deref()), (Word::Verified, Some("UpToDate")), "{}", verdict.reason);
    assert_eq!(verdict.trust_anchors.first().unwrap().anchor, "Intel SGX Root CA");
    assert!(verdict.caveats.is_empty());
}

#[test]
fn no_truncation_of_anything_is_verified() {
    let question = question();
    for (platform, bytes) in samples() {
        // Parsing costs microseconds; judging a longer prefix costs a signature, so those are sampled.
        let cuts = (0..bytes.len()).filter(|length| *length < 2000 || length % 61 == 0);
        for length in cuts {
            let verdict = verdict(bytes.get(..length).unwrap(), &question);

            assert_eq!(verdict.word, Word::NotVerified, "{platform}, {length} of {} bytes", bytes.len());
            assert!(verdict.failed().is_some() && !verdict.reason.is_empty());
        }
    }
}

#[test]
fn no_flipped_bit_of_the_signed_part_is_verified() {
    let (question, quote) = (question(), quote());
    // Header and TD report: 48 and 584 bytes.
    for offset in (0..632).step_by(13) {
        let mut flipped = quote.clone();
        if let Some(byte) = flipped.get_mut(offset) {
            *byte ^= 1 << (offset % 8);
        }

        assert_eq!(verdict(&flipped, &question).word, Word::NotVerified, "byte {offset}");
    }
}

#[test]
fn a_challenge_must_be_answered() {
    let right = quote().get(568..632).unwrap().to_vec();
    for field in [ChallengeField::Nonce, ChallengeField::ReportData] {
        let with = |bytes: Vec<u8>| Question { challenge: Some(Challenge { bytes, field, is_fresh: false }), ..question() };
        let mut wrong = right.clone();
        *wrong.last_mut().unwrap() ^= 1;

        assert_eq!(verdict(&quote(), &with(right.clone())).word, Word::Verified);
        let refused = verdict(&quote(), &with(wrong));
        assert_eq!((refused.word, &*refused.failed().unwrap().name), (Word::NotVerified, "report-data"));
    }
}

#[test]
fn a_policy_that_demands_an_image_refuses_bare_hardware() {
    let policy = Policy { image: ImageRule::Required, ..Policy::report_only() };

    let verdict = verdict(&quote(), &Question { policy, ..question() });

    assert_eq!((verdict.word, &*verdict.failed().unwrap().name), (Word::NotVerified, "os-image"));
    assert!(verdict.fix.contains("required = false"));
}

#[test]
fn an_app_that_is_expected_must_be_named() {
    let mut question = question();
    question.expectations.app_id = Some(dstack_manifest::AppId::new([1; 20]));

    assert_eq!(verdict(&quote(), &question).word, Word::NotVerified);
}

#[test]
fn json_begins_with_what_scripts_rely_on() {
    let verdict = verdict(&quote(), &question());
    let json = serde_json::to_string(&verdict).unwrap();

    let names = ["verdict", "platform", "tcb_status", "advisory_ids", "claims", "checks", "trust_anchors", "reason"];
    let places: Vec<usize> = names.iter().map(|name| json.find(&format!("\"{name}\":")).unwrap()).collect();
    assert!(places.is_sorted(), "{json}");
    assert!(json.contains("\"outcome\":\"pass\"") && json.contains("\"outcome\":\"skipped\""));
    assert!(verdict.checks.iter().any(|line| line.outcome == Mark::Skipped));
}

/// A certificate of a guest with evidence, judged at another time and with another challenge than its key.
#[test]
fn a_certificate_must_be_in_its_dates_and_answers_no_other_challenge() {
    let collateral = file(&format!("{TDX}collateral/20a06f000000-tdx-platform-20250718-e17.json"));
    let collateral = QuoteCollateral::parse_json(std::str::from_utf8(&collateral).unwrap()).unwrap();
    let certificate = file("ra-tls/tests/testdata/certificates/1b53eb282ef3befc.der");
    let at = |now| Question { endorsements: collateral.clone().into(), ..Question::open(now) };
    let mark = |verdict: &Verdict, name: &str| verdict.checks.iter().find(|line| line.name == name).map(|line| line.outcome);

    let good = verdict(&certificate, &at(1_754_300_000));
    assert_eq!((good.word, mark(&good, "certificate-dates")), (Word::VerifiedWithCaveats, Some(Mark::Passed)), "{}", good.reason);
    let late = verdict(&certificate, &at(4_000_000_000));
    assert_eq!((late.word, mark(&late, "certificate-dates")), (Word::NotVerified, Some(Mark::Failed)));
    let challenge = Challenge { bytes: vec![7; 32], field: ChallengeField::Nonce, is_fresh: false };
    let other = verdict(&certificate, &Question { challenge: Some(challenge), ..at(1_754_300_000) });
    assert_eq!((other.word, mark(&other, "challenge")), (Word::NotVerified, Some(Mark::Failed)));
}
