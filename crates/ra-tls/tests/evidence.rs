//! Peers with evidence: what is asked for on their account, what is remembered, and when it ends.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

mod bed;

use std::{sync::Arc, time::Duration};

use bed::{Bed, Guest, NOW};
use dstack_attestation::{PckIssuer, UnverifiedQuote};
use dstack_ra_tls::{
    CertificateError, EvidenceVerifier, Refusal, VerificationLimits,
    collateral::{CollateralClient, CollateralCounters, CollateralLimits, FetchError, Platform, PlatformError, Tee},
    tls::{attested_client, attested_server},
};
use dstack_rpc::{Caller, Client, Endpoint, Listener};

const HOUR: u64 = 3600;

#[tokio::test]
async fn the_same_evidence_is_verified_once_and_its_collateral_fetched_once() {
    let bed = Bed::start().await;
    let verification = bed.verification(CollateralLimits::default());
    let (first, second) = (Guest::new(&bed.vendor), Guest::new(&bed.vendor));

    let verdict = verification.of_certificate(&first.leaf, "", NOW).await.unwrap();
    let again = verification.of_certificate(&first.leaf, "", NOW + 1).await.unwrap();
    let other = verification.of_certificate(&second.leaf, "", NOW).await.unwrap();

    assert!(Arc::ptr_eq(&verdict, &again));
    assert!(!Arc::ptr_eq(&verdict, &other));
    assert_eq!(bed.requests(), 4);
}

#[tokio::test]
async fn a_verdict_ends_with_its_age_its_collateral_and_its_certificate() {
    let bed = Bed::start().await;
    let limits = VerificationLimits { max_age: Duration::from_secs(100), ..VerificationLimits::default() };
    let verification = EvidenceVerifier::new(bed.verifier(), bed.client(), limits);
    let guest = Guest::with_lifetime(&bed.vendor, 2 * HOUR);
    let verdict = verification.of_certificate(&guest.leaf, "", NOW).await.unwrap();
    let at = |now| verification.of_certificate(&guest.leaf, "", now);

    assert!(Arc::ptr_eq(&verdict, &at(NOW + 99).await.unwrap()));
    assert!(!Arc::ptr_eq(&verdict, &at(NOW + 100).await.unwrap()), "its age");
    assert!(matches!(at(NOW + 2 * HOUR + 1).await, Err(Refusal::Certificate(CertificateError::Dates { .. }))), "its certificate");

    let long = VerificationLimits { max_age: Duration::from_secs(400 * 24 * HOUR), ..limits };
    let verification = EvidenceVerifier::new(bed.verifier(), bed.client(), long);
    let guest = Guest::with_lifetime(&bed.vendor, 365 * 24 * HOUR);
    let verdict = verification.of_certificate(&guest.leaf, "", NOW).await.unwrap();
    bed.advance(25 * HOUR);
    let later = verification.of_certificate(&guest.leaf, "", NOW + 25 * HOUR).await.unwrap();
    assert!(!Arc::ptr_eq(&verdict, &later), "other collateral");
    let late = verification.of_certificate(&guest.leaf, "", NOW + 40 * 24 * HOUR).await;
    assert!(matches!(late, Err(Refusal::Evidence(_))), "expired collateral is not covered by a remembered verdict");
}

#[tokio::test]
async fn a_leaf_that_another_key_presents_is_refused() {
    let bed = Bed::start().await;
    let verification = bed.verification(CollateralLimits::default());
    let stolen = Guest::with_stolen_evidence(&bed.vendor);

    let refusal = verification.of_certificate(&stolen.leaf, "", NOW).await.unwrap_err();

    let Refusal::Evidence(error) = refusal else { panic!("{refusal}") };
    assert_eq!(error.check, dstack_attestation::Check::ReportData);
}

