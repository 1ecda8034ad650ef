//! The commands of operators and custodians.

use std::{fmt::Write as _, path::Path, sync::Arc};

use dstack_api::kms::{
    AdminClient, BootstrapRequest, CreateRecoveryRequest, Empty, EpochList, OnboardClient, RecoverySession, RotateEpochRequest,
    ShareStatus, SubmitShareRequest, SyncEpochsRequest,
};
use dstack_attestation::{MrScope, Policy, TrustAnchors, Verifier};
use dstack_key_hierarchy::{RecoveryShare, Secret, ShareFile, recover, recovery_session_digest};
use dstack_ra_tls::{EvidenceVerifier, VerificationLimits, collateral::CollateralClient};
use dstack_rpc::{Client, Endpoint};
use dstack_service::clock::unix_seconds;
use zeroize::Zeroizing;

use super::{
    args::{EpochsCommand, KmsCommand, RecoveryCommand, RestoreArgs, ShareArgs},
    read_certificate,
};
use crate::{
    failure::{Failure, Outcome},
    output::{Output, fields, table},
};

/// Runs a command.
pub(crate) async fn operate(command: &KmsCommand, output: Output) -> Outcome {
    match command {
        KmsCommand::Epochs(command) => epochs(command, output).await,
        KmsCommand::Recovery(RecoveryCommand::Create { admin, threshold, custodians, output: folder }) => {
            let client = AdminClient(client(&admin.admin, Some(&admin.token_file))?);
            let request = CreateRecoveryRequest { threshold: *threshold, recipients: custodians.clone() };
            let answer = client.create_recovery(&request).await.map_err(Failure::rpc)?;
            write_shares(&answer.share_files, custodians, folder, output)
        }
        KmsCommand::Recovery(RecoveryCommand::Drill { share, admin, token_file }) => {
            let opened = Share::open(share)?;
            match admin {
                Some(admin) => drill(&opened, AdminClient(client(admin, token_file.as_deref())?), output).await,
                None => output.result(&opened.summary(), |palette| {
                    let rows = [("custodian", opened.position()), ("root", hex::encode(&opened.file.signed.set.ca_pubkey))];
                    format!("The share holds: it is the one that was made for this custodian.\n{}", fields(palette, &rows))
                }),
            }
        }
        KmsCommand::Recovery(RecoveryCommand::Restore(args)) => restore(args, output).await,
    }
}

fn client(address: &str, token_file: Option<&Path>) -> Outcome<Client> {
    let client = Client::new(Endpoint::parse_service(address)?);
    let Some(path) = token_file else { return Ok(client) };
    let text = Zeroizing::new(std::fs::read_to_string(path).map_err(|error| Failure::io("reading", path, &error))?);
    Ok(client.with_bearer(text.lines().next().unwrap_or_default()))
}

async fn epochs(command: &EpochsCommand, output: Output) -> Outcome {
    let list = match command {
        EpochsCommand::List(admin) => AdminClient(client(&admin.admin, Some(&admin.token_file))?).get_epochs(&Empty {}).await,
        EpochsCommand::Rotate { admin, activate_in, readable_for } => {
            let request = RotateEpochRequest { activate_in_seconds: *activate_in, readable_for_seconds: *readable_for };
            AdminClient(client(&admin.admin, Some(&admin.token_file))?).rotate_epoch(&request).await
        }
        EpochsCommand::Sync { admin, source } => {
            let request = SyncEpochsRequest { source_url: source.clone() };
            AdminClient(client(&admin.admin, Some(&admin.token_file))?).sync_epochs(&request).await
        }
    };
    let list: EpochList = list.map_err(Failure::rpc)?;
    output.result(&list, |palette| {
        let rows = list.epochs.iter().map(|epoch| {
            let end = if epoch.readable_until == 0 { "-".to_owned() } else { epoch.readable_until.to_string() };
            vec![epoch.epoch.to_string(), epoch.state.clone(), epoch.active_from.to_string(), end]
        });
        table(palette, &["EPOCH", "STATE", "ACTIVE FROM", "READABLE UNTIL"], &rows.collect::<Vec<_>>())
    })
}

