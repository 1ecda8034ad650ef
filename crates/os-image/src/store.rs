//! A folder of image directories.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::image::{Image, ImageError, METADATA_NAME};

/// A folder with one directory per image.
#[derive(Debug, Clone)]
pub struct ImageStore {
    root: PathBuf,
}

/// One directory of the store.
#[derive(Debug)]
pub struct StoreEntry {
    /// Name of the directory.
    pub name: String,
    /// The image, or why it cannot be used.
    pub image: Result<Image, ImageError>,
}

impl ImageStore {
    /// The store in `root`, which need not exist yet.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Its folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Loads one image by name.
    ///
    /// # Errors
    /// [`ImageError::BadName`], [`ImageError::NotFound`], or why the directory cannot be used.
    pub fn load(&self, name: &str) -> Result<Image, ImageError> {
        if !is_image_name(name) {
            return Err(ImageError::BadName { name: name.to_owned() });
        }
        let dir = self.root.join(name);
        if !dir.join(METADATA_NAME).exists() {
            return Err(ImageError::NotFound { name: name.to_owned(), store: self.root.clone() });
        }
        Image::load(&dir)
    }

    /// Every directory with a `metadata.json`, by name. A store that does not exist is empty.
    ///
    /// # Errors
    /// [`ImageError::Read`]: the folder exists and cannot be read.
    pub fn list(&self) -> Result<Vec<StoreEntry>, ImageError> {
        let failed = |source| ImageError::Read { path: self.root.clone(), source };
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            if is_image_name(&name) && self.root.join(&name).join(METADATA_NAME).exists() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names.into_iter().map(|name| StoreEntry { image: Image::load(&self.root.join(&name)), name }).collect())
    }
}

/// At most 64 letters, digits and `_-.`, not starting with a dot: safe as a path component and in a QEMU option.
#[must_use]
pub fn is_image_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    !name.is_empty() && name.len() <= 64 && !name.starts_with('.') && !name.contains("..") && name.bytes().all(allowed)
}