#[tokio::test]
async fn nothing_is_fetched_for_platforms_that_no_trusted_root_vouches_for() {
    let bed = Bed::start().await;
    let verification = bed.verification(CollateralLimits::default());
    let stranger = bed::stranger();
    let refused = async |quote: &[u8]| bed.client().endorsements(quote).await.unwrap_err();

    let refusal = verification.of_certificate(&Guest::new(&stranger).leaf, "", NOW).await.unwrap_err();
    assert!(matches!(refusal, Refusal::Collateral(FetchError::Platform(PlatformError::OtherRoot))), "{refusal}");
    assert!(!refusal.is_undecided());

    let quote = Guest::new(&bed.vendor).quote;
    let chain = UnverifiedQuote::parse(&quote).unwrap().pck_chain().unwrap();
    let foreign_chain = bed::replace_chain(&quote, &UnverifiedQuote::parse(&Guest::new(&stranger).quote).unwrap().pck_chain().unwrap());
    assert!(matches!(refused(&foreign_chain).await, FetchError::Platform(PlatformError::OtherRoot)));
    for position in [0, 1] {
        let mut broken = chain.to_vec();
        let signature = broken[position].len() - 10;
        broken[position][signature] ^= 1;
        let error = refused(&bed::replace_chain(&quote, &broken)).await;
        assert!(matches!(error, FetchError::Platform(PlatformError::Broken { .. })), "{position}: {error}");
    }
    let leaf_alone = [chain[0].clone(), chain[2].clone()];
    assert!(matches!(refused(&bed::replace_chain(&quote, &leaf_alone)).await, FetchError::Platform(_)));
    assert!(matches!(refused(b"no quote").await, FetchError::Quote(_)));
    let late = Platform::of_quote(&UnverifiedQuote::parse(&quote).unwrap(), bed.verifier().anchors(), NOW + 100 * 365 * 24 * HOUR);
    assert!(matches!(late, Err(PlatformError::Dates { .. })), "{late:?}");

    assert_eq!(bed.requests(), 0);
    assert!(bed.client().endorsements(&quote).await.is_ok(), "the chain as it came is in order");
}

#[tokio::test]
async fn stale_collateral_is_used_only_where_configured_and_only_while_the_service_is_down() {
    let bed = Bed::start().await;
    let limits = CollateralLimits { max_stale: Duration::from_secs(2 * HOUR), ..CollateralLimits::default() };
    let (strict, lenient) = (bed.client(), bed.client().with_limits(limits));
    let ask = async |client: &CollateralClient| client.endorsements_for(Platform::known(Tee::Tdx, bed::FMSPC, PckIssuer::Platform)).await;
    let before = ask(&lenient).await.unwrap();
    ask(&strict).await.unwrap();
    bed.set_down(true);

    bed.advance(25 * HOUR);
    assert!(matches!(ask(&strict).await, Err(FetchError::Refused { status: 503, .. })));
    assert!(Arc::ptr_eq(&ask(&lenient).await.unwrap(), &before));
    bed.advance(HOUR + 10);
    assert!(matches!(ask(&lenient).await, Err(FetchError::Refused { .. })), "past the time that is allowed");

    bed.set_down(false);
    bed.advance(10);
    assert!(!Arc::ptr_eq(&ask(&lenient).await.unwrap(), &before));
    let CollateralCounters { fetches, failures, stale, .. } = lenient.counters();
    assert_eq!((fetches, failures, stale), (2, 2, 1));
}

#[tokio::test]
async fn a_failure_is_told_to_all_who_wait_for_it() {
    let bed = Bed::start().await;
    bed.set_down(true);
    let client = bed.client();

    let callers = (0..8).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.endorsements_for(Platform::known(Tee::Tdx, bed::FMSPC, PckIssuer::Platform)).await.unwrap_err() })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }

    assert_eq!(client.counters().failures, 1);
}