fn write_shares(files: &[String], custodians: &[String], folder: &Path, output: Output) -> Outcome {
    let unusable =
        |cause: String| Failure::new("kms/bad-share-files", cause, "do not use these files; check that --admin is the address of your KMS");
    if files.len() != custodians.len() {
        return Err(unusable(format!("the KMS gave {} files for {} custodians", files.len(), custodians.len())));
    }
    std::fs::create_dir_all(folder).map_err(|error| Failure::io("making", folder, &error))?;
    let mut written = Vec::new();
    for (index, (text, recipient)) in files.iter().zip(custodians).enumerate() {
        let file = ShareFile::parse(text).map_err(|error| unusable(error.to_string()))?;
        let named = file.signed.set.custodians.get(index).map(|custodian| custodian.recipient.as_str());
        if file.custodian != index || named != Some(recipient.trim()) {
            return Err(unusable(format!("file {} is not for {recipient}", index + 1)));
        }
        let path = folder.join(format!("share-{}-of-{}.json", index + 1, files.len()));
        dstack_service::fs::write_atomic(&path, text.as_bytes(), 0o600).map_err(|error| Failure::io("writing", &path, &error))?;
        written.push(path.display().to_string());
    }
    output.result(&serde_json::json!({ "files": written }), |_| {
        let mut text = written.join("\n");
        let _never = write!(text, "\nGive each file to its custodian, and let them run `dstack kms recovery drill`.");
        text
    })
}

/// A custodian's share, opened and checked.
struct Share {
    file: ShareFile,
    text: String,
    share: RecoveryShare,
}

impl Share {
    fn open(args: &ShareArgs) -> Outcome<Self> {
        let text = std::fs::read_to_string(&args.file).map_err(|error| Failure::io("reading", &args.file, &error))?;
        let broken = |cause: String| {
            Failure::new(
                "kms/bad-share",
                format!("{}: {cause}", args.file.display()),
                "use the file as it was made for you; else have new shares made",
            )
        };
        let file = ShareFile::parse(&text).map_err(|error| broken(error.to_string()))?;
        let identity = read_identity(&args.identity)?;
        let opened =
            age::decrypt(&identity, &file.share).map_err(|error| broken(format!("it does not open with this identity: {error}")))?;
        let share = Secret::from_slice(&Zeroizing::new(opened)).map_err(|error| broken(error.to_string()))?;
        file.signed.check_share(file.custodian, &share).map_err(|error| broken(error.to_string()))?;
        Ok(Self { file, text, share })
    }

    fn position(&self) -> String {
        let set = &self.file.signed.set;
        format!("{} of {}, {} needed", self.file.custodian + 1, set.custodians.len(), set.threshold)
    }

    fn summary(&self) -> serde_json::Value {
        let set = &self.file.signed.set;
        serde_json::json!({
            "custodian": self.file.custodian + 1, "custodians": set.custodians.len(), "threshold": set.threshold,
            "ca_pubkey": hex::encode(&set.ca_pubkey), "k256_pubkey": hex::encode(&set.k256_pubkey), "created_at": set.created_at,
        })
    }

    /// For the session only.
    fn submission(&self, session: &RecoverySession) -> Outcome<SubmitShareRequest> {
        let unusable = || Failure::new("kms/bad-session", "the KMS gave no age recipient", "check the address");
        let recipient: age::x25519::Recipient = session.recipient.parse().map_err(|_| unusable())?;
        let share = age::encrypt(&recipient, self.share.expose()).map_err(|_| unusable())?;
        Ok(SubmitShareRequest { session_id: session.session_id.clone(), share_file: self.text.clone(), share })
    }
}

fn read_identity(path: &Path) -> Outcome<age::x25519::Identity> {
    let text = Zeroizing::new(std::fs::read_to_string(path).map_err(|error| Failure::io("reading", path, &error))?);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#')).unwrap_or_default();
    line.parse().map_err(|_| {
        Failure::new("kms/bad-identity", format!("{} holds no age identity", path.display()), "name the file that age-keygen wrote")
    })
}

