//! A guest whose `dstack-init` has done its part, with a running agent.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc};

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use dstack_attester::{Attester, Options};
use dstack_event_log::{Event, EventVersion, Registers, names, replay};
use dstack_guest::{
    agent::{Agent, AgentConfig, AgentError},
    app_keys::AppKeysDocument,
};
use dstack_manifest::{AppCompose, AppComposeDocument, AppId, InstanceId, KeyProviderKind, SysConfig, VmConfig};
use dstack_rpc::{Client, Endpoint};
use serde_json::Value;
use tempfile::TempDir;

use crate::tee::{Td, must_serve};

/// Keys of the published vectors.
pub(crate) const PUBLISHED_KEYS: &str = include_str!("../../../../crates/key-hierarchy/testdata/simulator-appkeys.json");
pub(crate) const APP_ID: &str = "5bb4ff9a3837357f19dc176407a5709c62eb6c56";

/// What differs between tests.
pub(crate) struct Setup {
    pub(crate) document: AppComposeDocument,
    pub(crate) keys: String,
    pub(crate) kms_urls: Vec<String>,
    pub(crate) is_ready: bool,
    /// What is on disk instead of the measured document.
    pub(crate) other_compose: Option<Vec<u8>>,
}

impl Default for Setup {
    fn default() -> Self {
        let mut document = AppComposeDocument::for_docker_compose("hello <b>", "services: {}\n");
        document.set_key_provider(KeyProviderKind::None);
        Self { document, keys: PUBLISHED_KEYS.to_owned(), kms_urls: Vec::new(), is_ready: true, other_compose: None }
    }
}

pub(crate) struct Guest {
    directory: TempDir,
    pub(crate) td: Arc<Td>,
    pub(crate) compose: AppCompose,
    pub(crate) public: SocketAddr,
    inside: Client,
    host: Client,
}

impl Guest {
    pub(crate) async fn start(setup: Setup) -> Result<Self, AgentError> {
        let directory = tempfile::tempdir().unwrap();
        let (td, device) = (Td::new(), directory.path().join("tee.sock"));
        must_serve(Arc::clone(&td), &device).await;
        let options = Options {
            log_directory: directory.path().join("log"),
            simulated_endpoint: format!("unix:{}", device.display()),
            ..Options::default()
        };
        let attester = tokio::task::spawn_blocking(move || Attester::open(&options).unwrap()).await.unwrap();
        let compose = AppCompose::from_document(setup.document.clone()).unwrap();
        let config = config_below(&directory);
        must_write_share(&config, &setup, &compose);
        let attester = tokio::task::spawn_blocking({
            let (setup_ready, compose, keys) = (setup.is_ready, compose.clone(), config.share.join(".appkeys.json"));
            move || {
                must_measure(&attester, &compose, &AppKeysDocument::load(&keys).unwrap(), setup_ready);
                attester
            }
        });
        let agent = Agent::open(config.clone(), Arc::new(attester.await.unwrap())).await?;
        let public = agent.addresses().public;
        tokio::spawn(agent.serve(std::future::pending()));
        let unix = |path: &PathBuf| Client::new(Endpoint::parse(&format!("unix:{}", path.display())).unwrap());
        let inside = unix(config.sockets.first().unwrap());
        let host = unix(config.host_socket.as_ref().unwrap());
        Ok(Self { directory, td, compose, public, inside, host })
    }

    pub(crate) async fn must_start() -> Self {
        Self::start(Setup::default()).await.unwrap()
    }

    pub(crate) fn config(&self) -> AgentConfig {
        config_below(&self.directory)
    }

    /// A file in this guest's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A call as a container makes it.
    pub(crate) async fn call(&self, method: &str, body: Value) -> (StatusCode, Value) {
        post(&self.inside, &format!("/{method}"), body).await
    }

    pub(crate) async fn must_call(&self, method: &str, body: Value) -> Value {
        let (status, answer) = self.call(method, body).await;
        assert_eq!(status, StatusCode::OK, "{method}: {answer}");
        answer
    }

