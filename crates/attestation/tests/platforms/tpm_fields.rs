//! Quotes of a TPM of our own, one change each.

use dstack_attestation::{
    Fault, Link, Refusal, Vendor,
    tpm::{
        GCP_FIRMWARE_PCR0, GcpExpectation, GcpFault, PcrEvent, PcrValue, QuoteSignature, Quoted, Tpm, TpmQuote, VerifiedTpmQuote, check_gcp,
    },
};
use dstack_event_log::{HashAlgorithm, PcrBank};
use sha2::{Digest as _, Sha256, Sha384};

use crate::pki::{NOW, Party, at, trusting};

pub(crate) struct Machine {
    pub(crate) root: Party,
    pub(crate) key: Party,
    pub(crate) is_p384: bool,
}

/// What the TPM quotes.
#[derive(Clone)]
pub(crate) struct Attest {
    magic: u32,
    kind: u16,
    safe: u8,
    banks: Vec<(u16, Vec<u8>)>,
    pub(crate) digest: Vec<u8>,
    rest: Vec<u8>,
}

pub(crate) fn values(bank: HashAlgorithm, pcrs: &[u32]) -> Vec<PcrValue> {
    let value = |pcr: &u32| PcrValue { pcr: *pcr, algorithm: bank, value: vec![*pcr as u8; bank.digest_length()] };
    pcrs.iter().map(value).collect()
}

impl Attest {
    /// PCR 1 and 9 of the SHA-256 bank.
    fn new() -> Self {
        Self::of(&values(HashAlgorithm::Sha256, &[1, 9]))
    }

