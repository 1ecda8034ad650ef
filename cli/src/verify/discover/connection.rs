//! Who ends the TLS connection, and what that rests on.

use std::time::Duration;

use dstack_attestation::parse_certificates;
use dstack_verdict::{
    Anchor, Challenge, ChallengeField, EvidenceCertificate, Mark, Question, Subject, Verdict, Word, judge as judge_evidence,
};
use rustls::{RootCertStore, client::verify_server_cert_signed_by_trust_anchor, crypto::aws_lc_rs, server::ParsedCertificate};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use serde::{Deserialize, Serialize};

use super::{Server, address::Address, gateway, gateway::GatewayPapers, ingress::IngressPapers, witness::Witness};
use crate::{progress::Progress, verify::bundle::pem};

const NAME: &str = "tls-key";
const ROLE: &str = "TLS connection";
const SAYS: &str = "what you send to this address is read by that VM only";
/// What must be equal for two pieces of evidence to be of one VM.
const SAME_VM: [&str; 6] = ["mrtd", "rtmr0", "rtmr1", "rtmr2", "app_id", "instance_id"];

/// How an app was reached, and what the server published about its certificate. Kept in bundles.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(in crate::verify) struct Connection {
    /// `https://host:port`.
    pub origin: String,
    /// The server was this machine.
    pub is_loopback: bool,
    /// What the server showed, PEM, leaf first; empty without TLS.
    pub certificates: String,
    /// Why browsers would not accept that.
    pub objection: Option<String>,
    /// A gateway's papers.
    pub gateway: Option<GatewayPapers>,
    /// An ingress's papers.
    pub ingress: Option<IngressPapers>,
}

impl Connection {
    pub(super) fn of(address: &Address, witness: Option<&Witness>) -> Self {
        let shown = witness.and_then(Witness::shown);
        Self {
            origin: address.origin.clone(),
            is_loopback: address.is_loopback(),
            certificates: shown.as_ref().map(|shown| pem(&shown.chain)).unwrap_or_default(),
            objection: shown.and_then(|shown| shown.objection),
            ..Self::default()
        }
    }

    /// Asks whoever may have ended TLS for papers, where the certificate says nothing itself.
    pub(super) async fn look_around(&mut self, address: &Address, server: &Server, progress: &Progress) {
        let Some((leaf, certificate)) = self.leaf() else { return };
        if certificate.has_evidence() || certificate.app_id().is_some() {
            return;
        }
        let step = progress.step("who ends TLS");
        if let Some(origin) = address.gateway() {
            self.gateway = GatewayPapers::fetch(&origin).await.filter(|papers| papers.evidence_for(certificate.spki_der()).is_some());
        }
        if self.gateway.is_none() {
            self.ingress = IngressPapers::fetch(server, &address.host).await.filter(|papers| papers.binds(&leaf));
        }
        step.done(match (&self.gateway, &self.ingress) {
            (Some(gateway), _) => &gateway.origin,
            (None, Some(_)) => "an ingress inside the app",
            (None, None) => "nobody says",
        });
    }

    fn chain(&self) -> Vec<Vec<u8>> {
        parse_certificates(self.certificates.as_bytes()).unwrap_or_default()
    }

    fn leaf(&self) -> Option<(Vec<u8>, EvidenceCertificate)> {
        let leaf = self.chain().into_iter().next()?;
        let certificate = EvidenceCertificate::parse(&leaf).ok()?;
        Some((leaf, certificate))
    }

    /// The evidence of the gateway's key, if a gateway ends TLS.
    pub(in crate::verify) fn gateway_subject(&self) -> Option<Subject> {
        let (_, certificate) = self.leaf()?;
        let evidence = self.gateway.as_ref()?.evidence_for(certificate.spki_der())?;
        Subject::recognise(evidence.as_bytes()).ok()
    }
}

