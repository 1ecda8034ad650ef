//! The policy in force, from the settings.

use dstack_authorization::{AllowListError, Authorizer, AuthorizerLimits, WatchedAllowList, Webhook};

use crate::config::{PolicySource, Settings};

/// Opens the source of policy. A service that cannot be reached does not stop the start: each decision will ask it.
pub(crate) async fn open(settings: &Settings) -> Result<Authorizer, AllowListError> {
    match &settings.policy {
        PolicySource::AllowList(path) => Ok(Authorizer::allow_list(WatchedAllowList::open(path)?)),
        PolicySource::Webhook { endpoint, timeout } => {
            let webhook = Webhook::new(endpoint, *timeout, settings.file.danger.webhook_decides_simulated);
            // For GetMeta, which strangers call and which therefore asks nobody.
            if let Err(denial) = webhook.refresh().await {
                tracing::warn!(endpoint = %endpoint, error = %denial, "the policy service does not answer yet");
            }
            let limits = AuthorizerLimits { deadline: *timeout * 2, ..AuthorizerLimits::default() };
            Ok(Authorizer::new(webhook, limits))
        }
    }
}
