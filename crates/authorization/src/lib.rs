//! May this measured boot have keys? One policy core, and where the policy comes from.
//!
//! ```text
//! attestation::VerifiedEvidence ──▶ BootFacts ──▶ Authorizer (allow list) ──▶ AuthorizedBoot | Denial
//! ```
//! [`AuthorizedBoot`] can only be made here and only from verified evidence; key release takes nothing else. The default
//! source is the allow list, a checked TOML file ([`AllowList`]) that is read again when it changes ([`WatchedAllowList`])
//! and edited by plan and save ([`AllowListFile`]). The `onchain` and `webhook` sources do not exist yet.

mod allow_list;
mod authorizer;
mod decide;
mod denial;
mod document;
mod edit;
mod facts;
mod watch;

pub use allow_list::{AllowList, AllowListError, AllowedApp, Devices, MAX_ALLOW_LIST_BYTES};
pub use authorizer::{AuthorizedBoot, AuthorizedKms, Authorizer};
pub use denial::Denial;
pub use edit::{AllowListFile, Change, Edit, EditError, Plan};
pub use facts::BootFacts;
pub use watch::WatchedAllowList;