/// Serves how many certificates the client showed and whether its evidence is believed.
async fn must_serve(guest: &Guest, verification: &Arc<EvidenceVerifier>) -> Client {
    let config = attested_server(&guest.identity(), verification).unwrap();
    let listener = Listener::tls("127.0.0.1:0".parse().unwrap(), config).await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    let judge = Arc::clone(verification);
    let answer = move |caller: Caller| {
        let judge = Arc::clone(&judge);
        async move {
            let verdict = judge.of_certificate(caller.tls_chain.first().unwrap(), "", bed::unix_now()).await;
            verdict.map_or_else(|refusal| refusal.to_string(), |verified| hex::encode(verified.claims().app_id.unwrap().as_bytes()))
        }
    };
    let router = axum::Router::new().route("/", axum::routing::get(answer));
    tokio::spawn(dstack_rpc::serve(listener, router, std::future::pending()));
    Client::new(Endpoint::parse(&address).unwrap())
}

#[tokio::test]
async fn both_ends_believe_only_evidence() {
    let bed = Bed::start_now().await;
    let (of_server, of_client) = (Arc::new(bed.verification_now()), Arc::new(bed.verification_now()));
    let (server, guest) = (Guest::now(&bed.vendor), Guest::now(&bed.vendor));
    let client = must_serve(&server, &of_server).await;
    let attested = client.clone().with_tls(attested_client(&of_client, Some(&guest.identity())).unwrap());

    assert!(attested.get("/").await.is_err(), "collateral is not at hand, and a handshake does not wait");
    let answer = of_client.with_collateral(async || attested.get("/").await).await.unwrap();
    assert_eq!(answer.body, hex::encode([0xc0; 20]).as_bytes());

    let stranger = Guest::now(&bed::stranger_now());
    for (refused, why) in [(&Guest::stolen_now(&bed.vendor), "evidence of another key"), (&stranger, "another root")] {
        let to_server = client.clone().with_tls(attested_client(&of_client, Some(&refused.identity())).unwrap());
        assert!(to_server.get("/").await.is_err(), "client with {why}");
        let other = must_serve(refused, &of_server).await;
        let to_client = other.with_tls(attested_client(&of_client, Some(&guest.identity())).unwrap());
        assert!(of_client.with_collateral(async || to_client.get("/").await).await.is_err(), "server with {why}");
    }
    let nobody = client.clone().with_tls(attested_client(&of_client, None).unwrap());
    assert!(nobody.get("/").await.is_err(), "client without certificate");
}

/// A genuine guest of SEV-SNP, with the certificate of its chip's key.
#[tokio::test]
async fn snp_guests_are_believed_only_where_the_service_says_so() {
    let envelope = include_bytes!("../../attestation/tests/testdata/snp/dstack-vm.envelope.bin");
    let report_data = dstack_attestation::Envelope::decode(envelope).unwrap().report_data;
    let verifier =
        || dstack_attestation::Verifier::new(dstack_attestation::TrustAnchors::hardware(), dstack_attestation::Policy::default());
    let bed = Bed::start().await;
    let usual = EvidenceVerifier::new(verifier(), bed.client(), VerificationLimits::default());
    let opened = EvidenceVerifier::new(verifier(), bed.client(), VerificationLimits::default()).accepting_snp_guests(None);

    let refusal = usual.of_envelope(envelope, &report_data, NOW).await.unwrap_err();
    let verified = opened.of_envelope(envelope, &report_data, NOW).await.unwrap();
    let again = opened.of_envelope(envelope, &report_data, NOW + 1).await.unwrap();

    assert!(matches!(refusal, Refusal::SnpNotEnabled) && !refusal.is_undecided(), "{refusal}");
    assert_eq!(verified.tee_variant(), "dstack-amd-sev-snp");
    assert!(Arc::ptr_eq(&verified, &again));
    assert_eq!(bed.requests(), 0, "no collateral of Intel is needed");
    let other = opened.of_envelope(envelope, &[0; 64], NOW).await.unwrap_err();
    assert!(matches!(other, Refusal::Evidence(_)), "{other}");
}