    /// `values`: of one bank, ascending.
    pub(crate) fn of(values: &[PcrValue]) -> Self {
        let mut bits = vec![0; 3];
        values.iter().for_each(|value| bits[value.pcr as usize / 8] |= 1 << (value.pcr % 8));
        let all: Vec<u8> = values.iter().flat_map(|value| value.value.clone()).collect();
        let bank = values[0].algorithm.id();
        Self {
            magic: 0xff54_4347,
            kind: 0x8018,
            safe: 1,
            banks: vec![(bank, bits)],
            digest: Sha256::digest(all).to_vec(),
            rest: Vec::new(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let sized = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat();
        let mut out = [self.magic.to_be_bytes().as_slice(), &self.kind.to_be_bytes()].concat();
        out.extend(sized(&[0, 11, 1, 2, 3]));
        out.extend(sized(b"qualifying data"));
        out.extend(5_u64.to_be_bytes());
        out.extend(6_u32.to_be_bytes());
        out.extend(7_u32.to_be_bytes());
        out.push(self.safe);
        out.extend(8_u64.to_be_bytes());
        out.extend(u32::try_from(self.banks.len()).unwrap().to_be_bytes());
        for (id, bits) in &self.banks {
            out.extend(id.to_be_bytes());
            out.push(bits.len() as u8);
            out.extend(bits);
        }
        out.extend(sized(&self.digest));
        out.extend(&self.rest);
        out
    }
}

impl Machine {
    fn new() -> Self {
        let root = Party::root("cloud");
        Self { key: root.leaf_p256("vm"), root, is_p384: false }
    }

    fn p384() -> Self {
        let root = Party::root("cloud");
        Self { key: root.leaf("vm", |_| ()), root, is_p384: true }
    }

    fn signature(&self, message: &[u8]) -> Vec<u8> {
        let (hash, length) = if self.is_p384 { (12, 48) } else { (11, 32) };
        let signature = self.key.sign(message);
        // Leading zeros may be left out, as TPMs do.
        let number = |bytes: &[u8]| bytes[bytes.iter().take_while(|byte| **byte == 0).count()..].to_vec();
        let (r, s) = (number(&signature[..length]), number(&signature[length..]));
        [&[0, 0x18, 0, hash, 0, r.len() as u8], r.as_slice(), &[0, s.len() as u8], s.as_slice()].concat()
    }

    pub(crate) fn quote(&self, attest: &Attest, pcrs: Vec<PcrValue>) -> TpmQuote {
        let message = attest.bytes();
        TpmQuote { signature: self.signature(&message), message, pcrs, certificate: self.key.der.clone(), events: Vec::new() }
    }

    fn verify(&self, quote: &TpmQuote) -> Result<VerifiedTpmQuote, Refusal> {
        at(NOW, &trusting(Vendor::Google, &self.root.der), |context| Tpm.verify_quote(quote, context))
    }
}

#[test]
fn reads_every_field_of_a_quote() {
    let machine = Machine::new();

    let verified = machine.verify(&machine.quote(&Attest::new(), values(HashAlgorithm::Sha256, &[9, 1]))).unwrap();

    let quoted = verified.quoted();
    assert_eq!((quoted.clock_ms, quoted.reset_count, quoted.restart_count, quoted.firmware_version), (5, 6, 7, 8));
    assert_eq!((quoted.is_clock_safe, quoted.qualified_signer.as_slice()), (true, [0, 11, 1, 2, 3].as_slice()));
    assert_eq!(quoted.selections[0].pcrs, [1, 9]);
    assert_eq!(verified.platform().report_data(), b"qualifying data");
    let signed = verified.platform().passed().iter().find(|passed| passed.link == Link::Signature).unwrap();
    assert!(signed.found.starts_with("ECDSA with "), "{}", signed.found);
    assert_eq!(verified.platform().register("pcr9"), Some([9; 32].as_slice()));
    assert_eq!(verified.platform().fact("clock_safe"), Some("true"));
    assert_eq!(verified.platform().valid_until(), Some(1_798_761_600));
    assert_eq!(verified.pcr(HashAlgorithm::Sha256, 1), Some([1; 32].as_slice()));
    assert_eq!(verified.pcr(HashAlgorithm::Sha384, 1), None);
}

#[test]
fn rejects_what_is_no_quote_of_a_tpm() {
    let machine = Machine::new();
    let changes: [fn(&mut Attest); 10] = [
        |attest| attest.magic ^= 1,
        |attest| attest.kind = 0x8017,
        |attest| attest.safe = 2,
        |attest| attest.rest = vec![0],
        |attest| attest.banks.clear(),
        |attest| attest.banks.push(attest.banks[0].clone()),
        |attest| attest.banks[0].0 = HashAlgorithm::Sha1.id(),
        |attest| attest.banks[0].0 = 0x12,
        |attest| attest.banks[0].1 = vec![0, 0, 0, 0, 0],
        |attest| attest.banks = vec![(11, vec![1]); 17],
    ];

    for (number, change) in changes.into_iter().enumerate() {
        let mut attest = Attest::new();
        change(&mut attest);
        let refusal = machine.verify(&machine.quote(&attest, values(HashAlgorithm::Sha256, &[1, 9]))).unwrap_err();
        assert_eq!((refusal.link, refusal.fault), (Link::Format, Fault::Malformed), "change {number}");
    }
}

#[test]
fn rejects_values_that_are_not_the_signed_ones() {
    let machine = Machine::new();
    let mut attest = Attest::new();
    attest.digest[31] ^= 1;

    let refusal = machine.verify(&machine.quote(&attest, values(HashAlgorithm::Sha256, &[1, 9]))).unwrap_err();

    assert_eq!((refusal.link, refusal.fault), (Link::EventLog, Fault::Invalid));
}

#[test]
fn the_digest_over_the_values_has_the_hash_of_the_signature() {
    let machine = Machine::p384();
    let pcrs = values(HashAlgorithm::Sha384, &[4]);
    let mut attest = Attest::of(&pcrs);

    let refusal = machine.verify(&machine.quote(&attest, pcrs.clone())).unwrap_err();
    assert_eq!((refusal.link, refusal.fault), (Link::EventLog, Fault::Invalid), "a digest with SHA-256");

    attest.digest = Sha384::digest(&pcrs[0].value).to_vec();
    let verified = machine.verify(&machine.quote(&attest, pcrs)).unwrap();
    assert_eq!(verified.platform().register("pcr4_sha384"), Some([4; 48].as_slice()));
}

#[test]
fn rejects_signatures_of_other_keys_forms_and_schemes() {
    let (machine, other) = (Machine::new(), Machine::new());
    let pcrs = values(HashAlgorithm::Sha256, &[1, 9]);
    let genuine = machine.quote(&Attest::new(), pcrs);
    let fault = |signature: Vec<u8>| {
        let refusal = machine.verify(&TpmQuote { signature, ..genuine.clone() }).unwrap_err();
        (refusal.link, refusal.fault)
    };
    let with = |at: usize, byte: u8| {
        let mut signature = genuine.signature.clone();
        signature[at] = byte;
        signature
    };
    let longer = [&genuine.signature[..4], &[0, 33], &[0; 33], &genuine.signature[4..6], &[1; 32]].concat();

    assert_eq!(fault(other.signature(&genuine.message)), (Link::Signature, Fault::Invalid));
    assert_eq!(fault(with(1, 0x16)), (Link::Format, Fault::Malformed), "RSAPSS");
    assert_eq!(fault(with(3, 4)), (Link::Format, Fault::Malformed), "SHA-1");
    assert_eq!(fault(with(3, 12)), (Link::Signature, Fault::Invalid), "SHA-384 with a P-256 key");
    assert_eq!(fault([genuine.signature.as_slice(), &[0]].concat()), (Link::Format, Fault::Malformed));
    assert_eq!(fault(longer), (Link::Signature, Fault::Invalid));
    assert_eq!(
        fault([&[0, 0x14, 0, 11, 0, 64], [1; 64].as_slice()].concat()),
        (Link::Signature, Fault::Invalid),
        "RSASSA with an ECDSA key"
    );
    for length in 0..genuine.signature.len() {
        assert!(QuoteSignature::parse(&genuine.signature[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn rejects_quotes_whose_chain_ends_elsewhere() {
    let (machine, other) = (Machine::new(), Machine::new());
    let genuine = machine.quote(&Attest::new(), values(HashAlgorithm::Sha256, &[1, 9]));

    let refusal = other.verify(&genuine).unwrap_err();

    assert_eq!((refusal.link, refusal.fault), (Link::CertificateChain, Fault::Invalid));
}

#[test]
fn a_log_is_replayed_into_the_banks_that_are_quoted() {
    let machine = Machine::new();
    let mut bank = PcrBank::new(HashAlgorithm::Sha256);
    bank.extend(1, &[7; 32]).unwrap();
    let pcrs = vec![PcrValue { pcr: 1, algorithm: HashAlgorithm::Sha256, value: bank.value(1).unwrap().as_bytes().to_vec() }];
    let mut quote = machine.quote(&Attest::of(&pcrs), pcrs);
    quote.events = vec![PcrEvent { pcr: 1, digest: vec![7; 32] }, PcrEvent { pcr: 5, digest: vec![8; 32] }];

    let verified = machine.verify(&quote).unwrap();

    assert_eq!(verified.events(HashAlgorithm::Sha256, 1).collect::<Vec<_>>(), [[7; 32]]);
    assert_eq!(verified.events(HashAlgorithm::Sha256, 5).count(), 0, "PCR 5 is not quoted, so nothing proves its events");
    assert_eq!(verified.events(HashAlgorithm::Sha384, 1).count(), 0);
}

/// A machine that looks like one on Google's cloud.
fn gcp(machine: &Machine, tdx_quote: &[u8], change: impl FnOnce(&mut Vec<PcrValue>)) -> VerifiedTpmQuote {
    let mut image = PcrBank::new(HashAlgorithm::Sha256);
    let digests = [[1; 32], [2; 32], [3; 32]];
    digests.iter().for_each(|digest| image.extend(2, digest).unwrap());
    let value = |pcr, value: &[u8]| PcrValue { pcr, algorithm: HashAlgorithm::Sha256, value: value.to_vec() };
    let mut pcrs = vec![value(0, &GCP_FIRMWARE_PCR0), value(2, image.value(2).unwrap().as_bytes()), value(14, &[0; 32])];
    change(&mut pcrs);
    let attest = Attest::of(&pcrs).bytes();
    let at_data = attest.windows(15).position(|window| window == b"qualifying data").unwrap();
    let message = [&attest[..at_data - 2], &[0, 32], Sha256::digest(tdx_quote).as_slice(), &attest[at_data + 15..]].concat();
    let events = digests.iter().map(|digest| PcrEvent { pcr: 2, digest: digest.to_vec() }).collect();
    let quote = TpmQuote { signature: machine.signature(&message), message, pcrs, certificate: machine.key.der.clone(), events };
    machine.verify(&quote).unwrap()
}

#[test]
fn rejects_other_firmware_and_missing_registers() {
    let machine = Machine::new();
    let expected = GcpExpectation { tdx_quote: b"quote", uki_authenticode: &[3; 32], runtime_events: &[] };
    let check = |change: &dyn Fn(&mut Vec<PcrValue>)| check_gcp(&gcp(&machine, b"quote", change), &expected).map(|_| ());

    assert_eq!(check(&|_| ()), Ok(()));
    assert!(matches!(check(&|pcrs| pcrs[0].value[31] ^= 1), Err(GcpFault::OtherFirmware { .. })));
    for (position, pcr) in [(0, 0), (1, 2), (2, 14)] {
        assert_eq!(check(&|pcrs| drop(pcrs.remove(position))), Err(GcpFault::NoRegister { pcr }));
    }
}

#[test]
fn parses_whatever_is_selected_in_bounds() {
    let mut attest = Attest::new();
    attest.banks = vec![(11, Vec::new()), (12, vec![0xff; 4])];

    let quoted = Quoted::parse(&attest.bytes()).unwrap();

    assert!(quoted.selections[0].pcrs.is_empty());
    assert_eq!(quoted.selections[1].pcrs, (0..32).collect::<Vec<u32>>());
}
