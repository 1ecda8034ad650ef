//! Shares of the root: made, drilled with nothing written, and brought back where there is no root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests panic on purpose")]

mod testbed;

use std::path::Path;

use age::x25519::{Identity, Recipient};
use dstack_api::{
    RpcError,
    kms::{
        AdminClient, BootstrapRequest, CreateRecoveryRequest, Empty, GetAppKeyRequest, OnboardClient, RecoverySession, ShareStatus,
        SubmitShareRequest,
    },
};
use dstack_key_hierarchy::{ShareFile, recover, recovery_session_digest};
use dstack_kms::{
    OnboardingServer, Server,
    config::{ConfigFile, FirstStart, Settings},
};
use dstack_rpc::{Client, Endpoint};
use dstack_testkit::software_tee::Running;
use testbed::Stack;

const TOKEN: &str = "0123456789abcdef0123";

struct Kms {
    url: String,
    admin: AdminClient<Client>,
    _running: Running,
}

async fn start(stack: &Stack, mut file: ConfigFile) -> Kms {
    std::fs::write(stack.path("admin-token"), TOKEN).unwrap();
    file.admin.listen = Some(([127, 0, 0, 1], 0).into());
    file.admin.token_file = Some(stack.path("admin-token"));
    let server = Server::open(Settings::check(file, Path::new("kms.toml")).unwrap()).await.unwrap();
    let url = format!("https://{}/prpc", server.local_addr().unwrap());
    let admin = format!("http://{}/prpc", server.admin_addr().unwrap());
    let admin = AdminClient(Client::new(Endpoint::parse(&admin).unwrap()).with_bearer(TOKEN));
    Kms { url, admin, _running: Running::start(|stopped| async move { server.run(async { drop(stopped.await) }).await.unwrap() }) }
}

/// Custodians with their files.
struct Custodians(Vec<(Identity, String)>);

impl Custodians {
    async fn of(kms: &Kms, threshold: u32, count: usize) -> Self {
        let identities: Vec<Identity> = (0..count).map(|_| Identity::generate()).collect();
        let recipients = identities.iter().map(|identity| identity.to_public().to_string()).collect();
        let answer = kms.admin.create_recovery(&CreateRecoveryRequest { threshold, recipients }).await.unwrap();
        Self(identities.into_iter().zip(answer.share_files).collect())
    }

    /// What custodian `index` sends to a session.
    fn submission(&self, index: usize, session: &RecoverySession) -> SubmitShareRequest {
        let (identity, text) = &self.0[index];
        let share = age::decrypt(identity, &ShareFile::parse(text).unwrap().share).unwrap();
        let recipient: Recipient = session.recipient.parse().unwrap();
        let share = age::encrypt(&recipient, &share).unwrap();
        SubmitShareRequest { session_id: session.session_id.clone(), share_file: text.clone(), share }
    }
}

async fn drill(kms: &Kms, custodians: &Custodians, index: usize) -> Result<ShareStatus, RpcError> {
    let session = kms.admin.open_drill(&Empty {}).await?;
    kms.admin.submit_drill_share(&custodians.submission(index, &session)).await
}

