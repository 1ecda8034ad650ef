//! The `Vmm` service: converts, delegates, and writes down who changed what.

use std::sync::Arc;

use dstack_api::{
    RpcError,
    kms::KmsClient,
    vmm::{
        AppId, ComposeHash as ComposeHashMessage, Empty, GatewaySettings, GetInfoResponse, GetMetaResponse, Id, ImageInfo,
        ImageListResponse, KmsSettings, ListGpusResponse, NetworkingCapabilities, PublicKeyResponse, PullRegistryImageRequest,
        RegistryImageListResponse, ReloadVmsResponse, ResizeVmRequest, ResourcesSettings, StatusRequest, StatusResponse, SvListResponse,
        UpdateVmRequest, VersionResponse, VmConfiguration, VmmRpc,
    },
};
use dstack_manifest::ComposeHash;
use dstack_rpc::{Caller, Client, Endpoint};

use crate::{Accelerator, Vmm, VmmError, status::describe_process, tls::kms_client};

/// Methods that change nothing.
pub(crate) const READ_ONLY: &[&str] =
    &["Status", "ListImages", "GetInfo", "Version", "GetMeta", "ListGpus", "SvList", "ListRegistryImages"];
const LATER: &str = "see services/vmm/README.md for what is implemented";

/// The service.
pub(crate) struct Api(pub(crate) Arc<Vmm>);

impl Api {
    /// Records the outcome of a change.
    fn audited<T>(&self, caller: &Caller, action: &str, subject: &str, result: Result<T, VmmError>) -> Result<T, RpcError> {
        let outcome = match &result {
            Ok(_) => "ok".to_owned(),
            Err(error) => dstack_api::UserFacing::code(error).to_owned(),
        };
        let subject = dstack_service::text::clean(subject, 64);
        tracing::info!(request_id = caller.request_id, action, subject, outcome, "change");
        if let Err(error) = self.0.database.audit(&caller.request_id, &format!("{:?}", caller.peer), action, &subject, &outcome) {
            tracing::error!(%error, "audit entry not written");
        }
        result.map_err(RpcError::from)
    }

    fn kms(&self) -> Result<KmsClient<Client>, VmmError> {
        let config = &self.0.config;
        if config.kms_url.is_empty() {
            return Err(VmmError::field("kms_url", "this node has no KMS configured"));
        }
        let endpoint = Endpoint::parse_service(&config.kms_url).map_err(|error| VmmError::field("kms_url", error.to_string()))?;
        let client = Client::new(endpoint);
        let is_https = config.kms_url.starts_with("https:");
        Ok(KmsClient(if is_https { client.with_tls(kms_client(&config.kms_ca_file)?) } else { client }))
    }

    fn list(&self) -> Result<Vec<ImageInfo>, VmmError> {
        let mut images = Vec::new();
        for entry in self.0.images.list()? {
            let image = match entry.image {
                Ok(image) => image,
                Err(error) => {
                    tracing::warn!(image = entry.name, %error, "image cannot be used");
                    continue;
                }
            };
            let metadata = image.metadata();
            let description = serde_json::to_string(metadata).map_err(|error| VmmError::Internal(error.to_string()))?;
            images.push(ImageInfo { name: entry.name, description, version: metadata.version.clone(), is_dev: metadata.is_dev });
        }
        Ok(images)
    }
}

impl VmmRpc for Api {
    type Caller = Caller;

    async fn create_vm(&self, caller: Caller, request: VmConfiguration) -> Result<Id, RpcError> {
        let name = request.name.clone();
        let result = self.0.create(request).await;
        let subject = result.as_deref().unwrap_or(&name).to_owned();
        self.audited(&caller, "CreateVm", &subject, result).map(|id| Id { id })
    }

    async fn start_vm(&self, caller: Caller, Id { id }: Id) -> Result<Empty, RpcError> {
        let result = self.0.start(&id).await;
        self.audited(&caller, "StartVm", &id, result).map(|()| Empty {})
    }

    async fn stop_vm(&self, caller: Caller, Id { id }: Id) -> Result<Empty, RpcError> {
        let result = self.0.stop(&id).await;
        self.audited(&caller, "StopVm", &id, result).map(|()| Empty {})
    }

    async fn remove_vm(&self, caller: Caller, Id { id }: Id) -> Result<Empty, RpcError> {
        let result = self.0.remove(&id).await;
        self.audited(&caller, "RemoveVm", &id, result).map(|()| Empty {})
    }

    async fn shutdown_vm(&self, caller: Caller, Id { id }: Id) -> Result<Empty, RpcError> {
        let result = self.0.shut_down(&id).await;
        self.audited(&caller, "ShutdownVm", &id, result).map(|()| Empty {})
    }

    async fn upgrade_app(&self, _: Caller, _: UpdateVmRequest) -> Result<Id, RpcError> {
        Err(RpcError::not_implemented("UpgradeApp", LATER))
    }

    async fn update_vm(&self, _: Caller, _: UpdateVmRequest) -> Result<Id, RpcError> {
        Err(RpcError::not_implemented("UpdateVm", LATER))
    }