/// Adds to `verdict` about the app what its connection is worth.
pub(in crate::verify) fn judge(verdict: &mut Verdict, connection: &Connection, question: &Question) {
    if verdict.word == Word::NotVerified {
        return;
    }
    let is_simulated = verdict.word == Word::Simulated;
    match connection.leaf() {
        None => plain(verdict, connection),
        Some((leaf, certificate)) => encrypted(verdict, connection, question, (&leaf, &certificate)),
    }
    verdict.conclude(is_simulated);
}

fn plain(verdict: &mut Verdict, connection: &Connection) {
    if connection.is_loopback {
        verdict.check(NAME, Mark::Skipped, SAYS, "plain HTTP on this machine");
        return;
    }
    verdict.check(NAME, Mark::Unknown, SAYS, "the connection is not encrypted");
    verdict.caveats.push("The connection is not encrypted: everybody on the way can read and change what you send.".to_owned());
    verdict.trust_anchors.push(Anchor::new(ROLE, "NOBODY: plain HTTP", ""));
}

fn encrypted(verdict: &mut Verdict, connection: &Connection, question: &Question, (leaf, certificate): (&[u8], &EvidenceCertificate)) {
    if certificate.has_evidence() {
        return by_certificate(verdict, question, leaf);
    }
    if let Some(papers) = &connection.gateway {
        return by_gateway(verdict, connection, papers, question, certificate);
    }
    if let Some(papers) = &connection.ingress {
        return by_ingress(verdict, papers, question);
    }
    if let Some(found) = by_kms(verdict, &connection.chain(), question.now) {
        let (outcome, detail) = found;
        verdict.check(NAME, outcome, SAYS, detail);
        verdict.trust_anchors.push(Anchor::new(
            ROLE,
            "the app's KMS certified this key for the app",
            "certificate chain up to the measured key provider",
        ));
        return;
    }
    verdict.check(NAME, Mark::Unknown, SAYS, "neither the certificate nor the server shows evidence for its key");
    verdict.caveats.push(format!(
        "Nothing ties this TLS connection to the VM: whoever holds the key of the certificate for `{}` can read and change what you send.",
        certificate.subject_name()
    ));
    let origin = match &connection.objection {
        None => format!("certificate by {}, which browsers accept", certificate.issuer_name()),
        Some(objection) => format!("certificate by {}; browsers object: {objection}", certificate.issuer_name()),
    };
    verdict.trust_anchors.push(Anchor::new(ROLE, "NOBODY that was measured", origin));
}

/// The certificate carries evidence of its own: it must hold, and be of the same VM.
fn by_certificate(verdict: &mut Verdict, question: &Question, leaf: &[u8]) {
    let question = Question { challenge: None, ..question.clone() };
    let outcome = match Subject::recognise(leaf) {
        Err(error) => Err(error.to_string()),
        Ok(subject) => {
            let own = judge_evidence(&subject, &question, "the server's certificate");
            let differs = SAME_VM.into_iter().find(|name| own.claims.get(name) != verdict.claims.get(name));
            match (own.word, differs) {
                (Word::NotVerified, _) => Err(format!("the evidence in the server's certificate does not hold: {}", own.reason)),
                (_, Some(name)) => Err(format!("the server's certificate belongs to another VM: {name} differs")),
                (_, None) => Ok(()),
            }
        }
    };
    match outcome {
        Ok(()) => {
            verdict.check(NAME, Mark::Passed, SAYS, "the certificate carries evidence of the same VM, which binds its key");
            verdict.trust_anchors.push(Anchor::new(ROLE, "the VM itself", "evidence inside the server's certificate"));
        }
        Err(detail) => verdict.check(NAME, Mark::Failed, SAYS, detail),
    }
}

