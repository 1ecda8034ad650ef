//! The commands of a TPM 2.0 that sealing needs.
//!
//! The TPM is a device of the kernel's resource manager, or a socket that speaks the same bytes, as `swtpm` does. What it answers is as
//! trusted as the TPM; that it is the right one is for the sealed object to show.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    os::unix::{fs::FileTypeExt as _, net::UnixStream},
    path::Path,
    time::Duration,
};

use rand_core::{OsRng, RngCore as _};
use sha2::{Digest as _, Sha256};
use tpm2_protocol::{
    TpmError, TpmMarshal as _, TpmUnmarshal as _, TpmWriter,
    basic::{Tpm2b, TpmHandle, TpmUint16},
    data::{
        Tpm2bCreationData, Tpm2bDigest, Tpm2bEncryptedSecret, Tpm2bNonce, Tpm2bPrivate, Tpm2bPublic, Tpm2bSensitiveCreate,
        Tpm2bSensitiveData, TpmAlgId, TpmCc, TpmEccCurve, TpmRc, TpmRcBase, TpmRh, TpmSe, TpmSt, TpmaObject, TpmaSession, TpmlPcrSelection,
        TpmsAuthCommand, TpmsEccParms, TpmsKeyedhashParms, TpmsPcrSelect, TpmsPcrSelection, TpmsSensitiveCreate, TpmtEccScheme,
        TpmtKdfScheme, TpmtKeyedhashScheme, TpmtPublic, TpmtSigScheme, TpmtSymDefObject, TpmtTkCreation, TpmuKeyedhashScheme, TpmuPublicId,
        TpmuPublicParms, TpmuSymKeyBits, TpmuSymMode,
    },
    frame::{
        TpmCertifyCreationCommand, TpmCreateCommand, TpmCreatePrimaryCommand, TpmCreatePrimaryResponse, TpmCreateResponse,
        TpmFlushContextCommand, TpmFlushContextResponse, TpmFrame, TpmLoadCommand, TpmLoadResponse, TpmPcrReadCommand, TpmPcrReadResponse,
        TpmPolicyGetDigestCommand, TpmPolicyGetDigestResponse, TpmPolicyPcrCommand, TpmPolicyPcrResponse, TpmResponse,
        TpmStartAuthSessionCommand, TpmStartAuthSessionResponse, TpmUnmarshalBody, TpmUnsealCommand, tpm_marshal_command,
    },
};
use zeroize::Zeroizing;

use super::pcrs::{PcrValues, Pcrs};

const TIMEOUT: Duration = Duration::from_secs(30);
/// Of a command or response of any TPM.
const MAX_MESSAGE_BYTES: usize = 4096;
/// Tag, size, code.
const HEADER_BYTES: usize = 10;
/// Capacity of `TPM2B_SENSITIVE_DATA`.
const MAX_SENSITIVE_BYTES: usize = 256;

/// Why the TPM does not do what it is asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChipError {
    /// The device.
    #[error("talking to the TPM")]
    Io(#[from] io::Error),
    /// A message that is none.
    #[error("a message of the TPM: {0}")]
    Message(TpmError),
    /// It says no.
    #[error("the TPM answers {command:?} with {code}")]
    Refused {
        /// What it was asked for.
        command: TpmCc,
        /// Its words.
        code: TpmRc,
    },
}

impl From<TpmError> for ChipError {
    fn from(error: TpmError) -> Self {
        Self::Message(error)
    }
}

impl ChipError {
    /// Whether the TPM answered `command` with `reason`.
    pub(super) fn is(&self, command: TpmCc, reason: TpmRcBase) -> bool {
        matches!(self, Self::Refused { command: asked, code } if *asked == command && code.base() == reason)
    }
}

trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

/// A sealed object with what proves where it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SealedObject {
    pub(super) public: Tpm2bPublic,
    pub(super) private: Tpm2bPrivate,
    pub(super) creation: Tpm2bCreationData,
    pub(super) ticket: TpmtTkCreation,
}

impl SealedObject {
    /// The TPM's own structures one after the other.
    pub(super) fn encode(&self) -> Result<Vec<u8>, TpmError> {
        let mut bytes = vec![0; MAX_MESSAGE_BYTES];
        let mut writer = TpmWriter::new(&mut bytes);
        self.public.marshal(&mut writer)?;
        self.private.marshal(&mut writer)?;
        self.creation.marshal(&mut writer)?;
        self.ticket.marshal(&mut writer)?;
        Ok(writer.as_bytes().to_vec())
    }