fn files_of(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|path| (path.display().to_string(), std::fs::read(path).unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_proves_the_shares_and_writes_nothing() {
    let stack = Stack::start().await;
    let kms = start(&stack, stack.settings()).await;
    let custodians = Custodians::of(&kms, 2, 3).await;
    let root_scalar = hex::encode(std::fs::read(stack.path("kms/root-k256.key")).unwrap());
    assert!(custodians.0.iter().all(|(_, text)| !text.contains(&root_scalar)));
    let before = files_of(&stack.path("kms"));

    let session = kms.admin.open_drill(&Empty {}).await.unwrap();
    let first = drill(&kms, &custodians, 2).await.unwrap();
    let again = drill(&kms, &custodians, 2).await.unwrap();
    let second = drill(&kms, &custodians, 0).await.unwrap();

    assert_eq!((first.received, first.threshold, first.is_complete), (1, 2, false));
    assert_eq!((again.received, again.is_complete), (1, false), "one custodian counts once");
    assert_eq!((second.received, second.is_complete), (2, true));
    let signer = recover(&recovery_session_digest(&session.session_id, &session.recipient), &session.signature).unwrap();
    assert_eq!(signer.as_slice(), second.k256_pubkey);
    assert_eq!(files_of(&stack.path("kms")), before);
    let over = kms.admin.submit_drill_share(&custodians.submission(1, &session)).await.unwrap_err();
    assert_eq!(over.code, "kms/recovery-session", "a session ends with its drill");
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_that_do_not_belong_are_refused() {
    let stack = Stack::start().await;
    let kms = start(&stack, stack.settings()).await;
    let (custodians, others) = (Custodians::of(&kms, 2, 3).await, Custodians::of(&kms, 2, 3).await);
    let strangers = Stack::start().await;
    let stranger = start(&strangers, strangers.settings()).await;
    let foreign = Custodians::of(&stranger, 2, 2).await;
    let session = kms.admin.open_drill(&Empty {}).await.unwrap();
    let submit = async |request: SubmitShareRequest| kms.admin.submit_drill_share(&request).await;
    assert_eq!(submit(foreign.submission(0, &session)).await.unwrap_err().code, "kms/recovery-other-set");
    assert!(submit(custodians.submission(0, &session)).await.is_ok());

    assert_eq!(submit(others.submission(1, &session)).await.unwrap_err().code, "kms/recovery-other-set");
    let good = custodians.submission(1, &session);
    let swapped = SubmitShareRequest { share: custodians.submission(2, &session).share, ..good.clone() };
    assert_eq!(submit(swapped).await.unwrap_err().code, "kms/recovery-share");
    let elsewhere = RecoverySession { recipient: Identity::generate().to_public().to_string(), ..session.clone() };
    assert_eq!(submit(custodians.submission(1, &elsewhere)).await.unwrap_err().code, "kms/recovery-session");
    let changed = SubmitShareRequest { share_file: good.share_file.replace("\"threshold\": 2", "\"threshold\": 3"), ..good.clone() };
    assert_eq!(submit(changed).await.unwrap_err().code, "kms/recovery-share");
    let late = SubmitShareRequest { session_id: "00".into(), ..good.clone() };
    assert_eq!(submit(late).await.unwrap_err().code, "kms/recovery-session");
    assert!(submit(good).await.unwrap().is_complete);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_make_no_sense_are_refused() {
    let stack = Stack::start().await;
    let kms = start(&stack, stack.settings()).await;
    let recipients: Vec<String> = (0..3).map(|_| Identity::generate().to_public().to_string()).collect();
    let create = async |threshold, recipients: &[String]| {
        kms.admin.create_recovery(&CreateRecoveryRequest { threshold, recipients: recipients.to_vec() }).await.map(|_| ()).unwrap_err().code
    };

    assert_eq!(create(1, &recipients).await, "kms/recovery-share");
    assert_eq!(create(4, &recipients).await, "kms/recovery-share");
    assert_eq!(create(2, &["age1nobody".into(), "x".into()]).await, "kms/recovery-recipient");
    assert_eq!(create(2, &[recipients[0].clone(), recipients[0].clone()]).await, "kms/recovery-share");
}

#[tokio::test(flavor = "multi_thread")]
async fn custodians_bring_the_root_back_on_another_machine() {
    let stack = Stack::start().await;
    let (lost, fresh) = (stack.machine("lost").await, stack.machine("fresh").await);
    stack.allow_kms(&[&testbed::Guest::new(1)], &lost.mr_aggregated);
    let kms = start(&stack, stack.settings_on(&lost)).await;
    let custodians = Custodians::of(&kms, 2, 3).await;
    let request = GetAppKeyRequest { api_version: 1, ..GetAppKeyRequest::default() };
    let mut before = testbed::connect(&kms.url, &stack.guest(1)).await.get_app_key(&request).await.unwrap();
    drop(kms);
    let mut file = stack.settings_on(&fresh);
    file.onboard.first_start = FirstStart::Wait;
    file.onboard.listen = ([127, 0, 0, 1], 0).into();
    let waiting = OnboardingServer::open(&Settings::check(file.clone(), Path::new("kms.toml")).unwrap()).await.unwrap().unwrap();
    let calls = OnboardClient(Client::new(Endpoint::parse(&format!("http://{}/prpc", waiting.local_addr().unwrap())).unwrap()));
    let run = tokio::spawn(waiting.run(std::future::pending()));

    let session = calls.open_restore(&BootstrapRequest { domain: "kms.test".into() }).await.unwrap();
    assert!(!session.attestation.is_empty(), "custodians can tell to whom they give their shares");
    let first = calls.submit_restore_share(&custodians.submission(2, &session)).await.unwrap();
    assert!(!first.is_complete && !stack.path("fresh-kms").exists());
    let second = calls.submit_restore_share(&custodians.submission(1, &session)).await.unwrap();
    assert!(second.is_complete);
    let again = calls.open_restore(&BootstrapRequest { domain: "kms.test".into() }).await.unwrap_err();
    assert_eq!(again.code, "kms/keys-exist");

    calls.finish(&Empty {}).await.unwrap();
    run.await.unwrap();
    let kms = stack.kms_with(file).await;
    let mut after = kms.connect(&stack.guest(1)).await.get_app_key(&request).await.unwrap();
    // The certificate is made anew, and each release has a proof of its own.
    for keys in [&mut before, &mut after] {
        (keys.ca_cert, keys.release_proof) = (String::new(), String::new());
    }
    assert_eq!(before, after);
}