    /// The error text of a call that must fail.
    pub(crate) async fn must_refuse(&self, method: &str, body: Value) -> String {
        let (status, answer) = self.call(method, body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{method}: {answer}");
        assert!(!answer["code"].as_str().unwrap().is_empty() && !answer["fix"].as_str().unwrap().is_empty(), "{answer}");
        answer["error"].as_str().unwrap().to_owned()
    }

    /// A call as the host makes it.
    pub(crate) async fn host(&self, method: &str) -> (StatusCode, Value) {
        post(&self.host, &format!("/api/{method}"), Value::Null).await
    }

    /// A `GET` as a stranger makes it.
    pub(crate) async fn get(&self, path: &str) -> (StatusCode, HeaderMap, String) {
        let client = Client::new(Endpoint::parse(&format!("http://{}", self.public)).unwrap());
        let answer = client.get(path).await.unwrap();
        (answer.status, answer.headers, String::from_utf8(answer.body).unwrap())
    }

    pub(crate) async fn get_json(&self, path: &str) -> (StatusCode, Value) {
        let (status, _, body) = self.get(path).await;
        (status, serde_json::from_str(&body).unwrap())
    }
}

async fn post(client: &Client, path: &str, body: Value) -> (StatusCode, Value) {
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    let answer = client.request(Method::POST, path, headers, serde_json::to_vec(&body).unwrap()).await.unwrap();
    (answer.status, serde_json::from_slice(&answer.body).unwrap())
}

fn config_below(directory: &TempDir) -> AgentConfig {
    let below = |name: &str| directory.path().join(name);
    AgentConfig {
        share: below("share"),
        sockets: vec![below("run/dstack/dstack.sock"), below("run/dstack.sock")],
        public_address: SocketAddr::from(([127, 0, 0, 1], 0)),
        host_port: 0,
        host_socket: Some(below("host.sock")),
        docker_socket: below("docker.sock"),
        control_socket: below("control.sock"),
        os_release: "/etc/os-release".into(),
        ..AgentConfig::default()
    }
}

fn must_write_share(config: &AgentConfig, setup: &Setup, compose: &AppCompose) {
    let vm_config = VmConfig {
        spec_version: 1,
        cpu_count: 1,
        memory_size: 1 << 31,
        simulated_tee: Some("dstack-tdx".to_owned()),
        ..VmConfig::default()
    };
    let sys_config =
        SysConfig { kms_urls: setup.kms_urls.clone(), vm_config: serde_json::to_string(&vm_config).unwrap(), ..SysConfig::default() };
    fs::create_dir(&config.share).unwrap();
    fs::write(config.share.join("app-compose.json"), setup.other_compose.as_deref().unwrap_or(compose.raw())).unwrap();
    fs::write(config.share.join(".sys-config.json"), serde_json::to_vec(&sys_config).unwrap()).unwrap();
    fs::write(config.share.join(".appkeys.json"), &setup.keys).unwrap();
}

/// The boot's events in their order.
fn must_measure(attester: &Attester, compose: &AppCompose, keys: &AppKeysDocument, is_ready: bool) {
    let version = if compose.document().event_log_version == 2 { EventVersion::V2 } else { EventVersion::V1 };
    let app_id: AppId = APP_ID.parse().unwrap();
    let instance_id = InstanceId::derive(&[9; 20], &app_id);
    let measure = |name: &str, payload: &[u8]| attester.extend_runtime_event(name, payload, version).unwrap();
    measure(names::SYSTEM_PREPARING, &[]);
    measure(names::APP_ID, app_id.as_bytes());
    measure(names::COMPOSE_HASH, compose.compose_hash().as_bytes());
    measure(names::INSTANCE_ID, instance_id.as_bytes());
    measure(names::BOOT_MR_DONE, &[]);
    measure(names::OS_IMAGE_HASH, &[0x55; 32]);
    measure(names::KEY_PROVIDER, keys.provider_info().as_bytes());
    measure(names::STORAGE_FS, b"ext4");
    if is_ready {
        measure(names::SYSTEM_READY, &[]);
    }
}

/// Replays a log from its digests alone, as clients do.
pub(crate) fn replay_digests(event_log: &str) -> Registers {
    let events: Vec<Event> = serde_json::from_str(event_log).unwrap();
    let mut registers = Registers::ZERO;
    for event in &events {
        let register = &mut registers.0[usize::try_from(event.imr).unwrap()];
        *register = dstack_event_log::extend(register, &event.digest.as_slice().try_into().unwrap());
    }
    assert_eq!(registers, replay(&events).unwrap(), "digests agree with names and payloads");
    registers
}
