//! The local stack as the other commands see it.

use std::{net::Ipv4Addr, path::PathBuf};

use dstack_authorization::AllowListFile;
use dstack_rpc::{Client, Endpoint};

use super::{configs, settings::Settings};
use crate::{
    failure::{Failure, Outcome},
    home::Home,
};

/// A stack that was started once on this machine.
#[derive(Debug, Clone)]
pub(crate) struct LocalStack {
    home: Home,
    settings: Settings,
}

impl LocalStack {
    /// The stack in `home`, if one was ever started there.
    ///
    /// Errors: its settings cannot be read.
    pub(crate) fn find(home: &Home) -> Outcome<Option<Self>> {
        Ok(Settings::load(home)?.map(|settings| Self { home: home.clone(), settings }))
    }

    /// The stack in `home`.
    ///
    /// Errors: there is none.
    pub(crate) fn must_find(home: &Home) -> Outcome<Self> {
        Self::find(home)?.ok_or_else(|| {
            let cause = format!("there is no local stack in {}", home.root().display());
            Failure::new("stack/none", cause, "start one with `dstack up`, or name a VMM with --vmm URL")
        })
    }

    /// Its home.
    #[must_use]
    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    /// The VMM's API with its token.
    ///
    /// Errors: the token cannot be read.
    pub(crate) fn vmm(&self) -> Outcome<Client> {
        let path = configs::token_file(&self.home);
        let token = std::fs::read_to_string(&path).map_err(|error| Failure::io("reading", &path, &error))?;
        Ok(Client::new(Endpoint::parse_service(&self.vmm_url())?).with_bearer(&token))
    }

    /// Address of the VMM.
    #[must_use]
    pub(crate) fn vmm_url(&self) -> String {
        format!("http://{}:{}", Ipv4Addr::LOCALHOST, self.settings.vmm_port)
    }

    /// Address of the KMS as this machine reaches it.
    #[must_use]
    pub(crate) fn kms_url(&self) -> String {
        format!("https://{}:{}/prpc", Ipv4Addr::LOCALHOST, self.settings.kms_port)
    }

    /// Root certificate of the KMS, PEM.
    #[must_use]
    pub(crate) fn kms_ca(&self) -> PathBuf {
        configs::kms_ca(&self.home)
    }

    /// Who gets keys.
    #[must_use]
    pub(crate) fn allow_list(&self) -> AllowListFile {
        AllowListFile::new(configs::allow_list(&self.home))
    }

    /// OS images of the VMM.
    #[must_use]
    pub(crate) fn images(&self) -> PathBuf {
        self.settings.images.clone()
    }
}