/// The KMS that the app was measured to use certified the key for this app.
fn by_kms(verdict: &Verdict, chain: &[Vec<u8>], now: u64) -> Option<(Mark, &'static str)> {
    let app_id = verdict.claims.get("app_id")?;
    let authority =
        chain.iter().find_map(|der| EvidenceCertificate::parse(der).ok().filter(|certificate| certificate.app_id().is_some()))?;
    if verdict.claims.get("key_provider")? != "kms" {
        return None;
    }
    let root_key = hex::decode(verdict.claims.get("key_provider_id")?).ok()?;
    let is_certified = certified_by(chain, &root_key, now).is_some();
    let is_for_app = authority.app_id().is_some_and(|id| hex::encode(id) == app_id);
    Some(match (is_certified, is_for_app) {
        (true, true) => (Mark::Passed, "the certificate leads to the measured KMS, which names this app in it"),
        (true, false) => (Mark::Failed, "the measured KMS certified this key for another app"),
        (false, _) => (Mark::Failed, "the certificate claims to be of a dstack app and does not lead to the measured KMS"),
    })
}

/// Whether `chain` (leaf first, with or without its root) leads to the holder of `root_key` (SPKI DER).
fn certified_by(chain: &[Vec<u8>], root_key: &[u8], now: u64) -> Option<()> {
    let (leaf, rest) = chain.split_first()?;
    let is_root = |der: &&Vec<u8>| EvidenceCertificate::parse(der).is_ok_and(|certificate| certificate.spki_der() == root_key);
    let above: Vec<CertificateDer<'_>> = rest.iter().filter(|der| !is_root(der)).map(|der| CertificateDer::from(der.as_slice())).collect();
    let top = above.last().map_or(leaf.as_slice(), |der| der.as_ref());
    let (_, parsed) = x509_parser::parse_x509_certificate(top).ok()?;
    let anchor = TrustAnchor {
        subject: sequence_contents(parsed.issuer().as_raw())?.into(),
        subject_public_key_info: sequence_contents(root_key)?.into(),
        name_constraints: None,
    };
    let roots = RootCertStore { roots: vec![anchor.to_owned()] };
    let leaf = CertificateDer::from(leaf.as_slice());
    let leaf = ParsedCertificate::try_from(&leaf).ok()?;
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
    verify_server_cert_signed_by_trust_anchor(&leaf, &roots, &above, now, algorithms).ok()
}

/// Contents of a DER SEQUENCE that fills `der`.
fn sequence_contents(der: &[u8]) -> Option<&[u8]> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let header = if *first < 0x80 { 0 } else { usize::from(first & 0x7f) };
    (*tag == 0x30).then(|| rest.get(header..)).flatten()
}

/// A gateway ends TLS inside its own VM: its evidence must bind the key. It reads what passes.
fn by_gateway(
    verdict: &mut Verdict,
    connection: &Connection,
    papers: &GatewayPapers,
    question: &Question,
    certificate: &EvidenceCertificate,
) {
    let mut question = Question { challenge: Some(bound(gateway::report_data(certificate.spki_der()))), ..question.clone() };
    question.endorsements.collateral.clone_from(&papers.collateral);
    question.expectations = dstack_verdict::Expectations::default();
    let own = connection.gateway_subject().map(|subject| judge_evidence(&subject, &question, &papers.origin));
    match own {
        Some(own) if own.word != Word::NotVerified => {
            let app = own.identity.app_id.map_or_else(|| "unknown app".to_owned(), |id| format!("app {id}"));
            let compose = own.identity.compose_hash.map_or_else(String::new, |hash| format!(", compose hash {hash}"));
            verdict.check(
                "gateway-key",
                Mark::Remark,
                "the gateway that decrypts what you send is a VM with evidence for this certificate's key",
                format!("{app}{compose}"),
            );
            verdict.check(NAME, Mark::Remark, SAYS, "a gateway decrypts it on the way");
            verdict.caveats.push(format!(
                "A gateway decrypts what you send before it reaches the app: it is {app}{compose}, in a VM of its own, and this verdict does not know whether that is a good one."
            ));
            let origin = format!("{}/.dstack/acme-info: a quote binds this certificate's key; account {}", papers.origin, papers.account());
            verdict.trust_anchors.push(Anchor::new(ROLE, format!("gateway, {app}{compose}"), origin));
            if let Some(hardware) = own.trust_anchors.first() {
                verdict.trust_anchors.push(Anchor::new("gateway's vendor", hardware.anchor.clone(), hardware.origin.clone()));
            }
        }
        Some(own) => verdict.check("gateway-key", Mark::Failed, "the gateway's evidence binds this certificate's key", own.reason),
        None => {
            verdict.check("gateway-key", Mark::Failed, "the gateway's evidence binds this certificate's key", "its evidence cannot be read")
        }
    }
}

