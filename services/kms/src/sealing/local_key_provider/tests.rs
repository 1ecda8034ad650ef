#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests panic on purpose")]

use std::sync::Mutex;

use super::*;

const ENCLAVE: [u8; 32] = [7; 32];

/// Believes what it is told to.
struct Believer(Mutex<EnclaveReport>);

impl EnclaveJudge for Believer {
    fn judge(&self, _: &[u8]) -> Result<EnclaveReport, ProviderError> {
        let report = self.0.lock().unwrap();
        Ok(EnclaveReport { mr_enclave: report.mr_enclave.clone(), report_data: report.report_data.clone() })
    }
}

fn open(key: &SecretKey, encrypted_key: Vec<u8>, report: EnclaveReport, mr_enclave: Option<[u8; 32]>) -> Result<Secret<32>, ProviderError> {
    let tee = Tee::none();
    let judge = Believer(Mutex::new(report));
    let provider = LocalKeyProvider { address: "", mr_enclave, judge: &judge, tee: &tee };
    provider.open(key, &Answer { encrypted_key, provider_quote: Vec::new() })
}

fn sealed(key: &SecretKey, content: &[u8]) -> (Vec<u8>, EnclaveReport) {
    let sealed = key.public_key().seal(&mut OsRng, content).unwrap();
    let mut report_data = Sha256::digest(&sealed).to_vec();
    report_data.resize(64, 0);
    (sealed, EnclaveReport { mr_enclave: ENCLAVE.to_vec(), report_data })
}

#[test]
fn a_bound_answer_of_the_named_enclave_opens() {
    let key = SecretKey::generate(&mut OsRng);
    let (sealed, report) = sealed(&key, &[9; 32]);

    assert_eq!(open(&key, sealed, report, Some(ENCLAVE)).unwrap(), Secret::new([9; 32]));
}

#[test]
fn each_deviation_is_refused() {
    let key = SecretKey::generate(&mut OsRng);

    let (answer, report) = sealed(&key, &[9; 32]);
    assert!(matches!(open(&key, answer, report, None), Err(ProviderError::NoEnclave)));

    let (answer, report) = sealed(&key, &[9; 32]);
    assert!(matches!(open(&key, answer, report, Some([8; 32])), Err(ProviderError::OtherEnclave { .. })));

    let (answer, mut report) = sealed(&key, &[9; 32]);
    report.report_data[0] ^= 1;
    assert!(matches!(open(&key, answer, report, Some(ENCLAVE)), Err(ProviderError::NotBound)));

    let (answer, report) = sealed(&SecretKey::generate(&mut OsRng), &[9; 32]);
    assert!(matches!(open(&key, answer, report, Some(ENCLAVE)), Err(ProviderError::Answer { .. })));

    let (answer, report) = sealed(&key, &[9; 31]);
    assert!(matches!(open(&key, answer, report, Some(ENCLAVE)), Err(ProviderError::Answer { .. })));
}

#[test]
fn a_quote_that_is_none_is_refused() {
    let judge = Collateral {
        verifier: Verifier::new(dstack_attestation::TrustAnchors::hardware(), dstack_attestation::Policy::default()),
        collateral: None,
        now: 0,
    };

    assert!(judge.judge(b"nonsense").is_err());
}

#[tokio::test]
async fn frames_carry_numbers_and_their_length() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let length = stream.read_u32().await.unwrap();
        let mut request = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut request).await.unwrap();
        let answer = br#"{"encrypted_key":[1,2],"provider_quote":[3]}"#;
        stream.write_u32(u32::try_from(answer.len()).unwrap()).await.unwrap();
        stream.write_all(answer).await.unwrap();
        request
    });
    let (tee, judge) = (Tee::none(), Believer(Mutex::new(EnclaveReport { mr_enclave: Vec::new(), report_data: Vec::new() })));
    let provider = LocalKeyProvider { address: &address, mr_enclave: None, judge: &judge, tee: &tee };

    let answer = provider.exchange(&[4, 5]).await.unwrap();

    assert_eq!((answer.encrypted_key, answer.provider_quote), (vec![1, 2], vec![3]));
    assert_eq!(server.await.unwrap(), br#"{"quote":[4,5]}"#);
}

#[tokio::test]
async fn an_endless_frame_is_not_read() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_u32(u32::MAX).await.unwrap();
        std::future::pending::<()>().await;
    });
    let (tee, judge) = (Tee::none(), Believer(Mutex::new(EnclaveReport { mr_enclave: Vec::new(), report_data: Vec::new() })));
    let provider = LocalKeyProvider { address: &address, mr_enclave: None, judge: &judge, tee: &tee };

    assert!(matches!(provider.exchange(&[]).await, Err(ProviderError::Answer { .. })));
}
