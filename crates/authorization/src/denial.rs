//! Why a boot gets no keys.

use dstack_api::{RpcError, UserFacing};
use dstack_manifest::{AppId, ComposeHash, Digest32, OsImageHash};

/// The policy's no. Each has a stable code for scripts and a cause for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Denial {
    /// Software TEE, and the policy does not accept it.
    #[error("the evidence is simulated and the policy does not accept simulated evidence")]
    Simulated,
    /// Patch level.
    #[error("platform TCB status {status} is not allowed")]
    TcbStatus {
        /// As the vendor says.
        status: String,
    },
    /// A rejected advisory applies.
    #[error("advisory {advisory} applies to the platform and is rejected")]
    Advisory {
        /// Its id.
        advisory: String,
    },
    /// The registers are not those of a named image.
    #[error("the evidence names no OS image that its registers agree with")]
    OsImageUnknown,
    /// Image not on the list.
    #[error("OS image {hash} is not allowed")]
    OsImage {
        /// The measured image.
        hash: OsImageHash,
    },
    /// The event log lacks app id or compose hash.
    #[error("the evidence names no application")]
    NoApplication,
    /// `boot-mr-done` is missing from the event log.
    #[error("the event log does not reach the end of the boot measurements")]
    BootIncomplete,
    /// The evidence was made after the guest got its keys, so an application may have asked for it.
    #[error("the evidence is from after the boot, when applications can ask for quotes")]
    AfterBoot,
    /// App not on the list.
    #[error("app {app_id} is not allowed")]
    App {
        /// The measured app.
        app_id: AppId,
    },
    /// Document not on the app's list.
    #[error("compose hash {compose_hash} is not allowed for app {app_id}")]
    ComposeHash {
        /// The measured app.
        app_id: AppId,
        /// The measured document.
        compose_hash: ComposeHash,
    },
    /// Machine not on the list.
    #[error("device {device_id} is not allowed")]
    Device {
        /// The machine.
        device_id: Digest32,
    },
    /// A KMS whose measurement is not on the list.
    #[error("KMS measurement {mr_aggregated} is not allowed")]
    KmsMeasurement {
        /// Its aggregated measurement.
        mr_aggregated: Digest32,
    },
    /// A kind of TEE that is not on the list.
    #[error("evidence of the kind {variant} is not allowed")]
    TeeVariant {
        /// The kind.
        variant: String,
    },
    /// The policy wants fresh evidence, and nothing shows that this is.
    #[error("the evidence carries no nonce of this KMS, and the policy wants fresh evidence")]
    NotFresh,
    /// The nonce in the evidence was given out too long ago.
    #[error("the evidence may be {seconds} s old, and the policy allows {max_seconds} s")]
    TooOld {
        /// Age of the nonce.
        seconds: u64,
        /// The policy's limit.
        max_seconds: u64,
    },
    /// The backend said no. Its words are for the operator.
    #[error("the policy backend denies it: {reason}")]
    Backend {
        /// As the backend says, made fit for a log.
        reason: String,
    },
    /// The backend gave no usable answer.
    #[error("the policy backend gave no decision: {reason}")]
    Unavailable {
        /// What happened.
        reason: String,
    },
    /// The backend's view of the policy is too old to rest a decision on.
    #[error("the policy backend's view is {seconds} s old, {max_seconds} s are allowed")]
    Stale {
        /// Age of the view.
        seconds: u64,
        /// The limit.
        max_seconds: u64,
    },
}

