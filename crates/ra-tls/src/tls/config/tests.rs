//! Handshakes in memory: what is resumed, what is not, and what a resumed connection shows.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use rustls::{ClientConnection, HandshakeKind, ServerConnection};

use super::*;
use crate::{CaProfile, CertificateAuthority, LeafProfile, Validity, usage};

fn validity() -> Validity {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    Validity::starting(now, 3600)
}

fn authority(profile: CaProfile) -> CertificateAuthority {
    CertificateAuthority::self_signed(profile, CertKey::generate().unwrap(), validity()).unwrap()
}

fn identity(issuer: &CertificateAuthority, profile: &LeafProfile) -> Identity {
    let key = CertKey::generate().unwrap();
    Identity { chain: vec![issuer.issue_leaf(&key.spki_der(), profile, validity()).unwrap()], key }
}

/// A root with a KMS, and a client that pins it and shows a certificate.
struct Ends {
    root: CertificateAuthority,
    temp: CertificateAuthority,
    kms: Identity,
    client: Arc<ClientConfig>,
    shown: Vec<CertificateDer<'static>>,
}

impl Ends {
    fn new() -> Self {
        let (root, temp) = (authority(CaProfile::KmsRoot), authority(CaProfile::ClientTemp));
        let kms = identity(&root, &LeafProfile::kms_rpc("kms.example", None));
        let guest = identity(&temp, &LeafProfile::guest_client(b"evidence".to_vec()));
        let client = pinned_client(root.certificate_der(), usage::KMS_RPC, Some(&guest)).unwrap();
        Self { root, temp, kms, client: Arc::new(client), shown: guest.chain }
    }

    fn server(&self, max_session_age: Duration) -> Arc<ServerConfig> {
        Arc::new(server_with_session_age(&self.kms, self.temp.certificate_der(), max_session_age).unwrap())
    }
}

fn pump(from: &mut impl FnMut(&mut Vec<u8>), to: &mut impl FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
    let mut bytes = Vec::new();
    from(&mut bytes);
    if bytes.is_empty() { Ok(()) } else { to(&bytes) }
}

