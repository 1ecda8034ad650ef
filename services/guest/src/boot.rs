//! The boot phases, from the host's share to the running application.
//!
//! ```text
//! HostConfigRead → ConfigMeasured → KeysObtained → DiskUnlocked → Networked → WorkloadStarted
//! ```
//! One struct per phase, consumed by the step to the next, so that nothing can be used before it exists: there are no
//! keys before the configuration was measured and no disk before there are keys. What does not depend on each other
//! runs side by side: the network comes up during measurement, the container runtime during the key request.

pub mod agent_setup;
pub mod children;
pub mod control;
pub mod disk;
pub mod docker_engine;
pub mod environment;
pub mod host_config;
pub mod host_share;
pub mod image_store;
pub mod images;
pub mod keys;
pub mod layout;
pub mod luks_header;
pub mod measured;
pub mod network;
pub mod received_keys;
pub mod registry;
pub mod requirements;
pub mod root;
pub mod sequence;
pub mod unlocked;
pub mod volumes;
pub mod workload;
