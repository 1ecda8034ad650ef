//! This machine's own TEE.

use dstack_attestation::ReportData;
use dstack_attester::{Attester, AttesterError, Options, SealingKey};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::{config::Settings, server::StartError};

/// The TEE this KMS runs in, if it runs in one.
pub(crate) struct Tee {
    attester: Option<Attester>,
    sys_config: String,
}

impl Tee {
    /// Finds it.
    ///
    /// Errors: there is none, and running without is not allowed; the VM's configuration cannot be read.
    pub(crate) fn open(settings: &Settings) -> Result<Self, StartError> {
        let danger = &settings.file.danger;
        let options = Options {
            log_directory: settings.file.tee.runtime_log.clone(),
            // Never the usual address: a software TEE is used only where the configuration names one.
            simulated_endpoint: danger.simulated_tee.clone().unwrap_or_default(),
            ..Options::default()
        };
        let attester = match blocking(|| Attester::open(&options)) {
            Ok(attester) => Some(attester),
            Err(error) if danger.run_without_tee && danger.simulated_tee.is_none() => {
                tracing::warn!(setting = "danger.run_without_tee", %error, "no TEE protects the root keys from the owner of this machine");
                None
            }
            Err(source) => return Err(StartError::NoTee { source }),
        };
        let sys_config = match &settings.file.tee.sys_config {
            Some(path) => std::fs::read_to_string(path).map_err(|source| StartError::SysConfig { path: path.clone(), source })?,
            None => "{}".to_owned(),
        };
        Ok(Self { attester, sys_config })
    }

    /// No TEE at all.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self { attester: None, sys_config: String::new() }
    }

    /// Evidence over `report_data` as an encoded stripped envelope; none without a TEE.
    ///
    /// Errors: there is a TEE and it gives no evidence.
    pub(crate) fn attest(&self, report_data: &ReportData) -> Result<Option<Vec<u8>>, AttesterError> {
        let Some(attester) = &self.attester else { return Ok(None) };
        let quoted = blocking(|| attester.quote(report_data, &self.sys_config))?;
        Ok(Some(quoted.attestation.stripped().encode()))
    }

    /// A raw quote over `report_data`; none without a TEE.
    pub(crate) fn quote(&self, report_data: &ReportData) -> Option<Result<Vec<u8>, AttesterError>> {
        let attester = self.attester.as_ref()?;
        Some(blocking(|| attester.quote(report_data, "{}")).map(|quoted| quoted.quote))
    }

    /// The TEE's own key for `label`; none without a TEE.
    pub(crate) fn sealing_key(&self, label: &str) -> Option<Result<SealingKey, AttesterError>> {
        let attester = self.attester.as_ref()?;
        Some(blocking(|| attester.sealing_key(label)))
    }
}

/// Devices answer when they like: other tasks of this worker go on elsewhere.
pub(crate) fn blocking<T>(call: impl FnOnce() -> T) -> T {
    let can_move = Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
    if can_move { tokio::task::block_in_place(call) } else { call() }
}