/// A whole handshake and the tickets after it.
fn connect(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Result<(ClientConnection, ServerConnection), Error> {
    let mut client = ClientConnection::new(Arc::clone(client), "kms.example".try_into().unwrap())?;
    let mut server = ServerConnection::new(Arc::clone(server))?;
    for _ in 0..4 {
        pump(&mut |bytes| while client.write_tls(bytes).unwrap() > 0 {}, &mut |mut bytes| {
            while !bytes.is_empty() {
                server.read_tls(&mut bytes).unwrap();
                server.process_new_packets()?;
            }
            Ok(())
        })?;
        pump(&mut |bytes| while server.write_tls(bytes).unwrap() > 0 {}, &mut |mut bytes| {
            while !bytes.is_empty() {
                client.read_tls(&mut bytes).unwrap();
                client.process_new_packets()?;
            }
            Ok(())
        })?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}

#[test]
fn a_server_that_changes_its_certificate_is_not_the_one_that_was_judged() {
    let ends = Ends::new();
    let (config, leaf) = pinned_client_keeping_leaf(ends.root.certificate_der(), usage::KMS_RPC, None).unwrap();
    let client = Arc::new(config);
    assert!(leaf.get().is_none());
    let (first, other) =
        (ends.server(Duration::ZERO), Ends { kms: identity(&ends.root, &LeafProfile::kms_rpc("kms.example", None)), ..ends });

    connect(&client, &first).unwrap();
    connect(&client, &first).unwrap();

    assert_ne!(leaf.get(), other.kms.chain.first());
    assert!(connect(&client, &other.server(Duration::ZERO)).is_err());
    connect(&other.client, &other.server(Duration::ZERO)).unwrap();
}

#[test]
fn resumed_connections_show_the_chain_of_the_handshake_they_resume() {
    let ends = Ends::new();
    let server = ends.server(MAX_SESSION_AGE);
    let (_, first) = connect(&ends.client, &server).unwrap();

    let (client, second) = connect(&ends.client, &server).unwrap();

    assert_eq!(first.handshake_kind(), Some(HandshakeKind::Full));
    assert_eq!((second.handshake_kind(), client.handshake_kind()), (Some(HandshakeKind::Resumed), Some(HandshakeKind::Resumed)));
    assert_eq!(second.peer_certificates(), Some(ends.shown.as_slice()));
    assert_eq!(client.peer_certificates(), Some(ends.kms.chain.as_slice()));
}

#[test]
fn a_session_past_its_age_is_verified_anew() {
    let ends = Ends::new();
    let server = ends.server(Duration::ZERO);
    connect(&ends.client, &server).unwrap();

    let (_, second) = connect(&ends.client, &server).unwrap();

    assert_eq!(second.handshake_kind(), Some(HandshakeKind::Full));
}

#[test]
fn no_other_configuration_honours_a_session() {
    let ends = Ends::new();
    connect(&ends.client, &ends.server(MAX_SESSION_AGE)).unwrap();

    let (_, second) = connect(&ends.client, &ends.server(MAX_SESSION_AGE)).unwrap();

    assert_eq!(second.handshake_kind(), Some(HandshakeKind::Full));
}

/// A leaf that an application's authority signs with the usage of the KMS, against our own rules.
fn forged_kms(authority_key: &CertKey, authority: &CertificateDer<'static>) -> Identity {
    use crate::Extension;
    let issuer = rcgen::Issuer::from_ca_cert_der(authority, CertKey::from_pem(&authority_key.to_pem()).unwrap().into_pair()).unwrap();
    let key = CertKey::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["kms.example".to_owned()]).unwrap();
    params.custom_extensions = vec![Extension::CertUsage.to_rcgen(usage::KMS_RPC.as_bytes())];
    let leaf = params.signed_by(key.pair(), &issuer).unwrap().der().clone();
    Identity { chain: vec![leaf, authority.clone()], key }
}

#[test]
fn a_leaf_of_an_application_authority_never_passes_for_the_kms() {
    let ends = Ends::new();
    let app_key = CertKey::generate().unwrap();
    let app =
        ends.root.issue_app_ca(&dstack_manifest::AppId::new([1; 20]), CertKey::from_pem(&app_key.to_pem()).unwrap(), validity()).unwrap();
    let server = |identity: &Identity| Arc::new(anonymous_server(identity).unwrap());
    let pinned = |usage| Arc::new(pinned_client(ends.root.certificate_der(), usage, None).unwrap());

    // The chain itself is in order: a client that does not look for a KMS would follow it.
    let forged = forged_kms(&app_key, app.certificate_der());
    assert!(connect(&Arc::new(danger_unverified_client().unwrap()), &server(&forged)).is_ok());
    assert!(connect(&pinned(usage::KMS_RPC), &server(&forged)).is_err());

    let refused = app.issue_leaf(&app_key.spki_der(), &LeafProfile::kms_rpc("kms.example", None), validity());
    assert!(matches!(refused, Err(crate::AuthorityError::Usage { .. })));
    let service = LeafProfile { usage: Some("gateway:rpc".into()), ..LeafProfile::kms_rpc("gateway.example", None) };
    let gateway = identity(&app, &service);
    let gateway = Identity { chain: vec![gateway.chain[0].clone(), app.certificate_der().clone()], key: gateway.key };
    assert!(connect(&pinned("gateway:rpc"), &server(&gateway)).is_ok());
}

#[test]
fn leaves_end_with_their_issuer() {
    let root = authority(CaProfile::KmsRoot);
    let key = CertKey::generate().unwrap();
    let long = Validity { not_after: validity().not_after + 86_400, ..validity() };

    let leaf = root.issue_leaf(&key.spki_der(), &LeafProfile::kms_rpc("kms.example", None), long).unwrap();

    let end = |der: &[u8]| crate::RaTlsCertificate::parse(der).unwrap().not_after();
    assert_eq!(end(&leaf), end(root.certificate_der()));
}
