//! Shares of the root: made for custodians, and taken back in a session.
//!
//! A session has an age recipient of its own, whose secret never leaves this process; custodians encrypt their shares to it. What comes out
//! of a drill is a comparison of public keys: the root that was put together is dropped. Nothing of a session is written to disk.

use std::{
    collections::BTreeMap,
    sync::PoisonError,
    time::{Duration, Instant},
};

use age::x25519::{Identity, Recipient};
use dstack_api::{
    RpcError, UserFacing,
    kms::{CreateRecoveryRequest, RecoverySession, ShareStatus, SubmitShareRequest},
};
use dstack_key_hierarchy::{RecoveredRoot, RecoveryError, RecoveryShare, Secret, ShareFile, SignedSet, recovery_session_digest};
use rand_core::{OsRng, RngCore as _};
use zeroize::Zeroizing;

use crate::key_backend::{KeyBackend, KeyBackendError, NO_WHOLE_ROOT_FIX, WholeRoot};

/// Custodians have this long to come together.
const SESSION_LIFE: Duration = Duration::from_secs(3600);

/// What a custodian or the operator got wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SessionError {
    #[error("{recipient:?} is not an age recipient")]
    Recipient { recipient: String },
    #[error("the session is not open")]
    NoSession,
    #[error("the share is not encrypted to this session")]
    NotForSession,
    #[error("the share is of another set than the shares before it")]
    OtherSet,
    #[error("the share is of another KMS: its root is {found}")]
    OtherKms { found: String },
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    #[error("encrypting a share")]
    Encrypt,
    #[error(transparent)]
    Backend(#[from] KeyBackendError),
}

impl UserFacing for SessionError {
    fn code(&self) -> &'static str {
        match self {
            Self::Recipient { .. } => "kms/recovery-recipient",
            Self::NoSession | Self::NotForSession => "kms/recovery-session",
            Self::OtherSet | Self::OtherKms { .. } => "kms/recovery-other-set",
            Self::Recovery(_) => "kms/recovery-share",
            Self::Encrypt => "kms/recovery-encrypt",
            Self::Backend(_) => "kms/no-whole-root",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Recipient { .. } => "give the custodian's public key as age-keygen prints it (age1…)",
            Self::NoSession | Self::NotForSession => "open the session again and submit the share to it; it lasts an hour",
            Self::OtherSet => "agree on one set: all custodians use the files that were made together",
            Self::OtherKms { .. } => "use the share files of this KMS",
            Self::Recovery(_) => "use the share file as dstack kms recovery create wrote it, with the numbers it was made for",
            Self::Encrypt => "read the log; this is a defect worth reporting",
            Self::Backend(_) => NO_WHOLE_ROOT_FIX,
        }
        .to_owned()
    }
}

impl From<SessionError> for RpcError {
    fn from(error: SessionError) -> Self {
        Self::from_user_facing(&error)
    }
}

/// Splits the root and encrypts each share to its custodian. Returns one file per custodian, in order.
pub(crate) fn create(backend: &impl KeyBackend, request: &CreateRecoveryRequest, now: u64) -> Result<Vec<String>, SessionError> {
    let WholeRoot { root, epochs, .. } = backend.whole_root()?;
    let epochs = epochs.read().unwrap_or_else(PoisonError::into_inner);
    let recipients: Vec<Recipient> = request.recipients.iter().map(|text| parse_recipient(text)).collect::<Result<_, _>>()?;
    let names: Vec<String> = recipients.iter().map(ToString::to_string).collect();
    let threshold = usize::try_from(request.threshold).unwrap_or(usize::MAX);
    let (signed, shares) = SignedSet::create((root, &epochs), threshold, &names, now, &mut OsRng)?;
    let files = recipients.iter().zip(&shares).enumerate().map(|(custodian, (recipient, share))| {
        let share = age::encrypt(recipient, share.expose()).map_err(|_| SessionError::Encrypt)?;
        Ok(ShareFile { signed: signed.clone(), custodian, share }.to_text())
    });
    files.collect()
}

fn parse_recipient(text: &str) -> Result<Recipient, SessionError> {
    text.trim().parse().map_err(|_| SessionError::Recipient { recipient: text.chars().take(100).collect() })
}

/// Custodians come together.
pub(crate) struct Session {
    id: String,
    identity: Identity,
    opened: Instant,
    set: Option<SignedSet>,
    shares: BTreeMap<usize, RecoveryShare>,
}

impl Session {
    /// The open session in `slot`, or a new one.
    pub(crate) fn open(slot: &mut Option<Self>) -> &Self {
        if slot.as_ref().is_some_and(|session| session.opened.elapsed() >= SESSION_LIFE) {
            *slot = None;
        }
        slot.get_or_insert_with(|| {
            let mut id = [0; 16];
            OsRng.fill_bytes(&mut id);
            Self { id: hex::encode(id), identity: Identity::generate(), opened: Instant::now(), set: None, shares: BTreeMap::new() }
        })
    }

    /// What custodians are told, without proof.
    pub(crate) fn introduce(&self) -> RecoverySession {
        RecoverySession { session_id: self.id.clone(), recipient: self.identity.to_public().to_string(), ..RecoverySession::default() }
    }

    /// What proves that the recipient is this process's.
    pub(crate) fn digest(&self) -> [u8; 32] {
        recovery_session_digest(&self.id, &self.identity.to_public().to_string())
    }

    /// Takes one share. The root, once there are enough; the session in `slot` is over then.
    ///
    /// `ca_pubkey`: the root that it must be, where one is known.
    pub(crate) fn submit(
        slot: &mut Option<Self>,
        request: &SubmitShareRequest,
        ca_pubkey: Option<&[u8]>,
    ) -> Result<(ShareStatus, Option<RecoveredRoot>), SessionError> {
        let session = slot.as_mut().filter(|session| session.id == request.session_id && session.opened.elapsed() < SESSION_LIFE);
        let session = session.ok_or(SessionError::NoSession)?;
        let file = ShareFile::parse(&request.share_file)?;
        if ca_pubkey.is_some_and(|expected| expected != file.signed.set.ca_pubkey) {
            return Err(SessionError::OtherKms { found: hex::encode(&file.signed.set.ca_pubkey) });
        }
        if session.set.as_ref().is_some_and(|set| *set != file.signed) {
            return Err(SessionError::OtherSet);
        }
        let opened = age::decrypt(&session.identity, &request.share).map_err(|_| SessionError::NotForSession)?;
        let share = Secret::from_slice(&Zeroizing::new(opened)).map_err(|_| RecoveryError::Share)?;
        file.signed.check_share(file.custodian, &share)?;
        session.shares.insert(file.custodian, share);
        let set = session.set.get_or_insert(file.signed);
        let mut status = ShareStatus {
            received: u32::try_from(session.shares.len()).unwrap_or(u32::MAX),
            threshold: u32::try_from(set.set.threshold).unwrap_or(u32::MAX),
            is_complete: false,
            ca_pubkey: set.set.ca_pubkey.clone(),
            k256_pubkey: set.set.k256_pubkey.clone(),
        };
        if session.shares.len() < set.set.threshold {
            return Ok((status, None));
        }
        let recovered = set.restore(&session.shares.values().collect::<Vec<_>>());
        *slot = None;
        status.is_complete = true;
        Ok((status, Some(recovered?)))
    }
}