    async fn resize_vm(&self, _: Caller, _: ResizeVmRequest) -> Result<Empty, RpcError> {
        Err(RpcError::not_implemented("ResizeVm", LATER))
    }

    async fn get_compose_hash(&self, _: Caller, request: VmConfiguration) -> Result<ComposeHashMessage, RpcError> {
        Ok(ComposeHashMessage { hash: ComposeHash::of(request.compose_file.as_bytes()).to_string() })
    }

    async fn status(&self, _: Caller, request: StatusRequest) -> Result<StatusResponse, RpcError> {
        Ok(self.0.status(&request).await?)
    }

    async fn list_images(&self, _: Caller, _: Empty) -> Result<ImageListResponse, RpcError> {
        Ok(ImageListResponse { images: self.list()? })
    }

    async fn get_app_env_encrypt_pub_key(&self, _: Caller, AppId { app_id }: AppId) -> Result<PublicKeyResponse, RpcError> {
        let answer = self.kms()?.get_app_env_encrypt_pub_key(&dstack_api::kms::AppId { app_id, ..Default::default() }).await?;
        let dstack_api::kms::PublicKeyResponse { public_key, signature, timestamp, signature_v1, epoch: _ } = answer;
        Ok(PublicKeyResponse { public_key, signature, timestamp, signature_v1 })
    }

    async fn get_info(&self, _: Caller, Id { id }: Id) -> Result<GetInfoResponse, RpcError> {
        let info = self.0.info(&id).await?;
        Ok(GetInfoResponse { found: info.is_some(), info })
    }

    async fn version(&self, _: Caller, _: Empty) -> Result<VersionResponse, RpcError> {
        Ok(VersionResponse { version: env!("CARGO_PKG_VERSION").to_owned(), rev: String::new() })
    }

    async fn get_meta(&self, _: Caller, _: Empty) -> Result<GetMetaResponse, RpcError> {
        let config = &self.0.config;
        let (accelerator, accelerator_reason) = match self.0.accelerator_if_known() {
            Some(probed) => (if probed.accelerator == Accelerator::Kvm { "kvm" } else { "tcg" }, probed.reason.clone()),
            None => ("", "not probed yet".to_owned()),
        };
        let first = |urls: &[String]| urls.first().cloned().unwrap_or_default();
        Ok(GetMetaResponse {
            kms: Some(KmsSettings { url: first(&config.cvm.kms_urls), urls: config.cvm.kms_urls.clone() }),
            gateway: Some(GatewaySettings {
                url: first(&config.cvm.gateway_urls),
                base_domain: config.gateway.base_domain.clone(),
                port: config.gateway.port.into(),
                agent_port: config.gateway.agent_port.into(),
                urls: config.cvm.gateway_urls.clone(),
            }),
            resources: Some(ResourcesSettings {
                max_cvm_number: config.cvm.cid_pool_size,
                max_allocable_vcpu: self.0.limits.vcpus,
                max_allocable_memory_in_mb: self.0.limits.memory_mib,
            }),
            networking: Some(NetworkingCapabilities {
                supported_modes: vec!["user".to_owned()],
                default_mode: "user".to_owned(),
                default_bridge: String::new(),
            }),
            accelerator: accelerator.to_owned(),
            accelerator_reason,
        })
    }

    async fn list_gpus(&self, _: Caller, _: Empty) -> Result<ListGpusResponse, RpcError> {
        Err(RpcError::not_implemented("ListGpus", LATER))
    }

    async fn reload_vms(&self, _: Caller, _: Empty) -> Result<ReloadVmsResponse, RpcError> {
        Err(RpcError::not_implemented("ReloadVms", LATER))
    }

    async fn sv_list(&self, _: Caller, _: Empty) -> Result<SvListResponse, RpcError> {
        let processes = self.0.supervisor.list().await.map_err(VmmError::from)?;
        Ok(SvListResponse { processes: processes.into_iter().map(describe_process).collect() })
    }

    async fn sv_stop(&self, _: Caller, _: Id) -> Result<Empty, RpcError> {
        Err(RpcError::not_implemented("SvStop", "use StopVm; to stop a process behind the VMM's back, ask the supervisor"))
    }

    async fn sv_remove(&self, _: Caller, _: Id) -> Result<Empty, RpcError> {
        Err(RpcError::not_implemented("SvRemove", "use RemoveVm; to remove a process behind the VMM's back, ask the supervisor"))
    }

    async fn list_registry_images(&self, _: Caller, _: Empty) -> Result<RegistryImageListResponse, RpcError> {
        Err(RpcError::not_implemented("ListRegistryImages", LATER))
    }

    async fn pull_registry_image(&self, _: Caller, _: PullRegistryImageRequest) -> Result<Empty, RpcError> {
        Err(RpcError::not_implemented("PullRegistryImage", "build the image with `dstack os build`"))
    }

    async fn delete_image(&self, _: Caller, _: Id) -> Result<Empty, RpcError> {
        Err(RpcError::not_implemented("DeleteImage", LATER))
    }
}
