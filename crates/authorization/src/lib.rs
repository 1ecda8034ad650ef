//! May this measured boot have keys? One policy core, and where the policy comes from.
//!
//! ```text
//! attestation::VerifiedEvidence ──▶ BootFacts ──▶ Authorizer ──▶ Backend (allow list, webhook) ──▶ AuthorizedBoot | Denial
//! ```
//! [`AuthorizedBoot`] can only be made here and only from verified evidence; key release takes nothing else. What no backend may
//! waive is decided before one is asked ([`BootFacts::check_app`], [`BootFacts::check_kms`]); a backend that is slow, absent, stale or
//! not understood is a no. The default backend is the allow list, a checked TOML file ([`AllowList`]) that is read again when it
//! changes ([`WatchedAllowList`]) and edited by plan and save ([`AllowListFile`]); [`Webhook`] asks an HTTP service. The `onchain`
//! backend does not exist yet.

mod allow_list;
mod answer;
mod authorizer;
mod backend;
mod changes;
mod decide;
mod denial;
mod document;
mod edit;
mod facts;
mod watch;
mod webhook;
mod wire;

pub use allow_list::{AllowList, AllowListError, AllowedApp, Devices, MAX_ALLOW_LIST_BYTES};
pub use answer::{answer, server_info};
pub use authorizer::{AuthorizedBoot, AuthorizedKms, Authorizer, AuthorizerLimits};
pub use backend::{Backend, Decision, Permission, Subject};
pub use decide::RuleOutcome;
pub use denial::Denial;
pub use edit::{AllowListFile, Change, Edit, EditError, Plan};
pub use facts::BootFacts;
pub use watch::WatchedAllowList;
pub use webhook::Webhook;
pub use wire::{FactsError, boot_info, parse_boot_info};
