//! The operator's calls: who may, and epochs from rotation to the end of the window.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests panic on purpose")]

mod testbed;

use std::path::Path;

use base64::Engine as _;
use dstack_api::{
    RpcError,
    kms::{AdminClient, ClearImageCacheRequest, Empty, EpochList, RotateEpochRequest, SyncEpochsRequest},
};
use dstack_kms::{
    Server,
    config::{ConfigFile, Settings},
};
use dstack_rpc::{Client, Endpoint};
use dstack_testkit::software_tee::Running;
use testbed::{Stack, machine::Machine};

const TOKEN: &str = "0123456789abcdef0123";

struct Kms {
    url: String,
    admin: String,
    _running: Running,
}

impl Kms {
    async fn start(file: &ConfigFile) -> Self {
        let server = Server::open(Settings::check(file.clone(), Path::new("kms.toml")).unwrap()).await.unwrap();
        let url = format!("https://{}/prpc", server.local_addr().unwrap());
        let admin = format!("http://{}/prpc", server.admin_addr().unwrap());
        Self { url, admin, _running: Running::start(|stopped| async move { server.run(async { drop(stopped.await) }).await.unwrap() }) }
    }

    fn stranger(&self) -> Client {
        Client::new(Endpoint::parse(&self.admin).unwrap())
    }

    fn admin(&self) -> AdminClient<Client> {
        AdminClient(self.stranger().with_bearer(TOKEN))
    }
}

fn with_admin(stack: &Stack, mut file: ConfigFile) -> ConfigFile {
    std::fs::write(stack.path("admin-token"), TOKEN).unwrap();
    file.admin.listen = Some(([127, 0, 0, 1], 0).into());
    file.admin.token_file = Some(stack.path("admin-token"));
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_with_a_password_may_call_and_others_may_not() {
    let stack = Stack::start().await;
    let mut file = with_admin(&stack, stack.settings());
    // As libxcrypt computed it.
    std::fs::write(stack.path("htpasswd"), "alice:$2y$04$abcdefghijklmnopqrstuuPoaPXzWjiVz4HaNq2LJXksWbO79E.S6\n").unwrap();
    (file.admin.token_file, file.admin.htpasswd_file) = (None, Some(stack.path("htpasswd")));
    let kms = Kms::start(&file).await;
    let ask = async |credentials: Option<&str>| {
        let mut headers = http::HeaderMap::new();
        if let Some(credentials) = credentials {
            let value = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(credentials));
            headers.insert(http::header::AUTHORIZATION, value.parse().unwrap());
        }
        kms.stranger().request(http::Method::POST, "/prpc/Admin.GetEpochs", headers, Vec::new()).await.unwrap().status
    };

    assert_eq!(ask(Some("alice:correct-horse")).await, http::StatusCode::OK);
    for wrong in [None, Some("alice:correct"), Some("bob:correct-horse"), Some("alice"), Some(":")] {
        assert_eq!(ask(wrong).await, http::StatusCode::UNAUTHORIZED, "{wrong:?}");
    }
    assert!(kms.admin().get_epochs(&Empty {}).await.is_err(), "there is no token");
}

fn states(list: &EpochList) -> Vec<(u32, &str)> {
    list.epochs.iter().map(|epoch| (epoch.epoch, epoch.state.as_str())).collect()
}

async fn rotate(kms: &Kms, activate_in_seconds: u64, readable_for_seconds: u64) -> Result<EpochList, RpcError> {
    kms.admin().rotate_epoch(&RotateEpochRequest { activate_in_seconds, readable_for_seconds }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_needs_the_token() {
    let stack = Stack::start().await;
    let kms = Kms::start(&with_admin(&stack, stack.settings())).await;
    for client in [kms.stranger(), kms.stranger().with_bearer("0123456789abcdef0124")] {
        let client = AdminClient(client);

        assert_eq!(client.get_epochs(&Empty {}).await.unwrap_err().code, "kms/token");
        assert_eq!(client.clear_image_cache(&ClearImageCacheRequest::default()).await.unwrap_err().code, "kms/token");
    }
    assert!(kms.admin().get_epochs(&Empty {}).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn selectors_of_the_image_cache_are_hashes_or_everything() {
    let stack = Stack::start().await;
    let kms = Kms::start(&with_admin(&stack, stack.settings())).await;
    let clear = async |image_hash: &str, config_hash: &str| {
        kms.admin().clear_image_cache(&ClearImageCacheRequest { image_hash: image_hash.into(), config_hash: config_hash.into() }).await
    };

    for (image, config) in [("", ""), ("all", ""), ("", "all"), ("00ffAB", "12")] {
        assert!(clear(image, config).await.is_ok(), "{image:?} {config:?}");
    }
    for (image, config) in [("../x", ""), ("", "zz"), ("ALL", "")] {
        assert_eq!(clear(image, config).await.unwrap_err().code, "kms/cache-selector", "{image:?} {config:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_survives_a_restart() {
    let stack = Stack::start().await;
    let file = with_admin(&stack, stack.settings());
    let kms = Kms::start(&file).await;
    assert_eq!(states(&kms.admin().get_epochs(&Empty {}).await.unwrap()), [(1, "current")]);

    let announced = rotate(&kms, 3600, 600).await.unwrap();
    assert_eq!(states(&announced), [(1, "current"), (2, "announced")]);
    assert_eq!(announced.epochs[0].readable_until, announced.epochs[1].active_from + 600);
    assert_eq!(rotate(&kms, 0, 0).await.unwrap_err().code, "kms/epoch-pending");
    drop(kms);

    let kms = Kms::start(&file).await;
    assert_eq!(kms.admin().get_epochs(&Empty {}).await.unwrap(), announced);
}

async fn on(stack: &Stack, machine: &Machine) -> Kms {
    Kms::start(&with_admin(stack, stack.settings_on(machine))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_take_over_epochs_of_their_own_root_only() {
    let stack = Stack::start().await;
    let (one, two) = (stack.machine("one").await, stack.machine("two").await);
    stack.allow_kms(&[], &one.mr_aggregated);
    let first = on(&stack, &one).await;
    let stranger = on(&stack, &two).await;
    let request = |kms: &Kms| SyncEpochsRequest { source_url: kms.url.clone() };
    rotate(&first, 0, 600).await.unwrap();

    assert_eq!(stranger.admin().sync_epochs(&request(&first)).await.unwrap_err().code, "kms/other-root");

    // A replica by way of the sealed files: all machines of a stack have one sealing key.
    drop(stranger);
    std::fs::remove_dir_all(stack.path("two-kms")).unwrap();
    std::fs::create_dir(stack.path("two-kms")).unwrap();
    for name in ["root-ca.crt", "root-ca.key", "tmp-ca.crt", "tmp-ca.key", "rpc.crt", "rpc.key", "root-k256.key"] {
        std::fs::copy(stack.path("one-kms").join(name), stack.path("two-kms").join(name)).unwrap();
    }
    let replica = on(&stack, &two).await;
    assert_eq!(states(&replica.admin().get_epochs(&Empty {}).await.unwrap()), [(1, "current")]);
    let merged = replica.admin().sync_epochs(&request(&first)).await.unwrap();
    assert_eq!(merged, first.admin().get_epochs(&Empty {}).await.unwrap());

    rotate(&first, 0, 600).await.unwrap();
    rotate(&replica, 0, 600).await.unwrap();
    assert_eq!(replica.admin().sync_epochs(&request(&first)).await.unwrap_err().code, "kms/epoch-fork");
}
