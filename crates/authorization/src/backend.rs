//! Where decisions come from.

use std::{fmt, pin::Pin, time::Duration};

use dstack_manifest::AppId;

use crate::{BootFacts, Denial, WatchedAllowList};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The keys of an app.
    App,
    /// A certificate of an app, for an instance that has its keys.
    Certificate,
    /// The root keys.
    Kms,
}

/// A yes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permission {
    /// The app that is the gateway for all apps, if there is one.
    pub gateway_app_id: Option<AppId>,
    /// Age of the view the decision rests on: zero for a source that was just read, more for a chain whose head lags behind.
    pub staleness: Duration,
}

/// A decision under way; it may take seconds.
pub type Decision<'a> = Pin<Box<dyn Future<Output = Result<Permission, Denial>> + Send + 'a>>;

/// A source of policy. [`Authorizer`](crate::Authorizer) sets deadline and concurrency, and checks what no source may waive.
pub trait Backend: Send + Sync + fmt::Debug {
    /// Name in logs and in the release log.
    fn name(&self) -> &'static str;

    /// Whether a boot with these facts may have what `subject` names. Asked only about verified evidence.
    fn decide<'a>(&'a self, subject: Subject, facts: &'a BootFacts) -> Decision<'a>;

    /// The gateway app as last known. Never asks anybody: strangers cause this call.
    fn gateway_app_id(&self) -> Option<AppId>;

    /// Whether evidence of a software TEE is accepted.
    fn accepts_simulated(&self) -> bool;
}

impl Backend for WatchedAllowList {
    fn name(&self) -> &'static str {
        "allow-list"
    }

    fn decide<'a>(&'a self, subject: Subject, facts: &'a BootFacts) -> Decision<'a> {
        let list = self.current();
        let decision = list.decide(subject, facts);
        let permission = decision.map(|()| Permission { gateway_app_id: list.gateway_app_id().copied(), staleness: Duration::ZERO });
        Box::pin(std::future::ready(permission))
    }

    fn gateway_app_id(&self) -> Option<AppId> {
        self.current().gateway_app_id().copied()
    }

    fn accepts_simulated(&self) -> bool {
        self.current().accepts_simulated()
    }
}
