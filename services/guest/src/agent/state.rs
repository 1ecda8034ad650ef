//! What all three APIs share.

use std::{path::PathBuf, sync::Arc};

use dstack_api::{
    RpcError,
    guest_agent::{AppInfo, WorkerVersion},
};

use super::{
    app_certificate::AppCertificate,
    application::Application,
    config::AgentConfig,
    evidence::{Asker, EvidenceDesk},
    tcb_info::{TcbInfo, device_id},
    tls_key::TlsDesk,
};

/// The agent's state.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) application: Arc<Application>,
    pub(crate) evidence: Arc<EvidenceDesk>,
    pub(crate) tls: Arc<TlsDesk>,
    pub(crate) certificate: AppCertificate,
    pub(crate) config: AgentConfig,
}

impl State {
    pub(crate) fn new(config: AgentConfig, application: Arc<Application>, evidence: Arc<EvidenceDesk>) -> Self {
        let tls = Arc::new(TlsDesk::new(Arc::clone(&application), Arc::clone(&evidence)));
        Self { application, evidence, tls, certificate: AppCertificate::new(), config }
    }

    pub(crate) async fn tcb_info(&self, asker: Asker) -> Result<TcbInfo, RpcError> {
        let fields = self.evidence.td_fields().await?.clone();
        TcbInfo::new(fields, self.evidence.events(asker).await?)
    }

    /// `Info`; strangers get registers, log and configuration only if the application allows it.
    pub(crate) async fn info(&self, asker: Asker) -> Result<AppInfo, RpcError> {
        let application = &self.application;
        let tcb_info = self.tcb_info(asker).await?;
        let is_shown = asker == Asker::Inside || application.compose.document().public_tcbinfo;
        Ok(AppInfo {
            app_id: application.app_id.as_bytes().to_vec(),
            instance_id: application.instance_id.as_bytes().to_vec(),
            app_cert: self.certificate.get(&self.tls).await,
            tcb_info: if is_shown { tcb_info.render(application)? } else { String::new() },
            app_name: application.compose.document().name.clone(),
            device_id: device_id().to_vec(),
            mr_aggregated: tcb_info.mr_aggregated().to_vec(),
            os_image_hash: application.os_image_hash.clone(),
            key_provider_info: application.key_provider_info.clone(),
            compose_hash: application.compose.compose_hash().as_bytes().to_vec(),
            vm_config: if is_shown { application.sys_config.vm_config.clone() } else { String::new() },
            cloud_vendor: machine("sys_vendor"),
            cloud_product: machine("product_name"),
        })
    }
}

pub(crate) fn version() -> WorkerVersion {
    WorkerVersion { version: env!("CARGO_PKG_VERSION").to_owned(), rev: option_env!("DSTACK_GIT_REV").unwrap_or_default().to_owned() }
}

/// What the machine says it is. Set by the host.
fn machine(field: &str) -> String {
    let path = PathBuf::from("/sys/class/dmi/id").join(field);
    let text = std::fs::read_to_string(path).unwrap_or_default();
    crate::console::printable(&text).chars().take(128).collect()
}
