//! Where evidence comes from.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::{
    args::VmmArgs,
    failure::{EXIT_USAGE, Failure, Outcome},
    home::Home,
    stack::LocalStack,
    vms::{Vmm, agent_url},
};

/// What the user named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// A running app.
    Url {
        /// Its address.
        url: String,
        /// It runs on the local stack.
        is_local_stack: bool,
    },
    /// Saved evidence; `-` is stdin.
    File(PathBuf),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url { url, .. } => f.write_str(url),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Source {
    /// Reads a URL, a file's path, or the name of a VM of the local stack.
    ///
    /// Errors: it is none of them.
    pub(super) async fn find(text: &str, home: &Home) -> Outcome<Self> {
        if text.contains("://") {
            let is_local_stack = is_local_app(text, home).await;
            return Ok(Self::Url { url: text.to_owned(), is_local_stack });
        }
        if text == "-" || Path::new(text).exists() {
            return Ok(Self::File(text.into()));
        }
        if LocalStack::find(home)?.is_none() {
            let cause = format!("`{text}` is no URL and no file, and there is no local stack where it could be an app");
            return Err(Failure::usage(
                "verify/no-source",
                cause,
                "name a URL (https://…), an evidence file, or an app of the local stack",
            ));
        }
        let vmm = Vmm::connect(&VmmArgs { vmm: None, token_file: None })?;
        let vm = vmm.find(text).await.map_err(|failure| failure.with_exit(EXIT_USAGE))?;
        let url = agent_url(&vm).ok_or_else(|| {
            Failure::new("verify/no-agent-port", format!("the guest agent of {text} is not published"), "give the URL of the app instead")
        })?;
        Ok(Self::Url { url, is_local_stack: true })
    }
}

/// Whether `url` is a published port of a VM of the local stack. Where that cannot be found out, it is not.
async fn is_local_app(url: &str, home: &Home) -> bool {
    let Ok(Some(_)) = LocalStack::find(home) else { return false };
    let Some(authority) = url.split_once("://").and_then(|(_, rest)| rest.split('/').next()) else { return false };
    let Some((host, port)) = authority.rsplit_once(':') else { return false };
    if !matches!(host, "127.0.0.1" | "localhost" | "[::1]") {
        return false;
    }
    let Ok(vmm) = Vmm::connect(&VmmArgs { vmm: None, token_file: None }) else { return false };
    let Ok(vms) = vmm.vms().await else { return false };
    vms.iter()
        .flat_map(|vm| &vm.configuration)
        .flat_map(|configuration| &configuration.ports)
        .any(|mapping| mapping.host_port.to_string() == port)
}