/// An ingress inside the VM ends TLS for a domain of its own.
fn by_ingress(verdict: &mut Verdict, papers: &IngressPapers, question: &Question) {
    let question = Question { challenge: Some(bound(papers.report_data())), ..question.clone() };
    let own = Subject::recognise(papers.quote.as_bytes()).map(|subject| judge_evidence(&subject, &question, "/evidences"));
    let outcome = match own {
        Err(error) => Err(error.to_string()),
        Ok(own) if own.word == Word::NotVerified => Err(own.reason),
        Ok(own) => match SAME_VM.into_iter().find(|name| own.claims.get(name) != verdict.claims.get(name)) {
            Some(name) => Err(format!("its evidence belongs to another VM: {name} differs")),
            None => Ok(()),
        },
    };
    match outcome {
        Ok(()) => {
            verdict.check(NAME, Mark::Passed, SAYS, "an ingress inside the VM ends TLS, and a quote binds its certificate");
            verdict.trust_anchors.push(Anchor::new(ROLE, "the VM itself", "/evidences: a quote binds the certificate"));
        }
        Err(reason) => verdict.check(NAME, Mark::Failed, SAYS, format!("the evidence of the ingress does not hold: {reason}")),
    }
}

fn bound(bytes: Vec<u8>) -> Challenge {
    Challenge { bytes, field: ChallengeField::ReportData, is_fresh: false }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use dstack_manifest::AppId;
    use dstack_ra_tls::{CaProfile, CertKey, CertificateAuthority, LeafProfile, Validity};

    use super::*;

    const NOW: u64 = 1_800_000_000;

    /// A KMS root, and a leaf of an app below it.
    fn certified() -> (CertificateAuthority, Vec<Vec<u8>>) {
        let validity = Validity::starting(NOW, 3600);
        let root = CertificateAuthority::self_signed(CaProfile::KmsRoot, CertKey::generate().unwrap(), validity).unwrap();
        let app = root.issue_app_ca(&AppId::new([7; 20]), CertKey::generate().unwrap(), validity).unwrap();
        let profile = LeafProfile { common_name: "app".to_owned(), server_auth: true, ..LeafProfile::default() };
        let leaf = app.issue_leaf(&CertKey::generate().unwrap().spki_der(), &profile, validity).unwrap();
        (root, vec![leaf.to_vec(), app.certificate_der().to_vec()])
    }

    #[test]
    fn a_chain_leads_to_its_kms_with_and_without_the_root_in_it() {
        let (root, mut chain) = certified();

        assert!(certified_by(&chain, root.spki_der(), NOW).is_some());
        chain.push(root.certificate_der().to_vec());
        assert!(certified_by(&chain, root.spki_der(), NOW).is_some());
    }

    #[test]
    fn a_chain_leads_to_no_other_kms_and_not_beyond_its_dates() {
        let ((root, chain), (other, _)) = (certified(), certified());

        assert!(certified_by(&chain, other.spki_der(), NOW).is_none());
        assert!(certified_by(&chain, root.spki_der(), NOW + 7200).is_none());
        assert!(certified_by(chain.get(..1).unwrap(), root.spki_der(), NOW).is_none(), "the app's authority is missing");
    }
}