impl Denial {
    /// Whether nothing is known against the boot: asking again later may help.
    #[must_use]
    pub fn is_undecided(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Stale { .. })
    }

    /// What a peer is told that did not prove who it is: that it is denied, not why.
    #[must_use]
    pub fn for_strangers() -> RpcError {
        RpcError::new("kms/denied", "Boot denied", "ask the operator of the KMS, whose log has the reason under this request's id")
    }

    /// What the attested boot itself is told: reason, code and fix, as far as they are about itself. What a backend said about it
    /// is for the operator.
    #[must_use]
    pub fn for_attested_caller(&self) -> RpcError {
        let mut error = RpcError::from_user_facing(self);
        if matches!(self, Self::Backend { .. } | Self::Unavailable { .. } | Self::Stale { .. }) {
            let told = Self::for_strangers();
            let message = if self.is_undecided() { "Boot denied: there is no decision of the policy at the moment" } else { "Boot denied" };
            return RpcError { code: error.code, message: message.to_owned(), fix: told.fix };
        }
        error.message = format!("Boot denied: {}", error.message);
        error
    }
}

impl UserFacing for Denial {
    fn code(&self) -> &'static str {
        match self {
            Self::Simulated => "kms/simulated-not-allowed",
            Self::TcbStatus { .. } => "kms/tcb-status-not-allowed",
            Self::Advisory { .. } => "kms/advisory-rejected",
            Self::OsImageUnknown => "kms/os-image-unknown",
            Self::OsImage { .. } => "kms/os-image-not-allowed",
            Self::NoApplication => "kms/no-application",
            Self::BootIncomplete => "kms/boot-incomplete",
            Self::AfterBoot => "kms/after-boot",
            Self::App { .. } => "kms/app-not-allowed",
            Self::ComposeHash { .. } => "kms/compose-hash-not-allowed",
            Self::Device { .. } => "kms/device-not-allowed",
            Self::KmsMeasurement { .. } => "kms/kms-measurement-not-allowed",
            Self::TeeVariant { .. } => "kms/tee-variant-not-allowed",
            Self::NotFresh => "kms/evidence-not-fresh",
            Self::TooOld { .. } => "kms/evidence-too-old",
            Self::Backend { .. } => "kms/policy-denied",
            Self::Unavailable { .. } => "kms/policy-unavailable",
            Self::Stale { .. } => "kms/policy-stale",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Simulated => {
                "run on TEE hardware, or set allow_simulated = true under [danger] in the allow list of a test system".into()
            }
            Self::TcbStatus { status } => {
                format!("update the platform's firmware and microcode, or add \"{status}\" to tcb_statuses in the allow list")
            }
            Self::Advisory { advisory } => format!("update the platform, or remove {advisory} from rejected_advisories in the allow list"),
            Self::OsImageUnknown => "boot an OS image whose host passes its measurement document in vm_config".into(),
            Self::OsImage { hash } => format!("boot an allowed image, or add {hash} to os_images in the allow list"),
            Self::NoApplication => "boot the VM through dstack-init, which measures app id and compose hash".into(),
            Self::BootIncomplete => "ask for keys after boot-mr-done was measured, as dstack-init does".into(),
            Self::AfterBoot => "ask for keys before key-provider is measured, as dstack-init does".into(),
            Self::App { app_id } => format!("add app {app_id} with its compose hash to apps in the allow list"),
            Self::ComposeHash { app_id, compose_hash } => {
                format!(
                    "add {compose_hash} to compose_hashes of app {app_id} in the allow list, or deploy the compose file that is allowed"
                )
            }
            Self::Device { device_id } => format!("run the app on an allowed machine, or add {device_id} to its devices in the allow list"),
            Self::TeeVariant { variant } => {
                format!("run on an allowed kind of TEE, or add \"{variant}\" to tee_variants in the allow list")
            }
            Self::NotFresh => {
                "boot a guest of this release, which asks for a nonce, or remove max_evidence_age_seconds from the allow list".into()
            }
            Self::TooOld { .. } => "ask again with new evidence, as dstack-init does".into(),
            Self::Backend { .. } => "allow the boot at the policy service that webhook.url names, or run what it allows".into(),
            Self::Unavailable { .. } => "check that the policy service at webhook.url runs and answers in time".into(),
            Self::Stale { .. } => "check that the policy backend reaches its source".into(),
            Self::KmsMeasurement { mr_aggregated } => format!("add {mr_aggregated} to kms.mr_aggregated in the allow list"),
        }
    }
}
