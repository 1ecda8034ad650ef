//! The documents two programs exchange, their exact bytes and hashes, and the typed ids, digests and sizes.
//!
//! Nothing here does I/O. A document that is hashed keeps the bytes it was parsed from; it is never written again.

mod app_compose;
pub mod disk_serial;
pub mod host_share;
mod ids;
mod image;
mod mr_config;
mod sys_config;
mod vm_config;

pub use app_compose::{
    AppCompose, AppComposeDocument, AppComposeError, KeyProviderKind, KeyScheme, MAX_APP_COMPOSE_BYTES, PreloadedImage, Requirements,
    Runner, StorageFs, VerityVolume,
};
pub use ids::{AppId, ComposeHash, Digest32, HexError, InstanceId, OsImageHash};
pub use image::{ImageMetadata, MAX_IMAGE_METADATA_BYTES};
pub use mr_config::{MrConfigDocument, MrConfigError, mr_config_hash_v3, mr_config_id_v1, mr_config_id_v2, mr_config_id_v3};
pub use sys_config::{CollateralUrls, InstanceInfo, SysConfig};
pub use vm_config::{MeasurementDocument, SnpMeasurementDocument, TdxAttestationVariant, VmConfig};
