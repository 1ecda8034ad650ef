//! OS images: what is in their directory, whether it is intact, and how it is made.
//!
//! - [`image`], [`store`]: load one image directory, list a folder of them.
//! - [`verify`]: everything an image says about itself, checked against its bytes.
//! - [`verity`]: the dm-verity hash tree, computed and written without the kernel.
//! - [`volume`]: an OCI archive as a read-only volume that a guest opens by its root hash.
//! - [`fetch`]: an image by its hash from a server, bounded and checked, for those who measure it.
//! - [`build`]: from a recipe and a lock file to an image directory, the same bytes each time.
//!
//! An image is identified by its `os_image_hash`, the SHA-256 of `sha256sum.txt`. That file lists everything that is
//! measured at launch; the root file system is bound by the dm-verity root on the measured command line.

pub mod build;
pub mod fetch;
pub mod image;
pub mod store;
pub mod tools;
pub mod verify;
pub mod verity;
pub mod volume;

pub use image::{Image, ImageError};
pub use store::ImageStore;
pub use verify::{VerifiedImage, verify};