async fn drill(share: &Share, kms: AdminClient<Client>, output: Output) -> Outcome {
    let session = kms.open_drill(&Empty {}).await.map_err(Failure::rpc)?;
    let digest = recovery_session_digest(&session.session_id, &session.recipient);
    let signer = recover(&digest, &session.signature);
    if signer.as_ref().map(<[u8; 33]>::as_slice) != Some(share.file.signed.set.k256_pubkey.as_slice()) {
        let cause = "the session is not signed by the root that this share belongs to";
        return Err(Failure::new("kms/bad-session", cause, "do not give the share away; check --admin"));
    }
    let status = kms.submit_drill_share(&share.submission(&session)?).await.map_err(Failure::rpc)?;
    report(&status, "The shares give the root of this KMS. It was compared and dropped.", output)
}

async fn restore(args: &RestoreArgs, output: Output) -> Outcome {
    let share = Share::open(&args.share)?;
    let kms = OnboardClient(client(&args.onboard, args.token_file.as_deref())?);
    let session = kms.open_restore(&BootstrapRequest { domain: args.domain.clone() }).await.map_err(Failure::rpc)?;
    if args.danger_unattested {
        output.warn("the share is given to a KMS that proved nothing");
    } else {
        check_evidence(args, &session).await?;
    }
    let status = kms.submit_restore_share(&share.submission(&session)?).await.map_err(Failure::rpc)?;
    report(&status, "The root is restored. Compare its keys, then finish the onboarding.", output)
}

/// The recipient must be of a machine with one of the named measurements.
async fn check_evidence(args: &RestoreArgs, session: &RecoverySession) -> Outcome {
    let refuse =
        |cause: String| Failure::new("kms/recipient-not-believed", cause, "do not give the share away; check --onboard and --measurement");
    let anchors = trust_anchors(args.simulated_root.as_deref())?;
    let collateral = CollateralClient::new(&args.collateral_url)?.with_tls(dstack_rpc::system_tls());
    let verifier = Arc::new(EvidenceVerifier::new(Verifier::new(anchors, Policy::default()), collateral, VerificationLimits::default()));
    let mut report_data = [0; 64];
    let (head, _) = report_data.split_at_mut(32);
    head.copy_from_slice(&recovery_session_digest(&session.session_id, &session.recipient));
    if session.attestation.is_empty() {
        return Err(refuse("the KMS shows no evidence".to_owned()));
    }
    let evidence = verifier.of_envelope(&session.attestation, &report_data, unix_seconds()).await?;
    let measured = evidence.mr_aggregated(MrScope::Runtime).map(hex::encode).unwrap_or_default();
    if args.measurements.iter().any(|expected| expected.trim().eq_ignore_ascii_case(&measured)) {
        return Ok(());
    }
    Err(refuse(format!("the KMS measures {measured}, which is none of those named")))
}

fn trust_anchors(simulated_root: Option<&Path>) -> Outcome<TrustAnchors> {
    let anchors = TrustAnchors::hardware();
    let Some(path) = simulated_root else { return Ok(anchors) };
    let trusted = anchors.danger_simulated_root(read_certificate(path)?.to_vec());
    trusted.map_err(|error| {
        Failure::new("kms/bad-ca", format!("{}: {error}", path.display()), "name the root certificate of the software TEE")
    })
}

fn report(status: &ShareStatus, done: &str, output: Output) -> Outcome {
    output.result(status, |palette| {
        if !status.is_complete {
            let missing = status.threshold.saturating_sub(status.received);
            return format!(
                "Share {} of {} received; {missing} more custodians are needed within the hour.",
                status.received, status.threshold
            );
        }
        let rows = [("root CA key", hex::encode(&status.ca_pubkey)), ("k256 key", hex::encode(&status.k256_pubkey))];
        format!("{done}\n{}", fields(palette, &rows))
    })
}