    /// Reads what [`Self::encode`] wrote; none if it is something else.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (public, rest) = Tpm2bPublic::unmarshal(bytes).ok()?;
        let (private, rest) = Tpm2bPrivate::unmarshal(rest).ok()?;
        let (creation, rest) = Tpm2bCreationData::unmarshal(rest).ok()?;
        let (ticket, rest) = TpmtTkCreation::unmarshal(rest).ok()?;
        rest.is_empty().then_some(Self { public, private, creation, ticket })
    }

    /// Whether it says that it was made while `values` were in the PCRs. [`Chip::unseal`] has the TPM confirm what it says.
    pub(super) fn was_made_with(&self, values: &PcrValues) -> Result<bool, TpmError> {
        let creation = &self.creation.inner;
        Ok(creation.pcr_select == selection(&values.pcrs())? && *creation.pcr_digest == values.digest()[..])
    }
}

/// An open TPM.
pub(super) struct Chip(Box<dyn Stream>);

impl Chip {
    /// Opens the device or socket at `path`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        if !fs::metadata(path)?.file_type().is_socket() {
            return Ok(Self(Box::new(OpenOptions::new().read(true).write(true).open(path)?)));
        }
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self(Box::new(socket)))
    }

    /// What is in the PCRs now; values of PCRs that the TPM does not have are missing.
    pub(super) fn read(&mut self, pcrs: &Pcrs) -> Result<PcrValues, ChipError> {
        let mut values = Vec::new();
        for number in pcrs.numbers() {
            let one = Pcrs::one(pcrs.bank(), number);
            let command = TpmPcrReadCommand { handles: [], pcr_selection_in: selection(&one)? };
            let response: TpmPcrReadResponse = self.call(&command, &[])?;
            values.extend(response.pcr_values.iter().next().map(|value| (number, value.to_vec())));
        }
        Ok(PcrValues::new(pcrs.bank(), values))
    }

    /// Seals `secret` under the storage root so that only a system with `values` in its PCRs opens it.
    pub(super) fn seal(&mut self, secret: &[u8; 32], values: &PcrValues) -> Result<SealedObject, ChipError> {
        let pcrs = selection(&values.pcrs())?;
        let policy = self.policy_digest(pcrs, &values.digest())?;
        let public = TpmtPublic {
            object_type: TpmAlgId::KeyedHash,
            name_alg: TpmAlgId::Sha256,
            // Without USER_WITH_AUTH the policy is the only way in.
            object_attributes: TpmaObject::FIXED_TPM | TpmaObject::FIXED_PARENT | TpmaObject::ADMIN_WITH_POLICY | TpmaObject::NO_DA,
            auth_policy: policy,
            parameters: TpmuPublicParms::KeyedHash(TpmsKeyedhashParms {
                scheme: TpmtKeyedhashScheme { scheme: TpmAlgId::Null, details: TpmuKeyedhashScheme::Null },
            }),
            unique: TpmuPublicId::KeyedHash(Tpm2bDigest::default()),
        };
        let sensitive = TpmsSensitiveCreate { data: Tpm2bSensitiveData::try_from(secret.as_slice())?, ..TpmsSensitiveCreate::default() };
        self.under_storage_root(|chip, root| {
            let command = TpmCreateCommand {
                handles: [root],
                in_sensitive: Tpm2bSensitiveCreate { inner: sensitive },
                in_public: Tpm2bPublic { inner: public },
                outside_info: Default::default(),
                creation_pcr: pcrs,
            };
            let made: TpmCreateResponse = chip.call(&command, &[no_password()])?;
            Ok(SealedObject {
                public: made.out_public,
                private: made.out_private,
                creation: made.creation_data,
                ticket: made.creation_ticket,
            })
        })
    }

    /// Opens what [`Self::seal`] made, after the TPM confirmed that it was made here as its creation data say.
    pub(super) fn unseal(&mut self, sealed: &SealedObject, pcrs: &Pcrs) -> Result<Zeroizing<Vec<u8>>, ChipError> {
        let pcrs = selection(pcrs)?;
        self.under_storage_root(|chip, root| {
            let command = TpmLoadCommand { handles: [root], in_private: sealed.private, in_public: sealed.public.clone() };
            let loaded: TpmLoadResponse = chip.call(&command, &[no_password()])?;
            let [object] = loaded.handles;
            let opened = chip.confirm_creation(object, sealed).and_then(|()| chip.open_with_policy(object, pcrs));
            chip.flush(object)?;
            opened
        })
    }

    fn confirm_creation(&mut self, object: TpmHandle, sealed: &SealedObject) -> Result<(), ChipError> {
        let mut data = vec![0; MAX_MESSAGE_BYTES];
        let mut writer = TpmWriter::new(&mut data);
        sealed.creation.inner.marshal(&mut writer)?;
        let command = TpmCertifyCreationCommand {
            // Nobody signs: only the check of the ticket is wanted.
            handles: [handle(TpmRh::Null), object],
            qualifying_data: Default::default(),
            creation_hash: Tpm2bDigest::try_from(Sha256::digest(writer.as_bytes()).as_slice())?,
            in_scheme: TpmtSigScheme::default(),
            creation_ticket: sealed.ticket,
        };
        self.send(&command, &[no_password()]).map(drop)
    }

    fn open_with_policy(&mut self, object: TpmHandle, pcrs: TpmlPcrSelection) -> Result<Zeroizing<Vec<u8>>, ChipError> {
        let session = self.start_session(TpmSe::Policy)?;
        let policy = TpmPolicyPcrCommand { handles: [session], pcr_digest: Tpm2bDigest::default(), pcrs };
        let by_policy = TpmsAuthCommand { session_handle: session, ..no_password() };
        let opened = self.call::<_, TpmPolicyPcrResponse>(&policy, &[]).and_then(|_| {
            let response = self.send(&TpmUnsealCommand { handles: [object] }, &[by_policy])?;
            // Read in place: a parsed copy would stay in memory.
            let parameters = TpmResponse::cast(&response)?.body().get(4..).unwrap_or_default();
            let (data, _) = Tpm2b::<MAX_SENSITIVE_BYTES>::cast_prefix(parameters)?;
            Ok(Zeroizing::new(data.data().to_vec()))
        });
        // A session that was used is gone already.
        let _ = self.flush(session);
        opened
    }

    /// What the policy "these PCRs have this digest" is called in an object.
    fn policy_digest(&mut self, pcrs: TpmlPcrSelection, digest: &[u8; 32]) -> Result<Tpm2bDigest, ChipError> {
        let session = self.start_session(TpmSe::Trial)?;
        let policy = TpmPolicyPcrCommand { handles: [session], pcr_digest: Tpm2bDigest::try_from(digest.as_slice())?, pcrs };
        let digest = self
            .call::<_, TpmPolicyPcrResponse>(&policy, &[])
            .and_then(|_| self.call::<_, TpmPolicyGetDigestResponse>(&TpmPolicyGetDigestCommand { handles: [session] }, &[]));
        self.flush(session)?;
        Ok(digest?.policy_digest)
    }

    fn start_session(&mut self, kind: TpmSe) -> Result<TpmHandle, ChipError> {
        let mut nonce = [0; 32];
        OsRng.fill_bytes(&mut nonce);
        let command = TpmStartAuthSessionCommand {
            handles: [handle(TpmRh::Null), handle(TpmRh::Null)],
            nonce_caller: Tpm2bNonce::try_from(nonce.as_slice())?,
            encrypted_salt: Tpm2bEncryptedSecret::default(),
            session_type: kind,
            symmetric: TpmtSymDefObject { algorithm: TpmAlgId::Null, ..TpmtSymDefObject::default() },
            auth_hash: TpmAlgId::Sha256,
        };
        let started: TpmStartAuthSessionResponse = self.call(&command, &[])?;
        let [session] = started.handles;
        Ok(session)
    }

    /// Runs `act` with the storage root key: the same at each start of the same TPM until its owner clears it.
    fn under_storage_root<T>(&mut self, act: impl FnOnce(&mut Self, TpmHandle) -> Result<T, ChipError>) -> Result<T, ChipError> {
        let command = TpmCreatePrimaryCommand {
            handles: [handle(TpmRh::Owner)],
            in_public: Tpm2bPublic { inner: storage_root() },
            ..TpmCreatePrimaryCommand::default()
        };
        let made: TpmCreatePrimaryResponse = self.call(&command, &[no_password()])?;
        let [root] = made.handles;
        let result = act(self, root);
        self.flush(root)?;
        result
    }

    fn flush(&mut self, flush_handle: TpmHandle) -> Result<(), ChipError> {
        self.call::<_, TpmFlushContextResponse>(&TpmFlushContextCommand { handles: [], flush_handle }, &[]).map(drop)
    }

    fn call<C: TpmFrame, R: TpmUnmarshalBody>(&mut self, command: &C, sessions: &[TpmsAuthCommand]) -> Result<R, ChipError> {
        Ok(TpmResponse::cast(&self.send(command, sessions)?)?.unmarshal()?)
    }

    /// Sends a command; the response, if it is no refusal.
    pub(super) fn send<C: TpmFrame>(&mut self, command: &C, sessions: &[TpmsAuthCommand]) -> Result<Zeroizing<Vec<u8>>, ChipError> {
        let mut buffer = Zeroizing::new(vec![0; MAX_MESSAGE_BYTES]);
        let tag = if sessions.is_empty() { TpmSt::NoSessions } else { TpmSt::Sessions };
        let mut writer = TpmWriter::new(&mut buffer);
        tpm_marshal_command(command, tag, sessions, &mut writer)?;
        self.0.write_all(writer.as_bytes())?;
        let response = self.receive()?;
        match TpmResponse::cast(&response)?.rc()? {
            TpmRc::Fmt0(TpmRcBase::Success) => Ok(response),
            code => Err(ChipError::Refused { command: command.cc(), code }),
        }
    }

    /// One response. A device gives it at once, a socket in pieces.
    fn receive(&mut self) -> io::Result<Zeroizing<Vec<u8>>> {
        let mut buffer = Zeroizing::new(vec![0; MAX_MESSAGE_BYTES]);
        let mut length = 0;
        while length < HEADER_BYTES || length < declared_bytes(&buffer) {
            match self.0.read(buffer.get_mut(length..).unwrap_or_default())? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => length += read,
            }
        }
        buffer.truncate(length);
        Ok(buffer)
    }
}

/// Size in a message's header.
fn declared_bytes(message: &[u8]) -> usize {
    let size = message.get(2..6).and_then(|size| size.try_into().ok()).map_or(0, u32::from_be_bytes);
    usize::try_from(size).unwrap_or(usize::MAX)
}

/// The storage root as the TCG's provisioning guidance has it: ECC P-256 that wraps with AES-128.
fn storage_root() -> TpmtPublic {
    let symmetric = TpmtSymDefObject {
        algorithm: TpmAlgId::Aes,
        key_bits: TpmuSymKeyBits::Aes(TpmUint16::new(128)),
        mode: TpmuSymMode::Aes(TpmAlgId::Cfb),
    };
    let parameters =
        TpmsEccParms { symmetric, scheme: TpmtEccScheme::default(), curve_id: TpmEccCurve::NistP256, kdf: TpmtKdfScheme::default() };
    TpmtPublic {
        object_type: TpmAlgId::Ecc,
        name_alg: TpmAlgId::Sha256,
        object_attributes: TpmaObject::FIXED_TPM
            | TpmaObject::FIXED_PARENT
            | TpmaObject::SENSITIVE_DATA_ORIGIN
            | TpmaObject::USER_WITH_AUTH
            | TpmaObject::NO_DA
            | TpmaObject::RESTRICTED
            | TpmaObject::DECRYPT,
        auth_policy: Tpm2bDigest::default(),
        parameters: TpmuPublicParms::Ecc(parameters),
        unique: TpmuPublicId::Ecc(Default::default()),
    }
}

/// What an object or hierarchy without password is used with.
fn no_password() -> TpmsAuthCommand {
    TpmsAuthCommand { session_handle: handle(TpmRh::Pw), session_attributes: TpmaSession::empty(), ..TpmsAuthCommand::default() }
}

fn handle(fixed: TpmRh) -> TpmHandle {
    TpmHandle::new(fixed.value())
}

fn selection(pcrs: &Pcrs) -> Result<TpmlPcrSelection, TpmError> {
    let mut list = TpmlPcrSelection::new();
    list.try_push(TpmsPcrSelection { hash: pcrs.bank().algorithm(), pcr_select: TpmsPcrSelect::try_from(pcrs.bitmap().as_slice())? })?;
    Ok(list)
}
